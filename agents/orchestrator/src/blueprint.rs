//! What the policy wants to know of a stack: one profile of one revision, in order of rank. Made once for each revision and profile, so
//! that decisions never parse.

use std::{collections::BTreeMap, time::Duration};

use razar_bus_schema::{ids::Instance, v1};
use razar_stack::{NodeFacts, PlanError, ResolveError, Resolved, StackDocument};

/// Why a stack document gives no blueprint.
#[derive(Debug, thiserror::Error)]
pub enum BlueprintError {
    /// There is no such profile, or its components do not go together.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Its order cannot be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// One profile of a stack revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Blueprint {
    /// Stack.
    pub stack: String,
    /// Content hash of the revision.
    pub revision: String,
    /// Profile; empty: every component.
    pub profile: String,
    /// Start slots of each node.
    pub parallel_starts: u32,
    /// Time after which a mission is given up.
    pub timeout: Duration,
    /// Boots in a row that may end failed before people are told.
    pub failed_boots: u32,
    /// Hooks of the chakras that have one, by chakra.
    pub chakra_hooks: BTreeMap<String, v1::Hook>,
    /// Program that a node runs when people must know of something.
    pub escalation_hook: Option<v1::Hook>,
    /// The stack's own entries of the error registry, in order.
    pub known_errors: Vec<v1::KnownError>,
    /// Components by name.
    pub parts: BTreeMap<String, Part>,
}

/// One component of a blueprint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Place of its first replica in the order by (wave, priority, name), from 1; the others follow it.
    pub rank: u32,
    /// Depth in the dependency graph, from 0.
    pub wave: u32,
    /// Specification.
    pub spec: v1::ComponentSpec,
    /// Hash of the specification.
    pub spec_hash: String,
    /// Share of its chakra's instances that must be well; 0: the default of its name.
    pub chakra_threshold: f64,
}

impl Blueprint {
    /// The blueprint of a profile (empty: every component). `revision` is the document's content hash.
    ///
    /// # Errors
    /// When there is no such profile, or the document was not checked before it was stored.
    pub fn of(document: &StackDocument, revision: &str, profile: &str) -> Result<Self, BlueprintError> {
        let mut resolved = document.resolve(profile)?;
        let specs = std::mem::take(&mut resolved.components);
        // Only the order is asked for here, so the labels are left out: places change with every node that comes and goes.
        resolved.components = specs.iter().cloned().map(|spec| v1::ComponentSpec { node_labels: Vec::new(), ..spec }).collect();
        let order = if specs.is_empty() { BTreeMap::new() } else { ranks(&resolved)? };
        let hooks = resolved.chakras.iter().filter_map(|(name, chakra)| Some((name.clone(), chakra.heal_hook.as_ref()?.to_hook())));
        let parts = specs.into_iter().map(|spec| {
            let (rank, wave) = order.get(&spec.name).copied().unwrap_or_default();
            let spec_hash = razar_stack::spec_hash(&spec);
            let chakra_threshold = resolved.threshold(&spec.chakra);
            (spec.name.clone(), Part { rank, wave, spec, spec_hash, chakra_threshold })
        });
        let parts: BTreeMap<String, Part> = parts.collect();
        Ok(Self {
            stack: resolved.name,
            revision: revision.to_owned(),
            profile: profile.to_owned(),
            parallel_starts: resolved.parallel_starts,
            timeout: resolved.timeout,
            failed_boots: resolved.failed_boots,
            chakra_hooks: hooks.collect(),
            escalation_hook: resolved.escalation_hook.as_ref().map(razar_stack::HookSpec::to_hook),
            known_errors: resolved.known_errors.iter().map(razar_stack::KnownErrorSpec::to_known).collect(),
            parts,
        })
    }
}

/// Rank of the first replica, and wave, of each component.
fn ranks(resolved: &Resolved) -> Result<BTreeMap<String, (u32, u32)>, PlanError> {
    let anywhere = NodeFacts { name: "anywhere".to_owned(), ..NodeFacts::default() };
    let plan = razar_stack::plan(resolved, &[anywhere], &razar_stack::History::default(), &BTreeMap::new())?;
    let mut order = BTreeMap::new();
    for row in plan.rows {
        order.entry(row.component).or_insert((row.rank, row.wave));
    }
    Ok(order)
}

impl Part {
    /// Rank of a replica.
    #[must_use]
    pub const fn rank_of(&self, instance: &Instance) -> u32 {
        self.rank.saturating_add(instance.ordinal)
    }
}

impl Blueprint {
    /// Every instance with its part, in order of rank.
    #[must_use]
    pub fn instances(&self) -> Vec<(Instance, &Part)> {
        let mut all: Vec<(Instance, &Part)> = Vec::new();
        for (name, part) in &self.parts {
            all.extend((0..part.spec.replicas.max(1)).map(|ordinal| (Instance::new(name.clone(), ordinal), part)));
        }
        all.sort_by(|a, b| (a.1.rank, &a.0).cmp(&(b.1.rank, &b.0)));
        all
    }

    /// Number of instances.
    #[must_use]
    pub fn instance_count(&self) -> usize {
        self.parts.values().map(|p| usize::try_from(p.spec.replicas.max(1)).unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
    }
}
