//! Atomic batches (JetStream's `allow_atomic`): all messages are stored, next to each other and in order, or none.

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;

use crate::{
    Bus, BusError, REQUEST_LIMIT,
    connection::{check_size, read_answer},
    provision::unique,
};

/// Header of compare-and-swap.
pub(crate) const EXPECTED_REVISION: &str = "Nats-Expected-Last-Subject-Sequence";
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// The broker's limit of messages in a batch.
pub(crate) const BATCH_MESSAGES_MAX: usize = 1000;

/// One message of a batch.
#[derive(Debug, Clone)]
pub(crate) struct BatchMessage {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

/// Whether a stored message belongs to a batch of which more follows: the broker stores it all at once, but delivers one by one and may
/// say of each that nothing is pending.
pub(crate) fn is_open(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|h| h.get(BATCH_ID).is_some() && h.get(BATCH_COMMIT).is_none())
}

/// JetStream's acknowledgement.
#[derive(Debug, Deserialize)]
pub(crate) struct PubAck {
    #[serde(default)]
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

/// Stores all messages or none; their sequences, in order. `what` names the store in errors.
pub(crate) async fn commit(bus: &Bus, messages: Vec<BatchMessage>, what: &str) -> Result<Vec<u64>, BusError> {
    if messages.len() > BATCH_MESSAGES_MAX {
        return Err(BusError::TooLarge { bytes: messages.len(), max: BATCH_MESSAGES_MAX });
    }
    for message in &messages {
        check_size(message.payload.len())?;
    }
    let count = messages.len() as u64;
    let id = unique(bus);
    let mut rest = messages.into_iter().zip(1_u64..).peekable();
    while let Some((mut message, number)) = rest.next() {
        message.headers.insert(BATCH_ID, id.as_str());
        message.headers.insert(BATCH_SEQUENCE, number.to_string());
        if rest.peek().is_some() {
            let sent = bus.inner.client.publish_with_headers(message.subject.clone(), message.headers, message.payload);
            let sent = async { sent.await.map_err(|e| BusError::Client(e.to_string())) };
            bus.limited(what, &message.subject, REQUEST_LIMIT, sent).await?;
            continue;
        }
        message.headers.insert(BATCH_COMMIT, "1");
        let answer = bus.request_raw(&message.subject, Some(message.headers), message.payload, REQUEST_LIMIT).await;
        let answer = answer.map_err(|e| e.or_missing(what))?;
        let last = read_answer::<PubAck>(&answer.payload, what)?.seq;
        return Ok((last.saturating_sub(count) + 1..=last).collect());
    }
    Ok(Vec::new())
}
