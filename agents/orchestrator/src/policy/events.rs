//! The orchestrator's events, each made from a record or a fact alone, so that a take-over tells the same.

use std::time::SystemTime;

use razar_bus_schema::{
    event::{Kind as _, agent_event_id},
    ids::{Incarnation, Instance, sha256_hex},
    subject::MESH_CHAKRA,
    time,
    trace::{self, Context},
    v1::{self, event::Fact, probe::Check},
};

use super::{Identity, State};

/// Kind of this agent, in ids, subjects and records.
pub const AGENT: &str = "orchestrator";
/// Characters of a mission's id.
const MISSION_ID_CHARS: usize = 16;

/// Id of the mission that a command begins: the same whoever computes it.
pub(super) fn mission_id(revision: &str, profile: &str, command: &str) -> String {
    let mut hash = sha256_hex(format!("{revision}\n{profile}\n{command}").as_bytes());
    hash.truncate(MISSION_ID_CHARS);
    hash
}

/// Trace of a mission: its root span's context, computed from its id.
#[must_use]
pub fn mission_trace(mesh: &str, mission: &str) -> v1::TraceContext {
    Context::mission(mesh, mission).into()
}

/// Id of an event about the mesh.
pub(super) fn fact_id(kind: &str, cause: &str) -> String {
    agent_event_id(AGENT, kind, None, None, cause)
}

/// Id of the event that tells of a `desired` record.
pub(super) fn desired_id(instance: &Instance, generation: u64, cause: &str) -> String {
    agent_event_id(AGENT, "desired_changed", Some(instance), Some(Incarnation::new(generation, 0)), cause)
}

/// Id of the event that tells of a command's acceptance, refusal or outcome: at most one of each.
pub(super) fn command_event_id(command: &str, terminal: bool) -> String {
    fact_id("operator_command", &format!("{command}:{}", if terminal { "end" } else { "taken" }))
}

impl Identity {
    pub(super) fn actor(&self) -> v1::Actor {
        v1::Actor { kind: AGENT.to_owned(), id: self.replica.clone() }
    }
}

impl State {
    /// An event about the mesh.
    pub(super) fn fact(&self, cause: &str, fact: Fact, reason: (&str, String), at: SystemTime) -> v1::Event {
        v1::Event {
            id: fact_id(fact.kind(), cause),
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(at)),
            source: Some(self.who.actor()),
            chakra: MESH_CHAKRA.to_owned(),
            cause_id: cause.to_owned(),
            reason: Some(v1::Reason { code: reason.0.to_owned(), text: reason.1 }),
            mesh: self.who.mesh.clone(),
            fact: Some(fact),
            ..Default::default()
        }
    }

    /// As [`State::fact`], in a mission and its trace.
    pub(super) fn mission_fact(&self, mission: &str, fact: Fact, reason: (&str, String), at: SystemTime) -> v1::Event {
        let mut event = self.fact(mission, fact, reason, at);
        mission.clone_into(&mut event.mission_id);
        event.trace = Some(mission_trace(&self.who.mesh, mission));
        event
    }

    /// What is told of a command.
    pub(super) fn command_fact(&self, told: v1::OperatorCommand, mission: &str, reason: (&str, String), at: SystemTime) -> v1::Event {
        let terminal = told.result == "done" || told.result == "failed";
        let command = told.command_id.clone();
        let mut event = self.fact(&command, Fact::OperatorCommand(told), reason, at);
        event.id = command_event_id(&command, terminal);
        mission.clone_into(&mut event.mission_id);
        event.trace = Some(self.command_trace(&command, mission).into());
        event
    }

    /// The span in which a command is acted on: in the trace of its mission, else in that of its sender, else in one of its own.
    pub(super) fn command_trace(&self, command: &str, mission: &str) -> Context {
        let mesh = &self.who.mesh;
        let known = self.facts.command(command).and_then(|known| known.trace);
        let sender = || self.pending_trace(command).unwrap_or_else(|| Context::command(mesh, command));
        let trace = if mission.is_empty() { known.unwrap_or_else(sender) } else { Context::mission(mesh, mission) };
        trace.with_span(trace::command_processed(command))
    }

    /// The event that tells of a `desired` record.
    pub(super) fn desired_fact(&self, intent: &v1::Intent, desired: &v1::Desired) -> v1::Event {
        let spec = desired.spec.clone().unwrap_or_default();
        let changed = desired_changed(desired, &spec, intent.reason.as_ref());
        v1::Event {
            id: intent.told_by_event_id.clone(),
            kind: "desired_changed".to_owned(),
            time: intent.decided_at,
            source: Some(self.who.actor()),
            chakra: spec.chakra,
            instance: desired.instance.clone(),
            incarnation: Some(Incarnation::new(desired.generation, 0).into()),
            mission_id: desired.mission_id.clone(),
            cause_id: intent.cause_id.clone(),
            reason: intent.reason.clone(),
            trace: intent.trace.clone(),
            mesh: self.who.mesh.clone(),
            stack: desired.stack.clone(),
            fact: Some(Fact::DesiredChanged(changed)),
            ..Default::default()
        }
    }
}

/// Reason of a record whose component is no longer in the plan.
pub(super) const LEFT_PLAN: &str = "left_plan";
/// Reason of a record that `down` stopped.
pub(super) const DOWN: &str = "down";

/// A record in the words of its event. What left the plan has rank 0: views forget it once it is told stopped.
pub(super) fn desired_changed(desired: &v1::Desired, spec: &v1::ComponentSpec, reason: Option<&v1::Reason>) -> v1::DesiredChanged {
    let gone = reason.is_some_and(|r| r.code == LEFT_PLAN || r.code == DOWN);
    v1::DesiredChanged {
        node: desired.node.clone(),
        generation: desired.generation,
        mode: mode_name(desired.mode()).to_owned(),
        rank: if gone { 0 } else { desired.rank },
        spec_hash: desired.spec_hash.clone(),
        depends_on: spec.depends_on.iter().map(|d| d.component.clone()).collect(),
        provides: spec.provides.clone(),
        endpoint: spec.ports.first().map(|port| format!("127.0.0.1:{port}")).unwrap_or_default(),
        health_endpoint: health_endpoint(spec),
        required: spec.required,
        node_epoch: desired.node_epoch.clone(),
        metadata: spec.metadata.iter().map(|l| v1::NodeLabel { key: l.key.clone(), value: l.value.clone() }).collect(),
    }
}

const fn mode_name(mode: v1::RunMode) -> &'static str {
    match mode {
        v1::RunMode::Unspecified => "unknown",
        v1::RunMode::Run => "run",
        v1::RunMode::Stop => "stop",
        v1::RunMode::OnDemand => "on_demand",
    }
}

fn health_endpoint(spec: &v1::ComponentSpec) -> String {
    let probes = [&spec.readiness, &spec.liveness, &spec.startup];
    let http = probes.into_iter().flatten().find_map(|p| match &p.check {
        Some(Check::Http(http)) => Some(http),
        _ => None,
    });
    http.map(|h| {
        let host = if h.host.is_empty() { "127.0.0.1" } else { &h.host };
        let path = if h.path.is_empty() { "/" } else { &h.path };
        format!("http://{host}:{}{path}", h.port)
    })
    .unwrap_or_default()
}
