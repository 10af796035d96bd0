//! How the node reads the bucket: what is in force, what is kept on its disk, what absence says, and what the node tells of what it holds.
//! The mutation that each test catches is in `tests/mutations.toml`.

use std::time::Duration;

use prost::Message as _;
use razar_bus_schema::{
    time,
    v1::{self, InstanceState as State, QuarantinePhase as Phase, event::Fact, intent::Want},
};

use super::bench::{Bench, component, desired, id};

#[test]
fn what_was_pending_is_not_on_the_disk() {
    let mut b = Bench::new();
    b.desire(&desired(&component("api", &[]), 1, 1));
    assert!(b.plan.records.is_empty(), "the isolation may come behind it");
    b.restart_agent(&[]);
    assert_eq!(b.take(), Vec::<String>::new());
    b.desire(&desired(&component("api", &[]), 1, 1));
    b.settle();
    assert_eq!(b.plan.records.len(), 1);
}

#[test]
fn a_hold_counts_from_its_receipt() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    let order = v1::RecoveryOrder {
        instance: Some((&id("db")).into()),
        hold_dependents: Some(time::duration(Duration::from_secs(10))),
        ..Default::default()
    };
    // Decided by a machine whose clock is an hour behind.
    let decided = b.now.wall - Duration::from_secs(3_600);
    let intent = v1::Intent { want: Some(Want::Recovery(order)), decided_at: Some(time::timestamp(decided)), ..Default::default() };
    b.revision += 1;
    b.record_at("recovery.db.0", b.revision, intent);
    b.settle();
    b.ready("db");
    assert_eq!(b.state("api"), State::Waiting, "held");
    b.pass(Duration::from_secs(9));
    assert_eq!(b.state("api"), State::Waiting);
    b.pass(Duration::from_secs(1));
    assert_eq!(b.state("api"), State::Starting);
}

#[test]
fn an_older_record_lifts_no_newer_quarantine() {
    let mut b = Bench::running(&[component("api", &[])]);
    let quarantine = |phase: Phase| {
        let want = v1::Quarantine { component: "api".to_owned(), phase: phase.into(), ..Default::default() };
        v1::Intent { want: Some(Want::Quarantine(want)), ..Default::default() }
    };
    b.record_at("quarantine.api.0", 8, quarantine(Phase::Isolated));
    b.settle();
    b.record_at("quarantine.api.0", 7, quarantine(Phase::Released));
    b.settle();
    assert_eq!(b.last_void().as_deref(), Some("lower_revision"));
    b.exit("api", 0);
    assert_eq!(b.state("api"), State::Quarantined);
}

#[test]
fn a_node_that_joins_tells_what_it_holds() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.quarantine("quarantine.db", Phase::Isolated);
    b.restart_agent(&[]);
    b.take();
    b.events.clear();
    b.node.join(v1::NodeJoined::default(), b.now);
    b.turn();
    assert_eq!(b.take(), ["node_joined node", "node_inventory node"]);
    let Some(Fact::NodeInventory(told)) = b.events.last().and_then(|e| e.fact.clone()) else { panic!("an inventory comes last") };
    let held: Vec<_> = told.items.iter().map(|i| (i.generation, i.incarnation.map(|i| i.start), i.state())).collect();
    assert_eq!(held, [(1, Some(1), State::Ready)]);
    assert_eq!((told.node_epoch.as_str(), told.bucket_epoch.as_str()), (super::bench::NODE_EPOCH, super::bench::EPOCH));
    let quarantine = v1::Intent::decode(told.quarantine_records.first().unwrap().as_slice()).unwrap();
    assert!(matches!(quarantine.want, Some(Want::Quarantine(q)) if q.phase() == Phase::Isolated), "a lost bucket has it from here");
}

#[test]
fn a_node_that_is_no_longer_named_stops_its_copy() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    b.desire(&v1::Desired { node: "b".to_owned(), node_epoch: "journal-b".to_owned(), ..desired(&component("api", &[]), 2, 1) });
    b.settle();
    assert_eq!(b.take(), ["signal 15 api@1.1"]);
    b.exit("api", 0);
    assert_eq!((b.take(), b.state("api")), (vec!["component_stopped api@1.1".to_owned()], State::Stopped));
}
