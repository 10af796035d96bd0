//! The node's guard: a small single-threaded process that starts the agent again when it dies, inherits and reaps the orphans of all
//! components, and notes how each ended, so that no exit is lost while no agent is there; it keeps their notification sockets open, so that
//! no word of theirs is. It knows no bus, no plan and no component.
//! The agent's side of it is here too: noticing that the guard has gone, and starting another.

mod exits;
mod kept;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use razar_os::{ExitStatus, Identity, LockError, NodeLock, Pid, Process, Signal, SignalFd, Spawn};

pub use exits::{Exits, status_of};
pub use kept::KeptSockets;

use kept::KEPT_VARIABLE;

/// Exit code of an agent that refuses its configuration: starting it again would change nothing.
pub const EXIT_BAD_CONFIG: u8 = 64;
/// Exit code of a guard that could not begin, or whose agent crashed while it was stopping.
pub const EXIT_FAILED: u8 = 1;
/// Names the guard to the agent, as `<pid> <start time> <boot id> <pidfd inode>`.
pub const GUARD_VARIABLE: &str = "RAZAR_GUARD";

/// An agent that lived at least this long is started again at once.
const QUICK_DEATH: Duration = Duration::from_secs(1);
/// Delay after the second quick death in a row; it doubles with each further one.
const RESTART_DELAY_FIRST: Duration = Duration::from_millis(10);
/// Longest delay: the node heals nothing while its agent is away, so it is never longer.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(1);
/// So long after something was given by the agent, nothing more is looked for: it gives a descriptor with each start, and in a boot being woken
/// for each takes the processor from what is starting. What was given waits meanwhile, in the kernel.
const GATHER: Duration = Duration::from_millis(10);
/// How long agents may end quickly before what components say is no longer kept for one: who says something waits once its socket is full.
const KEEP_FOR: Duration = Duration::from_secs(5);
/// How long a new guard waits for one that is going (its lock is freed by the kernel when it has gone).
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long a new guard may take to be there.
const RESPAWN_WAIT: Duration = Duration::from_secs(3);
/// How often that is looked at.
const RESPAWN_LOOK: Duration = Duration::from_millis(10);

/// What a guard is told.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Program and arguments of the agent; it gets the guard's environment, directory and stderr.
    pub agent_command: Vec<OsString>,
    /// State directory of the node; made if missing. Holds `guard.lock`, `guard.pid` and `exits`.
    pub state_dir: PathBuf,
}

/// Path of the file in which a node's guard notes exits.
#[must_use]
pub fn exits_path(state_dir: &Path) -> PathBuf {
    state_dir.join("exits")
}

fn identity_path(state_dir: &Path) -> PathBuf {
    state_dir.join("guard.pid")
}

/// Runs as guard until the agent has ended for good; returns the exit code for this process. Call it before any thread is started.
/// SIGTERM and SIGINT are passed on to the agent as SIGTERM; the second one ends the guard at once and leaves everything as it is.
#[must_use]
pub fn run(config: GuardConfig) -> u8 {
    match Guard::begin(config).and_then(|mut guard| guard.watch()) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("guard: {error}{}", error.source_text()));
            EXIT_FAILED
        }
    }
}

/// Why a guard could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Another guard has this state directory.
    #[error("another guard runs this node already: {0}")]
    Locked(LockError),
    /// There is no command to start.
    #[error("the agent's command is empty")]
    NoCommand,
    /// The machine refused.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The new guard did not come up.
    #[error("the new guard was not there after {} s", RESPAWN_WAIT.as_secs())]
    NotThere,
    /// The new guard could not be started.
    #[error("cannot start the guard")]
    Spawn(#[source] razar_os::SpawnError),
}

impl GuardError {
    fn source_text(&self) -> String {
        std::error::Error::source(self).map_or_else(String::new, |source| format!(": {source}"))
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> GuardError {
    move |source| GuardError::Io { what, source }
}

struct Agent {
    pid: Pid,
    process: Process,
    since: Instant,
}

struct Guard {
    config: GuardConfig,
    identity: Identity,
    signals: SignalFd,
    exits: exits::Writer,
    kept: kept::Kept,
    /// What agents give is not looked for before.
    gathers_until: Option<Instant>,
    agent: Option<Agent>,
    quick_deaths: u32,
    /// Since when agents have ended quickly.
    failing_since: Option<Instant>,
    /// When the agent is to be started; none while it runs.
    start_at: Option<Instant>,
    stopping: bool,
    _lock: NodeLock,
}

impl Guard {
    fn begin(config: GuardConfig) -> Result<Self, GuardError> {
        if config.agent_command.is_empty() {
            return Err(GuardError::NoCommand);
        }
        let kept = kept::Kept::open().map_err(io_error("keep notification sockets"))?;
        std::fs::create_dir_all(&config.state_dir).map_err(io_error("make the state directory"))?;
        let lock = NodeLock::acquire(&config.state_dir.join("guard.lock"), LOCK_WAIT).map_err(GuardError::Locked)?;
        // Refused to a leader of a process group, such as a job of an interactive shell: then its session is as good.
        let _ = rustix::process::setsid();
        razar_os::become_subreaper().map_err(io_error("become the subreaper"))?;
        let signals = SignalFd::new(&[Signal::CHILD, Signal::TERM, Signal::INT]).map_err(io_error("listen for signals"))?;
        let me = Process::current_holder(Pid::this()).map_err(io_error("identify the guard"))?;
        let identity = me.ok_or_else(|| io_error("identify the guard")(io::ErrorKind::NotFound.into()))?.identity();
        write_identity(&config.state_dir, &identity).map_err(io_error("write guard.pid"))?;
        let exits = exits::Writer::open(&exits_path(&config.state_dir), identity.boot_id).map_err(io_error("open the file of exits"))?;
        Ok(Self {
            config,
            identity,
            signals,
            exits,
            kept,
            gathers_until: None,
            agent: None,
            quick_deaths: 0,
            failing_since: None,
            start_at: Some(Instant::now()),
            stopping: false,
            _lock: lock,
        })
    }

    fn watch(&mut self) -> Result<u8, GuardError> {
        loop {
            if self.start_at.is_some_and(|at| at <= Instant::now()) {
                self.start_agent();
            }
            let now = Instant::now();
            let gathers = self.gathers_until.filter(|until| *until > now);
            let timeout = self.start_at.into_iter().chain(gathers).min().map(|at| at.saturating_duration_since(now));
            let mut listened = vec![self.signals.as_fd()];
            if gathers.is_none() {
                listened.push(self.kept.as_fd());
            }
            razar_os::wait_readable(&listened, timeout).map_err(io_error("wait for signals"))?;
            self.gathers_until = self.kept.take_given().then(|| Instant::now() + GATHER).or(gathers);
            while let Some(signal) = self.signals.read().map_err(io_error("read signals"))? {
                if signal.is(Signal::CHILD) {
                    continue;
                }
                if let Some(code) = self.stop_requested() {
                    return Ok(code);
                }
            }
            if let Some(code) = self.reap()? {
                return Ok(code);
            }
        }
    }

    fn start_agent(&mut self) {
        self.start_at = None;
        match self.spawn_agent() {
            Ok(process) => self.agent = Some(Agent { pid: process.pid(), process, since: Instant::now() }),
            Err(why) => {
                say(&format!("guard: cannot start the agent: {why}"));
                self.failed();
                self.start_later();
            }
        }
    }

    fn spawn_agent(&mut self) -> Result<Process, String> {
        self.kept.take_given();
        self.kept.sweep();
        let (fds, kept) = self.kept.of_agent();
        let program = self.config.agent_command.first().ok_or("its command is empty")?;
        let mut env = own_environment();
        env.push((GUARD_VARIABLE.into(), identity_line(&self.identity).into()));
        env.push((KEPT_VARIABLE.into(), kept.into()));
        let cwd = std::env::current_dir().map_err(|error| error.to_string())?;
        let stderr = io::stderr();
        let mut order = Spawn::new(program, &self.config.agent_command, &cwd, stderr.as_fd());
        order.env = &env;
        order.fds = &fds;
        let child = razar_os::spawn(&order).map_err(|error| with_source(&error))?;
        child.into_process().map_err(|error| error.to_string())
    }

    /// An agent has ended, or could not be started.
    fn failed(&mut self) {
        if self.failing_since.get_or_insert_with(Instant::now).elapsed() >= KEEP_FOR {
            self.kept.let_go();
        }
    }

    fn start_later(&mut self) {
        let delay = match self.quick_deaths {
            0 | 1 => Duration::ZERO,
            n => RESTART_DELAY_FIRST.saturating_mul(1 << (n - 2).min(16)).min(RESTART_DELAY_MAX),
        };
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        self.start_at = Some(Instant::now() + delay);
    }

    /// A code to end with, if there is nothing to wait for.
    fn stop_requested(&mut self) -> Option<u8> {
        if self.stopping {
            say("guard: asked to stop a second time; components that still run go on, and the next node takes them over");
            return Some(EXIT_FAILED);
        }
        self.stopping = true;
        self.start_at = None;
        match &self.agent {
            Some(agent) => {
                if let Err(error) = agent.process.signal(Signal::TERM) {
                    say(&format!("guard: cannot ask the agent to stop: {error}"));
                }
                None
            }
            // It died a moment ago and is not to come back: what it ran goes on until the next node.
            None => Some(EXIT_FAILED),
        }
    }

    fn reap(&mut self) -> Result<Option<u8>, GuardError> {
        loop {
            let reaped = razar_os::reap_any().map_err(io_error("reap"))?;
            let mut agent_ended = None;
            for dead in &reaped {
                if self.agent.as_ref().is_some_and(|agent| agent.pid == dead.pid) {
                    agent_ended = Some(dead.status);
                }
            }
            if let Err(error) = self.exits.note(&reaped) {
                say(&format!("guard: cannot note exits: {error}"));
            }
            if let Some(code) = agent_ended.and_then(|status| self.agent_ended(status)) {
                return Ok(Some(code));
            }
            if reaped.is_empty() {
                return Ok(None);
            }
        }
    }

    /// A code to end with, if the agent is not to be started again.
    fn agent_ended(&mut self, status: ExitStatus) -> Option<u8> {
        let lived = self.agent.take().map(|agent| agent.since.elapsed()).unwrap_or_default();
        let code = status.code.and_then(|code| u8::try_from(code).ok());
        match code {
            Some(code @ (0 | EXIT_BAD_CONFIG)) => return Some(code),
            Some(code) if self.stopping => return Some(code),
            None if self.stopping => {
                say(&format!("guard: the agent ended by {status} while it was stopping; what it had not stopped goes on"));
                return Some(EXIT_FAILED);
            }
            _ => {}
        }
        if lived >= QUICK_DEATH {
            (self.quick_deaths, self.failing_since) = (0, None);
        }
        self.failed();
        self.quick_deaths = self.quick_deaths.max(u32::from(lived < QUICK_DEATH));
        say(&format!("guard: the agent ended ({status}) after {} ms; starting it again", lived.as_millis()));
        self.start_later();
        None
    }
}

/// The guard that runs a node with this state directory, if one does.
///
/// # Errors
/// `/proc` cannot be read, or out of descriptors.
pub fn running(state_dir: &Path) -> io::Result<Option<Process>> {
    let line = match std::fs::read_to_string(identity_path(state_dir)) {
        Ok(line) => line,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match parse_identity(&line) {
        Some(identity) => alive(&identity),
        None => Ok(None),
    }
}

/// What the agent knows of the guard that started it.
#[derive(Debug)]
pub enum GuardWatch {
    /// It was started without one (by hand, in a test): exits during its absence are unknown, and only `stay` components may run.
    Unguarded,
    /// Its guard had gone before it looked.
    Gone,
    /// Its guard lives.
    Watched(Process),
}

impl GuardWatch {
    /// Looks for the guard that this process was started by.
    ///
    /// # Errors
    /// `/proc` cannot be read, or out of descriptors.
    pub fn new() -> io::Result<Self> {
        let Some(line) = std::env::var(GUARD_VARIABLE).ok() else { return Ok(Self::Unguarded) };
        let Some(identity) = parse_identity(&line) else { return Ok(Self::Unguarded) };
        Ok(alive(&identity)?.map_or(Self::Gone, Self::Watched))
    }

    /// Waits until the guard has gone; for ever where there was none. Cancel safe.
    ///
    /// # Errors
    /// Out of descriptors, or the runtime is shutting down.
    pub async fn gone(&self) -> io::Result<()> {
        match self {
            Self::Unguarded => std::future::pending().await,
            Self::Gone => Ok(()),
            Self::Watched(process) => process.wait_exit().await,
        }
    }
}

/// Starts a new guard by this command (program and arguments of `razar-node guard …`) and waits until it is there: its agent then waits for
/// the node's lock, so the caller ends without stopping anything. The new guard keeps `sockets` on, and inherits only what is started after this: how a component
/// that runs already ends is then known from the kernel alone (6.15 and later). Blocks the calling thread for some milliseconds, 3 s at most.
///
/// # Errors
/// See [`GuardError`]; the caller goes on without a guard, and tries again later.
pub fn respawn(guard_command: &[OsString], state_dir: &Path, sockets: &[BorrowedFd<'_>]) -> Result<Process, GuardError> {
    let program = guard_command.first().ok_or(GuardError::NoCommand)?;
    let (fds, kept) = kept::of_guard(sockets);
    let mut env = own_environment();
    env.push((KEPT_VARIABLE.into(), kept.into()));
    let cwd = std::env::current_dir().map_err(io_error("find the working directory"))?;
    let stderr = io::stderr();
    let mut order = Spawn::new(program, guard_command, &cwd, stderr.as_fd());
    order.env = &env;
    order.fds = &fds;
    let guard = razar_os::spawn(&order).map_err(GuardError::Spawn)?.into_process().map_err(io_error("identify the new guard"))?;
    let started = Instant::now();
    while started.elapsed() < RESPAWN_WAIT {
        if running(state_dir).map_err(io_error("look for the new guard"))?.is_some_and(|found| found.identity() == guard.identity()) {
            return Ok(guard);
        }
        if guard.reap().map_err(io_error("look at the new guard"))?.is_some() {
            return Err(GuardError::NotThere);
        }
        std::thread::sleep(RESPAWN_LOOK);
    }
    Err(GuardError::NotThere)
}

/// This process's variables but those that say what it alone has.
fn own_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name != GUARD_VARIABLE && name != KEPT_VARIABLE).collect()
}

fn alive(identity: &Identity) -> io::Result<Option<Process>> {
    Ok(match Process::open(identity)? {
        // A dead one that nobody has reaped guards nothing.
        Some(process) if !process.has_exited()? => Some(process),
        _ => None,
    })
}

fn write_identity(state_dir: &Path, identity: &Identity) -> io::Result<()> {
    let path = identity_path(state_dir);
    let temporary = path.with_extension("pid.tmp");
    std::fs::write(&temporary, identity_line(identity) + "\n")?;
    std::fs::rename(&temporary, path)
}

fn identity_line(identity: &Identity) -> String {
    format!("{} {} {} {}", identity.pid, identity.start_time_ticks, identity.boot_id, identity.pidfd_inode)
}

fn parse_identity(line: &str) -> Option<Identity> {
    let mut fields = line.split_ascii_whitespace();
    Some(Identity {
        pid: Pid::new(fields.next()?.parse().ok()?)?,
        start_time_ticks: fields.next()?.parse().ok()?,
        boot_id: fields.next()?.parse().ok()?,
        pidfd_inode: fields.next()?.parse().ok()?,
    })
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// The guard's only voice: it has no telemetry. A closed stderr must not stop it.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "{text}");
}
