//! An OTLP collector in the test's own process: what real collectors do with kinds and resources varies, what arrives does not.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::span::SpanKind,
};
use prost::Message as _;

/// Largest request that is read.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// `service.name` of its resource.
    pub service: String,
    /// Trace, in hex.
    pub trace: String,
    /// Id, in hex.
    pub id: String,
    /// Parent, in hex; empty: a root.
    pub parent: String,
    /// Name.
    pub name: String,
    /// PRODUCER.
    pub sends: bool,
    /// CONSUMER.
    pub processes: bool,
    /// Begin and end, in nanoseconds of the epoch.
    pub time: (u64, u64),
    /// Attributes that are text.
    pub attributes: BTreeMap<String, String>,
}

/// A collector that keeps all it gets.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Arrived>>>,
}

impl Collector {
    /// Listens on a free port of the loopback, as long as the process lives.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (endpoint, spans) = (format!("http://{}", listener.local_addr()?), Arc::new(Mutex::new(Vec::new())));
        let kept = spans.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                thread::spawn(move || serve(stream, &kept));
            }
        });
        Ok(Self { endpoint, spans })
    }

    /// Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Every span so far, each id once.
    #[must_use]
    pub fn spans(&self) -> Vec<Arrived> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        spans.sort_by(|a, b| (&a.trace, &a.id).cmp(&(&b.trace, &b.id)));
        spans.dedup_by(|a, b| (&a.trace, &a.id) == (&b.trace, &b.id));
        spans
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Arrived>>) {
    let Ok(mut answers) = stream.try_clone() else { return };
    let mut requests = BufReader::new(stream);
    while let Ok(Some(body)) = body(&mut requests) {
        if let Ok(request) = ExportTraceServiceRequest::decode(body.as_slice()) {
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(arrived(request));
        }
        if answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

/// The body of the next request; `None`: the connection has ended.
fn body(requests: &mut BufReader<TcpStream>) -> Result<Option<Vec<u8>>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if requests.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().context("a length is a number")?.min(BODY_BYTES_MAX);
        }
    }
    let mut body = vec![0; length];
    requests.read_exact(&mut body)?;
    Ok(Some(body))
}

fn arrived(request: ExportTraceServiceRequest) -> Vec<Arrived> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = |value: Option<Value>| if let Some(Value::StringValue(text)) = value { Some(text) } else { None };
    let mut all = Vec::new();
    for resource in request.resource_spans {
        let mut of = resource.resource.map(|r| r.attributes).unwrap_or_default().into_iter();
        let service = of.find(|a| a.key == "service.name").and_then(|a| text(a.value?.value)).unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
            all.push(Arrived {
                service: service.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                sends: span.kind() == SpanKind::Producer,
                processes: span.kind() == SpanKind::Consumer,
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: span.attributes.into_iter().filter_map(|a| Some((a.key, text(a.value?.value)?))).collect(),
                name: span.name,
            });
        }
    }
    all
}
