//! One honest little service that can be told to misbehave.
//!
//! The examples, the tests and the benchmarks run many of these in place of real programs: it boots after a delay, answers
//! `/health`, and on request fails, hangs, lies, spins or dies. It knows nothing of the mesh, uses only the standard library
//! and no unsafe code, and stays near one megabyte so that 77 of them fit anywhere. What may be asked of it: `options.rs`.

mod failure;
mod http;
mod life;
mod options;

use std::process::ExitCode;

/// A wrong command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match options::Options::parse(&args) {
        Ok(options) if options.help => {
            life::say(options::USAGE);
            ExitCode::SUCCESS
        }
        Ok(options) if options.ignore_term => life::start_again_deaf_to_term(&args),
        Ok(options) => life::live(options),
        Err(wrong) => {
            life::complain(&format!("razar-demo-service: {wrong}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}
