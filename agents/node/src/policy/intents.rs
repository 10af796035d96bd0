//! The node's view of the bucket `intents`: what is staged until nothing is pending behind it, what is in force, and which
//! records are void. Absence says nothing: a record that vanished stays in force until another one replaces it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{
    bucket::IntentKey,
    event::Kind as _,
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, event::Fact, intent::Want},
};

use super::{
    Action, Group, INSTANCES_MAX, Node, Now, SYSTEM_STACK,
    instance::{Inst, Place, Wanted},
    memory::take_up,
};

/// Something that the watch of the bucket said.
#[derive(Debug, Clone)]
pub enum ViewChange {
    /// The bucket has this epoch; whatever was staged of another one is gone.
    Epoch(String),
    /// A record, not yet in force.
    Record {
        /// Key.
        key: String,
        /// Revision.
        revision: u64,
        /// The record, `None` when its bytes could not be read.
        intent: Option<Box<v1::Intent>>,
    },
    /// Nothing is pending: what was staged comes into force.
    Settled,
}

/// A record in force.
#[derive(Debug, Clone)]
struct Record {
    place: Place,
    received: Duration,
    intent: Arc<v1::Intent>,
}

/// The view.
#[derive(Debug, Clone, Default)]
pub struct Intents {
    epoch: String,
    revision: u64,
    staged: BTreeMap<String, (u64, Arc<v1::Intent>)>,
    records: BTreeMap<IntentKey, Record>,
    /// Instances of which an order that has not ended holds back the dependents for some time.
    holding: BTreeSet<Instance>,
    /// There is, or was, a quarantine.
    quarantines: bool,
    /// A record named another journal of this node: its writer does not know what this one holds.
    is_mistaken: bool,
}

impl Intents {
    /// Bucket epoch last told; empty: none yet.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Highest revision in force in that epoch.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn record(&self, key: &IntentKey) -> Option<&Record> {
        self.records.get(key)
    }

    fn insert(&mut self, key: IntentKey, record: Record) {
        match (&key, &record.intent.want) {
            (IntentKey::Recovery(id), Some(Want::Recovery(order))) if !order.ended && order.hold_dependents.is_some() => {
                self.holding.insert(id.clone());
            }
            (IntentKey::Recovery(id), _) => {
                self.holding.remove(id);
            }
            (IntentKey::QuarantineComponent(_) | IntentKey::QuarantineInstance(_), _) => self.quarantines = true,
            _ => {}
        }
        self.records.insert(key, record);
    }

    /// What the record at `key` asks for.
    pub(super) fn want(&self, key: &IntentKey) -> Option<&Want> {
        self.record(key)?.intent.want.as_ref()
    }

    /// The view, or of it the records at `keys`, as it is kept on disk.
    fn on_disk<'k>(&self, keys: impl Iterator<Item = &'k IntentKey>) -> v1::PlanOnDisk {
        let records = keys.filter_map(|key| self.record(key).map(|record| (key, record))).map(|(key, record)| v1::PlanRecord {
            key: key.to_string(),
            revision: if record.place.epoch == self.epoch { record.place.revision } else { 0 },
            intent: record.intent.encode_to_vec(),
        });
        v1::PlanOnDisk { bucket_epoch: self.epoch.clone(), revision: self.revision, records: records.collect() }
    }
}

/// Whether all that changed are orders of the ladder. Each replaces one incarnation, once: one that a power cut takes from the disk comes
/// again from the bus, and is carried out then or void.
#[must_use]
pub fn are_orders(change: &v1::PlanOnDisk) -> bool {
    !change.records.is_empty() && change.records.iter().all(|r| matches!(IntentKey::parse(&r.key), Some(IntentKey::Recovery(_))))
}

/// Puts what changed into a view as it is kept on disk. In another bucket the revisions of what was there before say nothing.
pub fn fold_plan(plan: &mut v1::PlanOnDisk, change: v1::PlanOnDisk) {
    if plan.bucket_epoch != change.bucket_epoch {
        plan.records.iter_mut().for_each(|record| record.revision = 0);
    }
    (plan.bucket_epoch, plan.revision) = (change.bucket_epoch, change.revision);
    for record in change.records {
        match plan.records.iter_mut().find(|old| old.key == record.key) {
            Some(old) => *old = record,
            None => plan.records.push(record),
        }
    }
}

/// An order of the ladder as the node keeps it.
#[derive(Debug, Clone)]
pub(super) struct Order<'n> {
    pub(super) order: &'n v1::RecoveryOrder,
    pub(super) incident: Option<Incident>,
    pub(super) received: Duration,
    pub(super) reason: &'n str,
}

impl Node {
    pub(super) fn fold_view(&mut self, change: ViewChange, now: Now) {
        match change {
            ViewChange::Epoch(epoch) => {
                self.intents.staged.clear();
                if self.intents.epoch != epoch {
                    self.intents.epoch = epoch;
                    self.intents.revision = 0;
                    self.tell_inventory(now);
                }
            }
            ViewChange::Record { key, revision, intent } => {
                let Some(intent) = intent else {
                    self.tell_void(None, &key, "unreadable", now);
                    return;
                };
                self.intents.staged.insert(key, (revision, Arc::from(intent)));
            }
            ViewChange::Settled => self.settle(now),
        }
    }

    fn settle(&mut self, now: Now) {
        let staged = std::mem::take(&mut self.intents.staged);
        let mut changed = Vec::new();
        for (key, (revision, intent)) in staged {
            let place = Place { epoch: self.intents.epoch.clone(), revision };
            let known = IntentKey::parse(&key).and_then(|key| self.intents.record(&key));
            let is_isolated = known.is_some_and(|r| !releases(&r.intent));
            let was_released = known.is_some_and(|r| releases(&r.intent));
            let releases = releases(&intent);
            let in_force = self.put_in_force(&key, place, intent, now);
            for id in self.concerned(&key).iter().filter(|_| in_force && releases) {
                if !was_released {
                    self.release_failed(id, now);
                }
                if !is_isolated {
                    self.tell_life(id, now);
                }
            }
            changed.extend(IntentKey::parse(&key).filter(|_| in_force));
        }
        if std::mem::take(&mut self.intents.is_mistaken) {
            self.tell_inventory(now);
        }
        if !changed.is_empty() {
            self.actions.push(Action::StorePlan(Box::new(self.intents.on_disk(changed.iter()))));
        }
    }

    /// The view as it is kept on disk.
    #[must_use]
    pub fn plan_on_disk(&self) -> v1::PlanOnDisk {
        self.intents.on_disk(self.intents.records.keys())
    }

    /// The record that isolates an instance, or has it on probation.
    pub(super) fn isolation(&self, id: &Instance) -> Option<&v1::Intent> {
        self.quarantines_of(id).find(|intent| !releases(intent))
    }

    /// The quarantine records that concern `id`, whatever their phase: the instance's before the component's.
    fn quarantines_of(&self, id: &Instance) -> impl Iterator<Item = &v1::Intent> {
        let keys = self
            .intents
            .quarantines
            .then(|| [IntentKey::QuarantineInstance(id.clone()), IntentKey::QuarantineComponent(id.component.clone())]);
        keys.into_iter().flatten().filter_map(|key| self.intents.record(&key)).map(|record| &*record.intent)
    }

    fn put_in_force(&mut self, key: &str, place: Place, intent: Arc<v1::Intent>, now: Now) -> bool {
        let Some(parsed) = IntentKey::parse(key) else {
            self.tell_void(None, key, "unknown_key", now);
            return false;
        };
        if let Some(old) = self.intents.record(&parsed) {
            if old.place == place {
                return false;
            }
            if old.place.epoch == place.epoch && place.revision < old.place.revision {
                self.tell_void(None, key, "lower_revision", now);
                return false;
            }
        }
        if !self.accepts(&parsed, &place, &intent, now) {
            return false;
        }
        self.intents.revision = self.intents.revision.max(place.revision);
        self.touch_by(&parsed);
        self.intents.insert(parsed, Record { place, received: now.mono, intent });
        true
    }

    /// Whether a record may come into force, and what it changes at once.
    fn accepts(&mut self, key: &IntentKey, place: &Place, intent: &Arc<v1::Intent>, now: Now) -> bool {
        match (key, &intent.want) {
            (IntentKey::Desired(id), Some(Want::Desired(desired))) => self.accept_desired(id, place, intent, desired, now),
            (IntentKey::Recovery(_), Some(Want::Recovery(_)))
            | (IntentKey::QuarantineComponent(_) | IntentKey::QuarantineInstance(_), Some(Want::Quarantine(_)))
            | (IntentKey::Load(_), Some(Want::Load(_)))
            | (IntentKey::Vram { .. }, Some(Want::Vram(_)))
            | (IntentKey::Escalation(_), Some(Want::Escalations(_)))
            | (IntentKey::Mark(_), Some(Want::Mark(_))) => true,
            _ => {
                self.tell_void(None, &key.to_string(), "unknown_want", now);
                false
            }
        }
    }

    fn accept_desired(&mut self, id: &Instance, place: &Place, intent: &v1::Intent, desired: &v1::Desired, now: Now) -> bool {
        let key = IntentKey::Desired(id.clone()).to_string();
        let here = desired.node == self.config.node;
        let known = self.instances.get(id);
        if !here && known.is_none_or(|i| i.generation == 0) {
            return true;
        }
        let void = if known.is_some_and(|i| i.group() == Group::System && i.wanted.is_some()) {
            Some("system_name")
        } else if desired.mode() == v1::RunMode::Unspecified || desired.spec.is_none() {
            Some("unknown_mode")
        } else if here && desired.node_epoch != self.config.node_epoch {
            Some("foreign_epoch")
        } else if known.is_some_and(|i| desired.generation < i.generation) {
            Some("lower_generation")
        } else if known.is_some_and(|i| i.fence.epoch == place.epoch && place.revision < i.fence.revision) {
            Some("lower_revision")
        } else if known.is_none() && self.instances.len() >= INSTANCES_MAX {
            Some("too_many_instances")
        } else {
            None
        };
        if let Some(why) = void {
            self.tell_void(Some(id), &key, why, now);
            self.intents.is_mistaken |= why == "foreign_epoch";
            return false;
        }
        let wanted = Wanted {
            desired: Arc::new(desired.clone()),
            spec: Arc::new(desired.spec.clone().unwrap_or_default()),
            writer: intent.writer.as_ref().map_or_else(String::new, |w| w.kind.clone()),
            reason: intent.reason.as_ref().map_or_else(String::new, |r| r.text.clone()),
            trace: intent.trace.clone(),
            received: now.mono,
            place: place.clone(),
            group: Group::User,
            elsewhere: !here,
        };
        self.want(id, wanted, now);
        true
    }

    /// Puts `wanted` in force for `id`, creating the instance when it is new.
    pub(super) fn want(&mut self, id: &Instance, wanted: Wanted, now: Now) {
        for dependency in &wanted.spec.depends_on {
            self.dependents.entry(dependency.component.clone()).or_default().insert(id.clone());
        }
        let inst = self.instances.entry(id.clone()).or_insert_with(|| Inst::new(id.clone(), now.mono));
        // It lines up by its rank, which the new record may change: under its old one it would be started for ever after.
        self.startable.remove(&(inst.group(), inst.rank(), id.clone()));
        inst.fence = wanted.place.clone();
        inst.generation = inst.generation.max(wanted.desired.generation);
        let spec = wanted.spec.clone();
        inst.wanted = Some(wanted);
        if inst.process.is_some() && inst.started_spec.is_none() {
            // Taken over before it was known what it is.
            take_up(inst, &spec, now.mono);
            inst.started_spec = Some(spec);
            self.hear_again(id, now);
        }
        let Some(inst) = self.instances.get_mut(id) else { return };
        if !inst.lives() {
            inst.waiting_since = now.mono;
        }
        self.touch(id);
    }

    /// The compiled-in plan; a specification that changed since the journal was written is a new generation.
    pub(super) fn adopt_system(&mut self, system: Vec<v1::Desired>, now: Now) {
        for mut desired in system {
            let Some(id) = desired.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { continue };
            let before = self.instances.get(&id);
            let same = before.is_none_or(|i| i.started_hash.is_empty() || i.started_hash == desired.spec_hash);
            let generation = before.map_or(1, |i| i.generation.max(1));
            desired.generation = if same { generation } else { generation.saturating_add(1) };
            desired.stack = SYSTEM_STACK.to_owned();
            let wanted = Wanted {
                spec: Arc::new(desired.spec.clone().unwrap_or_default()),
                desired: Arc::new(desired),
                writer: "node".to_owned(),
                reason: "part of the mesh".to_owned(),
                trace: None,
                received: now.mono,
                place: Place::default(),
                group: Group::System,
                elsewhere: false,
            };
            self.want(&id, wanted, now);
        }
    }

    /// The view that the disk kept.
    pub(super) fn adopt_plan(&mut self, plan: v1::PlanOnDisk, now: Now) {
        self.intents.epoch = plan.bucket_epoch;
        for record in plan.records {
            let Ok(intent) = v1::Intent::decode(record.intent.as_slice()) else { continue };
            let place = Place { epoch: self.intents.epoch.clone(), revision: record.revision };
            self.put_in_force(&record.key, place, Arc::new(intent), now);
        }
        self.intents.revision = plan.revision;
        self.intents.is_mistaken = false;
        self.actions.clear();
        self.tells.clear();
    }

    fn touch_by(&mut self, key: &IntentKey) {
        match key {
            IntentKey::Desired(id) | IntentKey::Recovery(id) | IntentKey::QuarantineInstance(id) => self.touch(&id.clone()),
            IntentKey::QuarantineComponent(component) | IntentKey::Load(component) => {
                let ids: Vec<_> = self.replicas(component).map(|i| i.id.clone()).collect();
                ids.iter().for_each(|id| self.touch(id));
            }
            IntentKey::Vram { .. } | IntentKey::Escalation(_) | IntentKey::Mark(_) => {}
        }
    }

    /// The quarantine record that concerns `id`: the component's, by hand, before the instance's; with its Reason.
    pub(super) fn quarantine_of(&self, id: &Instance) -> Option<(&v1::Quarantine, &str)> {
        if !self.intents.quarantines {
            return None;
        }
        if self.instances.get(id).is_some_and(|i| i.group() == Group::System && i.wanted.is_some()) {
            return None;
        }
        let of = |key: IntentKey| {
            let record = self.intents.record(&key)?;
            let reason = record.intent.reason.as_ref().map_or("", |r| r.text.as_str());
            match &record.intent.want {
                Some(Want::Quarantine(q)) => Some((q, reason)),
                _ => None,
            }
        };
        let by_hand = of(IntentKey::QuarantineComponent(id.component.clone()));
        let by_ladder = of(IntentKey::QuarantineInstance(id.clone()));
        by_hand.filter(|(q, _)| super::precedence::isolates(q.phase())).or(by_ladder).or(by_hand)
    }

    /// Whether a quarantine record, whatever its phase, is about this incident.
    pub(super) fn is_isolated_for(&self, id: &Instance, incident: &Incident) -> bool {
        let of = |intent: &v1::Intent| match &intent.want {
            Some(Want::Quarantine(q)) => q.incident.as_ref().and_then(|i| Incident::try_from(i).ok()),
            _ => None,
        };
        self.quarantines_of(id).any(|intent| of(intent).as_ref() == Some(incident))
    }

    /// Instances here that a quarantine record concerns.
    fn concerned(&self, key: &str) -> Vec<Instance> {
        match IntentKey::parse(key) {
            Some(IntentKey::QuarantineInstance(id)) => vec![id],
            Some(IntentKey::QuarantineComponent(component)) => self.replicas(&component).map(|i| i.id.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether a record has `id` on probation: what it starts then is judged by its first end.
    pub(super) fn on_probation(&self, id: &Instance) -> bool {
        self.quarantines_of(id)
            .any(|intent| matches!(&intent.want, Some(Want::Quarantine(q)) if q.phase() == v1::QuarantinePhase::Probation))
    }

    /// The order of the ladder that concerns `id`, whatever its worth.
    pub(super) fn order_of(&self, id: &Instance) -> Option<Order<'_>> {
        let record = self.intents.record(&IntentKey::Recovery(id.clone()))?;
        let Some(Want::Recovery(order)) = &record.intent.want else { return None };
        let incident = order.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
        let reason = record.intent.reason.as_ref().map_or("", |r| r.text.as_str());
        Some(Order { order, incident, received: record.received, reason })
    }

    /// The order that is to be carried out on `inst`: it names this incarnation and is neither settled nor ended nor void.
    pub(super) fn running_order(&self, inst: &Inst) -> Option<Order<'_>> {
        let order = self.order_of(&inst.id)?;
        let key = (order.incident.clone()?, order.order.attempt);
        let open = !order.order.ended && inst.order_settled.as_ref() != Some(&key);
        (open && void_cause(order.order, inst).is_none()).then_some(order)
    }

    /// Until when a dependency's recovery holds the starts of `inst`, if one does.
    pub(super) fn hold_on(&self, inst: &Inst, now: Duration) -> Option<(String, Duration)> {
        let wanted = inst.wanted.as_ref().filter(|_| !self.intents.holding.is_empty())?;
        let dependencies = wanted.spec.depends_on.iter().flat_map(|d| self.replicas(&d.component));
        dependencies.filter(|dependency| self.intents.holding.contains(&dependency.id)).find_map(|dependency| {
            let order = self.order_of(&dependency.id)?;
            let hold = order.order.hold_dependents.as_ref().map(time::std_duration)?;
            let until = order.received + hold;
            (!order.order.ended && until > now).then(|| (dependency.id.to_string(), until))
        })
    }

    /// Whether lazy-loader wants the component.
    pub(super) fn is_loaded(&self, component: &str) -> bool {
        let record = self.intents.record(&IntentKey::Load(component.to_owned()));
        record.is_some_and(|r| matches!(&r.intent.want, Some(Want::Load(load)) if load.wanted))
    }

    /// Looks at the order that concerns `id`: says when it is void, and ends what recovery ended.
    pub(super) fn settle_order(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let Some(order) = self.order_of(id) else { return };
        let Some(incident) = order.incident.clone() else { return };
        let (key, ended, void) = ((incident, order.order.attempt), order.order.ended, void_cause(order.order, inst));
        let settled = inst.order_settled.as_ref() == Some(&key);
        let Some(inst) = self.instances.get_mut(id) else { return };
        if ended {
            if inst.incident.as_ref().is_some_and(|open| open.id == key.0) {
                inst.incident = None;
            }
            inst.by_rung = false;
            inst.order_settled = Some(key);
        } else if let (false, Some(why)) = (settled, void) {
            inst.order_settled = Some(key.clone());
            // What is well ends its incident, not the order alone.
            let well = match why {
                SIGN_OF_LIFE => Some("it has given the sign since"),
                COMPLETED => Some("the one-shot has ended well since"),
                _ => None,
            };
            if well.is_some() {
                inst.incident = None;
            }
            self.tell_void(Some(id), &IntentKey::Recovery(id.clone()).to_string(), why, now);
            if let Some(text) = well {
                let fact = Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: why.to_owned() });
                let mut event = self.draft(Some(id), fact, why, text, now);
                event.incident = Some((&key.0).into());
                self.tells.push(event);
            }
        }
    }

    pub(super) fn tell_void(&mut self, id: Option<&Instance>, key: &str, why: &str, now: Now) {
        let fact = Fact::OrderVoid(v1::OrderVoid { key: key.to_owned(), why: why.to_owned() });
        let text = format!("{key} is void: {}", why.replace('_', " "));
        let event = self.draft(id, fact, why, &text, now);
        debug_assert_eq!(event.kind, event.fact.as_ref().map_or("", |f| f.kind()));
        self.tells.push(event);
    }

    pub(super) fn quarantine_records(&self) -> Vec<Vec<u8>> {
        let all = self.intents.records.values();
        all.filter(|r| matches!(r.intent.want, Some(Want::Quarantine(_)))).map(|r| r.intent.encode_to_vec()).collect()
    }
}

fn releases(intent: &v1::Intent) -> bool {
    matches!(&intent.want, Some(Want::Quarantine(q)) if q.phase() == v1::QuarantinePhase::Released)
}

/// Why an order is void whose instance has given the sign that it was missing.
const SIGN_OF_LIFE: &str = "sign_of_life";
/// Why an order is void whose one-shot has done what it was to do.
const COMPLETED: &str = "completed";

/// Why an order is void for `inst`, if it is.
fn void_cause(order: &v1::RecoveryOrder, inst: &Inst) -> Option<&'static str> {
    let replaces = order.replaces.as_ref().map_or_else(Incarnation::default, Incarnation::from);
    if replaces != inst.incarnation {
        return Some("not_current");
    }
    if inst.is_done() && !inst.lives() {
        return Some(COMPLETED);
    }
    let evidence = order.evidence.as_ref()?;
    (evidence.missing_sign && inst.signs_of_life > evidence.signs_of_life).then_some(SIGN_OF_LIFE)
}
