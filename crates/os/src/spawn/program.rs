//! Finding the program before the clone, in the PATH of the component's own environment, so that a missing or unexecutable one is told by name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::SpawnError;

/// Searched when the environment has no PATH, as a shell does.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// The path to execute. One with a `/` in it is left as it is: the child, standing in `cwd`, resolves it.
pub(super) fn resolve(program: &OsStr, env: &[(OsString, OsString)], cwd: &Path) -> Result<PathBuf, SpawnError> {
    if program.is_empty() {
        return Err(SpawnError::Invalid { what: "the program has no name".to_owned() });
    }
    if program.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(program));
    }
    let search = env.iter().rev().find(|(name, _)| name == "PATH").map_or(OsStr::new(PATH_DEFAULT), |(_, value)| value.as_os_str());
    let mut refused = None;
    for dir in search.as_bytes().split(|b| *b == b':') {
        // An empty entry is the working directory.
        let dir = if dir.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(dir)) };
        let candidate = dir.join(program);
        let from_here = cwd.join(&candidate);
        if !from_here.is_file() {
            continue;
        }
        if rustix::fs::accessat(CWD, &from_here, Access::EXEC_OK, AtFlags::EACCESS).is_ok() {
            return Ok(candidate);
        }
        refused.get_or_insert(from_here);
    }
    Err(match refused {
        Some(path) => SpawnError::NotExecutable { path },
        None => SpawnError::ProgramNotFound { program: program.to_owned(), searched: Some(search.to_owned()) },
    })
}
