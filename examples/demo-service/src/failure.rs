//! The failures at start: counted ones (`--fail-first`) and asked-for ones (`--break-file`). It decides only whether this
//! start fails and with which last line; ending the process is `life.rs`'s.

use std::fs;
use std::io;
use std::path::Path;

use crate::options::Options;

/// The last line of a start that has to fail now; `None` when it goes on.
///
/// Counts this start in the `--state` file.
///
/// # Errors
/// The file that counts cannot be read or written.
pub(crate) fn of_this_start(options: &Options) -> io::Result<Option<String>> {
    let (true, Some(state)) = (options.fail_first > 0, &options.state) else {
        return Ok(None);
    };
    let failed = starts_counted(state)?;
    if failed < options.fail_first {
        count(state, failed + 1)?;
        return Ok(Some(options.error.clone()));
    }
    if options.fail_again {
        count(state, 0)?;
    }
    Ok(None)
}

/// Whether somebody put the `--break-file` there.
pub(crate) fn is_asked_for(options: &Options) -> bool {
    options.break_file.as_ref().is_some_and(|file| file.exists())
}

fn starts_counted(state: &Path) -> io::Result<u32> {
    match fs::read_to_string(state) {
        // An unreadable count begins again: the file is a toy's, and a crash may have cut it.
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn count(state: &Path, starts: u32) -> io::Result<()> {
    if let Some(folder) = state.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(state, format!("{starts}\n"))
}
