//! The thread that keeps live logs inside their bounds: it looks at each file's size, the sooner the faster the file grows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use razar_bus_schema::ids::{Incarnation, Instance};

use super::{
    LogStore,
    rotate::{self, LogBounds},
};

/// A file is looked at no more often than this: at 100 MB/s it grows by 2 MB meanwhile.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// And no less often: what a quiet component can write before its flood is seen is 50 MB at 100 MB/s.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// The next look comes when the file will have grown by this part of what it has left.
const LOOK_AHEAD: u32 = 2;

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
    look_at: Instant,
    seen: Option<(Instant, u64)>,
    copied_at: Option<Instant>,
    lost_bytes: u64,
}

#[derive(Default)]
struct State {
    kept: BTreeMap<Instance, Kept>,
    stopping: bool,
}

struct Shared {
    store: LogStore,
    state: Mutex<State>,
    wake: Condvar,
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
    /// No thread can be made.
    pub fn start(store: LogStore) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { store, state: Mutex::default(), wake: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log-keeper".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Keeps this incarnation's log inside its bounds from now on, in place of the instance's earlier one.
    pub fn keep(&self, instance: Instance, incarnation: Incarnation, bounds: LogBounds) {
        let path = self.shared.store.path(&instance, incarnation);
        let mut state = self.shared.lock();
        let lost_bytes = state.kept.get(&instance).map_or(0, |kept| kept.lost_bytes);
        let kept = Kept { incarnation, path, bounds, look_at: Instant::now(), seen: None, copied_at: None, lost_bytes };
        state.kept.insert(instance, kept);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// No longer looks after the instance's log: its process has gone.
    pub fn forget(&self, instance: &Instance) {
        self.shared.lock().kept.remove(instance);
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
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            if state.stopping {
                return;
            }
            let now = Instant::now();
            let due = state.kept.iter().min_by_key(|(_, kept)| kept.look_at).map(|(i, kept)| (i.clone(), kept.look_at));
            match due {
                None => drop(self.wake.wait(state)),
                Some((_, at)) if at > now => drop(self.wake.wait_timeout(state, at - now)),
                Some((instance, _)) => {
                    let Some(kept) = state.kept.get_mut(&instance) else { continue };
                    let (path, bounds, mut copied_at, incarnation) = (kept.path.clone(), kept.bounds, kept.copied_at, kept.incarnation);
                    kept.look_at = now + LOOK_MAX;
                    // The lock is not held while the disk works.
                    drop(state);
                    let rotated = rotate::rotate(&self.store, &path, bounds, &mut copied_at);
                    let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
                    if let (Ok(Some(_)), Some(dir)) = (&rotated, path.parent()) {
                        let _ = rotate::prune(&self.store, dir, incarnation, bounds.keep);
                    }
                    let mut state = self.lock();
                    let Some(kept) = state.kept.get_mut(&instance).filter(|kept| kept.path == path) else { continue };
                    kept.copied_at = copied_at;
                    kept.lost_bytes += rotated.as_ref().ok().and_then(Option::as_ref).map_or(0, |r| r.lost_bytes);
                    kept.plan_look(size, matches!(rotated, Ok(Some(_))));
                }
            }
        }
    }
}

impl Kept {
    fn plan_look(&mut self, size: u64, rotated: bool) {
        let now = Instant::now();
        let left = self.bounds.max_size_bytes.saturating_sub(size);
        let wait = match self.seen {
            // After a rotation the growth is unknown again; it was fast before.
            _ if rotated => LOOK_MIN,
            Some((at, before)) if size > before => {
                let grown = u128::from(size - before).max(1);
                let nanos = now.duration_since(at).as_nanos() * u128::from(left) / grown / u128::from(LOOK_AHEAD);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            _ => LOOK_MAX,
        };
        self.seen = Some((now, size));
        self.look_at = now + wait.clamp(LOOK_MIN, LOOK_MAX);
    }
}
