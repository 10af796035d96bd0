//! Snapshots of the projection in the object store, so that a start reads the tail of EVENTS and not all of it.

use prost::Message as _;
use razar_bus::{Bus, BusError};
use razar_bus_schema::{bucket::REGISTRY_SNAPSHOT, stream::Store, v1};

/// Largest snapshot: every entity that the projection may have, at a few kilobytes each.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The newest snapshot; `None`: there is none, or none that can be read.
pub(crate) async fn newest(bus: &Bus) -> Result<Option<v1::Observed>, BusError> {
    let Some(bytes) = bus.objects(Store::Stacks).get(REGISTRY_SNAPSHOT, BYTES_MAX).await? else { return Ok(None) };
    match v1::Observed::decode(bytes.as_slice()) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(error) => {
            tracing::warn!(%error, "the snapshot cannot be read; folding from the beginning");
            Ok(None)
        }
    }
}

/// Stores a snapshot over the one before.
pub(crate) async fn store(bus: &Bus, snapshot: &v1::Observed) -> Result<(), BusError> {
    bus.objects(Store::Stacks).put(REGISTRY_SNAPSHOT, &snapshot.encode_to_vec()).await
}
