//! Asking a component how it is: one question, one answer, inside its timeout. HTTP, TCP, exec and gRPC health.
//! When to ask, and what answers in a row mean, is the policy's; log lines, sd_notify and heartbeats are not asked for but arrive.

mod exec;
mod grpc;
mod http;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use razar_bus_schema::v1::{Probe, probe::Check};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Exec probes at once: each is a process, and 77 of them would starve what they ask about.
pub const EXEC_PROBES_MAX: usize = 16;
/// Most bytes of an answer that are read.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Longest detail in an answer, in bytes.
const DETAIL_BYTES_MAX: usize = 256;
/// Where a check names no host.
const HOST_DEFAULT: &str = "127.0.0.1";
/// Where a probe names no timeout.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// What became of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It answered well.
    Passed,
    /// It answered badly.
    Failed,
    /// Nobody listens: cheap to ask again soon while it starts.
    Refused,
    /// No answer in time.
    TimedOut,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What became of the question.
    pub outcome: Outcome,
    /// For people: `http 200 in 4ms`. No header values, no secrets, no control characters.
    pub detail: String,
    /// Time from question to answer (waiting for a slot of the exec probes not included).
    pub took: Duration,
}

impl Answer {
    /// Whether it answered well.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed
    }
}

/// What a probe needs besides its check: the component's own surroundings.
#[derive(Debug, Clone, Default)]
pub struct ProbeContext {
    /// Whole environment of an exec probe: the component's.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory of an exec probe: the component's, absolute.
    pub working_dir: PathBuf,
}

/// Asks; cheap to clone, all clones share the bound of exec probes.
#[derive(Debug, Clone)]
pub struct Prober {
    exec_slots: Arc<Semaphore>,
}

impl Default for Prober {
    fn default() -> Self {
        Self::new()
    }
}

/// What a check found, before its time is told.
struct Finding {
    outcome: Outcome,
    what: String,
}

impl Finding {
    fn new(outcome: Outcome, what: impl Into<String>) -> Self {
        Self { outcome, what: what.into() }
    }

    fn of_error(check: &str, error: &io::Error) -> Self {
        let outcome = if error.kind() == io::ErrorKind::ConnectionRefused { Outcome::Refused } else { Outcome::Failed };
        let what = if outcome == Outcome::Refused { "connection refused".to_owned() } else { error.to_string() };
        Self { outcome, what: format!("{check}: {what}") }
    }
}

impl Prober {
    /// A prober.
    #[must_use]
    pub fn new() -> Self {
        Self { exec_slots: Arc::new(Semaphore::new(EXEC_PROBES_MAX)) }
    }

    /// Whether this probe is asked, and not fed by what the component says by itself.
    #[must_use]
    pub fn asks(probe: &Probe) -> bool {
        match probe.check {
            Some(Check::Http(_) | Check::Tcp(_) | Check::Exec(_) | Check::Grpc(_)) => true,
            Some(Check::Log(_) | Check::Notify(_) | Check::Heartbeat(_)) | None => false,
        }
    }

    /// Asks once and answers within the probe's timeout (1 s if it names none); an exec probe first waits for a slot. Cancel safe: dropped,
    /// it closes its connection, or kills and reaps its process.
    pub async fn run(&self, probe: &Probe, context: &ProbeContext) -> Answer {
        let timeout = probe.timeout.as_ref().and_then(|t| Duration::try_from(*t).ok()).filter(|t| !t.is_zero());
        let timeout = timeout.unwrap_or(TIMEOUT_DEFAULT);
        // The semaphore is never closed.
        let slot = if matches!(probe.check, Some(Check::Exec(_))) { Arc::clone(&self.exec_slots).acquire_owned().await.ok() } else { None };
        let asked = Instant::now();
        let (check, finding) = match &probe.check {
            Some(Check::Http(check)) => ("http", tokio::time::timeout(timeout, http::ask(check)).await),
            Some(Check::Tcp(check)) => ("tcp", tokio::time::timeout(timeout, tcp(&check.host, check.port)).await),
            Some(Check::Grpc(check)) => ("grpc", tokio::time::timeout(timeout, grpc::ask(check)).await),
            Some(Check::Exec(check)) => ("exec", Ok(exec::ask(check, context, timeout, slot).await)),
            Some(Check::Log(_) | Check::Notify(_) | Check::Heartbeat(_)) | None => {
                ("probe", Ok(Finding::new(Outcome::Failed, "this probe is not asked")))
            }
        };
        let took = asked.elapsed();
        let finding = finding.unwrap_or_else(|_| Finding::new(Outcome::TimedOut, format!("{check}: no answer")));
        let preposition = if finding.outcome == Outcome::TimedOut { "within" } else { "in" };
        let shown = if finding.outcome == Outcome::TimedOut { timeout } else { took };
        // What passed is told in words of our own; nothing else is so common.
        let own = finding.outcome == Outcome::Passed;
        let what = if own { finding.what } else { crate::logs::clean(finding.what.as_bytes(), DETAIL_BYTES_MAX) };
        let detail = format!("{what} {preposition} {}", in_ms(shown));
        Answer { outcome: finding.outcome, detail, took }
    }
}

fn in_ms(took: Duration) -> String {
    if took < Duration::from_millis(1) { "<1ms".to_owned() } else { format!("{}ms", took.as_millis()) }
}

async fn tcp(host: &str, port: u32) -> Finding {
    match connect(host, port).await {
        Ok(_) => Finding::new(Outcome::Passed, "tcp connected"),
        Err(error) => Finding::of_error("tcp", &error),
    }
}

/// Status and body of `GET http://127.0.0.1:<port><path>`; none: there is no answer.
pub(crate) async fn get(port: u32, path: &str) -> Option<(u16, String)> {
    http::get(port, path).await
}

/// A connection that leaves no TIME_WAIT behind: it is closed by a reset.
async fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let host = if host.is_empty() { HOST_DEFAULT } else { host };
    let port = u16::try_from(port).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{port} is no port")))?;
    let stream = match host.parse::<std::net::IpAddr>() {
        Ok(address) => TcpStream::connect((address, port)).await?,
        Err(_) => TcpStream::connect((host, port)).await?,
    };
    stream.set_zero_linger()?;
    Ok(stream)
}
