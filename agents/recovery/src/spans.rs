//! Recovery's spans, written when their outcome is known, with ids computed from the incident and the attempt: a successor writes the same.
//! An incident that the ladder takes up has its root from here; one that its node heals alone, from its node.

use std::time::SystemTime;

use razar_agent_kit::{SpanRecord, Spans, telemetry::Hop};
use razar_bus_schema::{
    event::subject_of,
    ids::{Incident, span_id},
    subject::Subjects,
    time::{std_duration, system_time},
    trace::{self, Context},
    v1::{self, event::Fact},
};

/// Writes spans.
#[derive(Debug)]
pub(crate) struct Teller {
    spans: Spans,
    subjects: Subjects,
}

impl Teller {
    pub(crate) fn new(spans: Spans, subjects: &Subjects) -> Self {
        Self { spans, subjects: subjects.clone() }
    }

    /// An event is sent: what it ends, and its own way to the stream.
    pub(crate) fn published(&self, event: &v1::Event) {
        let Some(context) = Context::sampled(event.trace.as_ref()).filter(|_| self.spans.is_on()) else { return };
        let (at, now) = (event.time.as_ref().map_or_else(SystemTime::now, system_time), SystemTime::now());
        match &event.fact {
            Some(Fact::RungTried(tried)) => {
                let begun = tried.decided_at.as_ref().map_or(at, system_time);
                let id = span_id(&format!("rung:{}", event.id));
                let failed = (tried.outcome != "ok").then(|| tried.outcome.clone());
                let span = SpanRecord::new(context.trace, id, "rung", begun.min(at), at).under(context.span).error(failed);
                self.spans.record(described(span, event).with("razar.rung", tried.rung.clone()));
            }
            Some(Fact::Recovered(recovered)) => {
                let took = recovered.took.as_ref().map(std_duration).unwrap_or_default();
                self.root(event, context, at.checked_sub(took).unwrap_or(at), at, None);
            }
            Some(Fact::RecoveryFailed(_)) => self.root(event, context, at, at, Some("recovery_failed".to_owned())),
            Some(Fact::IncidentWithdrawn(withdrawn)) => self.root(event, context, at, at, Some(withdrawn.why.clone())),
            _ => {}
        }
        let hop = Hop::sent(format!("razar.event.<chakra>.<component>.{}", event.kind), subject_of(&self.subjects, event));
        let span = hop.span(context.trace, trace::event_sent(event), at, now).under(context.span);
        self.spans.record(span.with("messaging.message.id", event.id.clone()));
    }

    fn root(&self, event: &v1::Event, context: Context, start: SystemTime, end: SystemTime, error: Option<String>) {
        let span = SpanRecord::new(context.trace, context.span, "incident", start, end).error(error);
        self.spans.record(described(span, event));
    }
}

fn described(span: SpanRecord, event: &v1::Event) -> SpanRecord {
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
