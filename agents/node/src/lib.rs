//! Under construction.

pub mod guard;
pub mod journal;
pub mod view;
