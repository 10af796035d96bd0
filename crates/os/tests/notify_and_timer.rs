//! Notifications from real senders, and the timer.

mod support;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use razar_os::{DeadlineTimer, NOTIFY_BYTES_MAX, NotifyError, NotifySocket, Pid, Spawn, monotonic_now, spawn};
use support::{PATIENCE, Place, env, until, words};

const SENDER: &str = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\ns.connect(os.environ['NOTIFY_SOCKET'])\ns.send(b'READY=1\\nSTATUS=up\\nX_UNKNOWN=1')\n";

#[tokio::test]
async fn a_component_says_ready_and_is_known_by_its_pid() {
    let place = Place::new();
    let socket = NotifySocket::bind(&place.path("notify")).unwrap();
    let argv = words(&["python3", "-c", SENDER]);
    let env = env(&[("PATH", "/usr/local/bin:/usr/bin:/bin"), ("NOTIFY_SOCKET", socket.path().to_str().unwrap())]);
    let mut order = Spawn::new(OsStr::new("python3"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    let process = spawn(&order).unwrap().into_process().unwrap();
    let got = tokio::time::timeout(PATIENCE, socket.recv()).await.unwrap().unwrap();
    assert_eq!(got.pid, Some(process.pid()));
    assert!(got.ready && !got.stopping);
    assert_eq!(got.status.as_deref(), Some("up"));
    until("it ends", || process.has_exited().unwrap());
    process.reap().unwrap();
}

#[tokio::test]
async fn an_old_socket_that_goes_late_leaves_its_successor_in_place() {
    let place = Place::new();
    let old = NotifySocket::bind(&place.path("notify")).unwrap();
    let new = NotifySocket::bind(&place.path("notify")).unwrap();
    drop(old);
    let sender = UnixDatagram::unbound().unwrap();
    sender.send_to(b"READY=1", new.path()).unwrap();
    assert!(tokio::time::timeout(PATIENCE, new.recv()).await.unwrap().unwrap().ready);
    drop(new);
    assert!(!place.path("notify").exists());
}

#[tokio::test]
async fn bad_messages_are_told_and_the_next_good_one_is_taken() {
    let place = Place::new();
    std::fs::write(place.path("notify"), "left behind").unwrap();
    let socket = NotifySocket::bind(&place.path("notify")).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(socket.path()).unwrap();
    let long = format!("STATUS={}", "x".repeat(NOTIFY_BYTES_MAX));
    for bad in [&b"READY"[..], b"\xff\xfe=1", long.as_bytes(), b"MAINPID=none"] {
        sender.send(bad).unwrap();
        match socket.recv().await {
            Err(NotifyError::Malformed { pid, what }) => {
                println!("{what}");
                assert_eq!(pid, Some(Pid::this()));
            }
            other => panic!("{other:?}"),
        }
    }
    sender.send(b"STOPPING=1\nERRNO=5\nWATCHDOG=trigger").unwrap();
    let got = socket.recv().await.unwrap();
    assert!(got.stopping && got.watchdog_trigger && !got.watchdog);
    assert_eq!(got.errno, Some(5));
    let path = socket.path().to_owned();
    drop(socket);
    assert!(!path.exists());

    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
    let error = NotifySocket::bind(&long).unwrap_err();
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
