//! The line between the orchestrator and the broker loses answers: what was decided is carried out once, whatever its writer heard.

use anyhow::Result;
use razar_bus::Bus;
use razar_bus_schema::v1::{self, event::Fact};

use crate::{
    apply,
    broker::{Broker, SOON},
    cast::{Follower, PlayedNode, Replica, store},
    desired,
    proxy::{Proxy, Way},
    stack,
};

/// What was told of a command, in order.
fn words(told: &Follower, id: &str) -> Vec<String> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::OperatorCommand(c)) if c.command_id == id => Some(c.result),
        _ => None,
    };
    told.all().into_iter().filter_map(of).collect()
}

fn count(told: &Follower, kind: &str) -> usize {
    told.all().iter().filter(|e| e.kind == kind).count()
}

async fn restart(bus: &Bus, id: &str, component: &str) -> Result<v1::Receipt> {
    let command = v1::Command { command_id: id.to_owned(), ..Default::default() };
    Ok(bus.command("orchestrator", "restart", component, command, SOON).await?)
}

/// Fault 31: the compare-and-swap of the plan, then the batch of desired records, is acknowledged and the acknowledgement is lost. The
/// writer reads back and compares: one mission, one generation, one outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_takes_effect_once() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let proxy = Proxy::start(broker.port)?;
    let _node = PlayedNode::start(&bus, "a", "e1");
    let replica = Replica::through(proxy.port(), "o1")?;
    let mut told = Follower::start(&bus);

    proxy.lose_answers("$KV.razar_missions.", 1);
    let first = store(&bus, &stack(8)).await?;
    let receipt = apply(&bus, "c1", &first).await?;
    assert!(receipt.accepted, "{receipt:?}");
    assert_eq!(told.command_end("c1").await?, "done");
    assert_eq!(proxy.struck(), 1, "the plan's answer was lost");
    assert_eq!((count(&told, "mission_started"), desired(&bus, "c0").await?.generation), (1, 1));

    proxy.lose_answers("$KV.razar_intents.desired.", 1);
    let second = store(&bus, &format!("{}    env: {{ ROUND: two }}\n", stack(8))).await?;
    assert!(apply(&bus, "c2", &second).await?.accepted);
    assert_eq!(told.command_end("c2").await?, "done");
    assert_eq!(proxy.struck(), 2, "the batch's answer was lost");
    assert_eq!((count(&told, "mission_started"), desired(&bus, "c7").await?.generation), (2, 2));
    assert_eq!(desired(&bus, "c0").await?.generation, 1, "what did not change is left alone");

    proxy.lose_answers("$KV.razar_", 2);
    assert!(restart(&bus, "c3", "c3").await?.accepted);
    assert_eq!(told.command_end("c3").await?, "done");
    assert_eq!(proxy.struck(), 4, "two more answers were lost");
    assert_eq!(desired(&bus, "c3").await?.generation, 2, "restarted once");
    for id in ["c1", "c2", "c3"] {
        assert_eq!(words(&told, id), ["accepted", "done"], "{id}");
    }
    assert!(replica.get("/readyz").await?.contains("\"ready\":true"));
    Ok(())
}

/// Faults 14 and 31: the acknowledgement of a command is lost on its way to the broker, which delivers the command again after 10 s. It
/// has had its effect, and gets the same receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_comes_again_takes_effect_once() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let proxy = Proxy::start(broker.port)?;
    let _node = PlayedNode::start(&bus, "a", "e1");
    let replica = Replica::through(proxy.port(), "o1")?;
    let mut told = Follower::start(&bus);
    let revision = store(&bus, &stack(3)).await?;
    assert!(apply(&bus, "c1", &revision).await?.accepted);
    assert_eq!(told.command_end("c1").await?, "done");

    proxy.lose(Way::ToBroker, "$JS.ACK.razar_commands.", 1);
    assert!(restart(&bus, "c2", "c1").await?.accepted);
    assert_eq!(told.command_end("c2").await?, "done");
    let answered = "razar_commands_total{verb=\"restart\",result=\"accepted\"}";
    crate::soon("it to be delivered and answered again", async {
        while replica.metric(answered).await.ok().flatten() != Some(2.0) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await?;
    // Another, accepted behind it: a second effect would have come before.
    assert!(restart(&bus, "c3", "c2").await?.accepted);
    assert_eq!(told.command_end("c3").await?, "done");
    assert_eq!(desired(&bus, "c1").await?.generation, 2, "restarted once");
    assert_eq!(words(&told, "c2"), ["accepted", "done"]);
    Ok(())
}
