//! A key-value bucket: compare-and-swap writes, reads from the leader, lists and watches of bytes.
//! There is no read-after-write promise of a watch; decide by compare-and-swap or a leader's read.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use async_nats::{HeaderMap, jetstream::stream::RawMessageErrorKind};
use bytes::Bytes;
use razar_bus_schema::stream::Store;
use tokio::sync::mpsc;

use crate::{
    Bus, BusError, REQUEST_LIMIT,
    batch::{self, BatchMessage, PubAck},
    connection::read_answer,
    ordered::{self, Plan, Raw, Read},
};

/// A watch reads everything again so often, whatever it believes to have seen.
const RELIST: Duration = Duration::from_secs(300);
/// Limit of [`Bucket::entries`]: more keys than a mesh of 77 components with replicas ever has.
const ENTRIES_MAX: usize = 65_536;
/// Header of KV's markers.
const OPERATION: &str = "KV-Operation";
/// Header of the marker that the broker writes when a key expires.
const MARKER_REASON: &str = "Nats-Marker-Reason";

/// A value and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Bytes,
    /// Revision, for compare-and-swap.
    pub revision: u64,
    /// When it was stored, by the broker's clock.
    pub stored: SystemTime,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// Epoch of the bucket: first item, and again when it was recreated: what was told before is void then.
    Epoch(String),
    /// A key has a value, or (`value` = `None`) was deleted or has expired.
    Entry {
        /// Key.
        key: String,
        /// Revision.
        revision: u64,
        /// Value.
        value: Option<Bytes>,
        /// Nothing is pending behind it: the view is whole.
        settled: bool,
        /// When it was stored, by the broker's clock.
        stored: SystemTime,
    },
    /// Nothing is pending: the view is whole up to this revision. Comes after each (re)connection, also for an empty bucket.
    Settled {
        /// Newest revision.
        revision: u64,
    },
}

/// A bucket of the mesh.
#[derive(Debug, Clone)]
pub struct Bucket {
    bus: Bus,
    store: Store,
    prefix: String,
}

impl Bus {
    /// The bucket `store` (one of form `Bucket`).
    #[must_use]
    pub fn bucket(&self, store: Store) -> Bucket {
        Bucket { bus: self.clone(), store, prefix: format!("$KV.{}.", store.name(self.mesh())) }
    }
}

impl Bucket {
    /// The value of `key`, read from the leader; `None`: never written, deleted or expired.
    ///
    /// # Errors
    /// When the bus is down or the bucket does not exist.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, BusError> {
        Ok(self
            .newest(key)
            .await?
            .and_then(|(revision, value, stored)| value.map(|value| Entry { key: key.to_owned(), value, revision, stored })))
    }

    /// Newest revision of `key`, with its value unless that is a marker.
    pub(crate) async fn newest(&self, key: &str) -> Result<Option<(u64, Option<Bytes>, SystemTime)>, BusError> {
        let subject = self.subject(key);
        let op = async {
            let stream = self.bus.context().get_stream_no_info(self.bus.stream_of(self.store)).await;
            let stream = stream.map_err(|e| BusError::Client(e.to_string()))?;
            match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => {
                    let marker = is_marker(Some(&message.headers));
                    Ok(Some((message.sequence, (!marker).then_some(message.payload), SystemTime::from(message.time))))
                }
                Err(e) => match e.kind() {
                    RawMessageErrorKind::NoMessageFound => Ok(None),
                    RawMessageErrorKind::JetStream(error) if error.error_code().0 == 10_059 => {
                        Err(BusError::Missing { what: self.store.label().to_owned() })
                    }
                    RawMessageErrorKind::InvalidSubject | RawMessageErrorKind::JetStream(_) | RawMessageErrorKind::Other => {
                        Err(BusError::Client(e.to_string()))
                    }
                },
            }
        };
        self.bus.limited(key, "", REQUEST_LIMIT, op).await
    }

    /// Writes `key` if its revision is `expected` (0: it has none); the new revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when somebody wrote before; else when the bus is down, the value too large, the bucket full.
    pub async fn put_cas(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(batch::EXPECTED_REVISION, expected.to_string());
        self.write(key, headers, value).await
    }

    /// Writes `key` whatever is there: for keys that have one writer and carry no decision.
    ///
    /// # Errors
    /// When the bus is down, the value too large, the bucket full.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.write(key, HeaderMap::new(), value).await
    }

    /// Deletes `key` if its revision is `expected`, leaving a marker that watches tell of.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when somebody wrote before; else when the bus is down.
    pub async fn delete(&self, key: &str, expected: u64) -> Result<u64, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, "DEL");
        headers.insert(batch::EXPECTED_REVISION, expected.to_string());
        self.write(key, headers, Bytes::new()).await
    }

    /// Writes several keys, all or none; each with the revision that it must have. The new revisions, in order.
    /// The bucket must allow it (`intents`, `missions`).
    ///
    /// # Errors
    /// [`BusError::Conflict`] when one of them was written by somebody else; else as [`Bucket::put_cas`].
    pub async fn put_batch(&self, writes: Vec<(String, Bytes, u64)>) -> Result<Vec<u64>, BusError> {
        let messages = writes.into_iter().map(|(key, payload, expected)| {
            let mut headers = HeaderMap::new();
            headers.insert(batch::EXPECTED_REVISION, expected.to_string());
            BatchMessage { subject: self.subject(&key), headers, payload }
        });
        batch::commit(&self.bus, messages.collect(), self.store.label()).await
    }

    pub(crate) async fn write(&self, key: &str, headers: HeaderMap, value: Bytes) -> Result<u64, BusError> {
        let answer = self
            .bus
            .request_raw(&self.subject(key), Some(headers), value, REQUEST_LIMIT)
            .await
            .map_err(|e| e.or_missing(self.store.label()))?;
        read_answer::<PubAck>(&answer.payload, key).map(|ack| ack.seq)
    }

    pub(crate) fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Every key with its value, in order of key: one consistent view up to the moment of the call.
    ///
    /// # Errors
    /// When the bus is down, the bucket does not exist, or holds more than 65,536 keys.
    pub async fn entries(&self) -> Result<Vec<Entry>, BusError> {
        // So that a bucket that is not there is an error, not a wait.
        self.bus.head(self.store).await?;
        let mut watch = self.watch();
        let mut found = BTreeMap::new();
        let list = async {
            while let Some(item) = watch.next().await {
                let whole = match item {
                    WatchItem::Epoch(_) => {
                        found.clear();
                        false
                    }
                    WatchItem::Settled { .. } => true,
                    WatchItem::Entry { key, revision, value, settled, stored } => {
                        match value {
                            Some(value) => found.insert(key.clone(), Entry { key, value, revision, stored }),
                            None => found.remove(&key),
                        };
                        settled
                    }
                };
                if whole {
                    return Ok(());
                }
                if found.len() > ENTRIES_MAX {
                    return Err(BusError::TooLarge { bytes: found.len(), max: ENTRIES_MAX });
                }
            }
            Err(BusError::Closed)
        };
        self.bus.limited(self.store.label(), "", REQUEST_LIMIT, list).await?;
        Ok(found.into_values().collect())
    }

    /// Follows every key: what is there, then each change. A bus that is away is waited for.
    #[must_use]
    pub fn watch(&self) -> BucketWatch {
        self.watch_keys(">")
    }

    /// As [`Bucket::watch`], for keys that match `pattern` (`shard.*.0`).
    #[must_use]
    pub fn watch_keys(&self, pattern: &str) -> BucketWatch {
        let reads = ordered::read(&self.bus, self.store, self.subject(pattern), Plan::Latest { again: RELIST });
        BucketWatch {
            reads,
            prefix: self.prefix.clone(),
            seen: BTreeMap::new(),
            ready: VecDeque::with_capacity(2),
            newest: 0,
            whole: false,
            everything: pattern == ">",
        }
    }
}

fn is_marker(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|h| h.get(OPERATION).is_some_and(|o| matches!(o.as_str(), "DEL" | "PURGE")) || h.get(MARKER_REASON).is_some())
}

/// An endless watch of a bucket.
#[derive(Debug)]
pub struct BucketWatch {
    reads: mpsc::Receiver<Read>,
    prefix: String,
    seen: BTreeMap<String, u64>,
    ready: VecDeque<WatchItem>,
    newest: u64,
    whole: bool,
    /// No key is left out, so a batch's last message is among what is read.
    everything: bool,
}

impl BucketWatch {
    /// The next item. Cancel-safe. `None` only when this process has closed the bus. An entry that was told before is not told again.
    pub async fn next(&mut self) -> Option<WatchItem> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            match self.reads.recv().await? {
                Read::Began { epoch, anew, head, pending } => {
                    if anew {
                        self.seen.clear();
                        self.newest = 0;
                        self.ready.push_back(WatchItem::Epoch(epoch));
                    }
                    self.whole = pending == 0;
                    if pending == 0 {
                        self.newest = self.newest.max(head);
                        self.ready.push_back(WatchItem::Settled { revision: self.newest });
                    }
                }
                Read::Message(raw) => self.take(raw),
            }
        }
    }

    fn take(&mut self, raw: Raw) {
        let Some(key) = raw.subject.strip_prefix(&self.prefix).map(str::to_owned) else { return };
        let settled = raw.pending == 0 && !(self.everything && batch::is_open(raw.headers.as_ref()));
        self.newest = self.newest.max(raw.sequence);
        let known = self.seen.get(&key).is_some_and(|revision| *revision >= raw.sequence);
        if !known {
            let value = (!is_marker(raw.headers.as_ref())).then_some(raw.payload);
            self.seen.insert(key.clone(), raw.sequence);
            self.ready.push_back(WatchItem::Entry { key, revision: raw.sequence, value, settled, stored: raw.stored });
        }
        if settled && !self.whole {
            self.whole = true;
            self.ready.push_back(WatchItem::Settled { revision: self.newest });
        }
    }
}
