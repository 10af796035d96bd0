//! What a node remembers over lives of its agent: written when it changes, read back at the start, and the processes taken over.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    event::TOLD_AGAIN,
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, InstanceState as State, event::Fact},
};

use super::{
    Action, Node, Now, degraded,
    folding::Exit,
    instance::{Inst, OpenIncident, Place, is_living},
    probing::Probes,
};

/// What the journal and the disk gave back.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Memory per instance.
    pub memories: BTreeMap<Instance, v1::InstanceMemory>,
    /// Processes that live.
    pub living: Vec<v1::Spawned>,
    /// Processes that ended while the agent was away, with what is known of their ends.
    pub ended: Vec<(v1::SpawnPlanned, v1::ExitStatus, String)>,
    /// The view of the bucket that was kept.
    pub plan: v1::PlanOnDisk,
}

impl Node {
    pub(super) fn recall(&mut self, restored: &Restored, now: Now) {
        for (id, memory) in &restored.memories {
            let mut inst = Inst::new(id.clone(), now.mono);
            inst.generation = memory.generation;
            inst.used = Incarnation::new(memory.generation, memory.start);
            inst.incarnation = memory.incarnation.as_ref().map_or(inst.used, Incarnation::from);
            inst.state = settled_state(memory.state());
            inst.fence = Place { epoch: memory.bucket_epoch.clone(), revision: memory.revision };
            inst.budget.short_lives = memory.short_lives;
            inst.budget.restarts = memory.restarts.iter().map(|at| monotonic(at, now)).collect();
            inst.incident = memory.incident.as_ref().and_then(|i| Incident::try_from(i).ok()).map(|id| OpenIncident {
                id,
                since: memory.incident_since.as_ref().map_or(now.mono, |at| monotonic(at, now)),
                starts: memory.incident_starts,
                cause: "it failed before the node's agent began".to_owned(),
            });
            inst.failed_cause.clone_from(&memory.failed_cause);
            inst.blocked_told.clone_from(&memory.blocked_by);
            inst.blocked_unsure = !memory.blocked_by.is_empty();
            inst.signs_of_life = memory.signs_of_life;
            if !memory.completed_spec_hash.is_empty() {
                inst.completed = Some((memory.completed_spec_hash.clone(), memory.completed_generation));
            }
            inst.dependencies = memory.dependencies.iter().filter_map(seen).collect();
            inst.remembered = Some(memory.clone());
            self.instances.insert(id.clone(), inst);
        }
    }

    /// Takes over what lives and folds what ended meanwhile.
    pub(super) fn adopt_processes(&mut self, living: Vec<v1::Spawned>, ended: Vec<(v1::SpawnPlanned, v1::ExitStatus, String)>, now: Now) {
        for spawned in living {
            if let (Some(planned), Some(process)) = (spawned.planned, spawned.process) {
                let adopted = self.adopt(&planned, Some(process), now);
                // The last agent may have died between the spawn and its readiness.
                adopted.iter().for_each(|id| {
                    self.tell_degraded_again(id, now);
                    self.ready_unasked(id, now);
                });
            }
        }
        self.tell_failures(now);
        for (planned, status, last_error) in ended {
            if self.was_folded(&planned) {
                self.tell_again(&planned, status, last_error, now);
                continue;
            }
            let Some(id) = self.adopt(&planned, None, now) else { continue };
            let incarnation = planned.incarnation.as_ref().map_or_else(Incarnation::default, Incarnation::from);
            let exit = Exit { status, last_error, while_away: true, stragglers: 0, started: true };
            self.fold_exit(&id, incarnation, &exit, now);
        }
    }

    /// Whether the last agent has drawn its conclusions from the end of this life already: it died before it could forget it.
    fn was_folded(&self, planned: &v1::SpawnPlanned) -> bool {
        let Some(incarnation) = planned.incarnation.as_ref().map(Incarnation::from) else { return false };
        let id = planned.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        let memory = id.and_then(|id| self.instances.get(&id)).and_then(|i| i.remembered.as_ref());
        let known = memory.and_then(|m| Some((Incarnation::from(m.incarnation.as_ref()?), m.state())));
        known.is_some_and(|(newest, state)| {
            newest > incarnation || newest == incarnation && !is_living(state) && state != State::Unspecified
        })
    }

    /// Tells an end that was acted on, and perhaps not told.
    fn tell_again(&mut self, planned: &v1::SpawnPlanned, status: v1::ExitStatus, last_error: String, now: Now) {
        let Some(id) = planned.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return };
        let newest = self.instances.get(&id).filter(|i| Some(i.incarnation) == planned.incarnation.as_ref().map(Incarnation::from));
        let fact = if newest.is_some_and(|i| i.state == State::Completed) {
            Fact::ComponentReady(v1::ComponentReady { probe: "exit 0".to_owned(), again: true, completed: true, ..Default::default() })
        } else {
            Fact::ComponentExited(v1::ComponentExited { status: Some(status), last_error, while_away: true, ..Default::default() })
        };
        let mut event = self.draft(Some(&id), fact, TOLD_AGAIN, "it ended before the node's agent did, which may have told it", now);
        event.incarnation = planned.incarnation;
        self.tells.push(event);
    }

    fn adopt(&mut self, planned: &v1::SpawnPlanned, process: Option<v1::ProcessIdentity>, now: Now) -> Option<Instance> {
        let id = Instance::try_from(planned.instance.as_ref()?).ok()?;
        let incarnation = Incarnation::from(planned.incarnation.as_ref()?);
        let inst = self.instances.entry(id.clone()).or_insert_with(|| Inst::new(id.clone(), now.mono));
        if inst.process.is_some() && inst.incarnation > incarnation {
            return None;
        }
        let memory = inst.remembered.clone().unwrap_or_default();
        let same = inst.wanted.as_ref().filter(|w| w.desired.spec_hash == planned.spec_hash);
        let spec = same.map(|w| w.spec.clone()).or_else(|| inst.wanted.as_ref().map(|w| w.spec.clone()));
        // What was found bears the number that it was started with, however far the numbers have gone on since.
        inst.incarnation = incarnation;
        inst.used = inst.used.max(incarnation);
        inst.generation = inst.generation.max(incarnation.generation);
        inst.process = process;
        inst.started_hash.clone_from(&planned.spec_hash);
        inst.started_spec.clone_from(&spec);
        inst.by_rung = planned.by_rung;
        inst.dependencies = planned.dependencies.iter().filter_map(seen).collect();
        inst.spawned_at = planned.at.as_ref().map_or(now.mono, |at| monotonic(at, now));
        inst.state = if is_living(memory.state()) { memory.state() } else { State::Starting };
        inst.since = now.mono;
        inst.reason = "adopted from the last life of the node's agent".to_owned();
        take_up(inst, &spec.unwrap_or_default(), now.mono);
        if let Some(told) = memory.degraded.as_ref().filter(|_| memory.incarnation == planned.incarnation) {
            degraded::recall(inst, told, now.mono);
        }
        if inst.state == State::Ready {
            inst.ready_since = Some(memory.ready_since.as_ref().map_or(now.mono, |at| monotonic(at, now)));
        }
        Some(id)
    }

    /// What is remembered is dated by the wall clock: once that was set, it is all looked at again.
    pub(super) fn note_clock(&mut self, now: Now) {
        let zero = now.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(now.mono);
        if zero.abs_diff(self.clock) >= SAME / 2 {
            self.clock = zero;
            self.dirty.extend(self.instances.keys().cloned());
        }
    }

    /// Writes the memory of `id` when it changed.
    pub(super) fn remember(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        if inst.incarnation.generation == 0 && inst.fence.revision == 0 {
            return;
        }
        let memory = memory_of(inst, self.config.start_floor, self.unblocked.contains(id), now);
        if inst.remembered.as_ref() != Some(&memory) {
            inst.remembered = Some(memory.clone());
            self.actions.push(Action::Remember(Box::new(memory)));
        }
    }
}

/// Begins to watch a process that another life of the agent started, where that had come to.
pub(super) fn take_up(inst: &mut Inst, spec: &v1::ComponentSpec, now: Duration) {
    // What it said before it was known what that means.
    let (up, ready) = (inst.probes.startup.sign_at, inst.probes.readiness.sign_at);
    inst.probes = Probes::begun(spec, now);
    (inst.probes.startup.sign_at, inst.probes.readiness.sign_at) = (up, ready);
    if matches!(inst.state, State::Ready | State::Unready) {
        inst.was_ready = true;
        inst.probes.started_up = true;
        inst.probes.became_ready(spec, now);
    } else if inst.state == State::Stopping {
        inst.stop.get_or_insert(super::instance::Stop { why: "desired", since: now, killed: None, unkillable: false });
    } else {
        inst.slot = true;
        // What it said once, it does not say again.
        let memory = inst.remembered.as_ref().filter(|m| m.incarnation.as_ref().map(Incarnation::from) == Some(inst.incarnation));
        let (started_up, said_ready) = memory.map_or((false, false), |m| (m.started_up, m.said_ready));
        if started_up {
            inst.probes.start_passed(spec, now);
        }
        inst.probes.readiness.sign_at = ready.or(said_ready.then_some(now));
    }
}

/// States in which a process must exist are decided by the processes that are found.
fn settled_state(state: State) -> State {
    match state {
        // How long it had waited is not remembered: the restart policy speaks anew.
        State::Backoff => State::Exited,
        State::Starting | State::Ready | State::Unready | State::Stopping | State::Preparing | State::Unspecified => State::Waiting,
        State::Waiting | State::Stopped | State::Exited | State::Failed | State::Completed | State::Quarantined | State::Probation => state,
    }
}

fn memory_of(inst: &Inst, start_floor: u64, unblocked: bool, now: Now) -> v1::InstanceMemory {
    let old = inst.remembered.as_ref();
    let keep = |at: Duration, old: Option<&prost_types::Timestamp>| stable(at, old, now);
    let old_restarts = old.map(|o| o.restarts.as_slice()).unwrap_or_default();
    let restarts = inst.budget.restarts.iter().map(|at| {
        let same = old_restarts.iter().find(|o| monotonic(o, now).abs_diff(*at) < SAME);
        keep(*at, same)
    });
    let used = inst.used.max(inst.incarnation);
    // Without a specification nothing is known of what it has said: what was remembered stands.
    let (starts, spec) = (inst.state == State::Starting, inst.spec());
    v1::InstanceMemory {
        instance: Some((&inst.id).into()),
        generation: inst.generation,
        start: if used.generation == inst.generation { used.start } else { start_floor },
        state: inst.state.into(),
        restarts: restarts.collect(),
        short_lives: inst.budget.short_lives,
        incident: inst.incident.as_ref().map(|i| (&i.id).into()),
        incident_since: inst.incident.as_ref().map(|i| keep(i.since, old.and_then(|o| o.incident_since.as_ref()))),
        completed_spec_hash: inst.completed.as_ref().map_or_else(String::new, |(hash, _)| hash.clone()),
        bucket_epoch: inst.fence.epoch.clone(),
        revision: inst.fence.revision,
        signs_of_life: inst.signs_of_life,
        dependencies: super::folding::dependencies_seen(inst),
        incident_starts: inst.incident.as_ref().map_or(0, |i| i.starts),
        completed_generation: inst.completed.as_ref().map_or(0, |(_, generation)| *generation),
        incarnation: Some(inst.incarnation.into()),
        ready_since: inst.ready_since.map(|at| keep(at, old.and_then(|o| o.ready_since.as_ref()))),
        blocked_by: if unblocked { old.map(|o| o.blocked_by.clone()).unwrap_or_default() } else { inst.blocked_told.clone() },
        started_up: starts && spec.map_or(old.is_some_and(|o| o.started_up), |s| inst.probes.started_up && s.startup.is_some()),
        degraded: degraded::degradation_of(inst),
        said_ready: starts && spec.map_or(old.is_some_and(|o| o.said_ready), |_| inst.probes.readiness.sign_at.is_some()),
        failed_cause: if inst.state == State::Failed { inst.failed_cause.clone() } else { String::new() },
    }
}

/// Two readings of one instant through two clocks differ by less.
const SAME: Duration = Duration::from_millis(500);

/// The wall instant of a monotonic one; what was written before stays as written, so that clocks drifting apart write nothing.
fn stable(at: Duration, old: Option<&prost_types::Timestamp>, now: Now) -> prost_types::Timestamp {
    match old {
        Some(old) if monotonic(old, now).abs_diff(at) < SAME => *old,
        _ => time::timestamp(now.wall.checked_sub(now.mono.saturating_sub(at)).unwrap_or(now.wall)),
    }
}

/// The monotonic instant of a wall one, as seen from `now`; what lies ahead becomes now.
fn monotonic(at: &prost_types::Timestamp, now: Now) -> Duration {
    let ago = now.wall.duration_since(time::system_time(at)).unwrap_or_default();
    now.mono.saturating_sub(ago)
}

fn seen(d: &v1::DependencySeen) -> Option<(Instance, Incarnation)> {
    Some((Instance::try_from(d.instance.as_ref()?).ok()?, d.incarnation.as_ref()?.into()))
}
