//! Carries out what was decided: one task for each action, one [`Outcome`] from each. Decides nothing.

use std::time::Duration;

use prost::Message as _;
use razar_bus::Bus;
use razar_bus_schema::{bucket::REGISTRY_SNAPSHOT, stream::Store, v1};

use crate::{agent::Outcome, policy::Write};

/// Pause after a failed write: what conflicts comes with the watch, and nothing is hammered meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes or deletes one key of the projection.
pub(crate) async fn write(bus: Bus, write: Write) -> Outcome {
    let bucket = bus.bucket(Store::Observed);
    let written = match write.value.clone() {
        Some(value) => bucket.put_cas(&write.key, value.into(), write.expected).await,
        None => bucket.delete(&write.key, write.expected).await,
    };
    if let Err(error) = &written {
        tracing::debug!(%error, key = write.key, "a key of the projection was not written");
        tokio::time::sleep(PAUSE).await;
    }
    Outcome::Wrote(write, written.ok())
}

/// Stores a snapshot of the projection over the one before, so that a start reads the tail of EVENTS and not all of it.
pub(crate) async fn store_snapshot(bus: Bus, observed: Box<v1::Observed>) -> Outcome {
    let stored = bus.objects(Store::Stacks).put(REGISTRY_SNAPSHOT, &observed.encode_to_vec()).await;
    if let Err(error) = &stored {
        tracing::warn!(%error, "the snapshot was not stored");
        tokio::time::sleep(PAUSE).await;
    }
    Outcome::Snapshot { epoch: observed.stream_epoch, stored: stored.is_ok().then_some(observed.applied_sequence) }
}

/// Tells an event.
pub(crate) async fn tell(bus: Bus, event: Box<v1::Event>) -> Outcome {
    let told = bus.publish_event(&event, "").await.is_ok();
    if !told {
        tokio::time::sleep(PAUSE).await;
    }
    Outcome::Told(event.id, told)
}
