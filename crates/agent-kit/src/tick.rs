//! The sign that an agent's loop turns: touched by the loop, read by health and heartbeat.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use razar_bus_schema::time::until_shared;

/// A loop older than this is not alive: `/healthz` fails.
pub const LOOP_AGE_MAX: Duration = Duration::from_secs(3);

/// How often a loop with nothing to do should tick.
pub const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Ticks each `period`, at the instants that all on this machine share; the first is the next of them.
#[must_use]
pub fn every_shared(period: Duration) -> tokio::time::Interval {
    let first = tokio::time::Instant::now() + until_shared(period, SystemTime::now());
    let mut every = tokio::time::interval_at(first, period);
    // What comes late comes to the shared instants again.
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    every
}

/// Age of the loop's last tick. Clones share it.
#[derive(Debug, Clone)]
pub struct LoopTicker {
    began: Instant,
    last_ms: Arc<AtomicU64>,
    applied: Arc<AtomicU64>,
}

impl Default for LoopTicker {
    fn default() -> Self {
        Self::new()
    }
}

impl LoopTicker {
    /// A loop that ticks now.
    #[must_use]
    pub fn new() -> Self {
        Self { began: Instant::now(), last_ms: Arc::default(), applied: Arc::default() }
    }

    /// The loop has turned.
    pub fn tick(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(since, Ordering::Relaxed);
    }

    /// Time since the last tick.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }

    /// Events up to `sequence` are folded; told in heartbeats.
    pub fn applied(&self, sequence: u64) {
        self.applied.store(sequence, Ordering::Relaxed);
    }

    /// Last sequence of EVENTS folded; 0: none.
    #[must_use]
    pub fn applied_sequence(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }
}
