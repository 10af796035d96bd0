//! The wiring: beats and messages become inputs of the policy, its actions become IO. The only `select!`. Nothing about the mesh is decided
//! here.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use prost::Message as _;
use razar_agent_kit::{Agent, Authority, HeadsWanted, health::STARTING, tick::TICK_INTERVAL};
use razar_bus::{
    Bus, BusError, Connection, CoreMessage, EventFold, EventPublisher, FoldItem, IntentItem, IntentRecord, IntentWatch, Lease, LeaseState,
    Query, QueryServer, Start, Subscription,
};
use razar_bus_schema::{
    bucket::{IntentKey, REGISTRY_SNAPSHOT, lease_key},
    stream::Store,
    v1,
};
use tokio::sync::{mpsc, watch};

use crate::{
    AGENT,
    config::Settings,
    numbers::Numbers,
    policy::{Action, Identity, Now, Outcome, State, TURN_MAX},
    questions,
};

/// Outcomes of actions that wait to be folded: a question to each node and about each silent instance.
const OUTCOMES_MAX: usize = 1024;
/// Inputs folded in a row before the next decision: a burst is decided on once.
const INPUTS_IN_A_ROW: usize = 1024;
/// Beats that wait for the loop; more are dropped, and then nobody is silent for this observer. A second of a large mesh.
const BEATS_MAX: usize = 16_384;
/// Pause after the heads could not be read.
const HEADS_PAUSE: Duration = Duration::from_millis(200);
/// The lease is given back within this time at the end.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// Largest snapshot that is read.
const SNAPSHOT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pause before the snapshot is asked for again, and how long a start waits for it.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(20);
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);
/// Kind of the beats by which the watchdog hears itself.
const ECHO: &str = "echo";

/// One thing that happened.
enum Input {
    Stop,
    Beat(CoreMessage),
    Event(FoldItem),
    Intent(IntentItem),
    Query(Box<Query>),
    Lease,
    Connection,
    Done(Box<Done>),
    Timer,
    /// The bus was closed by this process.
    Closed,
}

/// What came of a task.
enum Done {
    Outcome(Outcome),
    Heads(HeadsWanted, Result<[u64; 2], BusError>),
}

/// Everything that the loop listens to.
struct Sources {
    beats: Subscription,
    events: EventFold,
    intents: IntentWatch,
    queries: QueryServer,
    lease: watch::Receiver<LeaseState>,
    connection: watch::Receiver<Connection>,
    done: mpsc::Receiver<Done>,
    shutdown: razar_agent_kit::Shutdown,
}

impl Sources {
    /// The next input. Cancel-safe. Beats come last: those that wait are taken in one go.
    async fn next(&mut self, timer: Duration) -> Input {
        tokio::select! {
            biased;
            () = self.shutdown.asked() => Input::Stop,
            changed = self.connection.changed() => if changed.is_ok() { Input::Connection } else { Input::Closed },
            changed = self.lease.changed() => if changed.is_ok() { Input::Lease } else { Input::Closed },
            done = self.done.recv() => done.map_or(Input::Closed, |d| Input::Done(Box::new(d))),
            query = self.queries.next() => query.map_or(Input::Closed, |q| Input::Query(Box::new(q))),
            item = self.intents.next() => item.map_or(Input::Closed, Input::Intent),
            item = self.events.next() => item.map_or(Input::Closed, Input::Event),
            beat = self.beats.next() => beat.map_or(Input::Closed, Input::Beat),
            () = tokio::time::sleep(timer) => Input::Timer,
        }
    }
}

/// The watchdog around its policy.
struct Watchdog {
    agent: Agent<Settings>,
    state: State,
    authority: Authority,
    lease: Lease,
    publisher: EventPublisher,
    numbers: Numbers,
    done: mpsc::Sender<Done>,
    began: Instant,
    offered: u64,
    heads_asked: Option<(HeadsWanted, Instant)>,
    /// Beats that were dropped, as far as the policy knows.
    dropped: u64,
    /// A fold has begun before.
    folds: bool,
    /// The registry's snapshot, over which the stream is folded.
    snapshot: Option<v1::Observed>,
}

/// Runs the watchdog until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let bus = agent.bus.clone();
    let (done, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let lease = bus.lease(lease_key(AGENT, 0), agent.config.replica.clone(), agent.settings.lease_ttl())?;
    let endpoints = [("health", bus.subjects().query(AGENT, "health"))];
    let queries = bus.serve(AGENT, agent.version, "says who is silent, and how the mesh is", &endpoints).await?;
    let snapshot = snapshot(&agent).await;
    let mut sources = Sources {
        beats: bus.subscribe(&bus.subjects().heartbeats(), BEATS_MAX).await?,
        events: bus.fold_events(Start::Beginning),
        intents: bus.watch_intents(),
        queries,
        lease: lease.state(),
        connection: bus.connection(),
        done: outcomes,
        shutdown: agent.shutdown.clone(),
    };
    let _beating = agent.beat();
    agent.announce();
    for (key, why) in [("events", "events are not folded to the head yet"), ("intents", "intents are not read yet")] {
        agent.health.hold(key, why);
    }
    agent.health.release(STARTING);
    let who = Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() };
    let mut watchdog = Watchdog {
        state: State::new(who, agent.settings.limits()),
        authority: Authority::new(),
        publisher: bus.event_publisher(),
        numbers: Numbers::new(&agent.metrics),
        lease,
        done,
        began: Instant::now(),
        offered: 0,
        heads_asked: None,
        dropped: 0,
        folds: false,
        snapshot,
        agent,
    };
    watchdog.connection_changed(&mut sources);
    watchdog.lease_changed(&mut sources);
    while watchdog.turn(&mut sources).await {}
    watchdog.lease.release(RELEASE_LIMIT).await;
    Ok(())
}

/// The registry's newest snapshot, if the broker has one to give soon: what has run for longer than EVENTS keeps a fact is in it alone.
async fn snapshot(agent: &Agent<Settings>) -> Option<v1::Observed> {
    let began = Instant::now();
    let mut shutdown = agent.shutdown.clone();
    while began.elapsed() < SNAPSHOT_LIMIT && !shutdown.is_asked() {
        agent.ticker.tick();
        match tokio::time::timeout(TICK_INTERVAL, stored_snapshot(&agent.bus)).await {
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

async fn stored_snapshot(bus: &Bus) -> Result<Option<v1::Observed>, BusError> {
    let bytes = bus.objects(Store::Stacks).get(REGISTRY_SNAPSHOT, SNAPSHOT_BYTES_MAX).await?;
    Ok(bytes.and_then(|bytes| v1::Observed::decode(bytes.as_slice()).ok()))
}

impl Watchdog {
    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: SystemTime::now() }
    }

    /// Waits for an input, folds it and what else is there, then decides once. False: the end.
    async fn turn(&mut self, sources: &mut Sources) -> bool {
        let deadline = self.state.next_deadline(self.now()).filter(|_| self.leads());
        let timer = deadline.map_or(TURN_MAX, |at| at.saturating_sub(self.began.elapsed()).min(TURN_MAX));
        let mut input = Some(sources.next(timer).await);
        let mut folded = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop | Input::Closed) {
                return false;
            }
            self.handle(next, sources).await;
            folded += 1;
            input = if folded < INPUTS_IN_A_ROW { sources.next(TURN_MAX).now_or_never() } else { None };
        }
        self.agent.ticker.tick();
        self.ask_heads();
        let (leads, now) = (self.leads(), self.now());
        self.state.apply_turn(now);
        self.numbers.leads.set(i64::from(leads));
        self.numbers.watched.set(i64::try_from(self.state.watched()).unwrap_or(i64::MAX));
        self.numbers.interruptions.set(i64::try_from(self.state.currency().interruptions()).unwrap_or(i64::MAX));
        let mut actions = if leads { self.state.decide(now) } else { Vec::new() };
        actions.extend(self.state.observe(now));
        for action in actions {
            self.perform(action, now);
        }
        true
    }

    /// Whether decisions may be made: under the lease, with everything read up to where it was when the lease was taken.
    fn leads(&self) -> bool {
        self.authority.may_decide() && self.lease.holds()
    }

    async fn handle(&mut self, input: Input, sources: &mut Sources) {
        match input {
            Input::Beat(beat) => self.hear(beat, &mut sources.beats),
            Input::Event(item) => self.fold_event(item),
            Input::Intent(item) => self.fold_intent(item),
            Input::Query(query) => self.answer(&query).await,
            Input::Lease => self.lease_changed(sources),
            Input::Connection => self.connection_changed(sources),
            Input::Done(done) => self.finish(*done),
            Input::Timer | Input::Stop | Input::Closed => {}
        }
    }

    /// A beat, and those that wait behind it.
    fn hear(&mut self, first: CoreMessage, beats: &mut Subscription) {
        let now = self.now();
        let mut message = Some(first);
        for _ in 0..BEATS_MAX {
            let Some(one) = message.take() else { break };
            self.numbers.beats.inc();
            match v1::Heartbeat::decode(one.payload) {
                Ok(beat) if beat.kind == ECHO => {
                    if beat.id == self.agent.config.replica {
                        self.state.apply_echo(beat.cycle, now);
                    }
                }
                Ok(beat) => self.state.apply_beat(&beat, now),
                Err(error) => {
                    tracing::debug!(%error, subject = one.subject, "a beat cannot be read");
                    self.numbers.dead_letters.inc();
                }
            }
            message = beats.try_next();
        }
        let dropped = beats.dropped();
        if std::mem::replace(&mut self.dropped, dropped) != dropped {
            tracing::warn!(dropped, "beats came too fast; silence is counted anew");
            self.state.apply_dropped(now);
        }
    }

    fn fold_event(&mut self, item: FoldItem) {
        match item {
            FoldItem::Reset { epoch } => {
                tracing::info!(epoch, "events are folded from their beginning");
                self.state.apply_reset();
                if std::mem::replace(&mut self.folds, true) {
                    // A stream made anew under a running agent does not know that it runs.
                    self.agent.announce();
                }
                if let Some(snapshot) = self.snapshot.as_ref().filter(|s| s.stream_epoch == epoch) {
                    self.state.apply_snapshot(snapshot, self.now());
                }
                self.authority.events_reset();
                self.agent.health.hold("events", "events are not folded to the head yet");
            }
            FoldItem::Event { sequence, event, pending, stored, .. } => {
                self.state.apply_event(sequence, &event, stored, self.now());
                self.authority.events_applied(sequence);
                self.agent.ticker.applied(sequence);
                self.numbers.folded.inc();
                self.numbers.lag.set(i64::try_from(pending).unwrap_or(i64::MAX));
            }
            // The registry tells of it; here it is counted and passed over.
            FoldItem::DeadLetter { sequence, subject, why, .. } => {
                tracing::warn!(sequence, subject, why, "a message of the stream is no event");
                self.authority.events_applied(sequence);
                self.numbers.dead_letters.inc();
            }
            FoldItem::CaughtUp { sequence } => {
                self.authority.events_applied(sequence);
                self.numbers.lag.set(0);
                self.agent.health.release("events");
            }
        }
    }

    fn fold_intent(&mut self, item: IntentItem) {
        match item {
            IntentItem::Epoch(epoch) => {
                self.state.apply_intents_epoch(&epoch);
                self.authority.intents_reset();
                self.agent.health.hold("intents", "intents are not read yet");
            }
            IntentItem::Record { key, revision, record, settled } => {
                match record {
                    IntentRecord::Known { key: IntentKey::Desired(instance), intent } => {
                        self.state.apply_desired(&instance, revision, Arc::from(intent), self.now());
                    }
                    IntentRecord::Known { .. } | IntentRecord::Foreign | IntentRecord::Deleted => {}
                    IntentRecord::Undecodable { why, .. } => {
                        tracing::warn!(key, why, "a record cannot be read");
                        self.numbers.dead_letters.inc();
                    }
                }
                if settled {
                    self.authority.intents_applied(revision);
                }
            }
            IntentItem::Settled { revision } => {
                self.authority.intents_applied(revision);
                self.agent.health.release("intents");
            }
        }
    }

    async fn answer(&self, query: &Query) {
        if let Err(error) = query.answer(&self.state.health(self.now())).await {
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
            LeaseState::Waiting => {
                self.authority.lease_lost();
                self.state.stand_down();
            }
        }
    }

    fn connection_changed(&mut self, sources: &mut Sources) {
        if sources.connection.borrow_and_update().is_up() {
            self.authority.connected();
            self.state.apply_connected(self.now());
        } else {
            self.authority.disconnected();
            self.state.apply_disconnected();
            self.state.stand_down();
        }
    }

    fn ask_heads(&mut self) {
        let Some(wanted) = self.authority.wants_heads() else { return };
        if self.heads_asked.as_ref().is_some_and(|(asked, at)| *asked == wanted && at.elapsed() < razar_bus::REQUEST_LIMIT) {
            return;
        }
        self.heads_asked = Some((wanted, Instant::now()));
        let (bus, done) = (self.agent.bus.clone(), self.done.clone());
        tokio::spawn(async move {
            let read = async { Ok([bus.head(Store::Events).await?, bus.head(Store::Intents).await?]) };
            let heads = read.await;
            if heads.is_err() {
                tokio::time::sleep(HEADS_PAUSE).await;
            }
            let _ = done.send(Done::Heads(wanted, heads)).await;
        });
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Outcome(outcome) => self.state.apply_outcome(outcome, self.now()),
            Done::Heads(wanted, Ok([events, intents])) => self.authority.heads_read(wanted, events, intents),
            Done::Heads(_, Err(error)) => {
                tracing::debug!(%error, "the heads cannot be read yet");
                self.heads_asked = None;
            }
        }
    }

    fn perform(&mut self, action: Action, now: Now) {
        let bus = self.agent.bus.clone();
        match action {
            Action::Echo(number) => self.echo(number),
            Action::Ping { node, limit } => {
                self.numbers.decided("ping");
                self.spawn(questions::ping(bus, node, limit));
            }
            Action::Look { node, instance } => {
                self.numbers.decided("look");
                self.spawn(questions::look(bus, node, instance));
            }
            Action::Measure { node } => self.spawn(questions::measure(bus, node)),
            Action::Publish(event) => {
                self.numbers.decided("event");
                let why = event.reason.as_ref().map_or("", |r| r.text.as_str());
                tracing::info!(kind = event.kind, cause = event.cause_id, why, "telling");
                if !self.offer(&event) {
                    self.state.apply_outcome(Outcome::Published { id: event.id.clone(), stored: false }, now);
                }
            }
        }
    }

    /// A beat to itself, on the way of all others.
    fn echo(&self, number: u64) {
        let (bus, replica) = (self.agent.bus.clone(), self.agent.config.replica.clone());
        tokio::spawn(async move {
            let subject = bus.subjects().heartbeat(ECHO, &replica);
            let beat = v1::Heartbeat { kind: ECHO.to_owned(), id: replica, cycle: number, ..v1::Heartbeat::default() };
            // One that is not sent does not come back, and that is what is to be known.
            let _ = bus.publish(&subject, beat.encode_to_vec().into(), "").await;
        });
    }

    /// Hands an event to the publisher; it is stored when it comes back with the fold. False: not taken.
    fn offer(&mut self, event: &v1::Event) -> bool {
        self.offered += 1;
        let traceparent = event.trace.as_ref().map_or("", |t| t.traceparent.as_str());
        match self.publisher.offer(self.offered, event, traceparent) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::error!(%error, event = event.id, "an event cannot be told");
                false
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = Outcome> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            let outcome = task.await;
            let _ = done.send(Done::Outcome(outcome)).await;
        });
    }
}
