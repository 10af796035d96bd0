//! A consumer that has something to deliver and delivers nothing, though its heartbeats go on: no silence tells of it, so the broker is
//! asked now and then. Making another consumer is the reader's matter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::consumer::Info;
use tokio::{sync::Notify, task::AbortHandle};

use crate::{Bus, BusError, connection::jittered};

/// How often a consumer is asked about: each question costs the broker as much as ten messages.
const LOOK: Duration = Duration::from_secs(20);
/// When one that may stand still is looked at again, which decides: a heartbeat comes before that, which revives one whose flow control was
/// answered in vain.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Watches one consumer until dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stalled: Arc<Notify>,
    task: AbortHandle,
}

impl Watchdog {
    /// Watches `consumer` of `stream`. `read`: how many of the consumer's messages its reader has read.
    pub(crate) fn start(bus: &Bus, stream: &str, consumer: &str, read: Arc<AtomicU64>) -> Self {
        let stalled = Arc::new(Notify::new());
        let tell = stalled.clone();
        let (bus, stream, consumer) = (bus.clone(), stream.to_owned(), consumer.to_owned());
        let looking = async move {
            let mut before: Option<u64> = None;
            loop {
                tokio::time::sleep(if before.is_some() { LOOK_AGAIN } else { jittered(LOOK) }).await;
                before = match info(&bus, &stream, &consumer).await {
                    Ok(info) => {
                        let now = standing(info.num_pending, info.delivered.consumer_sequence, read.load(Ordering::Relaxed));
                        if now.is_some() && now == before {
                            tracing::warn!(stream, consumer, pending = info.num_pending, "a consumer stands still, making another");
                            return tell.notify_one();
                        }
                        now
                    }
                    Err(BusError::Missing { .. }) => return tell.notify_one(),
                    Err(_) => None,
                };
            }
        };
        Self { stalled, task: tokio::spawn(looking).abort_handle() }
    }

    /// Waits for a stall. Cancel-safe.
    pub(crate) async fn stalled(&self) {
        self.stalled.notified().await;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the broker knows about a consumer.
pub(crate) async fn info(bus: &Bus, stream: &str, consumer: &str) -> Result<Info, BusError> {
    bus.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &serde_json::Map::new(), consumer).await
}

/// Where a consumer stands that has more to deliver, while all that it delivered is read; `None`: it owes nothing, or its reader is
/// behind. Twice the same place in a row is a stall.
pub(crate) fn standing(pending: u64, delivered: u64, read: u64) -> Option<u64> {
    (pending > 0 && delivered <= read).then_some(delivered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_owes_something_and_has_a_reader_that_waits_stands_still() {
        assert_eq!(standing(3, 7, 7), Some(7));
        assert_eq!(standing(0, 7, 7), None, "nothing to deliver");
        assert_eq!(standing(3, 9, 7), None, "its reader is behind");
        assert_eq!(standing(1, 0, 0), Some(0), "it never began");
    }
}
