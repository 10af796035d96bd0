//! A world for one or two watchdogs: a clock, subjects that beat, a broker that hands beats on or stands, a stream that keeps what is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use razar_bus_schema::{
    event::Kind as _,
    ids::{Incarnation, Instance},
    time,
    v1::{self, event::Fact, intent::Want, probe::Check},
};
use razar_watchdog::policy::{Action, Identity, Limits, Measured, Now, Outcome, Pinged, State};

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One that beats.
#[derive(Debug, Clone)]
pub(crate) struct Beater {
    pub(crate) beat: v1::Heartbeat,
    pub(crate) every: Duration,
    pub(crate) next: Duration,
    pub(crate) silent: bool,
    /// Its loop has stood since.
    pub(crate) stands: Option<Duration>,
    /// Its beats say always the same number.
    pub(crate) repeats: bool,
}

/// A replica of the watchdog.
#[derive(Debug)]
pub(crate) struct Dog {
    pub(crate) state: State,
    pub(crate) leads: bool,
    /// It is not scheduled.
    pub(crate) stopped: bool,
    folded: usize,
    /// Beats and echoes that wait for it, in the order of the broker.
    inbox: Vec<(Duration, v1::Heartbeat)>,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) dogs: Vec<Dog>,
    pub(crate) beaters: BTreeMap<String, Beater>,
    pub(crate) stream: Vec<v1::Event>,
    /// Every event that anybody offered, stored or not.
    pub(crate) offered: Vec<v1::Event>,
    /// Nodes that answer pings; all others: nobody listens, or silence for those in `mute`.
    pub(crate) answering: BTreeSet<String>,
    pub(crate) mute: BTreeSet<String>,
    pub(crate) looks: BTreeMap<Instance, v1::SilenceReply>,
    pub(crate) usage: Vec<Measured>,
    pub(crate) pings: usize,
    /// The broker reads nothing, and hands nothing on.
    pub(crate) broker_stands: bool,
    pub(crate) revision: u64,
    pub(crate) desired: BTreeMap<Instance, (u64, Arc<v1::Intent>)>,
    held: Vec<v1::Heartbeat>,
    outcomes: Vec<(Duration, usize, Outcome)>,
    sequence: u64,
    /// Epoch of the nodes' journals.
    epoch: String,
}

impl World {
    pub(crate) fn new(dogs: usize) -> Self {
        Self::with(dogs, Limits::default())
    }

    pub(crate) fn with(dogs: usize, limits: Limits) -> Self {
        let dog = |n: usize| {
            let who = Identity { mesh: "razar".to_owned(), replica: format!("w{n}") };
            Dog { state: State::new(who, limits), leads: n == 0, stopped: false, folded: 0, inbox: Vec::new() }
        };
        let mut world = Self {
            now: Duration::ZERO,
            dogs: (0..dogs).map(dog).collect(),
            beaters: BTreeMap::new(),
            stream: Vec::new(),
            offered: Vec::new(),
            answering: BTreeSet::new(),
            mute: BTreeSet::new(),
            looks: BTreeMap::new(),
            usage: Vec::new(),
            pings: 0,
            broker_stands: false,
            revision: 0,
            desired: BTreeMap::new(),
            held: Vec::new(),
            outcomes: Vec::new(),
            sequence: 0,
            epoch: "e".to_owned(),
        };
        for dog in &mut world.dogs {
            dog.state.apply_connected(Now { mono: Duration::ZERO, wall: UNIX_EPOCH });
            dog.state.apply_intents_epoch("b");
        }
        world
    }

    pub(crate) fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000) + self.now
    }

    pub(crate) fn at(&self) -> Now {
        Now { mono: self.now, wall: self.wall() }
    }

    fn store(&mut self, event: v1::Event) {
        if !self.stream.iter().any(|e| e.id == event.id) {
            self.stream.push(event);
        }
    }

    /// An event of node `a`.
    pub(crate) fn node_tells(&mut self, node: &str, instance: Option<(&Instance, Incarnation)>, fact: Fact) -> String {
        self.sequence += 1;
        let id = format!("n:{node}:{}:{}", self.epoch, self.sequence);
        let event = v1::Event {
            id: id.clone(),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "node".to_owned(), id: node.to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: node.to_owned(), epoch: self.epoch.clone(), sequence: self.sequence }),
            instance: instance.map(|(i, _)| i.into()),
            incarnation: instance.map(|(_, i)| i.into()),
            stack: "demo".to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(event);
        id
    }

    pub(crate) fn agent_tells(&mut self, id: &str, fact: Fact) {
        let source = Some(v1::Actor { kind: "orchestrator".to_owned(), id: "o".to_owned() });
        let event = v1::Event { id: id.to_owned(), kind: fact.kind().to_owned(), source, fact: Some(fact), ..Default::default() };
        self.store(event);
    }

    /// The disk of `node` is lost, and with it its journal and whatever it ran.
    pub(crate) fn new_journal(&mut self, node: &str) {
        self.epoch.push('+');
        self.node_tells(node, None, Fact::NodeJoined(v1::NodeJoined { node_epoch: self.epoch.clone(), ..Default::default() }));
    }

    /// A node joins and beats.
    pub(crate) fn node(&mut self, name: &str) {
        self.node_tells(name, None, Fact::NodeJoined(v1::NodeJoined { node_epoch: "e".to_owned(), ..Default::default() }));
        self.answering.insert(name.to_owned());
        self.beats(name, v1::Heartbeat { kind: "node".to_owned(), id: name.to_owned(), ..Default::default() }, ms(1000));
    }

    /// An agent starts and beats.
    pub(crate) fn agent(&mut self, kind: &str, id: &str) {
        let fact = v1::AgentStarted { kind: kind.to_owned(), id: id.to_owned(), ..Default::default() };
        self.sequence += 1;
        self.agent_tells(&format!("a:{kind}:agent_started:_:_:{id}:{}", self.sequence), Fact::AgentStarted(fact));
        let beat = v1::Heartbeat { kind: "agent".to_owned(), id: id.to_owned(), agent: kind.to_owned(), ..Default::default() };
        self.beats(id, beat, ms(1000));
    }

    /// An instance that beats is desired, and ready in its first incarnation.
    pub(crate) fn beating(&mut self, name: &str, every: Duration) -> Instance {
        let check = Check::Heartbeat(v1::HeartbeatCheck { interval: Some(time::duration(every)), misses: 3 });
        let liveness = Some(v1::Probe { check: Some(check), ..Default::default() });
        let instance = self.desire(name, "heart", |spec| spec.liveness = liveness.clone());
        self.ready(&instance, Incarnation::new(1, 1));
        let beat = v1::Heartbeat { kind: "component".to_owned(), id: instance.key(), generation: 1, start: 1, ..Default::default() };
        self.beats(name, beat, every);
        instance
    }

    pub(crate) fn ready(&mut self, instance: &Instance, incarnation: Incarnation) -> String {
        self.node_tells("a", Some((instance, incarnation)), Fact::ComponentStarted(v1::ComponentStarted::default()));
        self.node_tells("a", Some((instance, incarnation)), Fact::ComponentReady(v1::ComponentReady::default()))
    }

    pub(crate) fn exits(&mut self, instance: &Instance, incarnation: Incarnation) -> String {
        self.node_tells("a", Some((instance, incarnation)), Fact::ComponentExited(v1::ComponentExited::default()))
    }

    pub(crate) fn desire(&mut self, name: &str, chakra: &str, with: impl Fn(&mut v1::ComponentSpec)) -> Instance {
        let mut spec = v1::ComponentSpec { name: name.to_owned(), chakra: chakra.to_owned(), required: true, ..Default::default() };
        with(&mut spec);
        let instance = Instance::new(name, 0);
        let desired = v1::Desired {
            instance: Some((&instance).into()),
            node: "a".to_owned(),
            generation: 1,
            mode: v1::RunMode::Run.into(),
            spec: Some(spec),
            ..Default::default()
        };
        self.record(&instance, desired);
        instance
    }

    pub(crate) fn record(&mut self, instance: &Instance, desired: v1::Desired) {
        self.revision += 1;
        let intent = Arc::new(v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() });
        self.desired.insert(instance.clone(), (self.revision, intent));
    }

    fn beats(&mut self, name: &str, beat: v1::Heartbeat, every: Duration) {
        let beater = Beater { beat, every, next: self.now, silent: false, stands: None, repeats: false };
        self.beaters.insert(name.to_owned(), beater);
    }

    pub(crate) fn beater(&mut self, name: &str) -> &mut Beater {
        self.beaters.get_mut(name).unwrap()
    }

    /// Lets `span` pass in steps of 5 ms.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now += ms(5);
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let mut sent = Vec::new();
        for beater in self.beaters.values_mut().filter(|b| b.next <= now) {
            beater.next = now + beater.every;
            if beater.silent {
                continue;
            }
            if !beater.repeats {
                beater.beat.cycle += 1;
            }
            let age = beater.stands.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            beater.beat.loop_age = Some(time::duration(age));
            sent.push(beater.beat.clone());
        }
        sent.into_iter().for_each(|beat| self.send(beat));
        if !self.broker_stands {
            let held = std::mem::take(&mut self.held);
            // Whose connection is read first is the broker's to say; here the watchdog's own, which is the worst.
            let (echoes, beats): (Vec<_>, Vec<_>) = held.into_iter().partition(|b| b.kind == "echo");
            echoes.into_iter().chain(beats).for_each(|beat| self.hand_on(&beat));
        }
        // What is told now is read at the next step.
        let stream = self.stream.clone();
        for n in 0..self.dogs.len() {
            if !self.dogs[n].stopped {
                self.turn(n, &stream);
            }
        }
    }

    fn send(&mut self, beat: v1::Heartbeat) {
        if self.broker_stands { self.held.push(beat) } else { self.hand_on(&beat) }
    }

    fn hand_on(&mut self, beat: &v1::Heartbeat) {
        let now = self.now;
        self.dogs.iter_mut().for_each(|dog| dog.inbox.push((now, beat.clone())));
    }

    fn turn(&mut self, n: usize, stream: &[v1::Event]) {
        let at = self.at();
        let wall = self.wall();
        let due: Vec<_> = self.outcomes.extract_if(.., |(when, to, _)| *to == n && *when <= at.mono).collect();
        let dog = &mut self.dogs[n];
        for (instance, (revision, intent)) in &self.desired {
            dog.state.apply_desired(instance, *revision, intent.clone(), at);
        }
        for (place, event) in stream.iter().enumerate().skip(dog.folded) {
            dog.state.apply_event(place as u64 + 1, event, wall, at);
        }
        dog.folded = stream.len();
        due.into_iter().for_each(|(_, _, outcome)| dog.state.apply_outcome(outcome, at));
        let inbox: Vec<_> = dog.inbox.extract_if(.., |(sent, _)| *sent < at.mono).collect();
        for (_, beat) in inbox {
            match (beat.kind.as_str(), beat.id == format!("w{n}")) {
                ("echo", true) => dog.state.apply_echo(beat.cycle, at),
                ("echo", false) => {}
                _ => dog.state.apply_beat(&beat, at),
            }
        }
        dog.state.apply_turn(at);
        let mut actions = if dog.leads { dog.state.decide(at) } else { Vec::new() };
        actions.extend(dog.state.observe(at));
        actions.into_iter().for_each(|action| self.act(n, action));
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Echo(cycle) => self.send(v1::Heartbeat { kind: "echo".to_owned(), id: format!("w{n}"), cycle, ..Default::default() }),
            Action::Ping { node, limit } => {
                self.pings += 1;
                let (after, how) = match () {
                    () if self.mute.contains(&node) || self.broker_stands => (limit, Pinged::Silent),
                    () if self.answering.contains(&node) => (ms(1), Pinged::Answered),
                    () => (ms(1), Pinged::NoResponders),
                };
                self.outcomes.push((self.now + after, n, Outcome::Pinged(node, how)));
            }
            Action::Look { instance, .. } => {
                let reply = self.looks.get(&instance).cloned();
                self.outcomes.push((self.now + ms(1), n, Outcome::Looked(instance, reply.map(Box::new))));
            }
            Action::Measure { node } => {
                let measured = Some(self.usage.clone());
                self.outcomes.push((self.now + ms(1), n, Outcome::Measured(node, measured)));
            }
            Action::Publish(event) => {
                self.offered.push((*event).clone());
                if !self.broker_stands {
                    self.store(*event);
                }
            }
        }
    }

    /// Kinds of what watchdogs told, in order.
    pub(crate) fn told(&self) -> Vec<&str> {
        let ours = |e: &&v1::Event| e.source.as_ref().is_some_and(|s| s.kind == "watchdog");
        self.stream.iter().filter(ours).map(|e| e.kind.as_str()).filter(|k| *k != "great_spiral").collect()
    }

    /// The one event of this kind.
    pub(crate) fn only(&self, kind: &str) -> &v1::Event {
        let found: Vec<_> = self.stream.iter().filter(|e| e.kind == kind).collect();
        assert_eq!(found.len(), 1, "{kind}: {:?}", self.told());
        found[0]
    }
}
