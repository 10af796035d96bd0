//! Stops: in reverse order of the plan, politely first, by SIGKILL after the grace, and told when even that does not help.

use std::time::Duration;

use razar_bus_schema::{
    ids::Instance,
    time,
    v1::{self, InstanceState as State, event::Fact},
};

use super::{
    Action, Node, Now,
    folding::{Exit, describe_exit, open_incident},
    instance::{Inst, Stop},
    precedence::Verdict,
};

/// Default signal of a stop: SIGTERM.
const SIGNAL: i32 = 15;
/// Default grace before SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// Time after which what SIGKILL did not end is told.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(5);

impl Node {
    /// Stops what is not to run, or puts it down when no process lives.
    pub(super) fn put_down(&mut self, id: &Instance, to: State, why: &'static str, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        match inst.state {
            State::Stopping => self.press_stop(id, now),
            State::Starting | State::Ready | State::Unready => {
                if !self.waits_for_dependents(inst, now) {
                    self.begin_stop(id, why, now);
                }
            }
            state if state == to => {}
            State::Quarantined | State::Stopped if to == State::Stopped || to == State::Quarantined => self.rest(id, to, why, now),
            State::Unspecified
            | State::Waiting
            | State::Preparing
            | State::Stopped
            | State::Exited
            | State::Backoff
            | State::Failed
            | State::Completed
            | State::Quarantined
            | State::Probation => self.rest(id, to, why, now),
        }
    }

    fn rest(&mut self, id: &Instance, to: State, why: &'static str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.slot = false;
        inst.blocked_told.clear();
        let withdrawn = inst.incident.is_some() && to == State::Stopped;
        let never_ran = inst.incarnation.start == 0;
        if withdrawn {
            self.withdraw(id, "to_be_stopped", now);
        } else if let Some(inst) = self.instances.get_mut(id) {
            inst.incident = None;
        }
        let fact = v1::ComponentStopped { status: None, took: Some(time::duration(Duration::ZERO)), killed: false, why: why.to_owned() };
        let text = if never_ran { "was not started" } else { "no process of it lived" };
        self.tell(id, Fact::ComponentStopped(fact), why, text, now);
        self.give_budget_back(id);
        self.set_state(id, to, why, now);
    }

    /// What was stopped on purpose owes nothing when it is started again.
    fn give_budget_back(&mut self, id: &Instance) {
        if let Some(inst) = self.instances.get_mut(id) {
            inst.budget.give_back();
        }
    }

    /// Ends an incident that lost its object. One that an isolation has ended has no second end.
    pub(super) fn withdraw(&mut self, id: &Instance, why: &'static str, now: Now) {
        let Some(open) = self.instances.get(id).and_then(|i| i.incident.as_ref()) else { return };
        if !self.is_isolated_for(id, &open.id) {
            let fact = Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: why.to_owned() });
            self.tell(id, fact, why, &why.replace('_', " "), now);
        }
        if let Some(inst) = self.instances.get_mut(id) {
            inst.incident = None;
            inst.by_rung = false;
        }
    }

    /// Whether a dependent of `inst` that is to be stopped as well still lives.
    fn waits_for_dependents(&self, inst: &Inst, now: Now) -> bool {
        let Some(dependents) = self.dependents.get(&inst.id.component) else { return false };
        dependents.iter().filter_map(|d| self.instances.get(d)).any(|dependent| {
            let unkillable = dependent.stop.as_ref().is_some_and(|s| s.unkillable);
            dependent.lives()
                && !unkillable
                && dependent.id != inst.id
                && dependent.spec().is_some_and(|s| s.depends_on.iter().any(|d| d.component == inst.id.component))
                && matches!(self.verdict(dependent, now.mono), Verdict::Stop(_) | Verdict::Quarantined | Verdict::NotWanted)
        })
    }

    pub(super) fn begin_stop(&mut self, id: &Instance, why: &'static str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.slot = false;
        if let Some(killed) = &mut inst.stop {
            // What was killed is asked nothing more, and has no grace.
            killed.why = why;
        } else {
            let (signal, incarnation) = (stop_of(inst).0, inst.incarnation);
            inst.stop = Some(Stop { why, since: now.mono, killed: None, unkillable: false });
            self.actions.push(Action::Signal { instance: id.clone(), incarnation, signal });
        }
        self.set_state(id, State::Stopping, why, now);
    }

    /// Goes on with a stop: SIGKILL at the end of the grace, and word of what outlives it.
    pub(super) fn press_stop(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let grace = stop_of(inst).1;
        let incarnation = inst.incarnation;
        let Some(stop) = &mut inst.stop else { return };
        if stop.killed.is_none() && now.mono >= stop.since + grace {
            stop.killed = Some(now.mono);
            self.actions.push(Action::Kill { instance: id.clone(), incarnation });
        } else {
            self.press_kill(id, now);
        }
    }

    /// A kill outside a stop (hang, startup limit): remembered so that its survivors are told.
    pub(super) fn mark_killed(&mut self, id: &Instance, now: Now) {
        if let Some(inst) = self.instances.get_mut(id) {
            inst.probes.liveness.next_at = None;
            inst.probes.readiness.next_at = None;
            inst.stop = Some(Stop { why: "hung", since: now.mono, killed: Some(now.mono), unkillable: false });
        }
        self.dirty.insert(id.clone());
    }

    /// Ends what an order replaces for a sign that it does not give: it would not hear a signal to stop. Then as a crash.
    pub(super) fn kill_silent(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id).filter(|i| i.stop.is_none()) else { return };
        let incarnation = inst.incarnation;
        open_incident(inst, "hung: it does not beat", now.mono);
        self.actions.push(Action::Kill { instance: id.clone(), incarnation });
        self.mark_killed(id, now);
    }

    /// Says when a killed process lives on.
    pub(super) fn press_kill(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let pid = inst.process.as_ref().map(|p| p.pid);
        let Some(stop) = &mut inst.stop else { return };
        let due = stop.killed.is_some_and(|at| now.mono >= at + UNKILLABLE_AFTER);
        if due && !stop.unkillable {
            stop.unkillable = true;
            let fact = Fact::ComponentUnkillable(v1::ComponentUnkillable { pids: pid.into_iter().collect() });
            self.tell(id, fact, "unkillable", "it lives on 5s after SIGKILL; it is started nowhere else", now);
            self.touch(id);
        }
    }

    /// When the stop under way needs the next look.
    pub(super) fn stop_deadline(inst: &Inst) -> Option<Duration> {
        let stop = inst.stop.as_ref()?;
        match stop.killed {
            None => Some(stop.since + stop_of(inst).1),
            Some(at) => (!stop.unkillable).then_some(at + UNKILLABLE_AFTER),
        }
    }

    /// The process of a stop is gone.
    pub(super) fn finish_stop(&mut self, id: &Instance, exit: &Exit, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let stop = inst.stop.take();
        let why = stop.as_ref().map_or("desired", |s| s.why);
        let took = stop.as_ref().map_or(Duration::ZERO, |s| now.mono.saturating_sub(s.since));
        let killed = stop.is_some_and(|s| s.killed.is_some());
        let fact = v1::ComponentStopped { status: Some(exit.status), took: Some(time::duration(took)), killed, why: why.to_owned() };
        let text = if killed { format!("killed: ignored the signal for {took:.1?}") } else { describe_exit(&exit.status, "") };
        let verdict = self.instances.get(id).map(|i| self.verdict(i, now.mono));
        if verdict == Some(Verdict::Quarantined) {
            if let Some(inst) = self.instances.get_mut(id) {
                inst.incident = None;
            }
        } else if why != "replaced" {
            self.withdraw(id, "to_be_stopped", now);
        }
        self.tell(id, Fact::ComponentStopped(fact), why, &text, now);
        if why != "replaced" {
            self.give_budget_back(id);
        }
        let to = match verdict {
            Some(Verdict::Quarantined) => State::Quarantined,
            _ if why == "replaced" => State::Waiting,
            _ => State::Stopped,
        };
        self.set_state(id, to, why, now);
    }
}

/// Signal and grace of an instance.
fn stop_of(inst: &Inst) -> (i32, Duration) {
    let stop = inst.spec().and_then(|s| s.stop.as_ref());
    let signal = stop.map_or(SIGNAL, |s| if s.signal == 0 { SIGNAL } else { s.signal });
    (signal, time::duration_or(stop.and_then(|s| s.grace.as_ref()), GRACE))
}
