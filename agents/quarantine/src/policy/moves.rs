//! From isolation by the ladder over probation to release, or back: what follows from facts and time.

use std::time::Duration;

use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incarnation, Incident, Instance},
    time,
    trace::Context,
    v1::{self, QuarantinePhase as Phase, intent::Want},
};

use super::{
    BATCH_MAX, Now, Record, State, View, Writes,
    epoch::proto,
    events::told_id,
    facts::{Failure, RecoveryFailed},
    issue::{self, MANUAL},
};

/// What probation has shown of an instance.
enum Trial<'s> {
    /// Nothing yet.
    Open,
    /// It held; with the id of the event by which it became ready.
    Passed(&'s str),
    /// It failed.
    Failed(Box<Failure>),
}

impl State {
    /// Every move that is due: isolation after the ladder, probation after the time, release or return after probation.
    pub(super) fn next_moves(&self, now: Now) -> Writes {
        let failures = self.facts.recovery_failures().filter(|(instance, _)| self.shards.decides_on(instance));
        let mut writes: Writes = failures.filter_map(|(i, failed)| self.isolate(i, failed, now)).collect();
        for (key, record) in self.records.iter().filter(|(key, _)| self.decides_on(key)) {
            let is_new = !writes.iter().any(|(k, _, _)| k == key);
            if is_new && self.is_told(key, record) {
                writes.extend(self.next_phase(key, record, now));
            }
        }
        writes.truncate(BATCH_MAX);
        writes
    }

    fn isolate(&self, instance: &Instance, failed: &RecoveryFailed, now: Now) -> Option<(IntentKey, v1::Intent, u64)> {
        let key = IntentKey::QuarantineInstance(instance.clone());
        if self.has_settled(instance, &failed.incident)
            || self.facts.is_withdrawn(&failed.incident)
            || self.records.get(&key).is_some_and(|r| !self.is_told(&key, r))
        {
            return None;
        }
        let view = self.facts.view(instance).filter(|v| v.incarnation > failed.incarnation);
        // A rung that was begun before it was heard that the incident was given up, and that helped no more than those before it.
        let last = view.filter(|v| v.is_past_help_in(&failed.incident)).map(|v| v.incarnation);
        let newer = view.is_some() && last.is_none();
        let replaced = self.desired.get(instance).is_some_and(|d| d.generation > failed.incarnation.generation);
        if newer || replaced {
            return None;
        }
        let issue = issue::of(failed.issue.as_ref(), &failed.last_error);
        let want = v1::Quarantine {
            component: instance.component.clone(),
            ordinal: Some(instance.ordinal),
            phase: Phase::Isolated.into(),
            incarnation: Some(last.unwrap_or(failed.incarnation).into()),
            duration: Some(proto(self.limits.isolation)),
            issue_type: issue.issue_type,
            suggested_fix: issue.suggested_fix,
            known: issue.known,
            incident: Some((&failed.incident).into()),
            attempts: failed.attempts,
            note: String::new(),
        };
        let text = if failed.last_error.is_empty() { "the ladder could not heal it".to_owned() } else { failed.last_error.clone() };
        let trace = Context::incident(&self.who.mesh, &failed.incident.to_string());
        let trace = failed.trace.clone().unwrap_or_else(|| trace.into());
        Some(self.write(&key, want, ("recovery_failed", text), &failed.event_id, Some(trace), now))
    }

    /// Whether a record of the instance, or of its component, has settled the incident, or a later one.
    fn has_settled(&self, instance: &Instance, incident: &Incident) -> bool {
        let keys = [IntentKey::QuarantineInstance(instance.clone()), IntentKey::QuarantineComponent(instance.component.clone())];
        let incidents =
            keys.iter().filter_map(|k| self.records.get(k)?.want()?.incident.as_ref()).filter_map(|i| Incident::try_from(i).ok());
        incidents.filter(|i| i.instance == *instance).any(|settled| order(&settled) >= order(incident))
    }

    fn next_phase(&self, key: &IntentKey, record: &Record, now: Now) -> Option<(IntentKey, v1::Intent, u64)> {
        match record.phase() {
            Phase::Released => None,
            Phase::Isolated | Phase::Unspecified => {
                let due = isolated_until(record).is_some_and(|until| until <= now.mono);
                (due && self.is_put_down(key)).then(|| self.put_on_probation(key, record, now))
            }
            Phase::Probation => self.judge_probation(key, record, now),
        }
    }

    /// Whether nothing that the key concerns lives: an end that belongs to the isolation must not be taken for one on probation.
    pub(super) fn is_put_down(&self, key: &IntentKey) -> bool {
        !self.concerned(key).iter().any(|i| self.facts.view(i).is_some_and(|v| v.lives))
    }

    fn put_on_probation(&self, key: &IntentKey, record: &Record, now: Now) -> (IntentKey, v1::Intent, u64) {
        let mut want = record.want().cloned().unwrap_or_default();
        want.set_phase(Phase::Probation);
        want.duration = None;
        if let [only] = self.concerned(key).as_slice()
            && let Some(view) = self.facts.view(only)
        {
            let before = want.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            want.incarnation = Some(view.incarnation.max(before).into());
        }
        let text = format!("on probation after {:.0?}: {}", record_duration(record).unwrap_or_default(), record.reason());
        let cause = &record.intent.told_by_event_id;
        self.write(key, want, ("probation", text), cause, record.intent.trace.clone(), now)
    }

    fn judge_probation(&self, key: &IntentKey, record: &Record, now: Now) -> Option<(IntentKey, v1::Intent, u64)> {
        let want = record.want()?;
        // What is stopped by hand is on no trial, and what another record isolates is not either.
        let tried: Vec<Instance> = self.concerned(key).into_iter().filter(|i| self.desired.get(i).is_some_and(|d| d.runs)).collect();
        let trials: Vec<Trial<'_>> = tried.iter().map(|i| self.trial(record, want, i, now)).collect();
        let failed = trials.iter().find_map(|t| if let Trial::Failed(failure) = t { Some(failure) } else { None });
        if let Some(failure) = failed {
            return Some(self.send_back(key, record, want, failure, now));
        }
        let passed: Option<Vec<&str>> = trials.iter().map(|t| if let Trial::Passed(event) = t { Some(*event) } else { None }).collect();
        let cause = passed?.first().copied()?.to_owned();
        let want = v1::Quarantine { phase: Phase::Released.into(), duration: None, note: String::new(), ..want.clone() };
        let text = format!("ready for {:.0?} on probation", self.limits.soak);
        Some(self.write(key, want, ("passed", text), &cause, record.intent.trace.clone(), now))
    }

    fn trial(&self, record: &Record, want: &v1::Quarantine, instance: &Instance, now: Now) -> Trial<'_> {
        let Some(view) = self.facts.view(instance) else { return Trial::Open };
        let told = self.isolation_sequence(record);
        let floor = want.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let later = |incarnation: Incarnation, sequence: u64| incarnation > floor && sequence > told;
        if let Some(failure) = view.failure.as_ref().filter(|f| later(f.incarnation, f.sequence)) {
            return Trial::Failed(Box::new(failure.clone()));
        }
        if let Some(late) = self.late(view, instance, now).filter(|late| later(late.incarnation, late.sequence)) {
            return Trial::Failed(Box::new(late));
        }
        let held = view.ready_since.is_some_and(|since| view.completed || since + self.limits.soak <= now.mono);
        if held && later(view.incarnation, view.ready_sequence) { Trial::Passed(&view.ready_event_id) } else { Trial::Open }
    }

    /// What started on trial and is not ready when its time to come up is over: a trial does not last for ever.
    fn late(&self, view: &View, instance: &Instance, now: Now) -> Option<Failure> {
        let (begun, sequence, event_id) = view.begun.as_ref()?;
        let limit = self.desired.get(instance)?.limit;
        let late = view.lives && view.ready_since.is_none() && begun.saturating_add(limit) <= now.mono;
        late.then(|| Failure {
            incarnation: view.incarnation,
            sequence: *sequence,
            event_id: event_id.clone(),
            incident: None,
            past_help: false,
            error: format!("not ready {limit:.0?} after its start on probation"),
            issue: None,
        })
    }

    /// Place in EVENTS of the event that told of the isolation, which is the cause of the probation: what is before it belongs to the life
    /// before. 0: it is no longer there. What tells of the probation may come after the start that it allows.
    fn isolation_sequence(&self, record: &Record) -> u64 {
        self.facts.told_sequence(&record.intent.cause_id).unwrap_or(0)
    }

    fn send_back(
        &self,
        key: &IntentKey,
        record: &Record,
        want: &v1::Quarantine,
        failure: &Failure,
        now: Now,
    ) -> (IntentKey, v1::Intent, u64) {
        let by_hand = want.issue_type == MANUAL;
        let issue = issue::of(failure.issue.as_ref(), &failure.error);
        let want = v1::Quarantine {
            phase: Phase::Isolated.into(),
            incarnation: if by_hand && self.concerned(key).len() > 1 { want.incarnation } else { Some(failure.incarnation.into()) },
            duration: Some(proto(self.limits.isolation)),
            issue_type: if by_hand { MANUAL.to_owned() } else { issue.issue_type },
            suggested_fix: issue.suggested_fix,
            known: issue.known,
            incident: failure.incident.clone().or_else(|| want.incident.clone()),
            attempts: want.attempts.saturating_add(1),
            ..want.clone()
        };
        let text = if failure.error.is_empty() { "it failed on probation".to_owned() } else { failure.error.clone() };
        self.write(key, want, ("probation_failed", text), &failure.event_id, record.intent.trace.clone(), now)
    }

    /// The write of a record over the one that is known, with what it has settled before.
    pub(super) fn write(
        &self,
        key: &IntentKey,
        want: v1::Quarantine,
        (code, text): (&str, String),
        cause: &str,
        trace: Option<v1::TraceContext>,
        now: Now,
    ) -> (IntentKey, v1::Intent, u64) {
        let before = self.records.get(key);
        let own = want.incarnation.as_ref().map(Incarnation::from);
        let first = self.concerned(key).into_iter().next();
        let told_by = first.map(|first| told_id(want.phase(), &first, own, cause)).unwrap_or_default();
        let intent = v1::Intent {
            writer: Some(self.who.actor()),
            cause_id: cause.to_owned(),
            reason: Some(v1::Reason { code: code.to_owned(), text }),
            trace,
            decided_at: Some(time::timestamp(now.wall)),
            settled_command_ids: before.map(|r| r.intent.settled_command_ids.clone()).unwrap_or_default(),
            told_by_event_id: told_by,
            want: Some(Want::Quarantine(want)),
        };
        (key.clone(), intent, before.map_or(0, |r| r.revision))
    }

    /// When time changes the phase of a record.
    pub(super) fn move_deadlines(&self) -> impl Iterator<Item = Duration> {
        let soaks = |record: &&Record| record.phase() == Phase::Probation;
        let any_probation = self.records.values().any(|r| soaks(&r));
        let soak = self.limits.soak;
        let ready = self.facts.views().filter_map(View::soaks_since).filter(move |_| any_probation).map(move |since| since + soak);
        let late = self.desired.iter().filter(move |_| any_probation).filter_map(|(instance, known)| {
            let view = self.facts.view(instance).filter(|v| v.lives && v.ready_since.is_none())?;
            Some(view.begun.as_ref()?.0.saturating_add(known.limit))
        });
        self.records.values().filter(|r| r.phase() == Phase::Isolated).filter_map(isolated_until).chain(ready).chain(late)
    }
}

/// Order of an instance's incidents.
fn order(incident: &Incident) -> (Incarnation, u64) {
    (incident.incarnation, incident.signs_of_life)
}

fn record_duration(record: &Record) -> Option<Duration> {
    record.want()?.duration.as_ref().map(time::std_duration)
}

/// End of an isolation; `None`: only a hand ends it.
pub(super) fn isolated_until(record: &Record) -> Option<Duration> {
    record_duration(record).map(|duration| record.received.saturating_add(duration))
}
