//! Liveness by beats on the bus: suspected here, judged by the watchdog, ended by an order.

use std::time::Duration;

use razar_bus_schema::v1::{self, probe::Check};

use super::{
    super::{
        Input,
        probing::{Answer, Role},
    },
    bench::{Bench, component, id},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_beat_that_was_waited_for_is_not_slow() {
    let mut api = component("api", &[]);
    api.liveness = Some(v1::Probe { check: Some(Check::Heartbeat(v1::HeartbeatCheck::default())), ..Default::default() });
    let mut b = Bench::running(&[api]);
    b.ready("api");
    b.take();
    b.pass(SECOND);
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.input(Input::Sign { instance: id("api"), incarnation, role: Role::Liveness, detail: "beat 1".into() });
    b.pass(SECOND);
    let input = Input::Probed {
        instance: id("api"),
        incarnation,
        role: Role::Liveness,
        answer: Answer::Failed,
        detail: "no sign of life".into(),
        took: SECOND,
        window: None,
    };
    b.input(input);
    assert_eq!(b.take(), Vec::<String>::new());
}

#[test]
fn who_stops_beating_is_suspected_however_long_it_beat_before_and_ended_by_an_order_alone() {
    let mut api = component("api", &[]);
    api.liveness = Some(v1::Probe { check: Some(Check::Heartbeat(v1::HeartbeatCheck::default())), ..Default::default() });
    let mut b = Bench::running(&[api]);
    b.ready("api");
    b.pass(SECOND);
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.input(Input::Sign { instance: id("api"), incarnation, role: Role::Liveness, detail: "beat 1".into() });
    b.take();
    for _ in 0..3 {
        b.silence("api", 'S');
    }
    assert!(!b.node.silence(&id("api")).hung, "the first window had a beat");
    b.silence("api", 'S');
    let seen = b.node.silence(&id("api"));
    assert!(seen.hung && seen.evidence.is_some_and(|e| e.window() == v1::HangWindow::Asleep), "and three had none");
    assert_eq!(b.take(), Vec::<String>::new(), "that it is hung is for the watchdog to say");
    b.order(incarnation, 1, Some(v1::OrderEvidence { missing_sign: true, ..Default::default() }));
    assert_eq!(b.take(), ["kill api@1.1"], "it would not hear a signal to stop");
    b.exit("api", 137);
    assert!(b.take().contains(&"component_exited api@1.1".to_owned()));
    assert_eq!(b.incarnation("api"), "1.2");
    assert!(!b.node.silence(&id("api")).hung);
}

/// Mutation caught: a sign does not clear the suspicion.
#[test]
fn a_beat_clears_the_suspicion_and_counts() {
    let mut api = component("api", &[]);
    api.liveness = Some(v1::Probe { check: Some(Check::Heartbeat(v1::HeartbeatCheck::default())), ..Default::default() });
    let mut b = Bench::running(&[api]);
    b.ready("api");
    b.pass(SECOND);
    b.silence("api", 'T');
    assert!(b.node.silence(&id("api")).hung, "one window in which all stood is enough");
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.input(Input::Sign { instance: id("api"), incarnation, role: Role::Liveness, detail: "beat 1".into() });
    let seen = b.node.silence(&id("api"));
    assert_eq!((seen.hung, seen.signs_of_life), (false, 1));
    b.take();
    b.order(incarnation, 1, Some(v1::OrderEvidence { missing_sign: true, ..Default::default() }));
    assert_eq!(b.take(), ["order_void api@1.1", "incident_withdrawn api@1.1"]);
}

#[test]
fn an_order_for_silence_that_is_not_seen_here_stops_and_does_not_kill() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.order(incarnation, 1, Some(v1::OrderEvidence { missing_sign: true, ..Default::default() }));
    assert_eq!(b.take(), ["signal 15 api@1.1"]);
}
