//! The orchestrator's policy against a world in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly, its helpers too")]

mod plans;
mod rules;
#[expect(dead_code, reason = "shared with the random sequences")]
#[path = "../world/mod.rs"]
mod world;

use world::{World, blueprint};

/// A chain of three.
const THREE: [&str; 3] = ["db", "api>db", "web>api"];

/// A world in which these were applied by the command `c1`.
fn booted(components: &[&str]) -> World {
    let mut world = World::with_node();
    let revision = world.store(&blueprint("demo", "", components));
    world.apply("c1", "demo", &revision);
    world.run();
    world
}
