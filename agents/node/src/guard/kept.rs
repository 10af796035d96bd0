//! Notification sockets of components, kept open by the guard: what a component says while no agent lives, or says to one that dies before it
//! has written that down, waits in them, and the next agent is given them. The agent's side of it is here too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use razar_os::{BoundSocket, FdReceiver, FdSender, fd_channel};

use super::say;

/// Tells a guard or an agent what it inherits from descriptor [`FIRST`] on: `<sockets>` of them, and `+` if the channel to the guard follows.
pub(super) const KEPT_VARIABLE: &str = "RAZAR_KEPT_SOCKETS";
/// See [`KEPT_VARIABLE`].
const FIRST: i32 = 3;
/// Most sockets that are kept: a process may have 1,024 descriptors where nobody has raised that, and who hands some to a child has them twice
/// while it does.
const KEPT_MAX: usize = 450;
/// Descriptors that guard and agent need beside them, at the least.
const OTHERS: u64 = 64;
/// Sockets beyond those of the last sweep after which the next is due.
const SWEEP_EACH: usize = 64;

/// What the guard keeps.
#[derive(Debug)]
pub(super) struct Kept {
    gives: FdSender,
    takes: FdReceiver,
    sockets: Vec<BoundSocket>,
    /// How many were left by the last sweep.
    swept: usize,
}

impl Kept {
    /// Begins with what the last guard kept, if this one was started by an agent that had it.
    pub(super) fn open() -> io::Result<Self> {
        // First: these numbers are not free.
        let (sockets, _) = inherited();
        let (gives, takes) = fd_channel()?;
        Ok(Self { gives, takes, sockets, swept: 0 })
    }

    /// Takes what agents have given; whether there was anything.
    pub(super) fn take_given(&mut self) -> bool {
        let mut any = false;
        loop {
            let given = match self.takes.receive() {
                Ok(Some(given)) => given,
                Ok(None) => return any,
                Err(error) => {
                    say(&format!("guard: a notification socket cannot be kept: {error}"));
                    return any;
                }
            };
            any = true;
            match BoundSocket::from_fd(given) {
                Ok(socket) => self.sockets.push(socket),
                Err(error) => say(&format!("guard: what an agent gave is no notification socket: {error}")),
            }
            if self.sockets.len() >= self.swept + SWEEP_EACH {
                self.sweep();
            }
        }
    }

    /// Lets go of those whose component has gone: their file is there no more.
    pub(super) fn sweep(&mut self) {
        self.sockets.retain(BoundSocket::is_reachable);
        let most = kept_max();
        if self.sockets.len() > most {
            say(&format!("guard: more than {most} notification sockets: the oldest are not kept"));
            self.sockets.drain(..self.sockets.len() - most);
        }
        self.swept = self.sockets.len();
    }

    /// Keeps nothing any more: what components say is refused until an agent listens.
    pub(super) fn let_go(&mut self) {
        if !self.sockets.is_empty() {
            say("guard: no agent has lived for long: components wait no more for one to hear them");
        }
        self.sockets.clear();
    }

    /// What an agent inherits, and the value of [`KEPT_VARIABLE`] that says so.
    pub(super) fn of_agent(&self) -> (Vec<(BorrowedFd<'_>, i32)>, String) {
        let all = self.sockets.iter().map(AsFd::as_fd).chain([self.gives.as_fd()]);
        (all.zip(FIRST..).collect(), format!("{}+", self.sockets.len()))
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.takes.as_fd()
    }
}

/// What another guard inherits of these sockets, and the value of [`KEPT_VARIABLE`] that says so.
pub(super) fn of_guard<'a>(sockets: &[BorrowedFd<'a>]) -> (Vec<(BorrowedFd<'a>, i32)>, String) {
    let kept: Vec<_> = sockets.iter().copied().take(kept_max()).zip(FIRST..).collect();
    let said = kept.len().to_string();
    (kept, said)
}

/// Most sockets that can be kept here.
fn kept_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(KEPT_MAX, |limit| usize::try_from(limit.saturating_sub(OTHERS) / 2).map_or(KEPT_MAX, |fits| fits.min(KEPT_MAX)))
}

/// What the parent gave to this process.
fn inherited() -> (Vec<BoundSocket>, Option<FdSender>) {
    let Some(said) = std::env::var(KEPT_VARIABLE).ok() else { return (Vec::new(), None) };
    let (sockets, has_channel) = said.strip_suffix('+').map_or((said.as_str(), false), |sockets| (sockets, true));
    let Some(sockets) = sockets.parse::<usize>().ok().filter(|sockets| *sockets <= KEPT_MAX) else { return (Vec::new(), None) };
    let mut given = razar_os::take_inherited(FIRST, sockets + usize::from(has_channel));
    let channel = if has_channel { given.pop().map(FdSender::from) } else { None };
    (given.into_iter().filter_map(|fd| BoundSocket::from_fd(fd).ok()).collect(), channel)
}

/// The agent's side: sockets that the guard kept for it, and the way to have more kept.
#[derive(Debug, Default)]
pub struct KeptSockets {
    to_guard: Option<FdSender>,
    of_last_agent: BTreeMap<PathBuf, BoundSocket>,
}

impl KeptSockets {
    /// What this agent's guard gave it; nothing without one. Call it before anything else is opened: see [`razar_os::take_inherited`].
    #[must_use]
    pub fn inherited() -> Self {
        let (sockets, to_guard) = inherited();
        let by_path = sockets.into_iter().filter(BoundSocket::is_reachable).map(|socket| (socket.path().to_owned(), socket));
        Self { to_guard, of_last_agent: by_path.collect() }
    }

    /// Has a socket kept from now on, until its file is removed.
    ///
    /// # Errors
    /// As [`FdSender::send`]: the guard is gone, or does not keep up. The socket works all the same, as long as this agent lives.
    pub fn keep(&self, socket: &BoundSocket) -> io::Result<()> {
        self.to_guard.as_ref().map_or(Ok(()), |guard| guard.send(socket.as_fd()))
    }

    /// The socket that was bound at `path` for an earlier agent.
    pub fn take(&mut self, path: &Path) -> Option<BoundSocket> {
        self.of_last_agent.remove(path)
    }

    /// Nobody needs what was not taken: those sockets are given up, and every file in `dir` that is not in `wanted` is removed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn settle(&mut self, dir: &Path, wanted: &BTreeSet<PathBuf>) -> io::Result<()> {
        self.of_last_agent.clear();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if !wanted.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}
