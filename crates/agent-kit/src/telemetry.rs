//! Logs and spans. Logs are structured lines on stderr. A span is written when its outcome is known, from recorded instants and with
//! computed ids (`flows.md`, Traces), so nothing here opens or enters one. Spans go to an OTLP collector from a thread of their own, in
//! batches, through a bounded queue that drops and counts: a slow or dead collector is never waited for.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, Key, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{Link, SpanContext, Status, TraceState},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::EnvFilter;

use crate::{AgentConfig, Metrics};

pub use opentelemetry::trace::SpanKind;

/// Spans waiting for the exporter; a boot of 77 components makes about a thousand.
pub const QUEUE_SPANS_MAX: usize = 8192;
/// Most spans in one request: 433 bytes each, well under any collector's limit.
const BATCH_SPANS_MAX: usize = 512;
/// A batch that is not full waits so long for more.
const BATCH_DELAY: Duration = Duration::from_millis(500);
/// The end of a process waits no longer than this for a collector.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// A collector that does not answer in this time has lost the batch.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// A span, told after its end.
#[derive(Debug, Clone)]
pub struct SpanRecord {
    /// Trace, computed from mission or incident.
    pub trace_id: [u8; 16],
    /// Span, computed from what it is about: told twice, it is the same span.
    pub span_id: [u8; 8],
    /// Span above it.
    pub parent: Option<[u8; 8]>,
    /// Name; never with an id in it.
    pub name: Cow<'static, str>,
    /// Kind.
    pub kind: SpanKind,
    /// Begin.
    pub start: SystemTime,
    /// End.
    pub end: SystemTime,
    /// Attributes; u64 as i64.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong; none: it went well.
    pub error: Option<String>,
    /// Spans that caused it without being above it: (trace, span).
    pub links: Vec<([u8; 16], [u8; 8])>,
}

impl SpanRecord {
    /// An internal span without attributes.
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], name: impl Into<Cow<'static, str>>, start: SystemTime, end: SystemTime) -> Self {
        Self {
            trace_id,
            span_id,
            parent: None,
            name: name.into(),
            kind: SpanKind::Internal,
            start,
            end,
            attributes: Vec::new(),
            error: None,
            links: Vec::new(),
        }
    }

    /// Under `parent`.
    #[must_use]
    pub fn under(mut self, parent: [u8; 8]) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Of another kind.
    #[must_use]
    pub fn kind(mut self, kind: SpanKind) -> Self {
        self.kind = kind;
        self
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((key, value.into()));
        self
    }

    /// Failed, if there is a reason.
    #[must_use]
    pub fn error(mut self, error: Option<String>) -> Self {
        self.error = error;
        self
    }
}

/// A message on its way, for the two spans of it: that of who sends it and that of who acts on it.
#[derive(Debug, Clone)]
pub struct Hop {
    operation: &'static str,
    kind: SpanKind,
    template: String,
    destination: String,
}

impl Hop {
    /// Sent to `destination` (empty: to several that the template stands for).
    #[must_use]
    pub fn sent(template: String, destination: String) -> Self {
        Self { operation: "send", kind: SpanKind::Producer, template, destination }
    }

    /// Acted on, as it came from `destination`.
    #[must_use]
    pub fn processed(template: String, destination: String) -> Self {
        Self { operation: "process", kind: SpanKind::Consumer, template, destination }
    }

    /// Its span, named `{operation} {template}`, with the attributes of messaging.
    #[must_use]
    pub fn span(self, trace_id: [u8; 16], span_id: [u8; 8], start: SystemTime, end: SystemTime) -> SpanRecord {
        let name = format!("{} {}", self.operation, self.template);
        let span = SpanRecord::new(trace_id, span_id, name, start, end.max(start))
            .kind(self.kind)
            .with("messaging.system", "nats")
            .with("messaging.operation.name", self.operation)
            .with("messaging.operation.type", self.operation)
            .with("messaging.destination.template", self.template);
        if self.destination.is_empty() { span } else { span.with("messaging.destination.name", self.destination) }
    }
}

/// Where spans are told. Clones share the queue. Without a collector it does nothing.
#[derive(Debug, Clone)]
pub struct Spans {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    /// Taken out at the end, so that the thread ends.
    queue: Mutex<Option<SyncSender<SpanData>>>,
    ended: Mutex<Option<Receiver<()>>>,
    dropped: Counter,
    /// `service.name`, and the rest that is the same for every span: some backends drop the resource.
    common: Vec<KeyValue>,
    scope: InstrumentationScope,
}

impl Spans {
    /// Tells nobody.
    #[must_use]
    pub fn off() -> Self {
        Self { shared: None }
    }

    /// Spans of agent `kind`, to the collector that the `OTEL_*` variables name; off, without a thread, when they name none.
    #[must_use]
    pub fn from_env(kind: &str, version: &str, replica: &str, metrics: &Metrics) -> Self {
        let Some(protocol) = wanted(|name| std::env::var(name).ok().filter(|v| !v.is_empty())) else { return Self::off() };
        let service = format!("razar-{kind}");
        let attributes = [
            KeyValue::new("service.instance.id", replica.to_owned()),
            KeyValue::new("service.version", version.to_owned()),
            KeyValue::new("service.namespace", "razar"),
        ];
        let resource = Resource::builder().with_service_name(service.clone()).with_attributes(attributes).build();
        let dropped = metrics.counter("spans_dropped", "Spans dropped because the queue to the collector was full");
        let failed = metrics.counter("spans_lost", "Spans that the collector did not take");
        let (queue, spans) = sync_channel(QUEUE_SPANS_MAX);
        let (end, ended) = sync_channel(1);
        let thread = std::thread::Builder::new().name("spans".to_owned());
        let started = thread.spawn(move || {
            export(&spans, protocol, &resource, &failed);
            let _ = end.try_send(());
        });
        if let Err(error) = started {
            tracing::error!(%error, "no thread for spans; they are off");
            return Self::off();
        }
        let shared = Shared {
            queue: Mutex::new(Some(queue)),
            ended: Mutex::new(Some(ended)),
            dropped,
            common: vec![KeyValue::new("service.name", service), KeyValue::new("service.instance.id", replica.to_owned())],
            scope: InstrumentationScope::builder("razar").with_version(version.to_owned()).build(),
        };
        Self { shared: Some(Arc::new(shared)) }
    }

    /// Whether anybody listens: spare the work when not.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Tells a span. Never waits.
    pub fn record(&self, record: SpanRecord) {
        let Some(shared) = &self.shared else { return };
        let span = shared.data(record);
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|queue| queue.try_send(span).is_err()) {
            shared.dropped.inc();
        }
    }

    /// Sends what is left, for at most [`SHUTDOWN_LIMIT`]; whether all was sent. Later spans are dropped.
    pub async fn shutdown(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        shared.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(ended) = shared.ended.lock().unwrap_or_else(PoisonError::into_inner).take() else { return true };
        tokio::task::spawn_blocking(move || ended.recv_timeout(SHUTDOWN_LIMIT).is_ok()).await.unwrap_or(false)
    }
}

impl Shared {
    fn data(&self, record: SpanRecord) -> SpanData {
        let context = |trace: [u8; 16], span: [u8; 8]| {
            let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
            SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
        };
        let mut attributes: Vec<KeyValue> = self.common.clone();
        attributes.extend(record.attributes.into_iter().map(|(key, value)| KeyValue::new(Key::from_static_str(key), value)));
        let mut links = SpanLinks::default();
        links.links = record.links.into_iter().map(|(trace, span)| Link::with_context(context(trace, span))).collect();
        SpanData {
            span_context: context(record.trace_id, record.span_id),
            parent_span_id: record.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: false,
            span_kind: record.kind,
            name: record.name,
            start_time: record.start,
            end_time: record.end.max(record.start),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: record.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// Protocol to the collector, if one is wanted.
fn wanted(env: impl Fn(&str) -> Option<String>) -> Option<Protocol> {
    if env("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) || env("OTEL_TRACES_EXPORTER").as_deref() == Some("none") {
        return None;
    }
    env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
    let protocol = env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| env("OTEL_EXPORTER_OTLP_PROTOCOL"));
    Some(if protocol.as_deref() == Some("grpc") { Protocol::Grpc } else { Protocol::HttpBinary })
}

/// Sends batches until the queue is closed and empty.
fn export(spans: &Receiver<SpanData>, protocol: Protocol, resource: &Resource, failed: &Counter) {
    let Some(mut line) = Line::open(protocol) else { return };
    line.exporter.set_resource(resource);
    while let Some(batch) = gather(spans) {
        let count = u64::try_from(batch.len()).unwrap_or(0);
        if let Err(why) = line.send(batch) {
            failed.inc_by(count);
            tracing::debug!(why, count, "the collector did not take spans");
        }
    }
}

/// The next batch; `None`: the queue is closed and empty.
fn gather(spans: &Receiver<SpanData>) -> Option<Vec<SpanData>> {
    let mut batch = vec![spans.recv().ok()?];
    let until = Instant::now() + BATCH_DELAY;
    while batch.len() < BATCH_SPANS_MAX {
        match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(span),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

/// The exporter with what drives it: gRPC needs a runtime, the blocking HTTP client must not be in one.
struct Line {
    exporter: SpanExporter,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Line {
    fn open(protocol: Protocol) -> Option<Self> {
        let grpc = matches!(protocol, Protocol::Grpc);
        let runtime = if grpc { tokio::runtime::Builder::new_current_thread().enable_all().build().ok() } else { None };
        let built = {
            let _inside = runtime.as_ref().map(tokio::runtime::Runtime::enter);
            if grpc {
                SpanExporter::builder().with_tonic().with_timeout(EXPORT_LIMIT).build()
            } else {
                SpanExporter::builder().with_http().with_protocol(protocol).with_timeout(EXPORT_LIMIT).build()
            }
        };
        match built {
            Ok(exporter) => Some(Self { exporter, runtime }),
            Err(error) => {
                tracing::error!(%error, "spans cannot be exported; they are off");
                None
            }
        }
    }

    fn send(&self, batch: Vec<SpanData>) -> Result<(), String> {
        let sending = self.exporter.export(batch);
        match &self.runtime {
            Some(runtime) => {
                let limited = runtime.block_on(async { tokio::time::timeout(EXPORT_LIMIT, sending).await });
                limited.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())
            }
            None => futures::executor::block_on(sending).map_err(|e| e.to_string()),
        }
    }
}

/// Starts the logs of the process; a second call changes nothing.
pub fn start_logs(config: &AgentConfig) {
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // A line that cannot be written (stderr is a file, and its disk is full) is lost; told on stderr, as is the default, it would be
    // a panic.
    let lines = lines.log_internal_errors(false);
    let _ = if config.log_json { lines.json().flatten_event(true).try_init() } else { lines.compact().with_ansi(false).try_init() };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn spans_are_off_unless_a_collector_is_named() {
        assert!(wanted(env(&[])).is_none());
        assert!(wanted(env(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")])).is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert!(matches!(wanted(env(&[endpoint])), Some(Protocol::HttpBinary)));
        assert!(matches!(wanted(env(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")])), Some(Protocol::Grpc)));
        assert!(wanted(env(&[endpoint, ("OTEL_SDK_DISABLED", "true")])).is_none());
        assert!(wanted(env(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")])).is_none());
    }
}
