//! The registry's snapshot of its projection, over which a fold of EVENTS begins: what has run for longer than EVENTS keeps a fact is in
//! it alone. Written by the registry, read by whoever folds.

use std::time::{Duration, Instant};

use prost::Message as _;
use razar_bus::{Bus, BusError};
use razar_bus_schema::{bucket::REGISTRY_SNAPSHOT, stream::Store, v1};

use crate::{Agent, tick::TICK_INTERVAL};

/// Pause before the snapshot is asked for again: a start that waits for the broker goes on as soon as it is there.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a start waits for the snapshot before it does without.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Largest snapshot: every entity that the projection may have, at a few kilobytes each.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The newest snapshot; `None`: there is none, or none that can be read.
///
/// # Errors
/// When the object store cannot be read now.
pub async fn newest(bus: &Bus) -> Result<Option<v1::Observed>, BusError> {
    let Some(bytes) = bus.objects(Store::Stacks).get(REGISTRY_SNAPSHOT, BYTES_MAX).await? else { return Ok(None) };
    match v1::Observed::decode(bytes.as_slice()) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(error) => {
            tracing::warn!(%error, "the snapshot cannot be read; folding from the beginning");
            Ok(None)
        }
    }
}

/// The newest snapshot, if the broker has one to give soon. Ticks meanwhile: waiting for the broker is not being dead.
pub(crate) async fn soon<T>(agent: &Agent<T>) -> Option<v1::Observed> {
    let began = Instant::now();
    let mut shutdown = agent.shutdown.clone();
    while began.elapsed() < WAIT_LIMIT && !shutdown.is_asked() {
        agent.ticker.tick();
        match tokio::time::timeout(TICK_INTERVAL, newest(&agent.bus)).await {
            Ok(Ok(snapshot)) => return snapshot,
            Ok(Err(error)) => tracing::debug!(%error, "the snapshot cannot be read yet"),
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = shutdown.asked() => {}
        }
    }
    None
}
