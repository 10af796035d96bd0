//! The orchestrator's decisions, pure: folds of intents, missions and EVENTS, and `decide`, which works from state and so says the same
//! whoever holds the shard. Clocks and ids are passed in or computed; no IO lives below here.
//! An operator's level (which stack, which profile, what is stopped by hand) is the record `plan`; the `desired` records follow from it.

mod commands;
mod events;
mod facts;
mod mission;
mod owed;
mod query;
mod reconcile;
mod restore;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use razar_bus_schema::{bucket, ids::Instance, v1};

pub use self::{
    commands::{PENDING_MAX, Pending, VERBS},
    events::{AGENT, mission_trace},
    facts::{CommandFacts, Facts, MissionFacts, NodeView, View},
};
use crate::blueprint::Blueprint;
pub use razar_agent_kit::Now;

/// Instances that one plan may have: the broker stores at most so many records as one batch.
pub const INSTANCES_MAX: usize = 1000;
/// Command ids that the plan remembers as settled.
pub const PLAN_SETTLED_MAX: usize = 64;
/// Command ids that a `desired` record remembers as settled.
pub const RECORD_SETTLED_MAX: usize = 16;
/// A published event is published again when it has not come back by then.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// A write is taken for lost by then; the watch has told by that time if it was stored after all.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed action, so that a broker in trouble is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Pause after a stack revision could not be read.
const LOAD_PAUSE: Duration = Duration::from_secs(5);

/// Who decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Mesh.
    pub mesh: String,
    /// Id of this replica.
    pub replica: String,
}

/// A `desired` record as it stands in the bucket; where it was spoiled there, as it was read last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Revision in the bucket.
    pub revision: u64,
    /// The whole record.
    pub intent: Arc<v1::Intent>,
}

impl Record {
    /// What it desires; `None` for a record of a newer version.
    #[must_use]
    pub fn desired(&self) -> Option<&v1::Desired> {
        match &self.intent.want {
            Some(v1::intent::Want::Desired(desired)) => Some(desired),
            _ => None,
        }
    }
}

/// A value with its revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept<T> {
    /// Revision; 0: never written.
    pub revision: u64,
    /// Value; `None`: absent.
    pub value: Option<T>,
}

/// A key of the bucket `missions` with what belongs under it.
#[derive(Debug, Clone, PartialEq)]
pub enum MissionsValue {
    /// `plan`.
    Plan(v1::Mission),
    /// `history.<component>`.
    History(v1::BootHistory),
    /// `brief.<slot>`.
    Brief(u64, v1::MissionBrief),
}

impl MissionsValue {
    /// Key in the bucket.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Plan(_) => bucket::PLAN_KEY.to_owned(),
            Self::History(history) => bucket::history_key(&history.component),
            Self::Brief(slot, _) => bucket::brief_key(*slot),
        }
    }
}

/// What the shell is to do. Each ends in one [`Outcome`], except an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Read a stack revision and make a blueprint of one profile.
    Load {
        /// Content hash.
        revision: String,
        /// Profile.
        profile: String,
    },
    /// Write `desired` records, all or none, each over the revision given.
    WriteDesired {
        /// The writes.
        writes: Vec<(Instance, v1::Intent, u64)>,
        /// Number of the bucket that they are meant for, as this replica counts them.
        bucket: u64,
    },
    /// Write into the bucket `missions`, all or none, each over the revision given.
    WriteMissions {
        /// The writes.
        writes: Vec<(MissionsValue, u64)>,
        /// Number of the bucket that they are meant for, as this replica counts them.
        bucket: u64,
        /// A mission that this ends: its spans are written first, with ids computed from it.
        ended: Option<Box<EndedMission>>,
    },
    /// Publish an event.
    Publish(Box<v1::Event>),
    /// Acknowledge the command and send its receipt.
    Answer {
        /// Handle of the shell.
        token: u64,
        /// Verb, for the count.
        verb: String,
        /// The receipt.
        receipt: Box<v1::Receipt>,
    },
}

/// A mission that has ended, for its spans.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedMission {
    /// How it began.
    pub started: v1::MissionStarted,
    /// How it ended.
    pub completed: v1::MissionCompleted,
    /// When it began.
    pub started_at: prost_types::Timestamp,
    /// When all was planned and written.
    pub planned_at: prost_types::Timestamp,
    /// When it ended.
    pub ended_at: prost_types::Timestamp,
    /// Its trace.
    pub trace: v1::TraceContext,
}

/// Why a write did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// Somebody wrote before.
    Conflict,
    /// It may or may not have been stored; the watch will tell.
    Unknown,
}

/// Why a revision gave no blueprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The store could not be read; to be tried again.
    Unavailable(String),
    /// It will never do: code and text of the refusal, and the nearest known names.
    Refused(String, String, Vec<String>),
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Action::Load`].
    Loaded {
        /// Content hash.
        revision: String,
        /// Profile.
        profile: String,
        /// The blueprint, or why there is none.
        result: Result<Arc<Blueprint>, LoadError>,
    },
    /// Of [`Action::WriteDesired`].
    WroteDesired {
        /// What was written.
        writes: Vec<(Instance, v1::Intent, u64)>,
        /// Number of the bucket that it was meant for: it says nothing of another one.
        bucket: u64,
        /// Its revisions in the same order.
        result: Result<Vec<u64>, WriteError>,
    },
    /// Of [`Action::WriteMissions`], likewise.
    WroteMissions {
        /// What was written.
        writes: Vec<(MissionsValue, u64)>,
        /// Number of the bucket that it was meant for.
        bucket: u64,
        /// Its revisions in the same order.
        result: Result<Vec<u64>, WriteError>,
    },
    /// Of [`Action::Publish`]: stored, or not known to be.
    Published {
        /// Id of the event.
        id: String,
        /// Stored.
        stored: bool,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Loaded {
    Blueprint(Arc<Blueprint>),
    Refused(String, String, Vec<String>),
}

/// Everything that the orchestrator knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    who: Identity,
    bucket_epoch: String,
    /// Numbers of that bucket, and of the bucket of missions: which one a write was meant for.
    intents_bucket: u64,
    missions_bucket: u64,
    /// Bucket whose mark quarantine has set: all that it knew is written there.
    marked: String,
    records: BTreeMap<Instance, Record>,
    /// Records that somebody else deleted or overwrote with what is none.
    spoiled: BTreeSet<Instance>,
    plan: Kept<v1::Mission>,
    plan_since: Duration,
    histories: BTreeMap<String, Kept<v1::BootHistory>>,
    briefs: BTreeMap<u64, Kept<v1::MissionBrief>>,
    facts: Facts,
    pending: VecDeque<Pending>,
    blueprints: BTreeMap<(String, String), Loaded>,
    load_after: BTreeMap<(String, String), Duration>,
    write_until: Option<Duration>,
    publishing: BTreeMap<String, Duration>,
}

impl State {
    /// An orchestrator that knows nothing yet.
    #[must_use]
    pub fn new(who: Identity) -> Self {
        Self { who, ..Self::default() }
    }

    /// The bucket of intents has this epoch: what was read of another one is void.
    pub fn apply_intents_epoch(&mut self, epoch: &str) {
        if self.bucket_epoch != epoch {
            epoch.clone_into(&mut self.bucket_epoch);
            self.intents_bucket += 1;
            self.records.clear();
            self.spoiled.clear();
            self.write_until = None;
        }
    }

    /// Quarantine has written all that it knew into the bucket of this epoch.
    pub fn apply_mark(&mut self, bucket_epoch: &str) {
        bucket_epoch.clone_into(&mut self.marked);
    }

    /// A `desired` record was read or written.
    pub fn apply_record(&mut self, instance: &Instance, revision: u64, intent: Arc<v1::Intent>) {
        if self.records.get(instance).is_some_and(|r| r.revision >= revision) {
            return;
        }
        let Some(v1::intent::Want::Desired(desired)) = &intent.want else {
            self.apply_spoiled(instance, revision);
            return;
        };
        self.facts.note_generation(instance, desired.generation);
        self.spoiled.remove(instance);
        self.records.insert(instance.clone(), Record { revision, intent });
    }

    /// Somebody deleted a `desired` record, or wrote there what is none: what it said still stands here, and is to be written again.
    pub fn apply_spoiled(&mut self, instance: &Instance, revision: u64) {
        let record = self.records.entry(instance.clone()).or_default();
        if record.revision < revision {
            record.revision = revision;
            self.spoiled.insert(instance.clone());
        }
    }

    /// The bucket of missions has another epoch. What was read of the one before still stands here, and is to be written again if the
    /// new one does not say otherwise: absence says nothing.
    pub fn apply_missions_epoch(&mut self) {
        self.missions_bucket += 1;
        self.write_until = None;
        self.plan.revision = 0;
        self.histories.values_mut().for_each(|h| h.revision = 0);
        self.briefs.values_mut().for_each(|b| b.revision = 0);
    }

    /// A key of the bucket `missions` was read or written; `None`: deleted, or unreadable.
    pub fn apply_missions(&mut self, key: &str, revision: u64, value: Option<MissionsValue>, now: Now) {
        match value {
            Some(MissionsValue::Plan(plan)) => self.keep_plan(revision, Some(plan), now),
            Some(MissionsValue::History(history)) => {
                let kept = self.histories.entry(history.component.clone()).or_default();
                keep(kept, revision, Some(history));
            }
            Some(MissionsValue::Brief(slot, brief)) => keep(self.briefs.entry(slot).or_default(), revision, Some(brief)),
            None if key == bucket::PLAN_KEY => self.keep_plan(revision, None, now),
            None => {
                if let Some(component) = key.strip_prefix("history.") {
                    keep(self.histories.entry(component.to_owned()).or_default(), revision, None);
                }
            }
        }
    }

    fn keep_plan(&mut self, revision: u64, plan: Option<v1::Mission>, now: Now) {
        if revision > self.plan.revision {
            self.plan = Kept { revision, value: plan };
            self.plan_since = now.mono;
            self.forget_blueprints();
        }
    }

    /// EVENTS is read from its beginning: what was folded is void.
    pub fn apply_reset(&mut self) {
        self.facts = Facts::default();
        self.publishing.clear();
        for (instance, record) in &self.records {
            if let Some(desired) = record.desired() {
                self.facts.note_generation(instance, desired.generation);
            }
        }
    }

    /// The newest snapshot of registry's projection of this stream, after a reset: the base that the stream is folded over.
    pub fn apply_snapshot(&mut self, snapshot: &v1::Observed, now: Now) {
        self.facts.seed(snapshot, now);
    }

    /// An event of EVENTS.
    pub fn apply_event(&mut self, sequence: u64, event: &v1::Event, now: Now) {
        self.facts.apply(sequence, event, now);
        self.publishing.remove(&event.id);
    }

    /// A command was read from the stream. A repeated delivery of one that still waits replaces its handle.
    pub fn apply_command(&mut self, command: Pending) {
        // Whoever applies a revision has stored it just before: what was said of it earlier no longer holds.
        let refused = |key: &(String, String)| matches!(self.blueprints.get(key), Some(Loaded::Refused(..)));
        if let Some(key) = self.blueprint_for(&command).filter(refused) {
            self.blueprints.remove(&key);
        }
        match self.pending.iter_mut().find(|p| p.id == command.id) {
            Some(waiting) => waiting.token = command.token,
            None => self.pending.push_back(command),
        }
    }

    /// The shard was lost: commands that are not answered go to whoever holds it now.
    pub fn stand_down(&mut self) {
        self.pending.clear();
        self.publishing.clear();
        self.write_until = None;
    }

    /// What came of an action.
    pub fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            Outcome::Loaded { revision, profile, result } => self.keep_blueprint((revision, profile), result, now),
            // What was written is gone with its bucket; nodes may have read of its generations before.
            Outcome::WroteDesired { writes, bucket, .. } if bucket != self.intents_bucket => self.note_generations(&writes),
            Outcome::WroteMissions { bucket, .. } if bucket != self.missions_bucket => {}
            Outcome::WroteDesired { writes, result: Ok(revisions), .. } => {
                self.write_until = None;
                for ((instance, intent, _), revision) in writes.into_iter().zip(revisions) {
                    self.apply_record(&instance, revision, Arc::new(intent));
                }
            }
            Outcome::WroteMissions { writes, result: Ok(revisions), .. } => {
                self.write_until = None;
                for ((value, _), revision) in writes.into_iter().zip(revisions) {
                    self.apply_missions(&value.key(), revision, Some(value), now);
                }
            }
            Outcome::WroteDesired { result: Err(_), .. } | Outcome::WroteMissions { result: Err(_), .. } => {
                self.write_until = Some(now.mono + RETRY_PAUSE)
            }
            Outcome::Published { id, stored } => {
                if !stored && let Some(until) = self.publishing.get_mut(&id) {
                    *until = now.mono + RETRY_PAUSE;
                }
            }
        }
    }

    fn note_generations(&mut self, writes: &[(Instance, v1::Intent, u64)]) {
        for (instance, intent, _) in writes {
            if let Some(v1::intent::Want::Desired(desired)) = &intent.want {
                self.facts.note_generation(instance, desired.generation);
            }
        }
    }

    fn keep_blueprint(&mut self, key: (String, String), result: Result<Arc<Blueprint>, LoadError>, now: Now) {
        self.load_after.remove(&key);
        match result {
            Ok(blueprint) => {
                self.blueprints.insert(key, Loaded::Blueprint(blueprint));
            }
            Err(LoadError::Refused(code, text, nearest)) => {
                self.blueprints.insert(key, Loaded::Refused(code, text, nearest));
            }
            Err(LoadError::Unavailable(_)) => {
                self.load_after.insert(key, now.mono + LOAD_PAUSE);
            }
        }
    }

    /// Blueprints are kept for the plan in force and for commands that wait, no others: I16.
    fn forget_blueprints(&mut self) {
        let mut needed: Vec<(String, String)> = self.pending.iter().filter_map(|p| self.blueprint_for(p)).collect();
        needed.extend(self.in_force().map(|m| (m.stack_revision.clone(), m.profile.clone())));
        self.blueprints.retain(|key, _| needed.contains(key));
        self.load_after.retain(|key, _| needed.contains(key));
    }

    /// The mission whose stack is in force; `None`: none is, or everything is to be down.
    #[must_use]
    pub fn in_force(&self) -> Option<&v1::Mission> {
        self.plan.value.as_ref().filter(|m| !m.stack_revision.is_empty() && !m.mission_id.is_empty())
    }

    /// The record `plan`.
    #[must_use]
    pub fn plan(&self) -> Option<&v1::Mission> {
        self.plan.value.as_ref().filter(|m| !m.mission_id.is_empty())
    }

    /// The `desired` records.
    #[must_use]
    pub const fn records(&self) -> &BTreeMap<Instance, Record> {
        &self.records
    }

    /// What was folded from EVENTS.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Commands that are not answered yet.
    #[must_use]
    pub fn waiting_commands(&self) -> usize {
        self.pending.len()
    }

    fn blueprint(&self) -> Option<&Arc<Blueprint>> {
        let plan = self.in_force()?;
        match self.blueprints.get(&(plan.stack_revision.clone(), plan.profile.clone()))? {
            Loaded::Blueprint(blueprint) => Some(blueprint),
            Loaded::Refused(..) => None,
        }
    }

    /// What is to be done now. Marks what it returns as under way, so that asking again asks for nothing twice.
    pub fn decide(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in self.owed_events(now) {
            self.publish(event, now, &mut actions);
        }
        self.answer(&mut actions);
        self.load(now, &mut actions);
        if self.write_until.is_none_or(|until| until <= now.mono)
            && let Some(write) = self.next_write(now)
        {
            self.write_until = Some(now.mono + WRITE_LIMIT);
            actions.push(write);
        }
        // A refusal is an event as well, and comes of looking at the commands.
        for event in self.refusals(now) {
            self.publish(event, now, &mut actions);
        }
        actions
    }

    fn publish(&mut self, event: v1::Event, now: Now, actions: &mut Vec<Action>) {
        let under_way = self.publishing.get(&event.id).is_some_and(|until| *until > now.mono);
        if !under_way && !self.facts.is_told(&event.id) {
            self.publishing.insert(event.id.clone(), now.mono + PUBLISH_LIMIT);
            actions.push(Action::Publish(Box::new(event)));
        }
    }

    fn load(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut wanted: Vec<(String, String)> = self.pending.front().and_then(|p| self.blueprint_for(p)).into_iter().collect();
        wanted.extend(self.in_force().map(|m| (m.stack_revision.clone(), m.profile.clone())));
        wanted.sort();
        wanted.dedup();
        for key in wanted {
            let waits = self.load_after.get(&key).is_some_and(|after| *after > now.mono);
            if !waits && !self.blueprints.contains_key(&key) {
                self.load_after.insert(key.clone(), now.mono + WRITE_LIMIT);
                actions.push(Action::Load { revision: key.0, profile: key.1 });
            }
        }
    }

    /// At most one write is under way: a plan that its bucket lost, the end of a mission, then the oldest command, then what follows from the plan.
    fn next_write(&mut self, now: Now) -> Option<Action> {
        let lost = self.write_lost_plan();
        lost.or_else(|| self.end_mission()).or_else(|| self.next_command(now)).or_else(|| self.reconcile(now))
    }

    /// When, after `now`, time alone changes something; `None`: never. What was due by now [`State::decide`] has seen to.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        let mut all: Vec<Duration> = self.publishing.values().copied().collect();
        all.extend(self.write_until);
        all.extend(self.load_after.values().copied());
        all.extend(self.mission_deadline());
        all.extend(self.command_deadline());
        all.into_iter().filter(|at| *at > now.mono).min()
    }
}

fn keep<T>(kept: &mut Kept<T>, revision: u64, value: Option<T>) {
    if revision > kept.revision {
        *kept = Kept { revision, value };
    }
}
