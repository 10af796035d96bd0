//! The node's decisions, pure: inputs are folded by `apply`, which emits nothing; `decide` works from state and returns actions;
//! `next_deadline` says when time alone changes something. Clocks, randomness and ids are passed in; no IO lives below here.
//! `decide` takes `&mut self` because work in flight is state, and what is told is told once.

mod blocked;
mod degraded;
pub mod evidence;
mod facts;
mod folding;
pub mod hooks;
pub mod instance;
mod intents;
mod memory;
mod moves;
pub mod precedence;
pub mod probing;
pub mod restart;
mod stopping;
#[cfg(test)]
mod tests;
pub mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1,
};
use razar_stack::errors::Registry;

use self::{
    evidence::Window,
    hooks::{HookEnd, HookKey, HookRun},
    instance::Inst,
    probing::{Answer, Role},
};
pub use self::{
    intents::{Intents, ViewChange, are_orders, fold_plan},
    memory::Restored,
};

/// Instances that one node keeps; a plan that names more is refused by the orchestrator long before.
pub const INSTANCES_MAX: usize = 4_096;

/// The two clocks at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since boot, monotonic, suspended time included.
    pub mono: Duration,
    /// Wall clock, for what people read.
    pub wall: SystemTime,
}

/// Which of the node's two plans something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The mesh itself, compiled in.
    System,
    /// The user's stack, by intents.
    User,
}

/// Name of the compiled-in stack.
pub const SYSTEM_STACK: &str = "system";

/// What never changes in a node's life.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the mesh.
    pub mesh: String,
    /// Name of the node.
    pub node: String,
    /// Epoch of its journal.
    pub node_epoch: String,
    /// Salt of the jitter.
    pub seed: u64,
    /// Starts up to this number may have been used in a generation that the journal does not know; 0 after a clean end.
    pub start_floor: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Something of the bucket `intents`.
    View(ViewChange),
    /// A spawn succeeded.
    Spawned {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Its process.
        process: v1::ProcessIdentity,
    },
    /// A spawn failed before the program ran.
    SpawnFailed {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Which step failed, and how.
        why: String,
    },
    /// What comes before a start is done.
    Prepared {
        /// Instance.
        instance: Instance,
        /// `None`: well; else what went wrong.
        failed: Option<String>,
    },
    /// A hook ended, was ended, or could not be started.
    HookEnded {
        /// Which run.
        key: HookKey,
        /// Its program.
        program: String,
        /// What came of it.
        end: HookEnd,
    },
    /// A process ended.
    Exited {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// How.
        status: v1::ExitStatus,
        /// Last line of its error output, redacted.
        last_error: String,
        /// It ended while the agent was away.
        while_away: bool,
        /// Processes of its tree that were ended after it.
        stragglers: u32,
    },
    /// A probe was answered.
    Probed {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Role.
        role: Role,
        /// Answer.
        answer: Answer,
        /// What it said.
        detail: String,
        /// How long it took.
        took: Duration,
        /// The process tree at both ends, for a liveness probe that failed.
        window: Option<Window>,
    },
    /// The component gave a sign by itself for this role (READY=1, WATCHDOG=1, a line, a beat).
    Sign {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Role whose probe the sign answers.
        role: Role,
        /// What it was.
        detail: String,
    },
    /// Some of its processes outlived SIGKILL.
    Survived {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Their pids.
        pids: Vec<u32>,
    },
    /// A part of the mesh no longer does what it is there for: a one-shot runs again, what lives is stopped and started.
    Renew {
        /// Component of the system plan.
        component: &'static str,
        /// When that was seen, monotonic: what it did since is not to blame.
        seen_at: Duration,
        /// Why, in words.
        why: String,
    },
    /// Stop everything, in reverse order, the mesh itself last.
    Shutdown,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Do what comes before a start, then answer [`Input::Prepared`].
    ClearState {
        /// Instance.
        instance: Instance,
        /// Paths to remove.
        paths: Vec<String>,
    },
    /// Run a hook; answer [`Input::HookEnded`].
    RunHook(Box<HookRun>),
    /// End a hook that is no longer wanted; its [`Input::HookEnded`] comes as any other.
    EndHook(HookKey),
    /// Spawn it; answer [`Input::Spawned`] or [`Input::SpawnFailed`].
    Spawn(Box<Spawn>),
    /// Send the polite signal to the main process.
    Signal {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Signal number.
        signal: i32,
    },
    /// SIGKILL to the whole tree.
    Kill {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
    },
    /// Put a probe's question; answer [`Input::Probed`].
    Probe {
        /// Instance.
        instance: Instance,
        /// Incarnation.
        incarnation: Incarnation,
        /// Role.
        role: Role,
        /// Time to answer.
        timeout: Duration,
        /// Specification that holds the probe.
        spec: Arc<v1::ComponentSpec>,
    },
    /// Write this to the journal.
    Remember(Box<v1::InstanceMemory>),
    /// Keep the settled view on disk: these of its records changed. [`Node::plan_on_disk`] is all of it.
    StorePlan(Box<v1::PlanOnDisk>),
    /// Tell this; id and sequence are the journal's to give.
    Tell(Box<v1::Event>),
}

/// A start.
#[derive(Debug, Clone)]
pub struct Spawn {
    /// Instance.
    pub instance: Instance,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Record that it follows.
    pub desired: Arc<v1::Desired>,
    /// Specification.
    pub spec: Arc<v1::ComponentSpec>,
    /// Which plan.
    pub group: Group,
    /// Dependencies' incarnations.
    pub dependencies: Vec<v1::DependencySeen>,
    /// Made by a rung of the ladder.
    pub by_rung: bool,
    /// Trace that it belongs to: the incident's that it answers, else that of its record.
    pub trace: Option<v1::TraceContext>,
}

/// The node's state.
#[derive(Debug, Clone)]
pub struct Node {
    /// What never changes.
    pub config: Config,
    instances: BTreeMap<Instance, Inst>,
    intents: Intents,
    /// Component → instances that depend on it.
    dependents: BTreeMap<String, BTreeSet<Instance>>,
    dirty: BTreeSet<Instance>,
    /// Calm instances of which a question is due, or was answered as ever.
    asking: BTreeSet<Instance>,
    /// That nobody blocks these any more is being told; until that is written down they are remembered as blocked.
    unblocked: BTreeSet<Instance>,
    timers: BTreeSet<(Duration, Instance)>,
    timer_of: BTreeMap<Instance, Duration>,
    startable: BTreeSet<(Group, u32, Instance)>,
    escalating: hooks::Escalating,
    /// The stack's own entries of the error registry, and what they compile to.
    known_errors: (Vec<v1::KnownError>, Registry),
    actions: Vec<Action>,
    tells: Vec<v1::Event>,
    shutdown: bool,
    /// Zero of the monotonic clock by the wall clock, as last noted.
    clock: Duration,
}

impl Node {
    /// A node with the compiled-in plan `system` and what its journal and disk restored.
    #[must_use]
    pub fn new(config: Config, system: Vec<v1::Desired>, restored: Restored, now: Now) -> Self {
        let mut node = Self {
            config,
            instances: BTreeMap::new(),
            intents: Intents::default(),
            dependents: BTreeMap::new(),
            dirty: BTreeSet::new(),
            asking: BTreeSet::new(),
            unblocked: BTreeSet::new(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            startable: BTreeSet::new(),
            escalating: hooks::Escalating::default(),
            known_errors: <(Vec<v1::KnownError>, Registry)>::default(),
            actions: Vec::new(),
            tells: Vec::new(),
            shutdown: false,
            clock: Duration::ZERO,
        };
        node.recall(&restored, now);
        node.adopt_system(system, now);
        node.adopt_plan(restored.plan, now);
        node.adopt_processes(restored.living, restored.ended, now);
        node.dirty = node.instances.keys().cloned().collect();
        node
    }

    /// Folds what happened; emits nothing by itself.
    pub fn apply(&mut self, input: Input, now: Now) {
        match input {
            Input::View(change) => self.fold_view(change, now),
            Input::Spawned { instance, incarnation, process } => self.fold_spawned(&instance, incarnation, process, now),
            Input::SpawnFailed { instance, incarnation, why } => self.fold_spawn_failed(&instance, incarnation, why, now),
            Input::Prepared { instance, failed } => self.fold_prepared(&instance, failed, now),
            Input::HookEnded { key, program, end } => self.fold_hook_ended(&key, &program, end, now),
            Input::Exited { instance, incarnation, status, last_error, while_away, stragglers } => {
                self.fold_exit(&instance, incarnation, &folding::Exit { status, last_error, while_away, stragglers, started: true }, now);
            }
            Input::Probed { instance, incarnation, role, answer, detail, took, window } => {
                let said = folding::Said { role, answer, detail, took, window };
                self.fold_probe(&instance, incarnation, said, now);
            }
            Input::Sign { instance, incarnation, role, detail } => self.fold_sign(&instance, incarnation, role, &detail, now),
            Input::Survived { instance, incarnation, pids } => self.fold_survivors(&instance, incarnation, pids, now),
            Input::Renew { component, seen_at, why } => self.fold_renew(component, seen_at, &why, now),
            Input::Shutdown => {
                self.shutdown = true;
                self.dirty.extend(self.instances.keys().cloned());
            }
        }
    }

    /// What is to be done at `now`, starts and signals first, what is told last: telling never delays healing.
    #[must_use]
    pub fn decide(&mut self, now: Now) -> Vec<Action> {
        self.note_clock(now);
        self.wake_due(now.mono);
        let questions = self.ask_the_calm(now);
        loop {
            // Dependencies before what depends on them, so that nobody starts on a condition that is about to be lost.
            let mut round: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
            round.sort_by_cached_key(|id| self.instances.get(id).map_or(u32::MAX, Inst::rank));
            for id in round {
                self.dirty.remove(&id);
                self.evaluate(&id, now);
            }
            if !self.dirty.is_empty() {
                continue;
            }
            self.fill_slots(now);
            if self.dirty.is_empty() {
                break;
            }
        }
        self.run_escalation_hook();
        let mut actions = std::mem::take(&mut self.actions);
        actions.extend(questions);
        actions.extend(self.tells.drain(..).map(|event| Action::Tell(Box::new(event))));
        // What was told is forgotten in the next round, once it is written down.
        self.dirty.extend(std::mem::take(&mut self.unblocked));
        actions
    }

    /// When time alone changes something next, monotonic.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Every instance known here, in order.
    pub fn instances(&self) -> impl Iterator<Item = &Inst> {
        self.instances.values()
    }

    /// An instance.
    #[must_use]
    pub fn instance(&self, id: &Instance) -> Option<&Inst> {
        self.instances.get(id)
    }

    /// Replicas of a component known here, in order.
    pub fn replicas<'c>(&'c self, component: &'c str) -> impl Iterator<Item = &'c Inst> {
        let from = Instance::new(component, 0);
        self.instances.range(from..).map(|(_, inst)| inst).take_while(move |inst| inst.id.component == component)
    }

    /// Whether a shutdown was asked for and nothing lives any more.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.shutdown && !self.instances.values().any(Inst::lives)
    }

    /// Bucket epoch of the view in force, and its revision.
    #[must_use]
    pub fn view(&self) -> (&str, u64) {
        (self.intents.epoch(), self.intents.revision())
    }

    fn shutting_down(&self, inst: &Inst) -> bool {
        self.shutdown && (inst.group() == Group::User || !self.instances.values().any(|i| i.group() == Group::User && i.lives()))
    }

    fn wake_due(&mut self, now: Duration) {
        while let Some((at, id)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, id.clone()));
            self.timer_of.remove(&id);
            self.asking.insert(id);
        }
    }

    fn set_timer(&mut self, id: &Instance, at: Option<Duration>) {
        if let Some(old) = self.timer_of.remove(id) {
            self.timers.remove(&(old, id.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, id.clone()));
            self.timer_of.insert(id.clone(), at);
        }
    }

    /// Marks what may change when `id` changed: itself, what depends on it, and what it depends on (stops go in reverse).
    fn touch(&mut self, id: &Instance) {
        self.dirty.insert(id.clone());
        if let Some(dependents) = self.dependents.get(&id.component) {
            self.dirty.extend(dependents.iter().cloned());
        }
        if let Some(inst) = self.instances.get(id) {
            // By the specification of its newest life too: what that depended on waits for its end, though the next one does without.
            let specs = inst.wanted.iter().map(|w| &w.spec).chain(&inst.started_spec);
            let dependencies = specs.flat_map(|spec| &spec.depends_on).flat_map(|d| self.replicas(&d.component));
            let ids: Vec<_> = dependencies.map(|i| i.id.clone()).collect();
            self.dirty.extend(ids);
        }
        if self.shutdown {
            self.dirty.extend(self.instances.keys().cloned());
        }
    }
}
