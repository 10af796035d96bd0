//! What must never happen, asked after every step: the invariants of the reliability contract, with the oracle's help.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, InstanceState as State, RunMode, event::Fact, intent::Want},
};
use razar_node::policy::{Action, Spawn};
use razar_orchestrator::policy::PENDING_MAX;
use razar_registry::projection::Projection;

use super::{
    bus::{Client, Stored},
    healing::{Healing, instance},
    random::Rng,
    verdicts::Watching,
    world::World,
};

/// Something that must never have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Invariant.
    pub invariant: String,
    /// What happened.
    pub text: String,
}

/// What is remembered for the invariants over the whole mesh.
#[derive(Debug, Default)]
pub struct Checks {
    /// The first violation.
    pub violation: Option<Violation>,
    /// Words told of each command: first words, last words, in this epoch of EVENTS.
    words: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>,
    /// Commands that took effect on an instance's record, in this epoch of the bucket.
    settled: BTreeSet<(String, String)>,
    /// Commands that took effect in the plan.
    pub settled_in_plan: BTreeSet<String>,
    /// Receipts by command.
    pub receipts: BTreeMap<String, Vec<v1::Receipt>>,
    events_epoch: u64,
    /// Starts made in all.
    pub starts: u64,
    /// Kills for silence.
    pub kills: u64,
    /// What recovery and quarantine have done.
    pub healing: Healing,
    /// What the watchdog has heard and told.
    pub watching: Watching,
}

impl Checks {
    /// The bucket of intents was made anew.
    pub fn intents_recreated(&mut self) {
        self.settled.clear();
    }
}

impl World {
    /// Notes the first violation.
    pub fn violated(&mut self, invariant: &str, text: String) {
        if self.checks.violation.is_none() {
            self.say("CHECK", format_args!("{invariant}: {text}"));
            self.checks.violation = Some(Violation { invariant: invariant.to_owned(), text });
        }
    }

    /// After every step: queues are bounded.
    pub(super) fn check_step(&mut self) {
        let over = self.replicas.iter().any(|r| r.mind.orchestrator().is_some_and(|o| o.waiting_commands() > PENDING_MAX));
        if over {
            self.violated("I16", "more commands wait than the bound allows".to_owned());
        }
    }

    /// What a node is about to do, against the states that it was in.
    pub(super) fn check_decision(&mut self, h: usize, before: &[State], actions: &[Action]) {
        let now = self.now;
        let host = &mut self.hosts[h];
        let Some(agent) = &host.agent else { return };
        let (node, oracle) = (&agent.node, &mut host.oracle);
        let mut wrong: Option<(&str, String)> = None;
        for (inst, was) in node.instances().zip(before.iter().copied()) {
            let spawned = actions.iter().any(|a| matches!(a, Action::Spawn(s) if s.instance == inst.id));
            let newer =
                oracle.desired(&inst.id).map_or(0, |d| d.generation) > oracle.last.get(&inst.id).map_or(0, |l| l.incarnation.generation);
            let replaced = oracle.replaces(&inst.id);
            let spec = oracle.desired(&inst.id).and_then(|d| d.spec.clone()).unwrap_or_default();
            let earlier = |id: &Instance| node.instances().zip(before).filter(|(i, _)| i.id == *id).map(|(_, s)| *s).collect::<Vec<_>>();
            let unmet_before = !oracle.unmet_by(&spec, &inst.id, &earlier, node).is_empty();
            let unmet = !oracle.unmet(node, &inst.id, &spec).is_empty() || unmet_before;
            // What was lost and is there again, all in one decision, gave the budget back as well.
            let lost = (!inst.lives() && unmet) || (spawned && unmet_before);
            if spawned && matches!(was, State::Exited | State::Backoff) && !newer && !replaced && !lost {
                wrong = wrong.or(oracle.restarts_locally(&inst.id, now).map(|why| ("I7", why)));
            }
            if was == State::Failed && (spawned || inst.state == State::Waiting) && !newer && !replaced && !lost {
                let text = format!("{} leaves failed for {:?} without a cause", inst.id, inst.state);
                wrong = wrong.or(Some(("failed", text)));
            }
            // What was stopped on purpose and begins again, all in one decision, owes nothing either.
            let stopped = |e: &v1::Event| matches!(e.fact, Some(Fact::ComponentStopped(_))) && instance(e).as_ref() == Some(&inst.id);
            let stopped = actions.iter().any(|a| matches!(a, Action::Tell(e) if stopped(e)));
            let put_down = stopped || matches!(inst.state, State::Stopped | State::Quarantined);
            if lost || put_down || (newer && (spawned || !inst.lives())) {
                oracle.forgive(&inst.id);
            }
        }
        if let Some((invariant, text)) = wrong {
            self.violated(invariant, text);
        }
    }

    /// A start.
    pub(super) fn check_spawn(&mut self, h: usize, spawn: &Spawn) {
        self.checks.starts += 1;
        let wrong = self.spawn_fault(h, spawn);
        if let Some((invariant, text)) = wrong {
            self.violated(invariant, format!("start of {}@{}: {text}", spawn.instance, spawn.incarnation));
        }
    }

    fn spawn_fault(&self, h: usize, spawn: &Spawn) -> Option<(&'static str, String)> {
        let (host, id, life) = (&self.hosts[h], &spawn.instance, spawn.incarnation);
        let oracle = &host.oracle;
        let Some(desired) = oracle.desired(id) else { return Some(("I13", "no record asks for it".to_owned())) };
        if desired.node != host.name || desired.node_epoch != host.journal.disk.epoch {
            return Some(("epoch", format!("its record names {} {}", desired.node, desired.node_epoch)));
        }
        if desired.generation != life.generation {
            return Some(("I4", format!("its record is of generation {}", desired.generation)));
        }
        if desired.mode() != RunMode::Run {
            return Some(("I13", format!("its record says {:?}", desired.mode())));
        }
        if oracle.isolated(id) {
            return Some(("quarantine", "it is quarantined".to_owned()));
        }
        if let Some(other) = host.procs_of(id).next() {
            return Some(("I3", format!("{} lives", other.incarnation)));
        }
        let twin = self.hosts.iter().flat_map(|o| o.procs_of(id)).find(|p| p.incarnation.generation == life.generation);
        if let Some(twin) = twin {
            return Some(("I3", format!("{} of the same generation lives elsewhere", twin.incarnation)));
        }
        if let Some(used) = oracle.used.get(id).filter(|used| **used >= life) {
            return Some(("identity", format!("{used} was used before")));
        }
        let node = &host.agent.as_ref()?.node;
        // What the same decision puts down may still have held when this start was decided on.
        let earlier = |id: &Instance| host.before.get(id).copied().into_iter().collect();
        let unmet = oracle.unmet(node, id, &spawn.spec);
        if !unmet.is_empty() && !oracle.unmet_by(&spawn.spec, id, &earlier, node).is_empty() {
            let states: Vec<_> = unmet.iter().map(|id| node.instance(id).map(|i| (i.state, i.reason.clone()))).collect();
            return Some(("gate", format!("conditions of {unmet:?} do not hold: {states:?}")));
        }
        for dependency in &spawn.spec.depends_on {
            let holding = node.instances().filter(|i| i.id.component == dependency.component).find_map(|i| {
                let (order, received) = oracle.order(&i.id)?;
                let hold = order.hold_dependents.as_ref().map(razar_bus_schema::time::std_duration)?;
                (!order.ended && received + hold > self.now + Duration::from_millis(1)).then(|| i.id.clone())
            });
            if let Some(holding) = holding {
                return Some(("hold", format!("held while {holding} recovers")));
            }
        }
        let memory = host.journal.disk.memories.get(id);
        let done = memory
            .is_some_and(|m| m.completed_spec_hash == desired.spec_hash && !(desired.fresh && m.completed_generation < desired.generation));
        (spawn.spec.one_shot && done).then(|| ("one-shot", "it ran already with this specification".to_owned()))
    }

    /// The polite signal.
    pub(super) fn check_signal(&mut self, h: usize, id: &Instance, life: Incarnation) {
        let now = self.now;
        let silent = self.checks.watching.told.is_unresponsive(id, life) || self.faults.had(super::faults::Fault::EventsLost);
        if !self.by_hand && !self.hosts[h].oracle.asked_to_end(id, life) && !self.flaps_too_much(id) && !silent {
            self.violated("rung", format!("{id}@{life} lives, and the ladder replaces it"));
        }
        if let Some(why) = self.hosts[h].oracle.signals(id, life, now) {
            let mono = self.clocks(h).mono;
            let node = self.hosts[h].agent.as_ref().map(|a| &a.node);
            let inst =
                node.and_then(|n| n.instance(id)).map(|i| (i.reason.clone(), i.dependencies.clone(), node.map(|n| n.verdict(i, mono))));
            self.violated("I13", format!("{why}; the node says {inst:?}"));
        }
    }

    /// SIGKILL.
    pub(super) fn check_kill(&mut self, h: usize, id: &Instance, life: Incarnation) {
        self.checks.kills += 1;
        if let Some(why) = self.hosts[h].oracle.kills(id, life, self.now) {
            self.violated("I10", why);
        }
    }

    /// An event is stored for the first time within the window.
    pub(super) fn stored(&mut self, event: &v1::Event) {
        if self.checks.events_epoch != self.broker.events.epoch {
            self.checks.events_epoch = self.broker.events.epoch;
            self.checks.words.clear();
            self.checks.healing.events_recreated();
            self.checks.watching.events_recreated();
        }
        self.check_healing_event(event);
        self.check_verdict_event(event);
        match &event.fact {
            Some(Fact::OperatorCommand(told)) => {
                let (first, last) = self.checks.words.entry(told.command_id.clone()).or_default();
                let terminal = matches!(told.result.as_str(), "done" | "failed");
                (if terminal { &mut *last } else { &mut *first }).insert(told.result.clone());
                let contradicts = first.len() > 1 || last.len() > 1 || (first.contains("refused") && !last.is_empty());
                if contradicts {
                    let text = format!("command {} is told {first:?} and {last:?}", told.command_id);
                    self.violated("I2", text);
                }
            }
            Some(Fact::ComponentFailed(_) | Fact::ComponentReady(_) | Fact::ComponentExited(_)) => self.ladder_sees(event),
            _ => {}
        }
    }

    /// A record of what is desired is about to be overwritten, or written first.
    pub(super) fn check_desired_write(&mut self, id: &Instance, intent: &v1::Intent) {
        let generation = |i: &v1::Intent| match &i.want {
            Some(Want::Desired(d)) => d.generation,
            _ => 0,
        };
        let key = format!("desired.{}", id.key());
        let old = self.broker.intents.entries.get(&key).and_then(|(_, i)| i.clone());
        if let Some(old) = &old {
            if generation(intent) < generation(old) {
                self.violated("I4", format!("the generation of {id} falls from {} to {}", generation(old), generation(intent)));
            }
            if !old.told_by_event_id.is_empty() && !self.broker.ever_stored.contains(&old.told_by_event_id) {
                self.violated("told", format!("the record of {id} is overwritten before it was told of"));
            }
        }
        let before = old.map(|o| o.settled_command_ids.clone()).unwrap_or_default();
        for command in intent.settled_command_ids.iter().filter(|c| !before.contains(c)) {
            if !self.checks.settled.insert((id.to_string(), command.clone())) {
                self.violated("I2", format!("command {command} took effect on {id} twice"));
            }
        }
    }

    /// A receipt is on its way to its sender.
    pub(super) fn check_receipt(&mut self, receipt: &v1::Receipt) {
        let told = self
            .broker
            .events
            .stored
            .iter()
            .any(|s| matches!(&s.event.fact, Some(Fact::OperatorCommand(c)) if c.command_id == receipt.command_id));
        if !told && !self.faults.had(super::faults::Fault::EventsLost) {
            self.violated("ack", format!("command {} is answered before it is told of", receipt.command_id));
        }
        let stored = self.broker.commands.iter().find(|c| c.id == receipt.command_id).map(|c| c.stored_at);
        let young = stored.is_some_and(|at| self.now.saturating_sub(at) < super::replica::EXPIRES_SOONEST);
        if receipt.code == "expired" && young && !self.faults.had(super::faults::Fault::WallJump) {
            self.violated("I2", format!("command {} is refused as expired, too early", receipt.command_id));
        }
        let others = self.checks.receipts.entry(receipt.command_id.clone()).or_default();
        if others.iter().any(|o| o.accepted != receipt.accepted) && !self.faults.had(super::faults::Fault::EventsLost) {
            self.violated("I2", format!("command {} is accepted and refused", receipt.command_id));
            return;
        }
        others.push(receipt.clone());
    }

    /// Every registry's projection is what a fold from the beginning gives; copies of events make no difference.
    pub fn check_projections(&mut self) {
        let epoch = format!("events-{}", self.broker.events.epoch);
        let (mut whole, mut once) = (Projection::new(&epoch), Projection::new(&epoch));
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for stored in &self.broker.events.stored {
            let _ = whole.apply(stored.sequence, &stored.event);
            if seen.insert(&stored.event.id) {
                let _ = once.apply(stored.sequence, &stored.event);
            } else {
                once.dead_letter(stored.sequence);
            }
        }
        let mut once = once.observed();
        once.dead_letters = 0;
        let bytes = whole.observed().encode_to_vec();
        if bytes != once.encode_to_vec() {
            let text = format!("copies of events change the projection: {}", difference(&whole.observed(), &once));
            self.violated("I1", text);
            return;
        }
        for r in 0..self.registries.len() {
            let registry = &self.registries[r];
            let current = registry.alive && registry.projection.applied_sequence() == self.broker.events.head();
            if current && registry.projection.stream_epoch() == epoch && registry.projection.observed().encode_to_vec() != bytes {
                let text =
                    format!("registry {r} differs from a fold anew: {}", difference(&registry.projection.observed(), &whole.observed()));
                self.violated("projection", text);
                return;
            }
        }
    }
}

impl World {
    /// Faults 14 to 16: all that is stored comes to each fold again, late and in another order. Views stay as they are, and who decides
    /// has nothing else to do. Copies from a journal that its node has lost since are left out: nobody is left to send them.
    pub fn check_late_copies(&mut self) {
        let mut rng = Rng::of(self.seed, "late copies");
        let stored: Vec<_> = self.broker.events.stored.iter().map(|s| s.event.clone()).collect();
        let place = |e: &v1::Event| e.node_sequence.as_ref().map(|s| (s.node.clone(), s.epoch.clone()));
        let current: BTreeMap<String, String> = self.hosts.iter().map(|h| (h.name.clone(), h.journal.disk.epoch.clone())).collect();
        let mut late: Vec<_> =
            stored.into_iter().filter(|e| place(e).is_none_or(|(node, epoch)| current.get(&node) == Some(&epoch))).collect();
        for n in (1..late.len()).rev() {
            late.swap(n, rng.index(n + 1));
        }
        let head = self.broker.events.head();
        let numbered = || late.iter().zip(head + 1..);
        for r in 0..self.registries.len() {
            let registry = &self.registries[r];
            if !registry.alive || registry.projection.applied_sequence() != head {
                continue;
            }
            let (before, mut after) = (registry.projection.observed(), registry.projection.clone());
            for (event, sequence) in numbered() {
                let _ = after.apply(sequence, event);
            }
            let mut after = after.observed();
            (after.applied_sequence, after.unknown_events) = (before.applied_sequence, before.unknown_events);
            if after != before {
                let text = format!("late copies change the projection of registry {r}: {}", difference(&before, &after));
                return self.violated("I1", text);
            }
        }
        for r in 0..self.replicas.len() {
            if !self.replicas[r].alive || !self.broker.reaches(Client::Replica(r)) {
                continue;
            }
            let now = self.replica_clock(r);
            let (mut once, mut again) = (self.replicas[r].mind.clone(), self.replicas[r].mind.clone());
            let (at, wall) = (self.now, self.wall(self.broker.wall_skew));
            for (event, sequence) in numbered() {
                again.apply_event(&Stored { sequence, event: event.clone(), at, wall }, now);
            }
            let (due, more) = (once.decide(now), again.decide(now));
            let plan = |mind: &super::replica::mind::Mind| mind.orchestrator().map(razar_orchestrator::policy::State::plan_reply);
            if due != more || plan(&once) != plan(&again) {
                let name = self.replicas[r].trade.name();
                return self.violated("I2", format!("late copies change what {name} replica {r} decides from {due:?} to {more:?}"));
            }
        }
    }
}

fn difference(a: &v1::Observed, b: &v1::Observed) -> String {
    for (x, y) in a.components.iter().zip(&b.components) {
        if x != y {
            return format!("{x:?}\n  {y:?}");
        }
    }
    for (x, y) in a.nodes.iter().zip(&b.nodes) {
        if x != y {
            return format!("{x:?}\n  {y:?}");
        }
    }
    format!("{} {} components, {} {} unknown", a.components.len(), b.components.len(), a.unknown_events, b.unknown_events)
}
