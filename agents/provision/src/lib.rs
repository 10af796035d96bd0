//! Makes the mesh's streams and buckets, once, and ends. Decides nothing: what there is to make is said in `bus-schema`, how in `razar-bus`.
//! Subjects in: none. Subjects out: JetStream's API alone. Invariant: run again, or by two at once, it changes nothing that is right.

use std::time::Duration;

use anyhow::{Context, Result};
use razar_agent_kit::Agent;
use serde::Deserialize;

/// The agent's kind.
pub const KIND: &str = "provision";
/// Pause before provisioning is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long it waits for the broker, and goes on trying, in seconds.
    pub wait_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { wait_seconds: 30 }
    }
}

/// Provisions within the limit.
///
/// # Errors
/// When the broker cannot be reached, is too old or refuses.
pub async fn provision(mut agent: Agent<Settings>) -> Result<()> {
    let limit = Duration::from_secs(agent.settings.wait_seconds);
    let deadline = tokio::time::Instant::now() + limit;
    let servers = agent.config.servers.join(", ");
    let bus = agent.bus.clone();
    let work = async {
        bus.ready(limit).await.with_context(|| format!("the broker at {servers}"))?;
        loop {
            match razar_bus::provision(&bus).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_retryable() && tokio::time::Instant::now() < deadline => {
                    tracing::warn!(%error, "not provisioned yet");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error).context("making streams and buckets"),
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = agent.shutdown.asked() => anyhow::bail!("stopped before the work was done"),
    }
}
