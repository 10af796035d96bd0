//! The process: configuration, logs, bus; then the orchestrator until it is asked to end.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run(razar_orchestrator::AGENT, env!("CARGO_PKG_VERSION"), razar_orchestrator::agent::run)
}
