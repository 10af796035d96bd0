//! What the guard does, in one test, because it reaps every child of its process and blocks signals of its thread.

mod support;

use std::os::fd::AsFd;
use std::time::Duration;

use razar_os::{Signal, SignalFd, become_subreaper, reap_any, start_time_ticks, wait_readable};
use support::{PATIENCE, Place, state_and_parent, until};

#[test]
fn orphans_are_inherited_told_of_by_signal_and_reaped_with_their_identity() {
    become_subreaper().unwrap();
    // Any signal that nobody else in the harness waits for would do; the guard uses SIGCHLD.
    let signals = SignalFd::new(&[Signal::CHILD, Signal::USR1]).unwrap();
    assert_eq!(signals.read().unwrap(), None);
    assert_eq!(wait_readable(&[signals.as_fd()], Some(Duration::ZERO)).unwrap(), [false]);
    let place = Place::new();
    let running = place.sh("mkfifo go; sh -c 'echo $$ > orphan; read x < go; exit 5' & while ! [ -s orphan ]; do :; done; exit 4");
    let main = running.process.identity();
    let orphan = place.pid_in("orphan");
    let orphan_started = start_time_ticks(orphan).unwrap();
    // A process-wide signal may be delivered through any thread that does not block it, so send ours to this thread.
    // SAFETY: sends a signal that is blocked here to the calling thread.
    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
    assert!(wait_readable(&[signals.as_fd(), running.process.as_fd()], Some(PATIENCE)).unwrap()[0]);
    let got = signals.read().unwrap().unwrap();
    assert!(got.is(Signal::USR1) || got.is(Signal::CHILD), "{got:?}");

    let mut reaped = Vec::new();
    until("the main process is reaped", || {
        reaped.extend(reap_any().unwrap());
        !reaped.is_empty()
    });
    assert_eq!(reaped.len(), 1);
    assert_eq!((reaped[0].pid, reaped[0].status.code), (main.pid, Some(4)));
    assert_eq!(reaped[0].start_time_ticks, Some(main.start_time_ticks));
    assert_eq!(reaped[0].pidfd_inode, Some(main.pidfd_inode));
    assert!(state_and_parent(main.pid).is_none());

    std::fs::write(place.path("go"), "x\n").unwrap();
    reaped.clear();
    until("the orphan is reaped", || {
        reaped.extend(reap_any().unwrap());
        !reaped.is_empty()
    });
    assert_eq!((reaped[0].pid, reaped[0].status.code, reaped[0].start_time_ticks), (orphan, Some(5), orphan_started));
    assert_eq!(reap_any().unwrap(), []);
    // The one who watches by pidfd learns it all the same, where the kernel tells.
    println!("{:?}", running.process.exit().unwrap());
}
