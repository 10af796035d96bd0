//! Notifications from real senders, and the timer.

mod support;

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use razar_os::{BoundSocket, DeadlineTimer, NOTIFY_BYTES_MAX, NotifyError, NotifySocket, Pid, Spawn, fd_channel, monotonic_now, spawn};
use support::{PATIENCE, Place, env, until, words};

const SENDER: &str = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\ns.connect(os.environ['NOTIFY_SOCKET'])\ns.send(b'READY=1\\nSTATUS=up\\nX_UNKNOWN=1')\n";

#[allow(clippy::unwrap_used, reason = "a test says what failed by failing")]
fn listening(place: &Place) -> NotifySocket {
    NotifySocket::new(BoundSocket::bind(&place.path("notify")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_component_says_ready_and_is_known_by_its_pid() {
    let place = Place::new();
    let socket = listening(&place);
    let argv = words(&["python3", "-c", SENDER]);
    let env = env(&[("PATH", "/usr/local/bin:/usr/bin:/bin"), ("NOTIFY_SOCKET", socket.bound().path().to_str().unwrap())]);
    let mut order = Spawn::new(OsStr::new("python3"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    let process = spawn(&order).unwrap().into_process().unwrap();
    let got = tokio::time::timeout(PATIENCE, socket.peek()).await.unwrap().unwrap();
    assert_eq!(got.pid, Some(process.pid()));
    assert!(got.ready && !got.stopping);
    assert_eq!(got.status.as_deref(), Some("up"));
    until("it ends", || process.has_exited().unwrap());
    process.reap().unwrap();
}

#[tokio::test]
async fn an_old_socket_that_goes_late_leaves_its_successor_in_place() {
    let place = Place::new();
    let old = BoundSocket::bind(&place.path("notify")).unwrap();
    let new = listening(&place);
    assert!(!old.is_reachable());
    old.remove();
    let sender = UnixDatagram::unbound().unwrap();
    sender.send_to(b"READY=1", new.bound().path()).unwrap();
    assert!(tokio::time::timeout(PATIENCE, new.peek()).await.unwrap().unwrap().ready);
    new.bound().remove();
    assert!(!place.path("notify").exists() && !new.bound().is_reachable());
}

#[tokio::test]
async fn what_was_said_waits_for_whoever_holds_the_socket_until_it_is_taken() {
    let place = Place::new();
    let (gives, takes) = fd_channel().unwrap();
    let first = listening(&place);
    gives.send(first.bound().as_fd()).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(first.bound().path()).unwrap();
    sender.send(b"READY=1").unwrap();
    assert!(first.peek().await.unwrap().ready);
    // Who has only looked goes; what is said while nobody listens waits as well.
    drop(first);
    sender.send(b"WATCHDOG=1").unwrap();
    let given = takes.receive().unwrap().unwrap();
    assert!(takes.receive().unwrap().is_none());
    let second = NotifySocket::new(BoundSocket::from_fd(given).unwrap()).unwrap();
    assert_eq!(second.bound().path(), place.path("notify"));
    assert!(second.bound().is_reachable());
    let got = second.peek().await.unwrap();
    assert_eq!((got.ready, got.pid), (true, Some(Pid::this())));
    assert!(second.peek().await.unwrap().ready, "looked at, not taken");
    second.take().unwrap();
    assert!(second.peek().await.unwrap().watchdog);
    second.take().unwrap();
    second.take().unwrap();
    drop(second);
    assert_eq!(sender.send(b"READY=1").unwrap_err().kind(), ErrorKind::ConnectionRefused, "the last holder has gone");
}

#[test]
fn descriptors_wait_for_their_taker_and_their_number_is_bounded() {
    let (gives, takes) = fd_channel().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut given = 0;
    let full = loop {
        match gives.send(file.as_fd()) {
            Ok(()) => given += 1,
            Err(error) => break error,
        }
        assert!(given < 10_000, "no bound");
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    drop(gives);
    let mut taken = 0;
    while takes.receive().unwrap().is_some() {
        taken += 1;
    }
    assert_eq!(taken, given);
    assert!(given >= 128, "{given}");
    let (gives, takes) = fd_channel().unwrap();
    drop(takes);
    assert_eq!(gives.send(file.as_fd()).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn only_a_socket_with_a_path_can_be_listened_to() {
    let place = Place::new();
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(BoundSocket::from_fd(file).is_err());
    assert!(BoundSocket::from_fd(UnixDatagram::unbound().unwrap().into()).is_err());
    let stream = std::os::unix::net::UnixListener::bind(place.path("stream")).unwrap();
    assert!(BoundSocket::from_fd(stream.into()).is_err());
}

#[tokio::test]
async fn bad_messages_are_told_and_the_next_good_one_is_taken() {
    let place = Place::new();
    std::fs::write(place.path("notify"), "left behind").unwrap();
    let socket = listening(&place);
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(socket.bound().path()).unwrap();
    let long = format!("STATUS={}", "x".repeat(NOTIFY_BYTES_MAX));
    for bad in [&b"READY"[..], b"\xff\xfe=1", long.as_bytes(), b"MAINPID=none"] {
        sender.send(bad).unwrap();
        let got = socket.peek().await;
        socket.take().unwrap();
        match got {
            Err(NotifyError::Malformed { pid, what }) => {
                println!("{what}");
                assert_eq!(pid, Some(Pid::this()));
            }
            other => panic!("{other:?}"),
        }
    }
    sender.send(b"STOPPING=1\nERRNO=5\nWATCHDOG=trigger").unwrap();
    let got = socket.peek().await.unwrap();
    assert!(got.stopping && got.watchdog_trigger && !got.watchdog);
    assert_eq!(got.errno, Some(5));

    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
    let error = BoundSocket::bind(&long).unwrap_err();
    assert!(matches!(error, NotifyError::PathTooLong { .. }), "{error}");
}

#[tokio::test]
async fn a_deadline_is_met_to_the_fraction_of_a_millisecond_and_can_be_moved() {
    let mut timer = DeadlineTimer::new().unwrap();
    tokio::time::timeout(Duration::from_millis(5), timer.expired()).await.unwrap_err();
    let mut late = Vec::new();
    for _ in 0..20 {
        let deadline = monotonic_now() + Duration::from_micros(700);
        timer.set(Some(deadline)).unwrap();
        timer.expired().await.unwrap();
        late.push(monotonic_now().checked_sub(deadline).expect("never early"));
    }
    late.sort_unstable();
    println!("late by {:?} in the median, {:?} at worst", late[10], late[19]);

    timer.set(Some(Duration::ZERO)).unwrap();
    tokio::time::timeout(PATIENCE, timer.expired()).await.expect("one in the past fires at once").unwrap();
    timer.set(Some(monotonic_now())).unwrap();
    timer.set(None).unwrap();
    tokio::time::timeout(Duration::from_millis(5), timer.expired()).await.unwrap_err();
    timer.set(Some(monotonic_now() + Duration::from_secs(3600))).unwrap();
    timer.set(Some(monotonic_now() + Duration::from_millis(1))).unwrap();
    tokio::time::timeout(PATIENCE, timer.expired()).await.expect("the later set counts").unwrap();
}
