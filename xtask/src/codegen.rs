//! Generates `bus-schema/src/generated/` from `proto/razar/v1/*.proto`, and checks that what is committed is what would be generated.
//! What the types mean is documented in the .proto files alone.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use prost::Message as _;

use crate::contract;

const OUT: &str = "bus-schema/src/generated";
const RUST: &str = "razar.v1.rs";
const DESCRIPTORS: &str = "razar.v1.bin";

/// Generates the types under `root`; with `check` compares instead of writing.
///
/// # Errors
/// When a .proto file does not compile, or, with `check`, when a committed file differs from what would be written.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let mut set = contract::compiled(root)?;
    let scratch = std::env::temp_dir().join(format!("razar-codegen-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    prost_build::Config::new().enable_type_names().out_dir(&scratch).compile_fds(set.clone()).context("generating Rust types")?;
    let rust = fs::read(scratch.join(RUST))?;
    fs::remove_dir_all(&scratch)?;
    place(root, RUST, &rust, check)?;
    // Whoever reads JSON reads the descriptors first, and most of them would be comments.
    for file in &mut set.file {
        file.source_code_info = None;
    }
    place(root, DESCRIPTORS, &set.encode_to_vec(), check)
}

fn place(root: &Path, name: &str, content: &[u8], check: bool) -> Result<()> {
    let path = root.join(OUT).join(name);
    if check {
        if fs::read(&path).ok().as_deref() != Some(content) {
            bail!("{OUT}/{name} differs from proto/: run `cargo xtask codegen` and commit the result");
        }
        return Ok(());
    }
    fs::create_dir_all(root.join(OUT))?;
    fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
}
