//! The processes of one incarnation: who belongs to it, what they do, what they use, and how to signal and kill them all.
//! Every member is known by pid and start time, and is signalled only through a pidfd that was checked. The verdict on a sample (hung,
//! starved …) is the node's.

mod kill;
mod sample;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::identity::Pid;
use crate::log_file::FileId;
use crate::pidfd::{Process, open_pidfd};
use crate::procfs::{Reader, Stat};
use crate::table::ProcTable;

pub use kill::KillReport;
pub use sample::{TaskSample, TaskState, TreeSample, Usage};

/// A process as a table shows it: not yet held, so it may end and its number be used again. [`Process::open_member`] gets hold of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its number.
    pub pid: Pid,
    /// Its start time in clock ticks since boot.
    pub start_time_ticks: u64,
}

/// The processes of one incarnation. It remembers whom it has seen, so keep it as long as the incarnation is of interest.
///
/// A member is: the main process; whoever was one before; whoever is in the cgroup; in the session or the group of the main process;
/// whoever has the log file as stdout or stderr; and all descendants of these. Session and group count only as long as their number is
/// certainly still that of the main process: while it is there (a zombie will do, so look before you reap), and later for processes
/// that were started before it was last seen. The calling process and its ancestors are never members.
#[derive(Debug)]
pub struct Tree {
    /// None for what an incarnation left behind whose main process has gone.
    root: Option<Process>,
    tag: Option<FileId>,
    cgroup: Option<Arc<Cgroup>>,
    seen: BTreeMap<Pid, u64>,
    /// When the main process was last seen, in clock ticks since boot.
    root_seen_ticks: u64,
}

impl Tree {
    /// The tree of a main process, with its log file (see [`crate::append_file`]) and its own cgroup if it has them.
    /// Both must be the incarnation's alone, since everybody who has them counts as a member, and the log must be there, or held open, as
    /// long as the tree is used (see [`FileId`]).
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(root: &Process, tag: Option<FileId>, cgroup: Option<Arc<Cgroup>>) -> io::Result<Self> {
        let identity = root.identity();
        let seen = BTreeMap::from([(identity.pid, identity.start_time_ticks)]);
        Ok(Self { root: Some(root.try_clone()?), tag, cgroup, seen, root_seen_ticks: identity.start_time_ticks })
    }

    /// What is left of an incarnation whose main process has gone unseen: found by log file and cgroup, and what descends from those.
    #[must_use]
    pub fn of_orphans(tag: Option<FileId>, cgroup: Option<Arc<Cgroup>>) -> Self {
        Self { root: None, tag, cgroup, seen: BTreeMap::new(), root_seen_ticks: 0 }
    }

    /// Its main process; none for [`Tree::of_orphans`].
    #[must_use]
    pub fn root(&self) -> Option<&Process> {
        self.root.as_ref()
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Arc<Cgroup>> {
        self.cgroup.as_ref()
    }

    /// Adds members known from elsewhere (written down by an earlier agent). Stale ones fall out at the next look.
    pub fn remember(&mut self, members: impl IntoIterator<Item = Member>) {
        self.seen.extend(members.into_iter().map(|member| (member.pid, member.start_time_ticks)));
    }

    /// The members at the last look, zombies included, by pid.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.seen.iter().map(|(pid, start)| Member { pid: *pid, start_time_ticks: *start })
    }

    /// Whether this process was a member at the last look: for the sender of a notification.
    #[must_use]
    pub fn contains(&self, pid: Pid) -> bool {
        self.seen.contains_key(&pid)
    }

    /// Finds all members in a table; those that have gone are forgotten. Cheap besides the table (which many trees may share), but for
    /// two system calls for each process of the machine, once a table, when there is a tag.
    pub fn refresh(&mut self, table: &ProcTable) {
        let root = self.root.as_ref().map(Process::identity);
        let root_is_there = root.is_some_and(|root| table.has(root.pid, root.start_time_ticks));
        if root_is_there {
            self.root_seen_ticks = self.root_seen_ticks.max(ticks_now());
        }
        let spared = table.own_line();
        let mut queue: VecDeque<Pid> = table
            .rows()
            .filter(|(pid, row)| {
                self.seen.get(pid).is_some_and(|start| *start == row.stat.start_time_ticks)
                    || self.is_of_session(&row.stat, root_is_there)
                    || self.tag.is_some_and(|tag| row.is_tagged(*pid, tag))
            })
            .map(|(pid, _)| pid)
            .collect();
        // A cgroup that was removed has nobody in it.
        queue.extend(self.cgroup.iter().flat_map(|cgroup| cgroup.pids().unwrap_or_default()));

        let children = table.children();
        let mut found = BTreeMap::new();
        while let Some(pid) = queue.pop_front() {
            if spared.contains(&pid) || found.contains_key(&pid) {
                continue;
            }
            let Some(row) = table.row(pid) else { continue };
            found.insert(pid, row.stat.start_time_ticks);
            queue.extend(children.get(&pid).into_iter().flatten());
        }
        self.seen = found;
    }

    fn is_of_session(&self, stat: &Stat, root_is_there: bool) -> bool {
        let Some(number) = self.root.as_ref().map(|root| root.pid().as_raw()) else { return false };
        (stat.session == number || stat.pgrp == number) && (root_is_there || stat.start_time_ticks <= self.root_seen_ticks)
    }

    /// Sends a polite signal (SIGTERM, SIGHUP …) to the process group of the main process; to all members where there is no main process.
    /// False when nobody is left to hear it. Members with a group of their own are not reached: that is what [`Self::kill`] is for.
    ///
    /// # Errors
    /// Not allowed to; `/proc` cannot be read.
    pub fn signal(&mut self, signal: Signal) -> io::Result<bool> {
        if let Some(root) = &self.root {
            match root.signal_group(signal) {
                // A kernel before 6.9: each member of the group by its own pidfd.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                answer => return answer,
            }
        }
        let table = ProcTable::read()?;
        self.refresh(&table);
        let group = self.root.as_ref().map(|root| root.pid().as_raw());
        let mut reached = false;
        let mut reader = Reader::new();
        for member in self.members() {
            if table.row(member.pid).is_some_and(|row| group.is_none_or(|group| row.stat.pgrp == group))
                && let Some(pidfd) = open_member(member, &mut reader)?
            {
                reached |= send(&pidfd, signal)?;
            }
        }
        Ok(reached)
    }
}

/// A pidfd of exactly this process: opened first, compared afterwards.
fn open_member(member: Member, reader: &mut Reader) -> io::Result<Option<std::os::fd::OwnedFd>> {
    let Some(pidfd) = open_pidfd(member.pid)? else { return Ok(None) };
    let same = reader.stat(member.pid)?.is_some_and(|stat| stat.start_time_ticks == member.start_time_ticks);
    Ok(same.then_some(pidfd))
}

/// False when it has gone.
fn send(pidfd: &std::os::fd::OwnedFd, signal: Signal) -> io::Result<bool> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Now, in the unit of start times. Rounded down, as they are.
fn ticks_now() -> u64 {
    let per_second = rustix::param::clock_ticks_per_second();
    u64::try_from(crate::timer::monotonic_now().as_nanos() * u128::from(per_second) / 1_000_000_000).unwrap_or(u64::MAX)
}
