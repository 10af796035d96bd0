//! Holding on to processes: identity, exit statuses of children and strangers, reaping, signals, the lock.

mod support;

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use razar_os::{
    BootId, Exit, ExitStatus, FileId, Identity, LockError, NodeLock, Pid, Process, Signal, append_file, become_subreaper, start_time_ticks,
};
use support::{Place, state_and_parent, until};

#[test]
fn an_identity_opens_its_process_and_no_other() {
    let place = Place::new();
    let running = place.sh("exec sleep 1000");
    let identity = running.process.identity();
    assert_eq!(identity.boot_id, BootId::current().unwrap());
    assert_eq!(start_time_ticks(identity.pid).unwrap(), Some(identity.start_time_ticks));
    let again = Process::open(&identity).unwrap().unwrap();
    assert_eq!(again.identity(), identity);

    let other_boot: BootId = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    for wrong in [
        Identity { start_time_ticks: identity.start_time_ticks + 1, ..identity },
        Identity { boot_id: other_boot, ..identity },
        Identity { pidfd_inode: identity.pidfd_inode + 1, ..identity },
        Identity { pid: Pid::this(), ..identity },
        Identity { pid: Pid::new(i32::MAX).unwrap(), ..identity },
    ] {
        assert!(Process::open(&wrong).unwrap().is_none(), "{wrong:?}");
    }

    assert_eq!(again.exit().unwrap(), Exit::Running);
    assert!(!again.has_exited().unwrap());
    assert!(again.signal(Signal::KILL).unwrap());
    assert_eq!(running.wait().signal, Some(9));
    assert!(again.has_exited().unwrap());
    assert!(!again.signal(Signal::KILL).unwrap(), "a reaped process takes no signal");
    assert!(Process::open(&identity).unwrap().is_none());
}

#[test]
fn a_child_is_reaped_once_with_its_status() {
    let place = Place::new();
    let running = place.sh("exit 41");
    assert_eq!(running.wait(), ExitStatus { code: Some(41), signal: None, core_dumped: false });
    let error = running.process.reap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECHILD));
    let running = place.sh("kill -TERM $$");
    let status = running.wait();
    assert_eq!((status.code, status.signal), (None, Some(15)));
    assert_eq!(status.to_string(), "signal 15");
}

#[tokio::test]
async fn an_exit_is_awaited_by_several() {
    let place = Place::new();
    let running = place.sh("exec sleep 1000");
    // Not yet: the wait is dropped unfinished, and nothing is lost by it.
    tokio::time::timeout(Duration::from_millis(20), running.process.wait_exit()).await.unwrap_err();
    let (a, b) = (running.process.wait_exit(), running.process.wait_exit());
    running.process.signal(Signal::KILL).unwrap();
    let (a, b) = tokio::time::timeout(support::PATIENCE, async { tokio::join!(a, b) }).await.unwrap();
    a.unwrap();
    b.unwrap();
    assert_eq!(running.process.exit().unwrap(), Exit::Ended(running_status(9)));
}

fn running_status(signal: i32) -> ExitStatus {
    ExitStatus { code: None, signal: Some(signal), core_dumped: false }
}

#[test]
fn the_exit_of_a_stranger_is_known_after_its_parent_reaped_it() {
    let place = Place::new();
    // The shell is the parent of the one that we look at.
    let parent = place.sh("mkfifo go; sh -c 'echo $$ > stranger; read x < go; exit 23' & wait; exec sleep 1000");
    let stranger = Process::current_holder(place.pid_in("stranger")).unwrap().unwrap();
    assert_eq!(stranger.exit().unwrap(), Exit::Running);
    assert_eq!(stranger.reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
    std::fs::write(place.path("go"), "x\n").unwrap();
    until("it is reaped", || state_and_parent(stranger.pid()).is_none());
    match stranger.exit().unwrap() {
        Exit::Ended(status) => assert_eq!(status.code, Some(23)),
        Exit::Unknown => println!("this kernel does not tell (before 6.15)"),
        Exit::Running => panic!("it has ended"),
    }
    drop(parent);
}

#[test]
fn the_parent_of_this_process_is_held() {
    let parent = Process::parent().unwrap().unwrap();
    assert!(!parent.has_exited().unwrap());
    assert_ne!(parent.pid(), Pid::this());
}

#[test]
fn a_boot_id_prints_as_the_kernel_prints_it() {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(BootId::current().unwrap().to_string(), text.trim());
    assert!("82ca933f".parse::<BootId>().is_err());
    assert!("+2ca933f-a944-4d88-991d-1ac017d75154".parse::<BootId>().is_err());
    assert!(Pid::new(0).is_none() && Pid::new(-1).is_none());
}

#[test]
fn a_lock_has_one_holder_and_is_waited_for() {
    let place = Place::new();
    let path = place.path("node.lock");
    let held = NodeLock::acquire(&path, Duration::ZERO).unwrap();
    match NodeLock::acquire(&path, Duration::from_millis(10)) {
        Err(LockError::Held { holder, .. }) => assert_eq!(holder, Some(Pid::this())),
        other => panic!("{other:?}"),
    }
    // A child must not carry it on.
    let running = place.sh("exec sleep 1000");
    let second = std::thread::spawn({
        let path = path.clone();
        move || NodeLock::acquire(&path, support::PATIENCE)
    });
    drop(held);
    let second = second.join().unwrap().unwrap();
    drop((running, second));
    // With patience: another test's child between its clone and its exec holds the lock as well.
    NodeLock::acquire(&path, support::PATIENCE).unwrap();
    assert!(matches!(NodeLock::acquire(&place.path("no/such"), Duration::ZERO), Err(LockError::Io { .. })));
}

#[test]
fn a_child_holds_the_lock_until_its_exec() {
    use std::io::{Read as _, Write as _};
    let place = Place::new();
    let path = place.path("node.lock");
    let held = NodeLock::acquire(&path, Duration::ZERO).unwrap();
    let (mut forked, tell_forked) = std::io::pipe().unwrap();
    let (go, mut tell_go) = std::io::pipe().unwrap();
    // The library's own spawn, which leaves descriptors as they were opened: it is the lock that closes on exec.
    let mut command = std::process::Command::new("sleep");
    command.arg("1000");
    // SAFETY: read and write alone, which are safe between fork and exec.
    unsafe {
        command.pre_exec(move || (&tell_forked).write_all(b"x").and_then(|()| (&go).read_exact(&mut [0])));
    }
    let started = std::thread::spawn(move || command.spawn());
    forked.read_exact(&mut [0]).unwrap();
    drop(held);
    assert!(matches!(NodeLock::acquire(&path, Duration::ZERO), Err(LockError::Held { .. })), "the child has not become its program yet");
    tell_go.write_all(b"x").unwrap();
    let mut child = started.join().unwrap().unwrap();
    let taken = NodeLock::acquire(&path, support::PATIENCE);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(taken.is_ok(), "its program carries the lock on");
}

#[test]
fn the_own_process_becomes_the_heir_of_orphans() {
    // Reaping them is tested in a process of its own (guard.rs): reap_any would take other tests' children.
    become_subreaper().unwrap();
    let place = Place::new();
    let running = place.sh("sh -c 'echo $$ > orphan; exec sleep 1000' & while ! [ -s orphan ]; do :; done");
    let orphan = place.pid_in("orphan");
    assert!(running.wait().is_success());
    until("it is ours", || state_and_parent(orphan).is_some_and(|(_, parent)| parent == Pid::this().as_raw()));
    let orphan = Process::current_holder(orphan).unwrap().unwrap();
    orphan.signal(Signal::KILL).unwrap();
    assert!(razar_os::wait_readable(&[orphan.as_fd()], Some(support::PATIENCE)).unwrap()[0]);
    until("it is reaped", || matches!(orphan.exit(), Ok(Exit::Ended(_))));
}

#[test]
fn a_log_is_a_private_regular_file_opened_for_appending() {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let path = place.path("logs/it.log");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (mut again, tag) = append_file(&path).unwrap();
    assert_eq!(tag, place.tag);
    assert_eq!(FileId::of_path(&path).unwrap(), tag);
    (&place.log).write_all(b"one ").unwrap();
    again.write_all(b"two ").unwrap();
    (&place.log).write_all(b"three").unwrap();
    assert_eq!(place.log_text(), "one two three");
    assert_eq!(append_file(std::path::Path::new("/dev/null")).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}
