//! A process held by its pidfd, after its identity was checked: the only way in this product to watch, signal or reap one.
//! Nothing here takes a bare pid to signal. Trees of processes are in `tree.rs`, the reaping of inherited orphans in `reaper.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::identity::{BootId, Identity, Pid};
use crate::procfs;
use crate::tree::Member;
use crate::watch;

/// How a process ended: exactly one of `code` and `signal` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitStatus {
    /// What it passed to `exit`, 0 to 255.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether the kernel wrote a core (or piped it to a handler).
    pub core_dumped: bool,
}

impl ExitStatus {
    /// From the word that `waitpid` gives.
    #[must_use]
    pub fn from_wait_word(word: i32) -> Self {
        if libc::WIFEXITED(word) {
            Self { code: Some(libc::WEXITSTATUS(word)), signal: None, core_dumped: false }
        } else {
            Self { code: None, signal: Some(libc::WTERMSIG(word)), core_dumped: libc::WCOREDUMP(word) }
        }
    }

    /// Exit code 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}{}", if self.core_dumped { " (core dumped)" } else { "" }),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// What is known of a process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It has not ended.
    Running,
    /// It ended so.
    Ended(ExitStatus),
    /// It ended, and how is not to be learnt from here: not our child, and an old kernel, or its parent has not reaped it yet.
    Unknown,
}

/// A verified process. The pidfd is close-on-exec, and names this one process for ever, whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: OwnedFd,
}

impl Process {
    /// The process of this identity if it still exists (a zombie does). `None`: it has gone, or the number belongs to another.
    ///
    /// # Errors
    /// Out of descriptors, no `/proc`, or a kernel without pidfds: nothing is known then, least of all that it has gone.
    pub fn open(identity: &Identity) -> io::Result<Option<Self>> {
        if identity.boot_id != BootId::current()? {
            return Ok(None);
        }
        // The pidfd first: what is compared afterwards then holds for what the pidfd names.
        let Some(pidfd) = open_pidfd(identity.pid)? else { return Ok(None) };
        let start = procfs::Reader::new().stat(identity.pid)?.map(|stat| stat.start_time_ticks);
        if start != Some(identity.start_time_ticks) || inode(pidfd.as_fd())? != identity.pidfd_inode {
            return Ok(None);
        }
        Ok(Some(Self { identity: *identity, pidfd }))
    }

    /// Gets hold of a process that a [`crate::ProcTable`] or a [`crate::Tree`] has shown; `None` when it has gone.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_member(member: Member) -> io::Result<Option<Self>> {
        let held = Self::current_holder(member.pid)?;
        Ok(held.filter(|process| process.identity.start_time_ticks == member.start_time_ticks))
    }

    /// The process that has this pid now, for those that the caller does not know from before (a parent, a peer that names itself).
    /// Of a pid that was read a while ago, it proves nothing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn current_holder(pid: Pid) -> io::Result<Option<Self>> {
        let Some(pidfd) = open_pidfd(pid)? else { return Ok(None) };
        let Some(stat) = procfs::Reader::new().stat(pid)? else { return Ok(None) };
        let pidfd_inode = inode(pidfd.as_fd())?;
        let identity = Identity { pid, start_time_ticks: stat.start_time_ticks, boot_id: BootId::current()?, pidfd_inode };
        let process = Self { identity, pidfd };
        // Gone meanwhile: the number may have been another's when its start time was read. Not ours to signal: it is there.
        let is_there = match process.send(0, 0) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => true,
            answer => answer?,
        };
        Ok(is_there.then_some(process))
    }

    /// The calling process's parent: for an agent, its guard. `None` when that has gone and the caller was given to another.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parent() -> io::Result<Option<Self>> {
        let ppid = || rustix::process::getppid().and_then(|pid| Pid::new(pid.as_raw_nonzero().get()));
        let Some(pid) = ppid() else { return Ok(None) };
        Ok(Self::current_holder(pid)?.filter(|_| ppid() == Some(pid)))
    }

    pub(crate) fn verified(identity: Identity, pidfd: OwnedFd) -> Self {
        Self { identity, pidfd }
    }

    /// What to write down to find it again.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.identity.pid
    }

    /// A second handle of the same process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { identity: self.identity, pidfd: self.pidfd.try_clone()? })
    }

    /// Sends a signal to this process. False when it has been reaped already (a zombie takes any signal, without effect).
    ///
    /// # Errors
    /// Not allowed to.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.send(signal.as_raw(), 0)
    }

    /// Sends a signal to the whole process group that this process made (its number is the group's), whether or not it still lives.
    /// False when nobody is left in it. `ErrorKind::InvalidInput` on kernels before 6.9, which cannot do it by pidfd.
    ///
    /// # Errors
    /// Not allowed to, or an old kernel.
    pub fn signal_group(&self, signal: Signal) -> io::Result<bool> {
        self.send(signal.as_raw(), libc::PIDFD_SIGNAL_PROCESS_GROUP)
    }

    fn send(&self, signal: i32, flags: u32) -> io::Result<bool> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a system call on a descriptor that we own; a null siginfo means the same as kill(2).
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, no_info, flags) };
        if sent == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) }
    }

    /// Whether it has ended (all its threads; reaped or not). Does not block, costs one system call.
    ///
    /// # Errors
    /// Out of memory.
    pub fn has_exited(&self) -> io::Result<bool> {
        Ok(poll_exits(&[self.pidfd.as_fd()], Some(std::time::Duration::ZERO))? == 1)
    }

    /// Waits until it has ended; several may wait at once. Cancel safe. Needs a tokio runtime with I/O enabled.
    /// It stays a zombie until somebody reaps it.
    ///
    /// # Errors
    /// Out of descriptors, or the runtime is shutting down.
    pub async fn wait_exit(&self) -> io::Result<()> {
        // An own descriptor for each waiter: epoll takes the same one only once.
        let watched = watch::readable(self.pidfd.try_clone()?)?;
        loop {
            let mut ready = watched.readable().await?;
            if self.has_exited()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Takes the exit status of an ended child and frees its number. `None` while it runs. Only the parent can, and only once:
    /// before that, kill what is left of its tree, since the number is certain only until then.
    ///
    /// # Errors
    /// `ECHILD` (as `raw_os_error`): not our child, or reaped already; then see [`Self::exit_of_stranger`].
    pub fn reap(&self) -> io::Result<Option<ExitStatus>> {
        self.wait(WaitIdOptions::empty())
    }

    fn wait(&self, also: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | also;
        let waited = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        Ok(waited.map(|status| ExitStatus {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            core_dumped: status.dumped(),
        }))
    }

    /// How a process that is not our child ended. Known once its parent (the guard, or init) has reaped it, on kernels from 6.15, and as
    /// long as this handle was opened before; `None` otherwise, and while it runs.
    ///
    /// # Errors
    /// None that a caller can mend.
    pub fn exit_of_stranger(&self) -> io::Result<Option<ExitStatus>> {
        let mut info = PidfdInfo { mask: u64::from(libc::PIDFD_INFO_EXIT), ..PidfdInfo::default() };
        // SAFETY: the request carries the size of this very struct, which the kernel fills.
        let asked = unsafe { libc::ioctl(self.pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if asked < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // Old kernels know the request not at all, newer ones say ESRCH of a process without a record.
                Some(libc::ESRCH | libc::EINVAL | libc::ENOTTY | libc::EREMOTE) => Ok(None),
                _ => Err(error),
            };
        }
        let known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
        Ok(known.then(|| ExitStatus::from_wait_word(info.exit_code)))
    }

    /// What is known of its end, reaping it if it is our child and has ended.
    ///
    /// # Errors
    /// None that a caller can mend.
    pub fn exit(&self) -> io::Result<Exit> {
        self.exit_as(self.reap())
    }

    /// As [`Self::exit`], but our child stays a zombie until [`Self::reap`]: freeing one costs the kernel a good part of a millisecond,
    /// and need not come before what its end asks for.
    ///
    /// # Errors
    /// None that a caller can mend.
    pub fn exit_unreaped(&self) -> io::Result<Exit> {
        self.exit_as(self.wait(WaitIdOptions::NOWAIT))
    }

    fn exit_as(&self, waited: io::Result<Option<ExitStatus>>) -> io::Result<Exit> {
        match waited {
            Ok(Some(status)) => Ok(Exit::Ended(status)),
            Ok(None) => Ok(Exit::Running),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => match self.exit_of_stranger()? {
                Some(status) => Ok(Exit::Ended(status)),
                None if self.has_exited()? => Ok(Exit::Unknown),
                None => Ok(Exit::Running),
            },
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// `struct pidfd_info` in its first version, which every kernel that knows the request takes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    /// pid, tgid, ppid, then four pairs of ids.
    ids: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = libc::_IOWR::<PidfdInfo>(0xFF, 11);

pub(crate) fn open_pidfd(pid: Pid) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = pid.rustix() else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // INVAL: the number is a thread's, not a process's.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn inode(pidfd: BorrowedFd<'_>) -> io::Result<u64> {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "the width of st_ino differs between architectures")]
    Ok(rustix::fs::fstat(pidfd)?.st_ino as u64)
}

/// Waits until any of these is readable (a pidfd: its process has ended), or the time is over; `None` waits for ever. Returns how many are.
/// An interrupting signal ends the wait early with 0.
pub(crate) fn poll_exits(fds: &[BorrowedFd<'_>], timeout: Option<std::time::Duration>) -> io::Result<usize> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
