//! Core NATS for what may be lost: beats and followed log lines. At most once; a full queue drops its oldest message, so that the
//! newest sign of life is always there, and counts what it dropped.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Notify;

use crate::{
    Bus, BusError, REQUEST_LIMIT, TRACEPARENT,
    connection::{Counters, check_size},
};

/// A message of core NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreMessage {
    /// Subject.
    pub subject: String,
    /// Payload.
    pub payload: Bytes,
    /// Where an answer is expected, if one is.
    pub reply: Option<String>,
    /// Header `traceparent`; empty: none.
    pub traceparent: String,
}

impl Bus {
    /// Publishes at most once; nothing is kept while the bus is down. `traceparent`: empty for none.
    ///
    /// # Errors
    /// When the bus is down, the payload above 256 KiB, or the client's buffer stays full.
    pub async fn publish(&self, subject: &str, payload: Bytes, traceparent: &str) -> Result<(), BusError> {
        check_size(payload.len())?;
        let client = &self.inner.client;
        let op = async {
            if traceparent.is_empty() {
                return client.publish(subject.to_owned(), payload).await.map_err(|e| BusError::Client(e.to_string()));
            }
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, traceparent);
            client.publish_with_headers(subject.to_owned(), headers, payload).await.map_err(|e| BusError::Client(e.to_string()))
        };
        self.limited(subject, subject, REQUEST_LIMIT, op).await
    }

    /// Subscribes, also while the bus is down; holds at most `capacity` messages. It is in force once [`Bus::flush`] has returned.
    ///
    /// # Errors
    /// When the subject is malformed.
    pub async fn subscribe(&self, subject: &str, capacity: usize) -> Result<Subscription, BusError> {
        let subscribing = self.inner.client.subscribe(subject.to_owned());
        let subscribed = tokio::time::timeout(REQUEST_LIMIT, subscribing).await;
        let subscribed = subscribed.map_err(|_| BusError::Timeout { what: format!("subscribing to {subject}"), after: REQUEST_LIMIT })?;
        let mut subscriber = subscribed.map_err(|e| BusError::Client(e.to_string()))?;
        let queue = Arc::new(Queue { capacity: capacity.max(1), ..Queue::default() });
        let (filled, counters) = (queue.clone(), self.inner.counters.clone());
        let task = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                let traceparent = message.headers.as_ref().and_then(|h| h.get(TRACEPARENT)).map(|v| v.as_str().to_owned());
                filled.push(
                    CoreMessage {
                        subject: message.subject.to_string(),
                        payload: message.payload,
                        reply: message.reply.map(|r| r.to_string()),
                        traceparent: traceparent.unwrap_or_default(),
                    },
                    &counters,
                );
            }
            filled.end();
        });
        Ok(Subscription { queue, task: task.abort_handle() })
    }
}

#[derive(Debug, Default)]
struct Queue {
    capacity: usize,
    messages: Mutex<(VecDeque<CoreMessage>, bool)>,
    arrived: Notify,
    dropped: AtomicU64,
}

impl Queue {
    fn push(&self, message: CoreMessage, counters: &Counters) {
        {
            let mut guard = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            if guard.0.len() >= self.capacity {
                guard.0.pop_front();
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Counters::add(&counters.dropped);
            }
            guard.0.push_back(message);
        }
        self.arrived.notify_one();
    }

    fn end(&self) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.arrived.notify_one();
    }

    /// `Err`: ended.
    fn pop(&self) -> Result<Option<CoreMessage>, ()> {
        let mut guard = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        match guard.0.pop_front() {
            None if guard.1 => Err(()),
            message => Ok(message),
        }
    }
}

/// A bounded subscription; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    task: tokio::task::AbortHandle,
}

impl Subscription {
    /// The next message. Cancel-safe. `None` only when this process has closed the bus.
    pub async fn next(&mut self) -> Option<CoreMessage> {
        loop {
            match self.queue.pop() {
                Ok(Some(message)) => return Some(message),
                Ok(None) => self.queue.arrived.notified().await,
                Err(()) => return None,
            }
        }
    }

    /// A message that is here already; `None`: there is none at present.
    pub fn try_next(&mut self) -> Option<CoreMessage> {
        self.queue.pop().ok().flatten()
    }

    /// Messages dropped because the queue was full: an observer that dropped any was not current.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}
