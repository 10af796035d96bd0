//! Shards: who writes what where there are several. Of two, `api` belongs to shard 1, `db` to shard 0.

use razar_bus_schema::{
    ids::Instance,
    shard::{ShardCount, Shards},
    v1::QuarantinePhase as Phase,
};

use super::world::{World, api};

impl World {
    /// It decides about these shards of two from now on.
    fn decides_about(&mut self, held: &[u32]) {
        self.state.apply_shards(&Shards::new(ShardCount::new(2).unwrap(), held.iter().copied()));
        self.settle();
    }

    fn written(&self) -> Vec<&str> {
        self.writes.iter().map(|(key, _)| key.as_str()).filter(|key| !key.starts_with("mark")).collect()
    }
}

/// Mutation: whoever decides at all isolates every component.
#[test]
fn only_the_holder_of_a_components_shard_isolates_it() {
    let mut world = World::of(&["api", "db"]);
    world.decides_about(&[0]);
    for name in ["api", "db"] {
        world.give_up(&Instance::new(name, 0), "1.1", "1.4", "x");
    }
    world.settle();
    assert_eq!(world.written(), ["quarantine.db.0"]);
    assert_eq!(world.told("quarantined").len(), 1);
    world.decides_about(&[1]);
    assert_eq!(world.written(), ["quarantine.db.0", "quarantine.api.0"]);
    world.pass(1801);
    assert_eq!((world.phase("quarantine.api.0"), world.phase("quarantine.db.0")), (Phase::Probation, Phase::Isolated));
}

#[test]
fn a_command_whose_shard_is_lost_is_for_its_next_holder_and_ended_by_that() {
    let mut world = World::of(&["api", "db"]);
    world.decides_about(&[0, 1]);
    world.ready(&api(), "1.1");
    world.quarantine("c1", "api", 60);
    assert!(world.receipt("c1").accepted);
    world.decides_about(&[0]);
    world.stopped(&api(), "1.1");
    world.settle();
    assert!(!world.ended("c1"), "its end is another's to tell");
    world.decides_about(&[1]);
    assert!(world.ended("c1"));
}

#[test]
fn a_new_bucket_is_shard_0s_until_it_has_its_mark() {
    let mut world = World::of(&["api", "db"]);
    world.give_up(&api(), "1.1", "1.4", "x");
    world.settle();
    world.lose_bucket();
    world.inventory(&[]);
    world.decides_about(&[1]);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.decides_about(&[0]);
    let keys: Vec<_> = world.writes.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["quarantine.api.0", "mark.quarantine"], "what is known of all shards, and then the mark");
    world.delete("quarantine.api.0");
    world.settle();
    assert_eq!(world.writes.len(), 2, "after the mark it is the holder's of its shard");
    world.decides_about(&[1]);
    assert_eq!(world.phase("quarantine.api.0"), Phase::Isolated);
}
