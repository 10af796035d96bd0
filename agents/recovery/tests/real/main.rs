//! Recovery as a process, against a real broker, with a node played by the test: the holder of the shard dies at each step of a ladder,
//! the broker dies under it, and nothing is told or ordered twice.

#[path = "../../../../crates/bus/tests/real/broker.rs"]
mod broker;
mod cast;

use anyhow::Result;
use broker::Broker;
use cast::{Node, Replica, order_of, told};
use razar_bus::Bus;
use razar_bus_schema::{
    shard::ShardCount,
    v1::{self, event::Fact},
};

/// A ladder of two rungs that the second one ends well.
const STORY: [&str; 4] = ["recovery_started", "rung_tried restart failed", "rung_tried clear_state ok", "recovered clear_state"];

/// Kills the one of them that holds the shard, once one does.
async fn kill_holder(replicas: &mut Vec<Replica>, bus: &Bus) -> Result<()> {
    let at = cast::holder(bus, replicas).await?;
    replicas.remove(at).kill();
    Ok(())
}

/// Faults 1 and 2: whoever holds the shard is killed after each step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_is_followed_without_repetition() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut node = Node::join(&bus).await?;
    node.desire("api").await?;
    let mut replicas = vec![Replica::start(&broker, "r1")?, Replica::start(&broker, "r2")?];
    node.exhaust("api").await?;
    assert_eq!(order_of(&bus, "api", 1).await?.rung, "restart");
    kill_holder(&mut replicas, &bus).await?;
    node.fail("api", 5).await?;
    assert_eq!(order_of(&bus, "api", 2).await?.rung, "clear_state");
    replicas.push(Replica::start(&broker, "r3")?);
    kill_holder(&mut replicas, &bus).await?;
    node.tell("api", 6, Fact::ComponentStarted(v1::ComponentStarted::default())).await?;
    node.tell("api", 6, Fact::ComponentReady(v1::ComponentReady::default())).await?;
    replicas.push(Replica::start(&broker, "r4")?);
    kill_holder(&mut replicas, &bus).await?;
    cast::ended(&bus, "api").await?;
    let events = told(&bus).await?;
    let (lines, mut ids): (Vec<String>, Vec<String>) = events.into_iter().unzip();
    assert_eq!(lines, STORY);
    ids.dedup();
    assert_eq!(ids.len(), 4);
    Ok(())
}

/// Fault 3: the broker dies with an order under way; what its node tells of it afterwards is judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_survived() -> Result<()> {
    let mut broker = Broker::with("")?;
    let bus = broker.provisioned().await?;
    let mut node = Node::join(&bus).await?;
    node.desire("api").await?;
    let replica = Replica::start(&broker, "r1")?;
    node.exhaust("api").await?;
    assert_eq!(order_of(&bus, "api", 1).await?.rung, "restart");
    broker.kill();
    replica.says("bus").await?;
    broker.spawn()?;
    bus.ready(broker::SOON).await?;
    node.fail("api", 5).await?;
    assert_eq!(order_of(&bus, "api", 2).await?.rung, "clear_state");
    Ok(())
}

/// Two replicas and four shards: each decides about its own, and the one that is left about all of them. What cannot be taken back is
/// granted by whoever holds shard 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_decided_by_their_holders_and_taken_over() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut node = Node::join(&bus).await?;
    let (first, second) = (Replica::of(&broker, "r1", 4)?, Replica::of(&broker, "r2", 4)?);
    let (of_first, of_second) = (first.decides_about(2).await?, second.decides_about(2).await?);
    let four = ShardCount::new(4)?;
    // One component of each shard.
    let name = |shard: u32| (0..).map(|n| format!("c{n}")).find(|name| four.shard_of(name) == shard).unwrap_or_default();
    for shard in four.all() {
        node.desire(&name(shard)).await?;
        node.exhaust(&name(shard)).await?;
        assert_eq!(order_of(&bus, &name(shard), 1).await?.rung, "restart");
    }
    for event in cast::events(&bus).await? {
        let component = event.instance.map(|i| i.component).unwrap_or_default();
        let of = if event.source.is_some_and(|s| s.id == "r1") { &of_first } else { &of_second };
        assert!(of.contains(&four.shard_of(&component)), "{component} was decided by another than its holder");
    }
    let (killed, left, lost) = if of_first.contains(&0) { (first, second, of_first) } else { (second, first, of_second) };
    let died = std::time::Instant::now();
    killed.kill();
    left.decides_about(4).await?;
    eprintln!("all shards are decided {:?} after the kill", died.elapsed());
    assert!(died.elapsed() < std::time::Duration::from_secs(4), "{:?}", died.elapsed());
    for shard in four.all() {
        node.fail(&name(shard), 5).await?;
        assert_eq!(order_of(&bus, &name(shard), 2).await?.rung, "clear_state", "shard {shard}, lost: {lost:?}");
    }
    let granted = cast::events(&bus).await?.iter().filter(|e| e.kind == "rung_granted").count();
    assert_eq!(granted, 4);
    Ok(())
}

/// A replica with another number of shards waits, and says so, until those before it have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_shards_waits_for_the_first_to_end() -> Result<()> {
    let broker = Broker::start()?;
    let _bus = broker.provisioned().await?;
    let one = Replica::start(&broker, "r1")?;
    one.decides_about(1).await?;
    let four = Replica::of(&broker, "r2", 4)?;
    four.says("divide into 1 shards, this one into 4").await?;
    assert!(four.decides().await.is_empty() && one.decides().await == [0]);
    one.kill();
    four.decides_about(4).await?;
    four.says("\"ready\":true").await
}

#[test]
fn a_wrong_configuration_exits_64() -> Result<()> {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_razar-recovery")).env("RAZAR_MESH", "No Name").output()?;
    assert_eq!(out.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&out.stderr).contains("RAZAR_MESH"));
    Ok(())
}
