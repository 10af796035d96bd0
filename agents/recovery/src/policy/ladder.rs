//! The ladder: from what is known of an instance to the next step of its incident. A rung is ordered by a record, judged by what its
//! node tells, and told before the record is written over.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance, sha256_hex},
    time,
    v1::{self, DependencyCondition as Condition, InstanceState, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want},
};

use super::{
    IncidentFacts, Now, Record, State, Step, View,
    asked::Ground,
    brake::Admission,
    events::{Asked, Said, fact_id},
};

/// Start it anew after a backoff.
pub(super) const RESTART: &str = "restart";
/// Remove the paths that its specification names as state, then start it.
pub(super) const CLEAR_STATE: &str = "clear_state";
/// The last rung: it is told that recovery failed, and quarantine has it.
pub(super) const QUARANTINE: &str = "quarantine";
/// Cause of a failure that came before there was a new incarnation.
const START_FAILED: &str = "start_failed";
/// Causes by which a node does not restart what the stack file says is not to be restarted: nor does the ladder.
const BY_POLICY: [&str; 2] = ["policy_never", "policy_on_failure"];
/// Time to come up of a component without a startup probe.
const STARTUP_LIMIT: Duration = Duration::from_secs(30);
/// A start that may take longer than a year may take for ever: sums with it stay in range.
const STARTUP_LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Defaults of a startup probe.
const PERIOD: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;
/// Longest backoff of a restart rung, in powers of two of a second.
const BACKOFF_EXPONENT_MAX: u32 = 6;
/// Share of the backoff that is random.
const JITTER: f64 = 0.2;

/// An order under way.
struct Under<'s> {
    instance: &'s Instance,
    incident: Incident,
    order: &'s v1::RecoveryOrder,
    record: &'s Record,
    intent: &'s v1::Intent,
    view: &'s View,
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    Void,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Void => "void",
        }
    }
}

impl State {
    pub(super) fn step(&self, instance: &Instance, now: Now) -> Step {
        let Some(view) = self.facts.view(instance) else { return Step::Wait(None) };
        let under = self.records.get(instance).and_then(|record| {
            let order = record.order().filter(|o| !o.ended)?;
            let incident = Incident::try_from(order.incident.as_ref()?).ok()?;
            Some(Under { instance, incident, order, record, intent: record.intent.as_deref()?, view })
        });
        match under {
            Some(under) => self.follow(&under, now),
            None => self.take_up(instance, view, now),
        }
    }

    /// What is desired of `instance`.
    pub(super) fn desired(&self, instance: &Instance) -> Option<(&v1::Desired, &v1::ComponentSpec)> {
        match &self.desired.get(instance)?.1.want {
            Some(Want::Desired(desired)) => Some((desired, desired.spec.as_ref()?)),
            _ => None,
        }
    }

    /// Whether quarantine has `instance`: isolated, or on probation, which is quarantine's to judge.
    pub(super) fn is_quarantined(&self, instance: &Instance) -> bool {
        let keys = [None, Some(instance.ordinal)].map(|ordinal| (instance.component.clone(), ordinal));
        keys.iter().any(|key| self.quarantines.get(key).is_some_and(|(_, phase)| *phase != Phase::Released))
    }

    /// For each dependency that is required, the event since which its condition holds in its present incarnation; `None`: one does not.
    fn foundation(&self, spec: &v1::ComponentSpec) -> Option<Vec<String>> {
        let mut since = Vec::new();
        for dependency in spec.depends_on.iter().filter(|d| d.required && d.component != spec.name) {
            let condition = Condition::try_from(dependency.condition).unwrap_or(Condition::Ready);
            let mut any = false;
            for (id, view) in self.facts.replicas(&dependency.component) {
                if self.desired(id).is_some_and(|(d, _)| d.mode() != RunMode::Stop) {
                    since.push(view.holds(condition)?.to_owned());
                    any = true;
                }
            }
            if !any {
                return None;
            }
        }
        since.retain(|id| !id.is_empty());
        Some(since)
    }

    /// An incident without an order: does the ladder take it up?
    fn take_up(&self, instance: &Instance, view: &View, now: Now) -> Step {
        let Some(incident) = view.incident.as_ref().filter(|i| i.is_open()) else { return Step::Wait(None) };
        let Some((desired, spec)) = self.desired(instance) else { return Step::Wait(None) };
        let current = desired.mode() == RunMode::Run && desired.generation <= view.incarnation.generation;
        let failed = view.failed.as_ref().is_some_and(|f| !BY_POLICY.contains(&f.cause.as_str()));
        // Lives that the watchdog wants replaced: they do not beat, or stay over their limits.
        let judged = (incident.silent.is_some() || incident.over) && view.incarnation == incident.id.incarnation && view.lives();
        let fails = view.state == InstanceState::Failed && failed || incident.flapping || judged;
        if !current || !fails || view.blocked || self.is_quarantined(instance) || self.facts.node(&view.node).lost {
            return Step::Wait(None);
        }
        if view.cooldown_until > now.mono {
            return Step::Wait(Some(view.cooldown_until));
        }
        let rung = match incident.tried.last() {
            Some(last) if !last.next.is_empty() => last.next.clone(),
            // Whatever its ladder is: this takes the place of its node's own restart.
            None if judged => RESTART.to_owned(),
            _ if view.lost_boots.0 >= self.limits.lost_boots => QUARANTINE.to_owned(),
            _ => rung_after(spec, incident.after.as_deref()),
        };
        self.climb(instance, view, incident, spec, &rung, now)
    }

    /// The next rung of an incident whose last one is told.
    fn climb(&self, instance: &Instance, view: &View, incident: &IncidentFacts, spec: &v1::ComponentSpec, rung: &str, now: Now) -> Step {
        if let Admission::Held(until) = self.admits(instance, now) {
            return Step::Wait(until);
        }
        if rung == QUARANTINE {
            return self.give_up(view, incident, spec, now);
        }
        let Some(foundation) = self.foundation(spec) else { return Step::Wait(None) };
        let attempt = incident.attempts + 1;
        let failure = view.failed.as_ref().filter(|f| f.incarnation >= incident.id.incarnation).map(|f| f.id.clone());
        let mut evidence = vec![failure.unwrap_or_else(|| incident.opened_by.clone())];
        evidence.extend(foundation);
        let silent = incident.silent.filter(|_| view.incarnation == incident.id.incarnation && attempt == 1);
        let at_once = silent.is_some() || incident.over && attempt == 1;
        let backoff = if rung == RESTART && !at_once { backoff(&incident.id, attempt) } else { Duration::ZERO };
        let why = match rung {
            RESTART => format!("restart in {:.2}s, try {attempt} of {}", backoff.as_secs_f64(), incident.id),
            _ => format!("clear its state and start it, try {attempt} of {}", incident.id),
        };
        let (replaces, limit) = (view.incarnation, self.limit(spec));
        let asked = Asked { instance, incident: &incident.id, rung, attempt, replaces, evidence, silent, backoff, limit, why };
        Step::Order(self.order(asked, now.wall))
    }

    /// The last rung.
    fn give_up(&self, view: &View, incident: &IncidentFacts, spec: &v1::ComponentSpec, now: Now) -> Step {
        if !self.facts.is_told(&fact_id("recovery_started", &incident.id, None)) {
            return Step::Tell(self.started(view, incident, spec, "no rung is tried".to_owned(), now));
        }
        // The ground of the last try was looked at when that was judged; where there was none, it is looked at now.
        if incident.attempts == 0 {
            match self.ground(&incident.id, 0, spec, now) {
                Ground::Firm => {}
                Ground::Moved => return Step::Wait(None),
                Ground::Unknown(step) => return step,
            }
        }
        let failure = view.failed.as_ref();
        let last_error = failure.map(|f| f.last_error.clone()).unwrap_or_default();
        let fact = v1::RecoveryFailed { attempts: incident.attempts, last_error };
        let said = Said {
            code: "ladder_ended",
            text: format!("no rung helped, {} tried", incident.attempts),
            attempt: None,
            cause: failure.map_or_else(|| incident.opened_by.clone(), |f| f.id.clone()),
        };
        Step::Tell(self.fact(&incident.id, view, Fact::RecoveryFailed(fact), said, now.wall))
    }

    fn started(&self, view: &View, incident: &IncidentFacts, spec: &v1::ComponentSpec, text: String, now: Now) -> Box<v1::Event> {
        let rungs = ladder(spec).chain([QUARANTINE]).map(str::to_owned).collect();
        let said = Said { code: "taken_up", text, attempt: None, cause: incident.opened_by.clone() };
        self.fact(&incident.id, view, Fact::RecoveryStarted(v1::RecoveryStarted { rungs }), said, now.wall)
    }

    /// An order under way: told, judged, told, and then the next.
    fn follow(&self, under: &Under<'_>, now: Now) -> Step {
        let Under { instance, incident: id, order, view, .. } = under;
        let incident = view.incident.as_ref().filter(|i| i.id == *id);
        let tried = fact_id("rung_tried", id, Some(order.attempt));
        let is_tried = self.facts.is_told(&tried);
        let Some((incident, spec)) = incident.zip(self.desired(instance).map(|(_, spec)| spec)) else {
            let is_failed = self.facts.is_told(&fact_id("recovery_failed", id, None));
            let superseded = incident.is_none() && !is_failed;
            return self.end(under, is_tried, superseded.then_some("superseded"), now);
        };
        if !self.facts.is_told(&fact_id("recovery_started", id, None)) {
            let text = under.intent.reason.as_ref().map(|r| r.text.clone()).unwrap_or_default();
            return Step::Tell(self.started(view, incident, spec, text, now));
        }
        if incident.closed.is_some() || self.is_quarantined(instance) {
            return self.end(under, is_tried, None, now);
        }
        if let Some(why) = self.withdrawn(under) {
            return self.end(under, is_tried, Some(why), now);
        }
        if incident.given_up {
            return self.let_go(under, now);
        }
        if !is_tried {
            return match self.judge(under, spec, now) {
                Ok(Outcome::Failed) if rung_after(spec, Some(&order.rung)) == QUARANTINE => self.last_try(under, spec, now),
                Ok(outcome) => Step::Tell(self.tried(under, spec, outcome, now)),
                Err(until) => Step::Wait(until),
            };
        }
        match incident.tried.last() {
            Some(last) if last.outcome == Outcome::Ok.name() => Step::Tell(self.recovered(under, incident, now)),
            Some(_) if self.facts.node(&view.node).lost => Step::Wait(None),
            Some(last) => self.climb(instance, view, incident, spec, &last.next, now),
            None => Step::Wait(None),
        }
    }

    /// The last try has failed, as far as is known: the nodes of what it depends on are asked before it counts.
    fn last_try(&self, under: &Under<'_>, spec: &v1::ComponentSpec, now: Now) -> Step {
        match self.ground(&under.incident, under.order.attempt, spec, now) {
            Ground::Firm => Step::Tell(self.tried(under, spec, Outcome::Failed, now)),
            Ground::Moved => Step::Tell(self.tried(under, spec, Outcome::Void, now)),
            Ground::Unknown(step) => step,
        }
    }

    /// Why the incident has lost its object, if it has.
    fn withdrawn(&self, under: &Under<'_>) -> Option<&'static str> {
        let (desired, _) = self.desired(under.instance)?;
        if desired.mode() == RunMode::Stop {
            return Some("to_be_stopped");
        }
        if desired.generation > replaced(under.order).generation {
            return Some("new_generation");
        }
        under.view.blocked.then_some("blocked")
    }

    /// Ends an order whose incident is over: its try is told void, the withdrawal (where it is recovery's to tell), then the record.
    fn end(&self, under: &Under<'_>, is_tried: bool, withdrawn: Option<&'static str>, now: Now) -> Step {
        if !is_tried {
            let why = withdrawn.unwrap_or("the incident is over");
            let text = format!("{} does not count: {}", under.order.rung, why.replace('_', " "));
            return Step::Tell(self.told_try(under, Outcome::Void, String::new(), text, now));
        }
        let told_by = fact_id("incident_withdrawn", &under.incident, None);
        if let Some(why) = withdrawn.filter(|_| !self.facts.is_told(&told_by)) {
            let fact = Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: why.to_owned() });
            let said = Said { code: why, text: why.replace('_', " "), attempt: None, cause: under.intent.told_by_event_id.clone() };
            return Step::Tell(self.fact(&under.incident, under.view, fact, said, now.wall));
        }
        let told_by = under.intent.told_by_event_id.clone();
        Step::Order(self.amended(under.intent, told_by, ("ended", format!("{} is over", under.incident)), now.wall, true))
    }

    /// The ladder has given up: what depends on the component is held no longer. The order stays, so that no local restarts begin.
    fn let_go(&self, under: &Under<'_>, now: Now) -> Step {
        if under.order.hold_dependents.is_none() {
            return Step::Wait(None);
        }
        let told_by = fact_id("recovery_failed", &under.incident, None);
        let why = ("given_up", format!("no rung helped {}", under.incident));
        Step::Order(self.amended(under.intent, told_by, why, now.wall, false))
    }

    /// What came of the order under way; else when to look again.
    fn judge(&self, under: &Under<'_>, spec: &v1::ComponentSpec, now: Now) -> Result<Outcome, Option<Duration>> {
        let (view, replaces) = (under.view, replaced(under.order));
        let node = self.facts.node(&view.node);
        if node.lost {
            return Err(None);
        }
        let since = under.record.seen.max(node.back_since);
        let evidence = under.order.evidence.as_ref().map_or(&[][..], |e| &e.event_ids);
        let kept = self.foundation(spec).is_some_and(|now| now.iter().all(|id| evidence.contains(id)));
        // Nor does a try count that was begun before so many others failed that the brake went on.
        let braked = self.facts.brake().is_some_and(|brake| brake.since > under.record.seen);
        let counted = if kept && !braked { Outcome::Failed } else { Outcome::Void };
        let later = view.incarnation > replaces;
        if view.state == InstanceState::Failed
            && let Some(failed) = &view.failed
            && !evidence.contains(&failed.id)
            && (failed.incarnation > replaces || failed.incarnation == replaces && failed.cause == START_FAILED)
        {
            return Ok(counted);
        }
        if later && view.state == InstanceState::Completed {
            return Ok(Outcome::Ok);
        }
        if let Some(ready) = view.ready_since.filter(|_| later && view.state == InstanceState::Ready) {
            let soaked = ready.max(node.back_since) + self.limits.soak;
            return if soaked <= now.mono { Ok(Outcome::Ok) } else { Err(Some(soaked)) };
        }
        let backoff = time::duration_or(under.order.backoff.as_ref(), Duration::ZERO);
        let deadline = since + backoff + self.limit(spec);
        if deadline > now.mono {
            return Err(Some(deadline));
        }
        // A start that nobody has seen is no try: it waits for its slot, or for its node.
        Ok(if later { counted } else { Outcome::Void })
    }

    fn tried(&self, under: &Under<'_>, spec: &v1::ComponentSpec, outcome: Outcome, now: Now) -> Box<v1::Event> {
        let rung = under.order.rung.as_str();
        let (next, text) = match outcome {
            Outcome::Ok => (String::new(), format!("{rung} held for {:.0?}", self.limits.soak)),
            Outcome::Failed => {
                let next = rung_after(spec, Some(rung));
                (next.clone(), format!("{rung} failed; next {next}"))
            }
            Outcome::Void => (
                rung.to_owned(),
                format!("{rung} does not count: its dependencies did not keep still, nothing started, or the brake is on"),
            ),
        };
        self.told_try(under, outcome, next, text, now)
    }

    fn told_try(&self, under: &Under<'_>, outcome: Outcome, next: String, text: String, now: Now) -> Box<v1::Event> {
        let fact = Fact::RungTried(v1::RungTried {
            rung: under.order.rung.clone(),
            outcome: outcome.name().to_owned(),
            next,
            decided_at: under.intent.decided_at,
        });
        let cause = under.intent.cause_id.clone();
        let said = Said { code: outcome.name(), text, attempt: Some(under.order.attempt), cause };
        self.fact(&under.incident, under.view, fact, said, now.wall)
    }

    fn recovered(&self, under: &Under<'_>, incident: &IncidentFacts, now: Now) -> Box<v1::Event> {
        let (view, rung) = (under.view, under.order.rung.as_str());
        let ready = view.ready_at.as_ref().map(time::system_time);
        let began = incident.opened_at.as_ref().map(time::system_time);
        let took = ready.zip(began).and_then(|(ready, began)| ready.duration_since(began).ok()).unwrap_or_default();
        let fact = v1::Recovered { rung: rung.to_owned(), took: Some(time::duration(took)), starts: incident.starts };
        let said = Said {
            code: "soak_held",
            text: "soak held".to_owned(),
            attempt: None,
            cause: fact_id("rung_tried", &under.incident, Some(under.order.attempt)),
        };
        self.fact(&under.incident, view, Fact::Recovered(fact), said, now.wall)
    }

    /// Time that a rung has, its backoff left out: never less than the startup limit and the soak.
    fn limit(&self, spec: &v1::ComponentSpec) -> Duration {
        (startup_limit(spec) + self.limits.soak).max(self.limits.deadline_min)
    }
}

fn replaced(order: &v1::RecoveryOrder) -> Incarnation {
    order.replaces.as_ref().map(Incarnation::from).unwrap_or_default()
}

/// The rungs of a component that there are, in its order, without the last.
fn ladder(spec: &v1::ComponentSpec) -> impl Iterator<Item = &str> {
    let built = |rung: &&str| *rung == RESTART || *rung == CLEAR_STATE && !spec.state.is_empty();
    spec.heal.iter().map(String::as_str).filter(built)
}

/// The rung after `rung`; after `None` the first.
fn rung_after(spec: &v1::ComponentSpec, rung: Option<&str>) -> String {
    let next = match rung {
        None => ladder(spec).next(),
        Some(rung) => ladder(spec).skip_while(|r| *r != rung).nth(1),
    };
    next.unwrap_or(QUARANTINE).to_owned()
}

/// How long a component may take to come up.
fn startup_limit(spec: &v1::ComponentSpec) -> Duration {
    spec.startup.as_ref().map_or(STARTUP_LIMIT, |probe| {
        let failures = if probe.failure_threshold == 0 { FAILURES } else { probe.failure_threshold };
        let period = time::duration_or(probe.period.as_ref(), PERIOD).saturating_mul(failures).min(STARTUP_LONGEST);
        (time::duration_or(probe.initial_delay.as_ref(), Duration::ZERO).min(STARTUP_LONGEST) + period).min(STARTUP_LONGEST)
    })
}

/// 2^(n-1) s before the n-th try, a tenth of it more or less: the same for the same try, whoever computes it.
fn backoff(incident: &Incident, attempt: u32) -> Duration {
    let seconds = f64::from(1_u32 << attempt.saturating_sub(1).min(BACKOFF_EXPONENT_MAX));
    let hash = sha256_hex(format!("{incident}:{attempt}").as_bytes());
    let dice = u32::from_str_radix(hash.get(..8).unwrap_or("0"), 16).unwrap_or(0);
    let luck = f64::from(dice) / f64::from(u32::MAX);
    Duration::from_secs_f64(seconds * (1.0 - JITTER / 2.0 + JITTER * luck))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(heal: &[&str], state: &[&str]) -> v1::ComponentSpec {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        v1::ComponentSpec { heal: owned(heal), state: owned(state), ..Default::default() }
    }

    #[test]
    fn rungs_that_are_not_built_and_state_that_is_not_named_are_passed_over() {
        let all = ["restart", "clear_state", "dependencies", "chakra_hook"];
        let table = [
            (spec(&all, &["/x"]), None, "restart"),
            (spec(&all, &["/x"]), Some("restart"), "clear_state"),
            (spec(&all, &["/x"]), Some("clear_state"), "quarantine"),
            (spec(&all, &[]), Some("restart"), "quarantine"),
            (spec(&["clear_state", "restart"], &["/x"]), None, "clear_state"),
            (spec(&[], &["/x"]), None, "quarantine"),
            (spec(&["restart"], &[]), Some("clear_state"), "quarantine"),
        ];
        for (spec, rung, next) in table {
            assert_eq!(rung_after(&spec, rung), next, "{:?} after {rung:?}", spec.heal);
        }
    }

    #[test]
    fn a_backoff_doubles_within_its_jitter_and_ends_growing() {
        let incident: Incident = "api@1.3".parse().unwrap();
        for (attempt, seconds) in [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (7, 64.0), (8, 64.0), (u32::MAX, 64.0)] {
            let backoff = backoff(&incident, attempt).as_secs_f64();
            assert!((seconds * 0.9..=seconds * 1.1).contains(&backoff), "{attempt}: {backoff}");
        }
    }

    #[test]
    fn a_rung_has_what_its_startup_probe_allows() {
        let probe = |period, failure_threshold| v1::Probe {
            period: Some(prost_types::Duration { seconds: period, nanos: 0 }),
            failure_threshold,
            ..Default::default()
        };
        let of = |startup| startup_limit(&v1::ComponentSpec { startup, ..Default::default() });
        assert_eq!(of(None), Duration::from_secs(30));
        assert_eq!(of(Some(probe(2, 60))), Duration::from_secs(120));
        assert_eq!(of(Some(probe(i64::MAX, u32::MAX))), STARTUP_LONGEST);
    }
}
