//! `command`: any command to any agent, as from any NATS client; `--print` shows how the public `nats` tool says it.

use razar_bus_schema::{json, subject::Subjects, time::duration, v1};

use crate::{
    args::{Global, Send},
    commands::lifecycle::{receipt, send, wait},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::Feed,
    link::Link,
    outcome::Waiter,
    render::text::{escape, shell},
};

/// Sends, and waits for the outcome.
///
/// # Errors
/// Exit 77 when it is refused, 75 when there is no outcome in time, 69 when the mesh is away.
pub(crate) async fn run(args: Send, console: &Console, global: &Global) -> Done {
    let command =
        v1::Command { reason: args.reason.clone(), note: args.note.clone(), r#for: args.r#for.map(duration), ..Default::default() };
    let target_is_sound = args.target.split('.').all(|t| t == "_" || razar_bus_schema::ids::is_name(t));
    if !target_is_sound {
        return Err(Failure::new(Exit::Arguments, format!("`{}` is no target: api, api.1, a stack, a profile or _", escape(&args.target))));
    }
    if args.print {
        console.line(&as_nats(&args, &command, global)?)?;
        return Ok(Exit::Well);
    }
    let link = Link::open(console, global).await?;
    let before = link.caught_up().await?;
    let known = before.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let feed = Feed::new(&link, link.events_after(">", &before));
    let sent = send(&link, (&args.agent, &args.verb, &args.target), command, console, global).await?;
    if console.json {
        console.message(sent.receipt())?;
    }
    let line = receipt(&sent, &args.agent, console, &["command", &args.agent, &args.verb], &args.target)?;
    if !console.json {
        console.line(&line)?;
    }
    if global.no_wait {
        return Ok(Exit::Well);
    }
    let waiter = Waiter::new(&args.verb, &args.target, sent.receipt(), known);
    wait(&link, feed, vec![waiter], console, global).await
}

/// `nats req razar.command.orchestrator.restart.memory-store '{"reason":"upgrade"}'`
fn as_nats(args: &Send, command: &v1::Command, global: &Global) -> Result<String, Failure> {
    let wrong = |e: String| Failure::new(Exit::Arguments, e);
    let subjects = Subjects::new(&global.mesh).map_err(|e| wrong(e.to_string()))?;
    let subject = subjects.command(&args.agent, &args.verb, &args.target);
    let payload = json::to_json(command).map_err(|e| wrong(e.to_string()))?;
    let server = global.server.as_ref().map(|s| format!("--server {} ", shell(s))).unwrap_or_default();
    Ok(format!("nats req {server}{} {}", shell(&subject), shell(&payload)))
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::args::{Cli, Command, parser};

    #[test]
    fn print_is_what_the_nats_tool_takes() {
        let words =
            ["razar", "--server", "nats://h:1", "command", "orchestrator", "restart", "memory-store", "--reason", "upgrade", "--for", "2h"];
        let cli = Cli::from_arg_matches(&parser("razar").try_get_matches_from(words).unwrap()).unwrap();
        let Command::Send(args) = cli.command else { panic!("another command") };
        let command = v1::Command { reason: args.reason.clone(), r#for: args.r#for.map(duration), ..Default::default() };
        assert_eq!(
            as_nats(&args, &command, &cli.global).unwrap(),
            r#"nats req --server nats://h:1 razar.command.orchestrator.restart.memory-store '{"reason":"upgrade","for":"7200s"}'"#
        );
    }
}
