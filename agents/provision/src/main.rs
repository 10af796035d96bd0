//! `razar-provision`: creates the mesh's streams and buckets, then ends.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let variable = |name: &str, default: &str| std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned());
    let mesh = variable("RAZAR_MESH", razar_bus_schema::subject::MESH_DEFAULT);
    let servers = variable("RAZAR_SERVER", "nats://127.0.0.1:4222").split(',').map(str::to_owned).collect();
    match razar_provision::run(mesh, servers).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("razar-provision: {error:#}");
            ExitCode::FAILURE
        }
    }
}
