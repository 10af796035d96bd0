//! A bucket of intents that was lost: what is known is written first, what was released too, then the mark.

use razar_bus_schema::{
    bucket::IntentKey,
    v1::{self, QuarantinePhase as Phase, intent::Want},
};
use razar_quarantine::policy::Outcome;

use super::world::{World, api};

const MARK: &str = "mark.quarantine";

fn isolated_and_released() -> World {
    let mut world = World::of(&["api", "db"]);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    world.quarantine("c1", "db", 60);
    world.release("c2", "db");
    world
}

fn keys(world: &World) -> Vec<&str> {
    world.writes.iter().map(|(key, _)| key.as_str()).collect()
}

#[test]
fn the_first_bucket_gets_its_mark_once_the_nodes_have_told_what_they_hold() {
    let world = World::of(&["api"]);
    let Some(Want::Mark(mark)) = &world.bucket[MARK].1.want else { panic!("no mark") };
    assert_eq!(mark.bucket_epoch, "b1");
}

/// Mutations: the mark first; released ones left out.
#[test]
fn everything_is_written_before_the_mark_released_ones_too() {
    let mut world = isolated_and_released();
    world.lose_bucket();
    world.settle();
    assert_eq!(keys(&world), ["quarantine.db", "quarantine.api.0"], "no inventory for this bucket: no mark");
    assert_eq!((world.phase("quarantine.api.0"), world.phase("quarantine.db")), (Phase::Isolated, Phase::Released));
    world.inventory(&[]);
    world.settle();
    assert_eq!(keys(&world).last(), Some(&MARK));
    let Some(Want::Mark(mark)) = &world.bucket[MARK].1.want else { panic!("no mark") };
    assert_eq!(mark.bucket_epoch, "b2");
}

#[test]
fn a_replica_that_never_read_the_lost_bucket_knows_it_from_events() {
    let mut world = isolated_and_released();
    world.lose_bucket();
    world.take_over();
    assert_eq!((world.phase("quarantine.api.0"), world.phase("quarantine.db")), (Phase::Isolated, Phase::Released));
    let record = world.record("quarantine.api.0").unwrap();
    assert!(record.incident.is_some() && record.incarnation.is_some() && record.attempts == 4);
    assert_eq!(world.told("quarantined").len(), 2, "nothing is told twice");
}

#[test]
fn a_probation_of_a_lost_bucket_goes_on() {
    let mut world = World::of(&["api"]);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    world.pass(1800);
    world.lose_bucket();
    world.take_over();
    world.inventory(&[]);
    world.settle();
    let record = world.record("quarantine.api.0").unwrap();
    assert_eq!((record.phase(), record.attempts, record.duration), (Phase::Probation, 4, None));
    assert_eq!((world.told("quarantined").len(), world.told("probation_started").len()), (1, 1), "nothing is told twice");
    world.desire("api", 1);
    world.exited(&api(), "1.4", "of the life before");
    world.ready(&api(), "1.5");
    world.pass(5);
    assert_eq!(world.phase("quarantine.api.0"), Phase::Released);
}

#[test]
fn what_only_a_disk_knows_is_written_again_before_the_mark() {
    let mut world = World::of(&["api"]);
    world.lose_bucket();
    let want = v1::Quarantine { component: "api".to_owned(), phase: Phase::Isolated.into(), ..Default::default() };
    world.inventory(&[v1::Intent { want: Some(Want::Quarantine(want)), ..Default::default() }]);
    world.settle();
    assert_eq!(keys(&world), ["quarantine.api", MARK]);
    assert_eq!(world.phase("quarantine.api"), Phase::Isolated);
}

#[test]
fn a_disk_that_is_behind_isolates_nothing_that_was_released() {
    let mut world = World::of(&["api"]);
    world.quarantine("c1", "api", 60);
    let old = world.bucket["quarantine.api"].1.clone();
    world.release("c2", "api");
    world.lose_bucket();
    world.inventory(&[old]);
    world.take_over();
    assert_eq!(world.phase("quarantine.api"), Phase::Released);
}

#[test]
fn commands_wait_for_the_mark() {
    let mut world = isolated_and_released();
    world.lose_bucket();
    world.quarantine("c3", "db", 60);
    assert_eq!(world.phase("quarantine.db"), Phase::Released);
    world.inventory(&[]);
    world.settle();
    assert_eq!(world.phase("quarantine.db"), Phase::Isolated);
}

/// Mutation: take a deleted record for one that was never there.
#[test]
fn a_record_that_somebody_deleted_is_written_again() {
    let mut world = isolated_and_released();
    world.delete("quarantine.api.0");
    world.settle();
    assert_eq!(world.phase("quarantine.api.0"), Phase::Isolated, "absence says nothing");
}

/// An answer that comes once the bucket is another one says nothing of this one.
#[test]
fn what_was_written_into_a_bucket_before_is_not_in_this_one() {
    let mut world = World::of(&["api"]);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    let (revision, intent) = world.bucket["quarantine.api.0"].clone();
    let writes = vec![(IntentKey::QuarantineInstance(api()), intent, 0)];
    world.lose_bucket();
    world.state.apply_outcome(Outcome::Wrote { bucket: 1, writes, revisions: Some(vec![revision]) }, world.now);
    world.settle();
    assert_eq!(world.phase("quarantine.api.0"), Phase::Isolated);
}
