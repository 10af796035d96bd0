//! Components' output: one file per incarnation, `logs/<component>.<ordinal>/<generation>.<start>.log`, which its processes append to by
//! themselves. Here the files are made, bounded, read backwards and followed. Lines leave this module without secrets and control
//! characters, unless as [`RawLine`]. Sending them anywhere, and telling of losses, is the caller's.

mod follow;
mod keeper;
mod lines;
mod rotate;
mod spares;
mod text;
mod watcher;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use razar_bus_schema::ids::{Incarnation, Instance};
use razar_os::FileId;

pub use follow::{Follow, From, RawLine};
pub use keeper::{LogKeeper, LogLoss};
pub use lines::last_error_line;
pub use rotate::{LogBounds, Rotation};
pub use text::{ERROR_BYTES_MAX, clean, is_error, redact};

use self::{lines::LINE_BYTES_MAX, spares::Spares, watcher::Watcher};

/// Most lines that one tail gives.
pub const TAIL_LINES_MAX: usize = 10_000;

/// A line fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read; components' files hold no times of their own.
    pub at: SystemTime,
    /// Its text, without secrets and control characters.
    pub text: String,
    /// It was longer than 8 KiB.
    pub cut: bool,
}

/// An incarnation's log, opened for its process.
#[derive(Debug)]
pub struct OpenedLog {
    /// To become stdout and stderr.
    pub file: File,
    /// Device and inode: the tag of its processes.
    pub id: FileId,
    /// Absolute path, if the store's directory is absolute.
    pub path: PathBuf,
}

/// The node's log files; cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    spares: Spares,
    /// Bytes that rotation has cut off the front of each file, so that readers find their place again.
    cuts: Mutex<HashMap<FileId, u64>>,
    watcher: OnceLock<Watcher>,
    /// Only one thread makes the watcher.
    making: Mutex<()>,
}

impl std::fmt::Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl LogStore {
    /// The log files in this directory (absolute; made when the first is opened).
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        let inner = Inner { spares: Spares::new(&dir), dir, cuts: Mutex::default(), watcher: OnceLock::new(), making: Mutex::new(()) };
        Self { inner: Arc::new(inner) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Directory of an instance's logs.
    #[must_use]
    pub fn instance_dir(&self, instance: &Instance) -> PathBuf {
        self.inner.dir.join(instance.key())
    }

    /// Path of an incarnation's log.
    #[must_use]
    pub fn path(&self, instance: &Instance, incarnation: Incarnation) -> PathBuf {
        self.instance_dir(instance).join(format!("{incarnation}.log"))
    }

    /// Opens an incarnation's log for appending; if it is missing, a spare takes its name, or it is made. Fast (some system calls), but on
    /// the disk. Logs of earlier incarnations are removed by the [`LogKeeper`] that is given this one, or by [`Self::prune`].
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(&self, instance: &Instance, incarnation: Incarnation) -> io::Result<OpenedLog> {
        let path = self.path(instance, incarnation);
        self.inner.spares.put_in_place(&path);
        let (file, id) = razar_os::append_file(&path)?;
        // A file that had this number before was another.
        self.cuts().remove(&id);
        Ok(OpenedLog { file, id, path })
    }

    /// Makes the directory of an instance that will start. Blocks on the disk.
    fn expect(&self, instance: &Instance) -> io::Result<()> {
        self.inner.spares.make_dir(&self.instance_dir(instance))
    }

    fn make_spare(&self) -> io::Result<bool> {
        self.inner.spares.make_one()
    }

    /// Removes the instance's old logs beyond the bound, all but that of `live`. Blocks on the disk.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not removed.
    pub fn prune(&self, instance: &Instance, live: Incarnation, bounds: LogBounds) -> io::Result<()> {
        rotate::prune(self, &self.instance_dir(instance), live, bounds.keep)
    }

    /// Rotates an incarnation's log now if it is over its bound; what a [`LogKeeper`] does by itself. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read or cut.
    pub fn rotate(&self, instance: &Instance, incarnation: Incarnation, bounds: LogBounds) -> io::Result<Option<Rotation>> {
        let rotated = rotate::rotate(self, &self.path(instance, incarnation), bounds, &mut None)?;
        self.prune(instance, incarnation, bounds)?;
        Ok(rotated)
    }

    /// The instance's last lines, over rotations and incarnations, oldest first; at most `count`, and 2 MiB. Blocks on the disk.
    ///
    /// # Errors
    /// A file cannot be read; without any file there are no lines.
    pub fn tail(&self, instance: &Instance, count: usize) -> io::Result<Vec<LogLine>> {
        let at = SystemTime::now();
        let count = count.min(TAIL_LINES_MAX);
        let mut found = Vec::new();
        let files = rotate::files(&self.instance_dir(instance))?;
        // Files of one incarnation continue each other; those of two do not.
        for of_one in files.chunk_by(|a, b| a.0 == b.0) {
            if found.len() >= count {
                break;
            }
            let paths: Vec<PathBuf> = of_one.iter().map(|(_, _, path)| path.clone()).collect();
            let missing = count - found.len();
            let bytes = lines::last_bytes(&paths, missing)?;
            let mut older: Vec<LogLine> = lines::last_lines(&bytes, missing).into_iter().map(|line| shown(line, at)).collect();
            older.append(&mut found);
            found = older;
        }
        Ok(found)
    }

    /// Reads an incarnation's log as it grows.
    ///
    /// # Errors
    /// The file is not there, or no watch can be had (`max_user_watches`).
    pub fn follow(&self, instance: &Instance, incarnation: Incarnation, from: From) -> io::Result<Follow> {
        Follow::open(self, &self.path(instance, incarnation), from)
    }

    fn cuts(&self) -> MutexGuard<'_, HashMap<FileId, u64>> {
        self.inner.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watcher(&self) -> io::Result<&Watcher> {
        let _one_at_a_time = self.inner.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = self.inner.watcher.get() {
            return Ok(watcher);
        }
        let made = Watcher::start()?;
        Ok(self.inner.watcher.get_or_init(|| made))
    }
}

fn shown(line: &[u8], at: SystemTime) -> LogLine {
    let kept = line.get(..line.len().min(LINE_BYTES_MAX)).unwrap_or_default();
    LogLine { at, text: text::clean(kept, LINE_BYTES_MAX), cut: kept.len() < line.len() }
}
