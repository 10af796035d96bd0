//! The real process against a real broker: it makes what is missing, and its exit code says how it went.

#[path = "../../../crates/bus/tests/real/broker.rs"]
mod broker;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::Result;
use broker::{Broker, SOON, free_port, soon};
use razar_bus_schema::stream::Store;

/// The command, and its file of settings, to be kept while it runs.
fn provision(port: u16, wait_seconds: u64) -> Result<(Command, tempfile::NamedTempFile)> {
    let mut file = tempfile::NamedTempFile::new()?;
    write!(file, "server = \"127.0.0.1:{port}\"\n[settings]\nwait_seconds = {wait_seconds}\n")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_razar-provision"));
    command.env_clear().env("RAZAR_CONFIG", file.path()).stdin(Stdio::null());
    Ok((command, file))
}

#[tokio::test]
async fn it_makes_every_store_and_ends_well_twice() -> Result<()> {
    let broker = Broker::start()?;
    let (mut command, _file) = provision(broker.port, 20)?;
    assert_eq!(command.output()?.status.code(), Some(0));
    let bus = broker.bus().await?;
    let epoch = bus.epoch(Store::Intents).await?;
    assert_eq!(command.output()?.status.code(), Some(0));
    for store in Store::ALL {
        bus.epoch(store).await?;
    }
    // Whoever else provisions the same mesh.
    let other = broker.provisioned().await?;
    assert_eq!(other.epoch(Store::Intents).await?, epoch);
    soon("the end", bus.close(SOON)).await
}

#[test]
fn it_waits_for_a_broker_that_comes_later() -> Result<()> {
    let mut broker = Broker::start()?;
    broker.kill();
    let (mut command, _file) = provision(broker.port, 20)?;
    let mut child = command.spawn()?;
    // It is trying, since nothing listens; a broker then appears.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(child.try_wait()?, None);
    broker.spawn()?;
    assert_eq!(child.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn without_a_broker_it_gives_up_and_says_where_it_looked() -> Result<()> {
    let port = free_port()?;
    let (mut command, _file) = provision(port, 1)?;
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr)?.contains(&format!("127.0.0.1:{port}")));
    Ok(())
}

#[test]
fn a_wrong_setting_exits_64() -> Result<()> {
    let (mut command, _file) = provision(1, 1)?;
    let output = command.env("RAZAR_MESH", "no name").output()?;
    assert_eq!(output.status.code(), Some(64));
    Ok(())
}
