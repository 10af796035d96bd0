//! What one event says of one instance: its state, its newest incident, how that ended. Folds only; which instances there are is the facts'.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, InstanceState, event::Fact},
};

use super::{
    Limits, Now,
    facts::{Failure, View},
    incident::{CAME_UP, Closed, IncidentFacts},
    rungs::RESTART,
};

/// What a node calls its own restarts, as a rung.
const LOCAL: &str = "local";

pub(super) fn is_a_nodes(event: &v1::Event) -> bool {
    event.source.as_ref().is_some_and(|s| s.kind == "node")
}

/// A verdict on silence: not of the node, which would have acted on it.
pub(super) fn silence(fact: &Fact, event: &v1::Event) -> bool {
    matches!(fact, Fact::ComponentUnresponsive(_)) && !is_a_nodes(event)
}

pub(super) fn told_incarnation(event: &v1::Event) -> Option<Incarnation> {
    event.incarnation.as_ref().map(Incarnation::from)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
pub(super) fn fold_instance(view: &mut View, event: &v1::Event, fact: &Fact, stored: SystemTime, now: Now) {
    if let Some(told) = told_incarnation(event) {
        if told < view.incarnation {
            return;
        }
        if is_a_nodes(event) {
            if told > view.incarnation {
                view.started_by.clone_from(&event.id);
                view.changed_by.clone_from(&event.id);
            }
            view.incarnation = told;
        }
    }
    if is_a_nodes(event) {
        view.node = event.source.as_ref().map(|s| s.id.clone()).unwrap_or_default();
        if !event.mission_id.is_empty() {
            view.mission.clone_from(&event.mission_id);
        }
    }
    for (to, from) in [(&mut view.stack, &event.stack), (&mut view.chakra, &event.chakra)] {
        if !from.is_empty() {
            to.clone_from(from);
        }
    }
    match fact {
        Fact::IncidentWithdrawn(_) | Fact::Recovered(_) => view.changed_by.clone_from(&event.id),
        Fact::ComponentBlocked(blocked) => view.blocked = !blocked.by.is_empty(),
        Fact::ComponentStarted(_) | Fact::ComponentStopped(_) => view.blocked = false,
        Fact::ComponentFailed(failed) => {
            let incarnation = told_incarnation(event).unwrap_or(view.incarnation);
            let (id, cause, last_error) = (event.id.clone(), failed.cause.clone(), failed.last_error.clone());
            let issue = failed.issue.clone().unwrap_or_default();
            view.failed = Some(Failure { incarnation, id, cause, last_error, issue, stored });
        }
        _ => {}
    }
    if let Some(state) = state_after(fact, view) {
        view.enter(state, event, now);
    }
}

/// The state that a fact leaves its instance in; `None`: it says nothing about that.
#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
pub(super) fn state_after(fact: &Fact, before: &View) -> Option<InstanceState> {
    use InstanceState as S;
    Some(match fact {
        Fact::ComponentStarted(started) if started.adopted && before.lives() => before.state,
        Fact::ComponentStarted(_) => S::Starting,
        Fact::ComponentReady(ready) if ready.completed => S::Completed,
        Fact::ComponentReady(_) => S::Ready,
        Fact::ComponentUnready(_) => S::Unready,
        Fact::ComponentExited(_) => S::Exited,
        Fact::ComponentBlocked(blocked) if blocked.by.is_empty() || before.lives() => before.state,
        Fact::ComponentBlocked(_) => S::Waiting,
        // Released by a passing probe it runs already.
        Fact::Released(_) if matches!(before.state, S::Quarantined | S::Probation) => S::Waiting,
        Fact::ComponentFailed(_) => S::Failed,
        Fact::ComponentStopped(_) if before.state == S::Quarantined => S::Quarantined,
        Fact::ComponentStopped(_) => S::Stopped,
        Fact::Quarantined(_) => S::Quarantined,
        _ => return None,
    })
}

/// The incident that an event belongs to: opened if it is a newer one.
#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
pub(super) fn fold_incident(view: &mut View, instance: &Instance, event: &v1::Event, fact: &Fact) {
    let fails = matches!(fact, Fact::ComponentExited(_) | Fact::ComponentUnresponsive(_) | Fact::ComponentFailed(_));
    let own = || Some(Incident { instance: instance.clone(), incarnation: told_incarnation(event)?, signs_of_life: 0 });
    let told = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()).filter(|i| i.instance == *instance);
    let told = told.or_else(|| if matches!(fact, Fact::ComponentFailed(_)) { own() } else { None });
    let Some(told) = told else { return };
    // A life that fails after its incident was closed, before its node has heard of that, fails anew.
    let id = match &view.incident {
        Some(known) if known.id == told && known.closed.is_some() && fails => own().unwrap_or(told),
        // Nor does it fail in one that was over before that.
        Some(known) if told < known.id && known.closed.is_some() && fails => own().filter(|own| *own > known.id).unwrap_or(told),
        _ => told,
    };
    if view.incident.as_ref().is_none_or(|known| known.id < id) {
        view.open(IncidentFacts::opened(id.clone(), event));
    }
    let Some(known) = view.incident.as_mut().filter(|known| known.id == id) else { return };
    match fact {
        Fact::LimitExceeded(_) => known.over = true,
        Fact::ComponentUnresponsive(_) if silence(fact, event) => known.silent_in = told_incarnation(event),
        Fact::ComponentStarted(_) => known.starts = known.starts.saturating_add(1),
        Fact::RungGranted(granted) => known.granted(granted),
        Fact::RungTried(tried) => known.try_told(tried),
        Fact::RecoveryFailed(_) => known.given_up = true,
        Fact::IncidentWithdrawn(_) => known.close(Closed::Withdrawn),
        Fact::Recovered(_) => known.close(Closed::Recovered),
        _ => {}
    }
}

/// What an end is folded with.
pub(super) struct End<'l> {
    pub(super) limits: &'l Limits,
    pub(super) stored: SystemTime,
    /// It is told now, not read from what was told before.
    pub(super) live: bool,
    pub(super) now: Now,
}

/// What ends incidents, and what a row of ends begins.
#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
pub(super) fn fold_end(view: &mut View, instance: &Instance, event: &v1::Event, fact: &Fact, end: &End<'_>) {
    match fact {
        Fact::Recovered(recovered) if recovered.rung == LOCAL => count_flaps(view, instance, event, end),
        Fact::RecoveryFailed(_) => view.lose_boot(),
        // It came up in a try that did not count, and held: as good as cured, by nobody knows what.
        Fact::IncidentWithdrawn(withdrawn) if withdrawn.why == CAME_UP => {
            view.cooldown_until = if end.live { end.now.mono + end.limits.cooldown } else { Duration::ZERO };
            fails_after_all(view, instance, event);
        }
        Fact::Recovered(recovered) => {
            view.lost_boots.0 = 0;
            view.cooldown_until = if end.live { end.now.mono + end.limits.cooldown } else { Duration::ZERO };
            if view.incident.as_ref().is_some_and(|i| i.flapping) {
                view.flaps_cured = Some((recovered.rung.clone(), end.stored));
            }
            if recovered.rung == RESTART && view.incident.as_ref().is_some_and(IncidentFacts::is_by_verdict) {
                // Recovery did what its node does of one that died: that cures it as little if it is needed again and again.
                count_flaps(view, instance, event, end);
            } else {
                view.recoveries.clear();
            }
            fails_after_all(view, instance, event);
        }
        Fact::Quarantined(_) | Fact::Released(_) => {
            view.recoveries.clear();
            // A passing probe shows that it is well; a hand only says so.
            if matches!(fact, Fact::Released(released) if released.mode == "auto") {
                view.lost_boots.0 = 0;
            }
            let told = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
            let isolates = matches!(fact, Fact::Quarantined(_));
            // A release says nothing of what failed after it, however late it is told.
            let about = |known: &IncidentFacts| told.as_ref().map_or(isolates || known.given_up, |told| *told == known.id);
            if let Some(incident) = view.incident.as_mut().filter(|i| about(i)) {
                incident.close(Closed::Quarantined);
            }
        }
        // Whom the ladder gave up, and who lives again all the same, has an end of its own.
        Fact::ComponentReady(_) => {
            if let Some(incident) = view.incident.as_mut().filter(|i| i.given_up) {
                incident.close(Closed::Recovered);
            }
            // A start that was taken for hung, and is ready all the same, is silent no more.
            let ready = told_incarnation(event);
            if let Some(incident) = view.incident.as_mut().filter(|i| i.silent_in == ready && ready > Some(i.id.incarnation)) {
                incident.silent_in = None;
            }
        }
        _ => {}
    }
}

/// A life that failed when its try had been judged, and before that was told, failed anew: its incident has just ended.
pub(super) fn fails_after_all(view: &mut View, instance: &Instance, event: &v1::Event) {
    let Some(failed) = view.failed.as_ref().filter(|_| view.state == InstanceState::Failed) else { return };
    let id = Incident { instance: instance.clone(), incarnation: failed.incarnation, signs_of_life: 0 };
    if view.incident.as_ref().is_none_or(|known| known.id < id) {
        let opened_by = failed.id.clone();
        view.open(IncidentFacts { opened_by, ..IncidentFacts::opened(id, event) });
    }
}

/// One more local recovery: with more than are borne in their period the component is taken to the ladder all the same.
pub(super) fn count_flaps(view: &mut View, instance: &Instance, event: &v1::Event, end: &End<'_>) {
    if view.state == InstanceState::Completed {
        // What is done is not begun anew, however many starts it took.
        view.recoveries.clear();
        return;
    }
    // Of a copy that was placed elsewhere since, it says nothing about the one that is there now.
    let Some(incarnation) = told_incarnation(event).filter(|told| *told >= view.incarnation) else { return };
    let inside = |at: SystemTime| end.stored.duration_since(at).unwrap_or_default() < end.limits.flaps_within;
    view.recoveries.retain(|at| inside(*at));
    view.recoveries.push_back(end.stored);
    let borne = usize::try_from(end.limits.flaps_max).unwrap_or(usize::MAX);
    let id = Incident { instance: instance.clone(), incarnation, signs_of_life: 0 };
    if view.recoveries.len() > borne && view.incident.as_ref().is_none_or(|known| known.id < id) {
        view.recoveries.clear();
        let replaced = matches!(&event.fact, Some(Fact::Recovered(recovered)) if recovered.rung == RESTART);
        let after = view.flaps_cured.clone().filter(|(_, at)| inside(*at)).map(|(rung, _)| rung);
        let after = after.or_else(|| replaced.then(|| RESTART.to_owned()));
        view.open(IncidentFacts { flapping: true, after, ..IncidentFacts::opened(id, event) });
    }
}
