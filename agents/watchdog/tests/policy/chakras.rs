//! How chakras and the whole are.

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, event::Fact, intent::Want},
};

use crate::world::{World, ms};

const FIRST: Incarnation = Incarnation::new(1, 1);

/// Two instances in `heart`, one in `throat`, all ready.
fn stack() -> (World, [Instance; 3]) {
    let mut w = World::new(1);
    w.node("a");
    let all = [("db", "heart"), ("cache", "heart"), ("api", "throat")].map(|(name, chakra)| w.desire(name, chakra, |_| {}));
    all.iter().for_each(|i| drop(w.ready(i, FIRST)));
    w.pass(ms(5_000));
    assert_eq!(w.told(), [""; 0]);
    (w, all)
}

fn kinds(w: &World) -> Vec<&str> {
    w.stream.iter().filter(|e| e.source.as_ref().is_some_and(|s| s.kind == "watchdog")).map(|e| e.kind.as_str()).collect()
}

#[test]
fn a_chakra_below_its_threshold_for_long_enough_is_down_and_recovers() {
    let (mut w, [db, ..]) = stack();
    assert_eq!(kinds(&w), ["great_spiral"]);
    let exit = w.exits(&db, FIRST);
    w.pass(ms(2_900));
    assert_eq!(w.told(), [""; 0], "what its node mends soon is not told");
    w.pass(ms(300));
    assert_eq!(kinds(&w), ["great_spiral", "chakra_down", "out_of_sync"]);
    let down = w.only("chakra_down");
    let Some(Fact::ChakraDown(fact)) = &down.fact else { panic!() };
    assert_eq!((down.chakra.as_str(), &down.cause_id, fact.missing.as_slice()), ("heart", &exit, ["db".to_owned()].as_slice()));
    w.pass(ms(10_000));
    w.ready(&db, Incarnation::new(1, 2));
    w.pass(ms(500));
    assert_eq!(kinds(&w), ["great_spiral", "chakra_down", "out_of_sync", "chakra_recovered", "great_spiral"]);
    assert_eq!(w.only("chakra_recovered").chakra, "heart");
}

#[test]
fn a_restart_that_takes_less_is_not_told() {
    let (mut w, [db, ..]) = stack();
    for start in 2..6 {
        w.exits(&db, Incarnation::new(1, start - 1));
        w.pass(ms(2_000));
        w.ready(&db, Incarnation::new(1, start));
        w.pass(ms(2_000));
    }
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn the_threshold_is_what_the_stack_says() {
    let (mut w, [db, ..]) = stack();
    let spec = |name: &str| v1::ComponentSpec { name: name.to_owned(), chakra: "heart".to_owned(), ..Default::default() };
    for name in ["db", "cache"] {
        let desired = v1::Desired {
            node: "a".to_owned(),
            generation: 1,
            mode: v1::RunMode::Run.into(),
            spec: Some(spec(name)),
            chakra_threshold: 0.5,
            ..Default::default()
        };
        w.record(&Instance::new(name, 0), desired);
    }
    w.exits(&db, FIRST);
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0], "half of it must be well, and is");
}

#[test]
fn what_is_stopped_by_hand_is_not_missing() {
    let (mut w, [db, ..]) = stack();
    let spec = v1::ComponentSpec { name: "db".to_owned(), chakra: "heart".to_owned(), ..Default::default() };
    w.record(&db, v1::Desired { mode: v1::RunMode::Stop.into(), generation: 1, spec: Some(spec), ..Default::default() });
    w.node_tells("a", Some((&db, FIRST)), Fact::ComponentStopped(v1::ComponentStopped::default()));
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0]);
}

/// Unknown is neither well nor down.
#[test]
fn what_is_on_a_lost_node_is_unknown() {
    let (mut w, _) = stack();
    w.answering.clear();
    w.beater("a").silent = true;
    w.pass(ms(20_000));
    assert_eq!(w.told(), ["node_lost"]);
    assert_eq!(w.dogs[0].state.health(w.at()).essential_up, 0, "nor does it count as well");
}

/// Simulation, seed 821: whatever it was by a journal that is lost, done too. Mutation caught: a new journal forgets nothing.
#[test]
fn what_served_by_a_lost_journal_serves_no_longer() {
    let (mut w, all) = stack();
    w.new_journal("a");
    w.pass(ms(4_000));
    assert_eq!(kinds(&w), ["great_spiral", "chakra_down", "chakra_down", "out_of_sync"]);
    all.iter().for_each(|i| drop(w.ready(i, FIRST)));
    w.pass(ms(500));
    assert_eq!(w.stream.iter().filter(|e| e.kind == "chakra_recovered").count(), 2, "its starts count anew");
}

#[test]
fn while_a_mission_runs_what_was_never_up_is_on_its_way() {
    let mut w = World::new(1);
    w.node("a");
    let mission = |id: &str| v1::MissionStarted { mission_id: id.to_owned(), ..Default::default() };
    w.agent_tells("m1", Fact::MissionStarted(mission("1")));
    let db = w.desire("db", "heart", |_| {});
    w.pass(ms(30_000));
    assert_eq!(kinds(&w), [""; 0], "it may take as long as it takes");
    w.agent_tells("m1e", Fact::MissionCompleted(v1::MissionCompleted { mission_id: "1".to_owned(), ..Default::default() }));
    w.pass(ms(4_000));
    assert_eq!(kinds(&w), ["chakra_down"], "what did not come up is missing once the boot is over");
    w.ready(&db, FIRST);
    w.pass(ms(1_000));
    assert_eq!(kinds(&w), ["chakra_down", "chakra_recovered", "great_spiral"]);
    w.agent_tells("m2", Fact::MissionStarted(mission("2")));
    w.exits(&db, FIRST);
    w.pass(ms(5_000));
    assert_eq!(kinds(&w).iter().filter(|k| **k == "chakra_down").count(), 2, "what was up and fell is missing, whatever runs");
}

/// In EVENTS that are new an orchestrator tells again what it finds untold, the end of a mission before its beginning.
#[test]
fn a_mission_whose_end_is_told_first_does_not_run() {
    let (mut w, _) = stack();
    let done = Fact::MissionCompleted(v1::MissionCompleted { mission_id: "m1".to_owned(), ..Default::default() });
    w.agent_tells("a:orchestrator:mission_completed:m1", done);
    let begun = Fact::MissionStarted(v1::MissionStarted { mission_id: "m1".to_owned(), ..Default::default() });
    w.agent_tells("a:orchestrator:mission_started:m1", begun);
    w.desire("new", "throat", |_| {});
    w.pass(ms(4_000));
    assert_eq!(w.told(), ["chakra_down", "out_of_sync"], "what was never up is missing");
}

/// What is wanted changes without an event of what broke: the same break is another verdict then.
#[test]
fn a_chakra_that_recovered_by_what_is_wanted_may_go_down_by_the_same_break() {
    let (mut w, [db, ..]) = stack();
    let wanted = w.desired[&db].1.clone();
    w.exits(&db, FIRST);
    w.pass(ms(4_000));
    let Some(Want::Desired(mut stopped)) = wanted.want.clone() else { panic!() };
    let again = stopped.clone();
    stopped.set_mode(v1::RunMode::Stop);
    w.record(&db, stopped);
    w.pass(ms(1_000));
    w.record(&db, again);
    w.pass(ms(4_000));
    let all = ["great_spiral", "chakra_down", "out_of_sync", "chakra_recovered", "great_spiral", "chakra_down", "out_of_sync"];
    assert_eq!(kinds(&w), all);
}

/// Fault 16: what an agent told comes again when the broker has forgotten it.
#[test]
fn a_late_copy_begins_no_mission_and_isolates_nobody() {
    let (mut w, [db, cache, _]) = stack();
    let mission = |id: &str| Fact::MissionStarted(v1::MissionStarted { mission_id: id.to_owned(), ..Default::default() });
    w.agent_tells("a:orchestrator:mission_started:m1", mission("m1"));
    let done = Fact::MissionCompleted(v1::MissionCompleted { mission_id: "m1".to_owned(), ..Default::default() });
    w.agent_tells("a:orchestrator:mission_completed:m1", done);
    w.pass(ms(100));
    let copy = w.stream.iter().find(|e| e.kind == "mission_started").unwrap().clone();
    w.stream.push(copy.clone());
    let never_up = w.desire("new", "heart", |_| {});
    w.exits(&cache, FIRST);
    w.pass(ms(4_000));
    assert_eq!(w.told(), ["chakra_down", "out_of_sync"]);
    let Some(Fact::ChakraDown(down)) = &w.only("chakra_down").fact else { panic!() };
    assert_eq!(down.missing, [cache.to_string(), never_up.to_string()], "no mission runs: what was never up is missing");
    let isolation =
        |fact: Fact| v1::Event { instance: Some((&db).into()), incarnation: Some(FIRST.into()), fact: Some(fact), ..copy.clone() };
    let isolated = v1::Event { id: "a:quarantine:1".to_owned(), ..isolation(Fact::Quarantined(v1::Quarantined::default())) };
    let released = v1::Event { id: "a:quarantine:2".to_owned(), ..isolation(Fact::Released(v1::Released::default())) };
    w.stream.extend([isolated.clone(), released]);
    let served = w.ready(&db, FIRST);
    w.stream.push(isolated);
    w.pass(ms(100));
    let view = w.dogs[0].state.facts().view(&db).unwrap();
    assert_eq!((view.serves(), &view.changed_by.1), (true, &served));
}

#[test]
fn a_chakra_of_which_nothing_is_wanted_is_over() {
    let (mut w, [db, cache, _]) = stack();
    w.exits(&db, FIRST);
    w.pass(ms(5_000));
    for instance in [&db, &cache] {
        let spec = v1::ComponentSpec { name: instance.component.clone(), chakra: "heart".to_owned(), ..Default::default() };
        w.record(instance, v1::Desired { mode: v1::RunMode::Stop.into(), spec: Some(spec), ..Default::default() });
    }
    w.pass(ms(1_000));
    assert_eq!(w.only("chakra_recovered").reason.as_ref().unwrap().code, "not_wanted");
}

#[test]
fn the_score_is_what_is_essential_and_how_little_is_restarted() {
    let (mut w, [db, ..]) = stack();
    let score = |w: &World| w.dogs[0].state.health(w.at());
    assert!((score(&w).score - 1.0).abs() < 1e-9);
    w.exits(&db, FIRST);
    w.pass(ms(100));
    let down = score(&w);
    assert_eq!((down.essential_up, down.essential_total), (2, 3));
    assert!((down.score - (0.5 * 2.0 / 3.0 + 0.3) / 0.8).abs() < 1e-9, "{down:?}");
    w.ready(&db, Incarnation::new(1, 2));
    w.pass(ms(100));
    let again = score(&w);
    assert!((again.score - (0.5 + 0.3 * (1.0 - 1.0 / 3.0)) / 0.8).abs() < 1e-9, "one restart of three instances: {again:?}");
    w.pass(ms(600_000));
    assert!((score(&w).score - 1.0).abs() < 1e-9, "ten minutes later it is forgotten");
    assert_eq!(score(&w).chakras.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["heart", "throat"]);
}
