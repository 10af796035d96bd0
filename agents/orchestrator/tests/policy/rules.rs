//! The rules that must hold whatever dies when, each by a test of its own. A test says which mutation of the policy it catches.

use std::{collections::BTreeSet, time::Duration};

use razar_bus_schema::v1::{self, RunMode, event::Fact};
use razar_orchestrator::policy::{MissionsValue, Outcome};

use crate::{
    THREE, UNTENDED, booted,
    world::{World, blueprint},
};

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
    assert!(world.state().waits_for().is_some_and(|why| why.ends_with("not told what they hold: a")), "{:?}", world.state().waits_for());
    world.run();
    assert_eq!(world.generations(), before, "nothing was started anew");
}

/// Mutation caught: `raise` without the look at what is about to be written.
#[test]
fn who_is_restarted_before_its_first_record_is_written_gets_that_first() {
    let mut world = booted(&THREE);
    let more: Vec<&str> = THREE.into_iter().chain(["late"]).collect();
    let stack_revision = world.store(&blueprint("demo", "", &more));
    world.command("c2", "apply", "demo", v1::Command { stack_revision, approve: true, ..Default::default() });
    world.command("c3", "restart", "late", v1::Command::default());
    world.run();
    assert_eq!(
        (world.results("c2"), world.results("c3")),
        (vec!["accepted".to_owned(), "done".to_owned()], vec!["accepted".to_owned(), "done".to_owned()])
    );
    assert_eq!(world.desired("late").generation, 2);
}

/// Simulation, seed 1650: a late copy, in EVENTS that do not know it. Mutation caught: the inventory told last counts, not the newest.
#[test]
fn an_inventory_from_before_the_loss_of_events_says_nothing_about_now() {
    let mut world = booted(&THREE);
    world.join("b", "e1");
    world.run();
    let is_of_b = |e: &&v1::Event| e.kind == "node_inventory" && e.source.as_ref().is_some_and(|s| s.id == "b");
    let old = world.events.iter().find(is_of_b).unwrap().clone();
    let away = world.nodes.pop().filter(|n| n.name == "b").unwrap();
    lose_events_and_intents(&mut world, false);
    world.run();
    world.nodes.push(away);
    world.join("b", "e1");
    world.run();
    assert_ne!(world.events.iter().rfind(is_of_b).unwrap().fact, old.fact, "it has told anew");
    world.events.push(old);
    let more: Vec<&str> = THREE.into_iter().chain(["late"]).collect();
    let stack_revision = world.store(&blueprint("demo", "", &more));
    world.command("c2", "apply", "demo", v1::Command { stack_revision, approve: true, ..Default::default() });
    world.run();
    assert_eq!(world.desired("late").node, "b", "the least loaded node has told what it holds");
}

/// Rule: in a new bucket quarantine writes first, then its mark; the orchestrator writes after the mark.
/// Mutation caught: `bucket_is_open` without the mark.
#[test]
fn a_new_bucket_waits_for_the_mark_of_quarantine() {
    let mut world = booted(&THREE);
    let before = world.generations();
    assert_eq!(world.state().waits_for(), None);
    world.marked = false;
    world.lose_intents("b2");
    world.run();
    assert!(world.intents.is_empty(), "quarantine has not written yet");
    assert!(world.state().waits_for().is_some_and(|why| why.contains("quarantine has not written")), "and that is said");
    world.command("c2", "restart", "api", v1::Command::default());
    world.run();
    assert!(world.receipt("c2").reason.contains("quarantine has not written"), "{:?}", world.receipt("c2"));
    world.marked = true;
    world.restart();
    world.run();
    assert_eq!((world.generations(), world.state().waits_for()), (before, None));
}

/// EVENTS and the bucket are lost at once, before a take-over or under a holder that lives on; the nodes go on.
fn lose_events_and_intents(world: &mut World, restart: bool) {
    world.events.clear();
    let nodes = world.nodes.clone();
    world.lose_intents("b2");
    if restart {
        world.restart();
    } else {
        world.lose_events();
    }
    world.nodes = nodes;
    world.join("a", "e1");
}

/// The same when EVENTS is lost as well: what a node is to run by the record on its disk is known by its inventory alone (story 7).
/// Mutation caught: `holds_same` answers false.
#[test]
fn a_new_bucket_and_new_events_restart_nothing_that_is_the_same() {
    for restart in [true, false] {
        let mut world = booted(&THREE);
        world.command("c2", "restart", "api", v1::Command::default());
        world.run();
        let before = world.generations();
        lose_events_and_intents(&mut world, restart);
        world.run();
        assert_eq!(world.generations(), before, "restart: {restart}");
    }
}

/// What is to run otherwise than the node holds it is placed above what it told. Mutation caught: `holds_same` without the hash, or
/// without the generation.
#[test]
fn a_new_bucket_and_new_events_place_above_what_is_held_and_differs() {
    let mut world = booted(&THREE);
    let other = world.store(&blueprint("demo", "", &["db=other", "api>db", "web>api"]));
    let before = world.generations();
    lose_events_and_intents(&mut world, true);
    world.apply("c2", "demo", &other);
    world.run();
    let raised = |name: &str| world.generations()[name] - before[name];
    assert_eq!([raised("db"), raised("api"), raised("web")], [1, 0, 0]);
}

/// A bucket and a disk lost at once, or a bucket lost while everything is down: what EVENTS tells is of another life, whose names are
/// not given again. Mutation caught: `told_same` without the journal, or without the mode.
#[test]
fn a_new_bucket_gives_no_generation_to_another_life() {
    for down in [false, true] {
        let mut world = booted(&THREE);
        let (revision, before) = (world.plan().stack_revision, world.generations());
        if down {
            world.command("c2", "down", "demo", v1::Command::default());
            world.run();
        }
        world.lose_intents("b2");
        world.join("a", if down { "e1" } else { "e2" });
        world.run();
        world.apply("c3", "demo", &revision);
        world.run();
        let after = world.generations();
        assert!(["db", "api", "web"].iter().all(|name| after[*name] > before[*name]), "down: {down}: {after:?}");
    }
}

/// A holder that lives on writes the plan again as it was read, whatever else it knew. Mutation caught: `apply_missions_epoch` forgets.
#[test]
fn a_lost_plan_is_written_again_by_a_holder_that_read_it() {
    let mut world = booted(&THREE);
    world.command("c2", "stop", "web", v1::Command::default());
    world.run();
    let (before, history) = (world.plan(), world.history("db"));
    world.lose_missions();
    world.run();
    assert_eq!((world.plan(), world.history("db")), (before, history));
    world.command("c3", "restart", "api", v1::Command::default());
    world.run();
    assert_eq!(world.results("c3"), ["accepted", "done"]);
}

/// A successor that never read it makes it from EVENTS and the records. Mutation caught: `lost_plan` without the facts, or `plan_by_facts`
/// without what was stopped by hand.
#[test]
fn a_lost_plan_is_made_of_events_and_records_by_a_successor() {
    let mut world = booted(&THREE);
    world.command("c2", "stop", "web", v1::Command::default());
    world.run();
    let (before, generations) = (world.plan(), world.generations());
    world.lose_missions();
    world.restart();
    world.run();
    let plan = world.plan();
    assert_eq!((&plan.mission_id, &plan.stack_revision, plan.ended), (&before.mission_id, &before.stack_revision, true));
    assert_eq!((plan.stopped_by_hand, world.generations()), (vec!["web.0".to_owned()], generations), "nothing else changes");
    world.command("c3", "start", "web", v1::Command::default());
    world.run();
    assert_eq!(world.results("c3"), ["accepted", "done"]);
    assert!(world.plan().stopped_by_hand.is_empty());
}

/// What this replica has read last may be older than what EVENTS tells. Mutation caught: `lost_plan` without `later`.
#[test]
fn a_later_mission_is_believed_before_an_old_plan() {
    let mut world = booted(&THREE);
    let old = world.missions.clone();
    let two = world.store(&blueprint("demo", "", &["db", "api>db"]));
    world.command("c2", "apply", "demo", v1::Command { stack_revision: two.clone(), approve: true, ..Default::default() });
    world.run();
    // A replica whose watch was behind when the bucket was lost.
    world.missions = old;
    world.restart();
    world.lose_missions();
    world.run();
    assert_eq!((world.plan().stack_revision, world.desired("web").mode()), (two, RunMode::Stop));
}

/// After everything was taken down a lost plan brings nothing back.
#[test]
fn a_lost_plan_of_nothing_starts_nothing() {
    let mut world = booted(&THREE);
    world.command("c2", "down", "demo", v1::Command::default());
    world.run();
    world.lose_missions();
    world.restart();
    world.run();
    assert_eq!(world.desired("db").mode(), RunMode::Stop);
    assert!(world.plan().stack_revision.is_empty() && !world.plan().mission_id.is_empty());
}

/// The store of revisions was lost: who applies the stack again has stored it again. Mutation caught: `apply_command` keeps the refusal.
#[test]
fn a_revision_that_was_missing_is_read_again_when_it_is_applied() {
    let mut world = booted(&THREE);
    let plan = blueprint("demo", "", &THREE);
    world.stacks.clear();
    world.restart();
    world.run();
    let revision = world.store(&plan);
    world.apply("c2", "demo", &revision);
    world.run();
    assert_eq!(world.results("c2"), ["accepted", "done"]);
}

/// What somebody else overwrote is written again as it was, and stays the orchestrator's to change. Mutations caught: `apply_spoiled`
/// without the revision, or without marking the record.
#[test]
fn a_spoiled_record_is_written_again_and_starts_nothing_anew() {
    let mut world = booted(&THREE);
    let before = world.generations();
    world.spoil("api");
    world.run();
    assert_eq!(world.generations(), before, "written again, in the same generation");
    world.command("c2", "restart", "api", v1::Command::default());
    world.run();
    assert_eq!(world.results("c2"), ["accepted", "done"]);
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

#[test]
fn a_node_that_has_not_told_what_it_holds_gets_nothing() {
    let mut world = booted(&THREE);
    world.join("b", "f1");
    let revision = world.store(&blueprint("demo", "", &["db", "api>db", "web>api", "new"]));
    world.apply("c2", "demo", &revision);
    while world.step() {}
    assert_eq!(world.desired("new").node, "a", "though b has nothing to do");
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

/// Mutation caught: `end_mission` does not wait for the escalations.
#[test]
fn a_boot_is_not_remembered_before_people_are_told_of_it() {
    let mut world = World::with_node();
    world.bad.insert("db".to_owned());
    let revision = world.store(&blueprint("demo", "", &["db"]));
    for boot in 1..=2 {
        world.apply(&format!("c{boot}"), "demo", &revision);
        world.run_for(UNTENDED);
    }
    world.apply("c3", "demo", &revision);
    while world.completions().len() < 3 {
        world.step();
        if !world.nodes_act() {
            world.tick(Duration::from_secs(1));
        }
    }
    world.deaf = true;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.history("db").failed_boots, 2);
    world.deaf = false;
    world.run_for(Duration::from_secs(1));
    assert_eq!((world.history("db").failed_boots, world.count("escalated")), (3, 1));
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

/// Mutation: pass over an end that is told before its beginning.
#[test]
fn a_mission_whose_end_is_told_before_its_beginning_has_an_end() {
    let mut world = booted(&["db"]);
    let place = |world: &World, kind: &str| world.events.iter().position(|e| e.kind == kind).unwrap();
    let (began, ended) = (place(&world, "mission_started"), place(&world, "mission_completed"));
    world.events.swap(began, ended);
    world.restart();
    let missions = world.state().facts().missions();
    assert!(missions.len() == 1 && missions[0].completed.is_some(), "{missions:?}");
}

/// Mutation: write nothing of what only an inventory knows.
#[test]
fn what_a_lost_bucket_knew_and_the_plan_does_not_is_stopped() {
    let mut world = booted(&["db", "api"]);
    let other = world.store(&blueprint("demo", "", &["db"]));
    world.lose_intents("b2");
    let command = v1::Command { stack_revision: other, approve: true, ..Default::default() };
    world.command("c2", "apply", "demo", command);
    world.run();
    assert_eq!(world.desired("db").mode(), RunMode::Run);
    assert_eq!((world.desired("api").mode(), world.desired("api").node.as_str()), (RunMode::Stop, "a"));
    world.lose_intents("b3");
    world.command("c3", "down", "demo", v1::Command::default());
    world.run();
    assert_eq!(world.desired("db").mode(), RunMode::Stop, "also when everything is to be down");
}

/// An answer that comes once the bucket is another one says nothing of this one: what it had written is gone.
#[test]
fn what_was_written_into_a_bucket_before_is_not_in_this_one() {
    let mut world = booted(&THREE);
    let (generations, plan) = (world.generations(), world.plan());
    let written = world.intents.iter().map(|(instance, (revision, intent))| ((instance.clone(), intent.clone(), 0), *revision));
    let (writes, revisions) = written.unzip();
    world.lose_intents("b2");
    world.state.apply_outcome(Outcome::WroteDesired { writes, bucket: 1, result: Ok(revisions) }, world.now);
    world.run();
    assert_eq!(world.generations(), generations);
    world.lose_missions();
    let writes = vec![(MissionsValue::Plan(plan.clone()), 0)];
    world.state.apply_outcome(Outcome::WroteMissions { writes, bucket: 0, result: Ok(vec![99]) }, world.now);
    world.run();
    assert_eq!(world.plan(), plan);
}
