//! The node's spans, pure: made from the events that it tells, when their outcome is known, with ids computed from the mission, record or
//! incident. A boot reads as a waterfall of `start component` spans, a crash and its recovery are one trace.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_agent_kit::{SpanRecord, telemetry::Hop};
use razar_bus_schema::{
    event::subject_of,
    ids::{Incarnation, Incident, Instance, span_id},
    subject::Subjects,
    time,
    trace::{COMPONENT_SPANS_MAX, Context, desired_processed, event_sent},
    v1::{self, event::Fact},
};

use crate::policy::Spawn;

/// Spans that the node may add for one component to one trace: one less is the orchestrator's, which tells of the record, and one the
/// incident's root, which is written whatever came before it.
const NODE_SPANS_MAX: u32 = COMPONENT_SPANS_MAX - 2;
/// Instances followed; the plan is bounded likewise.
const FOLLOWED_MAX: usize = crate::policy::INSTANCES_MAX;
/// What of a `desired` record's subject is the same for all.
const DESIRED_TEMPLATE: &str = "$KV.<bucket>.desired.<component>.<ordinal>";

/// `traceparent` that a component is started with: its own start span; empty: its start is in no trace.
#[must_use]
pub fn of_start(spawn: &Spawn) -> String {
    let story = spawn.trace.as_ref().and_then(|t| Context::parse(&t.traceparent));
    story.map(|story| story.with_span(start_id(&spawn.instance, spawn.incarnation)).header()).unwrap_or_default()
}

fn start_id(instance: &Instance, incarnation: Incarnation) -> [u8; 8] {
    span_id(&format!("start:{instance}@{incarnation}"))
}

/// What is known of an instance's story under way.
#[derive(Debug, Clone, Default)]
struct Open {
    started: Option<(SystemTime, v1::ComponentStarted)>,
    exited: Option<(SystemTime, String, Option<Incident>)>,
    /// Span in which the newest record was acted on.
    acted_on: [u8; 8],
    /// Spans written in the trace of the mission or incident.
    written: ([u8; 16], u32),
}

/// Makes spans of events.
#[derive(Debug, Default)]
pub struct Traces {
    open: BTreeMap<Instance, Open>,
}

/// An event, as its spans need it.
struct Told<'e> {
    event: &'e v1::Event,
    instance: Instance,
    incarnation: Incarnation,
    at: SystemTime,
    story: Context,
}

impl Traces {
    /// The spans that `event` completes, what others are under before these.
    pub fn told(&mut self, event: &v1::Event, subjects: &Subjects) -> Vec<SpanRecord> {
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return Vec::new() };
        let Some(at) = event.time.as_ref().map(time::system_time) else { return Vec::new() };
        let Some(story) = Context::sampled(event.trace.as_ref()) else { return Vec::new() };
        if self.open.len() >= FOLLOWED_MAX && !self.open.contains_key(&instance) {
            return Vec::new();
        }
        let open = self.open.entry(instance.clone()).or_default();
        let incarnation = event.incarnation.as_ref().map_or_else(Incarnation::default, Incarnation::from);
        let told = Told { event, instance, incarnation, at, story };
        let mut spans = told.outcome(open);
        spans.push(told.sent(subjects));
        if open.written.0 != story.trace {
            open.written = (story.trace, 0);
        }
        spans.retain(|span| {
            let written = span.parent.is_none() || open.written.1 < NODE_SPANS_MAX;
            open.written.1 += u32::from(written);
            written
        });
        spans
    }
}

impl Told<'_> {
    fn outcome(&self, open: &mut Open) -> Vec<SpanRecord> {
        let incident = self.event.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
        match &self.event.fact {
            Some(Fact::ComponentStarted(started)) => {
                open.started = Some((self.at, started.clone()));
                let waited = time::duration_or(started.waited.as_ref(), Duration::ZERO);
                self.acted_on(open, self.at.checked_sub(waited).unwrap_or(self.at))
            }
            Some(Fact::ComponentReady(ready)) if !ready.again => self.start(open, ready.took.as_ref(), None),
            Some(Fact::ComponentExited(exited)) => {
                let why = self.event.reason.as_ref().map_or_else(String::new, |r| r.text.clone());
                let spans = self.start(open, exited.lived.as_ref(), Some(why.clone()));
                if open.exited.is_none() || incident != open.exited.as_ref().and_then(|(_, _, i)| i.clone()) {
                    open.exited = Some((self.at, why, incident));
                }
                spans
            }
            Some(Fact::ComponentStopped(stopped)) => self.stop(open, stopped),
            Some(Fact::Recovered(recovered)) => self.incident(open, recovered.took.as_ref(), None),
            Some(Fact::IncidentWithdrawn(withdrawn)) => self.incident(open, None, Some(withdrawn.why.clone())),
            _ => Vec::new(),
        }
    }

    /// The event on its way to the stream.
    fn sent(&self, subjects: &Subjects) -> SpanRecord {
        let hop = Hop::sent(format!("razar.event.<chakra>.<component>.{}", self.event.kind), subject_of(subjects, self.event));
        hop.span(self.story.trace, event_sent(self.event), self.at, self.at).under(self.story.span)
    }

    /// The record that asks for it was acted on at `at`: told once. In an incident nobody asked.
    fn acted_on(&self, open: &mut Open, at: SystemTime) -> Vec<SpanRecord> {
        let id = desired_processed(self.story.span, &self.instance);
        if self.event.incident.is_some() || std::mem::replace(&mut open.acted_on, id) == id {
            return Vec::new();
        }
        let destination = DESIRED_TEMPLATE.replace("<component>.<ordinal>", &self.instance.key());
        let span = Hop::processed(DESIRED_TEMPLATE.to_owned(), destination).span(self.story.trace, id, at, at);
        vec![span.under(self.story.span)]
    }

    /// What a start or stop is under: the record that asks for it, or the incident that it answers.
    fn above(&self) -> [u8; 8] {
        if self.event.incident.is_some() { self.story.span } else { desired_processed(self.story.span, &self.instance) }
    }

    /// `start component` with its children, once ready or ended; `took` since its spawn was decided.
    fn start(&self, open: &mut Open, took: Option<&prost_types::Duration>, error: Option<String>) -> Vec<SpanRecord> {
        let Some((spawned, started)) = open.started.take() else { return Vec::new() };
        let id = start_id(&self.instance, self.incarnation);
        let span_of = |d: &Option<prost_types::Duration>| time::duration_or(d.as_ref(), Duration::ZERO);
        let (waited, queued, delay) = (span_of(&started.waited), span_of(&started.queued), span_of(&started.delay));
        let before = |at: SystemTime, span: Duration| at.checked_sub(span).unwrap_or(at);
        let decided = took.map_or(spawned, |took| before(self.at, time::std_duration(took)).min(spawned));
        let (begin, queued_from) = (before(decided, waited.max(queued).max(delay)), before(decided, queued));
        let start = self.span(id, "start component", begin, self.at).under(self.above()).error(error);
        let mut spans = vec![self.described(start)];
        let mut child = |name: &'static str, from: SystemTime, to: SystemTime| {
            if from < to {
                let of = span_id(&format!("{name}:{}@{}", self.instance, self.incarnation));
                spans.push(self.span(of, name, from, to).under(id));
            }
        };
        if waited > queued {
            child("wait dependencies", begin, queued_from);
        }
        child("wait slot", queued_from, decided);
        if !delay.is_zero() {
            child("backoff", begin, decided);
        }
        child("spawn", decided, spawned);
        child("await ready", spawned, self.at);
        spans
    }

    /// `stop component`, from the first signal.
    fn stop(&self, open: &mut Open, stopped: &v1::ComponentStopped) -> Vec<SpanRecord> {
        let took = time::duration_or(stopped.took.as_ref(), Duration::ZERO);
        let begin = self.at.checked_sub(took).unwrap_or(self.at);
        let mut spans = self.acted_on(open, begin);
        let id = span_id(&format!("stop:{}@{}", self.instance, self.incarnation));
        spans.push(self.described(self.span(id, "stop component", begin, self.at).under(self.above())));
        spans
    }

    /// The root of an incident's trace, when it is over: from `component exit` to its end.
    fn incident(&self, open: &mut Open, took: Option<&prost_types::Duration>, error: Option<String>) -> Vec<SpanRecord> {
        let exited = open.exited.take();
        let since = exited.as_ref().map_or(self.at, |(at, _, _)| *at);
        let start = took.map_or(since, |took| self.at.checked_sub(time::std_duration(took)).unwrap_or(self.at));
        let mut root = self.described(self.span(self.story.span, "incident", start, self.at).error(error));
        let mut spans = Vec::new();
        if let Some((exited, why, _)) = exited {
            root = root.with("razar.cause", why.clone());
            let id = span_id(&format!("exit:{:?}", self.story.span));
            spans.push(self.span(id, "component exit", exited.min(start), exited).under(self.story.span).error(Some(why)));
        }
        spans.insert(0, root);
        spans
    }

    fn span(&self, id: [u8; 8], name: &'static str, start: SystemTime, end: SystemTime) -> SpanRecord {
        SpanRecord::new(self.story.trace, id, name, start, end)
    }

    fn described(&self, span: SpanRecord) -> SpanRecord {
        let mut span = span
            .with("razar.component", self.instance.component.clone())
            .with("razar.instance", self.instance.to_string())
            .with("razar.incarnation", self.incarnation.to_string())
            .with("razar.chakra", self.event.chakra.clone());
        if let Some(reason) = &self.event.reason {
            span = span.with("razar.reason", reason.text.clone());
        }
        match self.event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()) {
            Some(incident) => span.with("razar.incident", incident.to_string()),
            None => span,
        }
    }
}

#[cfg(test)]
mod tests {
    use razar_agent_kit::SpanKind;
    use razar_bus_schema::event::Kind as _;

    use super::*;

    fn event(fact: Fact, ms: u64, incident: bool) -> v1::Event {
        let instance = Instance::new("api", 0);
        let of = Incident { instance: instance.clone(), incarnation: Incarnation::new(1, 1), signs_of_life: 0 };
        let story = if incident { Context::incident("razar", &of.to_string()) } else { Context::mission("razar", "m1") };
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))),
            instance: Some((&instance).into()),
            incarnation: Some(Incarnation::new(1, if incident { 2 } else { 1 }).into()),
            incident: incident.then(|| (&of).into()),
            trace: Some(story.into()),
            fact: Some(fact),
            ..Default::default()
        }
    }

    fn millis(ms: u64) -> Option<prost_types::Duration> {
        Some(time::duration(Duration::from_millis(ms)))
    }

    fn started(waited_ms: u64) -> Fact {
        Fact::ComponentStarted(v1::ComponentStarted { waited: millis(waited_ms), ..Default::default() })
    }

    fn ready(took_ms: u64) -> Fact {
        Fact::ComponentReady(v1::ComponentReady { took: millis(took_ms), ..Default::default() })
    }

    /// The spans of these events, and those of them whose parent is none of them.
    fn spans_of(events: &[v1::Event]) -> (Vec<SpanRecord>, Vec<String>) {
        let (mut traces, subjects) = (Traces::default(), Subjects::new("razar").unwrap());
        let spans: Vec<_> = events.iter().flat_map(|event| traces.told(event, &subjects)).collect();
        let orphan = |span: &&SpanRecord| span.parent.is_some_and(|parent| !spans.iter().any(|other| other.span_id == parent));
        let orphans = spans.iter().filter(orphan).map(|span| span.name.to_string()).collect();
        (spans, orphans)
    }

    fn names(spans: &[SpanRecord]) -> Vec<&str> {
        spans.iter().map(|s| s.name.as_ref()).collect()
    }

    #[test]
    fn a_boot_is_a_waterfall_under_the_record_that_asks_for_it() {
        let (spans, _) = spans_of(&[event(started(300), 1_001, false), event(ready(500), 1_500, false)]);
        assert_eq!(
            names(&spans),
            [
                "process $KV.<bucket>.desired.<component>.<ordinal>",
                "send razar.event.<chakra>.<component>.component_started",
                "start component",
                "wait dependencies",
                "spawn",
                "await ready",
                "send razar.event.<chakra>.<component>.component_ready",
            ]
        );
        let record = Context::mission("razar", "m1").span;
        assert_eq!((spans[0].kind.clone(), spans[0].parent), (SpanKind::Consumer, Some(record)));
        let start = &spans[2];
        assert_eq!(start.end.duration_since(start.start).unwrap(), Duration::from_millis(800));
        assert_eq!(start.parent, Some(spans[0].span_id));
        assert!(spans[3..6].iter().all(|s| s.parent == Some(start.span_id)));
        assert_eq!(spans[4].end.duration_since(spans[4].start).unwrap(), Duration::from_millis(1));
    }

    #[test]
    fn a_crash_and_its_recovery_are_one_trace() {
        let recovered = v1::Recovered { took: millis(50), ..Default::default() };
        let (spans, orphans) = spans_of(&[
            event(Fact::ComponentExited(v1::ComponentExited::default()), 100, true),
            event(started(0), 101, true),
            event(ready(50), 150, true),
            event(Fact::Recovered(recovered), 150, true),
        ]);
        assert!(spans.iter().all(|s| s.trace_id == spans[0].trace_id));
        assert_eq!(orphans, [""; 0]);
        let roots: Vec<_> = spans.iter().filter(|s| s.parent.is_none()).map(|s| s.name.as_ref()).collect();
        assert_eq!(roots, ["incident"]);
        assert!(names(&spans).contains(&"component exit"));
    }

    #[test]
    fn a_withdrawn_incident_has_its_root() {
        let withdrawn = Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "new_generation".to_owned() });
        let exited = Fact::ComponentExited(v1::ComponentExited::default());
        let (spans, orphans) = spans_of(&[event(exited, 100, true), event(withdrawn, 200, true)]);
        assert_eq!(orphans, [""; 0]);
        let root = spans.iter().find(|s| s.parent.is_none()).unwrap();
        assert_eq!(root.end.duration_since(root.start).unwrap(), Duration::from_millis(100));
    }

    #[test]
    fn a_flapper_fills_no_trace_and_its_root_is_written_all_the_same() {
        let exited = || event(Fact::ComponentExited(v1::ComponentExited::default()), 102, true);
        let mut events: Vec<_> = (0..100).flat_map(|_| [event(started(0), 101, true), exited()]).collect();
        events.push(event(Fact::Recovered(v1::Recovered::default()), 200, true));
        let (spans, orphans) = spans_of(&events);
        assert_eq!(spans.len(), 11);
        assert_eq!(orphans, [""; 0]);
    }

    #[test]
    fn what_is_not_sampled_has_no_spans() {
        let mut event = event(started(0), 101, false);
        event.trace = Some(Context { sampled: false, ..Context::mission("razar", "m1") }.into());
        assert!(spans_of(&[event]).0.is_empty());
    }
}
