//! From the plan to the `desired` records: who runs where, in which generation. A difference is written as one batch, so that no node
//! sees half a plan; what does not differ is not touched. An empty, unknown or stale plan selects nothing.

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::{
    ids::Instance,
    time,
    trace::{self, Context, RANKS_TRACED_MAX},
    v1::{self, InstanceState, RunMode},
};

use super::{
    Action, INSTANCES_MAX, NodeView, Now, RECORD_SETTLED_MAX, Record, State,
    events::{DOWN, LEFT_PLAN, desired_changed, desired_id},
};
use crate::blueprint::{Blueprint, Part};

/// Reason of a record that an operator stopped by name.
pub(super) const BY_HAND: &str = "stopped_by_hand";

/// What a record is to say, before it is known to differ from the one that stands.
struct Wish {
    desired: v1::Desired,
    reason: v1::Reason,
    cause: String,
}

/// Where an instance is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    node: String,
    epoch: String,
    /// Id of the event that made this epoch known; empty if the record knew it already.
    told_by: String,
    why: String,
}

impl State {
    /// The batch that brings the records to the plan; `None`: nothing differs, or it is not the time.
    pub(super) fn reconcile(&self, now: Now) -> Option<Action> {
        let writes = self.differences(now);
        // A record is overwritten only when the event that tells of it is in EVENTS; a part of a plan is not written before the rest.
        let untold = writes.iter().any(|(instance, _, _)| self.records.get(instance).is_some_and(|r| !self.is_told(r)));
        (!writes.is_empty() && !untold).then_some(Action::WriteDesired { writes, bucket: self.intents_bucket })
    }

    /// Whether the event that tells of a record is in EVENTS: by its id, or, where EVENTS no longer keeps it, by the snapshot's word.
    pub(super) fn is_told(&self, record: &Record) -> bool {
        let id = &record.intent.told_by_event_id;
        id.is_empty() || self.facts.is_told(id) || self.was_told(record).unwrap_or(false)
    }

    fn was_told(&self, record: &Record) -> Option<bool> {
        let desired = record.desired()?;
        let instance = desired.instance.as_ref().and_then(|i| Instance::try_from(i).ok())?;
        if let Some(id) = self.facts.told_desired_by(&instance) {
            return Some(id == record.intent.told_by_event_id);
        }
        let told = self.facts.told_desired(&instance).filter(|told| told.generation == desired.generation)?;
        Some(*told == desired_changed(desired, desired.spec.as_ref()?, record.intent.reason.as_ref()))
    }

    /// Whether a node has said what it holds for this bucket.
    fn has_said(&self, node: &NodeView) -> bool {
        node.inventory_of.as_ref() == Some(&self.bucket_epoch)
    }

    /// Whether a node has told what it holds for this bucket: it said so, or it was written to in this journal before.
    fn has_told(&self, name: &str, node: &NodeView) -> bool {
        let written = |d: &v1::Desired| d.node == name && d.node_epoch == node.epoch;
        self.has_said(node) || self.records.values().filter_map(Record::desired).any(written)
    }

    /// Every record that differs from the plan, in order of rank, what stops last.
    pub(super) fn differences(&self, now: Now) -> Vec<(Instance, v1::Intent, u64)> {
        let Some(plan) = self.plan() else { return Vec::new() };
        if self.is_untold(plan) {
            return Vec::new();
        }
        let mut writes = Vec::new();
        let mut named = BTreeSet::new();
        if let Some(in_force) = self.in_force() {
            let Some(blueprint) = self.blueprint() else { return Vec::new() };
            if blueprint.parts.is_empty() || !self.bucket_is_open() {
                return Vec::new();
            }
            let mut load = self.load_by_node();
            for (instance, part) in blueprint.instances() {
                let wish = self.wish(in_force, blueprint, &instance, part, &mut load);
                writes.extend(wish.and_then(|w| self.write_if_different(&instance, w, Some(part), now)));
                named.insert(instance);
            }
        }
        for (instance, record) in &self.records {
            if !named.contains(instance) {
                writes.extend(self.stop_wish(plan, record).and_then(|w| self.write_if_different(instance, w, None, now)));
            }
        }
        writes.extend(self.stops_of_strays(plan, &named, now));
        writes.truncate(INSTANCES_MAX);
        writes
    }

    /// What began the mission is told first: what its event says is to start and to stop is the difference that stands until then.
    fn is_untold(&self, plan: &v1::Mission) -> bool {
        !plan.ended && self.facts.mission(&plan.mission_id).is_none()
    }

    /// Whether the first record of an instance of the plan in force is about to be written.
    pub(super) fn is_to_be_placed(&self, instance: &Instance, now: Now) -> bool {
        self.plan().is_some_and(|plan| self.is_untold(plan)) || self.differences(now).iter().any(|(placed, _, _)| placed == instance)
    }

    /// Stops of what a node holds by its inventory for this bucket while neither the plan nor a record knows it: the bucket that knew
    /// it is lost, and absence says nothing to a node.
    fn stops_of_strays(&self, plan: &v1::Mission, named: &BTreeSet<Instance>, now: Now) -> Vec<(Instance, v1::Intent, u64)> {
        if !self.bucket_is_open() {
            return Vec::new();
        }
        let present = self.facts.nodes().iter().filter(|(_, n)| !n.lost && self.has_said(n));
        let held = present.flat_map(|(name, node)| node.held.iter().map(move |(instance, held)| (name, node, instance, held.generation)));
        let strays = held.filter(|(_, _, instance, _)| !named.contains(*instance) && !self.records.contains_key(*instance));
        let mut writes: BTreeMap<Instance, (Instance, v1::Intent, u64)> = BTreeMap::new();
        for (name, node, instance, generation) in strays {
            let desired = v1::Desired {
                instance: Some(instance.into()),
                node: name.clone(),
                node_epoch: node.epoch.clone(),
                generation: generation.max(self.facts.floor(instance)),
                mode: RunMode::Stop.into(),
                spec: Some(v1::ComponentSpec { name: instance.component.clone(), ..Default::default() }),
                stack: plan.stack.clone(),
                mission_id: plan.mission_id.clone(),
                ..Default::default()
            };
            let reason = reason(LEFT_PLAN, format!("{name} holds it, and no plan names it"));
            let wish = Wish { desired, reason, cause: cause_of(plan) };
            writes.extend(self.write_if_different(instance, wish, None, now).map(|w| (instance.clone(), w)));
        }
        writes.into_values().collect()
    }

    /// In a bucket without records nothing is written before every present node has told what it holds, for this bucket: a generation
    /// below what a node has persisted would be void there for ever. Nor before quarantine's mark: a node without its disk would start
    /// what is isolated.
    fn bucket_is_open(&self) -> bool {
        if self.bucket_epoch.is_empty() {
            return false;
        }
        let mut present = self.facts.nodes().values().filter(|n| !n.lost).peekable();
        let marked = self.marked == self.bucket_epoch;
        marked && (!self.records.is_empty() || (present.peek().is_some() && present.all(|n| self.has_said(n))))
    }

    /// Why nothing of the plan is written into a new bucket yet; `None`: it is written, or there is no plan.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.in_force().filter(|_| !self.bucket_epoch.is_empty() && !self.bucket_is_open())?;
        if self.marked != self.bucket_epoch {
            return Some("the records of what is desired are new, and quarantine has not written yet what is isolated".to_owned());
        }
        let present = self.facts.nodes().iter().filter(|(_, n)| !n.lost);
        let untold = present.filter(|(_, n)| !self.has_said(n)).map(|(name, _)| name.as_str());
        let untold: Vec<&str> = untold.collect();
        let who = if untold.is_empty() { "no node is here".to_owned() } else { format!("not told what they hold: {}", untold.join(" ")) };
        Some(format!("the records of what is desired are new; {who}"))
    }

    fn load_by_node(&self) -> BTreeMap<String, usize> {
        let mut load = BTreeMap::new();
        for desired in self.records.values().filter_map(Record::desired).filter(|d| d.mode() == RunMode::Run) {
            *load.entry(desired.node.clone()).or_default() += 1;
        }
        load
    }

    fn wish(
        &self,
        plan: &v1::Mission,
        blueprint: &Blueprint,
        instance: &Instance,
        part: &Part,
        load: &mut BTreeMap<String, usize>,
    ) -> Option<Wish> {
        let record = self.records.get(instance).and_then(Record::desired);
        let place = self.place(record, part, load)?;
        let by_hand = stopped_by_hand(plan, instance);
        let fresh = plan.fresh && part.spec.one_shot;
        let mut desired = v1::Desired {
            instance: Some(instance.into()),
            node: place.node.clone(),
            node_epoch: place.epoch.clone(),
            generation: 0,
            after: after(record, &place.node),
            mode: if by_hand { RunMode::Stop } else { RunMode::Run }.into(),
            rank: part.rank_of(instance),
            wave: part.wave,
            stack_revision: plan.stack_revision.clone(),
            spec_hash: part.spec_hash.clone(),
            spec: None,
            parallel_starts: blueprint.parallel_starts,
            stack: plan.stack.clone(),
            mission_id: plan.mission_id.clone(),
            fresh,
            chakra_hook: blueprint.chakra_hooks.get(&part.spec.chakra).cloned(),
            escalation_hook: blueprint.escalation_hook.clone(),
            known_errors: blueprint.known_errors.clone(),
            chakra_threshold: part.chakra_threshold,
        };
        let moved = record.is_some_and(|r| r.node_epoch != place.epoch || r.node != place.node);
        desired.generation = self.generation(plan, instance, &desired, record);
        // To run again belongs to the generation, which a new rank or mission does not change.
        desired.fresh |= record.is_some_and(|r| r.fresh && r.generation == desired.generation);
        let cause = if moved && !place.told_by.is_empty() { place.told_by.clone() } else { cause_of(plan) };
        let short = plan.mission_id.get(..8).unwrap_or(&plan.mission_id);
        let reason = if by_hand {
            reason(BY_HAND, "stopped by hand until it is started by hand".to_owned())
        } else {
            reason("planned", format!("mission {short}: run, rank {}, {}", part.rank_of(instance), place.why))
        };
        Some(Wish { desired, reason, cause })
    }

    /// The generation of a wish: that of the record, unless what makes a placement is new.
    fn generation(&self, plan: &v1::Mission, instance: &Instance, wish: &v1::Desired, record: Option<&v1::Desired>) -> u64 {
        let floor = self.facts.floor(instance);
        let Some(record) = record else {
            // A new bucket: what the nodes hold goes on if it is the same, else it is placed anew.
            let same = (self.told_same(instance, wish, floor) || self.holds_same(instance, wish, floor)) && !wish.fresh;
            return if same { floor.max(1) } else { floor.saturating_add(1) };
        };
        let begins_anew = record.mission_id != plan.mission_id && !plan.ended;
        let changed = record.spec_hash != wish.spec_hash
            || record.node != wish.node
            || record.node_epoch != wish.node_epoch
            || record.generation < floor
            // Started again it is another life: what was told of the one before it says nothing about this one.
            || (record.mode() == RunMode::Stop && wish.mode() == RunMode::Run)
            || (begins_anew && (wish.fresh || self.failed_before(plan, instance, record)));
        if changed { floor.max(record.generation).saturating_add(1) } else { record.generation }
    }

    /// Whether what was desired last, by EVENTS, is what the wish asks for.
    fn told_same(&self, instance: &Instance, wish: &v1::Desired, floor: u64) -> bool {
        let told = self.facts.told_desired(instance);
        // By another journal it was another life, and so it is after a stop: with its generation it would bear the same names again.
        let journal = |t: &v1::DesiredChanged| t.node_epoch.is_empty() || t.node_epoch == wish.node_epoch;
        let again = |t: &v1::DesiredChanged| t.mode == "stop" && wish.mode() == RunMode::Run;
        told.is_some_and(|t| t.generation == floor && t.spec_hash == wish.spec_hash && t.node == wish.node && journal(t) && !again(t))
    }

    /// Whether the wish's node has told, for this bucket, that it is to run the very same by the record on its disk: who knows that needs
    /// no EVENTS. (What rests there is another matter: a start by hand is a new life.)
    fn holds_same(&self, instance: &Instance, wish: &v1::Desired, floor: u64) -> bool {
        let node = self.facts.nodes().get(&wish.node);
        let node = node.filter(|n| n.epoch == wish.node_epoch && self.has_said(n));
        let held = node.and_then(|n| n.held.get(instance));
        held.is_some_and(|h| h.generation == floor && h.spec_hash == wish.spec_hash)
    }

    /// Whether it had failed when the mission began: an operator who asks for the stack again asks for it, too.
    fn failed_before(&self, plan: &v1::Mission, instance: &Instance, record: &v1::Desired) -> bool {
        let began = self.facts.mission(&plan.mission_id).map_or(0, |m| m.sequence);
        let view = self.facts.view(instance);
        view.is_some_and(|v| v.state == InstanceState::Failed && v.since_sequence < began && v.incarnation.generation >= record.generation)
    }

    /// Where it is to run: where it is, if that node will do; else the least loaded present node with the labels that it asks for.
    fn place(&self, record: Option<&v1::Desired>, part: &Part, load: &mut BTreeMap<String, usize>) -> Option<Place> {
        let fits = |name: &str| {
            let labels = self.facts.nodes().get(name).map(|n| &n.labels);
            part.spec.node_labels.iter().all(|want| labels.and_then(|l| l.get(&want.key)) == Some(&want.value))
        };
        if let Some(record) = record {
            let stay = Place {
                node: record.node.clone(),
                epoch: record.node_epoch.clone(),
                told_by: String::new(),
                why: "stays where it is".to_owned(),
            };
            match self.facts.nodes().get(&record.node) {
                // Not told of, away, or not yet told what it holds in a new journal: it stays, nothing is decided about it.
                None => return Some(stay),
                Some(node) if node.lost => return Some(stay),
                Some(node) if fits(&record.node) => {
                    if node.epoch == record.node_epoch || !self.has_told(&record.node, node) {
                        return Some(stay);
                    }
                    let why = "its node has a new journal".to_owned();
                    return Some(Place { node: record.node.clone(), epoch: node.epoch.clone(), told_by: node.epoch_told_by.clone(), why });
                }
                Some(_) => {}
            }
        }
        let usable = self.facts.nodes().iter().filter(|(name, node)| !node.lost && self.has_told(name, node) && fits(name));
        let (name, node) = usable.min_by_key(|(name, _)| (load.get(*name).copied().unwrap_or(0), (*name).clone()))?;
        *load.entry(name.clone()).or_default() += 1;
        let why = if self.facts.nodes().len() == 1 { "the only node" } else { "the least loaded node that will do" };
        Some(Place { node: name.clone(), epoch: node.epoch.clone(), told_by: String::new(), why: why.to_owned() })
    }

    fn stop_wish(&self, plan: &v1::Mission, record: &Record) -> Option<Wish> {
        let current = record.desired().filter(|d| d.mode() != RunMode::Stop)?;
        let instance = current.instance.as_ref().and_then(|i| Instance::try_from(i).ok())?;
        let generation = current.generation.max(self.facts.floor(&instance));
        let desired = v1::Desired { mode: RunMode::Stop.into(), generation, mission_id: plan.mission_id.clone(), ..current.clone() };
        let reason = if self.in_force().is_some() {
            reason(LEFT_PLAN, "no longer in the plan".to_owned())
        } else {
            reason(DOWN, "everything is to be down".to_owned())
        };
        Some(Wish { desired, reason, cause: cause_of(plan) })
    }

    /// The write of a wish that differs from the record; the specification, which its hash stands for, is filled in from `part`.
    fn write_if_different(
        &self,
        instance: &Instance,
        mut wish: Wish,
        part: Option<&Part>,
        now: Now,
    ) -> Option<(Instance, v1::Intent, u64)> {
        let record = self.records.get(instance);
        let stands = !self.spoiled.contains(instance);
        if stands && record.and_then(Record::desired).is_some_and(|current| is_same(current, &wish.desired)) {
            return None;
        }
        if let Some(part) = part {
            wish.desired.spec = Some(part.spec.clone());
        }
        let settled = record.map(|r| r.intent.settled_command_ids.clone()).unwrap_or_default();
        let story = Context::mission(&self.who.mesh, &wish.desired.mission_id);
        Some((instance.clone(), self.intent(instance, wish, story, settled, now), record.map_or(0, |r| r.revision)))
    }

    /// The record of a wish; what acts on it goes on in the trace of the mission, or of the command that asked for this one record.
    fn intent(&self, instance: &Instance, wish: Wish, story: Context, settled: Vec<String>, now: Now) -> v1::Intent {
        let span = trace::desired_sent(&wish.desired.mission_id, &wish.cause);
        let trace = Context { span, sampled: story.sampled && wish.desired.rank <= RANKS_TRACED_MAX, ..story };
        v1::Intent {
            writer: Some(self.who.actor()),
            told_by_event_id: desired_id(instance, wish.desired.generation, &wish.cause),
            cause_id: wish.cause,
            reason: Some(wish.reason),
            trace: Some(trace.into()),
            decided_at: Some(time::timestamp(now.wall)),
            settled_command_ids: settled,
            want: Some(v1::intent::Want::Desired(wish.desired)),
        }
    }

    /// The record of an instance in a new generation, asked for by a command that it settles.
    pub(super) fn raised(
        &self,
        instance: &Instance,
        record: &Record,
        command: &str,
        why: &str,
        now: Now,
    ) -> Option<(Instance, v1::Intent, u64)> {
        let current = record.desired()?;
        let mut settled = record.intent.settled_command_ids.clone();
        settled.push(command.to_owned());
        let surplus = settled.len().saturating_sub(RECORD_SETTLED_MAX);
        settled.drain(..surplus);
        // A one-shot that has completed runs again only when it is to be fresh.
        let one_shot = current.spec.as_ref().is_some_and(|s| s.one_shot);
        let desired = v1::Desired {
            generation: self.facts.floor(instance).max(current.generation).saturating_add(1),
            fresh: one_shot || current.fresh,
            ..current.clone()
        };
        let wish = Wish { desired, reason: reason("restart", why.to_owned()), cause: command.to_owned() };
        Some((instance.clone(), self.intent(instance, wish, self.command_trace(command, ""), settled, now), record.revision))
    }
}

fn reason(code: &str, text: String) -> v1::Reason {
    v1::Reason { code: code.to_owned(), text }
}

/// The command that the plan was changed by last.
fn cause_of(plan: &v1::Mission) -> String {
    plan.settled_command_ids.last().unwrap_or(&plan.mission_id).clone()
}

/// Nodes that may still hold a lower generation: where it was before it moved.
fn after(record: Option<&v1::Desired>, node: &str) -> Vec<String> {
    let Some(record) = record else { return Vec::new() };
    if record.node == node {
        return record.after.clone();
    }
    let mut nodes: BTreeSet<String> = record.after.iter().cloned().collect();
    nodes.insert(record.node.clone());
    nodes.remove(node);
    nodes.into_iter().collect()
}

/// Whether an operator has stopped it by hand: by its own name, or all of its component.
pub(super) fn stopped_by_hand(plan: &v1::Mission, instance: &Instance) -> bool {
    let key = instance.key();
    plan.stopped_by_hand.iter().any(|name| *name == instance.component || *name == key)
}

/// Whether two records ask for the same: the revision of the stack and the mission say only when it was last asked for, and the
/// specification is told by its hash.
fn is_same(a: &v1::Desired, b: &v1::Desired) -> bool {
    a.generation == b.generation
        && a.mode == b.mode
        && (a.rank, a.wave, a.parallel_starts) == (b.rank, b.wave, b.parallel_starts)
        && (&a.node, &a.node_epoch, &a.after) == (&b.node, &b.node_epoch, &b.after)
        && (&a.spec_hash, &a.stack) == (&b.spec_hash, &b.stack)
        && (&a.chakra_hook, &a.escalation_hook, &a.known_errors) == (&b.chakra_hook, &b.escalation_hook, &b.known_errors)
}
