//! The orchestrator's policy against a world in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly, its helpers too")]

mod plans;
mod rules;
#[expect(dead_code, reason = "shared with the random sequences")]
#[path = "../world/mod.rs"]
mod world;

use std::time::Duration;

use world::{World, blueprint};

/// Longer than a mission waits for somebody to take up what its node gave up.
const UNTENDED: Duration = Duration::from_secs(91);

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
