//! The receiving end of sd_notify: a datagram socket on which components say READY=1 and the like, with the sender's pid from the kernel.
//! Whether the sender belongs to the instance is for the caller to judge (its tree knows the members).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType};
use tokio::io::{Interest, unix::AsyncFd};

use crate::identity::Pid;
use crate::log_file::FileId;

/// Longest message taken; the same bound as systemd's.
pub const NOTIFY_BYTES_MAX: usize = 4096;
/// Longest path of a Unix socket on Linux, without its final NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why no notification could be taken.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The path does not fit a socket address, for us and for the component alike.
    #[error("socket path {} has {bytes} bytes, more than the {SOCKET_PATH_BYTES_MAX} that Unix sockets allow: choose a shorter state directory", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A message that is none: to be counted and passed over.
    #[error("notification from {} refused: {what}", pid.map_or_else(|| "an unknown process".to_owned(), |pid| format!("process {pid}")))]
    Malformed {
        /// Who sent it.
        pid: Option<Pid>,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The socket failed.
    #[error("notification socket failed")]
    Io(#[from] io::Error),
}

/// One message. A field is set only if the message has it; fields that are not listed here are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// Who sent it, by the kernel's word. It may have ended since.
    pub pid: Option<Pid>,
    /// READY=1.
    pub ready: bool,
    /// RELOADING=1.
    pub reloading: bool,
    /// STOPPING=1.
    pub stopping: bool,
    /// STATUS=: free text for a person.
    pub status: Option<String>,
    /// WATCHDOG=1: a sign of life.
    pub watchdog: bool,
    /// WATCHDOG=trigger: it asks to be treated as hung.
    pub watchdog_trigger: bool,
    /// WATCHDOG_USEC=: the period it wants from now on.
    pub watchdog_period: Option<Duration>,
    /// EXTEND_TIMEOUT_USEC=: how much longer its start or stop takes.
    pub extend_timeout: Option<Duration>,
    /// MAINPID=: claimed, not verified.
    pub main_pid: Option<Pid>,
    /// ERRNO=.
    pub errno: Option<i32>,
}

impl Notification {
    /// Parses the text of a message; `pid` is left empty.
    ///
    /// # Errors
    /// What is wrong with it, in a few words: not UTF-8, a line without `=`, a number that is none.
    pub fn parse(message: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(message).map_err(|_| "not UTF-8")?;
        let mut out = Self::default();
        for line in text.split('\n').filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once('=').ok_or("a line without =")?;
            match name {
                "READY" => out.ready = value == "1",
                "RELOADING" => out.reloading = value == "1",
                "STOPPING" => out.stopping = value == "1",
                "STATUS" => out.status = Some(value.to_owned()),
                "WATCHDOG" => {
                    out.watchdog = value == "1";
                    out.watchdog_trigger = value == "trigger";
                }
                "WATCHDOG_USEC" => out.watchdog_period = Some(micros(value)?),
                "EXTEND_TIMEOUT_USEC" => out.extend_timeout = Some(micros(value)?),
                "MAINPID" => out.main_pid = Some(value.parse().ok().and_then(Pid::new).ok_or("MAINPID is no pid")?),
                "ERRNO" => out.errno = Some(value.parse().map_err(|_| "ERRNO is no number")?),
                _ => {}
            }
        }
        Ok(out)
    }
}

fn micros(value: &str) -> Result<Duration, &'static str> {
    value.parse().map(Duration::from_micros).map_err(|_| "a time that is no number of microseconds")
}

/// A bound notification socket that nobody listens to: a message waits in it as long as anybody holds it open.
#[derive(Debug)]
pub struct BoundSocket {
    fd: OwnedFd,
    path: PathBuf,
    /// Which file it is: later another may be bound there.
    file: Option<FileId>,
}

impl BoundSocket {
    /// Binds a socket at `path`, mode 0666 so that components of other users reach it, in place of one left behind there.
    ///
    /// # Errors
    /// [`NotifyError::PathTooLong`], or as `bind`: no such directory, no permission.
    pub fn bind(path: &Path) -> Result<Self, NotifyError> {
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(NotifyError::PathTooLong { path: path.to_owned(), bytes });
        }
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true).map_err(io::Error::from)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self { fd: OwnedFd::from(socket), path: path.to_owned(), file: FileId::of_path(path).ok() })
    }

    /// One that another process has bound and given to this one; where it is bound is the kernel's word.
    ///
    /// # Errors
    /// `InvalidInput`: it is no datagram socket, or is bound to no path.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let refused = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        if rustix::net::sockopt::socket_type(&fd)? != SocketType::DGRAM {
            return Err(refused("no datagram socket"));
        }
        let socket = UnixDatagram::from(fd);
        let path = socket.local_addr()?.as_pathname().map(Path::to_owned).ok_or_else(|| refused("a socket without a path"))?;
        let file = FileId::of_path(&path).ok();
        Ok(Self { fd: OwnedFd::from(socket), path, file })
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether who sends to its path still reaches it: the file is there, and is its own.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.file.is_some() && FileId::of_path(&self.path).ok() == self.file
    }

    /// Nobody is to reach it any more: its file is removed, never that of a later socket.
    pub fn remove(&self) {
        if self.is_reachable() {
            // One that is gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl AsRawFd for BoundSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A notification socket that is listened to; its path is what the component gets as `NOTIFY_SOCKET`. Dropping it leaves its file: another
/// process may hold it open too, and go on. See [`BoundSocket::remove`].
#[derive(Debug)]
pub struct NotifySocket {
    socket: AsyncFd<BoundSocket>,
}

impl NotifySocket {
    /// Listens to a bound socket. Needs a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(socket: BoundSocket) -> io::Result<Self> {
        // SAFETY: a `BoundSocket` keeps the same open descriptor as long as it lives, and is given out by shared reference alone.
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: watched.map_err(io::Error::from)? })
    }

    /// The socket itself.
    #[must_use]
    pub fn bound(&self) -> &BoundSocket {
        self.socket.get_ref()
    }

    /// Waits for a message and leaves it where it is: the same one comes again until it is [taken](Self::take), also to another process that
    /// holds this socket. Cancel safe. After [`NotifyError::Malformed`] take it and go on; after [`NotifyError::Io`] bind anew.
    ///
    /// # Errors
    /// See [`NotifyError`].
    pub async fn peek(&self) -> Result<Notification, NotifyError> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(&socket.get_ref().fd, RecvFlags::PEEK)) {
                Ok(received) => return interpret(&received?),
                Err(_not_yet) => {}
            }
        }
    }

    /// Takes the oldest message out, if one is there.
    ///
    /// # Errors
    /// The socket failed.
    pub fn take(&self) -> io::Result<()> {
        match receive(&self.socket.get_ref().fd, RecvFlags::empty()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

struct Datagram {
    bytes: Vec<u8>,
    pid: Option<Pid>,
    cut: bool,
}

fn receive(fd: &OwnedFd, how: RecvFlags) -> io::Result<Datagram> {
    let mut bytes = vec![0; NOTIFY_BYTES_MAX];
    // Room for the sender alone: descriptors sent along are closed by the kernel once the message is taken (which is what answers BARRIER=1).
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | how;
    let message = rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let pid = control.drain().find_map(|part| {
        if let RecvAncillaryMessage::ScmCredentials(sender) = part { Pid::new(sender.pid.as_raw_nonzero().get()) } else { None }
    });
    bytes.truncate(message.bytes);
    Ok(Datagram { bytes, pid, cut: message.flags.contains(ReturnFlags::TRUNC) })
}

fn interpret(datagram: &Datagram) -> Result<Notification, NotifyError> {
    let pid = datagram.pid;
    if datagram.cut {
        return Err(NotifyError::Malformed { pid, what: "longer than 4,096 bytes" });
    }
    match Notification::parse(&datagram.bytes) {
        Ok(parsed) => Ok(Notification { pid, ..parsed }),
        Err(what) => Err(NotifyError::Malformed { pid, what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_read_and_unknown_ones_left_out() {
        let got = Notification::parse(b"READY=1\nSTATUS=a=b c\nX_OWN=1\nWATCHDOG=1\nWATCHDOG_USEC=2500\nMAINPID=7\nERRNO=2\n").unwrap();
        let want = Notification {
            ready: true,
            status: Some("a=b c".to_owned()),
            watchdog: true,
            watchdog_period: Some(Duration::from_micros(2500)),
            main_pid: Pid::new(7),
            errno: Some(2),
            ..Notification::default()
        };
        assert_eq!(got, want);
    }

    #[test]
    fn malformed_messages_are_values() {
        for bad in [&b"READY"[..], b"\xff=1", b"MAINPID=-1", b"MAINPID=x", b"ERRNO=", b"WATCHDOG_USEC=soon"] {
            assert!(Notification::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Notification::parse(b""), Ok(Notification::default()));
    }
}
