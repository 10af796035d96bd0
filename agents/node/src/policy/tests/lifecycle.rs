//! Boot, crash, hang, stop and adoption, as `flows.md` tells them.

use std::time::Duration;

use razar_bus_schema::{
    ids::Incarnation,
    v1::{self, InstanceState as State},
};

use super::{
    super::{Input, ViewChange},
    bench::{Bench, component, desired, id},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_boot_follows_dependencies_and_not_ranks_alone() {
    let mut b = Bench::running(&[component("api", &["db"]), component("db", &[])]);
    assert_eq!(b.take(), ["spawn db@1.1", "component_started db@1.1"]);
    b.ready("db");
    assert_eq!(b.take(), ["spawn api@1.1", "component_ready db@1.1", "component_started api@1.1"], "starting comes before telling");
}

#[test]
fn the_lowest_rank_that_can_start_takes_the_next_slot() {
    let specs: Vec<_> = ["a", "b", "c", "d", "e", "f"].iter().map(|n| component(n, &[])).collect();
    let mut b = Bench::running(&specs);
    let spawns = |b: &mut Bench| b.take().into_iter().filter(|l| l.starts_with("spawn")).collect::<Vec<_>>();
    assert_eq!(spawns(&mut b), ["spawn a@1.1", "spawn b@1.1", "spawn c@1.1", "spawn d@1.1"], "four slots");
    b.ready("c");
    assert_eq!(spawns(&mut b), ["spawn e@1.1"], "a slot is held until ready");
    b.pass(Duration::from_secs(31));
    assert_eq!(spawns(&mut b), ["spawn f@1.1"], "or until the startup limit");
}

#[test]
fn a_crash_is_answered_at_once_and_told_after() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.pass(2 * SECOND);
    b.take();
    b.exit("api", 1);
    assert_eq!(b.take(), ["spawn api@1.2", "component_exited api@1.1", "component_started api@1.2"]);
    b.ready("api");
    assert_eq!(b.take(), ["component_ready api@1.2", "recovered api@1.2"]);
    let ids: Vec<_> = b.events.iter().filter_map(|e| e.incident.as_ref()).filter_map(|i| i.incarnation.as_ref()).map(|i| i.start).collect();
    assert!(ids.iter().all(|start| *start == 1), "the incident is named by the incarnation that failed first");
}

#[test]
fn the_second_restart_has_no_fixed_pause_and_the_fourth_is_not_made() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.exhaust("api");
    let log = b.take();
    let spawns = log.iter().filter(|l| l.starts_with("spawn")).count();
    assert_eq!(spawns, 4, "one start and three restarts: {log:?}");
    assert_eq!(b.told("component_failed"), 1);
    b.pass(Duration::from_secs(600));
    assert_eq!(b.state("api"), State::Failed, "given up, loudly, until something listed happens");
}

#[test]
fn a_stopped_component_is_replaced_on_one_window_and_a_starved_one_never() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    b.silence("api", 'R');
    b.silence("api", 'R');
    assert_eq!(b.take(), ["component_degraded api@1.1"], "told once");
    b.silence("api", 'T');
    assert_eq!(b.take(), ["kill api@1.1", "component_unresponsive api@1.1"]);
    b.exit("api", 9);
    assert_eq!(b.incarnation("api"), "1.2");
}

#[test]
fn stops_go_in_reverse_and_a_deaf_one_is_killed() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.ready("db");
    b.ready("api");
    b.take();
    b.input(Input::Shutdown);
    assert_eq!(b.take(), ["signal 15 api@1.1"], "db waits for api");
    b.pass(Duration::from_secs(10));
    assert_eq!(b.take(), ["kill api@1.1"]);
    b.exit("api", 137);
    assert_eq!(b.take(), ["signal 15 db@1.1", "component_stopped api@1.1"]);
    b.exit("db", 0);
    assert!(b.node.finished());
}

#[test]
fn what_outlives_sigkill_is_told_and_started_nowhere_else() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.silence("api", 'T');
    b.take();
    b.pass(Duration::from_secs(60));
    assert_eq!(b.take(), ["component_unkillable api@1.1"]);
}

/// Mutation caught: `begin_stop` forgets the kill.
#[test]
fn what_is_killed_is_not_asked_to_stop_when_it_is_to_be_replaced() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.silence("api", 'T');
    b.take();
    b.order(Incarnation::new(1, 1), 1, None);
    b.pass(Duration::from_secs(60));
    assert_eq!(b.take(), ["component_unkillable api@1.1"], "no signal, no grace and no second kill");
    b.exit("api", 137);
    assert_eq!(b.take(), ["spawn api@1.2", "component_stopped api@1.1", "component_started api@1.2"]);
}

#[test]
fn a_new_life_of_the_agent_restarts_nothing_and_forgets_nothing() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &[]), component("web", &[])]);
    for name in ["db", "api", "web"] {
        b.ready(name);
    }
    b.pass(2 * SECOND);
    b.take();
    b.restart_agent(&[("api", 3)]);
    let log = b.take();
    assert_eq!(log.iter().filter(|l| l.starts_with("spawn")).collect::<Vec<_>>(), ["spawn api@1.2"], "{log:?}");
    assert!(log.contains(&"component_exited api@1.1".to_owned()), "told with its code: {log:?}");
    assert_eq!((b.state("db"), b.state("web")), (State::Ready, State::Ready));
}

#[test]
fn a_node_without_a_bus_boots_from_its_disk() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    let (plan, memories) = (b.plan.clone(), b.memories.clone());
    b = Bench::new();
    (b.plan, b.memories) = (plan, memories);
    b.restart_agent(&[]);
    assert_eq!(b.take()[0], "spawn db@1.2", "a later start of the same generation");
}

#[test]
fn a_one_shot_completes_and_is_not_run_again_unless_asked() {
    let mut migrate = component("migrate", &[]);
    (migrate.one_shot, migrate.readiness, migrate.liveness) = (true, None, None);
    let mut b = Bench::running(&[migrate.clone(), component("api", &["migrate"])]);
    b.take();
    b.exit("migrate", 0);
    assert_eq!(b.take(), ["spawn api@1.1", "component_ready migrate@1.1", "component_started api@1.1"]);
    b.desire(&desired(&migrate, 2, 1));
    b.settle();
    assert_eq!(b.state("migrate"), State::Completed, "same specification, newer generation");
    assert!(!b.take().iter().any(|l| l.starts_with("spawn")));
    b.desire(&v1::Desired { fresh: true, ..desired(&migrate, 3, 1) });
    b.settle();
    assert!(b.take().contains(&"spawn migrate@3.1".to_owned()));
}

#[test]
fn a_changed_specification_replaces_and_an_unchanged_one_is_left_alone() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &[])]);
    b.ready("db");
    b.ready("api");
    b.take();
    let mut changed = component("api", &[]);
    changed.priority = 7;
    b.desire(&desired(&component("db", &[]), 1, 1));
    b.desire(&desired(&changed, 2, 2));
    b.settle();
    assert_eq!(b.take(), ["signal 15 api@1.1"]);
    b.exit("api", 0);
    assert_eq!(b.take(), ["spawn api@2.1", "component_stopped api@1.1", "component_started api@2.1"]);
}

#[test]
fn an_unready_component_opens_no_incident_and_runs_on() {
    use super::super::probing::{Answer, Role};
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    for since_the_last in [5, 1, 1] {
        b.pass(since_the_last * SECOND);
        let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
        let input = Input::Probed {
            instance: id("api"),
            incarnation,
            role: Role::Readiness,
            answer: Answer::Failed,
            detail: "http 503".into(),
            took: SECOND,
            window: None,
        };
        b.input(input);
    }
    assert_eq!(b.take(), ["component_unready api@1.1"]);
    assert_eq!(b.told("recovered"), 0);
    b.ready("api");
    assert_eq!(b.take(), ["component_ready api@1.1"]);
}

#[test]
fn why_marks_the_rule_that_won() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    let inst = b.node.instance(&id("api")).unwrap();
    let lines = b.node.table(inst, b.now.mono);
    assert_eq!(lines.len(), 8);
    let won: Vec<_> = lines.iter().filter(|l| l.won).map(|l| (l.rule, l.says.as_str(), l.reason.as_str())).collect();
    assert_eq!(won, [(4, "wait", "db is starting, must be ready")]);
    b.input(Input::View(ViewChange::Settled));
}

#[test]
fn what_is_adopted_keeps_its_number_while_a_newer_generation_waits_for_its_end() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.desire(&desired(&component("api", &[]), 2, 1));
    b.settle();
    assert_eq!(b.state("api"), State::Stopping);
    b.take();
    b.restart_agent(&[]);
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Stopping, "1.1"));
    b.exit("api", 0);
    assert!(b.take().contains(&"spawn api@2.1".to_owned()));
}

#[test]
fn after_a_power_cut_what_ran_is_told_dead_and_numbers_go_on_a_block_further() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    for memory in b.memories.values_mut() {
        memory.start += 1024;
    }
    b.restart_agent(&[("api", 1)]);
    let log = b.take();
    assert!(log.contains(&"component_exited api@1.1".to_owned()) && log.contains(&"spawn api@1.1026".to_owned()), "{log:?}");
}

#[test]
fn a_one_shot_that_is_to_run_again_is_not_taken_for_done_by_a_new_life_of_the_agent() {
    let mut migrate = component("migrate", &["db"]);
    (migrate.one_shot, migrate.readiness, migrate.liveness) = (true, None, None);
    let mut b = Bench::running(&[component("db", &[]), migrate.clone()]);
    b.ready("db");
    b.exit("migrate", 0);
    b.exit("db", 1);
    b.desire(&v1::Desired { fresh: true, ..desired(&migrate, 2, 2) });
    b.settle();
    b.restart_agent(&[]);
    assert_eq!((b.state("migrate"), b.incarnation("migrate").as_str()), (State::Completed, "1.1"));
    b.ready("db");
    assert!(b.take().contains(&"spawn migrate@2.1".to_owned()));
}

#[test]
fn what_was_stopped_on_purpose_owes_nothing_afterwards() {
    let spec = component("api", &[]);
    let mut b = Bench::running(std::slice::from_ref(&spec));
    b.exit("api", 1);
    b.desire(&v1::Desired { mode: v1::RunMode::Stop.into(), ..desired(&spec, 1, 1) });
    b.settle();
    b.exit("api", 0);
    b.desire(&desired(&spec, 2, 1));
    b.settle();
    b.take();
    b.exit("api", 1);
    assert_eq!(b.take().first().map(String::as_str), Some("spawn api@2.2"), "its first restart is at once again");
}

#[test]
fn a_new_rank_leaves_no_place_in_the_line_behind() {
    let specs: Vec<_> = ["a", "b", "c", "d", "job"].iter().map(|n| component(n, &[])).collect();
    let mut b = Bench::running(&specs);
    b.desire(&desired(&specs[4], 1, 9));
    b.settle();
    b.ready("a");
    b.ready("b");
    b.take();
    b.ready("job");
    b.ready("c");
    assert_eq!(b.take(), ["component_ready job@1.1", "component_ready c@1.1"], "what runs is not started again");
}

#[test]
fn a_rung_that_waits_for_a_slot_sets_no_timer() {
    let specs: Vec<_> = ["a", "b", "c", "d", "api"].iter().map(|n| component(n, &[])).collect();
    let mut b = Bench::running(&specs);
    b.ready("a");
    b.ready("api");
    b.exhaust("api");
    b.desire(&desired(&component("e", &[]), 1, 9));
    b.settle();
    b.order(razar_bus_schema::ids::Incarnation::new(1, 4), 1, None);
    assert_eq!(b.state("api"), State::Waiting, "no slot is free");
    assert!(b.node.next_deadline().is_none_or(|at| at > b.now.mono));
}

#[test]
fn an_end_that_was_acted_on_is_told_again_and_not_acted_on_again() {
    let mut migrate = component("migrate", &[]);
    (migrate.one_shot, migrate.readiness, migrate.liveness) = (true, None, None);
    let mut b = Bench::running(&[migrate, component("api", &[])]);
    let before = b.node.clone();
    b.exit("migrate", 0);
    b.exit("api", 1);
    b.take();
    // The agent died before it could write that the processes are gone, and with it what the kernel said of their ends.
    b.node = before;
    b.restart_agent_with(&[("migrate", None), ("api", None)], &["api"]);
    assert_eq!((b.state("migrate"), b.incarnation("migrate").as_str()), (State::Completed, "1.1"));
    assert_eq!(b.incarnation("api"), "1.2");
    assert_eq!(b.take(), ["component_exited api@1.1", "component_ready migrate@1.1"]);
}

#[test]
fn a_start_that_fails_has_not_started() {
    let mut api = component("api", &["db"]);
    api.depends_on[0].condition = v1::DependencyCondition::Started.into();
    let mut b = Bench::new();
    b.fails_to_spawn = Some("db".to_owned());
    b.desire(&desired(&component("db", &[]), 1, 1));
    b.desire(&desired(&api, 1, 2));
    b.settle();
    assert!(!b.take().iter().any(|l| l.starts_with("spawn api")));
    b.fails_to_spawn = None;
    b.pass(10 * SECOND);
    assert!(b.take().contains(&"spawn api@1.1".to_owned()));
}

#[test]
fn a_one_shot_that_is_done_without_running_restarts_nobody() {
    let mut migrate = component("migrate", &[]);
    (migrate.one_shot, migrate.readiness, migrate.liveness) = (true, None, None);
    let mut api = component("api", &["migrate"]);
    api.depends_on[0].restart = true;
    let mut b = Bench::running(&[migrate.clone(), api]);
    b.exit("migrate", 0);
    b.ready("api");
    b.desire(&desired(&migrate, 2, 1));
    b.settle();
    assert_eq!((b.state("migrate"), b.state("api")), (State::Completed, State::Ready));
    b.desire(&v1::Desired { fresh: true, ..desired(&migrate, 3, 1) });
    b.settle();
    b.exit("migrate", 0);
    assert_eq!(b.state("api"), State::Stopping, "now it has run again");
}

#[test]
fn a_floor_of_starts_outlives_the_life_of_the_agent_that_found_it() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.memories.clear();
    b.node.config.start_floor = 1024;
    b.desire(&desired(&component("api", &["db"]), 2, 2));
    b.settle();
    b.node.config.start_floor = 0;
    b.restart_agent(&[]);
    b.ready("db");
    assert_eq!(b.incarnation("api"), "2.1025", "2.1 may have been used before the power was cut");
}

/// A mesh of two: a broker, and a one-shot that makes its stores.
fn mesh() -> Bench {
    let one_shot = v1::ComponentSpec { one_shot: true, readiness: None, liveness: None, ..component("provision", &["broker"]) };
    let mut b = Bench::with_system(&[component("broker", &[]), one_shot]);
    b.turn();
    b.ready("broker");
    b.exit("provision", 0);
    b.take();
    b
}

/// `seen` is how long ago.
fn renew(b: &mut Bench, component: &'static str, seen: Duration) {
    let seen_at = b.now.mono - seen;
    b.input(Input::Renew { component, seen_at, why: "somebody took it away".to_owned() });
}

/// Mutation: leave `completed` as it is, or ask for no evidence newer than the last run.
#[test]
fn a_one_shot_of_the_mesh_runs_again_when_what_it_made_is_gone() {
    let mut b = mesh();
    b.pass(SECOND);
    renew(&mut b, "provision", SECOND);
    assert_eq!(b.take(), Vec::<String>::new(), "what was seen before it ended is no longer so");
    renew(&mut b, "provision", SECOND / 2);
    assert_eq!(b.take(), ["spawn provision@1.2", "escalated provision@1.1", "component_started provision@1.2"]);
    renew(&mut b, "provision", Duration::ZERO);
    assert_eq!(b.take(), Vec::<String>::new(), "it is at it");
    b.exit("provision", 0);
    assert_eq!(b.take(), ["component_ready provision@1.2"]);
    assert!(b.node.instance(&id("provision")).unwrap().incident.is_none(), "nothing has failed");
}

/// A look while they are made is none: what it misses is on its way.
#[test]
fn stores_that_are_being_made_are_not_missed_for_a_while() {
    let one_shot = v1::ComponentSpec { one_shot: true, readiness: None, liveness: None, ..component("provision", &["broker"]) };
    let mut b = Bench::with_system(&[component("broker", &[]), one_shot]);
    b.turn();
    b.ready("broker");
    assert_eq!(b.state("provision"), State::Starting);
    b.pass(SECOND);
    let seen_at = b.now.mono;
    assert!(b.node.makes_stores(seen_at, b.now));
    b.pass(SECOND * 5);
    assert!(!b.node.makes_stores(b.now.mono, b.now), "it takes too long");
    b.exit("provision", 0);
    assert!(b.node.makes_stores(seen_at, b.now), "that look was before it ended");
    b.pass(SECOND);
    assert!(!b.node.makes_stores(b.now.mono, b.now));
    assert!(!Bench::running(&[component("provision", &[])]).node.makes_stores(Duration::ZERO, b.now), "one of the user's");
}

/// Mutation: restart it by the local budget.
#[test]
fn a_broker_that_is_to_begin_anew_is_stopped_politely_and_started() {
    let mut b = mesh();
    b.pass(SECOND);
    renew(&mut b, "broker", Duration::ZERO);
    assert_eq!(b.take(), ["signal 15 broker@1.1", "escalated broker@1.1"]);
    b.exit("broker", 0);
    assert_eq!(b.take(), ["spawn broker@1.2", "component_stopped broker@1.1", "component_started broker@1.2"]);
    assert_eq!(b.state("provision"), State::Completed, "what it depends on it was done long ago");
}

/// Mutation: ask for no group.
#[test]
fn nothing_of_the_users_is_renewed() {
    let mut b = Bench::running(&[component("broker", &[])]);
    b.ready("broker");
    b.pass(SECOND);
    b.take();
    renew(&mut b, "broker", Duration::ZERO);
    assert_eq!(b.take(), Vec::<String>::new());
}

/// Mutation: leave the system plan out, or the process.
#[test]
fn a_new_stream_of_events_is_told_who_lives_and_as_which_process() {
    let mut b = mesh();
    b.desire(&desired(&component("api", &[]), 1, 1));
    b.settle();
    b.ready("api");
    b.take();
    let before = b.events.len();
    let now = b.now;
    b.node.tell_living(now);
    b.turn();
    let told = ["component_started api@1.1", "component_ready api@1.1", "component_started broker@1.1", "component_ready broker@1.1"];
    assert_eq!(b.take(), [told.as_slice(), &["component_ready provision@1.1"]].concat());
    let Some(v1::event::Fact::ComponentStarted(started)) = &b.events[before].fact else { panic!("{:?}", b.events[before]) };
    assert!(started.adopted && started.process.as_ref().is_some_and(|p| p.pid > 0), "{started:?}");
}

/// The last life of the agent may have died before it told; the ladder knows by the cause whether the failure is its own.
#[test]
fn a_new_life_of_the_agent_tells_again_who_is_given_up_and_why() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.exhaust("api");
    b.restart_agent(&[]);
    let told: Vec<String> = b
        .events
        .iter()
        .filter_map(|e| match &e.fact {
            Some(v1::event::Fact::ComponentFailed(failed)) => Some(failed.cause.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(told, ["budget_spent", "budget_spent"]);
}

/// What an orchestrator that lost everything goes by. Mutation: tell the hash of an older generation.
#[test]
fn an_inventory_tells_what_is_wanted_by_its_hash() {
    let mut b = Bench::running(&[component("api", &[]), component("db", &[])]);
    let told = |b: &Bench| b.node.inventory().items.into_iter().map(|i| (i.generation, i.spec_hash)).collect::<Vec<_>>();
    let hash = desired(&component("api", &[]), 1, 1).spec_hash;
    assert_eq!(told(&b)[0], (1, hash.clone()));
    let other = desired(&component("api", &["db"]), 2, 1);
    b.desire(&other);
    b.settle();
    assert_eq!(told(&b)[0], (2, other.spec_hash.clone()));
    b.restart_agent(&[]);
    assert_eq!(told(&b)[0], (2, other.spec_hash), "also after the agent's end: the record is on its disk");
}

#[test]
fn who_is_asked_for_no_readiness_has_it_also_when_its_agent_dies_at_the_spawn() {
    let mut api = component("api", &[]);
    (api.readiness, api.readiness_none) = (None, true);
    let mut b = Bench::running(&[api, component("web", &["api"])]);
    // The agent died before it could write that the component is ready.
    b.memories.get_mut(&id("api")).unwrap().state = State::Starting.into();
    b.memories.remove(&id("web"));
    b.planned.remove(&id("web"));
    b.node.apply(
        Input::Exited {
            instance: id("web"),
            incarnation: b.node.instance(&id("web")).unwrap().incarnation,
            status: v1::ExitStatus::default(),
            last_error: String::new(),
            while_away: false,
            stragglers: 0,
        },
        b.now,
    );
    b.restart_agent(&[]);
    assert_eq!((b.state("api"), b.state("web")), (State::Ready, State::Starting));
}

/// The next agent reads it by the wall clock.
#[test]
fn what_is_remembered_is_dated_anew_when_the_clock_is_set() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    let dated = |b: &Bench| razar_bus_schema::time::system_time(b.memories[&id("api")].ready_since.as_ref().unwrap());
    let before = dated(&b);
    b.now.wall += Duration::from_secs(3_600);
    b.turn();
    assert_eq!(dated(&b), before + Duration::from_secs(3_600));
}
