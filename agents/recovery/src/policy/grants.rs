//! Grants: what there is a mesh-wide quota of (slots under the brake, what cannot be taken back, a chakra's hook) is given out by the holder
//! of shard 0 alone, as an event, where there are several shards. Two holders that look at the same moment could exceed a quota together;
//! one that counts what it has given out in EVENTS cannot. With one shard the holder is that one, and asks nobody.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    event::agent_event_id,
    ids::{Incident, Instance},
    v1::{self, event::Fact, intent::Want},
};

use super::{AGENT, IncidentFacts, Now, PUBLISH_LIMIT, State, destructive::is_destructive, events::Said, rungs::CHAKRA_HOOK};

impl State {
    /// Whether an order needs a grant that is not in EVENTS. What an order has begun is amended without one.
    pub(super) fn lacks_grant(&self, instance: &Instance, intent: &v1::Intent) -> bool {
        let Some(Want::Recovery(order)) = &intent.want else { return false };
        let before = self.records.get(instance).and_then(super::Record::order);
        let begun = before.is_some_and(|b| b.incident == order.incident && b.attempt == order.attempt);
        let counted = is_destructive(&order.rung) || self.facts.brake().is_some();
        let open = self.facts.view(instance).and_then(|view| view.incident.as_ref());
        let granted = open.is_some_and(|i| i.granted.contains(&(order.attempt, order.rung.clone())));
        self.shards.is_divided() && counted && !order.ended && !begun && !granted
    }

    /// The grant of an order, noted as given out until it is read back.
    pub(super) fn grant(&mut self, instance: &Instance, intent: &v1::Intent, now: Now) -> Option<Box<v1::Event>> {
        let event = self.granted(instance, intent, now.wall)?;
        let until = now.mono + PUBLISH_LIMIT;
        self.granting.insert(instance.clone(), until);
        self.note_hook(instance, intent, now);
        self.note_destructive(instance, intent, until);
        Some(event)
    }

    pub(super) fn granted(&self, instance: &Instance, intent: &v1::Intent, at: SystemTime) -> Option<Box<v1::Event>> {
        let Some(Want::Recovery(order)) = &intent.want else { return None };
        let incident = Incident::try_from(order.incident.as_ref()?).ok()?;
        let view = self.facts.view(instance)?;
        let fact = v1::RungGranted { rung: order.rung.clone(), attempt: order.attempt };
        let cause = format!("{incident}:{}:{}", order.attempt, order.rung);
        let text = format!("{}, try {}", order.rung, order.attempt);
        let said = Said { code: "quota", text, attempt: Some(order.attempt), cause: intent.cause_id.clone() };
        let mut event = self.fact(&incident, view, Fact::RungGranted(fact), said, at);
        event.id = agent_event_id(AGENT, "rung_granted", Some(instance), Some(incident.incarnation), &cause);
        Some(event)
    }

    /// Whether something is granted to `instance` whose try is not told, or is being granted.
    pub(super) fn has_grant(&self, instance: &Instance) -> bool {
        self.granting.contains_key(instance) || self.grants_of(instance).next().is_some()
    }

    /// Whether a rung that cannot be taken back is granted to `instance`.
    pub(super) fn has_destructive_grant(&self, instance: &Instance) -> bool {
        self.grants_of(instance).any(is_destructive)
    }

    /// Whether the hook of `chakra` is granted to another instance.
    pub(super) fn hook_is_granted(&self, instance: &Instance, chakra: &str) -> bool {
        let of = |id: &&Instance| *id != instance && self.desired(id).is_some_and(|(_, spec)| spec.chakra == chakra);
        self.facts.views().keys().filter(of).any(|id| self.grants_of(id).any(|rung| rung == CHAKRA_HOOK))
    }

    /// What was given out and not read back in time is forgotten: it is given out again, under the same id.
    pub(super) fn forget_grants(&mut self, now: Duration) {
        self.granting.retain(|_, until| *until > now);
    }

    fn grants_of(&self, instance: &Instance) -> impl Iterator<Item = &str> {
        let open = self.facts.view(instance).and_then(|view| view.incident.as_ref()).filter(|i| IncidentFacts::is_open(i));
        open.into_iter().flat_map(|i| i.granted.iter().map(|(_, rung)| rung.as_str()))
    }
}
