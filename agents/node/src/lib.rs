//! Under construction.

pub mod journal;
pub mod view;
