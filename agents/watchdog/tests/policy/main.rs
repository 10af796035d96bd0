//! What the watchdog decides, by tables and by stories in a world in memory.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail loudly, its helpers too")]

mod beats;
mod chakras;
mod shards;
mod silence;
mod usage;
mod world;
