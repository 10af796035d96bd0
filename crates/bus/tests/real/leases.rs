//! Leases: one holder, a clock of its own, a quick hand-over.

use std::time::{Duration, Instant};

use anyhow::Result;
use razar_bus::{Lease, LeaseState};
use tokio::sync::watch;

use crate::broker::{Broker, SOON, soon};

const TTL: Duration = Duration::from_secs(2);

async fn held(state: &mut watch::Receiver<LeaseState>) -> Result<u64> {
    let state = *soon("the lease", state.wait_for(|s| matches!(s, LeaseState::Held { .. }))).await??;
    match state {
        LeaseState::Held { fence, .. } => Ok(fence),
        LeaseState::Waiting => unreachable!(),
    }
}

async fn waiting(state: &mut watch::Receiver<LeaseState>) -> Result<()> {
    soon("the end of the lease", state.wait_for(|s| *s == LeaseState::Waiting)).await??;
    Ok(())
}

fn contend(bus: &razar_bus::Bus, holder: &str) -> Result<Lease> {
    Ok(bus.lease("shard.test.0".to_owned(), holder.to_owned(), TTL)?)
}

#[tokio::test]
async fn one_holds_and_a_released_lease_changes_hands_at_once() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let first = contend(&bus, "one")?;
    let fence = held(&mut first.state()).await?;
    let second = contend(&other, "two")?;
    // Long enough for several renewals and a whole TTL: the tenure goes on.
    let began = Instant::now();
    while began.elapsed() < TTL + Duration::from_millis(700) {
        assert!(first.holds() && !second.holds());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(*first.state().borrow(), LeaseState::Held { fence: f, .. } if f == fence));
    let released = Instant::now();
    first.release(SOON).await;
    let next = held(&mut second.state()).await?;
    assert!(next > fence, "the fence rises");
    assert!(released.elapsed() < TTL / 2, "no need to wait for the end: {:?}", released.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_dead_holders_lease_runs_out() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let first = contend(&bus, "one")?;
    held(&mut first.state()).await?;
    let second = contend(&other, "two")?;
    // The whole connection, as a killed process: nothing is given back.
    bus.close(Duration::from_millis(1)).await;
    let died = Instant::now();
    held(&mut second.state()).await?;
    let took = died.elapsed();
    assert!(took < TTL + Duration::from_secs(1), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_holder_without_a_broker_gives_up_before_the_lease_ends() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let lease = contend(&bus, "one")?;
    let mut state = lease.state();
    let fence = held(&mut state).await?;
    broker.signal("STOP")?;
    let stopped = Instant::now();
    waiting(&mut state).await?;
    assert!(!lease.holds());
    assert!(stopped.elapsed() < TTL.mul_f64(0.75), "{:?}", stopped.elapsed());
    broker.signal("CONT")?;
    assert!(held(&mut state).await? > fence);
    Ok(())
}

#[tokio::test]
async fn a_short_or_broken_ttl_is_refused() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    for ttl in [Duration::from_secs(1), Duration::from_millis(2500)] {
        assert!(bus.lease("shard.test.0".to_owned(), "one".to_owned(), ttl).is_err());
    }
    Ok(())
}
