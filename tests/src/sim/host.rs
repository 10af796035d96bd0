//! A simulated machine: its clocks, its disk, its processes, and the node's agent, which is killed, paused and started again by its guard.
//! What the agent's shell does with the policy's actions is done here, in the same order, and the agent may die between any two steps.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time,
    v1::{self, InstanceState as State, probe::Check},
};
use razar_node::policy::{
    Action, Config, Input, Node, Now, Restored, Spawn, ViewChange,
    hooks::{HookEnd, HookKey, HookOutcome},
    probing::{Answer, Manner, Role, manner},
};

use super::{
    bus::{Client, Item},
    disk::{BLOCK, Journal, Life},
    faults::Fault,
    oracle::Oracle,
    process::{Fate, Hang, Proc, window},
    world::{Happening, World},
};

/// Decisions in a row at one instant after which the node spins.
const TURNS_MAX: usize = 1_000;
/// Time that a machine's monotonic clock shows when it has started.
const MONO_AT_BOOT: Duration = Duration::from_secs(10);
/// Time between two looks at the epoch of EVENTS.
const EPOCH_LOOK: Duration = Duration::from_secs(5);
/// A publish that is not answered by then is tried again.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// Events that go out in one request.
const BATCH_MAX: usize = 64;

/// What a process comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It serves, or, as a one-shot, has done its work.
    Ready,
    /// It ends by itself with this code.
    Dies(i32),
    /// It stops answering.
    Hangs(Hang, Option<Duration>),
    /// It answers again.
    Recovers,
    /// It ends by this signal.
    Killed(i32),
    /// It gives its signs.
    Beats,
}

/// A probe on its way.
#[derive(Debug, Clone)]
pub struct ProbeAsked {
    /// Who is asked.
    pub instance: Instance,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// As what.
    pub role: Role,
    /// Time to answer.
    pub timeout: Duration,
    /// When it was asked.
    pub at: Duration,
    /// The answer that is on its way; `None`: none yet.
    pub answer: Option<Answer>,
    /// It is not asked: its own signs are counted.
    pub told: bool,
    /// The line to the bus stood when the window began.
    pub heard: bool,
}

/// The agent of a node.
#[derive(Debug)]
pub struct Agent {
    /// Its policy.
    pub node: Node,
    /// A publish on its way: request, highest sequence, deadline.
    pub in_flight: Option<(u64, u64)>,
    joined: v1::NodeJoined,
    /// Epoch of EVENTS that it has seen.
    pub events_epoch: Option<u64>,
    watched: Option<String>,
    seen: BTreeMap<String, u64>,
    timer: Option<Duration>,
}

/// An end that nobody has been told of.
#[derive(Debug, Clone)]
pub struct Ended {
    proc: Proc,
    status: v1::ExitStatus,
}

/// A machine.
#[derive(Debug)]
pub struct Host {
    /// Name.
    pub name: String,
    /// Wall clock's error in seconds.
    pub wall_skew: i64,
    booted_at: Duration,
    boots: u64,
    /// Its disk.
    pub journal: Journal,
    disks: u64,
    unclean: bool,
    /// Living processes by pid.
    pub procs: BTreeMap<u32, Proc>,
    pids: u32,
    ended: Vec<Ended>,
    /// Signs that were given while no agent heard them.
    unheard: Vec<Input>,
    /// Its agent, while one lives.
    pub agent: Option<Agent>,
    /// Lives of its agent so far.
    pub lives: u64,
    /// The agent is stopped until then.
    pub paused_until: Option<Duration>,
    /// Effects until the agent dies.
    pub dies_after: Option<u32>,
    /// What the node must and must not do.
    pub oracle: Oracle,
}

impl Host {
    /// A machine that was just switched on for the first time.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            wall_skew: 0,
            booted_at: Duration::ZERO,
            boots: 1,
            journal: Journal::new(format!("{name}-disk-1")),
            disks: 1,
            unclean: false,
            procs: BTreeMap::new(),
            pids: 100,
            ended: Vec::new(),
            unheard: Vec::new(),
            agent: None,
            lives: 0,
            paused_until: None,
            dies_after: None,
            oracle: Oracle::new(name),
        }
    }

    /// Its processes of an instance.
    pub fn procs_of<'a>(&'a self, instance: &'a Instance) -> impl Iterator<Item = &'a Proc> {
        self.procs.values().filter(move |p| p.instance == *instance)
    }

    fn boot_id(&self) -> String {
        format!("{}-boot-{}", self.name, self.boots)
    }
}

impl World {
    /// A line of the story about a machine.
    pub fn tell_host(&mut self, h: usize, what: fmt::Arguments<'_>) {
        let (now, name) = (self.now, &self.hosts[h].name);
        self.story.tell(now, format_args!("node {name}"), what);
    }

    /// The two clocks of a machine.
    #[must_use]
    pub fn clocks(&self, h: usize) -> Now {
        let host = &self.hosts[h];
        Now { mono: MONO_AT_BOOT + self.now.saturating_sub(host.booted_at), wall: self.wall(host.wall_skew) }
    }

    /// The agent dies; its guard starts another.
    pub fn kill_agent(&mut self, h: usize, how: &str) {
        self.hosts[h].dies_after = None;
        if self.hosts[h].agent.take().is_none() {
            return;
        }
        self.hosts[h].paused_until = None;
        self.tell_host(h, format_args!("agent {how}"));
        self.broker.drop_line(Client::Host(h));
        let wait = self.chaos.millis(5, 3_000);
        self.later(wait, Happening::AgentStarts(h));
    }

    /// The machine goes down and comes up again: every process is gone.
    pub fn reboot(&mut self, h: usize, power_cut: bool) {
        self.tell_host(h, format_args!("{}", if power_cut { "power cut" } else { "reboots" }));
        self.kill_agent(h, "gone with its machine");
        let wait = self.chaos.millis(500, 20_000);
        let host = &mut self.hosts[h];
        host.procs.clear();
        host.ended.clear();
        host.boots += 1;
        host.booted_at = self.now;
        if power_cut {
            host.journal.power_cut();
            host.oracle.power_cut(&host.journal.disk);
            host.unclean = true;
        }
        self.later(wait, Happening::AgentStarts(h));
    }

    /// The disk is lost under the running machine: a new journal, and nothing known.
    pub fn lose_disk(&mut self, h: usize) {
        self.tell_host(h, format_args!("disk lost"));
        self.kill_agent(h, "gone with its disk");
        let host = &mut self.hosts[h];
        host.disks += 1;
        host.journal = Journal::new(format!("{}-disk-{}", host.name, host.disks));
        host.oracle = Oracle::new(&host.name);
        host.ended.clear();
    }

    /// The guard starts the agent: it looks for what the last one left, and takes over.
    pub fn start_agent(&mut self, h: usize) {
        if self.hosts[h].agent.is_some() {
            return;
        }
        let now = self.clocks(h);
        let (restored, strangers) = self.survey(h);
        let host = &mut self.hosts[h];
        host.lives += 1;
        let config = Config {
            mesh: "razar".to_owned(),
            node: host.name.clone(),
            node_epoch: host.journal.disk.epoch.clone(),
            seed: host.lives,
            start_floor: if std::mem::take(&mut host.unclean) { host.journal.disk.next_sequence / BLOCK * BLOCK } else { 0 },
        };
        host.oracle.agent_starts(&host.journal.disk, self.now);
        let (living, ended) = (restored.living.len(), restored.ended.len());
        let of = |planned: &v1::SpawnPlanned| {
            (planned.instance.as_ref().unwrap().try_into().unwrap(), planned.incarnation.as_ref().unwrap().into())
        };
        let buried: Vec<Life> = restored.ended.iter().map(|(planned, ..)| of(planned)).collect();
        let mut node = Node::new(config, Vec::new(), restored, now);
        let labels = vec![v1::NodeLabel { key: "host".to_owned(), value: host.name.clone() }];
        let (node_epoch, boot_id) = (host.journal.disk.epoch.clone(), host.boot_id());
        let joined = v1::NodeJoined { node_epoch, boot_id, labels, ..Default::default() };
        node.join(joined.clone(), now);
        for (instance, incarnation) in strangers {
            node.tell_foreign(&instance, incarnation, now);
        }
        host.oracle.adopted(&node);
        host.agent = Some(Agent { node, joined, events_epoch: None, in_flight: None, watched: None, seen: BTreeMap::new(), timer: None });
        let life = self.hosts[h].lives;
        self.tell_host(h, format_args!("agent starts, life {life}: {living} live, {ended} ended meanwhile"));
        self.reconnect_soon(Client::Host(h));
        self.later(EPOCH_LOOK, Happening::NodeLooks(h, life));
        self.turn_node(h);
        if self.hosts[h].agent.is_some() {
            buried.iter().for_each(|life| self.hosts[h].journal.gone(life, self.now));
        }
        for sign in std::mem::take(&mut self.hosts[h].unheard) {
            self.later(Duration::from_millis(1), Happening::NodeInput(h, life, Box::new(sign)));
        }
    }

    /// What the journal says, checked against the processes that there are. Strangers are ended.
    fn survey(&mut self, h: usize) -> (Restored, Vec<Life>) {
        let host = &mut self.hosts[h];
        let disk = host.journal.disk.clone();
        let mut restored = Restored { memories: disk.memories.clone(), plan: disk.plan.clone(), ..Restored::default() };
        let mut known: Vec<u32> = Vec::new();
        for (life, spawned) in &disk.spawned {
            let found = host.procs.values().find(|p| (&p.instance, p.incarnation) == (&life.0, life.1) && p.node_epoch == disk.epoch);
            match found {
                Some(found) => {
                    known.push(found.pid);
                    restored.living.push(spawned.clone());
                }
                None => {
                    let status = host.ended.iter().find(|e| (&e.proc.instance, e.proc.incarnation) == (&life.0, life.1)).map(|e| e.status);
                    restored.ended.push((spawned.planned.clone().unwrap(), status.unwrap_or_default(), "found dead".to_owned()));
                }
            }
        }
        for (life, planned) in &disk.planned {
            let found = host.procs.values().find(|p| (&p.instance, p.incarnation) == (&life.0, life.1) && p.node_epoch == disk.epoch);
            if let Some(found) = found {
                known.push(found.pid);
                let process = v1::ProcessIdentity { pid: found.pid, ..Default::default() };
                let spawned = v1::Spawned { planned: Some(planned.clone()), process: Some(process) };
                host.journal.spawned(life, spawned.clone(), self.now);
                restored.living.push(spawned);
            } else {
                host.journal.gone(life, self.now);
            }
        }
        host.ended.clear();
        let mut told = Vec::new();
        let strangers: Vec<u32> = host.procs.keys().copied().filter(|pid| !known.contains(pid)).collect();
        for pid in strangers {
            let proc = self.hosts[h].procs.remove(&pid).unwrap();
            self.tell_host(h, format_args!("ends stranger {}@{} of {}", proc.instance, proc.incarnation, proc.node_epoch));
            told.push((proc.instance, proc.incarnation));
        }
        (restored, told)
    }

    /// Now and then the node looks whether EVENTS was made anew, and if so tells again who is here and what it holds.
    pub(super) fn node_looks(&mut self, h: usize, life: u64) {
        if self.hosts[h].lives != life || self.hosts[h].agent.is_none() {
            return;
        }
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::NodeLooks(h, life));
            return;
        }
        self.later(EPOCH_LOOK, Happening::NodeLooks(h, life));
        let (now, epoch) = (self.clocks(h), self.broker.events.epoch);
        let reaches = self.broker.reaches(Client::Host(h));
        let Some(agent) = self.hosts[h].agent.as_mut().filter(|_| reaches) else { return };
        if agent.events_epoch.replace(epoch).is_some_and(|known| known != epoch) {
            agent.node.join(agent.joined.clone(), now);
            self.turn_node(h);
        }
    }

    /// The next look at an agent that is paused, if it is.
    fn node_paused(&self, h: usize) -> Option<Duration> {
        self.hosts[h].paused_until.filter(|until| *until > self.now)
    }

    pub(super) fn node_timer(&mut self, h: usize, life: u64, at: Duration) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::NodeTimer(h, life, at));
        } else if self.hosts[h].lives == life
            && let Some(agent) = &mut self.hosts[h].agent
            && agent.timer == Some(at)
        {
            agent.timer = None;
            self.turn_node(h);
        }
    }

    pub(super) fn node_input(&mut self, h: usize, life: u64, input: Box<Input>) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::NodeInput(h, life, input));
        } else if self.hosts[h].lives == life && self.hosts[h].agent.is_some() {
            self.apply_node(h, *input);
            self.turn_node(h);
        } else if matches!(*input, Input::Sign { .. }) {
            self.hosts[h].unheard.push(*input);
        }
    }

    /// Folds an input, for the oracle as well.
    pub(super) fn apply_node(&mut self, h: usize, input: Input) {
        let now = self.clocks(h);
        let host = &mut self.hosts[h];
        let Some(agent) = &mut host.agent else { return };
        host.oracle.input(&input, &agent.node, self.now);
        agent.node.apply(input, now);
    }

    /// Lets the node decide until it has nothing to do at this instant, as its loop does.
    pub(super) fn turn_node(&mut self, h: usize) {
        let mono_now = self.clocks(h).mono;
        for turn in 0.. {
            if turn > TURNS_MAX {
                self.violated("I16", format!("node {} never comes to rest", self.hosts[h].name));
                return;
            }
            let now = self.clocks(h);
            let Some(agent) = &mut self.hosts[h].agent else { return };
            let before: Vec<State> = agent.node.instances().map(|i| i.state).collect();
            let actions = agent.node.decide(now);
            self.check_decision(h, &before, &actions);
            if actions.is_empty() {
                break;
            }
            for action in actions {
                if self.dies_here(h) || self.checks.violation.is_some() {
                    return;
                }
                self.act(h, action);
            }
            if self.hosts[h].agent.is_none() {
                return;
            }
        }
        let Some(agent) = &mut self.hosts[h].agent else { return };
        let next = agent.node.next_deadline();
        if next.is_some_and(|at| at <= mono_now) {
            self.violated("I16", format!("node {} sets its timer at or before now: it would spin", self.hosts[h].name));
            return;
        }
        if let Some(at) = next
            && agent.timer != Some(at)
        {
            agent.timer = Some(at);
            let (life, late) = (self.hosts[h].lives, self.luck.span(Duration::ZERO, Duration::from_micros(200)));
            let wait = at.saturating_sub(mono_now) + late;
            self.later(wait, Happening::NodeTimer(h, life, at));
        }
    }

    fn dies_here(&mut self, h: usize) -> bool {
        match self.hosts[h].dies_after {
            None => false,
            Some(0) => {
                self.kill_agent(h, "dies between two effects");
                true
            }
            Some(n) => {
                self.hosts[h].dies_after = Some(n - 1);
                false
            }
        }
    }

    fn run_hook(&mut self, h: usize, key: HookKey) {
        let fails = self.faults.on(Fault::ClearFails) && self.luck.per_mille(300);
        let outcome = if fails { HookOutcome::Failed } else { HookOutcome::Ok };
        self.tell_host(h, format_args!("runs a hook, which ends {}", outcome.name()));
        let (wait, life) = (self.luck.millis(1, 3_000), self.hosts[h].lives);
        let took = std::time::Duration::from_millis(100);
        let end = HookEnd { outcome, status: None, took, output: String::new(), output_cut: false, stragglers: 0 };
        let input = Input::HookEnded { key, program: "hook".to_owned(), end };
        self.later(wait, Happening::NodeInput(h, life, Box::new(input)));
    }

    fn act(&mut self, h: usize, action: Action) {
        match action {
            Action::Spawn(spawn) => self.spawn(h, &spawn),
            Action::Signal { instance, incarnation, signal } => self.signal(h, &instance, incarnation, signal),
            Action::Kill { instance, incarnation } => self.kill(h, &instance, incarnation),
            Action::ClearState { instance, .. } => {
                let failed = (self.faults.on(Fault::ClearFails) && self.luck.per_mille(100)).then(|| "disk says no".to_owned());
                self.tell_host(h, format_args!("clears the state of {instance}"));
                let (wait, life) = (self.luck.millis(1, 300), self.hosts[h].lives);
                self.later(wait, Happening::NodeInput(h, life, Box::new(Input::Prepared { instance, failed })));
            }
            Action::RunHook(run) => self.run_hook(h, run.key),
            // It ends by itself before long, and its end is told all the same.
            Action::EndHook(_) => {}
            Action::Probe { instance, incarnation, role, timeout, spec } => self.probe(h, instance, incarnation, role, timeout, &spec),
            Action::Remember(memory) => {
                self.hosts[h].oracle.remembered(&memory);
                self.hosts[h].journal.remember(*memory, self.now);
                if let Some(why) = self.hosts[h].oracle.complaint.take() {
                    self.violated("I4", why);
                }
            }
            Action::StorePlan(plan) => {
                let host = &mut self.hosts[h];
                host.journal.disk.plan = *plan;
                host.oracle.plan_stored();
            }
            Action::Tell(event) => self.journal_event(h, *event),
        }
    }

    fn journal_event(&mut self, h: usize, event: v1::Event) {
        let name = self.hosts[h].name.clone();
        let event = self.hosts[h].journal.append(event, &name, self.now);
        let about =
            event.instance.as_ref().map_or_else(String::new, |i| Instance::try_from(i).map_or_else(|_| String::new(), |i| i.to_string()));
        let incarnation = event.incarnation.as_ref().map_or_else(String::new, |i| format!("@{}", Incarnation::from(i)));
        let why = event.reason.as_ref().map_or("", |r| r.text.as_str());
        self.tell_host(h, format_args!("{} {about}{incarnation}: {why}", event.kind));
        self.hosts[h].oracle.told(&event);
        let life = self.hosts[h].lives;
        self.later(Duration::ZERO, Happening::OutboxSends(h, life));
    }

    fn spawn(&mut self, h: usize, spawn: &Spawn) {
        self.check_spawn(h, spawn);
        let wall = self.clocks(h).wall;
        let (now, life) = (self.now, (spawn.instance.clone(), spawn.incarnation));
        self.tell_host(h, format_args!("spawns {}@{}{}", life.0, life.1, if spawn.by_rung { " by a rung" } else { "" }));
        let host = &mut self.hosts[h];
        let planned = v1::SpawnPlanned {
            instance: Some((&life.0).into()),
            incarnation: Some(life.1.into()),
            stack: spawn.desired.stack.clone(),
            spec_hash: spawn.desired.spec_hash.clone(),
            dependencies: spawn.dependencies.clone(),
            boot_id: host.boot_id(),
            at: Some(time::timestamp(wall)),
            by_rung: spawn.by_rung,
            ..Default::default()
        };
        host.journal.plan_spawn(&life, planned.clone(), now);
        host.oracle.spawned(spawn);
        if self.dies_here(h) {
            return;
        }
        self.hosts[h].oracle.carried_out(&life.0, now);
        if self.faults.on(Fault::SpawnFails) && self.luck.per_mille(30) {
            self.hosts[h].journal.gone(&life, now);
            let why = "no such program".to_owned();
            self.apply_node(h, Input::SpawnFailed { instance: life.0, incarnation: life.1, why });
            return;
        }
        let fate = Fate::random(&mut self.luck, &spawn.spec, &self.faults);
        let pid = self.born(h, spawn, fate);
        if self.dies_here(h) {
            return;
        }
        let process = v1::ProcessIdentity { pid, boot_id: self.hosts[h].boot_id(), ..Default::default() };
        self.hosts[h].journal.spawned(&life, v1::Spawned { planned: Some(planned), process: Some(process.clone()) }, now);
        self.apply_node(h, Input::Spawned { instance: life.0, incarnation: life.1, process });
    }

    fn born(&mut self, h: usize, spawn: &Spawn, fate: Fate) -> u32 {
        let host = &mut self.hosts[h];
        host.pids += 1;
        let pid = host.pids;
        self.later(fate.ready_after, Happening::ProcStep(h, pid, Step::Ready));
        if let Some((after, code)) = fate.dies {
            self.later(after, Happening::ProcStep(h, pid, Step::Dies(code)));
        }
        if let Some((after, kind, back)) = fate.hangs {
            self.later(after, Happening::ProcStep(h, pid, Step::Hangs(kind, back)));
        }
        let proc = Proc {
            pid,
            instance: spawn.instance.clone(),
            incarnation: spawn.incarnation,
            node_epoch: self.hosts[h].journal.disk.epoch.clone(),
            spec: (*spawn.spec).clone(),
            born: self.now,
            fate,
            hang: None,
            killed: false,
            signalled: false,
        };
        self.hosts[h].procs.insert(pid, proc);
        pid
    }

    fn pid_of(&self, h: usize, instance: &Instance, incarnation: Incarnation) -> Option<u32> {
        self.hosts[h].procs_of(instance).find(|p| p.incarnation == incarnation).map(|p| p.pid)
    }

    fn signal(&mut self, h: usize, instance: &Instance, incarnation: Incarnation, signal: i32) {
        self.check_signal(h, instance, incarnation);
        self.tell_host(h, format_args!("signals {instance}@{incarnation}"));
        let Some(pid) = self.pid_of(h, instance, incarnation) else { return };
        let proc = self.hosts[h].procs.get_mut(&pid).unwrap();
        proc.signalled = true;
        // Who is stopped or traced gets it later, and who hangs does not act on it.
        if !proc.fate.deaf && matches!(proc.hang, None | Some(Hang::Starved)) {
            let wait = proc.fate.stop_takes;
            self.later(wait, Happening::ProcStep(h, pid, Step::Killed(signal)));
        }
    }

    fn kill(&mut self, h: usize, instance: &Instance, incarnation: Incarnation) {
        self.check_kill(h, instance, incarnation);
        self.tell_host(h, format_args!("kills {instance}@{incarnation}"));
        let Some(pid) = self.pid_of(h, instance, incarnation) else { return };
        let proc = self.hosts[h].procs.get_mut(&pid).unwrap();
        if !proc.killed {
            proc.killed = true;
            let wait = proc.fate.kill_takes;
            self.later(wait, Happening::ProcStep(h, pid, Step::Killed(9)));
        }
    }

    pub(super) fn proc_step(&mut self, h: usize, pid: u32, step: Step) {
        let Some(proc) = self.hosts[h].procs.get_mut(&pid) else { return };
        let name = format!("{}@{}", proc.instance, proc.incarnation);
        match step {
            Step::Ready if proc.spec.one_shot => self.ends(h, pid, Some(0), None),
            Step::Ready => {
                self.gives_sign(h, pid, Role::Startup);
                self.gives_sign(h, pid, Role::Readiness);
                self.later(Duration::from_millis(500), Happening::ProcStep(h, pid, Step::Beats));
            }
            Step::Beats => {
                self.gives_sign(h, pid, Role::Liveness);
                let beats = self.hosts[h].procs.get(&pid).is_some_and(|p| p.tells(Role::Liveness));
                if beats {
                    self.later(Duration::from_secs(1), Happening::ProcStep(h, pid, Step::Beats));
                }
            }
            Step::Dies(code) => {
                if proc.hang.is_none() && !self.faults.ceased {
                    self.ends(h, pid, Some(code), None);
                }
            }
            Step::Killed(signal) => self.ends(h, pid, None, Some(signal)),
            Step::Hangs(kind, back) => {
                if !self.faults.ceased {
                    proc.hang = Some(kind);
                    self.tell_host(h, format_args!("{name} hangs: {kind:?}, back {back:?}"));
                    if let Some(back) = back {
                        self.later(back, Happening::ProcStep(h, pid, Step::Recovers));
                    }
                }
            }
            Step::Recovers => {
                if proc.hang.take().is_some() {
                    self.tell_host(h, format_args!("{name} answers again"));
                    let proc = &self.hosts[h].procs[&pid];
                    let serves = proc.serves(self.now);
                    if proc.signalled && !proc.fate.deaf {
                        self.later(Duration::from_millis(5), Happening::ProcStep(h, pid, Step::Killed(15)));
                    }
                    if serves {
                        self.later(Duration::ZERO, Happening::ProcStep(h, pid, Step::Ready));
                    }
                }
            }
        }
    }

    /// What the process says by itself reaches the agent, if there is one to hear it.
    fn gives_sign(&mut self, h: usize, pid: u32, role: Role) {
        let host = &self.hosts[h];
        let Some(proc) = host.procs.get(&pid) else { return };
        let beat = matches!(role.probe(&proc.spec).and_then(|p| p.check.as_ref()), Some(Check::Heartbeat(_)));
        if !proc.tells(role) || proc.hang.is_some() || (beat && !self.broker.reaches(Client::Host(h))) {
            return;
        }
        let (instance, incarnation, life) = (proc.instance.clone(), proc.incarnation, host.lives);
        let input = Input::Sign { instance, incarnation, role, detail: "sign".to_owned() };
        self.later(Duration::from_micros(50), Happening::NodeInput(h, life, Box::new(input)));
    }

    fn ends(&mut self, h: usize, pid: u32, code: Option<i32>, signal: Option<i32>) {
        let Some(proc) = self.hosts[h].procs.remove(&pid) else { return };
        self.tell_host(h, format_args!("{}@{} ends: code {code:?}, signal {signal:?}", proc.instance, proc.incarnation));
        self.hosts[h].ended.push(Ended { proc, status: v1::ExitStatus { code, signal, oom: None } });
        let wait = self.luck.span(Duration::from_micros(50), Duration::from_millis(1));
        self.later(wait, Happening::NodeBuries(h));
    }

    pub(super) fn bury(&mut self, h: usize) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::NodeBuries(h));
            return;
        }
        while self.hosts[h].agent.is_some() && !self.hosts[h].ended.is_empty() {
            let Ended { proc, status } = self.hosts[h].ended.remove(0);
            let life = (proc.instance, proc.incarnation);
            let exited = Input::Exited {
                instance: life.0.clone(),
                incarnation: life.1,
                status,
                last_error: "boom".to_owned(),
                while_away: false,
                stragglers: 0,
            };
            self.apply_node(h, exited);
            if self.dies_here(h) {
                return;
            }
            // What follows from it is written before it is forgotten: who dies in between finds it again.
            self.turn_node(h);
            if self.hosts[h].agent.is_none() {
                return;
            }
            self.hosts[h].journal.gone(&life, self.now);
        }
    }

    fn probe(&mut self, h: usize, instance: Instance, incarnation: Incarnation, role: Role, timeout: Duration, spec: &v1::ComponentSpec) {
        let Some(probe) = role.probe(spec) else { return };
        let told = manner(probe) == Manner::Told;
        let heard = !matches!(probe.check, Some(Check::Heartbeat(_))) || self.broker.reaches(Client::Host(h));
        let proc = self.pid_of(h, &instance, incarnation).and_then(|pid| self.hosts[h].procs.get(&pid));
        let answer = if told { None } else { proc.map_or(Some(Answer::Refused), |p| p.answer(role, self.now)) };
        let wait = if answer.is_some() { self.luck.span(Duration::from_micros(100), Duration::from_millis(5)) } else { timeout };
        let asked = ProbeAsked { instance, incarnation, role, timeout, at: self.now, answer, told, heard };
        let life = self.hosts[h].lives;
        self.later(wait.min(timeout), Happening::ProbeEnds(h, life, Box::new(asked)));
    }

    pub(super) fn probe_ends(&mut self, h: usize, life: u64, asked: Box<ProbeAsked>) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::ProbeEnds(h, life, asked));
            return;
        }
        if self.hosts[h].lives != life || self.hosts[h].agent.is_none() {
            return;
        }
        let took = self.now.saturating_sub(asked.at);
        let proc = self.pid_of(h, &asked.instance, asked.incarnation).and_then(|pid| self.hosts[h].procs.get(&pid));
        let hang = proc.and_then(|p| p.hang);
        let answer = match asked.answer {
            Some(answer) => answer,
            None if asked.told => {
                if asked.heard && (!beats(proc, asked.role) || self.broker.reaches(Client::Host(h))) {
                    Answer::Failed
                } else {
                    Answer::Void
                }
            }
            None => proc.and_then(|p| p.answer(asked.role, self.now)).unwrap_or(Answer::Failed),
        };
        let failed = matches!(answer, Answer::Failed | Answer::Refused);
        let base = u64::from(proc.map_or(0, |p| p.pid));
        let seen = (failed && asked.role == Role::Liveness && proc.is_some()).then(|| window(hang, asked.timeout, took, base));
        if failed && asked.role == Role::Liveness && !asked.told {
            self.tell_host(h, format_args!("{}@{} did not answer for {took:?}: {hang:?}", asked.instance, asked.incarnation));
        }
        let input = Input::Probed {
            instance: asked.instance,
            incarnation: asked.incarnation,
            role: asked.role,
            answer,
            detail: "probe".to_owned(),
            took,
            window: seen,
        };
        self.apply_node(h, input);
        self.turn_node(h);
    }

    /// Hands the agent what its watch of the intents says next; whether there is more.
    pub(super) fn feed_host(&mut self, h: usize) -> bool {
        let client = Client::Host(h);
        for _ in 0..1 + self.net.below(4) {
            let skip = self.net.per_mille(500);
            let Some((item, settled)) = self.broker.intents.next(client, skip) else { return false };
            let Some(agent) = &mut self.hosts[h].agent else { return false };
            let mut changes = Vec::new();
            // As the real watch: an epoch that is known and entries that were told are not told again.
            match item {
                Item::Epoch(epoch) if agent.watched.as_ref() == Some(&epoch) => {}
                Item::Epoch(epoch) => {
                    agent.watched = Some(epoch.clone());
                    agent.seen.clear();
                    changes.push(ViewChange::Epoch(epoch));
                }
                Item::Entry(key, revision, intent) => {
                    if agent.seen.get(&key).is_none_or(|told| *told < revision) {
                        agent.seen.insert(key.clone(), revision);
                        let intent = intent.map(|i| Box::new((*i).clone()));
                        changes.push(ViewChange::Record { key, revision, intent });
                    }
                    if settled {
                        changes.push(ViewChange::Settled);
                    }
                }
                Item::Settled => changes.push(ViewChange::Settled),
            }
            for change in changes {
                self.apply_node(h, Input::View(change));
                self.turn_node(h);
                if self.hosts[h].agent.is_none() {
                    return false;
                }
            }
        }
        self.broker.intents.watches.get(&client).is_some_and(|w| !w.is_empty())
    }

    /// The outbox sends what is journalled, in order, one request at a time.
    pub(super) fn outbox_sends(&mut self, h: usize, life: u64) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::OutboxSends(h, life));
            return;
        }
        let request = self.number();
        let host = &mut self.hosts[h];
        let Some(agent) = host.agent.as_mut().filter(|a| a.in_flight.is_none() && host.lives == life) else { return };
        let events: Vec<_> = host.journal.disk.outbox.values().take(BATCH_MAX).cloned().collect();
        let Some(last) = events.last().and_then(|e| e.node_sequence.as_ref()).map(|s| s.sequence) else { return };
        if !self.broker.links.get(&Client::Host(h)).is_some_and(|l| l.connected) {
            return;
        }
        agent.in_flight = Some((request, last));
        let wait = self.latency();
        if self.faults.on(Fault::LateCopies) && self.net.per_mille(5) {
            let late = self.net.millis(100, 150_000);
            self.later(late, Happening::OutboxArrives(h, life, request, events.clone()));
        }
        self.later(wait, Happening::OutboxArrives(h, life, request, events));
        self.later(PUBLISH_LIMIT, Happening::OutboxReply(h, life, request, false));
    }

    pub(super) fn outbox_arrives(&mut self, h: usize, life: u64, request: u64, events: Vec<Arc<v1::Event>>) {
        if !self.broker.up || self.broker.links.get(&Client::Host(h)).is_some_and(|l| l.cut) {
            return;
        }
        self.store_events(events);
        if self.faults.on(Fault::ReplyLost) && self.net.per_mille(30) {
            return;
        }
        let wait = self.latency();
        self.later(wait, Happening::OutboxReply(h, life, request, true));
    }

    pub(super) fn outbox_reply(&mut self, h: usize, life: u64, request: u64, stored: bool) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::OutboxReply(h, life, request, stored));
            return;
        }
        let host = &mut self.hosts[h];
        let Some(agent) = host.agent.as_mut().filter(|_| host.lives == life) else { return };
        let Some((_, upto)) = agent.in_flight.filter(|(r, _)| *r == request) else { return };
        agent.in_flight = None;
        if stored {
            let acked: Vec<_> = host.journal.disk.outbox.range(..=upto).map(|(_, e)| e.id.clone()).collect();
            host.journal.acknowledged(upto, self.now);
            if let Some(lost) = acked.iter().find(|id| !self.broker.ever_stored.contains(*id)) {
                self.violated("I1", format!("{lost} was acknowledged and is not stored"));
                return;
            }
        }
        let wait = if stored { Duration::ZERO } else { Duration::from_millis(500) };
        self.later(wait, Happening::OutboxSends(h, life));
    }

    /// Stores events and lets everybody know.
    pub fn store_events(&mut self, events: Vec<Arc<v1::Event>>) {
        let mut any = false;
        for event in events {
            let now = self.now;
            if self.broker.events.append(event.clone(), now) {
                self.broker.ever_stored.insert(event.id.clone());
                self.stored(&event);
                any = true;
            }
        }
        if any {
            for client in (0..self.replicas.len()).map(Client::Replica).chain((0..self.registries.len()).map(Client::Registry)) {
                self.feed_soon(client);
            }
        }
    }
}

fn beats(proc: Option<&Proc>, role: Role) -> bool {
    let check = proc.and_then(|p| role.probe(&p.spec)).and_then(|p| p.check.as_ref());
    matches!(check, Some(Check::Heartbeat(_)))
}
