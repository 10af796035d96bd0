//! Where the spans of one story meet: trace contexts and span ids, computed from what they are about, so that replicas, a successor and
//! the other end of a message compute the same. Who writes which span, and when, is the agents' matter.

use crate::{
    ids::{Instance, parse_traceparent, span_id, trace_id, traceparent},
    v1,
};

/// Instances of a plan whose spans are written, the lowest ranks: at [`COMPONENT_SPANS_MAX`] each, and with what a mission has besides,
/// a trace stays under 1,000 spans, which is where viewers get slow.
pub const RANKS_TRACED_MAX: u32 = 80;
/// Spans that one component may add to one trace: one is the orchestrator's, the rest its node's.
pub const COMPONENT_SPANS_MAX: u32 = 12;

/// A span as others refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Trace.
    pub trace: [u8; 16],
    /// Span.
    pub span: [u8; 8],
    /// Spans of this trace are written. The context is carried either way: logs name the trace.
    pub sampled: bool,
}

impl Context {
    /// The root of what has this name (`mission:razar:…`).
    fn root(subject: &str) -> Self {
        Self { trace: trace_id(subject), span: span_id(subject), sampled: true }
    }

    /// The root of a mission.
    #[must_use]
    pub fn mission(mesh: &str, mission: &str) -> Self {
        Self::root(&format!("mission:{mesh}:{mission}"))
    }

    /// The root of an incident.
    #[must_use]
    pub fn incident(mesh: &str, incident: &str) -> Self {
        Self::root(&format!("incident:{mesh}:{incident}"))
    }

    /// The sending of a command by somebody who names no context of its own: the root of its trace, unless it begins or joins a mission.
    #[must_use]
    pub fn command(mesh: &str, command: &str) -> Self {
        Self::root(&format!("command:{mesh}:{command}"))
    }

    /// What a header or field says; `None`: nothing, or nothing that is well formed.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (trace, span) = parse_traceparent(header)?;
        let flags = header.split('-').nth(3).and_then(|flags| u8::from_str_radix(flags, 16).ok()).unwrap_or(0);
        Some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    /// The context that a message carries, if it is sampled.
    #[must_use]
    pub fn sampled(carried: Option<&v1::TraceContext>) -> Option<Self> {
        Self::parse(&carried?.traceparent).filter(|context| context.sampled)
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn with_span(self, span: [u8; 8]) -> Self {
        Self { span, ..self }
    }

    /// As the header says it.
    #[must_use]
    pub fn header(&self) -> String {
        let mut header = traceparent(self.trace, self.span);
        if !self.sampled {
            header.replace_range(header.len() - 2.., "00");
        }
        header
    }
}

impl From<Context> for v1::TraceContext {
    fn from(context: Context) -> Self {
        Self { traceparent: context.header(), tracestate: String::new() }
    }
}

/// The span in which an event is sent. A node's event has its id only from the journal on, so what it says is hashed instead.
#[must_use]
pub fn event_sent(event: &v1::Event) -> [u8; 8] {
    let source = event.source.as_ref().map_or("", |s| s.id.as_str());
    if event.id.is_empty() || event.node_sequence.is_some() {
        span_id(&format!("send:{}:{source}:{:?}:{:?}:{:?}", event.kind, event.instance, event.incarnation, event.time))
    } else {
        span_id(&format!("send:{}", event.id))
    }
}

/// The span in which an event is acted on.
#[must_use]
pub fn event_processed(event: &v1::Event) -> [u8; 8] {
    span_id(&format!("process:{:?}", event_sent(event)))
}

/// The span in which a command is acted on.
#[must_use]
pub fn command_processed(command: &str) -> [u8; 8] {
    span_id(&format!("process:command:{command}"))
}

/// The span in which `desired` records that one cause brought are written, as one batch.
#[must_use]
pub fn desired_sent(mission: &str, cause: &str) -> [u8; 8] {
    span_id(&format!("send:desired:{mission}:{cause}"))
}

/// The span in which a node acts on the record of `instance` that was written in the span `sent`.
#[must_use]
pub fn desired_processed(sent: [u8; 8], instance: &Instance) -> [u8; 8] {
    span_id(&format!("process:{sent:?}:{instance}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_its_header_with_its_flag() {
        for sampled in [true, false] {
            let context = Context { sampled, ..Context::mission("razar", "m1") };
            assert_eq!(Context::parse(&context.header()), Some(context));
            assert_eq!(Context::sampled(Some(&context.into())).is_some(), sampled);
        }
    }

    #[test]
    fn a_nodes_event_is_known_before_and_after_its_journal() {
        let drafted = v1::Event { kind: "component_ready".to_owned(), ..Default::default() };
        let stored = v1::Event { id: "a/1/7".to_owned(), node_sequence: Some(v1::NodeSequence::default()), ..drafted.clone() };
        assert_eq!(event_sent(&drafted), event_sent(&stored));
        let other = v1::Event { kind: "component_exited".to_owned(), ..drafted.clone() };
        assert_ne!(event_sent(&drafted), event_sent(&other));
    }
}
