//! registry: folds EVENTS into what is observed (components, nodes, agents, missions), answers questions about it from memory in every
//! replica, and, as holder of shard 0, writes it to the bucket `observed`.
//! In: `razar.event.>`, `razar.query.registry.*`. Out: the bucket `observed`, snapshots in the object store, dead_lettered.
//! It decides nothing about components. Its projection, wiped and folded anew, is the same byte for byte.

mod actions;
pub mod agent;
pub mod config;
pub mod policy;
pub mod projection;

/// Kind of this agent.
pub const AGENT: &str = "registry";
