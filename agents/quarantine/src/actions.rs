//! Carries out what was decided: one task for each action that waits, one [`Outcome`] from each. Decides nothing.

use razar_bus::Bus;

use crate::policy::{Outcome, Writes};

/// Writes records as one batch.
pub(crate) async fn write(bus: Bus, bucket: u64, writes: Writes) -> Outcome {
    let result = bus.put_intents(&writes).await;
    if let Err(error) = &result {
        tracing::warn!(%error, "a decision was not written");
    }
    Outcome::Wrote { bucket, writes, revisions: result.ok() }
}
