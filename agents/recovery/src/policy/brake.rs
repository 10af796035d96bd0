//! The brake: where many roots fail at once, the cause is not theirs, and a ladder that restarts them all makes it worse. While it is on,
//! no rung begins until nothing more fails, and then the lowest ranks alone, as many at a time as the plan starts.

use std::time::Duration;

use razar_bus_schema::{
    event::{Kind as _, agent_event_id},
    ids::Instance,
    subject::MESH_CHAKRA,
    time,
    v1::{self, RunMode, event::Fact},
};

use super::{
    AGENT, IncidentFacts, Now, Record, State, View,
    rungs::{DEPENDENCIES, Standing},
};

/// Mesh-wide cause that events about the brake name.
const CAUSE: &str = "brake";
/// Starts at a time of a plan that says nothing.
const PARALLEL_STARTS: u32 = 4;

/// Whether an instance's ladder may begin a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Free,
    /// Not before then, as far as is known now.
    Held(Option<Duration>),
}

/// Where the ladder of an unsettled instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    /// A try of it is ordered or granted, and what came of that is not told.
    UnderWay,
    /// It waits for its next rung, or its first.
    Next { is_first: bool },
    /// It waits for what it depends on, for its node, or out its cooldown.
    Rests,
}

impl State {
    /// Instances that count, and those of them that are failed roots of which the ladder has not washed its hands.
    fn counted(&self) -> (usize, Vec<(&Instance, &View)>) {
        let counts = |(id, view): &(&Instance, &View)| {
            let runs = self.desired(id).is_some_and(|(desired, _)| desired.mode() != RunMode::Stop);
            runs && !view.blocked && !self.is_quarantined(id) && !self.facts.node(&view.node).lost
        };
        let all: Vec<_> = self.facts.views().iter().filter(counts).collect();
        let given_up = |view: &View| view.incident.as_ref().is_some_and(|i| !i.is_open());
        let roots = all.iter().filter(|(_, view)| view.is_to_heal() && !given_up(view)).copied();
        (all.len(), roots.collect())
    }

    /// The failure that engages the brake, with the numbers of failed roots and of all that count; `None`: there are not enough.
    fn overload(&self) -> Option<(String, usize, usize)> {
        let (counted, roots) = self.counted();
        let failures = || roots.iter().filter_map(|(_, view)| view.failed.as_ref());
        let newest = failures().max_by(|a, b| (a.stored, &a.id).cmp(&(b.stored, &b.id)))?;
        let inside = |at| newest.stored.duration_since(at).is_ok_and(|age| age < self.limits.brake_within);
        let failed = failures().filter(|f| inside(f.stored)).count();
        let many = failed >= self.limits.brake_roots && failed * 100 >= counted * self.limits.brake_percent;
        many.then(|| (newest.id.clone(), failed, counted))
    }

    /// What is owed about the brake.
    pub(super) fn owed_brake(&self, now: Now) -> Option<Box<v1::Event>> {
        let Some(on) = self.facts.brake() else {
            let (cause, failed, counted) = self.overload()?;
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let fact = v1::BrakeEngaged { failed_roots: number(failed), counted: number(counted) };
            let text = format!("{failed} of {counted} failed at once; no rung begins until nothing more fails");
            return Some(self.mesh_fact(Fact::BrakeEngaged(fact), &cause, ("brake", text), now));
        };
        let escalated =
            v1::Escalated { severity: "P1".to_owned(), about: "many components failed at once; the ladder waits".to_owned(), count: 0 };
        let event = self.mesh_fact(Fact::Escalated(escalated), &on.id, ("brake", "the brake is on".to_owned()), now);
        if !self.facts.is_told(&event.id) {
            return Some(event);
        }
        if self.unsettled(now).any(|(_, _, keeps)| keeps) {
            return None;
        }
        let took = now.mono.saturating_sub(on.since);
        let fact = v1::BrakeReleased { took: Some(time::duration(took)) };
        Some(self.mesh_fact(Fact::BrakeReleased(fact), &on.id, ("settled", "every failed root is settled".to_owned()), now))
    }

    fn mesh_fact(&self, fact: Fact, cause: &str, why: (&str, String), now: Now) -> Box<v1::Event> {
        Box::new(v1::Event {
            id: agent_event_id(AGENT, fact.kind(), None, None, cause),
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(now.wall)),
            source: Some(self.actor()),
            chakra: MESH_CHAKRA.to_owned(),
            incident: Some(v1::IncidentId { mesh_cause: CAUSE.to_owned(), ..Default::default() }),
            cause_id: cause.to_owned(),
            reason: Some(v1::Reason { code: why.0.to_owned(), text: why.1 }),
            mesh: self.who.mesh.clone(),
            fact: Some(fact),
            ..Default::default()
        })
    }

    /// Instances whose ladder is not at its end: failed ones, those with an order under way, or granted, and those that live and are to be
    /// replaced. Each with whether it failed, or is ordered: the brake stays on for those.
    fn unsettled(&self, now: Now) -> impl Iterator<Item = (&Instance, Rung, bool)> {
        self.facts.views().iter().filter_map(move |(id, view)| {
            let incident = view.incident.as_ref().filter(|i| i.is_open() && !view.blocked && !self.is_quarantined(id))?;
            let order = self.records.get(id).and_then(Record::open_order);
            let is_lost = self.facts.node(&view.node).lost;
            let rung = if !is_lost && order.is_some_and(|o| self.is_tried(o) != Some(true)) {
                Rung::UnderWay
            } else if is_lost || view.cooldown_until > now.mono || self.rests(id, view, incident, now) {
                Rung::Rests
            } else if self.has_grant(id) {
                Rung::UnderWay
            } else {
                Rung::Next { is_first: order.is_none() }
            };
            let keeps = order.is_some() || self.has_grant(id) || view.is_to_heal();
            (keeps || view.fails(incident)).then_some((id, rung, keeps))
        })
    }

    /// Whether an incident waits for others, below it, before its ladder goes on: it takes up no slot, which those may need.
    fn rests(&self, instance: &Instance, view: &View, incident: &IncidentFacts, now: Now) -> bool {
        let Some((desired, spec)) = self.desired(instance) else { return true };
        let at = Standing { instance, view, incident, desired, spec };
        let order = self.records.get(instance).and_then(Record::open_order).filter(|_| !view.is_judged(incident));
        let comes = |order| self.came_up(view, order).or_else(|| self.may_come_up(view, order, spec).filter(|until| *until > now.mono));
        let came_up = incident.last_is_void() && order.is_some_and(|order| comes(order).is_some());
        came_up || self.foundation(spec).is_none() || !self.joined(spec).is_empty() && self.next_rung(at, now) == DEPENDENCIES
    }

    /// Whether the ladder may begin a rung for `instance`: what goes on comes before what is new, then the lowest rank.
    pub(super) fn admits(&self, instance: &Instance, now: Now) -> Admission {
        if self.facts.brake().is_none() {
            return if self.overload().is_some() { Admission::Held(None) } else { Admission::Free };
        }
        let quiet = self.facts.last_failure() + self.limits.soak;
        if quiet > now.mono {
            return Admission::Held(Some(quiet));
        }
        let plan = |id: &Instance| self.desired(id).map_or((u32::MAX, 0), |(d, _)| (d.rank, d.parallel_starts));
        let (mut under_way, mut waiting) = (0, Vec::new());
        for (id, rung, _) in self.unsettled(now) {
            match rung {
                Rung::UnderWay if id == instance => return Admission::Free,
                Rung::UnderWay => under_way += 1,
                Rung::Next { is_first } => waiting.push((is_first, plan(id).0, id)),
                Rung::Rests => {}
            }
        }
        waiting.sort();
        let slots = match plan(instance).1 {
            0 => PARALLEL_STARTS,
            named => named,
        };
        let free = usize::try_from(slots).unwrap_or(usize::MAX).saturating_sub(under_way);
        let is_next = waiting.iter().take(free).any(|(_, _, id)| *id == instance);
        if is_next { Admission::Free } else { Admission::Held(None) }
    }
}
