//! Killing all of a tree: by its cgroup at once, else member by member through pidfds, until a fresh look at `/proc` finds nobody.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;

use super::{Member, Tree, open_member, send};
use crate::identity::Pid;
use crate::pidfd::{open_pidfd, poll_exits};
use crate::procfs::Reader;
use crate::table::ProcTable;
use crate::timer::monotonic_now;

/// Looks taken at most: what forks faster than this can be followed is reported as left over.
const ROUNDS_MAX: u32 = 64;
/// How long births are watched in each round after the first: some lives of a process that does nothing but fork and end.
const CHASE: Duration = Duration::from_millis(4);
/// Newborns looked at in one step of that.
const CHASED_MAX: usize = 64;
/// Looks in a row that found nobody, while others were born, after which nobody counts as left.
const CLEAN_LOOKS_MAX: u32 = 4;
/// Longest wait between two looks while somebody is still dying.
const ROUND_WAIT: Duration = Duration::from_millis(20);

/// What a kill did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillReport {
    /// Members that were killed, each once, by the count; of those that a cgroup killed, the ones that were in it just before.
    pub signalled: u32,
    /// Members alive at the end. Empty: a look at all of `/proc` found nobody.
    pub survivors: Vec<Member>,
}

impl KillReport {
    /// Whether nobody was left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.survivors.is_empty()
    }
}

impl Tree {
    /// Kills all members with SIGKILL, and waits up to `within` until they are dead (zombies are: reaping is the parent's). Blocks the
    /// calling thread: one look at `/proc` if nobody is alive, two and the dying else (up to three more looks while unrelated processes
    /// are being born); use a blocking thread where that matters.
    /// Call it before the main process is reaped, while its number is certain. Members that shed cgroup, session, ancestry and tag
    /// without ever having been seen are not found, and on a busy machine one that does nothing but fork and end may slip through without
    /// a cgroup: kill again if the tag turns up again.
    ///
    /// # Errors
    /// `/proc` cannot be read, or out of descriptors: then nothing is known about what is left. A member that may not be signalled is
    /// no error but a survivor.
    pub fn kill(&mut self, within: Duration) -> io::Result<KillReport> {
        let deadline = monotonic_now() + within;
        let mut signalled = BTreeSet::new();
        let mut reader = Reader::new();
        if let Some(cgroup) = &self.cgroup {
            let members = cgroup.pids().unwrap_or_default();
            let alive = members.into_iter().filter_map(|pid| Some((pid, reader.stat(pid).ok()??)));
            let alive: Vec<_> = alive.filter(|(_, stat)| stat.is_alive()).collect();
            // Not there on old kernels; what is left is found below.
            if cgroup.kill().is_ok() {
                signalled.extend(alive.iter().map(|(pid, stat)| Member { pid: *pid, start_time_ticks: stat.start_time_ticks }));
            }
        }
        let mut living = Vec::new();
        let mut clean_looks = 0;
        for round in 0..ROUNDS_MAX {
            let table = ProcTable::read()?;
            self.refresh(&table);
            living = self.living(&table);
            if living.is_empty() {
                // On a busy machine somebody is always being born, so a few looks that found nobody must do.
                clean_looks += 1;
                if table.is_settled() || clean_looks >= CLEAN_LOOKS_MAX {
                    break;
                }
                // Where somebody was alive, one may have been born and gone on.
                if let Some(last) = table.last_pid()
                    && !signalled.is_empty()
                {
                    self.chase(&mut reader, last, &mut signalled)?;
                }
                continue;
            }
            clean_looks = 0;
            // The group by its own pidfd reaches also those that a look has missed. Old kernels cannot.
            let _ = self.root.as_ref().map(|root| root.signal_group(Signal::KILL));
            let mut dying = Vec::with_capacity(living.len());
            for member in &living {
                if let Some(pidfd) = open_member(*member, &mut reader)?
                    && send(&pidfd, Signal::KILL).unwrap_or(false)
                {
                    signalled.insert(*member);
                    dying.push(pidfd);
                }
            }
            if round > 0
                && let Some(last) = table.last_pid()
            {
                self.chase(&mut reader, last, &mut signalled)?;
            }
            let left = deadline.saturating_sub(monotonic_now());
            wait_for_all(&dying, left.min(ROUND_WAIT))?;
            if left.is_zero() {
                break;
            }
        }
        let signalled = u32::try_from(signalled.len()).unwrap_or(u32::MAX);
        Ok(KillReport { signalled, survivors: living })
    }

    /// For those who are gone, with a child left behind, before a look at all processes has ended: watches who is born, and kills what
    /// has the tag or a member as its parent, as soon as it is there.
    fn chase(&mut self, reader: &mut Reader, mut last: i32, signalled: &mut BTreeSet<Member>) -> io::Result<()> {
        let until = monotonic_now() + CHASE;
        while monotonic_now() < until {
            let Some(now) = reader.last_pid()? else { return Ok(()) };
            // Never backwards when the numbers start over.
            for pid in (last + 1..=now).take(CHASED_MAX).filter_map(Pid::new) {
                // The pidfd first: should the number change hands, the signal still goes to whom it named.
                let Some(pidfd) = open_pidfd(pid)? else { continue };
                let Some(stat) = reader.stat(pid)? else { continue };
                let is_child = Pid::new(stat.ppid).is_some_and(|parent| self.seen.contains_key(&parent));
                let mut has_tag = false;
                for fd in [1, 2] {
                    has_tag |= self.tag.is_some() && reader.fd_target(pid, fd)? == self.tag;
                }
                if (is_child || has_tag) && pid != Pid::this() {
                    self.seen.insert(pid, stat.start_time_ticks);
                    if send(&pidfd, Signal::KILL).unwrap_or(false) {
                        signalled.insert(Member { pid, start_time_ticks: stat.start_time_ticks });
                    }
                }
            }
            last = now;
        }
        Ok(())
    }

    fn living(&self, table: &ProcTable) -> Vec<Member> {
        self.members().filter(|member| table.row(member.pid).is_some_and(|row| row.stat.is_alive())).collect()
    }
}

/// Returns when all have ended, or the time is over.
fn wait_for_all(pidfds: &[OwnedFd], within: Duration) -> io::Result<()> {
    let deadline = monotonic_now() + within;
    let mut waiting: Vec<BorrowedFd<'_>> = pidfds.iter().map(AsFd::as_fd).collect();
    loop {
        let mut still = Vec::with_capacity(waiting.len());
        for fd in waiting {
            if poll_exits(&[fd], Some(Duration::ZERO))? == 0 {
                still.push(fd);
            }
        }
        let left = deadline.saturating_sub(monotonic_now());
        let Some(first) = still.first() else { return Ok(()) };
        if left.is_zero() {
            return Ok(());
        }
        // Any order will do: all must end.
        poll_exits(&[*first], Some(left))?;
        waiting = still;
    }
}
