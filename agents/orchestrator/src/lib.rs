//! orchestrator: decides what is to run where. An operator's command changes the plan; the plan gives the `desired` records, which the
//! nodes follow; it follows their facts to the end of the mission and remembers the boot.
//! In: `razar.command.orchestrator.*`, `razar.event.>`, the buckets `intents` and `missions`, `razar.query.orchestrator.plan`.
//! Out: `desired.*` in `intents`, `missions`, and the events desired_changed, mission_started, mission_completed, profile_switched,
//! operator_command, escalated. Generations never fall, records are never deleted, a command takes effect once.

mod actions;
pub mod agent;
pub mod blueprint;
pub mod config;
pub mod policy;
mod spans;

pub use policy::AGENT;
