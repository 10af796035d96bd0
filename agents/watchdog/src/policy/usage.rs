//! Limits of resources: what nodes measure against what specifications allow. Told once when it goes over, once when it is within again,
//! each after measurements in a row, so that a peak tells nothing.

use std::{collections::BTreeMap, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    shard::Shards,
    v1::{self, event::Fact},
};

use super::{Action, Measured, Now, State, events::Said};

/// A node that has not answered by then is asked again.
const MEASURE_LIMIT: Duration = Duration::from_secs(10);
/// Within a limit again is below this share of it, in per cent: what lies on it would be told again and again.
const WITHIN_PERCENT: u64 = 90;

/// One resource of an instance, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    used: u64,
    limit: u64,
    /// Measurements in a row over the limit, and within it.
    over: u32,
    within: u32,
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Usages {
    levels: BTreeMap<Instance, (Incarnation, BTreeMap<&'static str, Level>)>,
    /// Nodes that were asked, and until when their answer is waited for.
    asked: BTreeMap<String, Duration>,
    next: Option<Duration>,
    /// What is owed may have changed since it was looked at: it is only by a measurement, or while something is not told yet.
    stale: bool,
}

impl Usages {
    /// When the next measurement is due.
    pub(super) const fn next_at(&self) -> Option<Duration> {
        self.next
    }

    pub(super) fn stand_down(&mut self) {
        *self = Self::default();
    }

    /// Keeps what was measured of what these shards decide about.
    pub(super) fn keep(&mut self, shards: &Shards) {
        self.levels.retain(|instance, _| shards.decides_on(instance));
    }
}

impl State {
    /// What is watched of an instance, with its limits. A component that names limits has those alone.
    fn limits_of(&self, instance: &Instance) -> Vec<(&'static str, u64)> {
        let Some((_, spec)) = self.desired(instance) else { return Vec::new() };
        let limits = spec.resources.unwrap_or(v1::ResourceLimits {
            memory_bytes: self.limits.memory_bytes,
            cpu_millis: self.limits.cpu_millis,
            open_files: self.limits.open_files,
            restart: false,
        });
        let all = [("memory", limits.memory_bytes), ("cpu", limits.cpu_millis.into()), ("open_files", limits.open_files.into())];
        all.into_iter().filter(|(_, limit)| *limit > 0).collect()
    }

    /// Whether its specification wants it replaced when it is over a limit.
    fn is_replaced_for_limits(&self, instance: &Instance) -> bool {
        self.desired(instance).and_then(|(_, spec)| spec.resources).is_some_and(|limits| limits.restart)
    }

    pub(super) fn decide_usage(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.usages.next.is_none_or(|at| at <= now.mono) {
            self.usages.next = Some(now.mono + self.limits.measure_every);
            let present = self.facts.nodes.iter().filter(|(_, seen)| !seen.presence.is_away()).map(|(name, _)| name.clone());
            for node in present.collect::<Vec<_>>() {
                if self.usages.asked.get(&node).is_none_or(|until| *until <= now.mono) {
                    self.usages.asked.insert(node.clone(), now.mono + MEASURE_LIMIT);
                    actions.push(Action::Measure { node });
                }
            }
        }
        if std::mem::take(&mut self.usages.stale) {
            let owed = self.owed_limits(now);
            self.usages.stale = !owed.is_empty();
            owed.into_iter().for_each(|event| self.publish(Box::new(event), now, actions));
        }
    }

    pub(super) fn apply_measured(&mut self, node: &str, measured: Option<Vec<Measured>>, _now: Now) {
        self.usages.asked.remove(node);
        self.usages.stale = true;
        for one in measured.into_iter().flatten() {
            let Measured { instance, incarnation, usage } = one;
            let current = self.facts.view(&instance).is_some_and(|v| v.incarnation == incarnation && v.node == node);
            if !current || !self.shards.decides_on(&instance) {
                continue;
            }
            let limits = self.limits_of(&instance);
            let known = self.usages.levels.entry(instance).or_default();
            if known.0 != incarnation {
                *known = (incarnation, BTreeMap::new());
            }
            known.1.retain(|name, _| limits.iter().any(|(limited, _)| limited == name));
            for (resource, limit) in limits {
                let used = match resource {
                    "memory" => usage.memory_bytes,
                    "cpu" => usage.cpu_millis.into(),
                    _ => usage.open_files.into(),
                };
                let before = known.1.get(resource).copied().unwrap_or(Level { used, limit, over: 0, within: 0 });
                let over = if used > limit { before.over.saturating_add(1) } else { 0 };
                let well = used <= limit.saturating_mul(WITHIN_PERCENT) / 100;
                let within = if well { before.within.saturating_add(1) } else { 0 };
                known.1.insert(resource, Level { used, limit, over, within });
            }
        }
        let views = &self.facts.views;
        self.usages.levels.retain(|instance, (incarnation, _)| views.get(instance).is_some_and(|v| v.incarnation == *incarnation));
    }

    fn owed_limits(&self, now: Now) -> Vec<v1::Event> {
        let mut owed = Vec::new();
        for (instance, (incarnation, levels)) in &self.usages.levels {
            let Some(view) = self.facts.view(instance).filter(|v| v.incarnation == *incarnation) else { continue };
            for (resource, level) in levels {
                let told = view.over.get(*resource);
                let Level { used, limit, over, within } = *level;
                let (fact, code, text) = if told.is_none() && over >= self.limits.measures {
                    let fact = v1::LimitExceeded { resource: (*resource).to_owned(), used, limit };
                    (
                        Fact::LimitExceeded(fact),
                        "over_limit",
                        format!("{} is over its limit {}", shown(resource, used), shown(resource, limit)),
                    )
                } else if told.is_some() && within >= self.limits.measures {
                    let fact = v1::LimitRestored { resource: (*resource).to_owned(), used, limit };
                    let text = format!("{} is within its limit {} again", shown(resource, used), shown(resource, limit));
                    (Fact::LimitRestored(fact), "within_limit", text)
                } else {
                    continue;
                };
                let cause = told.cloned().unwrap_or_else(|| view.turned(resource));
                let replaces = matches!(fact, Fact::LimitExceeded(_)) && self.is_replaced_for_limits(instance);
                let event = self.about_instance((instance, view), fact, (Said { code, text, cause }, resource), now);
                let incident = Incident { instance: instance.clone(), incarnation: view.incarnation, signs_of_life: 0 };
                owed.push(if replaces { *self.of_incident(event, &incident) } else { *event });
            }
        }
        owed
    }
}

/// A quantity in its unit.
fn shown(resource: &str, quantity: u64) -> String {
    match resource {
        "memory" => format!("memory {} MiB", quantity / (1024 * 1024)),
        "cpu" => format!("cpu {}.{:02} of a core", quantity / 1000, quantity % 1000 / 10),
        _ => format!("{quantity} open files"),
    }
}
