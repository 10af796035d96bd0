//! Commands: a receipt for each, an effect for none that is malformed or late, the same id whoever reads it.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt;
use razar_bus::{BusError, CommandItem, CommandSource, ReceivedCommand, RefusedCommand};
use razar_bus_schema::{stream::Store, time::timestamp, v1};

use crate::{
    broker::{Broker, SOON, soon},
    played::stranger,
};

async fn received(source: &mut CommandSource) -> Result<ReceivedCommand> {
    match soon("a command", source.next()).await? {
        CommandItem::Command(command) => Ok(*command),
        CommandItem::Refused(refused) => anyhow::bail!("refused: {}", refused.why),
    }
}

fn accepted() -> v1::Receipt {
    v1::Receipt { accepted: true, reason: "a new generation".to_owned(), ..v1::Receipt::default() }
}

#[tokio::test]
async fn a_json_command_of_any_client_gets_a_json_receipt() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    bus.flush().await?;
    let stranger = stranger(&broker).await?;
    let asking = tokio::spawn(async move {
        let payload = Bytes::from_static(br#"{"reason":"new model"}"#);
        stranger.request("razar.command.orchestrator.restart.memory-store", payload).await
    });
    let command = received(&mut source).await?;
    assert_eq!((command.verb.as_str(), command.target.as_str()), ("restart", "memory-store"));
    assert_eq!((command.command.reason.as_str(), command.command.issuer.as_str()), ("new model", "anonymous"));
    assert!(!command.repeated);
    let id = command.command.command_id.clone();
    assert_eq!(id.len(), 32);
    command.settle(accepted()).await?;
    let receipt = String::from_utf8(soon("the receipt", asking).await???.payload.to_vec())?;
    assert_eq!(receipt, format!(r#"{{"accepted":true,"reason":"a new generation","commandId":"{id}","agent":"orchestrator"}}"#));
    Ok(())
}

#[tokio::test]
async fn a_command_of_the_cli_gets_its_receipt() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    let asker = broker.bus().await?;
    bus.flush().await?;
    let asking = tokio::spawn(async move {
        let command = v1::Command { issuer: "me".to_owned(), ..v1::Command::default() };
        asker.command("orchestrator", "stop", "api.1", command, SOON).await
    });
    let command = received(&mut source).await?;
    assert_eq!((command.target.as_str(), command.command.issuer.as_str()), ("api.1", "me"));
    command.settle(accepted()).await?;
    let receipt = soon("the receipt", asking).await???;
    assert!(receipt.accepted && !receipt.command_id.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_command_sent_while_no_agent_runs_is_taken_up_later() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let asked = bus.command("orchestrator", "stop", "api", v1::Command::default(), Duration::from_millis(200)).await;
    assert!(matches!(asked, Err(BusError::Timeout { .. })), "{asked:?}");
    let asker = broker.bus().await?;
    let asking = tokio::spawn(async move { asker.command("orchestrator", "start", "api", v1::Command::default(), SOON).await });
    soon("both commands", async {
        while bus.head(Store::Commands).await.unwrap_or(0) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    for verb in ["stop", "start"] {
        let command = received(&mut source).await?;
        assert_eq!(command.verb, verb);
        command.settle(accepted()).await?;
    }
    assert!(soon("the receipt", asking).await???.accepted, "who still waits gets it");
    Ok(())
}

/// Faults 19 and 22.
#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_with_a_code() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    bus.flush().await?;
    let past = timestamp(SystemTime::now() - Duration::from_secs(5));
    let late = v1::Command { expires_at: Some(past), ..v1::Command::default() };
    let late = prost::Message::encode_to_vec(&late);
    let long = format!(r#"{{"commandId":"{}"}}"#, "x".repeat(65));
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("razar.command.orchestrator.restart.api", b"\xff\xff".to_vec(), "malformed"),
        ("razar.command.orchestrator.restart", b"{}".to_vec(), "malformed"),
        ("razar.command.orchestrator.restart.api", long.into_bytes(), "malformed"),
        ("razar.command.orchestrator.restart.api", late, "expired"),
    ];
    let stranger = stranger(&broker).await?;
    for (subject, payload, expected) in cases {
        let asker = stranger.clone();
        let asking = tokio::spawn(async move { asker.request(subject, payload.into()).await });
        match soon("a refusal", source.next()).await? {
            CommandItem::Refused(refused) => {
                assert_eq!(refused.code, expected);
                refused.answer().await;
                refused.put_away().await?;
            }
            CommandItem::Command(command) => panic!("{command:?}"),
        }
        let answer = soon("the receipt", asking).await???;
        let receipt: v1::Receipt = razar_bus_schema::json::from_payload(&answer.payload)?;
        assert!(!receipt.accepted);
        assert_eq!(receipt.code, expected);
    }
    assert_eq!(bus.statistics().dead_letters, 4);
    Ok(())
}

/// Fault 1: killed between the command and its effect.
#[tokio::test]
async fn a_command_whose_holder_died_comes_again_with_the_same_id() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut first = bus.serve_commands("orchestrator").await?;
    bus.flush().await?;
    let stranger = stranger(&broker).await?;
    stranger.publish("razar.command.orchestrator.restart.api", Bytes::from_static(b"{}")).await?;
    stranger.flush().await?;
    let command = received(&mut first).await?;
    let id = command.command.command_id.clone();
    drop((command, first));
    // A process that was started after the command was sent.
    let late = broker.bus().await?;
    let mut second = late.serve_commands("orchestrator").await?;
    let again = received(&mut second).await?;
    assert!(again.repeated);
    assert_eq!(again.command.command_id, id);
    again.settle(accepted()).await?;
    Ok(())
}

/// One replica reads, another decides: it settles the command in the place of the first, for any client, and within milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_handed_over_and_answered_by_who_was_given_it() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let (mut first, mut second) = (bus.serve_commands("quarantine").await?, other.serve_commands("quarantine").await?);
    second.hear_handovers("two").await?;
    bus.flush().await?;
    other.flush().await?;
    let (sender, stranger) = (broker.bus().await?, stranger(&broker).await?);
    for (id, json) in [("c1", false), ("c2", true)] {
        let ask = async {
            if json {
                let payload = Bytes::from(format!("{{\"commandId\":\"{id}\"}}"));
                let answer = stranger.request("razar.command.quarantine.release.api", payload).await?;
                return Ok(String::from_utf8_lossy(&answer.payload).contains(&format!("\"{id}\"")));
            }
            let command = v1::Command { command_id: id.to_owned(), ..Default::default() };
            Ok::<_, anyhow::Error>(sender.command("quarantine", "release", "api", command, SOON).await?.command_id == id)
        };
        let handing = async {
            let read = received(&mut first).await?;
            let began = std::time::Instant::now();
            let (given, taken) = tokio::join!(received(&mut second), read.hand_over("two"));
            taken?;
            let given = given?;
            assert_eq!((given.handed_over, given.command.command_id.as_str()), (true, id));
            given.settle(accepted()).await?;
            // So that nothing else is pulled there.
            second.pause();
            Ok(began.elapsed())
        };
        let (answered, took) = tokio::try_join!(ask, handing)?;
        eprintln!("handed over and settled in {took:?}");
        assert!(answered && took < Duration::from_millis(500), "{id}: {took:?}");
    }
    drop(first);
    // Acknowledged by the second, neither comes again; nobody of another name is there to take one.
    let mut third = bus.serve_commands("quarantine").await?;
    sender.publish("razar.command.quarantine.release.last", Bytes::from_static(b"{}"), "").await?;
    let last = received(&mut third).await?;
    assert_eq!((last.target.as_str(), last.repeated), ("last", false));
    assert!(matches!(last.hand_over("nobody").await, Err(razar_bus::BusError::NoResponders { .. })));
    last.settle(accepted()).await?;
    Ok(())
}

/// Fault 3.
#[tokio::test]
async fn commands_are_taken_up_after_a_broker_kill() -> Result<()> {
    let mut broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    // A pull is under way when the broker dies.
    assert!(tokio::time::timeout(Duration::from_millis(300), source.next()).await.is_err());
    broker.kill();
    broker.spawn()?;
    let asker = broker.bus().await?;
    let asking = tokio::spawn(async move { asker.command("orchestrator", "stop", "api", v1::Command::default(), SOON).await });
    received(&mut source).await?.settle(accepted()).await?;
    // Wherever it wants its receipt is stored with the command.
    assert!(soon("the receipt", asking).await???.accepted);
    Ok(())
}

#[tokio::test]
async fn a_paused_source_leaves_commands_to_the_holder() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let (mut old, mut new) = (bus.serve_commands("orchestrator").await?, other.serve_commands("orchestrator").await?);
    assert!(tokio::time::timeout(Duration::from_millis(300), old.next()).await.is_err());
    old.pause();
    bus.flush().await?;
    let asker = broker.bus().await?;
    let sent = std::time::Instant::now();
    let asking = tokio::spawn(async move { asker.command("orchestrator", "stop", "api", v1::Command::default(), SOON).await });
    received(&mut new).await?.settle(accepted()).await?;
    let receipt = soon("the receipt", asking).await???;
    assert!(receipt.accepted);
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    drop(old);
    Ok(())
}

/// Who may decide no longer gives back what it holds: another has it well before the ten seconds after which it would come by itself.
#[tokio::test]
async fn a_command_that_is_given_back_comes_to_another_at_once() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let (mut old, mut new) = (bus.serve_commands("orchestrator").await?, other.serve_commands("orchestrator").await?);
    let asker = broker.bus().await?;
    let asking = tokio::spawn(async move { asker.command("orchestrator", "stop", "api", v1::Command::default(), SOON).await });
    let held = received(&mut old).await?;
    let id = held.command.command_id.clone();
    old.pause();
    let given = std::time::Instant::now();
    held.give_back().await?;
    let again = received(&mut new).await?;
    assert!(again.repeated && given.elapsed() < Duration::from_secs(3), "{:?}", given.elapsed());
    assert_eq!(again.command.command_id, id);
    again.settle(accepted()).await?;
    assert!(soon("the receipt", asking).await???.accepted);
    drop(old);
    Ok(())
}

async fn refused(source: &mut CommandSource) -> Result<RefusedCommand> {
    match soon("a refusal", source.next()).await? {
        CommandItem::Command(command) => anyhow::bail!("taken: {command:?}"),
        CommandItem::Refused(refused) => Ok(*refused),
    }
}

/// Fault 18: whoever was to tell of a command that nobody can use dies before that. It comes to another, under the same place.
#[tokio::test]
async fn a_refused_command_comes_again_until_it_is_put_away() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut first = bus.serve_commands("orchestrator").await?;
    bus.flush().await?;
    let stranger = stranger(&broker).await?;
    stranger.publish("razar.command.orchestrator.restart.api", Bytes::from_static(b"\xff")).await?;
    stranger.publish("razar.command.orchestrator.restart.web", Bytes::from_static(b"{}")).await?;
    stranger.flush().await?;
    let dead = refused(&mut first).await?;
    let place = (dead.sequence, dead.stored);
    received(&mut first).await?.settle(accepted()).await?;
    drop((dead, first));
    let other = broker.bus().await?;
    let mut second = other.serve_commands("orchestrator").await?;
    let again = refused(&mut second).await?;
    assert_eq!((again.code, (again.sequence, again.stored)), ("malformed", place));
    again.put_away().await?;
    Ok(())
}

/// Who reads commands also does other things: however short it waits each time, one that nobody asked for an answer to is not lost.
#[tokio::test]
async fn a_refused_command_comes_to_a_reader_who_never_waits_long() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    let stranger = stranger(&broker).await?;
    // One that makes the consumer.
    stranger.publish("razar.command.orchestrator.restart.api", Bytes::from_static(b"{}")).await?;
    stranger.flush().await?;
    received(&mut source).await?.settle(accepted()).await?;
    stranger.publish("razar.command.orchestrator.restart.api", Bytes::from_static(b"\xff")).await?;
    stranger.flush().await?;
    let sent = std::time::Instant::now();
    let first = tokio::time::timeout(SOON, async {
        loop {
            tokio::select! {
                biased;
                item = source.next() => break item,
                () = tokio::time::sleep(Duration::from_millis(40)) => {}
            }
        }
    });
    let CommandItem::Refused(dead) = first.await? else { panic!("taken") };
    assert!(sent.elapsed() < Duration::from_secs(5), "it came again, {:?} later", sent.elapsed());
    dead.put_away().await?;
    Ok(())
}

/// Fault 18: a command that everybody dies of is given up after five deliveries, by a word of ours that is repeated until it is heard.
#[tokio::test]
async fn a_command_that_nobody_settles_is_given_up() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    let stranger = stranger(&broker).await?;
    let naks = stranger.clone();
    stranger.publish("razar.command.orchestrator.restart.api", Bytes::from_static(br#"{"commandId":"deadly"}"#)).await?;
    stranger.flush().await?;
    // One delivery to the reader makes the consumer; the others are pulled and handed back by anybody.
    drop(received(&mut source).await?);
    source.pause();
    for delivery in 2..=7 {
        let inbox = naks.new_inbox();
        let mut pulled = naks.subscribe(inbox.clone()).await?;
        let pull = Bytes::from_static(br#"{"batch":1,"expires":15000000000}"#);
        naks.publish_with_reply("$JS.API.CONSUMER.MSG.NEXT.razar_commands.orchestrator", inbox, pull).await?;
        let message = soon("the command again", pulled.next()).await?.ok_or_else(|| anyhow::anyhow!("closed"))?;
        let reply = message.reply.ok_or_else(|| anyhow::anyhow!("delivery {delivery}: {:?}", message.status))?;
        naks.publish(reply, Bytes::from_static(b"-NAK")).await?;
        naks.flush().await?;
    }
    let dead = refused(&mut source).await?;
    assert_eq!(dead.code, "given_up", "{}", dead.why);
    dead.put_away().await?;
    Ok(())
}

/// Who decides waits for a command only until the next event comes, and in a storm of those never for a millisecond.
#[tokio::test]
async fn commands_are_read_however_often_their_reader_is_cut_short() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    bus.flush().await?;
    let asker = broker.bus().await?;
    let asking = tokio::spawn(async move { asker.command("orchestrator", "stop", "api", v1::Command::default(), SOON).await });
    let item = soon("a command", async {
        loop {
            tokio::select! {
                biased;
                item = source.next() => break item,
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await?;
    let CommandItem::Command(command) = item else { anyhow::bail!("refused: {item:?}") };
    command.settle(accepted()).await?;
    assert!(soon("the receipt", asking).await???.accepted);
    Ok(())
}
