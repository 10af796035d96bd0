//! What happened to a process, folded into its instance: spawned, answered, silent, gone. What follows is decided in `moves`.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, DegradedKind, HangWindow, InstanceState as State, event::Fact, probe::Check},
};

use super::{
    Action, Group, Node, Now,
    evidence::{Window, classify},
    instance::{Inst, OpenIncident, may_follow},
    probing::{self, Answer, Probes, Role, Row},
    restart::Limits,
};

/// Making the mesh's stores takes some tens of milliseconds; on a machine that is busy, some more.
const STORES_MADE_WITHIN: Duration = Duration::from_secs(5);

/// How a process ended.
pub(super) struct Exit {
    pub(super) status: v1::ExitStatus,
    pub(super) last_error: String,
    pub(super) while_away: bool,
    pub(super) stragglers: u32,
    /// Its program ran; else the start itself failed.
    pub(super) started: bool,
}

/// What a probe said.
pub(super) struct Said {
    pub(super) role: Role,
    pub(super) answer: Answer,
    pub(super) detail: String,
    pub(super) took: Duration,
    pub(super) window: Option<Window>,
}

impl Node {
    /// Moves `id` along the declared machine.
    pub(super) fn set_state(&mut self, id: &Instance, to: State, reason: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        if inst.state == to {
            reason.clone_into(&mut inst.reason);
            return;
        }
        debug_assert!(may_follow(inst.state, to), "{id}: {:?} -> {to:?} is not declared", inst.state);
        if !may_follow(inst.state, to) {
            return;
        }
        if inst.state == State::Ready {
            inst.ready_before = inst.ready_for(now.mono);
            inst.ready_since = None;
        }
        let leaves_off = inst.state == State::Preparing && !matches!(to, State::Starting | State::Exited);
        if to == State::Ready {
            inst.ready_since = Some(now.mono);
            inst.was_ready = true;
        }
        inst.state = to;
        inst.since = now.mono;
        reason.clone_into(&mut inst.reason);
        if to != State::Waiting {
            let key = (inst.group(), inst.rank(), id.clone());
            inst.queued_since = None;
            self.startable.remove(&key);
        } else {
            inst.waiting_since = now.mono;
        }
        if leaves_off {
            self.abandon_hook(id);
        }
        self.touch(id);
    }

    fn living(&mut self, id: &Instance, incarnation: Incarnation) -> Option<&mut Inst> {
        self.instances.get_mut(id).filter(|i| i.incarnation == incarnation && i.lives())
    }

    pub(super) fn fold_spawned(&mut self, id: &Instance, incarnation: Incarnation, process: v1::ProcessIdentity, now: Now) {
        let Some(inst) = self.living(id, incarnation) else { return };
        inst.process = Some(process.clone());
        let (limits, delay, waited) = (inst.spec().map(|s| Limits::of(s)), inst.delay, inst.spawned_at.saturating_sub(inst.waiting_since));
        let queued = inst.queued_since.map_or(Duration::ZERO, |since| inst.spawned_at.saturating_sub(since));
        let restart =
            limits.map_or(0, |l| if inst.budget.restarts.back() == Some(&inst.spawned_at) { inst.budget.spent(&l, now.mono) } else { 0 });
        let fact = v1::ComponentStarted {
            process: Some(process),
            restart,
            restart_max: limits.map_or(0, |l| l.max),
            delay: Some(time::duration(delay)),
            waited: Some(time::duration(if restart == 0 { waited } else { Duration::ZERO })),
            queued: Some(time::duration(if restart == 0 { queued } else { Duration::ZERO })),
            dependencies: dependencies_seen(inst),
            generation: incarnation.generation,
            adopted: false,
        };
        let (code, text) = match (restart, inst.by_rung) {
            (_, true) => ("rung_start", "started by a rung of the ladder".to_owned()),
            (0, false) => ("start", "its dependencies' conditions hold".to_owned()),
            (n, false) => ("local_restart", format!("local restart {n} of {}", fact.restart_max)),
        };
        self.tell(id, Fact::ComponentStarted(fact), code, &text, now);
        self.touch(id);
        self.ready_unasked(id, now);
    }

    /// Who is asked for no readiness has it as soon as its process is there.
    pub(super) fn ready_unasked(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id).filter(|i| i.state == State::Starting) else { return };
        if inst.spec().is_some_and(|s| s.readiness_none && s.startup.is_none() && !s.one_shot) {
            self.became_ready(id, "no readiness is asked for", now);
        }
    }

    pub(super) fn fold_spawn_failed(&mut self, id: &Instance, incarnation: Incarnation, why: String, now: Now) {
        let exit = Exit { status: v1::ExitStatus::default(), last_error: why, while_away: false, stragglers: 0, started: false };
        self.fold_exit(id, incarnation, &exit, now);
    }

    pub(super) fn fold_prepared(&mut self, id: &Instance, failed: Option<String>, now: Now) {
        let Some(inst) = self.instances.get(id).filter(|i| i.state == State::Preparing) else { return };
        match failed {
            None if inst.hook.is_some() => self.run_chakra_hook(id, now),
            None => self.spawn_prepared(id, now),
            Some(why) => self.preparation_failed(id, why, now),
        }
    }

    /// What comes before a start is done: it follows, unless a dependency's condition was lost meanwhile, or its recovery holds starts.
    pub(super) fn spawn_prepared(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let Some(spec) = inst.wanted.as_ref().map(|w| w.spec.clone()) else { return };
        let is_held = self.hold_on(inst, now.mono).is_some();
        if !is_held && self.blockers(&spec, id, now.mono).is_empty() {
            self.spawn(id, now);
        } else if let Some(inst) = self.instances.get_mut(id) {
            inst.slot = false;
            let why = if is_held { "a dependency's recovery held its start" } else { "a dependency's condition was lost before its start" };
            self.set_state(id, State::Waiting, why, now);
        }
    }

    pub(super) fn fold_exit(&mut self, id: &Instance, incarnation: Incarnation, exit: &Exit, now: Now) {
        let Some(inst) = self.living(id, incarnation) else { return };
        let (state, lived, ready_for) = (inst.state, now.mono.saturating_sub(inst.spawned_at), inst.ready_for(now.mono));
        inst.process = None;
        inst.slot = false;
        inst.last_exit = Some(exit.status);
        inst.last_error.clone_from(&exit.last_error);
        inst.probes = Probes::default();
        inst.hang.answered();
        inst.suspect = None;
        (inst.degraded, inst.undegraded) = (None, None);
        inst.blocked_since = None;
        inst.slow_start_told = false;
        let one_shot = inst.spec().is_some_and(|s| s.one_shot);
        if state != State::Stopping {
            inst.stop = None;
        }
        if state == State::Stopping {
            self.finish_stop(id, exit, now);
            return;
        }
        if one_shot && exit.status.code == Some(0) {
            self.complete(id, lived, now);
            return;
        }
        let text =
            if exit.started { describe_exit(&exit.status, &exit.last_error) } else { format!("could not be started: {}", exit.last_error) };
        self.blame(id, ready_for, &text, now);
        let fact = v1::ComponentExited {
            status: Some(exit.status),
            last_error: exit.last_error.clone(),
            lived: Some(time::duration(lived)),
            ready_for: Some(time::duration(ready_for)),
            detected_at: Some(time::timestamp(now.wall)),
            while_away: exit.while_away,
            stragglers_killed: exit.stragglers,
        };
        self.tell(id, Fact::ComponentExited(fact), "exited", &text, now);
        self.set_state(id, State::Exited, &text, now);
    }

    /// Opens an incident and charges the budget, unless a dependency is to blame.
    fn blame(&mut self, id: &Instance, ready_for: Duration, cause: &str, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        if !self.blockers(&spec, id, now.mono).is_empty() {
            return;
        }
        let limits = Limits::of(&spec);
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.budget.died(ready_for, &limits);
        open_incident(inst, cause, now.mono);
    }

    /// A one-shot ended well.
    fn complete(&mut self, id: &Instance, took: Duration, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.completed = Some((inst.started_hash.clone(), inst.incarnation.generation));
        let fact = v1::ComponentReady { took: Some(time::duration(took)), probe: "exit 0".to_owned(), again: false, completed: true };
        self.tell(id, Fact::ComponentReady(fact), "completed", "the one-shot ended well", now);
        self.end_local_incident(id, now);
        self.set_state(id, State::Completed, "ended well", now);
    }

    pub(super) fn fold_sign(&mut self, id: &Instance, incarnation: Incarnation, role: Role, detail: &str, now: Now) {
        let Some(inst) = self.living(id, incarnation) else { return };
        inst.probes.role(role).sign_at = Some(now.mono);
        let Some(spec) = inst.spec().cloned() else { return };
        match role {
            Role::Startup if !inst.probes.started_up => self.start_passed(id, &spec, now),
            Role::Startup => {}
            Role::Readiness if inst.probes.started_up && matches!(inst.state, State::Starting | State::Unready) => {
                self.became_ready(id, detail, now);
            }
            // To be remembered until its startup probe passes.
            Role::Readiness if inst.state == State::Starting => drop(self.dirty.insert(id.clone())),
            Role::Readiness => {}
            Role::Liveness => self.alive(id, now.mono, now),
        }
    }

    /// Draws the conclusions from what an instance has said before it was known what it is.
    pub(super) fn hear_again(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id).filter(|i| i.state == State::Starting) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let (up, ready) = (inst.probes.startup.sign_at.is_some(), inst.probes.readiness.sign_at.is_some());
        if up && !inst.probes.started_up {
            self.start_passed(id, &spec, now);
        } else if ready && inst.probes.started_up {
            self.became_ready(id, "it had said so before it was known here", now);
        }
        self.ready_unasked(id, now);
    }

    pub(super) fn fold_probe(&mut self, id: &Instance, incarnation: Incarnation, mut said: Said, now: Now) {
        let Some(inst) = self.living(id, incarnation) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let Some(probe) = said.role.probe(&spec) else { return };
        let figures = probing::figures(probe, said.role);
        let (starting, was_ready) = ((inst.state == State::Starting).then_some(inst.spawned_at), inst.was_ready);
        let state = inst.probes.role(said.role);
        let Some(asked) = state.asked else { return };
        let told = probing::manner(probe) == probing::Manner::Told;
        if told && said.answer != Answer::Void {
            said.answer = if state.sign_at.is_some_and(|at| at >= asked) { Answer::Passed } else { Answer::Failed };
        }
        let row = state.fold(said.answer, &figures, starting, now.mono);
        let looks = if said.answer == Answer::Passed { &mut self.asking } else { &mut self.dirty };
        looks.insert(id.clone());
        // A sign that comes by itself is waited for as long as its window lasts: that is no slowness.
        let shows_pace = !told && was_ready;
        match said.role {
            Role::Startup => self.fold_startup(id, &spec, row, &said, now),
            Role::Readiness => self.fold_readiness(id, row, &said, now),
            Role::Liveness if said.answer == Answer::Void => {}
            Role::Liveness if said.answer == Answer::Passed => self.alive(id, if told { asked } else { now.mono }, now),
            Role::Liveness => self.fold_silence(id, &said, figures.failures, now),
        }
        if matches!(said.answer, Answer::Failed | Answer::Refused) {
            self.answered_badly(id, now);
        } else if shows_pace {
            self.note_pace(id, &spec, &said, now);
        }
    }

    fn fold_startup(&mut self, id: &Instance, spec: &v1::ComponentSpec, row: Row, said: &Said, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        match row {
            Row::Open => {}
            // Early questions come faster than the period: the limit is a time, not a count.
            Row::Bad if now.mono < inst.spawned_at + probing::startup_limit(spec) => {}
            Row::Good => self.start_passed(id, spec, now),
            Row::Bad => {
                inst.probes = Probes::default();
                let incarnation = inst.incarnation;
                open_incident(inst, "its startup probe failed as often as it may", now.mono);
                let evidence = v1::HangEvidence { probe: said.detail.clone(), ..Default::default() };
                let fact = Fact::ComponentUnresponsive(v1::ComponentUnresponsive { evidence: Some(evidence) });
                self.tell(id, fact, "startup_limit", "its startup probe failed as often as it may", now);
                self.actions.push(Action::Kill { instance: id.clone(), incarnation });
                self.mark_killed(id, now);
            }
        }
    }

    /// The startup probe has passed: readiness begins. Who said by itself that it is ready says so once, and may have done so before.
    fn start_passed(&mut self, id: &Instance, spec: &v1::ComponentSpec, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.probes.start_passed(spec, now.mono);
        let told = spec.readiness.as_ref().is_some_and(|p| probing::manner(p) == probing::Manner::Told);
        let has_said = told && inst.probes.readiness.sign_at.is_some();
        self.touch(id);
        if self.instances.get(id).is_none_or(|i| i.state != State::Starting) {
            return;
        }
        if has_said {
            self.became_ready(id, "it had said so before its startup probe passed", now);
        } else if spec.readiness_none {
            self.became_ready(id, "its startup probe passed; no readiness is asked for", now);
        }
    }

    fn fold_readiness(&mut self, id: &Instance, row: Row, said: &Said, now: Now) {
        let Some(state) = self.instances.get(id).map(|i| i.state) else { return };
        match (row, state) {
            (Row::Good, State::Starting | State::Unready) => self.became_ready(id, &said.detail, now),
            (Row::Bad, State::Ready) => {
                let fact = Fact::ComponentUnready(v1::ComponentUnready { probe: said.detail.clone() });
                self.tell(id, fact, "unready", &format!("readiness: {}", said.detail), now);
                self.set_state(id, State::Unready, &said.detail, now);
            }
            _ => {}
        }
    }

    /// A liveness answer: the row is cleared, and a sign of life after failures is counted.
    fn alive(&mut self, id: &Instance, at: Duration, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        // A sign that came by itself keeps its own instant: the next window must see another one.
        let sign = &mut inst.probes.liveness.sign_at;
        *sign = (*sign).max(Some(at));
        if inst.hang.windows() > 0 {
            inst.signs_of_life = inst.signs_of_life.saturating_add(1);
            self.dirty.insert(id.clone());
        }
        inst.hang.answered();
        inst.suspect = None;
        if inst.degraded.as_ref().is_some_and(|d| d.kind != DegradedKind::Slow) {
            self.answered_well(id, "it answers again", now);
        }
    }

    /// A liveness probe failed: what was the window, and is the row a hang?
    fn fold_silence(&mut self, id: &Instance, said: &Said, threshold: u32, now: Now) {
        let Some(window) = &said.window else { return };
        let verdict = classify(window);
        let Some(inst) = self.instances.get(id) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let blocked = !self.blockers(&spec, id, now.mono).is_empty();
        match verdict.kind {
            HangWindow::Starved => self.degraded(id, DegradedKind::Starved, "it wants to run and does not get the CPU", now),
            HangWindow::Traced => self.degraded(id, DegradedKind::Traced, "a debugger holds it", now),
            HangWindow::Unspecified | HangWindow::Void | HangWindow::Stopped | HangWindow::Disk | HangWindow::Asleep | HangWindow::Busy => {
            }
        }
        let Some(inst) = self.instances.get_mut(id) else { return };
        if !inst.hang.add(&verdict, threshold, blocked) {
            return;
        }
        let silent_for = now.mono.saturating_sub(inst.probes.liveness.sign_at.unwrap_or(inst.since));
        let evidence = v1::HangEvidence {
            window: verdict.kind.into(),
            windows: inst.hang.windows(),
            run: Some(time::duration(verdict.run)),
            delay: Some(time::duration(verdict.delay)),
            probe: said.detail.clone(),
            silent_for: Some(time::duration(silent_for)),
            tasks: verdict.tasks,
        };
        // Who beats on the bus is judged by the watchdog, which hears whether others' beats come through.
        if matches!(spec.liveness.as_ref().and_then(|p| p.check.as_ref()), Some(Check::Heartbeat(_))) {
            inst.suspect = Some(evidence);
            return;
        }
        let text = format!("{}: {} of {} windows, {:.0?} of CPU", window_name(verdict.kind), evidence.windows, threshold, verdict.run);
        let incarnation = inst.incarnation;
        open_incident(inst, &format!("hung: {text}"), now.mono);
        let fact = Fact::ComponentUnresponsive(v1::ComponentUnresponsive { evidence: Some(evidence) });
        self.tell(id, fact, "hung", &text, now);
        self.actions.push(Action::Kill { instance: id.clone(), incarnation });
        self.mark_killed(id, now);
    }

    /// It can serve: first or again.
    pub(super) fn became_ready(&mut self, id: &Instance, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let (again, took) = (inst.was_ready, now.mono.saturating_sub(inst.spawned_at));
        if !again {
            inst.slot = false;
            inst.probes.became_ready(&spec, now.mono);
        }
        // Told with that: who hears that it is ready hears nothing of what it was.
        (inst.degraded, inst.undegraded) = (None, None);
        inst.probes.liveness.sign_at = Some(now.mono);
        let fact = v1::ComponentReady { took: Some(time::duration(took)), probe: detail.to_owned(), again, completed: false };
        self.tell(id, Fact::ComponentReady(fact), "ready", detail, now);
        self.set_state(id, State::Ready, detail, now);
        self.end_local_incident(id, now);
    }

    /// A local restart's incident ends with its ready; a rung's ends when recovery says so.
    fn end_local_incident(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        if inst.by_rung {
            return;
        }
        let Some(open) = &inst.incident else { return };
        let took = now.mono.saturating_sub(open.since);
        let fact = v1::Recovered { rung: "local".to_owned(), took: Some(time::duration(took)), starts: open.starts };
        let text = open.cause.clone();
        self.tell(id, Fact::Recovered(fact), "recovered", &text, now);
        if let Some(inst) = self.instances.get_mut(id) {
            inst.incident = None;
        }
    }

    /// What of the mesh itself is to do its work anew: it is told, since somebody took away what it had made or could keep.
    pub(super) fn fold_renew(&mut self, component: &str, seen_at: Duration, why: &str, now: Now) {
        let ours = self.replicas(component).filter(|i| i.group() == Group::System && i.since < seen_at);
        let found: Vec<(Instance, State)> = ours.map(|i| (i.id.clone(), i.state)).collect();
        for (id, state) in found {
            match state {
                State::Completed => {
                    if let Some(inst) = self.instances.get_mut(&id) {
                        inst.completed = None;
                    }
                    self.escalate(&id, why, now);
                    self.set_state(&id, State::Waiting, why, now);
                }
                State::Ready | State::Unready => {
                    self.escalate(&id, why, now);
                    self.begin_stop(&id, "store_stuck", now);
                }
                State::Unspecified
                | State::Waiting
                | State::Preparing
                | State::Starting
                | State::Stopping
                | State::Stopped
                | State::Exited
                | State::Backoff
                | State::Failed
                | State::Quarantined
                | State::Probation => {}
            }
        }
    }

    /// Whether the mesh's stores are being made, or were at `seen_at`: what was looked for then and was not there may be there by now. One that
    /// takes long about it hides nothing.
    #[must_use]
    pub fn makes_stores(&self, seen_at: Duration, now: Now) -> bool {
        let busy = |inst: &Inst| matches!(inst.state, State::Waiting | State::Preparing | State::Starting);
        let makes = |inst: &Inst| {
            let done_since = inst.state == State::Completed && inst.since >= seen_at;
            done_since || (busy(inst) && now.mono < inst.since + STORES_MADE_WITHIN)
        };
        self.replicas("provision").any(|inst| inst.group() == Group::System && makes(inst))
    }

    fn escalate(&mut self, id: &Instance, about: &str, now: Now) {
        let fact = Fact::Escalated(v1::Escalated { severity: "P2".to_owned(), about: about.to_owned(), count: 0 });
        self.escalate_own(id, "P2", about);
        self.tell(id, fact, "upkeep", about, now);
    }

    pub(super) fn fold_survivors(&mut self, id: &Instance, incarnation: Incarnation, pids: Vec<u32>, now: Now) {
        let Some(inst) = self.instances.get(id).filter(|i| i.incarnation == incarnation) else { return };
        let text = format!("{} of its processes outlived SIGKILL", pids.len());
        let _ = inst;
        self.tell(id, Fact::ComponentUnkillable(v1::ComponentUnkillable { pids }), "unkillable", &text, now);
    }
}

/// Opens an incident of the newest incarnation unless one is open.
pub(super) fn open_incident(inst: &mut Inst, cause: &str, now: Duration) {
    if inst.incident.is_none() {
        let id = Incident { instance: inst.id.clone(), incarnation: inst.incarnation, signs_of_life: inst.signs_of_life };
        inst.incident = Some(OpenIncident { id, since: now, starts: 0, cause: cause.to_owned() });
    }
}

pub(super) fn dependencies_seen(inst: &Inst) -> Vec<v1::DependencySeen> {
    let seen = |(id, incarnation): &(Instance, Incarnation)| v1::DependencySeen {
        instance: Some(id.into()),
        incarnation: Some((*incarnation).into()),
    };
    inst.dependencies.iter().map(seen).collect()
}

/// An exit as people read it: `exit 1: "503 from model index"`.
#[must_use]
pub(super) fn describe_exit(status: &v1::ExitStatus, last_error: &str) -> String {
    let how = match (status.code, status.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended, nobody knows how".to_owned(),
    };
    let oom = if status.oom == Some(true) { ", out of memory" } else { "" };
    if last_error.is_empty() { format!("{how}{oom}") } else { format!("{how}{oom}: \"{last_error}\"") }
}

fn window_name(kind: HangWindow) -> &'static str {
    match kind {
        HangWindow::Unspecified => "unknown",
        HangWindow::Void => "void",
        HangWindow::Traced => "traced",
        HangWindow::Stopped => "stopped",
        HangWindow::Starved => "starved",
        HangWindow::Disk => "waiting for the disk",
        HangWindow::Asleep => "asleep",
        HangWindow::Busy => "busy without answering",
    }
}
