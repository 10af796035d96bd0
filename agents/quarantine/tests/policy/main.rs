//! What quarantine decides, by tables and by stories in a world in memory.

mod epochs;
mod hand;
mod ladder;
mod world;
