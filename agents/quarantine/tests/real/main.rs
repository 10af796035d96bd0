//! Quarantine as processes, against a real broker, with a node played by the test: several replicas share the shards, and a command is
//! answered by the holder of its target's shard, whichever replica has read it.

#[path = "../../../../crates/bus/tests/real/broker.rs"]
mod broker;
mod cast;

use std::time::{Duration, Instant};

use anyhow::Result;
use broker::{Broker, SOON};
use cast::{Node, Replica, ends_of, isolated_by};
use razar_bus_schema::{shard::ShardCount, v1};

const SHARDS: u32 = 4;

fn isolate(id: &str) -> v1::Command {
    v1::Command { command_id: id.to_owned(), note: "by a test".to_owned(), ..Default::default() }
}

/// A component of that shard.
fn component(shard: u32) -> Result<String> {
    let count = ShardCount::new(SHARDS)?;
    Ok((0..).map(|n| format!("c{n}")).find(|name| count.shard_of(name) == shard).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_answered_by_the_holder_of_its_shard_whoever_reads_it() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut node = Node::join(&bus).await?;
    for shard in 0..SHARDS {
        node.desire(&component(shard)?).await?;
    }
    let (first, second) = (Replica::start(&broker, "q1", SHARDS)?, Replica::start(&broker, "q2", SHARDS)?);
    let (of_first, of_second) = (first.decides_about(2).await?, second.decides_about(2).await?);
    cast::marked(&bus).await?;
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        for shard in 0..SHARDS {
            let (name, id) = (component(shard)?, format!("c{round}-{shard}"));
            let began = Instant::now();
            let receipt =
                bus.command("quarantine", if round % 2 == 0 { "quarantine" } else { "release" }, &name, isolate(&id), SOON).await?;
            slowest = slowest.max(began.elapsed());
            assert!(receipt.accepted, "{receipt:?}");
            let by = isolated_by(&bus, &name).await?;
            let holder = if of_first.contains(&shard) { "q1" } else { "q2" };
            assert_eq!(by, holder, "only the holder writes; {of_first:?} {of_second:?}");
        }
    }
    eprintln!("the slowest of sixteen commands was answered in {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "no command waits to come again: {slowest:?}");
    assert!(first.metric("razar_decisions_total").await.is_some());

    // Whoever is left answers for all shards.
    let (killed, left) = if of_first.contains(&0) { (first, second) } else { (second, first) };
    killed.kill();
    let mut answers = Vec::new();
    for shard in 0..SHARDS {
        answers.push(bus.command("quarantine", "quarantine", &component(shard)?, isolate(&format!("last-{shard}")), SOON).await?);
    }
    assert!(answers.iter().all(|receipt| receipt.accepted), "{answers:?}");
    left.decides_about(4).await?;
    for shard in 0..SHARDS {
        assert_eq!(ends_of(&bus, &format!("last-{shard}")).await?, ["accepted", "done"]);
    }
    Ok(())
}

#[test]
fn a_wrong_configuration_exits_64() -> Result<()> {
    for (name, value) in [("RAZAR_MESH", "No Name"), ("RAZAR_SHARDS", "17")] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_razar-quarantine")).env(name, value).output()?;
        assert_eq!(out.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&out.stderr).contains(name));
    }
    Ok(())
}
