//! Under construction.

pub mod adopt;
pub mod guard;
pub mod journal;
pub mod outbox;
pub mod view;
pub mod policy;
