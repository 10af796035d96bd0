//! A broker in memory around the policy: what is decided is carried out at once, unless a test holds it back.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use razar_bus_schema::{
    bucket::IntentKey,
    event::Kind as _,
    ids::{Incarnation, Incident, Instance},
    v1::{self, QuarantinePhase as Phase, event::Fact, intent::Want},
};
use razar_quarantine::policy::{Action, Identity, Limits, Now, Outcome, Pending, State};

/// Rounds after which nothing may be left to do.
const STORM: usize = 100;

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Now,
    pub(crate) epoch: String,
    pub(crate) bucket: BTreeMap<String, (u64, v1::Intent)>,
    pub(crate) events: Vec<v1::Event>,
    pub(crate) receipts: Vec<v1::Receipt>,
    /// Every write, in order.
    pub(crate) writes: Vec<(String, v1::Intent)>,
    /// What is published is not stored.
    pub(crate) mute: bool,
    /// When the broker stored each event, by its clock.
    stored: Vec<std::time::SystemTime>,
    revision: u64,
    node_sequence: u64,
    /// Journal of the node.
    pub(crate) journal: &'static str,
    token: u64,
    patience: Duration,
}

pub(crate) fn limits() -> Limits {
    Limits { isolation: Duration::from_secs(1800), soak: Duration::from_secs(5) }
}

fn state() -> State {
    State::new(Identity { mesh: "razar".to_owned(), replica: "q1".to_owned() }, limits())
}

pub(crate) fn api() -> Instance {
    Instance::new("api", 0)
}

impl World {
    /// A mesh whose node has told its inventory, and in which these components are desired; a name may have a need: `web>api`.
    pub(crate) fn of(components: &[&str]) -> Self {
        let mut world = Self {
            state: state(),
            now: Now { mono: Duration::from_secs(1), wall: UNIX_EPOCH + Duration::from_secs(1_000_000) },
            epoch: "b1".to_owned(),
            bucket: BTreeMap::new(),
            events: Vec::new(),
            receipts: Vec::new(),
            writes: Vec::new(),
            mute: false,
            stored: Vec::new(),
            revision: 0,
            node_sequence: 0,
            journal: "e1",
            token: 0,
            patience: Duration::from_secs(60),
        };
        world.state.apply_intents_epoch("b1");
        world.inventory(&[]);
        for text in components {
            world.desire(text, 1);
        }
        world.settle();
        world
    }

    pub(crate) fn desire(&mut self, text: &str, generation: u64) {
        let (name, need) = text.split_once('>').unwrap_or((text, ""));
        let needs = Some(need).filter(|n| !n.is_empty());
        let depends_on = needs.map(|n| v1::Dependency { component: n.to_owned(), required: true, ..Default::default() });
        let spec = v1::ComponentSpec {
            name: name.to_owned(),
            chakra: "heart".to_owned(),
            required: true,
            depends_on: depends_on.into_iter().collect(),
            ..Default::default()
        };
        let instance = Instance::new(name, 0);
        let desired = v1::Desired {
            instance: Some((&instance).into()),
            generation,
            mode: v1::RunMode::Run.into(),
            spec: Some(spec),
            stack: "demo".to_owned(),
            ..Default::default()
        };
        self.put(&IntentKey::Desired(instance), v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() });
    }

    fn put(&mut self, key: &IntentKey, intent: v1::Intent) -> u64 {
        self.revision += 1;
        self.bucket.insert(key.to_string(), (self.revision, intent.clone()));
        self.state.apply_record(key, self.revision, Arc::new(intent), self.now);
        self.revision
    }

    /// A node's event about an instance.
    pub(crate) fn node(&mut self, instance: &Instance, incarnation: &str, fact: Fact) {
        self.node_in(instance, incarnation, incarnation, fact);
    }

    /// The same in the incident that began with `first`.
    pub(crate) fn node_in(&mut self, instance: &Instance, first: &str, incarnation: &str, fact: Fact) {
        let ended_badly = matches!(fact, Fact::ComponentExited(_) | Fact::ComponentFailed(_) | Fact::IncidentWithdrawn(_));
        let incident = Incident { instance: instance.clone(), incarnation: first.parse().unwrap(), signs_of_life: 0 };
        self.tell_by_node(v1::Event {
            instance: Some(instance.into()),
            incarnation: Some(incarnation.parse::<Incarnation>().unwrap().into()),
            incident: ended_badly.then(|| (&incident).into()),
            fact: Some(fact),
            ..Default::default()
        });
    }

    fn tell_by_node(&mut self, mut event: v1::Event) {
        self.node_sequence += 1;
        event.id = format!("n:a:{}:{}", self.journal, self.node_sequence);
        event.source = Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() });
        event.node_sequence = Some(v1::NodeSequence { node: "a".to_owned(), epoch: self.journal.to_owned(), sequence: self.node_sequence });
        event.chakra = "heart".to_owned();
        event.kind = event.fact.as_ref().map_or("", |f| f.kind()).to_owned();
        self.store(event);
    }

    /// The node's disk is lost: it joins with a new journal.
    pub(crate) fn lose_journal(&mut self, epoch: &'static str) {
        self.journal = epoch;
        self.node_sequence = 0;
        let joined = v1::NodeJoined { node_epoch: epoch.to_owned(), ..Default::default() };
        self.tell_by_node(v1::Event { fact: Some(Fact::NodeJoined(joined)), ..Default::default() });
    }

    pub(crate) fn inventory(&mut self, records: &[v1::Intent]) {
        use prost::Message as _;
        let fact = Fact::NodeInventory(v1::NodeInventory {
            node_epoch: self.journal.to_owned(),
            bucket_epoch: self.epoch.clone(),
            items: Vec::new(),
            quarantine_records: records.iter().map(v1::Intent::encode_to_vec).collect(),
        });
        self.tell_by_node(v1::Event { fact: Some(fact), ..Default::default() });
    }

    /// The ladder gives an incident up.
    pub(crate) fn give_up(&mut self, instance: &Instance, first: &str, last: &str, error: &str) {
        let incident = Incident { instance: instance.clone(), incarnation: first.parse().unwrap(), signs_of_life: 0 };
        let fact = Fact::RecoveryFailed(v1::RecoveryFailed { attempts: 4, last_error: error.to_owned(), issue: None });
        self.store(v1::Event {
            id: format!("a:recovery:recovery_failed:{}:{last}:{incident}", instance.key()),
            kind: "recovery_failed".to_owned(),
            source: Some(v1::Actor { kind: "recovery".to_owned(), id: "r1".to_owned() }),
            chakra: "heart".to_owned(),
            instance: Some(instance.into()),
            incarnation: Some(last.parse::<Incarnation>().unwrap().into()),
            incident: Some((&incident).into()),
            fact: Some(fact),
            ..Default::default()
        });
    }

    fn store(&mut self, event: v1::Event) {
        if self.events.iter().any(|e| e.id == event.id) {
            return;
        }
        self.events.push(event.clone());
        self.stored.push(self.now.wall);
        self.state.apply_stored(&event, self.now.wall, self.now);
        self.state.apply_event(self.events.len() as u64, &event, self.now);
    }

    pub(crate) fn started(&mut self, instance: &Instance, incarnation: &str) {
        self.node(instance, incarnation, Fact::ComponentStarted(v1::ComponentStarted::default()));
    }

    pub(crate) fn ready(&mut self, instance: &Instance, incarnation: &str) {
        self.started(instance, incarnation);
        self.node(instance, incarnation, Fact::ComponentReady(v1::ComponentReady::default()));
    }

    pub(crate) fn stopped(&mut self, instance: &Instance, incarnation: &str) {
        self.node(instance, incarnation, Fact::ComponentStopped(v1::ComponentStopped::default()));
    }

    pub(crate) fn exited(&mut self, instance: &Instance, incarnation: &str, error: &str) {
        let fact = v1::ComponentExited { last_error: error.to_owned(), ..Default::default() };
        self.node(instance, incarnation, Fact::ComponentExited(fact));
    }

    /// An end while a dependency's condition was unmet: it belongs to no incident.
    pub(crate) fn blameless_exit(&mut self, instance: &Instance, incarnation: &str) {
        let incarnation: Incarnation = incarnation.parse().unwrap();
        self.tell_by_node(v1::Event {
            instance: Some(instance.into()),
            incarnation: Some(incarnation.into()),
            fact: Some(Fact::ComponentExited(v1::ComponentExited::default())),
            ..Default::default()
        });
    }

    /// Commands from now on have expired when they come.
    pub(crate) fn expire_next(&mut self) {
        self.patience = Duration::ZERO;
    }

    /// Somebody deletes a record.
    pub(crate) fn delete(&mut self, key: &str) {
        self.revision += 1;
        let deleted = v1::Intent::default();
        self.bucket.insert(key.to_owned(), (self.revision, deleted));
        self.state.apply_spoiled(&IntentKey::parse(key).unwrap(), self.revision);
    }

    /// Whether the terminal result of a command is told.
    pub(crate) fn ended(&self, id: &str) -> bool {
        let ends = |e: &&v1::Event| matches!(&e.fact, Some(Fact::OperatorCommand(c)) if c.command_id == id && c.result == "done");
        self.events.iter().any(|e| ends(&e))
    }

    pub(crate) fn command(&mut self, id: &str, verb: &str, target: &str, command: v1::Command) {
        self.token += 1;
        let pending = Pending {
            token: self.token,
            id: id.to_owned(),
            verb: verb.to_owned(),
            target: target.to_owned(),
            command,
            expires: self.now.wall + self.patience,
            refusal: None,
        };
        self.state.apply_command(pending);
        self.settle();
    }

    /// Its receipt, which must be there.
    pub(crate) fn receipt(&self, id: &str) -> &v1::Receipt {
        self.receipts.iter().find(|r| r.command_id == id).unwrap_or_else(|| panic!("no receipt of {id}"))
    }

    pub(crate) fn quarantine(&mut self, id: &str, target: &str, seconds: i64) {
        let long = prost_types::Duration { seconds, nanos: 0 };
        self.command(id, "quarantine", target, v1::Command { note: "leaks".to_owned(), r#for: Some(long), ..Default::default() });
    }

    pub(crate) fn release(&mut self, id: &str, target: &str) {
        self.command(id, "release", target, v1::Command { note: "mended".to_owned(), ..Default::default() });
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
        self.now.wall += Duration::from_secs(seconds);
        self.settle();
    }

    /// Carries out what is decided until nothing is left.
    pub(crate) fn settle(&mut self) {
        for _ in 0..STORM {
            let actions = self.state.decide(self.now);
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.perform(action));
        }
        panic!("it does not come to rest");
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Write { bucket, writes } => {
                let stands = |key: &IntentKey| self.bucket.get(&key.to_string()).map_or(0, |(revision, _)| *revision);
                assert!(writes.iter().all(|(key, _, expected)| stands(key) == *expected), "written over what was not read");
                let mut revisions = Vec::new();
                for (key, intent, _) in &writes {
                    self.writes.push((key.to_string(), intent.clone()));
                    revisions.push(self.put(key, intent.clone()));
                }
                self.state.apply_outcome(Outcome::Wrote { bucket, writes, revisions: Some(revisions) }, self.now);
            }
            Action::Publish(event) if self.mute => self.state.apply_outcome(Outcome::NotPublished(event.id), self.now),
            Action::Publish(event) => self.store(*event),
            Action::Answer { receipt, .. } => self.receipts.push(*receipt),
        }
    }

    /// Another replica takes over: it reads the bucket and EVENTS from their beginnings.
    pub(crate) fn take_over(&mut self) {
        self.state = state();
        self.state.apply_intents_epoch(&self.epoch);
        for (key, (revision, intent)) in &self.bucket {
            self.state.apply_record(&IntentKey::parse(key).unwrap(), *revision, Arc::new(intent.clone()), self.now);
        }
        self.state.apply_reset();
        for ((sequence, event), stored) in (1..).zip(&self.events).zip(&self.stored) {
            self.state.apply_stored(event, *stored, self.now);
            self.state.apply_event(sequence, event, self.now);
        }
        self.state.apply_caught_up();
        self.settle();
    }

    /// The bucket is lost, and made anew; nothing is decided yet.
    pub(crate) fn lose_bucket(&mut self) {
        self.bucket.clear();
        self.writes.clear();
        self.epoch = "b2".to_owned();
        self.state.apply_intents_epoch("b2");
    }

    pub(crate) fn record(&self, key: &str) -> Option<&v1::Quarantine> {
        match &self.bucket.get(key)?.1.want {
            Some(Want::Quarantine(want)) => Some(want),
            _ => None,
        }
    }

    pub(crate) fn phase(&self, key: &str) -> Phase {
        self.record(key).map_or(Phase::Unspecified, v1::Quarantine::phase)
    }

    /// Events of a kind, as the instance that they are about.
    pub(crate) fn told(&self, kind: &str) -> Vec<&v1::Event> {
        self.events.iter().filter(|e| e.kind == kind).collect()
    }
}
