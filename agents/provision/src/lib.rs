//! Provision: a one-shot that creates the mesh's streams and buckets, or brings their settings up to date. It decides nothing and
//! keeps nothing; run twice it changes nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use razar_bus::{Bus, Config, provision};

/// How long a broker that is just starting is waited for.
const BROKER_LIMIT: Duration = Duration::from_secs(30);

/// Connects and provisions.
///
/// # Errors
/// When the broker does not answer, is too old, or refuses.
pub async fn run(mesh: String, servers: Vec<String>) -> Result<()> {
    let bus = Bus::connect(Config { servers, mesh, name: "razar-provision".to_owned(), credentials: None }).await?;
    bus.ready(BROKER_LIMIT).await.context("waiting for the broker")?;
    provision(&bus).await.context("creating streams and buckets")?;
    bus.close(Duration::from_secs(1)).await;
    Ok(())
}
