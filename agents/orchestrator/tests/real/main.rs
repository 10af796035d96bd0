//! The orchestrator as a process, against a real broker, with a node played by the test: boots, deaths of the leader, redeliveries.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail loudly, its helpers too"
)]

#[path = "../../../../crates/bus/tests/real/broker.rs"]
mod broker;
mod cast;
mod lines;
#[expect(dead_code, unreachable_pub, reason = "shared with the end-to-end tests; not every part is used here")]
#[path = "../../../../tests/src/e2e/proxy.rs"]
mod proxy;

use std::time::Duration;

use anyhow::Result;
use broker::{Broker, SOON, soon};
use cast::{Follower, PlayedNode, Replica, store};
use razar_bus::Bus;
use razar_bus_schema::{
    bucket::{IntentKey, lease_key},
    ids::Instance,
    stream::Store,
    v1::{self, RunMode, event::Fact},
};

async fn desired(bus: &Bus, component: &str) -> Result<v1::Desired> {
    let record = bus.get_intent(&IntentKey::Desired(Instance::new(component, 0))).await?;
    match record.and_then(|(intent, _)| intent.want) {
        Some(v1::intent::Want::Desired(desired)) => Ok(desired),
        _ => anyhow::bail!("{component} has no record"),
    }
}

async fn apply(bus: &Bus, id: &str, revision: &str) -> Result<v1::Receipt> {
    let command = v1::Command { command_id: id.to_owned(), stack_revision: revision.to_owned(), ..Default::default() };
    Ok(bus.command("orchestrator", "apply", "demo", command, SOON).await?)
}

fn stack(components: usize) -> String {
    let mut text = "name: demo\nmesh: { parallel_starts: 8 }\ncomponents:\n".to_owned();
    for n in 0..components {
        text.push_str(&format!("  c{n}:\n    chakra: heart\n    command: [run, \"{n}\"]\n    readiness: none\n"));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_is_put_in_force_and_taken_down() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let _node = PlayedNode::start(&bus, "a", "e1");
    let replica = Replica::start(&broker, "o1")?;
    let revision = store(&bus, &stack(12)).await?;
    let mut told = Follower::start(&bus);

    let receipt = apply(&bus, "c1", &revision).await?;
    assert!(receipt.accepted, "{receipt:?}");
    let completed = told.mission_completed(&receipt.mission_id).await?;
    assert_eq!((completed.outcome.as_str(), completed.ready.len()), ("complete", 12));
    assert_eq!(told.command_end("c1").await?, "done");
    assert_eq!(desired(&bus, "c7").await?.stack_revision, revision);

    let plan: v1::PlanReply = bus.ask("razar.query.orchestrator.plan", &v1::PlanRequest {}, SOON).await?;
    assert_eq!((plan.stack.as_str(), plan.instances.len(), plan.replica.as_str()), ("demo", 12, "o1"));
    assert!(replica.metric("razar_commands_total{verb=\"apply\",result=\"accepted\"}").await?.is_some_and(|n| n == 1.0));
    assert!(replica.get("/readyz").await?.contains("\"ready\":true"));

    // JSON from any NATS client, answered in JSON.
    let asked = bus.command("orchestrator", "restart", "c33", v1::Command::default(), SOON).await?;
    assert_eq!((asked.accepted, asked.code.as_str()), (false, "unknown_component"));
    assert!(!asked.nearest.is_empty());

    let down = bus.command("orchestrator", "down", "demo", v1::Command { command_id: "c2".to_owned(), ..Default::default() }, SOON).await?;
    assert!(down.accepted);
    assert_eq!(told.command_end("c2").await?, "done");
    assert_eq!(desired(&bus, "c7").await?.mode(), RunMode::Stop);
    Ok(())
}

/// Faults 1 and 2: the leader is killed in the middle of an apply, the other goes on without repeating anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_followed_without_repetition() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let _node = PlayedNode::start(&bus, "a", "e1");
    let mut replicas = [Replica::start(&broker, "o1")?, Replica::start(&broker, "o2")?];
    let mut told = Follower::start(&bus);
    let mut generation = 0;
    for round in 0..3_u64 {
        let revision = store(&bus, &format!("{}    env: {{ ROUND: \"{round}\" }}\n", stack(30))).await?;
        let leader = leader(&bus).await?;
        let at = replicas.iter().position(|r| r.name == leader).unwrap();
        let (id, sender) = (format!("c{round}"), bus.clone());
        let applying = tokio::spawn(async move { apply(&sender, &id, &revision).await });
        // A different moment of the apply each time: it takes about ten milliseconds.
        tokio::time::sleep(Duration::from_millis(2 + 3 * round)).await;
        replicas[at].kill();
        replicas[at] = Replica::start(&broker, &format!("o{}", 3 + round))?;

        assert_eq!(told.command_end(&format!("c{round}")).await?, "done");
        let receipt = applying.await?;
        if let Ok(receipt) = receipt {
            assert!(receipt.accepted, "{receipt:?}");
        }
        let last = desired(&bus, "c29").await?.generation;
        generation += 1;
        assert_eq!(last, generation, "what changed is started anew once");
        assert_eq!(desired(&bus, "c0").await?.generation, 1, "what did not change is left alone");
    }
    let events = told.all();
    for round in 0..3 {
        let id = format!("c{round}");
        let results: Vec<_> = events
            .iter()
            .filter_map(|e| match &e.fact {
                Some(Fact::OperatorCommand(c)) if c.command_id == id => Some(c.result.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(results, ["accepted", "done"]);
    }
    let missions = events.iter().filter(|e| e.kind == "mission_started").count();
    assert_eq!(missions, 3);
    let mut ids: Vec<&str> = events.iter().map(|e| e.id.as_str()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "each event is in the stream once");
    Ok(())
}

/// Fault 3: the broker dies in between and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_survived() -> Result<()> {
    let mut broker = Broker::with("")?;
    let bus = broker.provisioned().await?;
    let _node = PlayedNode::start(&bus, "a", "e1");
    let replica = Replica::start(&broker, "o1")?;
    let mut told = Follower::start(&bus);
    let revision = store(&bus, &stack(5)).await?;
    apply(&bus, "c1", &revision).await?;
    assert_eq!(told.command_end("c1").await?, "done");
    broker.kill();
    soon("the replica says that the bus is away", async {
        while !replica.get("/readyz").await.is_ok_and(|text| text.contains("bus")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await?;
    broker.spawn()?;
    bus.ready(SOON).await?;
    let receipt =
        bus.command("orchestrator", "restart", "c3", v1::Command { command_id: "c2".to_owned(), ..Default::default() }, SOON).await?;
    assert!(receipt.accepted, "{receipt:?}");
    assert_eq!(told.command_end("c2").await?, "done");
    assert_eq!(desired(&bus, "c3").await?.generation, 2);
    Ok(())
}

/// Name of the replica that holds the shard.
async fn leader(bus: &Bus) -> Result<String> {
    let bucket = bus.bucket(Store::Leases);
    let held = async {
        loop {
            if let Ok(Some(entry)) = bucket.get(&lease_key("orchestrator", 0)).await {
                return String::from_utf8_lossy(&entry.value).into_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let value = soon("somebody leads", held).await?;
    Ok(value)
}

#[test]
fn a_wrong_configuration_exits_64() -> Result<()> {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_razar-orchestrator")).env("RAZAR_MESH", "No Name").output()?;
    assert_eq!(out.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&out.stderr).contains("RAZAR_MESH"));
    Ok(())
}
