//! A bench for policy tests: a node, a clock, and processes that do what the test says.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use prost::Message as _;
use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, InstanceState as State, event::Fact, intent::Want, probe::Check},
};

use super::super::{Action, Config, Input, Node, Now, Restored, ViewChange, fold_plan, hooks::HookRun, probing::Answer};

/// Tenths of a second that a liveness probe may take to come; a start that hangs is asked after thirty seconds.
const PATIENCE: u32 = 1_000;

pub(super) const EPOCH: &str = "bucket-1";
pub(super) const NODE_EPOCH: &str = "journal-1";

pub(super) fn id(name: &str) -> Instance {
    name.parse().unwrap()
}

/// A component with an HTTP readiness and liveness probe, and these dependencies.
pub(super) fn component(name: &str, depends_on: &[&str]) -> v1::ComponentSpec {
    let http = || v1::Probe { check: Some(Check::Http(v1::HttpCheck { port: 80, ..Default::default() })), ..Default::default() };
    let on = |d: &&str| v1::Dependency { component: (*d).to_owned(), required: true, ..Default::default() };
    v1::ComponentSpec {
        name: name.to_owned(),
        chakra: "heart".to_owned(),
        command: vec![name.to_owned()],
        readiness: Some(http()),
        liveness: Some(http()),
        depends_on: depends_on.iter().map(on).collect(),
        required: true,
        ..Default::default()
    }
}

pub(super) fn desired(spec: &v1::ComponentSpec, generation: u64, rank: u32) -> v1::Desired {
    v1::Desired {
        instance: Some((&Instance::new(spec.name.clone(), 0)).into()),
        node: "a".to_owned(),
        node_epoch: NODE_EPOCH.to_owned(),
        generation,
        mode: v1::RunMode::Run.into(),
        rank,
        spec_hash: razar_bus_schema::ids::sha256_hex(&spec.encode_to_vec()),
        spec: Some(spec.clone()),
        parallel_starts: 4,
        stack: "demo".to_owned(),
        ..Default::default()
    }
}

pub(super) struct Bench {
    pub(super) node: Node,
    pub(super) now: Now,
    pub(super) revision: u64,
    /// What the node did, a line each: `spawn api@1.1`, `kill api@1.1`, `component_ready api@1.1`.
    pub(super) log: Vec<String>,
    pub(super) events: Vec<v1::Event>,
    pub(super) hooks: Vec<HookRun>,
    pub(super) memories: BTreeMap<Instance, v1::InstanceMemory>,
    pub(super) plan: v1::PlanOnDisk,
    pub(super) planned: BTreeMap<Instance, v1::SpawnPlanned>,
    /// Component whose program cannot be started.
    pub(super) fails_to_spawn: Option<String>,
    next_pid: u32,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_system(&[])
    }

    /// A node whose compiled-in plan is of these.
    pub(super) fn with_system(system: &[v1::ComponentSpec]) -> Self {
        let now = Now { mono: Duration::from_secs(1_000), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) };
        let system = (1..).zip(system).map(|(rank, spec)| desired(spec, 1, rank)).collect();
        let node = Node::new(config(), system, Restored::default(), now);
        let mut bench = Self {
            node,
            now,
            revision: 0,
            log: Vec::new(),
            events: Vec::new(),
            hooks: Vec::new(),
            memories: BTreeMap::new(),
            plan: v1::PlanOnDisk::default(),
            planned: BTreeMap::new(),
            fails_to_spawn: None,
            next_pid: 100,
        };
        bench.input(Input::View(ViewChange::Epoch(EPOCH.to_owned())));
        bench.log.clear();
        bench
    }

    /// A node with these components desired, in this order of rank, settled.
    pub(super) fn running(specs: &[v1::ComponentSpec]) -> Self {
        let mut bench = Self::new();
        for (rank, spec) in (1..).zip(specs) {
            bench.desire(&desired(spec, 1, rank));
        }
        bench.settle();
        bench
    }

    pub(super) fn input(&mut self, input: Input) {
        self.node.apply(input, self.now);
        self.turn();
    }

    /// Lets the node decide until it has nothing more to do at this instant.
    pub(super) fn turn(&mut self) {
        for _ in 0..1_000 {
            let actions = self.node.decide(self.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.act(action);
            }
        }
        panic!("the node never comes to rest");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => {
                self.log.push(format!("spawn {}@{}", spawn.instance, spawn.incarnation));
                self.next_pid += 1;
                let process = v1::ProcessIdentity { pid: self.next_pid, ..Default::default() };
                let planned = v1::SpawnPlanned {
                    instance: Some((&spawn.instance).into()),
                    incarnation: Some(spawn.incarnation.into()),
                    spec_hash: spawn.desired.spec_hash.clone(),
                    dependencies: spawn.dependencies.clone(),
                    by_rung: spawn.by_rung,
                    at: Some(time::timestamp(self.now.wall)),
                    ..Default::default()
                };
                self.planned.insert(spawn.instance.clone(), planned);
                if self.fails_to_spawn.as_ref() == Some(&spawn.instance.component) {
                    let why = "no such program".to_owned();
                    self.node.apply(Input::SpawnFailed { instance: spawn.instance, incarnation: spawn.incarnation, why }, self.now);
                    return;
                }
                self.node.apply(Input::Spawned { instance: spawn.instance, incarnation: spawn.incarnation, process }, self.now);
            }
            Action::Signal { instance, incarnation, signal } => self.log.push(format!("signal {signal} {instance}@{incarnation}")),
            Action::Kill { instance, incarnation } => self.log.push(format!("kill {instance}@{incarnation}")),
            Action::ClearState { instance, .. } => self.log.push(format!("clear {instance}")),
            Action::RunHook(run) => {
                self.log.push(format!("hook {}", run.hook.command.join(" ")));
                self.hooks.push(*run);
            }
            Action::EndHook(_) => self.log.push("end hook".to_owned()),
            Action::Tell(event) => {
                let about = event.instance.as_ref().map_or_else(|| "node".to_owned(), |i| Instance::try_from(i).unwrap().to_string());
                let incarnation = event.incarnation.as_ref().map_or_else(String::new, |i| format!("@{}", Incarnation::from(i)));
                self.log.push(format!("{} {about}{incarnation}", event.kind));
                self.events.push(*event);
            }
            Action::Remember(memory) => {
                let id = Instance::try_from(memory.instance.as_ref().unwrap()).unwrap();
                self.memories.insert(id, *memory);
            }
            Action::StorePlan(change) => fold_plan(&mut self.plan, *change),
            Action::Probe { .. } => {}
        }
    }

    /// Passes time, stopping at each of the node's deadlines.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now.mono + span;
        loop {
            let next = self.node.next_deadline().unwrap_or(end).max(self.now.mono).min(end);
            self.now.wall += next - self.now.mono;
            self.now.mono = next;
            self.turn();
            if self.now.mono == end && self.node.next_deadline().is_none_or(|at| at > end) {
                return;
            }
        }
    }

    pub(super) fn record(&mut self, key: &str, want: Want) {
        self.revision += 1;
        let intent = v1::Intent { want: Some(want), ..Default::default() };
        self.record_at(key, self.revision, intent);
    }

    pub(super) fn record_at(&mut self, key: &str, revision: u64, intent: v1::Intent) {
        self.input(Input::View(ViewChange::Record { key: key.to_owned(), revision, intent: Some(Box::new(intent)) }));
    }

    pub(super) fn desire(&mut self, desired: &v1::Desired) {
        let instance = Instance::try_from(desired.instance.as_ref().unwrap()).unwrap();
        self.record(&format!("desired.{}", instance.key()), Want::Desired(desired.clone()));
    }

    pub(super) fn settle(&mut self) {
        self.input(Input::View(ViewChange::Settled));
    }

    pub(super) fn state(&self, name: &str) -> State {
        self.node.instance(&id(name)).unwrap().state
    }

    pub(super) fn incarnation(&self, name: &str) -> String {
        self.node.instance(&id(name)).unwrap().incarnation.to_string()
    }

    pub(super) fn ready(&mut self, name: &str) {
        let incarnation = self.node.instance(&id(name)).unwrap().incarnation;
        self.input(Input::Sign { instance: id(name), incarnation, role: super::super::probing::Role::Readiness, detail: "ok".into() });
    }

    pub(super) fn exit(&mut self, name: &str, code: i32) {
        let incarnation = self.node.instance(&id(name)).unwrap().incarnation;
        let status = v1::ExitStatus { code: Some(code), ..Default::default() };
        self.input(Input::Exited { instance: id(name), incarnation, status, last_error: "boom".into(), while_away: false, stragglers: 0 });
    }

    /// Kills it as often as its local budget allows, until it has failed.
    pub(super) fn exhaust(&mut self, name: &str) {
        for _ in 0..10 {
            if self.state(name) == State::Failed {
                return;
            }
            if self.node.instance(&id(name)).unwrap().lives() {
                self.exit(name, 1);
            } else {
                self.pass(Duration::from_secs(3));
            }
        }
        panic!("{name} never fails");
    }

    /// The next liveness probe fails with a window of this kind.
    pub(super) fn silence(&mut self, name: &str, kind: char) {
        use super::super::{
            evidence::{Sample, Task, Window},
            probing::Role,
        };
        let due = |b: &Self| b.node.instance(&id(name)).unwrap().probes.liveness.asked.is_some();
        for _ in 0..PATIENCE {
            if due(self) {
                break;
            }
            self.pass(Duration::from_millis(100));
        }
        assert!(due(self), "{name} is not asked whether it lives");
        let task = Task { tid: 1, state: kind, run_ns: 0, delay_ns: 0 };
        let sample = Sample { tasks: vec![task], traced: false };
        let second = Duration::from_secs(1);
        self.pass(second);
        let incarnation = self.node.instance(&id(name)).unwrap().incarnation;
        self.input(Input::Probed {
            instance: id(name),
            incarnation,
            role: Role::Liveness,
            answer: Answer::Failed,
            detail: "no answer in 1s".into(),
            took: second,
            window: Some(Window { before: sample.clone(), after: sample, timeout: second, lasted: second }),
        });
    }

    /// A new life of the agent on the same disk: what lived goes on living, `ended` ended meanwhile with their codes.
    pub(super) fn restart_agent(&mut self, ended: &[(&str, i32)]) {
        let ended: Vec<(&str, Option<i32>)> = ended.iter().map(|(name, code)| (*name, Some(*code))).collect();
        self.restart_agent_with(&ended, &[]);
    }

    /// As above, where nobody may know how they ended; of these components the next incarnation lives already.
    pub(super) fn restart_agent_with(&mut self, ended: &[(&str, Option<i32>)], next_lives: &[&str]) {
        let mut restored = Restored { memories: self.memories.clone(), plan: self.plan.clone(), ..Default::default() };
        for inst in self.node.instances().filter(|i| i.process.is_some()) {
            let mut planned = self.planned.get(&inst.id).cloned().unwrap();
            if next_lives.contains(&inst.id.component.as_str()) {
                restored.living.push(v1::Spawned { planned: Some(planned.clone()), process: inst.process.clone() });
                planned.incarnation = Some(inst.incarnation.into());
            }
            match ended.iter().find(|(name, _)| id(name) == inst.id) {
                Some((_, code)) => {
                    let status = v1::ExitStatus { code: *code, ..Default::default() };
                    restored.ended.push((planned, status, String::new()));
                }
                None => restored.living.push(v1::Spawned { planned: Some(planned), process: inst.process.clone() }),
            }
        }
        self.node = Node::new(config(), Vec::new(), restored, self.now);
        self.turn();
    }

    /// The last agent died between the start of `name` and what it would have remembered of it.
    pub(super) fn forget_state(&mut self, name: &str) {
        let memory = self.memories.get_mut(&id(name)).unwrap();
        memory.state = State::Starting.into();
    }

    pub(super) fn quarantine(&mut self, key: &str, phase: v1::QuarantinePhase) {
        let record = v1::Quarantine { component: "api".to_owned(), phase: phase.into(), ..Default::default() };
        self.record(key, Want::Quarantine(record));
        self.settle();
    }

    /// A rung of the ladder for `api`, settled.
    pub(super) fn order(&mut self, replaces: Incarnation, attempt: u32, evidence: Option<v1::OrderEvidence>) {
        let incident = Incident { instance: id("api"), incarnation: Incarnation::new(1, 1), signs_of_life: 0 };
        let order = v1::RecoveryOrder {
            instance: Some((&id("api")).into()),
            incident: Some((&incident).into()),
            rung: "restart".to_owned(),
            attempt,
            replaces: Some(replaces.into()),
            evidence,
            ..Default::default()
        };
        self.record("recovery.api.0", Want::Recovery(order));
        self.settle();
    }

    /// A rung that keeps the starts of what depends on `name` back for so long, and is itself due no sooner; settled.
    pub(super) fn hold(&mut self, name: &str, span: Duration) {
        let order = v1::RecoveryOrder {
            instance: Some((&id(name)).into()),
            incident: Some((&Incident { instance: id(name), incarnation: Incarnation::new(1, 1), signs_of_life: 0 }).into()),
            replaces: Some(Incarnation::new(9, 9).into()),
            hold_dependents: Some(time::duration(span)),
            ..Default::default()
        };
        self.record(&format!("recovery.{}", id(name).key()), Want::Recovery(order));
        self.settle();
    }

    /// Lines of the log since the last call.
    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    pub(super) fn told(&self, kind: &str) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }

    /// Who was said to block `name`, each time that was said.
    pub(super) fn blockers_told(&self, name: &str) -> Vec<Vec<String>> {
        let of = |e: &v1::Event| match &e.fact {
            Some(Fact::ComponentBlocked(told)) if e.instance == Some((&id(name)).into()) => {
                Some(told.by.iter().map(|b| b.component.clone()).collect())
            }
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }

    pub(super) fn last_void(&self) -> Option<String> {
        self.events.iter().rev().find_map(|e| match &e.fact {
            Some(Fact::OrderVoid(void)) => Some(void.why.clone()),
            _ => None,
        })
    }
}

fn config() -> Config {
    Config { mesh: "razar".to_owned(), node: "a".to_owned(), node_epoch: NODE_EPOCH.to_owned(), seed: 7, start_floor: 0 }
}
