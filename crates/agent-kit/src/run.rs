//! The life of a process, from its configuration to its exit code. Agents give the middle: a future that ends when asked to.

use std::{
    error::Error,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use razar_bus::{Bus, Connection};
use razar_bus_schema::v1::{self, event::Fact};
use serde::de::DeserializeOwned;

use crate::{
    AgentConfig, Health, LoopTicker, Metrics, Shutdown, Spans, config,
    event::mesh_event,
    health::BUS,
    heartbeat::{Beating, beat},
    http, telemetry,
};

/// Exit code of a wrong configuration (sysexits' `EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;
/// Exit code of a failed start, and of an agent that gives up.
pub const EXIT_FAILURE: u8 = 1;
/// The bus is closed within this time at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two tries to tell of the start.
const ANNOUNCE_RETRY: Duration = Duration::from_secs(1);

/// What a running agent has.
#[derive(Debug)]
pub struct Agent<T> {
    /// Kind (`orchestrator`).
    pub kind: &'static str,
    /// Version.
    pub version: &'static str,
    /// Configuration.
    pub config: AgentConfig,
    /// The agent's own settings.
    pub settings: T,
    /// The bus; connecting goes on in the background.
    pub bus: Bus,
    /// Where spans are told.
    pub spans: Spans,
    /// Numbers.
    pub metrics: Metrics,
    /// Health; release [`crate::health::STARTING`] when the start is done.
    pub health: Health,
    /// To be ticked by the loop, at least each second.
    pub ticker: LoopTicker,
    /// The request to end.
    pub shutdown: Shutdown,
    /// Address of `/healthz`, `/readyz` and `/metrics`; none for a one-shot.
    pub http: Option<SocketAddr>,
    /// When this process began, which tells its `agent_started` from that of the one before.
    pub began: SystemTime,
}

/// An error of any kind, with its chain.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// Runs an agent: configuration, logs, spans, bus, health endpoint, then `main` until it returns, then the drain. On a single-threaded
/// runtime. 64: wrong configuration; 1: failed start, or `main` failed; 0: else.
pub fn run<T, F, Fut, E>(kind: &'static str, version: &'static str, main: F) -> ExitCode
where
    T: DeserializeOwned + Default,
    F: FnOnce(Agent<T>) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Into<AnyError>,
{
    live(kind, version, true, main)
}

/// As [`run`], for a process that does one thing and ends: no health endpoint.
pub fn run_once<T, F, Fut, E>(kind: &'static str, version: &'static str, main: F) -> ExitCode
where
    T: DeserializeOwned + Default,
    F: FnOnce(Agent<T>) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Into<AnyError>,
{
    live(kind, version, false, main)
}

fn live<T, F, Fut, E>(kind: &'static str, version: &'static str, serves: bool, main: F) -> ExitCode
where
    T: DeserializeOwned + Default,
    F: FnOnce(Agent<T>) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Into<AnyError>,
{
    let (config, settings) = match config::load::<T>(kind) {
        Ok(loaded) => loaded,
        Err(error) => return wrong_configuration(kind, &error),
    };
    telemetry::start_logs(&config);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(kind, &error),
    };
    let code = runtime.block_on(async {
        let agent = match start(kind, version, config, settings, serves).await {
            Ok(agent) => agent,
            Err(StartError::Config(error)) => return wrong_configuration(kind, &error),
            Err(StartError::Io(error)) => return failed(kind, &error),
        };
        let (bus, spans) = (agent.bus.clone(), agent.spans.clone());
        let ended = main(agent).await.map_err(Into::into);
        // In this order: what the drain publishes is sent, and what it tells is exported.
        bus.close(CLOSE_LIMIT).await;
        if !spans.shutdown().await {
            tracing::warn!("the collector did not take the last spans in time");
        }
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(kind, error.as_ref()),
        }
    });
    // A thread that waits for a dead collector or a slow disk does not hold the exit.
    runtime.shutdown_background();
    code
}

enum StartError {
    Config(razar_bus::BusError),
    Io(std::io::Error),
}

async fn start<T>(
    kind: &'static str,
    version: &'static str,
    config: AgentConfig,
    settings: T,
    serves: bool,
) -> Result<Agent<T>, StartError> {
    let shutdown = Shutdown::on_signals().map_err(StartError::Io)?;
    let metrics = Metrics::new();
    let spans = Spans::from_env(kind, version, &config.replica, &metrics);
    let ticker = LoopTicker::new();
    let health = Health::new(ticker.clone());
    let bus = Bus::connect(razar_bus::Config {
        servers: config.servers.clone(),
        mesh: config.mesh.clone(),
        name: config.replica.clone(),
        credentials: config.credentials.clone(),
    });
    let bus = bus.await.map_err(StartError::Config)?;
    watch_bus(&bus, health.clone());
    register(&bus, &metrics);
    let http = if serves { Some(http::serve(config.http, health.clone(), metrics.clone()).await.map_err(StartError::Io)?) } else { None };
    tracing::info!(kind, version, replica = config.replica, http = http.map(|a| a.to_string()), spans = spans.is_on(), "started");
    Ok(Agent { kind, version, config, settings, bus, spans, metrics, health, ticker, shutdown, http, began: SystemTime::now() })
}

impl<T> Agent<T> {
    /// Beats as `agent`, until the handle is dropped.
    #[must_use]
    pub fn beat(&self) -> Beating {
        beat(&self.bus, self.kind, self.config.replica.clone(), self.ticker.clone())
    }

    /// Tells `agent_started`, in the background, as soon as the bus takes it. Each process tells its own, and always the same one.
    pub fn announce(&self) {
        self.announce_by("");
    }

    /// Tells it to EVENTS that were made anew: an event of its own in each stream, since the verdicts that follow are named after it, and a late
    /// copy of one from the stream before would be taken for one that is told already.
    pub(crate) fn announce_in(&self, epoch: &str) {
        self.announce_by(&format!(":{epoch}"));
    }

    fn announce_by(&self, epoch: &str) {
        let fact = Fact::AgentStarted(v1::AgentStarted {
            kind: self.kind.to_owned(),
            id: self.config.replica.clone(),
            version: self.version.to_owned(),
            http: self.http.map(|a| a.to_string()).unwrap_or_default(),
        });
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let cause = format!("{}:{began}{epoch}", self.config.replica);
        let event = mesh_event(&self.config.mesh, self.kind, &self.config.replica, fact, &cause, SystemTime::now());
        let (bus, mut shutdown) = (self.bus.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            while let Err(error) = bus.publish_event(&event, "").await {
                tracing::debug!(%error, "cannot tell of the start yet");
                tokio::select! {
                    () = tokio::time::sleep(ANNOUNCE_RETRY) => {}
                    () = shutdown.asked() => return,
                }
            }
        });
    }
}

/// `/readyz` says when the bus is away.
fn watch_bus(bus: &Bus, health: Health) {
    let mut connection = bus.connection();
    tokio::spawn(async move {
        loop {
            let why = match &*connection.borrow_and_update() {
                Connection::Up { .. } => None,
                Connection::Down { .. } => Some("the bus is away".to_owned()),
                Connection::Refused { why, .. } => Some(why.to_string()),
            };
            health.set(BUS, why);
            if connection.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The bus's counts as metrics, read when they are asked for.
fn register(bus: &Bus, metrics: &Metrics) {
    metrics.register(|registry| registry.register_collector(Box::new(BusNumbers(bus.clone()))));
}

#[derive(Debug)]
struct BusNumbers(Bus);

impl prometheus_client::collector::Collector for BusNumbers {
    fn encode(&self, mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::{
            encoding::EncodeMetric,
            metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
        };
        let counts = self.0.statistics();
        let counters = [
            ("bus_reconnects", "Connections to the bus made after the first", counts.reconnects),
            ("bus_denials", "Operations that the broker forbade", counts.denials),
            ("bus_timeouts", "Operations on the bus without an answer in time", counts.timeouts),
            ("bus_dropped_messages", "Messages dropped by a full subscription", counts.dropped),
            ("bus_dead_letters", "Messages that could not be read", counts.dead_letters),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let up = ConstGauge::new(i64::from(self.0.is_up()));
        up.encode(encoder.encode_descriptor("bus_up", "Whether the bus is connected", None, MetricType::Gauge)?)
    }
}

fn wrong_configuration(kind: &str, error: &dyn Error) -> ExitCode {
    eprintln!("razar-{kind}: {}", chain(error));
    ExitCode::from(EXIT_CONFIG)
}

fn failed(kind: &str, error: &(dyn Error + 'static)) -> ExitCode {
    let chain = chain(error);
    tracing::error!(error = chain, "ended by an error");
    eprintln!("razar-{kind}: {chain}");
    ExitCode::from(EXIT_FAILURE)
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
