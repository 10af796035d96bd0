//! Settings of the registry's own.

use std::time::Duration;

use razar_agent_kit::deciding::LEASE_SECONDS;
use serde::Deserialize;

/// Events between two snapshots: a start reads at most so many, a fraction of a second.
const SNAPSHOT_EVENTS: u64 = 10_000;

/// Table `settings` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whole seconds that the lease of the shard holds without renewal, at least 2.
    pub lease_seconds: u64,
    /// Events between two snapshots, at least 1.
    pub snapshot_events: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_seconds: LEASE_SECONDS, snapshot_events: SNAPSHOT_EVENTS }
    }
}

impl Settings {
    /// Time to live of the lease.
    #[must_use]
    pub const fn lease_ttl(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}
