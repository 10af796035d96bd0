//! The fold of facts about an instance: newest incarnation wins, and each kind says which state it leaves behind.

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, InstanceState, event::Fact},
};

use super::{ENTITIES_MAX, Folded, Key, Projection, instance_of, mesh::lives};

/// Most resources whose limits are kept for a component: a later version may know more than this one.
const RESOURCES_MAX: usize = 8;

impl Projection {
    /// The instance's record, made if there is room for one.
    pub(super) fn component_entry(&mut self, instance: &Instance) -> Option<&mut v1::ObservedComponent> {
        if !self.components.contains_key(instance) && self.components.len() >= ENTITIES_MAX {
            return None;
        }
        let fresh = || v1::ObservedComponent { instance: Some(instance.into()), ..Default::default() };
        Some(self.components.entry(instance.clone()).or_insert_with(fresh))
    }

    pub(super) fn fold_component(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        let Some(instance) = instance_of(event.instance.as_ref()) else { return Folded::Incomplete };
        let Some(component) = self.component_entry(&instance) else { return Folded::Incomplete };
        let told = event.incarnation.as_ref().map(Incarnation::from);
        let known = component.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let folded = if let Fact::DesiredChanged(desired) = fact {
            fold_desired(component, event, desired)
        } else if let Fact::Escalated(escalated) = fact {
            // It is about a row of lives, not about the newest.
            component.escalated = Some(escalated.clone());
            Folded::Applied
        } else if matches!(fact, Fact::ProbationStarted(_) | Fact::Released(_)) {
            // Their incarnation is the one that was isolated; a later one may have been told.
            fold_trial(component, event, fact);
            Folded::Applied
        } else if told.is_some_and(|t| t < known) {
            Folded::Stale
        } else {
            if let Some(told) = told
                && is_a_nodes(event)
            {
                if told.generation > known.generation {
                    component.starts = 0;
                    component.escalated = None;
                }
                if told > known {
                    forget_fare(component);
                }
                component.incarnation = Some(told.into());
            }
            fold_fact(component, event, fact, told != Some(known));
            if matches!(fact, Fact::Recovered(_)) {
                component.escalated = None;
            }
            Folded::Applied
        };
        if folded == Folded::Applied {
            component.last_sequence = sequence;
            if !event.stack.is_empty() {
                component.stack.clone_from(&event.stack);
            }
            if !event.chakra.is_empty() {
                component.chakra.clone_from(&event.chakra);
            }
            if is_a_nodes(event) {
                component.node = event.source.as_ref().map(|s| s.id.clone()).unwrap_or_default();
            }
            self.dirty.insert(Key::Component(instance));
        }
        folded
    }
}

fn is_a_nodes(event: &v1::Event) -> bool {
    event.source.as_ref().is_some_and(|s| s.kind == "node")
}

fn fold_desired(component: &mut v1::ObservedComponent, event: &v1::Event, desired: &v1::DesiredChanged) -> Folded {
    if component.desired.as_ref().is_some_and(|d| d.generation > desired.generation) {
        return Folded::Stale;
    }
    if component.state() == InstanceState::Unspecified {
        let state = if desired.mode == "run" { InstanceState::Waiting } else { InstanceState::Stopped };
        component.node.clone_from(&desired.node);
        enter(component, event, state);
    }
    component.desired = Some(desired.clone());
    Folded::Applied
}

/// Moves to `state`; the instant and the reason are the event's.
fn enter(component: &mut v1::ObservedComponent, event: &v1::Event, state: InstanceState) {
    if component.state() != state {
        component.set_state(state);
        component.since = event.time;
    }
    component.reason.clone_from(&event.reason);
}

#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
fn fold_fact(component: &mut v1::ObservedComponent, event: &v1::Event, fact: &Fact, new_incarnation: bool) {
    match fact {
        Fact::ComponentStarted(started) => fold_started(component, event, started, new_incarnation),
        Fact::ComponentReady(ready) => {
            enter(component, event, if ready.completed { InstanceState::Completed } else { InstanceState::Ready });
            if !ready.again {
                component.last_took = ready.took;
            }
            component.blocked_by.clear();
            component.degraded.clear();
            if ready.completed {
                forget_life(component);
                close_incident(component);
            }
        }
        Fact::ComponentUnready(_) => enter(component, event, InstanceState::Unready),
        Fact::ComponentExited(exited) => {
            enter(component, event, InstanceState::Exited);
            forget_life(component);
            component.last_exit = exited.status;
            component.last_error.clone_from(&exited.last_error);
            open_incident(component, event);
            if component.incident.is_some() {
                component.incident_exits = component.incident_exits.saturating_add(1);
            }
        }
        Fact::ComponentUnkillable(_) => component.reason.clone_from(&event.reason),
        Fact::ComponentUnresponsive(_) => {
            component.reason.clone_from(&event.reason);
            open_incident(component, event);
        }
        Fact::ComponentDegraded(degraded) => fold_degraded(component, degraded),
        // Measured before it ended, and stored after that.
        Fact::LimitExceeded(_) if !lives(component.state()) => {}
        Fact::LimitExceeded(limit) => {
            component.over_limits.retain(|over| over.resource != limit.resource);
            component.over_limits.push(limit.clone());
            component.over_limits.sort_by(|a, b| a.resource.cmp(&b.resource));
            component.over_limits.truncate(RESOURCES_MAX);
        }
        Fact::LimitRestored(limit) => component.over_limits.retain(|over| over.resource != limit.resource),
        Fact::ComponentBlocked(blocked) => {
            component.blocked_by.clone_from(&blocked.by);
            if !lives(component.state()) {
                enter(component, event, InstanceState::Waiting);
            }
        }
        Fact::ComponentFailed(failed) => {
            enter(component, event, InstanceState::Failed);
            forget_life(component);
            component.last_error.clone_from(&failed.last_error);
            if failed.status.is_some() {
                component.last_exit = failed.status;
            }
        }
        Fact::ComponentStopped(stopped) => {
            forget_life(component);
            component.last_exit = stopped.status;
            component.blocked_by.clear();
            if component.state() != InstanceState::Quarantined {
                enter(component, event, InstanceState::Stopped);
            }
        }
        Fact::Recovered(_) | Fact::IncidentWithdrawn(_) => close_incident(component),
        Fact::Quarantined(quarantined) => fold_quarantined(component, event, quarantined),
        _ => {}
    }
}

fn fold_quarantined(component: &mut v1::ObservedComponent, event: &v1::Event, quarantined: &v1::Quarantined) {
    // Isolated again it begins anew, also where it was not seen to live in between.
    component.set_state(InstanceState::Unspecified);
    enter(component, event, InstanceState::Quarantined);
    (component.quarantined, component.probation) = (Some(quarantined.clone()), None);
    close_incident(component);
}

/// From isolation to probation, or to release. What its node started of it meanwhile, or a passing probe released, goes on as it is.
fn fold_trial(component: &mut v1::ObservedComponent, event: &v1::Event, fact: &Fact) {
    let rests = matches!(component.state(), InstanceState::Quarantined | InstanceState::Probation);
    if let Fact::ProbationStarted(probation) = fact {
        component.probation = Some(probation.clone());
    } else {
        (component.quarantined, component.probation, component.escalated) = (None, None, None);
    }
    if rests {
        enter(component, event, if component.probation.is_some() { InstanceState::Probation } else { InstanceState::Waiting });
    }
}

fn fold_started(component: &mut v1::ObservedComponent, event: &v1::Event, started: &v1::ComponentStarted, new_incarnation: bool) {
    component.process.clone_from(&started.process);
    component.blocked_by.clear();
    // Who tells its life again tells that, too.
    component.degraded.clear();
    let runs_on = started.adopted && !new_incarnation && lives(component.state());
    if !runs_on {
        enter(component, event, InstanceState::Starting);
    }
    if new_incarnation || component.starts == 0 {
        component.starts = component.starts.saturating_add(1);
    }
}

/// No process of it lives.
pub(super) fn forget_life(component: &mut v1::ObservedComponent) {
    component.process = None;
    forget_fare(component);
}

/// How one life fared says nothing about the next.
fn forget_fare(component: &mut v1::ObservedComponent) {
    component.degraded.clear();
    component.over_limits.clear();
}

/// What passes takes back only its own kind: another may have been told since.
fn fold_degraded(component: &mut v1::ObservedComponent, degraded: &v1::ComponentDegraded) {
    if !degraded.passed {
        component.degraded = degraded_text(degraded);
    } else if component.degraded.starts_with(degraded_kind(degraded)) {
        component.degraded.clear();
    }
}

fn degraded_text(degraded: &v1::ComponentDegraded) -> String {
    let kind = degraded_kind(degraded);
    if degraded.detail.is_empty() { kind.to_owned() } else { format!("{kind}: {}", degraded.detail) }
}

fn degraded_kind(degraded: &v1::ComponentDegraded) -> &'static str {
    match degraded.kind() {
        v1::DegradedKind::Unspecified => "degraded",
        v1::DegradedKind::Slow => "slow",
        v1::DegradedKind::Starved => "starved",
        v1::DegradedKind::Traced => "traced",
    }
}

/// An exit or a hang opens an incident, unless a stop is desired; one that is open stays the same.
fn open_incident(component: &mut v1::ObservedComponent, event: &v1::Event) {
    if component.incident.is_some() || component.desired.as_ref().is_some_and(|d| d.mode == "stop") {
        return;
    }
    let computed = || {
        let instance = instance_of(event.instance.as_ref())?;
        let incarnation = event.incarnation.as_ref()?.into();
        Some((&Incident { instance, incarnation, signs_of_life: 0 }).into())
    };
    component.incident = event.incident.clone().or_else(computed);
    component.incident_since = event.time;
    component.incident_exits = 0;
}

fn close_incident(component: &mut v1::ObservedComponent) {
    component.incident = None;
    component.incident_since = None;
    component.incident_exits = 0;
}
