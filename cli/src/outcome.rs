//! When a command has had its effect: what the events of its components say after it was accepted. Pure; waiting is the commands' part.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time::std_duration,
    v1::{self, InstanceState as State, event::Fact},
};

use crate::{
    exit::Exit,
    lookup,
    render::{event, text::escape, time::seconds},
};

/// What a verb is to lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Its instances are ready.
    Ready,
    /// Its instances are ready in a later generation.
    Replaced,
    /// Its instances are stopped.
    Stopped,
    /// Its instances are isolated, and no process of them lives.
    Isolated,
    /// Its instances are isolated no more: ready, or at rest as desired.
    Released,
    /// What the agent says is its outcome.
    Told,
}

impl Goal {
    /// Of a verb.
    pub(crate) fn of(verb: &str) -> Self {
        match verb {
            "start" => Self::Ready,
            "restart" => Self::Replaced,
            "stop" => Self::Stopped,
            "quarantine" => Self::Isolated,
            "release" => Self::Released,
            _ => Self::Told,
        }
    }
}

/// Waits for the outcome of one command.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    /// Target as typed, for messages.
    pub(crate) target: String,
    goal: Goal,
    command_id: String,
    mission_id: String,
    base: BTreeMap<Instance, Incarnation>,
    done: BTreeSet<Instance>,
    told_blocked: BTreeSet<Instance>,
    told: Option<Exit>,
    /// Instances without a process from the start.
    at_rest: BTreeSet<Instance>,
    /// What is said before and behind the time of the stop.
    isolates: (String, String),
    stopped_in: Option<Duration>,
}

impl Waiter {
    /// For a command that was accepted by `receipt`; `known` is the projection from before it was sent.
    pub(crate) fn new(verb: &str, target: &str, receipt: &v1::Receipt, known: &[v1::ObservedComponent]) -> Self {
        let found = lookup::instances(known, target).unwrap_or_default();
        let of =
            |c: &&v1::ObservedComponent| Some((lookup::instance_of(c)?, c.incarnation.as_ref().map(Incarnation::from).unwrap_or_default()));
        Self {
            target: target.to_owned(),
            goal: Goal::of(verb),
            command_id: receipt.command_id.clone(),
            mission_id: receipt.mission_id.clone(),
            base: found.iter().filter_map(of).collect(),
            done: BTreeSet::new(),
            told_blocked: BTreeSet::new(),
            told: None,
            at_rest: found.iter().filter(|c| c.process.is_none()).filter_map(|c| lookup::instance_of(c)).collect(),
            isolates: Default::default(),
            stopped_in: None,
        }
    }

    /// With what is said of the end of an isolation and of who is blocked.
    #[must_use]
    pub(crate) fn isolates(mut self, until: &str, blocks: &str) -> Self {
        self.isolates = (until.to_owned(), blocks.to_owned());
        self
    }

    /// `worker quarantined until 16:20; stopped in 0.31s; blocks scheduler`, once the last instance is at rest.
    fn rests(&mut self, instance: &Instance) -> Vec<String> {
        if !self.done.insert(instance.clone()) || self.done.len() < self.base.len() {
            return Vec::new();
        }
        let (until, blocks) = &self.isolates;
        let stopped = self.stopped_in.map(|took| format!("; stopped in {}", seconds(took))).unwrap_or_default();
        vec![format!("{} quarantined{until}{stopped}{blocks}", escape(&self.target))]
    }

    /// How it ended; `None`: it goes on.
    pub(crate) fn ended(&self) -> Option<Exit> {
        if self.told.is_some_and(|e| e != Exit::Well) {
            return self.told;
        }
        match self.goal {
            Goal::Told => self.told,
            _ if self.base.is_empty() => self.told,
            Goal::Ready | Goal::Replaced | Goal::Stopped | Goal::Isolated | Goal::Released => {
                (self.done.len() == self.base.len()).then_some(Exit::Well)
            }
        }
    }

    /// Takes an event in; lines to be told.
    pub(crate) fn apply(&mut self, event: &v1::Event) -> Vec<String> {
        if let Some(Fact::OperatorCommand(c)) = &event.fact {
            return if c.command_id == self.command_id { self.command(c, event) } else { Vec::new() };
        }
        if let Some(Fact::MissionCompleted(m)) = &event.fact {
            return if m.mission_id == self.mission_id && self.goal == Goal::Told { self.mission(m, event) } else { Vec::new() };
        }
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return Vec::new() };
        let Some(base) = self.base.get(&instance).copied() else { return Vec::new() };
        let now = event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let newer = match self.goal {
            Goal::Replaced => now.generation > base.generation,
            Goal::Ready => now > base,
            Goal::Stopped | Goal::Isolated | Goal::Released | Goal::Told => true,
        };
        if newer && self.goal != Goal::Told { self.instance(event, &instance, now) } else { Vec::new() }
    }

    fn mission(&mut self, m: &v1::MissionCompleted, event: &v1::Event) -> Vec<String> {
        self.told = Some(if m.outcome == "complete" { Exit::Well } else { Exit::NotWell });
        vec![format!("mission {}", event::summary(event))]
    }

    fn command(&mut self, c: &v1::OperatorCommand, event: &v1::Event) -> Vec<String> {
        let reason = event.reason.as_ref().map(|r| escape(&r.text)).unwrap_or_default();
        let (exit, word) = match c.result.as_str() {
            "done" => (Exit::Well, "done"),
            "failed" => (Exit::NotWell, "failed"),
            "refused" => (Exit::Refused, "refused"),
            _ => return Vec::new(),
        };
        self.told = Some(exit);
        if exit == Exit::Well && self.goal != Goal::Told && !self.base.is_empty() {
            return Vec::new();
        }
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        vec![format!("{} {} {word}{why}", escape(&c.verb), escape(&c.target))]
    }

    fn instance(&mut self, event: &v1::Event, instance: &Instance, now: Incarnation) -> Vec<String> {
        match (event.fact.as_ref(), self.goal) {
            (Some(Fact::ComponentReady(r)), Goal::Ready | Goal::Replaced) => {
                self.done.insert(instance.clone());
                let took = r.took.as_ref().map(std_duration).unwrap_or_default();
                let word = if r.completed { "completed" } else { "ready" };
                vec![format!("{instance} {word} {now} in {}", seconds(took))]
            }
            (Some(Fact::ComponentReady(r)), Goal::Released) if self.done.insert(instance.clone()) => {
                let took = r.took.as_ref().map(std_duration).unwrap_or_default();
                vec![format!("{instance} released; ready in {}", seconds(took))]
            }
            (Some(Fact::ComponentStopped(s)), Goal::Isolated) => {
                let took = s.took.as_ref().map(std_duration).unwrap_or_default();
                self.stopped_in = self.stopped_in.max(Some(took));
                self.rests(instance)
            }
            (Some(Fact::Quarantined(_)), Goal::Isolated) if self.at_rest.contains(instance) => self.rests(instance),
            (Some(Fact::ComponentStopped(_)), Goal::Stopped) => {
                self.done.insert(instance.clone());
                event::news(event).into_iter().collect()
            }
            (Some(Fact::ComponentFailed(_) | Fact::Quarantined(_)), Goal::Ready | Goal::Replaced | Goal::Released) => {
                self.told = Some(Exit::NotWell);
                event::news(event).into_iter().collect()
            }
            (Some(Fact::ComponentExited(_)), Goal::Ready | Goal::Replaced | Goal::Released) => event::news(event).into_iter().collect(),
            (Some(Fact::ComponentBlocked(b)), Goal::Ready | Goal::Replaced | Goal::Released)
                if !b.by.is_empty() && self.told_blocked.insert(instance.clone()) =>
            {
                event::news(event).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Looks whether the goal holds by the projection: for what held already, and for events that were missed.
    pub(crate) fn look(&mut self, observed: &v1::Observed) -> Vec<String> {
        let mut lines = Vec::new();
        let known = observed.components.as_slice();
        let missions = observed.missions.iter().filter_map(|m| m.completed.as_ref());
        if let Some(m) = missions.into_iter().find(|m| self.goal == Goal::Told && self.told.is_none() && m.mission_id == self.mission_id) {
            let event = v1::Event { fact: Some(Fact::MissionCompleted(m.clone())), ..Default::default() };
            return self.mission(m, &event);
        }
        for c in known {
            let Some(instance) = lookup::instance_of(c) else { continue };
            let Some(base) = self.base.get(&instance) else { continue };
            let (now, mode) = (
                c.incarnation.as_ref().map(Incarnation::from).unwrap_or_default(),
                c.desired.as_ref().map(|d| d.mode.as_str()).unwrap_or_default(),
            );
            let ready = matches!(c.state(), State::Ready | State::Completed) && mode != "stop";
            let holds = match self.goal {
                Goal::Ready => ready,
                Goal::Replaced => ready && now.generation > base.generation,
                Goal::Stopped => mode == "stop" && c.process.is_none() && !matches!(c.state(), State::Unspecified | State::Stopping),
                Goal::Released => ready || (mode == "stop" && c.state() == State::Stopped),
                Goal::Isolated => c.state() == State::Quarantined && c.process.is_none(),
                Goal::Told => false,
            };
            if holds && self.goal == Goal::Isolated {
                lines.extend(self.rests(&instance));
            } else if holds && self.done.insert(instance.clone()) {
                let word = crate::render::status::state_word(c.state);
                let released = if self.goal == Goal::Released { "released; " } else { "" };
                lines.push(format!("{instance} {released}{word} {now}"));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(state: State, generation: u64, mode: &str) -> v1::ObservedComponent {
        v1::ObservedComponent {
            instance: Some(v1::InstanceId { component: "db".to_owned(), ordinal: 0 }),
            state: state.into(),
            incarnation: Some(v1::Incarnation { generation, start: 1 }),
            desired: Some(v1::DesiredChanged { mode: mode.to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn receipt() -> v1::Receipt {
        v1::Receipt { command_id: "c1".to_owned(), accepted: true, ..Default::default() }
    }

    fn all(component: v1::ObservedComponent) -> v1::Observed {
        v1::Observed { components: vec![component], ..Default::default() }
    }

    fn event(generation: u64, fact: Fact) -> v1::Event {
        v1::Event {
            instance: Some(v1::InstanceId { component: "db".to_owned(), ordinal: 0 }),
            incarnation: Some(v1::Incarnation { generation, start: 1 }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    fn ready(generation: u64) -> v1::Event {
        let took = Some(razar_bus_schema::time::duration(Duration::from_millis(710)));
        event(generation, Fact::ComponentReady(v1::ComponentReady { took, ..Default::default() }))
    }

    #[test]
    fn a_restart_ends_with_ready_of_a_later_generation() {
        let mut waiter = Waiter::new("restart", "db", &receipt(), &[observed(State::Ready, 1, "run")]);
        assert!(waiter.apply(&ready(1)).is_empty(), "the old one");
        assert_eq!(waiter.ended(), None);
        assert_eq!(waiter.apply(&ready(2)), ["db ready 2.1 in 0.71s"]);
        assert_eq!(waiter.ended(), Some(Exit::Well));
    }

    #[test]
    fn that_the_agent_is_done_is_not_yet_the_effect() {
        let mut waiter = Waiter::new("restart", "db", &receipt(), &[observed(State::Ready, 1, "run")]);
        let told = |result: &str| {
            let command = v1::OperatorCommand { command_id: "c1".to_owned(), result: result.to_owned(), ..Default::default() };
            v1::Event { fact: Some(Fact::OperatorCommand(command)), ..Default::default() }
        };
        waiter.apply(&told("done"));
        assert_eq!(waiter.ended(), None);
        assert!(waiter.look(&all(observed(State::Ready, 1, "run"))).is_empty(), "nor is the old one");
        assert_eq!(waiter.look(&all(observed(State::Ready, 2, "run"))), ["db ready 2.1"]);
        assert_eq!(waiter.ended(), Some(Exit::Well));
        waiter.apply(&told("failed"));
        assert_eq!(waiter.ended(), Some(Exit::NotWell));
    }

    #[test]
    fn a_failure_of_the_new_one_is_the_outcome() {
        let mut waiter = Waiter::new("start", "db", &receipt(), &[observed(State::Stopped, 1, "stop")]);
        let failed = v1::ComponentFailed { restarts: 3, ..Default::default() };
        let lines = waiter.apply(&event(2, Fact::ComponentFailed(failed)));
        assert!(lines[0].starts_with("db failed 3 restarts"), "{lines:?}");
        assert_eq!(waiter.ended(), Some(Exit::NotWell));
    }

    #[test]
    fn what_is_stopped_already_is_an_outcome_at_once() {
        let stopped = observed(State::Stopped, 1, "stop");
        let mut waiter = Waiter::new("stop", "db", &receipt(), std::slice::from_ref(&stopped));
        assert_eq!(waiter.look(&all(stopped)), ["db stopped 1.1"]);
        assert_eq!(waiter.ended(), Some(Exit::Well));
    }

    #[test]
    fn a_release_is_said_to_be_one_whether_heard_or_seen() {
        let mut waiter = Waiter::new("release", "db", &receipt(), &[observed(State::Quarantined, 1, "run")]);
        let mut other = waiter.clone();
        assert_eq!(waiter.apply(&ready(2)), ["db released; ready in 0.71s"]);
        assert_eq!(other.look(&all(observed(State::Quarantined, 1, "run"))), [""; 0]);
        assert_eq!(other.look(&all(observed(State::Ready, 2, "run"))), ["db released; ready 2.1"]);
        assert_eq!(other.ended(), Some(Exit::Well));
    }

    #[test]
    fn a_verb_that_begins_a_mission_ends_with_it() {
        let receipt = v1::Receipt { mission_id: "m1".to_owned(), ..receipt() };
        let mut waiter = Waiter::new("profile", "core", &receipt, &[]);
        let completed = |outcome: &str| v1::MissionCompleted {
            mission_id: "m1".to_owned(),
            outcome: outcome.to_owned(),
            failed: vec!["db".to_owned()],
            ..Default::default()
        };
        let told = v1::Event { fact: Some(Fact::MissionCompleted(completed("incomplete"))), ..Default::default() };
        assert_eq!(waiter.apply(&told), ["mission incomplete in 0.0ms: 0 ready, failed db"]);
        assert_eq!(waiter.ended(), Some(Exit::NotWell));
    }

    #[test]
    fn a_verb_of_another_agent_ends_with_what_it_says() {
        let mut waiter = Waiter::new("reset", "db", &receipt(), &[observed(State::Quarantined, 1, "run")]);
        let command = v1::OperatorCommand {
            command_id: "c1".to_owned(),
            verb: "reset".to_owned(),
            target: "db".to_owned(),
            result: "done".to_owned(),
            ..Default::default()
        };
        assert_eq!(waiter.apply(&v1::Event { fact: Some(Fact::OperatorCommand(command)), ..Default::default() }), ["reset db done"]);
        assert_eq!(waiter.ended(), Some(Exit::Well));
    }
}
