//! Replicas of the orchestrator and the registry: what their shells do, on the simulated bus. An orchestrator decides under the lease and at
//! the heads, as the agent kit's authority says; what it has sent off arrives even when it is paused, deposed or dead by then.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message as _;
use razar_agent_kit::Authority;
use razar_bus_schema::{bucket::IntentKey, v1};
use razar_orchestrator::policy::{Action, Identity, LoadError, MissionsValue, Now, Outcome, Pending, State, WriteError};
use razar_registry::projection::{AGENT_EVENT_WINDOW, Projection};

use super::{
    bus::{ACK_WAIT, Client, DELIVERIES_MAX, Item, LEASE_TTL, Lease},
    faults::Fault,
    world::{Happening, World},
};

/// Events that wait to be stored at once.
const OUTBOX_MAX: usize = 256;
/// A command expires so long after it was stored, by the broker's clock.
const COMMAND_AGE_MAX: Duration = Duration::from_secs(60);
/// As above, by a replica whose clock is some seconds off: no sooner while no clock jumps.
pub const EXPIRES_SOONEST: Duration = Duration::from_secs(50);
/// A request that is not answered by then is taken for lost.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// How far a replica's clock is off as long as none jumps, in seconds.
pub const fn skew_at_start(index: usize) -> i64 {
    if index == 0 { 0 } else { 7 }
}

/// A replica of the orchestrator.
#[derive(Debug)]
pub struct Replica {
    /// It lives.
    pub alive: bool,
    /// Lives so far.
    pub lives: u64,
    /// Stopped until then.
    pub paused_until: Option<Duration>,
    /// Its policy.
    pub state: State,
    /// How far its wall clock is off, in seconds.
    pub wall_skew: i64,
    authority: Authority,
    renewed_at: Option<Duration>,
    cursor: u64,
    events_epoch: Option<u64>,
    intents_epoch: Option<String>,
    missions_epoch: Option<String>,
    missions_applied: u64,
    missions_head: Option<u64>,
    outbox: VecDeque<Arc<v1::Event>>,
    sending: bool,
    timer: Option<Duration>,
    started_at: Duration,
}

impl Replica {
    /// A replica that was not started yet.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self {
            alive: false,
            lives: 0,
            paused_until: None,
            state: State::default(),
            wall_skew: skew_at_start(index),
            authority: Authority::new(),
            renewed_at: None,
            cursor: 0,
            events_epoch: None,
            intents_epoch: None,
            missions_epoch: None,
            missions_applied: 0,
            missions_head: None,
            outbox: VecDeque::new(),
            sending: false,
            timer: None,
            started_at: Duration::ZERO,
        }
    }
}

/// A replica of the registry.
#[derive(Debug, Default)]
pub struct Registry {
    /// It lives.
    pub alive: bool,
    /// Its projection.
    pub projection: Projection,
    epoch: Option<u64>,
    snapshot: Option<(u64, v1::Observed)>,
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
        let lives = replica.lives + 1;
        // The clock is its machine's.
        *replica = Replica { alive: true, lives, started_at: now, wall_skew: replica.wall_skew, ..Replica::new(r) };
        replica.state = State::new(Identity { mesh: "razar".to_owned(), replica: format!("o{r}-{lives}") });
        self.say("orch", format_args!("replica {r} starts, life {lives}"));
        self.reconnect_soon(Client::Replica(r));
        self.later(Duration::from_millis(1), Happening::ReplicaLease(r, lives));
    }

    /// A replica dies; another takes its place after a while.
    pub fn kill_replica(&mut self, r: usize) {
        if self.replicas[r].alive {
            self.say("orch", format_args!("replica {r} killed"));
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
        self.replicas[r].state.stand_down();
        self.replicas[r].authority.connected();
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
        self.later(LEASE_TTL / 4, Happening::ReplicaLease(r, life));
        let now = self.now;
        let held = self.broker.lease.filter(|l| l.until > now);
        let ours = held.is_some_and(|l| l.holder == r && l.life == life);
        if !self.broker.reaches(Client::Replica(r)) {
            if self.replicas[r].renewed_at.is_some_and(|at| now > at + LEASE_TTL.mul_f64(0.6)) {
                self.replica_deposed(r);
            }
            return;
        }
        if ours || held.is_none() {
            self.broker.lease = Some(Lease { holder: r, life, until: now + LEASE_TTL });
            self.replicas[r].renewed_at = Some(now);
            if !ours {
                self.say("orch", format_args!("replica {r} takes the lease"));
                let fence = self.number();
                self.replicas[r].authority.lease_taken(fence);
                self.replica_turn(r, life);
            }
        } else if self.replicas[r].renewed_at.is_some() {
            self.replica_deposed(r);
        }
    }

    fn replica_deposed(&mut self, r: usize) {
        self.say("orch", format_args!("replica {r} loses the lease"));
        let replica = &mut self.replicas[r];
        replica.renewed_at = None;
        replica.authority.lease_lost();
        replica.state.stand_down();
    }

    /// Whether a replica may decide, as far as it can know.
    #[must_use]
    pub fn leads(&self, r: usize) -> bool {
        let replica = &self.replicas[r];
        replica.alive
            && replica.authority.may_decide()
            && replica.missions_head.is_some_and(|head| replica.missions_applied >= head)
            && replica.renewed_at.is_some_and(|at| self.now <= at + LEASE_TTL.mul_f64(0.6))
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
        let now = self.replica_clock(r);
        let writes =
            |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::WriteDesired(_) | Action::WriteMissions { .. })).count();
        let mut actions = self.replicas[r].state.decide(now);
        // What it decides is under way now: asked again, it decides on no second write.
        actions.extend(self.replicas[r].state.decide(now));
        if writes(&actions) > 1 {
            self.violated("I16", format!("replica {r} decides on two writes at once: {actions:?}"));
        }
        for action in actions {
            self.replica_acts(r, action, now);
        }
        let deadline = self.replicas[r].state.next_deadline(now).unwrap_or(now.mono + Duration::from_secs(1));
        let at = self.now + deadline.saturating_sub(now.mono).clamp(Duration::from_millis(1), Duration::from_secs(1));
        if self.replicas[r].timer.is_none_or(|t| at < t || t <= self.now) {
            self.replicas[r].timer = Some(at);
            self.at(at, Happening::ReplicaTurn(r, life));
        }
    }

    fn replica_acts(&mut self, r: usize, action: Action, now: Now) {
        let life = self.replicas[r].lives;
        if let Action::Publish(event) = action {
            if self.replicas[r].outbox.len() >= OUTBOX_MAX {
                self.replicas[r].state.apply_outcome(Outcome::Published { id: event.id, stored: false }, now);
                return;
            }
            self.replicas[r].outbox.push_back(Arc::from(event));
            self.replica_publishes(r);
            return;
        }
        if self.faults.on(Fault::ReplicaPaused) && self.net.per_mille(5) {
            let span = self.net.millis(1_000, 15_000);
            self.say("orch", format_args!("replica {r} paused for {span:?} with a decision in hand"));
            self.replicas[r].paused_until = Some(self.now + span);
        }
        let wait = self.latency();
        self.later(wait, Happening::ReplicaSends(r, life, Box::new(action)));
    }

    fn replica_publishes(&mut self, r: usize) {
        if self.replicas[r].sending || !self.replicas[r].alive {
            return;
        }
        let Some(event) = self.replicas[r].outbox.front().cloned() else { return };
        self.replicas[r].sending = true;
        let (wait, life) = (self.latency(), self.replicas[r].lives);
        self.later(wait, Happening::ReplicaSends(r, life, Box::new(Action::Publish(Box::new((*event).clone())))));
    }

    /// What a replica has sent arrives, whatever became of the replica.
    pub(super) fn replica_arrives(&mut self, r: usize, life: u64, action: Action) {
        let same = self.replicas[r].lives == life;
        // A paused process sends nothing; one that died may have sent it before.
        if same && let Some(until) = self.replicas[r].paused_until.filter(|until| *until > self.now) {
            self.at(until, Happening::ReplicaSends(r, life, Box::new(action)));
            return;
        }
        let dead = !same || !self.replicas[r].alive;
        let arrives = if dead { self.broker.up && self.net.per_mille(500) } else { self.broker.reaches(Client::Replica(r)) };
        let lost = self.faults.on(Fault::ReplyLost) && self.net.per_mille(40);
        let wait = if arrives && !lost { self.latency() } else { REQUEST_LIMIT };
        let outcome = match action {
            Action::Load { revision, profile } => {
                let found = self.stacks.blueprints.get(&(revision.clone(), profile.clone())).cloned();
                let away = || LoadError::Unavailable("the bus is away".to_owned());
                let refused = || LoadError::Refused("unknown_revision".to_owned(), "no such revision".to_owned(), Vec::new());
                let result = if arrives && !lost { found.ok_or_else(refused) } else { Err(away()) };
                Outcome::Loaded { revision, profile, result }
            }
            Action::WriteDesired(writes) => {
                let result = if arrives { self.write_desired(r, &writes) } else { Err(WriteError::Unknown) };
                Outcome::WroteDesired(writes, if lost { Err(WriteError::Unknown) } else { result })
            }
            Action::WriteMissions { writes, .. } => {
                let result = if arrives { self.write_missions(r, &writes) } else { Err(WriteError::Unknown) };
                Outcome::WroteMissions(writes, if lost { Err(WriteError::Unknown) } else { result })
            }
            Action::Publish(event) => {
                let id = event.id.clone();
                if arrives {
                    let reason = event.reason.as_ref().map_or("", |x| x.text.as_str()).to_owned();
                    self.say("orch", format_args!("replica {r} tells {}: {reason}", event.kind));
                    self.store_events(vec![Arc::from(event)]);
                }
                Outcome::Published { id, stored: arrives && !lost }
            }
            Action::Answer { token, receipt, .. } => {
                if arrives && !lost {
                    self.answered(r, token, &receipt);
                }
                return;
            }
        };
        self.later(wait, Happening::ReplicaReply(r, life, Box::new(outcome)));
    }

    fn write_desired(&mut self, r: usize, writes: &[(razar_bus_schema::ids::Instance, v1::Intent, u64)]) -> Result<Vec<u64>, WriteError> {
        if writes.is_empty() {
            self.violated("I9", "an empty batch is written".to_owned());
        }
        let batch: Vec<_> = writes
            .iter()
            .map(|(id, intent, expected)| (IntentKey::Desired(id.clone()).to_string(), Some(Arc::new(intent.clone())), Some(*expected)))
            .collect();
        let conflict = batch.iter().any(|(key, _, e)| self.broker.intents.entries.get(key).map_or(0, |(rev, _)| *rev) != e.unwrap_or(0));
        if !conflict {
            for (id, intent, _) in writes {
                self.check_desired_write(id, intent);
                let what = match &intent.want {
                    Some(v1::intent::Want::Desired(d)) => format!("{:?} generation {} on {}", d.mode(), d.generation, d.node),
                    _ => String::new(),
                };
                self.say("orch", format_args!("replica {r} writes {id}: {what}"));
            }
        }
        let result = self.broker.intents.put(batch).map_err(|()| WriteError::Conflict);
        self.feed_all();
        result
    }

    fn write_missions(&mut self, r: usize, writes: &[(MissionsValue, u64)]) -> Result<Vec<u64>, WriteError> {
        let batch: Vec<_> = writes.iter().map(|(value, expected)| (value.key(), value.clone(), Some(*expected))).collect();
        let old = match self.broker.missions.entries.get("plan") {
            Some((_, MissionsValue::Plan(plan))) => plan.settled_command_ids.clone(),
            _ => Vec::new(),
        };
        let result = self.broker.missions.put(batch).map_err(|()| WriteError::Conflict);
        if result.is_ok() {
            for (value, _) in writes {
                if let MissionsValue::Plan(plan) = value {
                    let mission = plan.mission_id.clone();
                    self.say("orch", format_args!("replica {r} writes the plan: mission {mission}, ended {}", plan.ended));
                    for command in plan.settled_command_ids.iter().filter(|c| !old.contains(c)) {
                        let again = !self.checks.settled_in_plan.insert(command.clone());
                        if again && !self.faults.had(Fault::MissionsLost) {
                            self.violated("I2", format!("command {command} took effect in the plan twice"));
                        }
                    }
                }
            }
        }
        self.feed_all();
        result
    }

    pub(super) fn replica_reply(&mut self, r: usize, life: u64, outcome: Outcome) {
        if let Outcome::Published { id, stored } = &outcome {
            if self.replicas[r].lives != life || !self.replicas[r].alive {
                return;
            }
            self.replicas[r].sending = false;
            if *stored && self.replicas[r].outbox.front().is_some_and(|e| e.id == *id) {
                self.replicas[r].outbox.pop_front();
            }
            self.replica_publishes(r);
            return;
        }
        if self.replicas[r].lives != life || !self.replicas[r].alive {
            return;
        }
        if let Some(until) = self.replicas[r].paused_until.filter(|until| *until > self.now) {
            self.at(until, Happening::ReplicaReply(r, life, Box::new(outcome)));
            return;
        }
        let now = self.replica_clock(r);
        self.replicas[r].state.apply_outcome(outcome, now);
        self.replica_turn(r, life);
    }

    /// Hands a replica some of what its reads say next; whether there is more.
    pub(super) fn feed_replica(&mut self, r: usize) -> bool {
        let (client, now) = (Client::Replica(r), self.replica_clock(r));
        let epoch = self.broker.events.epoch;
        if self.replicas[r].events_epoch != Some(epoch) {
            self.replicas[r].events_epoch = Some(epoch);
            self.replicas[r].cursor = 0;
            self.replicas[r].state.apply_reset();
            self.replicas[r].authority.events_reset();
        }
        for _ in 0..1 + self.net.below(20) {
            let replica = &mut self.replicas[r];
            let next = usize::try_from(replica.cursor).unwrap_or(usize::MAX);
            let Some(stored) = self.broker.events.stored.get(next) else { break };
            replica.cursor += 1;
            replica.state.apply_event(stored.sequence, &stored.event, now);
            replica.authority.events_applied(stored.sequence);
        }
        for _ in 0..1 + self.net.below(8) {
            let skip = self.net.per_mille(500);
            let Some((item, settled)) = self.broker.intents.next(client, skip) else { break };
            let replica = &mut self.replicas[r];
            match item {
                Item::Epoch(epoch) if replica.intents_epoch.as_ref() == Some(&epoch) => {}
                Item::Epoch(epoch) => {
                    replica.state.apply_intents_epoch(&epoch);
                    // The operator plays quarantine, and has written all it knows as soon as there is a bucket.
                    replica.state.apply_mark(&epoch);
                    replica.authority.intents_reset();
                    replica.intents_epoch = Some(epoch);
                }
                Item::Entry(key, revision, intent) => {
                    if let (Some(IntentKey::Desired(id)), Some(intent)) = (IntentKey::parse(&key), intent) {
                        replica.state.apply_record(&id, revision, intent);
                    }
                    if settled {
                        replica.authority.intents_applied(revision);
                    }
                }
                Item::Settled => replica.authority.intents_applied(self.broker.intents.revision),
            }
        }
        for _ in 0..1 + self.net.below(8) {
            let Some((item, settled)) = self.broker.missions.next(client, false) else { break };
            let replica = &mut self.replicas[r];
            match item {
                Item::Epoch(epoch) if replica.missions_epoch.as_ref() == Some(&epoch) => {}
                Item::Epoch(epoch) => {
                    replica.missions_epoch = Some(epoch);
                    replica.state.apply_missions_epoch();
                    replica.missions_applied = 0;
                    replica.missions_head = Some(self.broker.missions.revision);
                }
                Item::Entry(key, revision, value) => {
                    replica.state.apply_missions(&key, revision, Some(value), now);
                    if settled {
                        replica.missions_applied = replica.missions_applied.max(revision);
                    }
                }
                Item::Settled => replica.missions_applied = self.broker.missions.revision,
            }
        }
        let life = self.replicas[r].lives;
        self.replica_turn(r, life);
        let behind = |w: Option<&VecDeque<_>>| w.is_some_and(|w| !w.is_empty());
        let missions = self.broker.missions.watches.get(&client).is_some_and(|w| !w.is_empty());
        behind(self.broker.intents.watches.get(&client)) || missions || self.replicas[r].cursor < self.broker.events.head()
    }

    /// Commands that are due are delivered to whoever may decide.
    pub(super) fn commands_due(&mut self) {
        let waiting = self.broker.commands.iter().any(|c| !c.acked && c.deliveries < DELIVERIES_MAX);
        self.broker.commands_watched = waiting;
        if waiting {
            self.later(Duration::from_millis(500), Happening::CommandsDue);
        }
        let Some(r) = (0..self.replicas.len()).find(|r| self.leads(*r) && self.broker.reaches(Client::Replica(*r))) else { return };
        let now = self.now;
        for at in 0..self.broker.commands.len() {
            let token = self.number();
            let command = &mut self.broker.commands[at];
            if command.acked || command.deliveries >= DELIVERIES_MAX || command.next_at > now {
                continue;
            }
            command.deliveries += 1;
            command.next_at = now + ACK_WAIT;
            command.token = token;
            let pending = Pending {
                token,
                id: command.id.clone(),
                verb: command.verb.clone(),
                target: command.target.clone(),
                command: command.command.clone(),
                expires: command.stored_wall + COMMAND_AGE_MAX,
                verdict: None,
            };
            let (wait, life) = (self.latency(), self.replicas[r].lives);
            self.later(wait, Happening::CommandArrives(r, life, Box::new(pending)));
        }
    }

    pub(super) fn command_arrives(&mut self, r: usize, life: u64, pending: Pending) {
        if self.replicas[r].lives != life || !self.leads(r) || self.replicas[r].paused_until.is_some_and(|until| until > self.now) {
            return;
        }
        self.say("orch", format_args!("replica {r} gets {} {} {}", pending.id, pending.verb, pending.target));
        self.replicas[r].state.apply_command(pending);
        self.replica_turn(r, life);
    }

    fn answered(&mut self, r: usize, token: u64, receipt: &v1::Receipt) {
        let Some(command) = self.broker.commands.iter_mut().find(|c| c.token == token) else { return };
        if command.id != receipt.command_id {
            let text = format!("{} is answered with the receipt of {}", command.id, receipt.command_id);
            self.violated("I2", text);
            return;
        }
        command.acked = true;
        let (accepted, reason) = (receipt.accepted, &receipt.reason);
        self.say("orch", format_args!("replica {r} answers {}: accepted {accepted}, {reason}", receipt.command_id));
        self.check_receipt(receipt);
    }

    pub(super) fn start_registry(&mut self, r: usize) {
        let registry = &mut self.registries[r];
        if registry.alive {
            return;
        }
        registry.alive = true;
        registry.epoch = None;
        if let Some((epoch, snapshot)) = registry.snapshot.clone().filter(|(epoch, _)| *epoch == self.broker.events.epoch) {
            let bytes = snapshot.encode_to_vec();
            let read = v1::Observed::decode(bytes.as_slice()).unwrap_or_default();
            registry.projection = Projection::from_snapshot(read);
            registry.epoch = Some(epoch);
            let upto = registry.projection.applied_sequence();
            let from = upto.saturating_sub(AGENT_EVENT_WINDOW);
            for stored in self.broker.events.stored.iter().filter(|s| s.sequence > from && s.sequence <= upto) {
                registry.projection.prime(stored.sequence, &stored.event);
            }
        }
        self.reconnect_soon(Client::Registry(r));
    }

    /// Hands a registry some events; it may die of it, and begin again at its last snapshot.
    pub(super) fn feed_registry(&mut self, r: usize) -> bool {
        let epoch = self.broker.events.epoch;
        let registry = &mut self.registries[r];
        if registry.epoch != Some(epoch) {
            registry.epoch = Some(epoch);
            registry.projection = Projection::new(&format!("events-{epoch}"));
        }
        for _ in 0..1 + self.net.below(40) {
            let next = usize::try_from(registry.projection.applied_sequence()).unwrap_or(usize::MAX);
            let Some(stored) = self.broker.events.stored.get(next) else { break };
            let _ = registry.projection.apply(stored.sequence, &stored.event);
        }
        if self.net.per_mille(20) {
            registry.snapshot = Some((epoch, registry.projection.observed()));
        }
        if self.faults.on(Fault::RegistryKilled) && self.net.per_mille(5) {
            registry.alive = false;
            self.say("registry", format_args!("replica {r} killed"));
            self.broker.drop_line(Client::Registry(r));
            let wait = self.net.millis(100, 5_000);
            self.later(wait, Happening::RegistryStarts(r));
            return false;
        }
        self.registries[r].projection.applied_sequence() < self.broker.events.head()
    }
}
