//! Tells readers that a file has changed: one inotify descriptor and one thread for all of them, asleep while nothing is written.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::watch;

/// Room for some hundred changes per read.
const BUFFER_BYTES: usize = 4096;

type Watches = HashMap<i32, (watch::Sender<u64>, usize)>;

struct Shared {
    inotify: OwnedFd,
    watches: Mutex<Watches>,
}

/// The thread ends when this is dropped.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    _stop: io::PipeWriter,
}

/// One reader's interest in a file.
pub(super) struct Watch {
    shared: Arc<Shared>,
    id: i32,
    changes: watch::Receiver<u64>,
}

impl Watcher {
    pub(super) fn start() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let (stopped, stop) = io::pipe()?;
        let shared = Arc::new(Shared { inotify, watches: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("log-watch".to_owned()).spawn(move || of_thread.run(&stopped))?;
        Ok(Self { shared, _stop: stop })
    }

    pub(super) fn watch(&self, path: &Path) -> io::Result<Watch> {
        // Under the lock, so that the thread finds the entry when the first change comes.
        let mut watches = self.shared.lock();
        let id = inotify::add_watch(&self.shared.inotify, path, WatchFlags::MODIFY)?;
        let (sender, readers) = watches.entry(id).or_insert_with(|| (watch::Sender::new(0), 0));
        *readers += 1;
        Ok(Watch { shared: Arc::clone(&self.shared), id, changes: sender.subscribe() })
    }
}

impl Watch {
    /// Waits for a change since the last call, or since the watch was made. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.shared.lock();
        if let Some((_, readers)) = watches.get_mut(&self.id) {
            *readers -= 1;
            if *readers == 0 {
                watches.remove(&self.id);
                // It may have gone with its file.
                let _ = inotify::remove_watch(&self.shared.inotify, self.id);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, stopped: &io::PipeReader) {
        loop {
            match razar_os::wait_readable(&[self.inotify.as_fd(), stopped.as_fd()], None).as_deref() {
                Ok([_, false]) => self.deliver(),
                _ => return,
            }
        }
    }

    fn deliver(&self) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut changes = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let (id, kind) = match changes.next() {
                Ok(change) => (change.wd(), change.events()),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let watches = self.lock();
            let tell = |sender: &watch::Sender<u64>| sender.send_modify(|changes| *changes = changes.wrapping_add(1));
            if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
                watches.values().for_each(|(sender, _)| tell(sender));
            } else if let Some((sender, _)) = watches.get(&id) {
                tell(sender);
            }
        }
    }
}
