//! recovery: decides which rung of the ladder comes next for a component that its node has given up, or that is restarted too often.
//! In: `razar.event.>`, the bucket `intents`, and before a last rung the answers on `razar.node.<node>.inventory`. Out: `recovery.*` in
//! `intents`, and the events recovery_started, rung_tried, recovered, incident_withdrawn, recovery_failed, brake_engaged, brake_released,
//! escalated.
//! An order names the incarnation that it wants replaced; a record is overwritten only when the event that tells of it is in EVENTS; a try
//! counts only if each dependency kept its condition in one incarnation; what a quarantine has settled gets no rung.

mod actions;
pub mod agent;
pub mod config;
pub mod policy;
mod spans;

pub use policy::AGENT;
