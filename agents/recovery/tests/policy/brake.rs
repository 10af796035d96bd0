//! The brake: when it goes on, what goes on all the same, and how it lets go.

use razar_bus_schema::v1::{self, RunMode, event::Fact};

use crate::bench::{Bench, spec};

/// As many components as named, each with its rank in the order of their names.
fn many(count: usize, slots: u32) -> (Bench, Vec<String>) {
    let names: Vec<String> = (0..count).map(|n| format!("c{n:02}")).collect();
    let mut b = Bench::new(&[]);
    b.slots = slots;
    for name in &names {
        b.desire(&spec(name, &[]), 1, RunMode::Run);
        b.started(name, "1.1");
        b.ready(name, "1.1");
    }
    b.take();
    (b, names)
}

fn fail(b: &mut Bench, name: &str) {
    b.exited(name, "1.1");
    b.failed(name, "1.1", "budget_spent");
}

#[test]
fn five_that_are_a_fifth_engage_it_and_no_rung_begins_before_it_is_quiet() {
    let (mut b, names) = many(10, 2);
    for name in &names[..4] {
        fail(&mut b, name);
    }
    assert_eq!(b.take().iter().filter(|l| l.starts_with("order")).count(), 4, "four are no flood");
    fail(&mut b, &names[4]);
    assert_eq!(b.take(), ["brake_engaged 5 of 10", "escalated"]);
    b.pass(4);
    fail(&mut b, &names[5]);
    b.pass(4);
    assert_eq!(b.take(), [""; 0], "one more failed just now");
}

#[test]
fn less_than_a_fifth_does_not_engage_it() {
    let (mut b, names) = many(30, 4);
    for name in &names[..5] {
        fail(&mut b, name);
    }
    assert!(!b.take().iter().any(|l| l.starts_with("brake")));
}

#[test]
fn failures_that_lie_far_apart_do_not_engage_it() {
    let (mut b, names) = many(10, 4);
    for name in &names[..6] {
        b.conflict = true;
        fail(&mut b, name);
        b.pass(200);
    }
    assert!(!b.take().iter().any(|l| l.starts_with("brake")));
}

#[test]
fn blocked_and_quarantined_ones_are_in_neither_number() {
    let (mut b, names) = many(10, 4);
    for name in &names[..3] {
        fail(&mut b, name);
    }
    b.quarantine(&names[3], v1::QuarantinePhase::Isolated);
    fail(&mut b, &names[3]);
    fail(&mut b, &names[4]);
    b.blocked(&names[5], "1.1", "c00");
    assert!(!b.take().iter().any(|l| l.starts_with("brake")), "four roots");
    fail(&mut b, &names[6]);
    assert_eq!(b.take()[0], "brake_engaged 5 of 8");
}

#[test]
fn what_its_stack_file_lets_rest_neither_engages_nor_keeps_it() {
    let (mut b, names) = many(10, 4);
    for name in &names[..5] {
        b.failed(name, "1.1", "policy_never");
    }
    assert_eq!(b.take(), [""; 0]);
}

#[test]
fn it_admits_the_lowest_ranks_a_few_at_a_time_and_lets_go_when_all_are_settled() {
    let (mut b, names) = many(10, 2);
    b.conflict = true;
    for name in names[..6].iter().rev() {
        fail(&mut b, name);
    }
    b.conflict = false;
    b.take();
    b.pass(5);
    let orders = |b: &mut Bench| b.take().into_iter().filter(|l| l.starts_with("order")).collect::<Vec<_>>();
    assert_eq!(orders(&mut b), ["order restart#1 of c00@1.1: 1.1", "order restart#1 of c01@1.1: 1.1"]);
    b.pass(10);
    assert_eq!(orders(&mut b), [""; 0], "both slots are taken");
    for pair in [["c00", "c01"], ["c02", "c03"], ["c04", "c05"]] {
        for name in pair {
            b.started(name, "1.2");
            b.ready(name, "1.2");
            b.close(name);
        }
        b.pass(5);
    }
    let lines = b.take();
    let place = |line: &str| lines.iter().position(|l| l == line);
    assert!(place("order restart#1 of c05@1.1: 1.1") < place("brake_released"), "{lines:#?}");
    assert_eq!(lines.iter().filter(|l| l.starts_with("order")).count(), 4);
}

#[test]
fn a_try_that_was_under_way_when_it_went_on_does_not_count() {
    let (mut b, names) = many(10, 4);
    fail(&mut b, &names[0]);
    b.pass(1);
    for name in &names[1..6] {
        fail(&mut b, name);
    }
    b.take();
    b.rung_fails("c00", "1.2");
    assert_eq!(b.take(), ["rung_tried restart void restart"]);
    b.tell("c09", "1.1", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.pass(5);
    assert!(b.take().contains(&"order restart#2 of c00@1.1: 1.2".to_owned()));
}

/// One slot, and the ladder of `api` has begun when what it depends on fails, and so many with it that the brake goes on.
#[test]
fn what_waits_for_another_leaves_it_the_slot() {
    let (mut b, names) = many(8, 1);
    b.desire(&spec("api", &["c00"]), 1, RunMode::Run);
    b.started("api", "1.1");
    fail(&mut b, "api");
    b.pass(1);
    b.conflict = true;
    for name in &names[..5] {
        fail(&mut b, name);
    }
    b.conflict = false;
    b.rung_fails("api", "1.2");
    b.take();
    b.pass(5);
    let orders = |b: &mut Bench| b.take().into_iter().filter(|l| l.starts_with("order")).collect::<Vec<_>>();
    assert_eq!(orders(&mut b), ["order restart#1 of c00@1.1: 1.1"]);
    b.started("c00", "1.2");
    b.ready("c00", "1.2");
    b.pass(1);
    assert_eq!(orders(&mut b), [""; 0], "the slot is taken while c00 is on trial");
    b.close("c00");
    b.pass(5);
    assert_eq!(orders(&mut b), ["order restart#2 of api@1.1: 1.2"], "what goes on comes before what is new");
}

/// One slot, and the node of what has it goes away: as long as that is so, nothing is under way there. What another node holds goes on.
#[test]
fn what_was_under_way_on_a_lost_node_leaves_its_slot() {
    let (mut b, names) = many(8, 1);
    b.conflict = true;
    for name in &names[..5] {
        fail(&mut b, name);
    }
    b.node = "b";
    b.desire(&spec("elsewhere", &[]), 1, RunMode::Run);
    b.started("elsewhere", "1.1");
    fail(&mut b, "elsewhere");
    b.node = "a";
    b.conflict = false;
    b.take();
    b.pass(5);
    let orders = |b: &mut Bench| b.take().into_iter().filter(|l| l.starts_with("order")).collect::<Vec<_>>();
    assert_eq!(orders(&mut b), ["order restart#1 of c00@1.1: 1.1"]);
    b.lose_node();
    b.pass(5);
    assert_eq!(orders(&mut b), ["order restart#1 of elsewhere@1.1: 1.1"]);
}

/// A live one that does not beat is to be replaced: it gets its slot in turn, as who has failed does.
#[test]
fn who_lives_and_does_not_beat_gets_a_slot_too() {
    let (mut b, names) = many(10, 6);
    b.conflict = true;
    b.silent("c09", "1.1", 0, &b.newest());
    for name in &names[4..9] {
        fail(&mut b, name);
    }
    b.conflict = false;
    assert!(b.take().contains(&"brake_engaged 5 of 10".to_owned()));
    b.pass(5);
    let orders: Vec<_> = b.take().into_iter().filter(|l| l.starts_with("order")).collect();
    assert_eq!((orders.len(), orders.last().map(String::as_str)), (6, Some("order restart#1 of c09@1.1: 1.1")), "{orders:?}");
}
