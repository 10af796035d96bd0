//! The built-in stack: broker, then provision, then agents, restarted without end.

use std::collections::BTreeMap;

use razar_bus_schema::v1;
use razar_stack::{SystemAgent, SystemBroker, SystemStack, system};

fn stack() -> SystemStack {
    let agent = |name: &str, http_port: u16| SystemAgent {
        name: name.to_owned(),
        command: vec![format!("/opt/razar-{name}")],
        env: BTreeMap::from([("RAZAR_HTTP_PORT".to_owned(), http_port.to_string())]),
        http_port,
    };
    SystemStack {
        node: "a".to_owned(),
        node_epoch: "e1".to_owned(),
        generation: 3,
        working_dir: "/var/lib/razar".to_owned(),
        env: BTreeMap::from([("RAZAR_MESH".to_owned(), "razar".to_owned())]),
        broker: Some(SystemBroker { command: vec!["/opt/nats-server".to_owned()], port: 4222, monitor_port: 8222 }),
        provision: vec!["/opt/razar-provision".to_owned()],
        agents: vec![agent("registry", 7602), agent("orchestrator", 7601)],
    }
}

#[test]
fn the_broker_comes_first_and_the_agents_after_provision() {
    let records = system(&stack()).unwrap();
    let order: Vec<_> = records.iter().map(|r| (r.wave, r.rank, r.spec.as_ref().unwrap().name.as_str())).collect();
    assert_eq!(order, [(0, 1, "broker"), (1, 2, "provision"), (2, 3, "orchestrator"), (2, 4, "registry")]);
    assert!(records.iter().all(|r| r.stack == "system" && r.node == "a" && r.node_epoch == "e1" && r.generation == 3));
    assert!(records.iter().all(|r| r.spec.as_ref().unwrap().restart.unwrap().endless));
    assert_eq!(system(&stack()).unwrap(), records);
}

#[test]
fn agents_are_asked_for_ready_and_for_life() {
    let records = system(&stack()).unwrap();
    let spec = records[2].spec.as_ref().unwrap();
    let path = |probe: &Option<v1::Probe>| {
        let Some(v1::probe::Check::Http(http)) = &probe.as_ref().unwrap().check else { panic!("{probe:?}") };
        format!("{}{}", http.port, http.path)
    };
    assert_eq!((path(&spec.readiness), path(&spec.liveness)), ("7601/readyz".to_owned(), "7601/healthz".to_owned()));
    assert_eq!(spec.env.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["RAZAR_HTTP_PORT", "RAZAR_MESH"]);
    let provision = records[1].spec.as_ref().unwrap();
    assert!(provision.one_shot && provision.readiness.is_none());
}

#[test]
fn without_a_broker_of_its_own_it_begins_with_provision() {
    let records = system(&SystemStack { broker: None, ..stack() }).unwrap();
    assert_eq!(records[0].spec.as_ref().unwrap().name, "provision");
    assert!(records[0].spec.as_ref().unwrap().depends_on.is_empty());
}

#[test]
fn no_component_of_a_user_s_may_have_a_member_s_name() {
    for record in system(&stack()).unwrap() {
        assert!(razar_stack::names::is_reserved(&record.spec.unwrap().name));
    }
}
