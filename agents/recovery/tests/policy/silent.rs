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
