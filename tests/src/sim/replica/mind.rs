//! The policies of the agents that decide, as they are, behind one face: what each folds, what it decides, what it hears of that.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use razar_agent_kit::{Now, deciding::LEASE_SECONDS};
use razar_bus_schema::{
    bucket::IntentKey,
    ids::Instance,
    v1::{self, intent::Want},
};
use razar_orchestrator::policy::{self as orchestrator, MissionsValue};
use razar_quarantine::policy as quarantine;
use razar_recovery::policy as recovery;
use razar_watchdog::policy as watchdog;

use super::super::{
    ailments::Figures,
    bus::{Queued, Stored},
};

/// A command expires so long after it was stored, by the broker's clock.
const COMMAND_AGE_MAX: Duration = Duration::from_secs(60);

/// Which agent a replica is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trade {
    /// The orchestrator.
    Orchestrator,
    /// Recovery.
    Recovery,
    /// Quarantine.
    Quarantine,
    /// The watchdog.
    Watchdog,
}

impl Trade {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Orchestrator, Self::Recovery, Self::Quarantine, Self::Watchdog];

    /// As the story names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Orchestrator => "orch",
            Self::Recovery => "recovery",
            Self::Quarantine => "quarantine",
            Self::Watchdog => "watchdog",
        }
    }

    /// Kind of its agent, as events and beats name it.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Orchestrator => razar_orchestrator::AGENT,
            Self::Recovery => razar_recovery::AGENT,
            Self::Quarantine => razar_quarantine::AGENT,
            Self::Watchdog => razar_watchdog::AGENT,
        }
    }

    /// Id of replica `r`, the same in each of its lives.
    #[must_use]
    pub fn id(self, r: usize) -> String {
        format!("{}{r}", self.name())
    }

    /// Time to live of its shard's lease, as it is shipped.
    #[must_use]
    pub const fn lease_ttl(self) -> Duration {
        Duration::from_secs(LEASE_SECONDS)
    }
}

/// What a replica does.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Deed {
    Publish(Box<v1::Event>),
    Answer { token: u64, receipt: Box<v1::Receipt> },
    Load { revision: String, profile: String },
    WriteDesired { bucket: u64, writes: Vec<(Instance, v1::Intent, u64)> },
    WriteMissions { bucket: u64, writes: Vec<(MissionsValue, u64)> },
    Order(Box<recovery::Write>),
    Announce(Box<recovery::Announce>),
    Isolate { bucket: u64, writes: quarantine::Writes },
    Ask { instance: Instance, nodes: BTreeSet<String> },
    Ping { node: String, limit: Duration },
    Look { node: String, instance: Instance },
    Measure { node: String },
}

impl Deed {
    /// Keys that it writes.
    #[must_use]
    pub fn keys(&self) -> Option<Vec<String>> {
        match self {
            Self::WriteDesired { writes, .. } => Some(writes.iter().map(|(id, ..)| IntentKey::Desired(id.clone()).to_string()).collect()),
            Self::WriteMissions { writes, .. } => Some(writes.iter().map(|(value, _)| value.key()).collect()),
            Self::Order(write) => Some(vec![IntentKey::Recovery(write.instance.clone()).to_string()]),
            Self::Announce(announce) => Some(vec![IntentKey::Escalation(announce.node.clone()).to_string()]),
            Self::Isolate { writes, .. } => Some(writes.iter().map(|(key, ..)| key.to_string()).collect()),
            Self::Publish(_) | Self::Answer { .. } | Self::Load { .. } | Self::Ask { .. } => None,
            Self::Ping { .. } | Self::Look { .. } | Self::Measure { .. } => None,
        }
    }
}

/// What a replica hears of what it did.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Heard {
    Orchestrator(orchestrator::Outcome),
    Recovery(recovery::Outcome),
    Quarantine(quarantine::Outcome),
    Watchdog(watchdog::Outcome),
    Published { id: String, stored: bool },
}

/// The policy of a replica.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Mind {
    Orchestrator(Box<orchestrator::State>),
    Recovery(Box<recovery::State>),
    Quarantine(Box<quarantine::State>),
    Watchdog(Box<watchdog::State>),
}

impl Mind {
    /// A policy that knows nothing yet.
    #[must_use]
    pub fn new(trade: Trade, replica: String, figures: &Figures) -> Self {
        let mesh = "razar".to_owned();
        match trade {
            Trade::Orchestrator => Self::Orchestrator(Box::new(orchestrator::State::new(orchestrator::Identity { mesh, replica }))),
            Trade::Recovery => Self::Recovery(Box::new(recovery::State::new(recovery::Identity { mesh, replica }, figures.ladder))),
            Trade::Quarantine => {
                Self::Quarantine(Box::new(quarantine::State::new(quarantine::Identity { mesh, replica }, figures.quarantine)))
            }
            Trade::Watchdog => {
                Self::Watchdog(Box::new(watchdog::State::new(watchdog::Identity { mesh, replica }, watchdog::Limits::default())))
            }
        }
    }

    /// EVENTS is read from its beginning, over a snapshot for whoever asks for one.
    pub fn apply_reset(&mut self, snapshot: Option<&v1::Observed>, now: Now) {
        match self {
            Self::Orchestrator(state) => state.apply_reset(),
            Self::Recovery(state) => {
                state.apply_reset();
                if let Some(snapshot) = snapshot {
                    state.apply_snapshot(snapshot);
                }
            }
            Self::Quarantine(state) => state.apply_reset(),
            Self::Watchdog(state) => {
                state.apply_reset();
                if let Some(snapshot) = snapshot {
                    state.apply_snapshot(snapshot, now);
                }
            }
        }
    }

    /// The line stands again.
    pub fn apply_connected(&mut self, now: Now) {
        if let Self::Watchdog(state) = self {
            state.apply_disconnected();
            state.apply_connected(now);
        }
    }

    /// An event was read.
    pub fn apply_event(&mut self, stored: &Stored, now: Now) {
        match self {
            Self::Orchestrator(state) => state.apply_event(stored.sequence, &stored.event, now),
            Self::Recovery(state) => state.apply_event(stored.sequence, &stored.event, stored.wall, now),
            Self::Quarantine(state) => state.apply_event(stored.sequence, &stored.event, now),
            Self::Watchdog(state) => state.apply_event(stored.sequence, &stored.event, stored.wall, now),
        }
    }

    /// Everything told before is read.
    pub fn apply_caught_up(&mut self) {
        if let Self::Recovery(state) = self {
            state.apply_caught_up();
        }
    }

    /// The shard or the line was lost.
    pub fn stand_down(&mut self) {
        match self {
            Self::Orchestrator(state) => state.stand_down(),
            Self::Recovery(state) => state.stand_down(),
            Self::Quarantine(state) => state.stand_down(),
            Self::Watchdog(state) => state.stand_down(),
        }
    }

    /// The bucket of intents has this epoch; `marked`: nobody else will say that quarantine is written.
    pub fn apply_intents_epoch(&mut self, epoch: &str, marked: bool) {
        match self {
            Self::Orchestrator(state) => {
                state.apply_intents_epoch(epoch);
                if marked {
                    state.apply_mark(epoch);
                }
            }
            Self::Recovery(state) => state.apply_intents_epoch(epoch),
            Self::Quarantine(state) => state.apply_intents_epoch(epoch),
            Self::Watchdog(state) => state.apply_intents_epoch(epoch),
        }
    }

    /// A record was read; none: somebody spoiled or deleted it.
    pub fn apply_entry(&mut self, key: &str, revision: u64, intent: Option<Arc<v1::Intent>>, now: Now) {
        let Some(key) = IntentKey::parse(key) else { return };
        match self {
            Self::Orchestrator(state) => match (key, intent) {
                (IntentKey::Desired(id), Some(intent)) => state.apply_record(&id, revision, intent),
                (IntentKey::Desired(id), None) => state.apply_spoiled(&id, revision),
                (IntentKey::Mark(writer), Some(intent)) if writer == razar_quarantine::AGENT => {
                    if let Some(Want::Mark(mark)) = &intent.want {
                        state.apply_mark(&mark.bucket_epoch);
                    }
                }
                _ => {}
            },
            Self::Recovery(state) => match (key, intent) {
                (IntentKey::Desired(id), Some(intent)) => state.apply_desired(&id, revision, intent),
                (IntentKey::Recovery(id), intent) => state.apply_record(&id, revision, intent, now),
                (IntentKey::Escalation(node), intent) => state.apply_escalations(&node, revision, intent, now),
                (IntentKey::QuarantineComponent(component), Some(intent)) => {
                    if let Some(Want::Quarantine(quarantine)) = &intent.want {
                        state.apply_quarantine(&component, None, revision, quarantine.phase());
                    }
                }
                (IntentKey::QuarantineInstance(id), Some(intent)) => {
                    if let Some(Want::Quarantine(quarantine)) = &intent.want {
                        state.apply_quarantine(&id.component, Some(id.ordinal), revision, quarantine.phase());
                    }
                }
                _ => {}
            },
            Self::Quarantine(state) => match intent {
                Some(intent) => state.apply_record(&key, revision, intent, now),
                None => state.apply_spoiled(&key, revision),
            },
            Self::Watchdog(state) => {
                if let (IntentKey::Desired(id), Some(intent)) = (key, intent) {
                    state.apply_desired(&id, revision, intent, now);
                }
            }
        }
    }

    /// The bucket of missions is another one.
    pub fn apply_missions_epoch(&mut self) {
        if let Self::Orchestrator(state) = self {
            state.apply_missions_epoch();
        }
    }

    /// A record of missions was read.
    pub fn apply_missions(&mut self, key: &str, revision: u64, value: MissionsValue, now: Now) {
        if let Self::Orchestrator(state) = self {
            state.apply_missions(key, revision, Some(value), now);
        }
    }

    /// A command was delivered.
    pub fn apply_command(&mut self, token: u64, queued: &Queued) {
        let (id, verb, target) = (queued.id.clone(), queued.verb.clone(), queued.target.clone());
        let (command, expires) = (queued.command.clone(), queued.stored_wall + COMMAND_AGE_MAX);
        match self {
            Self::Orchestrator(state) => {
                state.apply_command(orchestrator::Pending { token, id, verb, target, command, expires, verdict: None });
            }
            Self::Quarantine(state) => {
                state.apply_command(quarantine::Pending { token, id, verb, target, command, expires, refusal: None });
            }
            Self::Recovery(_) | Self::Watchdog(_) => {}
        }
    }

    /// What came of a deed.
    pub fn apply_heard(&mut self, heard: Heard, now: Now) {
        match (self, heard) {
            (Self::Orchestrator(state), Heard::Orchestrator(outcome)) => state.apply_outcome(outcome, now),
            (Self::Recovery(state), Heard::Recovery(outcome)) => state.apply_outcome(outcome, now),
            (Self::Quarantine(state), Heard::Quarantine(outcome)) => state.apply_outcome(outcome, now),
            (Self::Watchdog(state), Heard::Watchdog(outcome)) => state.apply_outcome(outcome, now),
            _ => {}
        }
    }

    /// An event was not taken.
    pub fn not_published(&mut self, id: String, now: Now) {
        let stored = false;
        match self {
            Self::Orchestrator(state) => state.apply_outcome(orchestrator::Outcome::Published { id, stored }, now),
            Self::Recovery(state) => state.apply_outcome(recovery::Outcome::Published { id, stored }, now),
            Self::Quarantine(state) => state.apply_outcome(quarantine::Outcome::NotPublished(id), now),
            Self::Watchdog(state) => state.apply_outcome(watchdog::Outcome::Published { id, stored }, now),
        }
    }

    /// What is to be done now.
    pub fn decide(&mut self, now: Now) -> Vec<Deed> {
        match self {
            Self::Orchestrator(state) => state.decide(now).into_iter().map(Deed::from).collect(),
            Self::Recovery(state) => state.decide(now).into_iter().map(Deed::from).collect(),
            Self::Quarantine(state) => state.decide(now).into_iter().map(Deed::from).collect(),
            Self::Watchdog(state) => state.decide(now).into_iter().filter_map(deed).collect(),
        }
    }

    /// When time alone changes something.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        match self {
            Self::Orchestrator(state) => state.next_deadline(now),
            Self::Recovery(state) => state.next_deadline(now),
            Self::Quarantine(state) => state.next_deadline(now),
            Self::Watchdog(state) => state.next_deadline(now),
        }
    }

    /// The orchestrator's.
    #[must_use]
    pub fn orchestrator(&self) -> Option<&orchestrator::State> {
        match self {
            Self::Orchestrator(state) => Some(state),
            Self::Recovery(_) | Self::Quarantine(_) | Self::Watchdog(_) => None,
        }
    }
}

impl From<orchestrator::Action> for Deed {
    fn from(action: orchestrator::Action) -> Self {
        match action {
            orchestrator::Action::Load { revision, profile } => Self::Load { revision, profile },
            orchestrator::Action::WriteDesired { writes, bucket } => Self::WriteDesired { bucket, writes },
            orchestrator::Action::WriteMissions { writes, bucket, .. } => Self::WriteMissions { bucket, writes },
            orchestrator::Action::Publish(event) => Self::Publish(event),
            orchestrator::Action::Answer { token, receipt, .. } => Self::Answer { token, receipt },
        }
    }
}

impl From<recovery::Action> for Deed {
    fn from(action: recovery::Action) -> Self {
        match action {
            recovery::Action::Write(write) => Self::Order(write),
            recovery::Action::Announce(announce) => Self::Announce(announce),
            recovery::Action::Publish(event) => Self::Publish(event),
            recovery::Action::Ask { instance, nodes } => Self::Ask { instance, nodes },
        }
    }
}

impl From<quarantine::Action> for Deed {
    fn from(action: quarantine::Action) -> Self {
        match action {
            quarantine::Action::Write { bucket, writes } => Self::Isolate { bucket, writes },
            quarantine::Action::Publish(event) => Self::Publish(event),
            quarantine::Action::Answer { token, receipt, .. } => Self::Answer { token, receipt },
        }
    }
}

/// What the watchdog's action is; none: an echo, which takes no lease.
fn deed(action: watchdog::Action) -> Option<Deed> {
    Some(match action {
        watchdog::Action::Echo(_) => return None,
        watchdog::Action::Ping { node, limit } => Deed::Ping { node, limit },
        watchdog::Action::Look { node, instance } => Deed::Look { node, instance },
        watchdog::Action::Measure { node } => Deed::Measure { node },
        watchdog::Action::Publish(event) => Deed::Publish(event),
    })
}
