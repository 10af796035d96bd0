//! The node: one per host, the only one that starts, stops or signals a component. Two processes: a guard that keeps the agent alive
//! and inherits what it leaves, and the agent that does everything else.
//!
//! Reads intents (`razar.v1.Intent` in the bucket `intents`), beats of components, and questions on `razar.node.<node>.*`; writes
//! events through its journal. Decisions are in [`policy`], pure; [`agent`] only wires.
//!
//! Invariants: a start is journalled before it happens; no signal goes to a bare pid; nothing is started while the survey of what
//! the last agent left is incomplete; without the bus it goes on from the plan on its disk.

pub mod adopt;
pub mod agent;
pub mod config;
mod environment;
pub mod guard;
mod hooks;
mod house;
pub mod journal;
pub mod logs;
mod news;
pub mod outbox;
mod pace;
pub mod policy;
pub mod probe;
pub mod processes;
mod questions;
mod runtime_dir;
mod sampling;
pub mod start;
mod state;
mod stores;
mod system;
pub mod traces;
mod usage;
pub mod view;
