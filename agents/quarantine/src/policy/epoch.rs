//! A new bucket of intents: everything that is known of quarantine is written first, what was released too, and then the mark. What is
//! known: what this replica has read of the bucket before, what EVENTS tells, and what the nodes' inventories hold.

use std::{collections::BTreeMap, sync::Arc};

use prost_types::Duration as ProtoDuration;
use razar_bus_schema::{
    bucket::IntentKey,
    ids::Instance,
    time,
    v1::{self, QuarantinePhase as Phase, event::Fact, intent::Want},
};

use super::{AGENT, BATCH_MAX, Now, Record, State, Writes, issue::MANUAL};

impl State {
    /// Writes of what the bucket does not have, or no longer has.
    pub(super) fn lost_records(&mut self, now: Now) -> Writes {
        if self.bucket_epoch.is_empty() {
            return Writes::new();
        }
        for (key, intent) in self.known_elsewhere() {
            let record = Record { revision: 0, received: now.mono, intent: Arc::new(intent) };
            self.records.entry(key).or_insert(record);
        }
        let lost = self.records.iter().filter(|(key, r)| r.revision == 0 || self.spoiled.contains(*key));
        let marked = self.mark.1 == self.bucket_epoch;
        let lost = lost.filter(|(key, _)| !marked || self.decides_on(key));
        lost.take(BATCH_MAX).map(|(key, r)| (key.clone(), (*r.intent).clone(), r.revision)).collect()
    }

    /// Records that no bucket told of, by the events and the inventories.
    fn known_elsewhere(&self) -> BTreeMap<IntentKey, v1::Intent> {
        let mut found = BTreeMap::new();
        // After the mark the bucket has what EVENTS told; a node may still come back with what only its disk knows.
        let marked = self.mark.1 == self.bucket_epoch;
        for (instance, event) in self.facts.last_told().filter(|_| !marked) {
            let (key, intent) = self.by_event(instance, event);
            if !self.records.contains_key(&key) {
                found.entry(key).or_insert(intent);
            }
        }
        let mut held: BTreeMap<IntentKey, v1::Intent> = BTreeMap::new();
        for intent in self.facts.held_records() {
            let Some(key) = key_of(intent) else { continue };
            if !self.records.contains_key(&key) {
                // Of two nodes the one that isolates is right until the record says otherwise.
                let isolates = |i: &v1::Intent| matches!(&i.want, Some(Want::Quarantine(q)) if q.phase() == Phase::Isolated);
                held.entry(key)
                    .and_modify(|known| {
                        if isolates(intent) {
                            known.clone_from(intent)
                        }
                    })
                    .or_insert_with(|| intent.clone());
            }
        }
        for (key, intent) in held {
            // What EVENTS tells is newer than any disk, unless the disk has the very record that it tells of.
            let same = found.get(&key).is_none_or(|told| told.told_by_event_id == intent.told_by_event_id);
            if same {
                found.insert(key, intent);
            }
        }
        found
    }

    fn by_event(&self, instance: &Instance, event: &v1::Event) -> (IntentKey, v1::Intent) {
        let mut want = v1::Quarantine {
            component: instance.component.clone(),
            incarnation: event.incarnation,
            incident: event.incident.clone(),
            ..Default::default()
        };
        let mut by_hand = self.facts.was_by_hand(instance);
        if let Some(Fact::Quarantined(told)) = &event.fact {
            want.set_phase(Phase::Isolated);
            want.issue_type.clone_from(&told.issue_type);
            want.suggested_fix.clone_from(&told.suggested_fix);
            want.known.clone_from(&told.known);
            want.attempts = told.attempts;
            want.duration = told.duration;
            by_hand = told.issue_type == MANUAL;
        } else if let Some(Fact::ProbationStarted(told)) = &event.fact {
            want.set_phase(Phase::Probation);
            want.issue_type.clone_from(&told.issue_type);
            want.suggested_fix.clone_from(&told.suggested_fix);
            want.known.clone_from(&told.known);
            want.attempts = told.attempts;
        } else {
            want.set_phase(Phase::Released);
            if let Some(Fact::Released(told)) = &event.fact {
                want.note.clone_from(&told.note);
            }
        }
        let key = if by_hand {
            IntentKey::QuarantineComponent(instance.component.clone())
        } else {
            want.ordinal = Some(instance.ordinal);
            IntentKey::QuarantineInstance(instance.clone())
        };
        let intent = v1::Intent {
            writer: Some(self.who.actor()),
            cause_id: event.cause_id.clone(),
            reason: event.reason.clone(),
            trace: event.trace.clone(),
            decided_at: event.time,
            told_by_event_id: event.id.clone(),
            want: Some(Want::Quarantine(want)),
            ..Default::default()
        };
        (key, intent)
    }

    /// The mark, once every present node has told what it holds, for this bucket.
    pub(super) fn mark_write(&self, now: Now) -> Option<(IntentKey, v1::Intent, u64)> {
        let mut present = self.facts.present_nodes().peekable();
        let told = present.peek().is_some() && present.all(|(_, n)| n.inventory_of.as_ref() == Some(&self.bucket_epoch));
        let intent = || v1::Intent {
            writer: Some(self.who.actor()),
            cause_id: self.bucket_epoch.clone(),
            reason: Some(v1::Reason { code: "new_bucket".to_owned(), text: "all that was known of quarantine is written".to_owned() }),
            decided_at: Some(time::timestamp(now.wall)),
            want: Some(Want::Mark(v1::EpochMark { bucket_epoch: self.bucket_epoch.clone() })),
            ..Default::default()
        };
        (told && !self.bucket_epoch.is_empty()).then(|| (IntentKey::Mark(AGENT.to_owned()), intent(), self.mark.0))
    }
}

/// Key under which a record of a node's disk belongs.
fn key_of(intent: &v1::Intent) -> Option<IntentKey> {
    let Some(Want::Quarantine(want)) = &intent.want else { return None };
    let key = match want.ordinal {
        None => IntentKey::QuarantineComponent(want.component.clone()),
        Some(ordinal) => IntentKey::QuarantineInstance(Instance::new(want.component.as_str(), ordinal)),
    };
    IntentKey::parse(&key.to_string())
}

/// A duration as a record says it.
pub(super) fn proto(span: std::time::Duration) -> ProtoDuration {
    time::duration(span)
}
