//! `razar-node guard`: the node, kept alive. `razar-node agent`: what the guard keeps alive.

use std::{path::PathBuf, process::ExitCode};

use razar_agent_kit::{config, run::EXIT_CONFIG};
use razar_node::{
    config::NodeConfig,
    guard::{self, GuardConfig},
    start,
};

fn main() -> ExitCode {
    let exe_dir = std::env::current_exe().ok().and_then(|p| p.parent().map(PathBuf::from)).unwrap_or_default();
    let logs = config::load::<config::NoSettings>("node");
    let node = NodeConfig::from_variables(|name| std::env::var(name).ok(), &exe_dir);
    match (std::env::args().nth(1).as_deref(), node, logs, start::agent_command()) {
        (Some("guard"), Ok(node), Ok(_), Ok(agent_command)) => guard::run(GuardConfig { agent_command, state_dir: node.state_dir }).into(),
        (Some("agent"), Ok(node), Ok((logs, _)), _) => start::agent(node, &logs),
        (Some("guard" | "agent"), Err(error), _, _) => wrong(&error),
        (Some("guard" | "agent"), _, Err(error), _) => wrong(&error),
        _ => wrong(&"usage: razar-node guard|agent, configured by RAZAR_* variables"),
    }
}

fn wrong(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("razar-node: {why}");
    ExitCode::from(EXIT_CONFIG)
}
