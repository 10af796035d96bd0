//! From the ladder's end over probation to release, or back.

use std::time::Duration;

use razar_bus_schema::{
    ids::Instance,
    v1::{self, QuarantinePhase as Phase, event::Fact},
};

use super::world::{World, api};

const KEY: &str = "quarantine.api.0";

fn given_up() -> World {
    let mut world = World::of(&["api"]);
    world.exited(&api(), "1.4", "No module named 'torch'");
    world.give_up(&api(), "1.1", "1.4", "ModuleNotFoundError: No module named 'torch'");
    world.settle();
    world
}

#[test]
fn what_the_ladder_gave_up_is_isolated_and_told() {
    let world = given_up();
    let record = world.record(KEY).unwrap();
    assert_eq!((record.phase(), record.attempts, record.issue_type.as_str()), (Phase::Isolated, 4, "dependency"));
    assert_eq!(record.duration.unwrap().seconds, 1800);
    let told = world.told("quarantined");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].reason.as_ref().unwrap().text, "ModuleNotFoundError: No module named 'torch'");
    let Some(Fact::Quarantined(fact)) = &told[0].fact else { panic!("another fact") };
    assert_eq!((fact.suggested_fix.as_str(), fact.attempts), ("install torch", 4));
}

/// Mutation: isolate without asking whether the record has settled the incident.
#[test]
fn an_incident_that_its_record_has_settled_is_void() {
    let mut world = given_up();
    world.release("c1", "api");
    assert_eq!(world.phase(KEY), Phase::Released);
    world.give_up(&api(), "1.1", "1.4", "told again by a late copy");
    world.pass(10);
    world.take_over();
    assert_eq!(world.phase(KEY), Phase::Released, "the incident is settled");
    world.exited(&api(), "1.5", "ValueError");
    world.give_up(&api(), "1.5", "1.5", "ValueError");
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Isolated, "another incident is another matter");
}

#[test]
fn a_failure_that_was_withdrawn_does_not_end_a_probation() {
    let mut world = given_up();
    world.pass(1800);
    assert_eq!(world.phase(KEY), Phase::Probation);
    world.mute = true;
    world.exited(&api(), "1.5", "x");
    world.node(&api(), "1.5", Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "to_be_stopped".to_owned() }));
    world.mute = false;
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Probation);
}

#[test]
fn an_incident_that_was_withdrawn_isolates_nobody() {
    let mut world = World::of(&["api"]);
    world.exited(&api(), "1.4", "x");
    world.node(&api(), "1.4", Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "blocked".to_owned() }));
    world.give_up(&api(), "1.4", "1.4", "x");
    world.settle();
    assert_eq!(world.record(KEY), None);
}

#[test]
fn what_was_placed_anew_since_is_left_alone() {
    let mut world = World::of(&["api"]);
    world.exited(&api(), "1.4", "x");
    world.desire("api", 2);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    assert_eq!(world.record(KEY), None, "a newer generation is desired");
    let mut world = World::of(&["api"]);
    world.ready(&api(), "1.5");
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    assert_eq!(world.record(KEY), None, "a later incarnation lives");
}

/// A rung was begun before it was heard that another had given the incident up.
#[test]
fn what_failed_again_in_an_incident_that_was_given_up_before_is_isolated_with_its_last_life() {
    for last in ["1.1", "1.2"] {
        let mut world = World::of(&["api"]);
        world.exited(&api(), "1.4", "x");
        world.started(&api(), "1.5");
        world.give_up(&api(), "1.1", "1.4", "x");
        world.settle();
        assert_eq!(world.record(KEY), None, "a later incarnation lives");
        world.node_in(&api(), last, "1.5", Fact::ComponentFailed(v1::ComponentFailed::default()));
        world.settle();
        let record = world.record(KEY);
        if last == "1.2" {
            assert_eq!(record, None, "that is another incident, which the ladder takes up");
            continue;
        }
        let incarnation = record.and_then(|r| r.incarnation).map(|i| (i.generation, i.start));
        assert_eq!(incarnation, Some((1, 5)));
    }
}

#[test]
fn its_time_over_it_is_on_probation_and_a_probe_that_holds_releases_it() {
    let mut world = given_up();
    world.pass(1799);
    assert_eq!(world.phase(KEY), Phase::Isolated);
    world.pass(1);
    assert_eq!(world.phase(KEY), Phase::Probation);
    world.ready(&api(), "1.5");
    world.pass(4);
    assert_eq!(world.phase(KEY), Phase::Probation, "it has to hold through the soak");
    world.pass(1);
    assert_eq!(world.phase(KEY), Phase::Released);
    let Some(Fact::Released(told)) = &world.told("released")[0].fact else { panic!("another fact") };
    assert_eq!((told.mode.as_str(), told.note.as_str()), ("auto", ""));
}

/// Mutation: put it on probation without a word.
#[test]
fn probation_is_told_and_judged_only_then() {
    let mut world = given_up();
    world.mute = true;
    world.pass(1800);
    assert_eq!((world.phase(KEY), world.told("probation_started").len()), (Phase::Probation, 0));
    // Its node is quicker than the event: what was told before that is of this trial all the same.
    world.ready(&api(), "1.5");
    world.pass(60);
    assert_eq!(world.phase(KEY), Phase::Probation, "the record is told of before it is written over");
    world.mute = false;
    world.pass(1);
    let told = world.told("probation_started");
    let Some(Fact::ProbationStarted(fact)) = &told[0].fact else { panic!("another fact") };
    assert_eq!((told.len(), fact.attempts, fact.issue_type.as_str(), fact.suggested_fix.as_str()), (1, 4, "dependency", "install torch"));
    assert!(told[0].incident.is_some() && told[0].reason.as_ref().unwrap().text.starts_with("on probation after 1800s: "));
    assert_eq!((told[0].cause_id.as_str(), world.phase(KEY)), (world.told("quarantined")[0].id.as_str(), Phase::Released));
}

#[test]
fn every_probation_of_one_is_told_and_by_a_successor_no_second_time() {
    let mut world = given_up();
    for (round, incarnation) in [(1, "1.5"), (2, "1.6")] {
        world.pass(1800);
        assert_eq!((world.phase(KEY), world.told("probation_started").len()), (Phase::Probation, round));
        world.take_over();
        assert_eq!((world.phase(KEY), world.told("probation_started").len()), (Phase::Probation, round));
        world.exited(&api(), incarnation, "ValueError: 3");
        world.settle();
        let reason = world.told("quarantined").last().unwrap().reason.clone().unwrap();
        assert_eq!((world.phase(KEY), reason.code.as_str()), (Phase::Isolated, "probation_failed"));
    }
}

#[test]
fn a_probe_that_does_not_hold_begins_its_soak_anew() {
    let mut world = given_up();
    world.pass(1800);
    world.ready(&api(), "1.5");
    world.pass(4);
    world.node(&api(), "1.5", Fact::ComponentUnready(v1::ComponentUnready::default()));
    world.pass(1);
    world.node(&api(), "1.5", Fact::ComponentReady(v1::ComponentReady { again: true, ..Default::default() }));
    world.pass(4);
    assert_eq!(world.phase(KEY), Phase::Probation);
    world.pass(1);
    assert_eq!(world.phase(KEY), Phase::Released);
}

/// Mutation: judge the incarnation of the isolation, too.
#[test]
fn probation_judges_later_incarnations_only() {
    let mut world = given_up();
    world.pass(1800);
    world.exited(&api(), "1.4", "told late");
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Probation, "that one failed before");
    world.exited(&api(), "1.5", "ValueError: 3");
    world.settle();
    let record = world.record(KEY).unwrap();
    assert_eq!((record.phase(), record.attempts, record.issue_type.as_str()), (Phase::Isolated, 5, "logic"));
    assert_eq!(world.told("quarantined").len(), 2);
    world.give_up(&api(), "1.5", "1.5", "the ladder had begun on it");
    world.settle();
    assert_eq!(world.told("quarantined").len(), 2, "that incident is settled");
}

#[test]
fn an_end_that_a_dependency_is_to_blame_for_is_no_failure() {
    let mut world = given_up();
    world.pass(1800);
    world.ready(&api(), "1.5");
    world.blameless_exit(&api(), "1.5");
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Probation);
}

/// Mutation: overwrite a record whose event is not told.
#[test]
fn a_record_is_overwritten_only_when_its_event_is_in_events() {
    let mut world = World::of(&["api"]);
    world.mute = true;
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Isolated);
    world.pass(3600);
    assert_eq!(world.phase(KEY), Phase::Isolated, "nobody has been told of the isolation");
    world.mute = false;
    world.pass(1);
    assert_eq!(world.told("quarantined").len(), 1);
    assert_eq!(world.phase(KEY), Phase::Probation);
}

#[test]
fn durations_count_from_receipt() {
    let mut world = given_up();
    world.pass(1000);
    world.now.wall += Duration::from_secs(3600);
    world.exited(&api(), "1.4", "a clock that jumps");
    world.pass(700);
    assert_eq!(world.phase(KEY), Phase::Isolated, "no wall clock ends it");
    world.pass(101);
    assert_eq!(world.phase(KEY), Phase::Probation);
}

#[test]
fn a_successor_lets_an_isolation_last_no_longer() {
    let mut world = given_up();
    world.pass(1000);
    world.exited(&Instance::new("other", 0), "1.1", "news of anybody");
    world.take_over();
    world.pass(700);
    assert_eq!(world.phase(KEY), Phase::Isolated, "a thousand seconds and seven hundred");
    world.pass(101);
    assert_eq!(world.phase(KEY), Phase::Probation);
    let mut world = given_up();
    world.pass(1000);
    world.take_over();
    world.pass(1700);
    assert_eq!(world.phase(KEY), Phase::Isolated, "where nothing was told since, it cannot know better than from its receipt");
    world.pass(101);
    assert_eq!(world.phase(KEY), Phase::Probation);
}

#[test]
fn a_trial_that_never_gets_ready_is_sent_back() {
    let mut world = given_up();
    world.pass(1801);
    assert_eq!(world.phase(KEY), Phase::Probation);
    world.pass(3600);
    assert_eq!(world.phase(KEY), Phase::Probation, "nothing has started: it may wait for what it depends on");
    world.started(&api(), "1.5");
    world.pass(34);
    assert_eq!(world.phase(KEY), Phase::Probation, "it has its startup limit and the soak");
    world.pass(2);
    assert_eq!((world.phase(KEY), world.told("quarantined").len()), (Phase::Isolated, 2));
    let told = world.told("quarantined")[1].reason.as_ref().unwrap().text.clone();
    assert_eq!(told, "not ready 35s after its start on probation");
}

#[test]
fn a_take_over_tells_what_its_predecessor_could_not_and_nothing_twice() {
    let mut world = World::of(&["api"]);
    world.mute = true;
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    world.mute = false;
    world.take_over();
    world.take_over();
    assert_eq!(world.told("quarantined").len(), 1);
    assert_eq!(world.writes.iter().filter(|(key, _)| key == KEY).count(), 1);
}
