//! Starting a process: everything is prepared here, then one vfork-like clone runs `spawn/child.rs`, which ends in `execve`.
//! No closure runs between clone and exec, so the cost does not grow with the caller's memory. Restarting, and what a component's
//! environment holds, are not here.

mod child;
mod program;

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{WaitId, WaitIdOptions};

use crate::identity::{BootId, Identity, Pid};
use crate::pidfd::{self, Process};
use crate::procfs;

/// Descriptors of the child above this are refused: each start marks everything up to the highest.
const FD_TARGET_MAX: i32 = 1023;

/// What to start. Strings are taken as bytes; a NUL in any of them is refused.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program. With a `/` in it a path (a relative one counts from `cwd`), else looked up in the `PATH` of `env`.
    pub program: &'a OsStr,
    /// All arguments, `argv[0]` included. Empty: the program alone.
    pub argv: &'a [OsString],
    /// The whole environment; nothing is inherited.
    pub env: &'a [(OsString, OsString)],
    /// Working directory.
    pub cwd: &'a Path,
    /// Becomes stdout and stderr (stdin is `/dev/null`): a file opened O_APPEND, as by [`crate::append_file`].
    pub log: BorrowedFd<'a>,
    /// More descriptors for the child, as (ours, number in the child); numbers from 3 to 1023, each once. All others are closed by exec.
    pub fds: &'a [(BorrowedFd<'a>, i32)],
    /// Environment variable whose value the child sets to its own pid: `LISTEN_PID` for handed-over sockets. Adds it to `env`.
    pub pid_variable: Option<&'a str>,
    /// Soft limit of open files; the hard limit is raised with it only where it was lower (needs privilege).
    pub nofile: Option<u64>,
    /// A cgroup2 directory that the child is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// How late its timers may be (`PR_SET_TIMERSLACK`), so that several of them are one wake; `None`: as its parent's, mostly 50 µs.
    pub timer_slack: Option<Duration>,
}

impl<'a> Spawn<'a> {
    /// A start with an empty environment, no extra descriptors, no limit, no cgroup and its parent's timer slack.
    #[must_use]
    pub fn new(program: &'a OsStr, argv: &'a [OsString], cwd: &'a Path, log: BorrowedFd<'a>) -> Self {
        Self { program, argv, env: &[], cwd, log, fds: &[], pid_variable: None, nofile: None, cgroup: None, timer_slack: None }
    }
}

/// A child just started: its own session and process group, default signal handlers, nothing blocked.
#[derive(Debug)]
pub struct Child {
    /// Its number, which stays its own at least until it is reaped.
    pub pid: Pid,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// Start time in clock ticks since boot.
    pub start_time_ticks: u64,
    /// Inode of the pidfd.
    pub pidfd_inode: u64,
}

impl Child {
    /// The verified handle to watch, signal and reap it by.
    ///
    /// # Errors
    /// The boot id cannot be read.
    pub fn into_process(self) -> io::Result<Process> {
        let identity =
            Identity { pid: self.pid, start_time_ticks: self.start_time_ticks, boot_id: BootId::current()?, pidfd_inode: self.pidfd_inode };
        Ok(Process::verified(identity, self.pidfd))
    }
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnStep {
    /// Making the process.
    Clone,
    /// Entering its cgroup.
    Cgroup,
    /// Leading a session of its own.
    Session,
    /// Putting its descriptors in place.
    Descriptors,
    /// Entering the working directory.
    WorkingDirectory,
    /// Setting the limit of open files.
    FileLimit,
    /// Loading the program.
    Exec,
    /// Reading the new process's start time or pidfd inode.
    Identify,
}

impl std::fmt::Display for SpawnStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clone => "making the process",
            Self::Cgroup => "entering its cgroup",
            Self::Session => "making a session of its own",
            Self::Descriptors => "putting its descriptors in place",
            Self::WorkingDirectory => "entering the working directory",
            Self::FileLimit => "setting the limit of open files",
            Self::Exec => "loading the program",
            Self::Identify => "reading who the new process is",
        })
    }
}

/// Why nothing was started. No process is left behind by any of these.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// What was asked for cannot be put to the kernel.
    #[error("cannot start: {what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
    },
    /// No such program.
    #[error("program {program:?} not found{}", searched.as_ref().map_or_else(String::new, |path| format!(" in PATH {path:?}")))]
    ProgramNotFound {
        /// As it was asked for.
        program: OsString,
        /// The `PATH` that was searched, when one was.
        searched: Option<OsString>,
    },
    /// It is there, and may not be executed: no x bit, a directory, a noexec mount.
    #[error("{} may not be executed (missing x permission, a directory, or a noexec mount)", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// It is there, and what its `#!` line or ELF header names to run it is not.
    #[error("{} is there, but the interpreter or loader that it names is not", path.display())]
    InterpreterMissing {
        /// The file.
        path: PathBuf,
    },
    /// The kernel does not know how to run such a file.
    #[error("{} is not a program that this machine can run (a script needs a #! line)", path.display())]
    NotAProgram {
        /// The file.
        path: PathBuf,
    },
    /// The working directory is missing, or cannot be entered.
    #[error("working directory {} cannot be entered", path.display())]
    WorkingDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that the kernel refused.
    #[error("failed while {step}")]
    Step {
        /// Which step.
        step: SpawnStep,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SpawnError {
    /// Whether the same start may work a moment later, unchanged: the machine was short of something, or the file was being written.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let Self::Step { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ETXTBSY | libc::EINTR))
    }
}

/// Starts a process. Blocks the calling thread (not the others) until the program is loaded: 60 to 200 µs.
///
/// The child leads its own session and group; stdin is `/dev/null`; signal handlers are the default ones, SIGPIPE too, and none is
/// blocked; descriptors that were not asked for are closed, whether or not they were opened close-on-exec. It is a child of the
/// calling process: reap it with [`Process::reap`].
///
/// # Errors
/// See [`SpawnError`]; whatever it is, nothing was started.
pub fn spawn(spawn: &Spawn<'_>) -> Result<Child, SpawnError> {
    let prepared = Prepared::new(spawn)?;
    run(spawn, &prepared, &mut prepared.plan(spawn))
}

fn run(spawn: &Spawn<'_>, prepared: &Prepared, plan: &mut child::Plan<'_>) -> Result<Child, SpawnError> {
    let started = child::clone_and_exec(plan).map_err(|source| {
        let step = if spawn.cgroup.is_some() && is_of_cgroup(&source) { SpawnStep::Cgroup } else { SpawnStep::Clone };
        SpawnError::Step { step, source }
    })?;
    if let Some((step, errno)) = started.failure {
        reap_failed(started.pidfd.as_fd());
        return Err(prepared.explain(spawn, step, errno));
    }
    match identify(&started) {
        Ok((start_time_ticks, pidfd_inode)) => Ok(Child { pid: started.pid, pidfd: started.pidfd, start_time_ticks, pidfd_inode }),
        Err(source) => {
            // A process that cannot be named cannot be supervised.
            let _ = rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL);
            reap_failed(started.pidfd.as_fd());
            Err(SpawnError::Step { step: SpawnStep::Identify, source })
        }
    }
}

/// What clone3 answers of a cgroup: not ours to write, not one, removed, or one that takes no processes.
fn is_of_cgroup(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EBADF | libc::EBUSY | libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP))
}

fn identify(started: &child::Started) -> io::Result<(u64, u64)> {
    let stat = match procfs::parse_stat(&started.stat) {
        Some(stat) => stat,
        None => procfs::Reader::new().stat(started.pid)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?,
    };
    Ok((stat.start_time_ticks, pidfd::inode(started.pidfd.as_fd())?))
}

/// The child has ended or is about to; a zombie must not stay behind.
fn reap_failed(pidfd: BorrowedFd<'_>) {
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {}
}

/// All that the child reads, in memory that outlives the clone.
struct Prepared {
    path: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cwd: CString,
    /// (ours, number in the child), 1 and 2 included.
    fds: Vec<(i32, i32)>,
    nofile: Option<libc::rlimit>,
}

impl Prepared {
    fn new(spawn: &Spawn<'_>) -> Result<Self, SpawnError> {
        let path = program::resolve(spawn.program, spawn.env, spawn.cwd)?;
        let mut argv = Vec::with_capacity(spawn.argv.len().max(1));
        for argument in spawn.argv {
            argv.push(c_string("an argument", argument)?);
        }
        if argv.is_empty() {
            argv.push(c_string("the program", spawn.program)?);
        }
        let mut envp = Vec::with_capacity(spawn.env.len());
        for (name, value) in spawn.env {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(invalid(format!("{name:?} is no name of an environment variable")));
            }
            let mut line = name.clone();
            line.push("=");
            line.push(value);
            envp.push(c_string("the environment", &line)?);
        }
        if spawn.pid_variable.is_some_and(|name| name.is_empty() || name.bytes().any(|b| b == b'=' || b == 0)) {
            return Err(invalid("the variable for the pid has no usable name".to_owned()));
        }
        Ok(Self {
            path: c_string("the program", path.as_os_str())?,
            argv,
            envp,
            cwd: c_string("the working directory", spawn.cwd.as_os_str())?,
            fds: descriptors(spawn)?,
            nofile: spawn.nofile.map(file_limit),
        })
    }

    fn plan(&self, spawn: &Spawn<'_>) -> child::Plan<'_> {
        let mut pid_line = spawn.pid_variable.map(child::PidLine::new);
        let pid_pointer = pid_line.as_mut().map(child::PidLine::pointer);
        child::Plan {
            path: &self.path,
            argv: child::pointers(&self.argv, None),
            envp: child::pointers(&self.envp, pid_pointer),
            pid_line,
            cwd: &self.cwd,
            fds: &self.fds,
            nofile: self.nofile,
            cgroup: spawn.cgroup.map(|fd| fd.as_raw_fd()),
            timer_slack_nanos: spawn
                .timer_slack
                .map(|slack| libc::c_ulong::try_from(slack.as_nanos()).unwrap_or(libc::c_ulong::MAX).max(1)),
            walks_into_cgroup: false,
        }
    }

    fn explain(&self, spawn: &Spawn<'_>, step: SpawnStep, errno: i32) -> SpawnError {
        let source = io::Error::from_raw_os_error(errno);
        let path = || spawn.cwd.join(OsStr::from_bytes(self.path.as_bytes()));
        match (step, errno) {
            (SpawnStep::WorkingDirectory, _) => SpawnError::WorkingDirectory { path: spawn.cwd.to_owned(), source },
            (SpawnStep::Exec, libc::ENOENT) if path().exists() => SpawnError::InterpreterMissing { path: path() },
            (SpawnStep::Exec, libc::ENOENT | libc::ENOTDIR) => {
                SpawnError::ProgramNotFound { program: spawn.program.to_owned(), searched: None }
            }
            (SpawnStep::Exec, libc::EACCES | libc::EISDIR) => SpawnError::NotExecutable { path: path() },
            (SpawnStep::Exec, libc::ENOEXEC) => SpawnError::NotAProgram { path: path() },
            _ => SpawnError::Step { step, source },
        }
    }
}

fn descriptors(spawn: &Spawn<'_>) -> Result<Vec<(i32, i32)>, SpawnError> {
    let log = spawn.log.as_raw_fd();
    let mut fds = vec![(log, 1), (log, 2)];
    for (source, target) in spawn.fds {
        if !(3..=FD_TARGET_MAX).contains(target) || fds.iter().any(|(_, taken)| taken == target) {
            return Err(invalid(format!("descriptor {target} of the child: numbers from 3 to {FD_TARGET_MAX}, each once")));
        }
        fds.push((source.as_raw_fd(), *target));
    }
    Ok(fds)
}

fn file_limit(soft: u64) -> libc::rlimit {
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let hard = now.maximum.map_or(libc::RLIM_INFINITY, |hard| hard.max(soft));
    libc::rlimit { rlim_cur: soft, rlim_max: hard }
}

fn c_string(what: &str, text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| invalid(format!("{what} holds a NUL byte")))
}

fn invalid(what: String) -> SpawnError {
    SpawnError::Invalid { what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroups;

    #[test]
    fn a_child_that_cannot_be_born_in_its_cgroup_walks_in() {
        let Some(cgroups) = Cgroups::detect() else {
            println!("no cgroup2 that may be written to on this machine: not tested");
            return;
        };
        let mesh = format!("walk-{}", Pid::this());
        let cgroup = cgroups.create(&mesh, "n1", "api.0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = crate::append_file(&dir.path().join("log")).unwrap();
        let argv = ["sleep", "1000"].map(OsString::from);
        let mut order = Spawn::new(OsStr::new("sleep"), &argv, dir.path(), log.as_fd());
        order.cgroup = Some(cgroup.as_fd());
        let prepared = Prepared::new(&order).unwrap();
        let mut plan = prepared.plan(&order);
        plan.walks_into_cgroup = true;
        let process = run(&order, &prepared, &mut plan).unwrap().into_process().unwrap();
        assert_eq!(cgroup.pids().unwrap(), [process.pid()]);
        process.signal(rustix::process::Signal::KILL).unwrap();
        reap_failed(process.as_fd());
        assert!(cgroups.remove(&mesh, "n1", "api.0").unwrap());

        // Something that is no cgroup fails at that step.
        order.cgroup = Some(log.as_fd());
        for walks in [true, false] {
            let mut plan = prepared.plan(&order);
            plan.walks_into_cgroup = walks;
            let error = run(&order, &prepared, &mut plan).unwrap_err();
            assert!(matches!(error, SpawnError::Step { step: SpawnStep::Cgroup, .. }), "{walks}: {error:?}");
        }
    }
}
