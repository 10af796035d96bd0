//! The projection as it is shown, by tables: what the registry says in, lines out.

use std::time::UNIX_EPOCH;

use razar_bus_schema::time::timestamp;

use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn ago(ms: u64) -> Option<prost_types::Timestamp> {
    Some(timestamp(now() - Duration::from_millis(ms)))
}

fn component(name: &str, chakra: &str, state: State, ms: u64) -> v1::ObservedComponent {
    v1::ObservedComponent {
        instance: Some(v1::InstanceId { component: name.to_owned(), ordinal: 0 }),
        stack: "quickstart".to_owned(),
        chakra: chakra.to_owned(),
        node: "a".to_owned(),
        state: state.into(),
        since: ago(ms),
        desired: Some(v1::DesiredChanged { mode: "run".to_owned(), required: true, ..Default::default() }),
        ..Default::default()
    }
}

fn reply(components: Vec<v1::ObservedComponent>) -> v1::StatusReply {
    let agent = |kind: &str| v1::ObservedAgent {
        started: Some(v1::AgentStarted { kind: kind.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let observed = v1::Observed {
        components,
        nodes: vec![v1::ObservedNode { name: "a".to_owned(), ..Default::default() }],
        agents: vec![agent("orchestrator"), agent("registry")],
        ..Default::default()
    };
    v1::StatusReply { observed: Some(observed), ..Default::default() }
}

fn told(report: &Report) -> Vec<String> {
    report.lines.iter().chain([&report.verdict]).map(ToString::to_string).collect()
}

const BUS: Duration = Duration::from_micros(200);

#[test]
fn well_is_a_line_per_chakra_and_the_verdict() {
    let hour = 3_600_000;
    let reply = reply(vec![
        component("api", "throat", State::Ready, 4 * hour),
        component("memory-store", "heart", State::Ready, 4 * hour),
        component("migrate", "heart", State::Completed, 5 * hour),
        component("postgres", "heart", State::Ready, 3 * hour + 720_000),
    ]);
    let report = report(&reply, now(), BUS, false);
    assert_eq!(
        told(&report),
        [
            "heart  3/3 memory-store migrate postgres",
            "throat 1/1 api",
            "quickstart: 4/4 ready for 3h12m; mesh: 2 agents, 1 node, bus 0.2ms",
        ]
    );
    assert_eq!((report.health, report.worst), (Health::Well, None));
}

fn incident() -> v1::StatusReply {
    let blocker = || vec![v1::Blocker { component: "memory-store".to_owned(), needs: "ready".to_owned(), is: "starting".to_owned() }];
    let mut worker = component("worker", "solar", State::Unready, 4200);
    worker.blocked_by = blocker();
    let mut api = component("api", "throat", State::Waiting, 3100);
    api.blocked_by = blocker();
    api.last_exit = Some(v1::ExitStatus { code: Some(1), ..Default::default() });
    let mut store = component("memory-store", "heart", State::Starting, 200);
    store.reason = Some(v1::Reason { code: "rung".to_owned(), text: "rung 2 clear_state, 30s to be ready".to_owned() });
    store.last_error = "JSONDecodeError: cache/index.json".to_owned();
    store.incident = Some(v1::IncidentId {
        instance: store.instance.clone(),
        incarnation: Some(v1::Incarnation { generation: 1, start: 1 }),
        ..Default::default()
    });
    store.incident_exits = 5;
    store.incident_since = ago(5000);
    reply(vec![api, store, component("redis", "heart", State::Ready, 9000), worker])
}

#[test]
fn an_incident_is_told_worst_last_with_the_cause() {
    let report = report(&incident(), now(), BUS, false);
    assert_eq!(
        told(&report),
        [
            "worker       unready  4.2s blocked by memory-store; runs on",
            "api          waiting  3.1s blocked by memory-store; its exit 1 cost no budget",
            "memory-store starting 0.2s rung 2 clear_state, 30s to be ready; 5 exits in 5.0s: \"JSONDecodeError: cache/index.json\"",
            "quickstart: degraded for 5.0s; 1/4 ready, 1 incident open",
        ]
    );
    assert_eq!(report.worst.as_deref(), Some("memory-store"));
    assert_eq!(report.health, Health::Degraded);
}

#[test]
fn only_a_required_failure_is_critical() {
    let mut failed = component("reranker", "third_eye", State::Failed, 61_000);
    failed.last_error = "No module named 'torch'".to_owned();
    let critical = report(&reply(vec![failed.clone()]), now(), BUS, false);
    assert_eq!(critical.health, Health::Critical);
    assert_eq!(told(&critical), ["reranker failed 1m1s \"No module named 'torch'\"", "quickstart: critical for 1m1s; 0/1 ready, 1 failed"]);
    failed.desired.as_mut().unwrap().required = false;
    assert_eq!(report(&reply(vec![failed]), now(), BUS, false).health, Health::Degraded);
}

#[test]
fn who_is_on_probation_is_said_so_until_it_ends() {
    let probation = Some(v1::ProbationStarted { attempts: 4, ..Default::default() });
    let mut waits = component("reranker", "heart", State::Probation, 61_000);
    waits.reason = Some(v1::Reason { code: "probation".to_owned(), text: "on probation after 1800s: no torch".to_owned() });
    let mut starts = component("api", "throat", State::Starting, 2_000);
    (waits.probation, starts.probation) = (probation.clone(), probation.clone());
    starts.reason = Some(v1::Reason { code: "start".to_owned(), text: "to be started".to_owned() });
    let mut serves = component("redis", "heart", State::Ready, 1_000);
    serves.probation = probation;
    let reply = reply(vec![waits, starts, serves]);
    assert_eq!(
        told(&report(&reply, now(), BUS, true))[..3],
        [
            "redis    ready     1.0s on probation, 4 attempts before",
            "reranker probation 1m1s on probation after 1800s: no torch",
            "api      starting  2.0s to be started; on probation, 4 attempts before",
        ]
    );
}

#[test]
fn who_serves_on_probation_has_a_line_of_its_own() {
    let mut tried = component("redis", "heart", State::Ready, 1_000);
    tried.probation = Some(v1::ProbationStarted { attempts: 4, ..Default::default() });
    let well = component("web", "throat", State::Ready, 3_000);
    let told = told(&report(&reply(vec![tried, well]), now(), BUS, false));
    assert_eq!(told[2], "redis ready 1.0s on probation, 4 attempts before");
    assert!(told[3].starts_with("quickstart: 2/2 ready"), "{told:?}");
}

#[test]
fn what_people_were_told_of_the_mesh_is_told_before_the_verdict_while_it_is_news() {
    let mut reply = reply(vec![component("redis", "heart", State::Ready, 5000)]);
    let told = |about: &str, cause: &str, ms| v1::ObservedEscalation {
        escalated: Some(v1::Escalated { severity: "P1".to_owned(), about: about.to_owned(), count: 0 }),
        at: ago(ms),
        source: Some(v1::Actor { kind: "recovery".to_owned(), id: "r1".to_owned() }),
        mesh_cause: cause.to_owned(),
        ..Default::default()
    };
    let day = 24 * 3_600_000;
    let known = &mut reply.observed.as_mut().unwrap().escalations;
    *known = vec![told("many failed", "brake", day), told("a store was lost", "", day), told("another", "", 60_000)];
    assert_eq!(
        self::told(&report(&reply, now(), BUS, false)),
        [
            "heart 1/1 redis",
            "escalated P1 1d ago by recovery: many failed",
            "escalated P1 1m ago by recovery: another",
            "quickstart: 1/1 ready for 5.0s; mesh: 2 agents, 1 node, bus 0.2ms",
        ]
    );
}

#[test]
fn a_lost_node_makes_its_components_unknown_not_down() {
    let mut reply = reply(vec![component("redis", "heart", State::Ready, 9000)]);
    let node = &mut reply.observed.as_mut().unwrap().nodes[0];
    (node.lost, node.presence_at) = (true, ago(2000));
    let report = report(&reply, now(), BUS, false);
    assert_eq!(told(&report)[0], "redis unknown 2.0s node a is lost; it may run on");
    assert_eq!(told(&report)[1], "quickstart: degraded for 2.0s; 0/1 ready, 1 unknown");
    assert_eq!(report.health, Health::Degraded);
}

/// Mutation caught: a chakra that is down is not critical.
#[test]
fn a_chakra_that_is_down_is_critical_and_told_before_the_verdict() {
    let mut reply = reply(vec![component("redis", "heart", State::Ready, 9000), component("db", "heart", State::Starting, 100)]);
    let down = v1::ChakraDown { missing: vec!["db".to_owned()], ..Default::default() };
    let chakra = v1::ObservedChakra { name: "heart".to_owned(), down: Some(down), down_at: ago(12_000), ..Default::default() };
    reply.observed.as_mut().unwrap().chakras = vec![chakra];
    reply.health = Some(v1::HealthReply { score: 0.6875, essential_up: 1, essential_total: 2, ..Default::default() });
    let report = report(&reply, now(), BUS, false);
    assert_eq!(
        told(&report),
        ["db starting 0.1s -", "chakra heart: down for 12s, missing db", "quickstart: critical for 0.1s; 1/2 ready, down: heart",]
    );
    assert_eq!(report.health, Health::Critical);
    let all = super::report(&reply, now(), BUS, true);
    assert!(told(&all).contains(&"score 0.69: 1 of 2 essential serve, 0.00 restarts each in 10m".to_owned()), "{:?}", told(&all));
}

#[test]
fn a_state_of_a_newer_version_is_unknown() {
    let mut odd = component("redis", "heart", State::Ready, 9000);
    odd.state = 99;
    assert_eq!(told(&report(&reply(vec![odd]), now(), BUS, false))[0], "redis unknown 9.0s -");
}

#[test]
fn what_was_stopped_by_hand_is_not_ill() {
    let mut stopped = component("worker", "solar", State::Stopped, 9000);
    stopped.desired.as_mut().unwrap().mode = "stop".to_owned();
    let report = report(&reply(vec![component("redis", "heart", State::Ready, 5000), stopped]), now(), BUS, false);
    assert_eq!(report.verdict.to_string(), "quickstart: 1/1 ready for 5.0s, 1 stopped as asked; mesh: 2 agents, 1 node, bus 0.2ms");
    assert_eq!(report.health, Health::Well);
}

/// Mutation caught: a trouble does not count, or a warning does.
#[test]
fn what_a_node_stands_on_is_told_last_before_the_verdict_and_in_it() {
    let mut reply = reply(vec![component("redis", "heart", State::Ready, 5000)]);
    let trouble = |code: &str, warning, text: &str| v1::Trouble { node: "a".into(), code: code.into(), text: text.into(), warning };
    reply.troubles = vec![trouble("disk_low", true, "disk of /x is nearly full")];
    let warned = report(&reply, now(), BUS, false);
    assert_eq!(
        told(&warned),
        ["heart 1/1 redis", "node a: disk of /x is nearly full", "quickstart: 1/1 ready for 5.0s; mesh: 2 agents, 1 node, bus 0.2ms"]
    );
    assert_eq!(warned.health, Health::Well);
    reply.troubles =
        vec![trouble("disk_full", false, "disk of /x is full"), trouble("broker_store", false, "the broker cannot store: ENOSPC")];
    let full = report(&reply, now(), BUS, false);
    assert_eq!(
        told(&full),
        [
            "heart 1/1 redis",
            "node a: disk of /x is full",
            "node a: the broker cannot store: ENOSPC",
            "quickstart: degraded; 1/1 ready; node a: disk full, broker store; mesh: 2 agents, 1 node, bus 0.2ms",
        ]
    );
    assert_eq!((full.health, full.worst), (Health::Degraded, None));
}

#[test]
fn no_stack_is_said_so() {
    let report = report(&reply(vec![]), now(), BUS, false);
    assert_eq!(report.verdict.to_string(), "no stack is in force; mesh: 2 agents, 1 node, bus 0.2ms");
}

/// What is ready and yet not as it should be is shown, and the stack is well all the same.
#[test]
fn who_is_slow_or_over_a_limit_is_shown_while_it_is() {
    let mut api = component("api", "throat", State::Ready, 60_000);
    api.degraded = "slow: a probe took 700ms, more than 500ms".to_owned();
    let mut db = component("db", "heart", State::Ready, 60_000);
    let over = |resource: &str, used, limit| v1::LimitExceeded { resource: resource.to_owned(), used, limit };
    db.over_limits = vec![over("cpu", 1_500, 1_000), over("open_files", 40, 32)];
    let report = report(&reply(vec![api, db, component("web", "throat", State::Ready, 60_000)]), now(), BUS, false);
    let lines = told(&report);
    assert!(lines.contains(&"api ready 1m slow: a probe took 700ms, more than 500ms".to_owned()), "{lines:?}");
    assert!(
        lines.contains(&"db  ready 1m over its limit: cpu 1.5 of 1 cores; over its limit: open files 40 of 32".to_owned()),
        "{lines:?}"
    );
    assert!(report.health == Health::Well && lines.last().is_some_and(|l| l.contains("3/3 ready")), "{lines:?}");
}
