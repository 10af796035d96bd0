//! A mesh of the benchmark's own: `razar up --detach` in a temporary state directory, on ports of its own; its end; its events.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use razar_bus::{Bus, Config, EventFold, FoldItem, Start};
use razar_bus_schema::{time, v1, v1::event::Fact};
use razar_os::{Pid, Process, Signal};

use crate::programs::{Programs, free_ports};

/// Name of the mesh.
const MESH: &str = "bench";
/// The mesh's own stack.
pub(crate) const SYSTEM_STACK: &str = "system";
/// Longest wait for an event that has to come.
pub(crate) const EVENT_LIMIT: Duration = Duration::from_secs(30);
/// Longest boot.
const BOOT_LIMIT: &str = "120s";

/// When the broker puts what it acknowledged on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Before the acknowledgement: what an embedded mesh does.
    Always,
    /// Each two minutes: the broker's default.
    BrokerDefault,
}

/// A running mesh. Dropped, it ends with all that it started.
#[derive(Debug)]
pub(crate) struct Mesh {
    dir: PathBuf,
    razar: PathBuf,
    env: Vec<(&'static str, String)>,
    server: String,
    /// Connection of the benchmark.
    pub(crate) bus: Bus,
}

impl Mesh {
    /// Boots `stack` with `more` arguments; returns when all of it is ready.
    ///
    /// # Errors
    /// When it does not become ready, with what the command line said.
    pub(crate) async fn up(programs: &Programs, stack: &Path, more: &[&str], sync: Sync) -> Result<Self> {
        let dir = programs.place()?;
        let port = free_ports(1)?.first().copied().context("no port")?;
        let server = format!("nats://127.0.0.1:{port}");
        let broker = match sync {
            Sync::Always => programs.broker.clone(),
            Sync::BrokerDefault => without_sync(&dir, &programs.broker)?,
        };
        let env = vec![
            ("RAZAR_MESH", MESH.to_owned()),
            ("RAZAR_SERVER", server.clone()),
            ("RAZAR_STATE_DIR", dir.join("state").display().to_string()),
            ("RAZAR_BIN_DIR", programs.bin_dir.display().to_string()),
            ("RAZAR_NATS_SERVER", broker.display().to_string()),
            ("RAZAR_DEMO_SERVICE", programs.demo()),
        ];
        let config = Config { servers: vec![server.clone()], mesh: MESH.to_owned(), name: "bench".to_owned(), credentials: None };
        let bus = Bus::connect(config).await?;
        let mesh = Self { dir, razar: programs.binary("razar"), env, server, bus };
        let stack = stack.display().to_string();
        let mut args = vec!["up", stack.as_str(), "--detach", "--timeout", BOOT_LIMIT];
        args.extend(more);
        mesh.run(&args).await?;
        mesh.bus.ready(EVENT_LIMIT).await?;
        Ok(mesh)
    }

    /// Runs a command as a user would; its output.
    ///
    /// # Errors
    /// When it does not end well, with what it said.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::from(self.command(args));
        let out = command.kill_on_drop(true).output().await?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
            let tail = said.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | ");
            bail!("razar {}: {}: {tail}", args.join(" "), out.status);
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.razar);
        command.args(args).envs(self.env.iter().map(|(k, v)| (*k, v.as_str()))).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// The registry's projection, with the mesh's own components.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn status(&self) -> Result<v1::Observed> {
        let subject = self.bus.subjects().query("registry", "status");
        let request = v1::StatusRequest { system: true, ..Default::default() };
        let reply: v1::StatusReply = self.bus.ask(&subject, &request, EVENT_LIMIT).await?;
        reply.observed.context("the registry told nothing")
    }

    /// Pid of the guard.
    ///
    /// # Errors
    /// When it wrote none.
    pub(crate) fn guard(&self) -> Result<u32> {
        let text = fs::read_to_string(self.dir.join("state/guard.pid"))?;
        Ok(text.split_whitespace().next().context("an empty guard.pid")?.parse()?)
    }

    /// All facts told so far.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub(crate) async fn history(&self) -> Result<Vec<v1::Event>> {
        let mut fold = self.bus.fold_events(Start::Beginning);
        let mut events = Vec::new();
        loop {
            match tokio::time::timeout(EVENT_LIMIT, fold.next()).await.context("the stream of events is silent")? {
                Some(FoldItem::Event { event, .. }) => events.push(*event),
                Some(FoldItem::CaughtUp { .. }) => return Ok(events),
                Some(_) => {}
                None => bail!("the bus was closed"),
            }
        }
    }

    /// Stops the stack and the mesh.
    ///
    /// # Errors
    /// When something is left; it is killed then.
    pub(crate) async fn down(self) -> Result<()> {
        self.bus.close(Duration::from_secs(1)).await;
        self.run(&["down"]).await.map(drop)
    }

    /// Processes that carry this mesh's state directory or bus in their environment, the benchmark's own excepted.
    fn processes(&self) -> Vec<Process> {
        let state = self.dir.join("state").display().to_string();
        let marks = [format!("RAZAR_STATE_DIR={state}"), format!("RAZAR_SERVER={}", self.server)];
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let own = Pid::this();
        let of_mesh = |pid: Pid| {
            // The handle first, then the look: the number cannot become another process's in between.
            let process = Process::current_holder(pid).ok().flatten()?;
            let environment = fs::read(format!("/proc/{}/environ", pid.as_raw())).ok()?;
            let marked = environment.split(|b| *b == 0).any(|v| marks.iter().any(|m| m.as_bytes() == v));
            marked.then_some(process)
        };
        pids.filter_map(Pid::new).filter(|pid| *pid != own).filter_map(of_mesh).collect()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.processes().is_empty() {
            return;
        }
        drop(self.command(&["down", "--timeout", "20s"]).stdout(Stdio::null()).stderr(Stdio::null()).status());
        for process in self.processes() {
            drop(process.signal(Signal::KILL));
        }
    }
}

/// A broker that takes the node's configuration without its `sync_interval`.
fn without_sync(dir: &Path, broker: &Path) -> Result<PathBuf> {
    let path = dir.join("nats-server");
    let text = format!("#!/bin/sh\nsed '/sync_interval/d' \"$2\" >\"$2.bench\" && exec '{}' -c \"$2.bench\"\n", broker.display());
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The newest life of a component.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pid: Pid,
    ready_at: Option<Instant>,
}

/// Follows the facts of starts and readiness, as any subscriber could: from the stream, thus once they are stored.
#[derive(Debug)]
pub(crate) struct Follower {
    fold: EventFold,
    lives: HashMap<String, Life>,
}

impl Follower {
    /// Follows `mesh` and knows all that it told so far.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub(crate) async fn of(mesh: &Mesh) -> Result<Self> {
        let mut follower = Self { fold: mesh.bus.fold_events(Start::Beginning), lives: HashMap::new() };
        while !matches!(follower.item().await?, FoldItem::CaughtUp { .. }) {}
        Ok(follower)
    }

    async fn item(&mut self) -> Result<FoldItem> {
        let item = next(&mut self.fold).await?;
        let at = Instant::now();
        if let FoldItem::Event { event, .. } = &item {
            let name = event.instance.as_ref().map_or("", |i| i.component.as_str());
            match &event.fact {
                Some(Fact::ComponentStarted(started)) => {
                    let raw = started.process.as_ref().map_or(0, |p| p.pid);
                    let pid = Pid::new(i32::try_from(raw)?).context("a start without a process")?;
                    self.lives.insert(name.to_owned(), Life { pid, ready_at: None });
                }
                Some(Fact::ComponentReady(_)) => {
                    if let Some(life) = self.lives.get_mut(name) {
                        life.ready_at = Some(at);
                    }
                }
                Some(Fact::ComponentFailed(_)) => bail!("{name} failed: {}", event.reason.as_ref().map_or("", |r| r.text.as_str())),
                _ => {}
            }
        }
        Ok(item)
    }

    /// The next component that is ready, with the instant at which its fact was received.
    ///
    /// # Errors
    /// When none comes in time, or one failed.
    pub(crate) async fn next_ready(&mut self) -> Result<(String, Instant)> {
        loop {
            if let FoldItem::Event { event, .. } = self.item().await?
                && matches!(event.fact, Some(Fact::ComponentReady(_)))
                && let Some(instance) = event.instance
                && let Some(at) = self.lives.get(&instance.component).and_then(|life| life.ready_at)
            {
                return Ok((instance.component, at));
            }
        }
    }

    /// As [`Follower::next_ready`], of one component.
    ///
    /// # Errors
    /// When it does not come in time.
    pub(crate) async fn ready(&mut self, name: &str) -> Result<Instant> {
        loop {
            let (which, at) = self.next_ready().await?;
            if which == name {
                return Ok(at);
            }
        }
    }

    /// The process of `name`, once it has been ready for `age`.
    ///
    /// # Errors
    /// When it is not ready.
    pub(crate) async fn settled(&self, name: &str, age: Duration) -> Result<Process> {
        let life = self.lives.get(name).with_context(|| format!("{name} never started"))?;
        let ready_at = life.ready_at.with_context(|| format!("{name} is not ready"))?;
        tokio::time::sleep_until((ready_at + age).into()).await;
        Process::current_holder(life.pid)?.with_context(|| format!("{name} has ended by itself"))
    }
}

/// The next item of `fold`.
///
/// # Errors
/// When none comes in time, or the bus was closed.
pub(crate) async fn next(fold: &mut EventFold) -> Result<FoldItem> {
    tokio::time::timeout(EVENT_LIMIT, fold.next()).await.context("no event came")?.context("the bus was closed")
}

/// From the first start to the last readiness of the components of the stack, by the node's clock; how many there were.
///
/// # Errors
/// When nothing started, or nothing became ready.
pub(crate) fn span(events: &[v1::Event]) -> Result<(Duration, usize)> {
    let at = |event: &v1::Event| event.time.as_ref().map(time::system_time);
    let own = || events.iter().filter(|event| event.stack != SYSTEM_STACK);
    let started = |event: &&v1::Event| matches!(event.fact, Some(Fact::ComponentStarted(_)));
    let ready = |event: &&v1::Event| matches!(event.fact, Some(Fact::ComponentReady(_)));
    let first: SystemTime = own().filter(started).filter_map(at).min().context("nothing started")?;
    let last: SystemTime = own().filter(ready).filter_map(at).max().context("nothing became ready")?;
    Ok((last.duration_since(first)?, own().filter(ready).count()))
}
