//! Streams and buckets of a mesh, with their limits. The settings that the broker needs are made from these by `crates/bus`.
//! Names carry the mesh, so that many meshes share one server.

use std::time::Duration;

/// Window in which the broker drops a repeated message id. It only spares traffic: folds deduplicate by themselves.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Age past which a fact is no longer kept.
pub const EVENTS_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A stream or bucket of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// Lifecycle events.
    Events,
    /// Commands.
    Commands,
    /// Log lines.
    Logs,
    /// Bucket of intents.
    Intents,
    /// Bucket of registry's projection.
    Observed,
    /// Bucket of the orchestrator's plan, missions and histories.
    Missions,
    /// Bucket of leases.
    Leases,
    /// Object store of stack revisions.
    Stacks,
}

/// Form of a [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A stream with subjects of its own.
    Stream,
    /// A key-value bucket.
    Bucket,
    /// An object store.
    Objects,
}

impl Store {
    /// All of them, in the order in which they are provisioned.
    pub const ALL: [Self; 8] =
        [Self::Events, Self::Commands, Self::Logs, Self::Intents, Self::Observed, Self::Missions, Self::Leases, Self::Stacks];

    /// Short name (`events`).
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Commands => "commands",
            Self::Logs => "logs",
            Self::Intents => "intents",
            Self::Observed => "observed",
            Self::Missions => "missions",
            Self::Leases => "leases",
            Self::Stacks => "stacks",
        }
    }

    /// Form.
    #[must_use]
    pub const fn form(self) -> Form {
        match self {
            Self::Events | Self::Commands | Self::Logs => Form::Stream,
            Self::Intents | Self::Observed | Self::Missions | Self::Leases => Form::Bucket,
            Self::Stacks => Form::Objects,
        }
    }

    /// Name of the stream, bucket or object store in mesh `mesh`: `razar_events`. (A bucket's stream is `KV_` + this.)
    #[must_use]
    pub fn name(self, mesh: &str) -> String {
        format!("{mesh}_{}", self.label())
    }

    /// Bound of its size in bytes. EVENTS holds about two million facts; buckets hold the newest value of each key alone.
    #[must_use]
    pub const fn bytes_max(self) -> i64 {
        const MIB: i64 = 1024 * 1024;
        match self {
            Self::Events => 1024 * MIB,
            Self::Commands | Self::Intents | Self::Observed | Self::Missions => 64 * MIB,
            Self::Logs => 128 * MIB,
            Self::Leases => 8 * MIB,
            Self::Stacks => 256 * MIB,
        }
    }

    /// Whether each write reaches the disk only later: true for what can be rebuilt or may be lost.
    #[must_use]
    pub const fn persists_later(self) -> bool {
        matches!(self, Self::Observed | Self::Leases | Self::Logs)
    }
}
