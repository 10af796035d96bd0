//! Settings of the watchdog's own.

use std::time::Duration;

use razar_agent_kit::deciding::LEASE_SECONDS;
use serde::Deserialize;

use crate::policy::Limits;

/// Missing beats that count as silence.
const MISSES: u32 = 3;
/// Lateness that every beat is granted, in milliseconds: timers of both sides, and the broker between them.
const SLACK_MS: u64 = 20;
/// Seconds that a chakra is below its threshold before it is told: what its nodes mend by themselves is mended by then.
const CHAKRA_SECONDS: u64 = 3;
/// Seconds between two measurements.
const MEASURE_SECONDS: u64 = 5;
/// Limits of a component that names none.
const MEMORY_MIB: u64 = 1024;
const CPU_PERCENT: u32 = 90;
const OPEN_FILES: u32 = 1024;

/// Table `settings` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whole seconds that the lease of the shard holds without renewal, at least 2.
    pub lease_seconds: u64,
    /// Missing beats of a node or an agent that count as silence, at least 1.
    pub misses: u32,
    /// Lateness that every beat is granted, in milliseconds.
    pub slack_ms: u64,
    /// Seconds that a chakra is below its threshold before it is told down.
    pub chakra_seconds: u64,
    /// Seconds between two measurements of what components use, at least 1.
    pub measure_seconds: u64,
    /// Resident memory watched where a component names no limits, in MiB; 0: not watched.
    pub memory_mib: u64,
    /// CPU watched where a component names no limits, in per cent of a core; 0: not watched.
    pub cpu_percent: u32,
    /// Open files watched where a component names no limits; 0: not watched.
    pub open_files: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_seconds: LEASE_SECONDS,
            misses: MISSES,
            slack_ms: SLACK_MS,
            chakra_seconds: CHAKRA_SECONDS,
            measure_seconds: MEASURE_SECONDS,
            memory_mib: MEMORY_MIB,
            cpu_percent: CPU_PERCENT,
            open_files: OPEN_FILES,
        }
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
    pub fn limits(&self) -> Limits {
        Limits {
            misses: self.misses.max(1),
            slack: Duration::from_millis(self.slack_ms),
            chakra_delay: Duration::from_secs(self.chakra_seconds),
            measure_every: Duration::from_secs(self.measure_seconds.max(1)),
            memory_bytes: self.memory_mib.saturating_mul(1024 * 1024),
            cpu_millis: self.cpu_percent.saturating_mul(10),
            open_files: self.open_files,
            ..Limits::default()
        }
    }
}
