//! Recovery's decisions, pure: folds of `intents` and EVENTS, and `decide`, which works from state and so says the same whoever holds the
//! shard. Clocks are passed in, ids and jitter are computed; no IO lives below here.

mod asked;
mod brake;
mod destructive;
mod escalation;
mod events;
mod facts;
mod folding;
mod grants;
mod incident;
mod ladder;
mod rungs;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incident, Instance},
    shard::Shards,
    v1::{self, QuarantinePhase as Phase, intent::Want},
};

use self::asked::Question;
pub use self::{
    events::AGENT,
    facts::{Brake, Facts, Failure, NodeView, View},
    incident::{Closed, IncidentFacts, Tried},
};
pub use razar_agent_kit::Now;

/// A published event is published again when it has not come back by then.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// A write is taken for lost by then; the watch has told by that time if it was stored after all.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed action, so that a broker in trouble is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Who decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Mesh.
    pub mesh: String,
    /// Id of this replica.
    pub replica: String,
}

/// The figures of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time that a rung has at least, beside its backoff.
    pub deadline_min: Duration,
    /// Time of being ready after which a rung has cured.
    pub soak: Duration,
    /// Time from a recovery by the ladder to the next incident of the same instance that it takes up.
    pub cooldown: Duration,
    /// Local recoveries inside `flaps_within` that are borne.
    pub flaps_max: u32,
    /// Period over which local recoveries are counted.
    pub flaps_within: Duration,
    /// Boots in a row in which a component ended past help, from which on it goes to the last rung at once.
    pub lost_boots: u32,
    /// Rungs of one component that cannot be taken back, inside `destructive_within`.
    pub destructive_component: usize,
    /// Those of one chakra.
    pub destructive_chakra: usize,
    /// Those of the mesh.
    pub destructive_mesh: usize,
    /// Period over which they are counted.
    pub destructive_within: Duration,
    /// Failed roots inside `brake_within` from which on the brake engages, if they are `brake_percent` of all as well.
    pub brake_roots: usize,
    /// Share of what counts, in per cent.
    pub brake_percent: usize,
    /// Period into which the failures must fall.
    pub brake_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline_min: Duration::from_secs(30),
            soak: Duration::from_secs(5),
            cooldown: Duration::from_secs(60),
            flaps_max: 10,
            flaps_within: Duration::from_secs(24 * 3600),
            lost_boots: 3,
            destructive_component: 6,
            destructive_chakra: 12,
            destructive_mesh: 24,
            destructive_within: Duration::from_secs(3600),
            brake_roots: 5,
            brake_percent: 20,
            brake_within: Duration::from_secs(600),
        }
    }
}

/// A record to be written, only over the revision that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Instance, whose `recovery` record it is.
    pub instance: Instance,
    /// The record.
    pub intent: v1::Intent,
    /// Revision that it replaces; 0: there is none.
    pub expected: u64,
    /// Number of the bucket that it is meant for, as this replica counts them: what comes of it says nothing of another one.
    pub bucket: u64,
}

/// A record of escalations to be written, only over the revision that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Announce {
    /// Node, whose record it is.
    pub node: String,
    /// The record.
    pub intent: Box<v1::Intent>,
    /// Revision that it replaces; 0: there is none.
    pub expected: u64,
    /// Number of the bucket that it is meant for, as this replica counts them: what comes of it says nothing of another one.
    pub bucket: u64,
}

/// What the shell is to do. Each ends in one [`Outcome`].
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write a `recovery` record.
    Write(Box<Write>),
    /// Publish an event.
    Publish(Box<v1::Event>),
    /// Write a record of escalations.
    Announce(Box<Announce>),
    /// Ask nodes what they hold.
    Ask {
        /// Instance for whose sake they are asked.
        instance: Instance,
        /// Their names.
        nodes: BTreeSet<String>,
    },
}

/// Why a write did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// Somebody wrote before.
    Conflict,
    /// It may or may not have been stored; the watch will tell.
    Unknown,
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Action::Write`]: its revision.
    Wrote(Box<Write>, Result<u64, WriteError>),
    /// Of [`Action::Announce`]: its revision.
    Announced(Box<Announce>, Result<u64, WriteError>),
    /// Of [`Action::Publish`]: stored, or not known to be.
    Published {
        /// Id of the event.
        id: String,
        /// Stored.
        stored: bool,
    },
    /// Of [`Action::Ask`]: what all of them hold; `None`: one did not answer.
    Asked {
        /// Instance for whose sake they were asked.
        instance: Instance,
        /// Their inventories.
        inventories: Option<Vec<v1::NodeInventory>>,
    },
}

/// A `recovery` record as it stands in the bucket.
#[derive(Debug, Clone, Default, PartialEq)]
struct Record {
    revision: u64,
    /// When this replica saw it, monotonic.
    seen: Duration,
    /// The whole record; `None`: somebody spoiled it.
    intent: Option<Arc<v1::Intent>>,
}

impl Record {
    fn order(&self) -> Option<&v1::RecoveryOrder> {
        match &self.intent.as_ref()?.want {
            Some(Want::Recovery(order)) => Some(order),
            _ => None,
        }
    }

    /// The order, unless it has ended.
    fn open_order(&self) -> Option<&v1::RecoveryOrder> {
        self.order().filter(|order| !order.ended)
    }
}

/// Everything that recovery knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    who: Identity,
    limits: Limits,
    /// About what this replica decides.
    shards: Shards,
    bucket_epoch: String,
    /// Number of that bucket: which one a write was meant for.
    bucket: u64,
    desired: BTreeMap<Instance, (u64, Arc<v1::Intent>)>,
    records: BTreeMap<Instance, Record>,
    /// Phases by component and, where it is told by the ladder, ordinal.
    quarantines: BTreeMap<(String, Option<u32>), (u64, Phase)>,
    facts: Facts,
    writing: BTreeMap<Instance, Duration>,
    publishing: BTreeMap<String, Duration>,
    questions: BTreeMap<Instance, Question>,
    /// By chakra: whose order to run its hook is being written, and until when that may take.
    hooking: BTreeMap<String, (Instance, Duration)>,
    /// Orders that cannot be taken back and are being written, and until when that may take.
    destroying: BTreeMap<Instance, Duration>,
    /// Instances to which a rung is being granted, and until when that may take.
    granting: BTreeMap<Instance, Duration>,
    /// Records of escalations by node.
    announced: BTreeMap<String, Record>,
    /// By node, until when the write of its record may take.
    announcing: BTreeMap<String, Duration>,
}

impl State {
    /// A recovery that knows nothing yet.
    #[must_use]
    pub fn new(who: Identity, limits: Limits) -> Self {
        Self { who, limits, ..Self::default() }
    }

    /// The bucket of intents has this epoch: what was read of another one is void.
    pub fn apply_intents_epoch(&mut self, epoch: &str) {
        if self.bucket_epoch != epoch {
            epoch.clone_into(&mut self.bucket_epoch);
            self.bucket += 1;
            self.desired.clear();
            self.records.clear();
            self.quarantines.clear();
            self.writing.clear();
            self.announced.clear();
            self.announcing.clear();
            // Tries are counted anew, and an answer to one before them says nothing of these.
            self.questions.clear();
        }
    }

    /// A `desired` record was read.
    pub fn apply_desired(&mut self, instance: &Instance, revision: u64, intent: Arc<v1::Intent>) {
        if self.desired.get(instance).is_none_or(|(known, _)| *known < revision) {
            self.desired.insert(instance.clone(), (revision, intent));
        }
    }

    /// A `quarantine` record was read; `ordinal` is absent for a whole component.
    pub fn apply_quarantine(&mut self, component: &str, ordinal: Option<u32>, revision: u64, phase: Phase) {
        let known = self.quarantines.entry((component.to_owned(), ordinal)).or_default();
        if known.0 < revision {
            *known = (revision, phase);
        }
    }

    /// A `recovery` record was read or written; `None`: somebody deleted it, or wrote there what is none.
    pub fn apply_record(&mut self, instance: &Instance, revision: u64, intent: Option<Arc<v1::Intent>>, now: Now) {
        let known = self.records.entry(instance.clone()).or_default();
        if known.revision < revision {
            let of = |r: &Record| r.order().map(|o| (o.incident.clone(), o.attempt, o.ended));
            let next = Record { revision, seen: now.mono, intent };
            let seen = if of(known).is_some() && of(known) == of(&next) { known.seen } else { now.mono };
            *known = Record { seen, ..next };
        }
    }

    /// EVENTS is read from its beginning: what was folded is void.
    pub fn apply_reset(&mut self) {
        self.facts = Facts::default();
        self.publishing.clear();
    }

    /// The newest snapshot of registry's projection of this stream, after a reset: the base that the stream is folded over.
    pub fn apply_snapshot(&mut self, snapshot: &v1::Observed) {
        self.facts.seed(snapshot);
    }

    /// An event of EVENTS, and when the broker stored it.
    pub fn apply_event(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime, now: Now) {
        self.facts.apply(sequence, event, stored, &self.limits, now);
        self.publishing.remove(&event.id);
    }

    /// All that was told before is folded: what comes now happens now.
    pub fn apply_caught_up(&mut self) {
        self.facts.caught_up();
    }

    /// This replica decides about these shards: what was under way in others is for their holders.
    pub fn apply_shards(&mut self, shards: &Shards) {
        self.shards.clone_from(shards);
        self.publishing.clear();
        self.writing.retain(|instance, _| shards.decides_on(instance));
        self.questions.retain(|instance, _| shards.decides_on(instance));
        if !shards.decides_on_mesh() {
            self.granting.clear();
            self.announcing.clear();
            self.destroying.retain(|instance, _| shards.decides_on(instance));
            self.hooking.retain(|_, (instance, _)| shards.decides_on(instance));
        }
    }

    /// Nothing is decided here any longer.
    pub fn stand_down(&mut self) {
        self.publishing.clear();
        self.writing.clear();
        self.hooking.clear();
        self.destroying.clear();
        self.granting.clear();
        self.announcing.clear();
        self.questions.clear();
    }

    /// What came of an action.
    pub fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            // What was written is gone with its bucket.
            Outcome::Wrote(write, _) if write.bucket != self.bucket => {}
            Outcome::Announced(announce, _) if announce.bucket != self.bucket => {}
            Outcome::Wrote(write, Ok(revision)) => {
                self.writing.remove(&write.instance);
                self.hooking.retain(|_, (instance, _)| *instance != write.instance);
                self.destroying.remove(&write.instance);
                self.apply_record(&write.instance, revision, Some(Arc::new(write.intent)), now);
            }
            Outcome::Wrote(write, Err(_)) => {
                self.writing.insert(write.instance, now.mono + RETRY_PAUSE);
            }
            Outcome::Announced(announce, result) => self.apply_announced(*announce, result, now),
            Outcome::Asked { instance, inventories } => self.apply_answer(&instance, inventories.as_deref(), now),
            Outcome::Published { id, stored } => {
                if !stored && let Some(until) = self.publishing.get_mut(&id) {
                    *until = now.mono + RETRY_PAUSE;
                }
            }
        }
    }

    /// What was folded from EVENTS.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What is to be done now. Marks what it returns as under way, so that asking again asks for nothing twice.
    pub fn decide(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.shards.decides_on_mesh() {
            self.decide_on_mesh(now, &mut actions);
        }
        for instance in self.concerned() {
            match (self.step(&instance, now), self.shards.decides_on(&instance)) {
                (Step::Order(intent), _) if self.lacks_grant(&instance, &intent) => {
                    if self.shards.decides_on_mesh()
                        && let Some(event) = self.grant(&instance, &intent, now)
                    {
                        self.publish(event, now, &mut actions);
                    }
                }
                (Step::Tell(event), true) => self.publish(event, now, &mut actions),
                (Step::Ask { nodes, incident, attempt }, true) => {
                    self.note_question(*incident, attempt, now);
                    actions.push(Action::Ask { instance, nodes });
                }
                (Step::Order(intent), true) => {
                    if self.writing.get(&instance).is_none_or(|until| *until <= now.mono) {
                        self.note_hook(&instance, &intent, now);
                        self.note_destructive(&instance, &intent, now.mono + WRITE_LIMIT);
                        let expected = self.records.get(&instance).map_or(0, |r| r.revision);
                        self.writing.insert(instance.clone(), now.mono + WRITE_LIMIT);
                        let write = Write { instance, intent: *intent, expected, bucket: self.bucket };
                        actions.push(Action::Write(Box::new(write)));
                    }
                }
                (Step::Wait(_), _) | (_, false) => {}
            }
        }
        actions
    }

    /// What is mesh-wide: the brake, what people must know of.
    fn decide_on_mesh(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.forget_grants(now.mono);
        if let Some(event) = self.owed_brake(now) {
            self.publish(event, now, actions);
        }
        for event in self.owed_escalations(now) {
            self.publish(Box::new(event), now, actions);
        }
        actions.extend(self.announcements(now).into_iter().map(|announce| Action::Announce(Box::new(announce))));
    }

    /// Of two instances of one chakra that come to its hook in one turn, one has it.
    fn note_hook(&mut self, instance: &Instance, intent: &v1::Intent, now: Now) {
        let runs = matches!(&intent.want, Some(Want::Recovery(order)) if order.chakra_hook && !order.ended);
        let chakra = self.desired(instance).map(|(_, spec)| spec.chakra.clone()).filter(|_| runs);
        if let Some(chakra) = chakra {
            self.hooking.insert(chakra, (instance.clone(), now.mono + WRITE_LIMIT));
        }
    }

    fn publish(&mut self, event: Box<v1::Event>, now: Now, actions: &mut Vec<Action>) {
        if self.publishing.get(&event.id).is_none_or(|until| *until <= now.mono) {
            self.publishing.insert(event.id.clone(), now.mono + PUBLISH_LIMIT);
            actions.push(Action::Publish(event));
        }
    }

    /// When, after `now`, time alone changes something; `None`: never. What was due by now [`State::decide`] has seen to.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        let steps = self.concerned().into_iter().filter_map(|instance| match self.step(&instance, now) {
            Step::Order(intent) if self.lacks_grant(&instance, &intent) => {
                self.granted(&instance, &intent, now.wall).and_then(|event| self.publishing.get(&event.id).copied())
            }
            Step::Wait(until) => until,
            Step::Tell(event) => self.publishing.get(&event.id).copied(),
            Step::Ask { .. } => self.questions.get(&instance).map(|q| q.until),
            Step::Order(_) => self.writing.get(&instance).copied(),
        });
        let brake = self.owed_brake(now).and_then(|event| self.publishing.get(&event.id).copied());
        let escalations = self.owed_escalations(now).into_iter().filter_map(|event| self.publishing.get(&event.id).copied());
        let announcing = self.announcing.values().copied();
        steps.chain(brake).chain(escalations).chain(announcing).filter(|at| *at > now.mono).min()
    }

    /// Instances that something may be due for here: who gives out grants looks at all of them.
    fn concerned(&self) -> BTreeSet<Instance> {
        let ordered = self.records.iter().filter(|(_, r)| r.open_order().is_some()).map(|(i, _)| i);
        let broken = self.facts.views().iter().filter(|(_, v)| v.incident.as_ref().is_some_and(IncidentFacts::is_open)).map(|(i, _)| i);
        let ours = |instance: &&Instance| self.shards.decides_on_mesh() || self.shards.decides_on(instance);
        ordered.chain(broken).filter(ours).cloned().collect()
    }
}

/// The next step for one instance.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Nothing before then, as far as is known now.
    Wait(Option<Duration>),
    /// An event is owed.
    Tell(Box<v1::Event>),
    /// A record is to be written.
    Order(Box<v1::Intent>),
    /// Nodes are to be asked, for an attempt of an incident.
    Ask { nodes: BTreeSet<String>, incident: Box<Incident>, attempt: u32 },
}
