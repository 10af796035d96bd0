//! The process: configuration, logs, bus; then the watchdog until it is asked to end.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run(razar_watchdog::AGENT, env!("CARGO_PKG_VERSION"), razar_watchdog::agent::run)
}
