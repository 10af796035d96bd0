//! Keeps the settled view on disk: at once where what is done next rests on it, and behind the loop's back where nothing does.
//! Which is which is decided by the policy.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use razar_bus_schema::v1::PlanOnDisk;

use crate::view;

/// What may be written later waits for this: those who act on the same news have better use for the CPU, and more of it may come.
const GATHER: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Pending {
    plan: Option<Box<PlanOnDisk>>,
    /// It is to be written; not while the disk has just refused it.
    due: bool,
    stopping: bool,
}

struct Shared {
    path: PathBuf,
    pending: Mutex<Pending>,
    wake: Condvar,
    /// Held while the file is written, so that an older plan never takes the place of a newer one.
    writing: Mutex<()>,
}

/// Handle of the thread that writes what may be written later; dropping it writes what waits and ends the thread.
pub(crate) struct PlanStore {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl PlanStore {
    /// Keeps plans in the file at `path`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start(path: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared { path: path.to_owned(), pending: Mutex::default(), wake: Condvar::new(), writing: Mutex::new(()) });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("plan-store".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Writes the plan, durably. Blocks on the disk (some milliseconds). What the disk does not take waits for [`Self::retry`].
    pub(crate) fn store(&self, plan: Box<PlanOnDisk>) {
        let writing = lock(&self.shared.writing);
        lock(&self.shared.pending).plan = None;
        self.shared.write(plan);
        drop(writing);
    }

    /// Has the plan written soon. Never waits for the disk.
    pub(crate) fn store_soon(&self, plan: Box<PlanOnDisk>) {
        let mut pending = lock(&self.shared.pending);
        (pending.plan, pending.due) = (Some(plan), true);
        drop(pending);
        self.shared.wake.notify_one();
    }

    /// Tries again what the disk did not take.
    pub(crate) fn retry(&self) {
        let mut pending = lock(&self.shared.pending);
        pending.due = pending.plan.is_some();
        drop(pending);
        self.shared.wake.notify_one();
    }
}

impl Drop for PlanStore {
    fn drop(&mut self) {
        lock(&self.shared.pending).stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut pending = lock(&self.pending);
            while !pending.due && !pending.stopping {
                pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
            }
            let stopping = pending.stopping;
            drop(pending);
            if !stopping {
                std::thread::sleep(GATHER);
            }
            let writing = lock(&self.writing);
            let mut pending = lock(&self.pending);
            let due = std::mem::take(&mut pending.due);
            let plan = pending.plan.take_if(|_| due);
            drop(pending);
            if let Some(plan) = plan {
                self.write(plan);
            }
            drop(writing);
            if stopping {
                return;
            }
        }
    }

    fn write(&self, plan: Box<PlanOnDisk>) {
        if let Err(error) = view::store(&self.path, &plan) {
            tracing::error!(%error, "the plan could not be kept on disk");
            lock(&self.pending).plan.get_or_insert(plan);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn plan(revision: u64) -> Box<PlanOnDisk> {
        Box::new(PlanOnDisk { bucket_epoch: "b1".to_owned(), revision, ..PlanOnDisk::default() })
    }

    fn stored(path: &Path) -> Option<u64> {
        view::load(path).unwrap().map(|plan| plan.revision)
    }

    fn wait_for(path: &Path, revision: u64) {
        let until = Instant::now() + Duration::from_secs(10);
        while stored(path) != Some(revision) {
            assert!(Instant::now() < until, "{:?} is stored, not {revision}", stored(path));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_may_wait_is_written_soon_and_the_newest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        let store = PlanStore::start(&path).unwrap();
        store.store_soon(plan(1));
        wait_for(&path, 1);
        for revision in (2..400).step_by(2) {
            store.store_soon(plan(revision));
            store.store(plan(revision + 1));
            assert_eq!(stored(&path), Some(revision + 1), "it is there at once, and no older one comes after it");
        }
        store.store_soon(plan(1_000));
        drop(store);
        assert_eq!(stored(&path), Some(1_000), "what waits at the end is written");
    }

    #[test]
    fn what_the_disk_does_not_take_is_tried_again_when_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        let store = PlanStore::start(&path).unwrap();
        let in_the_way = dir.path().join("plan.tmp");
        std::fs::create_dir(&in_the_way).unwrap();
        store.store(plan(1));
        assert_eq!(stored(&path), None);
        std::fs::remove_dir(&in_the_way).unwrap();
        store.retry();
        wait_for(&path, 1);
        store.retry();
        store.store(plan(2));
        assert_eq!(stored(&path), Some(2));
    }
}
