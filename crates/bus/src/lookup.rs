//! Events looked up by subject and place: for whoever wants a few out of very many. A fold reads them all.

use std::time::SystemTime;

use async_nats::jetstream::stream::RawMessageErrorKind;
use prost::Message as _;
use razar_bus_schema::{stream::Store, v1};

use crate::{
    Bus, BusError, REQUEST_LIMIT,
    provision::{epoch_or_created, info},
};

/// What EVENTS holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventBounds {
    /// Epoch id of the stream.
    pub epoch: String,
    /// Oldest sequence.
    pub first: u64,
    /// Newest sequence; less than `first`: there is none.
    pub last: u64,
}

impl Bus {
    /// What EVENTS holds now.
    ///
    /// # Errors
    /// When the bus is down or the stream does not exist.
    pub async fn event_bounds(&self) -> Result<EventBounds, BusError> {
        let info = info(self, Store::Events).await?;
        Ok(EventBounds { epoch: epoch_or_created(&info), first: info.state.first_sequence, last: info.state.last_sequence })
    }

    /// The first event at or after `sequence` whose subject matches `pattern` after the mesh's `event` token, with its sequence and when it
    /// was stored; what is no event is passed over. `None`: there is none.
    ///
    /// # Errors
    /// When the bus is down or the stream does not exist.
    pub async fn next_event(&self, pattern: &str, mut sequence: u64) -> Result<Option<(u64, v1::Event, SystemTime)>, BusError> {
        let subject = self.subjects().events_matching(pattern);
        loop {
            let op = async {
                let stream = self.context().get_stream_no_info(self.stream_of(Store::Events)).await;
                let stream = stream.map_err(|e| BusError::Client(e.to_string()))?;
                match stream.get_first_raw_message_by_subject(&subject, sequence).await {
                    Ok(message) => Ok(Some(message)),
                    Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                    Err(e) => Err(BusError::Client(e.to_string())),
                }
            };
            let Some(message) = self.limited("an event", &subject, REQUEST_LIMIT, op).await? else { return Ok(None) };
            if let Ok(event) = v1::Event::decode(message.payload) {
                return Ok(Some((message.sequence, event, SystemTime::from(message.time))));
            }
            sequence = message.sequence + 1;
        }
    }
}
