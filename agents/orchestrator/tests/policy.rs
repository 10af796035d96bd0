//! The orchestrator's rules, each by a test of its own against a world in memory. A test says which mutation of the policy it catches.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly, its helpers too")]

#[expect(dead_code, reason = "shared with the random sequences")]
mod world;

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::{
    ids::Instance,
    v1::{self, RunMode, event::Fact},
};
use world::{World, blueprint};

const THREE: [&str; 3] = ["db", "api>db", "web>api"];

fn booted(components: &[&str]) -> World {
    let mut world = World::with_node();
    let revision = world.store(&blueprint("demo", "", components));
    world.apply("c1", "demo", &revision);
    world.run();
    world
}

#[test]
fn a_boot_is_one_batch_and_one_mission() {
    let world = booted(&THREE);
    assert_eq!(world.batches, 1, "no node sees half a plan");
    let receipt = world.receipt("c1");
    assert!(receipt.accepted);
    assert_eq!(receipt.mission_id, world.plan().mission_id);
    assert_eq!(world.results("c1"), ["accepted", "done"]);
    let ends = world.completions();
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].outcome.as_str(), ends[0].ready.len()), ("complete", 3));
    assert!(world.plan().ended);
    assert_eq!(world.count("desired_changed"), 3);
    assert_eq!(world.desired("api").rank, 2);
    assert_eq!((world.desired("api").node.as_str(), world.desired("api").node_epoch.as_str()), ("a", "e1"));
    assert_eq!(world.history("api").takes.len(), 1);
}

/// A successor could no longer say what a mission was to start once the records are written.
/// Mutation caught: `differences` does not wait for the mission's beginning to be told.
#[test]
fn a_mission_is_told_before_its_records_are_written() {
    let mut world = World::with_node();
    let revision = world.store(&blueprint("demo", "", &THREE));
    world.deaf = true;
    world.apply("c1", "demo", &revision);
    world.run();
    assert_eq!(world.plan().stack_revision, revision);
    assert!(world.intents.is_empty());
    world.deaf = false;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.intents.len(), 3);
}

#[test]
fn deciding_again_asks_for_nothing_twice() {
    let mut world = booted(&THREE);
    assert!(!world.step());
    world.tick(Duration::from_secs(3600));
    assert!(!world.step());
}

/// Rule: a command is settled in the record before it is acknowledged, and a redelivered one has no second effect (story 11).
/// Mutation caught: `is_settled` answers false, or `raised` leaves the id out.
#[test]
fn a_redelivered_command_has_no_second_effect() {
    // The holder dies after each possible number of effects; the command comes again to its successor.
    for dies_after in 0..40 {
        let mut world = booted(&THREE);
        let before = world.generations();
        world.dies_after = Some(dies_after);
        world.command("c2", "restart", "api", v1::Command::default());
        world.run();
        world.redeliver();
        world.run();
        assert_eq!(world.desired("api").generation, before["api"] + 1, "died after {dies_after} effects");
        assert_eq!(world.results("c2"), ["accepted", "done"], "died after {dies_after} effects");
        assert!(world.receipt("c2").accepted);
    }
}

/// The same where the record is told and the command is not, and EVENTS takes nothing: only the record knows of the command.
/// Mutation caught: `next_command` does not ask `is_settled`.
#[test]
fn the_record_alone_is_enough_to_know_a_command() {
    let mut world = booted(&THREE);
    world.dies_after = Some(2);
    world.command("c2", "restart", "api", v1::Command::default());
    while world.deaths == 0 {
        world.step();
    }
    assert_eq!(world.desired("api").generation, 2);
    assert!(world.results("c2").is_empty());
    world.deaf = true;
    world.run_for(Duration::from_secs(1));
    world.deaf = false;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.desired("api").generation, 2);
    assert_eq!(world.results("c2"), ["accepted", "done"]);
}

/// As above, for a command that changes the plan, up to the end of its mission.
#[test]
fn an_apply_survives_the_end_of_its_holder_anywhere() {
    for dies_after in 0..60 {
        let mut world = World::with_node();
        let revision = world.store(&blueprint("demo", "", &THREE));
        world.dies_after = Some(dies_after);
        world.apply("c1", "demo", &revision);
        world.run();
        assert_eq!(world.generations().into_values().collect::<Vec<_>>(), [1, 1, 1], "died after {dies_after} effects");
        assert_eq!(world.count("mission_started"), 1);
        let to_start = world.events.iter().find_map(|e| match &e.fact {
            Some(Fact::MissionStarted(m)) => Some(m.to_start.clone()),
            _ => None,
        });
        assert_eq!(to_start.unwrap(), ["db", "api", "web"], "died after {dies_after} effects");
        assert_eq!(world.completions().len(), 1);
        assert_eq!(world.results("c1"), ["accepted", "done"], "died after {dies_after} effects");
        assert_eq!(world.receipt("c1").mission_id, world.plan().mission_id);
        assert_eq!(world.history("db").takes.len(), 1, "a boot counts once");
    }
}

/// Rule: a record is overwritten only when the event that tells of it is in EVENTS (story 11); the world asserts it at each write.
/// Mutation caught: `raise` does not ask `is_told`.
#[test]
fn an_untold_record_is_not_overwritten() {
    let mut world = booted(&THREE);
    let revision = world.plan().settled_command_ids.len();
    world.deaf = true;
    world.command("c2", "restart", "api", v1::Command::default());
    world.run();
    let raised = world.desired("api").generation;
    world.command("c3", "restart", "api", v1::Command::default());
    world.run();
    assert_eq!(world.desired("api").generation, raised, "the first restart is not told yet");
    world.command("c4", "stop", "db", v1::Command::default());
    world.run();
    assert_eq!(world.plan().settled_command_ids.len(), revision, "commands take their turn");
    world.deaf = false;
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.desired("api").generation, raised + 1);
    assert_eq!(world.desired("db").mode(), RunMode::Stop);
}

/// The same for what follows from the plan: a restart that is not told yet is not overwritten by a new journal's placement.
/// Mutation caught: `reconcile` does not ask `is_told`.
#[test]
fn an_untold_record_waits_with_the_rest_of_the_plan() {
    let mut world = booted(&THREE);
    world.deaf = true;
    world.command("c2", "restart", "api", v1::Command::default());
    world.run();
    world.join("a", "e2");
    world.run();
    assert_eq!(world.desired("db").node_epoch, "e1", "no node sees half a plan");
    world.deaf = false;
    world.run_for(Duration::from_secs(2));
    assert_eq!(["db", "api", "web"].map(|c| world.desired(c).node_epoch), ["e2", "e2", "e2"]);
}

/// The same for the plan. Mutation caught: `write_plan` without `plan_is_told`, or `settled_with` leaves the id out.
#[test]
fn an_untold_plan_is_not_overwritten() {
    let mut world = booted(&THREE);
    world.deaf = true;
    world.command("c2", "stop", "db", v1::Command::default());
    world.command("c3", "stop", "web", v1::Command::default());
    world.run();
    assert_eq!(world.plan().stopped_by_hand, ["db"]);
    world.deaf = false;
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.plan().stopped_by_hand, ["db", "web"]);
    assert_eq!(world.results("c3"), ["accepted", "done"]);
}

/// Rule: no generation below what nodes hold, and nothing is written into a new bucket before they have told it (stories 6 and 7).
/// Mutation caught: `bucket_is_open` without the inventories; `floor` answers 0.
#[test]
fn a_new_bucket_waits_for_inventories_and_goes_on_with_their_generations() {
    let mut world = booted(&THREE);
    world.command("c2", "restart", "api", v1::Command::default());
    world.run();
    let before = world.generations();
    world.lose_intents("b2");
    while world.step() {}
    assert!(world.intents.is_empty(), "no inventory for this bucket is told");
    world.run();
    assert_eq!(world.generations(), before, "nothing was started anew");
}

/// The same when EVENTS is lost as well: what was desired is unknown, so what is held is placed anew, above what the node told.
#[test]
fn a_new_bucket_and_new_events_place_above_what_is_held() {
    let mut world = booted(&THREE);
    let before = world.generations();
    world.events.clear();
    let node = world.nodes[0].clone();
    world.lose_intents("b2");
    world.restart();
    world.nodes[0] = node;
    world.join("a", "e1");
    world.run();
    for (name, generation) in world.generations() {
        assert_eq!(generation, before[&name] + 1);
    }
}

/// A node that is present and has not told what it holds is waited for, whoever else has. Mutation caught: `any` for `all`.
#[test]
fn every_present_node_is_waited_for() {
    let mut world = World::with_node();
    world.nodes_act();
    world.join("b", "f1");
    let revision = world.store(&blueprint("demo", "", &THREE));
    world.apply("c1", "demo", &revision);
    while world.step() {}
    assert!(world.intents.is_empty());
    world.run();
    assert_eq!(world.intents.len(), 3);
    let nodes: BTreeSet<String> = ["db", "api", "web"].map(|c| world.desired(c).node).into();
    assert_eq!(nodes.len(), 2, "both are used");
}

/// Rule: records name the node epoch, and a node with a new journal gets new generations (story 8).
/// Mutation caught: `generation` without the comparison of epochs.
#[test]
fn a_new_journal_gets_new_generations() {
    let mut world = booted(&THREE);
    world.join("a", "e2");
    world.run();
    for component in ["db", "api", "web"] {
        let desired = world.desired(component);
        assert_eq!((desired.node_epoch.as_str(), desired.generation), ("e2", 2));
    }
}

/// Rule: absence says nothing; what leaves the plan is stopped by a record. Mutation caught: the loop over other records is left out.
#[test]
fn what_leaves_the_plan_is_stopped_and_stays_a_record() {
    let mut world = booted(&THREE);
    let revision = world.store(&blueprint("demo", "", &["db", "api>db"]));
    world.command("c2", "apply", "demo", v1::Command { stack_revision: revision, approve: true, ..Default::default() });
    world.run();
    assert_eq!(world.desired("web").mode(), RunMode::Stop);
    assert_eq!(world.generations().len(), 3);
    assert_eq!(world.desired("db").generation, 1);
    assert_eq!(world.results("c2"), ["accepted", "done"]);
}

#[test]
fn an_update_touches_only_what_changed() {
    let mut world = booted(&THREE);
    let revisions: Vec<u64> = world.intents.values().map(|(r, _)| *r).collect();
    let revision = world.store(&blueprint("demo", "", &["db", "api>db=other", "web>api"]));
    world.apply("c2", "demo", &revision);
    world.run();
    assert_eq!(world.generations().into_values().collect::<Vec<_>>(), [2, 1, 1]);
    let after: Vec<u64> = world.intents.values().map(|(r, _)| *r).collect();
    assert_eq!(after.iter().zip(&revisions).filter(|(a, b)| a != b).count(), 1);
    assert_eq!(world.completions().len(), 2);
    assert_eq!((world.history("api").takes.len(), world.history("db").takes.len()), (2, 1), "what ran on took nothing");
}

#[test]
fn a_profile_switch_is_a_diff() {
    let mut world = World::with_node();
    let mut core = blueprint("demo", "core", &["db", "api>db"]);
    let mut full = blueprint("demo", "full", &["db", "api>db", "web>api"]);
    core.revision = "r1".to_owned();
    full.revision = "r1".to_owned();
    world.store(&core);
    world.store(&full);
    world.command("c1", "apply", "demo", v1::Command { stack_revision: "r1".to_owned(), profile: "core".to_owned(), ..Default::default() });
    world.run();
    assert_eq!(world.intents.len(), 2);
    world.command("c2", "profile", "full", v1::Command::default());
    world.run();
    assert_eq!(world.generations().into_values().collect::<Vec<_>>(), [1, 1, 1]);
    world.command("c3", "profile", "core", v1::Command::default());
    world.run();
    assert_eq!((world.desired("web").mode(), world.desired("api").mode()), (RunMode::Stop, RunMode::Run));
    let switches: Vec<_> = world
        .events
        .iter()
        .filter_map(|e| match &e.fact {
            Some(Fact::ProfileSwitched(s)) => Some((s.from.as_str(), s.to.as_str(), s.started.join(" "), s.stopped.join(" "))),
            _ => None,
        })
        .collect();
    assert_eq!(switches, [("core", "full", "web".to_owned(), String::new()), ("full", "core", String::new(), "web".to_owned())]);
    assert_eq!(world.results("c3"), ["accepted", "done"]);
}

#[test]
fn a_second_apply_of_the_same_revision_joins_the_mission() {
    let mut world = World::with_node();
    world.slow.insert("web".to_owned());
    let revision = world.store(&blueprint("demo", "", &THREE));
    world.apply("c1", "demo", &revision);
    world.run();
    world.apply("c2", "demo", &revision);
    world.run();
    assert_eq!(world.receipt("c2").mission_id, world.receipt("c1").mission_id);
    assert_eq!(world.count("mission_started"), 1);
    assert_eq!(world.results("c2"), ["accepted"]);
}

#[test]
fn another_revision_supersedes_and_another_stack_is_refused() {
    let mut world = World::with_node();
    world.slow.insert("web".to_owned());
    let first = world.store(&blueprint("demo", "", &THREE));
    let second = world.store(&blueprint("demo", "", &["db", "api>db=new", "web>api"]));
    let other = world.store(&blueprint("other", "", &["db"]));
    world.apply("c1", "demo", &first);
    world.run();
    world.apply("c2", "demo", &second);
    world.apply("c3", "other", &other);
    world.run();
    assert_eq!(world.completions().iter().map(|c| c.outcome.as_str()).collect::<Vec<_>>(), ["superseded"]);
    assert_eq!(world.results("c1"), ["accepted", "failed"]);
    assert_ne!(world.receipt("c2").mission_id, world.receipt("c1").mission_id);
    assert_eq!((world.receipt("c3").accepted, world.receipt("c3").code.as_str()), (false, "another_stack"));
    assert_eq!(world.results("c3"), ["refused"]);
}

/// Rule: a drop of more than 20 % of the components needs `approve`. Mutation caught: `shrinks` answers `None`.
#[test]
fn a_large_drop_needs_approval() {
    let five = ["a", "b", "c", "d", "e"];
    let mut world = booted(&five);
    let four = world.store(&blueprint("demo", "", &five[..4]));
    world.apply("c2", "demo", &four);
    world.run();
    assert!(world.receipt("c2").accepted, "one of five is 20 %");
    let two = world.store(&blueprint("demo", "", &five[..2]));
    world.apply("c3", "demo", &two);
    world.run();
    assert_eq!(world.receipt("c3").code, "needs_approval");
    assert_eq!(world.desired("c").mode(), RunMode::Run);
    world.command("c4", "apply", "demo", v1::Command { stack_revision: two, approve: true, ..Default::default() });
    world.run();
    assert_eq!(world.desired("c").mode(), RunMode::Stop);
}

/// I9: an empty target set selects nothing. Mutation caught: `parts.is_empty()` is not asked in `blueprint_of` and `differences`.
#[test]
fn an_empty_or_unknown_plan_selects_nothing() {
    let mut world = booted(&THREE);
    let empty = world.store(&blueprint("demo", "", &[]));
    world.command("c2", "apply", "demo", v1::Command { stack_revision: empty.clone(), approve: true, ..Default::default() });
    world.apply("c3", "demo", "nowhere");
    world.run();
    assert_eq!((world.receipt("c2").code.as_str(), world.receipt("c3").code.as_str()), ("empty_plan", "unknown_revision"));
    // The revision in force reads as empty to a successor.
    let in_force = world.plan().stack_revision;
    let mut hollow = blueprint("demo", "", &[]);
    hollow.revision = in_force;
    world.store(&hollow);
    world.restart();
    world.run();
    for component in ["db", "api", "web"] {
        assert_eq!(world.desired(component).mode(), RunMode::Run);
    }
}

#[test]
fn stop_holds_until_start_and_start_is_another_life() {
    let mut world = booted(&THREE);
    world.command("c2", "stop", "web", v1::Command::default());
    world.run();
    assert_eq!((world.desired("web").mode(), world.desired("web").generation), (RunMode::Stop, 1));
    assert_eq!(world.plan().stopped_by_hand, ["web"]);
    let revision = world.plan().stack_revision;
    world.apply("c3", "demo", &revision);
    world.run();
    assert_eq!(world.desired("web").mode(), RunMode::Stop, "an apply does not start it");
    world.command("c4", "start", "web", v1::Command::default());
    world.run();
    assert_eq!((world.desired("web").mode(), world.desired("web").generation), (RunMode::Run, 2));
    assert_eq!(world.results("c2"), ["accepted", "done"]);
    assert_eq!(world.results("c4"), ["accepted", "done"]);
}

#[test]
fn replicas_are_stopped_and_started_one_by_one() {
    let mut world = booted(&["db", "api#3"]);
    let mode = |world: &World, n: u32| world.desired_of(&Instance::new("api", n)).unwrap().mode();
    assert_eq!(world.desired_of(&Instance::new("api", 2)).unwrap().rank, 4);
    world.command("c2", "stop", "api", v1::Command::default());
    world.run();
    world.command("c3", "start", "api.1", v1::Command::default());
    world.run();
    assert_eq!([mode(&world, 0), mode(&world, 1), mode(&world, 2)], [RunMode::Stop, RunMode::Run, RunMode::Stop]);
    assert_eq!(world.plan().stopped_by_hand, ["api.0", "api.2"]);
}

#[test]
fn down_stops_everything_and_frees_the_name() {
    let mut world = booted(&THREE);
    world.command("c2", "down", "demo", v1::Command::default());
    world.run();
    for component in ["db", "api", "web"] {
        assert_eq!(world.desired(component).mode(), RunMode::Stop);
    }
    assert_eq!(world.results("c2"), ["accepted", "done"]);
    let other = world.store(&blueprint("other", "", &["db", "x"]));
    world.apply("c3", "other", &other);
    world.run();
    assert!(world.receipt("c3").accepted);
    assert_eq!((world.desired("db").mode(), world.desired("db").generation), (RunMode::Run, 2));
    world.command("c4", "down", "_", v1::Command::default());
    world.command("c5", "down", "_", v1::Command::default());
    world.run();
    assert_eq!(world.results("c5"), ["accepted", "done"], "there is nothing to do");
}

#[test]
fn commands_that_make_no_sense_are_refused_with_a_code() {
    let mut world = booted(&THREE);
    let cases = [
        ("restart", "wbe", "unknown_component"),
        ("restart", "nothing-like-it", "unknown_component"),
        ("explode", "web", "unknown_verb"),
        ("apply", "demo", "malformed"),
        ("apply", "system", "malformed"),
        ("profile", "huge", "unknown_revision"),
        ("down", "demmo", "unknown_stack"),
    ];
    for (n, (verb, target, code)) in cases.into_iter().enumerate() {
        let id = format!("x{n}");
        world.command(&id, verb, target, v1::Command::default());
        world.run();
        let receipt = world.receipt(&id);
        assert_eq!((receipt.accepted, receipt.code.as_str()), (false, code), "{verb} {target}");
        assert_eq!(world.results(&id), ["refused"]);
    }
    assert_eq!(world.receipt("x0").nearest, ["web"]);
    assert!(world.receipt("x0").reason.contains("nearest: web"), "{}", world.receipt("x0").reason);
    assert!(world.receipt("x1").nearest.is_empty());
    world.command("c9", "stop", "web", v1::Command::default());
    world.command("c10", "restart", "web", v1::Command::default());
    world.run();
    assert_eq!(world.receipt("c10").code, "stopped");
    world.tick(Duration::from_secs(1));
    world.now.wall = world::long_ago();
    let expired = v1::Command::default();
    world.command("c11", "restart", "db", expired);
    world.tick(Duration::from_secs(61));
    world.run();
    assert_eq!(world.receipt("c11").code, "expired");
}

#[test]
fn a_failure_blocks_its_dependents_and_ends_the_mission() {
    let mut world = World::with_node();
    world.bad.insert("api".to_owned());
    world.slow.insert("web".to_owned());
    let revision = world.store(&blueprint("demo", "", &["db", "api>db", "web>api"]));
    world.apply("c1", "demo", &revision);
    world.run();
    // In this world `web` was started, which a node would not do; here it is only not ready. It runs, so it is waited for.
    assert!(world.completions().is_empty());
    world.run_for(Duration::from_secs(61));
    let end = &world.completions()[0];
    assert_eq!((end.outcome.as_str(), end.ready.join(" "), end.failed.join(" ")), ("timed_out", "db".to_owned(), "api web".to_owned()));
    assert_eq!(world.results("c1"), ["accepted", "failed"]);
}

#[test]
fn an_optional_failure_does_not_fail_the_mission() {
    let mut world = World::with_node();
    world.bad.insert("cache".to_owned());
    let revision = world.store(&blueprint("demo", "", &["db", "cache!"]));
    world.apply("c1", "demo", &revision);
    world.run();
    let end = &world.completions()[0];
    assert_eq!((end.outcome.as_str(), end.failed.join(" ")), ("complete", "cache".to_owned()));
}

#[test]
fn failed_boots_are_counted_and_people_are_told_at_the_third() {
    let mut world = World::with_node();
    world.bad.insert("api".to_owned());
    let revision = world.store(&blueprint("demo", "", &["db", "api>db"]));
    for boot in 1..=3u32 {
        world.apply(&format!("c{boot}"), "demo", &revision);
        // Whatever effect it dies after, a boot counts once.
        world.dies_after = Some(usize::try_from(boot).unwrap() * 7);
        world.run();
        assert_eq!(world.desired("api").generation, u64::from(boot), "an operator who applies again asks for the failed one again");
        assert_eq!(world.desired("db").generation, 1);
        assert_eq!(world.history("api").failed_boots, boot);
        assert_eq!(world.count("escalated"), usize::from(boot >= 3));
    }
    world.bad.clear();
    world.apply("c4", "demo", &revision);
    world.run();
    assert_eq!((world.history("api").failed_boots, world.plan().mission_id), (0, world.history("api").last_good_mission));
}

/// Mutation caught: `end_mission` does not wait for the escalations.
#[test]
fn a_boot_is_not_remembered_before_people_are_told_of_it() {
    let mut world = World::with_node();
    world.bad.insert("db".to_owned());
    let revision = world.store(&blueprint("demo", "", &["db"]));
    for boot in 1..=2 {
        world.apply(&format!("c{boot}"), "demo", &revision);
        world.run();
    }
    world.apply("c3", "demo", &revision);
    while world.completions().len() < 3 {
        world.step();
        world.nodes_act();
    }
    world.deaf = true;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.history("db").failed_boots, 2);
    world.deaf = false;
    world.run_for(Duration::from_secs(1));
    assert_eq!((world.history("db").failed_boots, world.count("escalated")), (3, 1));
}

#[test]
fn a_failure_in_the_mission_is_not_the_orchestrators_to_heal() {
    let mut world = booted(&THREE);
    let revision = world.plan().stack_revision;
    world.slow.insert("web".to_owned());
    world.command("c2", "restart", "web", v1::Command::default());
    world.apply("c3", "demo", &revision);
    world.run();
    world.component_fails("db");
    world.run();
    assert_eq!(world.desired("db").generation, 1);
    world.command("c4", "start", "db", v1::Command::default());
    world.run();
    assert_eq!(world.desired("db").generation, 2, "an operator may");
}

#[test]
fn fresh_runs_one_shots_again_once() {
    let mut world = booted(&["db", "migrate*>db"]);
    let revision = world.plan().stack_revision;
    world.command("c2", "apply", "demo", v1::Command { stack_revision: revision.clone(), fresh: true, ..Default::default() });
    world.run();
    assert_eq!((world.desired("migrate").generation, world.desired("migrate").fresh, world.desired("db").generation), (2, true, 1));
    world.apply("c3", "demo", &revision);
    world.run();
    assert_eq!(world.desired("migrate").generation, 2);
}

#[test]
fn labels_say_where_and_what_fits_nowhere_does_not_stop_the_rest() {
    let mut world = World::with_node();
    let mut plan = blueprint("demo", "", &["db", "vision"]);
    plan.parts.get_mut("vision").unwrap().spec.node_labels = vec![v1::Label { key: "gpu".to_owned(), value: "true".to_owned() }];
    let revision = world.store(&plan);
    world.apply("c1", "demo", &revision);
    world.run();
    assert_eq!(world.intents.len(), 1);
    assert_eq!(world.completions()[0].blocked, ["vision"]);
    world.join("g", "f1");
    let at = world.nodes.iter().position(|n| n.name == "g").unwrap();
    world.nodes[at].labels = vec![("gpu".to_owned(), "true".to_owned())];
    world.join("g", "f1");
    world.run();
    assert_eq!(world.desired("vision").node, "g", "it is placed as soon as a node will do");
}

#[test]
fn briefs_are_kept_in_a_ring() {
    let mut world = booted(&THREE);
    let revision = world.plan().stack_revision;
    for n in 2..30 {
        world.apply(&format!("c{n}"), "demo", &revision);
        world.run();
    }
    assert_eq!(world.missions.keys().filter(|k| k.starts_with("brief.")).count(), 20);
}

/// EVENTS keeps a fact for 30 days; what has run untouched for longer is known by the registry's snapshot.
#[test]
fn what_events_no_longer_keep_is_known_by_the_snapshot() {
    let mut world = booted(&THREE);
    let joined = v1::NodeJoined { node_epoch: "e1".to_owned(), ..Default::default() };
    world.snapshot.nodes = vec![v1::ObservedNode { name: "a".to_owned(), joined: Some(joined), ..Default::default() }];
    for event in &world.events {
        if let Some(Fact::DesiredChanged(desired)) = &event.fact {
            world.snapshot.components.push(v1::ObservedComponent {
                instance: event.instance.clone(),
                incarnation: Some(v1::Incarnation { generation: 1, start: 1 }),
                state: v1::InstanceState::Ready.into(),
                desired: Some(desired.clone()),
                ..Default::default()
            });
        }
    }
    world.events.clear();
    world.restart();
    world.run();
    assert!(world.events.is_empty(), "nothing is told again");
    let revision = world.store(&blueprint("demo", "", &["db", "api>db", "web>api", "new"]));
    world.apply("c2", "demo", &revision);
    world.run();
    assert_eq!(world.generations().into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_eq!(world.results("c2"), ["accepted", "done"], "what runs on is known to be ready");
}

#[test]
fn the_plan_is_answered_from_memory() {
    let world = booted(&THREE);
    let reply = world.state().plan_reply();
    assert_eq!((reply.stack.as_str(), reply.instances.len(), reply.mission_id.as_str()), ("demo", 3, ""));
    assert_eq!(reply.instances[1].takes.unwrap().nanos, 7);
}

/// A command settled by a holder that died, and never delivered again, does not hold the plan for ever.
#[test]
fn a_lost_command_is_told_without_its_text() {
    let mut world = booted(&THREE);
    world.dies_after = Some(1);
    world.command("c2", "stop", "web", v1::Command::default());
    while world.deaths == 0 {
        world.step();
    }
    assert_eq!(world.plan().stopped_by_hand, ["web"]);
    world.lose_commands();
    world.restart();
    world.command("c3", "start", "web", v1::Command::default());
    world.run();
    assert_eq!(world.plan().stopped_by_hand, ["web"], "it waits for the one before it");
    world.tick(Duration::from_secs(80));
    world.run();
    assert_eq!(world.results("c2").first().map(String::as_str), Some("accepted"));
    world.command("c4", "start", "web", v1::Command::default());
    world.run();
    assert!(world.plan().stopped_by_hand.is_empty());
}
