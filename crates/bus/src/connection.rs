//! One connection to the broker: made without waiting for it, watched, and every operation on it limited in time.
//! What is sent over it lives in the other modules.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Request, ServerError, client::RequestErrorKind, jetstream};
use bytes::Bytes;
use razar_bus_schema::{PAYLOAD_BYTES_MAX, stream::Store, subject::Subjects};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::BusError;

/// Limit of each request, publish, acknowledgement and flush: far above a busy broker's slowest answer (0.2 s), below a person's patience.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Oldest server: older ones can lose acknowledged data even with `sync_interval: always`.
pub const SERVER_VERSION_MIN: &str = "2.15.1";
const SERVER_VERSION_MIN_PARTS: (u64, u64, u64) = (2, 15, 1);

/// The client's default finds a half-open link only after 179 s.
const PING_INTERVAL: Duration = Duration::from_millis(1500);
/// One try to connect: a broker on the same network answers in milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest pause between two tries to reconnect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// First pause between two tries; a restarted broker listens after 10–20 ms.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(10);
/// Largest payload sent: the broker counts headers too, and cuts off whoever sends more.
pub(crate) const SENT_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 1024;
/// Messages that one subscription holds before it drops new ones; ordered reads then read again, other loops count.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16_384;
/// Refusals in a row before the credentials count as refused: one may come from a broker that is just reloading.
const REFUSALS_BEFORE_REFUSED: u64 = 2;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses, `nats://[user:password@]host:port`, tried in random order; at least one. A name in one is used for all.
    pub servers: Vec<String>,
    /// Name of the mesh (root token of every subject).
    pub mesh: String,
    /// Name shown in the broker's list of connections.
    pub name: String,
    /// NATS credentials file; none: no authentication.
    pub credentials: Option<PathBuf>,
}

/// State of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Connected, to a server that is new enough.
    Up {
        /// Since when.
        since: Instant,
    },
    /// Not connected; the client tries on.
    Down {
        /// Since when.
        since: Instant,
    },
    /// The broker cannot be used: credentials refused again and again, or a server that is too old.
    Refused {
        /// Since when.
        since: Instant,
        /// Why.
        why: BusError,
    },
}

impl Connection {
    /// Whether it is [`Connection::Up`].
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// Counts since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections made after the first.
    pub reconnects: u64,
    /// Operations forbidden by the broker.
    pub denials: u64,
    /// Operations that ran into their limit.
    pub timeouts: u64,
    /// Messages dropped by a full subscription.
    pub dropped: u64,
    /// Messages that could not be read.
    pub dead_letters: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connects: AtomicU64,
    pub(crate) denials: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the broker forbade last, and how many times it forbade something.
#[derive(Debug, Clone, Default)]
struct Denial {
    subject: String,
    count: u64,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) subjects: Subjects,
    pub(crate) counters: Arc<Counters>,
    connection: watch::Receiver<Connection>,
    denial: watch::Receiver<Denial>,
    closed: watch::Receiver<bool>,
}

/// A handle to the bus; cloning it is cheap, all clones share the connection.
#[derive(Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("mesh", &self.mesh()).field("connection", &*self.inner.connection.borrow()).finish()
    }
}

impl Bus {
    /// Begins to connect and returns at once: a broker that is away is waited for in the background. See [`Bus::ready`].
    ///
    /// # Errors
    /// When the mesh's name, an address or the credentials file is wrong.
    pub async fn connect(config: Config) -> Result<Self, BusError> {
        let subjects = Subjects::new(&config.mesh).map_err(|e| BusError::Config(e.to_string()))?;
        let servers = config.servers.iter().map(|s| s.parse::<async_nats::ServerAddr>()).collect::<Result<Vec<_>, _>>();
        let servers = servers.map_err(|e| BusError::Config(format!("bad server address: {e}")))?;
        if servers.is_empty() {
            return Err(BusError::Config("no server address".to_owned()));
        }
        let now = Instant::now();
        let counters = Arc::new(Counters::default());
        let (connection_tx, connection) = watch::channel(Connection::Down { since: now });
        let (denial_tx, denial) = watch::channel(Denial::default());
        let (closed_tx, closed) = watch::channel(false);
        let server: Arc<OnceLock<Client>> = Arc::default();
        let watcher = Watcher {
            server: server.clone(),
            counters: counters.clone(),
            connection: connection_tx,
            denial: denial_tx,
            closed: closed_tx,
            refusals: AtomicU64::new(0),
        };
        let watcher = Arc::new(watcher);
        let noted = watcher.clone();
        let begun = AtomicBool::new(false);
        let mut options = ConnectOptions::new()
            .name(&config.name)
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_LIMIT)
            .request_timeout(Some(REQUEST_LIMIT))
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            // The very first try is made at once: nobody has lost anything yet.
            .reconnect_delay_callback(
                move |tries| if begun.swap(true, Ordering::Relaxed) { reconnect_delay(tries) } else { Duration::ZERO },
            )
            .event_callback(move |event| {
                let noted = noted.clone();
                async move { noted.note(event) }
            });
        // The library takes no account of a name in the address.
        let named = servers.iter().find_map(|s| Some((s.username()?.to_owned(), s.password().unwrap_or_default().to_owned())));
        if let Some((user, password)) = named {
            options = options.user_and_password(user, password);
        }
        if let Some(path) = &config.credentials {
            let bad = |e| BusError::Config(format!("credentials {}: {e}", path.display()));
            options = options.credentials_file(path).await.map_err(bad)?;
        }
        let client = options.connect(servers).await.map_err(|e| BusError::Config(e.to_string()))?;
        let _ = server.set(client.clone());
        watcher.check_again();
        Ok(Self { inner: Arc::new(Inner { client, subjects, counters, connection, denial, closed }) })
    }

    /// Waits until the bus is usable.
    ///
    /// # Errors
    /// When it is not within `limit`, or the broker refuses this agent or is too old (at once).
    pub async fn ready(&self, limit: Duration) -> Result<(), BusError> {
        let mut connection = self.connection();
        let usable = connection.wait_for(|c| !matches!(c, Connection::Down { .. }));
        match tokio::time::timeout(limit, usable).await {
            Err(_) => Err(BusError::Timeout { what: "connecting".to_owned(), after: limit }),
            Ok(Err(_)) => Err(BusError::Closed),
            Ok(Ok(state)) => match &*state {
                Connection::Refused { why, .. } => Err(why.clone()),
                Connection::Up { .. } | Connection::Down { .. } => Ok(()),
            },
        }
    }

    /// The state of the connection, and its changes.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.connection.clone()
    }

    /// Whether the bus is usable now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.inner.connection.borrow().is_up()
    }

    /// Subjects of the mesh.
    #[must_use]
    pub fn subjects(&self) -> &Subjects {
        &self.inner.subjects
    }

    /// Name of the mesh.
    #[must_use]
    pub fn mesh(&self) -> &str {
        self.inner.subjects.mesh()
    }

    /// Counts since the start.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counters = &self.inner.counters;
        let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Statistics {
            reconnects: read(&counters.connects).saturating_sub(1),
            denials: read(&counters.denials),
            timeouts: read(&counters.timeouts),
            dropped: read(&counters.dropped),
            dead_letters: read(&counters.dead_letters),
        }
    }

    /// Round trip to the broker: what was published before it is there.
    ///
    /// # Errors
    /// When the bus is down or does not answer in time.
    pub async fn flush(&self) -> Result<(), BusError> {
        self.limited("flush", "", REQUEST_LIMIT, async { self.inner.client.flush().await.map_err(|e| BusError::Client(e.to_string())) })
            .await
    }

    /// Ends the connection in the order that loses nothing: flush, drain, wait for the end. Stop the intake and await
    /// acknowledgements before; nothing may be published after.
    pub async fn close(&self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        let _ = tokio::time::timeout_at(deadline, self.flush()).await;
        if tokio::time::timeout_at(deadline, self.inner.client.drain()).await.is_ok_and(|r| r.is_ok()) {
            let mut closed = self.inner.closed.clone();
            let _ = tokio::time::timeout_at(deadline, closed.wait_for(|c| *c)).await;
        }
    }

    /// Runs `op` for at most `limit`; ends early when the connection is lost or the broker forbids `subject`.
    pub(crate) async fn limited<T>(
        &self,
        what: &str,
        subject: &str,
        limit: Duration,
        op: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, BusError> {
        let mut connection = self.connection();
        if !connection.borrow_and_update().is_up() {
            return Err(match &*connection.borrow() {
                Connection::Refused { why, .. } => why.clone(),
                Connection::Up { .. } | Connection::Down { .. } => BusError::Down,
            });
        }
        let mut denial = self.inner.denial.clone();
        // A denial noted before this operation is of an earlier one.
        let before = denial.borrow_and_update().count;
        let forbidden = async {
            if denial.wait_for(|d| d.count > before && !subject.is_empty() && d.subject == subject).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            done = tokio::time::timeout(limit, op) => done.unwrap_or_else(|_| {
                Counters::add(&self.inner.counters.timeouts);
                Err(BusError::Timeout { what: what.to_owned(), after: limit })
            }),
            () = forbidden => Err(BusError::Denied { subject: subject.to_owned() }),
            _ = connection.wait_for(|c| !c.is_up()) => Err(BusError::Down),
        }
    }

    /// A request with headers; the answer.
    pub(crate) async fn request_raw(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        limit: Duration,
    ) -> Result<async_nats::Message, BusError> {
        check_size(payload.len())?;
        let mut request = Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        self.request_with(subject, request, limit).await
    }

    /// A request as the library has it.
    pub(crate) async fn request_with(&self, subject: &str, request: Request, limit: Duration) -> Result<async_nats::Message, BusError> {
        let request = request.timeout(Some(limit));
        let op = async {
            self.inner.client.send_request(subject.to_owned(), request).await.map_err(|e| match e.kind() {
                RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.to_owned() },
                RequestErrorKind::TimedOut => BusError::Timeout { what: subject.to_owned(), after: limit },
                RequestErrorKind::MaxPayloadExceeded => BusError::TooLarge { bytes: PAYLOAD_BYTES_MAX, max: SENT_BYTES_MAX },
                RequestErrorKind::InvalidSubject | RequestErrorKind::Other => BusError::Client(e.to_string()),
            })
        };
        self.limited(subject, subject, limit, op).await
    }

    /// A request to JetStream's API (`STREAM.INFO.…`), JSON both ways.
    pub(crate) async fn api<T: DeserializeOwned>(&self, call: &str, body: &impl Serialize, what: &str) -> Result<T, BusError> {
        let body = serde_json::to_vec(body).map_err(|e| BusError::Malformed { what: call.to_owned(), why: e.to_string() })?;
        let answer = self.request_raw(&format!("$JS.API.{call}"), None, body.into(), REQUEST_LIMIT).await?;
        read_answer(&answer.payload, what)
    }

    /// A context of the client library for what it does well.
    pub(crate) fn context(&self) -> jetstream::Context {
        jetstream::ContextBuilder::new().timeout(REQUEST_LIMIT).ack_timeout(REQUEST_LIMIT).build(self.inner.client.clone())
    }

    /// Name of the stream behind a store.
    pub(crate) fn stream_of(&self, store: Store) -> String {
        crate::provision::stream_name(store, self.mesh())
    }

    /// Waits until connected, for as long as it takes; false: this process closed the bus.
    pub(crate) async fn until_up(&self) -> bool {
        let (mut connection, mut closed) = (self.connection(), self.inner.closed.clone());
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => false,
            up = connection.wait_for(Connection::is_up) => up.is_ok(),
        }
    }

    /// Counts a message that nobody can read.
    pub(crate) fn count_dead_letter(&self) {
        Counters::add(&self.inner.counters.dead_letters);
    }
}

/// Refuses what the broker would refuse, with a plain error.
pub(crate) fn check_size(bytes: usize) -> Result<(), BusError> {
    if bytes > SENT_BYTES_MAX { Err(BusError::TooLarge { bytes, max: SENT_BYTES_MAX }) } else { Ok(()) }
}

#[derive(serde::Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(serde::Deserialize)]
struct MaybeError {
    error: Option<ApiError>,
}

/// Reads JetStream's JSON answer; `what` names the stream or key in errors.
pub(crate) fn read_answer<T: DeserializeOwned>(payload: &[u8], what: &str) -> Result<T, BusError> {
    let bad = |e: serde_json::Error| BusError::Malformed { what: format!("the broker's answer about {what}"), why: e.to_string() };
    if let Some(error) = serde_json::from_slice::<MaybeError>(payload).map_err(bad)?.error {
        return Err(match error.err_code {
            10_071 | 10_164 => BusError::Conflict { what: what.to_owned() },
            10_201 => BusError::Duplicate,
            10_070 => BusError::Overtaken,
            10_059 | 10_014 | 10_037 => BusError::Missing { what: what.to_owned() },
            0 => BusError::Broker { code: error.code, why: error.description },
            code => BusError::Broker { code, why: error.description },
        });
    }
    serde_json::from_slice(payload).map_err(bad)
}

/// Doubling pauses with jitter, so that a thousand clients of a restarted broker do not come back at once.
fn reconnect_delay(tries: usize) -> Duration {
    let exponent = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let base = RECONNECT_DELAY_MIN.saturating_mul(2_u32.saturating_pow(exponent)).min(RECONNECT_DELAY_MAX);
    jittered(base)
}

/// Between half of `base` and all of it.
pub(crate) fn jittered(base: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(Instant::now()) % 1024;
    base / 2 + base.saturating_mul(u32::try_from(random).unwrap_or(0)) / 2048
}

/// Turns the client's events into states and counts.
struct Watcher {
    server: Arc<OnceLock<Client>>,
    counters: Arc<Counters>,
    connection: watch::Sender<Connection>,
    denial: watch::Sender<Denial>,
    closed: watch::Sender<bool>,
    refusals: AtomicU64,
}

impl Watcher {
    fn note(&self, event: Event) {
        let since = Instant::now();
        match event {
            Event::Connected => {
                Counters::add(&self.counters.connects);
                self.refusals.store(0, Ordering::Relaxed);
                self.connected();
            }
            Event::Disconnected => {
                self.connection.send_replace(Connection::Down { since });
            }
            Event::Closed => {
                self.connection.send_replace(Connection::Down { since });
                self.closed.send_replace(true);
            }
            Event::SlowConsumer(_) => Counters::add(&self.counters.dropped),
            Event::ServerError(ServerError::AuthorizationViolation) => self.refused("authorization violation"),
            Event::ServerError(error) => self.server_error(&error.to_string()),
            Event::ClientError(error) => {
                let why = error.to_string();
                if why.to_ascii_lowercase().contains("authorization") {
                    self.refused(&why);
                } else {
                    tracing::debug!(%why, "bus client error");
                }
            }
            Event::LameDuckMode | Event::Draining => {}
        }
    }

    fn refused(&self, why: &str) {
        if self.refusals.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSALS_BEFORE_REFUSED {
            let why = BusError::Unauthorized(why.to_owned());
            self.connection.send_replace(Connection::Refused { since: Instant::now(), why });
        }
    }

    fn server_error(&self, text: &str) {
        let Some(subject) = forbidden_subject(text) else {
            tracing::warn!(error = text, "the broker reports an error");
            return;
        };
        tracing::error!(subject, "the broker forbids an operation");
        Counters::add(&self.counters.denials);
        self.denial.send_modify(|d| *d = Denial { subject: subject.to_owned(), count: d.count + 1 });
    }

    /// A connection made before the client was known here is judged later, by [`Self::check_again`].
    fn connected(&self) {
        let Some(client) = self.server.get() else { return };
        let version = client.server_info().version;
        let since = Instant::now();
        let state = if new_enough(&version) {
            Connection::Up { since }
        } else {
            Connection::Refused { since, why: BusError::ServerTooOld { version, min: SERVER_VERSION_MIN } }
        };
        self.connection.send_replace(state);
    }

    fn check_again(&self) {
        let connected = self.server.get().is_some_and(|c| c.connection_state() == async_nats::connection::State::Connected);
        if connected && !self.connection.borrow().is_up() {
            self.connected();
        }
    }
}

/// The subject in `Permissions Violation for Publish to "x"`.
fn forbidden_subject(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("ermissions Violation")?;
    rest.split('"').nth(1)
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split('-').next().unwrap_or(version).split('.').map(|p| p.parse::<u64>().ok());
    match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor), Some(patch)) => (major, minor, patch) >= SERVER_VERSION_MIN_PARTS,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_told_apart() {
        for good in ["2.15.1", "2.15.2-RC.1", "2.16.0", "3.0.0"] {
            assert!(new_enough(good), "{good}");
        }
        for bad in ["2.15.0", "2.9.10", "", "x.y.z", "2.15"] {
            assert!(!new_enough(bad), "{bad}");
        }
    }

    #[test]
    fn a_violation_names_its_subject() {
        let text = r#"nats: Permissions Violation for Publish to "razar.event.a.b.c""#;
        assert_eq!(forbidden_subject(text), Some("razar.event.a.b.c"));
        assert_eq!(forbidden_subject("stale connection"), None);
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert!(reconnect_delay(1) <= RECONNECT_DELAY_MIN);
        for tries in [5, 50, usize::MAX] {
            assert!(reconnect_delay(tries) <= RECONNECT_DELAY_MAX);
        }
    }
}
