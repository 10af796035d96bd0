//! The stack file as types: what users write, with everything optional that has a default. The JSON Schema is made from these
//! types and their comments; `read` fills them from the tree. Defaults are not here but in `fill`.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Texts that have a type of their own in the schema.
macro_rules! text_schema {
    ($($(#[$doc:meta])* $name:ident: $schema:tt),* $(,)?) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

text_schema! {
    DurationText: {
        "description": "A duration as in Compose: numbers with the units us, ms, s, m, h, d.",
        "type": ["string", "integer"], "pattern": r"^(0|([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+|.*\$\{.*)$", "examples": ["1m30s", "250ms", "10s"]
    },
    SizeText: {
        "description": "A size in powers of 1024; a bare number is bytes.",
        "type": ["string", "integer"], "examples": ["512MiB", "2GiB"]
    },
    PercentText: { "description": "A share of the machine.", "type": "string", "examples": ["50%"] },
    CoresText: { "description": "Cores.", "type": ["number", "string"], "examples": [1.5] },
    SignalText: { "description": "A signal by name or number.", "type": ["string", "integer"], "examples": ["SIGTERM", "SIGINT"] },
    PlainText: { "description": "A text; numbers and truth values are taken as they are written.", "type": ["string", "number", "boolean"] },
    NameText: {
        "description": "A name: a letter or digit, then letters, digits and `-`, all lower-case, at most 63.",
        "type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"
    },
    PortText: { "description": "A TCP port.", "type": ["integer", "string"], "minimum": 1, "maximum": 65535, "examples": [5433] },
    PolicyText: {
        "description": "After which exits it is restarted.",
        "enum": ["on-failure", "always", "never", "no", "unless-stopped"]
    },
    NoneText: { "description": "Ready as soon as it runs; nothing is asked.", "const": "none" },
    SpawnedSelf: { "description": "True: the component says it itself, by sd_notify.", "const": true },
    StayText: { "description": "What happens when its node is lost: it stays that node's. (`move` comes later.)", "const": "stay" },
}

/// A stack of Razar: the components of an AI system, what each waits for, and how one sees that it is well.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, title = "Razar stack")]
pub struct StackFile {
    /// The stack's name in events and traces: a-z, 0-9 and `-`.
    #[schemars(with = "NameText")]
    pub name: String,
    /// What the stack is for, for people.
    pub description: Option<String>,
    /// Figures of the mesh that runs this stack.
    #[schemars(default)]
    pub mesh: Mesh,
    /// What components that say nothing of their own get.
    #[schemars(default)]
    pub defaults: Defaults,
    /// Functional layers. The seven `root sacral solar heart throat third_eye crown` exist by themselves; a stack may change them and add its own.
    #[schemars(default)]
    pub chakras: BTreeMap<String, Chakra>,
    /// The programs of the stack, by name (a-z, 0-9 and `-`).
    pub components: BTreeMap<String, Component>,
    /// Parts of the stack that can be run by themselves, by name.
    #[schemars(default)]
    pub profiles: BTreeMap<String, Profile>,
}

/// Figures of the mesh.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Mesh {
    /// Components that may be starting at once on a node. Default 4.
    pub parallel_starts: Option<u32>,
    /// Restarts by the node itself before the recovery ladder takes over. Default 3 within 90s.
    #[schemars(default)]
    pub local_restarts: Budget,
    /// Time after which a boot is called incomplete. Default 5m; a profile may say its own.
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<Duration>,
    /// Shards into which the agents divide their decisions, 1 to 16; counts when `razar up` starts the mesh. Default 1: one replica of each
    /// agent decides.
    pub shards: Option<u32>,
    /// Boots in a row that end with a component failed until it is no longer started. Default 3.
    pub failed_boots: Option<u32>,
    /// File with errors that are known to recur and what helps against each, relative to this file; it is asked before the built-in list.
    #[schemars(with = "Option<String>")]
    pub errors: Option<PathBuf>,
    /// Program that is run when people must know of something.
    pub escalation_hook: Option<Hook>,
}

/// How many restarts in which time.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Budget {
    /// Restarts. Default 3.
    pub max: Option<u32>,
    /// Time in which they count. Default 90s.
    #[schemars(with = "Option<DurationText>")]
    pub within: Option<Duration>,
}

/// What components that say nothing of their own get.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Defaults {
    /// How to stop.
    #[schemars(default)]
    pub stop: Stop,
    /// Limits of log files.
    #[schemars(default)]
    pub logs: Logs,
    /// How to restart: a policy alone, or more.
    #[schemars(default, with = "RestartSchema")]
    pub restart: Restart,
    /// Times and thresholds of probes, by role.
    #[schemars(default)]
    pub probes: ProbeDefaults,
    /// A probe slower than this counts as degraded. Default 500ms.
    #[schemars(with = "Option<DurationText>")]
    pub slow_probe: Option<Duration>,
}

/// Times and thresholds of probes, by role.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ProbeDefaults {
    /// Of startup probes. Default period 1s, timeout 1s, failure_threshold 30.
    #[schemars(default)]
    pub startup: Timing,
    /// Of readiness probes. Default period 5s (1s while it does not pass), timeout 5s, failure_threshold 3.
    #[schemars(default)]
    pub readiness: Timing,
    /// Of liveness probes. Default period 1s, timeout 1s, failure_threshold 3.
    #[schemars(default)]
    pub liveness: Timing,
}

/// When a probe is asked, and what its answers count.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Timing {
    /// Time between two questions. Until a component is first ready they come sooner. Default 1s (readiness 5s while it passes).
    #[schemars(with = "Option<DurationText>")]
    pub period: Option<Duration>,
    /// Time to answer. Default 1s (readiness 5s).
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<Duration>,
    /// Failures in a row that count. Default 3 (startup 30).
    pub failure_threshold: Option<u32>,
    /// Successes in a row that count. Default 1.
    pub success_threshold: Option<u32>,
    /// Wait before the first question. Default 0.
    #[schemars(with = "Option<DurationText>")]
    pub initial_delay: Option<Duration>,
}

/// A functional layer.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Chakra {
    /// What it is for, for people.
    pub description: Option<String>,
    /// Share of its components that must be ready, 0 to 1. Default per chakra: root .80 sacral .85 solar .90 heart .88 throat .92 third_eye .93 crown .95, others .90.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub health_threshold: Option<f64>,
    /// Program that mends the layer as a whole, run as one rung of the ladder.
    pub heal_hook: Option<Hook>,
}

/// A program that a node runs once and waits for.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Hook {
    /// Program and arguments.
    #[schemars(with = "Vec<PlainText>")]
    pub command: Vec<String>,
    /// Time until it is killed, with all that it started. Default 30s.
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<Duration>,
    /// Its environment: a mapping, or a list of `NAME=value`.
    #[schemars(default, with = "EnvironmentSchema")]
    pub env: BTreeMap<String, String>,
}

/// One program of the stack.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Component {
    /// What it is for, for people.
    pub description: Option<String>,
    /// Functional layer that it belongs to.
    pub chakra: String,
    /// 0 starts first among those that could start. Default 5.
    #[schemars(range(max = 1000))]
    pub priority: Option<u32>,
    /// Program and arguments. A program with a slash is relative to this file, another one is looked for on PATH.
    #[schemars(with = "Vec<PlainText>", length(min = 1))]
    pub command: Vec<String>,
    /// Working directory, relative to this file. Default: this file's.
    #[schemars(with = "Option<String>")]
    pub working_dir: Option<PathBuf>,
    /// Environment, visible on the bus: secrets are not written here. A mapping, or a list of `NAME=value`.
    #[schemars(default, with = "EnvironmentSchema")]
    pub env: BTreeMap<String, String>,
    /// Environment variables whose values the node reads from files at each start; they are never on the bus.
    #[schemars(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// TCP ports that it listens on.
    #[schemars(default, with = "Vec<PortText>")]
    pub ports: Vec<u16>,
    /// Gives it time to come up: the other probes begin when this one has passed.
    pub startup: Option<Probe>,
    /// Says whether it can serve, or `none`. Default: the startup probe, else the liveness probe.
    pub readiness: Option<Readiness>,
    /// Says whether it still makes progress. Ask the process alone, not what it depends on.
    pub liveness: Option<Probe>,
    /// How to stop it.
    #[schemars(default)]
    pub stop: Stop,
    /// An optional one may fail without failing the mission. Default true.
    pub required: Option<bool>,
    /// What happens when its node is lost.
    #[schemars(with = "Option<StayText>")]
    pub on_node_loss: Option<()>,
    /// What the ladder's "clear state" removes; nothing else is ever removed.
    #[schemars(default, with = "Vec<String>")]
    pub state: Vec<PathBuf>,
    /// Limits that are watched. Default: memory 1GiB, open_files 1024, cpu 90%.
    pub resources: Option<Resources>,
    /// What it waits for: a list of names, or a mapping from name to condition.
    #[schemars(default, with = "DependsOnSchema")]
    pub depends_on: BTreeMap<String, DependsOn>,
    /// When the node restarts it by itself; a policy alone, or more.
    #[schemars(default, with = "RestartSchema")]
    pub restart: Restart,
    /// The ladder's rungs, in order; quarantine is always last. Default restart, clear_state, dependencies, chakra_hook.
    pub heal: Option<Vec<Rung>>,
    /// Capabilities that others find it by.
    #[schemars(default)]
    pub provides: Vec<String>,
    /// Copies. Default 1.
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<u32>,
    /// Where it may run.
    #[schemars(default)]
    pub node: Placement,
    /// It runs once; its success is its readiness. Default false.
    pub one_shot: Option<bool>,
    /// Free facts for discovery.
    #[schemars(default, with = "BTreeMap<String, PlainText>")]
    pub metadata: BTreeMap<String, String>,
    /// Limits of its log files.
    #[schemars(default)]
    pub logs: Logs,
    /// A probe slower than this counts as degraded. Default 500ms.
    #[schemars(with = "Option<DurationText>")]
    pub slow_probe: Option<Duration>,
}

/// A file whose content becomes the value of an environment variable.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Secret {
    /// The file, relative to this file; one newline at its end is cut.
    #[schemars(with = "String")]
    pub file: PathBuf,
}

/// A readiness probe, or none.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(untagged)]
pub enum Readiness {
    /// Ready as soon as it runs.
    #[schemars(with = "NoneText")]
    None,
    /// Asked.
    Probe(Box<Probe>),
}

/// A probe: exactly one of the seven ways to ask, and when.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Probe {
    /// HTTP GET; 200 to 399 passes.
    pub http: Option<Http>,
    /// TCP connect; proves a listener, not progress.
    pub tcp: Option<Tcp>,
    /// A command that must exit 0.
    #[schemars(with = "Option<Vec<PlainText>>")]
    pub exec: Option<Vec<String>>,
    /// gRPC health protocol.
    pub grpc: Option<Grpc>,
    /// A line of output; for startup and readiness.
    pub log: Option<Log>,
    /// sd_notify: `READY=1`, and `WATCHDOG=1` as liveness.
    #[schemars(with = "Option<SpawnedSelf>")]
    pub notify: Option<()>,
    /// Heartbeats on the bus.
    pub heartbeat: Option<Heartbeat>,
    /// When it is asked.
    #[schemars(flatten)]
    pub timing: Timing,
}

/// HTTP GET.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Http {
    /// Host. Default 127.0.0.1.
    pub host: Option<String>,
    /// Port.
    #[schemars(with = "PortText")]
    pub port: u16,
    /// Path with leading slash. Default `/`.
    pub path: Option<String>,
    /// Extra request headers.
    #[schemars(default, with = "BTreeMap<String, PlainText>")]
    pub headers: BTreeMap<String, String>,
}

/// TCP connect.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Tcp {
    /// Host. Default 127.0.0.1.
    pub host: Option<String>,
    /// Port.
    #[schemars(with = "PortText")]
    pub port: u16,
}

/// gRPC health protocol.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Grpc {
    /// Host. Default 127.0.0.1.
    pub host: Option<String>,
    /// Port.
    #[schemars(with = "PortText")]
    pub port: u16,
    /// Service. Default: the whole server.
    pub service: Option<String>,
}

/// A line of output.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Log {
    /// Regular expression searched in each line.
    pub pattern: String,
}

/// Heartbeats on the bus.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Heartbeat {
    /// Time between two beats. Default 1s.
    #[schemars(with = "Option<DurationText>")]
    pub interval: Option<Duration>,
    /// Missed beats that count as down. Default 3.
    pub misses: Option<u32>,
}

/// How to stop.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Stop {
    /// Signal sent first. Default SIGTERM.
    #[schemars(with = "Option<SignalText>")]
    pub signal: Option<i32>,
    /// Time until SIGKILL. Default 10s.
    #[schemars(with = "Option<DurationText>")]
    pub grace: Option<Duration>,
}

/// Limits that are watched.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Resources {
    /// Resident memory.
    #[schemars(with = "Option<SizeText>")]
    pub memory: Option<u64>,
    /// Cores; thousandths of a core in memory.
    #[schemars(with = "Option<CoresText>")]
    pub cpu: Option<u32>,
    /// Open files; also its soft limit.
    pub open_files: Option<u32>,
    /// Replace it when it stays over one of them. Default false: it is told.
    pub restart: Option<bool>,
}

/// What must hold of a dependency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Condition {
    /// It was started. (Compose: `service_started`.)
    Started,
    /// It is ready. (Compose: `service_healthy`.)
    #[default]
    Ready,
    /// It ended well; for one-shots. (Compose: `service_completed_successfully`.)
    Completed,
    /// As `started`.
    ServiceStarted,
    /// As `ready`.
    ServiceHealthy,
    /// As `completed`.
    ServiceCompletedSuccessfully,
}

/// A dependency.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct DependsOn {
    /// What must hold. Default ready.
    pub condition: Option<Condition>,
    /// One that is not required is waited for only until it failed or is absent. Default true.
    pub required: Option<bool>,
    /// Restart this component when the dependency was restarted. Default false.
    pub restart: Option<bool>,
}

/// Both forms of `depends_on`.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "a shape for the schema only")]
enum DependsOnSchema {
    /// Names; each must be ready.
    Names(Vec<String>),
    /// Name to condition.
    Conditions(BTreeMap<String, DependsOn>),
}

/// Both forms of `env`.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "a shape for the schema only")]
enum EnvironmentSchema {
    /// Name to value.
    Values(BTreeMap<String, PlainText>),
    /// `NAME=value`.
    Pairs(Vec<String>),
}

/// Both forms of `restart`.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "a shape for the schema only")]
enum RestartSchema {
    /// A policy; Compose's `no` and `unless-stopped` are understood.
    Policy(PolicyText),
    /// More.
    Restart(Restart),
}

/// When the node restarts a component by itself.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Restart {
    /// After which exits. Default on-failure.
    #[schemars(with = "Option<PolicyText>")]
    pub policy: Option<Policy>,
    /// Delays between restarts in a row.
    #[schemars(default)]
    pub backoff: Backoff,
    /// Time of being ready after which the delays begin anew. Default 1s.
    #[schemars(with = "Option<DurationText>")]
    pub reset_after: Option<Duration>,
    /// Restarts before the ladder takes over. Default: the mesh's.
    pub max: Option<u32>,
    /// Time in which they count. Default: the mesh's.
    #[schemars(with = "Option<DurationText>")]
    pub within: Option<Duration>,
}

/// After which exits a component is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// After any exit.
    Always,
    /// After an exit other than 0 and after signals.
    OnFailure,
    /// Never by the node.
    Never,
}

/// Delays between restarts in a row: `first`, then `base` times a power of `factor`, at most `max`.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Backoff {
    /// Before the first restart. Default 0s.
    #[schemars(with = "Option<DurationText>")]
    pub first: Option<Duration>,
    /// Before the second. Default 1s.
    #[schemars(with = "Option<DurationText>")]
    pub base: Option<Duration>,
    /// Growth from one to the next, at least 1. Default 2.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub factor: Option<f64>,
    /// Longest. Default 60s.
    #[schemars(with = "Option<DurationText>")]
    pub max: Option<Duration>,
    /// Share of the delay that is random, 0 to 1. Default 0.2.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: Option<f64>,
}

/// A rung of the recovery ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Rung {
    /// Restart it.
    Restart,
    /// Remove its `state` and restart it.
    ClearState,
    /// Heal what it depends on first.
    Dependencies,
    /// Run its chakra's heal hook.
    ChakraHook,
}

/// Where a component may run.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Placement {
    /// Labels that the node must have.
    #[schemars(default, with = "BTreeMap<String, PlainText>")]
    pub labels: BTreeMap<String, String>,
}

/// Limits of log files.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Logs {
    /// Size at which a file is rotated. Default 20MiB.
    #[schemars(with = "Option<SizeText>")]
    pub max_size: Option<u64>,
    /// Rotated files kept. Default 3.
    pub keep: Option<u32>,
}

/// A part of the stack that can be run by itself.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Profile {
    /// What it is for, for people.
    pub description: Option<String>,
    /// Profile whose components it runs too, and whose figures it takes where it says none.
    pub extends: Option<String>,
    /// Components that it runs.
    #[schemars(default)]
    pub include: Vec<String>,
    /// Components that are to be loaded at boot even when they could wait for demand.
    #[schemars(default)]
    pub autoload: Vec<String>,
    /// Limits of all its components together.
    #[schemars(default)]
    pub limits: ProfileLimits,
    /// Components that may be starting at once on a node. Default: the mesh's.
    pub parallel_starts: Option<u32>,
    /// Time after which a boot is called incomplete. Default: the mesh's.
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<Duration>,
}

/// Limits of all components of a profile together.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ProfileLimits {
    /// Resident memory.
    #[schemars(with = "Option<SizeText>")]
    pub memory: Option<u64>,
    /// Share of all cores; thousandths in memory.
    #[schemars(with = "Option<PercentText>")]
    pub cpu: Option<u32>,
    /// Threads.
    pub threads: Option<u32>,
}
