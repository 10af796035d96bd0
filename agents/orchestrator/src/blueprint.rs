//! What the policy wants to know of a stack: one profile of one revision, in order of rank. Made once for each revision and profile, so
//! that decisions never parse.

use std::{collections::BTreeMap, time::Duration};

use razar_bus_schema::{ids::Instance, v1};

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
