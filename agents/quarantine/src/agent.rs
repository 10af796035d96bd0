//! The wiring: messages become inputs of the policy, its actions become IO. Nothing about components is decided here.

use std::sync::Arc;

use razar_agent_kit::{Agent, Decider, Entry, Folded, Hops, Nothing, Now, Shell, deciding};
use razar_bus::{BusError, ReceivedCommand};
use razar_bus_schema::{bucket::IntentKey, shard::Shards, time::system_time, v1};

use crate::{
    AGENT, actions,
    config::Settings,
    policy::{Action, Identity, Outcome, Pending, State, VERBS},
};

/// Quarantine around its policy.
#[derive(Debug)]
struct Quarantine {
    state: State,
    hops: Hops,
}

/// Runs quarantine until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let who = Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() };
    let hops = Hops::new(agent.spans.clone(), AGENT, &agent.config.mesh, agent.bus.subjects());
    let quarantine = Quarantine { state: State::new(who, agent.settings.limits()), hops };
    let entry = Entry {
        purpose: "isolates what cannot be healed, and says how it earns release",
        endpoints: Vec::new(),
        lease_ttl: agent.settings.lease_ttl(),
        source: Nothing,
    };
    deciding::run(agent, quarantine, entry).await
}

impl Decider for Quarantine {
    const AGENT: &'static str = AGENT;
    const DIVIDED: bool = true;
    const VERBS: &'static [&'static str] = &VERBS;
    type Settings = Settings;
    type Action = Action;
    type Outcome = Outcome;
    type Source = Nothing;

    fn apply_reset(&mut self, _epoch: &str, _snapshot: Option<&v1::Observed>, _now: Now) {
        self.state.apply_reset();
    }

    fn apply_event(&mut self, folded: &Folded<'_>, now: Now) {
        self.state.apply_stored(folded.event, folded.stored, now);
        self.state.apply_event(folded.sequence, folded.event, now);
    }

    fn apply_caught_up(&mut self, _sequence: u64, _now: Now) {
        self.state.apply_caught_up();
    }

    fn apply_intents_epoch(&mut self, epoch: &str, _now: Now) {
        self.state.apply_intents_epoch(epoch);
    }

    fn apply_intent(&mut self, key: &IntentKey, revision: u64, intent: Option<Arc<v1::Intent>>, now: Now) {
        match intent {
            Some(intent) => self.state.apply_record(key, revision, intent, now),
            None => self.state.apply_spoiled(key, revision),
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
            refusal: None,
        });
    }

    fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        self.state.apply_outcome(outcome, now);
    }

    fn apply_shards(&mut self, shards: &Shards, _now: Now) {
        self.state.apply_shards(shards);
    }

    fn stand_down(&mut self) {
        self.state.stand_down();
    }

    fn gathers(&self) -> bool {
        true
    }

    fn next_deadline(&self, now: Now) -> Option<std::time::Duration> {
        self.state.next_deadline(now)
    }

    fn decide(&mut self, now: Now) -> Vec<Action> {
        self.state.decide(now)
    }

    fn perform(&mut self, action: Action, shell: &mut Shell<Self>, now: Now) {
        match action {
            Action::Write { bucket, writes } => {
                shell.numbers.decided("write");
                for (key, intent, _) in &writes {
                    tracing::info!(%key, why = intent.reason.as_ref().map_or("", |r| r.text.as_str()), "writing a record");
                }
                shell.spawn(actions::write(shell.agent.bus.clone(), bucket, writes));
            }
            Action::Publish(event) => {
                shell.numbers.decided("event");
                self.hops.sent(&event);
                if !shell.offer(&event) {
                    self.state.apply_outcome(Outcome::NotPublished(event.id), now);
                }
            }
            Action::Answer { token, receipt, .. } => {
                if let Some((received, taken)) = shell.command(token) {
                    self.hops.answered(received, &receipt, taken);
                }
                shell.settle(token, *receipt);
            }
        }
    }
}
