//! An incident put once more to the policies of recovery and quarantine that this binary has: the recorded events in, at their recorded
//! times; what the policies tell is held against what was told then. Pure; reading and printing are the command's.
//!
//! What the nodes did is taken as it is recorded: their decisions rest on what EVENTS does not hold. So the replay is good up to the first
//! decision that differs; what would have followed from that is another story.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_agent_kit::Now;
use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incident, Instance},
    v1::{self, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want},
};
use razar_quarantine::policy as quarantine;
use razar_recovery::policy as recovery;

/// Epoch of the bucket that the policies write into here.
const BUCKET: &str = "replay";
/// Decisions in a row at one instant: one that decides for ever is cut off.
const ROUNDS_MAX: usize = 64;
/// How long after its end an incident is still decided on: what was told then may have been decided a moment before or after.
const AFTER_END: Duration = Duration::from_secs(2);

/// A decision about the incident.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decision {
    /// The event that was told then, and when it was stored.
    pub(crate) recorded: Option<(v1::Event, SystemTime)>,
    /// The event that is told here, and when.
    pub(crate) decided: Option<(v1::Event, SystemTime)>,
}

impl Decision {
    /// Whether the same was decided then and here.
    pub(crate) fn agrees(&self) -> bool {
        let (Some((recorded, _)), Some((decided, _))) = (&self.recorded, &self.decided) else { return false };
        essence(recorded) == essence(decided)
    }

    fn at(&self) -> SystemTime {
        self.recorded.as_ref().or(self.decided.as_ref()).map_or(SystemTime::UNIX_EPOCH, |(_, at)| *at)
    }
}

/// What of a decision must be the same: neither clocks nor measured times.
fn essence(event: &v1::Event) -> String {
    match &event.fact {
        Some(Fact::RecoveryStarted(f)) => f.rungs.join(" "),
        Some(Fact::RungTried(f)) => format!("{} {} {}", f.rung, f.outcome, f.next),
        Some(Fact::Recovered(f)) => format!("{} {}", f.rung, f.starts),
        Some(Fact::RecoveryFailed(f)) => f.attempts.to_string(),
        Some(Fact::IncidentWithdrawn(f)) => f.why.clone(),
        Some(Fact::Quarantined(f)) => format!("{} {}", f.issue_type, f.attempts),
        _ => String::new(),
    }
}

/// Whether an event tells of a decision that these policies make of themselves.
fn is_decision(event: &v1::Event) -> bool {
    let of_recovery = event.source.as_ref().is_some_and(|s| s.kind == recovery::AGENT);
    match &event.fact {
        Some(Fact::Recovered(_) | Fact::IncidentWithdrawn(_)) => of_recovery,
        Some(Fact::RecoveryStarted(_) | Fact::RungTried(_) | Fact::RecoveryFailed(_)) => true,
        // By hand it is somebody else's decision.
        Some(Fact::Quarantined(_)) => event.incident.is_some(),
        _ => false,
    }
}

/// An incident being replayed.
#[derive(Debug)]
pub(crate) struct Replay {
    incident: Incident,
    recovery: recovery::State,
    quarantine: quarantine::State,
    /// `desired` records as they stand now.
    present: BTreeMap<Instance, v1::Intent>,
    /// Instances of which EVENTS has told what was desired then.
    told: BTreeSet<Instance>,
    revision: u64,
    began: Option<SystemTime>,
    /// The incident's first event was seen.
    opened: bool,
    /// When it ended.
    ended: Option<SystemTime>,
    now: Option<Now>,
    decisions: BTreeMap<String, Decision>,
    changed: BTreeSet<String>,
}

impl Replay {
    /// A replay of `incident`; `present` are the `desired` records of the mesh as they stand.
    pub(crate) fn new(incident: Incident, mesh: &str, present: BTreeMap<Instance, v1::Intent>) -> Self {
        let mut recovery = recovery::State::new(
            recovery::Identity { mesh: mesh.to_owned(), replica: BUCKET.to_owned() },
            razar_recovery::config::Settings::default().limits(),
        );
        let mut quarantine = quarantine::State::new(
            quarantine::Identity { mesh: mesh.to_owned(), replica: BUCKET.to_owned() },
            razar_quarantine::config::Settings::default().limits(),
        );
        recovery.apply_intents_epoch(BUCKET);
        quarantine.apply_intents_epoch(BUCKET);
        let mark = Want::Mark(v1::EpochMark { bucket_epoch: BUCKET.to_owned() });
        let mark = v1::Intent { want: Some(mark), ..Default::default() };
        let start = Now { mono: Duration::ZERO, wall: SystemTime::UNIX_EPOCH };
        quarantine.apply_record(&IntentKey::Mark(quarantine::AGENT.to_owned()), 1, Arc::new(mark), start);
        Self {
            incident,
            recovery,
            quarantine,
            present,
            told: BTreeSet::new(),
            revision: 1,
            began: None,
            opened: false,
            ended: None,
            now: None,
            decisions: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Folds the next event of the stream.
    pub(crate) fn fold(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime) {
        if self.is_over(stored) {
            return;
        }
        let began = *self.began.get_or_insert(stored);
        let mono = stored.duration_since(began).unwrap_or_default().max(self.now.map_or(Duration::ZERO, |now| now.mono));
        let now = Now { mono, wall: stored };
        let ours = self.is_ours(event);
        if ours && !self.opened {
            self.open(now);
        }
        if self.opened {
            self.wait_until(now);
        }
        self.now = Some(now);
        self.apply(sequence, event, stored, now);
        if ours && is_decision(event) {
            self.decisions.entry(event.id.clone()).or_default().recorded.get_or_insert_with(|| (event.clone(), stored));
            if matches!(event.fact, Some(Fact::Recovered(_) | Fact::IncidentWithdrawn(_) | Fact::Quarantined(_))) {
                self.ended = Some(stored);
            }
        }
        if self.opened {
            self.decide(now);
        }
    }

    /// The decisions in order of time, and the components whose specification has changed since.
    pub(crate) fn finish(mut self) -> (Vec<Decision>, Vec<String>) {
        if let (Some(now), Some(ended)) = (self.now, self.ended) {
            let last = ended + AFTER_END;
            let rest = last.duration_since(now.wall).unwrap_or_default();
            self.wait_until(Now { mono: now.mono + rest, wall: now.wall + rest });
        }
        let mut decisions: Vec<Decision> = self.decisions.into_values().collect();
        decisions.sort_by_key(Decision::at);
        (decisions, self.changed.into_iter().collect())
    }

    fn is_over(&self, stored: SystemTime) -> bool {
        self.ended.is_some_and(|ended| ended + AFTER_END < stored)
    }

    fn is_ours(&self, event: &v1::Event) -> bool {
        event.incident.as_ref().and_then(|id| Incident::try_from(id).ok()).as_ref() == Some(&self.incident)
    }

    /// What happened before is folded; from here on it is decided.
    fn open(&mut self, now: Now) {
        self.opened = true;
        self.recovery.apply_caught_up();
        let untold: Vec<_> = self.present.iter().filter(|(i, _)| !self.told.contains(*i)).map(|(i, r)| (i.clone(), r.clone())).collect();
        for (instance, intent) in untold {
            self.desire(&instance, intent, now);
        }
    }

    fn apply(&mut self, sequence: u64, event: &v1::Event, stored: SystemTime, now: Now) {
        self.recovery.apply_event(sequence, event, stored, now);
        self.quarantine.apply_stored(event, stored, now);
        self.quarantine.apply_event(sequence, event, now);
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return };
        match &event.fact {
            Some(Fact::DesiredChanged(told)) => self.desired_then(&instance, told, now),
            Some(Fact::Quarantined(_)) => self.phase(event, &instance, Phase::Isolated),
            Some(Fact::Released(_)) => self.phase(event, &instance, Phase::Released),
            _ => {}
        }
    }

    /// What was desired then, with the specification as it is now.
    fn desired_then(&mut self, instance: &Instance, told: &v1::DesiredChanged, now: Now) {
        let Some(mut intent) = self.present.get(instance).cloned() else { return };
        self.told.insert(instance.clone());
        let Some(Want::Desired(desired)) = &mut intent.want else { return };
        if desired.spec_hash != told.spec_hash {
            self.changed.insert(instance.component.clone());
        }
        desired.generation = told.generation;
        desired.node.clone_from(&told.node);
        let mode = match told.mode.as_str() {
            "stop" => RunMode::Stop,
            "on_demand" => RunMode::OnDemand,
            _ => RunMode::Run,
        };
        desired.set_mode(mode);
        self.desire(instance, intent, now);
    }

    fn desire(&mut self, instance: &Instance, intent: v1::Intent, now: Now) {
        self.revision += 1;
        let intent = Arc::new(intent);
        self.recovery.apply_desired(instance, self.revision, Arc::clone(&intent));
        self.quarantine.apply_record(&IntentKey::Desired(instance.clone()), self.revision, intent, now);
    }

    /// By hand it is the component that is isolated, by the ladder the instance.
    fn phase(&mut self, event: &v1::Event, instance: &Instance, phase: Phase) {
        self.revision += 1;
        let ordinal = event.incident.is_some().then_some(instance.ordinal);
        self.recovery.apply_quarantine(&instance.component, ordinal, self.revision, phase);
    }

    /// Decides at each instant before `until` at which time alone changes something.
    fn wait_until(&mut self, until: Now) {
        let Some(mut now) = self.now else { return };
        let due = |s: &Self, now: Now| [s.recovery.next_deadline(now), s.quarantine.next_deadline(now)].into_iter().flatten().min();
        while let Some(at) = due(self, now).filter(|at| *at < until.mono) {
            let by = at.saturating_sub(now.mono);
            now = Now { mono: at, wall: now.wall + by };
            self.decide(now);
        }
        self.now = Some(until);
    }

    fn decide(&mut self, now: Now) {
        for _ in 0..ROUNDS_MAX {
            let (of_recovery, of_quarantine) = (self.recovery.decide(now), self.quarantine.decide(now));
            if of_recovery.is_empty() && of_quarantine.is_empty() {
                return;
            }
            of_recovery.into_iter().for_each(|action| self.carry_out(action, now));
            of_quarantine.into_iter().for_each(|action| self.carry_out_of_quarantine(action, now));
        }
    }

    fn carry_out(&mut self, action: recovery::Action, now: Now) {
        match action {
            recovery::Action::Write(write) => {
                self.revision += 1;
                self.recovery.apply_outcome(recovery::Outcome::Wrote(write, Ok(self.revision)), now);
            }
            recovery::Action::Announce(announce) => {
                self.revision += 1;
                self.recovery.apply_outcome(recovery::Outcome::Announced(announce, Ok(self.revision)), now);
            }
            recovery::Action::Ask { instance, .. } => {
                let inventories = Some(vec![self.inventory()]);
                self.recovery.apply_outcome(recovery::Outcome::Asked { instance, inventories }, now);
            }
            recovery::Action::Publish(event) => self.told_here(*event, now),
        }
    }

    fn carry_out_of_quarantine(&mut self, action: quarantine::Action, now: Now) {
        match action {
            quarantine::Action::Write { bucket, writes } => {
                let revisions = writes.iter().map(|_| {
                    self.revision += 1;
                    self.revision
                });
                let revisions = Some(revisions.collect());
                self.quarantine.apply_outcome(quarantine::Outcome::Wrote { bucket, writes, revisions }, now);
            }
            quarantine::Action::Publish(event) => self.told_here(*event, now),
            quarantine::Action::Answer { .. } => {}
        }
    }

    fn told_here(&mut self, event: v1::Event, now: Now) {
        if self.is_ours(&event) && is_decision(&event) {
            self.decisions.entry(event.id.clone()).or_default().decided.get_or_insert((event, now.wall));
        }
    }

    /// What the nodes would have answered: what they had told.
    fn inventory(&self) -> v1::NodeInventory {
        let item = |(instance, view): (&Instance, &recovery::View)| v1::InventoryItem {
            instance: Some(instance.into()),
            incarnation: Some(view.incarnation.into()),
            state: view.state.into(),
            ..Default::default()
        };
        v1::NodeInventory { items: self.recovery.facts().views().iter().map(item).collect(), ..Default::default() }
    }
}

/// How much earlier (or later) here than then, in words; empty where it cannot be said.
pub(crate) fn lead(decision: &Decision) -> Option<(Duration, &'static str)> {
    let (recorded, decided) = (decision.recorded.as_ref()?.1, decision.decided.as_ref()?.1);
    Some(match recorded.duration_since(decided) {
        Ok(by) => (by, "earlier"),
        Err(error) => (error.duration(), "later"),
    })
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::{event::Kind as _, time::timestamp};

    use super::*;

    const INCIDENT: &str = "store@1.1";

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn present(heal: &[&str]) -> BTreeMap<Instance, v1::Intent> {
        let spec = v1::ComponentSpec {
            name: "store".to_owned(),
            heal: heal.iter().map(|h| (*h).to_owned()).collect(),
            state: vec!["/cache".to_owned()],
            ..Default::default()
        };
        let desired = v1::Desired { generation: 7, mode: RunMode::Run.into(), spec: Some(spec), ..Default::default() };
        let intent = v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() };
        BTreeMap::from([(Instance::new("store", 0), intent)])
    }

    fn told(ms: u64, start: u64, sequence: u64, fact: Fact) -> (v1::Event, SystemTime) {
        let incident: Incident = INCIDENT.parse().unwrap();
        let opens = !matches!(fact, Fact::DesiredChanged(_) | Fact::ComponentStarted(_) | Fact::ComponentReady(_));
        let event = v1::Event {
            id: format!("n:{sequence}"),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(at(ms))),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e".to_owned(), sequence }),
            instance: Some((&incident.instance).into()),
            incarnation: Some(v1::Incarnation { generation: 1, start }),
            incident: opens.then(|| (&incident).into()),
            fact: Some(fact),
            ..Default::default()
        };
        (event, at(ms))
    }

    fn failed() -> Fact {
        Fact::ComponentFailed(v1::ComponentFailed { cause: "budget_spent".to_owned(), ..Default::default() })
    }

    /// What a node told: it gave `store` up, and each rung's start failed.
    fn of_the_node() -> Vec<(v1::Event, SystemTime)> {
        let desired = v1::DesiredChanged { generation: 1, mode: "run".to_owned(), node: "a".to_owned(), ..Default::default() };
        let again = || Fact::ComponentFailed(v1::ComponentFailed { cause: "rung_failed".to_owned(), ..Default::default() });
        vec![
            told(0, 0, 1, Fact::DesiredChanged(desired)),
            told(10, 1, 2, Fact::ComponentStarted(v1::ComponentStarted::default())),
            told(20, 1, 3, Fact::ComponentExited(v1::ComponentExited::default())),
            told(30, 1, 4, failed()),
            told(1_200, 2, 5, Fact::ComponentStarted(v1::ComponentStarted::default())),
            told(1_300, 2, 6, again()),
            told(5_000, 3, 7, Fact::ComponentStarted(v1::ComponentStarted::default())),
            told(5_100, 3, 8, again()),
        ]
    }

    fn replay(heal: &[&str], events: &[(v1::Event, SystemTime)]) -> Vec<Decision> {
        let mut replay = Replay::new(INCIDENT.parse().unwrap(), "m", present(heal));
        for (n, (event, stored)) in events.iter().enumerate() {
            replay.fold(n as u64 + 1, event, *stored);
        }
        replay.finish().0
    }

    /// As the mesh would have recorded it: what is decided comes a millisecond later with the stream.
    fn recorded(heal: &[&str]) -> Vec<(v1::Event, SystemTime)> {
        let mut events = of_the_node();
        loop {
            let decided = replay(heal, &events).into_iter().filter(|d| d.recorded.is_none()).find_map(|d| d.decided);
            let Some((event, decided_at)) = decided else { return events };
            let stored = decided_at + Duration::from_millis(1);
            let place = events.partition_point(|(_, at)| *at <= stored);
            events.insert(place, (event, stored));
        }
    }

    fn essences(decisions: &[Decision]) -> Vec<String> {
        let line = |d: &Decision| d.recorded.as_ref().or(d.decided.as_ref()).map(|(e, _)| format!("{} {}", e.kind, essence(e))).unwrap();
        decisions.iter().map(line).collect()
    }

    #[test]
    fn the_same_policies_decide_the_same() {
        let decisions = replay(&["restart", "clear_state"], &recorded(&["restart", "clear_state"]));
        assert_eq!(
            essences(&decisions),
            [
                "recovery_started restart clear_state quarantine",
                "rung_tried restart failed clear_state",
                "rung_tried clear_state failed quarantine",
                "recovery_failed 2",
                "quarantined external 2"
            ]
        );
        assert!(decisions.iter().all(Decision::agrees), "{decisions:#?}");
        assert!(decisions.iter().all(|d| lead(d).is_some_and(|(by, _)| by <= Duration::from_millis(2))), "{decisions:#?}");
    }

    #[test]
    fn another_ladder_is_told_apart_where_it_differs_first() {
        let decisions = replay(&["clear_state", "restart"], &recorded(&["restart", "clear_state"]));
        let first = decisions.iter().find(|d| !d.agrees()).unwrap();
        assert_eq!(first.recorded.as_ref().unwrap().0.kind, "recovery_started");
        let altered: Vec<_> = recorded(&["restart", "clear_state"])
            .into_iter()
            .map(|(mut event, stored)| {
                if let Some(Fact::RungTried(tried)) = &mut event.fact
                    && tried.rung == "clear_state"
                {
                    tried.outcome = "void".to_owned();
                }
                (event, stored)
            })
            .collect();
        let decisions = replay(&["restart", "clear_state"], &altered);
        let agree: Vec<bool> = decisions.iter().map(Decision::agrees).collect();
        assert_eq!(agree.iter().position(|a| !a), Some(2), "{decisions:#?}");
    }
}
