//! Shards: what is decided by whom where there are several. Of two, `api` and `c1` to `c3` belong to shard 1, `db` and `c0` to shard 0.

use razar_bus_schema::{
    shard::{ShardCount, Shards},
    v1::{self, RunMode},
};

use crate::bench::{Bench, spec};

impl Bench {
    /// It decides about these shards of two from now on.
    fn decides_about(&mut self, held: &[u32]) {
        self.state.apply_shards(&Shards::new(ShardCount::new(2).unwrap(), held.iter().copied()));
        self.turn();
    }

    fn grants(&self) -> usize {
        self.events.iter().filter(|e| e.kind == "rung_granted").count()
    }
}

fn of_two(held: &[u32], names: &[&str]) -> Bench {
    let specs: Vec<_> = names.iter().map(|name| spec(name, &[])).collect();
    let mut b = Bench::new(&specs);
    b.decides_about(held);
    b
}

/// Mutation: whoever decides at all orders for every component.
#[test]
fn only_the_holder_of_a_components_shard_decides_about_it() {
    for (name, held, orders) in [("api", [0], false), ("api", [1], true), ("db", [0], true), ("db", [1], false)] {
        let mut b = of_two(&held, &["api", "db"]);
        b.exhaust(name);
        let lines = b.take();
        assert_eq!(lines.is_empty(), !orders, "{name} {held:?}: {lines:?}");
        b.decides_about(&[1 - held[0]]);
        assert_eq!(b.take().is_empty(), orders, "{name}: who comes to hold its shard decides");
    }
}

/// An incident is judged, told and ended by the holder of its shard alone, through all of its course.
#[test]
fn a_shard_that_moves_in_the_middle_of_a_ladder_goes_on_where_it_was() {
    let mut b = of_two(&[0, 1], &["api"]);
    b.exhaust("api");
    b.decides_about(&[0]);
    b.rung_fails("api", "1.5");
    b.pass(60);
    let told: Vec<_> = b.events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!((told, b.orders.len()), (vec!["recovery_started"], 1));
    b.decides_about(&[1]);
    assert!(b.take().contains(&"rung_tried restart failed clear_state".to_owned()));
    assert_eq!(b.orders.len(), 1, "what cannot be taken back is granted first");
    b.decides_about(&[0]);
    assert_eq!((b.take(), b.orders.len()), (vec!["rung_granted".to_owned()], 1));
    b.decides_about(&[1]);
    assert_eq!(b.take(), ["order clear_state#2 of api@1.1: 1.5 clearing"]);
    b.started("api", "1.6");
    b.ready("api", "1.6");
    b.pass(5);
    assert_eq!(b.take().last().map(String::as_str), Some("end clear_state#2 of api@1.1"));
}

#[test]
fn with_one_shard_nothing_is_granted() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    assert_eq!((b.orders.len(), b.grants()), (2, 0));
}

#[test]
fn the_brake_and_what_people_must_know_are_shard_0s() {
    let names: Vec<String> = (0..6).map(|n| format!("c{n}")).collect();
    let mut b = of_two(&[1], &names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        b.exited(name, "1.1");
        b.failed(name, "1.1", "budget_spent");
    }
    assert!(!b.take().iter().any(|line| line.starts_with("brake") || line == "escalated"));
    b.decides_about(&[0]);
    assert_eq!(b.take().iter().filter(|line| line.starts_with("brake_engaged") || *line == "escalated").count(), 2);
}

/// Mutation: an order is written without its grant.
#[test]
fn under_the_brake_the_slots_of_all_shards_are_granted_by_shard_0() {
    let names = ["c0", "c1", "c2", "c3", "db", "api"];
    let mut b = Bench::new(&[]);
    b.slots = 2;
    for name in names {
        b.desire(&spec(name, &[]), 1, RunMode::Run);
    }
    b.decides_about(&[0, 1]);
    b.conflict = true;
    for name in names {
        b.exited(name, "1.1");
        b.failed(name, "1.1", "budget_spent");
    }
    b.conflict = false;
    b.decides_about(&[1]);
    b.take();
    b.pass(5);
    assert_eq!((b.take(), b.grants()), (Vec::new(), 0), "nothing is granted, and so nothing begins");
    b.decides_about(&[0]);
    assert_eq!(b.grants(), 2, "as many as there are slots, of whichever shard");
    assert_eq!(b.take().iter().filter(|line| line.starts_with("order")).count(), 1, "c0 is its own");
    b.pass(30);
    assert_eq!(b.grants(), 2, "what is granted counts until it is told");
    b.decides_about(&[1]);
    assert_eq!(b.take().iter().filter(|line| line.starts_with("order")).count(), 1, "c1 is granted");
}

/// One slot, which is granted to `api` of the other shard when what it depends on falls: it goes to that.
/// Mutation: a grant keeps its slot, whatever became of what it waits for.
#[test]
fn a_grant_of_one_that_waits_for_another_leaves_it_the_slot() {
    let mut b = Bench::new(&[]);
    b.slots = 1;
    b.desire(&spec("api", &["c0"]), 1, RunMode::Run);
    for name in ["c0", "c1", "c2", "c3", "db"] {
        b.desire(&spec(name, &[]), 1, RunMode::Run);
    }
    b.started("c0", "1.1");
    b.ready("c0", "1.1");
    b.decides_about(&[0]);
    // Those of shard 0 conflict, so that none of them has begun when the brake goes on.
    b.conflict = true;
    for name in ["api", "c1", "c2", "c3", "db"] {
        b.exited(name, "1.1");
        b.failed(name, "1.1", "budget_spent");
    }
    b.conflict = false;
    b.take();
    b.pass(5);
    assert_eq!((b.take(), b.grants()), (vec!["rung_granted".to_owned()], 1), "api has the lowest rank");
    // Its end and its failure come as one.
    b.open("c0", "c0@1.1");
    b.failed("c0", "1.1", "budget_spent");
    b.pass(5);
    let orders: Vec<_> = b.take().into_iter().filter(|line| line.starts_with("order")).collect();
    assert_eq!((orders, b.grants()), (vec!["order restart#1 of c0@1.1: 1.1".to_owned()], 2));
}

#[test]
fn what_cannot_be_taken_back_stays_inside_the_meshs_budget_over_all_shards() {
    // So many that sixteen are no flood.
    let names: Vec<String> = (0..100).map(|n| format!("c{n}")).collect();
    let specs: Vec<_> = names.iter().map(|name| v1::ComponentSpec { heal: vec!["clear_state".to_owned()], ..spec(name, &[]) }).collect();
    let mut b = Bench::new(&specs);
    b.decides_about(&[0]);
    for name in &names {
        b.started(name, "1.1");
        b.ready(name, "1.1");
    }
    for name in &names[..16] {
        b.exited(name, "1.1");
        b.failed(name, "1.1", "budget_spent");
    }
    let lines = b.take();
    assert_eq!(b.grants(), 12, "as many as their chakra has, whether or not their holders have ordered by now: {lines:#?}");
}
