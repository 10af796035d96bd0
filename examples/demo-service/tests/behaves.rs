//! The service seen from outside: real processes, real ports, no knowledge of its code. Ports are asked of the kernel and
//! every process ends with its test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take to come true before a test says that it never did.
const PATIENCE: Duration = Duration::from_secs(10);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_razar-demo-service"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn start(args: &[&str]) -> Running {
    Running(command(args).spawn().unwrap())
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn last_error_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("razar-demo-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The whole answer, or `None` where nothing listens or nothing comes inside `wait`.
fn get(port: &str, path: &str, wait: Duration) -> Option<String> {
    let mut peer = TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    peer.set_read_timeout(Some(wait)).unwrap();
    write!(peer, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn until_answers(port: &str, path: &str, status: &str) -> String {
    until(&format!("{path} answers {status}"), || {
        get(port, path, PATIENCE).filter(|answer| answer.starts_with(&format!("HTTP/1.1 {status}")))
    })
}

#[test]
fn health_names_the_service_on_its_own_port() {
    let (port, health) = (free_port(), free_port());
    let _api = start(&["--name", "api", "--port", &port, "--health-port", &health]);
    let answer = until_answers(&health, "/health", "200");
    assert!(answer.contains(r#"{"status":"healthy","name":"api""#), "{answer}");
    until_answers(&port, "/alive", "200");
    until_answers(&port, "/nothing", "404");
}

#[test]
fn listening_early_it_is_unwell_until_the_delay_has_passed() {
    let port = free_port();
    let _slow = start(&["--port", &port, "--listen-early", "--start-delay", "500ms"]);
    until_answers(&port, "/health", "503");
    until_answers(&port, "/health", "200");
}

#[test]
fn ready_is_told_to_the_notify_socket() {
    let folder = Folder::new("notify");
    let path = folder.file("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut asked = command(&["--notify"]);
    let _service = Running(asked.env("NOTIFY_SOCKET", &path).spawn().unwrap());
    let mut message = [0_u8; 64];
    let length = socket.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1\n");
}

#[test]
fn the_first_starts_fail_and_then_it_works() {
    let folder = Folder::new("fail-first");
    let state = folder.file("deep/starts");
    let args = ["--fail-first", "2", "--state", &state, "--error", "503 from model index", "--one-shot"];
    for _ in 0..2 {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(last_error_line(&output), "503 from model index");
    }
    assert_eq!(run(&args).status.code(), Some(0));
    assert_eq!(run(&args).status.code(), Some(0), "without --fail-again it goes on working");
}

#[test]
fn asked_to_fail_again_it_counts_anew_after_a_start_that_worked() {
    let folder = Folder::new("fail-again");
    let state = folder.file("starts");
    let args = ["--fail-first", "1", "--fail-again", "--state", &state, "--one-shot"];
    let codes: Vec<_> = (0..4).map(|_| run(&args).status.code().unwrap()).collect();
    assert_eq!(codes, [1, 0, 1, 0]);
}

#[test]
fn a_break_file_ends_it_now_and_at_each_start() {
    let folder = Folder::new("break");
    let file = folder.file("break");
    let port = free_port();
    let args = ["--port", &port, "--break-file", &file];
    let mut running = start(&args);
    until_answers(&port, "/health", "200");
    std::fs::write(&file, "").unwrap();
    let status = until("it ends", || running.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let output = run(&args);
    assert_eq!(last_error_line(&output), "ModuleNotFoundError: No module named 'torch'");
}

#[test]
fn a_liar_is_well_while_its_port_refuses() {
    let (port, health) = (free_port(), free_port());
    let _liar = start(&["--lie", "--port", &port, "--health-port", &health]);
    until_answers(&health, "/health", "200");
    assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_err());
}

#[test]
fn told_to_hang_it_accepts_and_never_answers() {
    let port = free_port();
    let mut service = start(&["--port", &port, "--hang-on", "/hang"]);
    until_answers(&port, "/hang", "404");
    assert_eq!(get(&port, "/health", Duration::from_millis(300)), None);
    assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
    assert!(service.0.try_wait().unwrap().is_none());
}

#[test]
fn work_asks_the_dependencies() {
    let (port, peer) = (free_port(), free_port());
    let url = format!("http://127.0.0.1:{peer}/health");
    let _service = start(&["--port", &port, "--depends", &url]);
    let refused = until_answers(&port, "/work", "502");
    assert!(refused.contains(&url), "{refused}");
    let _dependency = start(&["--port", &peer]);
    until_answers(&port, "/work", "200");
}

#[test]
fn a_silent_client_does_not_keep_others_waiting() {
    let port = free_port();
    let _service = start(&["--port", &port]);
    until_answers(&port, "/health", "200");
    let _silent = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    assert!(get(&port, "/health", PATIENCE).is_some());
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(last_error_line(&output).contains(&format!("127.0.0.1:{port}")));
}

#[test]
fn it_ends_when_and_as_it_was_told() {
    let output = run(&["--exit-after", "50ms", "--exit-code", "3", "--error", "ValueError: no"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(last_error_line(&output), "ValueError: no");
}

/// Sends SIGTERM by the shell's own kill: the standard library sends only SIGKILL.
fn terminate(child: &Child) {
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn sigterm_ends_it_unless_it_was_told_to_be_deaf() {
    let port = free_port();
    let mut polite = start(&["--port", &port]);
    until_answers(&port, "/health", "200");
    terminate(&polite.0);
    let status = until("it ends", || polite.0.try_wait().unwrap());
    assert_eq!(status.signal(), Some(15));

    let mut deaf = start(&["--port", &port, "--ignore-term"]);
    until_answers(&port, "/health", "200");
    terminate(&deaf.0);
    until_answers(&port, "/health", "200");
    assert!(deaf.0.try_wait().unwrap().is_none());
}

#[test]
fn a_wrong_command_line_exits_64() {
    let output = run(&["--prot", "1"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(last_error_line(&output).contains("--prot"));
}
