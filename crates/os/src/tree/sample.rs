//! What the members of a tree do at one instant: state, run time and run delay of every living task; and what they use.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::{Member, Tree};
use crate::identity::Pid;
use crate::procfs::Reader;
use crate::table::ProcTable;
use crate::timer::monotonic_now;

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
    /// When it was begun, in [`crate::monotonic_now`] time.
    pub taken_at: Duration,
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
        let taken_at = monotonic_now();
        if !children_are_listed()? {
            self.refresh(&ProcTable::read()?);
        }
        let mut walk = Walk { reader: Reader::new(), tasks: Vec::new(), children: Vec::new(), traced: false };
        let mut queue: Vec<Pid> = self.seen.keys().copied().collect();
        queue.extend(self.cgroup.iter().flat_map(|cgroup| cgroup.pids().unwrap_or_default()));
        let mut done = BTreeSet::from([Pid::this()]);
        while let Some(pid) = queue.pop() {
            if !done.insert(pid) {
                continue;
            }
            match walk.process(pid, self.seen.get(&pid).copied())? {
                Some(member) => self.seen.insert(pid, member.start_time_ticks),
                None => self.seen.remove(&pid),
            };
            queue.append(&mut walk.children);
        }
        if self.root.as_ref().is_some_and(|root| self.seen.contains_key(&root.pid())) {
            self.root_seen_ticks = self.root_seen_ticks.max(super::ticks_now());
        }
        walk.tasks.sort_unstable_by_key(|task| (task.pid, task.tid));
        Ok(TreeSample { taken_at, tasks: walk.tasks, traced: walk.traced })
    }

    /// What the members known so far use. Call [`Tree::sample`] or [`Tree::refresh`] before it to count new ones.
    ///
    /// # Errors
    /// As [`Tree::sample`].
    pub fn usage(&self) -> io::Result<Usage> {
        let mut reader = Reader::new();
        let mut usage = Usage::default();
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let page_bytes = rustix::param::page_size() as u64;
        for member in self.members() {
            let Some(stat) = reader.stat(member.pid)? else { continue };
            if stat.start_time_ticks != member.start_time_ticks || !stat.is_alive() {
                continue;
            }
            usage.cpu_ns += (stat.utime_ticks + stat.stime_ticks) * tick_ns;
            usage.rss_bytes += stat.rss_pages * page_bytes;
            usage.threads += u64::from(stat.threads);
            usage.open_files += reader.open_files(member.pid)?.unwrap_or(0);
            usage.processes += 1;
        }
        Ok(usage)
    }
}

struct Walk {
    reader: Reader,
    tasks: Vec<TaskSample>,
    children: Vec<Pid>,
    traced: bool,
}

impl Walk {
    /// Reads one process; `None` when it is not there, or is not the one that was expected.
    fn process(&mut self, pid: Pid, expected: Option<u64>) -> io::Result<Option<Member>> {
        let Some(stat) = self.reader.stat(pid)? else { return Ok(None) };
        if expected.is_some_and(|start| start != stat.start_time_ticks) {
            return Ok(None);
        }
        let member = Some(Member { pid, start_time_ticks: stat.start_time_ticks });
        if !stat.is_alive() {
            return Ok(member);
        }
        let mut threads = 0;
        for tid in self.reader.tids(pid)? {
            threads += u32::from(self.task(pid, tid)?);
        }
        if threads > 0 && !self.traced {
            self.traced = self.reader.tracer(pid)?.is_some();
        }
        Ok(member)
    }

    /// Reads one task; false when it has ended.
    fn task(&mut self, pid: Pid, tid: Pid) -> io::Result<bool> {
        let Some(stat) = self.reader.task_stat(pid, tid)? else { return Ok(false) };
        // A main thread that has ended keeps its children.
        self.reader.task_children(pid, tid, &mut self.children)?;
        let Some(state) = TaskState::of_living(stat.state) else { return Ok(false) };
        let (run_ns, delay_ns) = self.reader.task_schedstat(pid, tid)?.unwrap_or_else(|| {
            let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
            ((stat.utime_ticks + stat.stime_ticks) * tick_ns, 0)
        });
        self.traced |= state == TaskState::Traced;
        self.tasks.push(TaskSample { pid, tid, state, run_ns, delay_ns });
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
