//! What recovery and quarantine must and must not do, worked out from records and events alone: it shares no code with their policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incarnation, Incident, Instance},
    presence::{self, Presence},
    v1::{self, InstanceState as State, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want},
};

use super::{
    bus::{Client, Stored},
    faults::Fault,
    replica::mind::{Deed, Trade},
    world::World,
};

/// A try that was ordered.
#[derive(Debug, Clone)]
struct Ordered {
    /// Head of EVENTS, and its epoch, when the order was written.
    head: usize,
    events_epoch: u64,
    bucket_epoch: String,
}

/// What is remembered of orders, isolations and incidents.
#[derive(Debug, Default)]
pub struct Healing {
    /// Tries by the id of the event that is to tell what came of them.
    orders: BTreeMap<String, Ordered>,
    /// Rungs that failed, by incident.
    failed: BTreeMap<(String, String), usize>,
    /// Incidents whose isolation was lifted.
    lifted: BTreeSet<String>,
    /// Commands that took effect on a record, by bucket.
    settled: BTreeSet<(String, String, String)>,
    /// Why each instance failed last, by its node's word.
    pub causes: BTreeMap<Instance, String>,
    /// Isolations by the ladder.
    pub isolations: u64,
    /// Rungs ordered.
    pub rungs: u64,
}

impl Healing {
    /// EVENTS was made anew.
    pub fn events_recreated(&mut self) {
        self.failed.clear();
    }
}

/// An instance as the events up to some place tell it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    life: Incarnation,
    pub(super) state: State,
    blocked: bool,
    failed_at: Duration,
    by_policy: bool,
    local_recoveries: usize,
    given_up: bool,
    /// Recovery has told the end of its incident, and it has not ended since.
    healed: bool,
    /// The life that does not beat, by the watchdog's verdict.
    silent: Incarnation,
}

/// Whether an event says that something which others rely on stopped, or began anew.
fn breaks(event: &v1::Event) -> bool {
    matches!(
        event.fact,
        Some(
            Fact::ComponentExited(_)
                | Fact::ComponentUnready(_)
                | Fact::ComponentStopped(_)
                | Fact::ComponentFailed(_)
                | Fact::ComponentStarted(v1::ComponentStarted { adopted: false, .. })
        )
    )
}

/// The end that an event gives its incident.
fn end_of(event: &v1::Event) -> Option<&'static str> {
    match &event.fact {
        Some(Fact::Recovered(_)) => Some("recovered"),
        Some(Fact::IncidentWithdrawn(_)) => Some("withdrawn"),
        Some(Fact::Quarantined(told)) if told.issue_type != "manual" => Some("quarantined"),
        _ => None,
    }
}

/// The incident for which a record isolates because the ladder gave up, or a probation failed.
fn isolated_for(intent: &v1::Intent) -> Option<String> {
    let by_ladder = intent.reason.as_ref().is_some_and(|r| matches!(r.code.as_str(), "recovery_failed" | "probation_failed"));
    match &intent.want {
        Some(Want::Quarantine(q)) if by_ladder && q.phase() == Phase::Isolated => incident(q.incident.as_ref()),
        _ => None,
    }
}

pub(super) fn instance(event: &v1::Event) -> Option<Instance> {
    event.instance.as_ref().and_then(|i| Instance::try_from(i).ok())
}

fn incident(id: Option<&v1::IncidentId>) -> Option<String> {
    id.and_then(|i| Incident::try_from(i).ok()).map(|i| i.to_string())
}

/// Whether a restart by recovery cured the incident of a life that did not beat by the watchdog: the newest of those is `silent`.
fn restarted_by_verdict(event: &v1::Event, silent: Incarnation) -> bool {
    let of = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()).map(|i| i.incarnation);
    matches!(&event.fact, Some(Fact::Recovered(r)) if r.rung == "restart")
        && of.is_some_and(|of| of == silent && of != Incarnation::default())
}

/// All instances as these events tell them, copies left out.
pub(super) fn seen(events: &[Stored]) -> (BTreeMap<Instance, Seen>, bool) {
    let mut all: BTreeMap<Instance, Seen> = BTreeMap::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut brake = false;
    for stored in events {
        let event = &stored.event;
        if !known.insert(&event.id) {
            continue;
        }
        match &event.fact {
            Some(Fact::BrakeEngaged(_)) => brake = true,
            Some(Fact::BrakeReleased(_)) => brake = false,
            _ => {}
        }
        if let Some(Fact::NodeInventory(inventory)) = &event.fact {
            for item in &inventory.items {
                let Some(Ok(id)) = item.instance.as_ref().map(Instance::try_from) else { continue };
                let (of, life) = (all.entry(id).or_default(), item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default());
                if life >= of.life {
                    (of.life, of.state) = (life, item.state());
                }
            }
            continue;
        }
        let Some(id) = instance(event) else { continue };
        let life = event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let of = all.entry(id).or_default();
        if let Some(Fact::RecoveryFailed(_)) = &event.fact {
            of.given_up = true;
        }
        let ours = event.source.as_ref().is_some_and(|s| s.kind == razar_recovery::AGENT);
        let verdict = event.source.as_ref().is_some_and(|s| s.kind == razar_watchdog::AGENT);
        if verdict && matches!(&event.fact, Some(Fact::ComponentUnresponsive(_))) {
            of.silent = of.silent.max(life);
        }
        // Recovery did in the node's place what that does of one that died.
        of.local_recoveries += usize::from(ours && restarted_by_verdict(event, of.silent));
        of.healed |= ours && matches!(&event.fact, Some(Fact::Recovered(_) | Fact::IncidentWithdrawn(_)));
        if event.source.as_ref().is_none_or(|s| s.kind != "node") || life < of.life {
            continue;
        }
        of.life = life;
        match &event.fact {
            Some(Fact::ComponentBlocked(blocked)) => of.blocked = !blocked.by.is_empty(),
            Some(Fact::ComponentStarted(_)) => (of.state, of.blocked, of.given_up) = (State::Starting, false, false),
            Some(Fact::ComponentReady(_)) => of.state = State::Ready,
            Some(Fact::ComponentUnready(_)) => of.state = State::Unready,
            Some(Fact::ComponentExited(_)) => (of.state, of.healed) = (State::Exited, false),
            Some(Fact::ComponentStopped(_)) => (of.state, of.blocked) = (State::Stopped, false),
            Some(Fact::ComponentFailed(failed)) => {
                (of.state, of.failed_at) = (State::Failed, stored.at);
                of.by_policy = failed.cause.starts_with("policy_");
            }
            Some(Fact::Recovered(_)) => of.local_recoveries += 1,
            _ => {}
        }
    }
    (all, brake)
}

/// The nodes that count as lost.
fn away(events: &[Stored]) -> BTreeSet<String> {
    let mut nodes: BTreeMap<String, Presence> = BTreeMap::new();
    for event in events.iter().map(|stored| &stored.event) {
        if let Some(name) = presence::node_of(event) {
            nodes.entry(name.to_owned()).or_default().fold(event);
        }
    }
    nodes.into_iter().filter(|(_, presence)| presence.is_away()).map(|(name, _)| name).collect()
}

impl World {
    pub(super) fn desired_record(&self, id: &Instance) -> Option<&v1::Desired> {
        match &self.broker.intents.entries.get(&IntentKey::Desired(id.clone()).to_string())?.1.as_ref()?.want {
            Some(Want::Desired(desired)) => Some(desired),
            _ => None,
        }
    }

    fn is_isolated_by_record(&self, id: &Instance) -> bool {
        let keys = [IntentKey::QuarantineComponent(id.component.clone()), IntentKey::QuarantineInstance(id.clone())];
        keys.iter().any(|key| {
            let record = self.broker.intents.entries.get(&key.to_string()).and_then(|(_, intent)| intent.as_ref());
            matches!(record.and_then(|r| r.want.as_ref()), Some(Want::Quarantine(q)) if q.phase() != Phase::Released)
        })
    }

    /// What a replica is about to do: no second write of one record, nothing empty, and no rung that the brake forbids.
    pub(super) fn check_deeds(&mut self, r: usize, deeds: &[Deed]) {
        let trade = self.replicas[r].trade;
        let writes: Vec<Vec<String>> = deeds.iter().filter_map(Deed::keys).collect();
        let asks_nobody = deeds.iter().any(|d| matches!(d, Deed::Ask { nodes, .. } if nodes.is_empty()));
        if writes.iter().any(Vec::is_empty) || asks_nobody {
            return self.violated("I9", format!("{} decides on something empty: {deeds:?}", trade.name()));
        }
        let (all, distinct) = (writes.iter().flatten().count(), writes.iter().flatten().collect::<BTreeSet<_>>().len());
        if distinct < all || (trade != Trade::Recovery && writes.len() > 1) {
            return self.violated("I16", format!("{} replica {r} decides on two writes at once: {deeds:?}", trade.name()));
        }
        self.check_verdicts(r, deeds);
        if let Some(text) = deeds.iter().find_map(|deed| self.ends_again(r, deed)) {
            return self.violated("incident", text);
        }
        let orders =
            || deeds.iter().filter_map(|d| if let Deed::Order(write) = d { new_try(&write.intent).map(|_| &write.instance) } else { None });
        let gives_up = |d: &&Deed| matches!(d, Deed::Publish(e) if matches!(e.fact, Some(Fact::RecoveryFailed(_))));
        let given_up: Vec<Instance> =
            deeds.iter().filter(gives_up).filter_map(|d| if let Deed::Publish(e) = d { instance(e) } else { None }).collect();
        if trade != Trade::Recovery || (orders().next().is_none() && given_up.is_empty()) || self.faults.had(Fault::DiskLost) {
            return;
        }
        let upto = usize::try_from(self.replicas[r].cursor).unwrap_or(usize::MAX);
        let read = self.broker.events.stored.get(..upto).unwrap_or_default();
        let ((all, brake), away) = (seen(read), away(read));
        let mut wrong = None;
        for id in orders().chain(&given_up) {
            let of = all.get(id);
            let flaps = of.is_some_and(|s| self.is_more_than_borne(s.local_recoveries));
            let rung = of.is_some_and(|s| s.state == State::Failed && !s.by_policy && !s.blocked);
            let again = self.order_in_bucket(id).is_some();
            let silent = of.is_some_and(|s| s.silent == s.life && s.life != Incarnation::default());
            if !rung && !flaps && !again && !silent {
                wrong = Some(("rung", format!("the ladder acts on {id}, which has not failed: {of:?}")));
            }
        }
        let behind = self.broker.intents.watches.get(&Client::Replica(r)).is_some_and(|w| !w.is_empty());
        if !behind && !self.faults.had(Fault::WallJump) {
            let new: Vec<&Instance> = orders().filter(|id| self.order_in_bucket(id).is_none()).collect();
            wrong = wrong.or(self.brake_forbids(&all, (brake, &away), &new));
        }
        if let Some((invariant, text)) = wrong {
            self.violated(invariant, text);
        }
    }

    /// What recovery wrote of an instance, as it stands in the bucket.
    fn recovery_record(&self, id: &Instance) -> Option<&v1::Intent> {
        self.broker.intents.entries.get(&IntentKey::Recovery(id.clone()).to_string())?.1.as_deref()
    }

    /// An order that asks for something, as it stands in the bucket.
    fn order_in_bucket(&self, id: &Instance) -> Option<&v1::RecoveryOrder> {
        match &self.recovery_record(id)?.want {
            Some(Want::Recovery(order)) if !order.ended => Some(order),
            _ => None,
        }
    }

    /// Whether EVENTS hold what came of the order in the bucket.
    fn is_try_told(&self, id: &Instance) -> bool {
        self.recovery_record(id).is_some_and(|intent| self.broker.ever_stored.contains(&intent.told_by_event_id))
    }

    /// I8: with that many failed roots no rung begins until the brake is on, and then only as many as start at a time.
    fn brake_forbids(
        &self,
        all: &BTreeMap<Instance, Seen>,
        (brake, away): (bool, &BTreeSet<String>),
        new: &[&Instance],
    ) -> Option<(&'static str, String)> {
        let first = new.first()?;
        let counts = |id: &Instance, of: &Seen| {
            let runs = self.desired_record(id).is_some_and(|d| d.mode() == RunMode::Run);
            runs && !of.blocked && !self.is_isolated_by_record(id)
        };
        let counted: Vec<_> = all.iter().filter(|(id, of)| counts(id, of)).collect();
        let roots: Vec<_> = counted
            .iter()
            .filter(|(_, of)| of.state == State::Failed && !of.given_up && !of.by_policy && !of.failed_at.is_zero())
            .filter(|(id, of)| self.desired_record(id).is_some_and(|d| d.generation <= of.life.generation))
            .collect();
        let newest = roots.iter().map(|(_, of)| of.failed_at).max()?;
        let inside = roots.iter().filter(|(_, of)| newest - of.failed_at < Duration::from_secs(600)).count();
        let ladder = &self.figures.ladder;
        let many = inside >= ladder.brake_roots && inside * 100 >= counted.len() * ladder.brake_percent;
        if many && !brake {
            return Some(("I8", format!("{inside} of {} have failed, and {new:?} are taken up", counted.len())));
        }
        let is_ordered = |id: &Instance, of: &Seen| self.order_in_bucket(id).is_some() && !of.given_up && !of.healed;
        let serves = |id: &Instance, of: &Seen| matches!(of.state, State::Ready | State::Completed) && !is_ordered(id, of);
        let stands = |id: &Instance| {
            let below: Vec<_> = self.desired_record(id).and_then(|d| d.spec.as_ref()).map(|s| s.depends_on.clone()).unwrap_or_default();
            below.iter().all(|d| all.iter().filter(|(id, _)| id.component == d.component).all(|(id, of)| serves(id, of)))
        };
        // One whose try is told to have failed goes on only when what it depends on is well.
        let rests = |id: &Instance, of: &Seen| of.state == State::Failed && self.is_try_told(id) && !stands(id);
        let is_away = |id: &Instance| self.desired_record(id).is_some_and(|d| away.contains(&d.node));
        let under_way = all.iter().filter(|(id, of)| is_ordered(id, of) && !rests(id, of) && !is_away(id)).count();
        let at_once = self.desired_record(first).map_or(4, |d| if d.parallel_starts == 0 { 4 } else { d.parallel_starts });
        let over = under_way + new.len() > usize::try_from(at_once).unwrap_or(usize::MAX);
        (brake && over).then(|| ("I8", format!("the brake is on, {under_way} are under way, and {new:?} are taken up; {at_once} at once")))
    }

    /// A recovery record is about to be overwritten, or written first.
    pub(super) fn check_order_write(&mut self, id: &Instance, intent: &v1::Intent) {
        self.check_told(&IntentKey::Recovery(id.clone()));
        let Some(order) = new_try(intent) else { return };
        self.checks.healing.rungs += 1;
        let spec = self.desired_record(id).and_then(|d| d.spec.clone()).unwrap_or_default();
        let for_silence = order.evidence.as_ref().is_some_and(|e| e.missing_sign);
        if !(spec.heal.contains(&order.rung) || for_silence)
            || order.clear_state != (order.rung == "clear_state")
            || order.clear_state && spec.state.is_empty()
        {
            let changed = self.stacks.revisions.len() > 1;
            if !changed {
                return self.violated("I7", format!("{} of {id} is ordered, which its specification does not have", order.rung));
            }
        }
        let ordered = Ordered {
            head: self.broker.events.stored.len(),
            events_epoch: self.broker.events.epoch,
            bucket_epoch: self.broker.intents.epoch(),
        };
        let again = self.checks.healing.orders.insert(intent.told_by_event_id.clone(), ordered.clone());
        let twice = again.is_some_and(|old| old.bucket_epoch == ordered.bucket_epoch && old.events_epoch == ordered.events_epoch);
        if twice && !self.faults.had(Fault::Poison) {
            self.violated("I2", format!("try {} of {id} is ordered twice", order.attempt));
        }
    }

    /// A holder overwrites its record only when the event that tells of it is in EVENTS.
    fn check_told(&mut self, key: &IntentKey) {
        let old = self.broker.intents.entries.get(&key.to_string()).and_then(|(_, i)| i.clone());
        let told = old.is_none_or(|old| old.told_by_event_id.is_empty() || self.broker.ever_stored.contains(&old.told_by_event_id));
        if !told {
            self.violated("told", format!("the record {key} is overwritten before it was told of"));
        }
    }

    /// A quarantine record is about to be overwritten, or written first.
    pub(super) fn check_quarantine_write(&mut self, key: &IntentKey, intent: &v1::Intent) {
        self.check_told(key);
        let Some(Want::Quarantine(quarantine)) = &intent.want else { return };
        let old = self.broker.intents.entries.get(&key.to_string()).and_then(|(_, i)| i.clone());
        let before = old.map(|o| o.settled_command_ids.clone()).unwrap_or_default();
        let bucket = self.broker.intents.epoch();
        for command in intent.settled_command_ids.iter().filter(|c| !before.contains(c)) {
            if !self.checks.healing.settled.insert((bucket.clone(), key.to_string(), command.clone())) {
                self.violated("I2", format!("command {command} took effect on {key} twice"));
            }
        }
        let reason = intent.reason.as_ref().map_or(("", ""), |r| (r.code.as_str(), r.text.as_str()));
        if quarantine.phase() == Phase::Isolated && reason.1.is_empty() {
            self.violated("quarantine", format!("{key} is isolated without a reason"));
        }
        let Some(incident) = incident(quarantine.incident.as_ref()) else { return };
        if quarantine.phase() == Phase::Released {
            self.checks.healing.lifted.insert(incident);
        } else if reason.0 == "recovery_failed" {
            self.checks.healing.isolations += 1;
            let forgotten = self.faults.had(Fault::EventsLost) && self.faults.had(Fault::IntentsLost);
            if self.checks.healing.lifted.contains(&incident) && !forgotten {
                self.violated("settled", format!("{key} is isolated for {incident}, which a release has settled"));
            }
        }
    }

    /// A node tells something: an incident that an isolation ended does not end a second time.
    pub(super) fn told_by_node(&mut self, h: usize, event: &v1::Event) {
        if let (Some(end), Some(id), Some(incident)) = (end_of(event), instance(event), incident(event.incident.as_ref())) {
            let keys = [IntentKey::QuarantineComponent(id.component.clone()), IntentKey::QuarantineInstance(id)];
            let settled = |key: &IntentKey| match self.hosts[h].oracle.in_force.get(&key.to_string()).map(|r| &r.intent.want) {
                Some(Some(Want::Quarantine(q))) => super::healing::incident(q.incident.as_ref()).as_ref() == Some(&incident),
                _ => false,
            };
            if keys.iter().any(settled) {
                self.violated("incident", format!("node {} tells {end} of {incident}, which an isolation ended", self.hosts[h].name));
            }
        }
        if let (Some(Fact::ComponentFailed(failed)), Some(id)) = (&event.fact, instance(event)) {
            self.checks.healing.causes.insert(id, failed.cause.clone());
        }
    }

    /// What is told of incidents.
    pub(super) fn check_healing_event(&mut self, event: &v1::Event) {
        let Some(incident) = incident(event.incident.as_ref()) else { return };
        if let Some(Fact::RungTried(tried)) = &event.fact {
            self.check_tried(event, &incident, tried);
        }
    }

    /// An incident ends once: whoever has read of its end gives it no other.
    fn ends_again(&self, r: usize, deed: &Deed) -> Option<String> {
        let given: Vec<(&str, String)> = match deed {
            // An isolation is decided on with its record; that it is told is owed then, whatever was read since.
            Deed::Publish(event) => {
                end_of(event).filter(|end| *end != "quarantined").zip(incident(event.incident.as_ref())).into_iter().collect()
            }
            Deed::Isolate { writes, .. } => {
                writes.iter().filter_map(|(_, intent, _)| isolated_for(intent)).map(|i| ("quarantined", i)).collect()
            }
            _ => Vec::new(),
        };
        if given.is_empty() {
            return None;
        }
        let upto = usize::try_from(self.replicas[r].cursor).unwrap_or(usize::MAX);
        let read = self.broker.events.stored.get(..upto).unwrap_or_default();
        // What was told before is told again, or written again into a bucket that lost it.
        let ended: BTreeSet<(&str, String)> =
            read.iter().filter_map(|s| end_of(&s.event).zip(incident(s.event.incident.as_ref()))).collect();
        let given: Vec<_> = given.into_iter().filter(|end| !ended.contains(end)).collect();
        ended.iter().find_map(|(end, of)| {
            let other = given.iter().find(|(_, incident)| incident == of)?;
            Some(format!("{of} is {}, after it was {end}", other.0))
        })
    }

    /// A try was told: it was ordered before; a rung fails once; and it failed on its own, not for want of what it depends on.
    fn check_tried(&mut self, event: &v1::Event, incident: &str, tried: &v1::RungTried) {
        let Some(ordered) = self.checks.healing.orders.get(&event.id).cloned() else {
            return self.violated("I13", format!("{} of {incident} is told, and was not ordered", tried.rung));
        };
        if tried.outcome != "failed" {
            return;
        }
        let times = self.checks.healing.failed.entry((incident.to_owned(), tried.rung.clone())).or_default();
        *times += 1;
        // A chakra that goes down makes its hook the next rung, each time once.
        let down = |s: &&Stored| matches!(s.event.fact, Some(Fact::ChakraDown(_)));
        let allowed = 1 + if tried.rung == "chakra_hook" { self.broker.events.stored.iter().filter(down).count() } else { 0 };
        if *times > allowed {
            return self.violated("I7", format!("{} of {incident} fails a second time: the ladder does not climb", tried.rung));
        }
        let Some(id) = instance(event).filter(|_| ordered.events_epoch == self.broker.events.epoch) else { return };
        let since = self.broker.events.stored.get(ordered.head..).unwrap_or_default();
        let is_end = |s: &&Stored| matches!(s.event.fact, Some(Fact::ComponentFailed(_))) && instance(&s.event).as_ref() == Some(&id);
        let Some(end) = since.iter().rfind(is_end).map(|s| s.sequence) else { return };
        let needs: BTreeSet<String> = self
            .desired_record(&id)
            .and_then(|d| d.spec.as_ref())
            .map(|s| s.depends_on.iter().filter(|d| d.required && d.component != id.component).map(|d| d.component.clone()).collect())
            .unwrap_or_default();
        let life = |s: &Stored| s.event.incarnation.as_ref().map(Incarnation::from);
        // The end of a life that another node had kept says nothing of the one that serves.
        let is_former = |of: &Stored| {
            let same = |s: &&Stored| s.sequence < of.sequence && instance(&s.event) == instance(&of.event);
            self.broker.events.stored.iter().filter(same).filter_map(life).max() > life(of)
        };
        let gone = since.iter().take_while(|s| s.sequence < end).find(|s| {
            breaks(&s.event)
                && !is_former(s)
                && instance(&s.event).is_some_and(|i| needs.contains(&i.component) && !self.stacks.one_shots.contains(&i.component))
        });
        if let Some(gone) = gone.map(|s| format!("{} of {:?}", s.event.kind, instance(&s.event))) {
            self.violated(
                "suppression",
                format!("{} of {incident} is told to have failed, and between order and end there was {gone}", tried.rung),
            );
        }
    }

    /// What recovery has not brought to its end, if anything.
    pub(super) fn healing_goes_on(&self) -> Option<String> {
        if self.by_hand {
            return None;
        }
        let ordered = self.broker.intents.entries.keys().filter_map(|key| match IntentKey::parse(key) {
            Some(IntentKey::Recovery(id)) => Some(id),
            _ => None,
        });
        let open = ordered.into_iter().find(|id| self.order_in_bucket(id).is_some() && !self.is_isolated_by_record(id));
        let brake = self.broker.events.stored.iter().rev().find_map(|s| match &s.event.fact {
            Some(Fact::BrakeEngaged(_)) => Some(true),
            Some(Fact::BrakeReleased(_)) => Some(false),
            _ => None,
        });
        let braked = || (brake == Some(true)).then(|| "the brake is on".to_owned());
        open.map(|id| format!("the order about {id} has no end")).or_else(braked)
    }

    /// At rest: every try has an outcome that was told.
    pub(super) fn check_tries(&mut self) {
        let epoch = self.broker.events.epoch;
        let lost = self.faults.had(Fault::IntentsLost) || self.faults.had(Fault::EventsLost);
        let open =
            self.checks.healing.orders.iter().find(|(told_by, o)| o.events_epoch == epoch && !self.broker.events.ids.contains(*told_by));
        if let Some((told_by, _)) = open.filter(|_| !lost) {
            let text = format!("{told_by} was ordered, and nobody tells what came of it");
            self.violated("I13", text);
        }
    }

    /// Whether the ladder has reason to replace a living process: it was restarted locally, or in its node's place, more often than is borne.
    pub(super) fn flaps_too_much(&self, id: &Instance) -> bool {
        let seen = || seen(&self.broker.events.stored).0.get(id).map_or(0, |of| of.local_recoveries);
        self.faults.had(Fault::EventsLost) || self.is_more_than_borne(seen())
    }

    fn is_more_than_borne(&self, local_recoveries: usize) -> bool {
        local_recoveries > usize::try_from(self.figures.ladder.flaps_max).unwrap_or(usize::MAX)
    }
}

/// The order of a record that asks for a new try; none: it only asks for less.
fn new_try(intent: &v1::Intent) -> Option<&v1::RecoveryOrder> {
    match &intent.want {
        Some(Want::Recovery(order)) if !order.ended && order.hold_dependents.is_some() => Some(order),
        _ => None,
    }
}
