//! Replicas of the agents that decide: what their shells do, on the simulated bus. A replica decides under its lease and at the heads, as the
//! agent kit's authority says; what it has sent off arrives even when it is paused, deposed or dead by then.

mod arrivals;
pub mod mind;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use razar_agent_kit::{Authority, Now};
use razar_bus_schema::v1;
use razar_watchdog::policy as watchdog;

use self::mind::{Deed, Heard, Mind, Trade};
use super::{
    bus::{Client, Item, Lease},
    faults::Fault,
    watch::Ears,
    world::{Happening, World},
};

/// Events that wait to be stored at once.
const OUTBOX_MAX: usize = 256;
/// As above, by a replica whose clock is some seconds off: no sooner while no clock jumps.
pub const EXPIRES_SOONEST: Duration = Duration::from_secs(50);
/// A request that is not answered by then is taken for lost.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// How far a replica's clock is off as long as none jumps, in seconds.
pub const fn skew_at_start(index: usize) -> i64 {
    if index.is_multiple_of(2) { 0 } else { 7 }
}

/// A replica of an agent that decides.
#[derive(Debug)]
pub struct Replica {
    /// Which agent it is of.
    pub trade: Trade,
    /// It lives.
    pub alive: bool,
    /// Lives so far.
    pub lives: u64,
    /// Stopped until then.
    pub paused_until: Option<Duration>,
    /// Its policy.
    pub mind: Mind,
    /// How far its wall clock is off, in seconds.
    pub wall_skew: i64,
    /// Its loop stands since then, and its beats go on.
    pub stands_since: Option<Duration>,
    /// What a watchdog hears beside the streams.
    pub ears: Ears,
    authority: Authority,
    renewed_at: Option<Duration>,
    /// Events folded.
    pub cursor: u64,
    caught_up: bool,
    events_epoch: Option<u64>,
    intents_epoch: Option<String>,
    missions_epoch: Option<String>,
    missions_applied: u64,
    missions_head: Option<u64>,
    /// The registry's snapshot, as it was when this life began, with its epoch.
    snapshot: Option<(u64, v1::Observed)>,
    outbox: VecDeque<Arc<v1::Event>>,
    sending: bool,
    timer: Option<Duration>,
    started_at: Duration,
}

impl Replica {
    /// A replica that was not started yet.
    #[must_use]
    pub fn new(trade: Trade, index: usize) -> Self {
        Self {
            trade,
            alive: false,
            lives: 0,
            paused_until: None,
            mind: Mind::new(trade, String::new(), &super::ailments::Figures::default()),
            wall_skew: skew_at_start(index),
            stands_since: None,
            ears: Ears::default(),
            authority: Authority::new(),
            renewed_at: None,
            cursor: 0,
            caught_up: false,
            events_epoch: None,
            intents_epoch: None,
            missions_epoch: None,
            missions_applied: 0,
            missions_head: None,
            snapshot: None,
            outbox: VecDeque::new(),
            sending: false,
            timer: None,
            started_at: Duration::ZERO,
        }
    }
}

impl World {
    pub(super) fn replica_clock(&self, r: usize) -> Now {
        let replica = &self.replicas[r];
        Now { mono: self.now.saturating_sub(replica.started_at), wall: self.wall(replica.wall_skew) }
    }

    pub(super) fn start_replica(&mut self, r: usize) {
        if self.replicas[r].alive {
            return;
        }
        let now = self.now;
        let replica = &mut self.replicas[r];
        let (lives, trade) = (replica.lives + 1, replica.trade);
        // The clock is its machine's.
        *replica = Replica { alive: true, lives, started_at: now, wall_skew: replica.wall_skew, ..Replica::new(trade, r) };
        replica.mind = Mind::new(trade, trade.id(r), &self.figures);
        replica.ears.reconnected(now);
        replica.snapshot.clone_from(&self.registries[r % self.registries.len()].snapshot);
        self.say(trade.name(), format_args!("replica {r} starts, life {lives}"));
        self.reconnect_soon(Client::Replica(r));
        self.later(Duration::from_millis(1), Happening::ReplicaLease(r, lives));
        self.later(Duration::from_millis(1), Happening::Announces(Client::Replica(r), lives));
    }

    /// A replica stops, with whatever it has in hand.
    pub(super) fn pause_replica(&mut self, r: usize, span: Duration) {
        self.listens(r);
        self.replicas[r].paused_until = Some(self.now + span);
        self.replicas[r].stands_since = None;
    }

    /// A replica dies; another takes its place after a while.
    pub fn kill_replica(&mut self, r: usize) {
        if self.replicas[r].alive {
            self.say(self.replicas[r].trade.name(), format_args!("replica {r} killed"));
            self.replicas[r].alive = false;
            self.replicas[r].paused_until = None;
            self.broker.drop_line(Client::Replica(r));
            let wait = self.chaos.millis(50, 8_000);
            self.later(wait, Happening::ReplicaStarts(r));
        }
    }

    pub(super) fn replica_connected(&mut self, r: usize) {
        // The line may have broken without being seen to: what was held is void either way.
        self.replicas[r].authority.disconnected();
        self.replicas[r].mind.stand_down();
        self.replicas[r].authority.connected();
        let (now, clock) = (self.now, self.replica_clock(r));
        self.replicas[r].ears.reconnected(now);
        self.replicas[r].mind.apply_connected(clock);
        let life = self.replicas[r].lives;
        self.later(Duration::from_micros(100), Happening::ReplicaTurn(r, life));
        self.replica_publishes(r);
    }

    /// Whether this replica lives, as this life of it, and is not paused; a pause puts the happening off.
    fn awake(&mut self, r: usize, life: u64, again: impl FnOnce() -> Happening) -> bool {
        let replica = &self.replicas[r];
        if !replica.alive || replica.lives != life {
            return false;
        }
        if let Some(until) = replica.paused_until.filter(|until| *until > self.now) {
            self.at(until, again());
            return false;
        }
        true
    }

    pub(super) fn replica_lease(&mut self, r: usize, life: u64) {
        if !self.awake(r, life, || Happening::ReplicaLease(r, life)) {
            return;
        }
        let trade = self.replicas[r].trade;
        let ttl = trade.lease_ttl();
        self.later(ttl / 4, Happening::ReplicaLease(r, life));
        let now = self.now;
        let held = self.broker.leases.get(&trade).copied().filter(|l| l.until > now);
        let ours = held.is_some_and(|l| l.holder == r && l.life == life);
        if !self.broker.reaches(Client::Replica(r)) {
            if self.replicas[r].renewed_at.is_some_and(|at| now > at + ttl.mul_f64(0.6)) {
                self.replica_deposed(r);
            }
            return;
        }
        if ours || held.is_none() {
            // One that was never lost may be renewed after it had run out by the replica's own clock.
            let led = self.leads(r);
            self.broker.leases.insert(trade, Lease { holder: r, life, until: now + ttl });
            self.replicas[r].renewed_at = Some(now);
            if !ours {
                self.say(trade.name(), format_args!("replica {r} takes the lease"));
                let fence = self.number();
                self.replicas[r].authority.lease_taken(fence);
            }
            if !led {
                self.replica_turn(r, life);
            }
        } else if self.replicas[r].renewed_at.is_some() {
            self.replica_deposed(r);
        }
    }

    fn replica_deposed(&mut self, r: usize) {
        self.say(self.replicas[r].trade.name(), format_args!("replica {r} loses the lease"));
        let replica = &mut self.replicas[r];
        replica.renewed_at = None;
        replica.authority.lease_lost();
        replica.mind.stand_down();
    }

    /// Whether a replica may decide, as far as it can know.
    #[must_use]
    pub fn leads(&self, r: usize) -> bool {
        let replica = &self.replicas[r];
        let missions = replica.missions_head.is_some_and(|head| replica.missions_applied >= head);
        replica.alive
            && replica.authority.may_decide()
            && (replica.trade != Trade::Orchestrator || missions)
            && replica.renewed_at.is_some_and(|at| self.now <= at + replica.trade.lease_ttl().mul_f64(0.6))
    }

    pub(super) fn replica_turn(&mut self, r: usize, life: u64) {
        if !self.awake(r, life, || Happening::ReplicaTurn(r, life)) {
            return;
        }
        if let Some(wanted) = self.replicas[r].authority.wants_heads().filter(|_| self.broker.reaches(Client::Replica(r))) {
            let (events, intents, missions) = (self.broker.events.head(), self.broker.intents.revision, self.broker.missions.revision);
            self.replicas[r].missions_head = Some(missions);
            self.replicas[r].authority.heads_read(wanted, events, intents);
        }
        if !self.leads(r) {
            return;
        }
        // Who has just woken may decide before it hears what has come meanwhile.
        let woken = self.replicas[r].paused_until.is_some();
        if !(woken && self.ether.per_mille(400)) {
            self.listens(r);
        }
        let now = self.replica_clock(r);
        let mut deeds = self.replicas[r].mind.decide(now);
        // What it decides is under way now: asked again, it decides on no second write.
        deeds.extend(self.replicas[r].mind.decide(now));
        self.echoes(r, self.now);
        self.check_deeds(r, &deeds);
        for deed in deeds {
            self.replica_acts(r, deed, now);
            if !self.replicas[r].alive {
                return;
            }
        }
        let deadline = self.replicas[r].mind.next_deadline(now).unwrap_or(now.mono + Duration::from_secs(1));
        let at = self.now + deadline.saturating_sub(now.mono).clamp(Duration::from_millis(1), Duration::from_secs(1));
        if self.replicas[r].timer.is_none_or(|t| at < t || t <= self.now) {
            self.replicas[r].timer = Some(at);
            self.at(at, Happening::ReplicaTurn(r, life));
        }
    }

    fn replica_acts(&mut self, r: usize, deed: Deed, now: Now) {
        let (life, trade) = (self.replicas[r].lives, self.replicas[r].trade);
        if let Deed::Publish(event) = deed {
            if self.replicas[r].outbox.len() >= OUTBOX_MAX {
                self.replicas[r].mind.not_published(event.id, now);
                return;
            }
            self.replicas[r].outbox.push_back(Arc::from(event));
            self.replica_publishes(r);
        } else {
            let wait = self.latency();
            self.later(wait, Happening::ReplicaSends(r, life, Box::new(deed)));
        }
        if self.faults.on(Fault::ReplicaPaused) && self.net.per_mille(5) {
            let span = self.net.millis(1_000, 15_000);
            self.say(trade.name(), format_args!("replica {r} paused for {span:?} with a decision in hand"));
            self.pause_replica(r, span);
        } else if self.faults.on(Fault::ReplicaKilled) && self.net.per_mille(5) {
            self.kill_replica(r);
        }
    }

    fn replica_publishes(&mut self, r: usize) {
        if self.replicas[r].sending || !self.replicas[r].alive {
            return;
        }
        let Some(event) = self.replicas[r].outbox.front().cloned() else { return };
        self.replicas[r].sending = true;
        let (wait, life) = (self.latency(), self.replicas[r].lives);
        self.later(wait, Happening::ReplicaSends(r, life, Box::new(Deed::Publish(Box::new((*event).clone())))));
    }

    pub(super) fn replica_reply(&mut self, r: usize, life: u64, heard: Heard) {
        if self.replicas[r].lives != life || !self.replicas[r].alive {
            return;
        }
        if let Heard::Published { id, stored } = &heard {
            self.replicas[r].sending = false;
            if *stored && self.replicas[r].outbox.front().is_some_and(|e| e.id == *id) {
                self.replicas[r].outbox.pop_front();
            }
            self.replica_publishes(r);
            return;
        }
        if let Some(until) = self.replicas[r].paused_until.filter(|until| *until > self.now) {
            self.at(until, Happening::ReplicaReply(r, life, Box::new(heard)));
            return;
        }
        let now = self.replica_clock(r);
        if let Heard::Watchdog(watchdog::Outcome::Pinged(node, watchdog::Pinged::Answered)) = &heard {
            self.checks.watching.answered(r, node, self.now);
        }
        self.replicas[r].mind.apply_heard(heard, now);
        self.replica_turn(r, life);
    }

    /// Hands a replica some of what its reads say next; whether there is more.
    pub(super) fn feed_replica(&mut self, r: usize) -> bool {
        let client = Client::Replica(r);
        self.feed_events(r);
        self.feed_intents(r);
        if self.replicas[r].trade == Trade::Orchestrator {
            self.feed_missions(r);
        }
        let life = self.replicas[r].lives;
        self.replica_turn(r, life);
        let intents = self.broker.intents.watches.get(&client).is_some_and(|w| !w.is_empty());
        let missions = self.broker.missions.watches.get(&client).is_some_and(|w| !w.is_empty());
        intents || missions || self.replicas[r].cursor < self.broker.events.head()
    }

    fn feed_events(&mut self, r: usize) {
        let (now, epoch) = (self.replica_clock(r), self.broker.events.epoch);
        let replica = &mut self.replicas[r];
        if replica.events_epoch != Some(epoch) {
            let known = replica.events_epoch.replace(epoch);
            (replica.cursor, replica.caught_up) = (0, false);
            let snapshot = replica.snapshot.as_ref().filter(|(of, _)| *of == epoch).map(|(_, snapshot)| snapshot);
            replica.mind.apply_reset(snapshot, now);
            replica.authority.events_reset();
            if known.is_some() {
                let life = replica.lives;
                self.later(Duration::from_millis(1), Happening::Announces(Client::Replica(r), life));
            }
        }
        for _ in 0..1 + self.net.below(20) {
            let replica = &mut self.replicas[r];
            let next = usize::try_from(replica.cursor).unwrap_or(usize::MAX);
            let Some(stored) = self.broker.events.stored.get(next) else { break };
            replica.cursor += 1;
            replica.mind.apply_event(stored, now);
            replica.authority.events_applied(stored.sequence);
        }
        let replica = &mut self.replicas[r];
        if replica.cursor >= self.broker.events.head() && !std::mem::replace(&mut replica.caught_up, true) {
            replica.mind.apply_caught_up();
        }
    }

    fn feed_intents(&mut self, r: usize) {
        let (client, now) = (Client::Replica(r), self.replica_clock(r));
        for _ in 0..1 + self.net.below(8) {
            let skip = self.net.per_mille(500);
            let Some((item, settled)) = self.broker.intents.next(client, skip) else { break };
            let replica = &mut self.replicas[r];
            match item {
                Item::Epoch(epoch) if replica.intents_epoch.as_ref() == Some(&epoch) => {}
                Item::Epoch(epoch) => {
                    // Where the operator plays quarantine, it has written all it knows as soon as there is a bucket.
                    replica.mind.apply_intents_epoch(&epoch, self.by_hand);
                    replica.authority.intents_reset();
                    replica.intents_epoch = Some(epoch);
                }
                Item::Entry(key, revision, intent) => {
                    replica.mind.apply_entry(&key, revision, intent, now);
                    if settled {
                        replica.authority.intents_applied(revision);
                    }
                }
                Item::Settled => replica.authority.intents_applied(self.broker.intents.revision),
            }
        }
    }

    fn feed_missions(&mut self, r: usize) {
        let (client, now) = (Client::Replica(r), self.replica_clock(r));
        for _ in 0..1 + self.net.below(8) {
            let Some((item, settled)) = self.broker.missions.next(client, false) else { break };
            let replica = &mut self.replicas[r];
            match item {
                Item::Epoch(epoch) if replica.missions_epoch.as_ref() == Some(&epoch) => {}
                Item::Epoch(epoch) => {
                    replica.missions_epoch = Some(epoch);
                    replica.mind.apply_missions_epoch();
                    replica.missions_applied = 0;
                    replica.missions_head = Some(self.broker.missions.revision);
                }
                Item::Entry(key, revision, value) => {
                    replica.mind.apply_missions(&key, revision, value, now);
                    if settled {
                        replica.missions_applied = replica.missions_applied.max(revision);
                    }
                }
                Item::Settled => replica.missions_applied = self.broker.missions.revision,
            }
        }
    }
}
