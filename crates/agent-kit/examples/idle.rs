//! An agent that does nothing: what the tests of process life run.

use std::{process::ExitCode, time::SystemTime};

use razar_agent_kit::{Agent, SpanKind, SpanRecord, health::STARTING, run, tick::TICK_INTERVAL};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The loop turns no more.
    stall: bool,
    /// The agent gives up at once.
    fail: bool,
    /// Spans told at the start.
    spans: u64,
}

async fn idle(agent: Agent<Settings>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if agent.settings.fail {
        return Err("it was told to fail".into());
    }
    let now = SystemTime::now();
    for n in 0..agent.settings.spans {
        let mut span = [1; 8];
        span.iter_mut().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
        span[7] = 1;
        let record = SpanRecord::new([7; 16], span, "process {event}", now, now).under([9; 8]).kind(SpanKind::Consumer);
        agent.spans.record(record.with("razar.rank", 3_i64).error(Some("it did not come".to_owned())));
    }
    agent.announce();
    let _beating = agent.beat();
    agent.health.release(STARTING);
    println!("{}", agent.http.map(|a| a.to_string()).unwrap_or_default());
    let mut shutdown = agent.shutdown.clone();
    let mut every = tokio::time::interval(TICK_INTERVAL);
    loop {
        tokio::select! {
            _ = every.tick() => if !agent.settings.stall { agent.ticker.tick() },
            () = shutdown.asked() => return Ok(()),
        }
    }
}

fn main() -> ExitCode {
    run("idle", env!("CARGO_PKG_VERSION"), idle)
}
