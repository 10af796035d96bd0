//! What one node must and must not do, worked out a second time from what it was told and what really happened. It shares no code with the
//! policy: where it needs to know which records are in force, what a silence amounts to or whether a condition holds, it says so itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time,
    v1::{self, DependencyCondition as Condition, InstanceState as State, QuarantinePhase as Phase, RunMode, intent::Want},
};
use razar_node::policy::{
    Input, Node, Spawn, ViewChange,
    evidence::Window,
    probing::{Answer, Role},
};

use super::disk::Disk;

/// A record in force.
#[derive(Debug, Clone)]
pub struct Record {
    /// Bucket epoch.
    pub epoch: String,
    /// Revision in it.
    pub revision: u64,
    /// When it came into force, true time.
    pub received: Duration,
    /// The record.
    pub intent: Arc<v1::Intent>,
}

/// The newest life of an instance.
#[derive(Debug, Clone, Default)]
pub struct Last {
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Incarnations of its dependencies when it began.
    pub dependencies: Vec<(Instance, Incarnation)>,
    /// Begun by a rung whose incident is not over.
    pub by_rung: bool,
    /// Specification.
    pub spec: Arc<v1::ComponentSpec>,
}

#[derive(Debug, Clone, Default)]
struct Row {
    incarnation: Incarnation,
    asleep: u32,
    counted: u32,
    run: Duration,
    startup_failures: u32,
    hung: bool,
    signs: u64,
}

/// The oracle of one node.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    node: String,
    node_epoch: String,
    epoch: String,
    staged: BTreeMap<String, (u64, Arc<v1::Intent>)>,
    /// Records in force.
    pub in_force: BTreeMap<String, Record>,
    stored: (String, BTreeMap<String, Record>),
    /// Of that, what a power cut leaves.
    synced: (String, BTreeMap<String, Record>),
    generation: BTreeMap<Instance, u64>,
    fence: BTreeMap<Instance, (String, u64)>,
    /// Highest incarnation ever used on this disk.
    pub used: BTreeMap<Instance, Incarnation>,
    /// Newest lives, as far as the disk knows.
    pub last: BTreeMap<Instance, Last>,
    signalled: BTreeMap<Instance, (Incarnation, Duration)>,
    rows: BTreeMap<Instance, Row>,
    restarts: BTreeMap<Instance, VecDeque<Duration>>,
    /// Local restarts that are decided and not carried out yet.
    deciding: BTreeSet<Instance>,
    blurred_until: Duration,
    living: BTreeMap<Instance, (Incarnation, bool)>,
    /// Something that must not be, found while folding.
    pub complaint: Option<String>,
}

impl Oracle {
    /// The oracle of a node with a new disk.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// The wall clock jumped: instants that are restored from the journal are worth little for a while.
    pub fn blur(&mut self, now: Duration) {
        self.blurred_until = now + Duration::from_secs(90);
        self.restarts.clear();
    }

    /// Power was cut: what was written last is forgotten.
    pub fn power_cut(&mut self, disk: &Disk, lost: bool) {
        if lost {
            self.stored = self.synced.clone();
        }
        for (id, last) in &mut self.last {
            let known = disk.memories.get(id).and_then(|m| m.incarnation.as_ref()).map(Incarnation::from);
            last.incarnation = known.unwrap_or_default();
            last.by_rung = false;
        }
        self.restarts.clear();
    }

    /// A new life of the agent: it knows what the disk knows.
    pub fn agent_starts(&mut self, disk: &Disk, now: Duration) {
        self.node_epoch.clone_from(&disk.epoch);
        self.staged.clear();
        self.deciding.clear();
        (self.epoch, self.in_force) = self.stored.clone();
        for record in self.in_force.values_mut() {
            record.received = now;
        }
        self.generation.clear();
        self.fence.clear();
        let records: Vec<_> = self.in_force.iter().map(|(k, r)| (k.clone(), r.clone())).collect();
        for (key, record) in records {
            if let (Some(id), Some(Want::Desired(desired))) = (desired_key(&key), &record.intent.want)
                && (desired.node == self.node || disk.memories.get(&id).is_some_and(|m| m.generation > 0))
            {
                self.raise(&id, desired.generation);
            }
        }
        for (id, memory) in &disk.memories {
            self.raise(id, memory.generation);
            self.fence.insert(id.clone(), (memory.bucket_epoch.clone(), memory.revision));
        }
        self.rows.clear();
        // The plan of a start may be lost with a power cut; whether a rung made it, too.
        let planned = disk.spawned.values().filter_map(|s| s.planned.as_ref()).chain(disk.planned.values());
        for plan in planned {
            let Some(Ok(id)) = plan.instance.as_ref().map(Instance::try_from) else { continue };
            self.living.entry(id).or_default().1 = plan.by_rung;
        }
        for (id, last) in &mut self.last {
            last.by_rung &= self.living.get(id).is_some_and(|(_, by_rung)| *by_rung);
        }
        self.living.clear();
    }

    /// What the new life took over.
    pub fn adopted(&mut self, node: &Node) {
        self.living = node.instances().filter(|i| i.lives()).map(|i| (i.id.clone(), (i.incarnation, false))).collect();
    }

    fn raise(&mut self, id: &Instance, generation: u64) {
        let known = self.generation.entry(id.clone()).or_default();
        *known = (*known).max(generation);
    }

    /// The plan is written; `before`: what was written before was on disk by then; `at_once`: this is as well.
    pub fn plan_stored(&mut self, before: bool, at_once: bool) {
        if before {
            self.synced = self.stored.clone();
        }
        self.stored = (self.epoch.clone(), self.in_force.clone());
        if at_once {
            self.synced = self.stored.clone();
        }
    }

    /// A memory is written: what it persists never falls.
    pub fn remembered(&mut self, memory: &v1::InstanceMemory) {
        let Some(Ok(id)) = memory.instance.as_ref().map(Instance::try_from) else { return };
        let known = self.generation.get(&id).copied().unwrap_or(0);
        if memory.generation < known {
            self.complaint = Some(format!("the persisted generation of {id} falls from {known} to {}", memory.generation));
        }
        if let Some((epoch, revision)) = self.fence.get(&id)
            && *epoch == memory.bucket_epoch
            && memory.revision < *revision
        {
            self.complaint = Some(format!("the persisted revision of {id} falls from {revision} to {}", memory.revision));
        }
        self.fence.insert(id.clone(), (memory.bucket_epoch.clone(), memory.revision));
        self.raise(&id, memory.generation);
    }

    /// Something is folded; `node` has not folded it yet.
    pub fn input(&mut self, input: &Input, node: &Node, now: Duration) {
        match input {
            Input::View(change) => self.view(change, now),
            Input::Probed { instance, incarnation, role, answer, window, .. } => {
                let asked = node.instance(instance).filter(|i| i.incarnation == *incarnation && i.lives());
                let Some(inst) = asked.filter(|i| i.probes.view(*role).asked.is_some()) else { return };
                let spec = inst.spec().cloned().unwrap_or_default();
                // Signs that came by themselves answer what was not asked.
                let told = inst.probes.view(*role).sign_at >= inst.probes.view(*role).asked && inst.probes.view(*role).sign_at.is_some();
                let blocked = !self.unmet(node, instance, &spec).is_empty();
                let answer =
                    if told && *answer == Answer::Failed && super::process::is_told(&spec, *role) { Answer::Passed } else { *answer };
                self.probed(instance, *incarnation, *role, answer, window.as_ref(), (&spec, blocked));
            }
            Input::Sign { instance, incarnation, role: Role::Liveness, .. } => {
                if let Some(row) = self.rows.get_mut(instance).filter(|r| r.incarnation == *incarnation) {
                    row.answered();
                }
            }
            _ => {}
        }
    }

    fn probed(
        &mut self,
        id: &Instance,
        life: Incarnation,
        role: Role,
        answer: Answer,
        window: Option<&Window>,
        of: (&v1::ComponentSpec, bool),
    ) {
        let (spec, blocked) = of;
        let row = self.rows.entry(id.clone()).or_default();
        if row.incarnation != life {
            *row = Row { incarnation: life, ..Row::default() };
        }
        match (role, answer) {
            (_, Answer::Void) | (Role::Readiness, _) => {}
            (Role::Startup, Answer::Passed) => row.startup_failures = 0,
            (Role::Startup, _) => row.startup_failures += 1,
            (Role::Liveness, Answer::Passed) => row.answered(),
            (Role::Liveness, _) => {
                let threshold = spec.liveness.as_ref().map_or(3, |p| match &p.check {
                    Some(v1::probe::Check::Heartbeat(beat)) => beat.misses,
                    _ => p.failure_threshold,
                });
                if let Some(window) = window {
                    row.silent(window, threshold, blocked);
                }
            }
        }
    }

    fn view(&mut self, change: &ViewChange, now: Duration) {
        match change {
            ViewChange::Epoch(epoch) => {
                self.staged.clear();
                self.epoch.clone_from(epoch);
            }
            ViewChange::Record { key, revision, intent: Some(intent) } => {
                self.staged.insert(key.clone(), (*revision, Arc::new((**intent).clone())));
            }
            ViewChange::Record { intent: None, .. } => {}
            ViewChange::Settled => {
                for (key, (revision, intent)) in std::mem::take(&mut self.staged) {
                    self.put(key, revision, intent, now);
                }
            }
        }
    }

    fn put(&mut self, key: String, revision: u64, intent: Arc<v1::Intent>, now: Duration) {
        if self.in_force.get(&key).is_some_and(|old| old.epoch == self.epoch && revision <= old.revision) {
            return;
        }
        match (&intent.want, desired_key(&key)) {
            (Some(Want::Desired(desired)), Some(id)) => {
                let here = desired.node == self.node;
                let known = self.generation.get(&id).copied().unwrap_or(0);
                if here || known > 0 {
                    let fenced = self.fence.get(&id).is_some_and(|(epoch, r)| *epoch == self.epoch && revision < *r);
                    let foreign = here && desired.node_epoch != self.node_epoch;
                    let unknown = desired.mode() == RunMode::Unspecified || desired.spec.is_none();
                    if fenced || foreign || unknown || desired.generation < known {
                        return;
                    }
                    self.raise(&id, desired.generation);
                }
            }
            (Some(Want::Quarantine(_)), None) if key.starts_with("quarantine.") => {}
            (Some(Want::Recovery(_)), None) if key.starts_with("recovery.") => {}
            (Some(Want::Mark(_) | Want::Load(_) | Want::Vram(_)), None) => {}
            _ => return,
        }
        self.forgive_released(&key, &intent);
        self.in_force.insert(key, Record { epoch: self.epoch.clone(), revision, received: now, intent });
    }

    /// A release leaves what was spent before the isolation behind, also where that was never in force here.
    fn forgive_released(&mut self, key: &str, intent: &v1::Intent) {
        let released = |i: &v1::Intent| matches!(&i.want, Some(Want::Quarantine(q)) if q.phase() == Phase::Released);
        if !released(intent) || self.in_force.get(key).is_some_and(|old| released(&old.intent)) {
            return;
        }
        let is = |id: &&Instance| key == format!("quarantine.{}", id.component) || key == format!("quarantine.{}", id.key());
        let concerned: Vec<Instance> = self.last.keys().filter(is).cloned().collect();
        concerned.iter().for_each(|id| self.forgive(id));
    }

    /// What is desired of an instance, of those records that count here.
    #[must_use]
    pub fn desired(&self, id: &Instance) -> Option<&v1::Desired> {
        match &self.in_force.get(&format!("desired.{}", id.key()))?.intent.want {
            Some(Want::Desired(desired)) => Some(desired),
            _ => None,
        }
    }

    /// Whether a quarantine keeps it stopped.
    #[must_use]
    pub fn isolated(&self, id: &Instance) -> bool {
        [format!("quarantine.{}", id.component), format!("quarantine.{}", id.key())].iter().any(|key| {
            matches!(self.in_force.get(key).map(|r| &r.intent.want), Some(Some(Want::Quarantine(q))) if matches!(q.phase(), Phase::Isolated | Phase::Unspecified))
        })
    }

    /// The ladder's order about it.
    #[must_use]
    pub fn order(&self, id: &Instance) -> Option<(&v1::RecoveryOrder, Duration)> {
        let record = self.in_force.get(&format!("recovery.{}", id.key()))?;
        match &record.intent.want {
            Some(Want::Recovery(order)) => Some((order, record.received)),
            _ => None,
        }
    }

    /// Whether an order asks for the newest life of it to be replaced.
    #[must_use]
    pub fn replaces(&self, id: &Instance) -> bool {
        let newest = self.last.get(id).map(|l| l.incarnation).unwrap_or_default();
        self.order(id).is_some_and(|(order, _)| !order.ended && order.replaces.as_ref().map(Incarnation::from) == Some(newest))
    }

    /// Dependencies whose condition does not hold by the states that the node shows.
    #[must_use]
    pub fn unmet(&self, node: &Node, id: &Instance, spec: &v1::ComponentSpec) -> Vec<Instance> {
        self.unmet_by(spec, id, &|other| node.instance(other).map(|i| vec![i.state]).unwrap_or_default(), node)
    }

    /// As [`Self::unmet`], with states given.
    pub fn unmet_by(
        &self,
        spec: &v1::ComponentSpec,
        id: &Instance,
        states: &dyn Fn(&Instance) -> Vec<State>,
        node: &Node,
    ) -> Vec<Instance> {
        let mut unmet = Vec::new();
        for dependency in spec.depends_on.iter().filter(|d| d.component != id.component) {
            let replicas: Vec<&Instance> = node.instances().map(|i| &i.id).filter(|i| i.component == dependency.component).collect();
            let mut any = false;
            for other in replicas {
                if !self.desired(other).is_some_and(|d| d.node == self.node && d.mode() != RunMode::Stop) {
                    continue;
                }
                any = true;
                let well = states(other).into_iter().any(|state| {
                    holds(dependency.condition(), state)
                        || (!dependency.required && matches!(state, State::Failed | State::Quarantined | State::Stopped))
                });
                if !well {
                    unmet.push(other.clone());
                }
            }
            if !any && dependency.required {
                unmet.push(Instance::new(dependency.component.clone(), 0));
            }
        }
        unmet
    }

    /// A start is made.
    pub fn spawned(&mut self, spawn: &Spawn) {
        let seen = |d: &v1::DependencySeen| Some((Instance::try_from(d.instance.as_ref()?).ok()?, d.incarnation.as_ref()?.into()));
        let last = Last {
            incarnation: spawn.incarnation,
            dependencies: spawn.dependencies.iter().filter_map(seen).collect(),
            by_rung: spawn.by_rung,
            spec: spawn.spec.clone(),
        };
        self.used.insert(spawn.instance.clone(), spawn.incarnation);
        self.last.insert(spawn.instance.clone(), last);
        self.signalled.remove(&spawn.instance);
        self.living.remove(&spawn.instance);
    }

    /// A local restart is made; why it must not be.
    pub fn restarts_locally(&mut self, id: &Instance, now: Duration) -> Option<String> {
        let last = self.last.get(id)?;
        if last.by_rung && self.order(id).is_none_or(|(order, _)| !order.ended) {
            return Some(format!("{id} was started by a rung and is restarted locally"));
        }
        let spec = self.desired(id).and_then(|d| d.spec.as_ref()).and_then(|s| s.restart).unwrap_or_default();
        let (max, within) = (spec.budget_max, time::duration_or(spec.budget_within.as_ref(), Duration::from_secs(90)));
        self.deciding.insert(id.clone());
        let spent = self.restarts.entry(id.clone()).or_default();
        // The node counts by its own clock, which was restored through the wall clock.
        while spent.front().is_some_and(|at| *at + within <= now + Duration::from_secs(1)) {
            spent.pop_front();
        }
        let count = spent.len() + 1;
        let over = count > usize::try_from(max).unwrap_or(usize::MAX) && now >= self.blurred_until;
        over.then(|| format!("{id} is restarted {count} times in {within:?}, of {max} allowed"))
    }

    /// A start that was decided is carried out: only now does a local restart count. An agent that dies in between decides once more.
    pub fn carried_out(&mut self, id: &Instance, now: Duration) {
        if self.deciding.remove(id) {
            self.restarts.entry(id.clone()).or_default().push_back(now);
        }
    }

    /// The budget is whole again, and no rung is behind its start.
    pub fn forgive(&mut self, id: &Instance) {
        self.restarts.remove(id);
        self.deciding.remove(id);
        if let Some(last) = self.last.get_mut(id) {
            last.by_rung = false;
        }
    }

    /// A polite signal is sent to `life`; why it must not be.
    pub fn signals(&mut self, id: &Instance, life: Incarnation, now: Duration) -> Option<String> {
        self.signalled.insert(id.clone(), (life, now));
        let Some(last) = self.last.get(id) else { return Some(format!("{id} was never started")) };
        if last.incarnation != life {
            return Some(format!("{id}@{life} is not the newest: {}", last.incarnation));
        }
        let replaced = self.replaces(id) && self.order(id).is_some_and(|(order, _)| self.is_not_refuted(id, order));
        let reason = replaced || self.asked_to_end(id, life);
        (!reason).then(|| format!("{id}@{life} is signalled, and nothing asks for it"))
    }

    /// Whether something asks for the end of this life, the ladder left out.
    #[must_use]
    pub fn asked_to_end(&self, id: &Instance, life: Incarnation) -> bool {
        let Some(last) = self.last.get(id) else { return false };
        let desired = self.desired(id);
        let elsewhere = desired.is_some_and(|d| d.node != self.node);
        let stop = desired.is_some_and(|d| d.mode() == RunMode::Stop);
        let newer = desired.is_some_and(|d| d.generation > life.generation);
        let wants_restart = |name: &str| last.spec.depends_on.iter().any(|d| d.restart && d.component == name);
        let other = last.dependencies.iter().any(|(dependency, then)| {
            wants_restart(&dependency.component) && self.last.get(dependency).is_some_and(|now| now.incarnation != *then)
        });
        // A replica that did not exist then is another incarnation as well.
        elsewhere || stop || newer || other || self.isolated(id)
    }

    fn is_not_refuted(&self, id: &Instance, order: &v1::RecoveryOrder) -> bool {
        let Some(evidence) = order.evidence.as_ref().filter(|e| e.missing_sign) else { return true };
        self.rows.get(id).is_none_or(|row| row.signs <= evidence.signs_of_life)
    }

    /// SIGKILL is sent to `life`; why it must not be.
    #[must_use]
    pub fn kills(&self, id: &Instance, life: Incarnation, now: Duration) -> Option<String> {
        let last = self.last.get(id)?;
        if last.incarnation != life {
            return Some(format!("{id}@{life} is not the newest: {}", last.incarnation));
        }
        let grace = time::duration_or(last.spec.stop.as_ref().and_then(|s| s.grace.as_ref()), Duration::from_secs(10));
        let slack = Duration::from_millis(1);
        if self.signalled.get(id).is_some_and(|(l, at)| *l == life && now + slack >= *at + grace) {
            return None;
        }
        let row = self.rows.get(id).filter(|r| r.incarnation == life);
        let limit = last.spec.startup.as_ref().map_or(u32::MAX, |p| p.failure_threshold);
        if row.is_some_and(|r| r.hung || r.startup_failures >= limit) {
            return None;
        }
        Some(format!("{id}@{life} is killed without evidence: {row:?}"))
    }

    /// Whether this life is hung by all that was seen of it.
    #[must_use]
    pub fn is_hung(&self, id: &Instance, life: Incarnation) -> bool {
        self.rows.get(id).is_some_and(|r| r.incarnation == life && r.hung)
    }
}

impl Row {
    fn answered(&mut self) {
        if self.counted > 0 {
            self.signs += 1;
        }
        (self.asleep, self.counted, self.run, self.hung) = (0, 0, Duration::ZERO, false);
    }

    /// A window without an answer: what it was, by the one task that a simulated process has.
    fn silent(&mut self, window: &Window, threshold: u32, blocked: bool) {
        let (Some(before), Some(after)) = (window.before.tasks.first(), window.after.tasks.first()) else { return };
        let run = Duration::from_nanos(after.run_ns - before.run_ns);
        let delay = Duration::from_nanos(after.delay_ns - before.delay_ns);
        let late = window.lasted > window.timeout.mul_f64(1.2);
        if late || window.after.traced {
            return;
        }
        if after.state == 'T' {
            self.counted += 1;
            self.hung = true;
            return;
        }
        if blocked {
            return;
        }
        let starved = after.state == 'R' && (run.is_zero() || (delay >= run && delay * 4 > window.lasted));
        self.run += run;
        if !starved {
            self.counted += 1;
            self.asleep = if after.state == 'S' && run * 100 < window.lasted { self.asleep + 1 } else { 0 };
        }
        self.hung = self.asleep >= threshold || self.counted >= threshold * 10 || self.run >= Duration::from_secs(10);
    }
}

/// Whether a condition holds of a dependency in this state.
#[must_use]
pub fn holds(condition: Condition, state: State) -> bool {
    match condition {
        Condition::Started => matches!(state, State::Starting | State::Ready | State::Unready | State::Completed),
        Condition::Ready | Condition::Unspecified => matches!(state, State::Ready | State::Completed),
        Condition::Completed => state == State::Completed,
    }
}

fn desired_key(key: &str) -> Option<Instance> {
    let (component, ordinal) = key.strip_prefix("desired.")?.split_once('.')?;
    Some(Instance::new(component, ordinal.parse().ok()?))
}
