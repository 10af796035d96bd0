//! Operators' commands.

use razar_bus_schema::v1::{self, QuarantinePhase as Phase};

use super::world::{World, api};

const KEY: &str = "quarantine.api";

#[test]
fn a_component_is_isolated_by_hand_and_released_with_a_note() {
    let mut world = World::of(&["api", "web>api", "edge>web", "cache"]);
    world.ready(&api(), "1.1");
    world.quarantine("c1", "api", 7200);
    assert_eq!(world.receipt("c1").reason, "api, a required one, is quarantined for 2h; it blocks edge web");
    assert_eq!((world.phase(KEY), world.record(KEY).unwrap().issue_type.as_str()), (Phase::Isolated, "manual"));
    assert!(!world.ended("c1"), "it lives yet");
    world.stopped(&api(), "1.1");
    world.settle();
    assert!(world.ended("c1"));
    world.release("c2", "api");
    assert_eq!(world.phase(KEY), Phase::Released);
    assert_eq!(world.record(KEY).unwrap().note, "mended");
    assert!(world.receipt("c2").accepted && world.ended("c2"));
    assert_eq!((world.told("quarantined").len(), world.told("released").len()), (1, 1));
}

#[test]
fn a_hand_releases_what_the_ladder_isolated_as_well() {
    let mut world = World::of(&["api"]);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    world.quarantine("c1", "api", 60);
    world.release("c2", "api");
    assert_eq!([world.phase(KEY), world.phase("quarantine.api.0")], [Phase::Released; 2]);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let mut world = World::of(&["api", "web"]);
    let table = [
        ("quarantine", "aip", "unknown_component", "no component aip; nearest: api"),
        ("quarantine", "api.0", "whole_component", "by hand a whole component is isolated; name api"),
        ("quarantine", "registry", "reserved", "registry is a part of the mesh, which is never isolated"),
        ("release", "api", "not_quarantined", "api is not quarantined"),
        ("release", "weeb", "unknown_component", "no component weeb; nearest: web"),
        ("forget", "api", "unknown_verb", "quarantine knows no verb forget; it knows quarantine and release"),
    ];
    for (n, (verb, target, code, reason)) in table.into_iter().enumerate() {
        let id = format!("c{n}");
        world.command(&id, verb, target, v1::Command { note: "x".to_owned(), ..Default::default() });
        let receipt = world.receipt(&id);
        assert_eq!((receipt.accepted, receipt.code.as_str(), receipt.reason.as_str()), (false, code, reason), "{verb} {target}");
    }
    assert!(world.writes.iter().all(|(key, _)| key == "mark.quarantine"), "a refusal changes nothing");
}

#[test]
fn a_release_needs_a_note() {
    let mut world = World::of(&["api"]);
    world.quarantine("c1", "api", 60);
    for (id, note) in [("c2", ""), ("c3", "  ")] {
        world.command(id, "release", "api", v1::Command { note: note.to_owned(), ..Default::default() });
        assert_eq!(world.receipt(id).code, "note_missing");
    }
    assert_eq!(world.phase(KEY), Phase::Isolated);
}

/// Mutation: answer before the record has the command's id.
#[test]
fn a_command_is_settled_in_the_record_before_it_is_acknowledged_and_has_no_second_effect() {
    let mut world = World::of(&["api"]);
    world.mute = true;
    world.quarantine("c1", "api", 60);
    assert!(world.bucket[KEY].1.settled_command_ids.contains(&"c1".to_owned()));
    assert!(world.receipts.is_empty(), "nothing is told yet");
    world.mute = false;
    world.take_over();
    world.quarantine("c1", "api", 60);
    assert!(world.receipt("c1").accepted, "delivered again, it finds itself settled");
    world.release("c2", "api");
    world.quarantine("c1", "api", 60);
    assert_eq!(world.phase(KEY), Phase::Released, "a late copy isolates nothing");
    assert_eq!(world.told("quarantined").len(), 1);
}

#[test]
fn isolated_again_its_time_begins_anew() {
    let mut world = World::of(&["api"]);
    world.quarantine("c1", "api", 60);
    world.pass(50);
    world.quarantine("c2", "api", 60);
    world.pass(50);
    assert_eq!(world.phase(KEY), Phase::Isolated);
    world.pass(10);
    assert_eq!(world.phase(KEY), Phase::Probation);
}

/// Mutation: probation without waiting for what lives.
#[test]
fn probation_begins_when_nothing_of_it_lives() {
    let mut world = World::of(&["api"]);
    world.ready(&api(), "1.1");
    world.quarantine("c1", "api", 1);
    world.pass(5);
    assert_eq!(world.phase(KEY), Phase::Isolated, "it takes its time to stop");
    world.stopped(&api(), "1.1");
    world.settle();
    assert_eq!(world.phase(KEY), Phase::Probation);
    world.pass(60);
    assert_eq!(world.phase(KEY), Phase::Probation, "that it was ready before says nothing");
    world.ready(&api(), "1.2");
    world.pass(5);
    assert_eq!(world.phase(KEY), Phase::Released);
}

#[test]
fn what_ended_with_its_nodes_journal_is_put_down() {
    let mut world = World::of(&["api"]);
    world.ready(&api(), "1.1");
    world.quarantine("c1", "api", 1);
    world.lose_journal("e2");
    world.pass(5);
    assert_eq!(world.phase(KEY), Phase::Probation);
}

#[test]
fn an_expired_command_is_refused() {
    let mut world = World::of(&["api"]);
    world.expire_next();
    world.quarantine("c1", "api", 60);
    assert_eq!(world.receipt("c1").code, "expired");
    assert_eq!(world.record(KEY), None);
}
