//! The bus as the mesh uses it: events, intents, leases, commands, queries, beats and objects, over NATS and JetStream.
//! The only crate that names async-nats, and nothing of it shows in the public signatures. Every wait has a limit, every queue a
//! bound, and every loop here goes on through a lost broker; what is decided about the mesh lives in the agents.

mod batch;
mod bucket;
mod command;
mod connection;
mod core;
mod error;
mod fold;
mod intents;
mod lease;
mod lookup;
mod objects;
mod ordered;
mod provision;
mod publisher;
mod query;
mod shards;
mod sharing;
mod stall;

pub use bucket::{Bucket, BucketWatch, Entry, WatchItem};
pub use command::{COMMAND_AGE_MAX, CommandItem, CommandSource, ReceivedCommand, RefusedCommand};
pub use connection::{Bus, Config, Connection, REQUEST_LIMIT, SERVER_VERSION_MIN, Statistics};
pub use core::{CoreMessage, Subscription};
pub use error::BusError;
pub use fold::{EventFold, FoldItem, Start};
pub use intents::{IntentItem, IntentRecord, IntentWatch};
pub use lease::LeaseState;
pub use lookup::EventBounds;
pub use objects::Objects;
pub use provision::provision;
pub use publisher::{Acked, EventPublisher, Progress, WINDOW};
pub use query::{Query, QueryServer};
pub use shards::ShardLeases;

/// Header that carries the W3C trace context; look-ups are case-sensitive.
pub const TRACEPARENT: &str = "traceparent";
