//! Which node gets an instance: the one that has it, else the matching one with the fewest instances.

use std::collections::BTreeMap;

use razar_bus_schema::v1;

use super::{NodeFacts, PlanError, Running};

pub(super) struct Placer<'n> {
    nodes: Vec<&'n NodeFacts>,
    load: BTreeMap<&'n str, u32>,
}

impl<'n> Placer<'n> {
    pub(super) fn new(nodes: &'n [NodeFacts]) -> Result<Self, PlanError> {
        let mut nodes: Vec<&NodeFacts> = nodes.iter().collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        if nodes.is_empty() {
            return Err(PlanError::NoNode);
        }
        Ok(Self { nodes, load: BTreeMap::new() })
    }

    /// Node and reason. What runs stays where it is, also while its node is away: what holds state is not doubled.
    pub(super) fn place(&mut self, spec: &v1::ComponentSpec, before: Option<&Running>) -> Result<(String, String), PlanError> {
        let matches = |node: &&NodeFacts| spec.node_labels.iter().all(|l| node.labels.get(&l.key) == Some(&l.value));
        let only = self.nodes.len() == 1;
        if let Some(before) = before.filter(|b| !b.node.is_empty()) {
            match self.nodes.iter().copied().find(|n| n.name == before.node) {
                None => return Ok((before.node.clone(), format!("stays on {}, which is away", before.node))),
                Some(node) if matches(&node) => {
                    *self.load.entry(&node.name).or_default() += 1;
                    let why = if only { "the only node".to_owned() } else { format!("stays on {}", node.name) };
                    return Ok((node.name.clone(), why));
                }
                Some(_) => {}
            }
        }
        let wanted = || spec.node_labels.iter().map(|l| format!("{}={}", l.key, l.value)).collect::<Vec<_>>().join(" ");
        let candidates: Vec<&NodeFacts> = self.nodes.iter().copied().filter(matches).collect();
        let load = |node: &NodeFacts| self.load.get(node.name.as_str()).copied().unwrap_or(0);
        let chosen = candidates.iter().copied().min_by_key(|node| (load(node), node.name.as_str()));
        let node = chosen.ok_or_else(|| PlanError::NoMatch { component: spec.name.clone(), wanted: wanted() })?;
        let why = match (only, candidates.len(), spec.node_labels.is_empty()) {
            (true, _, _) => "the only node".to_owned(),
            (false, 1, false) => format!("the only node with {}", wanted()),
            (false, _, false) => format!("fewest instances ({}) of the nodes with {}", load(node), wanted()),
            (false, _, true) => format!("fewest instances ({})", load(node)),
        };
        *self.load.entry(&node.name).or_default() += 1;
        Ok((node.name.clone(), why))
    }
}
