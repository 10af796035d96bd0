//! How chakras are: the share of their wanted instances that serve, against their threshold; the score of the whole. What is on a lost node
//! is unknown, and counts neither way. While a mission runs, what has not served yet in its generation is on its way, and not missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use razar_bus_schema::{
    ids::Instance,
    subject::MESH_CHAKRA,
    time,
    v1::{self, RunMode, event::Fact},
};
use razar_stack::names::{CHAKRAS, HEALTH_THRESHOLD_DEFAULT};

use super::{Action, Now, State, events::Said};

/// Weights of the score: what is essential, and how little is restarted. A third share is that of device memory, where there is any: what
/// is not measured drops out, and the rest is scaled to one.
const ESSENTIAL_WEIGHT: f64 = 0.5;
const RESTART_WEIGHT: f64 = 0.3;

/// How one chakra is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Chakra {
    pub(super) ready: usize,
    pub(super) total: usize,
    pub(super) threshold: f64,
    pub(super) missing: BTreeSet<Instance>,
    /// Where the stream had told the newest change of those that are missing, and of all.
    broken_by: (u64, String),
    changed_by: (u64, String),
}

impl Chakra {
    fn is_below(&self) -> bool {
        self.total > 0 && share(self.ready, self.total) < self.threshold
    }
}

#[expect(clippy::cast_precision_loss, reason = "instances are counted in thousands")]
fn share(part: usize, of: usize) -> f64 {
    if of == 0 { 1.0 } else { part as f64 / of as f64 }
}

impl State {
    pub(super) fn chakras(&self) -> BTreeMap<String, Chakra> {
        let mut chakras: BTreeMap<String, Chakra> = BTreeMap::new();
        for instance in self.desired.keys() {
            let Some((desired, spec)) = self.desired(instance).filter(|(d, _)| d.mode() == RunMode::Run) else { continue };
            let chakra = chakras.entry(spec.chakra.clone()).or_default();
            chakra.threshold = if desired.chakra_threshold > 0.0 { desired.chakra_threshold } else { threshold(&spec.chakra) };
            let view = self.facts.view(instance);
            if self.facts.is_lost(view.map_or(desired.node.as_str(), |v| v.node.as_str())) {
                continue;
            }
            let serves = view.is_some_and(super::View::serves);
            let is_on_its_way = self.facts.mission.is_some() && view.is_none_or(|v| v.served_in < desired.generation);
            if !serves && is_on_its_way {
                continue;
            }
            chakra.total += 1;
            let changed = view.map(|v| v.changed_by.clone()).unwrap_or_default();
            if serves {
                chakra.ready += 1;
            } else {
                chakra.missing.insert(instance.clone());
                chakra.broken_by = chakra.broken_by.clone().max(changed.clone());
            }
            chakra.changed_by = std::mem::take(&mut chakra.changed_by).max(changed);
        }
        chakras
    }

    pub(super) fn decide_chakras(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !std::mem::take(&mut self.stale) && self.next_chakra(now).is_none_or(|at| at > now.mono) {
            return;
        }
        let chakras = self.chakras();
        self.below.retain(|name, _| chakras.get(name).is_some_and(Chakra::is_below));
        let mut owed = Vec::new();
        for (name, chakra) in chakras.iter().filter(|(_, c)| c.is_below()) {
            let since = *self.below.entry(name.clone()).or_insert(now.mono);
            if !self.facts.down.contains_key(name) && since + self.limits.chakra_delay <= now.mono {
                owed.push(self.chakra_down(name, chakra, now.mono.saturating_sub(since), now));
            }
        }
        let over = self.facts.down.keys().filter(|name| !self.below.contains_key(*name));
        owed.extend(over.filter_map(|name| self.chakra_recovered(name, chakras.get(name), now)));
        owed.extend(self.sync_changed(&chakras, now));
        // What is told here and not in EVENTS yet is looked at again.
        self.stale = !owed.is_empty();
        owed.into_iter().for_each(|event| self.publish(event, now, actions));
    }

    /// When the next chakra has been below its threshold for long enough.
    pub(super) fn next_chakra(&self, now: Now) -> Option<Duration> {
        if self.stale {
            return Some(now.mono + super::RETRY_PAUSE);
        }
        let untold = self.below.iter().filter(|(name, _)| !self.facts.down.contains_key(*name));
        untold.map(|(_, since)| *since + self.limits.chakra_delay).min()
    }

    fn chakra_down(&self, name: &str, chakra: &Chakra, below: Duration, now: Now) -> Box<v1::Event> {
        let missing: Vec<String> = chakra.missing.iter().map(ToString::to_string).collect();
        let text =
            format!("{} of {} serve, {:.0} % must; missing: {}", chakra.ready, chakra.total, chakra.threshold * 100.0, missing.join(" "));
        let fact = Fact::ChakraDown(v1::ChakraDown { delay: Some(time::duration(below)), missing });
        // What is wanted may change without an event: after a recovery the same break is another verdict.
        let (_, cause) = self.facts.recovered.get(name).cloned().unwrap_or_default().max(chakra.broken_by.clone());
        self.about_chakra(name, fact, Said { code: "below_threshold", text, cause }, now)
    }

    /// A chakra that is told down and is not below its threshold; what is wholly unknown stays as it was told.
    fn chakra_recovered(&self, name: &str, chakra: Option<&Chakra>, now: Now) -> Option<Box<v1::Event>> {
        let down = self.facts.down.get(name)?;
        let (code, text) = match chakra {
            Some(chakra) if chakra.total == 0 => return None,
            Some(chakra) => ("serves", format!("{} of {} serve", chakra.ready, chakra.total)),
            None => ("not_wanted", "nothing is wanted of it any more".to_owned()),
        };
        let took = now.wall.duration_since(down.stored).unwrap_or_default();
        let fact = Fact::ChakraRecovered(v1::ChakraRecovered { took: Some(time::duration(took)) });
        Some(self.about_chakra(name, fact, Said { code, text, cause: down.id.clone() }, now))
    }

    /// All chakras are in sync, or no longer.
    fn sync_changed(&self, chakras: &BTreeMap<String, Chakra>, now: Now) -> Option<Box<v1::Event>> {
        if self.facts.spiral.is_none() {
            let whole = |c: &Chakra| c.total > 0 && c.missing.is_empty();
            let whole = !chakras.is_empty() && chakras.values().all(whole) && self.facts.down.is_empty();
            if !whole || self.facts.mission.is_some() {
                return None;
            }
            let changes = chakras.values().map(|c| c.changed_by.clone());
            let (_, cause) = changes.max().unwrap_or_default().max(self.facts.unsynced.clone());
            let said = Said { code: "in_sync", text: "every chakra is whole".to_owned(), cause };
            return Some(self.about_chakra(MESH_CHAKRA, Fact::GreatSpiral(v1::GreatSpiral {}), said, now));
        }
        let (_, first) = self.facts.down.iter().next()?;
        let names: Vec<String> = self.facts.down.keys().cloned().collect();
        let said = Said { code: "chakra_down", text: format!("down: {}", names.join(" ")), cause: first.id.clone() };
        Some(self.about_chakra(MESH_CHAKRA, Fact::OutOfSync(v1::OutOfSync { chakras: names }), said, now))
    }

    /// How the mesh is, in numbers.
    #[must_use]
    pub fn health(&self, now: Now) -> v1::HealthReply {
        let (mut up, mut total, mut wanted) = (0_usize, 0_usize, 0_usize);
        for instance in self.desired.keys() {
            let Some((desired, spec)) = self.desired(instance).filter(|(d, _)| d.mode() == RunMode::Run) else { continue };
            wanted += 1;
            if spec.required {
                total += 1;
                let view = self.facts.view(instance);
                let known = !self.facts.is_lost(view.map_or(desired.node.as_str(), |v| v.node.as_str()));
                up += usize::from(known && view.is_some_and(super::View::serves));
            }
        }
        let rate = if wanted == 0 { 0.0 } else { share(self.facts.restarts(now.wall), wanted) };
        let essential = share(up, total);
        let score = (ESSENTIAL_WEIGHT * essential + RESTART_WEIGHT * (1.0 - rate.min(1.0))) / (ESSENTIAL_WEIGHT + RESTART_WEIGHT);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let chakras = self.chakras().into_iter().map(|(name, c)| v1::ChakraHealth {
            ready: count(c.ready),
            total: count(c.total),
            threshold: c.threshold,
            down: self.facts.down.contains_key(&name),
            missing: c.missing.iter().map(ToString::to_string).collect(),
            name,
        });
        v1::HealthReply {
            score,
            essential_up: count(up),
            essential_total: count(total),
            restart_rate: rate,
            chakras: chakras.collect(),
            replica: self.who.replica.clone(),
        }
    }
}

/// The threshold of a chakra whose stack says none.
fn threshold(chakra: &str) -> f64 {
    CHAKRAS.iter().find(|(name, _)| *name == chakra).map_or(HEALTH_THRESHOLD_DEFAULT, |(_, threshold)| *threshold)
}
