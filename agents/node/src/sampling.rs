//! What the kernel says of an instance's processes, for the evidence of a probe that failed.

use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::Duration,
};

use razar_os::{TaskState, Tree, monotonic_now};

use crate::policy::evidence::{Sample, Task};

/// Takes samples of a tree; without one there are none.
#[derive(Debug)]
pub(crate) struct Sampler(Option<Arc<Mutex<Tree>>>);

impl Sampler {
    pub(crate) const fn new(tree: Option<Arc<Mutex<Tree>>>) -> Self {
        Self(tree)
    }

    /// A sample, and when it was taken; `None` where there is no tree, or the kernel does not tell. The loop never waits for whoever
    /// measures or clears away that tree: on a machine without a free processor that one may hold it for seconds.
    pub(crate) async fn take(&self) -> Option<(Duration, Sample)> {
        let tree = self.0.as_ref()?;
        let busy = match tree.try_lock() {
            Ok(mut tree) => return sample(&mut tree),
            Err(TryLockError::Poisoned(tree)) => return sample(&mut tree.into_inner()),
            Err(TryLockError::WouldBlock) => Arc::clone(tree),
        };
        let waits = move || sample(&mut busy.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(waits).await.ok().flatten()
    }
}

fn sample(tree: &mut Tree) -> Option<(Duration, Sample)> {
    let seen = tree.sample().ok()?;
    Some((monotonic_now(), sample_of(&seen)))
}

/// A sample of the tree as the policy reads it.
fn sample_of(sample: &razar_os::TreeSample) -> Sample {
    let task = |t: &razar_os::TaskSample| Task {
        tid: t.tid.as_raw().unsigned_abs(),
        state: match t.state {
            TaskState::Running => 'R',
            TaskState::Sleeping => 'S',
            TaskState::Disk => 'D',
            TaskState::Stopped => 'T',
            TaskState::Traced => 't',
            TaskState::Other(letter) => letter,
        },
        run_ns: t.run_ns,
        delay_ns: t.delay_ns,
    };
    Sample { tasks: sample.tasks.iter().map(task).collect(), traced: sample.traced }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn tree() -> Arc<Mutex<Tree>> {
        let own = razar_os::Process::current_holder(razar_os::Pid::this());
        Arc::new(Mutex::new(Tree::new(&own.expect("opened").expect("lives"), None, None).expect("a tree")))
    }

    #[tokio::test]
    async fn whoever_holds_the_tree_holds_the_loop_up_no_more() {
        let tree = tree();
        let (held, holds) = mpsc::channel::<()>();
        let (free, freed) = mpsc::channel::<()>();
        let of_thread = Arc::clone(&tree);
        let holder = std::thread::spawn(move || {
            let guard = of_thread.lock();
            let _ = (held.send(()), freed.recv_timeout(Duration::from_secs(10)));
            drop((guard, freed));
        });
        holds.recv().expect("held");
        let sampler = Sampler::new(Some(tree));
        let asked = tokio::spawn(async move { sampler.take().await });
        // It has begun to wait by now, and the loop, which is to let go, turns meanwhile.
        tokio::task::yield_now().await;
        free.send(()).expect("the loop turned while the tree was held");
        assert!(asked.await.expect("no panic").is_some());
        holder.join().expect("no panic");
    }
}
