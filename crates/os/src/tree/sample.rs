//! What the members of a tree do at one instant: state, run time and run delay of every living task; and what they use.

use std::collections::BTreeSet;
use std::io;

use super::Tree;
use crate::identity::Pid;
use crate::procfs::{Reader, Stat};
use crate::table::ProcTable;

/// What a task does, as the kernel's letter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// R: runs, or waits for a CPU.
    Running,
    /// S: waits, interruptibly.
    Sleeping,
    /// D: waits for the disk or the like, not to be interrupted (a vfork parent too, and who stands in a v1 freezer).
    Disk,
    /// T: stopped by a signal.
    Stopped,
    /// t: held by a tracer.
    Traced,
    /// Anything else: idle, parked.
    Other(char),
}

impl TaskState {
    /// None for those that have ended.
    fn of_living(letter: u8) -> Option<Self> {
        Some(match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::Disk,
            b'T' => Self::Stopped,
            b't' => Self::Traced,
            b'Z' | b'X' | b'x' => return None,
            other => Self::Other(char::from(other)),
        })
    }
}

/// One living task. Times are sums since it was started: compare two samples of the same pid and tid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSample {
    /// Its process.
    pub pid: Pid,
    /// Its own number; the main thread's is the pid.
    pub tid: Pid,
    /// What it does.
    pub state: TaskState,
    /// Nanoseconds on a CPU. In steps of a clock tick on kernels without scheduler statistics.
    pub run_ns: u64,
    /// Nanoseconds it waited for a CPU, booked only when it gets one. 0 on kernels without scheduler statistics.
    pub delay_ns: u64,
}

/// All living tasks of a tree at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSample {
    /// Sorted by pid and tid. Empty when nobody lives.
    pub tasks: Vec<TaskSample>,
    /// Whether a tracer holds on to any of them.
    pub traced: bool,
}

/// What a tree uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the living processes since they were started, user and system, their ended threads included.
    pub cpu_ns: u64,
    /// Resident memory, summed: pages shared between processes count for each.
    pub rss_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Threads.
    pub threads: u64,
    /// Living processes.
    pub processes: u64,
}

impl Tree {
    /// Reads every living task: of the members known so far, of those in the cgroup, and of all their descendants, who become members.
    /// About 35 µs a process. It does not look for new orphans: [`Tree::refresh`] does.
    ///
    /// # Errors
    /// `/proc` cannot be read, out of descriptors: never an incomplete sample, except for what came or went while it was taken.
    pub fn sample(&mut self) -> io::Result<TreeSample> {
        let mut sample = TreeSample { tasks: Vec::new(), traced: false };
        self.walk(|walk, pid, _| {
            let mut threads = 0;
            for tid in walk.reader.tids(pid)? {
                threads += u32::from(walk.task(pid, tid, &mut sample)?);
            }
            if threads > 0 && !sample.traced {
                sample.traced = walk.reader.tracer(pid)?.is_some();
            }
            Ok(())
        })?;
        sample.tasks.sort_unstable_by_key(|task| (task.pid, task.tid));
        Ok(sample)
    }

    /// What they use, those known so far and all their descendants, who become members. It costs less than [`Tree::sample`], which looks
    /// at each thread.
    ///
    /// # Errors
    /// As [`Tree::sample`].
    pub fn usage(&mut self) -> io::Result<Usage> {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let page_bytes = rustix::param::page_size() as u64;
        let mut usage = Usage::default();
        self.walk(|walk, pid, stat| {
            usage.cpu_ns += (stat.utime_ticks + stat.stime_ticks) * tick_ns;
            usage.rss_bytes += stat.rss_pages * page_bytes;
            usage.threads += u64::from(stat.threads);
            usage.open_files += walk.reader.open_files(pid)?.unwrap_or(0);
            usage.processes += 1;
            let tids = if stat.threads > 1 { walk.reader.tids(pid)? } else { vec![pid] };
            for tid in tids {
                walk.reader.task_children(pid, tid, &mut walk.children)?;
            }
            Ok(())
        })?;
        Ok(usage)
    }

    /// Comes to each living process once: to the members, and to what `look` says are their children, who become members.
    fn walk(&mut self, mut look: impl FnMut(&mut Walk, Pid, &Stat) -> io::Result<()>) -> io::Result<()> {
        if !children_are_listed()? {
            self.refresh(&ProcTable::read()?);
        }
        let mut walk = Walk { reader: Reader::new(), children: Vec::new() };
        let mut queue: Vec<Pid> = self.seen.keys().copied().collect();
        queue.extend(self.cgroup.iter().flat_map(|cgroup| cgroup.pids().unwrap_or_default()));
        let mut done = BTreeSet::from([Pid::this()]);
        while let Some(pid) = queue.pop() {
            if !done.insert(pid) {
                continue;
            }
            // Not there, or no longer the one that it was.
            let Some(stat) = walk.reader.stat(pid)?.filter(|stat| self.seen.get(&pid).is_none_or(|start| *start == stat.start_time_ticks))
            else {
                self.seen.remove(&pid);
                continue;
            };
            self.seen.insert(pid, stat.start_time_ticks);
            if stat.is_alive() {
                look(&mut walk, pid, &stat)?;
                queue.append(&mut walk.children);
            }
        }
        if self.root.as_ref().is_some_and(|root| self.seen.contains_key(&root.pid())) {
            self.root_seen_ticks = self.root_seen_ticks.max(super::ticks_now());
        }
        Ok(())
    }
}

struct Walk {
    reader: Reader,
    children: Vec<Pid>,
}

impl Walk {
    /// Reads one task; false when it has ended.
    fn task(&mut self, pid: Pid, tid: Pid, into: &mut TreeSample) -> io::Result<bool> {
        let Some(stat) = self.reader.task_stat(pid, tid)? else { return Ok(false) };
        // A main thread that has ended keeps its children.
        self.reader.task_children(pid, tid, &mut self.children)?;
        let Some(state) = TaskState::of_living(stat.state) else { return Ok(false) };
        let (run_ns, delay_ns) = self.reader.task_schedstat(pid, tid)?.unwrap_or_else(|| {
            let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
            ((stat.utime_ticks + stat.stime_ticks) * tick_ns, 0)
        });
        into.traced |= state == TaskState::Traced;
        into.tasks.push(TaskSample { pid, tid, state, run_ns, delay_ns });
        Ok(true)
    }
}

/// Whether the kernel was built with `/proc/PID/task/TID/children`.
fn children_are_listed() -> io::Result<bool> {
    static LISTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if let Some(listed) = LISTED.get() {
        return Ok(*listed);
    }
    let listed = Reader::new().task_children(Pid::this(), Pid::this(), &mut Vec::new())?;
    Ok(*LISTED.get_or_init(|| listed))
}
