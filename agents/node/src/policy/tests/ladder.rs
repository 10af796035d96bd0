//! What a node makes of the ladder's orders: whose story it is, what is held, what fails before a start, and what ends it.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident},
    v1::{self, InstanceState as State, event::Fact, intent::Want},
};

use super::{
    super::Input,
    bench::{Bench, component, desired, id},
};

fn incident_of(b: &Bench, kind: &str) -> Option<String> {
    let event = b.events.iter().rev().find(|e| e.kind == kind)?;
    Incident::try_from(event.incident.as_ref()?).ok().map(|i| i.to_string())
}

#[test]
fn what_a_rung_starts_bears_the_incident_of_its_order() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.order(Incarnation::new(1, 1), 1, None);
    b.exit("api", 0);
    assert_eq!(b.incarnation("api"), "1.2");
    assert_eq!(incident_of(&b, "component_started").as_deref(), Some("api@1.1"), "nothing had failed here");
    b.exit("api", 1);
    assert_eq!(incident_of(&b, "component_failed").as_deref(), Some("api@1.1"));
}

#[test]
fn what_is_held_while_its_dependency_recovers_is_blocked_as_before() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.exhaust("db");
    b.hold("db", Duration::from_secs(10));
    let told = b.events.iter().rev().find_map(|e| match &e.fact {
        Some(Fact::ComponentBlocked(blocked)) => Some(blocked.by.len()),
        _ => None,
    });
    assert_eq!(told, Some(1), "nobody has unblocked it");
}

#[test]
fn state_that_cannot_be_cleared_fails_the_rung_without_a_start() {
    let spec = v1::ComponentSpec { state: vec!["/x".to_owned()], ..component("api", &[]) };
    let mut b = Bench::running(&[spec]);
    b.exhaust("api");
    b.take();
    let order = v1::RecoveryOrder {
        instance: Some((&id("api")).into()),
        incident: Some((&"api@1.1".parse::<Incident>().unwrap()).into()),
        attempt: 1,
        replaces: Some(Incarnation::new(1, 4).into()),
        clear_state: true,
        ..Default::default()
    };
    b.record("recovery.api.0", Want::Recovery(order));
    b.settle();
    assert_eq!((b.state("api"), b.take()), (State::Preparing, vec!["clear api".to_owned()]));
    b.input(Input::Prepared { instance: id("api"), failed: Some("/x: permission denied".to_owned()) });
    assert_eq!((b.state("api"), b.take()), (State::Failed, vec!["component_failed api@1.4".to_owned()]));
    let Some(Fact::ComponentFailed(failed)) = b.events.last().and_then(|e| e.fact.clone()) else { panic!("{:?}", b.events) };
    assert_eq!((failed.cause.as_str(), failed.last_error.as_str()), ("start_failed", "/x: permission denied"));
    assert!(!b.node.instance(&id("api")).unwrap().slot, "the next may start");
}

#[test]
fn a_newer_generation_ends_what_a_rung_began() {
    let spec = component("api", &[]);
    let mut b = Bench::running(std::slice::from_ref(&spec));
    b.exhaust("api");
    b.order(Incarnation::new(1, 4), 1, None);
    b.ready("api");
    b.take();
    b.desire(&desired(&spec, 2, 1));
    b.settle();
    b.exit("api", 0);
    assert_eq!(b.incarnation("api"), "2.1");
    assert!(b.take().contains(&"incident_withdrawn api@1.5".to_owned()));
    b.exit("api", 1);
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "2.2"), "restarted by its node");
    assert_eq!(incident_of(&b, "component_exited").as_deref(), Some("api@2.1"));
}
