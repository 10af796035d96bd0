//! Stores as provisioned; buckets; objects; core subscriptions.

use anyhow::{Context, Result};
use bytes::Bytes;
use razar_bus::{BusError, provision};
use razar_bus_schema::stream::Store;

use crate::{
    broker::{Broker, soon},
    played::stranger,
};

#[tokio::test]
async fn provisioning_again_changes_nothing() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut epochs = Vec::new();
    for store in Store::ALL {
        epochs.push(bus.epoch(store).await?);
    }
    let (one, two) = tokio::join!(provision(&bus), provision(&bus));
    one.and(two)?;
    for (store, epoch) in Store::ALL.into_iter().zip(&epochs) {
        assert_eq!(&bus.epoch(store).await?, epoch, "{store:?}");
    }
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), Store::ALL.len(), "each store has its own epoch");
    Ok(())
}

#[tokio::test]
async fn streams_are_as_the_contract_says() -> Result<()> {
    let broker = Broker::with("server_name: one")?;
    broker.provisioned().await?;
    let context = async_nats::jetstream::new(stranger(&broker).await?);
    let config = |name: &'static str| {
        let context = context.clone();
        async move { anyhow::Ok(context.get_stream(name).await?.get_info().await?.config) }
    };
    let events = config("razar_events").await?;
    assert!(events.deny_delete && events.deny_purge && events.allow_atomic_publish && !events.no_ack);
    assert_eq!((events.max_age.as_secs(), events.duplicate_window.as_secs()), (30 * 24 * 3600, 120));
    assert!(config("razar_commands").await?.no_ack);
    let leases = config("KV_razar_leases").await?;
    assert!(leases.allow_message_ttl && leases.subject_delete_marker_ttl.is_some());
    for name in ["KV_razar_leases", "KV_razar_observed", "razar_logs"] {
        let mode = config(name).await?.persist_mode;
        assert_eq!(mode, Some(async_nats::jetstream::stream::PersistenceMode::Async), "{name}");
    }
    let intents = config("KV_razar_intents").await?;
    assert!(intents.allow_atomic_publish && !intents.allow_direct);
    assert_eq!(intents.max_messages_per_subject, 1);
    Ok(())
}

#[tokio::test]
async fn a_changed_setting_is_brought_back_and_the_epoch_stays() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let epoch = bus.epoch(Store::Events).await?;
    let context = async_nats::jetstream::new(stranger(&broker).await?);
    let mut config = context.get_stream("razar_events").await?.get_info().await?.config;
    config.max_bytes = 1_000_000;
    context.update_stream(config).await?;
    provision(&bus).await?;
    assert_eq!(context.get_stream("razar_events").await?.get_info().await?.config.max_bytes, Store::Events.bytes_max());
    assert_eq!(bus.epoch(Store::Events).await?, epoch);
    Ok(())
}

#[tokio::test]
async fn a_bucket_is_written_by_compare_and_swap() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let bucket = bus.bucket(Store::Missions);
    assert_eq!(bucket.get("plan").await?, None);
    assert!(bucket.entries().await?.is_empty());
    let first = bucket.put_cas("plan", Bytes::from_static(b"one"), 0).await?;
    assert!(matches!(bucket.put_cas("plan", Bytes::from_static(b"two"), 0).await, Err(BusError::Conflict { .. })));
    let second = bucket.put_cas("plan", Bytes::from_static(b"two"), first).await?;
    bucket.put("brief.1", Bytes::from_static(b"b")).await?;
    let entry = bucket.get("plan").await?.context("there")?;
    assert_eq!((entry.value.as_ref(), entry.revision), (b"two".as_ref(), second));
    let keys: Vec<_> = bucket.entries().await?.into_iter().map(|e| e.key).collect();
    assert_eq!(keys, ["brief.1", "plan"]);
    let gone = bucket.delete("plan", second).await?;
    assert_eq!(bucket.get("plan").await?, None);
    assert_eq!(bucket.entries().await?.len(), 1);
    // Over a marker by its revision: nobody writes unseen.
    assert!(matches!(bucket.put_cas("plan", Bytes::new(), second).await, Err(BusError::Conflict { .. })));
    bucket.put_cas("plan", Bytes::from_static(b"three"), gone).await?;
    Ok(())
}

/// Fault 30.
#[tokio::test]
async fn of_fifty_writers_one_wins() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let writers = (0..50).map(|n| {
        let bucket = bus.bucket(Store::Missions);
        async move { bucket.put_cas("plan", Bytes::from(format!("{n}")), 0).await }
    });
    let results = futures::future::join_all(writers).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, BusError::Conflict { .. })));
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_not_there_is_named() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    assert!(matches!(bus.epoch(Store::Events).await, Err(BusError::Missing { .. })));
    assert!(matches!(bus.bucket(Store::Missions).get("plan").await, Err(BusError::Missing { .. })));
    assert!(matches!(bus.bucket(Store::Missions).put("plan", Bytes::new()).await, Err(BusError::Missing { .. })));
    assert!(matches!(bus.bucket(Store::Missions).entries().await, Err(BusError::Missing { .. })));
    assert!(matches!(bus.objects(Store::Stacks).get("x", 10).await, Err(BusError::Missing { .. })));
    Ok(())
}

#[tokio::test]
async fn objects_come_back_whole_and_within_bounds() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let objects = bus.objects(Store::Stacks);
    let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    objects.put("f00d", &bytes).await?;
    assert_eq!(objects.get("f00d", 1_000_000).await?, Some(bytes));
    assert_eq!(objects.get("beef", 1_000_000).await?, None);
    assert!(matches!(objects.get("f00d", 1000).await, Err(BusError::TooLarge { bytes: 700_000, max: 1000 })));
    Ok(())
}

#[tokio::test]
async fn a_full_subscription_keeps_the_newest() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    let mut beats = bus.subscribe("razar.heartbeat.>", 10).await?;
    bus.flush().await?;
    for n in 0..100 {
        bus.publish("razar.heartbeat.node.a", Bytes::from(format!("{n}")), "").await?;
    }
    bus.flush().await?;
    soon("drops", async {
        while beats.dropped() < 90 {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    let first = soon("a beat", beats.next()).await?.context("ended")?;
    assert_eq!(first.payload.as_ref(), b"90");
    assert_eq!(bus.statistics().dropped, 90);
    Ok(())
}
