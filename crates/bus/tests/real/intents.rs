//! Intents: one ordered view, whole before it is acted on; several records at once or none.

use anyhow::{Context, Result};
use bytes::Bytes;
use razar_bus::{BusError, IntentItem, IntentRecord, IntentWatch, provision};
use razar_bus_schema::{bucket::IntentKey, ids::Instance, stream::Store, v1};

use crate::{
    broker::{Broker, soon},
    played::stranger,
};

fn desired(component: &str, generation: u64) -> (IntentKey, v1::Intent) {
    let want = v1::intent::Want::Desired(v1::Desired { generation, ..v1::Desired::default() });
    (IntentKey::Desired(Instance::new(component, 0)), v1::Intent { want: Some(want), ..v1::Intent::default() })
}

async fn next(watch: &mut IntentWatch) -> Result<IntentItem> {
    soon("an item of the watch", watch.next()).await?.context("the watch ended")
}

#[tokio::test]
async fn an_empty_bucket_is_a_whole_view() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut watch = bus.watch_intents();
    match next(&mut watch).await? {
        IntentItem::Epoch(epoch) => assert_eq!(epoch, bus.epoch(Store::Intents).await?),
        other @ (IntentItem::Record { .. } | IntentItem::Settled { .. }) => panic!("{other:?}"),
    }
    assert!(matches!(next(&mut watch).await?, IntentItem::Settled { revision: 0 }));
    Ok(())
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let batch: Vec<_> = (0..77).map(|n| desired(&format!("c{n}"), 1)).map(|(key, intent)| (key, intent, 0)).collect();
    let mut watch = bus.watch_intents();
    assert!(matches!(next(&mut watch).await?, IntentItem::Epoch(_)));
    assert!(matches!(next(&mut watch).await?, IntentItem::Settled { .. }));
    let revisions = bus.put_intents(&batch).await?;
    assert_eq!(revisions, (1..=77).collect::<Vec<_>>());
    for revision in 1..=77 {
        match next(&mut watch).await? {
            IntentItem::Record { revision: seen, record: IntentRecord::Known { .. }, settled, .. } => {
                assert_eq!(seen, revision);
                assert_eq!(settled, revision == 77, "half a batch is no view; its last record settles it");
            }
            other @ (IntentItem::Epoch(_) | IntentItem::Record { .. } | IntentItem::Settled { .. }) => panic!("{other:?}"),
        }
    }
    // One of them changed meanwhile: nothing is written.
    let (key, intent) = desired("c5", 2);
    bus.put_intents(&[(key, intent, revisions[5])]).await?;
    let stale: Vec<_> = batch.iter().zip(&revisions).map(|((k, i, _), r)| (k.clone(), i.clone(), *r)).collect();
    assert!(matches!(bus.put_intents(&stale).await, Err(BusError::Conflict { .. })));
    assert_eq!(bus.head(Store::Intents).await?, 78);
    let (intent, revision) = bus.get_intent(&IntentKey::Desired(Instance::new("c5", 0))).await?.context("there")?;
    assert_eq!(revision, 78);
    assert!(matches!(intent.want, Some(v1::intent::Want::Desired(d)) if d.generation == 2));
    Ok(())
}

/// Faults 19 and 21.
#[tokio::test]
async fn what_nobody_can_read_is_told_as_such() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let bucket = bus.bucket(Store::Intents);
    bucket.put("desired.api.0", Bytes::from_static(b"\xff")).await?;
    bucket.put("tomorrow.api.0", Bytes::from_static(b"x")).await?;
    let mut watch = bus.watch_intents();
    assert!(matches!(next(&mut watch).await?, IntentItem::Epoch(_)));
    let first = next(&mut watch).await?;
    assert!(matches!(first, IntentItem::Record { record: IntentRecord::Undecodable { bytes: 1, .. }, settled: false, .. }), "{first:?}");
    let second = next(&mut watch).await?;
    assert!(matches!(second, IntentItem::Record { record: IntentRecord::Foreign, settled: true, .. }), "{second:?}");
    assert!(matches!(next(&mut watch).await?, IntentItem::Settled { revision: 2 }));
    Ok(())
}

/// Faults 3 and 12.
#[tokio::test]
async fn a_watch_outlives_the_broker_and_repeats_nothing() -> Result<()> {
    let mut broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let put = |component: &str, generation, revision| {
        let (key, intent) = desired(component, generation);
        let bus = bus.clone();
        async move { bus.put_intents(&[(key, intent, revision)]).await }
    };
    put("a", 1, 0).await?;
    put("b", 1, 0).await?;
    let mut watch = bus.watch_intents();
    let mut seen = Vec::new();
    for restart in [true, false] {
        loop {
            match next(&mut watch).await? {
                IntentItem::Record { revision, .. } => seen.push(revision),
                IntentItem::Settled { .. } if restart || seen.len() == 3 => break,
                IntentItem::Settled { .. } | IntentItem::Epoch(_) => {}
            }
        }
        if restart {
            broker.kill();
            broker.spawn()?;
            soon("the bus", bus.ready(crate::broker::SOON)).await??;
            // A write may meet the connection that is just being lost.
            soon("the third record", async {
                while put("a", 2, 1).await.is_err_and(|e| !matches!(e, BusError::Conflict { .. })) {
                    tokio::task::yield_now().await;
                }
            })
            .await?;
        }
    }
    assert_eq!(seen, [1, 2, 3]);
    Ok(())
}

/// Fault 29.
#[tokio::test]
async fn a_recreated_bucket_has_a_new_epoch() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut watch = bus.watch_intents();
    let IntentItem::Epoch(before) = next(&mut watch).await? else { panic!("the epoch comes first") };
    assert!(matches!(next(&mut watch).await?, IntentItem::Settled { .. }));
    async_nats::jetstream::new(stranger(&broker).await?).delete_stream("KV_razar_intents").await?;
    provision(&bus).await?;
    let (key, intent) = desired("api", 3);
    bus.put_intents(&[(key, intent, 0)]).await?;
    let IntentItem::Epoch(now) = next(&mut watch).await? else { panic!("the new epoch comes first") };
    assert_ne!(before, now);
    assert!(matches!(next(&mut watch).await?, IntentItem::Record { revision: 1, settled: true, .. }));
    Ok(())
}
