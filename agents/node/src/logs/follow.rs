//! Reading a log as it grows, line by line, through rotations: for readiness by a line, and for streaming.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use razar_os::FileId;
use regex::Regex;

use super::{LogLine, LogStore, lines::LINE_BYTES_MAX, text, watcher::Watch};

/// Read at most before lines are given out.
const READ_BYTES: usize = 64 * 1024;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With the first byte that the file still holds.
    Beginning,
    /// With what is written from now on.
    Now,
}

/// One line as it was written, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLine {
    /// When it was read.
    pub at: SystemTime,
    /// Its bytes, at most 8 KiB.
    pub bytes: Vec<u8>,
    /// It was longer.
    pub cut: bool,
}

impl RawLine {
    /// The line fit to be shown: no secrets, no control characters.
    #[must_use]
    pub fn shown(&self) -> LogLine {
        LogLine { at: self.at, text: text::clean(&self.bytes, LINE_BYTES_MAX), cut: self.cut }
    }
}

/// A reader of one log file.
pub struct Follow {
    store: LogStore,
    file: File,
    id: FileId,
    watch: Watch,
    /// Bytes of the file's whole life, those that rotation took away included.
    position: u64,
    line: Vec<u8>,
    cut: bool,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("id", &self.id).field("position", &self.position).finish_non_exhaustive()
    }
}

impl Follow {
    pub(super) fn open(store: &LogStore, path: &Path, from: From) -> io::Result<Self> {
        // The watch first: what is written after it is told, what was written before it is read.
        let watch = store.watcher()?.watch(path)?;
        let file = File::open(path)?;
        let id = FileId::of_fd(&file)?;
        let base = store.cuts().get(&id).copied().unwrap_or(0);
        let position = match from {
            From::Beginning => base,
            From::Now => base + file.metadata()?.len(),
        };
        Ok(Self { store: store.clone(), file, id, watch, position, line: Vec::new(), cut: false })
    }

    /// Waits for the next lines, at least one; a line counts once its end is written. Wakes only when the file changes. Cancel safe.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn next(&mut self) -> io::Result<Vec<RawLine>> {
        loop {
            let (read, lines) = self.read()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            if read == 0 {
                self.watch.changed().await;
            } else {
                // A long line must not hold the thread.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits for lines in which any of the patterns is found: for each of those its place among them, and the first such line. Lines that
    /// come together are looked at together, in whatever order what was waited for stands in them. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn find(&mut self, patterns: &[Regex]) -> io::Result<Vec<(usize, RawLine)>> {
        loop {
            let lines = self.next().await?;
            let first = |pattern: &Regex| lines.iter().find(|line| pattern.is_match(&String::from_utf8_lossy(&line.bytes)));
            let found: Vec<_> = patterns.iter().enumerate().filter_map(|(i, pattern)| Some((i, first(pattern)?.clone()))).collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    fn read(&mut self) -> io::Result<(usize, Vec<RawLine>)> {
        let mut bytes = vec![0; READ_BYTES];
        let read = {
            // Held, so that nothing is cut off the front between looking and reading.
            let cuts = self.store.cuts();
            let base = cuts.get(&self.id).copied().unwrap_or(0);
            if self.position < base {
                // Rotated away before it was read: the line at hand has lost its end.
                self.position = base;
                self.cut = true;
            }
            if self.position - base > self.file.metadata()?.len() {
                // Cut by somebody else.
                self.position = base;
            }
            self.file.read_at(&mut bytes, self.position - base)?
        };
        self.position += read as u64;
        bytes.truncate(read);
        Ok((read, self.split(&bytes)))
    }

    fn split(&mut self, bytes: &[u8]) -> Vec<RawLine> {
        let at = SystemTime::now();
        let mut lines = Vec::new();
        let mut parts = bytes.split(|b| *b == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
            self.cut |= part.len() > room;
            // The last part has no end yet.
            if parts.peek().is_some() {
                let mut bytes = std::mem::take(&mut self.line);
                if bytes.last() == Some(&b'\r') {
                    bytes.pop();
                }
                lines.push(RawLine { at, bytes, cut: std::mem::take(&mut self.cut) });
            }
        }
        lines
    }
}
