//! The budget of what cannot be taken back: rungs that remove state or run a hook. So many in an hour for a component, its chakra and the
//! mesh; past that such a rung is passed over, and the ladder goes on to what harms nobody.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::Instance,
    v1::{self, intent::Want},
};

use super::{
    Limits, Now, Record, State,
    rungs::{CHAKRA_HOOK, CLEAR_STATE, DEPENDENCIES, Standing},
};

/// Tries that are remembered: more than any sensible budget.
const REMEMBERED_MAX: usize = 4096;

/// Whether a rung cannot be taken back.
pub(super) fn is_destructive(rung: &str) -> bool {
    matches!(rung, CLEAR_STATE | DEPENDENCIES | CHAKRA_HOOK)
}

/// Tries of such rungs, as they were told.
#[derive(Debug, Clone, Default)]
pub(super) struct Destroyed {
    tries: VecDeque<(SystemTime, Instance, String)>,
}

impl Destroyed {
    pub(super) fn fold(&mut self, instance: &Instance, chakra: &str, tried: &v1::RungTried, stored: SystemTime, limits: &Limits) {
        self.tries.retain(|(at, ..)| stored.duration_since(*at).unwrap_or_default() < limits.destructive_within);
        // What counts for nothing may have been carried out all the same.
        if is_destructive(&tried.rung) && self.tries.len() < REMEMBERED_MAX {
            self.tries.push_back((stored, instance.clone(), chakra.to_owned()));
        }
    }
}

impl State {
    /// Which budget is spent, in words, if one is.
    pub(super) fn spent(&self, at: Standing<'_>, now: Now) -> Option<String> {
        let (limits, chakra) = (&self.limits, at.spec.chakra.as_str());
        let clock = self.facts.clock();
        let recent = |at: &SystemTime| clock.and_then(|now| now.duration_since(*at).ok()).unwrap_or_default() < limits.destructive_within;
        let told = self.facts.destroyed().tries.iter().filter(|(at, ..)| recent(at)).map(|(_, id, chakra)| (id, chakra.as_str()));
        let under_way = self.records.iter().filter(|(id, record)| *id != at.instance && self.destroys(record)).map(|(id, _)| id);
        let written = self.destroying.iter().filter(|(id, until)| *id != at.instance && **until > now.mono).map(|(id, _)| id);
        let of = |id: &Instance| self.desired(id).map_or("", |(_, spec)| spec.chakra.as_str());
        let granted = self.facts.views().keys().filter(|id| *id != at.instance && self.has_destructive_grant(id));
        // One for each instance, however far it has come.
        let pending: BTreeSet<&Instance> = under_way.chain(written).chain(granted).collect();
        let all: Vec<(&Instance, &str)> = told.chain(pending.into_iter().map(|id| (id, of(id)))).collect();
        let own = all.iter().filter(|(id, _)| id.component == at.instance.component).count();
        let near = all.iter().filter(|(_, of)| *of == chakra).count();
        let budgets = [
            (own, limits.destructive_component, "its own"),
            (near, limits.destructive_chakra, "its chakra's"),
            (all.len(), limits.destructive_mesh, "the mesh's"),
        ];
        let over = budgets.into_iter().find(|(count, max, _)| count >= max);
        over.map(|(_, max, whose)| {
            format!("{whose} budget of {max} in {:.0?} for what cannot be taken back is spent", limits.destructive_within)
        })
    }

    /// Whether an order that is not told yet cannot be taken back.
    fn destroys(&self, record: &Record) -> bool {
        record.open_order().is_some_and(|order| is_destructive(&order.rung) && self.is_tried(order) == Some(false))
    }

    /// Counts an order from when it is decided, not only from when its record is read back.
    pub(super) fn note_destructive(&mut self, instance: &Instance, intent: &v1::Intent, until: Duration) {
        let destroys = matches!(&intent.want, Some(Want::Recovery(order)) if !order.ended && is_destructive(&order.rung));
        if destroys {
            self.destroying.insert(instance.clone(), until);
        }
    }
}
