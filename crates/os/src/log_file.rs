//! An incarnation's log file: opened for appending, and known by device and inode, which is the tag that its processes carry as
//! descriptors 1 and 2. Rotation and reading are not here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Which file this is, whatever its name. Once a file is removed and closed by all, its inode number is soon another file's: use one as a
/// tag only while the file is there or held open, and after a restart take it from the path anew instead of from what was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number, as `stat` gives it.
    pub dev: u64,
    /// Inode number on that device.
    pub inode: u64,
}

impl FileId {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "the widths of st_dev and st_ino differ between architectures")]
    pub(crate) fn of(stat: &rustix::fs::Stat) -> Self {
        Self { dev: stat.st_dev as u64, inode: stat.st_ino as u64 }
    }

    /// The file that an open descriptor points at.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of_fd(fd: impl std::os::fd::AsFd) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(fd)?))
    }

    /// The file of that name (symbolic links followed).
    ///
    /// # Errors
    /// As `stat`; the usual one is `NotFound`.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::stat(path)?))
    }
}

/// Makes a directory that only its user may enter (0700), and those above it; one that is there stays as it is.
///
/// # Errors
/// As `mkdir`.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a log file for appending: created 0600 if missing, its directory 0700, close-on-exec. One file for one incarnation: whoever has it
/// as stdout or stderr counts as the incarnation's, and is killed with it.
///
/// # Errors
/// As `open` and `mkdir`: no permission, no space, a directory of that name. `InvalidInput` for what is no regular file: `/dev/null` as a
/// tag would make half the machine the incarnation's.
pub fn append_file(path: &Path) -> io::Result<(File, FileId)> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOCTTY).open(path);
    let file = match (open(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make_private_dir(parent)?;
            open()?
        }
        (opened, _) => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log must be a regular file"));
    }
    let id = FileId::of_fd(&file)?;
    Ok((file, id))
}
