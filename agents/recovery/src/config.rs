//! Settings of recovery's own.

use std::time::Duration;

use razar_agent_kit::deciding::LEASE_SECONDS;
use serde::Deserialize;

use crate::policy::Limits;

/// Longest of these times: sums with it stay in range.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

const fn seconds(given: u64) -> Duration {
    Duration::from_secs(if given < SECONDS_MAX { given } else { SECONDS_MAX })
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn large(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Table `settings` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whole seconds that the lease of the shard holds without renewal, at least 2.
    pub lease_seconds: u64,
    /// Seconds that a rung has at least to make its component ready; a longer startup limit and the soak are added to nothing shorter.
    pub deadline_seconds: u64,
    /// Seconds that a component is to be ready before its rung has cured it.
    pub soak_seconds: u64,
    /// Seconds from a recovery by the ladder to the next incident of the same component that the ladder takes up.
    pub cooldown_seconds: u64,
    /// Local recoveries inside `flaps_within_seconds` that are borne; one more starts the ladder.
    pub flaps_max: u32,
    /// Seconds over which local recoveries are counted.
    pub flaps_within_seconds: u64,
    /// Boots in a row in which a component ended past help, from which on it goes to the last rung at once.
    pub lost_boots: u32,
    /// Rungs that cannot be taken back (state cleared, a hook run) of one component inside `destructive_within_seconds`; past that they are
    /// passed over.
    pub destructive_component: u32,
    /// Those of one chakra.
    pub destructive_chakra: u32,
    /// Those of the mesh.
    pub destructive_mesh: u32,
    /// Seconds over which they are counted.
    pub destructive_within_seconds: u64,
    /// Failed roots inside `brake_within_seconds` from which on the brake engages.
    pub brake_roots: u32,
    /// Share of what counts that they must be, in per cent.
    pub brake_percent: u32,
    /// Seconds into which the failures must fall.
    pub brake_within_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            lease_seconds: LEASE_SECONDS,
            deadline_seconds: limits.deadline_min.as_secs(),
            soak_seconds: limits.soak.as_secs(),
            cooldown_seconds: limits.cooldown.as_secs(),
            flaps_max: limits.flaps_max,
            flaps_within_seconds: limits.flaps_within.as_secs(),
            lost_boots: limits.lost_boots,
            destructive_component: small(limits.destructive_component),
            destructive_chakra: small(limits.destructive_chakra),
            destructive_mesh: small(limits.destructive_mesh),
            destructive_within_seconds: limits.destructive_within.as_secs(),
            brake_roots: small(limits.brake_roots),
            brake_percent: small(limits.brake_percent),
            brake_within_seconds: limits.brake_within.as_secs(),
        }
    }
}

impl Settings {
    /// Time to live of the lease.
    #[must_use]
    pub const fn lease_ttl(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// The figures of the ladder.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            deadline_min: seconds(self.deadline_seconds),
            soak: seconds(self.soak_seconds),
            cooldown: seconds(self.cooldown_seconds),
            flaps_max: self.flaps_max,
            flaps_within: seconds(self.flaps_within_seconds),
            lost_boots: self.lost_boots,
            destructive_component: large(self.destructive_component),
            destructive_chakra: large(self.destructive_chakra),
            destructive_mesh: large(self.destructive_mesh),
            destructive_within: seconds(self.destructive_within_seconds),
            brake_roots: large(self.brake_roots),
            brake_percent: large(self.brake_percent),
            brake_within: seconds(self.brake_within_seconds),
        }
    }
}
