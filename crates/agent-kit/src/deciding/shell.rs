//! What a decider carries its actions out with: tasks whose outcome comes back as an input, events that are told, commands that are held
//! until they are answered.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use razar_bus::{BusError, EventPublisher, ReceivedCommand, RefusedCommand};
use razar_bus_schema::{
    shard::{ShardCount, Shards},
    stream::Store,
    v1,
};
use tokio::sync::mpsc;

use super::{
    Decider, Now, Numbers,
    away::{Away, component},
};
use crate::{Agent, event::refused_command, tenures::TenuresWanted};

/// Pause after the heads could not be read.
const HEADS_PAUSE: Duration = Duration::from_millis(200);

/// What came of a task.
pub(super) enum Done<O> {
    Outcome(O),
    Heads(TenuresWanted, Result<Heads, BusError>),
    /// Whether the replica that a command was handed over to has taken it.
    HandedOver(u64, bool),
}

/// The heads, read after the leases were taken; 0 for what is not read.
pub(super) struct Heads {
    pub(super) events: u64,
    pub(super) intents: u64,
    /// Of the agent's own bucket.
    pub(super) store: u64,
    /// Another division of which a shard is held.
    pub(super) division: Option<ShardCount>,
}

/// The agent around its decider.
#[derive(Debug)]
pub struct Shell<D: Decider> {
    /// The agent.
    pub agent: Agent<D::Settings>,
    /// Its numbers.
    pub numbers: Numbers,
    publisher: EventPublisher,
    offered: u64,
    held: HashMap<u64, (ReceivedCommand, SystemTime)>,
    /// Commands about what other replicas decide.
    pub(super) away: Away<ReceivedCommand>,
    tokens: u64,
    done: mpsc::Sender<Done<D::Outcome>>,
    began: Instant,
}

impl<D: Decider> Shell<D> {
    pub(super) fn new(agent: Agent<D::Settings>, done: mpsc::Sender<Done<D::Outcome>>) -> Self {
        Self {
            numbers: Numbers::new(&agent.metrics, D::VERBS),
            publisher: agent.bus.event_publisher(),
            offered: 0,
            held: HashMap::new(),
            away: Away::default(),
            tokens: 0,
            done,
            began: Instant::now(),
            agent,
        }
    }

    /// The two clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: SystemTime::now() }
    }

    /// Hands an event to the publisher; it is stored when it comes back with the fold. False: not taken.
    pub fn offer(&mut self, event: &v1::Event) -> bool {
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

    /// Answers and tells of a command that nobody can carry out, and puts it away once that is stored: if this process ends before, it comes again.
    pub(super) fn put_away(&self, refused: RefusedCommand) {
        let (bus, config) = (self.agent.bus.clone(), &self.agent.config);
        let event = refused_command(&config.mesh, D::AGENT, &config.replica, &refused, SystemTime::now());
        tokio::spawn(async move {
            refused.answer().await;
            let told = bus.publish_event(&event, "").await;
            let done = if let Err(error) = told { Err(error) } else { refused.put_away().await };
            if let Err(error) = done {
                tracing::debug!(%error, "a refused command will come again");
            }
        });
    }

    /// Runs a task; its outcome comes to [`Decider::apply_outcome`].
    pub fn spawn(&self, task: impl Future<Output = D::Outcome> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            let outcome = task.await;
            // A loop that has ended wants no outcome.
            let _ = done.send(Done::Outcome(outcome)).await;
        });
    }

    /// A held command, and when it was taken. `None`: it is not held, and comes again to whoever may decide then.
    #[must_use]
    pub fn command(&self, token: u64) -> Option<(&ReceivedCommand, SystemTime)> {
        self.held.get(&token).map(|(received, taken)| (received, *taken))
    }

    /// Whether commands are held: somebody waits for what comes of them.
    pub(super) fn holds_commands(&self) -> bool {
        !self.held.is_empty()
    }

    /// Answers a held command and settles it with the broker.
    pub fn settle(&mut self, token: u64, receipt: v1::Receipt) {
        let Some((received, _)) = self.held.remove(&token) else { return };
        self.numbers.answered(&received.verb, receipt.accepted);
        tokio::spawn(async move {
            if let Err(error) = received.settle(receipt).await {
                tracing::debug!(%error, "a command will come again");
            }
        });
    }

    pub(super) fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    pub(super) fn hold(&mut self, token: u64, received: ReceivedCommand) {
        self.held.insert(token, (received, SystemTime::now()));
    }

    /// Whoever decides next is to have them at once.
    pub(super) fn give_commands_back(&mut self) {
        let held = self.held.drain().map(|(_, (received, _))| received);
        let back: Vec<ReceivedCommand> = held.chain(self.away.clear()).collect();
        if back.is_empty() {
            return;
        }
        tokio::spawn(async move {
            for received in back {
                if let Err(error) = received.give_back().await {
                    tracing::debug!(%error, "a command will come again, later");
                }
            }
        });
    }

    /// Commands that wait, and about which another replica decides now, are for that one.
    pub(super) fn give_away(&mut self, decides: &Shards, now: Duration) {
        let lost = |received: &ReceivedCommand| !decides.decides(component(&received.target));
        for (_, (received, _)) in self.held.extract_if(|_, (received, _)| lost(received)) {
            self.away.put(received, now);
        }
    }

    pub(super) fn handing_over(&self, number: u64, taken: impl Future<Output = Result<(), BusError>> + Send + 'static) {
        let done = self.done.clone();
        tokio::spawn(async move {
            let taken = taken.await;
            if let Err(error) = &taken {
                tracing::debug!(%error, "a command was not taken by who decides about its target");
            }
            let _ = done.send(Done::HandedOver(number, taken.is_ok())).await;
        });
    }

    pub(super) fn read_heads(&self, wanted: TenuresWanted, count: ShardCount) {
        let (bus, done) = (self.agent.bus.clone(), self.done.clone());
        tokio::spawn(async move {
            let read = async {
                // First: who took a lease of another division before this is seen, and who does so later sees this one.
                let division = if D::DIVIDED { bus.foreign_division(D::AGENT, count).await? } else { None };
                let intents = if D::INTENTS { bus.head(Store::Intents).await? } else { 0 };
                let store = if let Some(store) = D::STORE { bus.head(store).await? } else { 0 };
                Ok(Heads { events: bus.head(Store::Events).await?, intents, store, division })
            };
            let heads = read.await;
            if heads.is_err() {
                tokio::time::sleep(HEADS_PAUSE).await;
            }
            let _ = done.send(Done::Heads(wanted, heads)).await;
        });
    }
}
