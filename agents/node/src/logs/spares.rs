//! Empty log files, and directories for an instance's, that were made ahead. A start then renames one instead of making it: where many files
//! were deleted in the last minutes, the filesystem looks past them one by one for each new one, which takes longer than the rest of a start.
//! A spare file was no process's before, so that it may become the tag of one.

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
/// How many there are of each kind: some dozens of components start at once, or restart before there are more.
pub(super) const SPARES: usize = 96;

/// The spares of a store.
pub(super) struct Spares {
    dir: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What an earlier agent left was looked for.
    listed: bool,
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    next: u64,
}

/// A spare to be made.
enum Missing {
    File(PathBuf),
    Dir(PathBuf),
}

impl Spares {
    pub(super) fn new(logs: &Path) -> Self {
        Self { dir: logs.join(DIR), known: Mutex::default() }
    }

    /// Gives a spare file this name; its directory is made if missing. `false`: there is none, or a file has that name.
    pub(super) fn put_in_place(&self, path: &Path) -> bool {
        let Some(spare) = self.lock().files.pop() else { return false };
        let rename = || rename_new(&spare, path);
        match (rename(), path.parent()) {
            (Err(Errno::NOENT), Some(parent)) => self.make_dir(parent).is_ok() && rename().is_ok(),
            (Err(_), _) => {
                self.lock().files.push(spare);
                false
            }
            (Ok(()), _) => true,
        }
    }

    /// Makes a directory, of a spare one if there is any; one that is there stays as it is.
    pub(super) fn make_dir(&self, path: &Path) -> io::Result<()> {
        let spare = self.lock().dirs.pop();
        match spare.map(|spare| (rename_new(&spare, path), spare)) {
            Some((Ok(()), _)) => return Ok(()),
            // There is one, or there is none to put it in: the spare stays one.
            Some((Err(_), spare)) if spare.is_dir() => self.lock().dirs.push(spare),
            Some((Err(_), _)) | None => {}
        }
        make_private_dir(path)
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
            self.list()?;
        }
        // The lock is not held while the disk works.
        match self.missing() {
            Some(Missing::File(path)) => {
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                self.lock().files.push(path);
            }
            Some(Missing::Dir(path)) => {
                make_private_dir(&path)?;
                self.lock().dirs.push(path);
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    fn list(&self) -> io::Result<()> {
        make_private_dir(&self.dir)?;
        let number = |entry: &DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
        let (mut files, mut dirs, mut next) = (Vec::new(), Vec::new(), 0);
        for entry in std::fs::read_dir(&self.dir)?.filter_map(Result::ok) {
            next = number(&entry).map_or(next, |number| next.max(number + 1));
            match entry.metadata() {
                Ok(meta) if meta.is_file() && meta.len() == 0 => files.push(entry.path()),
                Ok(meta) if meta.is_dir() && is_empty(&entry.path()) => dirs.push(entry.path()),
                _ => {}
            }
        }
        *self.lock() = Known { listed: true, files, dirs, next };
        Ok(())
    }

    fn missing(&self) -> Option<Missing> {
        let mut known = self.lock();
        let kind = match (known.files.len() < SPARES, known.dirs.len() < SPARES) {
            (true, _) => Missing::File,
            (false, true) => Missing::Dir,
            (false, false) => return None,
        };
        let number = known.next;
        known.next += 1;
        Some(kind(self.dir.join(number.to_string())))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives `spare` the name `path`, which nothing may have.
fn rename_new(spare: &Path, path: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, spare, CWD, path, RenameFlags::NOREPLACE)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
        assert_eq!((count(&dir.path().join(DIR)), count(&dir.path().join("api.0"))), (2 * SPARES, SPARES));
    }

    #[test]
    fn a_file_that_is_there_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (spares, taken) = (Spares::new(dir.path()), dir.path().join("taken"));
        std::fs::write(&taken, "words").unwrap();
        fill(&spares);
        assert!(!spares.put_in_place(&taken));
        assert_eq!(std::fs::read_to_string(&taken).unwrap(), "words");
        assert_eq!(spares.lock().files.len(), SPARES, "the spare stays one");
    }

    #[test]
    fn what_an_earlier_agent_left_is_used_and_what_vanished_is_no_matter() {
        let dir = tempfile::tempdir().unwrap();
        fill(&Spares::new(dir.path()));
        let (folder, words) = (dir.path().join(DIR).join("999"), dir.path().join(DIR).join("1000"));
        std::fs::create_dir_all(folder.join("of-somebody")).unwrap();
        std::fs::write(words, "words").unwrap();
        let spares = Spares::new(dir.path());
        fill(&spares);
        assert_eq!(count(&dir.path().join(DIR)), 2 * SPARES + 2, "what is no spare stays");
        let known = spares.lock();
        assert_eq!((known.files.len(), known.dirs.len()), (SPARES, SPARES));
        drop(known);
        std::fs::remove_dir_all(dir.path().join(DIR)).unwrap();
        assert!(!spares.put_in_place(&dir.path().join("api.0/1.1.log")));
        assert!(dir.path().join("api.0").is_dir(), "a new file has its place");
        assert!(spares.make_one().is_err(), "its directory is gone");
        fill(&spares);
        assert_eq!(count(&dir.path().join(DIR)), 2 * SPARES);
    }

    #[test]
    fn a_directory_is_made_of_a_spare_and_one_that_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (spares, place) = (Spares::new(dir.path()), |n: usize| dir.path().join(format!("api.{n}")));
        fill(&spares);
        for n in 0..=SPARES {
            spares.make_dir(&place(n)).unwrap();
            let mode = std::fs::metadata(place(n)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{n}");
        }
        fill(&spares);
        std::fs::write(place(0).join("1.1.log"), "words").unwrap();
        spares.make_dir(&place(0)).unwrap();
        assert_eq!((count(&place(0)), spares.lock().dirs.len()), (1, SPARES), "the spare stays one");
        std::fs::write(dir.path().join("file"), "words").unwrap();
        assert!(spares.make_dir(&dir.path().join("file")).is_err(), "a file has that name");
        spares.make_dir(&dir.path().join("above/below")).unwrap();
        assert!(dir.path().join("above/below").is_dir());
        assert_eq!(spares.lock().dirs.len(), SPARES, "what could not be put in place stays a spare");
    }
}
