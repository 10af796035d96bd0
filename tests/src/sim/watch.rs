//! What the watchdogs hear: beats of nodes, agents and components, and their own echoes, at most once, in order, each in its time; and how
//! nodes answer their questions. A watchdog listens turn by turn whenever anything comes to it; what changes nothing takes no step.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use razar_agent_kit::Now;
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    subject::MESH_CHAKRA,
    time,
    v1::{self, event::Fact},
};
use razar_watchdog::policy::Pinged;

use super::{
    bus::Client,
    faults::Fault,
    process::Proc,
    replica::mind::{Mind, Trade},
    verdicts::Whom,
    world::{Happening, World},
};

/// Time between two beats of a node, an agent, a component.
pub const BEAT: Duration = Duration::from_secs(1);
/// A watchdog that stopped for longer than this has not listened for the whole of a silence: its loop turns each 250 ms, and half a second
/// more is borne.
const NODS_OFF: Duration = Duration::from_millis(750);
/// An agent that is not heard with its start tries again after this.
const ANNOUNCE_RETRY: Duration = Duration::from_millis(500);
/// A node that is asked about an instance, or what is used, and does not answer is waited for so long.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// Age from which on a loop stands by its own beats.
const STANDS_AFTER: Duration = Duration::from_secs(3);

/// What comes to a watchdog beside streams.
#[derive(Debug, Clone)]
enum Sound {
    Beat(Arc<v1::Heartbeat>),
    Echo(u64),
}

/// The ears of a watchdog.
#[derive(Debug, Default)]
pub struct Ears {
    inbox: VecDeque<(Duration, Sound)>,
    /// It has listened up to then.
    upto: Duration,
    /// Since when it is there, connected and awake.
    pub attentive_since: Duration,
    /// When something last was late or lost that lets it count silence anew.
    pub disturbed_at: Duration,
    /// Since when it leads, as it is seen each second.
    pub leads_since: Option<Duration>,
}

impl Ears {
    /// A new line: what was on its way is lost.
    pub fn reconnected(&mut self, now: Duration) {
        self.inbox.clear();
        (self.upto, self.attentive_since) = (now, now);
    }

    /// It was stopped until `until`.
    pub fn woken(&mut self, until: Duration) {
        if until.saturating_sub(self.upto) > NODS_OFF {
            self.attentive_since = self.attentive_since.max(until);
        }
        self.upto = self.upto.max(until);
    }

    fn comes(&mut self, at: Duration, sound: Sound) {
        let at = self.inbox.back().map_or(at, |(last, _)| at.max(*last));
        self.inbox.push_back((at, sound));
    }
}

impl World {
    fn clock_of(&self, r: usize, at: Duration) -> Now {
        let now = self.replica_clock(r);
        let back = self.now.saturating_sub(at);
        Now { mono: now.mono.saturating_sub(back), wall: now.wall - back }
    }

    /// How long a message on the way of beats takes.
    fn trip(&mut self) -> Duration {
        if self.faults.on(Fault::SlowLine) && self.ether.per_mille(1) {
            return self.ether.millis(100, 3_000);
        }
        self.ether.span(Duration::from_micros(80), Duration::from_millis(3))
    }

    /// Every watchdog hears what has come by now: what happens next may cut it off.
    pub(super) fn all_listen(&mut self) {
        (0..self.replicas.len()).for_each(|r| self.listens(r));
    }

    /// A watchdog hears what has come to it by now, as its loop would turn by turn.
    pub(super) fn listens(&mut self, r: usize) {
        let now = self.now;
        let replica = &mut self.replicas[r];
        if replica.trade != Trade::Watchdog || !replica.alive || replica.paused_until.is_some_and(|until| until > now) {
            return;
        }
        if let Some(until) = replica.paused_until.take() {
            replica.ears.woken(until);
        }
        let floor = replica.ears.upto;
        let mut at = floor;
        while at < now {
            let Mind::Watchdog(state) = &self.replicas[r].mind else { return };
            let next = (at + state.turn_max()).min(now);
            self.hears(r, floor, next);
            let clock = self.clock_of(r, next);
            let Mind::Watchdog(state) = &mut self.replicas[r].mind else { return };
            state.apply_turn(clock);
            self.echoes(r, next);
            at = next;
        }
        self.replicas[r].ears.upto = now;
    }

    fn hears(&mut self, r: usize, floor: Duration, upto: Duration) {
        while let Some((at, sound)) = self.replicas[r].ears.inbox.pop_front_if(|(at, _)| *at <= upto) {
            let clock = self.clock_of(r, at.max(floor));
            let Mind::Watchdog(state) = &mut self.replicas[r].mind else { return };
            match sound {
                Sound::Beat(beat) => state.apply_beat(&beat, clock),
                Sound::Echo(number) => state.apply_echo(number, clock),
            }
        }
    }

    /// Sends the echoes that are due at `at`.
    pub(super) fn echoes(&mut self, r: usize, at: Duration) {
        let clock = self.clock_of(r, at);
        let Mind::Watchdog(state) = &mut self.replicas[r].mind else { return };
        for action in state.observe(clock) {
            let razar_watchdog::policy::Action::Echo(number) = action else { continue };
            if !self.broker.reaches(Client::Replica(r)) {
                self.replicas[r].ears.disturbed_at = at;
                continue;
            }
            let trip = self.trip() + self.trip();
            let ears = &mut self.replicas[r].ears;
            ears.comes(at + trip, Sound::Echo(number));
            let late = ears.inbox.back().is_some_and(|(back, _)| *back > at + Duration::from_millis(90));
            if late {
                ears.disturbed_at = at + Duration::from_secs(6);
            }
        }
    }

    /// Somebody's beat is due; the next one is in a second, whatever becomes of this one.
    pub(super) fn beats(&mut self, of: Client) {
        let late = self.ether.span(Duration::ZERO, Duration::from_millis(5));
        self.later(BEAT + late, Happening::Beats(of));
        if let (Some(beat), true) = (self.beat_of(of), self.broker.reaches(of)) {
            self.sounds(beat);
        }
        self.check_told_in_time(of);
    }

    fn beat_of(&self, of: Client) -> Option<v1::Heartbeat> {
        let cycle = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        let whom = self.whom(of);
        let (kind, id, agent, age) = match (of, whom) {
            (Client::Host(h), Whom::Node(name)) => {
                let host = &self.hosts[h];
                let well = host.agent.is_some() && host.paused_until.is_none_or(|until| until <= self.now);
                (well && host.muted_until.is_none_or(|until| until <= self.now)).then_some(("node", name, String::new(), Duration::ZERO))?
            }
            (Client::Replica(r), Whom::Agent(agent, id)) => {
                let replica = &self.replicas[r];
                let stops = replica.paused_until.filter(|until| *until > self.now);
                let age = match (stops, replica.stands_since) {
                    (None, _) => Duration::ZERO,
                    (Some(_), Some(since)) => self.now.saturating_sub(since),
                    (Some(_), None) => return None,
                };
                replica.alive.then_some(("agent", id, agent, age))?
            }
            (Client::Registry(r), Whom::Agent(agent, id)) => self.registries[r].alive.then_some(("agent", id, agent, Duration::ZERO))?,
            _ => return None,
        };
        let loop_age = Some(time::duration(age));
        Some(v1::Heartbeat { kind: kind.to_owned(), id, agent, cycle, loop_age, ..Default::default() })
    }

    /// Who a client is to a watchdog.
    pub(super) fn whom(&self, of: Client) -> Whom {
        match of {
            Client::Host(h) => Whom::Node(self.hosts[h].name.clone()),
            Client::Replica(r) => {
                let trade = self.replicas[r].trade;
                Whom::Agent(trade.kind().to_owned(), trade.id(r))
            }
            Client::Registry(r) => Whom::Agent("registry".to_owned(), format!("registry{r}")),
        }
    }

    /// A component that beats does so; whether the bus has it.
    pub(super) fn component_beats(&mut self, proc: &Proc) -> bool {
        let cycle = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        self.sounds(v1::Heartbeat {
            kind: "component".to_owned(),
            id: proc.instance.to_string(),
            cycle,
            loop_age: Some(time::duration(Duration::ZERO)),
            generation: proc.incarnation.generation,
            start: proc.incarnation.start,
            ..Default::default()
        })
    }

    /// A beat is sent: the broker gives it to all who listen, unless it is lost before.
    fn sounds(&mut self, beat: v1::Heartbeat) -> bool {
        if self.faults.on(Fault::BeatsLost) && self.ether.per_mille(40) {
            return false;
        }
        let whom = match beat.kind.as_str() {
            "node" => Whom::Node(beat.id.clone()),
            "agent" => Whom::Agent(beat.agent.clone(), beat.id.clone()),
            _ => Whom::Component(beat.id.clone(), Incarnation::new(beat.generation, beat.start)),
        };
        let stands = time::duration_or(beat.loop_age.as_ref(), Duration::ZERO) >= STANDS_AFTER;
        let sent = self.now + self.trip();
        let passes = self.checks.watching.passes(whom, sent, stands);
        let beat = Arc::new(beat);
        for r in 0..self.replicas.len() {
            if self.replicas[r].trade != Trade::Watchdog || !self.broker.reaches(Client::Replica(r)) {
                continue;
            }
            self.listens(r);
            if self.faults.on(Fault::BeatsLost) && self.ether.per_mille(1) {
                self.drops_beats(r);
                continue;
            }
            let arrives = passes + self.trip();
            self.replicas[r].ears.comes(arrives, Sound::Beat(beat.clone()));
        }
        true
    }

    /// Beats came too fast for a watchdog: it knows that some are gone.
    fn drops_beats(&mut self, r: usize) {
        let (now, clock) = (self.now, self.replica_clock(r));
        let replica = &mut self.replicas[r];
        if replica.paused_until.is_some_and(|until| until > now) {
            return;
        }
        if let Mind::Watchdog(state) = &mut replica.mind {
            state.apply_dropped(clock);
        }
        (replica.ears.attentive_since, replica.ears.disturbed_at) = (now, now);
        self.say("watchdog", format_args!("replica {r} has dropped beats"));
    }

    /// How a node answers a ping, and when.
    pub(super) fn pinged(&mut self, node: &str, limit: Duration) -> (Pinged, Duration) {
        let Some(h) = self.hosts.iter().position(|host| host.name == node) else { return (Pinged::NoResponders, Duration::from_millis(1)) };
        let trip = self.trip() + self.trip();
        if !self.broker.reaches(Client::Host(h)) || self.hosts[h].agent.is_none() {
            // The broker may not have seen yet that the line is broken.
            return if self.ether.per_mille(300) { (Pinged::Silent, limit) } else { (Pinged::NoResponders, trip.min(limit)) };
        }
        let stops = self.hosts[h].paused_until.is_some_and(|until| until > self.now);
        if stops || trip > limit { (Pinged::Silent, limit) } else { (Pinged::Answered, trip) }
    }

    /// What a node makes of an instance that does not beat.
    pub(super) fn looks_at(&mut self, r: usize, node: &str, instance: &Instance) -> (Option<v1::SilenceReply>, Duration) {
        let hears = |h: &usize| self.broker.reaches(Client::Host(*h)) && self.hosts[*h].paused_until.is_none_or(|until| until <= self.now);
        let h = self.hosts.iter().position(|host| host.name == node).filter(hears);
        let Some((h, agent)) = h.and_then(|h| Some((h, self.hosts[h].agent.as_ref()?))) else { return (None, ASK_LIMIT) };
        let reply = agent.node.silence(instance);
        let life = reply.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let hung = self.hosts[h].oracle.is_hung(instance, life);
        self.checks.watching.looked(r, instance, life, hung);
        let trip = self.trip() + self.trip();
        (Some(reply), trip)
    }

    /// An agent tells that it is here, as soon as the bus takes it.
    pub(super) fn announces(&mut self, of: Client, life: u64) {
        let (current, paused) = match of {
            Client::Replica(r) => (self.replicas[r].alive && self.replicas[r].lives == life, self.replicas[r].paused_until),
            Client::Registry(r) => (self.registries[r].alive && self.registries[r].lives == life, None),
            Client::Host(_) => (false, None),
        };
        if !current {
            return;
        }
        if paused.is_some_and(|until| until > self.now) || !self.broker.reaches(of) {
            self.later(ANNOUNCE_RETRY, Happening::Announces(of, life));
            return;
        }
        let Whom::Agent(kind, id) = self.whom(of) else { return };
        let fact = Fact::AgentStarted(v1::AgentStarted { kind: kind.clone(), id: id.clone(), ..Default::default() });
        let event = v1::Event {
            id: format!("a:{kind}:agent_started:_:_:{id}:{life}:{}", self.broker.events.epoch),
            kind: "agent_started".to_owned(),
            time: Some(time::timestamp(self.wall(0))),
            source: Some(v1::Actor { kind, id }),
            chakra: MESH_CHAKRA.to_owned(),
            mesh: "razar".to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        self.store_events(vec![Arc::new(event)]);
    }
}
