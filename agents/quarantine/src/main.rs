//! The process: configuration, logs, bus; then the quarantine until it is asked to end.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run(razar_quarantine::AGENT, env!("CARGO_PKG_VERSION"), razar_quarantine::agent::run)
}
