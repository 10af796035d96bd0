//! How long an isolation has lasted that was told before this replica began. Durations count from receipt; a successor was not there, so it
//! takes the time between two events of EVENTS, both stored by the broker's one clock, and never compares that clock with its own.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::v1;

use super::{AGENT, ENTITIES_MAX, Now};

/// When isolations were told, and what the broker's clock showed last.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    told: BTreeMap<String, SystemTime>,
    /// Receipt of the newest event, and when it was stored.
    newest: Option<(Duration, SystemTime)>,
}

impl Clock {
    pub(super) fn fold(&mut self, event: &v1::Event, stored: SystemTime, now: Now) {
        self.newest = Some((now.mono, stored));
        let ours = event.source.as_ref().is_some_and(|s| s.kind == AGENT);
        if ours && event.kind == "quarantined" && (self.told.len() < ENTITIES_MAX || self.told.contains_key(&event.id)) {
            // Told twice, it counts from the first.
            self.told.entry(event.id.clone()).or_insert(stored);
        }
    }

    /// Since when, monotonic, what this event tells of has lasted, at most: the newest event is never younger than now.
    pub(super) fn since(&self, id: &str) -> Option<Duration> {
        let (receipt, newest) = self.newest?;
        let lasted = newest.duration_since(*self.told.get(id)?).ok()?;
        Some(receipt.saturating_sub(lasted))
    }
}
