//! The wiring: messages become inputs of the projection and its writer, what they decide becomes IO. Nothing about components is decided here.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::gauge::Gauge;
use razar_agent_kit::{Agent, Decider, Entry, Folded, Nothing, Now, Shell, deciding, event::dead_letter};
use razar_bus::{BusError, FoldItem, Query, Start, WatchItem};
use razar_bus_schema::{
    stream::Store,
    v1::{self, event::Fact},
};

use crate::{
    AGENT, actions,
    config::Settings,
    policy::{Write, Writer},
    projection::{AGENT_EVENT_WINDOW, Projection},
};

/// Dead letters that are to be told; more are only counted.
const DEAD_LETTERS_MAX: usize = 64;

/// What came of a task.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A key was written; the revision, unless it failed.
    Wrote(Write, Option<u64>),
    /// A snapshot of the stream of this epoch was stored up to a sequence, unless it failed.
    Snapshot { epoch: String, stored: Option<u64> },
    /// The event with this id was stored, or not.
    Told(String, bool),
}

/// What is to be done.
enum Action {
    Write(Write),
    Snapshot(Box<v1::Observed>),
    Tell(Box<v1::Event>),
}

/// The registry around its projection.
#[derive(Debug)]
struct Registry {
    projection: Projection,
    /// The snapshot that the fold began at; what is up to it is remembered, not folded.
    primed_to: u64,
    writer: Writer,
    backlog: Gauge,
    lag: u64,
    /// Events between two snapshots.
    snapshot_events: u64,
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
    let registry = Registry {
        projection: Projection::default(),
        primed_to: 0,
        writer: Writer::default(),
        backlog: agent.metrics.gauge("projection_backlog_keys", "Keys of the projection to be compared or written"),
        // Nothing is read yet: whatever there is, is ahead.
        lag: 1,
        snapshot_events: agent.settings.snapshot_events.max(1),
        snapshot_at: 0,
        snapshot_under_way: false,
        untold: BTreeMap::new(),
        telling: None,
    };
    let entry = Entry {
        purpose: "folds what happens into what there is",
        endpoints: ["status", "discover"].map(|verb| (verb, agent.bus.subjects().query(AGENT, verb))).to_vec(),
        lease_ttl: agent.settings.lease_ttl(),
        source: Nothing,
    };
    deciding::run(agent, registry, entry).await
}

impl Decider for Registry {
    const AGENT: &'static str = AGENT;
    const SNAPSHOT: bool = true;
    const INTENTS: bool = false;
    const STORE: Option<Store> = Some(Store::Observed);
    type Settings = Settings;
    type Action = Action;
    type Outcome = Outcome;
    type Source = Nothing;

    fn begin(&mut self, snapshot: &mut Option<v1::Observed>) -> Start {
        let Some(snapshot) = snapshot.take() else { return Start::Beginning };
        let start =
            Start::After { epoch: snapshot.stream_epoch.clone(), sequence: snapshot.applied_sequence.saturating_sub(AGENT_EVENT_WINDOW) };
        self.projection = Projection::from_snapshot(snapshot);
        (self.primed_to, self.snapshot_at) = (self.projection.applied_sequence(), self.projection.applied_sequence());
        start
    }

    fn apply_reset(&mut self, epoch: &str, _snapshot: Option<&v1::Observed>, _now: Now) {
        self.projection = Projection::new(epoch);
        (self.primed_to, self.snapshot_at) = (0, 0);
        self.untold.clear();
    }

    fn apply_event(&mut self, folded: &Folded<'_>, _now: Now) {
        if folded.sequence <= self.primed_to {
            self.projection.prime(folded.sequence, folded.event);
        } else {
            self.projection.apply(folded.sequence, folded.event);
        }
        if matches!(folded.event.fact, Some(Fact::DeadLettered(_))) {
            self.untold.remove(&folded.event.id);
        }
        self.lag = folded.pending;
    }

    fn apply_dead_letter(&mut self, item: &FoldItem, shell: &Shell<Self>) {
        let config = &shell.agent.config;
        let event = dead_letter(&config.mesh, AGENT, &config.replica, self.projection.stream_epoch(), item, SystemTime::now());
        if let Some(event) = event.filter(|_| self.untold.len() < DEAD_LETTERS_MAX) {
            self.untold.insert(event.id.clone(), event);
        }
        if let FoldItem::DeadLetter { sequence, .. } = item {
            self.projection.dead_letter(*sequence);
        }
    }

    fn apply_caught_up(&mut self, _sequence: u64, _now: Now) {
        self.lag = 0;
    }

    fn apply_store(&mut self, item: WatchItem, _shell: &Shell<Self>, _now: Now) {
        match item {
            WatchItem::Epoch(_) => self.writer.reset(),
            WatchItem::Entry { key, revision, value, .. } => self.writer.observe(&key, revision, value.as_deref()),
            WatchItem::Settled { .. } => {}
        }
    }

    fn apply_outcome(&mut self, outcome: Outcome, _now: Now) {
        match outcome {
            Outcome::Wrote(write, revision) => self.writer.wrote(&write, revision),
            Outcome::Snapshot { epoch, stored } => {
                self.snapshot_under_way = false;
                // One of the stream before says nothing of how much of this one is in it.
                self.snapshot_at = stored.filter(|_| epoch == self.projection.stream_epoch()).unwrap_or(self.snapshot_at);
            }
            Outcome::Told(id, told) => {
                self.telling = None;
                if told {
                    self.untold.remove(&id);
                }
            }
        }
    }

    fn stand_down(&mut self) {}

    fn take_over(&mut self) {
        self.writer.suspect_all(&self.projection);
    }

    fn gathers(&self) -> bool {
        true
    }

    fn next_deadline(&self, now: Now) -> Option<Duration> {
        self.writer.next_deadline(now.mono)
    }

    fn decide(&mut self, now: Now) -> Vec<Action> {
        self.writer.changed(self.projection.take_dirty(), now.mono);
        let mut actions: Vec<Action> = self.writer.decide(&self.projection, now.mono).into_iter().map(Action::Write).collect();
        self.backlog.set(i64::try_from(self.writer.backlog()).unwrap_or(i64::MAX));
        if !self.snapshot_under_way && self.projection.applied_sequence() >= self.snapshot_at + self.snapshot_events {
            self.snapshot_under_way = true;
            actions.push(Action::Snapshot(Box::new(self.projection.observed())));
        }
        // One at a time: they are rare, and the next is told when this one came back.
        if self.telling.is_none()
            && let Some((id, event)) = self.untold.first_key_value()
        {
            self.telling = Some(id.clone());
            actions.push(Action::Tell(Box::new(event.clone())));
        }
        actions
    }

    fn perform(&mut self, action: Action, shell: &mut Shell<Self>, _now: Now) {
        let bus = shell.agent.bus.clone();
        match action {
            Action::Write(write) => {
                shell.numbers.decided("write");
                shell.spawn(actions::write(bus, write));
            }
            Action::Snapshot(observed) => shell.spawn(actions::store_snapshot(bus, observed)),
            Action::Tell(event) => shell.spawn(actions::tell(bus, event)),
        }
    }

    async fn answer(&self, query: &Query, shell: &Shell<Self>) -> Result<(), BusError> {
        match query.verb {
            "status" => match query.read::<v1::StatusRequest>() {
                Ok(request) => {
                    let reply = v1::StatusReply {
                        observed: Some(self.projection.status(&request)),
                        replica: shell.agent.config.replica.clone(),
                        lag: self.lag,
                        troubles: Vec::new(),
                        health: None,
                    };
                    query.answer(&reply).await
                }
                Err(error) => query.refuse(400, &error.to_string()).await,
            },
            _ => match query.read::<v1::DiscoverRequest>() {
                Ok(request) => query.answer(&self.projection.discover(&request)).await,
                Err(error) => query.refuse(400, &error.to_string()).await,
            },
        }
    }
}
