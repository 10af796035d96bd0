//! A simulated machine: its clocks, its disk, its processes, and the node's agent, which is killed, paused and started again by its guard.
//! What the agent's shell does with the policy's actions is done here, in the same order, and the agent may die between any two steps.

mod acts;
mod outbox;

use std::{collections::BTreeMap, fmt, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, InstanceState as State},
};
use razar_node::policy::{
    Config, Input, Node, Now, Restored, ViewChange,
    probing::{Answer, Role},
};

use super::{
    bus::{Client, Item},
    disk::{BLOCK, Journal, Life},
    oracle::Oracle,
    process::{Hang, Proc},
    world::{Happening, World},
};

/// Decisions in a row at one instant after which the node spins.
const TURNS_MAX: usize = 1_000;
/// Time that a machine's monotonic clock shows when it has started.
const MONO_AT_BOOT: Duration = Duration::from_secs(10);
/// Time between two looks at the epoch of EVENTS.
const EPOCH_LOOK: Duration = Duration::from_secs(5);

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
    /// It ends by what ails its component.
    Fails,
    /// It looks whether what it needs serves.
    Leans,
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
    /// Signs that no agent has heard, or none that lived on until it had written down what follows from them.
    unheard: Vec<Input>,
    /// Its agent, while one lives.
    pub agent: Option<Agent>,
    /// Lives of its agent so far.
    pub lives: u64,
    /// The agent is stopped until then.
    pub paused_until: Option<Duration>,
    /// Its beats are lost until then.
    pub muted_until: Option<Duration>,
    /// Effects until the agent dies.
    pub dies_after: Option<u32>,
    /// States before the decision that is being carried out.
    pub before: BTreeMap<Instance, State>,
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
            muted_until: None,
            dies_after: None,
            before: BTreeMap::new(),
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
            let lost = host.journal.power_cut(self.now);
            host.oracle.power_cut(&host.journal.disk, lost);
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
        self.ailments.dirty.retain(|(on, _)| *on != h);
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
            agent.node.tell_living(now);
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
            return;
        }
        // A sign waits until an agent has written down what follows from it: the guard holds the socket.
        let sign = matches!(*input, Input::Sign { .. }).then(|| (*input).clone());
        if self.hosts[h].lives == life && self.hosts[h].agent.is_some() {
            self.apply_node(h, *input);
            self.turn_node(h);
        }
        if self.hosts[h].lives != life || self.hosts[h].agent.is_none() {
            self.hosts[h].unheard.extend(sign);
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
            self.hosts[h].before = agent.node.instances().map(|i| (i.id.clone(), i.state)).collect();
            let Some(agent) = &mut self.hosts[h].agent else { return };
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
}
