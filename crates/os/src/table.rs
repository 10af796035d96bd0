//! One pass over `/proc`: who is whose child, in which group and session, since when, and what its stdout and stderr are.
//! A snapshot, taken once and used for many trees; what belongs to which is decided in `tree.rs`.

use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;

use crate::identity::Pid;
use crate::log_file::FileId;
use crate::procfs::{self, Reader, Stat};
use crate::tree::Member;

/// How often those born while the table was read are added to it; whoever is born after the last time is not in it.
const CATCH_UPS_MAX: u32 = 8;
/// More births than this in one step are not followed: the next look will list them.
const BIRTHS_MAX: i32 = 256;

/// All processes of the machine as they were while it was read: a few ms for some hundreds.
#[derive(Debug)]
pub struct ProcTable {
    processes: HashMap<Pid, Row>,
    /// The highest number that it has looked for, where the kernel tells.
    last: Option<i32>,
    /// Whether nobody was born after that.
    settled: bool,
}

/// A process found by its log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The process.
    pub member: Member,
    /// Whether it leads its session. Its children may lead others.
    pub leads_session: bool,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) stat: Stat,
    /// Read when first asked for: two system calls that most rows never need.
    tags: OnceLock<[Option<FileId>; 2]>,
}

impl Row {
    /// Whether stdout or stderr is this file.
    pub(crate) fn is_tagged(&self, pid: Pid, tag: FileId) -> bool {
        self.tags(pid).contains(&Some(tag))
    }

    fn tags(&self, pid: Pid) -> &[Option<FileId>; 2] {
        self.tags.get_or_init(|| {
            let mut reader = Reader::new();
            [1, 2].map(|fd| reader.fd_target(pid, fd).ok().flatten())
        })
    }
}

impl ProcTable {
    /// Reads `/proc`. Processes that come or go meanwhile may be in it or not.
    ///
    /// # Errors
    /// `/proc` cannot be read, or out of descriptors. An incomplete table is never returned.
    pub fn read() -> io::Result<Self> {
        let mut reader = Reader::new();
        let mut table = Self { processes: HashMap::new(), last: None, settled: false };
        let before = reader.last_pid()?;
        for pid in procfs::numbers_in("/proc")? {
            if let Some(stat) = reader.stat(pid)? {
                table.processes.insert(pid, Row { stat, tags: OnceLock::new() });
            }
        }
        if let Some(before) = before {
            table.catch_up(&mut reader, before)?;
        }
        if table.processes.contains_key(&Pid::this()) {
            Ok(table)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "/proc does not show the calling process: is it mounted, for this pid namespace?"))
        }
    }

    /// Adds those born since `last` was the highest number, until nobody was born meanwhile: a parent may have gone before the listing came
    /// to it, and left a child that the listing had passed.
    fn catch_up(&mut self, reader: &mut Reader, mut last: i32) -> io::Result<()> {
        self.last = Some(last);
        for _ in 0..CATCH_UPS_MAX {
            let Some(now) = reader.last_pid()? else { return Ok(()) };
            if now == last {
                self.settled = true;
                return Ok(());
            }
            // Below: the numbers have started over.
            if now < last || now - last > BIRTHS_MAX {
                return Ok(());
            }
            for pid in (last + 1..=now).filter_map(Pid::new) {
                if self.processes.contains_key(&pid) {
                    continue;
                }
                if let Some(stat) = reader.stat(pid)?
                    && reader.is_process(pid)?
                {
                    let row = Row { stat, tags: OnceLock::new() };
                    // At once: who is as short-lived as this is gone when somebody asks.
                    row.tags(pid);
                    self.processes.insert(pid, row);
                }
            }
            last = now;
            self.last = Some(last);
        }
        Ok(())
    }

    pub(crate) fn last_pid(&self) -> Option<i32> {
        self.last
    }

    /// Whether it is whole: everybody who lived when it was finished is in it.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many processes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Never: the calling process is always in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Whoever has this file as stdout or stderr, by pid. The one that leads its session, if any, is the process that [`crate::spawn()`]
    /// started: so an agent finds what a predecessor started and died before writing it down.
    #[must_use]
    pub fn tagged(&self, tag: FileId) -> Vec<Tagged> {
        let mut found: Vec<Tagged> = self
            .rows()
            .filter(|(pid, row)| row.is_tagged(*pid, tag))
            .map(|(pid, row)| Tagged {
                member: Member { pid, start_time_ticks: row.stat.start_time_ticks },
                leads_session: row.stat.session == pid.as_raw(),
            })
            .collect();
        found.sort_unstable_by_key(|tagged| tagged.member);
        found
    }

    pub(crate) fn row(&self, pid: Pid) -> Option<&Row> {
        self.processes.get(&pid)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (Pid, &Row)> {
        self.processes.iter().map(|(pid, row)| (*pid, row))
    }

    /// Whether this very process, of this start time, is in it.
    pub(crate) fn has(&self, pid: Pid, start_time_ticks: u64) -> bool {
        self.row(pid).is_some_and(|row| row.stat.start_time_ticks == start_time_ticks)
    }

    pub(crate) fn children(&self) -> HashMap<Pid, Vec<Pid>> {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for (pid, row) in self.rows() {
            if let Some(parent) = Pid::new(row.stat.ppid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        children
    }

    /// The calling process and all above it: never anybody's prey.
    pub(crate) fn own_line(&self) -> Vec<Pid> {
        let mut line = vec![Pid::this()];
        let mut at = Pid::this();
        while let Some(parent) = self.row(at).and_then(|row| Pid::new(row.stat.ppid)) {
            if line.contains(&parent) {
                break;
            }
            line.push(parent);
            at = parent;
        }
        line
    }
}
