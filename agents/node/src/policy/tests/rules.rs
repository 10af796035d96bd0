//! What an instance may do, and which order is void: the rules without which something is started twice, killed while healthy or stuck
//! for ever. The mutation that each test catches is in `tests/mutations.toml`.

use std::time::Duration;

use razar_bus_schema::{
    ids::Incarnation,
    v1::{self, InstanceState as State, QuarantinePhase as Phase, event::Fact, intent::Want},
};

use super::{
    super::{Input, ViewChange},
    bench::{Bench, EPOCH, component, desired, id},
};

#[test]
fn a_view_with_something_pending_is_not_acted_on() {
    let mut b = Bench::new();
    b.record("quarantine.api", quarantine(Phase::Isolated));
    b.desire(&desired(&component("api", &[]), 1, 1));
    assert_eq!(b.take(), Vec::<String>::new());
    b.settle();
    assert_eq!(b.state("api"), State::Quarantined, "isolate, then place: nothing starts in between");
    assert!(!b.take().iter().any(|l| l.starts_with("spawn")));
}

#[test]
fn an_empty_bucket_stops_and_releases_nothing() {
    let mut b = Bench::running(&[component("api", &[]), component("db", &[])]);
    b.ready("api");
    b.ready("db");
    b.quarantine("quarantine.db", Phase::Isolated);
    b.exit("db", 0);
    b.take();
    b.input(Input::View(ViewChange::Epoch("bucket-2".into())));
    b.settle();
    assert_eq!((b.state("api"), b.state("db")), (State::Ready, State::Quarantined));
    assert_eq!(b.take(), ["node_inventory node"], "it tells what it holds");
    b.desire(&desired(&component("db", &[]), 2, 2));
    b.settle();
    assert_eq!(b.state("db"), State::Quarantined, "placed anew by a bucket that has lost its isolation");
}

#[test]
fn a_record_for_another_journal_is_void() {
    let mut b = Bench::new();
    b.desire(&v1::Desired { node_epoch: "journal-0".into(), ..desired(&component("api", &[]), 1, 1) });
    b.settle();
    assert_eq!(b.last_void().as_deref(), Some("foreign_epoch"));
    assert!(!b.take().iter().any(|l| l.starts_with("spawn")));
}

#[test]
fn a_writer_that_takes_another_journal_for_this_one_is_told_what_is_held() {
    let mut b = Bench::running(&[component("api", &[]), component("db", &[])]);
    b.take();
    let inventories = |b: &mut Bench| b.take().iter().filter(|l| l.starts_with("node_inventory")).count();
    for name in ["api", "db"] {
        b.desire(&v1::Desired { node_epoch: "journal-0".into(), ..desired(&component(name, &[]), 2, 1) });
    }
    b.settle();
    assert_eq!(inventories(&mut b), 1, "once for all that came together");
    b.settle();
    b.desire(&v1::Desired { generation: 0, ..desired(&component("api", &[]), 1, 1) });
    b.settle();
    assert_eq!((b.last_void().as_deref(), inventories(&mut b)), (Some("lower_generation"), 0), "what is void otherwise was no mistake");
}

#[test]
fn lower_generations_and_revisions_are_void_and_generations_order_epochs() {
    let spec = component("api", &[]);
    let stop = |generation| v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(&spec, generation, 1) };
    let mut b = Bench::new();
    b.revision = 10;
    b.desire(&desired(&spec, 2, 1));
    b.settle();
    b.record_at("desired.api.0", 5, v1::Intent { want: Some(Want::Desired(stop(2))), ..Default::default() });
    b.settle();
    assert_eq!(b.last_void().as_deref(), Some("lower_revision"));
    b.input(Input::View(ViewChange::Epoch("bucket-2".into())));
    b.record_at("desired.api.0", 1, v1::Intent { want: Some(Want::Desired(stop(1))), ..Default::default() });
    b.settle();
    assert_eq!((b.last_void().as_deref(), b.state("api")), (Some("lower_generation"), State::Starting));
    b.record_at("desired.api.0", 2, v1::Intent { want: Some(Want::Desired(stop(2))), ..Default::default() });
    b.settle();
    assert_eq!(b.state("api"), State::Stopping, "a low revision of a new bucket counts");
}

#[test]
fn fences_outlive_the_agent() {
    let spec = component("api", &[]);
    let mut b = Bench::new();
    b.revision = 10;
    b.desire(&desired(&spec, 3, 1));
    b.settle();
    b.ready("api");
    // This one has never run here: no process tells its generation.
    let db = component("db", &[]);
    b.desire(&v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(&db, 5, 2) });
    b.settle();
    // The plan on the disk is lost: the journal alone knows the fences.
    b.plan = v1::PlanOnDisk::default();
    b.restart_agent(&[]);
    b.input(Input::View(ViewChange::Epoch(EPOCH.into())));
    let stop = |generation| v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(&spec, generation, 1) };
    b.desire(&stop(2));
    b.settle();
    assert_eq!((b.last_void().as_deref(), b.state("api")), (Some("lower_generation"), State::Ready));
    b.record_at("desired.api.0", 3, v1::Intent { want: Some(Want::Desired(stop(3))), ..Default::default() });
    b.settle();
    assert_eq!((b.last_void().as_deref(), b.state("api")), (Some("lower_revision"), State::Ready));
    b.desire(&desired(&db, 4, 2));
    b.settle();
    assert_eq!((b.last_void().as_deref(), b.state("db")), (Some("lower_generation"), State::Stopped));
}

#[test]
fn an_order_to_replace_another_incarnation_is_void() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.exit("api", 1);
    b.ready("api");
    b.take();
    b.order(Incarnation::new(1, 1), 1, None);
    assert_eq!(b.last_void().as_deref(), Some("not_current"));
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Ready, "1.2"));
}

#[test]
fn an_order_on_a_missing_sign_is_void_once_the_sign_was_given_and_ends_the_incident() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.silence("api", 'S');
    alive(&mut b);
    b.take();
    b.order(Incarnation::new(1, 1), 1, Some(v1::OrderEvidence { missing_sign: true, ..Default::default() }));
    assert_eq!(b.take(), ["order_void api@1.1", "incident_withdrawn api@1.1"]);
    assert_eq!(b.state("api"), State::Ready);
}

/// Simulation, seed 17353. Mutation caught: `void_cause` does not ask whether it is done.
#[test]
fn an_order_to_replace_a_one_shot_that_has_ended_well_is_void_and_ends_the_incident() {
    let migrate = v1::ComponentSpec { one_shot: true, readiness: None, liveness: None, ..component("api", &[]) };
    let mut b = Bench::running(std::slice::from_ref(&migrate));
    b.exit("api", 0);
    b.take();
    b.order(Incarnation::new(1, 1), 1, None);
    assert_eq!(b.take(), ["order_void api@1.1", "incident_withdrawn api@1.1"]);
    assert_eq!((b.last_void().as_deref(), b.state("api")), (Some("completed"), State::Completed));
    // One that is asked to run again is not done.
    b.desire(&v1::Desired { fresh: true, ..desired(&migrate, 2, 1) });
    b.settle();
    b.take();
    b.order(Incarnation::new(2, 1), 2, None);
    assert!(!b.take().iter().any(|line| line.contains("order_void")), "{:?}", b.state("api"));
}

fn alive(b: &mut Bench) {
    use super::super::probing::Role;
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.input(Input::Sign { instance: id("api"), incarnation, role: Role::Liveness, detail: "200".into() });
}

#[test]
fn an_incarnation_that_fails_again_after_a_sign_of_life_is_another_incident() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.silence("api", 'S');
    alive(&mut b);
    b.silence("api", 'T');
    let incident = b.events.last().and_then(|e| e.incident.clone()).unwrap();
    assert_eq!(incident.signs_of_life, 1);
}

#[test]
fn failed_is_left_by_a_listed_cause_alone() {
    let spec = component("api", &[]);
    let mut b = Bench::running(std::slice::from_ref(&spec));
    b.exhaust("api");
    b.pass(Duration::from_secs(3_600));
    b.desire(&desired(&spec, 1, 1));
    b.settle();
    assert_eq!(b.state("api"), State::Failed, "the sliding window is whole again, and that is no cause");
    b.order(Incarnation::new(1, 4), 1, None);
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "1.5"), "a rung");
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Failed);
    b.desire(&desired(&spec, 2, 1));
    b.settle();
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "2.1"), "a new generation");
    b.exhaust("api");
    b.quarantine("quarantine.api", Phase::Isolated);
    b.quarantine("quarantine.api", Phase::Released);
    assert_eq!(b.state("api"), State::Starting, "a release");
}

#[test]
fn a_start_made_by_a_rung_has_no_local_restarts_until_recovered() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.exhaust("api");
    b.pass(Duration::from_secs(200));
    b.order(Incarnation::new(1, 4), 1, None);
    b.take();
    b.restart_agent(&[]);
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Failed, "also when the node's agent died in between");
    b.order(Incarnation::new(1, 5), 2, None);
    b.ready("api");
    b.pass(Duration::from_secs(2));
    assert_eq!(b.told("recovered"), 0, "its recovered is recovery's to say");
    end_order(&mut b, 2);
    b.exit("api", 1);
    assert_eq!(b.incarnation("api"), "1.7", "recovered: local restarts again");
}

fn end_order(b: &mut Bench, attempt: u32) {
    let order = v1::RecoveryOrder {
        instance: Some((&id("api")).into()),
        incident: b.node.instance(&id("api")).unwrap().order_settled.as_ref().map(|(i, _)| i.into()),
        attempt,
        ended: true,
        ..Default::default()
    };
    b.record("recovery.api.0", Want::Recovery(order));
    b.settle();
}

#[test]
fn a_lost_dependency_takes_failures_back_and_gives_the_budget_back() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.exhaust("api");
    assert_eq!(b.state("api"), State::Failed);
    b.take();
    b.exit("db", 1);
    assert_eq!(b.state("api"), State::Waiting);
    assert!(b.take().contains(&"incident_withdrawn api@1.4".to_owned()));
    b.ready("db");
    assert_eq!(b.state("api"), State::Starting);
    assert_eq!(b.node.instance(&id("api")).unwrap().budget.restarts.len(), 0);
}

#[test]
fn a_hold_takes_no_failure_back_while_the_condition_holds() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.exhaust("api");
    b.hold("db", Duration::from_secs(10));
    b.pass(Duration::from_secs(60));
    assert_eq!(b.state("api"), State::Failed);
    b.desire(&desired(&component("api", &["db"]), 2, 2));
    b.settle();
    b.exit("api", 1);
    b.hold("db", Duration::from_secs(10));
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Exited, "no start while it is held");
    b.pass(Duration::from_secs(10));
    b.pass(Duration::from_secs(1));
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "2.3"), "then the local policy goes on");
    assert_eq!(b.node.instance(&id("api")).unwrap().budget.restarts.len(), 2, "at its cost");
}

#[test]
fn a_hold_takes_failures_back_once_the_condition_is_lost() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.exhaust("api");
    b.hold("db", Duration::from_secs(10));
    b.exit("db", 1);
    let inst = b.node.instance(&id("api")).unwrap();
    assert_eq!((inst.state, inst.budget.restarts.len(), &inst.incident), (State::Waiting, 0, &None));
}

#[test]
fn a_failure_that_a_dependency_is_to_blame_for_opens_no_incident_and_costs_nothing() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.ready("api");
    b.exit("db", 1);
    b.take();
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Waiting);
    let inst = b.node.instance(&id("api")).unwrap();
    assert!(inst.incident.is_none() && inst.budget.short_lives == 0);
    assert_eq!(b.take(), ["component_exited api@1.1"]);
}

#[test]
fn while_a_dependency_is_away_only_stopped_counts() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.ready("api");
    b.exit("db", 1);
    b.take();
    for _ in 0..5 {
        b.silence("api", 'S');
    }
    assert!(!b.take().iter().any(|l| l.starts_with("kill")));
    b.silence("api", 'T');
    assert!(b.take().iter().any(|l| l == "kill api@1.1"));
}

#[test]
fn quarantine_stops_and_no_path_goes_round_it() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    b.quarantine("quarantine.api.0", Phase::Isolated);
    assert_eq!(b.take(), ["signal 15 api@1.1"]);
    b.exit("api", 0);
    b.take();
    b.desire(&desired(&component("api", &[]), 9, 1));
    b.settle();
    b.order(Incarnation::new(1, 1), 1, None);
    b.restart_agent(&[]);
    b.pass(Duration::from_secs(60));
    assert_eq!(b.state("api"), State::Quarantined);
    assert!(!b.take().iter().any(|l| l.starts_with("spawn")));
}

#[test]
fn on_probation_it_starts_and_its_first_end_is_not_mended_here() {
    for key in ["quarantine.api", "quarantine.api.0"] {
        let mut b = Bench::running(&[component("api", &[])]);
        b.ready("api");
        b.quarantine(key, Phase::Isolated);
        b.exit("api", 0);
        b.take();
        b.quarantine(key, Phase::Probation);
        assert_eq!(b.take().iter().filter(|l| l.starts_with("spawn")).count(), 1, "{key}");
        b.ready("api");
        b.exit("api", 1);
        b.pass(Duration::from_secs(60));
        assert_eq!(b.state("api"), State::Failed, "{key}: nobody but quarantine says what comes next");
        assert!(!b.take().iter().any(|l| l.starts_with("spawn")), "{key}: no local restart");
        b.quarantine(key, Phase::Isolated);
        assert_eq!(b.state("api"), State::Quarantined);
        b.quarantine(key, Phase::Released);
        b.ready("api");
        b.take();
        b.exit("api", 1);
        assert!(b.take().iter().any(|l| l.starts_with("spawn")), "{key}: released it has its restarts again");
    }
}

/// Simulation, seed 1923: others took the isolation, which came and went while the node was away, for its end. Mutation caught: nothing
/// is told.
#[test]
fn a_release_whose_isolation_was_never_seen_tells_what_goes_on() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    let ready = b.told("component_ready");
    b.quarantine("quarantine.api.0", Phase::Released);
    assert_eq!((b.told("component_ready"), b.state("api")), (ready + 1, State::Ready));
    let again = b.events.last().and_then(|e| e.fact.clone());
    assert!(matches!(again, Some(Fact::ComponentReady(r)) if r.again), "the same life");
    b.quarantine("quarantine.api.0", Phase::Isolated);
    b.exit("api", 0);
    b.quarantine("quarantine.api.0", Phase::Probation);
    b.ready("api");
    let ready = b.told("component_ready");
    b.quarantine("quarantine.api.0", Phase::Released);
    assert_eq!(b.told("component_ready"), ready, "what was seen needs no word");
}

#[test]
fn a_release_leaves_failed_once() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.quarantine("quarantine.api.0", Phase::Isolated);
    b.exit("api", 0);
    b.quarantine("quarantine.api.0", Phase::Probation);
    b.ready("api");
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Failed);
    b.quarantine("quarantine.api.0", Phase::Released);
    assert_eq!(b.state("api"), State::Starting, "a hand was faster than the return to isolation");
    b.exhaust("api");
    assert_eq!(b.state("api"), State::Failed);
    b.quarantine("quarantine.api.0", Phase::Released);
    assert_eq!(b.state("api"), State::Failed, "the same record again is no release");
}

#[test]
fn rules_three_four_and_six_gate_starts_only() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.ready("api");
    b.take();
    b.exit("db", 1);
    assert_eq!(b.state("api"), State::Ready);
    assert!(!b.take().iter().any(|l| l.contains(" api@")));
}

fn quarantine(phase: Phase) -> Want {
    Want::Quarantine(v1::Quarantine { component: "api".into(), phase: phase.into(), ..Default::default() })
}

/// Who can do without a dependency does not wait for what is out, but for what was stopped to be started again.
#[test]
fn an_optional_dependency_that_is_started_anew_is_waited_for() {
    let db = component("db", &[]);
    let mut cache = component("cache", &["db"]);
    cache.depends_on[0].required = false;
    for (mode, spawned) in [(v1::RunMode::Run, vec!["spawn db@2.1"]), (v1::RunMode::Stop, vec!["spawn cache@1.2"])] {
        let mut b = Bench::running(&[db.clone(), cache.clone()]);
        b.ready("db");
        b.ready("cache");
        b.desire(&v1::Desired { mode: mode.into(), ..desired(&db, 2, 1) });
        b.settle();
        b.take();
        // The machine went down while db was being stopped.
        b.restart_agent(&[("cache", 1), ("db", 0)]);
        let done = b.take();
        assert_eq!(done.iter().filter(|line| line.starts_with("spawn")).collect::<Vec<_>>(), spawned, "{mode:?}: {done:?}");
    }
}

#[test]
fn what_waits_for_a_dependent_to_stop_hears_of_its_end_though_the_new_plan_parts_them() {
    let (api, worker) = (component("api", &[]), component("worker", &["api"]));
    let mut b = Bench::running(&[api.clone(), worker]);
    b.ready("api");
    b.ready("worker");
    let stop = |spec: &v1::ComponentSpec, generation| v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(spec, generation, 1) };
    b.desire(&stop(&api, 1));
    b.desire(&stop(&component("worker", &[]), 2));
    b.settle();
    let done = b.take();
    assert!(!done.iter().any(|line| line == "signal 15 api@1.1"), "{done:?}");
    b.exit("worker", 0);
    let done = b.take();
    assert!(done.iter().any(|line| line == "signal 15 api@1.1"), "{done:?}");
}

#[test]
fn an_optional_dependency_on_trial_takes_no_failure_back() {
    let phase = |phase: Phase| Want::Quarantine(v1::Quarantine { component: "db".to_owned(), phase: phase.into(), ..Default::default() });
    for (required, end) in [(false, State::Failed), (true, State::Waiting)] {
        let mut cache = component("cache", &["db"]);
        cache.depends_on[0].required = required;
        let spec = cache.clone();
        let mut b = Bench::running(&[component("db", &[]), cache]);
        b.ready("db");
        b.ready("cache");
        b.exhaust("cache");
        b.record("quarantine.db", phase(Phase::Isolated));
        b.settle();
        b.exit("db", 0);
        b.record("quarantine.db", phase(Phase::Probation));
        b.settle();
        assert_eq!((b.state("cache"), b.state("db")), (end, State::Starting), "{required}");
        assert_eq!(b.told("component_blocked") > 0, required, "who stays failed is not said to be blocked");
        b.desire(&desired(&spec, 2, 1));
        b.settle();
        assert_eq!(b.state("cache"), State::Waiting, "a new generation leaves `failed`");
    }
}

/// However far behind it waits: else its failure would be the ladder's for ever, which has nothing to stand on.
#[test]
fn what_waits_for_one_that_is_blocked_is_blocked_as_well() {
    let (db, cache, gate) = (component("db", &[]), component("cache", &["db"]), component("gate", &["cache"]));
    for failed_before in [true, false] {
        let mut b = Bench::running(&[db.clone(), cache.clone(), gate.clone()]);
        ["db", "cache", "gate"].into_iter().for_each(|name| b.ready(name));
        if failed_before {
            b.exhaust("gate");
        }
        b.desire(&v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(&db, 1, 1) });
        b.settle();
        b.exit("cache", 1);
        b.exit("db", 0);
        if !failed_before {
            b.exit("gate", 1);
        }
        let by = |b: &Bench, name: &str| {
            b.node.instance(&id(name)).unwrap().blocked_told.iter().map(|b| b.component.clone()).collect::<Vec<_>>()
        };
        assert_eq!((b.state("cache"), by(&b, "cache")), (State::Waiting, vec!["db".to_owned()]));
        assert_eq!((b.state("gate"), by(&b, "gate")), (State::Waiting, vec!["cache".to_owned()]), "{failed_before}");
        b.desire(&desired(&db, 1, 1));
        b.settle();
        b.ready("db");
        b.ready("cache");
        assert_eq!((b.state("gate"), by(&b, "gate")), (State::Starting, Vec::new()));
    }
}

/// What was said to be blocked is nobody's to heal: said by an agent that is dead now, the next one takes it back.
#[test]
fn who_was_said_to_be_blocked_by_the_last_agent_is_said_not_to_be_any_more() {
    let db = component("db", &[]);
    let mut b = Bench::running(&[db.clone(), component("cache", &["db"])]);
    ["db", "cache"].into_iter().for_each(|name| b.ready(name));
    b.exhaust("db");
    b.pass(Duration::from_secs(2));
    // While it goes from its restarts to its end, that is said too.
    let before = b.blockers_told("cache").len();
    b.restart_agent(&[]);
    b.pass(Duration::from_secs(2));
    assert_eq!(b.blockers_told("cache").split_off(before), [vec!["db".to_owned()]], "the last one may have died before it told");
    b.restart_agent(&[]);
    b.desire(&desired(&db, 2, 1));
    b.settle();
    b.ready("db");
    b.pass(Duration::from_secs(2));
    assert_eq!(b.blockers_told("cache").pop(), Some(Vec::new()));
    let all = b.blockers_told("cache").len();
    b.restart_agent(&[]);
    b.pass(Duration::from_secs(2));
    assert_eq!(b.blockers_told("cache").len(), all, "nothing more is to be said");
}
