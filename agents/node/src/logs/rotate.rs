//! Bounding a live log without changing the file that its process writes to: what is old is copied aside and then cut off the front.
//! Where the filesystem can cut whole blocks off the front (ext4, xfs) nothing is lost between; elsewhere the file is emptied.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use razar_bus_schema::ids::Incarnation;
use razar_os::FileId;
use rustix::fs::FallocateFlags;

use super::LogStore;

/// What is copied aside of one log on average: a component that writes faster loses what is over, so that it cannot wear out the disk.
const COPY_BYTES_PER_SECOND_MAX: u64 = 4 * 1024 * 1024;
/// What is copied aside at once, in sizes: a file that grew larger than this between two looks was flooded.
const COPY_SIZES_MAX: u64 = 2;
/// Smallest limit taken seriously: below a few blocks, cutting would never get anywhere.
pub(super) const SIZE_BYTES_MIN: u64 = 64 * 1024;
/// Alignment that every filesystem which can cut in front accepts, unless it says that its blocks are larger.
const BLOCK_BYTES_MIN: u64 = 4096;

/// Bounds of an instance's log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// Size at which the live file is rotated; at least 64 KiB.
    pub max_size_bytes: u64,
    /// Old files kept per instance, over all incarnations.
    pub keep: u32,
}

impl Default for LogBounds {
    /// 20 MiB and three old files, as the contract says.
    fn default() -> Self {
        Self { max_size_bytes: 20 * 1024 * 1024, keep: 3 }
    }
}

/// One rotation's outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes put aside.
    pub kept_bytes: u64,
    /// Bytes thrown away, because they came too fast.
    pub lost_bytes: u64,
}

/// Rotates the live file if it is over its bound. `copied_at`: when this log was last copied aside; set when it is now.
pub(super) fn rotate(store: &LogStore, path: &Path, bounds: LogBounds, copied_at: &mut Option<Instant>) -> io::Result<Option<Rotation>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let max = bounds.max_size_bytes.max(SIZE_BYTES_MIN);
    if size <= max {
        return Ok(None);
    }
    let block = rustix::fs::fstatvfs(&file)?.f_frsize.max(BLOCK_BYTES_MIN);
    // A cut must end before the end of the file.
    let cut = (size - 1) / block * block;
    let pause = Duration::from_millis(max.saturating_mul(1000) / COPY_BYTES_PER_SECOND_MAX);
    let too_fast = copied_at.is_some_and(|at| at.elapsed() < pause);
    let from = if too_fast || bounds.keep == 0 { cut } else { cut.saturating_sub(max * COPY_SIZES_MAX) };
    let mut rotation = Rotation { kept_bytes: cut - from, lost_bytes: from };
    if from < cut {
        *copied_at = Some(Instant::now());
        // A disk without room for the copy must not let the live file grow on.
        if let Err(error) = copy_aside(path, &file, from, cut, bounds.keep) {
            tracing::warn!(path = %path.display(), %error, "cannot keep the old part of a log");
            rotation = Rotation { kept_bytes: 0, lost_bytes: cut };
        }
    }
    let id = FileId::of_fd(&file)?;
    let mut cuts = store.cuts();
    let before = cuts.entry(id).or_insert(0);
    match rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, cut) {
        Ok(()) => *before += cut,
        Err(_) => {
            let now = file.metadata()?.len();
            file.set_len(0)?;
            *before += now;
            rotation.lost_bytes += now.saturating_sub(cut);
        }
    }
    Ok(Some(rotation))
}

/// Copies a part of the live file to `<path>.1`, after the older ones have moved up.
fn copy_aside(path: &Path, live: &File, from: u64, to: u64, keep: u32) -> io::Result<()> {
    let temporary = numbered(path, "tmp");
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let mut source: &File = live;
    source.seek(SeekFrom::Start(from))?;
    let copied = io::copy(&mut io::Read::take(source, to - from), &mut copy);
    if let Err(error) = copied {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    for number in (1..keep).rev() {
        let _ = std::fs::rename(numbered(path, &number.to_string()), numbered(path, &(number + 1).to_string()));
    }
    std::fs::rename(&temporary, numbered(path, "1"))
}

fn numbered(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// The log files in an instance's directory, newest first: by incarnation, and of each the live file before the old ones.
pub(super) fn files(dir: &Path) -> io::Result<Vec<(Incarnation, u32, PathBuf)>> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if let Some((incarnation, number)) = parse(&path) {
            files.push((incarnation, number, path));
        }
    }
    files.sort_by_key(|(incarnation, number, _)| (std::cmp::Reverse(*incarnation), *number));
    Ok(files)
}

fn parse(path: &Path) -> Option<(Incarnation, u32)> {
    let (incarnation, rest) = path.file_name()?.to_str()?.split_once(".log")?;
    let number = if rest.is_empty() { 0 } else { rest.strip_prefix('.')?.parse().ok().filter(|n| *n > 0)? };
    Some((incarnation.parse().ok()?, number))
}

/// Removes all but the live file and the newest `keep` old ones.
pub(super) fn prune(store: &LogStore, dir: &Path, live: Incarnation, keep: u32) -> io::Result<()> {
    let old = files(dir)?.into_iter().filter(|(incarnation, number, _)| *incarnation < live || *number > 0);
    for (_, _, path) in old.skip(keep as usize) {
        if let Ok(id) = FileId::of_path(&path) {
            store.cuts().remove(&id);
        }
        std::fs::remove_file(path)?;
    }
    Ok(())
}
