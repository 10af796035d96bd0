//! Settings of the orchestrator's own.

use std::time::Duration;

use serde::Deserialize;

/// Seconds that the lease of the shard holds without renewal. On one broker the shortest that a broker grants; 12 on three.
const LEASE_SECONDS: u64 = 2;

/// Table `settings` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whole seconds that the lease of the shard holds without renewal, at least 2.
    pub lease_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_seconds: LEASE_SECONDS }
    }
}

impl Settings {
    /// Time to live of the lease.
    #[must_use]
    pub const fn lease_ttl(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}
