//! Drafts of the events that a node tells: everything but the id and sequence, which are the journal's to give.

use razar_bus_schema::{
    event::{Kind as _, TOLD_AGAIN},
    ids::{Incarnation, Instance},
    time,
    trace::Context,
    v1::{self, DegradedKind, InstanceState, event::Fact},
};

use super::{Group, Node, Now, SYSTEM_STACK, instance::Inst};

impl Node {
    /// A draft about `id` (`None`: about the node itself).
    pub(super) fn draft(&self, id: Option<&Instance>, fact: Fact, code: &str, text: &str, now: Now) -> v1::Event {
        let inst = id.and_then(|id| self.instances.get(id));
        let wanted = inst.and_then(|i| i.wanted.as_ref());
        let incident = inst.and_then(|i| i.incident.as_ref()).map(|open| &open.id);
        let trace = inst.and_then(|inst| self.story(inst));
        v1::Event {
            id: String::new(),
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(now.wall)),
            source: Some(v1::Actor { kind: "node".to_owned(), id: self.config.node.clone() }),
            node_sequence: None,
            chakra: wanted.map_or_else(String::new, |w| w.spec.chakra.clone()),
            instance: id.map(Into::into),
            incarnation: inst.map(|i| i.incarnation.into()),
            incident: incident.map(Into::into),
            mission_id: wanted.map_or_else(String::new, |w| w.desired.mission_id.clone()),
            cause_id: String::new(),
            reason: Some(v1::Reason { code: code.to_owned(), text: text.to_owned() }),
            trace,
            mesh: self.config.mesh.clone(),
            stack: wanted.map_or_else(String::new, |w| w.desired.stack.clone()),
            fact: Some(fact),
        }
    }

    /// Tells a fact about `id`.
    pub(super) fn tell(&mut self, id: &Instance, fact: Fact, code: &str, text: &str, now: Now) {
        let event = self.draft(Some(id), fact, code, text, now);
        self.tells.push(event);
    }

    /// The trace that what happens to `inst` belongs to: its open incident's, else its isolation's, else that of the record that it follows.
    pub(super) fn story(&self, inst: &Inst) -> Option<v1::TraceContext> {
        match &inst.incident {
            Some(open) => Some(Context::incident(&self.config.mesh, &open.id.to_string()).into()),
            None => {
                let well_formed = |t: &v1::TraceContext| Context::parse(&t.traceparent).is_some();
                let isolation = self.isolation(&inst.id).and_then(|intent| intent.trace.clone()).filter(well_formed);
                isolation.or_else(|| inst.wanted.as_ref()?.trace.clone().filter(well_formed))
            }
        }
    }

    /// Tells that the node joined, and what it holds.
    pub fn join(&mut self, joined: v1::NodeJoined, now: Now) {
        let event = self.draft(None, Fact::NodeJoined(joined), "joined", "the node's agent began its work", now);
        self.tells.extend([event, self.inventory_told(now)]);
    }

    /// Tells that a process of another epoch's was stopped.
    pub fn tell_foreign(&mut self, id: &Instance, incarnation: Incarnation, now: Now) {
        let stopped = v1::ComponentStopped { killed: true, why: "foreign_epoch".to_owned(), ..Default::default() };
        let text = "it was of a journal that this node no longer has";
        let mut event = self.draft(Some(id), Fact::ComponentStopped(stopped), "foreign_epoch", text, now);
        event.incarnation = Some(incarnation.into());
        self.tells.push(event);
    }

    /// What the node makes of an instance that does not beat.
    #[must_use]
    pub fn silence(&self, id: &Instance) -> v1::SilenceReply {
        let Some(inst) = self.instances.get(id).filter(|i| i.lives()) else { return v1::SilenceReply::default() };
        v1::SilenceReply {
            incarnation: Some(inst.incarnation.into()),
            signs_of_life: inst.signs_of_life,
            hung: inst.suspect.is_some(),
            evidence: inst.suspect.clone(),
            incident: inst.incident.as_ref().map(|open| (&open.id).into()),
        }
    }

    /// What the node holds.
    #[must_use]
    pub fn inventory(&self) -> v1::NodeInventory {
        let user = self.instances.values().filter(|i| i.wanted.as_ref().is_none_or(|w| w.desired.stack != SYSTEM_STACK));
        let items = user.map(|i| v1::InventoryItem {
            instance: Some((&i.id).into()),
            generation: i.generation,
            incarnation: Some(i.incarnation.into()),
            state: i.state.into(),
            spec_hash: wanted_hash(i),
        });
        v1::NodeInventory {
            node_epoch: self.config.node_epoch.clone(),
            bucket_epoch: self.intents.epoch().to_owned(),
            items: items.collect(),
            quarantine_records: self.quarantine_records(),
        }
    }

    /// Tells who lives, what has completed, and as which process: for a stream of events that knows nothing of it.
    pub fn tell_living(&mut self, now: Now) {
        let wanted = self.instances.values().filter(|i| i.wanted.is_some());
        let told = wanted.flat_map(|inst| self.life(inst, "EVENTS is new, and knows nothing of it", now)).collect::<Vec<_>>();
        self.tells.extend(told);
        self.tell_failures(now);
    }

    /// Tells the same of one: others take its isolation, which came and went unseen here, for its end.
    pub(super) fn tell_life(&mut self, id: &Instance, now: Now) {
        let told = self.instances.get(id).map(|inst| self.life(inst, "it was released before its isolation was seen here", now));
        self.tells.extend(told.unwrap_or_default());
    }

    fn life(&self, inst: &Inst, why: &str, now: Now) -> Vec<v1::Event> {
        let mut told = Vec::new();
        let about = |fact| self.draft(Some(&inst.id), fact, TOLD_AGAIN, why, now);
        let ready = |completed| {
            Fact::ComponentReady(v1::ComponentReady { probe: inst.reason.clone(), again: true, completed, ..Default::default() })
        };
        if let Some(process) = inst.process.clone().filter(|_| inst.lives()) {
            let started = v1::ComponentStarted {
                process: Some(process),
                generation: inst.incarnation.generation,
                adopted: true,
                dependencies: super::folding::dependencies_seen(inst),
                ..Default::default()
            };
            told.push(about(Fact::ComponentStarted(started)));
        }
        match inst.state {
            InstanceState::Ready => told.push(about(ready(false))),
            InstanceState::Completed => told.push(about(ready(true))),
            InstanceState::Unready => {
                told.push(about(Fact::ComponentUnready(v1::ComponentUnready { probe: inst.reason.clone() })));
            }
            InstanceState::Unspecified
            | InstanceState::Waiting
            | InstanceState::Preparing
            | InstanceState::Starting
            | InstanceState::Stopping
            | InstanceState::Stopped
            | InstanceState::Exited
            | InstanceState::Backoff
            | InstanceState::Failed
            | InstanceState::Quarantined
            | InstanceState::Probation => {}
        }
        // A start that has had its time is to be known, whatever was told of it since.
        let starts_slowly = inst.state == InstanceState::Starting && inst.slow_start_told && !inst.spec().is_some_and(|s| s.one_shot);
        let degraded = super::degraded::degradation_of(inst).filter(|d| !d.passed && inst.lives());
        if starts_slowly && degraded.as_ref().is_none_or(|d| d.kind() != DegradedKind::Slow) {
            let slow = v1::ComponentDegraded { kind: DegradedKind::Slow.into(), detail: why.to_owned(), passed: false };
            told.push(about(Fact::ComponentDegraded(slow)));
        }
        told.extend(degraded.map(|degraded| about(Fact::ComponentDegraded(degraded))));
        if !inst.blocked_told.is_empty() {
            told.push(about(Fact::ComponentBlocked(v1::ComponentBlocked { by: inst.blocked_told.clone() })));
        }
        told
    }

    /// Tells again who is given up: the last life of the agent may have died before it did, or EVENTS may be new.
    pub(super) fn tell_failures(&mut self, now: Now) {
        let failed = self.instances.values().filter(|i| i.state == InstanceState::Failed && i.group() == Group::User);
        let again = failed.map(|inst| {
            let (cause, last_error) = (inst.failed_cause.clone(), inst.last_error.clone());
            let fact = v1::ComponentFailed { cause, last_error, status: inst.last_exit, ..Default::default() };
            self.draft(Some(&inst.id), Fact::ComponentFailed(fact), TOLD_AGAIN, "it was given up before", now)
        });
        let again: Vec<_> = again.collect();
        self.tells.extend(again);
    }

    /// Tells what the node holds.
    pub(super) fn tell_inventory(&mut self, now: Now) {
        let event = self.inventory_told(now);
        self.tells.push(event);
    }

    fn inventory_told(&self, now: Now) -> v1::Event {
        self.draft(None, Fact::NodeInventory(self.inventory()), "inventory", "what this node holds", now)
    }
}

/// Hash of what is wanted of an instance in the generation that it has persisted; empty: nothing is.
fn wanted_hash(inst: &Inst) -> String {
    let wanted = inst.wanted.as_ref().filter(|w| !w.elsewhere && w.desired.generation == inst.generation);
    wanted.map_or_else(String::new, |w| w.desired.spec_hash.clone())
}
