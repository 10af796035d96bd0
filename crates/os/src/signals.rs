//! Signals of a single-threaded guard, read from a descriptor instead of caught by handlers, and the wait on several descriptors.
//! The agent, which has a runtime, uses tokio's signals instead.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::identity::Pid;

/// A signal taken from the descriptor. Several SIGCHLD may have become one: reap until nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedSignal {
    /// Its number, as `Signal::as_raw`.
    pub number: i32,
    /// Who sent it; none for those of the kernel.
    pub sender: Option<Pid>,
}

impl ReceivedSignal {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, signal: Signal) -> bool {
        self.number == signal.as_raw()
    }
}

/// Blocked signals, readable from a descriptor. Make it before any other thread is started: threads inherit what is blocked.
/// Children started by [`crate::spawn`] do not.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks these signals in the calling thread and opens the descriptor (non-blocking, close-on-exec).
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the set is ours, and emptied before it is used; the descriptor is new and only ours.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd: OwnedFd::from_raw_fd(fd) }) }
        }
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    /// None that a caller can mend.
    pub fn read(&self) -> io::Result<Option<ReceivedSignal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        loop {
            // SAFETY: `info` has room for that many bytes.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if read == size as isize {
                // SAFETY: filled by the kernel; any bits are valid in it.
                let info = unsafe { info.assume_init() };
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                let sender = i32::try_from(info.ssi_pid).ok().and_then(Pid::new);
                return Ok(Some(ReceivedSignal { number, sender }));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(None),
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Blocks until one of the descriptors is readable (a [`SignalFd`], a process that has ended, a pipe that has data or was closed), or the
/// time is over; `None` waits for ever. Says which are, in the order given; all false: the time is over, or a signal interrupted.
///
/// # Errors
/// Out of memory, or a descriptor that is not open.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    // What does not fit the kernel's type is as good as for ever.
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(error) => Err(error.into()),
    }
}
