//! A TCP proxy of our own between clients and the broker: it knows where one NATS message ends and the next begins, and can be late,
//! drip, hold one way back, swallow one way, let the broker's end vanish, and lose, double or delay chosen messages. It runs in a thread of
//! its own, so that tests with and without a runtime use it alike. What a fault means for the mesh is the tests' matter.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{oneshot, watch},
};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// A direction through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the broker.
    ToBroker,
    /// From the broker to the client.
    ToClient,
}

/// What becomes of a chosen message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives twice.
    Doubled,
    /// It arrives after what comes behind it.
    Overtaken,
    /// It arrives; the answer to it does not.
    Unanswered,
}

/// Messages on their way, chosen by the beginning of their subject, and how many of them.
#[derive(Debug, Clone)]
struct Choice {
    way: Way,
    subject: String,
    left: u32,
    fate: Fate,
}

/// What is done to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    late: Duration,
    drip: Option<(usize, Duration)>,
    held: bool,
    swallowed: bool,
}

#[derive(Debug, Default)]
struct Rules {
    to_broker: Weather,
    to_client: Weather,
    chosen: Vec<Choice>,
    /// Inboxes whose answers are withheld.
    withheld: BTreeSet<String>,
    /// Connections up to this number have lost their broker without being told.
    orphaned_to: u64,
    /// Connections up to this number are closed.
    severed_to: u64,
}

struct Shared {
    rules: Mutex<Rules>,
    changed: watch::Sender<()>,
    connections: AtomicU64,
    /// Those of them that are there.
    open: AtomicU64,
    /// Messages that met the fate chosen for them.
    struck: AtomicU64,
}

/// The proxy; it ends when it is dropped, and its connections with it.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on a free port of the loopback for what goes to port `to` of it, whether anybody listens there yet or not.
    ///
    /// # Errors
    /// When no port or thread can be had.
    pub fn start(to: u16) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            rules: Mutex::default(),
            changed: watch::channel(()).0,
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, to, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { port, shared, stop: Some(stop), thread: Some(thread.context("a thread for the proxy")?) })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections made through it so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are there. Once that of a dead client is not, nothing that it said is on its way any more.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Messages lost, doubled, overtaken or left without an answer so far.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// From now on bytes come this much later, both ways.
    pub fn delay(&self, late: Duration) {
        self.change(|rules| (rules.to_broker.late, rules.to_client.late) = (late, late));
    }

    /// From now on bytes come `bytes` at a time with a pause after each piece.
    pub fn drip(&self, way: Way, bytes: usize, pause: Duration) {
        self.change(|rules| rules.of(way).drip = Some((bytes.max(1), pause)));
    }

    /// From now on this way is not read: who writes into it finds it full after a while.
    pub fn hold(&self, way: Way) {
        self.change(|rules| rules.of(way).held = true);
    }

    /// From now on messages of this way vanish, while the other way works: a one-way partition.
    pub fn swallow(&self, way: Way) {
        self.change(|rules| rules.of(way).swallowed = true);
    }

    /// The broker's end of each present connection vanishes, and its client is not told: half-open. New connections are made as ever.
    pub fn orphan(&self) {
        let now = self.connections();
        self.change(|rules| rules.orphaned_to = now);
    }

    /// Closes each present connection.
    pub fn sever(&self) {
        let now = self.connections();
        self.change(|rules| rules.severed_to = now);
    }

    /// All ways are as they should be again; what is chosen stays so.
    pub fn mend(&self) {
        self.change(|rules| (rules.to_broker, rules.to_client) = (Weather::default(), Weather::default()));
    }

    /// The next `count` messages that go `way` with a subject that begins so are lost.
    pub fn lose(&self, way: Way, subject: &str, count: u32) {
        self.choose(way, subject, count, Fate::Lost);
    }

    /// The next `count` messages that go `way` with a subject that begins so come twice.
    pub fn double(&self, way: Way, subject: &str, count: u32) {
        self.choose(way, subject, count, Fate::Doubled);
    }

    /// The next `count` messages that go `way` with a subject that begins so arrive after the one that follows on their connection.
    pub fn overtake(&self, way: Way, subject: &str, count: u32) {
        self.choose(way, subject, count, Fate::Overtaken);
    }

    /// The next `count` requests on a subject that begins so are carried out, and their answers are lost.
    pub fn lose_answers(&self, subject: &str, count: u32) {
        self.choose(Way::ToBroker, subject, count, Fate::Unanswered);
    }

    /// Nothing is chosen any more.
    pub fn forget(&self) {
        self.change(|rules| rules.chosen.clear());
    }

    fn choose(&self, way: Way, subject: &str, left: u32, fate: Fate) {
        self.change(|rules| rules.chosen.push(Choice { way, subject: subject.to_owned(), left, fate }));
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.rules());
        self.shared.changed.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Rules {
    fn of(&mut self, way: Way) -> &mut Weather {
        match way {
            Way::ToBroker => &mut self.to_broker,
            Way::ToClient => &mut self.to_client,
        }
    }

    /// What becomes of a message; `None`: it arrives.
    fn fate(&mut self, way: Way, frame: &Frame, struck: &AtomicU64) -> Option<Fate> {
        let Some(subject) = &frame.subject else { return self.of(way).swallowed.then_some(Fate::Lost) };
        if way == Way::ToClient && self.withheld.remove(subject) {
            struck.fetch_add(1, Ordering::SeqCst);
            return Some(Fate::Lost);
        }
        if self.of(way).swallowed {
            return Some(Fate::Lost);
        }
        let fits = |c: &&mut Choice| {
            c.left > 0 && c.way == way && subject.starts_with(&c.subject) && (c.fate != Fate::Unanswered || frame.reply.is_some())
        };
        let choice = self.chosen.iter_mut().find(fits)?;
        choice.left -= 1;
        if choice.fate == Fate::Unanswered {
            self.withheld.extend(frame.reply.clone());
            return None;
        }
        struck.fetch_add(1, Ordering::SeqCst);
        Some(choice.fate)
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weather(&self, way: Way) -> Weather {
        *self.rules().of(way)
    }

    /// Waits until `is` holds.
    async fn until(&self, is: impl Fn(&mut Rules) -> bool) {
        let mut changed = self.changed.subscribe();
        while !is(&mut self.rules()) {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }
}

async fn accept(listener: std::net::TcpListener, to: u16, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, to, shared.clone()));
    }
}

async fn serve(client: TcpStream, to: u16, shared: Arc<Shared>) {
    let Ok(broker) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))).await else { return };
    let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
    shared.open.fetch_add(1, Ordering::SeqCst);
    drop((client.set_nodelay(true), broker.set_nodelay(true)));
    let (mut from_client, mut to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let orphaned = {
        let (mut from_broker, mut to_broker) = (from_broker, to_broker);
        tokio::select! {
            biased;
            () = shared.until(|rules| rules.severed_to >= number) => false,
            () = shared.until(|rules| rules.orphaned_to >= number) => true,
            () = carry(&mut from_client, &mut to_broker, Way::ToBroker, &shared) => false,
            () = carry(&mut from_broker, &mut to_client, Way::ToClient, &shared) => false,
        }
    };
    if orphaned {
        // Both of the client's halves stay open; what it says is read by nobody.
        shared.until(|rules| rules.severed_to >= number).await;
    }
    shared.open.fetch_sub(1, Ordering::SeqCst);
}

/// Carries one direction until either end is closed.
async fn carry(from: &mut tcp::OwnedReadHalf, to: &mut tcp::OwnedWriteHalf, way: Way, shared: &Shared) {
    let (mut frames, mut overtaken) = (Frames::default(), Vec::new());
    let mut bytes = vec![0; READ_BYTES];
    loop {
        shared.until(|rules| !rules.of(way).held).await;
        let Ok(read) = from.read(&mut bytes).await else { return };
        let Some(new) = bytes.get(..read).filter(|new| !new.is_empty()) else { return };
        frames.held.extend_from_slice(new);
        let mut out = Vec::with_capacity(read);
        while let Some(frame) = frames.next() {
            let fate = shared.rules().fate(way, &frame, &shared.struck);
            match fate {
                Some(Fate::Lost) => continue,
                Some(Fate::Overtaken) => {
                    overtaken.extend_from_slice(&frame.bytes);
                    continue;
                }
                Some(Fate::Doubled) => out.extend_from_slice(&frame.bytes),
                None | Some(Fate::Unanswered) => {}
            }
            out.extend_from_slice(&frame.bytes);
            out.append(&mut overtaken);
        }
        let weather = shared.weather(way);
        if !weather.late.is_zero() {
            tokio::time::sleep(weather.late).await;
        }
        // Held back while it was on its way.
        shared.until(|rules| !rules.of(way).held).await;
        let piece = weather.drip.map_or(out.len().max(1), |(size, _)| size);
        for piece in out.chunks(piece) {
            if to.write_all(piece).await.is_err() {
                return;
            }
            // Asked anew for each piece: a drip ends when it is mended.
            if let Some((_, pause)) = shared.weather(way).drip {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// One protocol line, with the payload that belongs to it.
struct Frame {
    bytes: Vec<u8>,
    /// Of a message.
    subject: Option<String>,
    /// Where a message wants its answer.
    reply: Option<String>,
}

/// Cuts a stream of bytes where one line of the protocol ends.
#[derive(Default)]
struct Frames {
    held: Vec<u8>,
}

impl Frames {
    fn next(&mut self) -> Option<Frame> {
        let end = self.held.windows(2).position(|two| two == b"\r\n")? + 2;
        let line = String::from_utf8_lossy(self.held.get(..end)?).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (subject, reply, size) = match words.as_slice() {
            ["PUB", subject, size] | ["HPUB", subject, _, size] => (Some(*subject), None, Some(*size)),
            ["PUB", subject, reply, size] | ["HPUB", subject, reply, _, size] => (Some(*subject), Some(*reply), Some(*size)),
            ["MSG", subject, _, size] | ["HMSG", subject, _, _, size] => (Some(*subject), None, Some(*size)),
            ["MSG", subject, _, reply, size] | ["HMSG", subject, _, reply, _, size] => (Some(*subject), Some(*reply), Some(*size)),
            _ => (None, None, None),
        };
        let payload = size.and_then(|size| size.parse::<usize>().ok()).map_or(0, |size| size + 2);
        let whole = end + payload;
        if self.held.len() < whole {
            return None;
        }
        let (subject, reply) = (subject.map(str::to_owned), reply.map(str::to_owned));
        let rest = self.held.split_off(whole);
        Some(Frame { bytes: std::mem::replace(&mut self.held, rest), subject, reply })
    }
}
