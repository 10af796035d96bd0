//! What can go wrong on the bus, told apart by what the caller can do about it. Display never repeats a source.

use std::time::Duration;

/// Why an operation on the bus failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// There is no connection, or it was lost meanwhile: whether a write reached the broker is then unknown.
    #[error("not connected to the bus")]
    Down,
    /// No answer in time; whether a write was stored is unknown.
    #[error("no answer to {what} within {after:?}")]
    Timeout {
        /// What was asked.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// Nobody listens on the subject: a node that is cut off, an agent that does not run.
    #[error("nobody answers on {subject}")]
    NoResponders {
        /// Subject asked.
        subject: String,
    },
    /// Compare-and-swap failed: somebody wrote before. Read again, decide again.
    #[error("{what} was changed by another writer")]
    Conflict {
        /// Key or subject.
        what: String,
    },
    /// An atomic batch holds a message that is stored already; nothing of the batch was stored.
    #[error("a message of the batch is stored already")]
    Duplicate,
    /// Another event was stored between this one and the one that it was to follow; it was not stored.
    #[error("another event came in between")]
    Overtaken,
    /// Stream, bucket or object does not exist (not provisioned yet, or deleted).
    #[error("{what} does not exist on the bus")]
    Missing {
        /// Stream, bucket or object.
        what: String,
    },
    /// The broker's permissions forbid it.
    #[error("the broker forbids {subject}")]
    Denied {
        /// Subject concerned.
        subject: String,
    },
    /// More bytes than the limit.
    #[error("{bytes} bytes are more than the {max} allowed")]
    TooLarge {
        /// Size.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// The broker refused.
    #[error("the broker refused: {why} ({code})")]
    Broker {
        /// Error code of JetStream, or 0.
        code: u64,
        /// Its words.
        why: String,
    },
    /// The client library refused.
    #[error("{0}")]
    Client(String),
    /// Bytes that are not what they should be.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// Older servers can lose acknowledged data.
    #[error("nats-server {version} is too old: {min} or newer is needed")]
    ServerTooOld {
        /// Version found.
        version: String,
        /// Version needed.
        min: &'static str,
    },
    /// The broker turns the credentials down.
    #[error("the broker refuses this agent: {0}")]
    Unauthorized(String),
    /// Wrong configuration: mesh name, server address, credentials file.
    #[error("{0}")]
    Config(String),
    /// The bus was closed by this process.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// Whether the same operation may work later, unchanged.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Down
            | Self::Timeout { .. }
            | Self::NoResponders { .. }
            | Self::Missing { .. }
            | Self::Overtaken
            | Self::Broker { .. }
            | Self::Client(_) => true,
            Self::Conflict { .. }
            | Self::Duplicate
            | Self::Denied { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::ServerTooOld { .. }
            | Self::Unauthorized(_)
            | Self::Config(_)
            | Self::Closed => false,
        }
    }

    /// Nobody listens on a stream's subject: there is no stream.
    pub(crate) fn or_missing(self, what: &str) -> Self {
        if matches!(self, Self::NoResponders { .. }) { Self::Missing { what: what.to_owned() } } else { self }
    }

    /// Whether a write may have been stored although it failed.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Down | Self::Timeout { .. })
    }
}
