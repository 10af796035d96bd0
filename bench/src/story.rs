//! How long the story of one incident takes to tell from a stream of a million events. The stream is filled here, on a broker of its own;
//! the command is the one that people type.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, ensure};
use razar_bus::Bus;
use razar_bus_schema::v1;

use crate::{
    broker::{BROKER_LIMIT, Broker},
    mesh::Sync,
    programs::Programs,
    report::{Line, Samples, Target},
    told,
};

/// Components whose crashes fill the stream, and events of a crash.
const COMPONENTS: u64 = 77;
const EVENTS_A_CRASH: u64 = 4;
/// Events in the stream.
const EVENTS: u64 = 1_000_000;
/// Stories of each kind.
const STORIES: u64 = 11;
/// A pause until what is under way has room again.
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// One story is to take no longer.
const STORY_MS_MAX: f64 = 1_000.0;

/// Stories from a stream of a million events.
///
/// # Errors
/// When the broker does not run, or a story is not told.
pub(crate) async fn measure(programs: &Programs) -> Result<Vec<Line>> {
    let place = programs.place()?;
    // With a sync for each the stream would take minutes to fill; to read it needs none.
    let (broker, bus) = Broker::start(programs, &place, Sync::BrokerDefault).await?;
    fill(&bus).await?;
    let (mut named, mut newest) = (Samples::default(), Samples::default());
    for n in 0..STORIES {
        let crash = EVENTS / EVENTS_A_CRASH / STORIES * n;
        let id = format!("c{}@1.{}", crash % COMPONENTS, crash / COMPONENTS + 1);
        named.push(story(programs, &broker.server, &[&id])?);
        newest.push(story(programs, &broker.server, &[])?);
    }
    let target = [Target::Largest(STORY_MS_MAX)];
    Ok(vec![
        Line::times("razar incident ID, a million events", named, &target),
        Line::times("razar incident, the newest of a million events", newest, &target),
    ])
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
    let fact = match step {
        0 => told::exited(),
        1 => told::started(4_242),
        2 => told::ready(ROOM_PAUSE),
        _ => told::recovered(),
    };
    told::event(format!("c{}", crash % COMPONENTS), crash / COMPONENTS + 1, sequence, at, fact)
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
