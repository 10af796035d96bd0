//! The operator, who asks for this and that; and, in the seeds that have neither recovery nor quarantine, their records by hand, whatever
//! the rules say: so the node is tried with orders that no policy would give.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, QuarantinePhase as Phase, event::Fact, intent::Want},
};

use super::{
    bus::Queued,
    faults::Fault,
    random::Rng,
    replica::mind::Trade,
    stack::STACK,
    world::{Happening, World},
};

/// The operator, and what it remembers of its orders.
#[derive(Debug)]
pub struct Operator {
    /// Its randomness.
    pub rng: Rng,
    acts: u64,
    /// Orders of the ladder by instance.
    pub orders: BTreeMap<Instance, Order>,
    /// Quarantine records by key.
    pub quarantines: BTreeMap<String, v1::Quarantine>,
}

/// An order of the hand-written ladder.
#[derive(Debug, Clone)]
pub struct Order {
    /// As written.
    pub order: v1::RecoveryOrder,
    /// The newest incarnation that was told failed or ready, and which of the two.
    seen: (Incarnation, bool),
}

impl Operator {
    /// The operator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::of(seed, "operator"), acts: 0, orders: BTreeMap::new(), quarantines: BTreeMap::new() }
    }
}

impl World {
    /// The operator does something, and will again.
    pub(super) fn operator_acts(&mut self) {
        if self.faults.ceased {
            return;
        }
        let wait = self.operator.rng.millis(500, 25_000);
        self.later(wait, Happening::OperatorActs);
        self.operator.acts += 1;
        if self.operator.acts == 1 {
            self.apply(0, "", true);
            return;
        }
        match self.operator.rng.below(16) {
            0..=3 => {
                let revision = self.operator.rng.index(self.stacks.revisions.len());
                let profile = if self.operator.rng.per_mille(250) { "core" } else { "" };
                let approve = self.operator.rng.per_mille(700);
                self.apply(revision, profile, approve);
            }
            4 | 5 => self.verb("start"),
            6 | 7 => self.verb("stop"),
            8 | 9 => self.verb("restart"),
            10 => {
                let profile = if self.operator.rng.per_mille(500) { "core" } else { "nonesuch" };
                self.command(Trade::Orchestrator, "profile", profile, v1::Command::default());
            }
            11 if self.operator.rng.per_mille(400) => self.command(Trade::Orchestrator, "down", STACK, v1::Command::default()),
            12 | 13 if self.by_hand => self.isolates_or_releases(),
            12 | 13 => self.asks_quarantine(),
            14 => self.orders_a_replacement(),
            _ => self.writes_nonsense(),
        }
    }

    /// Asks for a revision.
    pub fn apply(&mut self, revision: usize, profile: &str, approve: bool) {
        let fresh = self.operator.rng.per_mille(200);
        let stack_revision = self.stacks.revisions[revision].clone();
        let command = v1::Command { stack_revision, profile: profile.to_owned(), approve, fresh, ..Default::default() };
        self.command(Trade::Orchestrator, "apply", STACK, command);
    }

    fn verb(&mut self, verb: &str) {
        let name = self.operator.rng.pick(&self.stacks.components).clone();
        let name = if self.operator.rng.per_mille(150) { format!("{name}.1") } else { name };
        self.command(Trade::Orchestrator, verb, &name, v1::Command::default());
    }

    /// Asks for an isolation or a release, mostly with a note.
    fn asks_quarantine(&mut self) {
        if !self.faults.on(Fault::Quarantine) {
            return;
        }
        let rng = &mut self.operator.rng;
        let (releases, noted, replica) = (rng.per_mille(600), rng.per_mille(850), rng.per_mille(100));
        let span = rng.per_mille(800).then(|| time::duration(rng.millis(500, 90_000)));
        let name = rng.pick(&self.stacks.components).clone();
        let held = |intent: &&Arc<v1::Intent>| matches!(&intent.want, Some(Want::Quarantine(q)) if q.phase() != Phase::Released);
        let isolated = self.broker.intents.entries.values().filter_map(|(_, intent)| intent.as_ref()).find(held);
        let isolated = isolated.and_then(|intent| match &intent.want {
            Some(Want::Quarantine(quarantine)) => Some(quarantine.component.clone()),
            _ => None,
        });
        let target = if releases { isolated.unwrap_or(name) } else { name };
        let target = if replica { format!("{target}.0") } else { target };
        let note = if noted { "by hand".to_owned() } else { String::new() };
        let command = v1::Command { note, r#for: span, ..Default::default() };
        self.command(Trade::Quarantine, if releases { "release" } else { "quarantine" }, &target, command);
    }

    /// Stores a command in its queue, now and then twice.
    pub fn command(&mut self, agent: Trade, verb: &str, target: &str, command: v1::Command) {
        let number = self.number();
        let id = format!("c{number}");
        self.say("operator", format_args!("{id}: {verb} {target}"));
        let copies = if self.faults.on(Fault::DoubleCommands) && self.operator.rng.per_mille(200) { 2 } else { 1 };
        for copy in 0..copies {
            let (stored_at, stored_wall) = (self.now, self.wall(self.broker.wall_skew));
            let (verb, target, command) = (verb.to_owned(), target.to_owned(), command.clone());
            let next_at = self.now + Duration::from_millis(700 * copy);
            let queued = Queued {
                agent,
                id: id.clone(),
                verb,
                target,
                command,
                stored_at,
                stored_wall,
                deliveries: 0,
                token: 0,
                next_at,
                acked: false,
            };
            self.broker.commands.push(queued);
        }
        if !std::mem::replace(&mut self.broker.commands_watched, true) {
            self.later(Duration::from_millis(1), Happening::CommandsDue);
        }
    }

    /// Writes a record that is not the orchestrator's.
    fn write(&mut self, key: &str, want: Want) {
        let intent = v1::Intent { want: Some(want), ..Default::default() };
        self.write_raw(key, Some(Arc::new(intent)));
    }

    fn write_raw(&mut self, key: &str, intent: Option<Arc<v1::Intent>>) {
        if self.broker.up {
            self.say("hand", format_args!("writes {key}"));
            let _ = self.broker.intents.put(vec![(key.to_owned(), intent, None)]);
            self.feed_all();
        }
    }

    fn isolates_or_releases(&mut self) {
        if !self.faults.on(Fault::Quarantine) {
            return;
        }
        let known: Vec<String> = self.operator.quarantines.keys().cloned().collect();
        let again = !known.is_empty() && self.operator.rng.per_mille(650);
        let name = self.operator.rng.pick(&self.stacks.components).clone();
        let key = if again {
            self.operator.rng.pick(&known).clone()
        } else if self.operator.rng.per_mille(500) {
            format!("quarantine.{name}")
        } else {
            format!("quarantine.{name}.0")
        };
        let phase = if again { *self.operator.rng.pick(&[Phase::Released, Phase::Probation, Phase::Isolated]) } else { Phase::Isolated };
        let record = v1::Quarantine { component: name, phase: phase.into(), ..Default::default() };
        self.say("hand", format_args!("{key}: {phase:?}"));
        self.operator.quarantines.insert(key.clone(), record.clone());
        self.write(&key, Want::Quarantine(record));
    }

    /// What quarantine knows is written into a bucket that lost it.
    pub fn rewrite_quarantines(&mut self) {
        for (key, record) in self.operator.quarantines.clone() {
            if !self.broker.intents.entries.contains_key(&key) {
                self.write(&key, Want::Quarantine(record));
            }
        }
    }

    /// An order out of the blue, for a life that may be long gone, sometimes on a missing sign of life.
    fn orders_a_replacement(&mut self) {
        if !self.faults.on(Fault::Recovery) || !self.by_hand {
            return;
        }
        let id = Instance::new(self.operator.rng.pick(&self.stacks.components).clone(), 0);
        let lives: Vec<Incarnation> = self.hosts.iter().flat_map(|h| h.procs_of(&id)).map(|p| p.incarnation).collect();
        let Some(life) = lives.first().copied() else { return };
        let replaces =
            if self.operator.rng.per_mille(300) { Incarnation::new(life.generation, life.start.saturating_sub(1)) } else { life };
        let missing = self.operator.rng.per_mille(300);
        self.order(&id, replaces, missing.then(|| v1::OrderEvidence { missing_sign: true, ..Default::default() }));
    }

    fn order(&mut self, id: &Instance, replaces: Incarnation, evidence: Option<v1::OrderEvidence>) {
        let attempt = self.operator.orders.get(id).map_or(0, |o| o.order.attempt) + 1;
        let rng = &mut self.operator.rng;
        let incident = Incident { instance: id.clone(), incarnation: replaces, signs_of_life: 0 };
        let order = v1::RecoveryOrder {
            instance: Some(id.into()),
            incident: Some((&incident).into()),
            rung: "restart".to_owned(),
            attempt,
            replaces: Some(replaces.into()),
            evidence,
            backoff: rng.per_mille(500).then(|| time::duration(rng.millis(0, 3_000))),
            clear_state: rng.per_mille(300),
            hold_dependents: rng.per_mille(500).then(|| time::duration(rng.millis(500, 20_000))),
            ended: false,
            chakra_hook: false,
        };
        self.say("hand", format_args!("order {attempt}: replace {id}@{replaces}"));
        self.operator.orders.insert(id.clone(), Order { order: order.clone(), seen: (Incarnation::default(), false) });
        self.write(&format!("recovery.{}", id.key()), Want::Recovery(order));
    }

    fn writes_nonsense(&mut self) {
        if !self.faults.on(Fault::Poison) {
            return;
        }
        let name = self.operator.rng.pick(&self.stacks.components).clone();
        match self.operator.rng.below(4) {
            0 => self.write_raw("nonsense", None),
            1 => self.write_raw(&format!("recovery.{name}.0"), None),
            2 => self.write_raw(&format!("load.{name}"), Some(Arc::new(v1::Intent::default()))),
            _ => self.write("future.thing", Want::Mark(v1::EpochMark::default())),
        }
    }

    /// The ladder hears of an instance.
    pub(super) fn ladder_sees(&mut self, event: &v1::Event) {
        if !self.faults.on(Fault::Recovery) || !self.by_hand {
            return;
        }
        let Some(Ok(id)) = event.instance.as_ref().map(Instance::try_from) else { return };
        let life = event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let failed = matches!(event.fact, Some(Fact::ComponentFailed(_)));
        let fresh = || Order { order: v1::RecoveryOrder { ended: true, ..Default::default() }, seen: (Incarnation::default(), false) };
        let known = self.operator.orders.entry(id.clone()).or_insert_with(fresh);
        let ready = matches!(event.fact, Some(Fact::ComponentReady(_)));
        if (failed || ready) && life >= known.seen.0 {
            known.seen = (life, ready);
            let wait = self.operator.rng.millis(20, 6_000);
            self.later(wait, Happening::LadderActs(id));
        }
    }

    /// The ladder tries a rung, or ends its order when a later incarnation was ready for a while.
    pub(super) fn ladder_acts(&mut self, id: &Instance) {
        let Some(known) = self.operator.orders.get(id).cloned() else { return };
        let (life, ready) = known.seen;
        let replaced = known.order.replaces.as_ref().map(Incarnation::from).unwrap_or_default();
        if ready && !known.order.ended && life > replaced {
            self.end_order(id);
        } else if !ready && !self.faults.ceased && life >= replaced && self.operator.rng.per_mille(700) {
            self.order(id, life, None);
        }
    }

    /// Says that an incident is over.
    pub fn end_order(&mut self, id: &Instance) {
        let Some(known) = self.operator.orders.get_mut(id).filter(|o| !o.order.ended) else { return };
        known.order.ended = true;
        let order = known.order.clone();
        self.say("hand", format_args!("ends order {} of {id}", order.attempt));
        self.write(&format!("recovery.{}", id.key()), Want::Recovery(order));
    }
}
