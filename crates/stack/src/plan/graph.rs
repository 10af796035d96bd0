//! Depth in the dependency graph.

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::v1;

use super::PlanError;

/// Wave of each component: 0 without dependencies, else one more than the deepest of them. Dependencies outside the set that
/// are not required do not count.
pub(super) fn waves(components: &[v1::ComponentSpec]) -> Result<BTreeMap<&str, u32>, PlanError> {
    let names: BTreeSet<&str> = components.iter().map(|c| c.name.as_str()).collect();
    let mut unmet: BTreeMap<&str, usize> = BTreeMap::new();
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for spec in components {
        for on in &spec.depends_on {
            if let Some(name) = names.get(on.component.as_str()) {
                dependents.entry(name).or_default().push(&spec.name);
                *unmet.entry(&spec.name).or_default() += 1;
            } else if on.required {
                return Err(PlanError::Missing { component: spec.name.clone(), dependency: on.component.clone() });
            }
        }
    }
    let mut waves: BTreeMap<&str, u32> = BTreeMap::new();
    let mut wave = 0;
    let mut layer: Vec<&str> = names.iter().copied().filter(|n| !unmet.contains_key(n)).collect();
    while !layer.is_empty() {
        let mut next = Vec::new();
        for name in layer {
            waves.insert(name, wave);
            for dependent in dependents.get(name).map_or(&[][..], Vec::as_slice) {
                if let Some(left) = unmet.get_mut(dependent) {
                    *left -= 1;
                    if *left == 0 {
                        next.push(*dependent);
                    }
                }
            }
        }
        layer = next;
        wave += 1;
    }
    if waves.len() < names.len() {
        let stuck = names.iter().filter(|n| !waves.contains_key(**n)).map(|n| (*n).to_owned());
        return Err(PlanError::Cycle(stuck.collect()));
    }
    Ok(waves)
}
