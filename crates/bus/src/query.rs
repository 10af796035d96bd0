//! Questions that change nothing: asked by request, answered by any replica as an endpoint of a NATS micro service, so that
//! `nats micro ls|info|stats` shows the mesh. Protobuf, or its JSON mapping when the question came as JSON.

use std::time::Duration;

use async_nats::service::{Request, Service, ServiceExt, endpoint::Endpoint};
use bytes::Bytes;
use futures::{StreamExt, stream::SelectAll};
use prost::{Message, Name};
use razar_bus_schema::json;

use crate::{Bus, BusError, REQUEST_LIMIT, TRACEPARENT, connection::SENT_BYTES_MAX};

/// Answers of a service; drop it to stop answering.
pub struct QueryServer {
    /// Keeps the service registered.
    service: Option<Service>,
    requests: SelectAll<futures::stream::BoxStream<'static, (&'static str, Request)>>,
    bus: Bus,
}

impl std::fmt::Debug for QueryServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryServer").finish_non_exhaustive()
    }
}

/// A question.
#[derive(Debug)]
pub struct Query {
    /// Verb, as the endpoint was named.
    pub verb: &'static str,
    /// Header `traceparent`; empty: none.
    pub traceparent: String,
    payload: Bytes,
    request: Request,
    bus: Bus,
}

impl Bus {
    /// Registers the micro service `name` of `version` (semantic) with `endpoints` (verb, subject), and serves them.
    ///
    /// # Errors
    /// When name, version or a subject is malformed, or the client's buffer stays full while the bus is down.
    pub async fn serve(
        &self,
        name: &str,
        version: &str,
        description: &str,
        endpoints: &[(&'static str, String)],
    ) -> Result<QueryServer, BusError> {
        let serve = async {
            let builder = self.inner.client.service_builder().description(description);
            let service = builder.start(name, version).await.map_err(|e| BusError::Config(e.to_string()))?;
            let mut requests = SelectAll::new();
            for (verb, subject) in endpoints {
                let verb = *verb;
                let endpoint: Endpoint =
                    service.endpoint_builder().name(verb).add(subject).await.map_err(|e| BusError::Config(e.to_string()))?;
                requests.push(endpoint.map(move |request| (verb, request)).boxed());
            }
            Ok(QueryServer { service: Some(service), requests, bus: self.clone() })
        };
        let late = |_| BusError::Timeout { what: format!("registering the service {name}"), after: REQUEST_LIMIT };
        tokio::time::timeout(REQUEST_LIMIT, serve).await.map_err(late)?
    }

    /// Asks, and waits for one answer.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] at once when nobody listens; [`BusError::Timeout`]; [`BusError::Malformed`] for an answer that is none;
    /// [`BusError::Broker`] with the answerer's words when it refuses.
    pub async fn ask<Req: Message, Rep: Message + Default>(&self, subject: &str, request: &Req, limit: Duration) -> Result<Rep, BusError> {
        let answer = self.request_raw(subject, None, request.encode_to_vec().into(), limit).await?;
        let header = |name: &str| answer.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
        if let Some(why) = header("Nats-Service-Error") {
            let code = header("Nats-Service-Error-Code").and_then(|c| c.parse().ok()).unwrap_or(0);
            return Err(BusError::Broker { code, why });
        }
        Rep::decode(answer.payload).map_err(|e| BusError::Malformed { what: format!("the answer on {subject}"), why: e.to_string() })
    }
}

impl QueryServer {
    /// The next question. Cancel-safe. `None` only when this process has closed the bus or the server was stopped.
    pub async fn next(&mut self) -> Option<Query> {
        let (verb, request) = self.requests.next().await?;
        let traceparent = request.message.headers.as_ref().and_then(|h| h.get(TRACEPARENT)).map(|v| v.as_str().to_owned());
        let payload = request.message.payload.clone();
        Some(Query { verb, traceparent: traceparent.unwrap_or_default(), payload, request, bus: self.bus.clone() })
    }

    /// Stops the intake; what was asked before may still be answered.
    pub async fn stop(&mut self) {
        if let Some(service) = self.service.take() {
            let _ = tokio::time::timeout(REQUEST_LIMIT, service.stop()).await;
        }
    }
}

impl Query {
    /// Reads the question, protobuf or JSON; an empty payload is the default message.
    ///
    /// # Errors
    /// When it is neither; answer with [`Query::refuse`].
    pub fn read<Req: Message + Name + Default>(&self) -> Result<Req, BusError> {
        json::from_payload(&self.payload).map_err(|e| {
            self.bus.count_dead_letter();
            BusError::Malformed { what: self.request.message.subject.to_string(), why: e.to_string() }
        })
    }

    /// Answers, in the form of the question.
    ///
    /// # Errors
    /// When the bus is down or the answer is above 256 KiB (the asker is then told so).
    pub async fn answer<Rep: Message + Name>(&self, reply: &Rep) -> Result<(), BusError> {
        let bytes = if self.payload.first() == Some(&b'{') {
            let text = json::to_json(reply).map_err(|e| BusError::Malformed { what: Rep::full_name(), why: e.to_string() })?;
            Bytes::from(text)
        } else {
            Bytes::from(reply.encode_to_vec())
        };
        if bytes.len() > SENT_BYTES_MAX {
            self.refuse(413, "the answer is larger than a message may be").await?;
            return Err(BusError::TooLarge { bytes: bytes.len(), max: SENT_BYTES_MAX });
        }
        self.send(Ok(bytes)).await
    }

    /// Refuses with a code as HTTP has them and a sentence.
    ///
    /// # Errors
    /// When the bus is down.
    pub async fn refuse(&self, code: u16, why: &str) -> Result<(), BusError> {
        self.send(Err(async_nats::service::error::Error { status: why.to_owned(), code: usize::from(code) })).await
    }

    async fn send(&self, response: Result<Bytes, async_nats::service::error::Error>) -> Result<(), BusError> {
        let op = async { self.request.respond(response).await.map_err(|e| BusError::Client(e.to_string())) };
        self.bus.limited(self.verb, "", REQUEST_LIMIT, op).await
    }
}
