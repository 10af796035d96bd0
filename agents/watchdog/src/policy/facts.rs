//! What the watchdog folds from EVENTS: who is there, how instances are, and what it has told itself. Never emits; every map is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    places::{self, Places, Sight},
    presence::{self, Presence, Turn},
    v1::{self, DegradedKind, InstanceState as State, event::Fact},
};

use super::AGENT;

/// Nodes, agents and instances that are remembered.
const ENTITIES_MAX: usize = 8192;
/// Ids of own events that are remembered as told.
const TOLD_MAX: usize = 8192;
/// Restarts that are counted.
const RESTARTS_MAX: usize = 4096;
/// Period over which restarts are counted.
pub(super) const RESTARTS_WITHIN: Duration = Duration::from_secs(600);

/// A node or an agent as EVENTS tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it counts as silent, and by which event.
    pub presence: Presence,
    /// When that changed last, monotonic, by receipt.
    pub changed_at: Duration,
}

/// An instance as its node tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Newest incarnation.
    pub incarnation: Incarnation,
    /// State.
    pub state: State,
    /// Node that runs it.
    pub node: String,
    /// Stack.
    pub stack: String,
    /// Event that changed its state last, with its place in the stream.
    pub changed_by: (u64, String),
    /// When that was folded, monotonic.
    pub changed_at: Duration,
    /// Highest generation in which it served.
    pub served_in: u64,
    /// It starts, and has had its time for that: from then on it owes its beats, ready or not.
    pub overdue: bool,
    /// Verdict on its silence that was folded; empty: none since its state changed.
    pub judged_by: String,
    /// Resources told over their limit, with the event that told it.
    pub over: BTreeMap<String, String>,
    /// Resources told within their limit again in this incarnation, with the event that told it last.
    pub within: BTreeMap<String, String>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            incarnation: Incarnation::default(),
            state: State::Unspecified,
            node: String::new(),
            stack: String::new(),
            changed_by: (0, String::new()),
            changed_at: Duration::ZERO,
            served_in: 0,
            overdue: false,
            judged_by: String::new(),
            over: BTreeMap::new(),
            within: BTreeMap::new(),
        }
    }
}

impl View {
    /// Whether it serves, or has done what it was to do.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self.state, State::Ready | State::Completed)
    }

    /// The event since which a resource counts as within its limit: the last that told so, else none of this incarnation.
    #[must_use]
    pub fn turned(&self, resource: &str) -> String {
        self.within.get(resource).cloned().unwrap_or_default()
    }

    /// Whether a process lives that beats if its specification says so.
    #[must_use]
    pub const fn beats(&self) -> bool {
        matches!(self.state, State::Ready | State::Unready) || (matches!(self.state, State::Starting) && self.overdue)
    }
}

/// A chakra that was told down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Event that told it.
    pub id: String,
    /// When it was stored, by the broker's clock.
    pub stored: SystemTime,
}

/// Whom an event was about: what is to be looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    Nothing,
    Node(String),
    Agent(String, String),
    Instances,
}

/// Everything folded from EVENTS.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    applied: u64,
    places: BTreeMap<String, Places>,
    pub(super) nodes: BTreeMap<String, Seen>,
    pub(super) agents: BTreeMap<(String, String), Seen>,
    pub(super) views: BTreeMap<Instance, View>,
    pub(super) down: BTreeMap<String, Down>,
    /// Chakras that were told to serve again, by the last event that did, with its place in the stream.
    pub(super) recovered: BTreeMap<String, (u64, String)>,
    /// Event by which all chakras are told to be in sync.
    pub(super) spiral: Option<String>,
    /// The last event by which they were told not to be, with its place.
    pub(super) unsynced: (u64, String),
    /// The mission that runs.
    pub(super) mission: Option<String>,
    /// The mission that ended last: in EVENTS that are new its end may be told before its beginning.
    ended: String,
    restarts: VecDeque<SystemTime>,
    told: BTreeSet<String>,
    told_order: VecDeque<String>,
    forgotten: Vec<Instance>,
}

impl Facts {
    /// What the registry's snapshot knows: EVENTS keeps a fact for 30 days. The whole stream is folded over it.
    pub(super) fn seed(&mut self, snapshot: &v1::Observed, now: Duration) {
        for node in snapshot.nodes.iter().take(ENTITIES_MAX) {
            let seen = Seen { presence: Presence::restore(&node.presence_by, node.lost), changed_at: now };
            self.nodes.insert(node.name.clone(), seen);
        }
        for agent in snapshot.agents.iter().take(ENTITIES_MAX) {
            let Some(started) = &agent.started else { continue };
            let seen = Seen { presence: Presence::restore(&agent.presence_by, agent.down), changed_at: now };
            self.agents.insert((started.kind.clone(), started.id.clone()), seen);
        }
        for component in snapshot.components.iter().take(ENTITIES_MAX) {
            let Some(instance) = component.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let incarnation = component.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let mut view = View { incarnation, state: component.state(), node: component.node.clone(), ..View::default() };
            view.stack.clone_from(&component.stack);
            view.served_in = if view.serves() { incarnation.generation } else { 0 };
            self.views.insert(instance, view);
        }
    }

    /// Folds an event; says whom it is about, if it changed anything.
    pub(super) fn apply(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime, now: Duration) -> About {
        if sequence <= self.applied {
            return About::Nothing;
        }
        self.applied = sequence;
        if let Some(place) = &event.node_sequence {
            let joins = matches!(event.fact, Some(Fact::NodeJoined(_)));
            let places = self.places.entry(place.node.clone()).or_default();
            match places.see(&place.epoch, place.sequence, joins) {
                Sight::Again | Sight::Former => return About::Nothing,
                // Anything else than its joining may be a late copy, from a journal that the node had before these EVENTS.
                Sight::FirstOfNewJournal if joins => self.forget_lives(&place.node, sequence, event, now),
                Sight::First | Sight::FirstOfNewJournal => {}
            }
        } else if !self.note_told(event) {
            return About::Nothing;
        }
        let turned = self.fold_presence(event, now);
        match &event.fact {
            Some(Fact::MissionStarted(started)) if started.mission_id != self.ended => self.mission = Some(started.mission_id.clone()),
            Some(Fact::MissionCompleted(completed)) => {
                self.ended.clone_from(&completed.mission_id);
                self.mission.take_if(|running| *running == completed.mission_id);
            }
            Some(Fact::ChakraDown(_)) => {
                self.down.insert(event.chakra.clone(), Down { id: event.id.clone(), stored });
            }
            Some(Fact::ChakraRecovered(_)) => {
                self.down.remove(&event.chakra);
                self.recovered.insert(event.chakra.clone(), (sequence, event.id.clone()));
            }
            Some(Fact::GreatSpiral(_)) => self.spiral = Some(event.id.clone()),
            Some(Fact::OutOfSync(_)) => {
                self.spiral = None;
                self.unsynced = (sequence, event.id.clone());
            }
            Some(Fact::NodeInventory(inventory)) => self.fold_inventory(sequence, event, inventory, now),
            Some(fact) => self.fold_instance(sequence, event, fact, stored, now),
            None => {}
        }
        turned
    }

    /// With a new journal a node has ended what it ran by the old one, whether or not it could tell, and counts its starts anew.
    fn forget_lives(&mut self, node: &str, sequence: u64, event: &v1::Event, now: Duration) {
        for (instance, view) in self.views.iter_mut().filter(|(_, v)| v.node == node) {
            view.incarnation = Incarnation::default();
            view.over.clear();
            view.within.clear();
            enter(view, State::Unspecified, sequence, event, now);
            self.forgotten.push(instance.clone());
        }
    }

    /// Instances whose lives were forgotten since this was asked last.
    pub(super) fn take_forgotten(&mut self) -> Vec<Instance> {
        std::mem::take(&mut self.forgotten)
    }

    fn fold_presence(&mut self, event: &v1::Event, now: Duration) -> About {
        if let Some(name) = presence::node_of(event) {
            if self.nodes.len() >= ENTITIES_MAX && !self.nodes.contains_key(name) {
                return About::Nothing;
            }
            let seen = self.nodes.entry(name.to_owned()).or_default();
            if matches!(seen.presence.fold(event), Turn::Away | Turn::Here) {
                seen.changed_at = now;
                return About::Node(name.to_owned());
            }
        } else if let Some((kind, id)) = presence::agent_of(event) {
            let key = (kind.to_owned(), id.to_owned());
            if self.agents.len() >= ENTITIES_MAX && !self.agents.contains_key(&key) {
                return About::Nothing;
            }
            let seen = self.agents.entry(key).or_default();
            if matches!(seen.presence.fold(event), Turn::Away | Turn::Here) {
                seen.changed_at = now;
                return About::Agent(kind.to_owned(), id.to_owned());
            }
        }
        if event.instance.is_some() { About::Instances } else { About::Nothing }
    }

    /// Remembers by id what agents tell and this fold goes by; false if it is remembered already: a late copy says nothing about now.
    fn note_told(&mut self, event: &v1::Event) -> bool {
        let turns = matches!(
            event.fact,
            Some(
                Fact::MissionStarted(_)
                    | Fact::MissionCompleted(_)
                    | Fact::Quarantined(_)
                    | Fact::Released(_)
                    | Fact::Recovered(_)
                    | Fact::IncidentWithdrawn(_)
            )
        );
        let ours = event.source.as_ref().is_some_and(|s| s.kind == AGENT);
        let counts = turns || ours || presence::agent_of(event).is_some();
        if !counts || event.id.is_empty() {
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

    fn fold_inventory(&mut self, sequence: u64, event: &v1::Event, inventory: &v1::NodeInventory, now: Duration) {
        if !places::is_newest_inventory(&mut self.places, event) {
            return;
        }
        for item in &inventory.items {
            let Some(instance) = item.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let told = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let Some(view) = self.view_mut(&instance) else { continue };
            if told < view.incarnation || (told == view.incarnation && view.state == item.state()) {
                continue;
            }
            view.incarnation = told;
            enter(view, item.state(), sequence, event, now);
        }
    }

    fn view_mut(&mut self, instance: &Instance) -> Option<&mut View> {
        let room = self.views.len() < ENTITIES_MAX || self.views.contains_key(instance);
        room.then(|| self.views.entry(instance.clone()).or_default())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    fn fold_instance(&mut self, sequence: u64, event: &v1::Event, fact: &Fact, stored: SystemTime, now: Duration) {
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return };
        let Some(view) = self.view_mut(&instance) else { return };
        let is_a_nodes = event.source.as_ref().is_some_and(|s| s.kind == "node");
        let mut is_new = false;
        if let Some(told) = event.incarnation.as_ref().map(Incarnation::from) {
            if told < view.incarnation {
                return;
            }
            if is_a_nodes && told > view.incarnation {
                is_new = true;
                view.incarnation = told;
                view.over.clear();
                view.within.clear();
            }
        }
        if is_a_nodes {
            view.node = event.source.as_ref().map(|s| s.id.clone()).unwrap_or_default();
        }
        if !event.stack.is_empty() {
            view.stack.clone_from(&event.stack);
        }
        match fact {
            Fact::ComponentUnresponsive(_) if !is_a_nodes => {
                if event.cause_id == view.changed_by.1 {
                    view.judged_by.clone_from(&event.id);
                }
                return;
            }
            Fact::LimitExceeded(limit) => {
                view.over.insert(limit.resource.clone(), event.id.clone());
                return;
            }
            Fact::LimitRestored(limit) => {
                view.over.remove(&limit.resource);
                view.within.insert(limit.resource.clone(), event.id.clone());
                return;
            }
            Fact::ComponentDegraded(told) if told.kind() == DegradedKind::Slow && !told.passed => {
                view.overdue |= view.state == State::Starting;
                return;
            }
            // The end of an incident: from now on it may be judged anew.
            Fact::IncidentWithdrawn(_) | Fact::Recovered(_) => {
                changed(view, sequence, event, now);
                return;
            }
            _ => {}
        }
        let Some(state) = state_after(fact, view.state) else { return };
        if is_new || view.state != state {
            enter(view, state, sequence, event, now);
        }
        if matches!(fact, Fact::ComponentStarted(started) if !started.adopted && view.incarnation.start > 1) && view.stack != "system" {
            self.note_restart(stored);
        }
    }

    fn note_restart(&mut self, stored: SystemTime) {
        if self.restarts.len() >= RESTARTS_MAX {
            self.restarts.pop_front();
        }
        self.restarts.push_back(stored);
    }

    /// Restarts inside [`RESTARTS_WITHIN`], by the clock of the broker.
    pub(super) fn restarts(&self, wall: SystemTime) -> usize {
        self.restarts.iter().filter(|at| wall.duration_since(**at).unwrap_or_default() < RESTARTS_WITHIN).count()
    }

    /// A node, if it is known.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Seen> {
        self.nodes.get(name)
    }

    /// An instance, if it is known.
    #[must_use]
    pub fn view(&self, instance: &Instance) -> Option<&View> {
        self.views.get(instance)
    }

    /// Whether a node counts as lost.
    #[must_use]
    pub fn is_lost(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|seen| seen.presence.is_away())
    }

    /// Whether an event with this id, of those that are remembered, is in EVENTS.
    #[must_use]
    pub fn is_told(&self, id: &str) -> bool {
        self.told.contains(id)
    }
}

fn changed(view: &mut View, sequence: u64, event: &v1::Event, now: Duration) {
    view.changed_by = (sequence, event.id.clone());
    view.changed_at = now;
    view.judged_by.clear();
}

fn enter(view: &mut View, state: State, sequence: u64, event: &v1::Event, now: Duration) {
    (view.state, view.overdue) = (state, false);
    changed(view, sequence, event, now);
    if view.serves() {
        view.served_in = view.served_in.max(view.incarnation.generation);
    }
}

/// The state that a fact leaves its instance in; `None`: it says nothing about that.
#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
fn state_after(fact: &Fact, before: State) -> Option<State> {
    let lives = matches!(before, State::Preparing | State::Starting | State::Ready | State::Unready | State::Stopping);
    Some(match fact {
        Fact::ComponentStarted(started) if started.adopted && lives => return None,
        Fact::ComponentStarted(_) => State::Starting,
        Fact::ComponentReady(ready) if ready.completed => State::Completed,
        Fact::ComponentReady(_) => State::Ready,
        Fact::ComponentUnready(_) => State::Unready,
        Fact::ComponentExited(_) => State::Exited,
        Fact::ComponentBlocked(blocked) if blocked.by.is_empty() || lives => return None,
        Fact::ComponentBlocked(_) => State::Waiting,
        Fact::ComponentFailed(_) => State::Failed,
        Fact::ComponentStopped(_) if before == State::Quarantined => return None,
        Fact::ComponentStopped(_) => State::Stopped,
        Fact::Quarantined(_) => State::Quarantined,
        Fact::Released(_) if matches!(before, State::Quarantined | State::Probation) => State::Waiting,
        _ => return None,
    })
}
