//! Reading log files backwards and bounded: the last lines, and the last one that tells of an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::text::{self, ERROR_BYTES_MAX};

/// Read at once when going backwards.
const STEP_BYTES: u64 = 64 * 1024;
/// Read at most for a tail: ten thousand lines of ordinary length.
const TAIL_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Read at most for an error: a stack trace and what came around it.
const ERROR_TAIL_BYTES: u64 = 64 * 1024;
/// Longest line that is given out; the rest of it is left out.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;

/// The last bytes of the files, which follow each other from the last to the first, until `lines` line ends or the bound is reached.
pub(super) fn last_bytes(newest_first: &[PathBuf], lines: usize) -> io::Result<Vec<u8>> {
    let mut tail: Vec<u8> = Vec::new();
    let mut ends = 0;
    for path in newest_first {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut before = file.metadata()?.len();
        while before > 0 {
            // One more end than lines, since the first line may be cut.
            if ends > lines || tail.len() >= TAIL_BYTES_MAX {
                return Ok(tail);
            }
            let from = before.saturating_sub(STEP_BYTES);
            let mut step = read_range(&file, from, before)?;
            ends += step.iter().filter(|b| **b == b'\n').count();
            step.append(&mut tail);
            tail = step;
            before = from;
        }
    }
    Ok(tail)
}

fn read_range(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, from + filled as u64) {
            // Cut meanwhile.
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The lines in these bytes, the last `count` of them, empty ones included.
pub(super) fn last_lines(bytes: &[u8], count: usize) -> Vec<&[u8]> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if body.is_empty() && bytes.is_empty() {
        return Vec::new();
    }
    let mut lines: Vec<&[u8]> = body.rsplit(|b| *b == b'\n').take(count).collect();
    lines.reverse();
    lines
}

/// The last line of the file that looks like an error, else its last line that is not empty; cleaned, at most 512 bytes. Empty: there is
/// none. Reads 64 KiB at most, blocking.
///
/// # Errors
/// The file cannot be read; that it is not there is no error.
pub fn last_error_line(path: &Path) -> io::Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let bytes = read_range(&file, size.saturating_sub(ERROR_TAIL_BYTES), size)?;
    let lines = || bytes.rsplit(|b| *b == b'\n').map(|line| line.get(..line.len().min(LINE_BYTES_MAX)).unwrap_or_default());
    let shown = |line| text::clean(line, ERROR_BYTES_MAX).trim().to_owned();
    // Its component is not started again before this is known: only what may be shown is made fit for it.
    let error = lines().filter(|line| text::may_be_error(line)).map(shown).find(|line| text::is_error(line));
    Ok(error.or_else(|| lines().map(shown).find(|line| !line.is_empty())).unwrap_or_default())
}
