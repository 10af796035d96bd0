//! The ports: a hand-rolled, blocking HTTP/1.1, one thread a port, one request a connection. No keep-alive, no bodies, no
//! TLS, loopback only: enough for probes and for one service asking another.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::life::say;
use crate::options::Options;

/// A thread's stack: the deepest call here formats a line. 77 services have two threads each.
pub(crate) const STACK_BYTES: usize = 64 * 1024;
/// The longest request head that is read; probes send about 100 bytes.
const REQUEST_BYTES_MAX: usize = 4 * 1024;
/// How long a client may take to send its head: short, because it is read in the one thread that answers probes too.
const REQUEST_TIME_MAX: Duration = Duration::from_millis(300);
/// How long a dependency may take to answer `/work`.
const DEPENDENCY_TIME_MAX: Duration = Duration::from_secs(1);

/// One running service, shared by the threads of its ports.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) options: Options,
    ready: AtomicBool,
    hung: AtomicBool,
    started: Instant,
}

/// A status line's number and text, and a JSON body.
type Answer = (&'static str, String);

impl Service {
    pub(crate) fn new(options: Options) -> Self {
        Self { options, ready: AtomicBool::new(false), hung: AtomicBool::new(false), started: Instant::now() }
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    fn answer(&self, path: &str) -> Answer {
        if self.options.hang_on.as_deref() == Some(path) {
            self.hung.store(true, Ordering::Release);
        }
        if path == self.options.path {
            return self.health();
        }
        match path {
            "/work" => self.work(),
            // Alive is who answers at all; ready or not is asked at --path.
            "/alive" => ("200 OK", format!("{{\"name\":{}}}", json_text(&self.options.name))),
            _ => ("404 Not Found", "{\"error\":\"no such path\"}".to_owned()),
        }
    }

    fn health(&self) -> Answer {
        let ready = self.options.lie || self.ready.load(Ordering::Acquire);
        let (line, status) = if ready { ("200 OK", "healthy") } else { ("503 Service Unavailable", "starting") };
        let name = json_text(&self.options.name);
        let (pid, uptime_ms) = (std::process::id(), self.started.elapsed().as_millis());
        (line, format!("{{\"status\":\"{status}\",\"name\":{name},\"pid\":{pid},\"uptime_ms\":{uptime_ms}}}"))
    }

    fn work(&self) -> Answer {
        for url in &self.options.depends {
            if let Err(error) = get(url) {
                let error = json_text(&format!("{url}: {error}"));
                return ("502 Bad Gateway", format!("{{\"error\":{error}}}"));
            }
        }
        ("200 OK", format!("{{\"done\":{},\"asked\":{}}}", json_text(&self.options.name), self.options.depends.len()))
    }
}

/// Binds the ports and answers on them, a thread each.
///
/// # Errors
/// A port is taken: the error names it.
pub(crate) fn listen(service: &Arc<Service>) -> io::Result<()> {
    let options = &service.options;
    let main = options.port.filter(|_| !options.lie);
    let health = options.health_port.filter(|port| Some(*port) != main);
    for port in [main, health].into_iter().flatten() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(|error| io::Error::new(error.kind(), format!("127.0.0.1:{port}: {error}")))?;
        say(&format!("{} listening on {}", options.name, listener.local_addr()?));
        let service = Arc::clone(service);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || accept(&listener, &service))?;
    }
    Ok(())
}

fn accept(listener: &TcpListener, service: &Service) {
    for client in listener.incoming() {
        // Asked to hang: the kernel goes on completing connects, and nobody answers, as with a deadlock.
        while service.hung.load(Ordering::Acquire) {
            thread::park();
        }
        match client {
            // A client that went away has no answer to wait for.
            Ok(client) => drop(serve(client, service)),
            // Out of descriptors or memory: the next try may work, a spinning loop would not help it.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn serve(mut client: TcpStream, service: &Service) -> io::Result<()> {
    let head = read_head(&mut client)?;
    let mut words = head.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let (line, body) = match method {
        "GET" | "HEAD" | "POST" => service.answer(path),
        _ => ("400 Bad Request", "{\"error\":\"not a request\"}".to_owned()),
    };
    let length = body.len();
    let sent = if method == "HEAD" { "" } else { body.as_str() };
    let answer =
        format!("HTTP/1.1 {line}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{sent}");
    client.set_write_timeout(Some(REQUEST_TIME_MAX))?;
    client.write_all(answer.as_bytes())
}

/// Reads up to the empty line that ends a head. A body, if any, is left unread.
fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + REQUEST_TIME_MAX;
    let mut head = Vec::with_capacity(256);
    let mut chunk = [0_u8; 512];
    while head.len() < REQUEST_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        let read = client.read(&mut chunk)?;
        head.extend(chunk.iter().take(read));
        if read == 0 || head.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Asks another service; well is any 2xx.
fn get(url: &str) -> io::Result<()> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host.to_socket_addrs()?.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))?;
    let mut peer = TcpStream::connect_timeout(&address, DEPENDENCY_TIME_MAX)?;
    peer.set_read_timeout(Some(DEPENDENCY_TIME_MAX))?;
    peer.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut status = [0_u8; 12];
    peer.read_exact(&mut status)?;
    match status.starts_with(b"HTTP/1.1 2") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&status).into_owned())),
    }
}

/// A JSON string literal.
fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
