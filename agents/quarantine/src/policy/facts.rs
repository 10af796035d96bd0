//! What quarantine folds from EVENTS: nodes and their inventories, instances, incidents that the ladder gave up, commands, and which of its
//! own events are told. Never emits; every map is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{
    event::TOLD_AGAIN,
    ids::{Incarnation, Incident, Instance},
    places::{self, Places, Sight},
    presence::{self, Presence},
    trace::Context,
    v1::{self, InstanceState, event::Fact},
};

use super::{ENTITIES_MAX, Now, events::AGENT, issue::MANUAL};

/// Ids of own events that are remembered as told.
const TOLD_MAX: usize = 32768;
/// Commands that are remembered; a redelivery comes within a minute.
const COMMANDS_MAX: usize = 4096;

/// A node as the events tell it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct NodeView {
    epoch: String,
    lost: bool,
    /// By which event it is so.
    presence: Presence,
    /// Bucket epoch that its newest inventory answers; `None`: none in this journal.
    pub(super) inventory_of: Option<String>,
    /// Quarantine records on its disk.
    held: Vec<v1::Intent>,
}

/// An end that was no stop.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Failure {
    pub(super) incarnation: Incarnation,
    pub(super) sequence: u64,
    pub(super) event_id: String,
    pub(super) incident: Option<v1::IncidentId>,
    /// Its node has given it up, and not only seen its end.
    pub(super) past_help: bool,
    pub(super) error: String,
    /// What its node knows of the error.
    pub(super) issue: Option<v1::Issue>,
}

/// An instance as its node tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Newest incarnation.
    pub incarnation: Incarnation,
    /// A process lives.
    pub lives: bool,
    /// A one-shot that is done.
    pub completed: bool,
    /// Node that told of it last.
    node: String,
    pub(super) chakra: String,
    pub(super) ready_since: Option<Duration>,
    pub(super) ready_sequence: u64,
    pub(super) ready_event_id: String,
    pub(super) failure: Option<Failure>,
    /// When this incarnation was told to have started, monotonic, by receipt, with the place and id of the event.
    pub(super) begun: Option<(Duration, u64, String)>,
}

impl View {
    /// Since when it is ready, where that has to hold for a while.
    pub(super) fn soaks_since(&self) -> Option<Duration> {
        self.ready_since.filter(|_| !self.completed)
    }

    /// Whether its node has given up the newest incarnation in this incident.
    pub(super) fn is_past_help_in(&self, incident: &Incident) -> bool {
        let newest = self.failure.as_ref().filter(|f| f.past_help && f.incarnation == self.incarnation);
        newest.and_then(|f| f.incident.as_ref()).and_then(|i| Incident::try_from(i).ok()).is_some_and(|i| i == *incident)
    }

    fn ended(&mut self) {
        self.lives = false;
        self.ready_since = None;
    }
}

/// An incident that the ladder gave up.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryFailed {
    pub(super) incident: Incident,
    pub(super) incarnation: Incarnation,
    pub(super) attempts: u32,
    pub(super) last_error: String,
    pub(super) issue: Option<v1::Issue>,
    pub(super) event_id: String,
    pub(super) trace: Option<v1::TraceContext>,
}

/// A command as the events tell it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommandFacts {
    pub(super) told: v1::OperatorCommand,
    pub(super) reason: v1::Reason,
    pub(super) seen: Duration,
    pub(super) ended: bool,
    pub(super) trace: Option<Context>,
}

/// Everything folded from EVENTS.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    applied: u64,
    places: BTreeMap<String, Places>,
    nodes: BTreeMap<String, NodeView>,
    views: BTreeMap<Instance, View>,
    failures: BTreeMap<Instance, RecoveryFailed>,
    /// The incident of each instance that was withdrawn last.
    withdrawn: BTreeMap<Instance, Incident>,
    /// The newest event of each instance that tells of a record of its own or its component's, and whether a hand had isolated it.
    last: BTreeMap<Instance, (v1::Event, bool)>,
    commands: BTreeMap<String, CommandFacts>,
    command_order: VecDeque<String>,
    told: BTreeMap<String, u64>,
    told_order: VecDeque<String>,
}

impl Facts {
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
            self.note_epoch(&place.node, &place.epoch);
        } else if is_ours(event) && !self.note_told(&event.id, sequence) {
            return;
        }
        self.note_presence(event);
        if let Some(fact) = &event.fact {
            self.fold(sequence, event, fact, now);
        }
    }

    fn note_told(&mut self, id: &str, sequence: u64) -> bool {
        if self.told.contains_key(id) {
            return false;
        }
        self.told.insert(id.to_owned(), sequence);
        self.told_order.push_back(id.to_owned());
        if self.told_order.len() > TOLD_MAX
            && let Some(oldest) = self.told_order.pop_front()
        {
            self.told.remove(&oldest);
        }
        true
    }

    fn note_epoch(&mut self, node: &str, epoch: &str) {
        if self.nodes.len() >= ENTITIES_MAX && !self.nodes.contains_key(node) {
            return;
        }
        let view = self.nodes.entry(node.to_owned()).or_default();
        if view.epoch != epoch {
            let known = !view.epoch.is_empty();
            *view = NodeView { epoch: epoch.to_owned(), presence: view.presence.clone(), ..NodeView::default() };
            // With a new journal a node has ended what it ran by the old one, whether or not it could tell.
            self.views.values_mut().filter(|v| known && v.node == node).for_each(View::ended);
        }
    }

    /// Whether the node that an event is about counts as lost.
    fn note_presence(&mut self, event: &v1::Event) {
        if let Some(view) = presence::node_of(event).and_then(|name| self.nodes.get_mut(name)) {
            view.presence.fold(event);
            view.lost = view.presence.is_away();
        }
    }

    fn fold(&mut self, sequence: u64, event: &v1::Event, fact: &Fact, now: Now) {
        let instance = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        if let (Fact::IncidentWithdrawn(_), Some(Ok(incident))) = (fact, event.incident.as_ref().map(Incident::try_from))
            && (self.withdrawn.len() < ENTITIES_MAX || self.withdrawn.contains_key(&incident.instance))
        {
            // Nor does it count against a probation.
            let of_it = |f: &Failure| f.incident.as_ref().and_then(|i| Incident::try_from(i).ok()).as_ref() == Some(&incident);
            if let Some(view) = self.views.get_mut(&incident.instance) {
                view.failure.take_if(|failure| of_it(failure));
            }
            self.withdrawn.insert(incident.instance.clone(), incident);
        }
        match (fact, instance) {
            (Fact::NodeInventory(inventory), _) => self.fold_inventory(sequence, event, inventory, now),
            (Fact::OperatorCommand(told), _) if is_ours(event) => self.fold_command(event, told, now),
            (Fact::RecoveryFailed(failed), Some(instance)) => self.fold_recovery_failed(instance, event, failed),
            (Fact::Quarantined(told), Some(instance)) if is_ours(event) => self.keep_last(instance, event, told.issue_type == MANUAL),
            (Fact::Released(_) | Fact::ProbationStarted(_), Some(instance)) if is_ours(event) => {
                let by_hand = self.was_by_hand(&instance);
                self.keep_last(instance, event, by_hand);
            }
            (_, Some(instance)) => self.fold_instance(sequence, event, instance, fact, now),
            _ => {}
        }
    }

    fn keep_last(&mut self, instance: Instance, event: &v1::Event, by_hand: bool) {
        if self.last.len() < ENTITIES_MAX || self.last.contains_key(&instance) {
            self.last.insert(instance, (event.clone(), by_hand));
        }
    }

    fn fold_inventory(&mut self, sequence: u64, event: &v1::Event, inventory: &v1::NodeInventory, now: Now) {
        if !places::is_newest_inventory(&mut self.places, event) {
            return;
        }
        let Some(source) = &event.source else { return };
        self.note_epoch(&source.id, &inventory.node_epoch);
        if let Some(node) = self.nodes.get_mut(&source.id) {
            node.inventory_of = Some(inventory.bucket_epoch.clone());
            let records = inventory.quarantine_records.iter().take(ENTITIES_MAX);
            node.held = records.filter_map(|bytes| v1::Intent::decode(bytes.as_slice()).ok()).collect();
        }
        for item in &inventory.items {
            let Some(instance) = item.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let told = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let Some(view) = self.view_mut(&instance) else { continue };
            if told < view.incarnation {
                continue;
            }
            if told > view.incarnation {
                *view =
                    View { incarnation: told, failure: view.failure.take(), chakra: std::mem::take(&mut view.chakra), ..View::default() };
            }
            view.node.clone_from(&source.id);
            use InstanceState as S;
            view.lives = matches!(item.state(), S::Preparing | S::Starting | S::Ready | S::Unready | S::Stopping);
            view.completed = item.state() == S::Completed;
            if !matches!(item.state(), S::Ready | S::Completed) {
                view.ready_since = None;
            } else if view.ready_since.is_none() {
                view.ready_since = Some(now.mono);
                view.ready_sequence = sequence;
                view.ready_event_id.clone_from(&event.id);
            }
        }
    }

    fn fold_recovery_failed(&mut self, instance: Instance, event: &v1::Event, failed: &v1::RecoveryFailed) {
        let Some(incident) = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()) else { return };
        let room = self.failures.len() < ENTITIES_MAX || self.failures.contains_key(&instance);
        let known = self.failures.get(&instance).map(|f| (f.incident.incarnation, f.incident.signs_of_life));
        if !room || known.is_some_and(|known| known > (incident.incarnation, incident.signs_of_life)) {
            return;
        }
        let incarnation = event.incarnation.as_ref().map_or(incident.incarnation, Incarnation::from);
        let last_error = if failed.last_error.is_empty() {
            self.views.get(&instance).and_then(|v| v.failure.as_ref()).map(|f| f.error.clone()).unwrap_or_default()
        } else {
            failed.last_error.clone()
        };
        let facts = RecoveryFailed {
            incident,
            incarnation,
            attempts: failed.attempts,
            last_error,
            issue: failed.issue.clone(),
            event_id: event.id.clone(),
            trace: event.trace.clone(),
        };
        self.failures.insert(instance, facts);
    }

    fn fold_command(&mut self, event: &v1::Event, told: &v1::OperatorCommand, now: Now) {
        let known = self.commands.contains_key(&told.command_id);
        let facts = self.commands.entry(told.command_id.clone()).or_default();
        facts.ended |= matches!(told.result.as_str(), "done" | "failed" | "refused");
        if !known {
            facts.told = told.clone();
            facts.reason = event.reason.clone().unwrap_or_default();
            facts.seen = now.mono;
            facts.trace = event.trace.as_ref().and_then(|t| Context::parse(&t.traceparent));
            self.command_order.push_back(told.command_id.clone());
            if self.command_order.len() > COMMANDS_MAX
                && let Some(oldest) = self.command_order.pop_front()
            {
                self.commands.remove(&oldest);
            }
        }
    }

    fn view_mut(&mut self, instance: &Instance) -> Option<&mut View> {
        if self.views.len() >= ENTITIES_MAX && !self.views.contains_key(instance) {
            return None;
        }
        Some(self.views.entry(instance.clone()).or_default())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    fn fold_instance(&mut self, sequence: u64, event: &v1::Event, instance: Instance, fact: &Fact, now: Now) {
        let Some(told) = event.incarnation.as_ref().map(Incarnation::from) else { return };
        let Some(view) = self.view_mut(&instance) else { return };
        if told < view.incarnation || event.source.as_ref().is_none_or(|s| s.kind != "node") {
            return;
        }
        if told > view.incarnation {
            *view = View { incarnation: told, failure: view.failure.take(), ..View::default() };
        }
        view.chakra.clone_from(&event.chakra);
        view.node = event.source.as_ref().map(|s| s.id.clone()).unwrap_or_default();
        match fact {
            Fact::ComponentStarted(_) => {
                view.lives = true;
                view.begun.get_or_insert_with(|| (now.mono, sequence, event.id.clone()));
            }
            Fact::ComponentReady(ready) => {
                view.completed = ready.completed;
                view.lives = !ready.completed;
                if view.ready_since.is_none() {
                    view.ready_since = Some(now.mono);
                    view.ready_sequence = sequence;
                    view.ready_event_id.clone_from(&event.id);
                }
            }
            Fact::ComponentUnready(_) => view.ready_since = None,
            // What is told before that is of a life before the next trial, however late it was told.
            Fact::ComponentStopped(_) => {
                view.ended();
                view.failure = None;
            }
            Fact::ComponentExited(exited) => {
                view.ended();
                // Without an incident a dependency is to blame.
                if event.incident.is_some() {
                    view.failure = Some(failure(told, sequence, event, &exited.last_error, None));
                }
            }
            Fact::ComponentFailed(_) if is_told_again(event) && view.failure.as_ref().is_some_and(|f| f.incarnation == told) => {}
            Fact::ComponentFailed(failed) => {
                view.ended();
                view.failure = Some(failure(told, sequence, event, &failed.last_error, failed.issue.clone()));
            }
            _ => {}
        }
    }

    /// An instance as its node tells it.
    #[must_use]
    pub fn view(&self, instance: &Instance) -> Option<&View> {
        self.views.get(instance)
    }

    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        self.views.values()
    }

    /// Nodes that are not lost.
    pub(super) fn present_nodes(&self) -> impl Iterator<Item = (&String, &NodeView)> {
        self.nodes.iter().filter(|(_, n)| !n.lost)
    }

    /// Quarantine records on the disks of nodes, by their newest inventories.
    pub(super) fn held_records(&self) -> impl Iterator<Item = &v1::Intent> {
        self.nodes.values().flat_map(|n| &n.held)
    }

    /// The newest incident of each instance that the ladder gave up.
    pub(super) fn recovery_failures(&self) -> impl Iterator<Item = (&Instance, &RecoveryFailed)> {
        self.failures.iter()
    }

    /// Whether an incident has lost its object: what the ladder gave up is then nobody's to isolate.
    pub(super) fn is_withdrawn(&self, incident: &Incident) -> bool {
        self.withdrawn.get(&incident.instance) == Some(incident)
    }

    pub(super) fn last_told(&self) -> impl Iterator<Item = (&Instance, &v1::Event)> {
        self.last.iter().map(|(i, (event, _))| (i, event))
    }

    pub(super) fn was_by_hand(&self, instance: &Instance) -> bool {
        self.last.get(instance).is_some_and(|(_, by_hand)| *by_hand)
    }

    /// A command.
    #[must_use]
    pub fn command(&self, id: &str) -> Option<&CommandFacts> {
        self.commands.get(id)
    }

    /// Commands that were accepted and have no terminal result.
    pub(super) fn open_commands(&self) -> impl Iterator<Item = &CommandFacts> {
        self.commands.values().filter(|c| !c.ended && c.told.result == "accepted")
    }

    /// Whether an event of this agent is in EVENTS.
    #[must_use]
    pub fn is_told(&self, id: &str) -> bool {
        self.told.contains_key(id)
    }

    /// Its place there.
    pub(super) fn told_sequence(&self, id: &str) -> Option<u64> {
        self.told.get(id).copied()
    }

    /// Components that the events tell of, for what a name may mean.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.views.keys().map(|i| i.component.clone()).collect()
    }
}

fn failure(incarnation: Incarnation, sequence: u64, event: &v1::Event, error: &str, issue: Option<v1::Issue>) -> Failure {
    let told = event.reason.as_ref().map(|r| r.text.clone()).unwrap_or_default();
    let error = if error.is_empty() { told } else { error.to_owned() };
    let past_help = matches!(event.fact, Some(Fact::ComponentFailed(_)));
    Failure { incarnation, sequence, event_id: event.id.clone(), incident: event.incident.clone(), past_help, error, issue }
}

fn is_told_again(event: &v1::Event) -> bool {
    event.reason.as_ref().is_some_and(|r| r.code == TOLD_AGAIN)
}

fn is_ours(event: &v1::Event) -> bool {
    event.source.as_ref().is_some_and(|s| s.kind == AGENT)
}
