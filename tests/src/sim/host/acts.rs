//! What a node's actions do to its machine, and what its processes do by themselves.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time,
    v1::{self, probe::Check},
};
use razar_node::policy::{
    Action, Input, Spawn,
    hooks::{HookEnd, HookKey, HookOutcome},
    probing::{Answer, Manner, Role, manner},
};

use super::{
    super::{
        bus::Client,
        faults::Fault,
        process::{Fate, Hang, Proc, window},
        world::{Happening, World},
    },
    Ended, ProbeAsked, Step,
};

impl World {
    pub(super) fn act(&mut self, h: usize, action: Action) {
        match action {
            Action::Spawn(spawn) => self.spawn(h, &spawn),
            Action::Signal { instance, incarnation, signal } => self.signal(h, &instance, incarnation, signal),
            Action::Kill { instance, incarnation } => self.kill(h, &instance, incarnation),
            Action::ClearState { instance, .. } => {
                let failed = (self.faults.on(Fault::ClearFails) && self.luck.per_mille(100)).then(|| "disk says no".to_owned());
                self.tell_host(h, format_args!("clears the state of {instance}"));
                if failed.is_none() {
                    self.ailments.dirty.remove(&(h, instance.clone()));
                }
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
            Action::StorePlan(change) => {
                let now = self.now;
                let host = &mut self.hosts[h];
                let (before, at_once) = host.journal.store_plan(*change, now);
                host.oracle.plan_stored(before, at_once);
            }
            Action::Tell(event) => self.journal_event(h, *event),
        }
    }

    fn run_hook(&mut self, h: usize, key: HookKey) {
        let fails = self.faults.on(Fault::ClearFails) && self.luck.per_mille(300);
        let outcome = if fails { HookOutcome::Failed } else { HookOutcome::Ok };
        self.tell_host(h, format_args!("runs a hook, which ends {}", outcome.name()));
        let (wait, life) = (self.luck.millis(1, 3_000), self.hosts[h].lives);
        let took = Duration::from_millis(100);
        let end = HookEnd { outcome, status: None, took, output: String::new(), output_cut: false, stragglers: 0 };
        let input = Input::HookEnded { key, program: "hook".to_owned(), end };
        self.later(wait, Happening::NodeInput(h, life, Box::new(input)));
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
        let mut fate = Fate::random(&mut self.luck, &spawn.spec, &self.faults);
        self.ailments.taint(&mut fate, h, &life.0, &mut self.luck, &self.faults);
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
        if let Some(after) = fate.fails {
            self.later(after, Happening::ProcStep(h, pid, Step::Fails));
        }
        if fate.leans {
            self.later(fate.ready_after, Happening::ProcStep(h, pid, Step::Leans));
        }
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

    pub(in crate::sim) fn proc_step(&mut self, h: usize, pid: u32, step: Step) {
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
            Step::Fails => self.ends(h, pid, Some(1), None),
            Step::Leans => {
                if self.leans(h, pid) {
                    self.ends(h, pid, Some(1), None);
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
        let proc = proc.clone();
        if beat && !self.component_beats(&proc) {
            return;
        }
        let input = Input::Sign { instance, incarnation, role, detail: "sign".to_owned() };
        self.later(Duration::from_micros(50), Happening::NodeInput(h, life, Box::new(input)));
    }

    fn ends(&mut self, h: usize, pid: u32, code: Option<i32>, signal: Option<i32>) {
        let Some(proc) = self.hosts[h].procs.remove(&pid) else { return };
        self.tell_host(h, format_args!("{}@{} ends: code {code:?}, signal {signal:?}", proc.instance, proc.incarnation));
        let leaves_dirt = code != Some(0) && !proc.spec.state.is_empty() && self.faults.on(Fault::Dirties) && self.luck.per_mille(250);
        if leaves_dirt {
            self.tell_host(h, format_args!("{} leaves a state behind that it will not start from", proc.instance));
            self.ailments.dirty.insert((h, proc.instance.clone()));
        }
        self.hosts[h].ended.push(Ended { proc, status: v1::ExitStatus { code, signal, oom: None } });
        let wait = self.luck.span(Duration::from_micros(50), Duration::from_millis(1));
        self.later(wait, Happening::NodeBuries(h));
    }

    pub(in crate::sim) fn bury(&mut self, h: usize) {
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

    pub(in crate::sim) fn probe_ends(&mut self, h: usize, life: u64, asked: Box<ProbeAsked>) {
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
}

fn beats(proc: Option<&Proc>, role: Role) -> bool {
    let check = proc.and_then(|p| role.probe(&p.spec)).and_then(|p| p.check.as_ref());
    matches!(check, Some(Check::Heartbeat(_)))
}
