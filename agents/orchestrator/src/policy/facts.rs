//! What the orchestrator folds from EVENTS: nodes and their inventories, instances, missions, commands, and which of its own events are
//! told. Never emits; every map is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    places::{self, Places, Sight},
    presence::{self, Presence},
    time,
    trace::Context,
    v1::{self, InstanceState, event::Fact},
};

use super::Now;

/// Ids of own events that are remembered as told: eight changes of a plan of the largest size.
const TOLD_MAX: usize = 8192;
/// Missions that are remembered.
const MISSIONS_MAX: usize = 20;
/// Commands that are remembered; a redelivery comes within a minute.
const COMMANDS_MAX: usize = 4096;
/// Nodes and instances that are remembered.
const ENTITIES_MAX: usize = 8192;

/// A node as the events tell it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Epoch of its journal.
    pub epoch: String,
    /// Id of the event that told of this epoch.
    pub epoch_told_by: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Lost, by the watchdog's verdict.
    pub lost: bool,
    /// By which event it is so.
    pub presence: Presence,
    /// Bucket epoch that its newest inventory answers; `None`: none in this journal.
    pub inventory_of: Option<String>,
    /// What lived there by that inventory.
    pub held: BTreeMap<Instance, Held>,
}

/// What a node holds of an instance, by its inventory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Highest generation that it has persisted.
    pub generation: u64,
    /// Hash of the specification that is wanted in it; empty: none is.
    pub spec_hash: String,
}

/// An instance as its node tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Newest incarnation.
    pub incarnation: Incarnation,
    /// State.
    pub state: InstanceState,
    /// Stream sequence at which it entered the state.
    pub since_sequence: u64,
    /// When it entered the state, by its node's clock.
    pub since: Option<prost_types::Timestamp>,
    /// Time from spawn to ready of this incarnation.
    pub took: Option<prost_types::Duration>,
    /// Stream sequence of the last ready.
    pub ready_sequence: u64,
    /// Why it is so.
    pub why: String,
    /// End of its isolation by quarantine's clock, for people; `None`: it is not isolated, or without an end.
    pub isolated_until: Option<SystemTime>,
    /// When this replica folded that it entered the state.
    pub entered: Duration,
    /// Recovery is on it, by what it told since the instance was well.
    pub tended: bool,
    /// When this replica folded that no rung had helped it; `None`: that was not told since it was well.
    pub given_up: Option<Duration>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            incarnation: Incarnation::default(),
            state: InstanceState::Unspecified,
            since_sequence: 0,
            since: None,
            took: None,
            ready_sequence: 0,
            why: String::new(),
            isolated_until: None,
            entered: Duration::ZERO,
            tended: false,
            given_up: None,
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
}

/// A mission as the events tell it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MissionFacts {
    /// How it began.
    pub started: v1::MissionStarted,
    /// Stream sequence of that.
    pub sequence: u64,
    /// When that was told; `None`: it was not said.
    pub started_at: Option<prost_types::Timestamp>,
    /// Command that began it; empty: it is not known.
    pub command: String,
    /// When this replica folded that.
    pub seen: Duration,
    /// How it ended, and when.
    pub completed: Option<(v1::MissionCompleted, Option<prost_types::Timestamp>)>,
}

/// A command as the events tell it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommandFacts {
    /// What was told of it first (`accepted` or `refused`).
    pub told: v1::OperatorCommand,
    /// Reason of that.
    pub reason: v1::Reason,
    /// Mission that carries it out; empty: none.
    pub mission_id: String,
    /// When this replica folded that.
    pub seen: Duration,
    /// Terminal result; `None`: open.
    pub ended: Option<String>,
    /// Trace that it was told in first.
    pub trace: Option<Context>,
}

/// Everything folded from EVENTS.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    applied: u64,
    places: BTreeMap<String, Places>,
    nodes: BTreeMap<String, NodeView>,
    views: BTreeMap<Instance, View>,
    /// Told last of each instance, with the id of the event.
    desired: BTreeMap<Instance, (String, v1::DesiredChanged)>,
    /// As the snapshot knows it.
    seeded: BTreeMap<Instance, v1::DesiredChanged>,
    floors: BTreeMap<Instance, u64>,
    missions: VecDeque<MissionFacts>,
    /// Ends that were told before their beginnings: a stream that was lost on the way is told of again out of order.
    early_ends: VecDeque<(v1::MissionCompleted, Option<prost_types::Timestamp>)>,
    /// Recovery holds all ladders back.
    brake: bool,
    commands: BTreeMap<String, CommandFacts>,
    command_order: VecDeque<String>,
    told: BTreeSet<String>,
    told_order: VecDeque<String>,
    unknown: u64,
}

impl Facts {
    /// What the registry's snapshot knows of nodes, instances, missions and what was told to be desired: EVENTS keeps a fact for 30
    /// days, and what has run untouched for longer is known by the snapshot alone. The whole stream is folded over it.
    pub(super) fn seed(&mut self, snapshot: &v1::Observed, now: Now) {
        for node in snapshot.nodes.iter().take(ENTITIES_MAX) {
            let Some(joined) = &node.joined else { continue };
            let labels = joined.labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect();
            let presence = Presence::restore(&node.presence_by, node.lost);
            let view = NodeView { epoch: joined.node_epoch.clone(), labels, lost: node.lost, presence, ..NodeView::default() };
            self.nodes.insert(node.name.clone(), view);
        }
        for component in snapshot.components.iter().take(ENTITIES_MAX) {
            let Some(instance) = component.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let incarnation = component.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            self.note_generation(&instance, incarnation.generation);
            if let Some(desired) = &component.desired {
                self.note_generation(&instance, desired.generation);
                self.seeded.insert(instance.clone(), desired.clone());
            }
            let why = component.reason.as_ref().map(|r| r.text.clone()).unwrap_or_default();
            let (state, since, took) = (component.state(), component.since, component.last_took);
            let view = View { incarnation, state, since, took, why, entered: now.mono, ..View::default() };
            self.views.insert(instance, view);
        }
        for mission in &snapshot.missions {
            let Some(started) = &mission.started else { continue };
            let completed = mission.completed.clone().map(|c| (c, None));
            let facts =
                MissionFacts { started: started.clone(), started_at: mission.started_at, seen: now.mono, completed, ..Default::default() };
            self.missions.push_back(facts);
        }
    }

    pub(super) fn apply(&mut self, sequence: u64, event: &v1::Event, now: Now) {
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
            self.note_epoch(&place.node, &place.epoch, &event.id);
        } else if !event.id.is_empty() && !self.note_told(event) {
            return;
        }
        self.note_presence(event);
        let Some(fact) = &event.fact else {
            self.unknown += 1;
            return;
        };
        self.fold(sequence, event, fact, now);
    }

    /// Remembers agents' events by id; false if it is remembered already.
    fn note_told(&mut self, event: &v1::Event) -> bool {
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

    fn note_epoch(&mut self, node: &str, epoch: &str, event_id: &str) {
        if self.nodes.len() >= ENTITIES_MAX && !self.nodes.contains_key(node) {
            return;
        }
        let view = self.nodes.entry(node.to_owned()).or_default();
        if view.epoch != epoch {
            epoch.clone_into(&mut view.epoch);
            event_id.clone_into(&mut view.epoch_told_by);
            view.inventory_of = None;
            view.held.clear();
        }
    }

    /// Whether the node that an event is about counts as lost.
    fn note_presence(&mut self, event: &v1::Event) {
        if let Some(view) = presence::node_of(event).and_then(|name| self.nodes.get_mut(name)) {
            view.presence.fold(event);
            view.lost = view.presence.is_away();
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    fn fold(&mut self, sequence: u64, event: &v1::Event, fact: &Fact, now: Now) {
        let instance = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        match fact {
            Fact::NodeJoined(joined) => self.fold_joined(event, joined),
            Fact::NodeInventory(inventory) => self.fold_inventory(sequence, event, inventory, now),
            Fact::DesiredChanged(desired) => {
                if let Some(instance) = instance {
                    self.note_generation(&instance, desired.generation);
                    if self.desired.get(&instance).is_none_or(|(_, d)| d.generation <= desired.generation) {
                        self.desired.insert(instance, (event.id.clone(), desired.clone()));
                    }
                }
            }
            Fact::MissionStarted(started) => {
                let at = self.early_ends.iter().position(|(end, _)| end.mission_id == started.mission_id);
                let completed = at.and_then(|at| self.early_ends.remove(at));
                let (started, started_at, command) = (started.clone(), event.time, event.cause_id.clone());
                self.missions.push_back(MissionFacts { started, sequence, started_at, command, seen: now.mono, completed });
                if self.missions.len() > MISSIONS_MAX {
                    self.missions.pop_front();
                }
            }
            Fact::MissionCompleted(completed) => {
                if let Some(mission) = self.missions.iter_mut().find(|m| m.started.mission_id == completed.mission_id) {
                    mission.completed.get_or_insert_with(|| (completed.clone(), event.time));
                } else {
                    self.early_ends.push_back((completed.clone(), event.time));
                    if self.early_ends.len() > MISSIONS_MAX {
                        self.early_ends.pop_front();
                    }
                }
            }
            Fact::OperatorCommand(told) if is_ours(event) => self.fold_command(event, told, now),
            Fact::BrakeEngaged(_) => self.brake = true,
            Fact::BrakeReleased(_) => self.brake = false,
            _ => {
                if let Some(instance) = instance {
                    self.fold_ladder(&instance, fact, now);
                    self.fold_instance(sequence, event, &instance, fact, now);
                }
            }
        }
    }

    /// What recovery tells of an instance.
    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    fn fold_ladder(&mut self, instance: &Instance, fact: &Fact, now: Now) {
        let Some(view) = self.views.get_mut(instance) else { return };
        match fact {
            Fact::RecoveryStarted(_) | Fact::RungTried(_) => view.tended = true,
            Fact::RecoveryFailed(_) => view.given_up = Some(now.mono),
            Fact::Recovered(_) | Fact::IncidentWithdrawn(_) | Fact::Released(_) => (view.tended, view.given_up) = (false, None),
            _ => {}
        }
    }

    fn fold_joined(&mut self, event: &v1::Event, joined: &v1::NodeJoined) {
        let Some(source) = &event.source else { return };
        self.note_epoch(&source.id, &joined.node_epoch, &event.id);
        if let Some(node) = self.nodes.get_mut(&source.id) {
            node.labels = joined.labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect();
            // What it runs it will tell; a rejoin with the same journal keeps its inventory.
        }
    }

    fn fold_inventory(&mut self, sequence: u64, event: &v1::Event, inventory: &v1::NodeInventory, now: Now) {
        if !places::is_newest_inventory(&mut self.places, event) {
            return;
        }
        let Some(source) = &event.source else { return };
        if let Some(node) = self.nodes.get_mut(&source.id)
            && node.epoch == inventory.node_epoch
        {
            node.inventory_of = Some(inventory.bucket_epoch.clone());
            node.held = inventory.items.iter().filter_map(held).take(ENTITIES_MAX).collect();
        }
        for item in &inventory.items {
            let Some(instance) = item.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            self.note_generation(&instance, item.generation);
            let told = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let view = self.views.entry(instance).or_default();
            if told >= view.incarnation && (told > view.incarnation || view.state != item.state()) {
                view.incarnation = told;
                enter(view, item.state(), sequence, event, now);
            }
        }
    }

    fn fold_command(&mut self, event: &v1::Event, told: &v1::OperatorCommand, now: Now) {
        let known = self.commands.contains_key(&told.command_id);
        let facts = self.commands.entry(told.command_id.clone()).or_default();
        if matches!(told.result.as_str(), "done" | "failed" | "refused") {
            facts.ended.get_or_insert_with(|| told.result.clone());
        }
        if facts.told.result.is_empty() || facts.told.result == "done" || facts.told.result == "failed" {
            facts.told = told.clone();
            facts.reason = event.reason.clone().unwrap_or_default();
            facts.mission_id.clone_from(&event.mission_id);
            facts.seen = now.mono;
            facts.trace = facts.trace.or_else(|| Context::parse(&event.trace.as_ref()?.traceparent));
        }
        if !known {
            self.command_order.push_back(told.command_id.clone());
            if self.command_order.len() > COMMANDS_MAX
                && let Some(oldest) = self.command_order.pop_front()
            {
                self.commands.remove(&oldest);
            }
        }
    }

    fn fold_instance(&mut self, sequence: u64, event: &v1::Event, instance: &Instance, fact: &Fact, now: Now) {
        if self.views.len() >= ENTITIES_MAX && !self.views.contains_key(instance) {
            return;
        }
        let Some(state) = state_after(fact, self.views.get(instance)) else { return };
        let view = self.views.entry(instance.clone()).or_default();
        if let Some(told) = event.incarnation.as_ref().map(Incarnation::from) {
            if told < view.incarnation {
                return;
            }
            if told.generation > view.incarnation.generation {
                (view.tended, view.given_up) = (false, None);
            }
            view.incarnation = told;
        }
        if let Fact::ComponentReady(ready) = fact {
            view.ready_sequence = sequence;
            if !ready.again {
                view.took = ready.took;
            }
        }
        // How it was stopped tells less than why it is isolated.
        let stays_isolated = view.state == InstanceState::Quarantined && matches!(fact, Fact::ComponentStopped(_));
        if !stays_isolated {
            enter(view, state, sequence, event, now);
        }
        if let Fact::Quarantined(isolated) = fact {
            let end = |at: &prost_types::Timestamp| Some(time::system_time(at) + isolated.duration.as_ref().map(time::std_duration)?);
            view.isolated_until = event.time.as_ref().and_then(end);
        }
        let generation = view.incarnation.generation;
        self.note_generation(instance, generation);
    }

    /// A generation was told: none below it may be written.
    pub(super) fn note_generation(&mut self, instance: &Instance, generation: u64) {
        if self.floors.len() >= ENTITIES_MAX && !self.floors.contains_key(instance) {
            return;
        }
        let floor = self.floors.entry(instance.clone()).or_default();
        *floor = (*floor).max(generation);
    }

    /// Highest generation told of an instance by anybody; 0: none.
    #[must_use]
    pub fn floor(&self, instance: &Instance) -> u64 {
        self.floors.get(instance).copied().unwrap_or(0)
    }

    /// Nodes by name.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<String, NodeView> {
        &self.nodes
    }

    /// An instance as its node tells it.
    #[must_use]
    pub fn view(&self, instance: &Instance) -> Option<&View> {
        self.views.get(instance)
    }

    /// What was told last of what is desired of an instance.
    #[must_use]
    pub fn told_desired(&self, instance: &Instance) -> Option<&v1::DesiredChanged> {
        self.desired.get(instance).map(|(_, desired)| desired).or_else(|| self.seeded.get(instance))
    }

    /// Id of the event that told it; `None`: it is known by the snapshot alone.
    pub(super) fn told_desired_by(&self, instance: &Instance) -> Option<&str> {
        self.desired.get(instance).map(|(id, _)| id.as_str())
    }

    /// Whether recovery holds all ladders back.
    #[must_use]
    pub const fn braked(&self) -> bool {
        self.brake
    }

    /// Missions, oldest first.
    #[must_use]
    pub const fn missions(&self) -> &VecDeque<MissionFacts> {
        &self.missions
    }

    /// A mission.
    #[must_use]
    pub fn mission(&self, id: &str) -> Option<&MissionFacts> {
        self.missions.iter().find(|m| m.started.mission_id == id)
    }

    /// A command.
    #[must_use]
    pub fn command(&self, id: &str) -> Option<&CommandFacts> {
        self.commands.get(id)
    }

    /// Commands that were accepted and have no terminal result.
    pub fn open_commands(&self) -> impl Iterator<Item = &CommandFacts> {
        self.commands.values().filter(|c| c.ended.is_none() && c.told.result == "accepted")
    }

    /// Whether an agent's event with this id is in EVENTS.
    #[must_use]
    pub fn is_told(&self, id: &str) -> bool {
        self.told.contains(id)
    }

    /// Last stream sequence folded.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// Events passed over because nobody here knows their kind.
    #[must_use]
    pub const fn unknown(&self) -> u64 {
        self.unknown
    }
}

/// An item of an inventory that lives, or may again by itself.
fn held(item: &v1::InventoryItem) -> Option<(Instance, Held)> {
    use InstanceState as S;
    let instance = Instance::try_from(item.instance.as_ref()?).ok()?;
    let rests = matches!(item.state(), S::Stopped | S::Completed | S::Unspecified);
    (!rests).then(|| (instance, Held { generation: item.generation, spec_hash: item.spec_hash.clone() }))
}

fn is_ours(event: &v1::Event) -> bool {
    event.source.as_ref().is_some_and(|s| s.kind == super::events::AGENT)
}

fn enter(view: &mut View, state: InstanceState, sequence: u64, event: &v1::Event, now: Now) {
    if view.state != state {
        view.entered = now.mono;
        view.state = state;
        view.since_sequence = sequence;
        view.since = event.time;
    }
    view.why = event.reason.as_ref().map(|r| r.text.clone()).unwrap_or_default();
}

/// The state that a fact leaves its instance in; `None`: it says nothing about that.
#[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
fn state_after(fact: &Fact, before: Option<&View>) -> Option<InstanceState> {
    use InstanceState as S;
    let lives = before.is_some_and(View::lives);
    let state = before.map_or(S::Unspecified, |v| v.state);
    Some(match fact {
        Fact::ComponentStarted(started) if started.adopted && lives => state,
        Fact::ComponentStarted(_) => S::Starting,
        Fact::ComponentReady(ready) if ready.completed => S::Completed,
        Fact::ComponentReady(_) => S::Ready,
        Fact::ComponentUnready(_) => S::Unready,
        Fact::ComponentExited(_) => S::Exited,
        Fact::ComponentBlocked(_) if lives => state,
        Fact::ComponentBlocked(_) => S::Waiting,
        // Released by a passing probe it runs already.
        Fact::Released(_) if matches!(state, S::Quarantined | S::Probation) => S::Waiting,
        Fact::ComponentFailed(_) => S::Failed,
        Fact::ComponentStopped(_) if state == S::Quarantined => S::Quarantined,
        Fact::ComponentStopped(_) => S::Stopped,
        Fact::Quarantined(_) => S::Quarantined,
        _ => return None,
    })
}
