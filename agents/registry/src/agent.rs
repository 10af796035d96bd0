//! The wiring: events into the projection, the projection into answers and, under the lease, into the bucket. The only `select!`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use razar_agent_kit::{Agent, Authority, HeadsWanted, Metrics, event::dead_letter, health::STARTING, tick::TICK_INTERVAL};
use razar_bus::{BucketWatch, BusError, Connection, EventFold, FoldItem, Lease, LeaseState, Query, QueryServer, Start, WatchItem};
use razar_bus_schema::{
    bucket::lease_key,
    stream::Store,
    v1::{self, event::Fact},
};
use tokio::sync::{mpsc, watch};

use crate::{
    AGENT,
    config::Settings,
    policy::{Write, Writer},
    projection::{AGENT_EVENT_WINDOW, Projection},
    snapshot,
};

/// Results of tasks that wait to be folded: every write under way, the heads, a snapshot.
const DONE_MAX: usize = 128;
/// Inputs folded in a row before the next decision: a burst is decided on once.
const INPUTS_IN_A_ROW: usize = 1024;
/// Pause after a failed read of the heads or write of a snapshot.
const PAUSE: Duration = Duration::from_millis(200);
/// The lease is given back within this time at the end.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// Pause before the snapshot is asked for again: a start that waits for the broker goes on as soon as it is there.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(20);
/// How long a start waits for the snapshot before it folds from the beginning.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);
/// Dead letters that are to be told; more are only counted.
const DEAD_LETTERS_MAX: usize = 64;

/// One thing that happened.
enum Input {
    Stop,
    Event(FoldItem),
    Bucket(WatchItem),
    Query(Box<Query>),
    Lease,
    Connection,
    Done(Done),
    Timer,
    /// The bus was closed by this process.
    Closed,
}

/// What came of a task.
enum Done {
    Wrote(Write, Option<u64>),
    Heads(HeadsWanted, Result<[u64; 2], BusError>),
    Snapshot(Option<u64>),
    Told(String, bool),
}

/// Everything that the loop listens to.
struct Sources {
    events: EventFold,
    bucket: BucketWatch,
    queries: QueryServer,
    lease: watch::Receiver<LeaseState>,
    connection: watch::Receiver<Connection>,
    done: mpsc::Receiver<Done>,
    shutdown: razar_agent_kit::Shutdown,
}

impl Sources {
    /// The next input. Cancel-safe. Questions before events, so that a replica that catches up answers.
    async fn next(&mut self, timer: Duration) -> Input {
        tokio::select! {
            biased;
            () = self.shutdown.asked() => Input::Stop,
            changed = self.connection.changed() => if changed.is_ok() { Input::Connection } else { Input::Closed },
            changed = self.lease.changed() => if changed.is_ok() { Input::Lease } else { Input::Closed },
            done = self.done.recv() => done.map_or(Input::Closed, Input::Done),
            query = self.queries.next() => query.map_or(Input::Closed, |q| Input::Query(Box::new(q))),
            item = self.bucket.next() => item.map_or(Input::Closed, Input::Bucket),
            item = self.events.next() => item.map_or(Input::Closed, Input::Event),
            () = tokio::time::sleep(timer) => Input::Timer,
        }
    }
}

struct Numbers {
    folded: Counter,
    dead_letters: Counter,
    lag: Gauge,
    leads: Gauge,
    writes: Counter,
    backlog: Gauge,
}

impl Numbers {
    fn new(metrics: &Metrics) -> Self {
        Self {
            folded: metrics.counter("events_folded", "Events folded"),
            dead_letters: metrics.counter("dead_letters", "Messages that could not be used and were put aside"),
            lag: metrics.gauge("events_behind", "Events in the stream that are not folded yet"),
            leads: metrics.gauge("leads", "Whether this replica may decide"),
            writes: metrics.counter("decisions", "Keys of the projection written"),
            backlog: metrics.gauge("projection_backlog_keys", "Keys of the projection to be compared or written"),
        }
    }
}

/// The registry around its projection.
struct Registry {
    agent: Agent<Settings>,
    projection: Projection,
    /// The snapshot that the fold began at; what is up to it is remembered, not folded.
    primed_to: u64,
    writer: Writer,
    authority: Authority,
    lease: Lease,
    numbers: Numbers,
    done: mpsc::Sender<Done>,
    began: Instant,
    lag: u64,
    /// A fold has begun before.
    folds: bool,
    led: bool,
    bucket_applied: u64,
    bucket_head: Option<u64>,
    heads_asked: Option<(HeadsWanted, Instant)>,
    snapshot_at: u64,
    snapshot_under_way: bool,
    untold: BTreeMap<String, v1::Event>,
    telling: Option<String>,
}

/// Runs the registry until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let bus = agent.bus.clone();
    agent.health.hold("events", "events are not folded to the head yet");
    agent.health.release(STARTING);
    let _beating = agent.beat();
    agent.announce();
    let (done, results) = mpsc::channel(DONE_MAX);
    let lease = bus.lease(lease_key(AGENT, 0), agent.config.replica.clone(), agent.settings.lease_ttl())?;
    let endpoints = ["status", "discover"].map(|verb| (verb, bus.subjects().query(AGENT, verb)));
    let queries = bus.serve(AGENT, agent.version, "folds what happens into what there is", &endpoints).await?;
    let snapshot = begin(&agent).await;
    let start = match &snapshot {
        Some(s) => Start::After { epoch: s.stream_epoch.clone(), sequence: s.applied_sequence.saturating_sub(AGENT_EVENT_WINDOW) },
        None => Start::Beginning,
    };
    let mut sources = Sources {
        events: bus.fold_events(start),
        bucket: bus.bucket(Store::Observed).watch(),
        queries,
        lease: lease.state(),
        connection: bus.connection(),
        done: results,
        shutdown: agent.shutdown.clone(),
    };
    let begun = snapshot.is_some();
    let projection = snapshot.map(Projection::from_snapshot).unwrap_or_default();
    let mut registry = Registry {
        primed_to: projection.applied_sequence(),
        snapshot_at: projection.applied_sequence(),
        projection,
        writer: Writer::default(),
        authority: Authority::new(),
        lease,
        numbers: Numbers::new(&agent.metrics),
        done,
        began: Instant::now(),
        lag: 0,
        folds: begun,
        led: false,
        bucket_applied: 0,
        bucket_head: None,
        heads_asked: None,
        snapshot_under_way: false,
        untold: BTreeMap::new(),
        telling: None,
        agent,
    };
    registry.connection_changed(&mut sources);
    registry.lease_changed(&mut sources);
    while registry.turn(&mut sources).await {}
    registry.lease.release(RELEASE_LIMIT).await;
    Ok(())
}

/// The snapshot to begin at, if it comes soon. Ticks meanwhile: waiting for the broker is not being dead.
async fn begin(agent: &Agent<Settings>) -> Option<v1::Observed> {
    let began = Instant::now();
    let mut shutdown = agent.shutdown.clone();
    while began.elapsed() < SNAPSHOT_LIMIT && !shutdown.is_asked() {
        agent.ticker.tick();
        let read = tokio::time::timeout(TICK_INTERVAL, snapshot::newest(&agent.bus)).await;
        match read {
            Ok(Ok(snapshot)) => return snapshot,
            Ok(Err(error)) => tracing::debug!(%error, "the snapshot cannot be read yet"),
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(SNAPSHOT_PAUSE) => {}
            () = shutdown.asked() => {}
        }
    }
    None
}

impl Registry {
    /// Waits for an input, folds it and what else is there, then decides once. False: the end.
    async fn turn(&mut self, sources: &mut Sources) -> bool {
        let now = self.began.elapsed();
        let deadline = self.writer.next_deadline(now).filter(|_| self.leads());
        let timer = deadline.map_or(TICK_INTERVAL, |at| at.saturating_sub(now).min(TICK_INTERVAL));
        let mut input = Some(sources.next(timer).await);
        let mut folded = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop | Input::Closed) {
                return false;
            }
            self.handle(next, sources).await;
            folded += 1;
            input = if folded < INPUTS_IN_A_ROW { sources.next(TICK_INTERVAL).now_or_never() } else { None };
        }
        self.agent.ticker.tick();
        self.ask_heads();
        self.decide();
        true
    }

    /// Whether the bucket may be written: under the lease, with everything read up to where it was when the lease was taken.
    fn leads(&self) -> bool {
        self.authority.may_decide() && self.bucket_head.is_some_and(|head| self.bucket_applied >= head) && self.lease.holds()
    }

    fn decide(&mut self) {
        self.writer.changed(self.projection.take_dirty());
        let leads = self.leads();
        if leads && !self.led {
            self.writer.suspect_all(&self.projection);
        }
        self.led = leads;
        self.numbers.leads.set(i64::from(leads));
        if !leads {
            return;
        }
        for write in self.writer.decide(&self.projection, self.began.elapsed()) {
            self.numbers.writes.inc();
            self.write(write);
        }
        self.numbers.backlog.set(i64::try_from(self.writer.backlog()).unwrap_or(i64::MAX));
        self.take_snapshot();
        self.tell_dead_letters();
    }

    fn write(&self, write: Write) {
        let bucket = self.agent.bus.bucket(Store::Observed);
        self.spawn(async move {
            let written = match write.value.clone() {
                Some(value) => bucket.put_cas(&write.key, value.into(), write.expected).await,
                None => bucket.delete(&write.key, write.expected).await,
            };
            if let Err(error) = &written {
                tracing::debug!(%error, key = write.key, "a key of the projection was not written");
                // What conflicts comes with the watch; nothing is hammered meanwhile.
                tokio::time::sleep(PAUSE).await;
            }
            Done::Wrote(write, written.ok())
        });
    }

    fn take_snapshot(&mut self) {
        let due = self.projection.applied_sequence() >= self.snapshot_at + self.agent.settings.snapshot_events.max(1);
        if !due || self.snapshot_under_way {
            return;
        }
        self.snapshot_under_way = true;
        let (bus, observed) = (self.agent.bus.clone(), self.projection.observed());
        self.spawn(async move {
            let stored = snapshot::store(&bus, &observed).await;
            if let Err(error) = &stored {
                tracing::warn!(%error, "the snapshot was not stored");
                tokio::time::sleep(PAUSE).await;
            }
            Done::Snapshot(stored.is_ok().then_some(observed.applied_sequence))
        });
    }

    /// One at a time: they are rare, and the next is told when this one came back.
    fn tell_dead_letters(&mut self) {
        if self.telling.is_some() {
            return;
        }
        let Some((id, event)) = self.untold.first_key_value().map(|(id, event)| (id.clone(), event.clone())) else { return };
        self.telling = Some(id.clone());
        let bus = self.agent.bus.clone();
        self.spawn(async move {
            let told = bus.publish_event(&event, "").await.is_ok();
            if !told {
                tokio::time::sleep(PAUSE).await;
            }
            Done::Told(id, told)
        });
    }

    async fn handle(&mut self, input: Input, sources: &mut Sources) {
        match input {
            Input::Event(item) => self.fold(item),
            Input::Bucket(item) => self.fold_bucket(item),
            Input::Query(query) => self.answer(&query).await,
            Input::Lease => self.lease_changed(sources),
            Input::Connection => self.connection_changed(sources),
            Input::Done(done) => self.finish(done),
            Input::Timer | Input::Stop | Input::Closed => {}
        }
    }

    fn fold(&mut self, item: FoldItem) {
        if let Some(event) = dead_letter(
            &self.agent.config.mesh,
            AGENT,
            &self.agent.config.replica,
            self.projection.stream_epoch(),
            &item,
            SystemTime::now(),
        ) && self.untold.len() < DEAD_LETTERS_MAX
        {
            self.untold.insert(event.id.clone(), event);
        }
        match item {
            FoldItem::Reset { epoch } => {
                tracing::info!(epoch, "events are folded from their beginning");
                self.projection = Projection::new(&epoch);
                (self.primed_to, self.snapshot_at, self.led) = (0, 0, false);
                self.untold.clear();
                self.begun_anew();
                self.authority.events_reset();
                self.agent.health.hold("events", "events are not folded to the head yet");
            }
            FoldItem::Event { sequence, event, pending, .. } => {
                if sequence <= self.primed_to {
                    self.projection.prime(sequence, &event);
                } else {
                    self.projection.apply(sequence, &event);
                    self.numbers.folded.inc();
                }
                if matches!(event.fact, Some(Fact::DeadLettered(_))) {
                    self.untold.remove(&event.id);
                }
                self.lag = pending;
                self.progressed(sequence);
            }
            FoldItem::DeadLetter { sequence, subject, why, .. } => {
                tracing::warn!(sequence, subject, why, "a message of the stream is no event");
                self.projection.dead_letter(sequence);
                self.numbers.dead_letters.inc();
                self.progressed(sequence);
            }
            FoldItem::CaughtUp { sequence } => {
                self.lag = 0;
                self.progressed(sequence);
                self.agent.health.release("events");
            }
        }
    }

    /// A stream made anew under a running agent does not know that it runs.
    fn begun_anew(&mut self) {
        if std::mem::replace(&mut self.folds, true) {
            self.agent.announce();
        }
    }

    fn progressed(&mut self, sequence: u64) {
        self.authority.events_applied(sequence);
        self.agent.ticker.applied(sequence);
        self.numbers.lag.set(i64::try_from(self.lag).unwrap_or(i64::MAX));
    }

    fn fold_bucket(&mut self, item: WatchItem) {
        match item {
            WatchItem::Epoch(_) => {
                self.writer.reset();
                (self.bucket_applied, self.led) = (0, false);
                // The head that was read is of the bucket before it.
                self.authority.store_reset();
            }
            WatchItem::Entry { key, revision, value, settled, .. } => {
                self.writer.observe(&key, revision, value.as_deref());
                if settled {
                    self.bucket_applied = self.bucket_applied.max(revision);
                }
            }
            WatchItem::Settled { revision } => self.bucket_applied = self.bucket_applied.max(revision),
        }
    }

    async fn answer(&self, query: &Query) {
        let answered = match query.verb {
            "status" => match query.read::<v1::StatusRequest>() {
                Ok(request) => {
                    let reply = v1::StatusReply {
                        observed: Some(self.projection.status(&request)),
                        replica: self.agent.config.replica.clone(),
                        lag: self.lag,
                        troubles: Vec::new(),
                    };
                    query.answer(&reply).await
                }
                Err(error) => query.refuse(400, &error.to_string()).await,
            },
            _ => match query.read::<v1::DiscoverRequest>() {
                Ok(request) => query.answer(&self.projection.discover(&request)).await,
                Err(error) => query.refuse(400, &error.to_string()).await,
            },
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "a question was not answered");
        }
    }

    fn lease_changed(&mut self, sources: &mut Sources) {
        let state = *sources.lease.borrow_and_update();
        match state {
            LeaseState::Held { fence, .. } => {
                tracing::info!(fence, "took the shard");
                self.authority.lease_taken(fence);
            }
            LeaseState::Waiting => self.authority.lease_lost(),
        }
    }

    fn connection_changed(&mut self, sources: &mut Sources) {
        if sources.connection.borrow_and_update().is_up() {
            self.authority.connected();
        } else {
            self.authority.disconnected();
        }
    }

    fn ask_heads(&mut self) {
        let Some(wanted) = self.authority.wants_heads() else { return };
        if self.heads_asked.as_ref().is_some_and(|(asked, at)| *asked == wanted && at.elapsed() < razar_bus::REQUEST_LIMIT) {
            return;
        }
        self.heads_asked = Some((wanted, Instant::now()));
        self.bucket_head = None;
        let bus = self.agent.bus.clone();
        self.spawn(async move {
            let read = async { Ok([bus.head(Store::Events).await?, bus.head(Store::Observed).await?]) };
            let heads = read.await;
            if heads.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            Done::Heads(wanted, heads)
        });
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Wrote(write, revision) => self.writer.wrote(&write, revision),
            Done::Heads(wanted, Ok([events, bucket])) => {
                if self.authority.wants_heads() == Some(wanted) {
                    self.bucket_head = Some(bucket);
                    // It decides nothing by intents, so it has none to read.
                    self.authority.heads_read(wanted, events, 0);
                }
            }
            Done::Heads(_, Err(error)) => {
                tracing::debug!(%error, "the heads cannot be read yet");
                self.heads_asked = None;
            }
            Done::Snapshot(stored) => {
                self.snapshot_under_way = false;
                self.snapshot_at = stored.unwrap_or(self.snapshot_at);
            }
            Done::Told(id, told) => {
                self.telling = None;
                if told {
                    self.untold.remove(&id);
                }
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = Done> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            let result = task.await;
            let _ = done.send(result).await;
        });
    }
}
