//! A mission's course: which components are settled and how, when it ends, what is remembered of the boot, and the brief before it.

use std::{collections::BTreeMap, time::Duration};

use razar_bus_schema::{
    bucket::BRIEFS_KEPT,
    ids::Instance,
    time,
    v1::{self, InstanceState, RunMode, event::Fact},
};

use super::{Action, EndedMission, Kept, MissionFacts, MissionsValue, Now, Record, State, events::fact_id, reconcile::stopped_by_hand};
use crate::blueprint::Blueprint;

/// Times from spawn to ready that are remembered of a component.
const TAKES_KEPT: usize = 5;
/// Lines of a brief: the priority map and the open issues are for people.
const BRIEF_LINES_MAX: usize = 200;
/// A component that its node gave up and that no recovery takes up within this time has failed: longer than its cooldown (60 s) and the
/// warm-up after its own restart.
const UNTENDED_LIMIT: Duration = Duration::from_secs(90);
/// One that no rung helped and that no quarantine isolates within this time has failed.
const UNISOLATED_LIMIT: Duration = Duration::from_secs(10);

/// Where a component stands in its mission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Ready, or a one-shot that ended well.
    Ready,
    /// Stopped by hand: no part of the mission.
    ByHand,
    /// It cannot start for want of one that will not come.
    Blocked,
    Failed,
    Quarantined,
    /// Not settled.
    Pending,
}

impl State {
    /// The events that end the mission: its completion, and who must be told of a component that failed too many boots.
    pub(super) fn owed_end(&self, now: Now, events: &mut Vec<v1::Event>) {
        let Some((plan, mission)) = self.begun() else { return };
        match &mission.completed {
            None => events.extend(self.completed(plan, mission, now)),
            Some(_) if plan.ended => {}
            Some((completed, at)) => {
                let at = at.as_ref().map_or(now.wall, time::system_time);
                events.extend(self.escalations(completed, at));
            }
        }
    }

    /// The plan's mission, begun in EVENTS. It may have ended by its record and not in EVENTS: they are new, and its beginning was told
    /// again while its end was being written.
    fn begun(&self) -> Option<(&v1::Mission, &MissionFacts)> {
        let plan = self.plan()?;
        Some((plan, self.facts.mission(&plan.mission_id)?))
    }

    fn timeout_at(plan: &v1::Mission, mission: &MissionFacts) -> Option<Duration> {
        plan.timeout.as_ref().map(|t| mission.seen + time::std_duration(t))
    }

    pub(super) fn mission_deadline(&self) -> Option<Duration> {
        let (plan, mission) = self.begun()?;
        if mission.completed.is_some() {
            return None;
        }
        let healing = self.records.keys().filter_map(|i| self.healed_until(i));
        healing.chain(Self::timeout_at(plan, mission)).min()
    }

    /// Until when others are expected to do something about an instance that its node gave up; `Duration::MAX`: they are at it. `None`:
    /// its node did not give it up.
    fn healed_until(&self, instance: &Instance) -> Option<Duration> {
        let view = self.facts.view(instance).filter(|v| v.state == InstanceState::Failed)?;
        Some(match view.given_up {
            Some(at) => at + UNISOLATED_LIMIT,
            None if view.tended || self.facts.braked() => Duration::MAX,
            None => view.entered + UNTENDED_LIMIT,
        })
    }

    fn completed(&self, plan: &v1::Mission, mission: &MissionFacts, now: Now) -> Option<v1::Event> {
        let late = Self::timeout_at(plan, mission).is_some_and(|at| at <= now.mono);
        let standings = self.standings(plan, now);
        let settled = standings.as_ref().is_some_and(|s| s.values().all(|s| *s != Standing::Pending)) && self.stops_are_done();
        if !settled && !late {
            return None;
        }
        let mut standings = standings.unwrap_or_default();
        // Out of time: what waits for others is blocked, what was started and is not ready has failed.
        for (name, standing) in &mut standings {
            if *standing == Standing::Pending {
                *standing = if self.waits(name) { Standing::Blocked } else { Standing::Failed };
            }
        }
        let names = |wanted: &[Standing]| -> Vec<String> {
            standings.iter().filter(|(_, s)| wanted.contains(s)).map(|(name, _)| name.clone()).collect()
        };
        let ended_at = if settled { self.settled_at(plan, mission) } else { time::timestamp(now.wall) };
        let took = plan.started_at.as_ref().map(|began| {
            let ended = time::system_time(&ended_at);
            time::duration(ended.duration_since(time::system_time(began)).unwrap_or_default())
        });
        let completed = v1::MissionCompleted {
            mission_id: plan.mission_id.clone(),
            ready: names(&[Standing::Ready]),
            quarantined: names(&[Standing::Quarantined]),
            blocked: names(&[Standing::Blocked]),
            failed: names(&[Standing::Failed]),
            took,
            outcome: self.outcome(&standings, settled).to_owned(),
        };
        let text = format!("{}: {} ready, {} failed", completed.outcome, completed.ready.len(), completed.failed.len());
        let at = time::system_time(&ended_at);
        Some(self.mission_fact(&plan.mission_id, Fact::MissionCompleted(completed), ("mission", text), at))
    }

    /// Whether no replica of a component has been started.
    fn waits(&self, component: &str) -> bool {
        let mut replicas = self.records.keys().filter(|i| i.component == component);
        replicas.all(|i| self.facts.view(i).is_none_or(|v| matches!(v.state, InstanceState::Unspecified | InstanceState::Waiting)))
    }

    fn outcome(&self, standings: &BTreeMap<String, Standing>, settled: bool) -> &'static str {
        if !settled {
            return "timed_out";
        }
        let required = |name: &String| self.blueprint().and_then(|b| b.parts.get(name)).is_some_and(|p| p.spec.required);
        let well = |(name, s): (&String, &Standing)| matches!(s, Standing::Ready | Standing::ByHand) || !required(name);
        if standings.iter().all(well) { "complete" } else { "incomplete" }
    }

    /// The last instant at which something of the mission was settled, by the nodes' clocks; its beginning, if nothing had to change.
    fn settled_at(&self, plan: &v1::Mission, mission: &MissionFacts) -> prost_types::Timestamp {
        let views = self.records.keys().filter_map(|i| self.facts.view(i)).filter(|v| v.since_sequence > mission.sequence);
        let last = views.filter_map(|v| v.since).map(|t| (t.seconds, t.nanos)).max();
        let began = plan.started_at.unwrap_or_default();
        let (seconds, nanos) = last.unwrap_or_default().max((began.seconds, began.nanos));
        prost_types::Timestamp { seconds, nanos }
    }

    /// Nothing lives that is to be stopped; what is on a lost node is not waited for.
    fn stops_are_done(&self) -> bool {
        self.records.iter().all(|(instance, record)| {
            let Some(desired) = record.desired().filter(|d| d.mode() == RunMode::Stop) else { return true };
            let away = self.facts.nodes().get(&desired.node).is_none_or(|n| n.lost || n.epoch != desired.node_epoch);
            away || !self.facts.view(instance).is_some_and(super::View::lives)
        })
    }

    /// Where each component of the plan stands; `None`: the plan is not known or not written yet.
    fn standings(&self, plan: &v1::Mission, now: Now) -> Option<BTreeMap<String, Standing>> {
        let differing = self.differences(now);
        let mut standings = BTreeMap::new();
        if self.in_force().is_none() {
            return differing.is_empty().then_some(standings);
        }
        let blueprint = self.blueprint()?;
        if differing.iter().any(|(i, _, _)| !blueprint.parts.contains_key(&i.component)) || !self.any_node_is_usable() {
            return None;
        }
        for (instance, part) in blueprint.instances() {
            let differs = differing.iter().any(|(i, _, _)| *i == instance);
            let mut standing = if differs { Standing::Pending } else { self.standing(plan, &instance, part.spec.required, now) };
            // What lives may still become ready; what is unready for want of a dependency will not while that is out.
            let hopes = self.facts.view(&instance).is_some_and(|v| v.lives() && v.state != InstanceState::Unready);
            if standing == Standing::Pending && !differs && !hopes && self.waits_in_vain(part, &standings, blueprint) {
                standing = Standing::Blocked;
            }
            let worst = standings.entry(instance.component.clone()).or_insert(standing);
            *worst = (*worst).max(standing);
        }
        Some(standings)
    }

    fn any_node_is_usable(&self) -> bool {
        !self.records.is_empty()
    }

    fn standing(&self, plan: &v1::Mission, instance: &Instance, required: bool, now: Now) -> Standing {
        if stopped_by_hand(plan, instance) {
            return Standing::ByHand;
        }
        // No node has the labels that it asks for: the rest of the stack does not wait for it.
        let Some(desired) = self.records.get(instance).and_then(Record::desired) else { return Standing::Blocked };
        let Some(view) = self.facts.view(instance) else { return Standing::Pending };
        if view.state == InstanceState::Quarantined {
            return Standing::Quarantined;
        }
        if view.incarnation.generation < desired.generation {
            return Standing::Pending;
        }
        match view.state {
            // A rung made it ready; whether it stays so is seen after the soak.
            InstanceState::Ready if required && view.tended => Standing::Pending,
            InstanceState::Ready | InstanceState::Completed => Standing::Ready,
            // The mission waits for whoever heals or isolates what it cannot do without.
            InstanceState::Failed if required && self.healed_until(instance).is_some_and(|at| at > now.mono) => Standing::Pending,
            InstanceState::Failed => Standing::Failed,
            InstanceState::Unspecified
            | InstanceState::Waiting
            | InstanceState::Preparing
            | InstanceState::Starting
            | InstanceState::Unready
            | InstanceState::Stopping
            | InstanceState::Stopped
            | InstanceState::Exited
            | InstanceState::Backoff
            | InstanceState::Quarantined
            | InstanceState::Probation => Standing::Pending,
        }
    }

    /// Whether a dependency that it needs will not come: parts are looked at in order of rank, so dependencies first.
    fn waits_in_vain(&self, part: &crate::blueprint::Part, standings: &BTreeMap<String, Standing>, blueprint: &Blueprint) -> bool {
        part.spec.depends_on.iter().filter(|d| d.required).any(|d| {
            !blueprint.parts.contains_key(&d.component)
                || matches!(
                    standings.get(&d.component),
                    Some(Standing::Blocked | Standing::ByHand | Standing::Failed | Standing::Quarantined)
                )
        })
    }

    /// Components that this mission started in vain, whether or not they were isolated for it.
    fn lost<'a>(&'a self, completed: &'a v1::MissionCompleted) -> impl Iterator<Item = &'a String> {
        let began = self.facts.mission(&completed.mission_id).map_or(u64::MAX, |m| m.sequence);
        let isolated_in_it = move |component: &&String| {
            let mut replicas = self.records.keys().filter(|i| i.component == **component).filter_map(|i| self.facts.view(i));
            replicas.any(|v| v.given_up.is_some() && v.since_sequence > began)
        };
        completed.failed.iter().chain(completed.quarantined.iter().filter(isolated_in_it))
    }

    /// People are told of a component that ended so many boots in a row failed.
    fn escalations(&self, completed: &v1::MissionCompleted, at: std::time::SystemTime) -> Vec<v1::Event> {
        let Some(blueprint) = self.blueprint() else { return Vec::new() };
        if completed.outcome == "superseded" {
            return Vec::new();
        }
        let mut events = Vec::new();
        for component in self.lost(completed) {
            let boots = self.history(component).failed_boots.saturating_add(1);
            let Some(part) = blueprint.parts.get(component) else { continue };
            if boots < blueprint.failed_boots.max(1) {
                continue;
            }
            let about = format!("{component} ended {boots} boots in a row failed");
            let fact = Fact::Escalated(v1::Escalated { severity: "P2".to_owned(), about: about.clone(), count: 0 });
            let mut event = self.mission_fact(&completed.mission_id, fact, ("failed_boots", about), at);
            event.id = fact_id("escalated", &format!("{}:{component}", completed.mission_id));
            event.instance = Some((&Instance::new(component.clone(), 0)).into());
            event.chakra.clone_from(&part.spec.chakra);
            event.stack.clone_from(&blueprint.stack);
            events.push(event);
        }
        events
    }

    pub(super) fn history(&self, component: &str) -> v1::BootHistory {
        let known = self.histories.get(component).and_then(|h| h.value.clone());
        known.unwrap_or_else(|| v1::BootHistory { component: component.to_owned(), ..Default::default() })
    }

    /// The write that ends the mission and remembers the boot, once everything about it is told: all or nothing, so that a boot counts once.
    pub(super) fn end_mission(&self) -> Option<Action> {
        let (plan, mission) = self.begun().filter(|(plan, _)| !plan.ended)?;
        let (completed, at) = mission.completed.as_ref()?;
        let wall = at.as_ref().map_or(std::time::UNIX_EPOCH, time::system_time);
        let escalated = self.escalations(completed, wall).iter().all(|e| self.facts.is_told(&e.id));
        if !escalated || !self.plan_is_told() {
            return None;
        }
        let mut writes = vec![(MissionsValue::Plan(v1::Mission { ended: true, ..plan.clone() }), self.plan.revision)];
        if completed.outcome != "superseded" {
            writes.extend(completed.ready.iter().map(|c| self.good_boot(c, mission)));
            writes.extend(self.lost(completed).map(|c| self.failed_boot(c)));
        }
        let decided = self.records.values().filter(|r| r.desired().is_some_and(|d| d.mission_id == plan.mission_id));
        let planned = decided.filter_map(|r| r.intent.decided_at).map(|t| (t.seconds, t.nanos)).max();
        let started_at = plan.started_at.unwrap_or_default();
        let (seconds, nanos) = planned.unwrap_or_default().max((started_at.seconds, started_at.nanos));
        let ended = EndedMission {
            started: mission.started.clone(),
            completed: completed.clone(),
            started_at,
            planned_at: prost_types::Timestamp { seconds, nanos },
            ended_at: at.unwrap_or(started_at),
            trace: plan.trace.clone().unwrap_or_default(),
        };
        Some(Action::WriteMissions { writes, bucket: self.missions_bucket, ended: Some(Box::new(ended)) })
    }

    fn good_boot(&self, component: &str, mission: &MissionFacts) -> (MissionsValue, u64) {
        let mut history = self.history(component);
        history.failed_boots = 0;
        history.last_good_mission.clone_from(&mission.started.mission_id);
        let view = self.facts.view(&Instance::new(component, 0));
        // One that ran on was not started in this mission, and took nothing.
        history.takes.extend(view.filter(|v| v.ready_sequence > mission.sequence).and_then(|v| v.took));
        let surplus = history.takes.len().saturating_sub(TAKES_KEPT);
        history.takes.drain(..surplus);
        (MissionsValue::History(history), self.history_revision(component))
    }

    fn failed_boot(&self, component: &str) -> (MissionsValue, u64) {
        let mut history = self.history(component);
        history.failed_boots = history.failed_boots.saturating_add(1);
        (MissionsValue::History(history), self.history_revision(component))
    }

    fn history_revision(&self, component: &str) -> u64 {
        self.histories.get(component).map_or(0, |h| h.revision)
    }

    /// The brief of a mission, over the oldest one kept.
    pub(super) fn brief(&self, plan: &v1::Mission, blueprint: &Blueprint) -> (MissionsValue, u64) {
        let states = || self.records.keys().filter_map(|i| self.facts.view(i).map(|v| (i, v)));
        let count = |state: InstanceState| states().filter(|(_, v)| v.state == state).count();
        let (ready, failed) = (count(InstanceState::Ready), count(InstanceState::Failed));
        let unwell =
            states().filter(|(_, v)| matches!(v.state, InstanceState::Failed | InstanceState::Quarantined | InstanceState::Unready));
        let mut open_issues: Vec<String> = unwell.map(|(i, v)| format!("{i}: {}", v.why)).collect();
        let counted = self.histories.values().filter_map(|h| h.value.as_ref()).filter(|h| h.failed_boots > 0);
        open_issues.extend(counted.map(|h| format!("{}: ended {} boots in a row failed", h.component, h.failed_boots)));
        open_issues.truncate(BRIEF_LINES_MAX);
        let mut by_priority: Vec<_> = blueprint.parts.iter().map(|(name, p)| (p.spec.priority, p.rank, name)).collect();
        by_priority.sort();
        let brief = v1::MissionBrief {
            mission_id: plan.mission_id.clone(),
            priority_map: by_priority.iter().take(BRIEF_LINES_MAX).map(|(p, r, name)| format!("P{p} {r} {name}")).collect(),
            current_status: format!("{} instances known: {ready} ready, {failed} failed", self.records.len()),
            open_issues,
        };
        let revision = |slot: u64| self.briefs.get(&slot).map_or(0, |b: &Kept<_>| b.revision);
        let slot = (0..BRIEFS_KEPT).min_by_key(|slot| revision(*slot)).unwrap_or(0);
        (MissionsValue::Brief(slot, brief), revision(slot))
    }
}
