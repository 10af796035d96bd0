//! The node's spans, pure: made from the events that it tells, when their outcome is known, with ids computed from the mission or
//! incident. A boot reads as a waterfall of `start <component>` spans, a crash and its recovery are one trace.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance, parse_traceparent, span_id, trace_id, traceparent},
    time,
    v1::{self, event::Fact},
};

/// Spans that one component may add to one trace; a flapping one must not fill the viewer.
const SPANS_PER_COMPONENT_MAX: u32 = 12;
/// Instances followed; the plan is bounded likewise.
const FOLLOWED_MAX: usize = crate::policy::INSTANCES_MAX;

/// A span whose outcome is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Trace.
    pub trace: [u8; 16],
    /// Its id.
    pub id: [u8; 8],
    /// Parent, if it is no root.
    pub parent: Option<[u8; 8]>,
    /// Name, from a template: never with an id in it.
    pub name: String,
    /// Begin.
    pub start: SystemTime,
    /// End.
    pub end: SystemTime,
    /// Attributes.
    pub attributes: Vec<(&'static str, String)>,
    /// What went wrong, if it ended so.
    pub error: Option<String>,
}

/// `traceparent` that a component is started with: its own start span, under the mission.
#[must_use]
pub fn of_start(mesh: &str, instance: &Instance, incarnation: Incarnation, desired: &v1::Desired) -> String {
    if desired.mission_id.is_empty() {
        return String::new();
    }
    traceparent(trace_id(&format!("mission:{mesh}:{}", desired.mission_id)), start_id(instance, incarnation))
}

fn start_id(instance: &Instance, incarnation: Incarnation) -> [u8; 8] {
    span_id(&format!("start:{instance}@{incarnation}"))
}

/// What is known of a start or incident under way.
#[derive(Debug, Clone, Default)]
struct Open {
    started: Option<(SystemTime, v1::ComponentStarted)>,
    exited: Option<(SystemTime, String, Option<Incident>)>,
    /// Spans written for this component in the trace of this mission or incident.
    written: (String, u32),
}

/// Makes spans of events.
#[derive(Debug, Default)]
pub struct Traces {
    open: BTreeMap<Instance, Open>,
}

impl Traces {
    /// The spans that `event` completes.
    pub fn told(&mut self, event: &v1::Event) -> Vec<Span> {
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return Vec::new() };
        let Some(at) = event.time.as_ref().map(time::system_time) else { return Vec::new() };
        if self.open.len() >= FOLLOWED_MAX && !self.open.contains_key(&instance) {
            return Vec::new();
        }
        let open = self.open.entry(instance.clone()).or_default();
        let incident = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
        let spans = match &event.fact {
            Some(Fact::ComponentStarted(started)) => {
                open.started = Some((at, started.clone()));
                Vec::new()
            }
            Some(Fact::ComponentReady(ready)) if !ready.again => start_spans(open, event, &instance, at, None),
            Some(Fact::ComponentExited(_)) => {
                let why = event.reason.as_ref().map_or_else(String::new, |r| r.text.clone());
                let spans = start_spans(open, event, &instance, at, Some(why.clone()));
                if open.exited.is_none() || incident != open.exited.as_ref().and_then(|(_, _, i)| i.clone()) {
                    open.exited = Some((at, why, incident));
                }
                spans
            }
            Some(Fact::Recovered(_)) => incident_span(open, event, &instance, at),
            _ => Vec::new(),
        };
        let Some(trace) = spans.first().map(|s| format!("{:?}", s.trace)) else { return spans };
        if open.written.0 != trace {
            open.written = (trace, 0);
        }
        let room = SPANS_PER_COMPONENT_MAX.saturating_sub(open.written.1);
        open.written.1 += u32::try_from(spans.len()).unwrap_or(u32::MAX).min(room);
        spans.into_iter().take(usize::try_from(room).unwrap_or(0)).collect()
    }
}

/// `start <component>` with its children, once ready or ended; under the mission, or under the incident that it answers.
fn start_spans(open: &mut Open, event: &v1::Event, instance: &Instance, at: SystemTime, error: Option<String>) -> Vec<Span> {
    let Some((spawned, started)) = open.started.take() else { return Vec::new() };
    let Some((trace, parent)) = event.trace.as_ref().and_then(|t| parse_traceparent(&t.traceparent)) else { return Vec::new() };
    let incarnation = event.incarnation.as_ref().map_or_else(Incarnation::default, Incarnation::from);
    let id = start_id(instance, incarnation);
    let span_of = |d: &Option<prost_types::Duration>| time::duration_or(d.as_ref(), Duration::ZERO);
    let (waited, queued, delay) = (span_of(&started.waited), span_of(&started.queued), span_of(&started.delay));
    let begin = spawned.checked_sub(waited.max(queued).max(delay)).unwrap_or(spawned);
    let child = |name: &str, start: SystemTime, end: SystemTime| Span {
        trace,
        id: span_id(&format!("{name}:{instance}@{incarnation}")),
        parent: Some(id),
        name: name.to_owned(),
        start,
        end,
        attributes: Vec::new(),
        error: None,
    };
    let queued_from = spawned.checked_sub(queued).unwrap_or(spawned);
    let mut spans = Vec::new();
    if waited > queued {
        spans.push(child("wait dependencies", begin, queued_from));
    }
    if !queued.is_zero() {
        spans.push(child("wait slot", queued_from, spawned));
    }
    if !delay.is_zero() {
        spans.push(child("backoff", begin, spawned));
    }
    spans.push(child("await ready", spawned, at));
    let attributes = attributes(event, instance, incarnation);
    spans.push(Span { trace, id, parent: Some(parent), name: "start component".to_owned(), start: begin, end: at, attributes, error });
    spans
}

/// The root of an incident's trace, when it is over: `component exit` to `recovered`.
fn incident_span(open: &mut Open, event: &v1::Event, instance: &Instance, at: SystemTime) -> Vec<Span> {
    let Some((trace, id)) = event.trace.as_ref().and_then(|t| parse_traceparent(&t.traceparent)) else { return Vec::new() };
    let took = match &event.fact {
        Some(Fact::Recovered(recovered)) => time::duration_or(recovered.took.as_ref(), Duration::ZERO),
        _ => Duration::ZERO,
    };
    let start = at.checked_sub(took).unwrap_or(at);
    let incarnation = event.incarnation.as_ref().map_or_else(Incarnation::default, Incarnation::from);
    let mut attributes = attributes(event, instance, incarnation);
    let mut spans = Vec::new();
    if let Some((exited, why, _)) = open.exited.take() {
        attributes.push(("razar.cause", why.clone()));
        spans.push(Span {
            trace,
            id: span_id(&format!("exit:{instance}@{incarnation}")),
            parent: Some(id),
            name: "component exit".to_owned(),
            start: exited.min(start),
            end: exited,
            attributes: Vec::new(),
            error: Some(why),
        });
    }
    spans.push(Span { trace, id, parent: None, name: "incident".to_owned(), start, end: at, attributes, error: None });
    spans
}

fn attributes(event: &v1::Event, instance: &Instance, incarnation: Incarnation) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("razar.component", instance.component.clone()),
        ("razar.instance", instance.to_string()),
        ("razar.incarnation", incarnation.to_string()),
        ("razar.chakra", event.chakra.clone()),
    ];
    if let Some(reason) = &event.reason {
        all.push(("razar.reason", reason.text.clone()));
    }
    if let Some(incident) = event.incident.as_ref().and_then(|i| Incident::try_from(i).ok()) {
        all.push(("razar.incident", incident.to_string()));
    }
    all
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::event::Kind as _;

    use super::*;

    fn event(fact: Fact, ms: u64, incident: bool) -> v1::Event {
        let instance = Instance::new("api", 0);
        let of = Incident { instance: instance.clone(), incarnation: Incarnation::new(1, 1), signs_of_life: 0 };
        let subject = if incident { format!("incident:razar:{of}") } else { "mission:razar:m1".to_owned() };
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))),
            instance: Some((&instance).into()),
            incarnation: Some(Incarnation::new(1, if incident { 2 } else { 1 }).into()),
            incident: incident.then(|| (&of).into()),
            trace: Some(v1::TraceContext { traceparent: traceparent(trace_id(&subject), span_id(&subject)), tracestate: String::new() }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    fn started(waited_ms: u64) -> Fact {
        Fact::ComponentStarted(v1::ComponentStarted {
            waited: Some(time::duration(Duration::from_millis(waited_ms))),
            ..Default::default()
        })
    }

    #[test]
    fn a_boot_is_a_waterfall_under_its_mission() {
        let mut traces = Traces::default();
        assert!(traces.told(&event(started(300), 1_000, false)).is_empty(), "nothing before its outcome is known");
        let spans = traces.told(&event(Fact::ComponentReady(v1::ComponentReady::default()), 1_500, false));
        let names: Vec<_> = spans.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["wait dependencies", "await ready", "start component"]);
        let root = &spans[2];
        assert_eq!(root.end.duration_since(root.start).unwrap(), Duration::from_millis(800));
        assert_eq!(root.parent, Some(span_id("mission:razar:m1")));
        assert!(spans[..2].iter().all(|s| s.parent == Some(root.id)));
    }

    #[test]
    fn a_crash_and_its_recovery_are_one_trace() {
        let mut traces = Traces::default();
        traces.told(&event(Fact::ComponentExited(v1::ComponentExited::default()), 100, true));
        traces.told(&event(started(0), 101, true));
        let start = traces.told(&event(Fact::ComponentReady(v1::ComponentReady::default()), 150, true));
        let recovered = v1::Recovered { took: Some(time::duration(Duration::from_millis(50))), ..Default::default() };
        let end = traces.told(&event(Fact::Recovered(recovered), 150, true));
        let all: Vec<_> = start.iter().chain(&end).collect();
        assert!(all.iter().all(|s| s.trace == all[0].trace));
        let roots: Vec<_> = all.iter().filter(|s| s.parent.is_none()).map(|s| s.name.as_str()).collect();
        assert_eq!(roots, ["incident"]);
    }

    #[test]
    fn a_flapper_fills_no_trace() {
        let mut traces = Traces::default();
        let mut written = 0;
        for _ in 0..100 {
            traces.told(&event(started(0), 101, true));
            written += traces.told(&event(Fact::ComponentExited(v1::ComponentExited::default()), 102, true)).len();
        }
        assert_eq!(written, 12);
    }
}
