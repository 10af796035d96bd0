//! What recovery folds from EVENTS: instances, their newest incidents, nodes, and which of its own events are told. Never emits; every
//! map is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    event::TOLD_AGAIN,
    ids::{Incarnation, Incident, Instance},
    places::{self, Places, Sight},
    presence::{self, Presence},
    v1::{self, DependencyCondition as Condition, InstanceState, event::Fact},
};

use super::{
    AGENT, Limits, Now,
    destructive::Destroyed,
    escalation::{Escalations, Row},
    folding::{End, fold_end, fold_incident, fold_instance, silence, told_incarnation},
    incident::{IncidentFacts, VOID},
    rungs::CHAKRA_HOOK,
};

/// Ids of own events that are remembered as told: every incident of the largest plan several times over.
const TOLD_MAX: usize = 8192;
/// Closed incidents of an instance that are remembered: an order outlives its own by the time that a write takes.
const CLOSED_MAX: usize = 8;
/// Causes by which a node does not restart what the stack file says is not to be restarted: nor does the ladder.
const BY_POLICY: [&str; 2] = ["policy_never", "policy_on_failure"];
/// Outcome of a mission that says nothing of what it started: another one took its place.
const SUPERSEDED: &str = "superseded";
/// Nodes and instances that are remembered.
const ENTITIES_MAX: usize = 8192;

/// A failure that its node told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Incarnation that failed last.
    pub incarnation: Incarnation,
    /// Id of the event.
    pub id: String,
    /// Cause, as the event names it.
    pub cause: String,
    /// Last line of its error output.
    pub last_error: String,
    /// What is known of it, or guessed.
    pub issue: v1::Issue,
    /// When it was told, by the broker's clock.
    pub stored: SystemTime,
}

/// An instance as its node tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Newest incarnation.
    pub incarnation: Incarnation,
    /// State.
    pub state: InstanceState,
    /// Node that runs it.
    pub node: String,
    /// Stack.
    pub stack: String,
    /// Chakra.
    pub chakra: String,
    /// Id of the event that told of the start of this incarnation; empty: not known.
    pub started_by: String,
    /// Id of the event since which it serves without a break; empty: not known.
    pub served_by: String,
    /// Id of the event that changed its state, or ended an incident of it, last; a verdict on its silence names it, or is void.
    pub changed_by: String,
    /// Ready since when, monotonic, by receipt.
    pub ready_since: Option<Duration>,
    /// When that was, by its node's clock.
    pub ready_at: Option<prost_types::Timestamp>,
    /// The failure told last.
    pub failed: Option<Failure>,
    /// Its node says that a dependency's condition is lost.
    pub blocked: bool,
    /// When its node's local restarts cured it, by the broker's clock, since the ladder last did.
    pub recoveries: VecDeque<SystemTime>,
    /// What cured its flapping last, and when, by the broker's clock.
    pub flaps_cured: Option<(String, SystemTime)>,
    /// The ladder leaves it alone until then, monotonic.
    pub cooldown_until: Duration,
    /// Mission that its node named last; empty: none.
    pub mission: String,
    /// Boots in a row that ended without it, or in which no rung helped it, and the mission of the last of them.
    pub lost_boots: (u32, String),
    /// Its newest incident.
    pub incident: Option<IncidentFacts>,
    /// Incidents before that one that were closed when the next one opened, the newest last.
    pub closed_before: VecDeque<Incident>,
    /// Errors that it ended with, and how often.
    pub(super) errors: VecDeque<Row>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            incarnation: Incarnation::default(),
            state: InstanceState::Unspecified,
            node: String::new(),
            stack: String::new(),
            chakra: String::new(),
            started_by: String::new(),
            served_by: String::new(),
            changed_by: String::new(),
            ready_since: None,
            ready_at: None,
            failed: None,
            blocked: false,
            recoveries: VecDeque::new(),
            flaps_cured: None,
            cooldown_until: Duration::ZERO,
            mission: String::new(),
            lost_boots: (0, String::new()),
            incident: None,
            closed_before: VecDeque::new(),
            errors: VecDeque::new(),
        }
    }
}

impl View {
    /// Whether a process lives, or is about to.
    #[must_use]
    pub const fn lives(&self) -> bool {
        use InstanceState as S;
        matches!(self.state, S::Preparing | S::Starting | S::Ready | S::Unready | S::Stopping)
    }

    /// Whether it failed in a way that is the ladder's to heal: what the stack file says is not to be restarted is nobody's.
    #[must_use]
    pub fn is_to_heal(&self) -> bool {
        let healable = |failed: &Failure| !BY_POLICY.contains(&failed.cause.as_str());
        self.state == InstanceState::Failed && self.failed.as_ref().is_some_and(healable)
    }

    /// Whether it lives, and the watchdog wants it replaced: it does not beat, or stays over its limits.
    pub(super) fn is_judged(&self, incident: &IncidentFacts) -> bool {
        let over = incident.over && self.incarnation == incident.id.incarnation;
        (over || incident.silent_in == Some(self.incarnation)) && self.lives()
    }

    /// Whether there is something for the ladder to do in its incident.
    pub(super) fn fails(&self, incident: &IncidentFacts) -> bool {
        self.is_to_heal() || incident.flapping || self.is_judged(incident)
    }

    /// A newer incident takes the place of the one before.
    pub(super) fn open(&mut self, incident: IncidentFacts) {
        if let Some(old) = self.incident.replace(incident).filter(|old| old.closed.is_some()) {
            self.closed_before.push_back(old.id);
        }
        if self.closed_before.len() > CLOSED_MAX {
            self.closed_before.pop_front();
        }
    }

    /// The boot that started it is lost, however often that is told.
    pub(super) fn lose_boot(&mut self) {
        if self.lost_boots.0 == 0 || self.lost_boots.1 != self.mission {
            self.lost_boots = (self.lost_boots.0.saturating_add(1), self.mission.clone());
        }
    }

    /// Whether it serves, or has done what it was to do.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self.state, InstanceState::Ready | InstanceState::Completed)
    }

    /// Whether a dependent's condition holds of it, and if so the id of the event since which it does, in this incarnation.
    #[must_use]
    pub fn holds(&self, condition: Condition) -> Option<&str> {
        let started = condition == Condition::Started && self.state != InstanceState::Completed;
        state_holds(condition, self.state).then_some(if started { &self.started_by } else { &self.served_by })
    }

    pub(super) fn enter(&mut self, state: InstanceState, event: &v1::Event, now: Now) {
        let served = self.serves();
        if self.state != state {
            self.changed_by.clone_from(&event.id);
        }
        self.state = state;
        if !self.serves() {
            (self.ready_since, self.ready_at) = (None, None);
        } else if !served {
            (self.ready_since, self.ready_at) = (Some(now.mono), event.time);
            self.served_by.clone_from(&event.id);
        }
    }
}

/// Whether a dependent's condition holds in a state.
pub(super) const fn state_holds(condition: Condition, state: InstanceState) -> bool {
    use InstanceState as S;
    match condition {
        Condition::Started => matches!(state, S::Preparing | S::Starting | S::Ready | S::Unready | S::Completed),
        Condition::Ready | Condition::Unspecified => matches!(state, S::Ready | S::Completed),
        Condition::Completed => matches!(state, S::Completed),
    }
}

/// The brake while it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brake {
    /// Id of the event that told of it.
    pub id: String,
    /// Since when, monotonic, by receipt.
    pub since: Duration,
}

/// A chakra as the events tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ChakraView {
    /// Id of the newest event that told that it is down.
    fell_by: String,
    /// It is down, and no hook of it has been tried since.
    wants_hook: bool,
}

/// A node as the events tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Lost, by the watchdog's verdict.
    pub lost: bool,
    /// By which event it is so.
    pub presence: Presence,
    /// When it was seen again after that, monotonic: what waits for it counts from then.
    pub back_since: Duration,
}

/// Everything folded from EVENTS.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    applied: u64,
    caught_up: bool,
    places: BTreeMap<String, Places>,
    nodes: BTreeMap<String, NodeView>,
    views: BTreeMap<Instance, View>,
    brake: Option<Brake>,
    chakras: BTreeMap<String, ChakraView>,
    escalations: Escalations,
    destroyed: Destroyed,
    /// When the newest failure was heard of, monotonic.
    last_failure: Duration,
    told: BTreeSet<String>,
    told_order: VecDeque<String>,
}

impl Facts {
    /// What the registry's snapshot knows of instances: EVENTS keeps a fact for 30 days, and what has run untouched for longer is known by
    /// the snapshot alone. The whole stream is folded over it.
    pub(super) fn seed(&mut self, snapshot: &v1::Observed) {
        for node in snapshot.nodes.iter().take(ENTITIES_MAX) {
            self.nodes.insert(
                node.name.clone(),
                NodeView { lost: node.lost, presence: Presence::restore(&node.presence_by, node.lost), ..NodeView::default() },
            );
        }
        for component in snapshot.components.iter().take(ENTITIES_MAX) {
            let Some(instance) = component.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let view = View {
                incarnation: component.incarnation.as_ref().map(Incarnation::from).unwrap_or_default(),
                state: component.state(),
                node: component.node.clone(),
                stack: component.stack.clone(),
                chakra: component.chakra.clone(),
                ..View::default()
            };
            self.views.insert(instance, view);
        }
    }

    pub(super) fn caught_up(&mut self) {
        self.caught_up = true;
    }

    pub(super) fn apply(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime, limits: &Limits, now: Now) {
        if sequence <= self.applied {
            return;
        }
        self.applied = sequence;
        if let Some(place) = &event.node_sequence {
            let joins = matches!(event.fact, Some(Fact::NodeJoined(_)));
            let places = self.places.entry(place.node.clone()).or_default();
            if matches!(places.see(&place.epoch, place.sequence, joins), Sight::Again | Sight::Former) {
                return;
            }
            self.known_node(&place.node);
        } else if !event.id.is_empty() && !self.note_told(event) {
            return;
        }
        let instance = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        let is_failure = matches!(event.fact, Some(Fact::ComponentFailed(_)));
        if is_failure && instance.as_ref().is_some_and(|i| self.is_known_failure(i, event)) {
            return;
        }
        self.escalations.fold(event, instance.as_ref().and_then(|i| self.views.get_mut(i)), stored);
        self.note_presence(event, now);
        match &event.fact {
            Some(Fact::NodeInventory(inventory)) => self.fold_inventory(event, inventory, now),
            Some(Fact::MissionCompleted(completed)) => self.fold_boot(completed),
            Some(Fact::BrakeEngaged(_)) => self.brake = Some(Brake { id: event.id.clone(), since: now.mono }),
            Some(Fact::BrakeReleased(_)) => self.brake = None,
            Some(Fact::ChakraDown(_)) => self.fold_chakra(event, true),
            Some(Fact::ChakraRecovered(_)) => self.fold_chakra(event, false),
            Some(fact) => {
                let Some(instance) = instance else { return };
                if matches!(fact, Fact::ComponentFailed(_)) {
                    self.last_failure = now.mono;
                }
                if let Fact::RungTried(tried) = fact
                    && tried.rung == CHAKRA_HOOK
                    && tried.outcome != VOID
                    && let Some(chakra) = self.chakras.get_mut(&event.chakra)
                {
                    chakra.wants_hook = false;
                }
                if let Fact::RungTried(tried) = fact {
                    self.destroyed.fold(&instance, &event.chakra, tried, stored, limits);
                }
                if self.views.len() < ENTITIES_MAX || self.views.contains_key(&instance) {
                    let live = self.caught_up;
                    let view = self.views.entry(instance.clone()).or_default();
                    if silence(fact, event) && !view.changed_by.is_empty() && event.cause_id != view.changed_by {
                        return;
                    }
                    fold_instance(view, event, fact, stored, now);
                    fold_incident(view, &instance, event, fact);
                    fold_end(view, &instance, event, fact, &End { limits, stored, live, now });
                }
            }
            None => {}
        }
    }

    /// Whether an event tells once more of a failure that was folded.
    fn is_known_failure(&self, instance: &Instance, event: &v1::Event) -> bool {
        let again = event.reason.as_ref().is_some_and(|r| r.code == TOLD_AGAIN);
        let known = self.views.get(instance).and_then(|v| v.failed.as_ref()).map(|f| f.incarnation);
        again && known >= told_incarnation(event) && known.is_some()
    }

    /// A chakra went down, which is told once more under the same id by whoever takes over, or is well again.
    fn fold_chakra(&mut self, event: &v1::Event, down: bool) {
        if self.chakras.len() >= ENTITIES_MAX && !self.chakras.contains_key(&event.chakra) {
            return;
        }
        let chakra = self.chakras.entry(event.chakra.clone()).or_default();
        if !down {
            chakra.wants_hook = false;
        } else if chakra.fell_by != event.id {
            *chakra = ChakraView { fell_by: event.id.clone(), wants_hook: true };
        }
    }

    /// Whether a chakra is down, and no hook of it has been tried since.
    #[must_use]
    pub fn wants_hook(&self, chakra: &str) -> bool {
        self.chakras.get(chakra).is_some_and(|c| c.wants_hook)
    }

    /// Remembers agents' events by id; false if it is remembered already.
    fn note_told(&mut self, event: &v1::Event) -> bool {
        let ours = event.source.as_ref().is_some_and(|s| s.kind == AGENT);
        if !ours {
            return true;
        }
        if !self.told.insert(event.id.clone()) {
            return false;
        }
        self.told_order.push_back(event.id.clone());
        if self.told_order.len() > TOLD_MAX
            && let Some(oldest) = self.told_order.pop_front()
        {
            self.told.remove(&oldest);
        }
        true
    }

    fn known_node(&mut self, node: &str) {
        if self.nodes.len() < ENTITIES_MAX {
            self.nodes.entry(node.to_owned()).or_default();
        }
    }

    /// Whether the node that an event is about counts as lost.
    fn note_presence(&mut self, event: &v1::Event, now: Now) {
        let Some(view) = presence::node_of(event).and_then(|name| self.nodes.get_mut(name)) else { return };
        view.presence.fold(event);
        if std::mem::replace(&mut view.lost, view.presence.is_away()) && !view.lost {
            view.back_since = now.mono;
        }
    }

    /// A boot that ended without what it had started is lost on that; who is ready at its end is past help no longer.
    fn fold_boot(&mut self, completed: &v1::MissionCompleted) {
        let counts = completed.outcome != SUPERSEDED;
        for (id, view) in &mut self.views {
            if view.lost_boots.1 != completed.mission_id && completed.ready.contains(&id.component) {
                view.lost_boots.0 = 0;
            }
            if counts && view.mission == completed.mission_id && !view.serves() && completed.failed.contains(&id.component) {
                view.lose_boot();
            }
        }
    }

    fn fold_inventory(&mut self, event: &v1::Event, inventory: &v1::NodeInventory, now: Now) {
        if !places::is_newest_inventory(&mut self.places, event) {
            return;
        }
        for item in &inventory.items {
            let Some(instance) = item.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            if self.views.len() >= ENTITIES_MAX && !self.views.contains_key(&instance) {
                return;
            }
            let told = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let view = self.views.entry(instance).or_default();
            if told >= view.incarnation && (told > view.incarnation || view.state != item.state()) {
                view.incarnation = told;
                view.started_by.clone_from(&event.id);
                view.enter(item.state(), event, now);
                view.changed_by.clone_from(&event.id);
            }
            if told >= view.incarnation {
                view.node = event.source.as_ref().map(|s| s.id.clone()).unwrap_or_default();
            }
        }
    }

    pub(super) const fn destroyed(&self) -> &Destroyed {
        &self.destroyed
    }

    /// When the newest event was stored, by the broker's clock: what is recent is measured by it.
    pub(super) const fn clock(&self) -> Option<SystemTime> {
        self.escalations.clock()
    }

    pub(super) const fn escalations(&self) -> &Escalations {
        &self.escalations
    }

    /// An instance as its node tells it.
    #[must_use]
    pub fn view(&self, instance: &Instance) -> Option<&View> {
        self.views.get(instance)
    }

    /// Every instance, in order.
    #[must_use]
    pub const fn views(&self) -> &BTreeMap<Instance, View> {
        &self.views
    }

    /// Replicas of a component, in order.
    pub fn replicas(&self, component: &str) -> impl Iterator<Item = (&Instance, &View)> {
        self.views.range(Instance::new(component, 0)..=Instance::new(component, u32::MAX))
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeView {
        self.nodes.get(name).cloned().unwrap_or_default()
    }

    /// The brake, while it is on.
    #[must_use]
    pub const fn brake(&self) -> Option<&Brake> {
        self.brake.as_ref()
    }

    /// When the newest failure of any component was heard of, monotonic.
    #[must_use]
    pub const fn last_failure(&self) -> Duration {
        self.last_failure
    }

    /// Whether an event of recovery's with this id is in EVENTS.
    #[must_use]
    pub fn is_told(&self, id: &str) -> bool {
        self.told.contains(id)
    }
}
