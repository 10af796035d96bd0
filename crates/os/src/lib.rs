//! What Razar asks of Linux: starting processes, holding on to them, looking at them, killing them; the node's lock, its clock, its
//! notification socket. The product's only unsafe code. No policy, no bus, no files of the node's own formats; of tokio only `AsyncFd`.
//!
//! # The life of a component's process
//! ```no_run
//! # use std::{ffi::{OsStr, OsString}, os::fd::AsFd, path::Path, time::Duration};
//! # use razar_os::*;
//! # async fn life() -> Result<(), Box<dyn std::error::Error>> {
//! // The log file is made first: its device and inode are the tag by which stray processes are found again.
//! let (log, tag) = append_file(Path::new("/var/lib/razar/log/api@1.3.log"))?;
//! let argv = ["python3", "-m", "api"].map(OsString::from);
//! let env = [("PATH", "/usr/bin"), ("PORT", "8000")].map(|(k, v)| (OsString::from(k), OsString::from(v)));
//! let mut order = Spawn::new(OsStr::new("python3"), &argv, Path::new("/srv/api"), log.as_fd());
//! order.env = &env;
//! let process = spawn(&order)?.into_process()?;
//! let identity = process.identity(); // write this down: an agent started later finds the process by it
//! let mut tree = Tree::new(&process, Some(tag), None)?;
//!
//! process.wait_exit().await?;
//! tree.kill(Duration::from_secs(5))?; // first what it left behind, while its number is certain …
//! let status = process.exit()?; // … then reap it
//!
//! // After a restart of the agent:
//! let adopted: Option<Process> = Process::open(&identity)?; // None: it has gone, or the number is another's
//! # Ok(()) }
//! ```
//!
//! # Rules
//! - No signal is sent to a bare pid: [`Process::signal`], [`Process::signal_group`], [`Tree::signal`] and [`Tree::kill`] are the ways.
//! - The agent reaps each child by its [`Process`]; only the guard calls [`reap_any`].
//! - [`spawn()`], [`Tree::sample`] and [`Tree::refresh`] take microseconds to a few milliseconds and may run on the runtime's thread;
//!   [`Tree::kill`] and [`NodeLock::acquire`] wait, and belong on a blocking one.
//! - Times of [`DeadlineTimer`] are [`monotonic_now`]: time since boot, suspension included. `start_time_ticks` are the
//!   kernel's clock ticks since boot, to be compared and nothing else.
//! - What cannot be known is `None` or [`Exit::Unknown`], never a guess; a scan that failed half-way is an error, never a short list.

mod cgroup;
mod descriptors;
mod handover;
mod identity;
mod lock;
mod log_file;
mod notify;
mod pidfd;
mod procfs;
mod reaper;
mod signals;
mod spawn;
mod table;
mod thread;
mod timer;
mod tree;
mod watch;

pub use cgroup::{Cgroup, Cgroups};
pub use descriptors::reserve_descriptors;
pub use handover::{FdReceiver, FdSender, fd_channel, take_inherited};
pub use identity::{BadBootId, BootId, Identity, Pid, start_time_ticks};
pub use lock::{LockError, NodeLock};
pub use log_file::{FileId, append_file, make_private_dir};
pub use notify::{BoundSocket, NOTIFY_BYTES_MAX, Notification, NotifyError, NotifySocket, SOCKET_PATH_BYTES_MAX};
pub use pidfd::{Exit, ExitStatus, Process};
pub use reaper::{Reaped, become_subreaper, reap_any};
pub use rustix::process::Signal;
pub use signals::{ReceivedSignal, SignalFd, wait_readable};
pub use spawn::{Child, Spawn, SpawnError, SpawnStep, spawn};
pub use table::{ProcTable, Tagged};
pub use thread::ThreadTimes;
pub use timer::{DeadlineTimer, monotonic_now};
pub use tree::{KillReport, Member, TaskSample, TaskState, Tree, TreeSample, Usage};
