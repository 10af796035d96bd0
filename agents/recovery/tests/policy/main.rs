//! Recovery's policy against tables of what happens, without a bus: the ladder's course, and the rules that hold whatever dies when.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly, its helpers too")]

mod bench;
mod brake;
mod course;
mod escalations;
mod rules;
mod rungs;
mod sequences;
mod shards;
mod silent;
