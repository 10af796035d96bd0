//! What a node tells of a crash, as the benchmark tells it itself.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Incident, Instance},
    time::{duration, timestamp},
    v1::{self, event::Fact},
};

/// The event of this sequence, of the incident that begins with the end of `start`.
pub(crate) fn event(component: String, start: u64, sequence: u64, at: SystemTime, fact: Fact) -> v1::Event {
    let instance = Instance::new(component, 0);
    let incident = Incident { instance: instance.clone(), incarnation: Incarnation::new(1, start), signs_of_life: 0 };
    let now = if matches!(fact, Fact::ComponentExited(_) | Fact::ComponentFailed(_)) { start } else { start + 1 };
    let traceparent = format!("00-{start:032x}-{sequence:016x}-01");
    v1::Event {
        id: node_event_id("a", "0123456789abcdef", sequence),
        kind: fact.kind().to_owned(),
        time: Some(timestamp(at)),
        source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
        node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "0123456789abcdef".to_owned(), sequence }),
        chakra: "heart".to_owned(),
        instance: Some((&instance).into()),
        incarnation: Some(Incarnation::new(1, now).into()),
        incident: Some((&incident).into()),
        mission_id: "b18c330b83abbfbb".to_owned(),
        reason: Some(v1::Reason { code: "exited".to_owned(), text: "signal 9 (SIGKILL)".to_owned() }),
        trace: Some(v1::TraceContext { traceparent, tracestate: String::new() }),
        mesh: "razar".to_owned(),
        stack: "bench".to_owned(),
        fact: Some(fact),
        ..Default::default()
    }
}

fn killed() -> v1::ExitStatus {
    v1::ExitStatus { signal: Some(9), ..Default::default() }
}

/// It ended.
pub(crate) fn exited() -> Fact {
    Fact::ComponentExited(v1::ComponentExited { status: Some(killed()), ..Default::default() })
}

/// Its node gave it up.
pub(crate) fn failed() -> Fact {
    Fact::ComponentFailed(v1::ComponentFailed { status: Some(killed()), cause: "budget_spent".to_owned(), ..Default::default() })
}

/// It was started.
pub(crate) fn started(pid: u32) -> Fact {
    Fact::ComponentStarted(v1::ComponentStarted { process: Some(v1::ProcessIdentity { pid, ..Default::default() }), ..Default::default() })
}

/// It is ready.
pub(crate) fn ready(took: Duration) -> Fact {
    Fact::ComponentReady(v1::ComponentReady { took: Some(duration(took)), ..Default::default() })
}

/// The incident is over.
pub(crate) fn recovered() -> Fact {
    Fact::Recovered(v1::Recovered { rung: "local".to_owned(), starts: 1, ..Default::default() })
}
