//! The wiring: beats and messages become inputs of the policy, its actions become IO. Nothing about the mesh is decided here.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use razar_agent_kit::{Agent, Decider, Entry, Folded, Hops, Now, Shell, deciding};
use razar_bus::{Bus, BusError, Query};
use razar_bus_schema::{bucket::IntentKey, shard::Shards, v1};

use tokio::sync::watch;

use crate::{
    AGENT,
    config::Settings,
    ears::{Ears, Heard},
    numbers::Numbers,
    policy::{Action, Identity, Outcome, State},
    questions,
    spans::Teller,
};

/// Kind of the beats by which the watchdog hears itself.
const ECHO: &str = "echo";

/// The watchdog around its policy.
#[derive(Debug)]
struct Watchdog {
    state: State,
    numbers: Numbers,
    replica: String,
    /// Beats that were dropped, as far as the policy knows.
    dropped: u64,
    /// Tells the ears how often to turn.
    turn_max: watch::Sender<Duration>,
    teller: Teller,
}

/// Runs the watchdog until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let who = Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() };
    let replica = who.replica.clone();
    let state = State::new(who, agent.settings.limits());
    let (turn_max, turns) = watch::channel(state.turn_max());
    let watchdog = Watchdog {
        replica,
        state,
        numbers: Numbers::new(&agent.metrics),
        dropped: 0,
        turn_max,
        teller: Teller::new(Hops::new(agent.spans.clone(), AGENT, &agent.config.mesh, agent.bus.subjects())),
    };
    let entry = Entry {
        purpose: "says who is silent, and how the mesh is",
        endpoints: vec![("health", agent.bus.subjects().query(AGENT, "health"))],
        lease_ttl: agent.settings.lease_ttl(),
        source: Ears::open(&agent.bus, turns).await?,
    };
    deciding::run(agent, watchdog, entry).await
}

impl Watchdog {
    fn hear(&mut self, heard: Heard, now: Now) {
        for message in heard.beats {
            self.numbers.beats.inc();
            match v1::Heartbeat::decode(message.payload) {
                Ok(beat) if beat.kind != ECHO => self.state.apply_beat(&beat, now),
                Ok(echo) if echo.id == self.replica => self.state.apply_echo(echo.cycle, now),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, subject = message.subject, "a beat cannot be read"),
            }
        }
        if std::mem::replace(&mut self.dropped, heard.dropped) != heard.dropped {
            tracing::warn!(dropped = heard.dropped, "beats came too fast; silence is counted anew");
            self.state.apply_dropped(now);
        }
        self.state.apply_turn(now);
        let turn_max = self.state.turn_max();
        self.turn_max.send_if_modified(|before| std::mem::replace(before, turn_max) != turn_max);
        self.numbers.watched.set(i64::try_from(self.state.watched()).unwrap_or(i64::MAX));
        self.numbers.interruptions.set(i64::try_from(self.state.currency().interruptions()).unwrap_or(i64::MAX));
    }
}

/// A beat to itself, on the way of all others.
fn echo(bus: Bus, replica: String, number: u64) {
    tokio::spawn(async move {
        let subject = bus.subjects().heartbeat(ECHO, &replica);
        let beat = v1::Heartbeat { kind: ECHO.to_owned(), id: replica, cycle: number, ..v1::Heartbeat::default() };
        // One that is not sent does not come back, and that is what is to be known.
        let _ = bus.publish(&subject, beat.encode_to_vec().into(), "").await;
    });
}

impl Decider for Watchdog {
    const AGENT: &'static str = AGENT;
    const SNAPSHOT: bool = true;
    const DIVIDED: bool = true;
    type Settings = Settings;
    type Action = Action;
    type Outcome = Outcome;
    type Source = Ears;

    fn apply_reset(&mut self, _epoch: &str, snapshot: Option<&v1::Observed>, now: Now) {
        self.state.apply_reset();
        if let Some(snapshot) = snapshot {
            self.state.apply_snapshot(snapshot, now);
        }
    }

    fn apply_event(&mut self, folded: &Folded<'_>, now: Now) {
        self.state.apply_event(folded.sequence, folded.event, folded.stored, now);
    }

    fn apply_intents_epoch(&mut self, epoch: &str, _now: Now) {
        self.state.apply_intents_epoch(epoch);
    }

    fn apply_intent(&mut self, key: &IntentKey, revision: u64, intent: Option<Arc<v1::Intent>>, now: Now) {
        if let (IntentKey::Desired(instance), Some(intent)) = (key, intent) {
            self.state.apply_desired(instance, revision, intent, now);
        }
    }

    fn apply_item(&mut self, heard: Heard, shell: &Shell<Self>, now: Now) {
        self.hear(heard, now);
        // Every replica observes, whoever decides.
        for action in self.state.observe(now) {
            if let Action::Echo(number) = action {
                echo(shell.agent.bus.clone(), self.replica.clone(), number);
            }
        }
    }

    fn apply_connection(&mut self, up: bool, now: Now) {
        if up { self.state.apply_connected(now) } else { self.state.apply_disconnected() }
    }

    fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        self.state.apply_outcome(outcome, now);
    }

    fn apply_shards(&mut self, shards: &Shards, now: Now) {
        self.state.apply_shards(shards, now);
    }

    fn stand_down(&mut self) {
        self.state.stand_down();
    }

    fn gathers(&self) -> bool {
        true
    }

    fn next_deadline(&self, now: Now) -> Option<Duration> {
        self.state.next_deadline(now)
    }

    fn decide(&mut self, now: Now) -> Vec<Action> {
        let mut actions = self.state.decide(now);
        actions.extend(self.state.observe(now));
        actions
    }

    fn perform(&mut self, action: Action, shell: &mut Shell<Self>, now: Now) {
        let bus = shell.agent.bus.clone();
        match action {
            Action::Echo(number) => echo(bus, self.replica.clone(), number),
            Action::Ping { node, limit } => {
                shell.numbers.decided("ping");
                shell.spawn(questions::ping(bus, node, limit));
            }
            Action::Look { node, instance } => {
                shell.numbers.decided("look");
                shell.spawn(questions::look(bus, node, instance));
            }
            Action::Measure { node } => shell.spawn(questions::measure(bus, node)),
            Action::Publish(event) => {
                shell.numbers.decided(&event.kind);
                let why = event.reason.as_ref().map_or("", |r| r.text.as_str());
                tracing::info!(event = event.id, why, "{}", event.kind);
                self.teller.published(&event);
                let stored = shell.offer(&event);
                if !stored {
                    self.state.apply_outcome(Outcome::Published { id: event.id, stored }, now);
                }
            }
        }
    }

    async fn answer(&self, query: &Query, shell: &Shell<Self>) -> Result<(), BusError> {
        query.answer(&self.state.health(shell.now())).await
    }
}
