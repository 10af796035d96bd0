//! An owned descriptor watched by tokio for readability. Nothing else of tokio is used in this crate.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers the descriptor with the current runtime.
///
/// # Panics
/// As [`AsyncFd`]: outside a tokio runtime with I/O enabled.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor as long as it lives, and is given out by shared reference alone.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
