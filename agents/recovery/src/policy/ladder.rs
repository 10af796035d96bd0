//! The ladder: from what is known of an instance to the next step of its incident. A rung is ordered by a record, judged by what its
//! node tells, and told before the record is written over.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, DependencyCondition as Condition, InstanceState, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want},
};

use super::{
    IncidentFacts, Now, Record, State, Step, View,
    asked::Ground,
    brake::Admission,
    destructive::is_destructive,
    events::{Asked, Said, fact_id},
    incident::{CAME_UP, VOID},
    rungs::{CHAKRA_HOOK, CLEAR_STATE, DEPENDENCIES, QUARANTINE, RESTART, Standing, backoff, ladder},
};

/// Cause of a failure that came before there was a new incarnation.
const START_FAILED: &str = "start_failed";

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
            Self::Void => VOID,
        }
    }
}

impl State {
    pub(super) fn step(&self, instance: &Instance, now: Now) -> Step {
        let Some(view) = self.facts.view(instance) else { return Step::Wait(None) };
        let under = self.records.get(instance).and_then(|record| {
            let order = record.open_order()?;
            let incident = Incident::try_from(order.incident.as_ref()?).ok()?;
            Some(Under { instance, incident, order, record, intent: record.intent.as_deref()?, view })
        });
        match under {
            Some(under) => self.follow(&under, now),
            None => self.take_up(instance, view, now),
        }
    }

    /// Whether it is told what came of an order; `None`: it names no incident.
    pub(super) fn is_tried(&self, order: &v1::RecoveryOrder) -> Option<bool> {
        let incident = Incident::try_from(order.incident.as_ref()?).ok()?;
        Some(self.facts.is_told(&fact_id("rung_tried", &incident, Some(order.attempt))))
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
    pub(super) fn foundation(&self, spec: &v1::ComponentSpec) -> Option<Vec<String>> {
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
        if !current || !view.fails(incident) || view.blocked || self.is_quarantined(instance) || self.facts.node(&view.node).lost {
            return Step::Wait(None);
        }
        if view.cooldown_until > now.mono {
            return Step::Wait(Some(view.cooldown_until));
        }
        let at = Standing { instance, view, incident, desired, spec };
        // Whatever its ladder is: a first replacement of one that lives takes the place of its node's own restart.
        let first = view.is_judged(incident) && !incident.flapping && incident.tried.is_empty();
        let rung = if first { RESTART.to_owned() } else { self.next_rung(at, now) };
        self.climb(at, &rung, now)
    }

    /// What comes next by the last try that counted for something, else the first rung; the last one for what too many boots ended with.
    pub(super) fn next_rung(&self, at: Standing<'_>, now: Now) -> String {
        match at.incident.tried.last() {
            _ if self.is_lost(at.view) => QUARANTINE.to_owned(),
            Some(last) if !last.next.is_empty() => last.next.clone(),
            _ => self.rung_after(at, None, now),
        }
    }

    /// The next rung of an incident whose last one is told. A chakra that went down meanwhile puts its hook before it.
    fn climb(&self, at: Standing<'_>, rung: &str, now: Now) -> Step {
        let Standing { instance, view, incident, desired, spec } = at;
        if let Admission::Held(until) = self.admits(instance, now) {
            return Step::Wait(until);
        }
        let hooked = if self.is_hooked(at) && !self.is_lost(view) { CHAKRA_HOOK } else { rung };
        // Others may have spent the budget since that was told.
        let spared = (is_destructive(hooked) && self.spent(at, now).is_some()).then(|| self.rung_after(at, None, now));
        let rung = spared.as_deref().unwrap_or(hooked);
        if rung == QUARANTINE {
            return self.give_up(at, now);
        }
        if rung == DEPENDENCIES
            && let joined = self.joined(spec)
            && !joined.is_empty()
        {
            return self.wait_for(at, &joined, now);
        }
        if rung == CHAKRA_HOOK
            && let Some(until) = self.hook_is_busy(instance, &spec.chakra, now)
        {
            return Step::Wait(until);
        }
        let Some(foundation) = self.foundation(spec) else { return Step::Wait(None) };
        // The record may tell of more tries than EVENTS, which may be new.
        let ordered = self.records.get(instance).and_then(Record::order).filter(|o| o.incident == Some((&incident.id).into()));
        let attempt = incident.attempts.max(ordered.map_or(0, |o| o.attempt)) + 1;
        let failure = view.failed.as_ref().filter(|f| f.incarnation >= incident.id.incarnation).map(|f| f.id.clone());
        let mut evidence = vec![failure.unwrap_or_else(|| incident.opened_by.clone())];
        evidence.extend(foundation);
        // How often a later incarnation has shown life is not known here: that one is replaced as by any rung.
        let first = view.incarnation == incident.id.incarnation && attempt == 1;
        let silent = (first && incident.silent_in == Some(view.incarnation)).then_some(incident.id.signs_of_life);
        let at_once = silent.is_some() || incident.over && attempt == 1;
        let backoff = if rung == RESTART && !at_once { backoff(&incident.id, attempt) } else { Duration::ZERO };
        let what = match rung {
            RESTART => format!("restart in {:.2}s", backoff.as_secs_f64()),
            CLEAR_STATE => "clear its state and start it".to_owned(),
            DEPENDENCIES => "what it depends on is well again: start it anew".to_owned(),
            _ => format!("run the hook of {} and start it", spec.chakra),
        };
        let why = format!("{what}, try {attempt} of {}{}", incident.id, known(view));
        let (replaces, limit) = (view.incarnation, self.limit(desired, spec, rung));
        let asked = Asked { instance, incident: &incident.id, rung, attempt, replaces, evidence, silent, backoff, limit, why };
        Step::Order(self.order(asked, now.wall))
    }

    /// What it depends on has incidents of its own: they are healed first.
    fn wait_for(&self, at: Standing<'_>, joined: &[Incident], now: Now) -> Step {
        if self.facts.is_told(&fact_id("recovery_started", &at.incident.id, None)) {
            return Step::Wait(None);
        }
        Step::Tell(self.started(at, format!("waits for {}", listed(joined)), now))
    }

    /// The last rung.
    fn give_up(&self, at: Standing<'_>, now: Now) -> Step {
        let Standing { view, incident, spec, .. } = at;
        if !self.facts.is_told(&fact_id("recovery_started", &incident.id, None)) {
            return Step::Tell(self.started(at, format!("no rung is tried{}", known(view)), now));
        }
        // The ground of a last try was looked at when that was judged; where it was none, it is looked at now.
        let judged = incident.tried.last().is_some_and(|t| t.outcome == Outcome::Failed.name() && t.next == QUARANTINE);
        if !judged {
            match self.ground(&incident.id, 0, spec, now) {
                Ground::Firm => {}
                Ground::Moved(until) => return Step::Wait(Some(until)),
                Ground::Unknown(step) => return step,
            }
        }
        let failure = view.failed.as_ref();
        let last_error = failure.map(|f| f.last_error.clone()).unwrap_or_default();
        let issue = failure.map(|f| f.issue.clone());
        let fact = v1::RecoveryFailed { attempts: incident.attempts, last_error, issue };
        let said = Said {
            code: "ladder_ended",
            text: if incident.flapping && incident.attempts == 0 {
                "it was brought back again and again, and no rung is left".to_owned()
            } else {
                format!("no rung helped, {} tried", incident.attempts)
            },
            attempt: None,
            cause: failure.map_or_else(|| incident.opened_by.clone(), |f| f.id.clone()),
        };
        Step::Tell(self.fact(&incident.id, view, Fact::RecoveryFailed(fact), said, now.wall))
    }

    fn started(&self, at: Standing<'_>, text: String, now: Now) -> Box<v1::Event> {
        let Standing { view, incident, desired, spec, .. } = at;
        let rungs = ladder(desired, spec).chain([QUARANTINE]).map(str::to_owned).collect();
        let issue = view.failed.as_ref().map(|f| f.issue.clone());
        let said = Said { code: "taken_up", text, attempt: None, cause: incident.opened_by.clone() };
        self.fact(&incident.id, view, Fact::RecoveryStarted(v1::RecoveryStarted { rungs, issue }), said, now.wall)
    }

    /// An order under way: told, judged, told, and then the next.
    fn follow(&self, under: &Under<'_>, now: Now) -> Step {
        let Under { instance, incident: id, order, view, .. } = under;
        if self.is_ahead_of_events(under) {
            return Step::Wait(None);
        }
        let incident = view.incident.as_ref().filter(|i| i.id == *id);
        let tried = fact_id("rung_tried", id, Some(order.attempt));
        let is_tried = self.facts.is_told(&tried);
        let Some((incident, (desired, spec))) = incident.zip(self.desired(instance)) else {
            let is_failed = self.facts.is_told(&fact_id("recovery_failed", id, None));
            let superseded = incident.is_none() && !is_failed && !view.closed_before.contains(id);
            return self.end(under, is_tried, superseded.then_some("superseded"), now);
        };
        let at = Standing { instance, view, incident, desired, spec };
        if !self.facts.is_told(&fact_id("recovery_started", id, None)) {
            let text = under.intent.reason.as_ref().map(|r| r.text.clone()).unwrap_or_default();
            return Step::Tell(self.started(at, text, now));
        }
        if incident.closed.is_some() || self.is_quarantined(instance) {
            return self.end(under, is_tried, None, now);
        }
        if let Some(why) = self.withdrawn(under) {
            return self.end(under, is_tried, Some(why), now);
        }
        if incident.given_up {
            return self.let_go(under, is_tried, now);
        }
        if !is_tried {
            return match self.judge(under, at, now) {
                Ok(Outcome::Failed) if self.rung_after(at, Some(&order.rung), now) == QUARANTINE => self.last_try(under, at, now),
                Ok(outcome) => Step::Tell(self.tried(under, at, outcome, now)),
                Err(until) => Step::Wait(until),
            };
        }
        match incident.tried.last() {
            Some(last) if last.outcome == Outcome::Ok.name() => Step::Tell(self.recovered(under, incident, now)),
            Some(_) if self.facts.node(&view.node).lost => Step::Wait(None),
            // What did not count has come up all the same, or is about to: the next rung would end one that is well.
            Some(_) if incident.last_is_void() && !view.is_judged(incident) => match self.came_up(view, order) {
                Some(holds) if holds > now.mono => Step::Wait(Some(holds)),
                Some(_) => self.end(under, is_tried, Some(CAME_UP), now),
                None => match self.may_come_up(view, order, spec).filter(|until| *until > now.mono) {
                    Some(until) => Step::Wait(Some(until)),
                    None => self.climb(at, &self.next_rung(at, now), now),
                },
            },
            Some(_) => self.climb(at, &self.next_rung(at, now), now),
            None => Step::Wait(None),
        }
    }

    /// Whether EVENTS know less of the instance than its order does, since they are new: what became of it its node will tell. An order
    /// that is over by what is desired or isolated waits for nobody.
    fn is_ahead_of_events(&self, under: &Under<'_>) -> bool {
        under.view.incarnation < replaced(under.order)
            && self.desired(under.instance).is_some_and(|(d, _)| d.mode() == RunMode::Run)
            && self.withdrawn(under).is_none()
            && !self.is_quarantined(under.instance)
    }

    /// The last try has failed, as far as is known: the nodes of what it depends on are asked before it counts.
    fn last_try(&self, under: &Under<'_>, at: Standing<'_>, now: Now) -> Step {
        match self.ground(&under.incident, under.order.attempt, at.spec, now) {
            Ground::Firm => Step::Tell(self.tried(under, at, Outcome::Failed, now)),
            Ground::Moved(_) => Step::Tell(self.tried(under, at, Outcome::Void, now)),
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
            return self.void(under, withdrawn.unwrap_or("the incident is over"), now);
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

    /// The try under way says nothing of its rung any more.
    fn void(&self, under: &Under<'_>, why: &str, now: Now) -> Step {
        let text = format!("{} does not count: {}", under.order.rung, why.replace('_', " "));
        Step::Tell(self.told_try(under, Outcome::Void, String::new(), text, now))
    }

    /// The ladder has given up: what depends on the component is held no longer. The order stays, so that no local restarts begin. Where
    /// another holder gave up, and that was heard late, a try begun since is told first.
    fn let_go(&self, under: &Under<'_>, is_tried: bool, now: Now) -> Step {
        if under.order.hold_dependents.is_none() {
            return Step::Wait(None);
        }
        if !is_tried {
            return self.void(under, "it was given up before", now);
        }
        let told_by = fact_id("recovery_failed", &under.incident, None);
        let why = ("given_up", format!("no rung helped {}", under.incident));
        Step::Order(self.amended(under.intent, told_by, why, now.wall, false))
    }

    /// What came of the order under way; else when to look again.
    fn judge(&self, under: &Under<'_>, at: Standing<'_>, now: Now) -> Result<Outcome, Option<Duration>> {
        let (desired, spec) = (at.desired, at.spec);
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
        // A start that hangs has failed, however long it was to be waited for.
        if later && view.is_judged(at.incident) {
            return Ok(counted);
        }
        if let Some(soaked) = self.came_up(view, under.order) {
            return if soaked <= now.mono { Ok(Outcome::Ok) } else { Err(Some(soaked)) };
        }
        let backoff = time::duration_or(under.order.backoff.as_ref(), Duration::ZERO);
        let deadline = since + backoff + self.limit(desired, spec, &under.order.rung);
        if deadline > now.mono {
            return Err(Some(deadline));
        }
        // A start that nobody has seen is no try: it waits for its slot, or for its node.
        Ok(if later { counted } else { Outcome::Void })
    }

    /// Until when what was started since the order has to hold to be well, if it is ready or has done what it was to do.
    pub(super) fn came_up(&self, view: &View, order: &v1::RecoveryOrder) -> Option<Duration> {
        if view.incarnation <= replaced(order) {
            return None;
        }
        if view.state == InstanceState::Completed {
            return Some(Duration::ZERO);
        }
        let ready = view.ready_since.filter(|_| view.state == InstanceState::Ready)?;
        Some(ready.max(self.facts.node(&view.node).back_since) + self.limits.soak)
    }

    /// Until when what was started since the order, and lives, may still come up: what it depends on has just come back.
    pub(super) fn may_come_up(&self, view: &View, order: &v1::RecoveryOrder, spec: &v1::ComponentSpec) -> Option<Duration> {
        self.foundation(spec).filter(|_| view.lives() && view.incarnation > replaced(order))?;
        let needs = spec.depends_on.iter().filter(|d| d.required && d.component != spec.name);
        let since = needs.flat_map(|d| self.facts.replicas(&d.component)).filter_map(|(_, needed)| needed.ready_since).max()?;
        Some(since + self.limits.soak)
    }

    fn tried(&self, under: &Under<'_>, at: Standing<'_>, outcome: Outcome, now: Now) -> Box<v1::Event> {
        let rung = under.order.rung.as_str();
        let (next, text) = match outcome {
            Outcome::Ok => (String::new(), format!("{rung} held for {:.0?}", self.limits.soak)),
            Outcome::Failed => {
                let next = self.rung_after(at, Some(rung), now);
                let waits = if next == DEPENDENCIES { format!(": waits for {}", listed(&self.joined(at.spec))) } else { String::new() };
                let spared = self.spent(at, now).map_or_else(String::new, |why| format!("; {why}"));
                (next.clone(), format!("{rung} failed; next {next}{waits}{spared}"))
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
}

fn replaced(order: &v1::RecoveryOrder) -> Incarnation {
    order.replaces.as_ref().map(Incarnation::from).unwrap_or_default()
}

/// Incidents in a sentence.
fn listed(incidents: &[Incident]) -> String {
    incidents.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What the error registry knows of the last failure, behind a sentence.
fn known(view: &View) -> String {
    let issue = view.failed.as_ref().map(|f| &f.issue).filter(|issue| !issue.known.is_empty());
    issue.map_or_else(String::new, |issue| format!("; known as {}: {}", issue.known, issue.suggested_fix))
}
