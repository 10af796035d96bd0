//! What quarantine decides, by tables and by stories in a world in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly, its helpers too")]

mod epochs;
mod hand;
mod ladder;
mod shards;
mod world;
