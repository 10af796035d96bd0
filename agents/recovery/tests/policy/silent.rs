//! Those that beat, and do not any more: taken up by the watchdog's verdict, before their node has given them up.

use razar_bus_schema::v1::{self, event::Fact, intent::Want};

use crate::bench::{Bench, spec};

fn ready() -> Bench {
    let mut b = Bench::new(&[v1::ComponentSpec { heal: Vec::new(), ..spec("api", &[]) }]);
    b.started("api", "1.1");
    b.ready("api", "1.1");
    b.take();
    b
}

#[test]
fn a_verdict_on_silence_is_an_order_on_a_missing_sign_at_once() {
    let mut b = ready();
    b.silent("api", "1.1", 2, &b.newest());
    assert_eq!(b.take().first().map(String::as_str), Some("order restart#1 of api@1.1+2: 1.1"), "though its ladder has no rung");
    let Some(Want::Recovery(order)) = b.orders.last().and_then(|o| o.want.clone()) else { unreachable!() };
    let evidence = order.evidence.unwrap();
    assert_eq!((evidence.missing_sign, evidence.signs_of_life, order.backoff), (true, 2, None), "void once the sign was given");
    b.exited("api", "1.1");
    b.started("api", "1.2");
    b.ready("api", "1.2");
    b.take();
    b.pass(6);
    assert!(b.take().contains(&"recovered restart 1.2".to_owned()), "{:?}", b.events);
}

#[test]
fn a_verdict_whose_cause_is_no_longer_the_last_is_void() {
    let mut b = ready();
    let before = b.newest();
    b.tell("api", "1.1", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.silent("api", "1.1", 0, &before);
    assert_eq!(b.take(), [""; 0]);
    b.silent("api", "1.1", 0, &b.newest());
    assert_eq!(b.take().len(), 2, "this one is not");
}

#[test]
fn a_sign_given_before_the_order_was_carried_out_ends_it() {
    let mut b = ready();
    b.silent("api", "1.1", 0, &b.newest());
    b.take();
    b.open("api", "api@1.1");
    b.tell("api", "1.1", Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "sign_of_life".to_owned() }));
    assert_eq!(b.take().last().map(String::as_str), Some("end restart#1 of api@1.1"));
    b.pass(3_600);
    assert_eq!(b.take(), [""; 0]);
}

/// It fails as one that ends: else each start that hangs would begin another ladder at its first rung, for ever.
#[test]
fn a_start_of_a_rung_that_hangs_fails_in_the_incident_that_it_was_to_end() {
    let incident = "api@1.1".parse().unwrap();
    for hangs_ready in [false, true] {
        let mut b = Bench::new(&[v1::ComponentSpec { heal: vec!["restart".to_owned(), "clear_state".to_owned()], ..spec("api", &[]) }]);
        b.exhaust("api");
        b.take();
        b.started("api", "1.5");
        if hangs_ready {
            b.ready("api", "1.5");
        }
        b.take();
        b.judged_in(&incident, "1.5", &b.newest(), Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default()));
        assert_eq!(b.take(), ["rung_tried restart failed clear_state", "order clear_state#2 of api@1.1: 1.5 clearing"], "{hangs_ready}");
        b.exited("api", "1.5");
        b.started("api", "1.6");
        b.judged_in(&incident, "1.6", &b.newest(), Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default()));
        let said = b.take();
        assert!(said.iter().any(|line| line.starts_with("recovery_failed")), "{said:?}");
    }
}

/// How often its local restart has shown life is not in its incident's name: an order on a missing sign would be void for ever.
#[test]
fn a_local_restart_that_hangs_is_replaced_as_by_any_rung() {
    let mut b = ready();
    b.exited("api", "1.1");
    b.started("api", "1.2");
    b.judged_in(&"api@1.1".parse().unwrap(), "1.2", &b.newest(), Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default()));
    assert_eq!(b.take().first().map(String::as_str), Some("order restart#1 of api@1.1: 1.2"));
    let Some(Want::Recovery(order)) = b.orders.last().and_then(|o| o.want.clone()) else { unreachable!() };
    assert!(!order.evidence.unwrap().missing_sign);
}

/// It is ready all the same, and no rung is to end that.
#[test]
fn one_that_was_taken_for_hung_and_is_ready_is_silent_no_more() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.take();
    b.lose_node();
    b.judged_in(&"api@1.1".parse().unwrap(), "1.5", &b.newest(), Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default()));
    assert_eq!(b.take(), [""; 0], "its node is asked when it is back");
    b.ready("api", "1.5");
    b.pass(6);
    let said = b.take();
    assert!(said.contains(&"recovered restart 1.5".to_owned()), "{said:?}");
}

#[test]
fn one_over_its_limits_is_replaced_at_once_and_not_for_a_missing_sign() {
    let mut b = ready();
    b.judged("api", "1.1", 0, "", Fact::LimitExceeded(v1::LimitExceeded::default()));
    assert_eq!(b.take().first().map(String::as_str), Some("order restart#1 of api@1.1: 1.1"));
    let Some(Want::Recovery(order)) = b.orders.last().and_then(|o| o.want.clone()) else { unreachable!() };
    assert_eq!((order.evidence.unwrap().missing_sign, order.backoff), (false, None));
    b.tell("api", "1.1", Fact::ComponentStopped(v1::ComponentStopped::default()));
    b.started("api", "1.2");
    b.ready("api", "1.2");
    b.take();
    b.pass(6);
    assert!(b.take().contains(&"recovered restart 1.2".to_owned()));
}

/// Life `n` of `api` gets a verdict, is replaced at once, and its successor holds.
fn replaced(b: &mut Bench, n: u64, fact: Fact) {
    let (old, next) = (format!("1.{n}"), format!("1.{}", n + 1));
    // The last change of its state is its own ready, and later the end of the incident before.
    let ended = b.events.iter().rfind(|e| e.kind == "recovered").map(|e| e.id.clone());
    b.judged("api", &old, 0, &ended.unwrap_or_else(|| b.newest()), fact);
    b.tell("api", &old, Fact::ComponentStopped(v1::ComponentStopped::default()));
    b.started("api", &next);
    b.ready("api", &next);
    b.pass(6);
    let said = b.take();
    assert_eq!(said.first().map(String::as_str), Some(format!("order restart#1 of api@{old}: {old}").as_str()));
    assert!(said.contains(&format!("recovered restart {next}")), "{said:?}");
}

#[test]
fn who_is_replaced_by_a_verdict_again_and_again_climbs_from_the_rung_above() {
    let over = || Fact::LimitExceeded(v1::LimitExceeded::default());
    let silent = || Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default());
    for verdict in [&over as &dyn Fn() -> Fact, &silent] {
        let mut b = Bench::new(&[spec("api", &[])]);
        b.started("api", "1.1");
        b.ready("api", "1.1");
        b.take();
        for n in 1..=10 {
            replaced(&mut b, n, verdict());
            b.pass(3_600);
            assert_eq!(b.take(), [""; 0], "ten in a day are borne");
        }
        replaced(&mut b, 11, verdict());
        b.judged("api", "1.12", 0, &b.newest(), over());
        b.pass(61);
        assert_eq!(b.take().first().map(String::as_str), Some("order clear_state#1 of api@1.12: 1.12 clearing"));
    }
}

#[test]
fn who_is_replaced_by_a_verdict_again_and_again_and_has_no_other_rung_is_given_up() {
    let mut b = ready();
    for n in 1..=11 {
        replaced(&mut b, n, Fact::LimitExceeded(v1::LimitExceeded::default()));
        b.pass(60);
    }
    let said = b.take();
    assert!(said.iter().any(|line| line.starts_with("recovery_failed")), "{said:?}");
    b.judged("api", "1.12", 0, &b.newest(), Fact::LimitExceeded(v1::LimitExceeded::default()));
    assert!(!b.take().iter().any(|line| line.starts_with("order")), "quarantine has it");
}
