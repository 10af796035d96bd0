//! After the faults: everything is mended, and within a bound what is desired is what is, or somebody says why not (I12).

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::{
    ids::Instance,
    v1::{self, InstanceState as State, RunMode, event::Fact, intent::Want},
};
use razar_orchestrator::policy::MissionsValue;

use super::{
    bus::Client,
    faults::Fault,
    host::Step,
    process::Hang,
    replica::mind::Trade,
    world::{Happening, World},
};

/// Time within which everything settles: the longest backoff, ten busy windows of the longest period for each of three thresholds, the
/// longest mission, and a command's redeliveries.
pub const BOUND: Duration = Duration::from_secs(900);
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);

impl World {
    /// Faults cease, and the world is given its time to settle.
    pub fn settle(&mut self, steps_max: u64) {
        self.say("world", format_args!("faults cease"));
        self.faults.ceased = true;
        self.mend();
        let revision = self.operator.rng.index(self.stacks.revisions.len());
        if self.operator.rng.per_mille(100) {
            self.command(Trade::Orchestrator, "down", "_", v1::Command::default());
        } else if self.by_hand || !self.in_force() || self.operator.rng.per_mille(500) {
            self.apply(revision, "", true);
        }
        // Else nobody asks for anything, and what has failed has only the mesh to help it.
        self.wait_for(steps_max, Self::unsettled);
        if self.checks.violation.is_some() {
            return;
        }
        // What has failed comes back when an operator asks for it.
        let failed = self.curable_failed();
        if !failed.is_empty() && self.in_force() {
            for id in &failed {
                self.command(Trade::Orchestrator, "restart", &id.key(), v1::Command::default());
            }
            self.wait_for(steps_max, |world| {
                world.unsettled().or_else(|| world.curable_failed().first().map(|id| format!("{id} is still failed")))
            });
        }
        self.check_tries();
        self.check_projections();
        self.check_late_copies();
        self.check_agreement();
    }

    fn mend(&mut self) {
        self.all_listen();
        self.broker.up = true;
        self.broker.wall_skew = 0;
        self.replicas.iter_mut().zip(0_u8..).for_each(|(replica, index)| replica.wall_skew = super::replica::skew_at_start(index.into()));
        let clients: Vec<Client> = self.broker.links.keys().copied().collect();
        for client in clients {
            self.broker.links.entry(client).or_default().cut = false;
            self.reconnect_soon(client);
        }
        for h in 0..self.hosts.len() {
            self.hosts[h].dies_after = None;
            self.hosts[h].paused_until = None;
            self.hosts[h].muted_until = None;
            self.later(Duration::from_secs(1), Happening::AgentStarts(h));
            let pids: Vec<u32> = self.hosts[h].procs.keys().copied().collect();
            for pid in pids {
                let Some(proc) = self.hosts[h].procs.get_mut(&pid) else { continue };
                if matches!(proc.hang, Some(Hang::Starved | Hang::Traced)) {
                    self.later(Duration::from_millis(10), Happening::ProcStep(h, pid, Step::Recovers));
                }
            }
        }
        for r in 0..self.replicas.len() {
            let pauses = self.replicas[r].paused_until.is_some_and(|until| until > self.now);
            self.replicas[r].paused_until = pauses.then_some(self.now);
            self.later(Duration::from_secs(1), Happening::ReplicaStarts(r));
        }
        for r in 0..self.registries.len() {
            self.later(Duration::from_secs(1), Happening::RegistryStarts(r));
        }
        if self.by_hand {
            self.rewrite_quarantines();
            let open: Vec<Instance> = self.operator.orders.keys().cloned().collect();
            for id in open {
                self.end_order(&id);
            }
        }
    }

    fn wait_for(&mut self, steps_max: u64, unsettled: impl Fn(&Self) -> Option<String>) {
        let end = self.now + BOUND;
        let mut why = Some(String::new());
        while self.now < end && self.checks.violation.is_none() {
            let next = self.now + LOOK;
            self.run_until(next, steps_max);
            if self.steps >= steps_max {
                self.violated("I16", "the world does not come to rest".to_owned());
            }
            why = unsettled(self);
            if why.is_none() {
                return;
            }
        }
        if let Some(why) = why {
            self.violated("I12", format!("{BOUND:?} after the faults: {why}"));
        }
    }

    fn plan(&self) -> Option<&v1::Mission> {
        match self.broker.missions.entries.get("plan") {
            Some((_, MissionsValue::Plan(plan))) => Some(plan),
            _ => None,
        }
    }

    fn in_force(&self) -> bool {
        self.plan().is_some_and(|p| !p.stack_revision.is_empty())
    }

    /// The records of what is desired.
    pub(super) fn desired_records(&self) -> impl Iterator<Item = (Instance, &v1::Desired)> {
        self.broker.intents.entries.values().filter_map(|(_, intent)| match &intent.as_ref()?.want {
            Some(Want::Desired(desired)) => Some((Instance::try_from(desired.instance.as_ref()?).ok()?, desired)),
            _ => None,
        })
    }

    fn host_of(&self, desired: &v1::Desired) -> Option<usize> {
        self.hosts.iter().position(|h| h.name == desired.node)
    }

    fn state(&self, h: usize, id: &Instance) -> State {
        let inst = self.hosts[h].agent.as_ref().and_then(|a| a.node.instance(id));
        inst.map_or(State::Unspecified, |i| i.state)
    }

    /// Failed instances that would live if they were started anew.
    fn curable_failed(&self) -> Vec<Instance> {
        let run = self.desired_records().filter(|(_, d)| d.mode() == RunMode::Run);
        let curable = |h: usize, id: &Instance| self.state(h, id) == State::Failed && !self.ailments.is_past_help(h, id);
        run.filter(|(id, d)| self.host_of(d).is_some_and(|h| curable(h, id))).map(|(id, _)| id).collect()
    }

    /// Why somebody who failed is left alone, if nobody has a reason to: where there is a ladder, only the stack file is one.
    fn left_alone(&self, id: &Instance) -> Option<String> {
        if self.by_hand {
            return None;
        }
        let cause = self.checks.healing.causes.get(id);
        (!cause.is_some_and(|c| c.starts_with("policy_"))).then(|| format!("{id} is failed, by {cause:?}, and nobody is on it"))
    }

    /// What is not yet as it is desired, if anything.
    fn unsettled(&self) -> Option<String> {
        let waiting = self.broker.commands.iter().rev().take(1).find(|c| !c.acked);
        if let Some(command) = waiting {
            return Some(format!("command {} {} is not answered", command.id, command.verb));
        }
        let plan = self.plan()?;
        if !plan.ended {
            return Some(format!("mission {} has no end", plan.mission_id));
        }
        if let Some(why) = self.plan_and_records_differ(plan) {
            return Some(why);
        }
        for (h, host) in self.hosts.iter().enumerate() {
            if host.agent.is_none() || !host.journal.disk.outbox.is_empty() {
                return Some(format!("node {} has {} events to tell", host.name, host.journal.disk.outbox.len()));
            }
            for proc in host.procs.values() {
                let wanted = self.desired_records().any(|(id, d)| {
                    // What runs goes on while a dependency of its newer generation is away.
                    let older = proc.incarnation.generation < d.generation && self.is_blocked(h, &id, d);
                    let this = proc.incarnation.generation == d.generation || older;
                    id == proc.instance && d.mode() == RunMode::Run && d.node == host.name && this
                });
                if !wanted {
                    return Some(format!("{}@{} lives on {} and nobody wants it", proc.instance, proc.incarnation, host.name));
                }
            }
        }
        if let Some(why) = self.healing_goes_on().or_else(|| self.verdicts_differ()) {
            return Some(why);
        }
        let all: Vec<_> = self.desired_records().filter(|(_, d)| d.mode() == RunMode::Run).map(|(id, d)| (id, d.clone())).collect();
        all.iter().find_map(|(id, desired)| self.not_as_desired(id, desired, &mut BTreeSet::new()))
    }

    fn is_blocked(&self, h: usize, id: &Instance, desired: &v1::Desired) -> bool {
        let (host, spec) = (&self.hosts[h], desired.spec.clone().unwrap_or_default());
        host.agent.as_ref().is_some_and(|agent| !host.oracle.unmet(&agent.node, id, &spec).is_empty())
    }

    fn plan_and_records_differ(&self, plan: &v1::Mission) -> Option<String> {
        let key = (plan.stack_revision.clone(), plan.profile.clone());
        let blueprint = self.stacks.blueprints.get(&key);
        let wanted: BTreeSet<Instance> = blueprint.map(|b| b.instances().into_iter().map(|(i, _)| i).collect()).unwrap_or_default();
        let by_hand = |id: &Instance| plan.stopped_by_hand.iter().any(|name| *name == id.component || *name == id.key());
        for (id, desired) in self.desired_records() {
            let runs = wanted.contains(&id) && !by_hand(&id);
            if runs != (desired.mode() == RunMode::Run) {
                return Some(format!("{id} is desired {:?}, by the plan it runs: {runs}", desired.mode()));
            }
            let hash = blueprint.and_then(|b| b.parts.get(&id.component)).map(|p| &p.spec_hash);
            if runs && hash != Some(&desired.spec_hash) {
                return Some(format!("{id} is desired with another specification"));
            }
        }
        let missing = wanted.iter().find(|id| !self.desired_records().any(|(other, _)| other == **id));
        let orchestrators = || self.replicas.iter().filter_map(|r| r.mind.orchestrator());
        missing.map(|id| format!("{id} has no record; {:?}", orchestrators().map(|o| o.waits_for()).collect::<Vec<_>>()))
    }

    /// Why an instance is not running as it should, with nothing to excuse it.
    fn not_as_desired(&self, id: &Instance, desired: &v1::Desired, seen: &mut BTreeSet<Instance>) -> Option<String> {
        let Some(h) = self.host_of(desired) else { return Some(format!("{id} is desired on {}", desired.node)) };
        let host = &self.hosts[h];
        if desired.node_epoch != host.journal.disk.epoch {
            return Some(format!("{id} is desired for the journal {}, there is {}", desired.node_epoch, host.journal.disk.epoch));
        }
        let agent = host.agent.as_ref()?;
        let Some(inst) = agent.node.instance(id) else { return Some(format!("node {} does not know {id}", host.name)) };
        match inst.state {
            State::Ready => {
                let procs: Vec<_> = host.procs_of(id).collect();
                let older = procs.len() == 1 && procs[0].incarnation.generation < desired.generation && self.is_blocked(h, id, desired);
                let well = procs.len() == 1 && (procs[0].incarnation.generation == desired.generation || older);
                if !well {
                    return Some(format!(
                        "{id} is said to be ready; it lives as {:?}",
                        procs.iter().map(|p| p.incarnation).collect::<Vec<_>>()
                    ));
                }
                let blocked = !host.oracle.unmet(&agent.node, id, &procs[0].spec).is_empty();
                let unwell = procs[0].hang.is_some() && !blocked && procs[0].spec.liveness.is_some();
                unwell.then(|| format!("{id} is said to be ready and does not answer"))
            }
            State::Completed => (!desired.spec.as_ref().is_some_and(|s| s.one_shot)).then(|| format!("{id} is no one-shot and completed")),
            State::Failed => self.left_alone(id),
            State::Quarantined if !host.oracle.isolated(id) => Some(format!("{id} is quarantined and nobody asks for it")),
            State::Quarantined => {
                let long = self.by_hand || self.figures.quarantine.isolation > BOUND / 2;
                let any = |of: &dyn Fn(&Instance) -> bool| self.desired_records().any(|(other, _)| of(&other));
                let whole = host.oracle.in_force.contains_key(&format!("quarantine.{}", id.component));
                let excused =
                    long || any(&|other| (other == id || whole && other.component == id.component) && self.ailments.is_past_help(h, other));
                (!excused).then(|| format!("{id} is quarantined and would be well"))
            }
            State::Waiting => {
                if !seen.insert(id.clone()) {
                    return None;
                }
                let spec = desired.spec.clone().unwrap_or_default();
                let unmet = host.oracle.unmet(&agent.node, id, &spec);
                if unmet.is_empty() {
                    return Some(format!("{id} waits for nothing: {}", inst.reason));
                }
                unmet.iter().find_map(|other| {
                    let of = self.desired_records().find(|(d, _)| d == other).map(|(_, d)| d.clone());
                    match of {
                        Some(d) if d.mode() == RunMode::Run => self.blocks_without_cause(h, other, &d, seen),
                        _ => None,
                    }
                })
            }
            // Who lacks a dependency is not taken for hung, however long it is silent.
            State::Starting | State::Unready if self.is_blocked(h, id, desired) => None,
            state => Some(format!("{id} is {state:?}: {}", inst.reason)),
        }
    }

    fn blocks_without_cause(&self, h: usize, id: &Instance, desired: &v1::Desired, seen: &mut BTreeSet<Instance>) -> Option<String> {
        match self.state(h, id) {
            State::Ready | State::Completed => Some(format!("{id} blocks others although it is well")),
            _ => self.not_as_desired(id, desired, seen),
        }
    }

    /// What the registries say is what the nodes do, also in EVENTS that are new.
    fn check_agreement(&mut self) {
        if self.checks.violation.is_some() {
            return;
        }
        let registry = &self.registries[0].projection.observed();
        let mut wrong = None;
        for (id, desired) in self.desired_records().filter(|(_, d)| d.mode() == RunMode::Run) {
            let Some(h) = self.host_of(desired) else { continue };
            let Some(inst) = self.hosts[h].agent.as_ref().and_then(|a| a.node.instance(&id)) else { continue };
            let of = |c: &&v1::ObservedComponent| c.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) == Some(id.clone());
            let Some(said) = registry.components.iter().find(of) else {
                wrong = Some(format!("the registry does not know {id}"));
                break;
            };
            let life = said.incarnation.as_ref().map(razar_bus_schema::ids::Incarnation::from).unwrap_or_default();
            if matches!(inst.state, State::Ready | State::Failed | State::Completed)
                && (said.state() != inst.state || life != inst.incarnation)
            {
                wrong = Some(format!("{id}@{} is {:?}; the registry says {life} is {:?}", inst.incarnation, inst.state, said.state()));
                break;
            }
        }
        if let Some(wrong) = wrong {
            self.violated("agreement", wrong);
            return;
        }
        // Who lost its journal, or what was told of a start, cannot tell its outcome.
        if !self.faults.had(Fault::EventsLost) && !self.faults.had(Fault::DiskLost) {
            self.check_outcomes();
        }
    }

    /// Every start that was told has an outcome that was told (I13).
    fn check_outcomes(&mut self) {
        let mut open: BTreeSet<(Instance, (u64, u64))> = BTreeSet::new();
        let mut wrong = None;
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for stored in &self.broker.events.stored {
            let event = &stored.event;
            if !known.insert(&event.id) {
                continue;
            }
            let Some(Ok(id)) = event.instance.as_ref().map(Instance::try_from) else { continue };
            let Some(life) = event.incarnation.as_ref().map(|i| (i.generation, i.start)) else { continue };
            match &event.fact {
                Some(Fact::ComponentStarted(_)) => {
                    open.insert((id, life));
                }
                Some(Fact::ComponentExited(_) | Fact::ComponentStopped(_)) => {
                    open.remove(&(id, life));
                }
                Some(Fact::ComponentReady(ready)) if ready.completed => {
                    open.remove(&(id, life));
                }
                _ => {}
            }
        }
        for (id, life) in open {
            let lives = self.hosts.iter().flat_map(|h| h.procs_of(&id)).any(|p| (p.incarnation.generation, p.incarnation.start) == life);
            if !lives && !self.faults.had(Fault::PowerCut) {
                wrong = Some(format!("{id}@{}.{} was started, and nobody tells what became of it", life.0, life.1));
            }
        }
        if let Some(wrong) = wrong {
            self.violated("I13", wrong);
        }
    }
}
