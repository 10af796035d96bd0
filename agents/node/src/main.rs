//! `razar-node guard`: the node, kept alive. `razar-node agent`: what the guard keeps alive.

use std::{path::PathBuf, process::ExitCode};

use razar_node::{
    agent::Ending,
    config::NodeConfig,
    guard::{self, GuardConfig},
    start,
};

fn main() -> ExitCode {
    let exe_dir = std::env::current_exe().ok().and_then(|p| p.parent().map(PathBuf::from)).unwrap_or_default();
    let config = match NodeConfig::from_variables(|name| std::env::var(name).ok(), &exe_dir) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("razar-node: {error}");
            return ExitCode::from(64);
        }
    };
    match (std::env::args().nth(1).as_deref(), start::agent_command()) {
        (Some("guard"), Ok(agent_command)) => guard::run(GuardConfig { agent_command, state_dir: config.state_dir }).into(),
        (Some("agent"), _) => agent(config),
        _ => {
            eprintln!("usage: razar-node guard|agent  (configured by RAZAR_* variables)");
            ExitCode::from(64)
        }
    }
}

fn agent(config: NodeConfig) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(start::run(config)));
    match ended {
        Ok(Ending::Stopped) => ExitCode::SUCCESS,
        Ok(Ending::Replaced) => ExitCode::from(1),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
