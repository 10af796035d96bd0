//! What a hook says: a named pipe, read as it comes, of which the last bytes are kept. A hook that floods waits for its reader, so nothing of
//! it grows; the pipe's file is also the tag by which its processes are found, by this agent and by the next one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use razar_os::FileId;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;

use crate::logs::clean;

/// Most bytes of a hook's output that are told.
pub(super) const OUTPUT_BYTES_MAX: usize = 4096;
/// Bytes of one read: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// How long one that fills the pipe at once is not read.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// Most reads of what is left in the pipe once the hook has ended: one that outlived its kill may still write.
const LAST_READS: u32 = 16;

/// The reading end, with what is kept of what was read. Dropped, it leaves its file: the next agent finds the hook's processes by it.
#[derive(Debug)]
pub(super) struct Output {
    /// None once nobody writes any more.
    pipe: Option<pipe::Receiver>,
    path: PathBuf,
    tag: FileId,
    buffer: Vec<u8>,
    last: Vec<u8>,
    cut: bool,
}

impl Output {
    /// Makes the pipe, mode 0600, in place of what lies there. The end that the hook writes to, and its tag, come with it. Needs a tokio
    /// runtime with I/O enabled.
    ///
    /// # Errors
    /// As `mkfifo` and `open`.
    pub(super) fn open(path: &Path) -> io::Result<(Self, File, FileId)> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let pipe = pipe::OpenOptions::new().open_receiver(path)?;
        let writes = OpenOptions::new().write(true).open(path)?;
        let tag = FileId::of_fd(&writes)?;
        Ok((Self { pipe: Some(pipe), path: path.to_owned(), tag, buffer: vec![0; READ_BYTES], last: Vec::new(), cut: false }, writes, tag))
    }

    /// Waits for words and keeps them; for ever once nobody writes any more. Cancel safe.
    pub(super) async fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        let read = match pipe.readable().await {
            Ok(()) => pipe.try_read(&mut self.buffer),
            Err(error) => Err(error),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => self.pipe = None,
            Ok(n) => {
                self.keep(n);
                if n == READ_BYTES {
                    // It floods: let it wait rather than the agent.
                    tokio::time::sleep(FLOOD_PAUSE).await;
                }
            }
        }
    }

    fn keep(&mut self, read: usize) {
        self.last.extend_from_slice(self.buffer.get(..read).unwrap_or_default());
        let over = self.last.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.cut |= over > 0;
        self.last.drain(..over);
    }

    /// Nobody is to be found by it any more: its file is removed, never that of a later run.
    pub(super) fn remove(&self) {
        if FileId::of_path(&self.path).is_ok_and(|there| there == self.tag) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// What is told of it, and whether there was more; the pipe is removed.
    pub(super) fn take(mut self) -> (String, bool) {
        let left = self.pipe.take().and_then(|pipe| pipe.into_nonblocking_fd().ok());
        if let Some(mut left) = left.map(File::from) {
            for _ in 0..LAST_READS {
                let Ok(n @ 1..) = left.read(&mut self.buffer) else { break };
                self.keep(n);
            }
        }
        self.remove();
        (shown(&self.last), self.cut)
    }
}

/// Lines without secrets and control characters, the last ones where they have grown by that.
fn shown(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes.split(|b| *b == b'\n').map(|line| clean(line, OUTPUT_BYTES_MAX)).collect();
    let mut kept = Vec::new();
    let mut room = OUTPUT_BYTES_MAX;
    for line in lines.iter().rev() {
        let Some(left) = room.checked_sub(line.len() + 1) else { break };
        room = left;
        kept.push(line.as_str());
    }
    kept.reverse();
    kept.join("\n").trim().to_owned()
}
