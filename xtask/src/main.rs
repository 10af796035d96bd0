//! Chores of the repository: `cargo xtask codegen`.

mod codegen;

use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the repository")]
enum Task {
    /// Generate the bus types from proto/, or check that they are current.
    Codegen {
        /// Compare only; fail on a difference.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    match Task::parse() {
        Task::Codegen { check } => codegen::run(root, check),
    }
}
