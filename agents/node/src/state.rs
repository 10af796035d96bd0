//! The rung "clear state": removes what a component's specification names as its state, and nothing else, ever.

use std::{fs, io, path::Path};

/// Removes the file or directory at `path`. Already gone is well.
///
/// # Errors
/// In words: a path that is not absolute, is a root, or holds `..`; or what the disk said.
pub(crate) fn remove(path: &str) -> Result<(), String> {
    let at = Path::new(path);
    let plain = at.components().all(|c| !matches!(c, std::path::Component::ParentDir | std::path::Component::CurDir));
    if !at.is_absolute() || !plain || at.components().count() < 3 {
        return Err(format!("{path} is not removed: state must be an absolute path at least two folders deep, without `..`"));
    }
    let outcome = match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(at),
        Ok(_) => fs::remove_file(at),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{path}: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_goes_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("cache"), dir.path().join("other"));
        fs::create_dir_all(state.join("deep")).unwrap();
        fs::create_dir_all(&other).unwrap();
        std::os::unix::fs::symlink(&other, state.join("link")).unwrap();
        remove(state.to_str().unwrap()).unwrap();
        assert!(!state.exists() && other.exists());
        remove(state.to_str().unwrap()).unwrap();
        for bad in ["/", "/tmp", "cache", "/tmp/../etc", ""] {
            assert!(remove(bad).unwrap_err().contains("is not removed"), "{bad}");
        }
    }
}
