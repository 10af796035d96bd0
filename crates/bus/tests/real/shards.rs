//! Leases of shards: shared among the replicas that are there, taken over from one that died, and never held in two divisions at once.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use razar_bus::{Bus, ShardLeases};
use razar_bus_schema::shard::ShardCount;

use crate::broker::{Broker, SOON, soon};

const TTL: Duration = Duration::from_secs(2);

fn of(count: u32) -> Result<ShardCount> {
    Ok(ShardCount::new(count)?)
}

fn contend(bus: &Bus, replica: &str, count: u32) -> Result<ShardLeases> {
    Ok(bus.shard_leases("test", replica, of(count)?, TTL)?)
}

fn held(leases: &ShardLeases, count: u32) -> BTreeSet<u32> {
    (0..count).filter(|shard| leases.holds(*shard)).collect()
}

async fn until(what: &str, is: impl Fn() -> bool) -> Result<()> {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, waiting).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_shared_and_a_dead_replicas_are_taken_over_in_a_lease_time() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let first = contend(&bus, "one", 4)?;
    until("all of them", || held(&first, 4).len() == 4).await?;
    let second = contend(&other, "two", 4)?;
    until("two each", || held(&first, 4).len() == 2 && held(&second, 4).len() == 2).await?;
    assert!(held(&first, 4).is_disjoint(&held(&second, 4)));
    assert!(first.holds(0), "what is mesh-wide moves last");
    until("who holds which", || (0..4).all(|s| second.holder(s).as_deref() == Some(if first.holds(s) { "one" } else { "two" }))).await?;
    // The whole connection, as a killed process: nothing is given back.
    bus.close(Duration::from_millis(1)).await;
    let died = Instant::now();
    until("all of them", || held(&second, 4).len() == 4).await?;
    assert!(died.elapsed() < TTL + Duration::from_millis(1500), "{:?}", died.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_gives_its_shards_back_at_once() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    let (first, second) = (contend(&bus, "one", 2)?, contend(&other, "two", 2)?);
    until("one each", || held(&first, 2).len() == 1 && held(&second, 2).len() == 1).await?;
    let left = Instant::now();
    first.release(SOON).await;
    until("both", || held(&second, 2).len() == 2).await?;
    assert!(left.elapsed() < TTL / 2, "{:?}", left.elapsed());
    Ok(())
}

/// Two divisions must never decide about one component: whoever was there first goes on, others wait until it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_division_waits_until_nobody_holds_a_shard_of_the_first() -> Result<()> {
    let broker = Broker::start()?;
    let (bus, other) = (broker.provisioned().await?, broker.bus().await?);
    for (before, after) in [(1, 4), (4, 2)] {
        let old = contend(&bus, "old", before)?;
        until("the first", || held(&old, before).len() == before as usize).await?;
        let new = contend(&other, "new", after)?;
        until("it is seen", || new.foreign() == of(before).ok()).await?;
        assert_eq!(other.foreign_division("test", of(after)?).await?, Some(of(before)?));
        assert_eq!(other.foreign_division("test", of(before)?).await?, None);
        // Longer than a lease: it goes on, and the other holds nothing.
        let began = Instant::now();
        while began.elapsed() < TTL + Duration::from_millis(700) {
            assert!(held(&new, after).is_empty() && held(&old, before).len() == before as usize);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        old.release(SOON).await;
        until("the other", || held(&new, after).len() == after as usize).await?;
        assert_eq!(other.foreign_division("test", of(after)?).await?, None);
        new.release(SOON).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_shard_that_is_stood_aside_from_is_given_back_for_a_while() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let leases = contend(&bus, "one", 2)?;
    until("both", || held(&leases, 2).len() == 2).await?;
    leases.stand_aside(&BTreeSet::from([1]));
    until("one", || held(&leases, 2) == BTreeSet::from([0])).await?;
    until("both again", || held(&leases, 2).len() == 2).await
}
