//! Who a process is: pid, start time, boot id and the inode of its pidfd.
//! A pid alone, or a pid with its start time, is not an identity: numbers are used again. Nothing here sends a signal or opens a pidfd;
//! that is `pidfd.rs`.

use std::fmt;
use std::io;
use std::num::NonZeroI32;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::procfs;

/// A process number, always positive. It names a process only as long as something proves that the number was not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(NonZeroI32);

impl Pid {
    /// The pid with this number; none for zero and below, which the kernel reads as "a group" or "everybody".
    #[must_use]
    pub fn new(raw: i32) -> Option<Self> {
        NonZeroI32::new(raw).filter(|raw| raw.get() > 0).map(Self)
    }

    /// The number, always above zero.
    #[must_use]
    pub fn as_raw(self) -> i32 {
        self.0.get()
    }

    /// The calling process.
    #[must_use]
    pub fn this() -> Self {
        Self(rustix::process::getpid().as_raw_nonzero())
    }

    /// The number of the calling thread.
    pub(crate) fn this_thread() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero())
    }

    pub(crate) fn rustix(self) -> Option<rustix::process::Pid> {
        rustix::process::Pid::from_raw(self.as_raw())
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kernel's id of this boot, printed as the kernel prints it (`82ca933f-a944-…`). Start times and pids mean nothing across two of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId(u128);

impl BootId {
    /// The id of the running boot, read once from `/proc/sys/kernel/random/boot_id`.
    ///
    /// # Errors
    /// `/proc` is not mounted, or the file does not hold an id.
    pub fn current() -> io::Result<Self> {
        static BOOT: OnceLock<BootId> = OnceLock::new();
        if let Some(known) = BOOT.get() {
            return Ok(*known);
        }
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let read = text.trim().parse().map_err(|BadBootId| io::Error::new(io::ErrorKind::InvalidData, BadBootId))?;
        Ok(*BOOT.get_or_init(|| read))
    }
}

/// The text is not a boot id (32 hex digits, dashes ignored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a boot id: expected 32 hex digits")]
pub struct BadBootId;

impl FromStr for BootId {
    type Err = BadBootId;

    fn from_str(text: &str) -> Result<Self, BadBootId> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadBootId);
        }
        u128::from_str_radix(&digits, 16).map(Self).map_err(|_| BadBootId)
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            (id >> 96) & 0xffff_ffff,
            (id >> 80) & 0xffff,
            (id >> 64) & 0xffff,
            (id >> 48) & 0xffff,
            id & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

/// What a node writes down about a process that it started, and what must all match before it touches that process again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The process number.
    pub pid: Pid,
    /// Field 22 of `/proc/PID/stat`: clock ticks (usually 10 ms) from boot to the start of the process.
    pub start_time_ticks: u64,
    /// The boot in which it was started.
    pub boot_id: BootId,
    /// `fstat(pidfd).st_ino`. Unique per process and boot on kernels from 6.9; the same number for every process on older ones.
    pub pidfd_inode: u64,
}

/// Start time of the process in clock ticks since boot, `None` when there is no such process (a zombie still counts as one).
///
/// # Errors
/// `/proc` cannot be read (out of descriptors, not mounted).
pub fn start_time_ticks(pid: Pid) -> io::Result<Option<u64>> {
    Ok(procfs::Reader::new().stat(pid)?.map(|stat| stat.start_time_ticks))
}
