//! The process: configuration, logs, bus; then the registry until it is asked to end.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run(razar_registry::AGENT, env!("CARGO_PKG_VERSION"), razar_registry::agent::run)
}
