//! The thread that keeps live logs inside their bounds, and between looks makes ahead what starts will need: directories and spare files.
//! A file that nobody writes to costs nothing: the kernel tells of the first write.
//! From then on its size is looked at, the sooner the faster it grows, until it rests again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use razar_bus_schema::ids::{Incarnation, Instance};
use rustix::event::EventfdFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::{
    LogStore,
    rotate::{self, LogBounds},
};

/// A file is looked at no more often than this: at 500 MB/s it grows by 10 MB meanwhile.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// While it is written to, no less often: what a chatty component can write before its flood is seen is 25 MB at 500 MB/s.
const LOOK_MAX: Duration = Duration::from_millis(50);
/// Where the kernel cannot tell of writes (no inotify instance or watch left) a file at rest is looked at so often.
const LOOK_BLIND: Duration = Duration::from_millis(500);
/// The next look comes when the file will have grown by this part of what it has left.
const LOOK_AHEAD: u32 = 2;
/// Spares that were taken are made again so long after: not while a stack boots, which takes them in one go.
const REFILL_AFTER: Duration = Duration::from_secs(2);
/// Room for some hundred changes per read.
const BUFFER_BYTES: usize = 4096;

/// Bytes that an instance's log lost, because it was written faster than it may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLoss {
    /// Instance.
    pub instance: Instance,
    /// Incarnation that wrote.
    pub incarnation: Incarnation,
    /// Bytes lost since the last call.
    pub lost_bytes: u64,
}

struct Kept {
    incarnation: Incarnation,
    path: PathBuf,
    bounds: LogBounds,
    next: Next,
    seen: Option<(Instant, u64)>,
    copied_at: Option<Instant>,
    lost_bytes: u64,
}

/// When a file is looked at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    At(Instant),
    /// When this watch, which fires once, tells of a write.
    Written(i32),
}

#[derive(Default)]
struct State {
    kept: BTreeMap<Instance, Kept>,
    /// Instances that will start, whose directories may be missing.
    expected: BTreeSet<Instance>,
    /// When spares are to be made; `None`: there are enough.
    refill_at: Option<Instant>,
    /// The thread sleeps until then, `None` for ever, or does not sleep.
    sleeps_until: Option<Option<Instant>>,
    stopping: bool,
}

impl State {
    /// A spare is taken: another is made later, unless some are being made now.
    fn refill_later(&mut self) {
        self.refill_at.get_or_insert(Instant::now() + REFILL_AFTER);
    }
}

struct Shared {
    store: LogStore,
    state: Mutex<State>,
    /// Readable when the thread has something new to look at.
    wake: OwnedFd,
    /// `None`: the system has none left.
    inotify: Option<OwnedFd>,
}

/// Handle of the thread, which ends when this is dropped.
pub struct LogKeeper {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for LogKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogKeeper").field("logs", &self.shared.lock().kept.len()).finish_non_exhaustive()
    }
}

impl LogKeeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or descriptor can be made.
    pub fn start(store: LogStore) -> std::io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let inotify = inotify.inspect_err(|error| tracing::warn!(%error, "logs are looked at, since writes to them are not told")).ok();
        let state = State { refill_at: Some(Instant::now()), ..State::default() };
        let shared = Arc::new(Shared { store, state: Mutex::new(state), wake, inotify });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log-keeper".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Makes the directory of an instance that will start, in the background.
    pub fn expect(&self, instance: Instance) {
        let mut state = self.shared.lock();
        state.expected.insert(instance);
        state.refill_later();
        drop(state);
        self.shared.wake();
    }

    /// Keeps this incarnation's log, and how many older ones there are, inside its bounds from now on, in place of the instance's earlier
    /// one.
    pub fn keep(&self, instance: Instance, incarnation: Incarnation, bounds: LogBounds) {
        let path = self.shared.store.path(&instance, incarnation);
        let mut state = self.shared.lock();
        let lost_bytes = state.kept.get(&instance).map_or(0, |kept| kept.lost_bytes);
        // Not while it starts.
        let look_at = Instant::now() + LOOK_MIN;
        let kept = Kept { incarnation, path, bounds, next: Next::At(look_at), seen: None, copied_at: None, lost_bytes };
        state.refill_later();
        let before = state.kept.insert(instance, kept);
        // Where many start at once, it is awake in time for most.
        let oversleeps = state.sleeps_until.is_some_and(|until| until.is_none_or(|until| until > look_at));
        drop(state);
        self.shared.disarm(before);
        if oversleeps {
            self.shared.wake();
        }
    }

    /// No longer looks after this incarnation's log: its process has gone.
    pub fn forget(&self, instance: &Instance, incarnation: Incarnation) {
        let mut state = self.shared.lock();
        if state.kept.get(instance).is_none_or(|kept| kept.incarnation != incarnation) {
            return;
        }
        let before = state.kept.remove(instance);
        drop(state);
        self.shared.disarm(before);
    }

    /// What was lost since the last call: to be said once a second or so, never line by line.
    #[must_use]
    pub fn losses(&self) -> Vec<LogLoss> {
        let mut state = self.shared.lock();
        let lost = state.kept.iter_mut().filter(|(_, kept)| kept.lost_bytes > 0);
        lost.map(|(instance, kept)| LogLoss {
            instance: instance.clone(),
            incarnation: kept.incarnation,
            lost_bytes: std::mem::take(&mut kept.lost_bytes),
        })
        .collect()
    }
}

impl Drop for LogKeeper {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full is as good as awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A watch that has not fired would outlive its file's keeping.
    fn disarm(&self, kept: Option<Kept>) {
        if let (Some(inotify), Some(Next::Written(id))) = (&self.inotify, kept.map(|kept| kept.next)) {
            let _ = inotify::remove_watch(inotify, id);
        }
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            if state.stopping {
                return;
            }
            let at = |kept: &Kept| if let Next::At(at) = kept.next { Some(at) } else { None };
            let due = state.kept.iter().filter_map(|(i, kept)| Some((at(kept)?, i))).min().map(|(at, i)| (at, i.clone()));
            let now = Instant::now();
            let something =
                due.as_ref().is_some_and(|(at, _)| *at <= now) || !state.expected.is_empty() || state.refill_at.is_some_and(|at| at <= now);
            let until = due.as_ref().map(|(at, _)| *at).into_iter().chain(state.refill_at).min();
            state.sleeps_until = (!something).then_some(until);
            drop(state);
            match due {
                Some((at, instance)) if at <= now => self.look(&instance),
                _ if something => self.make_ahead(now),
                _ => self.wait(until.map(|at| at.saturating_duration_since(now))),
            }
        }
    }

    /// Makes one thing that a start will need; called when there is one to be made.
    fn make_ahead(&self, now: Instant) {
        let mut state = self.lock();
        // What cannot be made now is made, or fails, when it is needed.
        if let Some(instance) = state.expected.pop_first() {
            drop(state);
            let _ = self.store.expect(&instance);
            return;
        }
        // Who takes a spare from here on says when another is made.
        state.refill_at = None;
        drop(state);
        if self.store.make_spare().unwrap_or(false) {
            self.lock().refill_at = Some(now);
        }
    }

    /// Sleeps until a look is due, something is to be kept, or a file at rest is written to.
    fn wait(&self, limit: Option<Duration>) {
        let mut fds = vec![self.wake.as_fd()];
        fds.extend(self.inotify.as_ref().map(|inotify| inotify.as_fd()));
        if razar_os::wait_readable(&fds, limit).is_err() {
            // Out of memory: not at once again.
            std::thread::sleep(LOOK_MAX);
        }
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.take_writes();
    }

    fn take_writes(&self) {
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut changes = inotify::Reader::new(inotify, &mut buffer);
        loop {
            let (id, kind) = match changes.next() {
                Ok(change) => (change.wd(), change.events()),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let all = kind.contains(ReadFlags::QUEUE_OVERFLOW);
            let now = Instant::now();
            for kept in self.lock().kept.values_mut().filter(|kept| matches!(kept.next, Next::Written(of) if all || of == id)) {
                // How fast it grows is seen from here on.
                kept.seen = kept.seen.map(|(_, size)| (now, size));
                kept.next = Next::At(now + LOOK_MIN);
            }
        }
    }

    fn look(&self, instance: &Instance) {
        let read = |kept: &Kept| (kept.path.clone(), kept.bounds, kept.copied_at, kept.incarnation, kept.seen.is_none());
        let Some((path, bounds, mut copied_at, incarnation, first)) = self.lock().kept.get(instance).map(read) else { return };
        // The lock is not held while the disk works.
        let mut size = size_of(&path);
        let mut rotated = None;
        if size > bounds.max_size_bytes {
            rotated = rotate::rotate(&self.store, &path, bounds, &mut copied_at).ok().flatten();
            size = size_of(&path);
        }
        if (rotated.is_some() || first)
            && let Err(error) = self.store.prune(instance, incarnation, bounds)
        {
            tracing::warn!(%instance, %error, "cannot remove old logs");
        }
        let mut state = self.lock();
        let Some(kept) = state.kept.get_mut(instance).filter(|kept| kept.path == path) else { return };
        kept.copied_at = copied_at;
        kept.lost_bytes += rotated.map_or(0, |r| r.lost_bytes);
        let now = Instant::now();
        kept.next = match kept.pause(now, size, rotated.is_some()) {
            Some(pause) => Next::At(now + pause),
            None => self.arm(&path, size).map_or(Next::At(now + LOOK_BLIND), |armed| armed.unwrap_or(Next::At(now + LOOK_MIN))),
        };
        kept.seen = Some((now, size));
    }

    /// Lets the kernel tell of the next write. `Ok(None)`: there was one meanwhile.
    fn arm(&self, path: &std::path::Path, size: u64) -> io::Result<Option<Next>> {
        let inotify = self.inotify.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let id = inotify::add_watch(inotify, path, WatchFlags::MODIFY | WatchFlags::ONESHOT)?;
        Ok((size_of(path) == size).then_some(Next::Written(id)))
    }
}

fn size_of(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

impl Kept {
    /// How long until the next look; `None`: it rests.
    fn pause(&self, now: Instant, size: u64, rotated: bool) -> Option<Duration> {
        let left = self.bounds.max_size_bytes.saturating_sub(size);
        let wait = match self.seen {
            // After a rotation the growth is unknown again; it was fast before.
            _ if rotated => LOOK_MIN,
            Some((at, before)) if size > before => {
                let grown = u128::from(size - before).max(1);
                let nanos = now.duration_since(at).as_nanos() * u128::from(left) / grown / u128::from(LOOK_AHEAD);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            Some((_, before)) if size == before => return None,
            _ => LOOK_MAX,
        };
        Some(wait.clamp(LOOK_MIN, LOOK_MAX))
    }
}
