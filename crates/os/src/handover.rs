//! Descriptors that outlive the process which opened them: given to another process on the same machine, and inherited by a child.
//! What they are, and when they are given up, is the caller's matter.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType,
    },
};

/// Goes with each descriptor: a message without a byte would look like the end of the other side.
const MARK: &[u8] = b"f";

/// The end of a channel that gives descriptors. It is a descriptor itself, and may be inherited.
#[derive(Debug)]
pub struct FdSender(OwnedFd);

/// The end of a channel that takes descriptors.
#[derive(Debug)]
pub struct FdReceiver(OwnedFd);

/// A channel for descriptors. What was given waits in the kernel, some hundreds at most, as long as the receiving end is open, whatever
/// becomes of the giver. Both ends are close-on-exec and never block.
///
/// # Errors
/// Out of descriptors.
pub fn fd_channel() -> io::Result<(FdSender, FdReceiver)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sends, receives) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((FdSender(sends), FdReceiver(receives)))
}

impl FdSender {
    /// Gives a duplicate of `fd` to whoever receives.
    ///
    /// # Errors
    /// `WouldBlock`: too many wait. `BrokenPipe`: nobody can receive any more.
    pub fn send(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(&self.0, &[IoSlice::new(MARK)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }
}

impl From<OwnedFd> for FdSender {
    /// An inherited end.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for FdSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FdReceiver {
    /// The next descriptor that was given, close-on-exec; `None`: none waits.
    ///
    /// # Errors
    /// Out of descriptors: what was given with that message is lost.
    pub fn receive(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let mut mark = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let message = match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut mark)], &mut control, flags) {
                Ok(message) => message,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let given =
                control.drain().find_map(|part| if let RecvAncillaryMessage::ScmRights(mut fds) = part { fds.next() } else { None });
            match given {
                Some(fd) => return Ok(Some(fd)),
                // All senders are gone.
                None if message.bytes == 0 => return Ok(None),
                None => return Err(Errno::MFILE.into()),
            }
        }
    }
}

impl AsFd for FdReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes over `count` descriptors from number `first` on, which the parent put there ([`crate::Spawn::fds`]); numbers that are not open are
/// left out. They become close-on-exec. Once for each process, before it opens anything itself: a second call gets none.
#[must_use]
pub fn take_inherited(first: i32, count: usize) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if first <= libc::STDERR_FILENO || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let numbers = (first..).take(count.min(usize::from(u16::MAX)));
    numbers
        .filter_map(|number| {
            // SAFETY: setting the flag of a number that is not open changes nothing.
            let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            // SAFETY: it is open; the parent put it there, nobody in this process has it, and it is taken only once.
            is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}
