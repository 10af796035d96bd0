//! Lines that are hurt between a client and the broker, by the proxy: one-way partitions, half-open connections, slow consumers,
//! watches that skip, consumers that stand still. Numbers in comments are those of the fault catalogue.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use razar_bus::{Bus, BusError, CommandItem, Connection, EventFold, FoldItem, IntentItem, IntentRecord, IntentWatch, Start};
use razar_bus_schema::{bucket::IntentKey, ids::Instance, stream::Store, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    broker::{Broker, SOON, free_port, soon},
    played::{event, stranger},
    proxy::{Proxy, Way},
};

/// A dead line is found within this: two pings of 1.5 s without an answer, and a try to connect.
const FOUND: Duration = Duration::from_secs(9);

/// A bus whose line goes through a proxy.
async fn through(broker: &Broker) -> Result<(Proxy, Bus)> {
    let proxy = Proxy::start(broker.port)?;
    let mut config = broker.config();
    config.servers = vec![format!("nats://127.0.0.1:{}", proxy.port())];
    let bus = Bus::connect(config).await?;
    bus.ready(SOON).await?;
    Ok((proxy, bus))
}

async fn down(bus: &Bus, limit: Duration) -> Result<Duration> {
    let (began, mut connection) = (Instant::now(), bus.connection());
    let lost = connection.wait_for(|c| matches!(c, Connection::Down { .. }));
    tokio::time::timeout(limit, lost).await.context("a dead line was not noticed")??;
    Ok(began.elapsed())
}

/// A consumer that stands still is found within this: it is looked at each 20 s at the most, again 5 s later, and then made anew.
const REVIVED: Duration = Duration::from_secs(35);

/// Journal sequences in the order in which they come, until `last` has come. Each comes soon.
async fn read_until(fold: &mut EventFold, last: u64) -> Result<Vec<u64>> {
    read_within(fold, last, SOON).await
}

/// Journal sequences in the order in which they come, until `last` has come. Each comes within `limit`.
async fn read_within(fold: &mut EventFold, last: u64, limit: Duration) -> Result<Vec<u64>> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let item = tokio::time::timeout(limit, fold.next()).await.with_context(|| format!("no event within {limit:?}"))?;
        if let FoldItem::Event { event, .. } = item.context("the fold ended")? {
            seen.extend(event.node_sequence.map(|s| s.sequence));
        }
    }
    Ok(seen)
}

/// Fault 7: only one way of the line works. What was sent into the void is stored once, whatever its sender believes.
#[tokio::test]
async fn a_one_way_partition_is_noticed_and_costs_nothing() -> Result<()> {
    for (way, sequence) in [(Way::ToBroker, 1), (Way::ToClient, 2)] {
        let broker = Broker::start()?;
        let own = broker.provisioned().await?;
        let (proxy, bus) = through(&broker).await?;
        let mut fold = bus.fold_events(Start::Beginning);
        proxy.swallow(way);
        let (sender, told) = (bus.clone(), event(sequence));
        let publishing = tokio::spawn(async move { sender.publish_event(&told, "").await });
        let took = down(&bus, FOUND).await?;
        println!("  {way:?} cut, noticed after {took:?}");
        let failed = publishing.await?.expect_err("nobody could have answered");
        assert!(failed.outcome_unknown(), "{failed:?}");
        proxy.mend();
        bus.ready(SOON).await?;
        let again = bus.publish_event(&event(sequence), "").await?;
        assert_eq!(again.duplicate, way == Way::ToClient, "what reached the broker is stored already");
        assert_eq!(own.head(Store::Events).await?, 1);
        assert_eq!(read_until(&mut fold, sequence).await?, [sequence]);
    }
    Ok(())
}

/// Fault 8: the broker's end vanished and nobody told the client, which sends nothing by itself but pings.
#[tokio::test]
async fn a_half_open_connection_is_found_by_pings_and_left() -> Result<()> {
    let broker = Broker::start()?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let mut fold = bus.fold_events(Start::Beginning);
    own.publish_event(&event(1), "").await?;
    assert_eq!(read_until(&mut fold, 1).await?, [1]);
    proxy.orphan();
    let took = down(&bus, FOUND).await?;
    println!("  half-open, noticed after {took:?}");
    own.publish_event(&event(2), "").await?;
    bus.ready(SOON).await?;
    assert_eq!(read_until(&mut fold, 2).await?, [2], "the fold goes on where it was");
    assert!(proxy.connections() >= 2, "over another connection");
    Ok(())
}

/// Fault 9: a line with a second of delay each way, and one that drips, are slow and not dead.
#[tokio::test]
async fn a_slow_line_is_not_taken_for_a_dead_one() -> Result<()> {
    let broker = Broker::start()?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let mut fold = bus.fold_events(Start::Beginning);
    own.publish_event(&event(1), "").await?;
    assert_eq!(read_until(&mut fold, 1).await?, [1]);
    proxy.delay(Duration::from_secs(1));
    assert!(!bus.publish_event(&event(2), "").await?.duplicate);
    assert_eq!(read_until(&mut fold, 2).await?, [2]);
    proxy.mend();
    proxy.drip(Way::ToClient, 64, Duration::from_millis(20));
    assert!(!bus.publish_event(&event(3), "").await?.duplicate);
    assert_eq!(read_until(&mut fold, 3).await?, [3]);
    assert_eq!(bus.statistics().reconnects, 0);
    Ok(())
}

/// Fault 11: who reads too slowly is cut off by the broker, comes back and has lost and doubled nothing.
#[tokio::test]
async fn a_slow_consumer_that_was_cut_off_comes_back_without_gap_or_repetition() -> Result<()> {
    const LAST: u64 = 3000;
    let monitor = free_port()?;
    let broker = Broker::with(&format!("http: \"127.0.0.1:{monitor}\"\nwrite_deadline: \"300ms\"\nmax_pending: 1048576"))?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let mut fold = bus.fold_events(Start::Beginning);
    own.publish_event(&event(1), "").await?;
    assert_eq!(read_until(&mut fold, 1).await?, [1]);
    // Beats are not flow-controlled: they are what floods a line that is not read.
    let mut beats = bus.subscribe("razar.heartbeat.>", 10).await?;
    bus.flush().await?;
    proxy.hold(Way::ToClient);
    let mut publisher = own.event_publisher();
    let publishing = tokio::spawn(async move {
        let mut next = 2;
        while publisher.progress().acknowledged < LAST {
            while next <= LAST && publisher.offer(next, &event(next), "")? {
                next += 1;
            }
            soon("progress", publisher.progressed()).await?;
        }
        anyhow::Ok(())
    });
    let beat = Bytes::from(vec![7; 100_000]);
    soon("the broker to cut it off", async {
        while slow_consumers(monitor).await? == 0 {
            own.publish("razar.heartbeat.node.a", beat.clone(), "").await?;
        }
        anyhow::Ok(())
    })
    .await??;
    let mut connection = bus.connection();
    proxy.mend();
    soon("the end of the line", connection.wait_for(|c| !c.is_up())).await??;
    bus.ready(SOON).await?;
    soon("all to be published", publishing).await???;
    assert_eq!(read_until(&mut fold, LAST).await?, (2..=LAST).collect::<Vec<_>>());
    assert!(bus.statistics().reconnects >= 1);
    assert!(soon("a beat", beats.next()).await?.is_some());
    Ok(())
}

/// How many clients the broker cut off for reading too slowly.
async fn slow_consumers(monitor: u16) -> Result<u64> {
    let mut peer = tokio::net::TcpStream::connect(("127.0.0.1", monitor)).await?;
    peer.write_all(b"GET /varz HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    serde_json::from_str::<serde_json::Value>(body)?.get("slow_consumers").and_then(serde_json::Value::as_u64).context("no count")
}

async fn put(bus: &Bus, component: &str, generation: u64, over: u64) -> Result<u64> {
    let want = v1::intent::Want::Desired(v1::Desired { generation, ..v1::Desired::default() });
    let intent = v1::Intent { want: Some(want), ..v1::Intent::default() };
    let revisions = bus.put_intents(&[(IntentKey::Desired(Instance::new(component, 0)), intent, over)]).await?;
    revisions.first().copied().context("a revision")
}

/// Follows until the view holds what it should; each revision that was told, in order.
async fn converge(watch: &mut IntentWatch, view: &mut BTreeMap<String, u64>, wanted: &[(&str, u64)]) -> Result<Vec<u64>> {
    let mut told = Vec::new();
    while !wanted.iter().all(|(component, revision)| view.get(&format!("desired.{component}.0")) == Some(revision)) {
        match soon("an item of the watch", watch.next()).await?.context("the watch ended")? {
            IntentItem::Record { key, revision, record: IntentRecord::Known { .. }, .. } => {
                view.insert(key, revision);
                told.push(revision);
            }
            IntentItem::Settled { .. } | IntentItem::Epoch(_) => {}
            IntentItem::Record { record, .. } => anyhow::bail!("{record:?}"),
        }
    }
    Ok(told)
}

/// Fault 12: a watch skips an entry in between, then the newest of all, then loses its consumer. It relists, and the view converges.
#[tokio::test]
async fn a_watch_that_skips_or_errs_lists_again_and_converges() -> Result<()> {
    let broker = Broker::start()?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let (mut watch, mut view) = (bus.watch_intents(), BTreeMap::new());
    let a = put(&own, "a", 1, 0).await?;
    assert_eq!(converge(&mut watch, &mut view, &[("a", a)]).await?, [a]);

    // In between: what comes after tells of the gap.
    proxy.lose(Way::ToClient, "$KV.razar_intents.desired.b", 1);
    let b = put(&own, "b", 1, 0).await?;
    let c = put(&own, "c", 1, 0).await?;
    assert_eq!(converge(&mut watch, &mut view, &[("a", a), ("b", b), ("c", c)]).await?, [b, c]);

    // The newest: the broker's idle heartbeat tells of it.
    proxy.lose(Way::ToClient, "$KV.razar_intents.desired.a", 1);
    let a = put(&own, "a", 2, a).await?;
    assert_eq!(converge(&mut watch, &mut view, &[("a", a)]).await?, [a]);
    assert_eq!(proxy.struck(), 2);

    // The consumer is gone: only silence tells of it.
    let stream = async_nats::jetstream::new(stranger(&broker).await?).get_stream("KV_razar_intents").await?;
    let names: Vec<String> = stream.consumer_names().filter_map(|name| async { name.ok() }).collect().await;
    assert!(!names.is_empty());
    for name in names {
        stream.delete_consumer(&name).await?;
    }
    let b = put(&own, "b", 2, b).await?;
    assert_eq!(converge(&mut watch, &mut view, &[("b", b)]).await?, [b]);
    assert_eq!(bus.statistics().reconnects, 0, "the line itself was fine");
    Ok(())
}

/// Pauses each consumer of a stream: it holds back what is pending, while its heartbeats go on.
async fn pause_consumers(broker: &Broker, stream: &str) -> Result<usize> {
    let stream = async_nats::jetstream::new(stranger(broker).await?).get_stream(stream).await?;
    let names: Vec<String> = stream.consumer_names().filter_map(|name| async { name.ok() }).collect().await;
    let until = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
    for name in &names {
        stream.pause_consumer(name, until).await?;
    }
    Ok(names.len())
}

/// Fault 13: consumers stand still with messages pending; no error and no silence tells of it.
#[tokio::test]
async fn a_consumer_that_stands_still_is_made_anew() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut fold = bus.fold_events(Start::Beginning);
    bus.publish_event(&event(1), "").await?;
    assert_eq!(read_until(&mut fold, 1).await?, [1]);
    assert_eq!(pause_consumers(&broker, "razar_events").await?, 1);
    bus.publish_event(&event(2), "").await?;
    bus.publish_event(&event(3), "").await?;
    let began = Instant::now();
    let seen = read_within(&mut fold, 3, REVIVED).await.context("it stands still for ever")?;
    println!("  read again after {:?}", began.elapsed());
    assert_eq!(seen, [2, 3]);
    Ok(())
}

/// Fault 13, for the work queue that all replicas share: nothing that was acknowledged comes again, and another replica goes on with it.
#[tokio::test]
async fn a_queue_that_stands_still_is_made_anew_behind_what_was_done() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut source = bus.serve_commands("orchestrator").await?;
    let send = |id: &str| {
        let command = v1::Command { command_id: id.to_owned(), ..v1::Command::default() };
        let bus = bus.clone();
        async move { bus.command("orchestrator", "stop", "api", command, Duration::from_millis(50)).await }
    };
    let settle = |item| async move {
        let CommandItem::Command(command) = item else { anyhow::bail!("{item:?}") };
        let id = command.command.command_id.clone();
        command.settle(v1::Receipt { accepted: true, ..v1::Receipt::default() }).await?;
        anyhow::Ok(id)
    };
    let sent = send("one").await;
    assert!(matches!(sent, Err(BusError::Timeout { .. })), "{sent:?}");
    assert_eq!(settle(soon("a command", source.next()).await?).await?, "one");
    assert_eq!(pause_consumers(&broker, "razar_commands").await?, 1);
    drop(send("two").await);
    let began = Instant::now();
    let item = tokio::time::timeout(REVIVED, source.next()).await.context("it stands still for ever")?;
    println!("  pulled again after {:?}", began.elapsed());
    assert_eq!(settle(item).await?, "two");
    let other = broker.bus().await?;
    source.pause();
    let mut next = other.serve_commands("orchestrator").await?;
    drop(send("three").await);
    assert_eq!(settle(soon("a command", next.next()).await?).await?, "three");
    Ok(())
}

/// Fault 14: what comes twice is stored once, and what is delivered twice is folded once.
#[tokio::test]
async fn what_comes_twice_counts_once() -> Result<()> {
    let broker = Broker::start()?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let mut fold = bus.fold_events(Start::Beginning);
    proxy.double(Way::ToBroker, "razar.event.", 3);
    proxy.double(Way::ToClient, "razar.event.", 2);
    let mut publisher = bus.event_publisher();
    for sequence in 1..=5 {
        assert!(publisher.offer(sequence, &event(sequence), "")?);
    }
    assert!(publisher.drained(SOON).await);
    assert_eq!(read_until(&mut fold, 5).await?, [1, 2, 3, 4, 5]);
    assert_eq!(own.head(Store::Events).await?, 5);
    assert_eq!(proxy.struck(), 5);
    Ok(())
}

/// Fault 31: a compare-and-swap is carried out and its answer is lost. The writer reads back and compares; a second try is refused.
#[tokio::test]
async fn a_write_whose_answer_is_lost_is_read_back() -> Result<()> {
    let broker = Broker::start()?;
    broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let bucket = bus.bucket(Store::Missions);
    proxy.lose_answers("$KV.razar_missions.plan", 1);
    let value = Bytes::from_static(b"mine");
    let failed = bucket.put_cas("plan", value.clone(), 0).await.expect_err("the answer was lost");
    assert!(failed.outcome_unknown(), "{failed:?}");
    let stands = bucket.get("plan").await?.context("it was stored")?;
    assert_eq!((stands.value, stands.revision), (value.clone(), 1));
    assert!(matches!(bucket.put_cas("plan", value, 0).await, Err(BusError::Conflict { .. })));
    Ok(())
}

/// The first of three events that are under way at once is lost on the line: the two behind it are not stored before it. Events of others
/// in between take nothing away.
#[tokio::test]
async fn an_event_sent_ahead_never_overtakes_the_one_before_it() -> Result<()> {
    let broker = Broker::start()?;
    let own = broker.provisioned().await?;
    let (proxy, bus) = through(&broker).await?;
    let mut fold = own.fold_events(Start::Beginning);
    let mut publisher = bus.event_publisher();
    assert!(publisher.offer(1, &event(1), "")?);
    assert!(publisher.drained(SOON).await);
    proxy.lose(Way::ToBroker, "razar.event.", 1);
    for sequence in 2..=4 {
        assert!(publisher.offer(sequence, &event(sequence), "")?);
    }
    assert_eq!(read_until(&mut fold, 4).await?, [1, 2, 3, 4]);
    assert_eq!(proxy.struck(), 1);
    assert!(publisher.drained(SOON).await);

    let other = |sequence| v1::Event { id: format!("other-{sequence}"), node_sequence: None, ..event(sequence) };
    for sequence in 5..=60 {
        assert!(publisher.offer(sequence, &event(sequence), "")?);
        own.publish_event(&other(sequence), "").await?;
    }
    assert!(publisher.drained(SOON).await);
    assert_eq!(read_until(&mut fold, 60).await?, (5..=60).collect::<Vec<_>>());
    assert_eq!(own.head(Store::Events).await?, 60 + 56, "each is stored once");
    Ok(())
}
