//! The thread that makes written records durable, so that the node's loop never waits for the disk.
//! What is written, and in which order, is decided in `journal.rs`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Records of this long share one fdatasync. With the sync itself it stays inside the 100 ms that the mesh promises.
const GATHER: Duration = Duration::from_millis(20);
/// Files that may wait for their sync; more would mean that the disk has stood still for several segments.
const FILES_MAX: usize = 8;

#[derive(Default)]
struct Pending {
    files: Vec<Arc<File>>,
    directory: bool,
    /// Number of records written, the pending ones included.
    mark: u64,
    stopping: bool,
}

struct Shared {
    directory: File,
    pending: Mutex<Pending>,
    wake: Condvar,
    /// Held while files are being synced, so that a caller who flushes waits for what is under way.
    syncing: Mutex<()>,
    synced: AtomicU64,
    error: Mutex<Option<String>>,
    /// A sync has failed since it was last asked.
    failed: AtomicBool,
}

/// Handle of the thread; dropping it syncs what is pending and ends the thread.
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(super) fn start(directory: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            directory: File::open(directory)?,
            pending: Mutex::default(),
            wake: Condvar::new(),
            syncing: Mutex::new(()),
            synced: AtomicU64::new(0),
            error: Mutex::new(None),
            failed: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("journal-sync".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes that the file holds the first `mark` records; `directory` when a file was made. Never waits for the disk, unless it has stood
    /// still for several segments.
    pub(super) fn note(&self, file: &Arc<File>, mark: u64, directory: bool) {
        let mut pending = lock(&self.shared.pending);
        // With something pending the thread is awake, or about to be.
        let sleeps = pending.files.is_empty();
        if !pending.files.iter().any(|f| Arc::ptr_eq(f, file)) {
            pending.files.push(Arc::clone(file));
        }
        pending.mark = mark;
        pending.directory |= directory;
        let crowded = pending.files.len() > FILES_MAX;
        drop(pending);
        if sleeps {
            self.shared.wake.notify_one();
        }
        if crowded {
            self.flush();
        }
    }

    /// Syncs everything noted, in the calling thread.
    pub(super) fn flush(&self) {
        self.shared.sync();
    }

    /// Records known to be on disk.
    pub(super) fn synced(&self) -> u64 {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// What the last sync failed with, until one succeeds.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.shared.error).clone()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        lock(&self.shared.pending).stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl super::Journal {
    /// Has something else that the node appended to synced with the records written now: within 100 ms.
    pub fn sync_with(&self, file: &Arc<File>) {
        self.syncer.note(file, self.written, false);
    }

    /// Whether a sync has failed since this was last asked: what was to be synced may never reach the disk.
    #[must_use]
    pub fn has_sync_failed(&self) -> bool {
        self.syncer.shared.failed.swap(false, Ordering::AcqRel)
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut pending = lock(&self.pending);
            while pending.files.is_empty() && !pending.stopping {
                pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
            }
            let stopping = pending.stopping;
            drop(pending);
            if stopping {
                return self.sync();
            }
            std::thread::sleep(GATHER);
            self.sync();
        }
    }

    fn sync(&self) {
        let _one_at_a_time = lock(&self.syncing);
        let mut pending = lock(&self.pending);
        let (files, directory, mark) = (std::mem::take(&mut pending.files), std::mem::take(&mut pending.directory), pending.mark);
        drop(pending);
        let files_synced = files.iter().try_for_each(|file| file.sync_data());
        let outcome = files_synced.and_then(|()| if directory { self.directory.sync_all() } else { Ok(()) });
        match outcome {
            Ok(()) => {
                self.synced.fetch_max(mark, Ordering::AcqRel);
                *lock(&self.error) = None;
            }
            Err(error) => {
                self.failed.store(true, Ordering::Release);
                *lock(&self.error) = Some(error.to_string());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
