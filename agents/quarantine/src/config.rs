//! Settings of quarantine's own.

use std::time::Duration;

use razar_agent_kit::deciding::LEASE_SECONDS;
use serde::Deserialize;

use crate::policy::Limits;

/// Seconds of isolation before probation, where nobody says how long: half an hour.
const ISOLATION_SECONDS: u64 = 1800;
/// Seconds that what is on probation has to stay ready before it is released.
const SOAK_SECONDS: u64 = 5;

/// Table `settings` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whole seconds that the lease of the shard holds without renewal, at least 2.
    pub lease_seconds: u64,
    /// Seconds of isolation before probation, where nobody says how long.
    pub isolation_seconds: u64,
    /// Seconds that what is on probation has to stay ready before it is released.
    pub soak_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_seconds: LEASE_SECONDS, isolation_seconds: ISOLATION_SECONDS, soak_seconds: SOAK_SECONDS }
    }
}

impl Settings {
    /// Time to live of the lease.
    #[must_use]
    pub const fn lease_ttl(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// What the policy goes by.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits { isolation: Duration::from_secs(self.isolation_seconds), soak: Duration::from_secs(self.soak_seconds) }
    }
}
