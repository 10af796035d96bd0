//! Makes the mesh's streams and buckets, once.

use std::process::ExitCode;

fn main() -> ExitCode {
    razar_agent_kit::run_once(razar_provision::KIND, env!("CARGO_PKG_VERSION"), razar_provision::provision)
}
