//! Streams and buckets as the broker keeps them: settings, creation, update, and the epoch id that tells a recreated one apart.
//! Which stores there are, and their sizes, is said in `bus-schema`.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType};
use razar_bus_schema::{
    PAYLOAD_BYTES_MAX,
    stream::{DUPLICATE_WINDOW, EVENTS_AGE_MAX, Form, Store},
};

use crate::{Bus, BusError};

/// Key of the epoch id in a stream's metadata.
const EPOCH_KEY: &str = "razar_epoch";

/// Commands expire 60 s after storing; twice that leaves room for the last redelivery.
const COMMANDS_AGE_MAX: Duration = Duration::from_secs(120);
/// Log lines are there to be followed and tailed, not kept: the node has the files.
const LOGS_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long the marker of an expired lease stays, so that every contender sees it.
const LEASE_MARKER_AGE: Duration = Duration::from_secs(10);

/// Name of the stream behind a store.
pub(crate) fn stream_name(store: Store, mesh: &str) -> String {
    let name = store.name(mesh);
    match store.form() {
        Form::Stream => name,
        Form::Bucket => format!("KV_{name}"),
        Form::Objects => format!("OBJ_{name}"),
    }
}

/// Creates what is missing and updates what differs; does nothing else, so that it may run at any time and any number of times.
///
/// # Errors
/// When the bus is down, or the broker refuses a setting.
pub async fn provision(bus: &Bus) -> Result<(), BusError> {
    futures::future::try_join_all(Store::ALL.map(|store| provision_one(bus, store))).await.map(|_| ())
}

async fn provision_one(bus: &Bus, store: Store) -> Result<(), BusError> {
    let wanted = settings(store, bus);
    let present = match info(bus, store).await {
        Ok(info) => info,
        Err(BusError::Missing { .. }) => {
            let mut fresh = wanted.clone();
            fresh.metadata.insert(EPOCH_KEY.to_owned(), new_epoch(bus));
            match bus.api::<Info>(&format!("STREAM.CREATE.{}", fresh.name), &fresh, &fresh.name).await {
                Ok(_) => return Ok(()),
                // Another provisioner was faster.
                Err(BusError::Broker { code: 10_058, .. }) => info(bus, store).await?,
                Err(e) => return Err(e),
            }
        }
        Err(e) => return Err(e),
    };
    let mut next = wanted;
    next.metadata.insert(EPOCH_KEY.to_owned(), epoch_of(&present).unwrap_or_else(|| new_epoch(bus)));
    // These cannot be changed in place; a different value is left as it is.
    next.storage = present.config.storage;
    next.persist_mode = present.config.persist_mode;
    if same(&next, &present.config) {
        return Ok(());
    }
    bus.api::<Info>(&format!("STREAM.UPDATE.{}", next.name), &next, &next.name).await.map(|_| ())
}

/// Whether an update would change nothing that is set here (the broker adds metadata and defaults of its own).
fn same(next: &Config, present: &Config) -> bool {
    next.metadata.iter().all(|(k, v)| present.metadata.get(k) == Some(v))
        && next.subjects == present.subjects
        && next.max_bytes == present.max_bytes
        && next.max_age == present.max_age
        && next.max_message_size == present.max_message_size
        && next.max_messages_per_subject == present.max_messages_per_subject
        && next.duplicate_window == present.duplicate_window
        && next.discard == present.discard
        && next.no_ack == present.no_ack
        && (next.deny_delete, next.deny_purge) == (present.deny_delete, present.deny_purge)
        && (next.allow_direct, next.allow_rollup) == (present.allow_direct, present.allow_rollup)
        && next.allow_message_ttl == present.allow_message_ttl
        && next.allow_atomic_publish == present.allow_atomic_publish
        && next.subject_delete_marker_ttl == present.subject_delete_marker_ttl
}

fn settings(store: Store, bus: &Bus) -> Config {
    let name = store.name(bus.mesh());
    let base = Config {
        name: stream_name(store, bus.mesh()),
        max_bytes: store.bytes_max(),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: i32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(i32::MAX),
        max_consumers: -1,
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        num_replicas: 1,
        duplicate_window: DUPLICATE_WINDOW,
        persist_mode: store.persists_later().then_some(PersistenceMode::Async),
        description: Some(format!("razar: {}", store.label())),
        metadata: HashMap::new(),
        ..Config::default()
    };
    let bucket = || Config {
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        // A full bucket refuses, it never forgets.
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        // Reads go to the leader: a stale replica must not be decided on.
        allow_direct: false,
        ..base.clone()
    };
    match store {
        Store::Events => Config {
            subjects: vec![bus.subjects().events()],
            max_age: EVENTS_AGE_MAX,
            deny_delete: true,
            deny_purge: true,
            allow_atomic_publish: true,
            ..base
        },
        // No acknowledgement: the only answer to a request is the receipt.
        Store::Commands => Config { subjects: vec![bus.subjects().commands()], max_age: COMMANDS_AGE_MAX, no_ack: true, ..base },
        Store::Logs => Config { subjects: vec![bus.subjects().logs()], max_age: LOGS_AGE_MAX, ..base },
        Store::Intents | Store::Missions => Config { allow_atomic_publish: true, ..bucket() },
        Store::Observed => bucket(),
        Store::Leases => Config { allow_message_ttl: true, subject_delete_marker_ttl: Some(LEASE_MARKER_AGE), ..bucket() },
        Store::Stacks => Config {
            subjects: vec![format!("$O.{name}.C.>"), format!("$O.{name}.M.>")],
            discard: DiscardPolicy::New,
            allow_rollup: true,
            allow_direct: true,
            ..base
        },
    }
}

/// The client's inbox names are random: no second source of randomness is needed.
fn new_epoch(bus: &Bus) -> String {
    unique(bus)
}

/// A short id that no other client makes.
pub(crate) fn unique(bus: &Bus) -> String {
    let inbox = bus.inner.client.new_inbox();
    inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
}

pub(crate) async fn info(bus: &Bus, store: Store) -> Result<Info, BusError> {
    let name = bus.stream_of(store);
    bus.api(&format!("STREAM.INFO.{name}"), &serde_json::Map::new(), &name).await
}

pub(crate) fn epoch_of(info: &Info) -> Option<String> {
    info.config.metadata.get(EPOCH_KEY).cloned()
}

/// Epoch of a stream that somebody made by hand, without the id: the moment of its creation.
pub(crate) fn epoch_or_created(info: &Info) -> String {
    epoch_of(info).unwrap_or_else(|| format!("created-{}", info.created.unix_timestamp_nanos()))
}

/// A page of the broker's list of streams.
#[derive(Debug, serde::Deserialize)]
struct Page {
    total: usize,
    // The broker leaves out what it lacks, or says null.
    #[serde(default, deserialize_with = "none_is_empty")]
    streams: Vec<Info>,
}

fn none_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Info>, D::Error> {
    <Option<Vec<Info>> as serde::Deserialize>::deserialize(from).map(Option::unwrap_or_default)
}

impl Bus {
    /// Every store with its epoch id; `None`: it does not exist.
    ///
    /// # Errors
    /// When the bus is down, or the broker does not answer for one of them.
    pub async fn stores(&self) -> Result<Vec<(Store, Option<String>)>, BusError> {
        // One question for all of them, where the broker has little else.
        let page: Page = self.api("STREAM.LIST", &serde_json::json!({}), "the list of streams").await?;
        if page.streams.len() >= page.total {
            let told = |store| {
                let name = stream_name(store, self.mesh());
                (store, page.streams.iter().find(|info| info.config.name == name).map(epoch_or_created))
            };
            return Ok(Store::ALL.map(told).to_vec());
        }
        let look = |store| async move { Ok((store, self.find(store).await?)) };
        futures::future::try_join_all(Store::ALL.map(look)).await
    }

    /// Epoch id of a store; `None`: it does not exist.
    ///
    /// # Errors
    /// When the bus is down, or the broker does not answer.
    pub async fn find(&self, store: Store) -> Result<Option<String>, BusError> {
        match self.epoch(store).await {
            Ok(epoch) => Ok(Some(epoch)),
            Err(BusError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Epoch id of a store: another one means that it was recreated, and that what was derived from it is void.
    ///
    /// # Errors
    /// When the bus is down or the store does not exist.
    pub async fn epoch(&self, store: Store) -> Result<String, BusError> {
        info(self, store).await.map(|info| epoch_or_created(&info))
    }

    /// Sequence of the newest write to a store, told by its leader; 0: none yet. Who has applied that much is at the head.
    ///
    /// # Errors
    /// When the bus is down or the store does not exist.
    pub async fn head(&self, store: Store) -> Result<u64, BusError> {
        info(self, store).await.map(|info| info.state.last_sequence)
    }
}
