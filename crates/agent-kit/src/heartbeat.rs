//! The beat of an agent or a node: once a second, at most once, with the age of its loop, so that a frozen loop behind a living socket
//! is seen.

use std::time::Duration;

use prost::Message;
use razar_bus::Bus;
use razar_bus_schema::{time::duration, v1};

use crate::{LoopTicker, tick::every_shared};

/// One beat per second: three missed ones and a question without answer make a node lost.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Beats as replica `id` of the agent `agent` until the handle is dropped.
#[must_use]
pub fn beat(bus: &Bus, agent: &'static str, id: String, ticker: LoopTicker) -> Beating {
    let bus = bus.clone();
    let task = tokio::spawn(async move {
        let subject = bus.subjects().heartbeat("agent", &id);
        let mut every = every_shared(BEAT_INTERVAL);
        let mut cycle = 0;
        loop {
            cycle += 1;
            let beat = v1::Heartbeat {
                kind: "agent".to_owned(),
                id: id.clone(),
                agent: agent.to_owned(),
                cycle,
                applied_sequence: ticker.applied_sequence(),
                loop_age: Some(duration(ticker.age())),
                ..v1::Heartbeat::default()
            };
            // At most once: a beat that could not be sent is late anyhow.
            let _ = bus.publish(&subject, beat.encode_to_vec().into(), "").await;
            every.tick().await;
        }
    });
    Beating { task: task.abort_handle() }
}

/// Ends the beats when dropped.
#[derive(Debug)]
pub struct Beating {
    task: tokio::task::AbortHandle,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.task.abort();
    }
}
