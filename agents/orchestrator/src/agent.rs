//! The wiring: messages become inputs of the policy, its actions become IO. Nothing about components is decided here.

use std::{sync::Arc, time::Duration};

use razar_agent_kit::{Agent, Decider, Entry, Folded, Health, Hops, Nothing, Now, Shell, deciding};
use razar_bus::{BusError, Query, ReceivedCommand, WatchItem};
use razar_bus_schema::{
    bucket::IntentKey,
    stream::Store,
    time::system_time,
    v1::{self, event::Fact},
};

use crate::{
    AGENT, actions,
    config::Settings,
    policy::{Action, Identity, Outcome, Pending, State, VERBS},
    spans::Teller,
};

/// Writer of the mark that is waited for in a new bucket.
const QUARANTINE: &str = "quarantine";
/// Key of `/readyz`.
const MISSIONS: &str = "missions";
/// Key of the reason on `/readyz` while a new bucket is not written to.
const BUCKET: &str = "bucket";
/// Those who are waited for take less than this.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The orchestrator around its policy.
#[derive(Debug)]
struct Orchestrator {
    state: State,
    teller: Teller,
    health: Health,
    /// Nothing is written into a new bucket since.
    waits_since: Option<Duration>,
    /// And that was said.
    waits_told: bool,
}

/// Runs the orchestrator until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    agent.health.hold(MISSIONS, "the plan is not read yet");
    let hops = Hops::new(agent.spans.clone(), AGENT, &agent.config.mesh, agent.bus.subjects());
    let orchestrator = Orchestrator {
        state: State::new(Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() }),
        teller: Teller::new(hops, &agent.config.mesh, agent.bus.subjects()),
        health: agent.health.clone(),
        waits_since: None,
        waits_told: false,
    };
    let entry = Entry {
        purpose: "plans, and says what is to run where",
        endpoints: vec![("plan", agent.bus.subjects().query(AGENT, "plan"))],
        lease_ttl: agent.settings.lease_ttl(),
        source: Nothing,
    };
    deciding::run(agent, orchestrator, entry).await
}

impl Orchestrator {
    /// Says what it waits for, once that takes longer than it should.
    fn waits(&mut self, why: Option<String>, now: Duration) {
        let since = why.as_ref().map(|_| *self.waits_since.get_or_insert(now));
        self.waits_since = since;
        let too_long = why.filter(|_| since.is_some_and(|since| now >= since + WAIT_MAX));
        if let Some(why) = too_long.as_ref().filter(|_| !self.waits_told) {
            tracing::warn!(why, "nothing is placed yet");
        }
        self.waits_told = too_long.is_some();
        self.health.set(BUCKET, too_long);
    }
}

impl Decider for Orchestrator {
    const AGENT: &'static str = AGENT;
    const SNAPSHOT: bool = true;
    const STORE: Option<Store> = Some(Store::Missions);
    const VERBS: &'static [&'static str] = &VERBS;
    type Settings = Settings;
    type Action = Action;
    type Outcome = Outcome;
    type Source = Nothing;

    fn apply_reset(&mut self, _epoch: &str, snapshot: Option<&v1::Observed>, now: Now) {
        self.state.apply_reset();
        if let Some(snapshot) = snapshot {
            self.state.apply_snapshot(snapshot, now);
        }
    }

    fn apply_event(&mut self, folded: &Folded<'_>, now: Now) {
        self.state.apply_event(folded.sequence, folded.event, now);
        if folded.leads {
            self.teller.folded(folded.event);
        }
    }

    fn apply_intents_epoch(&mut self, epoch: &str, _now: Now) {
        self.state.apply_intents_epoch(epoch);
    }

    fn apply_intent(&mut self, key: &IntentKey, revision: u64, intent: Option<Arc<v1::Intent>>, _now: Now) {
        match (key, intent) {
            (IntentKey::Desired(instance), Some(intent)) => self.state.apply_record(instance, revision, intent),
            (IntentKey::Desired(instance), None) => self.state.apply_spoiled(instance, revision),
            (IntentKey::Mark(writer), Some(intent)) if writer == QUARANTINE => {
                if let Some(v1::intent::Want::Mark(mark)) = &intent.want {
                    self.state.apply_mark(&mark.bucket_epoch);
                }
            }
            _ => {}
        }
    }

    fn apply_store(&mut self, item: WatchItem, shell: &Shell<Self>, now: Now) {
        match item {
            WatchItem::Epoch(_) => {
                self.state.apply_missions_epoch();
                shell.agent.health.hold(MISSIONS, "the plan is not read yet");
            }
            WatchItem::Entry { key, revision, value, .. } => {
                let read = value.as_ref().and_then(|bytes| actions::decode(&key, bytes));
                if value.is_some() && read.is_none() {
                    tracing::warn!(key, "a record of missions cannot be read");
                    shell.numbers.dead_letter();
                }
                self.state.apply_missions(&key, revision, read, now);
            }
            WatchItem::Settled { .. } => shell.agent.health.release(MISSIONS),
        }
    }

    fn apply_command(&mut self, token: u64, received: &ReceivedCommand, now: Now) {
        self.state.apply_command(Pending {
            token,
            id: received.command.command_id.clone(),
            verb: received.verb.clone(),
            target: received.target.clone(),
            expires: received.command.expires_at.as_ref().map_or(now.wall, system_time),
            command: received.command.clone(),
            verdict: None,
        });
    }

    fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        self.state.apply_outcome(outcome, now);
    }

    fn stand_down(&mut self) {
        self.state.stand_down();
        self.waits(None, Duration::ZERO);
    }

    fn gathers(&self) -> bool {
        // While a mission runs its end is waited for.
        self.state.plan().is_none_or(|plan| plan.ended)
    }

    fn next_deadline(&self, now: Now) -> Option<Duration> {
        self.state.next_deadline(now)
    }

    fn decide(&mut self, now: Now) -> Vec<Action> {
        let actions = self.state.decide(now);
        self.waits(self.state.waits_for(), now.mono);
        actions
    }

    fn perform(&mut self, action: Action, shell: &mut Shell<Self>, now: Now) {
        let bus = shell.agent.bus.clone();
        match action {
            Action::Load { revision, profile } => {
                shell.numbers.decided("load");
                shell.spawn(actions::load(bus, revision, profile));
            }
            Action::WriteDesired { writes, bucket } => {
                shell.numbers.decided("desired");
                tracing::info!(records = writes.len(), "writing what is desired");
                shell.spawn(actions::write_desired(bus, bucket, writes));
            }
            Action::WriteMissions { writes, bucket, ended } => {
                shell.numbers.decided("plan");
                if let Some(ended) = ended {
                    tracing::info!(mission = ended.completed.mission_id, outcome = ended.completed.outcome, "mission ended");
                    self.teller.ended(&ended);
                }
                shell.spawn(actions::write_missions(bus, bucket, writes));
            }
            Action::Publish(event) => {
                shell.numbers.decided("event");
                if matches!(event.fact, Some(Fact::MissionCompleted(_))) {
                    self.teller.completes(&event);
                }
                self.teller.published(&event);
                let stored = shell.offer(&event);
                if !stored {
                    self.state.apply_outcome(Outcome::Published { id: event.id, stored }, now);
                }
            }
            Action::Answer { token, receipt, .. } => {
                if let Some((received, taken)) = shell.command(token) {
                    self.teller.answered(received, &receipt, taken);
                }
                shell.settle(token, *receipt);
            }
        }
    }

    async fn answer(&self, query: &Query, _shell: &Shell<Self>) -> Result<(), BusError> {
        match query.read::<v1::PlanRequest>() {
            Ok(_) => query.answer(&self.state.plan_reply()).await,
            Err(error) => query.refuse(400, &error.to_string()).await,
        }
    }
}
