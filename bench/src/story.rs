//! How long the story of one incident takes to tell from a stream of a million events. The stream is filled here, on a broker of its own;
//! the command is the one that people type.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use razar_bus::{Bus, Config};
use razar_bus_schema::{
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Incident, Instance},
    time::timestamp,
    v1::{self, event::Fact},
};

use crate::{
    programs::{Programs, free_ports},
    report::{Line, Samples, Target},
};

/// Components whose crashes fill the stream, and events of a crash.
const COMPONENTS: u64 = 77;
const EVENTS_A_CRASH: u64 = 4;
/// Events in the stream.
const EVENTS: u64 = 1_000_000;
/// Stories of each kind.
const STORIES: u64 = 11;
/// The broker answers within this time, also with a stream to recover.
const BROKER_LIMIT: Duration = Duration::from_secs(30);
/// A pause until what is under way has room again.
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// One story is to take no longer.
const STORY_MS_MAX: f64 = 1_000.0;

/// A broker that ends with the measurement.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Stories from a stream of a million events.
///
/// # Errors
/// When the broker does not run, or a story is not told.
pub(crate) async fn measure(programs: &Programs) -> Result<Vec<Line>> {
    let place = programs.place()?;
    let port = free_ports(1)?.pop().context("no port")?;
    let _broker = start(programs, &place, port)?;
    let server = format!("nats://127.0.0.1:{port}");
    let config = Config { servers: vec![server.clone()], mesh: "razar".to_owned(), name: "bench".to_owned(), credentials: None };
    let bus = Bus::connect(config).await?;
    bus.ready(BROKER_LIMIT).await?;
    razar_bus::provision(&bus).await?;
    fill(&bus).await?;
    let (mut named, mut newest) = (Samples::default(), Samples::default());
    for n in 0..STORIES {
        let crash = EVENTS / EVENTS_A_CRASH / STORIES * n;
        let id = format!("c{}@1.{}", crash % COMPONENTS, crash / COMPONENTS + 1);
        named.push(story(programs, &server, &[&id])?);
        newest.push(story(programs, &server, &[])?);
    }
    let target = [Target::Largest(STORY_MS_MAX)];
    Ok(vec![
        Line::times("razar incident ID, a million events", named, &target),
        Line::times("razar incident, the newest of a million events", newest, &target),
    ])
}

fn start(programs: &Programs, place: &Path, port: u16) -> Result<Broker> {
    let store = place.join("store");
    let config = place.join("server.conf");
    std::fs::write(&config, format!("host: 127.0.0.1\nport: {port}\nmax_payload: 262144\njetstream {{ store_dir: {store:?} }}\n"))?;
    let mut command = Command::new(&programs.broker);
    command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Broker(command.spawn()?))
}

/// Every component crashes and comes back in turn, over and over.
async fn fill(bus: &Bus) -> Result<()> {
    let mut publisher = bus.event_publisher();
    let began = SystemTime::now() - Duration::from_secs(24 * 3600);
    for n in 0..EVENTS {
        let (crash, step) = (n / EVENTS_A_CRASH, n % EVENTS_A_CRASH);
        let event = event(crash, step, n + 1, began + Duration::from_millis(n * 80));
        while !publisher.offer(n + 1, &event, "")? {
            let _ = tokio::time::timeout(ROOM_PAUSE, publisher.progressed()).await;
        }
    }
    ensure!(publisher.drained(BROKER_LIMIT).await, "the broker did not take all events");
    Ok(())
}

fn event(crash: u64, step: u64, sequence: u64, at: SystemTime) -> v1::Event {
    let start = crash / COMPONENTS + 1;
    let instance = Instance::new(format!("c{}", crash % COMPONENTS), 0);
    let fact = match step {
        0 => Fact::ComponentExited(v1::ComponentExited {
            status: Some(v1::ExitStatus { signal: Some(9), ..Default::default() }),
            ..Default::default()
        }),
        1 => Fact::ComponentStarted(v1::ComponentStarted {
            process: Some(v1::ProcessIdentity { pid: 4_242, ..Default::default() }),
            ..Default::default()
        }),
        2 => Fact::ComponentReady(v1::ComponentReady { took: Some(razar_bus_schema::time::duration(ROOM_PAUSE)), ..Default::default() }),
        _ => Fact::Recovered(v1::Recovered { rung: "local".to_owned(), starts: 1, ..Default::default() }),
    };
    let failed = Incarnation::new(1, start);
    let incident = Incident { instance: instance.clone(), incarnation: failed, signs_of_life: 0 };
    let traceparent = format!("00-{crash:032x}-{sequence:016x}-01");
    v1::Event {
        id: node_event_id("a", "0123456789abcdef", sequence),
        kind: fact.kind().to_owned(),
        time: Some(timestamp(at)),
        source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
        node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "0123456789abcdef".to_owned(), sequence }),
        chakra: "heart".to_owned(),
        instance: Some((&instance).into()),
        incarnation: Some(Incarnation::new(1, if step == 0 { start } else { start + 1 }).into()),
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

/// One story, from the command's start to its end.
fn story(programs: &Programs, server: &str, args: &[&str]) -> Result<Duration> {
    let mut command = Command::new(programs.binary("razar"));
    command.args(["--server", server, "--mesh", "razar", "incident"]).args(args).stdin(Stdio::null());
    let began = Instant::now();
    let said = command.output()?;
    let took = began.elapsed();
    let out = String::from_utf8_lossy(&said.stdout);
    ensure!(said.status.success() && out.contains("recovered"), "no story: {out}{}", String::from_utf8_lossy(&said.stderr));
    Ok(took)
}
