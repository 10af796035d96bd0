//! The receiving end of sd_notify: a datagram socket on which components say READY=1 and the like, with the sender's pid from the kernel.
//! Whether the sender belongs to the instance is for the caller to judge (its tree knows the members).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use tokio::io::unix::AsyncFd;

use crate::identity::Pid;
use crate::log_file::FileId;
use crate::watch;

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

/// A bound notification socket; its path is what the component gets as `NOTIFY_SOCKET`. Dropping it removes its file, never a later socket's.
#[derive(Debug)]
pub struct NotifySocket {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
    /// Which file it is: by the time this one is dropped another may be bound there.
    file: Option<FileId>,
}

impl NotifySocket {
    /// Binds a socket at `path`, mode 0666 so that components of other users reach it, in place of one left behind there.
    /// Needs a tokio runtime with I/O enabled.
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
        let fd = watch::readable(OwnedFd::from(socket))?;
        Ok(Self { fd, path: path.to_owned(), file: FileId::of_path(path).ok() })
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next message. Cancel safe. After [`NotifyError::Malformed`] go on; after [`NotifyError::Io`] bind anew.
    ///
    /// # Errors
    /// See [`NotifyError`].
    pub async fn recv(&self) -> Result<Notification, NotifyError> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| receive(fd.get_ref())) {
                Ok(received) => return interpret(&received?),
                Err(_not_yet) => {}
            }
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // One that is gone already is as good; one that another socket was bound in place of is not this one's to remove.
        if self.file.is_some() && FileId::of_path(&self.path).ok() == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Datagram {
    bytes: Vec<u8>,
    pid: Option<Pid>,
    cut: bool,
}

fn receive(fd: &OwnedFd) -> io::Result<Datagram> {
    let mut bytes = vec![0; NOTIFY_BYTES_MAX];
    // Room for the sender alone: descriptors sent along are closed by the kernel (which is also what answers BARRIER=1).
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
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
