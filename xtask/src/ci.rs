//! Tasks that are other programs: CI's script, the generator of the 77-component example, and the documentation's, which is a binary of
//! its own because it needs the compiled contract.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs `.ci/run`: the same script as CI, so that the two cannot differ.
///
/// # Errors
/// When a part of it fails; it has said which.
pub(crate) fn run(root: &Path) -> Result<()> {
    call(root, root.join(".ci/run"), &[])
}

/// Writes or checks what `examples/` generates.
///
/// # Errors
/// When the generator fails, or, with `check`, when a committed file differs.
pub(crate) fn examples(root: &Path, check: bool) -> Result<()> {
    let mut arguments = vec!["examples/unified-77/generate.py"];
    arguments.extend(check.then_some("--check"));
    call(root, "python3", &arguments)
}

/// Writes or checks `docs/subjects.md`.
///
/// # Errors
/// When the contract does not compile, or, with `check`, when the committed page differs.
pub(crate) fn docs(root: &Path, check: bool) -> Result<()> {
    let mut arguments = vec!["run", "--quiet", "--package", "xtask", "--features", "schema", "--bin", "xtask-docs", "--"];
    arguments.extend(check.then_some("--check"));
    call(root, env!("CARGO"), &arguments)
}

fn call(root: &Path, program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<()> {
    let program = program.as_ref();
    let shown = Path::new(program).display();
    let status = Command::new(program).args(arguments).current_dir(root).status().with_context(|| format!("starting {shown}"))?;
    if !status.success() {
        bail!("{shown} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
