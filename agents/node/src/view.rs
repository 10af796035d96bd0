//! The settled view of the bucket `intents` on disk: what a node boots from when there is no bus. A file of frames: the first holds the
//! whole view, each later one what changed since. When a view is settled (nothing pending behind it), and what it means, is decided by the
//! policy.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use razar_bus_schema::v1::PlanOnDisk;

use crate::{
    journal::{frame, replace_file},
    policy::{are_orders, fold_plan},
};

/// A larger file is damage: a thousand records of the largest size that the bus takes.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Changes of this size in all, and as much again as the whole view, are written before that is written anew.
const CHANGES_BYTES: u64 = 1024 * 1024;
/// Before the first frame: says what the file is.
const MAGIC: &[u8; 8] = b"razplan2";

/// Why there is no view to be had.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The file could not be read or written.
    #[error("cannot {what} the plan {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is no plan: damaged, or of another version. Nothing may be concluded from it, least of all that nothing is wanted.
    #[error("{} is damaged: {why}; remove it to boot from the bus alone", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The view last stored; none if none ever was. Blocks on the disk.
///
/// # Errors
/// See [`ViewError`].
pub fn load(path: &Path) -> Result<Option<PlanOnDisk>, ViewError> {
    let io_error = |source| ViewError::Io { what: "read", path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > BYTES_MAX => return Err(ViewError::Damaged { path: path.to_owned(), why: "it is too large" }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    }
    let bytes = std::fs::read(path).map_err(io_error)?;
    decode(&bytes).map(Some).map_err(|why| ViewError::Damaged { path: path.to_owned(), why })
}

/// The file to which the view is written. Each agent has its own, which writes the view whole once before it adds to it.
#[derive(Debug)]
pub struct PlanFile {
    path: PathBuf,
    /// `None`: the view is written whole next.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    bytes: u64,
    bytes_max: u64,
}

impl PlanFile {
    /// The plan at this path, which need not be there yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Adds what changed, and has it on disk, unless it is only [`are_orders`]: those are in the page cache then, which outlives the agent,
    /// and the caller has the file that is given synced within 100 ms. At first, and when enough was added, `whole` takes the place of all
    /// before it, on disk.
    ///
    /// # Errors
    /// [`ViewError::Io`]; what was stored before stays, and the next call writes the whole view.
    pub fn store(&mut self, change: &PlanOnDisk, whole: impl FnOnce() -> PlanOnDisk) -> Result<Option<Arc<File>>, ViewError> {
        let io_error = |source| ViewError::Io { what: "write", path: self.path.clone(), source };
        // Somebody may have removed it.
        let grows = |open: &Open| open.bytes < open.bytes_max && open.file.metadata().is_ok_and(|m| m.nlink() > 0);
        if let Some(open) = self.open.take().filter(grows) {
            let frame = frame::wrap(&change.encode_to_vec());
            (&*open.file).write_all(&frame).map_err(io_error)?;
            let waits = are_orders(change);
            if !waits {
                open.file.sync_data().map_err(io_error)?;
            }
            let file = open.file.clone();
            self.open = Some(Open { bytes: open.bytes + frame.len() as u64, ..open });
            return Ok(waits.then_some(file));
        }
        self.store_whole(&whole()).map(|()| None)
    }

    /// Puts the whole view in the place of all that was stored before, on disk.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn store_whole(&mut self, whole: &PlanOnDisk) -> Result<(), ViewError> {
        let io_error = |source| ViewError::Io { what: "write", path: self.path.clone(), source };
        self.open = None;
        let mut content = MAGIC.to_vec();
        content.extend(frame::wrap(&whole.encode_to_vec()));
        replace_file(&self.path, &content).map_err(io_error)?;
        let file = OpenOptions::new().append(true).open(&self.path).map_err(io_error)?;
        let bytes = content.len() as u64;
        self.open = Some(Open { file: Arc::new(file), bytes, bytes_max: (2 * bytes + CHANGES_BYTES).min(BYTES_MAX) });
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<PlanOnDisk, &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a plan does")?;
    let max = usize::try_from(BYTES_MAX).unwrap_or(usize::MAX);
    let (content, mut rest) = frame::first(rest, max).ok_or("it is cut short, or its checksum is wrong")?;
    let mut plan = PlanOnDisk::decode(content).map_err(|_| "its content cannot be read")?;
    let mut damaged = 0_u64;
    while let Some(behind) = rest.get(1..) {
        let change = frame::first(rest, max).and_then(|(content, after)| Some((PlanOnDisk::decode(content).ok()?, after)));
        // Each change says all of the records that it names, so that those behind one that is lost still hold.
        rest = if let Some((change, after)) = change {
            fold_plan(&mut plan, change);
            after
        } else {
            damaged += 1;
            behind
        };
    }
    if damaged > 0 {
        // The end of an agent, or of the machine, came while it was written; or the disk has lost something.
        tracing::warn!(bytes = damaged, "a change of the plan on disk is not whole, and is left out");
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::v1::PlanRecord;

    use super::*;

    fn record(key: &str, revision: u64) -> PlanRecord {
        PlanRecord { key: key.to_owned(), revision, intent: vec![1, 2, 3] }
    }

    fn plan(revision: u64) -> PlanOnDisk {
        PlanOnDisk { bucket_epoch: "b1".to_owned(), revision, records: vec![record("desired.api.0", revision)] }
    }

    fn never() -> PlanOnDisk {
        panic!("the whole view is not written again")
    }

    #[test]
    fn a_view_is_read_back_with_what_was_added_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        assert_eq!(load(&path).unwrap(), None);
        let mut file = PlanFile::new(path.clone());
        assert!(file.store(&plan(1), || plan(1)).unwrap().is_none(), "durable by itself");
        assert_eq!(load(&path).unwrap(), Some(plan(1)));
        assert!(file.store(&plan(2), never).unwrap().is_none(), "durable too");
        let order = PlanOnDisk { records: vec![record("recovery.api.0", 3)], ..plan(3) };
        assert!(file.store(&order, never).unwrap().is_some(), "to be synced");
        let with_order = PlanOnDisk { records: vec![record("desired.api.0", 2), record("recovery.api.0", 3)], ..plan(3) };
        assert_eq!(load(&path).unwrap(), Some(with_order));
        file.store_whole(&plan(2)).unwrap();
        let other = PlanOnDisk { records: vec![record("desired.db.0", 3)], ..plan(3) };
        assert!(file.store(&other, never).unwrap().is_none());
        let both = PlanOnDisk { records: vec![record("desired.api.0", 2), record("desired.db.0", 3)], ..plan(3) };
        assert_eq!(load(&path).unwrap(), Some(both));
        let anew = PlanOnDisk { bucket_epoch: "b2".to_owned(), records: vec![record("desired.db.0", 1)], revision: 1 };
        file.store(&anew, never).unwrap();
        let of_both = PlanOnDisk { records: vec![record("desired.api.0", 0), record("desired.db.0", 1)], ..anew };
        assert_eq!(load(&path).unwrap(), Some(of_both), "a revision counts in its bucket alone");
        let mut next = PlanFile::new(path.clone());
        next.store(&plan(9), || plan(9)).unwrap();
        assert_eq!(load(&path).unwrap(), Some(plan(9)), "another agent writes it whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_that_has_grown_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        let mut file = PlanFile::new(path.clone());
        let large = |n| PlanOnDisk { records: vec![PlanRecord { intent: vec![0; 100_000], ..record("recovery.api.0", n) }], ..plan(n) };
        let whole = (1..=50).filter(|n| file.store(&large(*n), || large(*n)).unwrap().is_none()).count();
        assert!((2..10).contains(&whole), "{whole} times");
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * CHANGES_BYTES);
        assert_eq!(load(&path).unwrap(), Some(large(50)));
    }

    #[test]
    fn a_damaged_view_is_an_error_and_never_an_empty_plan() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        PlanFile::new(path.clone()).store(&plan(7), || plan(7)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(load(&path), Err(ViewError::Damaged { .. })), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0x40;
            std::fs::write(&path, &bent).unwrap();
            assert!(load(&path).is_err(), "bit flipped at {at}");
        }
    }

    #[test]
    fn a_change_that_is_not_whole_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        let mut file = PlanFile::new(path.clone());
        let length = || usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        file.store(&plan(1), || plan(1)).unwrap();
        file.store(&plan(2), never).unwrap();
        let before = length();
        file.store(&plan(3), never).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in before..whole.len() {
            let mut torn = whole[..cut].to_vec();
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(load(&path).unwrap(), Some(plan(2)), "cut at {cut}");
            torn.resize(whole.len() + 4096, 0);
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(load(&path).unwrap(), Some(plan(2)), "zeros from {cut}");
        }
        std::fs::write(&path, &whole).unwrap();
        let behind = PlanOnDisk { records: vec![record("quarantine.db.0", 4)], ..plan(4) };
        PlanFile { path: path.clone(), open: file.open }.store(&behind, never).unwrap();
        let mut bent = std::fs::read(&path).unwrap();
        bent[before + 12] ^= 0x40;
        std::fs::write(&path, &bent).unwrap();
        let records = vec![record("desired.api.0", 2), record("quarantine.db.0", 4)];
        assert_eq!(load(&path).unwrap(), Some(PlanOnDisk { records, ..plan(4) }), "what is behind the damage still holds");
    }

    #[test]
    fn a_file_that_somebody_removed_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        let mut file = PlanFile::new(path.clone());
        file.store(&plan(1), || plan(1)).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.store(&plan(2), || plan(2)).unwrap();
        assert_eq!(load(&path).unwrap(), Some(plan(2)));
    }

    #[test]
    fn a_store_that_fails_leaves_the_old_view() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        PlanFile::new(path.clone()).store(&plan(1), || plan(1)).unwrap();
        // The temporary file cannot be made: a directory has its name.
        std::fs::create_dir(dir.path().join("plan.tmp")).unwrap();
        let mut file = PlanFile::new(path.clone());
        assert!(file.store(&plan(2), || plan(2)).is_err());
        assert_eq!(load(&path).unwrap(), Some(plan(1)));
        std::fs::remove_dir(dir.path().join("plan.tmp")).unwrap();
        assert!(file.store(&plan(3), || plan(3)).unwrap().is_none(), "whole");
        assert_eq!(load(&path).unwrap(), Some(plan(3)));
    }
}
