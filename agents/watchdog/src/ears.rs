//! What the watchdog hears beside the mesh's streams: beats, as many as wait at once, and the tick by which it knows that it is on time.

use std::time::{Duration, SystemTime};

use razar_agent_kit::deciding::Source;
use razar_bus::{Bus, BusError, CoreMessage, Subscription};
use razar_bus_schema::time::until_shared;
use tokio::{sync::watch, time::Instant};

/// Beats that wait for the loop; more are dropped, and then nobody is silent for this observer. A second of a large mesh.
const BEATS_MAX: usize = 16_384;
/// Beats taken in one go.
const BEATS_IN_A_ROW: usize = 1024;

/// Beats and ticks.
#[derive(Debug)]
pub(crate) struct Ears {
    beats: Subscription,
    /// The longest time without anything.
    turn_max: watch::Receiver<Duration>,
    heard_at: Instant,
}

/// What was heard at once; nothing: a tick.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) beats: Vec<CoreMessage>,
    /// Beats that were dropped so far.
    pub(crate) dropped: u64,
}

impl Ears {
    /// Listens, and ticks where nothing was heard for `turn_max`, at the instants that all share.
    pub(crate) async fn open(bus: &Bus, turn_max: watch::Receiver<Duration>) -> Result<Self, BusError> {
        let beats = bus.subscribe(&bus.subjects().heartbeats(), BEATS_MAX).await?;
        Ok(Self { beats, turn_max, heard_at: Instant::now() })
    }
}

impl Source for Ears {
    type Item = Heard;

    async fn next(&mut self) -> Option<Heard> {
        let turn_max = *self.turn_max.borrow();
        let shared = Instant::now() + until_shared(turn_max, SystemTime::now());
        let tick = shared.min(self.heard_at + turn_max);
        let first = tokio::select! {
            biased;
            beat = self.beats.next() => Some(beat?),
            () = tokio::time::sleep_until(tick) => None,
        };
        self.heard_at = Instant::now();
        let mut beats: Vec<CoreMessage> = first.into_iter().collect();
        while !beats.is_empty() && beats.len() < BEATS_IN_A_ROW {
            let Some(beat) = self.beats.try_next() else { break };
            beats.push(beat);
        }
        Some(Heard { beats, dropped: self.beats.dropped() })
    }
}
