//! Empty log files that were made ahead. A start then renames one instead of making it: where many files were deleted in the last minutes,
//! the filesystem looks past them one by one for each new file, which takes longer than the rest of a start. A spare was no process's
//! before, so that it may become the tag of one.

use std::{
    fs::{DirEntry, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use razar_os::make_private_dir;
use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

/// Beside the directories of the instances, whose names end with an ordinal.
const DIR: &str = "spare";
/// How many there are: some dozens of components start at once, or restart before there are more.
pub(super) const SPARES: usize = 64;

/// The spares of a store.
pub(super) struct Spares {
    dir: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What an earlier agent left was looked for.
    listed: bool,
    free: Vec<PathBuf>,
    next: u64,
}

impl Spares {
    pub(super) fn new(logs: &Path) -> Self {
        Self { dir: logs.join(DIR), known: Mutex::default() }
    }

    /// Gives one this name, whose directory is made if missing. `false`: there is none, or a file has that name.
    pub(super) fn put_in_place(&self, path: &Path) -> bool {
        let Some(spare) = self.lock().free.pop() else { return false };
        let rename = || rustix::fs::renameat_with(CWD, &spare, CWD, path, RenameFlags::NOREPLACE);
        match (rename(), path.parent()) {
            (Err(Errno::NOENT), Some(parent)) => make_private_dir(parent).is_ok() && rename().is_ok(),
            (Err(_), _) => {
                self.lock().free.push(spare);
                false
            }
            (Ok(()), _) => true,
        }
    }

    /// Makes one, if one is missing; whether one was. Blocks on the disk.
    pub(super) fn make_one(&self) -> io::Result<bool> {
        let made = self.try_make_one();
        // The directory may be gone.
        self.lock().listed &= made.is_ok();
        made
    }

    fn try_make_one(&self) -> io::Result<bool> {
        if !self.lock().listed {
            make_private_dir(&self.dir)?;
            let is_empty = |entry: &DirEntry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0);
            let left: Vec<_> = std::fs::read_dir(&self.dir)?.filter_map(Result::ok).collect();
            let number = |entry: &DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
            let mut known = self.lock();
            known.listed = true;
            known.next = left.iter().filter_map(number).max().map_or(0, |n| n + 1);
            known.free = left.iter().filter(|entry| is_empty(entry)).map(DirEntry::path).collect();
        }
        let Some(path) = self.missing() else { return Ok(false) };
        // The lock is not held while the disk works.
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        self.lock().free.push(path);
        Ok(true)
    }

    fn missing(&self) -> Option<PathBuf> {
        let mut known = self.lock();
        if known.free.len() >= SPARES {
            return None;
        }
        let number = known.next;
        known.next += 1;
        Some(self.dir.join(number.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    }

    fn fill(spares: &Spares) {
        while spares.make_one().unwrap() {}
    }

    #[test]
    fn spares_are_given_out_once_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (spares, place) = (Spares::new(dir.path()), |n: usize| dir.path().join(format!("api.0/1.{n}.log")));
        assert!(!spares.put_in_place(&place(0)), "there is none yet");
        fill(&spares);
        for n in 0..SPARES {
            assert!(spares.put_in_place(&place(n)), "{n}");
            assert!(place(n).is_file());
        }
        assert!(!spares.put_in_place(&place(SPARES)), "all are given out");
        fill(&spares);
        assert_eq!((count(&dir.path().join(DIR)), count(&dir.path().join("api.0"))), (SPARES, SPARES));
    }

    #[test]
    fn a_file_that_is_there_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (spares, taken) = (Spares::new(dir.path()), dir.path().join("taken"));
        std::fs::write(&taken, "words").unwrap();
        fill(&spares);
        assert!(!spares.put_in_place(&taken));
        assert_eq!(std::fs::read_to_string(&taken).unwrap(), "words");
        assert_eq!(spares.lock().free.len(), SPARES, "the spare stays one");
    }

    #[test]
    fn what_an_earlier_agent_left_is_used_and_what_vanished_is_no_matter() {
        let dir = tempfile::tempdir().unwrap();
        fill(&Spares::new(dir.path()));
        let (folder, words) = (dir.path().join(DIR).join("folder"), dir.path().join(DIR).join("1000"));
        std::fs::create_dir(folder).unwrap();
        std::fs::write(words, "words").unwrap();
        let spares = Spares::new(dir.path());
        fill(&spares);
        assert_eq!((count(&dir.path().join(DIR)), spares.lock().free.len()), (SPARES + 2, SPARES), "what is no spare stays");
        std::fs::remove_dir_all(dir.path().join(DIR)).unwrap();
        assert!(!spares.put_in_place(&dir.path().join("api.0/1.1.log")));
        assert!(dir.path().join("api.0").is_dir(), "a new file has its place");
        assert!(spares.make_one().is_err(), "its directory is gone");
        fill(&spares);
        assert_eq!(count(&dir.path().join(DIR)), SPARES);
    }
}
