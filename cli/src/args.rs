//! The command line: what can be typed, with its help and examples. What it does is in `commands`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

/// Stack file taken when none is named.
const FILE_DEFAULT: &str = "razar.yaml";

/// Replicas of one agent on one machine; more serve nothing there.
const REPLICAS_MAX: i64 = 16;
/// Most shards of the agents' decisions, as the mesh has it.
const SHARDS_MAX: i64 = razar_bus_schema::shard::SHARDS_MAX as i64;

/// Razar boots a stack of services in order, watches it, and brings back whatever dies.
#[derive(Debug, Parser)]
#[command(name = "razar", version, disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  razar validate                 every error of razar.yaml at once
  razar up                       start the mesh and the stack; follow it; Ctrl+C stops both
  razar up --detach              the same, and return once booted
  razar status                   how it is; who is unwell, and why
  razar why api                  the rule by which api runs, waits or is stopped
  razar events --follow 'heart.>'
  razar restart memory-store

Exit codes: 0 well, 1 not well, 2 critical (status --check), 64 wrong arguments or file,
  69 out of reach, 75 accepted but no outcome in time, 77 refused, 130 interrupted")]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// One JSON object per line: protobuf's JSON mapping of razar.v1
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Name of the mesh, the root token of its subjects
    #[arg(long, global = true, env = "RAZAR_MESH", default_value = razar_bus_schema::subject::MESH_DEFAULT, value_parser = name)]
    pub(crate) mesh: String,
    /// Address of the bus; unset: where the embedded mesh of this machine has it [nats://127.0.0.1:4222]
    #[arg(long, global = true, env = "RAZAR_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Longest wait for an outcome (60s; `up`: 10m)
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Return with the receipt, without waiting for the outcome
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,
    /// Clocks in UTC
    #[arg(long, global = true)]
    pub(crate) utc: bool,
    /// Nothing but data and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// More detail
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub(crate) verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the embedded mesh where none runs, and apply a stack file; again: apply what changed
    #[command(after_help = "Examples:
  razar up                                   razar.yaml here; follows it, Ctrl+C stops all, d detaches
  razar up stack.yaml --profile core --detach
  razar up --fresh                           forget the checkpoint: one-shots run again
  razar up --replicas 3                      three of each agent: two of them may die at once")]
    Up(Up),
    /// Stop the stack in reverse order, then the embedded mesh
    #[command(after_help = "Examples:
  razar down
  razar down --keep-mesh                     the mesh stays, for the next up")]
    Down(Down),
    /// Order, node and reason for each component; starts nothing
    #[command(after_help = "Examples:
  razar plan stack.yaml                      as it would start; with a mesh running: the difference too
  razar plan                                 razar.yaml here, or else the plan in force
  razar plan stack.yaml --check              exit 1 if up would change anything")]
    Plan(Plan),
    /// Every error of a stack file at once
    #[command(after_help = "Examples:
  razar validate
  razar validate mine.yaml                   exit 64 with every error: file, line, column, component, hint")]
    Validate(Validate),
    /// JSON Schema of the stack file, for editors
    #[command(after_help = "Examples:
  razar schema > razar.schema.json           then, as the file's first line:
                                             # yaml-language-server: $schema=razar.schema.json")]
    Schema,
    /// How the stack is; of one component: probes, limits, dependencies, last log lines
    #[command(after_help = "Examples:
  razar status
  razar status memory-store
  razar status --check                       exit 0 well, 1 degraded, 2 critical
  kill -9 $(razar status redis --pid)
  razar status --watch --all                 with the mesh's own components")]
    Status(Status),
    /// Run what was stopped by hand
    #[command(after_help = "Examples:
  razar start api worker")]
    Start(Named),
    /// Stop components until they are started again
    #[command(after_help = "Examples:
  razar stop worker")]
    Stop(Named),
    /// A new generation, that is a new process
    #[command(after_help = "Examples:
  razar restart memory-store --reason upgrade")]
    Restart(Named),
    /// Switch to another profile: stop what left, start what came
    #[command(after_help = "Examples:
  razar profile core
  razar profile _                            every component")]
    Profile(Profile),
    /// Isolate a component: stopped, and started by nobody, until its time is over or it is released; or show the log of it
    #[command(after_help = "Examples:
  razar quarantine worker --for 2h --note leaks
  razar quarantine --list                    every isolation and release
  razar quarantine --list --markdown         the same as a Markdown table")]
    Quarantine(Quarantine),
    /// End a quarantine by hand
    #[command(after_help = "Examples:
  razar release reranker --note mended")]
    Release(Release),
    /// Why a component is as it is: the precedence table; without a name: the root causes
    #[command(after_help = "Examples:
  razar why api
  razar why                                  what is wrong at the root")]
    Why(Why),
    /// What happened, from the stream of events
    #[command(after_help = "Examples:
  razar events                               the last 100
  razar events --since 1h 'heart.>'          as in nats sub 'razar.event.heart.>'
  razar events --follow api                  a component's
  razar events '*.*.component_exited'")]
    Events(Events),
    /// Failures and what was done about them, a line each
    #[command(after_help = "Examples:
  razar incidents --since 1h
  razar incidents --open                     what is not over")]
    Incidents(Incidents),
    /// The story of one incident: what failed, what was tried, how it ended
    #[command(after_help = "Examples:
  razar incident                             the newest
  razar incident memory-store                the newest of a component
  razar incident memory-store@1.1 --json     its events as they are")]
    Incident(IncidentArgs),
    /// Last lines of components' output, merged by time
    #[command(after_help = "Examples:
  razar logs -f api worker                   | output, ! error output, * the mesh
  razar logs postgres --since 10m")]
    Logs(Logs),
    /// Send a command to an agent and wait for its outcome
    #[command(after_help = "Examples:
  razar command orchestrator restart memory-store --reason upgrade
  razar command orchestrator restart memory-store --print    the same, for the nats tool")]
    #[command(name = "command")]
    Send(Send),
    /// Look for what would keep a mesh from working here, with the fix for each
    #[command(after_help = "Examples:
  razar doctor                               exit 1 if something fails
  razar doctor --fix                         mend what is safe to mend")]
    Doctor(Doctor),
    /// Completion script for a shell
    #[command(after_help = "Examples:
  razar completions bash > ~/.local/share/bash-completion/completions/razar
  razar completions zsh > ~/.zfunc/_razar")]
    Completions(Completions),
}

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Stack file
    #[arg(default_value = FILE_DEFAULT)]
    pub(crate) file: PathBuf,
    /// Profile of the stack file; unset: every component
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// Forget the checkpoint: one-shots run again
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Return once booted
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// A drop of more than 20 % of the components is meant
    #[arg(long)]
    pub(crate) approve: bool,
    /// Replicas of each agent, where this starts the embedded mesh (1)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=REPLICAS_MAX))]
    pub(crate) replicas: Option<u8>,
    /// Shards of the agents' decisions, where this starts the embedded mesh (as the stack file says, else 1)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=SHARDS_MAX))]
    pub(crate) shards: Option<u8>,
}

/// Options of `down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Leave the embedded mesh running
    #[arg(long)]
    pub(crate) keep_mesh: bool,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Stack file; unset: razar.yaml if it is here, else the plan in force
    pub(crate) file: Option<PathBuf>,
    /// Profile of the stack file; unset: every component
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// Exit 1 if `up` would change anything
    #[arg(long)]
    pub(crate) check: bool,
}

/// Options of `validate`.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// Stack file
    #[arg(default_value = FILE_DEFAULT)]
    pub(crate) file: PathBuf,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Component (`api`, `api.1` a replica)
    pub(crate) name: Option<String>,
    /// With the components of the mesh itself
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Again each second until interrupted
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Exit 0 well, 1 degraded, 2 critical
    #[arg(long)]
    pub(crate) check: bool,
    /// The process id alone
    #[arg(long, requires = "name")]
    pub(crate) pid: bool,
}

/// Components to act on.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Components
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Why, for the record
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// Options of `profile`.
#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// Profile; `_`: every component
    pub(crate) name: String,
    /// Why, for the record
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// Options of `quarantine`.
#[derive(Debug, Args)]
pub(crate) struct Quarantine {
    /// Component; with --list: only its lines
    #[arg(required_unless_present = "list")]
    pub(crate) name: Option<String>,
    /// Why, for the record
    #[arg(long, default_value = "")]
    pub(crate) note: String,
    /// How long, then probation (30m)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) r#for: Option<Duration>,
    /// Show every isolation and release
    #[arg(long, conflicts_with_all = ["note", "for"])]
    pub(crate) list: bool,
    /// As a Markdown table
    #[arg(long, requires = "list")]
    pub(crate) markdown: bool,
}

/// Options of `release`.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// Component (`api`, `api.1` a replica)
    pub(crate) name: String,
    /// What was mended, for the record
    #[arg(long, default_value = "")]
    pub(crate) note: String,
}

/// Options of `why`.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// Component (`api`, `api.1` a replica); unset: the root causes
    pub(crate) name: Option<String>,
}

/// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Tokens after `razar.event.` (`heart.>`, `*.api.*`), or a chakra's or component's name
    #[arg(default_value = ">")]
    pub(crate) pattern: String,
    /// Go on with what happens
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// From then on: an age (`1h`), a time (`14:02`) or an RFC 3339 instant
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
}

/// Options of `incidents`.
#[derive(Debug, Args)]
pub(crate) struct Incidents {
    /// From then on: an age (`1h`), a time (`14:02`) or an RFC 3339 instant; what is open is shown all the same
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Only what is not over
    #[arg(long)]
    pub(crate) open: bool,
}

/// Options of `incident`.
#[derive(Debug, Args)]
pub(crate) struct IncidentArgs {
    /// Incident (`api@1.3`), or a component for its newest; unset: the newest of all
    pub(crate) id: Option<String>,
    /// The newest that is not over
    #[arg(long)]
    pub(crate) open: bool,
    /// Decide it once more, by the policies of this `razar`, and show where they would decide otherwise (exit 1); with `--json` the events
    /// as they would be told
    #[arg(long)]
    pub(crate) replay: bool,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Components (`api`, `api.1` a replica)
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Go on with what is written
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// From then on: an age (`10m`), a time (`14:02`) or an RFC 3339 instant
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Last lines of each, at most 1000
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) lines: u32,
}

/// A command to an agent.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Agent (`orchestrator`)
    #[arg(value_parser = name)]
    pub(crate) agent: String,
    /// Verb (`start`, `stop`, `restart`, `profile`, `down`)
    #[arg(value_parser = name)]
    pub(crate) verb: String,
    /// Target: a component, stack or profile; `_`: none
    pub(crate) target: String,
    /// Why, for the record
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Note, where the verb asks for one
    #[arg(long, default_value = "")]
    pub(crate) note: String,
    /// Duration of the effect, where the verb takes one
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) r#for: Option<Duration>,
    /// Print the same as a command of the public `nats` tool; send nothing
    #[arg(long)]
    pub(crate) print: bool,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Stack file whose ports are looked at, if it is there
    #[arg(default_value = FILE_DEFAULT)]
    pub(crate) file: PathBuf,
    /// Mend what is safe to mend
    #[arg(long)]
    pub(crate) fix: bool,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell
    pub(crate) shell: clap_complete::Shell,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; like 90s, 1m30s, 250ms"))
}

fn name(text: &str) -> Result<String, String> {
    if razar_bus_schema::ids::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name is a letter or digit, then a-z, 0-9, `-`, `_`, at most 63 in all".to_owned())
    }
}

/// The parser, its examples with the program's name as typed.
pub(crate) fn parser(program: &str) -> clap::Command {
    let mut command = Cli::command().bin_name(program);
    let examples = |c: &clap::Command| c.get_after_help().map(|help| help.to_string().replace("  razar ", &format!("  {program} ")));
    if let Some(help) = examples(&command) {
        command = command.after_help(help);
    }
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| match examples(&sub) {
            Some(help) => sub.after_help(help),
            None => sub,
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::from_arg_matches(&parser("./razar").try_get_matches_from(words)?)
    }

    #[test]
    fn the_parser_is_sound() {
        parser("razar").debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = parse(&["razar", "status", "api", "--json", "--timeout", "1m30s", "-q"]).unwrap();
        assert!(cli.global.json && cli.global.quiet);
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(90)));
        assert!(matches!(cli.command, Command::Status(Status { name: Some(name), .. }) if name == "api"));
    }

    #[test]
    fn help_teaches_with_the_program_as_typed() {
        let help = parse(&["razar", "up", "--help"]).unwrap_err().to_string();
        assert!(help.contains("  ./razar up stack.yaml --profile core --detach"), "{help}");
        assert!(help.contains("Usage: ./razar up"), "{help}");
    }

    #[test]
    fn a_wrong_word_names_the_nearest() {
        let error = parse(&["razar", "statsu"]).unwrap_err().to_string();
        assert!(error.contains("'status'"), "{error}");
        assert!(parse(&["razar", "status", "--timeout", "soon"]).unwrap_err().to_string().contains("like 90s"));
    }

    #[test]
    fn what_is_not_built_is_absent() {
        let help = parse(&["razar", "--help"]).unwrap_err().to_string();
        for later in ["load", "import", "backup", "queue"] {
            assert!(!help.contains(&format!("  {later} ")), "{later}");
        }
    }
}
