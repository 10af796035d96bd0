//! Where the programs under test lie: beside the test's own executable, and the broker as the project fetches it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Version of the broker that `make tools` fetches.
const BROKER: &str = "nats-server-2.15.1/nats-server";

/// A program of this build: `target/<profile>/<name>`.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let profile = exe.parent().and_then(|deps| deps.parent()).context("a test lies in target/<profile>/deps")?;
    let path = profile.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build --workspace --bins` before the end-to-end tests", path.display());
    }
    Ok(path)
}

/// The broker: `$RAZAR_NATS_SERVER`, the one on PATH, or the fetched one.
///
/// # Errors
/// When there is none.
pub fn broker() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("RAZAR_NATS_SERVER").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nats-server"));
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/razar/tools").join(BROKER));
    on_path.chain(home).find(|p| p.is_file()).context("no nats-server: run `make tools`, or name one in RAZAR_NATS_SERVER")
}
