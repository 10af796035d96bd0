//! What each command does: asks, waits, hands what it got to `render`, and ends with an exit code. One file per command.

pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod incidents;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod mission;
pub(crate) mod plan;
pub(crate) mod quarantine;
pub(crate) mod send;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod why;

use crate::{
    args::{Command, Global},
    console::Console,
    exit::Done,
};

/// Runs `command`.
///
/// # Errors
/// Why it could not do what it was asked.
pub(crate) async fn run(command: Command, console: &Console, global: &Global) -> Done {
    match command {
        Command::Up(args) => up::run(args, console, global).await,
        Command::Down(args) => down::run(&args, console, global).await,
        Command::Plan(args) => plan::run(&args, console, global).await,
        Command::Validate(args) => validate::validate(&args, console),
        Command::Schema => validate::schema(console),
        Command::Status(args) => status::run(&args, console, global).await,
        Command::Start(args) => lifecycle::run("start", args, console, global).await,
        Command::Stop(args) => lifecycle::run("stop", args, console, global).await,
        Command::Restart(args) => lifecycle::run("restart", args, console, global).await,
        Command::Profile(args) => lifecycle::profile(args, console, global).await,
        Command::Quarantine(args) => quarantine::run(args, console, global).await,
        Command::Release(args) => quarantine::release(args, console, global).await,
        Command::Why(args) => why::run(&args, console, global).await,
        Command::Events(args) => events::run(&args, console, global).await,
        Command::Incidents(args) => incidents::list(&args, console, global).await,
        Command::Incident(args) => incidents::show(&args, console, global).await,
        Command::Logs(args) => logs::run(&args, console, global).await,
        Command::Send(args) => send::run(args, console, global).await,
        Command::Doctor(args) => doctor::run(&args, console, global).await,
        Command::Completions(args) => completions::run(&args, console),
    }
}
