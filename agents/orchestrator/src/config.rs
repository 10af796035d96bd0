//! Settings of the orchestrator's own.

use std::time::Duration;

use razar_agent_kit::deciding::LEASE_SECONDS;
use serde::Deserialize;

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
