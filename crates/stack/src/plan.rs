//! The plan: order, placement, expected course of a boot, and the difference to what runs; the reason with each row.
//! A pure function: the same input gives the same plan, byte for byte. Nothing is started here.

mod graph;
mod place;
mod simulate;

use std::{collections::BTreeMap, time::Duration};

use razar_bus_schema::{ids::Instance, v1};
use serde::{Serialize, Serializer};

use crate::document::{Resolved, spec_hash};

/// Time that a component is taken to need until there is a boot to learn from.
pub const TAKES_GUESS: Duration = Duration::from_secs(1);

/// Most instances of one plan: the records of one plan are written as one batch.
pub const INSTANCES_MAX: usize = 10_000;

/// What is known of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Processors.
    pub cpus: u32,
}

/// What earlier boots took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Per component its times from spawn to ready, in the last boots.
    pub takes: BTreeMap<String, Vec<Duration>>,
}

/// The `desired` record of an instance, as far as the plan concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// Node that has it.
    pub node: String,
    /// Generation.
    pub generation: u64,
    /// Hash of its specification.
    pub spec_hash: String,
    /// Whether it is desired to run (or on demand); false: to be stopped.
    pub wanted: bool,
    /// Its rank in the plan that wrote the record.
    pub rank: u32,
}

/// What the plan does to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It does not run yet.
    Start,
    /// It runs with another specification, or elsewhere: a new generation replaces it.
    Update,
    /// It runs as planned and is left alone.
    Keep,
}

/// What an instance waits for last before it starts, in the expected course.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Waited {
    /// Nothing: it starts at once.
    Nothing,
    /// A dependency's condition.
    Dependency(String),
    /// A start slot, after its dependencies held; the one that it got was this instance's.
    Slot(String),
}

/// One instance of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Place in the order by (wave, priority, name), from 1.
    pub rank: u32,
    /// Depth in the dependency graph, from 0 (tables show it from 1).
    pub wave: u32,
    /// Component.
    pub component: String,
    /// Ordinal of the replica.
    pub ordinal: u32,
    /// Chakra.
    pub chakra: String,
    /// Priority.
    pub priority: u32,
    /// Node that is to run it.
    pub node: String,
    /// Node that ran it before, if another.
    pub moved_from: Option<String>,
    /// Dependencies in the plan, in order of name.
    pub after: Vec<String>,
    /// Median time from spawn to ready; absent: no boot to learn from.
    #[serde(serialize_with = "optional_seconds")]
    pub takes: Option<Duration>,
    /// What happens to it.
    pub change: Change,
    /// Generation that it is to have.
    pub generation: u64,
    /// Hash of its specification.
    pub spec_hash: String,
    /// Expected start, from the beginning of the boot; zero for what is kept.
    #[serde(serialize_with = "seconds")]
    pub starts: Duration,
    /// Expected to be ready, from the beginning of the boot; zero for what is kept.
    #[serde(serialize_with = "seconds")]
    pub ready: Duration,
    /// What it waits for last.
    pub waited: Waited,
    /// Why here and now, for people: `P1; the only node`.
    pub why: String,
}

impl Row {
    /// The instance.
    #[must_use]
    pub fn instance(&self) -> Instance {
        Instance::new(self.component.clone(), self.ordinal)
    }
}

/// An instance that runs and is in the plan no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Component.
    pub component: String,
    /// Ordinal of the replica.
    pub ordinal: u32,
    /// Node that has it.
    pub node: String,
    /// Its rank in the plan that started it.
    pub rank: u32,
}

/// A step of the critical path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Instance, printed `api` or `api.1`.
    pub instance: String,
    /// Time that it takes.
    #[serde(serialize_with = "seconds")]
    pub takes: Duration,
    /// Time before that spent waiting for a slot.
    #[serde(serialize_with = "seconds")]
    pub queued: Duration,
}

/// The chain that decides how long the boot takes: each step waits for the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Steps, first to last.
    pub steps: Vec<Step>,
    /// Time on it spent waiting for slots; zero: more slots would not help.
    #[serde(serialize_with = "seconds")]
    pub queued: Duration,
}

/// What the expected times rest on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Basis {
    /// Boots of the component with the most of them.
    pub boots: usize,
    /// Components of which no boot is known; [`TAKES_GUESS`] is taken for each.
    pub guessed: Vec<String>,
}

/// A plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Stack.
    pub stack: String,
    /// Profile; empty: every component.
    pub profile: String,
    /// Revision of the stack.
    pub revision: String,
    /// Start slots of a node.
    pub parallel_starts: u32,
    /// Instances in order of rank.
    pub rows: Vec<Row>,
    /// What is to be stopped, in that order: by descending rank.
    pub stops: Vec<Stop>,
    /// Expected time until all that is started is ready.
    #[serde(serialize_with = "seconds")]
    pub expected: Duration,
    /// What decides it.
    pub critical: Path,
    /// What it rests on.
    pub basis: Basis,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No node to plan for.
    #[error("no node has joined")]
    NoNode,
    /// No node has the labels that a component wants.
    #[error("no node for {component}: it wants {wanted}")]
    NoMatch {
        /// Component.
        component: String,
        /// Labels wanted, `gpu=true`.
        wanted: String,
    },
    /// Dependencies go in a circle.
    #[error("these wait for each other: {}", .0.join(", "))]
    Cycle(Vec<String>),
    /// A required dependency is not in the profile.
    #[error("{component} needs {dependency}, which is not in the profile")]
    Missing {
        /// Component.
        component: String,
        /// What it needs.
        dependency: String,
    },
    /// More than [`INSTANCES_MAX`].
    #[error("{0} instances; a plan has at most {INSTANCES_MAX}")]
    TooMany(usize),
}

/// Plans a profile on nodes, beside what runs.
///
/// # Errors
/// When there is no node (that matches), or the stack was not checked by [`crate::load`].
pub fn plan(resolved: &Resolved, nodes: &[NodeFacts], history: &History, running: &BTreeMap<Instance, Running>) -> Result<Plan, PlanError> {
    let total: usize = resolved.components.iter().map(|c| c.replicas.max(1) as usize).sum();
    if total > INSTANCES_MAX {
        return Err(PlanError::TooMany(total));
    }
    let waves = graph::waves(&resolved.components)?;
    let mut order: Vec<(u32, &v1::ComponentSpec)> =
        resolved.components.iter().map(|spec| (waves.get(spec.name.as_str()).copied().unwrap_or(0), spec)).collect();
    order.sort_by(|a, b| (a.0, a.1.priority, &a.1.name).cmp(&(b.0, b.1.priority, &b.1.name)));
    let mut placer = place::Placer::new(nodes)?;
    let mut rows = Vec::with_capacity(total);
    for (wave, spec) in order {
        let hash = spec_hash(spec);
        for ordinal in 0..spec.replicas.max(1) {
            let rank = u32::try_from(rows.len() + 1).unwrap_or(u32::MAX);
            let before = running.get(&Instance::new(spec.name.clone(), ordinal));
            let (node, placed) = placer.place(spec, before)?;
            rows.push(row(rank, wave, spec, ordinal, node, &placed, &hash, before, &waves, history));
        }
    }
    let course = simulate::course(&resolved.components, &rows, resolved.parallel_starts.max(1));
    for (row, expected) in rows.iter_mut().zip(&course) {
        (row.starts, row.ready, row.waited) = (expected.starts, expected.ready, expected.waited.clone());
    }
    let (expected, critical) = simulate::critical(&rows, &course);
    Ok(Plan {
        stack: resolved.name.clone(),
        profile: resolved.profile.clone(),
        revision: resolved.revision.clone(),
        parallel_starts: resolved.parallel_starts,
        stops: stops(&rows, running),
        expected,
        critical,
        basis: basis(&rows, history),
        rows,
    })
}

#[expect(clippy::too_many_arguments, reason = "the columns of a row, put together in one place")]
fn row(
    rank: u32,
    wave: u32,
    spec: &v1::ComponentSpec,
    ordinal: u32,
    node: String,
    placed: &str,
    hash: &str,
    before: Option<&Running>,
    waves: &BTreeMap<&str, u32>,
    history: &History,
) -> Row {
    let moved = before.filter(|b| b.node != node);
    let (change, generation) = match before {
        None => (Change::Start, 1),
        Some(b) if !b.wanted => (Change::Start, b.generation + 1),
        Some(b) if b.spec_hash != hash || moved.is_some() => (Change::Update, b.generation + 1),
        Some(b) => (Change::Keep, b.generation),
    };
    let news = match change {
        Change::Update if moved.is_none() => "; its specification changed",
        Change::Start | Change::Update | Change::Keep => "",
    };
    Row {
        rank,
        wave,
        component: spec.name.clone(),
        ordinal,
        chakra: spec.chakra.clone(),
        priority: spec.priority,
        node,
        moved_from: moved.map(|b| b.node.clone()),
        after: spec.depends_on.iter().filter(|d| waves.contains_key(d.component.as_str())).map(|d| d.component.clone()).collect(),
        takes: median(history.takes.get(&spec.name).map_or(&[], Vec::as_slice)),
        change,
        generation,
        spec_hash: hash.to_owned(),
        starts: Duration::ZERO,
        ready: Duration::ZERO,
        waited: Waited::Nothing,
        why: format!("P{}; {placed}{news}", spec.priority),
    }
}

fn stops(rows: &[Row], running: &BTreeMap<Instance, Running>) -> Vec<Stop> {
    let planned: std::collections::BTreeSet<Instance> = rows.iter().map(Row::instance).collect();
    let mut stops: Vec<Stop> = running
        .iter()
        .filter(|(instance, record)| record.wanted && !planned.contains(instance))
        .map(|(instance, record)| Stop {
            component: instance.component.clone(),
            ordinal: instance.ordinal,
            node: record.node.clone(),
            rank: record.rank,
        })
        .collect();
    stops.sort_by(|a, b| (b.rank, &b.component, b.ordinal).cmp(&(a.rank, &a.component, a.ordinal)));
    stops
}

fn basis(rows: &[Row], history: &History) -> Basis {
    let changed = || rows.iter().filter(|r| r.change != Change::Keep);
    let mut guessed: Vec<String> = changed().filter(|r| r.takes.is_none()).map(|r| r.component.clone()).collect();
    guessed.sort();
    guessed.dedup();
    let boots = changed().filter_map(|r| history.takes.get(&r.component)).map(Vec::len).max().unwrap_or(0);
    Basis { boots, guessed }
}

/// The middle one; of an even number the lower middle, which was really measured.
fn median(takes: &[Duration]) -> Option<Duration> {
    let mut sorted = takes.to_vec();
    sorted.sort();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

impl Plan {
    /// How many instances the plan starts (or replaces), stops and keeps.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let kept = self.rows.iter().filter(|r| r.change == Change::Keep).count();
        (self.rows.len() - kept, self.stops.len(), kept)
    }

    /// Whether anything would change (`razar plan --check`).
    #[must_use]
    pub fn changes(&self) -> bool {
        let (starts, stops, _) = self.counts();
        starts + stops > 0
    }

    /// The plan as one line of JSON; the same for the same input.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Texts, numbers and lists only: writing them cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The `desired` records of all rows, in order of rank. `epochs` is the journal epoch of each node; mission and fresh as in
    /// the record. What is kept has a record too: rank and wave may have changed.
    #[must_use]
    pub fn desired(&self, resolved: &Resolved, epochs: &BTreeMap<String, String>, mission_id: &str, fresh: bool) -> Vec<v1::Desired> {
        let record = |row: &Row| v1::Desired {
            instance: Some((&row.instance()).into()),
            node: row.node.clone(),
            node_epoch: epochs.get(&row.node).cloned().unwrap_or_default(),
            generation: row.generation,
            after: Vec::new(),
            mode: v1::RunMode::Run.into(),
            rank: row.rank,
            wave: row.wave,
            stack_revision: self.revision.clone(),
            spec_hash: row.spec_hash.clone(),
            spec: resolved.component(&row.component).cloned(),
            parallel_starts: self.parallel_starts,
            stack: self.stack.clone(),
            mission_id: mission_id.to_owned(),
            fresh,
            chakra_hook: resolved.chakra_hook(&row.component),
            escalation_hook: resolved.escalation_hook.as_ref().map(crate::HookSpec::to_hook),
            known_errors: resolved.known_errors.iter().map(crate::KnownErrorSpec::to_known).collect(),
            chakra_threshold: resolved.component(&row.component).map_or(0.0, |spec| resolved.threshold(&spec.chakra)),
        };
        self.rows.iter().map(record).collect()
    }
}

/// The instances of a component, in order.
pub fn instances(spec: &v1::ComponentSpec) -> impl Iterator<Item = Instance> {
    (0..spec.replicas.max(1)).map(|ordinal| Instance::new(spec.name.clone(), ordinal))
}

/// As protobuf's JSON writes durations: `"0.500s"`.
fn seconds<S: Serializer>(span: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{}.{:03}s", span.as_secs(), span.subsec_millis()))
}

#[expect(clippy::ref_option, reason = "the shape that serde asks for")]
fn optional_seconds<S: Serializer>(span: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => seconds(span, s),
        None => s.serialize_none(),
    }
}
