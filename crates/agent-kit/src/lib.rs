//! Process life, the same for every agent: configuration, logs and spans, health and metrics, beats, the drain at the end, and the rule
//! when a replica may decide. What an agent decides lives in the agent; how the bus works lives in `razar-bus`.

pub mod authority;
pub mod config;
pub mod deciding;
pub mod event;
pub mod health;
pub mod heartbeat;
pub mod hops;
pub mod http;
pub mod metrics;
mod process;
pub mod run;
pub mod shutdown;
pub mod snapshot;
pub mod telemetry;
pub mod tenures;
pub mod tick;

pub use authority::{Authority, HeadsWanted};
pub use config::{AgentConfig, ConfigError, NoSettings};
pub use deciding::{Decider, Entry, Folded, Nothing, Now, Shell};
pub use health::Health;
pub use hops::Hops;
pub use metrics::Metrics;
pub use run::{Agent, run, run_once};
pub use shutdown::Shutdown;
pub use telemetry::{SpanKind, SpanRecord, Spans};
pub use tenures::Tenures;
pub use tick::LoopTicker;
