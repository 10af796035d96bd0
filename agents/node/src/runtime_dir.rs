//! Where lies what needs no disk and outlives no boot of the machine: notification sockets. In memory where the machine has a place for it,
//! since making a file on a disk may wait for that disk's journal, and each start makes one.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use razar_bus_schema::ids::sha256_hex;

/// `f_type` of a file system in memory (`TMPFS_MAGIC` of linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// Components of other users reach what they know the name of; only we write here.
const MODE: u32 = 0o711;
/// Characters of the state directory's hash that tell the nodes of a machine apart.
const HASH_CHARS: usize = 16;

/// The directory, made if missing: in memory where one of the usual places is, else in the state directory.
///
/// # Errors
/// When the state directory cannot be written.
pub(crate) fn make(state_dir: &Path) -> io::Result<PathBuf> {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = [Some(PathBuf::from("/run")), of_user, Some(PathBuf::from("/dev/shm"))];
    make_in(places.into_iter().flatten(), state_dir)
}

fn make_in(mut places: impl Iterator<Item = PathBuf>, state_dir: &Path) -> io::Result<PathBuf> {
    let hash = sha256_hex(state_dir.as_os_str().as_bytes());
    let name = format!("razar-{}", hash.get(..HASH_CHARS).unwrap_or(&hash));
    if let Some(made) = places.find_map(|place| in_memory(&place).then(|| ours(place.join(&name))).flatten()) {
        return Ok(made);
    }
    let dir = state_dir.join("notify");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn in_memory(place: &Path) -> bool {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "the width of f_type differs between architectures")]
    rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type as i64 == TMPFS)
}

/// `dir`, if it can be made or is ours: in a directory that everybody may write to, another may have made it first.
fn ours(dir: PathBuf) -> Option<PathBuf> {
    match fs::DirBuilder::new().mode(MODE).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        Ok(()) | Err(_) => {}
    }
    let meta = fs::symlink_metadata(&dir).ok()?;
    let only_we_write = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    (meta.is_dir() && only_we_write).then_some(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn sockets_lie_in_memory_unless_the_place_is_on_a_disk_or_belongs_to_another() {
        let state = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let make = |place: &Path| make_in([place.to_owned()].into_iter(), state.path()).unwrap();
        let made = make(memory.path());
        assert_eq!(made.parent(), Some(memory.path()));
        assert_eq!(make(memory.path()), made, "found again by the next agent");
        assert_ne!(make_in([memory.path().to_owned()].into_iter(), &state.path().join("b")).unwrap(), made, "another node's");
        let on_disk = state.path().join("notify");
        fs::set_permissions(&made, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(make(memory.path()), on_disk, "everybody could put a socket there");
        fs::remove_dir(&made).unwrap();
        symlink(state.path(), &made).unwrap();
        assert_eq!(make(memory.path()), on_disk, "it leads elsewhere");
        assert_eq!(make(Path::new("/proc")), on_disk);
        assert_eq!(make(Path::new("/nowhere")), on_disk);
    }
}
