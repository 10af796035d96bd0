//! A broker without a mesh, with the mesh's streams and buckets in it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use razar_bus::{Bus, Config};

use crate::{
    mesh::Sync,
    programs::{Programs, free_ports},
};

/// The broker answers within this time, also with a stream to recover.
pub(crate) const BROKER_LIMIT: Duration = Duration::from_secs(30);
/// Name of the mesh whose streams it has.
const MESH: &str = "razar";

/// A broker that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Child,
    /// Where it listens.
    pub(crate) server: String,
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop((self.process.kill(), self.process.wait()));
    }
}

impl Broker {
    /// Starts one in `place`, and makes what the mesh needs in it.
    ///
    /// # Errors
    /// When it cannot be started, or does not answer.
    pub(crate) async fn start(programs: &Programs, place: &Path, sync: Sync) -> Result<(Self, Bus)> {
        let port = free_ports(1)?.pop().context("no port")?;
        let (store, config) = (place.join("store"), place.join("server.conf"));
        let sync = if sync == Sync::Always { ", sync_interval: always" } else { "" };
        let text = format!("host: 127.0.0.1\nport: {port}\nmax_payload: 262144\njetstream {{ store_dir: {store:?}{sync} }}\n");
        std::fs::write(&config, text)?;
        let mut command = Command::new(&programs.broker);
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let broker = Self { process: command.spawn()?, server: format!("nats://127.0.0.1:{port}") };
        let bus = connect(&broker.server).await?;
        razar_bus::provision(&bus).await?;
        Ok((broker, bus))
    }
}

/// A connection, once the broker answers.
///
/// # Errors
/// When it does not.
pub(crate) async fn connect(server: &str) -> Result<Bus> {
    let config = Config { servers: vec![server.to_owned()], mesh: MESH.to_owned(), name: "bench".to_owned(), credentials: None };
    let bus = Bus::connect(config).await?;
    bus.ready(BROKER_LIMIT).await?;
    Ok(bus)
}
