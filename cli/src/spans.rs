//! The command line's one kind of span: a command on its way. It is told once the receipt has said which trace the command belongs to,
//! and only where the `OTEL_*` variables name a collector.

use std::time::{Duration, SystemTime};

use razar_agent_kit::{Metrics, Spans, telemetry::Hop};
use razar_bus_schema::{subject::Subjects, trace::Context, v1};

/// A collector that takes the span later than this has lost it: nobody waits for it at a prompt.
const FLUSH_LIMIT: Duration = Duration::from_millis(300);

/// A command that is being sent.
pub(crate) struct Sending {
    spans: Spans,
    own: Context,
    begun: SystemTime,
}

impl Sending {
    /// Gives `command` the context of its sending, if anybody listens.
    pub(crate) fn begin(mesh: &str, command: &mut v1::Command) -> Self {
        let spans = Spans::from_env("cli", env!("CARGO_PKG_VERSION"), "razar", &Metrics::new());
        let own = Context::command(mesh, &command.command_id);
        if spans.is_on() && command.traceparent.is_empty() {
            command.traceparent = own.header();
        }
        Self { spans, own, begun: SystemTime::now() }
    }

    /// The receipt is there: in the trace of the mission that it names, else in the command's own.
    pub(crate) async fn end(self, subjects: &Subjects, agent: &str, verb: &str, target: &str, receipt: &v1::Receipt) {
        if !self.spans.is_on() {
            return;
        }
        let mission = (!receipt.mission_id.is_empty()).then(|| Context::mission(subjects.mesh(), &receipt.mission_id));
        let hop = Hop::sent("razar.command.<agent>.<verb>.<target>".to_owned(), subjects.command(agent, verb, target));
        let mut span = hop.span(mission.map_or(self.own.trace, |m| m.trace), self.own.span, self.begun, SystemTime::now());
        span.parent = mission.map(|m| m.span);
        let refused = (!receipt.accepted).then(|| receipt.code.clone());
        self.spans.record(span.with("messaging.message.id", receipt.command_id.clone()).error(refused));
        let _ = tokio::time::timeout(FLUSH_LIMIT, self.spans.shutdown()).await;
    }
}
