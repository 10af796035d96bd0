//! The rungs: which there are for a component, which comes next in an incident, and what each is given in time. Ordering and judging them
//! is in `ladder`.

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::{
    ids::{Incident, Instance, sha256_hex},
    startup, time,
    v1::{self, InstanceState, RunMode},
};

use super::{IncidentFacts, Now, State, View, destructive::is_destructive};

/// Start it anew after a backoff.
pub(super) const RESTART: &str = "restart";
/// Remove the paths that its specification names as state, then start it.
pub(super) const CLEAR_STATE: &str = "clear_state";
/// Wait for the incidents of what it depends on, then remove its state and start it.
pub(super) const DEPENDENCIES: &str = "dependencies";
/// Run the hook of its chakra, then start it.
pub(super) const CHAKRA_HOOK: &str = "chakra_hook";
/// The last rung: it is told that recovery failed, and quarantine has it.
pub(super) const QUARANTINE: &str = "quarantine";

/// Time of a hook that names none.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest backoff of a restart rung, in powers of two of a second.
const BACKOFF_EXPONENT_MAX: u32 = 6;
/// Share of the backoff that is random.
const JITTER: f64 = 0.2;

/// The rungs that there are for a component, in its order, without the last: no state, no clearing; no dependency, none to wait for; no
/// hook, none to run.
pub(super) fn ladder<'a>(desired: &'a v1::Desired, spec: &'a v1::ComponentSpec) -> impl Iterator<Item = &'a str> {
    let is_there = |rung: &&str| match *rung {
        RESTART => true,
        CLEAR_STATE => !spec.state.is_empty(),
        DEPENDENCIES => !spec.depends_on.is_empty(),
        CHAKRA_HOOK => desired.chakra_hook.is_some(),
        _ => false,
    };
    spec.heal.iter().map(String::as_str).filter(is_there)
}

/// Where an incident stands.
#[derive(Clone, Copy)]
pub(super) struct Standing<'s> {
    pub(super) instance: &'s Instance,
    pub(super) view: &'s View,
    pub(super) incident: &'s IncidentFacts,
    pub(super) desired: &'s v1::Desired,
    pub(super) spec: &'s v1::ComponentSpec,
}

impl State {
    /// The rung that comes next, `failed` having just failed: the chakra's hook where the chakra is down and this is its lowest incident;
    /// else the first in the component's order that has not failed in this incident, from the one on that the known error begins with.
    /// What cannot be taken back is passed over while a budget for it is spent. What too many boots ended with has no rung but the last.
    pub(super) fn rung_after(&self, at: Standing<'_>, failed: Option<&str>, now: Now) -> String {
        if self.is_lost(at.view) {
            return QUARANTINE.to_owned();
        }
        let spent = self.spent(at, now).is_some();
        if failed != Some(CHAKRA_HOOK) && !spent && self.is_hooked(at) {
            return CHAKRA_HOOK.to_owned();
        }
        let all: Vec<&str> = ladder(at.desired, at.spec).collect();
        let begin = at.view.failed.as_ref().map_or("", |f| f.issue.rung.as_str());
        if begin == QUARANTINE {
            return QUARANTINE.to_owned();
        }
        let begin = all.iter().position(|rung| *rung == begin).unwrap_or(0);
        let cured = at.incident.after.as_deref().and_then(|after| all.iter().position(|rung| *rung == after));
        let skipped = begin.max(cured.map_or(0, |n| n + 1));
        let left = all.into_iter().skip(skipped).filter(|rung| failed != Some(rung) && !at.incident.has_failed(rung));
        let next = left
            .into_iter()
            .filter(|rung| !spent || !is_destructive(rung))
            .find(|rung| *rung != DEPENDENCIES || !self.joined(at.spec).is_empty());
        next.unwrap_or(QUARANTINE).to_owned()
    }

    /// Whether so many boots in a row ended without it that no rung is tried any more.
    pub(super) const fn is_lost(&self, view: &View) -> bool {
        view.lost_boots.0 >= self.limits.lost_boots
    }

    /// The incidents below `spec` that are the ladder's or a node's to heal: what a component joins and waits for. A dependency that is to
    /// be stopped, is isolated, is on a lost node, or is not to be restarted has nothing that could be waited for.
    pub(super) fn joined(&self, spec: &v1::ComponentSpec) -> Vec<Incident> {
        let mut seen = BTreeSet::from([spec.name.clone()]);
        let mut queue: Vec<String> = spec.depends_on.iter().map(|d| d.component.clone()).collect();
        let mut found = Vec::new();
        while let Some(component) = queue.pop() {
            if !seen.insert(component.clone()) {
                continue;
            }
            for (id, view) in self.facts.replicas(&component) {
                let Some((desired, below)) = self.desired(id).filter(|(d, _)| d.mode() != RunMode::Stop) else { continue };
                queue.extend(below.depends_on.iter().map(|d| d.component.clone()));
                let ends =
                    !self.is_quarantined(id) && !self.facts.node(&view.node).lost && desired.generation <= view.incarnation.generation;
                // One that serves has its end behind it, whether or not that was told; under an order it is on trial.
                let serves = matches!(view.state, InstanceState::Ready | InstanceState::Completed) && !self.is_ordered(id);
                let heals = !serves && (view.state != InstanceState::Failed || view.is_to_heal());
                let open = view.incident.as_ref().filter(|i| i.is_open() && ends && heals);
                found.extend(open.map(|i| i.id.clone()));
            }
        }
        found.sort_by(|a, b| (&a.instance, a.incarnation).cmp(&(&b.instance, b.incarnation)));
        found
    }

    /// Whether the chakra is down, has had no hook since, and this is the lowest-ranked open incident in it that its hook is a rung of.
    pub(super) fn is_hooked(&self, at: Standing<'_>) -> bool {
        if !self.facts.wants_hook(&at.spec.chakra) {
            return false;
        }
        let of = |(id, view): (&Instance, &View)| {
            let (desired, spec) = self.desired(id)?;
            let open = view.incident.as_ref().is_some_and(IncidentFacts::is_open)
                && spec.chakra == at.spec.chakra
                && desired.mode() == RunMode::Run;
            let flaps = view.incident.as_ref().is_some_and(|i| i.flapping);
            let ours = view.is_to_heal() || flaps || self.is_ordered(id);
            let helped = !view.blocked && !self.is_quarantined(id) && !self.facts.node(&view.node).lost;
            let has_hook = ladder(desired, spec).any(|rung| rung == CHAKRA_HOOK);
            (open && ours && helped && has_hook).then(|| (desired.rank, id.clone()))
        };
        self.facts.views().iter().filter_map(of).min().is_some_and(|(_, lowest)| lowest == *at.instance)
    }

    fn is_ordered(&self, instance: &Instance) -> bool {
        self.records.get(instance).is_some_and(|r| r.open_order().is_some())
    }

    /// Until when another instance's hook of this chakra is under way: one at a time. `Some(None)`: until its end is told.
    pub(super) fn hook_is_busy(&self, instance: &Instance, chakra: &str, now: Now) -> Option<Option<Duration>> {
        if let Some((_, until)) = self.hooking.get(chakra).filter(|(other, until)| other != instance && *until > now.mono) {
            return Some(Some(*until));
        }
        let runs = |(id, record): (&Instance, &super::Record)| {
            let Some(order) = record.open_order().filter(|o| o.rung == CHAKRA_HOOK && id != instance) else { return false };
            self.is_tried(order) != Some(true) && self.desired(id).is_some_and(|(_, spec)| spec.chakra == chakra)
        };
        if self.hook_is_granted(instance, chakra) {
            return Some(None);
        }
        self.records.iter().any(runs).then_some(None)
    }

    /// Time that a rung has, its backoff left out: never less than the startup limit and the soak.
    pub(super) fn limit(&self, desired: &v1::Desired, spec: &v1::ComponentSpec, rung: &str) -> Duration {
        let hook = desired.chakra_hook.as_ref().filter(|_| rung == CHAKRA_HOOK);
        let before = hook.map_or(Duration::ZERO, |h| time::duration_or(h.timeout.as_ref(), HOOK_TIMEOUT).min(startup::LONGEST));
        before + (startup::limit(spec) + self.limits.soak).max(self.limits.deadline_min)
    }
}

/// 2^(n-1) s before the n-th try, a tenth of it more or less: the same for the same try, whoever computes it.
pub(super) fn backoff(incident: &Incident, attempt: u32) -> Duration {
    let seconds = f64::from(1_u32 << attempt.saturating_sub(1).min(BACKOFF_EXPONENT_MAX));
    let hash = sha256_hex(format!("{incident}:{attempt}").as_bytes());
    let dice = u32::from_str_radix(hash.get(..8).unwrap_or("0"), 16).unwrap_or(0);
    let luck = f64::from(dice) / f64::from(u32::MAX);
    Duration::from_secs_f64(seconds * (1.0 - JITTER / 2.0 + JITTER * luck))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_that_have_nothing_to_do_are_not_there() {
        let all = ["restart", "clear_state", "dependencies", "chakra_hook", "of_tomorrow"];
        let spec = |state: &[&str], after: &[&str]| v1::ComponentSpec {
            heal: all.map(str::to_owned).to_vec(),
            state: state.iter().map(|s| (*s).to_owned()).collect(),
            depends_on: after.iter().map(|d| v1::Dependency { component: (*d).to_owned(), ..Default::default() }).collect(),
            ..Default::default()
        };
        let hooked = v1::Desired { chakra_hook: Some(v1::Hook::default()), ..Default::default() };
        let of = |desired: &v1::Desired, spec: &v1::ComponentSpec| ladder(desired, spec).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of(&hooked, &spec(&["/x"], &["db"])), all[..4]);
        assert_eq!(of(&v1::Desired::default(), &spec(&[], &[])), ["restart"]);
        assert_eq!(of(&v1::Desired::default(), &spec(&["/x"], &["db"])), all[..3]);
    }

    #[test]
    fn a_backoff_doubles_within_its_jitter_and_ends_growing() {
        let incident: Incident = "api@1.3".parse().unwrap();
        for (attempt, seconds) in [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (7, 64.0), (8, 64.0), (u32::MAX, 64.0)] {
            let backoff = backoff(&incident, attempt).as_secs_f64();
            assert!((seconds * 0.9..=seconds * 1.1).contains(&backoff), "{attempt}: {backoff}");
        }
    }
}
