//! The settled view of the bucket `intents` on disk: what a node boots from when there is no bus.
//! When a view is settled (nothing pending behind it), and what it means, is decided by the policy.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use razar_bus_schema::v1::PlanOnDisk;

use crate::journal::replace_file;

/// A larger file is damage: a thousand records of the largest size that the bus takes.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Before the message: says what the file is, and carries the checksum after it.
const MAGIC: &[u8; 8] = b"razplan1";

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

/// Replaces the stored view, durably: after a power cut it is the old one or the new one. Blocks on the disk (some milliseconds).
///
/// # Errors
/// [`ViewError::Io`]; the old view stays.
pub fn store(path: &Path, plan: &PlanOnDisk) -> Result<(), ViewError> {
    let body = plan.encode_to_vec();
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    replace_file(path, &bytes).map_err(|source| ViewError::Io { what: "write", path: path.to_owned(), source })
}

fn decode(bytes: &[u8]) -> Result<PlanOnDisk, &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a plan does")?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("its checksum is wrong");
    }
    PlanOnDisk::decode(body).map_err(|_| "its content cannot be read")
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::v1::PlanRecord;

    use super::*;

    fn plan(revision: u64) -> PlanOnDisk {
        let record = PlanRecord { key: "desired.api.0".to_owned(), revision, intent: vec![1, 2, 3] };
        PlanOnDisk { bucket_epoch: "b1".to_owned(), revision, records: vec![record] }
    }

    #[test]
    fn a_view_is_read_back_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        assert_eq!(load(&path).unwrap(), None);
        for revision in [1, 2] {
            store(&path, &plan(revision)).unwrap();
            assert_eq!(load(&path).unwrap(), Some(plan(revision)));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_damaged_view_is_an_error_and_never_an_empty_plan() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        store(&path, &plan(7)).unwrap();
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
    fn a_store_that_fails_leaves_the_old_view() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        store(&path, &plan(1)).unwrap();
        // The temporary file cannot be made: a directory has its name.
        std::fs::create_dir(dir.path().join("plan.tmp")).unwrap();
        assert!(store(&path, &plan(2)).is_err());
        assert_eq!(load(&path).unwrap(), Some(plan(1)));
    }
}
