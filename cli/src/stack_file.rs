//! Reading a stack file from disk: text, directory and environment for `crates/stack`, and what is said when the file is not there or wrong.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use razar_stack::{FILE_BYTES_MAX, Loaded, Outside, Source, load_with};

use crate::{
    console::Console,
    exit::{Exit, Failure},
    render::text::nearest,
};

/// What became of a file that could be read.
pub(crate) type Read = Result<Box<Loaded>, razar_stack::Diagnostics>;

/// Reads and checks `path`.
///
/// # Errors
/// When there is no such file, or it is no text.
pub(crate) fn read(path: &Path) -> Result<Read, Failure> {
    let wrong = |why: String| Failure::new(Exit::Arguments, format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| missing(path, &e))?;
    if size.is_dir() {
        return Err(wrong("is a directory, not a stack file".to_owned()));
    }
    if size.len() > u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX) {
        return Err(wrong(format!("{} bytes; a stack file has at most {FILE_BYTES_MAX}", size.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| missing(path, &e))?;
    let text = String::from_utf8(bytes).map_err(|e| wrong(format!("not UTF-8 after {} bytes", e.utf8_error().valid_up_to())))?;
    let dir = path.canonicalize().ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_else(|| PathBuf::from("/"));
    let file = path.display().to_string();
    Ok(load_with(&Source { file: &file, text: &text, dir: &dir }, &ThisMachine).map(Box::new))
}

/// What a stack file names outside of itself, as this machine has it.
struct ThisMachine;

impl Outside for ThisMachine {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn text(&self, path: &Path) -> Result<String, String> {
        let said = |e: std::io::Error| if e.kind() == std::io::ErrorKind::NotFound { "no such file".to_owned() } else { e.to_string() };
        let size = std::fs::metadata(path).map_err(said)?.len();
        if size > u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX) {
            return Err(format!("{size} bytes; a file has at most {FILE_BYTES_MAX}"));
        }
        std::fs::read_to_string(path).map_err(said)
    }

    fn program(&self, program: &str) -> Result<(), String> {
        if program.contains('/') {
            return can_run(Path::new(program)).map_err(|why| format!("{program}: {why}"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| can_run(&dir.join(program)).is_ok());
        if found { Ok(()) } else { Err(format!("{program} is not on PATH")) }
    }
}

fn can_run(path: &Path) -> Result<(), &'static str> {
    let Ok(found) = std::fs::metadata(path) else { return Err("no such file") };
    if !found.is_file() {
        return Err("not a file");
    }
    if found.permissions().mode() & 0o111 == 0 { Err("may not be executed (no x permission)") } else { Ok(()) }
}

/// As [`read`], for commands that need a sound file: its errors become the failure's text, its warnings notes.
///
/// # Errors
/// Also when the file is wrong; then with every error.
pub(crate) fn sound(path: &Path, console: &Console) -> Result<Box<Loaded>, Failure> {
    match read(path)? {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                console.note(&loaded.warnings.to_string());
            }
            Ok(loaded)
        }
        Err(diagnostics) => Err(Failure::new(Exit::Arguments, diagnostics.to_string())),
    }
}

fn missing(path: &Path, error: &std::io::Error) -> Failure {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.ends_with(".yaml") || n.ends_with(".yml"))
        .collect();
    let typed = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let near = nearest(&typed, names.iter().map(String::as_str));
    let near = near.first().map(|n| format!("; nearest: {}", dir.join(n).display())).unwrap_or_default();
    let why = if error.kind() == std::io::ErrorKind::NotFound { "no such file".to_owned() } else { error.to_string() };
    Failure::new(Exit::Arguments, format!("{}: {why}{near}", path.display()))
}
