//! The fold of EVENTS into what is observed: components, nodes, agents, missions. Pure: events in, [`v1::Observed`] out, the same bytes for
//! the same events, wherever the fold began (at the stream's start, or at a snapshot and what follows it).
//! Nothing here decides, writes or knows the clock.

mod components;
mod dedupe;
mod mesh;

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::{
    ids::Instance,
    v1::{self, event::Fact},
};

pub use dedupe::AGENT_EVENT_WINDOW;
use dedupe::SeenIds;

/// Newest missions that are kept.
pub const MISSIONS_KEPT: usize = 20;

/// Newest replicas kept of each kind of agent: each start of an agent has a new id, so without a bound they would pile up.
pub const AGENTS_KEPT_PER_KIND: usize = 16;

/// Newest escalations about the mesh itself that are kept.
pub const ESCALATIONS_KEPT: usize = 8;

/// Components, nodes and kinds of agents that a mesh may have. What comes beyond is counted as unknown: I16.
pub const ENTITIES_MAX: usize = 4096;

/// A part of the projection with a key of its own in the bucket `observed`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `components.<component>.<ordinal>`
    Component(Instance),
    /// `nodes.<node>`
    Node(String),
    /// `agents.<kind>.<id>`
    Agent(String, String),
    /// `missions.<id>`
    Mission(String),
    /// `chakras.<chakra>`
    Chakra(String),
    /// `escalations.<stream sequence>`
    Escalation(u64),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Component(instance) => write!(f, "components.{}", instance.key()),
            Self::Node(node) => write!(f, "nodes.{node}"),
            Self::Agent(kind, id) => write!(f, "agents.{kind}.{id}"),
            Self::Mission(id) => write!(f, "missions.{id}"),
            Self::Chakra(chakra) => write!(f, "chakras.{chakra}"),
            Self::Escalation(sequence) => write!(f, "escalations.{sequence}"),
        }
    }
}

impl Key {
    /// Reads a key of the bucket; `None`: none that the projection could have.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let (form, rest) = key.split_once('.')?;
        match form {
            "components" => {
                let (component, ordinal) = rest.split_once('.')?;
                Some(Self::Component(Instance::new(component, ordinal.parse().ok()?)))
            }
            "nodes" => Some(Self::Node(rest.to_owned())),
            "agents" => rest.split_once('.').map(|(kind, id)| Self::Agent(kind.to_owned(), id.to_owned())),
            "missions" => Some(Self::Mission(rest.to_owned())),
            "chakras" => Some(Self::Chakra(rest.to_owned())),
            "escalations" => rest.parse().ok().map(Self::Escalation),
            _ => None,
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// It changed the projection.
    Applied,
    /// It was folded before.
    Duplicate,
    /// It tells of an incarnation, a generation or an epoch that is no longer the newest.
    Stale,
    /// Its kind comes from a newer version; counted and passed over.
    Unknown,
    /// It lacks what its kind needs (an instance, a source); counted and passed over.
    Incomplete,
}

/// The projection and what the fold needs beside it.
#[derive(Debug, Clone, Default)]
pub struct Projection {
    stream_epoch: String,
    applied_sequence: u64,
    components: BTreeMap<Instance, v1::ObservedComponent>,
    nodes: BTreeMap<String, v1::ObservedNode>,
    agents: BTreeMap<(String, String), v1::ObservedAgent>,
    /// By the stream sequence of their beginning, so oldest first.
    missions: BTreeMap<u64, v1::ObservedMission>,
    /// Those that are down.
    chakras: BTreeMap<String, v1::ObservedChakra>,
    /// By the stream sequence of the event that told it.
    escalations: BTreeMap<u64, v1::ObservedEscalation>,
    unknown_events: u64,
    dead_letters: u64,
    seen: SeenIds,
    dirty: BTreeSet<Key>,
}

impl Projection {
    /// An empty projection of the stream with this epoch.
    #[must_use]
    pub fn new(stream_epoch: &str) -> Self {
        Self { stream_epoch: stream_epoch.to_owned(), ..Self::default() }
    }

    /// The projection that `snapshot` is the form of. Before the events after it are applied, [`Self::prime`] wants the
    /// [`AGENT_EVENT_WINDOW`] events up to it.
    #[must_use]
    pub fn from_snapshot(snapshot: v1::Observed) -> Self {
        let mut projection = Self {
            stream_epoch: snapshot.stream_epoch,
            applied_sequence: snapshot.applied_sequence,
            unknown_events: snapshot.unknown_events,
            dead_letters: snapshot.dead_letters,
            ..Self::default()
        };
        for component in snapshot.components {
            if let Some(instance) = instance_of(component.instance.as_ref()) {
                projection.components.insert(instance, component);
            }
        }
        projection.nodes.extend(snapshot.nodes.into_iter().map(|n| (n.name.clone(), n)));
        projection.chakras.extend(snapshot.chakras.into_iter().map(|c| (c.name.clone(), c)));
        projection.escalations.extend(snapshot.escalations.into_iter().map(|e| (e.last_sequence, e)));
        for agent in snapshot.agents {
            let key = agent.started.as_ref().map(|s| (s.kind.clone(), s.id.clone())).unwrap_or_default();
            projection.agents.insert(key, agent);
        }
        for (place, mission) in (0..).zip(snapshot.missions) {
            projection.missions.insert(place, mission);
        }
        projection
    }

    /// Remembers the id of an event that the snapshot already holds, so that a late copy of it is known as one.
    pub fn prime(&mut self, stream_sequence: u64, event: &v1::Event) {
        if event.node_sequence.is_none() && stream_sequence <= self.applied_sequence {
            self.seen.first_time(stream_sequence, &event.id);
        }
    }

    /// Folds the event at `stream_sequence`. Sequences at or below the last one applied are duplicates.
    pub fn apply(&mut self, stream_sequence: u64, event: &v1::Event) -> Folded {
        if stream_sequence <= self.applied_sequence {
            return Folded::Duplicate;
        }
        self.applied_sequence = stream_sequence;
        match self.is_first_sight(stream_sequence, event) {
            Some(true) => {}
            Some(false) => return Folded::Duplicate,
            None => return Folded::Stale,
        }
        // Whatever a lost node tells says that it is there.
        if event.node_sequence.is_some()
            && let Some(node) = event.source.as_ref().filter(|s| self.nodes.contains_key(&s.id)).map(|s| s.id.clone())
        {
            self.fold_presence(stream_sequence, event, &node);
        }
        let Some(fact) = &event.fact else {
            self.unknown_events = self.unknown_events.saturating_add(1);
            return Folded::Unknown;
        };
        let folded = self.fold(stream_sequence, event, fact);
        if folded == Folded::Incomplete {
            self.unknown_events = self.unknown_events.saturating_add(1);
        }
        folded
    }

    /// Counts a message of the stream that is no event; it was put aside.
    pub fn dead_letter(&mut self, stream_sequence: u64) {
        if stream_sequence > self.applied_sequence {
            self.applied_sequence = stream_sequence;
            self.dead_letters = self.dead_letters.saturating_add(1);
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    fn fold(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        match fact {
            Fact::NodeJoined(_) | Fact::NodeInventory(_) | Fact::NodeLost(_) | Fact::NodeReturned(_) => {
                self.fold_node(sequence, event, fact)
            }
            Fact::AgentStarted(_) | Fact::AgentDown(_) | Fact::AgentReturned(_) => self.fold_agent(sequence, event, fact),
            Fact::ChakraDown(_) | Fact::ChakraRecovered(_) => self.fold_chakra(sequence, event, fact),
            Fact::MissionStarted(_) | Fact::MissionCompleted(_) => self.fold_mission(sequence, event, fact),
            Fact::Escalated(escalated) if event.instance.is_none() => self.fold_escalation(sequence, event, escalated),
            Fact::BrakeReleased(_) => self.end_escalations(event),
            _ if event.instance.is_some() => self.fold_component(sequence, event, fact),
            _ if needs_instance(fact) => Folded::Incomplete,
            _ => Folded::Applied,
        }
    }

    /// Keys that changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// Every key that the projection has.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<Key> {
        let components = self.components.keys().cloned().map(Key::Component);
        let nodes = self.nodes.keys().cloned().map(Key::Node);
        let agents = self.agents.keys().cloned().map(|(kind, id)| Key::Agent(kind, id));
        let missions = self.missions.values().map(|m| Key::Mission(mission_id(m).to_owned()));
        let chakras = self.chakras.keys().cloned().map(Key::Chakra);
        let escalations = self.escalations.keys().copied().map(Key::Escalation);
        components.chain(nodes).chain(agents).chain(missions).chain(chakras).chain(escalations).collect()
    }

    /// The bytes that belong under `key` in the bucket; `None`: the key belongs deleted.
    #[must_use]
    pub fn value(&self, key: &Key) -> Option<Vec<u8>> {
        use prost::Message as _;
        match key {
            Key::Component(instance) => self.components.get(instance).map(|c| c.encode_to_vec()),
            Key::Node(node) => self.nodes.get(node).map(|n| n.encode_to_vec()),
            Key::Agent(kind, id) => self.agents.get(&(kind.clone(), id.clone())).map(|a| a.encode_to_vec()),
            Key::Chakra(chakra) => self.chakras.get(chakra).map(|c| c.encode_to_vec()),
            Key::Escalation(sequence) => self.escalations.get(sequence).map(|e| e.encode_to_vec()),
            Key::Mission(id) => self.missions.values().find(|m| mission_id(m) == id).map(|m| m.encode_to_vec()),
        }
    }

    /// The whole projection, sorted; also its snapshot.
    #[must_use]
    pub fn observed(&self) -> v1::Observed {
        v1::Observed {
            stream_epoch: self.stream_epoch.clone(),
            applied_sequence: self.applied_sequence,
            components: self.components.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            agents: self.agents.values().cloned().collect(),
            missions: self.missions.values().cloned().collect(),
            unknown_events: self.unknown_events,
            dead_letters: self.dead_letters,
            chakras: self.chakras.values().cloned().collect(),
            escalations: self.escalations.values().cloned().collect(),
        }
    }

    /// Epoch of the stream that is folded.
    #[must_use]
    pub fn stream_epoch(&self) -> &str {
        &self.stream_epoch
    }

    /// Last stream sequence folded.
    #[must_use]
    pub const fn applied_sequence(&self) -> u64 {
        self.applied_sequence
    }

    /// Answer to `razar.query.registry.status`.
    #[must_use]
    pub fn status(&self, request: &v1::StatusRequest) -> v1::Observed {
        let mut observed = self.observed();
        let wanted = |c: &v1::ObservedComponent| {
            let name = c.instance.as_ref().map_or("", |i| i.component.as_str());
            (request.system || c.stack != SYSTEM_STACK) && (request.components.is_empty() || request.components.iter().any(|w| w == name))
        };
        observed.components.retain(wanted);
        observed
    }

    /// Answer to `razar.query.registry.discover`: instances by name, capability and readiness.
    #[must_use]
    pub fn discover(&self, request: &v1::DiscoverRequest) -> v1::DiscoverReply {
        let matches = |(instance, c): &(&Instance, &v1::ObservedComponent)| {
            let provides = || c.desired.as_ref().is_some_and(|d| d.provides.contains(&request.capability));
            (request.name.is_empty() || instance.component == request.name)
                && (request.capability.is_empty() || provides())
                && (!request.ready || c.state() == v1::InstanceState::Ready)
        };
        v1::DiscoverReply { components: self.components.iter().filter(matches).map(|(_, c)| c.clone()).collect() }
    }
}

/// Name of the stack of the mesh's own components.
pub const SYSTEM_STACK: &str = "system";

fn instance_of(id: Option<&v1::InstanceId>) -> Option<Instance> {
    Instance::try_from(id?).ok()
}

fn mission_id(mission: &v1::ObservedMission) -> &str {
    mission.started.as_ref().map_or("", |s| s.mission_id.as_str())
}

/// Facts that are about an instance and mean nothing without one.
const fn needs_instance(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::ComponentStarted(_)
            | Fact::ComponentReady(_)
            | Fact::ComponentUnready(_)
            | Fact::ComponentExited(_)
            | Fact::ComponentUnkillable(_)
            | Fact::ComponentUnresponsive(_)
            | Fact::ComponentDegraded(_)
            | Fact::ComponentBlocked(_)
            | Fact::ComponentFailed(_)
            | Fact::ComponentStopped(_)
            | Fact::DesiredChanged(_)
    )
}
