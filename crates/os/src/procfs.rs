//! Reading single files of `/proc`: stat, schedstat, children, TracerPid, the list of threads, what a descriptor points at.
//! A process that has gone, or that we may not look at, reads as `None`; only a failure of the machine (out of descriptors) is an error.
//! Which processes belong together is decided in `tree.rs`.

use std::fmt::Write as _;
use std::io;
use std::str;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::identity::Pid;
use crate::log_file::FileId;

/// One read of this size takes any `stat`, `schedstat` or `status` whole; longer files are read in several.
const READ_BYTES: usize = 4096;
/// A `children` file beyond this (a quarter of a million children) is not read further.
const FILE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The fields of `/proc/PID/stat` that supervision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) ppid: i32,
    pub(crate) pgrp: i32,
    pub(crate) session: i32,
    pub(crate) utime_ticks: u64,
    pub(crate) stime_ticks: u64,
    pub(crate) threads: u32,
    pub(crate) start_time_ticks: u64,
    pub(crate) rss_pages: u64,
}

impl Stat {
    /// A process is alive while any of its threads is: a main thread that has ended shows Z in a living process.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x') || self.threads > 1
    }
}

/// Parses a `stat` line. The command name may hold spaces and parentheses, so fields are counted from the last `)`.
pub(crate) fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let close = bytes.iter().rposition(|b| *b == b')')?;
    let rest = str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // Numbers in proc(5) count from 1; the state is field 3, so field n is n - 3 steps on.
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    let pgrp = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    let utime_ticks = fields.nth(7)?.parse().ok()?;
    let stime_ticks = fields.next()?.parse().ok()?;
    let threads = fields.nth(4)?.parse().ok()?;
    let start_time_ticks = fields.nth(1)?.parse().ok()?;
    let rss_pages = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, ppid, pgrp, session, utime_ticks, stime_ticks, threads, start_time_ticks, rss_pages })
}

/// Run time and run delay in nanoseconds, the first two fields of `schedstat`.
pub(crate) fn parse_schedstat(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut fields = str::from_utf8(bytes).ok()?.split_ascii_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// A field of `/proc/PID/status` that holds a pid; 0 counts as none.
fn status_pid(bytes: &[u8], field: &str) -> Option<Pid> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().parse().ok().and_then(Pid::new)
}

/// Reads files of `/proc` into one buffer that is used again, so that a pass over many processes does not allocate per file.
pub(crate) struct Reader {
    path: String,
    buf: Vec<u8>,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { path: String::with_capacity(64), buf: Vec::with_capacity(READ_BYTES) }
    }

    pub(crate) fn stat(&mut self, pid: Pid) -> io::Result<Option<Stat>> {
        self.set_path(format_args!("/proc/{pid}/stat"));
        Ok(if self.read()? { parse_stat(&self.buf) } else { None })
    }

    pub(crate) fn task_stat(&mut self, pid: Pid, tid: Pid) -> io::Result<Option<Stat>> {
        self.set_path(format_args!("/proc/{pid}/task/{tid}/stat"));
        Ok(if self.read()? { parse_stat(&self.buf) } else { None })
    }

    /// (run, delay) in nanoseconds; `None` also where the kernel was built without scheduler statistics.
    pub(crate) fn task_schedstat(&mut self, pid: Pid, tid: Pid) -> io::Result<Option<(u64, u64)>> {
        self.set_path(format_args!("/proc/{pid}/task/{tid}/schedstat"));
        Ok(if self.read()? { parse_schedstat(&self.buf) } else { None })
    }

    /// The pid that traces the process's main thread.
    pub(crate) fn tracer(&mut self, pid: Pid) -> io::Result<Option<Pid>> {
        self.set_path(format_args!("/proc/{pid}/status"));
        Ok(if self.read()? { status_pid(&self.buf, "TracerPid") } else { None })
    }

    /// Whether this number is a process's, and not one of its further threads', which `/proc` shows under their numbers too.
    pub(crate) fn is_process(&mut self, pid: Pid) -> io::Result<bool> {
        self.set_path(format_args!("/proc/{pid}/status"));
        Ok(self.read()? && status_pid(&self.buf, "Tgid") == Some(pid))
    }

    /// The number given out last, to a process or a thread.
    pub(crate) fn last_pid(&mut self) -> io::Result<Option<i32>> {
        self.set_path(format_args!("/proc/loadavg"));
        let read = self.read()?;
        Ok(if read { str::from_utf8(&self.buf).ok().and_then(|text| text.trim().rsplit(' ').next()?.parse().ok()) } else { None })
    }

    /// Appends the children that this thread of the process forked. False when there is no such file (gone, or the kernel lacks it).
    pub(crate) fn task_children(&mut self, pid: Pid, tid: Pid, into: &mut Vec<Pid>) -> io::Result<bool> {
        self.set_path(format_args!("/proc/{pid}/task/{tid}/children"));
        if !self.read()? {
            return Ok(false);
        }
        let text = str::from_utf8(&self.buf).unwrap_or_default();
        into.extend(text.split_ascii_whitespace().filter_map(|n| n.parse().ok().and_then(Pid::new)));
        Ok(true)
    }

    /// Threads of the process, the main one included even when it has ended.
    pub(crate) fn tids(&mut self, pid: Pid) -> io::Result<Vec<Pid>> {
        self.set_path(format_args!("/proc/{pid}/task"));
        numbers_in(&self.path)
    }

    /// How many descriptors the process has open; `None` when we may not look.
    pub(crate) fn open_files(&mut self, pid: Pid) -> io::Result<Option<u64>> {
        self.set_path(format_args!("/proc/{pid}/fd"));
        // Kernels from 6.2 give the count as the directory's size; older ones say 0.
        let Some(size) = gone_is_none(rustix::fs::statat(CWD, self.path.as_str(), AtFlags::empty()))?.map(|s| s.st_size) else {
            return Ok(None);
        };
        if size > 0 {
            return Ok(u64::try_from(size).ok());
        }
        Ok(Some(numbers_in(&self.path)?.len() as u64))
    }

    /// Device and inode of what the process's descriptor points at.
    pub(crate) fn fd_target(&mut self, pid: Pid, fd: i32) -> io::Result<Option<FileId>> {
        self.set_path(format_args!("/proc/{pid}/fd/{fd}"));
        Ok(gone_is_none(rustix::fs::statat(CWD, self.path.as_str(), AtFlags::empty()))?.map(|s| FileId::of(&s)))
    }

    fn set_path(&mut self, path: std::fmt::Arguments<'_>) {
        self.path.clear();
        // Writing to a String cannot fail.
        let _ = self.path.write_fmt(path);
    }

    fn read(&mut self) -> io::Result<bool> {
        self.buf.clear();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Some(file) = gone_is_none(rustix::fs::openat(CWD, self.path.as_str(), flags, Mode::empty()))? else {
            return Ok(false);
        };
        loop {
            self.buf.reserve(READ_BYTES);
            let read = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut self.buf));
            let Some(n) = gone_is_none(read)? else { return Ok(false) };
            // A file of /proc fills the buffer unless it has ended, which saves the read that would say 0.
            if n < READ_BYTES || self.buf.len() >= FILE_BYTES_MAX {
                return Ok(true);
            }
        }
    }
}

/// Names of a directory that are process numbers. A directory that has gone has none.
pub(crate) fn numbers_in(path: &str) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return if is_gone(&error) { Ok(found) } else { Err(error) },
    };
    for entry in entries {
        match entry {
            Ok(entry) => found.extend(entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::new)),
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EACCES | libc::EPERM))
}

fn gone_is_none<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_a_parenthesis_in_its_name_is_read() {
        let line = b"7 (a) R 1 (b c) S 1 7 7 0 -1 4194560 1 0 0 0 11 12 0 0 20 0 3 0 4242 1000 55 18446744073709551615\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.ppid, stat.pgrp, stat.session), (b'S', 1, 7, 7));
        assert_eq!((stat.utime_ticks, stat.stime_ticks, stat.threads), (11, 12, 3));
        assert_eq!((stat.start_time_ticks, stat.rss_pages), (4242, 55));
    }

    #[test]
    fn a_cut_line_is_nothing() {
        assert_eq!(parse_stat(b"7 (sh"), None);
        assert_eq!(parse_stat(b"7 (sh) S 1 7"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn a_zombie_main_thread_with_others_alive_is_alive() {
        let line = |state, threads| format!("7 (x) {state} 1 7 7 0 -1 4 1 0 0 0 1 1 0 0 20 0 {threads} 0 42 1000 5");
        assert!(parse_stat(line("Z", 2).as_bytes()).unwrap().is_alive());
        assert!(!parse_stat(line("Z", 1).as_bytes()).unwrap().is_alive());
        assert!(parse_stat(line("T", 1).as_bytes()).unwrap().is_alive());
    }
}
