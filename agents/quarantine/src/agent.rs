//! The wiring: messages become inputs of the policy, its actions become IO. The only `select!`. Nothing about components is decided here.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use razar_agent_kit::{Agent, Authority, HeadsWanted, health::STARTING, tick::TICK_INTERVAL};
use razar_bus::{
    BusError, CommandItem, CommandSource, Connection, EventFold, EventPublisher, FoldItem, IntentItem, IntentRecord, IntentWatch, Lease,
    LeaseState, QueryServer, ReceivedCommand, Start,
};
use razar_bus_schema::{
    bucket::{IntentKey, lease_key},
    stream::Store,
    time::system_time,
    v1::{self, event::Fact},
};
use tokio::sync::{mpsc, watch};

use crate::{
    AGENT, actions,
    config::Settings,
    numbers::Numbers,
    policy::{Action, Identity, Now, Outcome, Pending, State},
};

/// Outcomes of actions that wait to be folded; there are never more actions under way than commands and one write.
const OUTCOMES_MAX: usize = 256;
/// Inputs folded in a row before the next decision: a burst is decided on once.
const INPUTS_IN_A_ROW: usize = 256;
/// Pause after the heads could not be read.
const HEADS_PAUSE: Duration = Duration::from_millis(200);
/// The lease is given back within this time at the end.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// One thing that happened.
enum Input {
    Stop,
    Event(FoldItem),
    Intent(IntentItem),
    Command(CommandItem),
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
    commands: CommandSource,
    lease: watch::Receiver<LeaseState>,
    connection: watch::Receiver<Connection>,
    done: mpsc::Receiver<Done>,
    /// Nobody asks it anything; it is listed among the mesh's services while it is kept.
    _service: QueryServer,
    shutdown: razar_agent_kit::Shutdown,
}

impl Sources {
    /// The next input. Cancel-safe. Commands are read only by who may decide.
    async fn next(&mut self, leads: bool, timer: Duration) -> Input {
        tokio::select! {
            biased;
            () = self.shutdown.asked() => Input::Stop,
            changed = self.connection.changed() => if changed.is_ok() { Input::Connection } else { Input::Closed },
            changed = self.lease.changed() => if changed.is_ok() { Input::Lease } else { Input::Closed },
            done = self.done.recv() => done.map_or(Input::Closed, |d| Input::Done(Box::new(d))),
            item = self.intents.next() => item.map_or(Input::Closed, Input::Intent),
            item = self.events.next() => item.map_or(Input::Closed, Input::Event),
            item = self.commands.next(), if leads => Input::Command(item),
            () = tokio::time::sleep(timer) => Input::Timer,
        }
    }
}

/// Quarantine around its policy.
struct Quarantine {
    agent: Agent<Settings>,
    state: State,
    authority: Authority,
    lease: Lease,
    publisher: EventPublisher,
    numbers: Numbers,
    done: mpsc::Sender<Done>,
    began: Instant,
    held: HashMap<u64, ReceivedCommand>,
    tokens: u64,
    offered: u64,
    heads_asked: Option<(HeadsWanted, Instant)>,
    /// A fold has begun before.
    folds: bool,
}

/// Runs quarantine until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let bus = &agent.bus;
    let (done, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let lease = bus.lease(lease_key(AGENT, 0), agent.config.replica.clone(), agent.settings.lease_ttl())?;
    let mut sources = Sources {
        events: bus.fold_events(Start::Beginning),
        intents: bus.watch_intents(),
        commands: bus.serve_commands(AGENT).await?,
        _service: bus.serve(AGENT, agent.version, "isolates what cannot be healed, and says how it earns release", &[]).await?,
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
    let mut quarantine = Quarantine {
        state: State::new(Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() }, agent.settings.limits()),
        authority: Authority::new(),
        publisher: bus.event_publisher(),
        numbers: Numbers::new(&agent.metrics),
        lease,
        done,
        began: Instant::now(),
        held: HashMap::new(),
        tokens: 0,
        offered: 0,
        heads_asked: None,
        folds: false,
        agent,
    };
    quarantine.connection_changed(&mut sources);
    quarantine.lease_changed(&mut sources);
    while quarantine.turn(&mut sources).await {}
    quarantine.lease.release(RELEASE_LIMIT).await;
    Ok(())
}

impl Quarantine {
    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: SystemTime::now() }
    }

    /// Waits for an input, folds it and what else is there, then decides once. False: the end.
    async fn turn(&mut self, sources: &mut Sources) -> bool {
        let deadline = self.state.next_deadline(self.now()).filter(|_| self.leads());
        let timer = deadline.map_or(TICK_INTERVAL, |at| at.saturating_sub(self.began.elapsed()).min(TICK_INTERVAL));
        let mut input = Some(sources.next(self.leads(), timer).await);
        let mut folded = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop | Input::Closed) {
                return false;
            }
            self.handle(next, sources);
            folded += 1;
            input = if folded < INPUTS_IN_A_ROW { sources.next(self.leads(), TICK_INTERVAL).now_or_never() } else { None };
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
            Input::Command(item) => self.take_command(item),
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
                self.authority.events_reset();
                self.agent.health.hold("events", "events are not folded to the head yet");
            }
            FoldItem::Event { sequence, event, pending, .. } => {
                self.state.apply_event(sequence, &event, self.now());
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
                    IntentRecord::Known { key, intent } => self.state.apply_record(&key, revision, Arc::from(intent), self.now()),
                    IntentRecord::Foreign => {}
                    IntentRecord::Deleted => self.spoiled(&key, revision),
                    IntentRecord::Undecodable { why, .. } => {
                        tracing::warn!(key, why, "a record cannot be read");
                        self.numbers.dead_letters.inc();
                        self.spoiled(&key, revision);
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

    fn spoiled(&mut self, key: &str, revision: u64) {
        if let Some(key) = IntentKey::parse(key) {
            self.state.apply_spoiled(&key, revision);
        }
    }

    fn take_command(&mut self, item: CommandItem) {
        match item {
            CommandItem::Command(received) => {
                self.tokens += 1;
                let pending = Pending {
                    token: self.tokens,
                    id: received.command.command_id.clone(),
                    verb: received.verb.clone(),
                    target: received.target.clone(),
                    expires: received.command.expires_at.as_ref().map_or_else(|| self.now().wall, system_time),
                    command: received.command.clone(),
                    refusal: None,
                };
                tracing::info!(command = pending.id, verb = pending.verb, target = pending.target, repeated = received.repeated, "command");
                self.held.insert(self.tokens, *received);
                self.state.apply_command(pending);
            }
            CommandItem::Refused { subject, code, why, bytes, sequence } => {
                tracing::warn!(subject, code, why, sequence, "a command was put aside");
                self.numbers.dead_letters.inc();
                self.numbers.answered("other", false);
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                let fact = Fact::DeadLettered(v1::DeadLettered { why, subject, bytes, stream_sequence: sequence });
                self.tell_of_mesh(fact, &format!("command/{sequence}"));
            }
        }
    }

    fn tell_of_mesh(&mut self, fact: Fact, cause: &str) {
        let config = &self.agent.config;
        let event = razar_agent_kit::event::mesh_event(&config.mesh, AGENT, &config.replica, fact, cause, SystemTime::now());
        self.offer(&event);
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
                self.stand_down(sources);
            }
        }
    }

    fn connection_changed(&mut self, sources: &mut Sources) {
        let up = sources.connection.borrow_and_update().is_up();
        if up {
            self.authority.connected();
        } else {
            self.authority.disconnected();
            self.stand_down(sources);
        }
    }

    /// Commands that are not answered come again, to whoever may decide then.
    fn stand_down(&mut self, sources: &mut Sources) {
        sources.commands.pause();
        self.state.stand_down();
        self.held.clear();
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
            Action::Write(writes) => {
                self.numbers.decided("write");
                for (key, intent, _) in &writes {
                    tracing::info!(%key, why = intent.reason.as_ref().map_or("", |r| r.text.as_str()), "writing a record");
                }
                self.spawn(actions::write(bus, writes));
            }
            Action::Publish(event) => {
                self.numbers.decided("event");
                if !self.offer(&event) {
                    self.state.apply_outcome(Outcome::NotPublished(event.id), now);
                }
            }
            Action::Answer { token, verb, receipt } => {
                self.numbers.answered(&verb, receipt.accepted);
                if let Some(received) = self.held.remove(&token) {
                    tokio::spawn(async move {
                        if let Err(error) = received.settle(*receipt).await {
                            tracing::debug!(%error, "a command will come again");
                        }
                    });
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

    fn spawn(&self, task: impl Future<Output = Outcome> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            let outcome = task.await;
            let _ = done.send(Done::Outcome(outcome)).await;
        });
    }
}
