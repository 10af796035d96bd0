//! Time: the clock since boot, and one timer on it that is accurate below a millisecond (tokio's own timer counts in milliseconds).
//! Which deadlines there are, and which is next, is the caller's business.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

use crate::watch;

/// Time since boot, suspended time included (`CLOCK_BOOTTIME`): a lease goes on running while a laptop sleeps. Never goes back.
#[must_use]
pub fn monotonic_now() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// One timer for one deadline, in [`monotonic_now`] time. Needs a tokio runtime with I/O enabled.
#[derive(Debug)]
pub struct DeadlineTimer {
    fd: AsyncFd<OwnedFd>,
    /// What the kernel knows; none once it has expired.
    deadline: Option<Duration>,
}

impl DeadlineTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// Out of descriptors.
    ///
    /// # Panics
    /// As [`AsyncFd`]: outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::time::timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { fd: watch::readable(fd)?, deadline: None })
    }

    /// Sets the deadline anew (one in the past fires at once), or clears it. An expiry of another deadline that [`Self::expired`] has not
    /// seen yet is forgotten. Free when nothing changes.
    ///
    /// # Errors
    /// Only a deadline beyond what the kernel can hold.
    pub fn set(&mut self, deadline: Option<Duration>) -> io::Result<()> {
        if deadline == self.deadline {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = match deadline {
            None => zero,
            // All zero would mean "not set".
            Some(Duration::ZERO) => Timespec { tv_sec: 0, tv_nsec: 1 },
            Some(at) => Timespec::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        };
        let new = Itimerspec { it_interval: zero, it_value };
        rustix::time::timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &new)?;
        self.deadline = deadline;
        Ok(())
    }

    /// Waits until the deadline has passed, then counts as not set. Pending for ever while nothing is set.
    /// Cancel safe: dropped before it is ready, the expiry is still there for the next call.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn expired(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut count = [0_u8; 8];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(read) => {
                    self.deadline = None;
                    return read.map(|_| ());
                }
                Err(_not_yet) => {}
            }
        }
    }
}
