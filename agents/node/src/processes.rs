//! The node's hands: spawns, signals, kills and watches processes as the policy decided. It decides nothing; what happens comes back
//! as messages. Each incarnation has a log file that is its tag, a cgroup where the machine allows, and a watcher of its exit.

mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Incarnation, Instance, sha256_hex},
    time,
    v1::{self, probe::Check},
};
use razar_os::{BootId, BoundSocket, Cgroup, Cgroups, FileId, NotifySocket, Process, Signal, Tree};
use regex::Regex;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    adopt::identity_record,
    environment::{Who, environment},
    guard::KeptSockets,
    logs::{From, LogBounds, LogKeeper, LogStore, last_error_line},
    policy::{Spawn, probing::Role},
    system,
};

pub use words::Word;

/// Longest wait for a tree to die; what lives on is told as unkillable.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What a process did, from its watchers to the loop.
#[derive(Debug)]
pub enum ProcessNews {
    /// The main process ended; it is not reaped yet.
    Ended(Instance, Incarnation),
    /// Its tree was killed: whom it left behind, and who lives on.
    Cleared(Instance, Incarnation, Cleared),
    /// It gave a sign by itself, in its log.
    Sign(Instance, Incarnation, Role, String),
    /// It said something on its notification socket.
    Word(Word),
}

/// Outcome of clearing a tree away.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Processes that were ended after the main one.
    pub stragglers: u32,
    /// Pids that outlived SIGKILL.
    pub survivors: Vec<u32>,
}

/// An incarnation whose process lives, or has ended and is being cleared away.
#[derive(Debug)]
pub struct Running {
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Its main process.
    pub process: Process,
    /// All of its processes.
    pub tree: Arc<Mutex<Tree>>,
    /// Its log file.
    pub log_path: PathBuf,
    cgroup: Option<Arc<Cgroup>>,
    socket: Option<Arc<NotifySocket>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Where things are, and who the node is.
#[derive(Debug, Clone)]
pub struct Places {
    /// Name of the mesh.
    pub mesh: String,
    /// Name of the node.
    pub node: String,
    /// Address of the broker, as components get it.
    pub server: String,
    /// Directory of notification sockets: short, their paths are bounded.
    pub notify_dir: PathBuf,
}

/// All processes of this node.
#[derive(Debug)]
pub struct Processes {
    places: Places,
    logs: LogStore,
    keeper: LogKeeper,
    sockets: KeptSockets,
    cgroups: Option<Cgroups>,
    boot_id: BootId,
    running: BTreeMap<Instance, Running>,
    /// Ended, and not yet reaped: see [`Processes::lay_to_rest`].
    ended: Vec<(Instance, Running)>,
    news: mpsc::Sender<ProcessNews>,
}

impl Processes {
    /// Nobody yet.
    ///
    /// # Errors
    /// When no thread can be made, or the boot id cannot be read.
    pub fn new(places: Places, logs: LogStore, sockets: KeptSockets, news: mpsc::Sender<ProcessNews>) -> io::Result<Self> {
        let (keeper, cgroups, boot_id) = (LogKeeper::start(logs.clone())?, Cgroups::detect(), BootId::current()?);
        Ok(Self { places, logs, keeper, sockets, cgroups, boot_id, running: BTreeMap::new(), ended: Vec::new(), news })
    }

    /// Whether each component gets a cgroup of its own.
    #[must_use]
    pub fn has_cgroups(&self) -> bool {
        self.cgroups.is_some()
    }

    /// Where things are, and who the node is.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The incarnation of `instance` that lives.
    #[must_use]
    pub fn get(&self, instance: &Instance, incarnation: Incarnation) -> Option<&Running> {
        self.running.get(instance).filter(|r| r.incarnation == incarnation)
    }

    /// All that live, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Instance, &Running)> {
        self.running.iter()
    }

    /// The component logs' losses since the last call.
    #[must_use]
    pub fn log_losses(&self) -> Vec<crate::logs::LogLoss> {
        self.keeper.losses()
    }

    /// An instance will start here: its directory is made in the background.
    pub fn expect(&self, instance: Instance) {
        self.keeper.expect(instance);
    }

    /// Prepares a start: opens its log, makes its cgroup; what the journal writes before the spawn.
    ///
    /// # Errors
    /// In words: what could not be made.
    pub fn plan(&self, spawn: &Spawn) -> Result<(v1::SpawnPlanned, Prepared), String> {
        let said = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let log = self.logs.open(&spawn.instance, spawn.incarnation).map_err(said("its log file"))?;
        let cgroup = self.cgroups.as_ref().and_then(|all| {
            let name = format!("{}@{}", spawn.instance.key(), spawn.incarnation);
            all.create(&self.places.mesh, &self.places.node, &name).ok().map(Arc::new)
        });
        let notify = words::wants_notify(&spawn.spec).then(|| self.notify_path(&spawn.instance, spawn.incarnation));
        let planned = v1::SpawnPlanned {
            instance: Some((&spawn.instance).into()),
            incarnation: Some(spawn.incarnation.into()),
            log_path: log.path.to_string_lossy().into_owned(),
            log_device: log.id.dev,
            log_inode: log.id.inode,
            cgroup: cgroup.as_ref().map_or_else(String::new, |c| c.path().to_string_lossy().into_owned()),
            stack: spawn.desired.stack.clone(),
            spec_hash: spawn.desired.spec_hash.clone(),
            dependencies: spawn.dependencies.clone(),
            boot_id: self.boot_id.to_string(),
            at: Some(time::timestamp(SystemTime::now())),
            notify_path: notify.as_ref().map_or_else(String::new, |p| p.to_string_lossy().into_owned()),
            by_rung: spawn.by_rung,
        };
        Ok((planned, Prepared { log, cgroup, notify }))
    }

    /// Spawns what was planned and watches it. Its identity, for the journal.
    ///
    /// # Errors
    /// In words: which step of the start failed, and why.
    pub fn spawn(&mut self, spawn: &Spawn, prepared: Prepared, traceparent: &str) -> Result<v1::ProcessIdentity, String> {
        let socket = prepared.notify.as_deref().map(|path| self.socket_at(path)).transpose();
        let socket = socket.map_err(|e| format!("its notification socket: {e}"))?;
        let process = self.spawn_process(spawn, &prepared, traceparent).inspect_err(|_| {
            socket.iter().for_each(|socket| socket.bound().remove());
        })?;
        let identity = identity_record(&process.identity());
        let Prepared { log, cgroup, .. } = prepared;
        self.hold(&spawn.instance, spawn.incarnation, &spawn.spec, Held { process, tag: log.id, log_path: log.path, cgroup, socket });
        Ok(identity)
    }

    fn spawn_process(&self, spawn: &Spawn, prepared: &Prepared, traceparent: &str) -> Result<Process, String> {
        let who = Who {
            mesh: &self.places.mesh,
            server: &self.places.server,
            instance: &spawn.instance,
            incarnation: spawn.incarnation,
            notify: prepared.notify.as_deref(),
            traceparent,
        };
        let env = environment(&spawn.spec, &who, |name| std::env::var_os(name))?;
        let argv: Vec<OsString> = spawn.spec.command.iter().map(OsString::from).collect();
        let program = argv.first().ok_or("its command is empty")?;
        let cwd = if spawn.spec.working_dir.is_empty() { Path::new("/") } else { Path::new(&spawn.spec.working_dir) };
        let mut order = razar_os::Spawn::new(program, &argv, cwd, prepared.log.file.as_fd());
        order.env = &env;
        order.cgroup = prepared.cgroup.as_ref().map(|c| c.as_fd());
        order.timer_slack = system::timer_slack(spawn.group, &spawn.instance.component);
        let child = razar_os::spawn(&order).map_err(|e| with_sources(&e))?;
        child.into_process().map_err(|e| e.to_string())
    }

    /// A socket that is listened to, and kept by the guard before anybody can say anything on it.
    fn socket_at(&mut self, path: &Path) -> Result<Arc<NotifySocket>, razar_os::NotifyError> {
        let socket = match self.sockets.take(path) {
            Some(kept) => kept,
            None => {
                let socket = BoundSocket::bind(path)?;
                if let Err(error) = self.sockets.keep(&socket) {
                    tracing::warn!(%error, "what is said while no agent lives is lost: the guard does not keep a notification socket");
                }
                socket
            }
        };
        // Nobody would listen to it.
        let socket = NotifySocket::new(socket).inspect_err(|_| drop(std::fs::remove_file(path)))?;
        Ok(Arc::new(socket))
    }

    /// Removes what was made for a start that failed, and old logs: its own stays, with what was said on the way.
    pub fn discard(&self, spawn: &Spawn) {
        let (instance, incarnation) = (&spawn.instance, spawn.incarnation);
        self.remove_cgroup(instance, incarnation);
        if let Err(error) = self.logs.prune(instance, incarnation, bounds(&spawn.spec)) {
            tracing::warn!(%instance, %error, "cannot remove old logs");
        }
    }

    fn remove_cgroup(&self, instance: &Instance, incarnation: Incarnation) {
        if let Some(cgroups) = &self.cgroups {
            let _ = cgroups.remove(&self.places.mesh, &self.places.node, &format!("{}@{incarnation}", instance.key()));
        }
    }

    /// Takes over a process of the last agent's.
    ///
    /// # Errors
    /// When its handles cannot be had.
    pub fn adopt(&mut self, planned: &v1::SpawnPlanned, process: Process, spec: &v1::ComponentSpec) -> Result<(), String> {
        let instance = planned.instance.as_ref().and_then(|i| Instance::try_from(i).ok()).ok_or("it names no instance")?;
        let incarnation = planned.incarnation.as_ref().map_or_else(Incarnation::default, Incarnation::from);
        let cgroup = (!planned.cgroup.is_empty()).then(|| Cgroup::open(Path::new(&planned.cgroup)).ok()).flatten().map(Arc::new);
        let notify = (!planned.notify_path.is_empty()).then(|| self.socket_at(Path::new(&planned.notify_path)));
        let socket = notify.transpose().unwrap_or_else(|error| {
            tracing::warn!(%instance, %error, "a component that was taken over cannot be heard");
            None
        });
        let tag = FileId { dev: planned.log_device, inode: planned.log_inode };
        let log_path = PathBuf::from(&planned.log_path);
        self.hold(&instance, incarnation, spec, Held { process, tag, log_path, cgroup, socket });
        Ok(())
    }

    /// Everybody who lives is adopted: what others had is put away.
    pub fn settle(&mut self) {
        let wanted: BTreeSet<PathBuf> = self.running.values().filter_map(|r| Some(r.socket.as_ref()?.bound().path().to_owned())).collect();
        if let Err(error) = self.sockets.settle(&self.places.notify_dir, &wanted) {
            tracing::warn!(%error, "old notification sockets cannot be cleared away");
        }
    }

    /// The notification sockets of all that live.
    pub fn notify_sockets(&self) -> impl Iterator<Item = &BoundSocket> {
        self.running.values().filter_map(|running| Some(running.socket.as_ref()?.bound()))
    }

    fn hold(&mut self, instance: &Instance, incarnation: Incarnation, spec: &v1::ComponentSpec, held: Held) {
        self.keeper.keep(instance.clone(), incarnation, bounds(spec));
        let tree = Tree::new(&held.process, Some(held.tag), held.cgroup.clone());
        let tree = tree.unwrap_or_else(|_| Tree::of_orphans(Some(held.tag), held.cgroup.clone()));
        let mut tasks = Vec::new();
        if let Ok(process) = held.process.try_clone() {
            let (news, id) = (self.news.clone(), instance.clone());
            tasks.push(tokio::spawn(async move {
                if process.wait_exit().await.is_ok() {
                    let _ = news.send(ProcessNews::Ended(id, incarnation)).await;
                }
            }));
        }
        if let Some(socket) = held.socket.clone() {
            tasks.push(tokio::spawn(words::listen(socket, self.news.clone(), instance.clone(), incarnation)));
        }
        tasks.extend(self.watch_log(instance, incarnation, spec));
        let running = Running {
            incarnation,
            process: held.process,
            tree: Arc::new(Mutex::new(tree)),
            log_path: held.log_path,
            cgroup: held.cgroup,
            socket: held.socket,
            tasks,
        };
        self.running.insert(instance.clone(), running);
    }

    fn watch_log(&self, instance: &Instance, incarnation: Incarnation, spec: &v1::ComponentSpec) -> Option<JoinHandle<()>> {
        let (roles, patterns): (Vec<Role>, Vec<Regex>) = Role::ALL
            .into_iter()
            .filter_map(|role| match role.probe(spec)?.check.as_ref()? {
                Check::Log(log) => Some((role, Regex::new(&log.pattern).ok()?)),
                Check::Http(_) | Check::Tcp(_) | Check::Exec(_) | Check::Grpc(_) | Check::Notify(_) | Check::Heartbeat(_) => None,
            })
            .unzip();
        if patterns.is_empty() {
            return None;
        }
        match self.logs.follow(instance, incarnation, From::Beginning) {
            Ok(follow) => Some(tokio::spawn(words::read_signs(follow, self.news.clone(), instance.clone(), incarnation, roles, patterns))),
            Err(error) => {
                tracing::error!(%instance, %error, "the log of a component cannot be read: what it says there is not heard");
                None
            }
        }
    }

    /// Sends the polite signal to the main process.
    pub fn signal(&self, instance: &Instance, incarnation: Incarnation, signal: i32) {
        let Some(running) = self.get(instance, incarnation) else { return };
        let Some(signal) = Signal::from_named_raw(signal) else { return };
        if let Err(error) = running.process.signal(signal) {
            tracing::warn!(%instance, %error, "cannot signal");
        }
    }

    /// Kills the whole tree: at once the main process and the cgroup; what is left is cleared away when the main process is gone.
    pub fn kill(&self, instance: &Instance, incarnation: Incarnation) {
        let Some(running) = self.get(instance, incarnation) else { return };
        if let Some(cgroup) = &running.cgroup {
            let _ = cgroup.kill();
        }
        if let Err(error) = running.process.signal(Signal::KILL) {
            tracing::warn!(%instance, %error, "cannot kill");
        }
    }

    /// Clears away what the main process left behind: at once where a cgroup says that nobody is left, else in the background, which
    /// ends in [`ProcessNews::Cleared`].
    pub fn clear(&mut self, instance: &Instance, incarnation: Incarnation) -> Option<Cleared> {
        let running = self.get(instance, incarnation)?;
        if let Some(cgroup) = &running.cgroup
            && cgroup.is_populated().is_ok_and(|populated| !populated)
        {
            return Some(Cleared::default());
        }
        let (tree, news, id) = (running.tree.clone(), self.news.clone(), instance.clone());
        tokio::task::spawn_blocking(move || {
            let report = tree.lock().unwrap_or_else(PoisonError::into_inner).kill(KILL_LIMIT);
            let cleared = report.map_or_else(
                |_| Cleared::default(),
                |r| Cleared { stragglers: r.signalled, survivors: r.survivors.iter().map(|m| m.pid.as_raw().unsigned_abs()).collect() },
            );
            let _ = news.blocking_send(ProcessNews::Cleared(id, incarnation, cleared));
        });
        None
    }

    /// How the main process ended, with the last error line of its log; it is forgotten. Reaping it, and putting away what it had, waits
    /// for [`Processes::lay_to_rest`], so that the next start need not wait for that.
    pub fn bury(
        &mut self,
        instance: &Instance,
        incarnation: Incarnation,
        exits: &mut crate::guard::Exits,
    ) -> Option<(v1::ExitStatus, String)> {
        let running = self.running.get(instance).filter(|r| r.incarnation == incarnation)?;
        let identity = running.process.identity();
        let status = match running.process.exit_unreaped() {
            Ok(razar_os::Exit::Ended(status)) => Some(status),
            Ok(razar_os::Exit::Running | razar_os::Exit::Unknown) | Err(_) => {
                exits.take(identity.pid, identity.start_time_ticks).ok().flatten()
            }
        };
        let oom = running.cgroup.as_ref().and_then(|c| c.oom_killed());
        let mut last_error = last_error_line(&running.log_path).unwrap_or_default();
        // What was killed wrote no last word: an ordinary line would be taken for one.
        if status.as_ref().is_some_and(|s| s.signal.is_some()) && !crate::logs::is_error(&last_error) {
            last_error.clear();
        }
        self.ended.extend(self.running.remove_entry(instance));
        Some((exit_record(status, oom), last_error))
    }

    /// Reaps what was buried, and removes what it had: its cgroup, the watch on its log, its descriptors.
    pub fn lay_to_rest(&mut self) {
        for (instance, ended) in std::mem::take(&mut self.ended) {
            if let Err(error) = ended.process.exit() {
                tracing::warn!(%instance, %error, "cannot reap");
            }
            self.keeper.forget(&instance, ended.incarnation);
            ended.socket.iter().for_each(|socket| socket.bound().remove());
            if ended.cgroup.is_some() {
                self.remove_cgroup(&instance, ended.incarnation);
            }
        }
    }

    /// All are stopped: what a machine's memory holds of the node is given back.
    pub fn close(self) {
        let _ = std::fs::remove_dir(&self.places.notify_dir);
    }

    /// Each incarnation has a socket of its own, which also tells the sender.
    fn notify_path(&self, instance: &Instance, incarnation: Incarnation) -> PathBuf {
        let name: String = sha256_hex(format!("{}@{incarnation}", instance.key()).as_bytes()).chars().take(16).collect();
        self.places.notify_dir.join(name)
    }
}

/// What was made for a start.
#[derive(Debug)]
pub struct Prepared {
    log: crate::logs::OpenedLog,
    cgroup: Option<Arc<Cgroup>>,
    notify: Option<PathBuf>,
}

struct Held {
    process: Process,
    tag: FileId,
    log_path: PathBuf,
    cgroup: Option<Arc<Cgroup>>,
    socket: Option<Arc<NotifySocket>>,
}

/// An exit as the contract writes it.
#[must_use]
pub fn exit_record(status: Option<razar_os::ExitStatus>, oom: Option<bool>) -> v1::ExitStatus {
    v1::ExitStatus { code: status.as_ref().and_then(|s| s.code), signal: status.as_ref().and_then(|s| s.signal), oom }
}

fn bounds(spec: &v1::ComponentSpec) -> LogBounds {
    let default = LogBounds::default();
    spec.logs.as_ref().map_or(default, |logs| LogBounds {
        max_size_bytes: if logs.max_size_bytes == 0 { default.max_size_bytes } else { logs.max_size_bytes },
        keep: logs.keep,
    })
}

pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
