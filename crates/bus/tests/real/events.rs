//! Facts: stored once, read in order, whatever happens to the broker or the stream.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use razar_bus::{Bus, BusError, EventFold, EventPublisher, FoldItem, Start, WINDOW, provision};
use razar_bus_schema::stream::Store;

use crate::{
    broker::{Broker, SOON, soon},
    played::{event, stranger},
};

fn journal_sequence(item: &FoldItem) -> Option<u64> {
    match item {
        FoldItem::Event { event, .. } => event.node_sequence.as_ref().map(|s| s.sequence),
        FoldItem::Reset { .. } | FoldItem::DeadLetter { .. } | FoldItem::CaughtUp { .. } => None,
    }
}

/// Journal sequences in the order of the stream, until `last`.
async fn read_until(fold: &mut EventFold, last: u64) -> Result<Vec<u64>> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let item = soon("an event", fold.next()).await?.context("the fold ended")?;
        seen.extend(journal_sequence(&item));
    }
    Ok(seen)
}

/// Waits until the stream holds that much; the broker may be away meanwhile.
async fn until_head(bus: &Bus, sequence: u64) -> Result<()> {
    soon("enough events", async {
        while bus.head(Store::Events).await.unwrap_or(0) < sequence {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

/// Plays a node: offers 1..=last from its journal as room comes.
async fn publish_journal(publisher: &mut EventPublisher, last: u64) -> Result<()> {
    let mut next = 1;
    while publisher.progress().acknowledged < last {
        while next <= last && publisher.offer(next, &event(next), "")? {
            next += 1;
        }
        assert!(publisher.offered() - publisher.progress().acknowledged <= WINDOW as u64, "more than a window is unacknowledged");
        soon("progress", publisher.progressed()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_event_is_stored_once_and_folded_with_its_trace() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut fold = bus.fold_events(Start::Beginning);
    assert!(matches!(soon("the start", fold.next()).await?, Some(FoldItem::Reset { .. })));
    assert!(matches!(soon("the head", fold.next()).await?, Some(FoldItem::CaughtUp { sequence: 0 })));
    let first = bus.publish_event(&event(1), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await?;
    let again = bus.publish_event(&event(1), "").await?;
    assert_eq!((first.sequence, first.duplicate, again.sequence, again.duplicate), (1, false, 1, true));
    match soon("the event", fold.next()).await?.context("ended")? {
        FoldItem::Event { sequence: 1, event: read, pending: 0, traceparent, .. } => {
            assert_eq!(*read, event(1));
            assert!(traceparent.starts_with("00-0af7"));
        }
        other @ (FoldItem::Event { .. } | FoldItem::Reset { .. } | FoldItem::DeadLetter { .. } | FoldItem::CaughtUp { .. }) => {
            panic!("{other:?}")
        }
    }
    Ok(())
}

/// Fault 17.
#[tokio::test]
async fn rubbish_is_a_dead_letter_and_is_passed_over() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let stranger = stranger(&broker).await?;
    stranger.publish("razar.event.heart.api.component_ready", Bytes::from_static(b"\xff\xff")).await?;
    stranger.flush().await?;
    until_head(&bus, 1).await?;
    bus.publish_event(&event(1), "").await?;
    let mut fold = bus.fold_events(Start::Beginning);
    let mut dead = 0;
    loop {
        match soon("an item", fold.next()).await?.context("ended")? {
            FoldItem::DeadLetter { sequence: 1, bytes: 2, .. } => dead += 1,
            FoldItem::CaughtUp { sequence } => {
                assert_eq!(sequence, 2);
                break;
            }
            FoldItem::Event { sequence, .. } => assert_eq!(sequence, 2),
            FoldItem::Reset { .. } => {}
            FoldItem::DeadLetter { .. } => panic!("another dead letter"),
        }
    }
    assert_eq!((dead, bus.statistics().dead_letters), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_fold_goes_on_after_what_was_applied() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    for sequence in 1..=5 {
        bus.publish_event(&event(sequence), "").await?;
    }
    let epoch = bus.epoch(Store::Events).await?;
    let mut fold = bus.fold_events(Start::After { epoch, sequence: 3 });
    assert_eq!(read_until(&mut fold, 5).await?, [4, 5]);
    // Another epoch: what was applied is void.
    let mut fold = bus.fold_events(Start::After { epoch: "of yore".to_owned(), sequence: 3 });
    assert!(matches!(soon("the reset", fold.next()).await?, Some(FoldItem::Reset { .. })));
    assert_eq!(read_until(&mut fold, 5).await?, [1, 2, 3, 4, 5]);
    Ok(())
}

/// Fault 3.
#[tokio::test]
async fn no_event_is_lost_doubled_or_out_of_order_when_the_broker_is_killed() -> Result<()> {
    const LAST: u64 = 6000;
    let mut broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut fold = bus.fold_events(Start::Beginning);
    let mut publisher = bus.event_publisher();
    let publishing = tokio::spawn(async move { publish_journal(&mut publisher, LAST).await });
    let reading = tokio::spawn(async move { read_until(&mut fold, LAST).await });
    for above in [500, 2000, 4000] {
        until_head(&bus, above).await?;
        broker.kill();
        broker.spawn()?;
    }
    soon("all to be published", publishing).await???;
    let seen = soon("all to be read", reading).await???;
    assert_eq!(seen, (1..=LAST).collect::<Vec<_>>());
    Ok(())
}

/// Fault 4.
#[tokio::test]
async fn the_journal_goes_out_in_order_after_an_hour_without_a_broker() -> Result<()> {
    let mut broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    broker.kill();
    let mut publisher = bus.event_publisher();
    let mut next = 1;
    while publisher.offer(next, &event(next), "")? {
        next += 1;
    }
    assert_eq!((next - 1, publisher.room()), (WINDOW as u64, 0), "the rest stays in the journal");
    assert_eq!(bus.publish_event(&event(1), "").await, Err(BusError::Down));
    broker.spawn()?;
    assert!(publisher.drained(SOON).await);
    let mut fold = bus.fold_events(Start::Beginning);
    assert_eq!(read_until(&mut fold, WINDOW as u64).await?, (1..=WINDOW as u64).collect::<Vec<_>>());
    Ok(())
}

/// Fault 14.
#[tokio::test]
async fn events_that_are_stored_already_do_not_stop_a_batch() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    for sequence in [2, 3, 5] {
        bus.publish_event(&event(sequence), "").await?;
    }
    let mut publisher = bus.event_publisher();
    publish_journal(&mut publisher, 40).await?;
    assert_eq!(publisher.progress().duplicates, 3);
    assert_eq!(bus.head(Store::Events).await?, 40);
    Ok(())
}

/// Fault 29.
#[tokio::test]
async fn a_recreated_stream_resets_the_fold() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    for sequence in 1..=3 {
        bus.publish_event(&event(sequence), "").await?;
    }
    let mut fold = bus.fold_events(Start::Beginning);
    assert_eq!(read_until(&mut fold, 3).await?, [1, 2, 3]);
    let before = bus.epoch(Store::Events).await?;
    async_nats::jetstream::new(stranger(&broker).await?).delete_stream("razar_events").await?;
    assert!(matches!(bus.publish_event(&event(4), "").await, Err(BusError::Missing { .. })));
    provision(&bus).await?;
    let now = bus.epoch(Store::Events).await?;
    assert_ne!(before, now);
    bus.publish_event(&event(7), "").await?;
    let mut reset = None;
    loop {
        match soon("the reset", fold.next()).await?.context("ended")? {
            FoldItem::Reset { epoch } => reset = Some(epoch),
            item if journal_sequence(&item) == Some(7) => break,
            FoldItem::Event { .. } | FoldItem::CaughtUp { .. } | FoldItem::DeadLetter { .. } => {}
        }
    }
    assert_eq!(reset, Some(now));
    Ok(())
}

/// Fault 20.
#[tokio::test]
async fn an_event_that_is_too_large_is_refused_before_it_is_sent() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut large = event(1);
    large.mission_id = "m".repeat(300_000);
    assert!(matches!(bus.publish_event(&large, "").await, Err(BusError::TooLarge { .. })));
    assert!(matches!(bus.event_publisher().offer(1, &large, ""), Err(BusError::TooLarge { .. })));
    bus.publish_event(&event(2), "").await?;
    assert_eq!(bus.statistics().reconnects, 0);
    Ok(())
}
