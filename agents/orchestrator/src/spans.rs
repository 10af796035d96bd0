//! The orchestrator's spans, written when their outcome is known, with ids computed from the mission, command or record: a successor writes
//! the same. Which contexts records and events carry is the policy's matter.

use std::time::SystemTime;

use razar_agent_kit::{Hops, SpanRecord, hops::template, telemetry::Hop};
use razar_bus::ReceivedCommand;
use razar_bus_schema::{
    event::subject_of,
    ids::span_id,
    subject::Subjects,
    time::system_time,
    trace::{self, Context},
    v1::{self, event::Fact},
};

use crate::policy::EndedMission;

/// What of a `desired` record's subject is the same for all.
const DESIRED_TEMPLATE: &str = "$KV.<bucket>.desired.<component>.<ordinal>";

/// Writes spans.
#[derive(Debug)]
pub(crate) struct Teller {
    hops: Hops,
    mesh: String,
    subjects: Subjects,
    /// The batch of records whose span was written last: its records are told one after the other.
    batch: Option<[u8; 8]>,
    /// The event that was folded last, if its own span is written: it may be what ends a mission.
    folded: Option<Folded>,
}

#[derive(Debug)]
struct Folded {
    template: String,
    subject: String,
    sent: Context,
    id: [u8; 8],
    at: SystemTime,
}

impl Teller {
    pub(crate) fn new(hops: Hops, mesh: &str, subjects: &Subjects) -> Self {
        Self { hops, mesh: mesh.to_owned(), subjects: subjects.clone(), batch: None, folded: None }
    }

    /// An event was folded by who may decide.
    pub(crate) fn folded(&mut self, event: &v1::Event) {
        self.folded = self.hops.context(event).map(|context| Folded {
            template: template(event),
            subject: subject_of(&self.subjects, event),
            sent: context.with_span(trace::event_sent(event)),
            id: trace::event_processed(event),
            at: SystemTime::now(),
        });
    }

    /// An event is sent; with the first that tells of a record, the batch that wrote it is known to be stored.
    pub(crate) fn published(&mut self, event: &v1::Event) {
        let Some(context) = self.hops.context(event) else { return };
        let (begun, now) = (event.time.as_ref().map_or_else(SystemTime::now, system_time), SystemTime::now());
        if let Some(Fact::DesiredChanged(_)) = &event.fact
            && self.batch.replace(context.span) != Some(context.span)
        {
            self.written(event, context, begun, now);
        }
        self.hops.sent(event);
    }

    fn written(&self, event: &v1::Event, context: Context, begun: SystemTime, now: SystemTime) {
        let root = Context::mission(&self.mesh, &event.mission_id);
        let above = if root.trace == context.trace { root.span } else { trace::command_processed(&event.cause_id) };
        let span = Hop::sent(DESIRED_TEMPLATE.to_owned(), String::new()).span(context.trace, context.span, begun, now);
        self.hops
            .spans()
            .record(span.under(above).with("razar.mission", event.mission_id.clone()).with("razar.cause", event.cause_id.clone()));
    }

    /// A command was decided.
    pub(crate) fn answered(&self, received: &ReceivedCommand, receipt: &v1::Receipt, taken: SystemTime) {
        self.hops.answered(received, receipt, taken);
    }

    /// A mission has ended: its root, the plan from the command to the last record, and what ended it.
    pub(crate) fn ended(&mut self, ended: &EndedMission) {
        let Some(root) = Context::parse(&ended.trace.traceparent) else { return };
        let (start, planned, end) = (system_time(&ended.started_at), system_time(&ended.planned_at), system_time(&ended.ended_at));
        let completed = &ended.completed;
        let count = |names: &[String]| i64::try_from(names.len()).unwrap_or(i64::MAX);
        let failed = (completed.outcome != "complete").then(|| completed.outcome.clone());
        let mission = SpanRecord::new(root.trace, root.span, "mission", start, end)
            .with("razar.mission", completed.mission_id.clone())
            .with("razar.stack", ended.started.stack.clone())
            .with("razar.profile", ended.started.profile.clone())
            .with("razar.outcome", completed.outcome.clone())
            .with("razar.ready", count(&completed.ready))
            .with("razar.failed", count(&completed.failed))
            .error(failed);
        self.hops.spans().record(mission);
        let id = span_id(&format!("plan:{}", completed.mission_id));
        let plan = SpanRecord::new(root.trace, id, "plan", start, planned)
            .under(root.span)
            .with("razar.to_start", count(&ended.started.to_start))
            .with("razar.to_stop", count(&ended.started.to_stop));
        self.hops.spans().record(plan);
    }

    /// What was folded last made the mission complete.
    pub(crate) fn completes(&mut self, completed: &v1::Event) {
        let mission = Context::mission(&self.mesh, &completed.mission_id);
        let Some(folded) = self.folded.take().filter(|folded| folded.sent.trace == mission.trace) else { return };
        let hop = Hop::processed(folded.template, folded.subject);
        let span = hop.span(folded.sent.trace, folded.id, folded.at, SystemTime::now()).under(folded.sent.span);
        self.hops.spans().record(span.with("razar.mission", completed.mission_id.clone()));
    }
}
