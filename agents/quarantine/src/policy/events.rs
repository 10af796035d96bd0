//! Quarantine's events, each made from a record or a fact alone, so that a take-over tells the same.

use std::time::SystemTime;

use razar_bus_schema::{
    bucket::IntentKey,
    event::{Kind as _, agent_event_id},
    ids::{Incarnation, Instance},
    subject::MESH_CHAKRA,
    time,
    trace::{self, Context},
    v1::{self, QuarantinePhase as Phase, event::Fact},
};

use super::{Identity, Now, Record, State};

/// Kind of this agent, in ids, subjects and records.
pub const AGENT: &str = "quarantine";

/// Id of the event that tells of a command's acceptance, refusal or outcome: at most one of each.
pub(super) fn command_event_id(command: &str, terminal: bool) -> String {
    agent_event_id(AGENT, "operator_command", None, None, &format!("{command}:{}", if terminal { "end" } else { "taken" }))
}

/// Id of the event that tells of a record in a phase, about one instance.
pub(super) fn told_id(phase: Phase, instance: &Instance, incarnation: Option<Incarnation>, cause: &str) -> String {
    let kind = match phase {
        Phase::Isolated | Phase::Unspecified => "quarantined",
        Phase::Probation => "probation_started",
        Phase::Released => "released",
    };
    agent_event_id(AGENT, kind, Some(instance), incarnation, cause)
}

impl Identity {
    pub(super) fn actor(&self) -> v1::Actor {
        v1::Actor { kind: AGENT.to_owned(), id: self.replica.clone() }
    }
}

impl State {
    /// Every event that is owed and not in EVENTS.
    pub(super) fn owed_events(&self, now: Now) -> Vec<v1::Event> {
        let ours = self.records.iter().filter(|(key, _)| self.decides_on(key));
        let mut events: Vec<v1::Event> = ours.flat_map(|(key, record)| self.record_events(key, record)).collect();
        events.extend(self.command_ends(now));
        events.retain(|e| !self.facts.is_told(&e.id));
        events
    }

    /// Whether the events that tell of a record are in EVENTS.
    pub(super) fn is_told(&self, key: &IntentKey, record: &Record) -> bool {
        self.record_events(key, record).iter().all(|e| self.facts.is_told(&e.id))
    }

    /// The events that tell of a record, one for each instance that it concerns.
    fn record_events(&self, key: &IntentKey, record: &Record) -> Vec<v1::Event> {
        self.concerned(key).iter().filter_map(|instance| self.record_event(record, instance)).collect()
    }

    fn record_event(&self, record: &Record, instance: &Instance) -> Option<v1::Event> {
        let want = record.want()?;
        let incarnation = want.incarnation.as_ref().map(Incarnation::from);
        let fact = match record.phase() {
            Phase::Probation => Fact::ProbationStarted(v1::ProbationStarted {
                issue_type: want.issue_type.clone(),
                suggested_fix: want.suggested_fix.clone(),
                attempts: want.attempts,
                known: want.known.clone(),
            }),
            Phase::Released => {
                let mode = if want.note.is_empty() { "auto" } else { "manual" };
                Fact::Released(v1::Released { mode: mode.to_owned(), note: want.note.clone() })
            }
            Phase::Isolated | Phase::Unspecified => Fact::Quarantined(v1::Quarantined {
                issue_type: want.issue_type.clone(),
                suggested_fix: want.suggested_fix.clone(),
                attempts: want.attempts,
                duration: want.duration,
                known: want.known.clone(),
            }),
        };
        let known = self.desired.get(instance);
        let view = self.facts.view(instance);
        let chakra = known.map(|k| k.chakra.clone()).or_else(|| view.map(|v| v.chakra.clone())).unwrap_or_default();
        Some(v1::Event {
            id: told_id(record.phase(), instance, incarnation, &record.intent.cause_id),
            kind: fact.kind().to_owned(),
            time: record.intent.decided_at,
            source: Some(self.who.actor()),
            chakra: if chakra.is_empty() { MESH_CHAKRA.to_owned() } else { chakra },
            instance: Some(instance.into()),
            incarnation: incarnation.map(Into::into),
            incident: want.incident.clone(),
            cause_id: record.intent.cause_id.clone(),
            reason: record.intent.reason.clone(),
            trace: record.intent.trace.clone(),
            mesh: self.who.mesh.clone(),
            stack: known.map(|k| k.stack.clone()).unwrap_or_default(),
            fact: Some(fact),
            ..Default::default()
        })
    }

    /// What is told of a command.
    pub(super) fn command_event(&self, told: v1::OperatorCommand, reason: (&str, String), at: SystemTime) -> v1::Event {
        let terminal = told.result == "done" || told.result == "failed";
        let command = told.command_id.clone();
        v1::Event {
            id: command_event_id(&command, terminal),
            kind: "operator_command".to_owned(),
            time: Some(time::timestamp(at)),
            source: Some(self.who.actor()),
            chakra: MESH_CHAKRA.to_owned(),
            cause_id: command.clone(),
            reason: Some(v1::Reason { code: reason.0.to_owned(), text: reason.1 }),
            trace: Some(self.command_trace(&command).into()),
            mesh: self.who.mesh.clone(),
            fact: Some(Fact::OperatorCommand(told)),
            ..Default::default()
        }
    }

    /// The span in which a command is acted on: in the trace of its sender, else in one of its own.
    pub(super) fn command_trace(&self, command: &str) -> Context {
        let known = self.facts.command(command).and_then(|c| c.trace);
        let sender = || self.pending_trace(command).unwrap_or_else(|| Context::command(&self.who.mesh, command));
        known.unwrap_or_else(sender).with_span(trace::command_processed(command))
    }
}
