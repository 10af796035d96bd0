//! `razar`, the operator's command line: reads the arguments, runs one command, ends with its exit code.
//! It speaks the bus, starts one process (the embedded mesh's guard), and decides nothing about the mesh.

mod args;
mod boot;
mod commands;
mod console;
mod exit;
mod feed;
mod http;
mod keys;
mod link;
mod lookup;
mod mesh;
mod outcome;
mod ports;
mod render;
mod replay;
mod spans;
mod stack_file;
mod story;
mod waterfall;

use std::process::ExitCode;

use clap::{FromArgMatches, error::ErrorKind};

use crate::{args::Cli, console::Console, exit::Exit, render::time::Zone};

fn main() -> ExitCode {
    let program = std::env::args().next().filter(|p| !p.is_empty()).unwrap_or_else(|| "razar".to_owned());
    let parsed = args::parser(&program).try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Where the help cannot be written, nobody reads it.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { Exit::Well } else { Exit::Arguments }.into();
        }
    };
    let zone = if cli.global.utc { Zone::Utc } else { Zone::Local };
    let console = Console::new(program, cli.global.json, cli.global.quiet, cli.global.verbose, zone);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console.error(&format!("cannot start: {error}"));
            return Exit::NotWell.into();
        }
    };
    let done = runtime.block_on(commands::run(cli.command, &console, &cli.global));
    // A thread that waits for a key must not hold the process.
    runtime.shutdown_background();
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => console.fail(&failure).into(),
    }
}
