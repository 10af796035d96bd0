//! The contract in `proto/razar/v1/`, compiled. The compiler is a library, so that nobody has to install one.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use prost_types::FileDescriptorSet;

/// Descriptors of every .proto file under `root` and of what they import, comments included.
///
/// # Errors
/// When a .proto file cannot be read or does not compile.
pub(crate) fn compiled(root: &Path) -> Result<FileDescriptorSet> {
    let proto = root.join("proto");
    let mut files: Vec<_> = fs::read_dir(proto.join("razar/v1"))
        .context("reading proto/razar/v1")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "proto"))
        .collect();
    files.sort();
    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    Ok(compiler.file_descriptor_set())
}
