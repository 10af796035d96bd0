//! Chores of the repository, `cargo xtask <task>`: what is generated, what is checked, and all of CI. Nothing here is part of the mesh.

mod ci;
mod codegen;
mod contract;
mod mutants;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

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
    /// Generate docs/subjects.md from the contract and docs/rules.md from the list of mutations, or check that they are current.
    Docs {
        /// Compare only; fail on a difference.
        #[arg(long)]
        check: bool,
    },
    /// Generate what examples are generated, or check that they are current.
    Examples {
        /// Compare only; fail on a difference.
        #[arg(long)]
        check: bool,
    },
    /// Check the rules of the architecture and the house.
    Tidy,
    /// Take each rule of tests/mutations.toml out of the product, one at a time, and demand that its test fails.
    Mutants {
        /// Only those with this in their names.
        filter: Option<String>,
    },
    /// Run exactly what CI runs.
    Ci,
}

fn main() -> ExitCode {
    match run(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    match task {
        Task::Codegen { check } => codegen::run(root, *check),
        Task::Docs { check } => mutants::document(root, *check).and_then(|()| ci::docs(root, *check)),
        Task::Examples { check } => ci::examples(root, *check),
        Task::Tidy => tidy::run(root),
        Task::Mutants { filter } => mutants::run(root, filter.as_deref()),
        Task::Ci => ci::run(root),
    }
}
