//! The watchdog's decisions, pure: folds of beats, EVENTS and `intents`, and `decide`, which works from state and so says the same whoever
//! holds the shard. Every replica observes; only the holder gives verdicts. Clocks are passed in, ids are computed; no IO below here.

mod chakras;
mod currency;
mod events;
mod facts;
mod silence;
mod usage;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    shard::Shards,
    v1::{self, RunMode, event::Fact, intent::Want, probe::Check},
};

pub use self::{
    currency::Currency,
    events::AGENT,
    facts::{Down, Facts, Seen, View},
    watch::{Question, Rhythm, Watch},
};
use self::{facts::About, usage::Usages};
pub use razar_agent_kit::Now;

/// A published event is published again when it has not come back by then.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failed action, so that a broker in trouble is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Subjects that are watched.
const WATCHES_MAX: usize = 65_536;

/// Who decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Mesh.
    pub mesh: String,
    /// Id of this replica.
    pub replica: String,
}

/// The figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Time between two beats of nodes and agents.
    pub beat: Duration,
    /// Missing beats that count as silence.
    pub misses: u32,
    /// Lateness that every beat is granted.
    pub slack: Duration,
    /// Age of a loop's last turn from which on its beats are no signs.
    pub stands_after: Duration,
    /// How long a chakra is below its threshold before it is told down.
    pub chakra_delay: Duration,
    /// Time between two measurements.
    pub measure_every: Duration,
    /// Measurements in a row that count as over a limit, or within it again.
    pub measures: u32,
    /// Resident memory watched where a component names no limits, in bytes.
    pub memory_bytes: u64,
    /// CPU watched where a component names no limits, in thousandths of a core.
    pub cpu_millis: u32,
    /// Open files watched where a component names no limits.
    pub open_files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(1),
            misses: 3,
            slack: Duration::from_millis(20),
            stands_after: Duration::from_secs(3),
            chakra_delay: Duration::from_secs(3),
            measure_every: Duration::from_secs(5),
            measures: 2,
            memory_bytes: 1024 * 1024 * 1024,
            cpu_millis: 900,
            open_files: 1024,
        }
    }
}

/// Whoever is to be heard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A node.
    Node(String),
    /// An agent's replica: kind and id.
    Agent(String, String),
    /// An instance that beats.
    Component(Instance),
}

impl Subject {
    /// Whether who holds these shards gives verdicts on it: nodes and agents are mesh-wide.
    #[must_use]
    pub fn decided_by(&self, shards: &Shards) -> bool {
        match self {
            Self::Node(_) | Self::Agent(..) => shards.decides_on_mesh(),
            Self::Component(instance) => shards.decides_on(instance),
        }
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send an echo with this number on the way of beats. Ends with [`State::apply_echo`].
    Echo(u64),
    /// Ask a node whether it is there. Ends in [`Outcome::Pinged`].
    Ping {
        /// Node.
        node: String,
        /// An answer after this is none.
        limit: Duration,
    },
    /// Ask a node what it makes of an instance that does not beat. Ends in [`Outcome::Looked`].
    Look {
        /// Node.
        node: String,
        /// Instance.
        instance: Instance,
    },
    /// Ask a node what its instances use. Ends in [`Outcome::Measured`].
    Measure {
        /// Node.
        node: String,
    },
    /// Publish an event. Ends in [`Outcome::Published`], or with its fold.
    Publish(Box<v1::Event>),
}

/// How a node answered a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinged {
    /// It did.
    Answered,
    /// Nobody listens there: the broker says so at once.
    NoResponders,
    /// No answer in time.
    Silent,
}

/// What an instance used when it was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Instance.
    pub instance: Instance,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// What it used.
    pub usage: v1::ResourceUsage,
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Action::Ping`].
    Pinged(String, Pinged),
    /// Of [`Action::Look`]; `None`: no answer.
    Looked(Instance, Option<Box<v1::SilenceReply>>),
    /// Of [`Action::Measure`]; `None`: no answer.
    Measured(String, Option<Vec<Measured>>),
    /// Of [`Action::Publish`]: stored, or not known to be.
    Published {
        /// Id of the event.
        id: String,
        /// Stored.
        stored: bool,
    },
}

/// Everything that the watchdog knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    who: Identity,
    limits: Limits,
    /// About what this replica decides.
    shards: Shards,
    currency: Currency,
    facts: Facts,
    bucket_epoch: String,
    desired: BTreeMap<Instance, (u64, Arc<v1::Intent>)>,
    watches: BTreeMap<Subject, Watch>,
    due: BTreeSet<(Duration, Subject)>,
    /// Instances that are watched and for whom a tenth of a second counts.
    fine: BTreeSet<Instance>,
    /// Chakras below their threshold, and since when, monotonic.
    below: BTreeMap<String, Duration>,
    usages: Usages,
    publishing: BTreeMap<String, Duration>,
    /// What chakras are made of has changed since they were looked at.
    stale: bool,
}

impl State {
    /// A watchdog that knows nothing yet.
    #[must_use]
    pub fn new(who: Identity, limits: Limits) -> Self {
        let mut state = Self { who, limits, ..Self::default() };
        state.watch_fine();
        state
    }

    /// The connection came up.
    pub fn apply_connected(&mut self, now: Now) {
        self.currency.connected(now.mono);
    }

    /// The connection was lost.
    pub fn apply_disconnected(&mut self) {
        self.currency.disconnected();
    }

    /// Beats were dropped before they were heard.
    pub fn apply_dropped(&mut self, now: Now) {
        self.currency.missed(now.mono);
    }

    /// The loop turns; to be told at least every [`State::turn_max`].
    pub fn apply_turn(&mut self, now: Now) {
        self.currency.turned(now.mono);
    }

    /// The longest time between two turns while nothing happens; longer ones are lateness.
    #[must_use]
    pub const fn turn_max(&self) -> Duration {
        self.currency.turn_max()
    }

    /// An own echo came back.
    pub fn apply_echo(&mut self, number: u64, now: Now) {
        self.currency.echoed(number, now.mono);
    }

    /// The bucket of intents has this epoch: what was read of another one is void.
    pub fn apply_intents_epoch(&mut self, epoch: &str) {
        if self.bucket_epoch != epoch {
            epoch.clone_into(&mut self.bucket_epoch);
            self.desired.clear();
            self.stale = true;
        }
    }

    /// A `desired` record was read.
    pub fn apply_desired(&mut self, instance: &Instance, revision: u64, intent: Arc<v1::Intent>, now: Now) {
        if self.desired.get(instance).is_none_or(|(known, _)| *known < revision) {
            self.desired.insert(instance.clone(), (revision, intent));
            self.stale = true;
            self.watch_instance(instance, now.mono);
        }
    }

    /// EVENTS is read from its beginning: what was folded is void.
    pub fn apply_reset(&mut self) {
        self.facts = Facts::default();
        self.publishing.clear();
        self.watches.clear();
        self.due.clear();
        self.fine.clear();
        self.watch_fine();
        self.below.clear();
        self.usages = Usages::default();
        self.stale = true;
    }

    /// The newest snapshot of registry's projection of this stream, after a reset: the base that the stream is folded over.
    pub fn apply_snapshot(&mut self, snapshot: &v1::Observed, now: Now) {
        self.facts.seed(snapshot, now.mono);
        let nodes: Vec<Subject> = self.facts.nodes.keys().cloned().map(Subject::Node).collect();
        let agents: Vec<Subject> = self.facts.agents.keys().cloned().map(|(kind, id)| Subject::Agent(kind, id)).collect();
        nodes.into_iter().chain(agents).for_each(|subject| self.watch(subject, Incarnation::default(), now.mono));
        let instances: Vec<Instance> = self.facts.views.keys().cloned().collect();
        instances.iter().for_each(|instance| self.watch_instance(instance, now.mono));
        self.stale = true;
    }

    /// An event of EVENTS, and when the broker stored it.
    pub fn apply_event(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime, now: Now) {
        let about = self.facts.apply(sequence, event, stored, now.mono);
        self.publishing.remove(&event.id);
        self.facts.take_forgotten().iter().for_each(|instance| self.watch_instance(instance, now.mono));
        match about {
            About::Nothing => {}
            About::Node(name) => self.watch(Subject::Node(name), Incarnation::default(), now.mono),
            About::Agent(kind, id) => self.watch(Subject::Agent(kind, id), Incarnation::default(), now.mono),
            About::Instances => {
                if let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) {
                    self.watch_instance(&instance, now.mono);
                    // With its incident what its node made of its silence is over: it is asked anew.
                    let watch = self.watches.get_mut(&Subject::Component(instance)).filter(|_| ends_incident(event));
                    if let Some(watch) = watch {
                        (watch.question, watch.seen) = (Question::None, None);
                    }
                }
            }
        }
        if let Some(Fact::NodeInventory(inventory)) = &event.fact {
            let items = inventory.items.iter().filter_map(|item| Instance::try_from(item.instance.as_ref()?).ok());
            items.for_each(|instance| self.watch_instance(&instance, now.mono));
        }
        self.stale = true;
    }

    /// This replica decides about these shards: questions and counts of others are for their holders; what has come to it is looked at now.
    pub fn apply_shards(&mut self, shards: &Shards, now: Now) {
        let before = std::mem::replace(&mut self.shards, shards.clone());
        self.publishing.clear();
        let turned: Vec<Subject> = self.watches.keys().filter(|s| s.decided_by(&before) != s.decided_by(shards)).cloned().collect();
        for subject in turned {
            if let Some(watch) = self.watches.get_mut(&subject) {
                watch.question = Question::None;
            }
            self.look_at(&subject, now.mono);
        }
        if !shards.decides_on_mesh() {
            self.below.clear();
        }
        self.usages.keep(shards);
        self.stale = true;
    }

    /// Nothing is decided here any longer.
    pub fn stand_down(&mut self) {
        self.publishing.clear();
        self.usages.stand_down();
        for watch in self.watches.values_mut() {
            watch.question = Question::None;
        }
    }

    /// A beat of anybody's.
    pub fn apply_beat(&mut self, beat: &v1::Heartbeat, now: Now) {
        let subject = match beat.kind.as_str() {
            "node" => Subject::Node(beat.id.clone()),
            "agent" if beat.agent.is_empty() => match self.agent_called(&beat.id) {
                Some(agent) => agent,
                None => return,
            },
            "agent" => Subject::Agent(beat.agent.clone(), beat.id.clone()),
            "component" => match beat.id.parse() {
                Ok(instance) => Subject::Component(instance),
                Err(_) => return,
            },
            _ => return,
        };
        let stands = razar_bus_schema::time::duration_or(beat.loop_age.as_ref(), Duration::ZERO) >= self.limits.stands_after;
        let stands = stands.then(|| self.rhythm(&subject).map_or(self.limits.stands_after, |rhythm| rhythm.patience()));
        let Some(watch) = self.watches.get_mut(&subject) else { return };
        let named = Incarnation::new(beat.generation, beat.start);
        if named != Incarnation::default() && named != watch.incarnation {
            return;
        }
        let before = watch.stands;
        let sign = watch.heard(beat, stands, now.mono);
        // Who counts as silent and is heard, or says that it stands, is looked at now.
        if (sign && self.is_away(&subject)) || watch_stands(&self.watches, &subject) != before {
            self.look_at(&subject, now.mono);
        }
    }

    /// The agent with this id, for beats of a version that names no kind.
    fn agent_called(&self, id: &str) -> Option<Subject> {
        self.watches.keys().find(|s| matches!(s, Subject::Agent(_, known) if known == id)).cloned()
    }

    fn is_away(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Node(name) => self.facts.is_lost(name),
            Subject::Agent(kind, id) => self.facts.agents.get(&(kind.clone(), id.clone())).is_some_and(|seen| seen.presence.is_away()),
            Subject::Component(_) => false,
        }
    }

    /// Begins to watch a subject, or begins anew if it was another incarnation.
    fn watch(&mut self, subject: Subject, incarnation: Incarnation, now: Duration) {
        if self.watches.len() >= WATCHES_MAX && !self.watches.contains_key(&subject) {
            return;
        }
        let before = self.watches.get(&subject);
        let mut watch = Watch::new(now, incarnation);
        if let Some(before) = before {
            self.due.remove(&(before.due, subject.clone()));
            if before.incarnation == incarnation {
                watch = before.begun_anew(now);
            }
        }
        self.due.insert((watch.due, subject.clone()));
        self.watches.insert(subject, watch);
    }

    /// Watches an instance whose specification says that it beats, while it is in a state in which it does.
    fn watch_instance(&mut self, instance: &Instance, now: Duration) {
        let subject = Subject::Component(instance.clone());
        let rhythm = self.rhythm_of(instance);
        let living = self.facts.view(instance).filter(|v| rhythm.is_some() && v.beats()).map(|v| v.incarnation);
        self.watch_closely(instance, living.is_some() && rhythm.as_ref().is_some_and(Currency::needs_fine));
        match living {
            Some(incarnation) => {
                if self.watches.get(&subject).is_none_or(|w| w.incarnation != incarnation) {
                    self.watch(subject, incarnation, now);
                }
            }
            None => {
                if let Some(watch) = self.watches.remove(&subject) {
                    self.due.remove(&(watch.due, subject));
                }
            }
        }
    }

    /// Whether an instance beats so fast, or is silent so soon, that a tenth of a second counts.
    fn watch_closely(&mut self, instance: &Instance, fine: bool) {
        let changed = if fine { self.fine.insert(instance.clone()) } else { self.fine.remove(instance) };
        if changed {
            self.watch_fine();
        }
    }

    /// The beats that nodes and agents owe.
    fn rhythm_of_mesh(&self) -> Rhythm {
        Rhythm { interval: self.limits.beat, misses: self.limits.misses, slack: self.limits.slack }
    }

    fn watch_fine(&mut self) {
        let of_all = Currency::needs_fine(&self.rhythm_of_mesh());
        self.currency.watches_fine(of_all || !self.fine.is_empty());
    }

    /// Whether a subject is this replica itself: it is never silent to itself, and tells that it is back if another has told it down.
    fn is_itself(&self, subject: &Subject) -> bool {
        matches!(subject, Subject::Agent(kind, id) if kind == AGENT && *id == self.who.replica)
    }

    fn look_at(&mut self, subject: &Subject, at: Duration) {
        if let Some(watch) = self.watches.get_mut(subject) {
            self.due.remove(&(watch.due, subject.clone()));
            watch.due = at;
            self.due.insert((at, subject.clone()));
        }
    }

    /// What is desired of `instance`.
    fn desired(&self, instance: &Instance) -> Option<(&v1::Desired, &v1::ComponentSpec)> {
        match &self.desired.get(instance)?.1.want {
            Some(Want::Desired(desired)) => Some((desired, desired.spec.as_ref()?)),
            _ => None,
        }
    }

    /// The beats that an instance owes; `None`: it is not judged by them.
    fn rhythm_of(&self, instance: &Instance) -> Option<Rhythm> {
        let (desired, spec) = self.desired(instance)?;
        let Some(Check::Heartbeat(beat)) = spec.liveness.as_ref()?.check.as_ref() else { return None };
        if desired.mode() == RunMode::Stop {
            return None;
        }
        let interval = razar_bus_schema::time::duration_or(beat.interval.as_ref(), self.limits.beat);
        let misses = if beat.misses == 0 { self.limits.misses } else { beat.misses };
        Some(Rhythm { interval, misses, slack: self.limits.slack.min(interval / 4) })
    }

    /// What came of an action.
    pub fn apply_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            Outcome::Pinged(node, how) => self.apply_pinged(&node, how, now),
            Outcome::Looked(instance, reply) => self.apply_looked(&instance, reply.map(|reply| *reply), now),
            Outcome::Measured(node, measured) => self.apply_measured(&node, measured, now),
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

    /// Whether this observer is current, and how often it was not.
    #[must_use]
    pub const fn currency(&self) -> &Currency {
        &self.currency
    }

    /// Subjects that are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watches.len()
    }

    /// What every replica does, whoever decides: it sees that it hears.
    pub fn observe(&mut self, now: Now) -> Vec<Action> {
        self.currency.due_echo(now.mono).map(Action::Echo).into_iter().collect()
    }

    /// What is to be done now by who decides. Marks what it returns as under way, so that asking again asks for nothing twice.
    pub fn decide(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        // Who has just woken may hear of something else first: what came meanwhile is heard before anybody is judged by it.
        if !self.currency.owes_a_turn(now.mono) {
            self.decide_silence(now, &mut actions);
        }
        if self.shards.decides_on_mesh() {
            self.decide_chakras(now, &mut actions);
        }
        self.decide_usage(now, &mut actions);
        actions
    }

    fn publish(&mut self, event: Box<v1::Event>, now: Now, actions: &mut Vec<Action>) {
        if !self.facts.is_told(&event.id) && self.publishing.get(&event.id).is_none_or(|until| *until <= now.mono) {
            self.publishing.insert(event.id.clone(), now.mono + PUBLISH_LIMIT);
            actions.push(Action::Publish(event));
        }
    }

    /// When, after `now`, time alone changes something.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        let silence = self.due.first().map(|(at, _)| *at).filter(|_| !self.currency.owes_a_turn(now.mono));
        let chakras = if self.shards.decides_on_mesh() { self.next_chakra(now) } else { None };
        [silence, chakras, self.usages.next_at()].into_iter().flatten().min()
    }
}

fn watch_stands(watches: &BTreeMap<Subject, Watch>, subject: &Subject) -> Option<(Duration, Duration, Duration)> {
    watches.get(subject).and_then(|w| w.stands)
}

fn ends_incident(event: &v1::Event) -> bool {
    matches!(event.fact, Some(Fact::Recovered(_) | Fact::IncidentWithdrawn(_)))
}
