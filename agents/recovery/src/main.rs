//! The process: configuration, logs, bus; then recovery until it is asked to end.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run(razar_recovery::AGENT, env!("CARGO_PKG_VERSION"), razar_recovery::agent::run)
}
