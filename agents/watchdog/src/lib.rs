//! watchdog: decides who is silent or over limits, among nodes, agents and instances that beat; how each chakra is; the score of the whole.
//! In: `razar.heartbeat.>`, `razar.event.>`, the bucket `intents`, answers of `razar.node.<node>.ping|silence|inventory`,
//! `razar.query.watchdog.health`.
//! Out: the events node_lost, node_returned, agent_down, agent_returned, component_unresponsive, chakra_down, chakra_recovered,
//! great_spiral, out_of_sync, limit_exceeded, limit_restored. It writes no record and stops nothing.
//! All replicas observe, the shard's holder gives the verdict, under an id that any would compute. Silence counts only for an observer that
//! was connected and current for the whole of it; a node is asked first, an instance has to hang by its node's view as well.

pub mod agent;
pub mod config;
mod ears;
mod numbers;
pub mod policy;
mod questions;
mod spans;

pub use policy::AGENT;
