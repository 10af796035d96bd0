//! The leases of an agent's shards: which of them this replica holds, by its share of them, and who holds the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use razar_bus_schema::{
    shard::{LeaseKey, ShardCount, lease_keys, member_keys},
    stream::Store,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use crate::{
    Bus, BusError, LeaseState, WatchItem,
    connection::jittered,
    lease::{Lease, Signs},
    sharing::{View, wanted},
};

/// The contenders for all shards of one agent, in the background, until dropped or released.
#[derive(Debug)]
pub struct ShardLeases {
    leases: Arc<Vec<Lease>>,
    /// By which others see that this replica shares in them; none where there is one shard alone.
    member: Option<Lease>,
    changed: Arc<Notify>,
    view: watch::Receiver<View>,
    aside: watch::Sender<BTreeMap<u32, Instant>>,
    ttl: Duration,
    task: AbortHandle,
}

impl Bus {
    /// Contends for the shards of `agent` as `replica` (unique among processes), for its share of them. `ttl` in whole seconds, at least 2.
    ///
    /// # Errors
    /// When `ttl` is shorter than two seconds or not whole seconds.
    pub fn shard_leases(&self, agent: &str, replica: &str, count: ShardCount, ttl: Duration) -> Result<ShardLeases, BusError> {
        let changed = Arc::new(Notify::new());
        let free: BTreeMap<u32, Arc<Notify>> = count.all().map(|shard| (shard, Arc::default())).collect();
        let lease = |key: String, wanted: bool, signs: Signs| self.lease(key, replica.to_owned(), ttl, wanted, signs);
        let of_shard = |(shard, free): (&u32, &Arc<Notify>)| {
            lease(count.lease_key(agent, *shard), false, Signs { free: free.clone(), changed: changed.clone() })
        };
        let leases: Vec<Lease> = free.iter().map(of_shard).collect::<Result<_, _>>()?;
        // Nobody else contends for it.
        let signs = Signs { free: Arc::default(), changed: changed.clone() };
        let member = (count != ShardCount::ONE).then(|| lease(count.member_key(agent, replica), true, signs)).transpose()?;
        let leases = Arc::new(leases);
        let (view_tx, view) = watch::channel(View::default());
        let (aside, aside_rx) = watch::channel(BTreeMap::new());
        let sharer = Sharer {
            bus: self.clone(),
            agent: agent.to_owned(),
            replica: replica.to_owned(),
            count,
            ttl,
            leases: leases.clone(),
            view: view_tx,
            aside: aside_rx,
            changed: changed.clone(),
            free,
            shards: Seen::default(),
            members: Seen::default(),
        };
        let task = tokio::spawn(sharer.run()).abort_handle();
        Ok(ShardLeases { leases, member, changed, view, aside, ttl, task })
    }

    /// Another division than `count` of which a shard is held at this moment, by a read of the leader.
    ///
    /// # Errors
    /// When the bus is down or the bucket does not exist.
    pub async fn foreign_division(&self, agent: &str, count: ShardCount) -> Result<Option<ShardCount>, BusError> {
        let bucket = self.bucket(Store::Leases);
        let filter = serde_json::json!({ "subjects_filter": bucket.subject(&lease_keys(agent)) });
        let info: serde_json::Value = self.api(&format!("STREAM.INFO.{}", self.stream_of(Store::Leases)), &filter, agent).await?;
        let subjects = info.pointer("/state/subjects").and_then(serde_json::Value::as_object);
        for subject in subjects.into_iter().flat_map(serde_json::Map::keys) {
            let Some(key) = subject.strip_prefix(&bucket.subject("")) else { continue };
            let other = match LeaseKey::parse(key) {
                Some(LeaseKey::Shard { count: other, .. }) if other != count => other,
                _ => continue,
            };
            if bucket.get(key).await?.is_some() {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }
}

impl ShardLeases {
    /// Waits for a change: of a lease of this replica, or of who holds the others. Cancel-safe, for one waiter.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// State of the lease of a shard.
    #[must_use]
    pub fn state(&self, shard: u32) -> LeaseState {
        self.lease(shard).map_or(LeaseState::Waiting, |lease| *lease.state().borrow())
    }

    /// Whether a shard is held at this instant, by the monotonic clock: the last renewal was sent less than 0.6 of the TTL ago.
    #[must_use]
    pub fn holds(&self, shard: u32) -> bool {
        self.lease(shard).is_some_and(Lease::holds)
    }

    /// Who holds a shard, as far as is known here.
    #[must_use]
    pub fn holder(&self, shard: u32) -> Option<String> {
        self.view.borrow().holders.get(&shard).cloned()
    }

    /// Another division of which a shard is held, while this replica waits for that.
    #[must_use]
    pub fn foreign(&self) -> Option<ShardCount> {
        self.view.borrow().foreign
    }

    /// Gives shards back that must not be decided about, and lets some time go by before they are contended for again.
    pub fn stand_aside(&self, shards: &BTreeSet<u32>) {
        let until = Instant::now() + jittered(self.ttl);
        self.aside.send_modify(|aside| aside.extend(shards.iter().map(|shard| (*shard, until))));
    }

    /// Gives everything back, so that others take it at once; for at most `limit`.
    pub async fn release(mut self, limit: Duration) {
        self.task.abort();
        let member = self.member.take();
        let all = async {
            if let Some(member) = member {
                member.release(limit).await;
            }
            // The other end of this is the task, which is gone in a moment.
            let Some(leases) = sole(std::mem::take(&mut self.leases)).await else { return };
            futures::future::join_all(leases.into_iter().map(|lease| lease.release(limit))).await;
        };
        let _ = tokio::time::timeout(limit, all).await;
    }

    fn lease(&self, shard: u32) -> Option<&Lease> {
        self.leases.get(usize::try_from(shard).ok()?)
    }
}

impl Drop for ShardLeases {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn sole(mut leases: Arc<Vec<Lease>>) -> Option<Vec<Lease>> {
    loop {
        match Arc::try_unwrap(leases) {
            Ok(leases) => return Some(leases),
            Err(shared) => leases = shared,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// By key: its value, and when it was written last. What nobody renews is gone, whether or not that is told.
#[derive(Default)]
struct Seen(BTreeMap<String, (Bytes, Instant)>);

impl Seen {
    /// True: everything that was there is read.
    fn fold(&mut self, item: WatchItem) -> bool {
        match item {
            WatchItem::Epoch(_) => self.0.clear(),
            WatchItem::Entry { key, value: Some(value), settled, .. } => {
                self.0.insert(key, (value, Instant::now()));
                return settled;
            }
            WatchItem::Entry { key, value: None, settled, .. } => {
                self.0.remove(&key);
                return settled;
            }
            WatchItem::Settled { .. } => return true,
        }
        false
    }

    /// When the one was written whose last writing is longest ago.
    fn oldest(&self) -> Option<Instant> {
        self.0.values().map(|(_, at)| *at).min()
    }

    fn forget(&mut self, now: Instant, age: Duration) {
        self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < age);
    }
}

/// Waits until then; for ever, where time changes nothing.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Follows the leases and reckons which are wanted.
struct Sharer {
    bus: Bus,
    agent: String,
    replica: String,
    count: ShardCount,
    ttl: Duration,
    leases: Arc<Vec<Lease>>,
    view: watch::Sender<View>,
    aside: watch::Receiver<BTreeMap<u32, Instant>>,
    changed: Arc<Notify>,
    /// By shard: told when nobody seems to hold it.
    free: BTreeMap<u32, Arc<Notify>>,
    /// What the watches of shards and of members tell.
    shards: Seen,
    members: Seen,
}

impl Sharer {
    async fn run(mut self) {
        let bucket = self.bus.bucket(Store::Leases);
        let (mut shards, mut members) = (bucket.watch_keys(&lease_keys(&self.agent)), bucket.watch_keys(&member_keys(&self.agent)));
        // One shard is contended for by all; who shares in it does not matter.
        let mut whole = (false, self.count == ShardCount::ONE);
        // What was reckoned then holds until the next instant after it: both go by the same one.
        let mut now = Instant::now();
        loop {
            let next = self.next_deadline(now);
            tokio::select! {
                item = shards.next() => match item {
                    Some(item) => {
                        self.tell_free(&item);
                        whole.0 |= self.shards.fold(item);
                    }
                    None => return,
                },
                item = members.next(), if self.count != ShardCount::ONE => match item {
                    Some(item) => whole.1 |= self.members.fold(item),
                    None => return,
                },
                () = until(next) => {}
                asked = self.aside.changed() => if asked.is_err() { return },
            }
            now = Instant::now();
            let age = self.forgotten_after();
            self.shards.forget(now, age);
            self.members.forget(now, age);
            if whole == (true, true) {
                self.share(now);
            }
        }
    }

    /// When time alone changes what is wanted: somebody renews no longer, or has stood aside for long enough.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let aside = self.aside.borrow().values().copied().filter(|until| *until > now).min();
        let written = [&self.shards, &self.members].into_iter().filter_map(Seen::oldest).min();
        aside.into_iter().chain(written.map(|at| at + self.forgotten_after())).min()
    }

    fn forgotten_after(&self) -> Duration {
        self.ttl + self.ttl / 4
    }

    /// Wakes who contends for what is free now, as far as can be told.
    fn tell_free(&self, item: &WatchItem) {
        match item {
            WatchItem::Epoch(_) => self.free.values().for_each(|free| free.notify_one()),
            WatchItem::Entry { key, value: None, .. } => {
                if let Some(LeaseKey::Shard { shard, count, .. }) = LeaseKey::parse(key)
                    && count == self.count
                    && let Some(free) = self.free.get(&shard)
                {
                    free.notify_one();
                }
            }
            WatchItem::Entry { .. } | WatchItem::Settled { .. } => {}
        }
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for (key, (value, _)) in self.shards.0.iter().chain(&self.members.0) {
            match LeaseKey::parse(key) {
                Some(LeaseKey::Shard { shard, count, .. }) if count == self.count => {
                    view.holders.insert(shard, String::from_utf8_lossy(value).into_owned());
                }
                Some(LeaseKey::Shard { count, .. }) => view.foreign = Some(count),
                Some(LeaseKey::Member { count, replica, .. }) if count == self.count => drop(view.members.insert(replica)),
                Some(LeaseKey::Member { .. }) | None => {}
            }
        }
        view
    }

    fn share(&mut self, now: Instant) {
        let view = self.view();
        let aside: BTreeSet<u32> =
            self.aside.borrow_and_update().iter().filter(|(_, until)| **until > now).map(|(shard, _)| *shard).collect();
        let wanted = wanted(&view, &self.replica, self.count);
        for (shard, lease) in self.count.all().zip(self.leases.iter()) {
            lease.want(wanted.contains(&shard) && !aside.contains(&shard));
        }
        if self.view.send_if_modified(|before| std::mem::replace(before, view.clone()) != view) {
            self.changed.notify_one();
        }
    }
}
