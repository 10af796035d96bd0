//! Where mutations are tried: a copy of the working tree with build outputs of its own, kept between runs, so that a repeat builds only
//! what changed. The repository itself is never written to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The copy.
pub(super) struct Scratch {
    tree: PathBuf,
    outputs: PathBuf,
    manifests: Vec<PathBuf>,
    /// Held as long as the copy is used: a second run would mutate under the first.
    _lock: File,
}

impl Scratch {
    /// Brings the copy to what the working tree at `root` is now; a mutation that a killed run left in it is undone by that.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let cache = std::env::var_os("RAZAR_CACHE").filter(|cache| !cache.is_empty());
        let folder = cache.map_or_else(|| root.join("target"), PathBuf::from).join("mutants");
        let (tree, outputs) = (folder.join("tree"), folder.join("target"));
        fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
        let lock = File::create(folder.join("lock"))?;
        if lock.try_lock().is_err() {
            println!("waits for another run in {}", folder.display());
            lock.lock()?;
        }
        let files = tracked(root)?;
        for path in &files {
            copy(&root.join(path), &tree.join(path))?;
        }
        remove_others(&tree, &tree, &files)?;
        let manifests = files.into_iter().filter(|path| path.ends_with("Cargo.toml")).collect();
        Ok(Self { tree, outputs, manifests, _lock: lock })
    }

    /// `cargo` with these arguments, to be run in the copy.
    pub(super) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO"));
        // What this program was run with is about the repository, not about the copy.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|n| n.starts_with("CARGO_"))) {
            command.env_remove(name);
        }
        if let Some(home) = std::env::var_os("CARGO_HOME") {
            command.env("CARGO_HOME", home);
        }
        command.args(arguments).current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.outputs).env("CARGO_TERM_COLOR", "never");
        command
    }

    /// A path as cargo prints it.
    pub(super) fn path(&self, printed: &str) -> PathBuf {
        self.tree.join(printed)
    }

    /// The folder of a package.
    pub(super) fn folder_of(&self, package: &str) -> Result<PathBuf> {
        let named = format!("name = \"{package}\"");
        let names = |path: &&PathBuf| fs::read_to_string(self.tree.join(path)).is_ok_and(|text| text.lines().any(|line| line == named));
        let manifest = self.manifests.iter().find(names).and_then(|path| path.parent());
        manifest.map(|folder| self.tree.join(folder)).with_context(|| format!("there is no package {package}"))
    }

    /// A file of the copy.
    pub(super) fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.tree.join(path)).with_context(|| format!("reading {path}"))
    }

    /// Writes a file of the copy.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.tree.join(path), text).with_context(|| format!("writing {path} of the copy"))
    }

    /// A file for what a program says.
    pub(super) fn output(&self) -> PathBuf {
        self.outputs.join("said")
    }
}

/// What git tracks or would track.
fn tracked(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root).output().context("asking git for the list of files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).filter(|path| root.join(path).is_file()).collect())
}

/// Copies what differs: an unchanged file keeps its time, so nothing is built because of it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))?;
    Ok(fs::set_permissions(to, fs::metadata(from)?.permissions())?)
}

/// Removes what the working tree no longer has.
fn remove_others(tree: &Path, folder: &Path, keep: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(tree, &path, keep)?;
        } else if !path.strip_prefix(tree).is_ok_and(|path| keep.contains(path)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
