//! quarantine: decides who is isolated and how it earns release. What the ladder could not heal, or an operator puts aside, is isolated;
//! the time that it was given over, it is on probation; a passing probe, held through the soak, or a hand with a note releases it.
//! In: `razar.command.quarantine.*`, `razar.event.>`, the bucket `intents`.
//! Out: `quarantine.*` and `mark.quarantine` in `intents`, and the events quarantined, probation_started, released, operator_command.
//! Records are never deleted; one is overwritten only when the event that tells of it is in EVENTS; a command takes effect once; in a new
//! bucket everything known is written first, what was released too, and then the mark.

mod actions;
pub mod agent;
pub mod config;
pub mod policy;

pub use policy::AGENT;
