//! What is still to be told: of records that were written, of the plan's mission, of commands whose end has come. Worked out from state
//! each time, so that a take-over tells what its predecessor could not, under the same ids.

use std::time::Duration;

use razar_bus_schema::{
    ids::Instance,
    v1::{self, InstanceState, RunMode, event::Fact},
};

use super::{
    CommandFacts, Now, Record, State,
    commands::{ended_by, is_target},
    events::{command_event_id, fact_id},
    reconcile::stopped_by_hand,
};

/// An accepted command whose end has not come by then is told failed.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// A command that the plan settled and that is not delivered again by then never will be: its expiry is 60 s. It is told taken without
/// its text, so that the plan can be overwritten.
const REDELIVERY_LIMIT: Duration = Duration::from_secs(75);

impl State {
    /// Every event that is owed and not in EVENTS.
    pub(super) fn owed_events(&self, now: Now) -> Vec<v1::Event> {
        let mut events = Vec::new();
        self.owed_missions(now, &mut events);
        self.owed_desired(&mut events);
        self.owed_end(now, &mut events);
        self.owed_commands(now, &mut events);
        events.retain(|e| !self.facts.is_told(&e.id));
        events
    }

    fn owed_desired(&self, events: &mut Vec<v1::Event>) {
        let untold = self.records.values().filter(|r| !self.is_told(r));
        let mut told: Vec<_> = untold.filter_map(|r| Some((r.desired()?.rank, self.desired_fact(&r.intent, r.desired()?)))).collect();
        told.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
        events.extend(told.into_iter().map(|(_, event)| event));
    }

    fn owed_missions(&self, now: Now, events: &mut Vec<v1::Event>) {
        let Some(plan) = self.plan() else { return };
        for mission in self.facts.missions().iter().filter(|m| m.completed.is_none() && m.started.mission_id != plan.mission_id) {
            let id = mission.started.mission_id.clone();
            let completed = v1::MissionCompleted { mission_id: id.clone(), outcome: "superseded".to_owned(), ..Default::default() };
            let reason = ("superseded", format!("mission {} takes its place", plan.mission_id));
            events.push(self.mission_fact(&id, Fact::MissionCompleted(completed), reason, now.wall));
        }
        if plan.ended {
            return;
        }
        match self.facts.mission(&plan.mission_id) {
            None => events.extend(self.mission_started(plan)),
            Some(_) => events.extend(self.profile_switched(plan)),
        }
    }

    fn mission_started(&self, plan: &v1::Mission) -> Option<v1::Event> {
        let (to_start, to_stop) = self.mission_lists(plan)?;
        let started = v1::MissionStarted {
            mission_id: plan.mission_id.clone(),
            stack: plan.stack.clone(),
            stack_revision: plan.stack_revision.clone(),
            profile: plan.profile.clone(),
            to_start,
            to_stop,
        };
        let text = format!("{} to start, {} to stop", started.to_start.len(), started.to_stop.len());
        let at = plan.started_at.as_ref().map(razar_bus_schema::time::system_time).unwrap_or(std::time::UNIX_EPOCH);
        let mut event = self.mission_fact(&plan.mission_id, Fact::MissionStarted(started), ("planned", text), at);
        event.cause_id = plan.settled_command_ids.last().cloned().unwrap_or_default();
        Some(event)
    }

    /// Components that the plan starts (or replaces) and stops, against the records as they stand; `None`: the stack is not read yet.
    pub(super) fn mission_lists(&self, plan: &v1::Mission) -> Option<(Vec<String>, Vec<String>)> {
        let mut to_start = Vec::new();
        let mut named = std::collections::BTreeSet::new();
        if self.in_force().is_some() {
            let blueprint = self.blueprint()?;
            for (instance, part) in blueprint.instances() {
                let record = self.records.get(&instance).and_then(Record::desired);
                let starts = match record {
                    None => true,
                    Some(r) => {
                        r.mode() == RunMode::Stop
                            || r.spec_hash != part.spec_hash
                            || (plan.fresh && part.spec.one_shot)
                            || self.facts.view(&instance).is_some_and(|v| v.state == InstanceState::Failed)
                    }
                };
                if starts && !stopped_by_hand(plan, &instance) {
                    to_start.push(instance.component.clone());
                }
                named.insert(instance);
            }
        }
        let mut stops: Vec<(u32, &Instance)> = self
            .records
            .iter()
            .filter(|(i, _)| !named.contains(*i))
            .filter_map(|(i, r)| r.desired().filter(|d| d.mode() != RunMode::Stop).map(|d| (d.rank, i)))
            .collect();
        stops.sort_by(|a, b| b.cmp(a));
        let mut to_stop: Vec<String> = stops.into_iter().map(|(_, i)| i.component.clone()).collect();
        to_start.dedup();
        to_stop.dedup();
        Some((to_start, to_stop))
    }

    /// Owed when the mission before it was of the same stack and another profile.
    fn profile_switched(&self, plan: &v1::Mission) -> Option<v1::Event> {
        let missions = self.facts.missions();
        let at = missions.iter().position(|m| m.started.mission_id == plan.mission_id)?;
        let (this, before) = (missions.get(at)?, missions.get(at.checked_sub(1)?)?);
        let same_stack = before.started.stack == plan.stack && !before.started.stack_revision.is_empty();
        if !same_stack || before.started.profile == plan.profile || self.facts.is_told(&fact_id("profile_switched", &plan.mission_id)) {
            return None;
        }
        let switched = v1::ProfileSwitched {
            from: before.started.profile.clone(),
            to: plan.profile.clone(),
            started: this.started.to_start.clone(),
            stopped: this.started.to_stop.clone(),
        };
        let text = format!("{} to start, {} to stop", switched.started.len(), switched.stopped.len());
        let began = plan.started_at.as_ref().map(razar_bus_schema::time::system_time).unwrap_or(std::time::UNIX_EPOCH);
        Some(self.mission_fact(&plan.mission_id, Fact::ProfileSwitched(switched), ("profile", text), began))
    }

    fn owed_commands(&self, now: Now, events: &mut Vec<v1::Event>) {
        for open in self.facts.open_commands() {
            if let Some((well, code, text)) = self.end_of(open, now) {
                let told = v1::OperatorCommand { result: if well { "done" } else { "failed" }.to_owned(), ..open.told.clone() };
                events.push(self.command_fact(told, &open.mission_id, (code, text), now.wall));
            }
        }
        if let Some(last) = self.untold_settled()
            && now.mono >= self.plan_since + REDELIVERY_LIMIT
        {
            let told = v1::OperatorCommand {
                command_id: last.to_owned(),
                issuer: "unknown".to_owned(),
                result: "accepted".to_owned(),
                ..Default::default()
            };
            let mission = self.plan().map(|m| m.mission_id.clone()).unwrap_or_default();
            let text = "it took effect; its text was lost with the replica that took it".to_owned();
            events.push(self.command_fact(told, &mission, ("accepted", text), now.wall));
        }
    }

    /// The command that the plan settled last, if nothing is told of it and it is not waiting here.
    fn untold_settled(&self) -> Option<&str> {
        let plan = self.plan()?;
        let last = plan.settled_command_ids.last().filter(|last| !ended_by(plan, last))?;
        let waits = self.pending.iter().any(|p| p.id == *last);
        (!waits && !self.is_taken(last) && !self.facts.is_told(&command_event_id(last, false))).then_some(last.as_str())
    }

    /// Whether an open command has come to its end: well or not, code and text.
    fn end_of(&self, open: &CommandFacts, now: Now) -> Option<(bool, &'static str, String)> {
        let ended = match open.told.verb.as_str() {
            "start" | "restart" => self.end_of_start(&open.told.target),
            "stop" => self.end_of_stop(&open.told.target),
            _ => self.end_of_mission(&open.mission_id),
        };
        let late = now.mono >= open.seen + COMMAND_LIMIT;
        ended.or_else(|| late.then(|| (false, "timed_out", "it had no outcome in ten minutes".to_owned())))
    }

    fn end_of_mission(&self, id: &str) -> Option<(bool, &'static str, String)> {
        if id.is_empty() {
            return Some((true, "nothing_to_do", "there was nothing to do".to_owned()));
        }
        let Some(mission) = self.facts.mission(id) else {
            let current = self.plan().is_some_and(|p| p.mission_id == *id && !p.ended);
            return (!current).then(|| (false, "forgotten", "its mission is no longer known".to_owned()));
        };
        let (completed, _) = mission.completed.as_ref()?;
        let well = completed.outcome == "complete";
        Some((well, "mission_completed", format!("mission {id}: {}, {} ready", completed.outcome, completed.ready.len())))
    }

    fn targets(&self, target: &str) -> Vec<(&Instance, &Record)> {
        self.records.iter().filter(|(i, _)| is_target(i, target)).collect()
    }

    fn end_of_stop(&self, target: &str) -> Option<(bool, &'static str, String)> {
        let Some(plan) = self.in_force() else { return Some((true, "stopped", "everything is down".to_owned())) };
        let targets = self.targets(target);
        if targets.iter().any(|(i, r)| !stopped_by_hand(plan, i) && r.desired().is_some_and(|d| d.mode() == RunMode::Run)) {
            return Some((false, "superseded", format!("{target} was started again")));
        }
        let stopped = |(i, r): &(&Instance, &Record)| {
            r.desired().is_some_and(|d| d.mode() == RunMode::Stop) && !self.facts.view(i).is_some_and(super::View::lives)
        };
        targets.iter().all(stopped).then(|| (true, "stopped", format!("{target} is stopped")))
    }

    fn end_of_start(&self, target: &str) -> Option<(bool, &'static str, String)> {
        let Some(plan) = self.in_force() else { return Some((false, "superseded", "everything is to be down".to_owned())) };
        let blueprint = self.blueprint()?;
        let mut all_ready = true;
        for (instance, part) in blueprint.instances().into_iter().filter(|(i, _)| is_target(i, target)) {
            if stopped_by_hand(plan, &instance) {
                return Some((false, "superseded", format!("{instance} was stopped again")));
            }
            let desired = self.records.get(&instance).and_then(Record::desired).filter(|d| d.mode() == RunMode::Run);
            let view = self.facts.view(&instance);
            let Some((desired, view)) = desired.zip(view) else {
                all_ready = false;
                continue;
            };
            let current = view.incarnation.generation >= desired.generation && desired.spec_hash == part.spec_hash;
            match view.state {
                InstanceState::Failed if current => return Some((false, "failed", format!("{instance} failed: {}", view.why))),
                InstanceState::Quarantined => return Some((false, "quarantined", format!("{instance} is quarantined: {}", view.why))),
                InstanceState::Ready | InstanceState::Completed => all_ready &= current,
                InstanceState::Unspecified
                | InstanceState::Waiting
                | InstanceState::Preparing
                | InstanceState::Starting
                | InstanceState::Unready
                | InstanceState::Stopping
                | InstanceState::Stopped
                | InstanceState::Exited
                | InstanceState::Backoff
                | InstanceState::Failed
                | InstanceState::Probation => all_ready = false,
            }
        }
        all_ready.then(|| (true, "ready", format!("{target} is ready")))
    }

    pub(super) fn command_deadline(&self) -> Option<Duration> {
        let open = self.facts.open_commands().map(|c| c.seen + COMMAND_LIMIT).min();
        let redelivery = self.untold_settled().map(|_| self.plan_since + REDELIVERY_LIMIT);
        open.into_iter().chain(redelivery).min()
    }
}
