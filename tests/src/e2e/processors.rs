//! What the machine gives to a thread that asks for next to nothing: how long each processor let one wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Sleep between two looks of a thread.
const PAUSE: Duration = Duration::from_millis(20);

/// A thread on each processor, as long as this lives.
#[derive(Debug)]
pub struct Processors {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
}

impl Processors {
    /// Begins to look.
    ///
    /// # Errors
    /// When the kernel does not say which processors there are.
    pub fn watch() -> Result<Self> {
        let (all, over) = (sched_getaffinity(None)?, Arc::new(AtomicBool::new(false)));
        let on = |cpu: usize| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu);
                let pinned = sched_setaffinity(None, &only).is_ok();
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                while pinned && !over.load(Ordering::Relaxed) {
                    std::thread::sleep(PAUSE);
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                longest
            })
        };
        let threads: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).map(on).collect();
        ensure!(!threads.is_empty(), "no processor may be used");
        Ok(Self { over, threads })
    }

    /// The longest that any of them had to wait since.
    #[must_use]
    pub fn longest_wait(mut self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        std::mem::take(&mut self.threads).into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
