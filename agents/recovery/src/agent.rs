//! The wiring: messages become inputs of the policy, its actions become IO. Nothing about components is decided here.

use std::sync::Arc;

use razar_agent_kit::{Agent, Decider, Entry, Folded, Hops, Nothing, Now, Shell, deciding};
use razar_bus::BusError;
use razar_bus_schema::{
    bucket::IntentKey,
    shard::Shards,
    v1::{self, intent::Want},
};

use crate::{
    AGENT, actions,
    config::Settings,
    policy::{Action, Identity, Outcome, State},
    spans::Teller,
};

/// Recovery around its policy.
#[derive(Debug)]
struct Recovery {
    state: State,
    teller: Teller,
}

/// Runs recovery until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run(agent: Agent<Settings>) -> Result<(), BusError> {
    let who = Identity { mesh: agent.config.mesh.clone(), replica: agent.config.replica.clone() };
    let hops = Hops::new(agent.spans.clone(), AGENT, &agent.config.mesh, agent.bus.subjects());
    let recovery = Recovery { state: State::new(who, agent.settings.limits()), teller: Teller::new(hops) };
    let entry = Entry {
        purpose: "climbs the ladder with what its node has given up",
        endpoints: Vec::new(),
        lease_ttl: agent.settings.lease_ttl(),
        source: Nothing,
    };
    deciding::run(agent, recovery, entry).await
}

impl Decider for Recovery {
    const AGENT: &'static str = AGENT;
    const SNAPSHOT: bool = true;
    const DIVIDED: bool = true;
    type Settings = Settings;
    type Action = Action;
    type Outcome = Outcome;
    type Source = Nothing;

    fn apply_reset(&mut self, _epoch: &str, snapshot: Option<&v1::Observed>, _now: Now) {
        self.state.apply_reset();
        if let Some(snapshot) = snapshot {
            self.state.apply_snapshot(snapshot);
        }
    }

    fn apply_event(&mut self, folded: &Folded<'_>, now: Now) {
        self.state.apply_event(folded.sequence, folded.event, folded.stored, now);
    }

    fn apply_caught_up(&mut self, _sequence: u64, _now: Now) {
        self.state.apply_caught_up();
    }

    fn apply_intents_epoch(&mut self, epoch: &str, _now: Now) {
        self.state.apply_intents_epoch(epoch);
    }

    fn apply_intent(&mut self, key: &IntentKey, revision: u64, intent: Option<Arc<v1::Intent>>, now: Now) {
        match (key, intent) {
            (IntentKey::Recovery(instance), intent) => self.state.apply_record(instance, revision, intent, now),
            (IntentKey::Escalation(node), intent) => self.state.apply_escalations(node, revision, intent, now),
            (IntentKey::Desired(instance), Some(intent)) => self.state.apply_desired(instance, revision, intent),
            (IntentKey::QuarantineComponent(component), Some(intent)) => {
                if let Some(Want::Quarantine(quarantine)) = &intent.want {
                    self.state.apply_quarantine(component, None, revision, quarantine.phase());
                }
            }
            (IntentKey::QuarantineInstance(instance), Some(intent)) => {
                if let Some(Want::Quarantine(quarantine)) = &intent.want {
                    self.state.apply_quarantine(&instance.component, Some(instance.ordinal), revision, quarantine.phase());
                }
            }
            // Absence says nothing: of others' records the last word stands; its own is written over.
            _ => {}
        }
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

    fn next_deadline(&self, now: Now) -> Option<std::time::Duration> {
        self.state.next_deadline(now)
    }

    fn decide(&mut self, now: Now) -> Vec<Action> {
        self.state.decide(now)
    }

    fn perform(&mut self, action: Action, shell: &mut Shell<Self>, now: Now) {
        let bus = shell.agent.bus.clone();
        match action {
            Action::Write(write) => {
                shell.numbers.decided("order");
                let why = write.intent.reason.as_ref().map_or("", |r| r.text.as_str());
                tracing::info!(instance = %write.instance, why, "order");
                shell.spawn(actions::write(bus, write));
            }
            Action::Announce(announce) => {
                shell.numbers.decided("announce");
                shell.spawn(actions::announce(bus, announce));
            }
            Action::Ask { instance, nodes } => {
                shell.numbers.decided("ask");
                shell.spawn(actions::ask(bus, instance, nodes));
            }
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
}
