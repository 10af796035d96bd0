//! Looks at what the mesh stands on: the disk of the state directory, the broker's own word on its storage, the stores that it has.
//! What follows from a look is decided in `policy/upkeep.rs`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use razar_bus::Bus;
use razar_bus_schema::stream::Store;
use razar_os::monotonic_now;

use crate::{
    policy::upkeep::{BrokerStore, Disk, Look},
    probe,
};

/// A broker on this machine says in milliseconds how it is.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);
/// A disk that does not answer by then cannot be looked at.
const DISK_LIMIT: Duration = Duration::from_secs(1);
/// What a broker with sound stores answers 200 to; 503 with the error if one of them could not be written.
const HEALTH_PATH: &str = "/healthz";
/// Characters of the broker's error that are told.
const ERROR_CHARS_MAX: usize = 300;

/// What is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// Port of the embedded broker's monitoring; none: the broker runs elsewhere.
    pub(crate) monitor: Option<u16>,
}

/// Takes one look; seconds at most. `told_before`: see [`Look::told_before`].
pub(crate) async fn look(bus: &Bus, places: Places, told_before: bool) -> Look {
    let at = monotonic_now();
    let began = Instant::now();
    let dir = places.dir;
    let disk = tokio::time::timeout(DISK_LIMIT, tokio::task::spawn_blocking(move || disk(&dir)));
    let stores = async { if bus.is_up() { bus.stores().await.ok() } else { None } };
    let (disk, broker, stores) = tokio::join!(disk, health(places.monitor), stores);
    tracing::trace!(took = ?began.elapsed(), "looked at disk and stores");
    Look { at, told_before, stores, broker, disk: disk.ok().and_then(Result::ok).flatten() }
}

/// Looks for EVENTS alone, of which something of this node's was stored just now.
pub(crate) async fn look_for_events(bus: &Bus) -> Look {
    let at = monotonic_now();
    let found = bus.find(Store::Events).await.ok();
    Look { at, told_before: true, stores: found.map(|epoch| vec![(Store::Events, epoch)]), ..Look::default() }
}

fn disk(dir: &std::path::Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Disk { free_bytes: bytes(stat.f_bavail), total_bytes: bytes(stat.f_blocks) })
}

async fn health(monitor: Option<u16>) -> BrokerStore {
    let Some(port) = monitor else { return BrokerStore::Unknown };
    match tokio::time::timeout(HEALTH_LIMIT, probe::get(port.into(), HEALTH_PATH)).await {
        Ok(Some((200, _))) => BrokerStore::Well,
        Ok(Some((503, body))) => BrokerStore::Failing(error_of(&body)),
        Ok(Some(_) | None) | Err(_) => BrokerStore::Unknown,
    }
}

/// The sentence in `{"status":"unavailable","error":"…"}`, or all of it.
fn error_of(body: &str) -> String {
    let read = serde_json::from_str::<serde_json::Value>(body).ok();
    let error = read.as_ref().and_then(|v| v.get("error")).and_then(serde_json::Value::as_str);
    error.unwrap_or(body).trim().chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_error_is_its_sentence() {
        let full = r#"{"status":"unavailable","error":"JetStream stream 'X' write error: no space left on device"}"#;
        assert_eq!(error_of(full), "JetStream stream 'X' write error: no space left on device");
        assert_eq!(error_of("out of order\n"), "out of order");
    }

    #[test]
    fn the_disk_of_a_directory_has_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let seen = disk(dir.path()).unwrap();
        assert!(seen.total_bytes >= seen.free_bytes && seen.total_bytes > 0);
        assert_eq!(disk(&dir.path().join("none")), None);
    }
}
