//! The node's lock: one holder per file, freed by the kernel when the last descriptor is closed.
//! It is a `flock`, so a child between clone and exec still holds it, and it closes on exec. Who may start what is not decided here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::identity::Pid;

/// How often a held lock is tried again: `flock` cannot wait with a limit. Short against the start of an agent, long against a syscall.
const RETRY: Duration = Duration::from_millis(5);

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process held it for the whole wait.
    #[error("{} is held by {}", path.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The pid that the holder wrote into it: for a person to read, not to signal.
        holder: Option<Pid>,
    },
    /// The file could not be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An exclusive lock on a file, held until it is dropped or the process ends. The file stays: removing it would let two hold "it".
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

impl NodeLock {
    /// Takes the lock, trying for `wait` (zero: once). Blocks the calling thread while it waits. The file is created 0600 if missing.
    ///
    /// # Errors
    /// [`LockError::Held`] when the wait ran out, [`LockError::Io`] when the file cannot be opened.
    pub fn acquire(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let io_error = |source: io::Error| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io_error)?;
        let started = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if started.elapsed() >= wait => {
                    return Err(LockError::Held { path: path.to_owned(), holder: holder(&mut file) });
                }
                Err(Errno::WOULDBLOCK) => std::thread::sleep(RETRY.min(wait)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io_error(error.into())),
            }
        }
        // The pid is for a person; the lock holds without it, so a full disk must not keep the node from starting.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", Pid::this()));
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> Option<Pid> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().and_then(Pid::new)
}
