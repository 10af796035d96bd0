//! The plan in force, as any replica answers from memory.

use razar_bus_schema::v1;

use super::{Record, State, events::desired_changed};

impl State {
    /// Answer to `razar.query.orchestrator.plan`.
    #[must_use]
    pub fn plan_reply(&self) -> v1::PlanReply {
        let plan = self.plan.value.clone().unwrap_or_default();
        let mut instances: Vec<v1::PlannedInstance> = self.records.values().filter_map(|r| self.planned(r)).collect();
        instances.sort_by_key(|i| i.desired.as_ref().map_or(0, |d| d.rank));
        v1::PlanReply {
            stack: plan.stack,
            stack_revision: plan.stack_revision,
            profile: plan.profile,
            mission_id: if plan.ended { String::new() } else { plan.mission_id },
            instances,
            replica: self.who.replica.clone(),
        }
    }

    fn planned(&self, record: &Record) -> Option<v1::PlannedInstance> {
        let desired = record.desired()?;
        let component = desired.instance.as_ref().map_or("", |i| i.component.as_str());
        let history = self.history(component);
        Some(v1::PlannedInstance {
            instance: desired.instance.clone(),
            desired: Some(desired_changed(desired, desired.spec.as_ref()?, record.intent.reason.as_ref())),
            wave: desired.wave,
            takes: median(&history.takes),
            failed_boots: history.failed_boots,
        })
    }
}

/// The middle one, of an even number the lower one, which was really measured; `None` of none.
fn median(takes: &[prost_types::Duration]) -> Option<prost_types::Duration> {
    let mut sorted = takes.to_vec();
    sorted.sort_by_key(|t| (t.seconds, t.nanos));
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}
