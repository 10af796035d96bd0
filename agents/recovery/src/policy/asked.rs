//! Before the last rung the nodes of what a component depends on are asked afresh: what EVENTS say of a dependency may be late, and a
//! component that failed for want of it is not past help.

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, DependencyCondition as Condition, RunMode},
};

use super::{Now, State, Step, facts::state_holds};

/// A question is answered from memory; without an answer it is asked again after so long.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Pause after an answer that did not come.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// A question that was put, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    incident: Incident,
    attempt: u32,
    /// Asked again then, if nothing is known by then.
    pub(super) until: Duration,
    /// Whether every dependency stands as it is known here.
    kept: Option<bool>,
}

/// What is known of the ground under a component.
pub(super) enum Ground {
    /// It stands as it is known here; or there is none.
    Firm,
    /// It does not; to be asked again then, where no try was judged by it.
    Moved(Duration),
    /// To be found out.
    Unknown(Step),
}

impl State {
    /// The required dependencies of `spec` that are to run.
    fn below<'a>(&'a self, spec: &'a v1::ComponentSpec) -> impl Iterator<Item = (&'a Instance, Condition)> {
        let required = spec.depends_on.iter().filter(|d| d.required && d.component != spec.name);
        required.flat_map(|d| {
            let wanted = |id: &&Instance| self.desired(id).is_some_and(|(desired, _)| desired.mode() != RunMode::Stop);
            self.facts.replicas(&d.component).map(|(id, _)| id).filter(wanted).map(|id| (id, d.condition()))
        })
    }

    /// Whether the dependencies stand, by word of their nodes for this attempt.
    pub(super) fn ground(&self, incident: &Incident, attempt: u32, spec: &v1::ComponentSpec, now: Now) -> Ground {
        let nodes: BTreeSet<String> = self.below(spec).filter_map(|(id, _)| Some(self.facts.view(id)?.node.clone())).collect();
        if nodes.is_empty() {
            return Ground::Firm;
        }
        let known = self.questions.get(&incident.instance).filter(|q| q.incident == *incident && q.attempt == attempt);
        match known.map(|q| (q.kept, q.until)) {
            Some((Some(true), _)) => Ground::Firm,
            Some((Some(false), until)) if attempt > 0 || until > now.mono => Ground::Moved(until),
            Some((None, until)) if until > now.mono => Ground::Unknown(Step::Wait(Some(until))),
            _ => Ground::Unknown(Step::Ask { nodes, incident: Box::new(incident.clone()), attempt }),
        }
    }

    pub(super) fn note_question(&mut self, incident: Incident, attempt: u32, now: Now) {
        let question = Question { incident: incident.clone(), attempt, until: now.mono + ASK_LIMIT, kept: None };
        self.questions.insert(incident.instance, question);
    }

    /// The inventories of all nodes that were asked; `None`: one did not answer.
    pub(super) fn apply_answer(&mut self, instance: &Instance, inventories: Option<&[v1::NodeInventory]>, now: Now) {
        let kept = inventories.map(|told| self.agrees(instance, told));
        let Some(question) = self.questions.get_mut(instance) else { return };
        question.kept = kept;
        if kept != Some(true) {
            question.until = now.mono + if kept.is_none() { ASK_PAUSE } else { ASK_LIMIT };
        }
    }

    fn agrees(&self, instance: &Instance, told: &[v1::NodeInventory]) -> bool {
        let Some((_, spec)) = self.desired(instance) else { return false };
        self.below(spec).all(|(id, condition)| {
            let known = self.facts.view(id).map(|v| v.incarnation);
            let is = |item: &&v1::InventoryItem| item.instance.as_ref().is_some_and(|i| Instance::try_from(i).as_ref() == Ok(id));
            told.iter()
                .flat_map(|n| &n.items)
                .filter(is)
                .any(|item| item.incarnation.as_ref().map(Incarnation::from) == known && state_holds(condition, item.state()))
        })
    }
}
