//! For the guard alone: inheriting the orphans of everything below it, and reaping them with their start time read first.
//! The agent reaps its own children one by one (`Process::reap`) and must never call this.

use std::io;
use std::mem::MaybeUninit;

use crate::identity::{self, Pid};
use crate::pidfd::{self, ExitStatus};

/// Dead children taken in one call; the rest waits for the next, so that a fork bomb cannot hold the guard's loop.
const REAPED_PER_CALL_MAX: usize = 1024;

/// Makes the calling process the one that inherits the orphans of all its descendants, instead of init.
///
/// # Errors
/// None on kernels from 3.4.
pub fn become_subreaper() -> io::Result<()> {
    // Any pid sets it; the kernel reads only whether the argument is zero.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// A dead child, now gone for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Its number, free again.
    pub pid: Pid,
    /// Its start time, read before it was reaped.
    pub start_time_ticks: Option<u64>,
    /// The inode of a pidfd opened before it was reaped: with the start time, enough to match it with what the node wrote down.
    pub pidfd_inode: Option<u64>,
    /// How it ended.
    pub status: ExitStatus,
}

/// Reaps every dead child there is, without blocking; at most 1,024 a call, so call again after a full one.
///
/// # Errors
/// None that a caller can mend. Having no children is an empty answer.
pub fn reap_any() -> io::Result<Vec<Reaped>> {
    let mut reaped = Vec::new();
    while reaped.len() < REAPED_PER_CALL_MAX {
        // First only looked at, so that the zombie is still there while its start time is read.
        let Some(pid) = wait_for(libc::P_ALL, 0, libc::WNOWAIT)?.and_then(|info| Pid::new(info.pid)) else { break };
        let start_time_ticks = identity::start_time_ticks(pid).ok().flatten();
        let pidfd_inode = pidfd::open_pidfd(pid).ok().flatten().and_then(|fd| pidfd::inode(std::os::fd::AsFd::as_fd(&fd)).ok());
        let Some(info) = wait_for(libc::P_PID, pid.as_raw().unsigned_abs(), 0)? else { continue };
        reaped.push(Reaped { pid, start_time_ticks, pidfd_inode, status: info.status });
    }
    Ok(reaped)
}

struct Waited {
    pid: i32,
    status: ExitStatus,
}

fn wait_for(kind: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> io::Result<Option<Waited>> {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is writable; zeroed it is valid, and stays zero when nobody has ended.
        let info = unsafe {
            if libc::waitid(kind, id, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG | options) == 0 {
                info.assume_init()
            } else {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ECHILD) => return Ok(None),
                    _ => return Err(error),
                }
            }
        };
        // SAFETY: waitid fills the fields of a SIGCHLD.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        let exited = info.si_code == libc::CLD_EXITED;
        return Ok(Some(Waited {
            pid,
            status: ExitStatus {
                code: exited.then_some(status),
                signal: (!exited).then_some(status),
                core_dumped: info.si_code == libc::CLD_DUMPED,
            },
        }));
    }
}
