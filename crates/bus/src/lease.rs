//! A lease: one key of the bucket `leases` that expires by itself. It is kept by renewals and given up by the holder's own clock well
//! before the broker lets it go, so that two holders never overlap as far as clocks can tell; the rest is fenced by `flows.md`'s rules.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use async_nats::HeaderMap;
use bytes::Bytes;
use razar_bus_schema::{stream::Store, time::until_shared};
use tokio::sync::{Notify, oneshot, watch};

use crate::{Bucket, Bus, BusError, batch::EXPECTED_REVISION};

/// The broker refuses shorter ones, and ends 1.5 s after 1.0–1.25.
const TTL_MIN: Duration = Duration::from_secs(2);
/// How long the mark of a lease that was given back stays.
const PURGE_MARKER_SECONDS: &str = "10";
/// Pause after a failed try that was no lost race.
const RETRY: Duration = Duration::from_millis(50);

/// Whether this process holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Another holds it, or nobody can while the bus is away.
    Waiting,
    /// This process holds it. Before acting ask [`crate::ShardLeases::holds`] besides, which also knows a process that was frozen meanwhile.
    Held {
        /// When this tenure began.
        since: Instant,
        /// Revision at which it began: higher for each later tenure in the same bucket epoch.
        fence: u64,
    },
}

/// A contender for a lease, in the background, until dropped or released.
#[derive(Debug)]
pub(crate) struct Lease {
    state: watch::Receiver<LeaseState>,
    until: Arc<Mutex<Option<Instant>>>,
    wanted: watch::Sender<bool>,
    stop: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

/// What a contender shares with whoever follows the bucket for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signs {
    /// Told when the lease seems to be free. A sign may be missing: its TTL is waited for besides.
    pub(crate) free: Arc<Notify>,
    /// Told of each change of state.
    pub(crate) changed: Arc<Notify>,
}

impl Bus {
    /// Contends for the lease `key` as `holder` (unique among processes) while it is wanted. `ttl` in whole seconds, at least 2; renewed at a
    /// third of it.
    pub(crate) fn lease(&self, key: String, holder: String, ttl: Duration, wanted: bool, signs: Signs) -> Result<Lease, BusError> {
        if ttl < TTL_MIN || ttl.subsec_nanos() != 0 {
            return Err(BusError::Config(format!("a lease of {ttl:?}: whole seconds, at least 2")));
        }
        let (state_tx, state) = watch::channel(LeaseState::Waiting);
        let (stop, stopped) = oneshot::channel();
        let until = Arc::new(Mutex::new(None));
        let bucket = self.bucket(Store::Leases);
        let (wanted, wanted_rx) = watch::channel(wanted);
        let contender = Contender { bus: self.clone(), bucket, key, holder, ttl, state: state_tx, until: until.clone(), signs };
        tokio::spawn(contender.run(wanted_rx, stopped));
        Ok(Lease { state, until, wanted, stop: Some(stop) })
    }
}

impl Lease {
    /// The state and its changes.
    pub(crate) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Whether it is held at this instant, by the monotonic clock: the last renewal was sent less than 0.6 of the TTL ago.
    pub(crate) fn holds(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Whether to contend for it, or to keep it; one that is not wanted is given back.
    pub(crate) fn want(&self, wanted: bool) {
        self.wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// Gives it back, so that another takes it at once; for at most `limit`.
    pub(crate) async fn release(mut self, limit: Duration) {
        let (done, released) = oneshot::channel();
        if self.stop.take().is_some_and(|stop| stop.send(done).is_ok()) {
            let _ = tokio::time::timeout(limit, released).await;
        }
    }
}

struct Contender {
    bus: Bus,
    bucket: Bucket,
    key: String,
    holder: String,
    ttl: Duration,
    state: watch::Sender<LeaseState>,
    until: Arc<Mutex<Option<Instant>>>,
    signs: Signs,
}

/// Waits until it is wanted no longer. A handle that is dropped is seen by `stopped`.
async fn unwanted(wanted: &mut watch::Receiver<bool>) {
    if wanted.wait_for(|wanted| !*wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The newest renewal.
#[derive(Clone, Copy)]
struct Tenure {
    revision: u64,
    sent: Instant,
    /// When it is to be renewed: at an instant that all leases share, so that one wake serves several.
    due: Instant,
}

impl Contender {
    async fn run(self, mut wanted: watch::Receiver<bool>, mut stopped: oneshot::Receiver<oneshot::Sender<()>>) {
        loop {
            let want = async { wanted.wait_for(|wanted| *wanted).await.is_ok() };
            tokio::select! {
                wants = want => if !wants { return },
                _ = &mut stopped => return,
            }
            let taken = tokio::select! {
                tenure = self.take() => Ok(tenure),
                _ = unwanted(&mut wanted) => Err(None),
                done = &mut stopped => Err(Some(done)),
            };
            let tenure = match taken {
                Ok(Some(tenure)) => tenure,
                Err(None) => {
                    self.drop_what_was_taken().await;
                    continue;
                }
                // Closed, or dropped without being held.
                Ok(None) | Err(Some(_)) => return,
            };
            self.set(LeaseState::Held { since: Instant::now(), fence: tenure.revision }, Some(tenure));
            let mut tenure = tenure;
            let (ended, given) = tokio::select! {
                () = self.keep(&mut tenure) => (None, false),
                () = unwanted(&mut wanted) => (None, true),
                done = &mut stopped => (Some(done), true),
            };
            self.set(LeaseState::Waiting, None);
            if given {
                self.give_back(tenure.revision).await;
            }
            if let Some(done) = ended {
                if let Ok(done) = done {
                    let _ = done.send(());
                }
                return;
            }
        }
    }

    /// A try that was broken off may have taken it all the same.
    async fn drop_what_was_taken(&self) {
        if let Ok(Some((revision, Some(holder), _))) = self.bucket.newest(&self.key).await
            && holder == self.holder.as_bytes()
        {
            self.give_back(revision).await;
        }
    }

    fn set(&self, state: LeaseState, tenure: Option<Tenure>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = tenure.map(|t| self.ends(t));
        if self.state.send_if_modified(|s| std::mem::replace(s, state) != state) {
            self.signs.changed.notify_one();
        }
    }

    /// End of a tenure by our own clock: 0.6 of the TTL after the renewal was sent.
    fn ends(&self, tenure: Tenure) -> Instant {
        tenure.sent + self.ttl.mul_f64(0.6)
    }

    /// Contends until the lease is taken; `None`: the bus is closed.
    async fn take(&self) -> Option<Tenure> {
        loop {
            if !self.bus.until_up().await {
                return None;
            }
            match self.try_take().await {
                Ok(Some(tenure)) => return Some(tenure),
                Ok(None) => self.until_free().await,
                Err(BusError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::debug!(key = self.key, %error, "cannot contend for the lease yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits for a sign that the lease is free, or for its TTL: a sign may be missed.
    async fn until_free(&self) {
        let _ = tokio::time::timeout(self.ttl, self.signs.free.notified()).await;
    }

    /// `None`: another holds it.
    async fn try_take(&self) -> Result<Option<Tenure>, BusError> {
        let expected = match self.bucket.newest(&self.key).await? {
            None => 0,
            Some((revision, None, _)) => revision,
            // Ours from before: a lost reply, or a tenure that we gave up by the clock.
            Some((revision, Some(holder), _)) if holder == self.holder.as_bytes() => revision,
            Some(_) => return Ok(None),
        };
        self.renew(expected).await.map(Some)
    }

    async fn renew(&self, expected: u64) -> Result<Tenure, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_REVISION, expected.to_string());
        headers.insert("Nats-TTL", self.ttl.as_secs().to_string());
        let (wall, sent) = (SystemTime::now(), Instant::now());
        let revision = self.bucket.write(&self.key, headers, Bytes::from(self.holder.clone())).await?;
        Ok(Tenure { revision, sent, due: sent + until_shared(self.ttl / 3, wall) })
    }

    /// Renews until the lease is lost or our own clock ends it.
    async fn keep(&self, tenure: &mut Tenure) {
        let mut connection = self.bus.connection();
        connection.borrow_and_update();
        loop {
            let ends = tokio::time::Instant::from_std(self.ends(*tenure));
            let due = tokio::time::Instant::from_std(tenure.due);
            tokio::select! {
                () = tokio::time::sleep_until(due.min(ends)) => {}
                // A connection made again: renew at once.
                changed = connection.wait_for(crate::Connection::is_up), if !self.bus.is_up() => if changed.is_err() { return },
            }
            if tokio::time::Instant::now() >= ends {
                return;
            }
            match tokio::time::timeout_at(ends, self.renew_or_adopt(tenure.revision)).await {
                Ok(Ok(Some(renewed))) => {
                    *tenure = renewed;
                    *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.ends(renewed));
                }
                Ok(Ok(None)) | Err(_) => return,
                Ok(Err(_)) => {
                    let up = async {
                        tokio::time::sleep(RETRY).await;
                        self.bus.until_up().await
                    };
                    if !tokio::time::timeout_at(ends, up).await.unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }

    /// `None`: another holds it. A conflict with ourselves is a renewal whose reply was lost.
    async fn renew_or_adopt(&self, revision: u64) -> Result<Option<Tenure>, BusError> {
        match self.renew(revision).await {
            Ok(tenure) => Ok(Some(tenure)),
            Err(BusError::Conflict { .. }) => match self.bucket.newest(&self.key).await? {
                Some((newer, Some(holder), _)) if holder == self.holder.as_bytes() => self.renew(newer).await.map(Some),
                _ => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    async fn give_back(&self, revision: u64) {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-TTL", PURGE_MARKER_SECONDS);
        headers.insert(EXPECTED_REVISION, revision.to_string());
        if let Err(error) = self.bucket.write(&self.key, headers, Bytes::new()).await {
            tracing::debug!(key = self.key, %error, "the lease could not be given back; it runs out");
        }
    }
}
