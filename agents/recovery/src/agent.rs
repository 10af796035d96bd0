//! The wiring: messages become inputs of the policy, its actions become IO. The only `select!`. Nothing about components is decided here.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use prost::Message as _;
use razar_agent_kit::{Agent, Authority, HeadsWanted, health::STARTING, tick::TICK_INTERVAL};
use razar_bus::{
    Bus, BusError, Connection, EventFold, EventPublisher, FoldItem, IntentItem, IntentRecord, IntentWatch, Lease, LeaseState, QueryServer,
    Start,
};
use razar_bus_schema::{
    bucket::{IntentKey, REGISTRY_SNAPSHOT, lease_key},
    stream::Store,
    v1::{self, intent::Want},
};
use tokio::sync::{mpsc, watch};

use crate::{
    AGENT,
    config::Settings,
    numbers::Numbers,
    policy::{Action, Identity, Now, Outcome, State, Write, WriteError},
    spans::Teller,
};

/// Outcomes of actions that wait to be folded: at most one write for each instance is under way.
const OUTCOMES_MAX: usize = 256;
/// Inputs folded in a row before the next decision: a burst is decided on once.
const INPUTS_IN_A_ROW: usize = 256;
/// Pause after the heads could not be read.
const HEADS_PAUSE: Duration = Duration::from_millis(200);
/// Pause before the snapshot is asked for again: a start that waits for the broker goes on as soon as it is there.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(20);
/// How long a start waits for the snapshot before it does without.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);
/// A node answers from memory.
const ASK_LIMIT: Duration = Duration::from_secs(4);
/// Largest snapshot: every entity that the projection may have, at a few kilobytes each.
const SNAPSHOT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The lease is given back within this time at the end.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// One thing that happened.
enum Input {
    Stop,
    Event(FoldItem),
    Intent(IntentItem),
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
    events: EventFold,
    intents: IntentWatch,
    lease: watch::Receiver<LeaseState>,
    connection: watch::Receiver<Connection>,
    done: mpsc::Receiver<Done>,
    shutdown: razar_agent_kit::Shutdown,
    /// Keeps the micro service registered: it has no questions of its own, `razar incident` reads EVENTS.
    _service: QueryServer,
}

impl Sources {
    /// The next input. Cancel-safe.
    async fn next(&mut self, timer: Duration) -> Input {
        tokio::select! {
            biased;
            () = self.shutdown.asked() => Input::Stop,
            changed = self.connection.changed() => if changed.is_ok() { Input::Connection } else { Input::Closed },
            changed = self.lease.changed() => if changed.is_ok() { Input::Lease } else { Input::Closed },
            done = self.done.recv() => done.map_or(Input::Closed, |d| Input::Done(Box::new(d))),
            item = self.intents.next() => item.map_or(Input::Closed, Input::Intent),
            item = self.events.next() => item.map_or(Input::Closed, Input::Event),
            () = tokio::time::sleep(timer) => Input::Timer,
        }
    }
}

/// Recovery around its policy.
struct Recovery {
    agent: Agent<Settings>,
    state: State,
    authority: Authority,
    lease: Lease,
    publisher: EventPublisher,
    numbers: Numbers,
    teller: Teller,
    done: mpsc::Sender<Done>,
    began: Instant,
    offered: u64,
    heads_asked: Option<(HeadsWanted, Instant)>,
    /// A fold has begun before.
    folds: bool,
    /// The registry's snapshot, over which the stream is folded.
    snapshot: Option<v1::Observed>,
}

/// Runs recovery until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let bus = &agent.bus;
    let (done, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let lease = bus.lease(lease_key(AGENT, 0), agent.config.replica.clone(), agent.settings.lease_ttl())?;
    let service = bus.serve(AGENT, agent.version, "climbs the ladder with what its node has given up", &[]).await?;
    let snapshot = snapshot(&agent).await;
    let mut sources = Sources {
        events: bus.fold_events(Start::Beginning),
        intents: bus.watch_intents(),
        lease: lease.state(),
        connection: bus.connection(),
        done: outcomes,
        shutdown: agent.shutdown.clone(),
        _service: service,
    };
    let _beating = agent.beat();
    agent.announce();
    for (key, why) in [("events", "events are not folded to the head yet"), ("intents", "intents are not read yet")] {
        agent.health.hold(key, why);
    }
    agent.health.release(STARTING);
    let who = Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() };
    let mut recovery = Recovery {
        state: State::new(who, agent.settings.limits()),
        authority: Authority::new(),
        publisher: bus.event_publisher(),
        numbers: Numbers::new(&agent.metrics),
        teller: Teller::new(agent.spans.clone(), bus.subjects()),
        lease,
        done,
        began: Instant::now(),
        offered: 0,
        heads_asked: None,
        folds: false,
        snapshot,
        agent,
    };
    recovery.connection_changed(&mut sources);
    recovery.lease_changed(&mut sources);
    while recovery.turn(&mut sources).await {}
    recovery.lease.release(RELEASE_LIMIT).await;
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

impl Recovery {
    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: SystemTime::now() }
    }

    /// Waits for an input, folds it and what else is there, then decides once. False: the end.
    async fn turn(&mut self, sources: &mut Sources) -> bool {
        let deadline = if self.leads() { self.state.next_deadline(self.now()) } else { None };
        let timer = deadline.map_or(TICK_INTERVAL, |at| at.saturating_sub(self.began.elapsed()).min(TICK_INTERVAL));
        let mut input = Some(sources.next(timer).await);
        let mut folded = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop | Input::Closed) {
                return false;
            }
            self.handle(next, sources);
            folded += 1;
            input = if folded < INPUTS_IN_A_ROW { sources.next(TICK_INTERVAL).now_or_never() } else { None };
        }
        self.agent.ticker.tick();
        self.ask_heads();
        self.numbers.leads.set(i64::from(self.leads()));
        if self.leads() {
            let now = self.now();
            for action in self.state.decide(now) {
                self.perform(action, now);
            }
        }
        true
    }

    /// Whether decisions may be made: under the lease, with everything read up to where it was when the lease was taken.
    fn leads(&self) -> bool {
        self.authority.may_decide() && self.lease.holds()
    }

    fn handle(&mut self, input: Input, sources: &mut Sources) {
        match input {
            Input::Event(item) => self.fold_event(item),
            Input::Intent(item) => self.fold_intent(item),
            Input::Lease => self.lease_changed(sources),
            Input::Connection => self.connection_changed(sources),
            Input::Done(done) => self.finish(*done),
            Input::Timer | Input::Stop | Input::Closed => {}
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
                    self.state.apply_snapshot(snapshot);
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
                self.state.apply_caught_up();
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
                self.fold_record(&key, revision, record);
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

    fn fold_record(&mut self, key: &str, revision: u64, record: IntentRecord) {
        let now = self.now();
        match record {
            IntentRecord::Known { key, intent } => match (key, &intent.want) {
                (IntentKey::Desired(instance), _) => self.state.apply_desired(&instance, revision, Arc::from(intent)),
                (IntentKey::Recovery(instance), _) => self.state.apply_record(&instance, revision, Some(Arc::from(intent)), now),
                (IntentKey::QuarantineComponent(component), Some(Want::Quarantine(quarantine))) => {
                    self.state.apply_quarantine(&component, None, revision, quarantine.phase());
                }
                (IntentKey::QuarantineInstance(instance), Some(Want::Quarantine(quarantine))) => {
                    self.state.apply_quarantine(&instance.component, Some(instance.ordinal), revision, quarantine.phase());
                }
                _ => {}
            },
            IntentRecord::Foreign => {}
            IntentRecord::Deleted => self.spoiled(key, revision),
            IntentRecord::Undecodable { why, .. } => {
                tracing::warn!(key, why, "a record cannot be read");
                self.numbers.dead_letters.inc();
                self.spoiled(key, revision);
            }
        }
    }

    /// Absence says nothing: of others' records the last word stands; its own is written over.
    fn spoiled(&mut self, key: &str, revision: u64) {
        if let Some(IntentKey::Recovery(instance)) = IntentKey::parse(key) {
            self.state.apply_record(&instance, revision, None, self.now());
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
        let up = sources.connection.borrow_and_update().is_up();
        if up {
            self.authority.connected();
        } else {
            self.authority.disconnected();
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
        match action {
            Action::Write(write) => {
                self.numbers.decided("order");
                let why = write.intent.reason.as_ref().map_or("", |r| r.text.as_str());
                tracing::info!(instance = %write.instance, why, "order");
                let (bus, done) = (self.agent.bus.clone(), self.done.clone());
                tokio::spawn(async move {
                    let outcome = write_order(&bus, write).await;
                    let _ = done.send(Done::Outcome(outcome)).await;
                });
            }
            Action::Ask { instance, nodes } => {
                self.numbers.decided("ask");
                let (bus, done) = (self.agent.bus.clone(), self.done.clone());
                tokio::spawn(async move {
                    let inventories = inventories(&bus, &nodes).await;
                    let _ = done.send(Done::Outcome(Outcome::Asked { instance, inventories })).await;
                });
            }
            Action::Publish(event) => {
                self.numbers.decided(&event.kind);
                let why = event.reason.as_ref().map_or("", |r| r.text.as_str());
                tracing::info!(event = event.id, why, "{}", event.kind);
                self.teller.published(&event);
                let stored = self.offer(&event);
                if !stored {
                    self.state.apply_outcome(Outcome::Published { id: event.id, stored }, now);
                }
            }
        }
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
}

/// What each of these nodes holds; `None`: one does not say.
async fn inventories(bus: &Bus, nodes: &BTreeSet<String>) -> Option<Vec<v1::NodeInventory>> {
    let asked = nodes.iter().map(|node| async move {
        let subject = bus.subjects().node(node, "inventory");
        let reply: Result<v1::InventoryReply, BusError> = bus.ask(&subject, &v1::InventoryRequest {}, ASK_LIMIT).await;
        reply.ok()?.inventory
    });
    futures::future::join_all(asked).await.into_iter().collect()
}

/// Writes one record over the revision that is known.
async fn write_order(bus: &Bus, write: Box<Write>) -> Outcome {
    let batch = [(IntentKey::Recovery(write.instance.clone()), write.intent.clone(), write.expected)];
    let result = match bus.put_intents(&batch).await {
        Ok(revisions) => revisions.first().copied().ok_or(WriteError::Unknown),
        Err(error) => {
            tracing::warn!(%error, instance = %write.instance, "an order was not written");
            Err(if error.outcome_unknown() { WriteError::Unknown } else { WriteError::Conflict })
        }
    };
    Outcome::Wrote(write, result)
}
