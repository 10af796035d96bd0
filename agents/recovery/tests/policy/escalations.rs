//! What people must know of, and how it comes to the hook that a node runs.

use razar_bus_schema::v1::{self, RunMode};

use crate::bench::{Bench, spec};

fn plain(name: &str) -> v1::ComponentSpec {
    v1::ComponentSpec { state: Vec::new(), heal: vec!["restart".to_owned()], required: true, ..spec(name, &[]) }
}

fn with_pager(names: &[&str]) -> Bench {
    let mut b = Bench::new(&[]);
    b.pager = Some(v1::Hook { command: vec!["/page.sh".to_owned()], ..Default::default() });
    for name in names {
        b.desire(&plain(name), 1, RunMode::Run);
    }
    b
}

#[test]
fn the_same_error_three_times_is_told_to_people_once() {
    let mut b = Bench::new(&[plain("api")]);
    for (start, error) in
        [(1, "timeout after 8ms"), (2, "other"), (3, "timeout after 1250ms"), (4, "timeout after 9ms"), (5, "timeout after 1ms")]
    {
        b.started("api", &format!("1.{start}"));
        b.says("api", &format!("1.{start}"), error);
    }
    let told = b.escalated();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].0.as_str(), told[0].1.as_str(), told[0].2), ("P3", "api: the same error 3 times: timeout after 9ms", 3));
    b.take_over();
    assert_eq!(b.escalated().len(), 1, "a successor tells nothing twice");
}

#[test]
fn what_fails_for_want_of_a_dependency_counts_for_nothing() {
    let mut b = Bench::new(&[plain("api")]);
    for start in 1..=3 {
        let incarnation = format!("1.{start}");
        b.started("api", &incarnation);
        let fact = v1::event::Fact::ComponentExited(v1::ComponentExited { last_error: "refused".to_owned(), ..Default::default() });
        b.tell("api", &incarnation, fact);
    }
    assert_eq!(b.escalated(), []);
}

#[test]
fn what_no_rung_heals_is_told_to_people_by_its_weight() {
    for (required, severity) in [(true, "P2"), (false, "P3")] {
        let mut b = Bench::new(&[v1::ComponentSpec { required, ..plain("api") }]);
        b.exhaust("api");
        b.rung_fails("api", "1.5");
        let told = b.escalated();
        assert_eq!((told.len(), told[0].0.as_str(), told[0].1.as_str()), (1, severity, "api: no rung helped, it is isolated: boom"));
    }
}

#[test]
fn an_escalation_is_put_before_a_node_until_its_hook_has_run() {
    let mut b = with_pager(&["api"]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    let log = b.take();
    let put = "announce to a: P2 api: no rung helped, it is isolated: boom".to_owned();
    assert_eq!(log.iter().filter(|line| **line == put).count(), 1, "{log:?}");
    let id = b.escalated()[0].3.clone();
    b.pass(60);
    assert_eq!(b.take(), [""; 0]);
    b.paged(&id);
    assert_eq!(b.take(), ["announce to a:"]);
    b.repeat_all();
    b.pass(60);
    assert_eq!(b.take(), [""; 0], "told again it is not run again");
}

#[test]
fn the_brake_is_put_before_a_node_too() {
    let names = ["a1", "a2", "a3", "a4", "a5"];
    let mut b = with_pager(&names);
    for name in names {
        b.exhaust(name);
    }
    let log = b.take();
    assert!(log.contains(&"announce to a: P1 many components failed at once; the ladder waits".to_owned()), "{log:?}");
}

#[test]
fn without_a_hook_nothing_is_written() {
    let mut b = Bench::new(&[plain("api")]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    assert!(!b.take().iter().any(|line| line.starts_with("announce")));
}

#[test]
fn what_an_old_stream_tells_is_news_to_nobody() {
    let mut b = with_pager(&["api"]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    assert!(b.take().iter().any(|line| line.starts_with("announce")));
    b.pass(7_200);
    b.started("other", "1.1");
    b.take_over();
    assert!(!b.take().iter().any(|line| line.starts_with("announce to a: P")));
}
