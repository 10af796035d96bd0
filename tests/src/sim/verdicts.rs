//! What the watchdog must and must not tell, worked out from what really passed the broker, from EVENTS and from the nodes: it shares no code
//! with its policy, nor with the folds of presence that the agents go by.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, InstanceState as State, RunMode, event::Fact},
};

use super::{
    bus::{Client, Stored},
    faults::Fault,
    healing::{instance, seen},
    replica::mind::{Deed, Trade},
    watch::BEAT,
    world::World,
};

/// Silence of a node or an agent that is one: three beats.
const SILENCE: Duration = Duration::from_secs(3);
/// Within this time after its last sign a silent one is told, by a watchdog that has led and listened for as long.
const TOLD_WITHIN: Duration = Duration::from_millis(4_500);
/// The same where lines are slow or replies are lost.
const TOLD_LATE: Duration = Duration::from_secs(20);
/// Time for which a beat may be on its way to a watchdog where lines are slow.
const SLOW: Duration = Duration::from_secs(8);
/// Passages that are remembered.
const PASSED_MAX: usize = 16;

/// Who is to be heard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// A node.
    Node(String),
    /// An agent: kind and id.
    Agent(String, String),
    /// A life of an instance, as beats name it.
    Component(String, Incarnation),
}

/// Whether somebody counts as silent, by EVENTS.
#[derive(Debug, Clone, Default)]
struct Presence {
    by: String,
    by_verdict: bool,
    away: bool,
    since: Duration,
}

/// Who is there by EVENTS, and which chakras are told down.
#[derive(Debug, Clone, Default)]
pub struct Told {
    known: BTreeSet<String>,
    present: BTreeMap<Whom, Presence>,
    down: BTreeSet<String>,
    spiral: bool,
    /// The verdict that was told on each cause.
    verdicts: BTreeMap<(&'static str, String, String), String>,
    /// Lives that do not beat, by the watchdog.
    unresponsive: BTreeSet<(Instance, Incarnation)>,
}

/// What passed the broker beside its streams.
#[derive(Debug, Default)]
pub struct Watching {
    passed: BTreeMap<Whom, VecDeque<Duration>>,
    /// Beats that say that their loop stands.
    stood: BTreeMap<Whom, VecDeque<Duration>>,
    last: BTreeMap<Whom, Duration>,
    /// Answers of nodes that reached a replica.
    answered: BTreeMap<(usize, String), Duration>,
    /// What a node said of a life when a replica asked it, by the node's oracle.
    looked: BTreeMap<(usize, Instance), (Incarnation, bool)>,
    /// What EVENTS tell.
    pub told: Told,
    /// Verdicts on silence given in all.
    pub verdicts: u64,
}

impl Watching {
    /// A beat passes the broker at `sent`, behind those before it; when it does.
    pub fn passes(&mut self, whom: Whom, sent: Duration, stands: bool) -> Duration {
        let last = self.last.entry(whom.clone()).or_default();
        let at = sent.max(*last);
        *last = at;
        let of = if stands { &mut self.stood } else { &mut self.passed };
        let all = of.entry(whom).or_default();
        all.push_back(at);
        if all.len() > PASSED_MAX {
            all.pop_front();
        }
        at
    }

    /// A node said something of a life.
    pub fn looked(&mut self, r: usize, instance: &Instance, life: Incarnation, hung: bool) {
        self.looked.insert((r, instance.clone()), (life, hung));
    }

    /// A node's answer reached a replica.
    pub fn answered(&mut self, r: usize, node: &str, now: Duration) {
        self.answered.insert((r, node.to_owned()), now);
    }

    /// EVENTS was made anew.
    pub fn events_recreated(&mut self) {
        self.told = Told::default();
    }

    /// Whether there were `patience` without a beat, which ended at most `on_its_way` before `now`.
    fn was_silent(&self, whom: &Whom, patience: Duration, on_its_way: Duration, now: Duration) -> bool {
        let mut end = now;
        for at in self.passed.get(whom).into_iter().flatten().rev().filter(|at| **at <= now) {
            if end.saturating_sub(*at) >= patience {
                return true;
            }
            if now.saturating_sub(*at) > on_its_way {
                return false;
            }
            end = *at;
        }
        // Nothing before that is remembered.
        self.passed.get(whom).is_none_or(|all| all.len() < PASSED_MAX)
    }
}

impl Told {
    /// Folds an event; what must not be in it.
    fn fold(&mut self, event: &v1::Event, now: Duration) -> Option<String> {
        if !self.known.insert(event.id.clone()) {
            return None;
        }
        let by_watchdog = event.source.as_ref().is_some_and(|s| s.kind == razar_watchdog::AGENT);
        match &event.fact {
            Some(Fact::ChakraDown(_)) => drop(self.down.insert(event.chakra.clone())),
            Some(Fact::ChakraRecovered(_)) => drop(self.down.remove(&event.chakra)),
            Some(Fact::GreatSpiral(_)) => self.spiral = true,
            Some(Fact::OutOfSync(_)) => self.spiral = false,
            Some(Fact::ComponentUnresponsive(_)) if by_watchdog => {
                let life = event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
                self.unresponsive.extend(instance(event).map(|id| (id, life)));
            }
            _ => {}
        }
        let whom = about(event);
        let twice = self.twice(event, whom.as_ref());
        let Some(whom) = whom else { return twice };
        let of = self.present.entry(whom).or_default();
        let current = of.by.is_empty() || of.by == event.cause_id;
        let (by_verdict, away) = match &event.fact {
            Some(Fact::NodeLost(_) | Fact::AgentDown(_)) if current && !of.away => (true, true),
            Some(Fact::NodeReturned(_) | Fact::AgentReturned(_)) if current && of.away => (true, false),
            Some(Fact::NodeJoined(_) | Fact::AgentStarted(_)) => (false, false),
            Some(Fact::NodeLost(_) | Fact::AgentDown(_) | Fact::NodeReturned(_) | Fact::AgentReturned(_)) => return twice,
            _ if of.away && event.node_sequence.is_some() => (false, false),
            _ => return twice,
        };
        *of = Presence { by: event.id.clone(), by_verdict, away, since: now };
        twice
    }

    /// Why a verdict is one too many: its cause has another one, or is itself one that says the same.
    fn twice(&mut self, event: &v1::Event, whom: Option<&Whom>) -> Option<String> {
        let kind = match &event.fact {
            Some(Fact::NodeLost(_)) => "node_lost",
            Some(Fact::NodeReturned(_)) => "node_returned",
            Some(Fact::AgentDown(_)) => "agent_down",
            Some(Fact::AgentReturned(_)) => "agent_returned",
            Some(Fact::ChakraRecovered(_)) => "chakra_recovered",
            Some(Fact::ComponentUnresponsive(_)) if event.source.as_ref().is_some_and(|s| s.kind == razar_watchdog::AGENT) => {
                "unresponsive"
            }
            _ => return None,
        };
        let subject = whom.map_or_else(|| format!("{}{:?}", event.chakra, event.instance), |whom| format!("{whom:?}"));
        let said = whom.and_then(|whom| self.present.get(whom)).filter(|p| p.by_verdict && p.by == event.cause_id);
        let away = matches!(kind, "node_lost" | "agent_down");
        if said.is_some_and(|p| p.away == away) {
            return Some(format!("{} is caused by a verdict that says the same", event.id));
        }
        let first = self.verdicts.entry((kind, subject, event.cause_id.clone())).or_insert_with(|| event.id.clone());
        (*first != event.id).then(|| format!("{first} and {} are one verdict on {}", event.id, event.cause_id))
    }

    /// Whether a life counts as unresponsive by the watchdog.
    #[must_use]
    pub fn is_unresponsive(&self, id: &Instance, life: Incarnation) -> bool {
        self.unresponsive.contains(&(id.clone(), life))
    }
}

/// Node or agent that an event is about.
fn about(event: &v1::Event) -> Option<Whom> {
    let agent = |kind: &String, id: &String| Some(Whom::Agent(kind.clone(), id.clone()));
    match &event.fact {
        Some(Fact::NodeLost(_) | Fact::NodeReturned(_)) => {
            event.incident.as_ref()?.mesh_cause.split_once(':').map(|(_, node)| Whom::Node(node.to_owned()))
        }
        Some(Fact::AgentStarted(a)) => agent(&a.kind, &a.id),
        Some(Fact::AgentDown(a)) => agent(&a.kind, &a.id),
        Some(Fact::AgentReturned(a)) => agent(&a.kind, &a.id),
        _ => event.source.as_ref().filter(|s| s.kind == "node").map(|s| Whom::Node(s.id.clone())),
    }
}

impl World {
    /// An event is stored.
    pub(super) fn check_verdict_event(&mut self, event: &v1::Event) {
        let now = self.now;
        if let Some(why) = self.checks.watching.told.fold(event, now) {
            self.violated("verdict", why);
        }
    }

    /// What a watchdog is about to tell.
    pub(super) fn check_verdicts(&mut self, r: usize, deeds: &[Deed]) {
        if self.replicas[r].trade != Trade::Watchdog {
            return;
        }
        for deed in deeds {
            let Deed::Publish(event) = deed else { continue };
            self.checks.watching.verdicts += 1;
            if let Some(why) = self.verdict_fault(r, event) {
                let whom = about(event).map_or_else(|| format!("{:?}", instance(event)), |whom| format!("{whom:?}"));
                return self.violated("verdict", format!("{} of {whom} by replica {r}: {why}", event.kind));
            }
        }
    }

    fn verdict_fault(&self, r: usize, event: &v1::Event) -> Option<String> {
        match &event.fact {
            Some(Fact::NodeLost(_)) => self.silence_fault(r, &about(event)?, SILENCE),
            Some(Fact::AgentDown(down)) if down.evidence.iter().any(|e| e == "loop_stands") => {
                let stood = self.checks.watching.stood.get(&about(event)?);
                let newly = stood.into_iter().flatten().rev().take(2).filter(|at| self.now.saturating_sub(**at) < SLOW).count();
                (newly < 2).then(|| "its beats do not say that its loop stands".to_owned())
            }
            Some(Fact::AgentDown(_)) => self.silence_fault(r, &about(event)?, SILENCE),
            Some(Fact::NodeReturned(_) | Fact::AgentReturned(_)) => {
                let whom = about(event)?;
                let away_since = self.checks.watching.told.present.get(&whom).filter(|p| p.away).map_or(Duration::ZERO, |p| p.since);
                let passed = self.checks.watching.passed.get(&whom).and_then(|all| all.back()).copied();
                let answered =
                    if let Whom::Node(name) = &whom { self.checks.watching.answered.get(&(r, name.clone())).copied() } else { None };
                let heard = passed.max(answered).is_some_and(|at| at + SLOW >= away_since);
                (!heard).then(|| "it was not heard since the verdict".to_owned())
            }
            Some(Fact::ComponentUnresponsive(_)) => self.unresponsive_fault(r, event),
            Some(Fact::ChakraDown(_)) => self.chakra_fault(r, &event.chakra),
            _ => None,
        }
    }

    fn on_its_way(&self) -> Duration {
        if self.faults.had(Fault::SlowLine) { SLOW } else { Duration::from_millis(200) }
    }

    /// Why a silence is none: a beat passed the broker or an answer came in time, or the observer was not there for the whole of it.
    fn silence_fault(&self, r: usize, whom: &Whom, patience: Duration) -> Option<String> {
        let (now, watching) = (self.now, &self.checks.watching);
        let attentive = now.saturating_sub(self.replicas[r].ears.attentive_since);
        if attentive < patience {
            return Some(format!("the observer is current for {attentive:?} only"));
        }
        if !watching.was_silent(whom, patience, self.on_its_way(), now) {
            return Some(format!("its beats passed the broker in time: {:?}", watching.passed.get(whom)));
        }
        let Whom::Node(name) = whom else { return None };
        let answered = watching.answered.get(&(r, name.clone())).filter(|at| now.saturating_sub(**at) < patience);
        answered.map(|at| format!("it answered at {at:?}"))
    }

    fn unresponsive_fault(&self, r: usize, event: &v1::Event) -> Option<String> {
        let (id, life) = (instance(event)?, event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default());
        match self.checks.watching.looked.get(&(r, id.clone())) {
            Some((of, true)) if *of == life => {}
            looked => return Some(format!("its node does not say that it hangs: {looked:?}")),
        }
        let spec = self.desired_record(&id)?.spec.clone()?;
        let Some(v1::probe::Check::Heartbeat(beat)) = spec.liveness.and_then(|p| p.check) else { return None };
        let interval = razar_bus_schema::time::duration_or(beat.interval.as_ref(), BEAT);
        self.silence_fault(r, &Whom::Component(id.to_string(), life), interval * beat.misses)
    }

    /// Why a chakra that is told down is not: all that is wanted of it serves, by what the replica has read.
    fn chakra_fault(&self, r: usize, chakra: &str) -> Option<String> {
        let behind = self.broker.intents.watches.get(&Client::Replica(r)).is_some_and(|w| !w.is_empty());
        if behind || self.faults.had(Fault::DiskLost) || self.faults.had(Fault::EventsLost) {
            return None;
        }
        let upto = usize::try_from(self.replicas[r].cursor).unwrap_or(usize::MAX);
        let read = self.broker.events.stored.get(..upto).unwrap_or_default();
        let (all, _) = seen(read);
        let mut told = Told::default();
        read.iter().for_each(|Stored { event, at, .. }| drop(told.fold(event, *at)));
        let mut isolated: BTreeSet<Instance> = BTreeSet::new();
        for event in read.iter().map(|stored| &stored.event) {
            match &event.fact {
                Some(Fact::Quarantined(_)) => isolated.extend(instance(event)),
                Some(Fact::Released(_)) => drop(instance(event).map(|id| isolated.remove(&id))),
                _ => {}
            }
        }
        let out = self.desired_records().any(|(id, desired)| {
            let lost = told.present.get(&Whom::Node(desired.node.clone())).is_some_and(|p| p.away);
            let of_it = desired.spec.as_ref().is_some_and(|spec| spec.chakra == chakra);
            let serves = all.get(&id).is_some_and(|of| of.state == State::Ready) && !isolated.contains(&id);
            of_it && !lost && desired.mode() == RunMode::Run && !serves
        });
        (!out).then(|| "all that is wanted of it serves".to_owned())
    }

    /// Each second: who is silent has been told so, if there was somebody to tell it all the time.
    pub(super) fn check_told_in_time(&mut self, of: Client) {
        let now = self.now;
        for r in 0..self.replicas.len() {
            if self.replicas[r].trade == Trade::Watchdog {
                let there = self.leads(r)
                    && self.broker.reaches(Client::Replica(r))
                    && self.replicas[r].paused_until.is_none_or(|until| until <= now)
                    && self.replicas[r].cursor == self.broker.events.head();
                let since = &mut self.replicas[r].ears.leads_since;
                *since = if there { since.or(Some(now)) } else { None };
            }
        }
        let whom = self.whom(of);
        let Some(told) = self.checks.watching.told.present.get(&whom).filter(|p| !p.away && !p.by.is_empty()) else { return };
        let slow = self.faults.had(Fault::SlowLine) || self.faults.had(Fault::ReplyLost);
        let bound = if slow { TOLD_LATE } else { TOLD_WITHIN };
        let passed = self.checks.watching.passed.get(&whom).and_then(|all| all.back()).copied().unwrap_or_default();
        let answered = |r: usize| match &whom {
            Whom::Node(name) => self.checks.watching.answered.get(&(r, name.clone())).copied().unwrap_or_default(),
            Whom::Agent(..) | Whom::Component(..) => Duration::ZERO,
        };
        let ready = |r: &usize| {
            let replica = &self.replicas[*r];
            let ears = &replica.ears;
            let last = passed.max(answered(*r)).max(told.since).max(ears.attentive_since).max(ears.disturbed_at);
            let joins = Duration::from_secs(3);
            Client::Replica(*r) != of && ears.leads_since.is_some_and(|since| since + joins + bound < now) && last + joins + bound < now
        };
        let witness = (0..self.replicas.len()).filter(|r| self.replicas[*r].trade == Trade::Watchdog).find(ready);
        if let Some(r) = witness {
            self.violated("verdict", format!("{whom:?} is silent since {passed:?}, and watchdog replica {r}, which leads, does not tell"));
        }
    }

    /// What is told of the silent and of chakras that is not so, if anything.
    pub(super) fn verdicts_differ(&self) -> Option<String> {
        if self.by_hand {
            return None;
        }
        let told = &self.checks.watching.told;
        if let Some((whom, _)) = told.present.iter().find(|(_, p)| p.away) {
            return Some(format!("{whom:?} is there, and told to be silent"));
        }
        let mut chakras: BTreeMap<&str, (usize, usize, f64)> = BTreeMap::new();
        for (id, desired) in self.desired_records().filter(|(_, d)| d.mode() == RunMode::Run) {
            let Some(spec) = &desired.spec else { continue };
            let agent = self.hosts.iter().find(|h| h.name == desired.node).and_then(|h| h.agent.as_ref());
            let state = agent.and_then(|a| a.node.instance(&id)).map(|i| i.state);
            let of = chakras.entry(&spec.chakra).or_default();
            of.0 += usize::from(matches!(state, Some(State::Ready | State::Completed)));
            of.1 += 1;
            of.2 = desired.chakra_threshold;
        }
        let below = |name: &str| chakras.get(name).is_some_and(|(ready, all, threshold)| share(*ready, *all) < *threshold);
        if let Some(name) = chakras.keys().find(|name| below(name) && !told.down.contains(**name)) {
            return Some(format!("{name} is below its threshold, and not told down: {chakras:?}"));
        }
        if let Some(name) = told.down.iter().find(|name| !below(name)) {
            return Some(format!("{name} is told down, and serves: {chakras:?}"));
        }
        let whole = !chakras.is_empty() && chakras.values().all(|(ready, all, _)| ready == all);
        if whole && !told.spiral {
            return Some("every chakra is whole, and nobody tells".to_owned());
        }
        (told.spiral && !told.down.is_empty()).then(|| format!("{:?} are down, and all are told to be in sync", told.down))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful of instances")]
fn share(part: usize, of: usize) -> f64 {
    part as f64 / of.max(1) as f64
}
