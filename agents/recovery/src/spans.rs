//! Recovery's spans, written when their outcome is known, with ids computed from the incident and the attempt: a successor writes the same.
//! An incident that the ladder takes up has its root from here; one that its node heals alone, from its node.

use std::time::SystemTime;

use razar_agent_kit::{Hops, SpanRecord, hops::described};
use razar_bus_schema::{
    ids::span_id,
    time::{std_duration, system_time},
    trace::Context,
    v1::{self, event::Fact},
};

/// Writes spans.
#[derive(Debug)]
pub(crate) struct Teller {
    hops: Hops,
}

impl Teller {
    pub(crate) fn new(hops: Hops) -> Self {
        Self { hops }
    }

    /// An event is sent: what it ends, and its own way to the stream.
    pub(crate) fn published(&self, event: &v1::Event) {
        let Some(context) = self.hops.context(event) else { return };
        let at = event.time.as_ref().map_or_else(SystemTime::now, system_time);
        match &event.fact {
            Some(Fact::RungTried(tried)) => {
                let begun = tried.decided_at.as_ref().map_or(at, system_time);
                let id = span_id(&format!("rung:{}", event.id));
                let failed = (tried.outcome != "ok").then(|| tried.outcome.clone());
                let span = SpanRecord::new(context.trace, id, "rung", begun.min(at), at).under(context.span).error(failed);
                self.hops.spans().record(described(span, event).with("razar.rung", tried.rung.clone()));
            }
            Some(Fact::Recovered(recovered)) => {
                let took = recovered.took.as_ref().map(std_duration).unwrap_or_default();
                self.root(event, context, at.checked_sub(took).unwrap_or(at), at, None);
            }
            Some(Fact::RecoveryFailed(_)) => self.root(event, context, at, at, Some("recovery_failed".to_owned())),
            Some(Fact::IncidentWithdrawn(withdrawn)) => self.root(event, context, at, at, Some(withdrawn.why.clone())),
            _ => {}
        }
        self.hops.sent(event);
    }

    fn root(&self, event: &v1::Event, context: Context, start: SystemTime, end: SystemTime, error: Option<String>) {
        let span = SpanRecord::new(context.trace, context.span, "incident", start, end).error(error);
        self.hops.spans().record(described(span, event));
    }
}
