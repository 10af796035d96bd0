//! The spans that every agent writes of its messages: each event that it sends, each command that it acts on. Ids are computed from what
//! they are about, so that a successor writes the same.

use std::time::SystemTime;

use razar_bus::ReceivedCommand;
use razar_bus_schema::{
    event::subject_of,
    ids::Incident,
    subject::Subjects,
    time::system_time,
    trace::{self, Context},
    v1,
};

use crate::{SpanRecord, Spans, telemetry::Hop};

/// What of a command's subject is the same for all.
const COMMAND_TEMPLATE: &str = "razar.command.<agent>.<verb>.<target>";

/// Writes the spans of one agent's messages.
#[derive(Debug, Clone)]
pub struct Hops {
    spans: Spans,
    agent: &'static str,
    mesh: String,
    subjects: Subjects,
}

impl Hops {
    /// Of agent `agent` in `mesh`.
    #[must_use]
    pub fn new(spans: Spans, agent: &'static str, mesh: &str, subjects: &Subjects) -> Self {
        Self { spans, agent, mesh: mesh.to_owned(), subjects: subjects.clone() }
    }

    /// Where the agent's further spans go.
    #[must_use]
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The context of an event whose spans are written; `None`: it has none, or nobody collects spans.
    #[must_use]
    pub fn context(&self, event: &v1::Event) -> Option<Context> {
        Context::sampled(event.trace.as_ref()).filter(|_| self.spans.is_on())
    }

    /// An event is sent: its way to the stream, under what it says of its trace.
    pub fn sent(&self, event: &v1::Event) {
        let Some(context) = self.context(event) else { return };
        let (begun, now) = (event.time.as_ref().map_or_else(SystemTime::now, system_time), SystemTime::now());
        let hop = Hop::sent(template(event), subject_of(&self.subjects, event));
        let span = hop.span(context.trace, trace::event_sent(event), begun, now).under(context.span);
        self.spans.record(span.with("messaging.message.id", event.id.clone()));
    }

    /// A command that was taken then is answered now: in its sender's trace, or in that of the mission that it begins.
    pub fn answered(&self, received: &ReceivedCommand, receipt: &v1::Receipt, taken: SystemTime) {
        if !self.spans.is_on() {
            return;
        }
        let command = &received.command;
        let (id, sender) = (trace::command_processed(&command.command_id), Context::parse(&received.traceparent));
        let own = Context::command(&self.mesh, &command.command_id);
        let (trace, above) = if receipt.mission_id.is_empty() {
            (sender.unwrap_or(own).trace, sender.map(|sender| sender.span))
        } else {
            let mission = Context::mission(&self.mesh, &receipt.mission_id);
            // Who sends by this contract writes its span into the mission's trace, once the receipt has told which that is.
            (mission.trace, Some(sender.filter(|sender| *sender == own).map_or(mission.span, |sender| sender.span)))
        };
        let subject = self.subjects.command(self.agent, &received.verb, &received.target);
        let mut span = Hop::processed(COMMAND_TEMPLATE.to_owned(), subject).span(trace, id, taken, SystemTime::now());
        span.parent = above;
        span.links.extend(sender.filter(|sender| sender.trace != trace && *sender != own).map(|sender| (sender.trace, sender.span)));
        let span = span
            .with("messaging.message.id", command.command_id.clone())
            .with("razar.verb", received.verb.clone())
            .with("razar.target", received.target.clone())
            .with("razar.mission", receipt.mission_id.clone())
            .error((!receipt.accepted).then(|| receipt.code.clone()));
        self.spans.record(span);
    }
}

/// What of the subject is the same for all events of a kind.
#[must_use]
pub fn template(event: &v1::Event) -> String {
    format!("razar.event.<chakra>.<component>.{}", event.kind)
}

/// A span with what it is about, as the event says it.
#[must_use]
pub fn described(span: SpanRecord, event: &v1::Event) -> SpanRecord {
    let mut span = span.with("razar.chakra", event.chakra.clone());
    if let Some(instance) = &event.instance {
        span = span.with("razar.component", instance.component.clone());
    }
    if let Some(reason) = &event.reason {
        span = span.with("razar.reason", reason.text.clone());
    }
    match event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()) {
        Some(incident) => span.with("razar.incident", incident.to_string()),
        None => span,
    }
}
