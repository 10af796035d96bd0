//! A bus of one thread around the policy: what it publishes comes back as an event, what it writes as a record, unless a test holds
//! that back; a node that tells what a test says.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Incident, Instance},
    time::{self, timestamp},
    v1::{self, DependencyCondition as Condition, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want},
};
use razar_recovery::policy::{Action, Identity, Limits, Now, Outcome, State, WriteError};

/// More rounds than any step of a test needs.
const ROUNDS_MAX: usize = 20;

pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) now: Now,
    /// What is published does not come back.
    pub(crate) mute: bool,
    /// Nor do events of this kind.
    pub(crate) lost_kind: &'static str,
    /// Where components are desired, and told of.
    pub(crate) node: &'static str,
    /// What is written conflicts.
    pub(crate) conflict: bool,
    /// What is written is answered late: by [`Bench::answered`].
    pub(crate) slow: bool,
    late: Vec<Outcome>,
    /// Incident that the node has open for each component.
    open: std::collections::BTreeMap<String, String>,
    sequence: u64,
    journal: u64,
    revision: u64,
    log: Vec<String>,
    pub(crate) events: Vec<v1::Event>,
    pub(crate) orders: Vec<v1::Intent>,
    stored: Vec<(u64, v1::Event, SystemTime)>,
    records: Vec<(Instance, u64, v1::Intent)>,
    /// What the node answers when it is asked; `None`: nothing.
    pub(crate) inventory: Option<v1::NodeInventory>,
    mission: String,
    /// Code of the reason that the node gives.
    reason: &'static str,
    /// Starts at a time of what is desired from now on.
    pub(crate) slots: u32,
    /// The chakra's hook of what is desired from now on.
    pub(crate) hook: Option<v1::Hook>,
    /// The hook of escalations, likewise.
    pub(crate) pager: Option<v1::Hook>,
    /// What nodes know of errors from now on.
    pub(crate) issue: Option<v1::Issue>,
}

pub(crate) fn id(name: &str) -> Instance {
    name.parse().unwrap()
}

pub(crate) fn inc(text: &str) -> Incarnation {
    text.parse().unwrap()
}

/// A component with all rungs, a state directory, and these dependencies.
pub(crate) fn spec(name: &str, after: &[&str]) -> v1::ComponentSpec {
    let depends = |component: &&str| v1::Dependency {
        component: (*component).to_owned(),
        condition: Condition::Ready.into(),
        required: true,
        restart: false,
    };
    v1::ComponentSpec {
        name: name.to_owned(),
        chakra: "heart".to_owned(),
        heal: ["restart", "clear_state", "dependencies", "chakra_hook"].map(str::to_owned).to_vec(),
        state: vec!["/x".to_owned()],
        depends_on: after.iter().map(depends).collect(),
        ..Default::default()
    }
}

impl Bench {
    /// Everything is read; `specs` are desired in generation 1.
    pub(crate) fn new(specs: &[v1::ComponentSpec]) -> Self {
        let who = Identity { mesh: "razar".to_owned(), replica: "r1".to_owned() };
        let mut bench = Self {
            state: State::new(who, Limits::default()),
            now: Now { mono: Duration::from_secs(1000), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) },
            mute: false,
            lost_kind: "",
            node: "a",
            conflict: false,
            slow: false,
            late: Vec::new(),
            open: std::collections::BTreeMap::new(),
            sequence: 0,
            journal: 0,
            revision: 0,
            log: Vec::new(),
            events: Vec::new(),
            orders: Vec::new(),
            stored: Vec::new(),
            records: Vec::new(),
            inventory: None,
            mission: String::new(),
            reason: "",
            slots: 4,
            hook: None,
            pager: None,
            issue: None,
        };
        bench.state.apply_intents_epoch("b1");
        bench.state.apply_caught_up();
        for spec in specs {
            bench.desire(spec, 1, RunMode::Run);
        }
        bench
    }

    /// Another replica that reads everything from the beginning, and decides from then on.
    pub(crate) fn take_over(&mut self) {
        let who = Identity { mesh: "razar".to_owned(), replica: "r2".to_owned() };
        let mut state = State::new(who, Limits::default());
        state.apply_intents_epoch("b1");
        for (instance, revision, intent) in &self.records {
            match &intent.want {
                Some(Want::Desired(_)) => state.apply_desired(instance, *revision, Arc::new(intent.clone())),
                Some(Want::Quarantine(q)) => state.apply_quarantine(&q.component, q.ordinal, *revision, q.phase()),
                _ => state.apply_record(instance, *revision, Some(Arc::new(intent.clone())), self.now),
            }
        }
        for (sequence, event, stored) in &self.stored {
            state.apply_event(*sequence, event, *stored, self.now);
        }
        state.apply_caught_up();
        self.state = state;
        self.turn();
    }

    /// A mission begins, under which its node tells from now on; `ready` at its end.
    pub(crate) fn mission(&mut self, id: &str, ready: &[&str]) {
        self.mission = id.to_owned();
        self.mission_ends(id, ready, &[], "complete");
    }

    /// A mission ends with these.
    pub(crate) fn mission_ends(&mut self, id: &str, ready: &[&str], failed: &[&str], outcome: &str) {
        let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
        let (ready, failed, outcome) = (names(ready), names(failed), outcome.to_owned());
        let fact = Fact::MissionCompleted(v1::MissionCompleted { mission_id: id.to_owned(), ready, failed, outcome, ..Default::default() });
        self.store(&v1::Event { id: format!("mission {id}"), kind: fact.kind().to_owned(), fact: Some(fact), ..Default::default() });
        self.turn();
    }

    /// What the node answers from now on: instances, their incarnations and states.
    pub(crate) fn holds(&mut self, items: &[(&str, &str, v1::InstanceState)]) {
        let item = |(name, incarnation, state): &(&str, &str, v1::InstanceState)| v1::InventoryItem {
            instance: Some((&id(name)).into()),
            incarnation: Some(inc(incarnation).into()),
            state: (*state).into(),
            ..Default::default()
        };
        self.inventory = Some(v1::NodeInventory { items: items.iter().map(item).collect(), ..Default::default() });
    }

    /// The node tells an inventory of its own accord.
    pub(crate) fn inventoried(&mut self, items: &[(&str, &str, v1::InstanceState)]) {
        let answer = self.inventory.take();
        self.holds(items);
        let fact = Fact::NodeInventory(std::mem::replace(&mut self.inventory, answer).unwrap_or_default());
        self.journal += 1;
        let event = v1::Event {
            id: node_event_id("a", "e1", self.journal),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.journal }),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    pub(crate) fn desire(&mut self, spec: &v1::ComponentSpec, generation: u64, mode: RunMode) {
        self.revision += 1;
        let instance = id(&spec.name);
        let desired = v1::Desired {
            instance: Some((&instance).into()),
            generation,
            mode: mode.into(),
            rank: u32::try_from(self.records.len()).unwrap(),
            parallel_starts: self.slots,
            spec: Some(spec.clone()),
            chakra_hook: self.hook.clone(),
            escalation_hook: self.pager.clone(),
            node: self.node.to_owned(),
            ..Default::default()
        };
        let intent = v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() };
        self.records.push((instance.clone(), self.revision, intent.clone()));
        self.state.apply_desired(&instance, self.revision, Arc::new(intent));
        self.turn();
    }

    pub(crate) fn quarantine(&mut self, name: &str, phase: Phase) {
        self.revision += 1;
        let q = v1::Quarantine { component: name.to_owned(), ordinal: Some(0), phase: phase.into(), ..Default::default() };
        let intent = v1::Intent { want: Some(Want::Quarantine(q)), ..Default::default() };
        self.records.push((id(name), self.revision, intent));
        self.state.apply_quarantine(name, Some(0), self.revision, phase);
        self.turn();
    }

    /// An event of the node about `name` in `incarnation`, in the incident that is open there; then what is decided.
    pub(crate) fn tell(&mut self, name: &str, incarnation: &str, fact: Fact) {
        self.journal += 1;
        let nodes_own = !matches!(fact, Fact::Quarantined(_) | Fact::Released(_));
        let event = v1::Event {
            id: node_event_id(self.node, "e1", self.journal),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(self.now.wall)),
            source: Some(v1::Actor { kind: "node".to_owned(), id: self.node.to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: self.node.to_owned(), epoch: "e1".to_owned(), sequence: self.journal }),
            chakra: "heart".to_owned(),
            instance: Some((&id(name)).into()),
            incarnation: Some(inc(incarnation).into()),
            incident: self.open.get(name).filter(|_| nodes_own).map(|i| (&i.parse::<Incident>().unwrap()).into()),
            stack: "demo".to_owned(),
            mission_id: self.mission.clone(),
            reason: Some(v1::Reason { code: self.reason.to_owned(), ..Default::default() }),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    /// EVENTS is lost and made anew.
    pub(crate) fn lose_events(&mut self) {
        self.state.apply_reset();
        self.state.apply_caught_up();
        self.sequence = 0;
        self.stored.clear();
        self.turn();
    }

    /// The bucket of intents is lost and made anew.
    pub(crate) fn lose_intents(&mut self) {
        self.records.clear();
        self.state.apply_intents_epoch("b2");
    }

    /// Answers come that are late.
    pub(crate) fn answered(&mut self) {
        self.slow = false;
        for outcome in std::mem::take(&mut self.late) {
            self.state.apply_outcome(outcome, self.now);
        }
    }

    /// Its node tells once more that it is given up.
    pub(crate) fn failed_again(&mut self, name: &str, incarnation: &str) {
        self.reason = razar_bus_schema::event::TOLD_AGAIN;
        self.failed(name, incarnation, "budget_spent");
        self.reason = "";
    }

    /// An event of somebody else comes, then what is decided.
    pub(crate) fn hears(&mut self, event: &v1::Event) {
        self.store(event);
        self.turn();
    }

    fn store(&mut self, event: &v1::Event) {
        self.sequence += 1;
        self.stored.push((self.sequence, event.clone(), self.now.wall));
        self.state.apply_event(self.sequence, event, self.now.wall, self.now);
    }

    pub(crate) fn started(&mut self, name: &str, incarnation: &str) {
        self.tell(name, incarnation, Fact::ComponentStarted(v1::ComponentStarted::default()));
    }

    pub(crate) fn ready(&mut self, name: &str, incarnation: &str) {
        self.tell(name, incarnation, Fact::ComponentReady(v1::ComponentReady::default()));
    }

    pub(crate) fn exited(&mut self, name: &str, incarnation: &str) {
        self.open.entry(name.to_owned()).or_insert_with(|| format!("{name}@{incarnation}"));
        self.tell(name, incarnation, Fact::ComponentExited(v1::ComponentExited::default()));
    }

    pub(crate) fn failed(&mut self, name: &str, incarnation: &str, cause: &str) {
        let issue = self.issue.clone();
        let fact = v1::ComponentFailed { cause: cause.to_owned(), last_error: "boom".to_owned(), issue, ..Default::default() };
        self.tell(name, incarnation, Fact::ComponentFailed(fact));
    }

    /// Starts, exits and is given up after its local restarts: the incident is `name@1.1`, the last incarnation 1.4.
    pub(crate) fn exhaust(&mut self, name: &str) {
        for start in 1..=4 {
            self.started(name, &format!("1.{start}"));
            self.exited(name, &format!("1.{start}"));
        }
        self.failed(name, "1.4", "budget_spent");
    }

    /// A rung's start that fails.
    pub(crate) fn rung_fails(&mut self, name: &str, incarnation: &str) {
        self.started(name, incarnation);
        self.exited(name, incarnation);
        self.failed(name, incarnation, "rung_failed");
    }

    /// The node forgets the incident that it had open.
    pub(crate) fn close(&mut self, name: &str) {
        self.open.remove(name);
    }

    /// The node has this incident open.
    pub(crate) fn open(&mut self, name: &str, incident: &str) {
        self.open.insert(name.to_owned(), incident.to_owned());
    }

    pub(crate) fn local_recovery(&mut self, name: &str, start: u64) {
        self.exited(name, &format!("1.{start}"));
        let next = format!("1.{}", start + 1);
        self.started(name, &next);
        self.ready(name, &next);
        self.tell(name, &next, Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() }));
        self.close(name);
    }

    pub(crate) fn blocked(&mut self, name: &str, incarnation: &str, by: &str) {
        let by = vec![v1::Blocker { component: by.to_owned(), ..Default::default() }];
        self.tell(name, incarnation, Fact::ComponentBlocked(v1::ComponentBlocked { by }));
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
        self.now.wall += Duration::from_secs(seconds);
        self.turn();
    }

    /// Decides until nothing more is due.
    pub(crate) fn turn(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let actions = self.state.decide(self.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.perform(action);
            }
        }
        unreachable!("it never comes to rest: {:#?}", self.log);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Publish(event) => {
                // What is told of an instance to people has tests of its own.
                if event.kind != "escalated" || event.instance.is_none() {
                    self.log.push(event_line(&event));
                }
                self.events.push((*event).clone());
                if !self.mute && event.kind != self.lost_kind {
                    self.store(&event);
                }
            }
            Action::Ask { instance, nodes } => {
                self.log.push(format!("ask {}", nodes.iter().map(String::as_str).collect::<Vec<_>>().join(" ")));
                let inventories = self.inventory.clone().map(|inventory| vec![inventory]);
                self.state.apply_outcome(Outcome::Asked { instance, inventories }, self.now);
            }
            Action::Announce(announce) => {
                let Some(Want::Escalations(wanted)) = &announce.intent.want else { unreachable!("{announce:?}") };
                let of = |e: &v1::Escalation| format!(" {} {}", e.severity, e.about);
                self.log.push(format!("announce to {}:{}", announce.node, wanted.items.iter().map(of).collect::<String>()));
                self.revision += 1;
                self.state.apply_outcome(Outcome::Announced(announce, Ok(self.revision)), self.now);
            }
            Action::Write(write) => {
                let known = self.records.iter().rev().find(|(i, _, intent)| *i == write.instance && is_order(intent)).map_or(0, |r| r.1);
                assert_eq!(write.expected, known, "it writes over what it knows");
                self.may_overwrite(&write.instance);
                if self.conflict {
                    self.state.apply_outcome(Outcome::Wrote(write, Err(WriteError::Conflict)), self.now);
                    return;
                }
                self.revision += 1;
                self.log.push(order_line(&write.intent));
                self.orders.push(write.intent.clone());
                self.records.push((write.instance.clone(), self.revision, write.intent.clone()));
                let outcome = Outcome::Wrote(write, Ok(self.revision));
                if self.slow { self.late.push(outcome) } else { self.state.apply_outcome(outcome, self.now) }
            }
        }
    }

    /// A record may be written over only when the event that tells of it is in EVENTS.
    fn may_overwrite(&self, instance: &Instance) {
        let before = self.records.iter().rev().find(|(i, _, intent)| i == instance && is_order(intent));
        let Some((_, _, before)) = before else { return };
        assert!(self.stored.iter().any(|(_, e, _)| e.id == before.told_by_event_id), "{} is not told", before.told_by_event_id);
    }

    /// The watchdog's verdict that `name` does not beat and hangs; `cause` is the change of its state that it goes by.
    pub(crate) fn silent(&mut self, name: &str, incarnation: &str, signs: u64, cause: &str) {
        self.judged(name, incarnation, signs, cause, Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default()));
    }

    /// A verdict of the watchdog's on `name`, in an incident.
    pub(crate) fn judged(&mut self, name: &str, incarnation: &str, signs: u64, cause: &str, fact: Fact) {
        let incident = Incident { instance: id(name), incarnation: inc(incarnation), signs_of_life: signs };
        self.judged_in(&incident, incarnation, cause, fact);
    }

    /// The same of an incarnation that was to end the incident.
    pub(crate) fn judged_in(&mut self, incident: &Incident, incarnation: &str, cause: &str, fact: Fact) {
        let name = &incident.instance.component;
        let event = v1::Event {
            id: format!("a:watchdog:{}:{name}.0:{incarnation}:{cause}", fact.kind()),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "watchdog".to_owned(), id: "w1".to_owned() }),
            chakra: "heart".to_owned(),
            instance: Some((&incident.instance).into()),
            incarnation: Some(inc(incarnation).into()),
            incident: Some(incident.into()),
            cause_id: cause.to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    /// Id of the node's newest event.
    pub(crate) fn newest(&self) -> String {
        node_event_id("a", "e1", self.journal)
    }

    /// The watchdog's verdict on the node.
    pub(crate) fn lose_node(&mut self) {
        let fact = Fact::NodeLost(v1::NodeLost::default());
        let incident = v1::IncidentId { mesh_cause: "node_lost:a".to_owned(), ..Default::default() };
        let source = Some(v1::Actor { kind: "watchdog".to_owned(), id: "w".to_owned() });
        let event = v1::Event {
            id: "lost".to_owned(),
            kind: fact.kind().to_owned(),
            source,
            incident: Some(incident),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    /// The watchdog's word on the chakra of all components here.
    pub(crate) fn chakra(&mut self, fell: Option<&str>) {
        let fact = match fell {
            Some(_) => Fact::ChakraDown(v1::ChakraDown::default()),
            None => Fact::ChakraRecovered(v1::ChakraRecovered::default()),
        };
        let event = v1::Event {
            id: fell.unwrap_or("well").to_owned(),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "watchdog".to_owned(), id: "w".to_owned() }),
            chakra: "heart".to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    /// An end with these last words.
    pub(crate) fn says(&mut self, name: &str, incarnation: &str, error: &str) {
        self.open.entry(name.to_owned()).or_insert_with(|| format!("{name}@{incarnation}"));
        self.tell(name, incarnation, Fact::ComponentExited(v1::ComponentExited { last_error: error.to_owned(), ..Default::default() }));
    }

    /// The node's word on the hook of an escalation.
    pub(crate) fn paged(&mut self, escalation: &str) {
        self.journal += 1;
        let fact = Fact::HookRan(v1::HookRan { hook: "escalation".to_owned(), outcome: "ok".to_owned(), ..Default::default() });
        let event = v1::Event {
            id: node_event_id("a", "e1", self.journal),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.journal }),
            cause_id: escalation.to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        self.store(&event);
        self.turn();
    }

    /// Severity, text, count and id of what was escalated about instances.
    pub(crate) fn escalated(&self) -> Vec<(String, String, u32, String)> {
        let of = |e: &v1::Event| match &e.fact {
            Some(Fact::Escalated(f)) if e.instance.is_some() => Some((f.severity.clone(), f.about.clone(), f.count, e.id.clone())),
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }

    /// Every event once more, behind all others.
    pub(crate) fn repeat_all(&mut self) {
        for (_, event, _) in self.stored.clone() {
            self.store(&event);
        }
        self.turn();
    }

    /// Lines since the last call.
    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

fn is_order(intent: &v1::Intent) -> bool {
    matches!(intent.want, Some(Want::Recovery(_)))
}

fn order_line(intent: &v1::Intent) -> String {
    let Some(Want::Recovery(order)) = &intent.want else { unreachable!("{intent:?}") };
    let incident = Incident::try_from(order.incident.as_ref().unwrap()).unwrap();
    let replaces = Incarnation::from(order.replaces.as_ref().unwrap());
    let clear = if order.clear_state { " clearing" } else { "" };
    let clear = if order.chakra_hook { " hooking" } else { clear };
    if order.ended {
        return format!("end {}#{} of {incident}", order.rung, order.attempt);
    }
    if order.hold_dependents.is_none() {
        return format!("let go {}#{} of {incident}", order.rung, order.attempt);
    }
    let hold = order.hold_dependents.as_ref().map(time::std_duration).unwrap();
    assert!(hold >= Duration::from_secs(30), "{hold:?}");
    format!("order {}#{} of {incident}: {replaces}{clear}", order.rung, order.attempt)
}

impl Bench {
    /// Ids of recovery's events in the stream.
    pub(crate) fn told_ids(&self) -> Vec<&str> {
        let ours = self.stored.iter().filter(|(_, e, _)| e.source.as_ref().is_some_and(|s| s.kind == "recovery"));
        ours.map(|(_, e, _)| e.id.as_str()).collect()
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "recovery tells no other facts")]
fn event_line(event: &v1::Event) -> String {
    match event.fact.as_ref().unwrap() {
        Fact::RecoveryStarted(s) => format!("recovery_started {}", s.rungs.join(" ")),
        Fact::RungTried(t) => format!("rung_tried {} {} {}", t.rung, t.outcome, t.next).trim_end().to_owned(),
        Fact::Recovered(r) => format!("recovered {} {}", r.rung, Incarnation::from(event.incarnation.as_ref().unwrap())),
        Fact::RecoveryFailed(f) => format!("recovery_failed {} {}", f.attempts, f.last_error),
        Fact::BrakeEngaged(b) => format!("brake_engaged {} of {}", b.failed_roots, b.counted),
        Fact::IncidentWithdrawn(w) => format!("incident_withdrawn {}", w.why),
        _ => event.kind.clone(),
    }
}
