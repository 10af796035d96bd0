//! What the watchdog hears beside the mesh's streams: beats, as many as wait at once, and the tick by which it knows that it is on time.

use razar_agent_kit::deciding::Source;
use razar_bus::{Bus, BusError, CoreMessage, Subscription};

use crate::policy::TURN_MAX;

/// Beats that wait for the loop; more are dropped, and then nobody is silent for this observer. A second of a large mesh.
const BEATS_MAX: usize = 16_384;
/// Beats taken in one go.
const BEATS_IN_A_ROW: usize = 1024;

/// Beats and ticks.
#[derive(Debug)]
pub(crate) struct Ears {
    beats: Subscription,
    tick: tokio::time::Interval,
}

/// What was heard at once; nothing: a tick.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) beats: Vec<CoreMessage>,
    /// Beats that were dropped so far.
    pub(crate) dropped: u64,
}

impl Ears {
    pub(crate) async fn open(bus: &Bus) -> Result<Self, BusError> {
        let beats = bus.subscribe(&bus.subjects().heartbeats(), BEATS_MAX).await?;
        let mut tick = tokio::time::interval(TURN_MAX);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self { beats, tick })
    }
}

impl Source for Ears {
    type Item = Heard;

    async fn next(&mut self) -> Option<Heard> {
        let first = tokio::select! {
            biased;
            beat = self.beats.next() => Some(beat?),
            _ = self.tick.tick() => None,
        };
        let mut beats: Vec<CoreMessage> = first.into_iter().collect();
        while !beats.is_empty() && beats.len() < BEATS_IN_A_ROW {
            let Some(beat) = self.beats.try_next() else { break };
            beats.push(beat);
        }
        Some(Heard { beats, dropped: self.beats.dropped() })
    }
}
