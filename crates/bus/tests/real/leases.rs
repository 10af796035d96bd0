//! Leases: one holder, a clock of its own, a quick hand-over.

use std::time::{Duration, Instant};

use anyhow::Result;
use razar_bus::{LeaseState, ShardLeases};
use razar_bus_schema::shard::ShardCount;

use crate::broker::{Broker, SOON, soon};

const TTL: Duration = Duration::from_secs(2);

/// Waits until it is held; the fence.
async fn held(lease: &ShardLeases) -> Result<u64> {
    soon("the lease", async {
        loop {
            if let LeaseState::Held { fence, .. } = lease.state(0) {
                return fence;
            }
            lease.changed().await;
        }
    })
    .await
}

async fn waiting(lease: &ShardLeases) -> Result<()> {
    soon("the end of the lease", async {
        while lease.state(0) != LeaseState::Waiting {
            lease.changed().await;
        }
    })
    .await
}

fn contend(bus: &razar_bus::Bus, holder: &str) -> Result<ShardLeases> {
    Ok(bus.shard_leases("test", holder, ShardCount::ONE, TTL)?)
}

#[tokio::test]
async fn one_holds_and_a_released_lease_changes_hands_at_once() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let first = contend(&bus, "one")?;
    let fence = held(&first).await?;
    let second = contend(&other, "two")?;
    // Long enough for several renewals and a whole TTL: the tenure goes on.
    let began = Instant::now();
    while began.elapsed() < TTL + Duration::from_millis(700) {
        assert!(first.holds(0) && !second.holds(0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(first.state(0), LeaseState::Held { fence: f, .. } if f == fence));
    let released = Instant::now();
    first.release(SOON).await;
    let next = held(&second).await?;
    assert!(next > fence, "the fence rises");
    assert!(released.elapsed() < TTL / 2, "no need to wait for the end: {:?}", released.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_dead_holders_lease_runs_out() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let first = contend(&bus, "one")?;
    held(&first).await?;
    let second = contend(&other, "two")?;
    // The whole connection, as a killed process: nothing is given back.
    bus.close(Duration::from_millis(1)).await;
    let died = Instant::now();
    held(&second).await?;
    let took = died.elapsed();
    assert!(took < TTL + Duration::from_secs(1), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_holder_without_a_broker_gives_up_before_the_lease_ends() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let lease = contend(&bus, "one")?;
    let fence = held(&lease).await?;
    broker.signal("STOP")?;
    let stopped = Instant::now();
    waiting(&lease).await?;
    assert!(!lease.holds(0));
    assert!(stopped.elapsed() < TTL.mul_f64(0.75), "{:?}", stopped.elapsed());
    broker.signal("CONT")?;
    assert!(held(&lease).await? > fence);
    Ok(())
}

#[tokio::test]
async fn a_short_or_broken_ttl_is_refused() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    for ttl in [Duration::from_secs(1), Duration::from_millis(2500)] {
        assert!(bus.shard_leases("test", "one", ShardCount::ONE, ttl).is_err());
    }
    Ok(())
}
