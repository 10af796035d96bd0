//! The rungs past a component's own: its dependencies' incidents, its chakra's hook; and where a known error begins.

use razar_bus_schema::v1::{self, InstanceState as S, QuarantinePhase as Phase, event::Fact};

use crate::bench::{Bench, spec};

fn with_hook(names: &[&str]) -> Bench {
    let mut b = Bench::new(&[]);
    b.hook = Some(v1::Hook { command: vec!["/heal.sh".to_owned()], ..Default::default() });
    for name in names {
        b.desire(&plain(name), 1, v1::RunMode::Run);
    }
    b
}

/// Without state, so that its rungs are a restart and the hook.
fn plain(name: &str) -> v1::ComponentSpec {
    v1::ComponentSpec { state: Vec::new(), ..spec(name, &[]) }
}

/// `db` serves, and the other waits for it only until it has failed: its incident blocks nobody.
fn with_optional_db() -> Bench {
    let mut api = spec("api", &["db"]);
    api.depends_on.iter_mut().for_each(|d| d.required = false);
    let mut b = Bench::new(&[v1::ComponentSpec { depends_on: Vec::new(), ..spec("db", &[]) }, api]);
    b.started("db", "1.1");
    b.ready("db", "1.1");
    b
}

#[test]
fn the_hook_is_the_last_rung_before_quarantine() {
    let mut b = with_hook(&["api"]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    assert_eq!(
        b.take(),
        [
            "order restart#1 of api@1.1: 1.4",
            "recovery_started restart chakra_hook quarantine",
            "rung_tried restart failed chakra_hook",
            "order chakra_hook#2 of api@1.1: 1.5 hooking",
        ]
    );
    b.failed("api", "1.5", "start_failed");
    assert_eq!(b.take()[..2], ["rung_tried chakra_hook failed quarantine", "recovery_failed 2 boom"]);
}

#[test]
fn a_hook_that_helps_ends_the_incident() {
    let mut b = with_hook(&["api"]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.take();
    b.started("api", "1.6");
    b.ready("api", "1.6");
    b.pass(5);
    assert_eq!(b.take(), ["rung_tried chakra_hook ok", "recovered chakra_hook 1.6", "end chakra_hook#2 of api@1.1"]);
}

#[test]
fn a_hook_has_its_timeout_beside_the_start() {
    let mut b = Bench::new(&[]);
    let timeout = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    b.hook = Some(v1::Hook { command: vec!["/heal.sh".to_owned()], timeout, ..Default::default() });
    b.desire(&v1::ComponentSpec { heal: vec!["chakra_hook".to_owned()], ..plain("api") }, 1, v1::RunMode::Run);
    b.exhaust("api");
    b.take();
    b.pass(630);
    assert_eq!(b.take(), [""; 0]);
    b.pass(10);
    assert_eq!(b.take()[0], "rung_tried chakra_hook void chakra_hook", "nothing has started: it counts for nothing");
}

#[test]
fn a_chakra_that_is_down_makes_its_hook_the_next_rung_of_the_lowest_incident_once() {
    let mut b = with_hook(&["api", "web"]);
    b.exhaust("api");
    b.exhaust("web");
    b.take();
    b.chakra(Some("down-1"));
    b.rung_fails("web", "1.5");
    b.take();
    b.rung_fails("api", "1.5");
    assert_eq!(b.take(), ["rung_tried restart failed chakra_hook",]);
    b.failed("web", "1.5", "start_failed");
    assert_eq!(b.take()[..1], ["rung_tried chakra_hook failed quarantine"]);
}

#[test]
fn the_hook_comes_before_the_rungs_that_are_left_and_these_after_it() {
    let mut b = Bench::new(&[]);
    b.hook = Some(v1::Hook { command: vec!["/heal.sh".to_owned()], ..Default::default() });
    b.desire(&spec("api", &[]), 1, v1::RunMode::Run);
    b.exhaust("api");
    b.chakra(Some("down-1"));
    b.rung_fails("api", "1.5");
    assert_eq!(
        b.take(),
        [
            "order restart#1 of api@1.1: 1.4",
            "recovery_started restart clear_state chakra_hook quarantine",
            "rung_tried restart failed chakra_hook",
            "order chakra_hook#2 of api@1.1: 1.5 hooking",
        ]
    );
    b.failed("api", "1.5", "start_failed");
    assert_eq!(b.take(), ["rung_tried chakra_hook failed clear_state", "order clear_state#3 of api@1.1: 1.5 clearing"]);
    b.rung_fails("api", "1.6");
    assert_eq!(b.take()[0], "rung_tried clear_state failed quarantine", "the hook was tried in this incident");
}

#[test]
fn a_chakra_that_went_down_is_told_twice_and_its_hook_runs_once() {
    let mut b = Bench::new(&[]);
    b.hook = Some(v1::Hook { command: vec!["/heal.sh".to_owned()], ..Default::default() });
    b.desire(&spec("api", &[]), 1, v1::RunMode::Run);
    b.chakra(Some("down-1"));
    b.exhaust("api");
    assert_eq!(b.take()[0], "order chakra_hook#1 of api@1.1: 1.4 hooking");
    b.failed("api", "1.4", "start_failed");
    assert_eq!(b.take()[0], "rung_tried chakra_hook failed restart");
    b.chakra(Some("down-1"));
    b.rung_fails("api", "1.5");
    assert_eq!(b.take()[0], "rung_tried restart failed clear_state");
    b.chakra(Some("down-2"));
    b.rung_fails("api", "1.6");
    assert_eq!(b.take()[0], "rung_tried clear_state failed chakra_hook", "it went down anew");
}

#[test]
fn a_chakra_that_is_well_again_wants_no_hook() {
    let mut b = with_hook(&["api"]);
    b.chakra(Some("down-1"));
    b.chakra(None);
    b.exhaust("api");
    assert_eq!(b.take()[0], "order restart#1 of api@1.1: 1.4");
}

#[test]
fn of_one_chakra_one_hook_runs_at_a_time() {
    let mut b = with_hook(&["api", "web"]);
    for name in ["api", "web"] {
        b.exhaust(name);
        b.rung_fails(name, "1.5");
    }
    assert_eq!(b.take().iter().filter(|line| line.contains("hooking")).count(), 1);
    b.failed("api", "1.5", "start_failed");
    let log = b.take();
    assert_eq!(log[0], "rung_tried chakra_hook failed quarantine");
    assert!(log.contains(&"order chakra_hook#2 of web@1.1: 1.5 hooking".to_owned()), "{log:?}");
}

#[test]
fn a_successor_runs_no_hook_a_second_time() {
    let mut b = with_hook(&["api"]);
    b.chakra(Some("down-1"));
    b.exhaust("api");
    b.failed("api", "1.4", "start_failed");
    b.take();
    b.take_over();
    b.rung_fails("api", "1.5");
    assert_eq!(b.take()[0], "rung_tried restart failed quarantine");
}

#[test]
fn what_fails_beside_a_dependency_that_fails_waits_for_its_incident_and_starts_after_it() {
    let mut b = with_optional_db();
    b.exhaust("api");
    b.exited("db", "1.1");
    b.rung_fails("api", "1.5");
    b.rung_fails("api", "1.6");
    let log = b.take();
    assert_eq!(log[log.len() - 1], "rung_tried clear_state failed dependencies", "{log:?}");
    let text = b.events.last().unwrap().reason.as_ref().unwrap().text.clone();
    assert!(text.ends_with("waits for db@1.1"), "{text}");
    b.pass(600);
    assert_eq!(b.take(), [""; 0], "it waits, and its clock stands still");
    b.started("db", "1.2");
    b.ready("db", "1.2");
    b.tell("db", "1.2", Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() }));
    assert_eq!(b.take(), ["order dependencies#3 of api@1.1: 1.6 clearing"]);
    b.started("api", "1.7");
    b.ready("api", "1.7");
    b.pass(5);
    assert_eq!(b.take()[..2], ["rung_tried dependencies ok", "recovered dependencies 1.7"]);
}

#[test]
fn where_no_dependency_fails_the_rung_is_passed_over() {
    let mut b = with_optional_db();
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.holds(&[("db", "1.1", S::Ready)]);
    b.rung_fails("api", "1.6");
    let log = b.take();
    assert!(log.contains(&"rung_tried clear_state failed quarantine".to_owned()), "{log:?}");
}

#[test]
fn an_incident_that_nobody_will_end_is_not_waited_for() {
    let mut b = with_optional_db();
    b.exited("db", "1.1");
    b.failed("db", "1.1", "policy_never");
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.rung_fails("api", "1.6");
    assert!(b.take().contains(&"rung_tried clear_state failed quarantine".to_owned()));

    let mut b = with_optional_db();
    b.exited("db", "1.1");
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.rung_fails("api", "1.6");
    b.take();
    b.quarantine("db", Phase::Isolated);
    assert_eq!(b.take(), ["order dependencies#3 of api@1.1: 1.6 clearing"], "isolated it is waited for no longer");
}

#[test]
fn a_known_error_says_where_the_ladder_begins() {
    let issue = |rung: &str| {
        Some(v1::Issue { known: "cache".to_owned(), issue_type: "logic".to_owned(), suggested_fix: "x".to_owned(), rung: rung.to_owned() })
    };
    let mut b = Bench::new(&[spec("api", &[])]);
    b.issue = issue("clear_state");
    b.exhaust("api");
    assert_eq!(b.take()[0], "order clear_state#1 of api@1.1: 1.4 clearing");
    b.rung_fails("api", "1.5");
    assert_eq!(b.take()[..2], ["rung_tried clear_state failed quarantine", "recovery_failed 1 boom"]);
    let Some(Fact::RecoveryFailed(failed)) = b.events.iter().rev().find_map(|e| e.fact.clone().filter(|_| e.kind == "recovery_failed"))
    else {
        unreachable!()
    };
    assert_eq!(failed.issue.unwrap().known, "cache");

    let mut b = Bench::new(&[spec("api", &[])]);
    b.issue = issue("quarantine");
    b.exhaust("api");
    assert_eq!(b.take(), ["recovery_started restart clear_state quarantine", "recovery_failed 0 boom"]);
    let text = b.events[0].reason.as_ref().unwrap().text.clone();
    assert_eq!(text, "no rung is tried; known as cache: x");

    let mut b = Bench::new(&[plain("api")]);
    b.issue = issue("chakra_hook");
    b.exhaust("api");
    assert_eq!(b.take()[0], "order restart#1 of api@1.1: 1.4", "there is no such rung here");
}

/// A life of `name` that a rung with its state cleared cures, from an incident of generation `generation` on.
fn cured_by_clearing(b: &mut Bench, name: &str, start: u64) -> u64 {
    let at = |n: u64| format!("1.{n}");
    b.started(name, &at(start));
    b.exited(name, &at(start));
    b.failed(name, &at(start), "budget_spent");
    let log = b.take();
    assert!(log.iter().any(|line| line.ends_with(" clearing")), "{log:?}");
    b.started(name, &at(start + 1));
    b.ready(name, &at(start + 1));
    b.pass(5);
    b.close(name);
    b.pass(60);
    b.take();
    start + 2
}

fn clears(name: &str) -> v1::ComponentSpec {
    v1::ComponentSpec { heal: vec!["clear_state".to_owned(), "restart".to_owned()], ..spec(name, &[]) }
}

#[test]
fn what_cannot_be_taken_back_has_a_budget_and_is_passed_over_when_that_is_spent() {
    let mut b = Bench::new(&[clears("api")]);
    let mut start = 1;
    for _ in 0..6 {
        start = cured_by_clearing(&mut b, "api", start);
    }
    let at = format!("1.{start}");
    b.started("api", &at);
    b.exited("api", &at);
    b.failed("api", &at, "budget_spent");
    assert!(b.take()[0].starts_with("order restart#1"), "six in an hour are spent: its state is left alone");
    b.rung_fails("api", &format!("1.{}", start + 1));
    let told = b.events.iter().rev().find(|e| e.kind == "rung_tried").unwrap().reason.clone().unwrap().text;
    assert_eq!(told, "restart failed; next quarantine; its own budget of 6 in 3600s for what cannot be taken back is spent");

    let mut b = Bench::new(&[clears("api")]);
    let mut start = 1;
    for _ in 0..6 {
        start = cured_by_clearing(&mut b, "api", start);
    }
    b.pass(3_600);
    cured_by_clearing(&mut b, "api", start);
}

#[test]
fn a_chakra_and_the_mesh_have_budgets_too() {
    let names = ["a1", "a2", "a3"];
    let mut b = Bench::new(&names.map(clears));
    let mut starts = [1, 1];
    for n in 0..12 {
        starts[n % 2] = cured_by_clearing(&mut b, names[n % 2], starts[n % 2]);
    }
    b.started("a3", "1.1");
    b.exited("a3", "1.1");
    b.failed("a3", "1.1", "budget_spent");
    assert!(b.take()[0].starts_with("order restart#1 of a3"), "twelve of its chakra are spent");
}

#[test]
fn a_successor_knows_what_is_spent() {
    let mut b = Bench::new(&[clears("api")]);
    let mut start = 1;
    for _ in 0..6 {
        start = cured_by_clearing(&mut b, "api", start);
    }
    b.take_over();
    let at = format!("1.{start}");
    b.started("api", &at);
    b.exited("api", &at);
    b.failed("api", &at, "budget_spent");
    assert!(b.take()[0].starts_with("order restart#1"));
}
