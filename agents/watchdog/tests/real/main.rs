//! The watchdog as a process, against a real broker, with nodes played by the test: two replicas and one verdict, a holder that dies, a
//! broker that stands for longer than silence takes.

#[path = "../../../../crates/bus/tests/real/broker.rs"]
mod broker;
mod cast;

use std::time::{Duration, Instant};

use anyhow::Result;
use broker::Broker;
use cast::{Node, Replica, told, wait_told};

/// Three beats of a second, fifty milliseconds, and what a busy test machine adds.
const VERDICT: Duration = Duration::from_millis(4_500);

/// Faults 1, 2 and 32: three replicas hear it, whoever decides dies with the node, and it is told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_dies_with_a_node_is_followed_and_one_verdict_is_given() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let a = Node::join(&broker, "a").await?;
    let b = Node::join(&broker, "b").await?;
    let mut replicas = vec![Replica::start(&broker, "w1")?, Replica::start(&broker, "w2")?, Replica::start(&broker, "w3")?];
    cast::holder(&bus, &replicas).await?;
    for replica in &replicas {
        replica.hears().await?;
    }
    let holder = cast::holder(&bus, &replicas).await?;
    replicas.remove(holder).kill();
    b.leave().await;
    let left = Instant::now();
    let lost = wait_told(&bus, "node_lost").await?;
    let took = left.elapsed();
    assert!(took < VERDICT, "{took:?}");
    assert!(lost.id.starts_with("a:watchdog:node_lost:_:_:b:n:b:"), "{}", lost.id);
    // The dead replica is told as well, by the same two; then all that was due is told.
    wait_told(&bus, "agent_down").await?;
    let kinds: Vec<String> = told(&bus).await?.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds.iter().filter(|k| *k == "node_lost").count(), 1, "{kinds:?}");
    a.leave().await;
    Ok(())
}

/// Fault 5: the broker stands for five seconds; every beat is late, and so is what proves that there are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stands_makes_nobody_silent() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let a = Node::join(&broker, "a").await?;
    let b = Node::join(&broker, "b").await?;
    let replica = Replica::start(&broker, "w1")?;
    cast::holder(&bus, std::slice::from_ref(&replica)).await?;
    replica.hears().await?;
    broker.signal("STOP")?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    broker.signal("CONT")?;
    bus.ready(broker::SOON).await?;
    cast::holder(&bus, std::slice::from_ref(&replica)).await?;
    // Somebody who is silent afterwards is told, and nobody before it.
    b.leave().await;
    let lost = wait_told(&bus, "node_lost").await?;
    assert!(lost.id.contains(":b:"), "{}", lost.id);
    let kinds: Vec<String> = told(&bus).await?.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["node_lost"]);
    a.leave().await;
    Ok(())
}

/// Fault 3: the broker is killed and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_makes_nobody_silent() -> Result<()> {
    let mut broker = Broker::with("")?;
    let bus = broker.provisioned().await?;
    let a = Node::join(&broker, "a").await?;
    let b = Node::join(&broker, "b").await?;
    let replica = Replica::start(&broker, "w1")?;
    cast::holder(&bus, std::slice::from_ref(&replica)).await?;
    replica.hears().await?;
    broker.kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    broker.spawn()?;
    bus.ready(broker::SOON).await?;
    replica.hears().await?;
    b.leave().await;
    assert!(wait_told(&bus, "node_lost").await?.id.contains(":b:"));
    let kinds: Vec<String> = told(&bus).await?.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["node_lost"]);
    a.leave().await;
    Ok(())
}

#[test]
fn a_wrong_configuration_exits_64() -> Result<()> {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_razar-watchdog")).env("RAZAR_MESH", "No Name").output()?;
    assert_eq!(out.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&out.stderr).contains("RAZAR_MESH"));
    Ok(())
}
