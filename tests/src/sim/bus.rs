//! The simulated broker: streams with ids and a dedupe window, buckets with compare-and-swap and ordered watches, a lease, a queue of
//! commands. What is stored is stored at once; what is slow, lost or said twice is the lines between, in [`Link`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::v1;
use razar_orchestrator::policy::MissionsValue;

use super::replica::mind::Trade;

/// Ids that come again within this time are not stored again.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(120);
/// A command that is not acknowledged by then is delivered again.
pub const ACK_WAIT: Duration = Duration::from_secs(10);
/// Deliveries of a command.
pub const DELIVERIES_MAX: u32 = 5;

/// Who is connected to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// The agent of a node.
    Host(usize),
    /// A replica of an agent that decides.
    Replica(usize),
    /// A replica of the registry.
    Registry(usize),
}

/// The line of a client.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Cut off from the broker.
    pub cut: bool,
    /// Connected at this moment.
    pub connected: bool,
    /// Number of the connection: what was sent in an earlier one is not delivered.
    pub connection: u64,
    /// A delivery is on its way.
    pub feeding: bool,
}

/// A stored event.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Sequence in the stream.
    pub sequence: u64,
    /// The event.
    pub event: Arc<v1::Event>,
    /// When it was stored.
    pub at: Duration,
    /// The same by the broker's wall clock.
    pub wall: SystemTime,
}

/// The stream EVENTS.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// Epoch of the stream.
    pub epoch: u64,
    /// Everything stored.
    pub stored: Vec<Stored>,
    /// Ids stored in this epoch.
    pub ids: BTreeSet<String>,
    recent: VecDeque<(Duration, String)>,
    recent_ids: BTreeSet<String>,
}

impl Events {
    /// Stores an event unless its id was stored within the window; whether it was stored now.
    pub fn append(&mut self, event: Arc<v1::Event>, now: Duration, wall: SystemTime) -> bool {
        while self.recent.front().is_some_and(|(at, _)| *at + DEDUPE_WINDOW < now) {
            if let Some((_, id)) = self.recent.pop_front() {
                self.recent_ids.remove(&id);
            }
        }
        if !self.recent_ids.insert(event.id.clone()) {
            return false;
        }
        self.recent.push_back((now, event.id.clone()));
        self.ids.insert(event.id.clone());
        self.stored.push(Stored { sequence: self.stored.len() as u64 + 1, event, at: now, wall });
        true
    }

    /// Last sequence.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.stored.len() as u64
    }

    /// The stream is lost and made anew.
    pub fn recreate(&mut self) {
        *self = Self { epoch: self.epoch + 1, ..Self::default() };
    }
}

/// What a watch of a bucket tells.
#[derive(Debug, Clone)]
pub enum Item<V> {
    /// Epoch of the bucket.
    Epoch(String),
    /// A key has a value.
    Entry(String, u64, V),
    /// Everything up to here was told.
    Settled,
}

/// A bucket with a history of one.
#[derive(Debug, Clone)]
pub struct Bucket<V> {
    /// Name, for its epoch.
    name: &'static str,
    epoch_number: u64,
    /// Newest revision.
    pub revision: u64,
    /// What it holds.
    pub entries: BTreeMap<String, (u64, V)>,
    /// Items on their way to each watcher.
    pub watches: BTreeMap<Client, VecDeque<Item<V>>>,
}

impl<V: Clone> Bucket<V> {
    fn new(name: &'static str) -> Self {
        Self { name, epoch_number: 1, revision: 0, entries: BTreeMap::new(), watches: BTreeMap::new() }
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> String {
        format!("{}-{}", self.name, self.epoch_number)
    }

    /// Writes all or nothing, each over the revision given (`None`: whatever is there).
    ///
    /// # Errors
    /// Somebody wrote before.
    pub fn put(&mut self, writes: Vec<(String, V, Option<u64>)>) -> Result<Vec<u64>, ()> {
        let stands = |key: &String| self.entries.get(key).map_or(0, |(r, _)| *r);
        if writes.iter().any(|(key, _, expected)| expected.is_some_and(|e| e != stands(key))) {
            return Err(());
        }
        let mut revisions = Vec::new();
        for (key, value, _) in writes {
            self.revision += 1;
            revisions.push(self.revision);
            for watch in self.watches.values_mut() {
                watch.push_back(Item::Entry(key.clone(), self.revision, value.clone()));
            }
            self.entries.insert(key, (self.revision, value));
        }
        Ok(revisions)
    }

    /// A watch begins, or begins again: everything is listed.
    pub fn watch(&mut self, client: Client) {
        let mut items = VecDeque::from([Item::Epoch(self.epoch())]);
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by_key(|(_, (revision, _))| *revision);
        items.extend(all.into_iter().map(|(key, (revision, value))| Item::Entry(key.clone(), *revision, value.clone())));
        items.push_back(Item::Settled);
        self.watches.insert(client, items);
    }

    /// The next item for a watcher, and whether nothing is pending behind it. What was overwritten on its way may be left out.
    pub fn next(&mut self, client: Client, skip_overwritten: bool) -> Option<(Item<V>, bool)> {
        let watch = self.watches.get_mut(&client)?;
        loop {
            let item = watch.pop_front()?;
            let settled = watch.is_empty();
            if let Item::Entry(key, revision, _) = &item
                && skip_overwritten
                && !settled
                && self.entries.get(key).is_some_and(|(newest, _)| newest > revision)
            {
                continue;
            }
            return Some((item, settled));
        }
    }

    /// The bucket is lost and made anew, empty. Watchers are told of it.
    pub fn recreate(&mut self) {
        self.epoch_number += 1;
        self.revision = 0;
        self.entries.clear();
        let clients: Vec<Client> = self.watches.keys().copied().collect();
        clients.into_iter().for_each(|client| self.watch(client));
    }
}

/// A command in its queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// Whom it is for.
    pub agent: Trade,
    /// Id.
    pub id: String,
    /// Verb.
    pub verb: String,
    /// Target.
    pub target: String,
    /// The command.
    pub command: v1::Command,
    /// When it was stored.
    pub stored_at: Duration,
    /// The same by the broker's wall clock.
    pub stored_wall: SystemTime,
    /// Deliveries so far.
    pub deliveries: u32,
    /// The token of the newest delivery.
    pub token: u64,
    /// Not delivered again before.
    pub next_at: Duration,
    /// Acknowledged.
    pub acked: bool,
}

/// The lease of an agent's only shard.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Its holder.
    pub holder: usize,
    /// Life of the holder that took it.
    pub life: u64,
    /// When it ends unless renewed.
    pub until: Duration,
}

/// The broker.
#[derive(Debug, Clone)]
pub struct Broker {
    /// It answers.
    pub up: bool,
    /// EVENTS.
    pub events: Events,
    /// Ids that were stored in any epoch of EVENTS.
    pub ever_stored: BTreeSet<String>,
    /// The bucket of intents.
    pub intents: Bucket<Option<Arc<v1::Intent>>>,
    /// The bucket of missions.
    pub missions: Bucket<MissionsValue>,
    /// Commands.
    pub commands: Vec<Queued>,
    /// Somebody looks after them from time to time.
    pub commands_watched: bool,
    /// The lease of each agent's shard.
    pub leases: BTreeMap<Trade, Lease>,
    /// Lines.
    pub links: BTreeMap<Client, Link>,
    /// How far its wall clock is off, in seconds.
    pub wall_skew: i64,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            up: true,
            events: Events::default(),
            ever_stored: BTreeSet::new(),
            intents: Bucket::new("intents"),
            missions: Bucket::new("missions"),
            commands: Vec::new(),
            commands_watched: false,
            leases: BTreeMap::new(),
            links: BTreeMap::new(),
            wall_skew: 0,
        }
    }
}

impl Broker {
    /// Whether a client's messages arrive at this moment.
    #[must_use]
    pub fn reaches(&self, client: Client) -> bool {
        self.up && self.links.get(&client).is_some_and(|l| l.connected && !l.cut)
    }

    /// The line of a client breaks: what was on its way to it is lost.
    pub fn drop_line(&mut self, client: Client) {
        let link = self.links.entry(client).or_default();
        (link.connected, link.feeding) = (false, false);
        link.connection += 1;
        self.intents.watches.remove(&client);
        self.missions.watches.remove(&client);
    }

    /// The line of a client stands again, and its watches list everything.
    pub fn connect(&mut self, client: Client) {
        let link = self.links.entry(client).or_default();
        (link.connected, link.feeding) = (true, false);
        link.connection += 1;
        match client {
            Client::Host(_) => self.intents.watch(client),
            Client::Replica(_) => self.intents.watch(client),
            Client::Registry(_) => {}
        }
    }
}
