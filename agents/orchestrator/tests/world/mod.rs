//! A broker, nodes and an operator in memory, around one orchestrator's policy that may die at any action. Asserts, at every write, what
//! must never happen.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use razar_bus_schema::{
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Instance, sha256_hex},
    v1::{self, RunMode, event::Fact},
};
use razar_orchestrator::{
    blueprint::{Blueprint, Part},
    policy::{Action, Identity, LoadError, MissionsValue, Now, Outcome, Pending, State, WriteError},
};

/// Actions in a row without which the world must come to rest.
const STORM: usize = 3_000;

/// Makes a blueprint: `name`, `name>dep`, `name!` (not required), `name*` (one-shot), `name=text` (another command), in any mixture of
/// suffixes; in order of rank.
pub(crate) fn blueprint(stack: &str, profile: &str, components: &[&str]) -> Blueprint {
    let mut parts = BTreeMap::new();
    for (rank, text) in (1u32..).zip(components) {
        let name: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let value = |mark: char| text.split(mark).nth(1).map(|t| t.chars().take_while(|c| c.is_ascii_alphanumeric()).collect::<String>());
        let depends_on = value('>').map(|component| v1::Dependency { component, required: true, ..Default::default() });
        let spec = v1::ComponentSpec {
            name: name.clone(),
            chakra: "heart".to_owned(),
            command: vec![value('=').unwrap_or_else(|| "run".to_owned())],
            required: !text.contains('!'),
            one_shot: text.contains('*'),
            replicas: value('#').map_or(1, |n| n.parse().unwrap()),
            depends_on: depends_on.into_iter().collect(),
            ..Default::default()
        };
        let spec_hash = sha256_hex(format!("{spec:?}").as_bytes());
        parts.insert(name, Part { rank, wave: rank, spec, spec_hash, chakra_threshold: 0.9 });
    }
    let revision = sha256_hex(format!("{stack}{components:?}").as_bytes());
    Blueprint {
        stack: stack.to_owned(),
        revision,
        profile: profile.to_owned(),
        parallel_starts: 4,
        timeout: Duration::from_secs(60),
        failed_boots: 3,
        chakra_hooks: BTreeMap::new(),
        escalation_hook: None,
        known_errors: Vec::new(),
        parts,
    }
}

/// A node that does at once what it is told.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) epoch: String,
    pub(crate) sequence: u64,
    pub(crate) held: BTreeMap<Instance, (u64, u64, bool)>,
    /// Hash of what is wanted of each, by the newest record that it obeyed.
    pub(crate) hashes: BTreeMap<Instance, String>,
    pub(crate) labels: Vec<(String, String)>,
    told_bucket: String,
    blocked: BTreeMap<Instance, u64>,
}

pub(crate) struct World {
    pub(crate) now: Now,
    pub(crate) bucket_epoch: String,
    /// Quarantine sets its mark in each new bucket.
    pub(crate) marked: bool,
    pub(crate) intents: BTreeMap<Instance, (u64, v1::Intent)>,
    pub(crate) missions: BTreeMap<String, (u64, MissionsValue)>,
    pub(crate) events: Vec<v1::Event>,
    pub(crate) stacks: BTreeMap<(String, String), Blueprint>,
    pub(crate) receipts: BTreeMap<String, Vec<v1::Receipt>>,
    pub(crate) nodes: Vec<Node>,
    /// Components that fail when they start.
    pub(crate) bad: BTreeSet<String>,
    /// Components whose start never ends.
    pub(crate) slow: BTreeSet<String>,
    /// Effects after which the orchestrator dies; `None`: it lives.
    pub(crate) dies_after: Option<usize>,
    /// EVENTS takes nothing that the orchestrator publishes.
    pub(crate) deaf: bool,
    /// The registry's snapshot.
    pub(crate) snapshot: v1::Observed,
    pub(crate) deaths: usize,
    pub(crate) batches: usize,
    pub(crate) state: State,
    revision: u64,
    cursor: usize,
    unacked: VecDeque<Pending>,
    tokens: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            now: Now { mono: Duration::from_secs(1), wall: UNIX_EPOCH + Duration::from_secs(1_000_000) },
            bucket_epoch: "b1".to_owned(),
            marked: true,
            intents: BTreeMap::new(),
            missions: BTreeMap::new(),
            events: Vec::new(),
            stacks: BTreeMap::new(),
            receipts: BTreeMap::new(),
            nodes: Vec::new(),
            bad: BTreeSet::new(),
            slow: BTreeSet::new(),
            dies_after: None,
            deaf: false,
            snapshot: v1::Observed::default(),
            deaths: 0,
            batches: 0,
            state: State::new(Identity::default()),
            revision: 0,
            cursor: 0,
            unacked: VecDeque::new(),
            tokens: 0,
        };
        world.restart();
        world
    }

    /// A world with node `a`, joined.
    pub(crate) fn with_node() -> Self {
        let mut world = Self::new();
        world.join("a", "e1");
        world
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn tick(&mut self, by: Duration) {
        self.now = Now { mono: self.now.mono + by, wall: self.now.wall + by };
    }

    pub(crate) fn store(&mut self, blueprint: &Blueprint) -> String {
        self.stacks.insert((blueprint.revision.clone(), blueprint.profile.clone()), blueprint.clone());
        blueprint.revision.clone()
    }

    /// A node joins, or comes back with this journal.
    pub(crate) fn join(&mut self, name: &str, epoch: &str) {
        let kept = self.nodes.iter().position(|n| n.name == name).map(|at| self.nodes.remove(at));
        let mut node = kept.filter(|n| n.epoch == epoch).unwrap_or_else(|| Node {
            name: name.to_owned(),
            epoch: epoch.to_owned(),
            sequence: 0,
            held: BTreeMap::new(),
            hashes: BTreeMap::new(),
            labels: Vec::new(),
            told_bucket: String::new(),
            blocked: BTreeMap::new(),
        });
        let labels = node.labels.iter().map(|(k, v)| v1::NodeLabel { key: k.clone(), value: v.clone() }).collect();
        let joined = Fact::NodeJoined(v1::NodeJoined { node_epoch: epoch.to_owned(), labels, ..Default::default() });
        self.tell(&mut node, None, joined);
        self.nodes.push(node);
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn tell(&mut self, node: &mut Node, about: Option<(&Instance, Incarnation)>, fact: Fact) {
        node.sequence += 1;
        self.events.push(v1::Event {
            id: node_event_id(&node.name, &node.epoch, node.sequence),
            kind: fact.kind().to_owned(),
            time: Some(razar_bus_schema::time::timestamp(self.now.wall)),
            source: Some(v1::Actor { kind: "node".to_owned(), id: node.name.clone() }),
            node_sequence: Some(v1::NodeSequence { node: node.name.clone(), epoch: node.epoch.clone(), sequence: node.sequence }),
            instance: about.map(|(i, _)| i.into()),
            incarnation: about.map(|(_, i)| i.into()),
            fact: Some(fact),
            ..Default::default()
        });
    }

    /// A fact of the node that holds `component`, as if it came by itself.
    pub(crate) fn component_fails(&mut self, component: &str) {
        let instance = Instance::new(component, 0);
        let at = self.nodes.iter().position(|n| n.held.contains_key(&instance)).unwrap();
        let mut node = self.nodes.remove(at);
        let held = node.held.get_mut(&instance).unwrap();
        held.2 = false;
        let incarnation = Incarnation::new(held.0, held.1);
        self.tell(&mut node, Some((&instance, incarnation)), Fact::ComponentFailed(v1::ComponentFailed::default()));
        self.nodes.insert(at, node);
    }

    /// Another agent tells of an instance that its node gave up.
    pub(crate) fn agent_tells(&mut self, component: &str, fact: Fact) {
        let instance = Instance::new(component, 0);
        let held = self.nodes.iter().find_map(|n| n.held.get(&instance)).unwrap();
        self.events.push(v1::Event {
            id: format!("{component}/{}/{}", fact.kind(), self.events.len()),
            kind: fact.kind().to_owned(),
            time: Some(razar_bus_schema::time::timestamp(self.now.wall)),
            instance: Some((&instance).into()),
            incarnation: Some(Incarnation::new(held.0, held.1).into()),
            fact: Some(fact),
            ..Default::default()
        });
    }

    /// A living instance is no longer ready.
    pub(crate) fn component_is_unready(&mut self, component: &str) {
        let instance = Instance::new(component, 0);
        let at = self.nodes.iter().position(|n| n.held.contains_key(&instance)).unwrap();
        let mut node = self.nodes.remove(at);
        let held = *node.held.get(&instance).unwrap();
        let incarnation = Incarnation::new(held.0, held.1);
        self.tell(&mut node, Some((&instance, incarnation)), Fact::ComponentUnready(v1::ComponentUnready::default()));
        self.nodes.insert(at, node);
    }

    /// An instance that its node gave up is ready again.
    pub(crate) fn component_is_healed(&mut self, component: &str) {
        let instance = Instance::new(component, 0);
        let at = self.nodes.iter().position(|n| n.held.contains_key(&instance)).unwrap();
        let mut node = self.nodes.remove(at);
        let held = node.held.get_mut(&instance).unwrap();
        *held = (held.0, held.1 + 1, true);
        let incarnation = Incarnation::new(held.0, held.1);
        self.tell(&mut node, Some((&instance, incarnation)), Fact::ComponentStarted(v1::ComponentStarted::default()));
        self.tell(&mut node, Some((&instance, incarnation)), Fact::ComponentReady(v1::ComponentReady::default()));
        self.nodes.insert(at, node);
    }

    pub(crate) fn holds(&self, component: &str) -> bool {
        self.nodes.iter().any(|n| n.held.contains_key(&Instance::new(component, 0)))
    }

    /// Nodes do what the records say, and tell. True if one did something.
    pub(crate) fn nodes_act(&mut self) -> bool {
        let before = self.events.len();
        for at in 0..self.nodes.len() {
            let mut node = self.nodes.remove(at);
            if node.told_bucket != self.bucket_epoch {
                node.told_bucket.clone_from(&self.bucket_epoch);
                let items = node.held.iter().map(|(i, (generation, start, _))| v1::InventoryItem {
                    instance: Some(i.into()),
                    generation: *generation,
                    incarnation: Some(Incarnation::new(*generation, *start).into()),
                    state: v1::InstanceState::Ready.into(),
                    spec_hash: node.hashes.get(i).cloned().unwrap_or_default(),
                });
                let inventory = v1::NodeInventory {
                    node_epoch: node.epoch.clone(),
                    bucket_epoch: self.bucket_epoch.clone(),
                    items: items.collect(),
                    ..Default::default()
                };
                self.tell(&mut node, None, Fact::NodeInventory(inventory));
            }
            for (_, intent) in self.intents.clone().into_values() {
                self.node_follows(&mut node, &intent);
            }
            self.nodes.insert(at, node);
        }
        self.events.len() > before
    }

    fn node_follows(&mut self, node: &mut Node, intent: &v1::Intent) {
        let Some(v1::intent::Want::Desired(desired)) = &intent.want else { return };
        let instance: Instance = desired.instance.as_ref().unwrap().try_into().unwrap();
        let (generation, start, lives) = node.held.get(&instance).copied().unwrap_or((0, 0, false));
        if desired.node != node.name || desired.node_epoch != node.epoch || desired.generation < generation {
            return;
        }
        node.hashes.insert(instance.clone(), desired.spec_hash.clone());
        if desired.mode() == RunMode::Stop {
            if lives {
                node.held.insert(instance.clone(), (desired.generation, start, false));
                let stopped = Fact::ComponentStopped(v1::ComponentStopped::default());
                self.tell(node, Some((&instance, Incarnation::new(generation, start))), stopped);
            }
            return;
        }
        if desired.generation == generation {
            return;
        }
        let spec = desired.spec.as_ref().unwrap();
        if let Some(unmet) = spec.depends_on.iter().find(|d| !self.is_met(node, &d.component)) {
            if node.blocked.insert(instance.clone(), desired.generation) != Some(desired.generation) {
                let by = vec![v1::Blocker { component: unmet.component.clone(), ..Default::default() }];
                let blocked = Fact::ComponentBlocked(v1::ComponentBlocked { by });
                self.tell(node, Some((&instance, Incarnation::new(desired.generation, 0))), blocked);
            }
            return;
        }
        let incarnation = Incarnation::new(desired.generation, 1);
        let bad = self.bad.contains(&instance.component);
        node.held.insert(instance.clone(), (desired.generation, 1, !bad));
        self.tell(node, Some((&instance, incarnation)), Fact::ComponentStarted(v1::ComponentStarted::default()));
        if self.slow.contains(&instance.component) {
            return;
        }
        let took = Some(prost_types::Duration { seconds: 0, nanos: 7 });
        let fact = if bad {
            Fact::ComponentFailed(v1::ComponentFailed::default())
        } else {
            Fact::ComponentReady(v1::ComponentReady { took, completed: spec.one_shot, ..Default::default() })
        };
        self.tell(node, Some((&instance, incarnation)), fact);
    }

    /// Whether a dependency is ready, on whatever node.
    fn is_met(&self, node: &Node, component: &str) -> bool {
        let lives = |n: &Node| n.held.iter().any(|(i, (_, _, lives))| i.component == component && *lives);
        !self.slow.contains(component) && (lives(node) || self.nodes.iter().any(lives))
    }

    pub(crate) fn command(&mut self, id: &str, verb: &str, target: &str, command: v1::Command) {
        self.unacked.push_back(Pending {
            token: 0,
            id: id.to_owned(),
            verb: verb.to_owned(),
            target: target.to_owned(),
            command,
            expires: self.now.wall + Duration::from_secs(60),
            verdict: None,
        });
        self.redeliver();
    }

    pub(crate) fn apply(&mut self, id: &str, stack: &str, revision: &str) {
        self.command(id, "apply", stack, v1::Command { stack_revision: revision.to_owned(), ..Default::default() });
    }

    /// Unacknowledged commands come again.
    pub(crate) fn redeliver(&mut self) {
        for pending in &mut self.unacked {
            self.tokens += 1;
            pending.token = self.tokens;
            self.state.apply_command(pending.clone());
        }
    }

    /// The stream of commands is lost.
    pub(crate) fn lose_commands(&mut self) {
        self.unacked.clear();
    }

    /// Another replica takes over: everything is read anew.
    pub(crate) fn restart(&mut self) {
        self.state = State::new(Identity { mesh: "razar".to_owned(), replica: format!("r{}", self.deaths) });
        self.cursor = 0;
        self.state.apply_snapshot(&self.snapshot, self.now);
        self.read();
        self.redeliver();
    }

    /// The bucket of intents is lost and made anew.
    pub(crate) fn lose_intents(&mut self, epoch: &str) {
        epoch.clone_into(&mut self.bucket_epoch);
        self.intents.clear();
        self.read();
    }

    /// EVENTS is lost and made anew: what is in it is read from its beginning.
    pub(crate) fn lose_events(&mut self) {
        self.state.apply_reset();
        self.cursor = 0;
    }

    /// The bucket of missions is lost and made anew.
    pub(crate) fn lose_missions(&mut self) {
        self.missions.clear();
        self.state.apply_missions_epoch();
    }

    /// Somebody overwrites the record of `component` with what is none.
    pub(crate) fn spoil(&mut self, component: &str) {
        self.revision += 1;
        let instance = Instance::new(component, 0);
        let told_by_event_id = self.intents.get(&instance).map(|(_, i)| i.told_by_event_id.clone()).unwrap_or_default();
        self.intents.insert(instance.clone(), (self.revision, v1::Intent { told_by_event_id, ..Default::default() }));
        self.state.apply_spoiled(&instance, self.revision);
    }

    fn read(&mut self) {
        self.state.apply_intents_epoch(&self.bucket_epoch);
        if self.marked {
            self.state.apply_mark(&self.bucket_epoch);
        }
        for (instance, (revision, intent)) in &self.intents {
            self.state.apply_record(instance, *revision, Arc::new(intent.clone()));
        }
        for (key, (revision, value)) in &self.missions {
            self.state.apply_missions(key, *revision, Some(value.clone()), self.now);
        }
        while let Some(event) = self.events.get(self.cursor) {
            self.cursor += 1;
            self.state.apply_event(u64::try_from(self.cursor).unwrap(), event, self.now);
        }
    }

    /// Everything runs until nobody has anything to do.
    pub(crate) fn run(&mut self) {
        for _ in 0..STORM {
            let did = self.step();
            if !self.nodes_act() && !did {
                return;
            }
        }
        panic!("the orchestrator does not come to rest: {:?}", self.state.decide(self.now));
    }

    /// As [`World::run`], with time passing while there is a deadline within the limit.
    pub(crate) fn run_for(&mut self, limit: Duration) {
        let end = self.now.mono + limit;
        self.run();
        while let Some(at) = self.state.next_deadline(self.now).filter(|at| *at <= end) {
            self.tick(at.saturating_sub(self.now.mono) + Duration::from_millis(1));
            self.run();
        }
        self.tick(end.saturating_sub(self.now.mono));
        self.run();
    }

    /// One round of decisions. True if there was any.
    pub(crate) fn step(&mut self) -> bool {
        self.read();
        let actions = self.state.decide(self.now);
        let any = !actions.is_empty();
        for action in actions {
            if self.dies_after == Some(0) {
                self.dies_after = None;
                self.deaths += 1;
                self.restart();
                return true;
            }
            self.dies_after = self.dies_after.map(|n| n - 1);
            let outcome = self.perform(action);
            // Dying between the effect and its outcome is the worse half.
            if self.dies_after == Some(0) {
                self.dies_after = None;
                self.deaths += 1;
                self.restart();
                return true;
            }
            if let Some(outcome) = outcome {
                self.state.apply_outcome(outcome, self.now);
            }
        }
        any
    }

    fn perform(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::Load { revision, profile } => {
                let found = self.stacks.get(&(revision.clone(), profile.clone()));
                let refused = || LoadError::Refused("unknown_revision".to_owned(), "no such revision".to_owned(), Vec::new());
                let result = found.map(|b| Arc::new(b.clone())).ok_or_else(refused);
                Some(Outcome::Loaded { revision, profile, result })
            }
            Action::WriteDesired { writes, bucket } => {
                let result = self.write_desired(&writes);
                Some(Outcome::WroteDesired { writes, bucket, result })
            }
            Action::WriteMissions { writes, bucket, .. } => {
                let result = self.write_missions(&writes);
                Some(Outcome::WroteMissions { writes, bucket, result })
            }
            Action::Publish(event) => {
                let id = event.id.clone();
                if self.deaf {
                    return Some(Outcome::Published { id, stored: false });
                }
                if !self.events.iter().any(|e| e.id == id) {
                    self.events.push(*event);
                }
                Some(Outcome::Published { id, stored: true })
            }
            Action::Answer { token, receipt, .. } => {
                self.unacked.retain(|p| p.token != token);
                self.receipts.entry(receipt.command_id.clone()).or_default().push(*receipt);
                None
            }
        }
    }

    fn write_desired(&mut self, writes: &[(Instance, v1::Intent, u64)]) -> Result<Vec<u64>, WriteError> {
        assert!(!writes.is_empty(), "an empty batch");
        if writes.iter().any(|(i, _, expected)| self.intents.get(i).map_or(0, |(r, _)| *r) != *expected) {
            return Err(WriteError::Conflict);
        }
        self.batches += 1;
        let mut revisions = Vec::new();
        for (instance, intent, _) in writes {
            if let Some((_, old)) = self.intents.get(instance) {
                assert!(self.is_told(&old.told_by_event_id), "{instance} was overwritten before it was told of");
                assert!(generation(intent) >= generation(old), "the generation of {instance} fell");
            }
            let told = self.nodes.iter().filter_map(|n| n.held.get(instance)).map(|h| h.0).max().unwrap_or(0);
            assert!(generation(intent) >= told, "{instance} is below what its node holds");
            self.revision += 1;
            self.intents.insert(instance.clone(), (self.revision, intent.clone()));
            revisions.push(self.revision);
        }
        Ok(revisions)
    }

    fn write_missions(&mut self, writes: &[(MissionsValue, u64)]) -> Result<Vec<u64>, WriteError> {
        if writes.iter().any(|(v, expected)| self.missions.get(&v.key()).map_or(0, |(r, _)| *r) != *expected) {
            return Err(WriteError::Conflict);
        }
        let mut revisions = Vec::new();
        for (value, _) in writes {
            self.revision += 1;
            self.missions.insert(value.key(), (self.revision, value.clone()));
            revisions.push(self.revision);
        }
        Ok(revisions)
    }

    pub(crate) fn is_told(&self, id: &str) -> bool {
        self.events.iter().any(|e| e.id == id)
    }

    pub(crate) fn plan(&self) -> v1::Mission {
        match self.missions.get("plan") {
            Some((_, MissionsValue::Plan(plan))) => plan.clone(),
            _ => v1::Mission::default(),
        }
    }

    pub(crate) fn history(&self, component: &str) -> v1::BootHistory {
        match self.missions.get(&format!("history.{component}")) {
            Some((_, MissionsValue::History(history))) => history.clone(),
            _ => v1::BootHistory::default(),
        }
    }

    pub(crate) fn desired(&self, component: &str) -> v1::Desired {
        self.desired_of(&Instance::new(component, 0)).unwrap_or_else(|| panic!("{component} has no record"))
    }

    pub(crate) fn desired_of(&self, instance: &Instance) -> Option<v1::Desired> {
        match &self.intents.get(instance)?.1.want {
            Some(v1::intent::Want::Desired(desired)) => Some(desired.clone()),
            _ => None,
        }
    }

    /// Generations of components, for comparing.
    pub(crate) fn generations(&self) -> BTreeMap<String, u64> {
        self.intents.iter().map(|(i, (_, intent))| (i.to_string(), generation(intent))).collect()
    }

    pub(crate) fn receipt(&self, id: &str) -> v1::Receipt {
        self.receipts.get(id).and_then(|r| r.last()).cloned().unwrap_or_else(|| panic!("{id} was not answered"))
    }

    /// Results told of a command, in order.
    pub(crate) fn results(&self, id: &str) -> Vec<String> {
        let told = self.events.iter().filter_map(|e| match &e.fact {
            Some(Fact::OperatorCommand(c)) if c.command_id == id => Some(c.result.clone()),
            _ => None,
        });
        told.collect()
    }

    pub(crate) fn completions(&self) -> Vec<v1::MissionCompleted> {
        let told = self.events.iter().filter_map(|e| match &e.fact {
            Some(Fact::MissionCompleted(c)) => Some(c.clone()),
            _ => None,
        });
        told.collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }
}

pub(crate) fn generation(intent: &v1::Intent) -> u64 {
    match &intent.want {
        Some(v1::intent::Want::Desired(desired)) => desired.generation,
        _ => 0,
    }
}

/// The wall clock of worlds at their beginning, for expiry.
pub(crate) fn long_ago() -> SystemTime {
    UNIX_EPOCH
}
