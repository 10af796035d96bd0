//! What each component's processes use, measured every few seconds off the loop: CPU, memory, open files, threads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use razar_bus_schema::{ids::Instance, v1};
use razar_os::{Tree, monotonic_now};
use tokio::sync::mpsc;

use crate::{news::News, processes::Processes};

/// Time between two measurements.
const PERIOD: Duration = Duration::from_secs(5);

/// CPU time of an instance when it was measured last: (when, nanoseconds).
type CpuSeen = BTreeMap<Instance, (Duration, u64)>;

/// The newest measurements.
#[derive(Debug, Default)]
pub(crate) struct Usages {
    newest: BTreeMap<Instance, v1::ResourceUsage>,
    seen: Arc<Mutex<CpuSeen>>,
    next_at: Duration,
}

impl Usages {
    /// The newest measurement of `instance`.
    #[must_use]
    pub(crate) fn get(&self, instance: &Instance) -> Option<v1::ResourceUsage> {
        self.newest.get(instance).copied()
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Instance, &v1::ResourceUsage)> {
        self.newest.iter()
    }

    pub(crate) fn put(&mut self, usages: BTreeMap<Instance, v1::ResourceUsage>) {
        self.newest = usages;
    }

    pub(crate) fn forget(&mut self, instance: &Instance) {
        self.newest.remove(instance);
    }

    /// Measures on a thread of its own when the time has come.
    pub(crate) fn measure_when_due(&mut self, processes: &Processes, news: &mpsc::Sender<News>) {
        let now = monotonic_now();
        if now < self.next_at {
            return;
        }
        // Asked at each second, some of which come a little late: the fifth is due in any case.
        self.next_at = now + PERIOD - Duration::from_millis(500);
        let trees: Vec<_> = processes.iter().map(|(id, running)| (id.clone(), running.tree.clone())).collect();
        let (news, seen) = (news.clone(), self.seen.clone());
        tokio::task::spawn_blocking(move || {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::take(&mut *seen);
            let mut usages = BTreeMap::new();
            for (id, tree) in trees {
                if let Some((usage, cpu)) = measure(&tree, before.get(&id).copied()) {
                    usages.insert(id.clone(), usage);
                    seen.insert(id, cpu);
                }
            }
            let _ = news.blocking_send(News::Measured(usages));
        });
    }
}

fn measure(tree: &Mutex<Tree>, before: Option<(Duration, u64)>) -> Option<(v1::ResourceUsage, (Duration, u64))> {
    let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
    let usage = tree.usage().ok()?;
    let now = monotonic_now();
    let cpu_millis = before.map_or(0, |(at, cpu_ns)| {
        let span = now.saturating_sub(at).as_nanos().max(1);
        u32::try_from(u128::from(usage.cpu_ns.saturating_sub(cpu_ns)) * 1_000 / span).unwrap_or(u32::MAX)
    });
    let bounded = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let record = v1::ResourceUsage {
        cpu_millis,
        memory_bytes: usage.rss_bytes,
        open_files: bounded(usage.open_files),
        threads: bounded(usage.threads),
        processes: bounded(usage.processes),
    };
    Some((record, (now, usage.cpu_ns)))
}
