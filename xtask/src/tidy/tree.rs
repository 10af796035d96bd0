//! The files that the rules look at: what git tracks or would track, as text. No rule reads the disk by itself, so that each can be
//! shown to fail on files that exist only in a test.

use std::cell::OnceCell;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::rust::Facts;

/// Written by a program, so no rule of style applies; drift checks guard them.
const GENERATED: &[&str] = &["bus-schema/src/generated/", "examples/unified-77/razar.yaml", "Cargo.lock"];

/// One text file.
#[derive(Debug)]
pub(super) struct File {
    /// Relative to the root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    facts: OnceCell<Facts>,
}

impl File {
    fn new(path: &str, text: String) -> Self {
        Self { path: path.to_owned(), text, facts: OnceCell::new() }
    }

    /// The Rust source in it, parsed once for all rules.
    pub(super) fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| Facts::of(&self.text))
    }
}

/// All text files that people write.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
}

impl Tree {
    /// Reads the working tree at `root`; files that are not UTF-8 are left out.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("tidy asks git for the list of files")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
        let mut files = Vec::new();
        for path in names.split('\0').filter(|path| !path.is_empty() && !is_generated(path)) {
            // Deleted and not yet committed, or a link to a folder: nothing to read.
            let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File::new(path, text));
            }
        }
        Ok(Self { files })
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File::new(path, (*text).to_owned());
        Self { files: files.iter().map(file).collect() }
    }

    pub(super) fn ending<'t>(&'t self, ending: &'static str) -> impl Iterator<Item = &'t File> {
        self.files.iter().filter(move |file| file.path.ends_with(ending))
    }
}

fn is_generated(path: &str) -> bool {
    GENERATED.iter().any(|generated| path.starts_with(generated))
}
