//! Quarantine's decisions, pure: folds of `intents` and EVENTS, and `decide`, which works from state and so says the same whoever holds the
//! shard. Clocks are passed in, ids computed; no IO lives below here.

mod clock;
mod commands;
mod epoch;
mod events;
mod facts;
pub mod issue;
mod moves;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    bucket::IntentKey,
    ids::Instance,
    shard::Shards,
    startup,
    v1::{self, QuarantinePhase as Phase, intent::Want},
};

pub use self::{
    commands::{PENDING_MAX, Pending, VERBS},
    events::AGENT,
    facts::{CommandFacts, Facts, RecoveryFailed, View},
};
pub use razar_agent_kit::Now;

/// Command ids that a record remembers as settled.
pub const RECORD_SETTLED_MAX: usize = 16;
/// Records written as one batch; the broker stores at most a thousand.
const BATCH_MAX: usize = 500;
/// Keys and instances that are remembered.
const ENTITIES_MAX: usize = 8192;
/// A published event is published again when it has not come back by then.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// A write is taken for lost by then; the watch has told by that time if it was stored after all.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed action, so that a broker in trouble is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Records to be written all or none, each over the revision given.
pub type Writes = Vec<(IntentKey, v1::Intent, u64)>;

/// Who decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Mesh.
    pub mesh: String,
    /// Id of this replica.
    pub replica: String,
}

/// How long things take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Isolation before probation, where nobody says how long.
    pub isolation: Duration,
    /// What is on probation has to stay ready for so long before it is released.
    pub soak: Duration,
}

/// A `quarantine` record as it was read last.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Revision in the present bucket; 0: that bucket does not have it.
    pub revision: u64,
    /// When this replica read what it says; durations count from here.
    pub received: Duration,
    /// The whole record.
    pub intent: Arc<v1::Intent>,
}

impl Record {
    /// What it says; `None` for a record of a newer version.
    #[must_use]
    pub fn want(&self) -> Option<&v1::Quarantine> {
        match &self.intent.want {
            Some(Want::Quarantine(want)) => Some(want),
            _ => None,
        }
    }

    /// Its phase; one that cannot be read is isolation, the safe side.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.want().map(v1::Quarantine::phase) {
            Some(Phase::Probation) => Phase::Probation,
            Some(Phase::Released) => Phase::Released,
            Some(Phase::Isolated | Phase::Unspecified) | None => Phase::Isolated,
        }
    }

    /// The reason that it carries.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.intent.reason.as_ref().map_or("", |r| r.text.as_str())
    }
}

/// An instance as the orchestrator desires it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    revision: u64,
    chakra: String,
    stack: String,
    generation: u64,
    runs: bool,
    in_plan: bool,
    required: bool,
    /// Time from its start on probation until it must be ready.
    limit: Duration,
    /// Components that it cannot do without.
    needs: BTreeSet<String>,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write records; ends in one [`Outcome`].
    Write {
        /// Number of the bucket that they are meant for, as this replica counts them.
        bucket: u64,
        /// The records.
        writes: Writes,
    },
    /// Publish an event; told when it comes back with the fold.
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

/// What came of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Action::Write`].
    Wrote {
        /// Number of the bucket that it was meant for: it says nothing of another one.
        bucket: u64,
        /// What was written.
        writes: Writes,
        /// Its revisions in the same order; `None`: it was not written, or that is not known.
        revisions: Option<Vec<u64>>,
    },
    /// An event was not taken.
    NotPublished(String),
}

/// Everything that quarantine knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    who: Identity,
    limits: Limits,
    /// About what this replica decides.
    shards: Shards,
    bucket_epoch: String,
    /// Number of that bucket: which one a write was meant for.
    bucket: u64,
    records: BTreeMap<IntentKey, Record>,
    /// Records that somebody else deleted or overwrote with what is none.
    spoiled: BTreeSet<IntentKey>,
    /// Revision of the mark, and the bucket that it names.
    mark: (u64, String),
    desired: BTreeMap<Instance, Known>,
    facts: Facts,
    pending: VecDeque<Pending>,
    write_until: Option<Duration>,
    publishing: BTreeMap<String, Duration>,
    clock: clock::Clock,
    /// Everything that was told before this replica began is folded.
    caught_up: bool,
}

impl State {
    /// A quarantine that knows nothing yet.
    #[must_use]
    pub fn new(who: Identity, limits: Limits) -> Self {
        Self { who, limits, ..Self::default() }
    }

    /// The bucket of intents has this epoch: what was read of another one still stands here, and is to be written again.
    pub fn apply_intents_epoch(&mut self, epoch: &str) {
        if self.bucket_epoch != epoch {
            epoch.clone_into(&mut self.bucket_epoch);
            self.bucket += 1;
            self.records.values_mut().for_each(|r| r.revision = 0);
            self.spoiled.clear();
            self.mark = (0, String::new());
            self.desired.values_mut().for_each(|d| d.revision = 0);
            self.write_until = None;
        }
    }

    /// A record of the bucket was read or written.
    pub fn apply_record(&mut self, key: &IntentKey, revision: u64, intent: Arc<v1::Intent>, now: Now) {
        match key {
            IntentKey::QuarantineComponent(_) | IntentKey::QuarantineInstance(_) => self.apply_own(key, revision, intent, now),
            IntentKey::Desired(instance) => self.apply_desired(instance, revision, &intent),
            IntentKey::Mark(agent) if agent == AGENT => {
                if revision > self.mark.0
                    && let Some(Want::Mark(mark)) = &intent.want
                {
                    self.mark = (revision, mark.bucket_epoch.clone());
                }
            }
            IntentKey::Recovery(_) | IntentKey::Load(_) | IntentKey::Vram { .. } | IntentKey::Escalation(_) | IntentKey::Mark(_) => {}
        }
    }

    fn apply_own(&mut self, key: &IntentKey, revision: u64, intent: Arc<v1::Intent>, now: Now) {
        let before = self.records.get(key);
        if before.is_some_and(|r| r.revision >= revision) || (before.is_none() && self.records.len() >= ENTITIES_MAX) {
            return;
        }
        if !matches!(intent.want, Some(Want::Quarantine(_))) {
            self.apply_spoiled(key, revision);
            return;
        }
        // Written again into another bucket, it goes on from when it was read first.
        let told = || self.clock.since(&intent.told_by_event_id).unwrap_or(now.mono).min(now.mono);
        let received = before.filter(|r| r.intent == intent).map_or_else(told, |r| r.received);
        self.spoiled.remove(key);
        self.records.insert(key.clone(), Record { revision, received, intent });
    }

    fn apply_desired(&mut self, instance: &Instance, revision: u64, intent: &v1::Intent) {
        let Some(Want::Desired(desired)) = &intent.want else { return };
        let room = self.desired.len() < ENTITIES_MAX || self.desired.contains_key(instance);
        if !room || self.desired.get(instance).is_some_and(|d| d.revision >= revision) {
            return;
        }
        let spec = desired.spec.as_ref();
        let known = Known {
            revision,
            chakra: spec.map(|s| s.chakra.clone()).unwrap_or_default(),
            stack: desired.stack.clone(),
            generation: desired.generation,
            runs: desired.mode() != v1::RunMode::Stop,
            in_plan: intent.reason.as_ref().is_none_or(|r| r.code != "left_plan"),
            required: spec.is_some_and(|s| s.required),
            limit: spec.map_or(Duration::ZERO, startup::limit) + self.limits.soak,
            needs: spec.iter().flat_map(|s| &s.depends_on).filter(|d| d.required).map(|d| d.component.clone()).collect(),
        };
        self.desired.insert(instance.clone(), known);
    }

    /// Somebody deleted a record, or wrote there what is none: what it said still stands here, and is to be written again.
    pub fn apply_spoiled(&mut self, key: &IntentKey, revision: u64) {
        if let Some(record) = self.records.get_mut(key).filter(|r| r.revision < revision) {
            record.revision = revision;
            self.spoiled.insert(key.clone());
        }
    }

    /// EVENTS is read from its beginning: what was folded is void.
    pub fn apply_reset(&mut self) {
        self.facts = Facts::default();
        self.publishing.clear();
    }

    /// When the broker stored an event that is about to be applied: by that a successor knows how long an isolation has lasted.
    pub fn apply_stored(&mut self, event: &v1::Event, stored: SystemTime, now: Now) {
        self.clock.fold(event, stored, now);
    }

    /// All that was told before is folded: an isolation that was told before this replica began lasts since then.
    pub fn apply_caught_up(&mut self) {
        if !std::mem::replace(&mut self.caught_up, true) {
            for record in self.records.values_mut() {
                record.received = self.clock.since(&record.intent.told_by_event_id).unwrap_or(record.received).min(record.received);
            }
        }
    }

    /// An event of EVENTS.
    pub fn apply_event(&mut self, sequence: u64, event: &v1::Event, now: Now) {
        self.facts.apply(sequence, event, now);
        self.publishing.remove(&event.id);
    }

    /// A command was read from the stream. A repeated delivery of one that still waits replaces its handle.
    pub fn apply_command(&mut self, command: Pending) {
        match self.pending.iter_mut().find(|p| p.id == command.id) {
            Some(waiting) => waiting.token = command.token,
            None => self.pending.push_back(command),
        }
    }

    /// This replica decides about these shards: what waits in others is for their holders.
    pub fn apply_shards(&mut self, shards: &Shards) {
        self.shards.clone_from(shards);
        self.publishing.clear();
        let shards = &self.shards;
        self.pending.retain(|pending| shards.decides(component(&pending.target)));
    }

    /// Nothing is decided here any longer: commands that are not answered go to whoever decides now.
    pub fn stand_down(&mut self) {
        self.pending.clear();
        self.publishing.clear();
        self.write_until = None;
    }

    /// What came of an action.
    pub fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            // What was written is gone with its bucket.
            Outcome::Wrote { bucket, .. } if bucket != self.bucket => {}
            Outcome::Wrote { writes, revisions: Some(revisions), .. } => {
                self.write_until = None;
                for ((key, intent, _), revision) in writes.into_iter().zip(revisions) {
                    self.apply_record(&key, revision, Arc::new(intent), now);
                }
            }
            Outcome::Wrote { revisions: None, .. } => self.write_until = Some(now.mono + RETRY_PAUSE),
            Outcome::NotPublished(id) => {
                if let Some(until) = self.publishing.get_mut(&id) {
                    *until = now.mono + RETRY_PAUSE;
                }
            }
        }
    }

    /// What is to be done now. Marks what it returns as under way, so that asking again asks for nothing twice.
    pub fn decide(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in self.owed_events(now) {
            self.publish(event, now, &mut actions);
        }
        self.answer(&mut actions);
        if self.write_until.is_none_or(|until| until <= now.mono) {
            let writes = self.next_write(now);
            if !writes.is_empty() {
                self.write_until = Some(now.mono + WRITE_LIMIT);
                actions.push(Action::Write { bucket: self.bucket, writes });
            }
        }
        // A refusal is an event as well, and comes of looking at the commands.
        for event in self.verdicts(now) {
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

    /// At most one write is under way: what a bucket lost, then its mark, then the oldest command, then what follows from facts and time.
    /// A new bucket is shard 0's until it has its mark: only who writes all that was known can say that all is written.
    fn next_write(&mut self, now: Now) -> Writes {
        let marked = self.mark.1 == self.bucket_epoch;
        if !marked && !self.shards.decides_on_mesh() {
            return Writes::new();
        }
        let lost = self.lost_records(now);
        if !lost.is_empty() {
            return lost;
        }
        if !marked {
            return self.mark_write(now).into_iter().collect();
        }
        let command = self.next_command(now);
        if command.is_empty() { self.next_moves(now) } else { command }
    }

    /// When, after `now`, time alone changes something; `None`: never.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        let mut all: Vec<Duration> = self.publishing.values().copied().collect();
        all.extend(self.write_until);
        all.extend(self.move_deadlines());
        all.extend(self.command_deadline());
        all.into_iter().filter(|at| *at > now.mono).min()
    }

    /// The records.
    #[must_use]
    pub const fn records(&self) -> &BTreeMap<IntentKey, Record> {
        &self.records
    }

    /// What was folded from EVENTS.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether this replica decides about what a key concerns.
    fn decides_on(&self, key: &IntentKey) -> bool {
        match key {
            IntentKey::QuarantineInstance(instance) => self.shards.decides_on(instance),
            IntentKey::QuarantineComponent(name) => self.shards.decides(name),
            IntentKey::Desired(_)
            | IntentKey::Recovery(_)
            | IntentKey::Load(_)
            | IntentKey::Vram { .. }
            | IntentKey::Escalation(_)
            | IntentKey::Mark(_) => self.shards.decides_on_mesh(),
        }
    }

    /// Instances that a key concerns.
    fn concerned(&self, key: &IntentKey) -> Vec<Instance> {
        match key {
            IntentKey::QuarantineInstance(instance) => vec![instance.clone()],
            IntentKey::QuarantineComponent(name) => self.desired.keys().filter(|i| i.component == *name).cloned().collect(),
            IntentKey::Desired(_)
            | IntentKey::Recovery(_)
            | IntentKey::Load(_)
            | IntentKey::Vram { .. }
            | IntentKey::Escalation(_)
            | IntentKey::Mark(_) => Vec::new(),
        }
    }

    /// Keys whose records concern a component or, where `target` names one, a replica of it.
    fn keys_of(&self, target: &str) -> Vec<IntentKey> {
        let is = |key: &&IntentKey| match key {
            IntentKey::QuarantineComponent(name) => name == target,
            IntentKey::QuarantineInstance(i) => i.component == target || i.key() == target,
            IntentKey::Desired(_)
            | IntentKey::Recovery(_)
            | IntentKey::Load(_)
            | IntentKey::Vram { .. }
            | IntentKey::Escalation(_)
            | IntentKey::Mark(_) => false,
        };
        self.records.keys().filter(is).cloned().collect()
    }
}

/// Component of a command's target (`api`, `api.1`).
fn component(target: &str) -> &str {
    target.split('.').next().unwrap_or_default()
}
