//! The embedded mesh of this machine: where its state lies, starting its guard, finding it again, ending it.
//! The guard and all else of the mesh belong to the node; this starts one process, and signals one, known by more than its pid.

use std::{
    ffi::OsString,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use crate::exit::{Exit, Failure};

/// Address of the bus where none is named.
pub(crate) const SERVER_DEFAULT: &str = "nats://127.0.0.1:4222";

/// Version of the broker that is fetched; older ones can lose acknowledged data.
pub(crate) const BROKER_VERSION: (u64, u64, u64) = (2, 15, 1);

/// Name of the node of an embedded mesh.
const NODE_DEFAULT: &str = "a";

/// Agents of an embedded mesh.
const AGENTS: [&str; 5] = ["registry", "orchestrator", "recovery", "quarantine", "watchdog"];

/// Kinds of the agents that an embedded mesh is started with: as `RAZAR_AGENTS` says, else one of each.
pub(crate) fn embedded() -> Vec<String> {
    match std::env::var("RAZAR_AGENTS") {
        Ok(named) if !named.is_empty() => named.split(',').filter_map(|one| Some(one.split(':').next()?.trim().to_owned())).collect(),
        _ => AGENTS.map(str::to_owned).to_vec(),
    }
}

/// Lines of the node's log that explain why it did not start.
const LOG_LINES: usize = 8;

/// The embedded mesh's place on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// State directory.
    pub(crate) dir: PathBuf,
    mesh: String,
}

/// What the node wrote down about the running mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// Address of the bus.
    pub(crate) server: String,
    /// Name of the node.
    pub(crate) node: String,
    /// Address of the node's health endpoint; empty: unknown.
    pub(crate) node_http: String,
}

/// The guard's process: who it is, not only its number.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Pid.
    pub(crate) pid: u32,
    fd: OwnedFd,
}

impl Place {
    /// Of mesh `mesh`: `$RAZAR_STATE_DIR`, else `$XDG_STATE_HOME/razar/<mesh>`, else `~/.local/state/razar/<mesh>`.
    pub(crate) fn of(mesh: &str) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = set("RAZAR_STATE_DIR").unwrap_or_else(|| {
            let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
            base.unwrap_or_else(std::env::temp_dir).join("razar").join(mesh)
        });
        Self { dir: std::path::absolute(&dir).unwrap_or(dir), mesh: mesh.to_owned() }
    }

    /// What the node wrote down when it started last; `None`: nothing that can be read.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let value: Value = serde_json::from_str(&fs::read_to_string(self.dir.join("mesh.json")).ok()?).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("mesh") == self.mesh).then(|| Facts { server: text("server"), node: text("node"), node_http: text("node_http") })
    }

    /// The guard, if it lives: its pid file names pid and start time, and both must be those of the process.
    pub(crate) fn guard(&self) -> Option<Guard> {
        let (pid, started, boot) = identity(&fs::read_to_string(self.dir.join("guard.pid")).ok()?)?;
        if boot.is_some_and(|boot| fs::read_to_string("/proc/sys/kernel/random/boot_id").is_ok_and(|now| now.trim() != boot)) {
            return None;
        }
        let fd = open(pid)?;
        // The pidfd first, then the start time: the number cannot be used again in between.
        (start_time(pid)? == started && !is_zombie(pid)).then_some(Guard { pid, fd })
    }

    /// Kills what is left at once: the guard first, so that nothing is started again, then the mesh's processes and those in `known`
    /// (pid and start time), each through a pidfd that was opened before it was recognised. How many.
    pub(crate) fn kill(&self, known: &[(u32, u64)]) -> usize {
        let mut killed = 0;
        let mut send = |fd: &OwnedFd| killed += usize::from(rustix::process::pidfd_send_signal(fd, Signal::KILL).is_ok());
        if let Some(guard) = self.guard() {
            send(&guard.fd);
        }
        let server = self.facts().unwrap_or_default().server;
        for (pid, _) in self.processes() {
            if let Some(fd) = open(pid).filter(|_| self.owns(pid, &server)) {
                send(&fd);
            }
        }
        for (pid, started) in known {
            if let Some(fd) = open(*pid).filter(|_| start_time(*pid) == Some(*started)) {
                send(&fd);
            }
        }
        killed
    }

    /// Processes of the mesh that live, known by their environment: the node's, and the components'. Pids in order, with names.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let server = self.facts().unwrap_or_default().server;
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid| self.owns(*pid, &server))
            .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()))
            .collect();
        found.sort_unstable();
        found
    }

    fn owns(&self, pid: u32, server: &str) -> bool {
        // A process that has ended and is not reaped yet has no environment any more.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        pid != std::process::id() && is_of_mesh(&environment, &self.dir, &self.mesh, server)
    }

    /// Path of the node's own output.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// The last lines of the node's own output.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(LOG_LINES).map(crate::render::text::escape).collect();
        lines.into_iter().rev().map(|l| format!("  {l}")).collect::<Vec<_>>().join("\n")
    }

    /// Starts the guard, its output in [`Place::log`]; it makes itself the leader of a session of its own.
    ///
    /// # Errors
    /// When the node's or the broker's binary is missing, or the state directory cannot be written.
    /// `replicas`: of each agent; `None`: as `RAZAR_AGENTS` says. `shards`: of their decisions; `None`: as `RAZAR_SHARDS` says.
    pub(crate) fn start(&self, server: &str, replicas: Option<u8>, shards: Option<u32>) -> Result<std::process::Child, Failure> {
        let node = find_binary("razar-node")
            .ok_or_else(|| Failure::new(Exit::OutOfReach, "razar-node is neither beside this program nor on PATH; fix: make build"))?;
        let broker = find_broker()?;
        let cannot = |e: std::io::Error| Failure::new(Exit::OutOfReach, format!("cannot write {}: {e}", self.dir.display()));
        fs::create_dir_all(&self.dir).map_err(cannot)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).map_err(cannot)?;
        let mut command = Command::new(&node);
        command
            .arg("guard")
            .env("RAZAR_MESH", &self.mesh)
            .env("RAZAR_SERVER", server)
            .env("RAZAR_STATE_DIR", &self.dir)
            .env("RAZAR_EMBEDDED", "1")
            .env("RAZAR_NATS_SERVER", broker)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(cannot)?)
            .stderr(log);
        if let Some(replicas) = replicas {
            command.env("RAZAR_AGENTS", AGENTS.map(|agent| format!("{agent}:{replicas}")).join(","));
        }
        if let Some(shards) = shards {
            command.env("RAZAR_SHARDS", shards.to_string());
        }
        if std::env::var_os("RAZAR_NODE").is_none() {
            command.env("RAZAR_NODE", NODE_DEFAULT);
        }
        if std::env::var_os("RAZAR_BIN_DIR").is_none() {
            command.env("RAZAR_BIN_DIR", node.parent().unwrap_or(Path::new("/")));
        }
        command.spawn().map_err(|e| Failure::new(Exit::OutOfReach, format!("cannot start {}: {e}", node.display())))
    }
}

impl Guard {
    /// Asks it to end the mesh, by SIGTERM.
    ///
    /// # Errors
    /// When the signal is not allowed.
    pub(crate) fn terminate(&self) -> Result<(), Failure> {
        match rustix::process::pidfd_send_signal(&self.fd, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Failure::new(Exit::NotWell, format!("cannot end the mesh (pid {}): {e}", self.pid))),
        }
    }

    /// Whether it has ended within `limit`. Blocks.
    pub(crate) fn ended(&self, limit: Duration) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(0), tv_nsec: limit.subsec_nanos().into() };
        rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|n| n > 0)
    }
}

/// Whether an environment says that its process is of the embedded mesh: of the node by the state directory, a component by mesh and bus.
fn is_of_mesh(environment: &[u8], dir: &Path, mesh: &str, server: &str) -> bool {
    let get = |name: &str| {
        let of_name = |v: &[u8]| v.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        environment.split(|b| *b == 0).find_map(of_name)
    };
    let is = |name: &str, value: &[u8]| get(name).is_some_and(|v| v == value);
    let of_node = is("RAZAR_STATE_DIR", dir.as_os_str().as_encoded_bytes()) && is("RAZAR_EMBEDDED", b"1");
    let component = get("RAZAR_COMPONENT").is_some() && is("RAZAR_MESH", mesh.as_bytes()) && is("RAZAR_SERVER", server.as_bytes());
    of_node || component && !server.is_empty()
}

fn open(pid: u32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// Pid, start time and boot id out of the guard's line: `<pid> <start time> <boot id> <pidfd inode>`.
fn identity(text: &str) -> Option<(u32, u64, Option<String>)> {
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next().map(str::to_owned)))
}

/// Fields of `/proc/PID/stat` after the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn start_time(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_none_or(|fields| fields.first().is_none_or(|state| state == "Z" || state == "X"))
}

/// A binary of this release: in `$RAZAR_BIN_DIR`, beside this program (links followed too), or on PATH.
pub(crate) fn find_binary(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok();
    let beside =
        exe.iter().flat_map(|e| [e.parent().map(Path::to_owned), e.canonicalize().ok().and_then(|e| Some(e.parent()?.to_owned()))]);
    let named = std::env::var_os("RAZAR_BIN_DIR").map(PathBuf::from);
    named.into_iter().chain(beside.flatten()).map(|dir| dir.join(name)).find(|p| p.is_file()).or_else(|| on_path(name))
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The broker: `$RAZAR_NATS_SERVER`, the one on PATH if it is new enough, else the one that was fetched.
///
/// # Errors
/// When there is none.
pub(crate) fn find_broker() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("RAZAR_NATS_SERVER").filter(|v| !v.is_empty()) {
        return std::path::absolute(PathBuf::from(named)).map_err(Into::into);
    }
    let on_path = on_path("nats-server");
    if let Some(found) = &on_path
        && broker_version(found).is_some_and(|v| v >= BROKER_VERSION)
    {
        return Ok(found.clone());
    }
    let (a, b, c) = BROKER_VERSION;
    let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/"));
    let fetched = PathBuf::from(home).join(format!(".cache/razar/tools/nats-server-{a}.{b}.{c}/nats-server"));
    if fetched.is_file() {
        return Ok(fetched);
    }
    let found = on_path.map_or_else(|| "no nats-server on PATH".to_owned(), |p| format!("{} is too old", p.display()));
    Err(Failure::new(Exit::OutOfReach, format!("{found}: nats-server {a}.{b}.{c} or newer is needed; fix: make tools")))
}

/// What `nats-server --version` says.
pub(crate) fn broker_version(binary: &Path) -> Option<(u64, u64, u64)> {
    let out = Command::new(binary).arg("--version").stdin(Stdio::null()).output().ok()?;
    version(&String::from_utf8_lossy(&out.stdout))
}

fn version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.trim().rsplit_once('v')?.1.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Host and port of a bus address.
pub(crate) fn host_port(server: &str) -> Option<(String, u16)> {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let rest = rest.split('/').next()?.rsplit('@').next()?;
    match rest.rsplit_once(':') {
        Some((host, port)) => Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)),
        None => Some((rest.to_owned(), 4222)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        Place { dir: dir.to_owned(), mesh: "razar".to_owned() }
    }

    #[test]
    fn a_guard_is_more_than_a_pid() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let started = start_time(me).unwrap();
        let write = |text: String| fs::write(dir.path().join("guard.pid"), text).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        write(format!("{me} {started} {} 4711", boot.trim()));
        assert_eq!(place(dir.path()).guard().unwrap().pid, me);
        write(format!("{me} {started} 00000000-0000-0000-0000-000000000000 4711"));
        assert!(place(dir.path()).guard().is_none(), "of another boot");
        write(format!("{me} {}", started + 1));
        assert!(place(dir.path()).guard().is_none(), "another process with the same number");
        write("{}".to_owned());
        assert!(place(dir.path()).guard().is_none());
    }

    #[test]
    fn processes_are_known_by_more_than_the_name_of_their_mesh() {
        let of = |environment: &str| {
            let environment = environment.replace(' ', "\0");
            is_of_mesh(environment.as_bytes(), Path::new("/s/razar"), "razar", "nats://127.0.0.1:4222")
        };
        assert!(of("RAZAR_EMBEDDED=1 RAZAR_STATE_DIR=/s/razar X=1"));
        assert!(of("RAZAR_COMPONENT=db RAZAR_MESH=razar RAZAR_SERVER=nats://127.0.0.1:4222"));
        assert!(!of("RAZAR_COMPONENT=db RAZAR_MESH=razar RAZAR_SERVER=nats://127.0.0.1:4333"), "another bus");
        assert!(!of("RAZAR_STATE_DIR=/s/razar"), "a person's shell");
        assert!(!of(""), "a zombie");
    }

    #[test]
    fn facts_of_another_mesh_are_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("mesh.json"), text).unwrap();
        write(r#"{"mesh":"razar","server":"nats://127.0.0.1:4222","node":"a","node_http":"127.0.0.1:7070","guard_pid":7}"#);
        let facts = place(dir.path()).facts().unwrap();
        assert_eq!((facts.server.as_str(), facts.node_http.as_str()), ("nats://127.0.0.1:4222", "127.0.0.1:7070"));
        write(r#"{"mesh":"other"}"#);
        assert_eq!(place(dir.path()).facts(), None);
        write("garbage");
        assert_eq!(place(dir.path()).facts(), None);
    }

    #[test]
    fn addresses_and_versions_are_read() {
        assert_eq!(host_port("nats://127.0.0.1:4333"), Some(("127.0.0.1".to_owned(), 4333)));
        assert_eq!(host_port("localhost"), Some(("localhost".to_owned(), 4222)));
        assert_eq!(host_port("nats://u:p@[::1]:4222/x"), Some(("::1".to_owned(), 4222)));
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15, 1)));
        assert!(version("nats-server: v2.9.10").unwrap() < BROKER_VERSION);
    }
}
