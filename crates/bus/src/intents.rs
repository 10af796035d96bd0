//! Records of the bucket `intents`: watched as one ordered view, and written by compare-and-swap, several as one atomic batch.
//! What a record asks of whom is decided by those who read it.

use bytes::Bytes;
use prost::Message;
use razar_bus_schema::{bucket::IntentKey, stream::Store, v1};

use crate::{BucketWatch, Bus, BusError, WatchItem};

/// What a watch of intents tells.
#[derive(Debug)]
pub enum IntentItem {
    /// Epoch of the bucket: first item, and again when it was recreated.
    Epoch(String),
    /// A record, new or changed.
    Record {
        /// Key as it stands in the bucket (`desired.api.0`).
        key: String,
        /// Revision.
        revision: u64,
        /// What it holds.
        record: IntentRecord,
        /// Nothing is pending behind it: the view is whole, and may be acted on.
        settled: bool,
    },
    /// The view is whole up to this revision; after each (re)connection, also when the bucket is empty.
    Settled {
        /// Newest revision.
        revision: u64,
    },
}

/// What a key of `intents` holds.
#[derive(Debug)]
pub enum IntentRecord {
    /// A record under a known key.
    Known {
        /// The key, read.
        key: IntentKey,
        /// The record. Its `want` is absent when it is from a newer version: void, to be said so.
        intent: Box<v1::Intent>,
    },
    /// A key of a newer version or of nobody: passed over.
    Foreign,
    /// Bytes that are no record: void, to be said so.
    Undecodable {
        /// What is wrong.
        why: String,
        /// Size in bytes.
        bytes: usize,
    },
    /// Deleted. Absence says nothing (`flows.md`, Reading).
    Deleted,
}

/// An endless watch of all intents.
#[derive(Debug)]
pub struct IntentWatch {
    bus: Bus,
    watch: BucketWatch,
}

impl Bus {
    /// Follows all intents. Returns at once; a bus that is away or a bucket that is not there yet is waited for.
    #[must_use]
    pub fn watch_intents(&self) -> IntentWatch {
        IntentWatch { bus: self.clone(), watch: self.bucket(Store::Intents).watch() }
    }

    /// Writes records, all or none, each only over the revision that is expected (0: there is none). Their revisions, in order.
    /// A failure with [`BusError::outcome_unknown`] may have been stored: read back and compare.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when one of them was written by somebody else; [`BusError::TooLarge`] above 1,000 records or
    /// 256 KiB each; else when the bus is down.
    pub async fn put_intents(&self, batch: &[(IntentKey, v1::Intent, u64)]) -> Result<Vec<u64>, BusError> {
        let bucket = self.bucket(Store::Intents);
        match batch {
            [] => Ok(Vec::new()),
            [(key, intent, expected)] => {
                bucket.put_cas(&key.to_string(), intent.encode_to_vec().into(), *expected).await.map(|revision| vec![revision])
            }
            several => {
                let writes =
                    several.iter().map(|(key, intent, expected)| (key.to_string(), Bytes::from(intent.encode_to_vec()), *expected));
                bucket.put_batch(writes.collect()).await
            }
        }
    }

    /// The record under `key` and its revision, read from the leader.
    ///
    /// # Errors
    /// When the bus is down, or the record cannot be read.
    pub async fn get_intent(&self, key: &IntentKey) -> Result<Option<(v1::Intent, u64)>, BusError> {
        let key = key.to_string();
        let Some(entry) = self.bucket(Store::Intents).get(&key).await? else { return Ok(None) };
        let intent = v1::Intent::decode(entry.value).map_err(|e| BusError::Malformed { what: key, why: e.to_string() })?;
        Ok(Some((intent, entry.revision)))
    }
}

impl IntentWatch {
    /// The next item. Cancel-safe. `None` only when this process has closed the bus.
    pub async fn next(&mut self) -> Option<IntentItem> {
        Some(match self.watch.next().await? {
            WatchItem::Epoch(epoch) => IntentItem::Epoch(epoch),
            WatchItem::Settled { revision } => IntentItem::Settled { revision },
            WatchItem::Entry { key, revision, value, settled, .. } => {
                let record = self.read(&key, value);
                IntentItem::Record { key, revision, record, settled }
            }
        })
    }

    fn read(&self, key: &str, value: Option<Bytes>) -> IntentRecord {
        let Some(value) = value else { return IntentRecord::Deleted };
        let Some(key) = IntentKey::parse(key) else { return IntentRecord::Foreign };
        let bytes = value.len();
        match v1::Intent::decode(value) {
            Ok(intent) => IntentRecord::Known { key, intent: Box::new(intent) },
            Err(e) => {
                self.bus.count_dead_letter();
                IntentRecord::Undecodable { why: e.to_string(), bytes }
            }
        }
    }
}
