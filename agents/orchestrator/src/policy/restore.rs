//! A bucket of missions that was lost: the plan is written again, from what this replica has read of the bucket before, else from what
//! EVENTS and the `desired` records say. Without it an operator could change nothing any more, while everything runs.

use razar_bus_schema::v1::{self, RunMode};

use super::{Action, INSTANCES_MAX, MissionFacts, MissionsValue, State, events::mission_trace, reconcile::BY_HAND};

impl State {
    /// The write that puts the plan, and what else was read of the lost bucket, into a new one. Decisions are made at the head of the
    /// bucket only, so a plan that is not there by then is not on its way.
    pub(super) fn write_lost_plan(&self) -> Option<Action> {
        if self.plan.revision != 0 {
            return None;
        }
        let plan = self.lost_plan()?;
        let mut writes = vec![(MissionsValue::Plan(plan), 0)];
        let histories = self.histories.values().filter(|h| h.revision == 0).filter_map(|h| h.value.clone());
        writes.extend(histories.map(|h| (MissionsValue::History(h), 0)));
        let briefs = self.briefs.iter().filter(|(_, b)| b.revision == 0).filter_map(|(slot, b)| Some((*slot, b.value.clone()?)));
        writes.extend(briefs.map(|(slot, brief)| (MissionsValue::Brief(slot, brief), 0)));
        writes.truncate(INSTANCES_MAX);
        Some(Action::WriteMissions { writes, bucket: self.missions_bucket, ended: None })
    }

    /// What this replica has read, unless EVENTS tells of a later mission.
    fn lost_plan(&self) -> Option<v1::Mission> {
        let known = self.plan.value.as_ref().filter(|p| !p.mission_id.is_empty());
        let newest = self.facts.missions().back();
        match (known, newest) {
            (Some(known), Some(newest)) => {
                let later = self.facts.mission(&known.mission_id).is_some() && newest.started.mission_id != known.mission_id;
                Some(if later { self.plan_by_facts(newest) } else { known.clone() })
            }
            (Some(known), None) => Some(known.clone()),
            (None, Some(newest)) => Some(self.plan_by_facts(newest)),
            (None, None) => None,
        }
    }

    fn plan_by_facts(&self, mission: &MissionFacts) -> v1::Mission {
        let started = &mission.started;
        let by_hand = self.records.iter().filter(|(_, record)| {
            let stopped = record.desired().is_some_and(|d| d.mode() == RunMode::Stop);
            stopped && record.intent.reason.as_ref().is_some_and(|r| r.code == BY_HAND)
        });
        v1::Mission {
            mission_id: started.mission_id.clone(),
            stack: started.stack.clone(),
            stack_revision: started.stack_revision.clone(),
            profile: started.profile.clone(),
            started_at: mission.started_at,
            ended: mission.completed.is_some(),
            settled_command_ids: Some(mission.command.clone()).into_iter().filter(|id| !id.is_empty()).collect(),
            trace: Some(mission_trace(&self.who.mesh, &started.mission_id)),
            stopped_by_hand: by_hand.map(|(instance, _)| instance.key()).collect(),
            ..Default::default()
        }
    }
}
