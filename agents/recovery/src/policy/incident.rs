//! One incident as EVENTS tell it: how it began, which rungs were tried, how it ended. An instance has one at a time, the newest.

use std::collections::BTreeSet;

use razar_bus_schema::{
    ids::{Incarnation, Incident},
    v1,
};

/// Tries that are remembered of one incident; past them only the newest count.
const TRIES_MAX: usize = 256;

/// Outcome of a try that says nothing of its rung.
pub(super) const VOID: &str = "void";
/// Why an incident is withdrawn whose component came up in a try that did not count, and held.
pub(super) const CAME_UP: &str = "ready";

/// A try of a rung, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Rung.
    pub rung: String,
    /// `ok`, `failed` or `void`.
    pub outcome: String,
    /// What comes next.
    pub next: String,
}

/// How an incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It is well again.
    Recovered,
    /// It lost its object.
    Withdrawn,
    /// Its component is isolated.
    Quarantined,
}

/// An incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentFacts {
    /// Its id.
    pub id: Incident,
    /// When the event that opened it happened, by its source's clock.
    pub opened_at: Option<prost_types::Timestamp>,
    /// Id of that event.
    pub opened_by: String,
    /// Starts spent on it.
    pub starts: u32,
    /// Tries told, oldest first.
    pub tried: Vec<Tried>,
    /// Attempts that were told in all.
    pub attempts: u32,
    /// Attempts and rungs that shard 0 has granted and that are not told yet.
    pub granted: BTreeSet<(u32, String)>,
    /// How it ended; `None`: it is open.
    pub closed: Option<Closed>,
    /// The last rung was told: whoever quarantines has it now.
    pub given_up: bool,
    /// It is one of many local recoveries, not of a component that its node gave up.
    pub flapping: bool,
    /// It is of one over its limits that is to be replaced for that.
    pub over: bool,
    /// Incarnation that does not beat, by the watchdog's verdict: the one that the incident is of, or a later one that was to end it.
    pub silent_in: Option<Incarnation>,
    /// Rung that cured the flapping before; the ladder goes on after it.
    pub after: Option<String>,
}

impl IncidentFacts {
    /// An incident that `event` opens.
    #[must_use]
    pub fn opened(id: Incident, event: &v1::Event) -> Self {
        Self {
            id,
            opened_at: event.time,
            opened_by: event.id.clone(),
            starts: 0,
            tried: Vec::new(),
            attempts: 0,
            granted: BTreeSet::new(),
            closed: None,
            given_up: false,
            flapping: false,
            over: false,
            silent_in: None,
            after: None,
        }
    }

    /// Whether the ladder may still do something about it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.closed.is_none() && !self.given_up
    }

    /// Whether it is of one that was replaced by the watchdog's word alone, on which its node does not act: over its limits, or silent.
    #[must_use]
    pub fn is_by_verdict(&self) -> bool {
        (self.over || self.silent_in.is_some()) && !self.flapping
    }

    /// Whether a try of `rung` has failed in it.
    #[must_use]
    pub fn has_failed(&self, rung: &str) -> bool {
        self.tried.iter().any(|t| t.rung == rung && t.outcome == "failed")
    }

    /// Whether its last try did not count.
    pub(super) fn last_is_void(&self) -> bool {
        self.tried.last().is_some_and(|last| last.outcome == VOID)
    }

    pub(super) fn close(&mut self, how: Closed) {
        self.closed.get_or_insert(how);
    }

    pub(super) fn granted(&mut self, granted: &v1::RungGranted) {
        if granted.attempt > self.attempts && self.granted.len() < TRIES_MAX {
            self.granted.insert((granted.attempt, granted.rung.clone()));
        }
    }

    pub(super) fn try_told(&mut self, tried: &v1::RungTried) {
        self.attempts = self.attempts.saturating_add(1);
        let told = self.attempts;
        self.granted.retain(|(attempt, _)| *attempt > told);
        if self.tried.len() == TRIES_MAX {
            self.tried.remove(0);
        }
        self.tried.push(Tried { rung: tried.rung.clone(), outcome: tried.outcome.clone(), next: tried.next.clone() });
    }
}
