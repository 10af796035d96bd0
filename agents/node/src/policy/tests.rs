//! The node's rules, each by a story: records and processes go in, what the node does comes out.

mod beats;
mod bench;
mod degraded;
mod ladder;
mod lifecycle;
mod reading;
mod rules;
mod startup;
