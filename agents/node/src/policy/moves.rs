//! From what an instance should be to the next step of its machine: waiting, starting, restarting, giving up; and who gets a start slot.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time,
    v1::{self, InstanceState as State, event::Fact},
};
use razar_stack::errors::Registry;

use super::{
    Action, Group, Node, Now, Spawn,
    blocked::{BLOCKED_TOLD_AFTER, stays_failed},
    folding::{dependencies_seen, describe_exit},
    hooks::HookKey,
    instance::{Inst, OpenIncident, Wanted},
    precedence::{Cause, Verdict, sentence},
    probing::{self, Probes, Role},
    restart::{Allowance, Limits, dice},
};

/// Start slots of a plan that names none.
const PARALLEL_STARTS: u32 = 4;
/// Start slots of the compiled-in plan: all of it, it is small.
const SYSTEM_STARTS: usize = 64;

impl Node {
    /// Looks at one instance and takes the steps that are due.
    pub(super) fn evaluate(&mut self, id: &Instance, now: Now) {
        self.settle_order(id, now);
        let Some(inst) = self.instances.get(id) else { return };
        let verdict = self.verdict(inst, now.mono);
        match verdict {
            Verdict::Unwanted => {}
            Verdict::Quarantined => self.put_down(id, State::Quarantined, "quarantined", now),
            Verdict::Stop(why) => self.put_down(id, State::Stopped, why, now),
            Verdict::NotWanted => self.put_down(id, State::Stopped, "not_wanted", now),
            Verdict::Held { ref by, .. } => {
                let text = format!("held while {by} recovers");
                // What recovers may have lost its condition as well, and then the failures before are its fault.
                let blockers = inst.wanted.as_ref().map_or_else(Vec::new, |w| self.blockers(&w.spec, id, now.mono));
                self.hold_back(id, &blockers, &text, now);
            }
            Verdict::Blocked(ref by) => {
                let text = by.iter().map(sentence).collect::<Vec<_>>().join("; ");
                self.hold_back(id, by, &text, now);
            }
            Verdict::NoGrant => self.hold_back(id, &[], "waits for a grant", now),
            Verdict::Replace(ref cause) => self.replace(id, cause, now),
            Verdict::Run => self.run(id, now),
        }
        self.tend(id, &verdict, now);
        self.remember(id, now);
    }

    /// What every living instance needs, whatever is wanted of it; and its next deadline.
    fn tend(&mut self, id: &Instance, verdict: &Verdict, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        match inst.state {
            State::Starting | State::Ready | State::Unready => {
                self.press_kill(id, now);
                self.ask(id, now);
                self.watch_start(id, now);
            }
            State::Stopping => self.press_stop(id, now),
            State::Unspecified
            | State::Waiting
            | State::Preparing
            | State::Stopped
            | State::Exited
            | State::Backoff
            | State::Failed
            | State::Completed
            | State::Quarantined
            | State::Probation => {}
        }
        self.tell_blocked(id, verdict, now);
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.calm = *verdict == Verdict::Run && inst.state == State::Ready && inst.stop.is_none() && inst.blocked_since.is_none();
        let at = deadline(inst, verdict, now.mono);
        self.set_timer(id, at);
    }

    /// The questions that are due of instances about which nothing else can have changed; of all others everything is looked at. Those that
    /// are well are asked each second, and the rest of what a look costs is as much as the question.
    pub(super) fn ask_the_calm(&mut self, now: Now) -> Vec<Action> {
        let before = std::mem::take(&mut self.actions);
        for id in std::mem::take(&mut self.asking) {
            if self.dirty.contains(&id) {
                continue;
            }
            let calm = |inst: &Inst| {
                inst.calm && inst.state == State::Ready && inst.process.is_some() && inst.stop.is_none() && inst.degraded.is_none()
            };
            if !self.instances.get(&id).is_some_and(calm) {
                self.dirty.insert(id);
                continue;
            }
            self.ask(&id, now);
            let at = self.instances.get(&id).and_then(|inst| inst.probes.next_deadline());
            self.set_timer(&id, at);
        }
        std::mem::replace(&mut self.actions, before)
    }

    /// Puts the questions of the probes that are due.
    fn ask(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        if inst.process.is_none() {
            return;
        }
        let Some(spec) = inst.spec().cloned() else { return };
        for role in Role::ALL {
            let Some(probe) = role.probe(&spec) else { continue };
            let state = inst.probes.role(role);
            if state.asked.is_none() && state.next_at.is_some_and(|at| at <= now.mono) {
                state.asked = Some(now.mono);
                let timeout = probing::figures(probe, role).timeout;
                let (instance, incarnation, spec) = (id.clone(), inst.incarnation, spec.clone());
                self.actions.push(Action::Probe { instance, incarnation, role, timeout, spec });
            }
        }
    }

    /// Gives the slot of a start that takes too long to the next.
    fn watch_start(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let limit = probing::startup_limit(&spec);
        if inst.state == State::Starting && !inst.slow_start_told && now.mono >= inst.spawned_at + limit {
            inst.slot = false;
            inst.slow_start_told = true;
            // It had its time: from now on a hang is a hang, ready or not.
            // A startup probe that is told and not asked never fails by itself.
            let told = spec.startup.as_ref().is_some_and(|probe| probing::manner(probe) == probing::Manner::Told);
            if spec.liveness.is_some() && (inst.probes.started_up || told) {
                inst.probes.liveness.next_at.get_or_insert(now.mono);
                self.dirty.insert(id.clone());
            }
            if !spec.one_shot {
                let text = format!("not ready {limit:.0?} after its start; its start slot goes to the next");
                self.become_degraded(id, v1::DegradedKind::Slow, &text, now);
            }
        }
    }

    /// Starts are gated; what runs goes on. A failure that a dependency is to blame for costs nothing.
    fn hold_back(&mut self, id: &Instance, by: &[v1::Blocker], text: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        match inst.state {
            State::Exited | State::Backoff | State::Failed => {
                // Held while every condition holds, it keeps its failures: waiting, it would start at no cost.
                if by.is_empty() {
                    return;
                }
                // What it can do without was not lost when it is tried anew.
                if stays_failed(inst, by) {
                    return;
                }
                inst.budget.give_back();
                self.withdraw(id, "blocked", now);
                self.set_state(id, State::Waiting, text, now);
            }
            State::Stopped | State::Probation => self.set_state(id, State::Waiting, text, now),
            State::Quarantined => self.leave_quarantine(id, now),
            State::Waiting => {
                text.clone_into(&mut inst.reason);
                inst.queued_since = None;
                let key = (inst.group(), inst.rank(), id.clone());
                self.startable.remove(&key);
            }
            State::Unspecified
            | State::Preparing
            | State::Starting
            | State::Ready
            | State::Unready
            | State::Stopping
            | State::Completed => {}
        }
    }

    /// What it spent before it was isolated is behind it.
    fn leave_quarantine(&mut self, id: &Instance, now: Now) {
        if let Some(inst) = self.instances.get_mut(id) {
            inst.budget.give_back();
            inst.by_rung = false;
        }
        self.set_state(id, State::Probation, "released", now);
    }

    /// A release leaves `failed`, also where the isolation was never seen here.
    pub(super) fn release_failed(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id).filter(|i| i.state == State::Failed) else { return };
        inst.budget.give_back();
        inst.by_rung = false;
        inst.incident = None;
        self.set_state(id, State::Waiting, "released", now);
    }

    fn replace(&mut self, id: &Instance, cause: &Cause, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        match inst.state {
            State::Starting | State::Ready | State::Unready => {
                let order = self.running_order(inst).filter(|_| *cause == Cause::Rung);
                let missing = order.is_some_and(|o| o.order.evidence.as_ref().is_some_and(|e| e.missing_sign));
                // Another's word that it is silent is no evidence for a kill: what is seen of its processes here has to agree.
                if missing && inst.suspect.is_some() {
                    self.kill_silent(id, now);
                } else {
                    self.begin_stop(id, "replaced", now);
                }
            }
            State::Waiting => {
                let order =
                    self.running_order(inst).map(|o| (o.received, o.order.backoff.as_ref().map(time::std_duration), o.reason.to_owned()));
                let not_before = order.map_or(now.mono, |(received, backoff, _)| received + backoff.unwrap_or_default());
                if let Some(inst) = self.instances.get_mut(id) {
                    inst.backoff_until = not_before;
                }
                if not_before <= now.mono {
                    self.queue(id, now);
                }
            }
            State::Exited | State::Backoff | State::Failed | State::Stopped | State::Completed | State::Probation => {
                let text = if *cause == Cause::Rung { "a rung of the ladder starts it" } else { "to be replaced" };
                self.set_state(id, State::Waiting, text, now);
            }
            State::Quarantined => self.leave_quarantine(id, now),
            State::Unspecified | State::Preparing | State::Stopping => {}
        }
    }

    fn run(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let newer = inst.wanted.as_ref().is_some_and(|w| w.desired.generation > inst.incarnation.generation);
        match inst.state {
            State::Waiting if inst.is_done() => self.stay_completed(id, now),
            State::Waiting => self.queue(id, now),
            State::Stopped | State::Probation => self.set_state(id, State::Waiting, "to be started", now),
            State::Quarantined => self.leave_quarantine(id, now),
            State::Exited | State::Backoff | State::Failed if newer => self.begin_generation(id, now),
            State::Completed if newer && !inst.is_done() => self.begin_generation(id, now),
            State::Completed if newer => self.renew_completed(id, now),
            State::Exited => self.restart(id, now),
            State::Backoff if inst.backoff_until <= now.mono => self.start(id, now),
            State::Unspecified
            | State::Preparing
            | State::Starting
            | State::Ready
            | State::Unready
            | State::Stopping
            | State::Backoff
            | State::Failed
            | State::Completed => {}
        }
    }

    fn begin_generation(&mut self, id: &Instance, now: Now) {
        self.withdraw(id, "new_generation", now);
        if let Some(inst) = self.instances.get_mut(id) {
            inst.budget.give_back();
            inst.by_rung = false;
        }
        self.set_state(id, State::Waiting, "a newer generation is desired", now);
    }

    fn stay_completed(&mut self, id: &Instance, now: Now) {
        self.renew_completed(id, now);
        self.set_state(id, State::Completed, "ran already with this specification", now);
    }

    fn renew_completed(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let generation = inst.generation;
        if inst.incarnation.generation < generation {
            inst.incarnation = Incarnation::new(generation, 0);
        }
        let fact = v1::ComponentReady { took: None, probe: "ran before".to_owned(), again: true, completed: true };
        self.tell(id, Fact::ComponentReady(fact), "completed", "ran already with this specification", now);
    }

    /// Lines up for a start slot.
    fn queue(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.queued_since.get_or_insert(now.mono);
        inst.reason = "queued for a start slot".to_owned();
        self.startable.insert((inst.group(), inst.rank(), id.clone()));
    }

    /// Gives free slots to the lowest ranks that can start.
    pub(super) fn fill_slots(&mut self, now: Now) {
        for group in [Group::System, Group::User] {
            while let Some(key) = self.startable.iter().find(|(g, _, _)| *g == group).cloned() {
                if self.free_slots(group) == 0 {
                    break;
                }
                self.startable.remove(&key);
                if self.instances.get(&key.2).is_some_and(|i| i.state == State::Waiting) {
                    self.start(&key.2, now);
                }
            }
        }
    }

    fn free_slots(&self, group: Group) -> usize {
        let of_group = self.instances.values().filter(|i| i.group() == group);
        let (mut held, mut slots) = (0_usize, PARALLEL_STARTS);
        let mut newest = 0;
        for inst in of_group {
            held += usize::from(inst.slot);
            let Some(wanted) = &inst.wanted else { continue };
            if wanted.desired.parallel_starts > 0 && wanted.place.revision >= newest {
                newest = wanted.place.revision;
                slots = wanted.desired.parallel_starts;
            }
        }
        let slots = if group == Group::System { SYSTEM_STARTS } else { usize::try_from(slots).unwrap_or(usize::MAX) };
        slots.saturating_sub(held)
    }

    /// The local restart policy of an instance that has just exited.
    fn restart(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let Some(spec) = inst.spec().cloned() else { return };
        let limits = Limits::of(&spec);
        let clean = inst.last_exit.as_ref().is_some_and(|s| s.code == Some(0));
        let on_probation = inst.group() == Group::User && self.on_probation(id);
        let refused = match limits.policy {
            _ if inst.by_rung => Some("rung_failed"),
            _ if on_probation => Some("probation_failed"),
            v1::RestartPolicy::Never => Some("policy_never"),
            v1::RestartPolicy::OnFailure | v1::RestartPolicy::Unspecified if clean => Some("policy_on_failure"),
            v1::RestartPolicy::OnFailure | v1::RestartPolicy::Unspecified | v1::RestartPolicy::Always => None,
        };
        if let Some(cause) = refused {
            self.fail(id, &limits, cause, now);
            return;
        }
        let luck = dice(id, inst.incarnation, self.config.seed);
        match inst.budget.allow(&limits, luck, now.mono) {
            Allowance::Spent(_) => self.fail(id, &limits, "budget_spent", now),
            Allowance::Restart { number, delay } => {
                self.escalate_endless(id, number, &limits, now);
                if let Some(inst) = self.instances.get_mut(id) {
                    inst.delay = delay;
                    inst.backoff_until = now.mono + delay;
                }
                if delay.is_zero() {
                    self.start(id, now);
                } else {
                    let text = format!("restart {number} of {} in {delay:.2?}", limits.max);
                    self.set_state(id, State::Backoff, &text, now);
                }
            }
        }
    }

    fn escalate_endless(&mut self, id: &Instance, number: u32, limits: &Limits, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let past = number > limits.max;
        if past && !inst.escalated {
            inst.escalated = true;
            let text = format!("{id} of the mesh itself keeps failing; it is restarted every {:.0?}", limits.delay(u32::MAX, 0.5));
            let fact = Fact::Escalated(v1::Escalated { severity: "P1".to_owned(), about: id.to_string(), count: 0 });
            self.escalate_own(id, "P1", &text);
            self.tell(id, fact, "escalated", &text, now);
        } else if !past {
            inst.escalated = false;
        }
    }

    pub(super) fn fail(&mut self, id: &Instance, limits: &Limits, cause: &str, now: Now) {
        let issue = self.issue_of(id);
        let Some(inst) = self.instances.get(id) else { return };
        let restarts = inst.budget.spent(limits, now.mono);
        let fact = v1::ComponentFailed {
            issue: Some(issue),
            restarts,
            within: Some(time::duration(limits.within)),
            status: inst.last_exit,
            last_error: inst.last_error.clone(),
            cause: cause.to_owned(),
        };
        let how = describe_exit(&inst.last_exit.unwrap_or_default(), &inst.last_error);
        let text = match cause {
            "budget_spent" => format!("{restarts} restarts in {:.0?} spent; {how}", limits.within),
            "policy_never" => format!("its policy is never to restart; {how}"),
            "start_failed" => format!("what comes before its start failed: {}", inst.last_error),
            "policy_on_failure" => "it ended by itself, and its policy restarts only failures".to_owned(),
            _ => format!("a start made by a rung failed; {how}"),
        };
        if let Some(inst) = self.instances.get_mut(id) {
            cause.clone_into(&mut inst.failed_cause);
        }
        self.tell(id, Fact::ComponentFailed(fact), cause, &text, now);
        self.set_state(id, State::Failed, &text, now);
    }

    /// What the error registry says of the last error of `id`.
    fn issue_of(&mut self, id: &Instance) -> v1::Issue {
        let Some(inst) = self.instances.get(id) else { return v1::Issue::default() };
        if let Some(wanted) = inst.wanted.as_ref().filter(|w| w.desired.known_errors != self.known_errors.0) {
            let entries = wanted.desired.known_errors.clone();
            self.known_errors = (entries.clone(), Registry::new(&entries));
        }
        self.known_errors.1.issue(&inst.last_error)
    }

    /// Starts it: what comes before, if a rung asks for it, else the spawn.
    fn start(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let order = self.running_order(inst).map(|o| (o.incident.clone(), o.order.attempt, o.order.clear_state, o.order.chakra_hook));
        let paths = inst.wanted.as_ref().map(|w| w.spec.state.clone()).unwrap_or_default();
        let Some(inst) = self.instances.get_mut(id) else { return };
        let Some((Some(incident), attempt, clear, hook)) = order else {
            self.spawn(id, now);
            return;
        };
        inst.by_rung = true;
        // What it does from here on belongs to the incident that the order names.
        if inst.incident.as_ref().is_none_or(|open| open.id != incident) {
            let cause = "a rung of the ladder started it".to_owned();
            inst.incident = Some(OpenIncident { id: incident.clone(), since: now.mono, starts: 0, cause });
        }
        inst.hook = hook.then(|| HookKey::Chakra { instance: id.clone(), incident: incident.clone(), attempt });
        inst.order_settled = Some((incident, attempt));
        if clear && !paths.is_empty() {
            inst.slot = true;
            self.set_state(id, State::Preparing, "clearing its state", now);
            self.actions.push(Action::ClearState { instance: id.clone(), paths });
        } else if hook {
            inst.slot = true;
            self.set_state(id, State::Preparing, "its chakra's hook runs", now);
            self.run_chakra_hook(id, now);
        } else {
            self.spawn(id, now);
        }
    }

    /// Spawns the next incarnation.
    pub(super) fn spawn(&mut self, id: &Instance, now: Now) {
        let dependencies = self.incarnations_of_dependencies(id);
        if self.instances.get(id).is_some_and(|i| i.used > Incarnation::default() && is_newer(i)) {
            self.withdraw(id, "new_generation", now);
        }
        let Some(inst) = self.instances.get_mut(id) else { return };
        let Some(wanted) = inst.wanted.clone() else { return };
        let local = matches!(inst.state, State::Exited | State::Backoff);
        let (generation, used) = (wanted.desired.generation, inst.used.max(inst.incarnation));
        let start = if generation > used.generation { self.config.start_floor + 1 } else { used.start.saturating_add(1) };
        inst.incarnation = Incarnation::new(generation.max(used.generation), start);
        inst.used = inst.incarnation;
        if generation > used.generation {
            inst.budget.give_back();
            inst.by_rung = false;
        }
        if local {
            inst.budget.spend(now.mono);
        } else {
            inst.delay = Duration::ZERO;
        }
        if let Some(open) = &mut inst.incident {
            open.starts += 1;
        }
        inst.dependencies = dependencies;
        inst.started_spec = Some(wanted.spec.clone());
        inst.started_hash.clone_from(&wanted.desired.spec_hash);
        inst.spawned_at = now.mono;
        inst.ready_before = Duration::ZERO;
        inst.ready_since = None;
        inst.was_ready = false;
        inst.signs_of_life = 0;
        inst.slot = true;
        inst.stop = None;
        inst.hang.answered();
        inst.suspect = None;
        inst.probes = Probes::begun(&wanted.spec, now.mono);
        let (incarnation, by_rung, seen) = (inst.incarnation, inst.by_rung, dependencies_seen(inst));
        let queued = inst.queued_since;
        self.set_state(id, State::Starting, "spawned", now);
        if let Some(inst) = self.instances.get_mut(id) {
            inst.queued_since = queued;
        }
        let trace = self.instances.get(id).and_then(|inst| self.story(inst));
        let Wanted { desired, spec, group, .. } = wanted;
        let spawn = Spawn { instance: id.clone(), incarnation, desired, spec, group, dependencies: seen, by_rung, trace };
        self.remember(id, now);
        self.actions.push(Action::Spawn(Box::new(spawn)));
    }

    fn incarnations_of_dependencies(&self, id: &Instance) -> Vec<(Instance, Incarnation)> {
        let Some(wanted) = self.instances.get(id).and_then(|i| i.wanted.as_ref()) else { return Vec::new() };
        let of = |d: &v1::Dependency| self.replicas(&d.component).map(|i| (i.id.clone(), i.incarnation)).collect::<Vec<_>>();
        wanted.spec.depends_on.iter().flat_map(of).collect()
    }
}

/// Whether its next life is of a newer generation than its last.
pub(super) fn is_newer(inst: &Inst) -> bool {
    inst.wanted.as_ref().is_some_and(|w| w.desired.generation > inst.used.max(inst.incarnation).generation)
}

/// When `inst` needs the next look by time alone.
fn deadline(inst: &Inst, verdict: &Verdict, now: Duration) -> Option<Duration> {
    let mut at = [None; 4];
    let hold = if let Verdict::Held { until, .. } = verdict { Some(*until) } else { None };
    match inst.state {
        State::Starting | State::Ready | State::Unready => {
            at = [
                if inst.process.is_some() { inst.probes.next_deadline() } else { None },
                Node::stop_deadline(inst),
                (inst.state == State::Starting && !inst.slow_start_told)
                    .then(|| inst.spec().map(|s| inst.spawned_at + probing::startup_limit(s)))
                    .flatten(),
                inst.blocked_since
                    .filter(|_| {
                        matches!(verdict, Verdict::Blocked(by) if inst.blocked_unsure || *by != inst.blocked_told) && inst.was_ready
                    })
                    .map(|since| since + BLOCKED_TOLD_AFTER),
            ];
        }
        State::Stopping => at = [Node::stop_deadline(inst), None, None, None],
        State::Backoff => at = [Some(hold.unwrap_or(inst.backoff_until)), None, None, None],
        State::Exited => at = [hold, None, None, None],
        State::Waiting => {
            // Past its backoff it waits for a slot, which no clock brings.
            let rung = matches!(verdict, Verdict::Replace(_)).then_some(inst.backoff_until).filter(|at| *at > now);
            at = [hold, rung, None, None];
        }
        State::Unspecified
        | State::Preparing
        | State::Stopped
        | State::Failed
        | State::Completed
        | State::Quarantined
        | State::Probation => {}
    }
    at.into_iter().flatten().min()
}
