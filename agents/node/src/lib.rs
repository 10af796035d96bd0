//! Under construction.

pub mod adopt;
pub mod guard;
pub mod journal;
pub mod logs;
pub mod outbox;
pub mod policy;
pub mod probe;
pub mod view;
