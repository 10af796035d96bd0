//! How a node begins: it takes the lock, reads its disk, looks for what the last agent left, and hands everything to the loop.
//! Nothing is started before the survey is complete.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use razar_bus::Bus;
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1,
};
use razar_os::{BootId, FileId, NodeLock, Tree};
use razar_stack::errors::Registry;
use tokio::sync::mpsc;

use crate::{
    adopt::{self, Found, FoundState, Survey, identity_record},
    agent::{Agent, Ending, Parts, Sources, now},
    config::NodeConfig,
    guard::{Exits, GuardWatch, KeptSockets, exits_path},
    house::House,
    journal::{Journal, Restored as Journalled},
    logs::{ERROR_BYTES_MAX, LogStore, clean, is_error, last_error_line},
    outbox::Outbox,
    policy::{Config, Node, Restored},
    processes::{Places, Processes, exit_record},
    questions, runtime_dir, system, view,
};

/// How long a new agent waits for the last one's lock: that one may be handing over.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long what the last agent left behind may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Looks at the guard's notes for an exit that has just happened, and the time between two.
const GUARD_LOOKS: u32 = 10;
/// See [`GUARD_LOOKS`].
const GUARD_LOOK: Duration = Duration::from_millis(5);
/// Descriptors that the table has room for from the start: some for each component.
const DESCRIPTORS: u32 = 1024;
/// News of processes that wait for the loop.
const PROCESS_NEWS_MAX: usize = 4_096;
/// Beats of components that wait for the loop.
const BEATS_MAX: usize = 4_096;

/// When what errors are known by is made ready: after most boots.
const PATTERNS_AFTER: Duration = Duration::from_secs(1);

/// Runs a node's agent until it ends.
///
/// # Errors
/// When it cannot start; the guard starts it again.
pub async fn run(config: NodeConfig, sockets: KeptSockets) -> Result<Ending> {
    fs::create_dir_all(&config.state_dir).with_context(|| format!("creating {}", config.state_dir.display()))?;
    let lock = NodeLock::acquire(&config.path("lock"), LOCK_WAIT).context("another agent of this node runs")?;
    let boot_id = BootId::current()?.to_string();
    let (mut journal, journalled) = Journal::open(&config.path("journal"), &config.node, &boot_id)?;
    journalled.damage.iter().for_each(|damage| tracing::error!(damage, "the journal was damaged"));
    let logs = LogStore::new(config.path("logs"));
    let mut exits = Exits::open(&exits_path(&config.state_dir))?;
    let survey = adopt::survey(&journalled, &mut exits, logs.dir())?;
    let Sorted { restored, alive, buried, strangers } = sort_out(survey, &journalled, &mut journal, &config, &mut exits)?;
    let cold = restored.living.is_empty();
    let ports = system::ports(&config.path("ports.json"), &config, cold)?;
    let variables: Vec<(String, String)> = std::env::vars().collect();
    let plan = system::plan(&config, &ports, journal.node_epoch(), &variables)?;
    let policy_config = Config {
        mesh: config.mesh.clone(),
        node: config.node.clone(),
        node_epoch: journal.node_epoch().to_owned(),
        seed: u64::from(std::process::id()),
        start_floor: journalled.start_floor,
    };
    let mut policy = Node::new(policy_config, plan, restored, now());
    let (process_news, process_receiver) = mpsc::channel(PROCESS_NEWS_MAX);
    let mut processes = Processes::new(places(&config)?, logs.clone(), sockets, process_news)?;
    adopt_all(&mut processes, &policy, alive);
    let server =
        config.servers.iter().map(|s| if config.embedded.is_some() { format!("nats://127.0.0.1:{}", ports.broker) } else { s.clone() });
    let bus = Bus::connect(razar_bus::Config {
        servers: server.collect(),
        mesh: config.mesh.clone(),
        name: format!("razar-node-{}", config.node),
        credentials: None,
    });
    let bus = bus.await?;
    let outbox = Outbox::start(bus.event_publisher(), journal.backlog(), &journalled);
    let joined = joined(&config, &policy, &boot_id, ports.node_http);
    policy.join(joined.clone(), now());
    strangers.into_iter().for_each(|(instance, incarnation)| policy.tell_foreign(&instance, incarnation, now()));
    if let Err(error) = write_mesh_file(&config, ports.broker, ports.node_http) {
        // Only `razar` reads it; a full disk is no reason to leave the components alone.
        tracing::error!("{error:#}");
    }
    let house = House::open(&config, &bus, &ports).await;
    let sources = sources(&bus, &config, process_receiver).await;
    let parts = Parts { config, policy, journal, outbox, processes, logs, bus, joined, exits, buried, lock, house };
    let (agent, news) = Agent::new(parts)?;
    make_patterns_ready();
    agent.run(Sources { news, ..sources }).await
}

/// Reads the first last word before there is one: what errors are known by is compiled then, ten milliseconds that the first crash would
/// wait for. Later than the boot, which wants the processors.
fn make_patterns_ready() {
    let read = || {
        std::thread::sleep(PATTERNS_AFTER);
        let word = clean(b"Error: a first word", ERROR_BYTES_MAX);
        let _ = (is_error(&word), Registry::default().issue(&word));
    };
    // Without it the first crash is healed a little later, no more.
    drop(std::thread::Builder::new().name("patterns".to_owned()).spawn(read));
}

async fn sources(bus: &Bus, config: &NodeConfig, processes: mpsc::Receiver<crate::processes::ProcessNews>) -> Sources {
    let endpoints: Vec<_> = questions::VERBS.iter().map(|verb| (*verb, bus.subjects().node(&config.node, verb))).collect();
    let name = format!("razar-node-{}", config.node);
    let queries = bus.serve(&name, env!("CARGO_PKG_VERSION"), "starts and watches the components of its host", &endpoints).await;
    let beats = bus.subscribe(&bus.subjects().component_heartbeats(), BEATS_MAX).await;
    Sources {
        processes,
        news: mpsc::channel(1).1,
        intents: bus.watch_intents(),
        queries: queries.inspect_err(|error| tracing::error!(%error, "questions cannot be answered")).ok(),
        beats: beats.inspect_err(|error| tracing::error!(%error, "beats cannot be heard")).ok(),
        guard: GuardWatch::new().unwrap_or(GuardWatch::Unguarded),
    }
}

/// What the survey found, sorted.
struct Sorted {
    restored: Restored,
    alive: Vec<Found>,
    /// What ended while no agent lived: the journal forgets it once the policy has drawn its conclusions.
    buried: Vec<(Instance, Incarnation)>,
    /// What was stopped because it carried another epoch's tag.
    strangers: Vec<(Instance, Incarnation)>,
}

/// Sorts what was found into what lives, what ended, and what never was; ends what is left of the dead and of other epochs.
fn sort_out(survey: Survey, journalled: &Journalled, journal: &mut Journal, config: &NodeConfig, exits: &mut Exits) -> Result<Sorted> {
    let plan = view::load(&config.path("plan.pb")).unwrap_or_else(|error| {
        tracing::error!(%error, "the plan on disk cannot be read");
        None
    });
    let mut restored = Restored { memories: journalled.memories.clone(), plan: plan.unwrap_or_default(), ..Restored::default() };
    let (mut alive, mut buried) = (Vec::new(), Vec::new());
    for found in survey.found {
        match &found.state {
            FoundState::Alive { process, unrecorded } => {
                let identity = identity_record(&process.identity());
                let spawned = v1::Spawned { planned: Some(found.planned.clone()), process: Some(identity) };
                if *unrecorded {
                    let _ = journal.spawned(spawned.clone());
                }
                restored.living.push(spawned);
                alive.push(found);
            }
            FoundState::Exited { status, .. } => {
                clear_away(&found.planned);
                let last_error = last_error_line(&PathBuf::from(&found.planned.log_path)).unwrap_or_default();
                let status = status.or_else(|| status_from_guard(&found, journalled, exits));
                restored.ended.push((found.planned.clone(), exit_record(status, None), last_error));
                buried.push((found.instance, found.incarnation));
            }
            FoundState::NotThere => {
                let _ = journal.gone(&found.instance, found.incarnation);
            }
        }
    }
    let mut strangers = Vec::new();
    for stranger in survey.strangers {
        tracing::warn!(instance = %stranger.instance, incarnation = %stranger.incarnation, "stopped: it carries another epoch's tag");
        let tag = FileId::of_path(&stranger.log_path).ok();
        if let Ok(mut tree) = Tree::new(&stranger.process, tag, None) {
            tree.kill(KILL_LIMIT).context("stopping what another epoch left")?;
        }
        strangers.push((stranger.instance, stranger.incarnation));
    }
    Ok(Sorted { restored, alive, buried, strangers })
}

/// How a process that has ended ended, as soon as the guard has noted it: it may be doing so at this moment.
fn status_from_guard(found: &Found, journalled: &Journalled, exits: &mut Exits) -> Option<razar_os::ExitStatus> {
    let of = |s: &&v1::Spawned| s.planned.as_ref().is_some_and(|p| p == &found.planned);
    let identity = journalled.processes.iter().find(of).and_then(|s| s.process.as_ref()).and_then(adopt::identity_of)?;
    for _ in 0..GUARD_LOOKS {
        if let Ok(Some(status)) = exits.take(identity.pid, identity.start_time_ticks) {
            return Some(status);
        }
        std::thread::sleep(GUARD_LOOK);
    }
    None
}

fn clear_away(planned: &v1::SpawnPlanned) {
    let tag = FileId { dev: planned.log_device, inode: planned.log_inode };
    if let Err(error) = Tree::of_orphans(Some(tag), None).kill(KILL_LIMIT) {
        tracing::warn!(%error, "what a dead component left could not be cleared away");
    }
}

fn adopt_all(processes: &mut Processes, policy: &Node, alive: Vec<Found>) {
    for found in alive {
        let FoundState::Alive { process, .. } = found.state else { continue };
        let spec = policy.instance(&found.instance).and_then(|i| i.spec().cloned()).unwrap_or_default();
        if let Err(why) = processes.adopt(&found.planned, process, &spec) {
            tracing::error!(instance = %found.instance, why, "a living process cannot be watched");
        }
    }
    processes.settle();
}

fn places(config: &NodeConfig) -> Result<Places> {
    let notify_dir = runtime_dir::make(&config.state_dir)?;
    let server = config.servers.first().cloned().unwrap_or_default();
    Ok(Places { mesh: config.mesh.clone(), node: config.node.clone(), server, notify_dir })
}

fn joined(config: &NodeConfig, policy: &Node, boot_id: &str, http: u16) -> v1::NodeJoined {
    let memory_kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    v1::NodeJoined {
        node_epoch: policy.config.node_epoch.clone(),
        boot_id: boot_id.to_owned(),
        labels: config.labels.iter().map(|(k, v)| v1::NodeLabel { key: k.clone(), value: v.clone() }).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        http: config.http.map_or_else(|| format!("127.0.0.1:{http}"), |a| a.to_string()),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_kib.unwrap_or(0) * 1024,
    }
}

/// What `razar` reads to find the mesh: written whole or not at all.
fn write_mesh_file(config: &NodeConfig, broker: u16, http: u16) -> Result<()> {
    let guard = crate::guard::running(&config.state_dir).ok().flatten().map(|p| p.identity().pid.as_raw());
    let file = serde_json::json!({
        "mesh": config.mesh,
        "server": if config.embedded.is_some() { format!("nats://127.0.0.1:{broker}") } else { config.servers.join(",") },
        "node": config.node,
        "node_http": config.http.map_or_else(|| format!("127.0.0.1:{http}"), |a| a.to_string()),
        "guard_pid": guard,
    });
    write_whole(&config.path("mesh.json"), &serde_json::to_vec_pretty(&file)?)
}

/// Writes a file whole or not at all; one that says it already is left alone, so that a full disk keeps nobody from starting.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    crate::journal::replace_file(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// The command by which the guard starts the agent: this program's other half.
///
/// # Errors
/// When this program's own path cannot be told.
pub fn agent_command() -> Result<Vec<OsString>> {
    Ok(vec![std::env::current_exe().context("finding this program")?.into(), "agent".into()])
}

/// The agent's process: logs, a single-threaded runtime, and the exit code that its guard goes by.
#[must_use]
pub fn agent(config: NodeConfig, logs: &razar_agent_kit::AgentConfig) -> ExitCode {
    let sockets = KeptSockets::inherited();
    // Before there are threads. Without it, starts wait for the table to grow.
    let _ = razar_os::reserve_descriptors(std::io::stderr(), DESCRIPTORS);
    razar_agent_kit::telemetry::start_logs(logs);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(run(config, sockets));
        // A thread that waits for a dead collector or a slow disk does not hold the exit.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(Ending::Stopped) => ExitCode::SUCCESS,
        Ok(Ending::Replaced) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
