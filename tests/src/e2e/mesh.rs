//! One mesh from its start to its end. Tests run at most [`SLOTS`] at a time, whatever runs them, so that a mesh is not starved by
//! its neighbours; a mesh that is dropped leaves no process, whatever happened to it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use razar_bus_schema::v1;
use rustix::process::Signal;

use super::{
    LOOK, Raw, SOON, Stack, binary, broker,
    process::{Process, of_mesh, parent_of, signal},
    wait_for,
};

/// Meshes that live at once: each is six processes or more, and CI has two cores.
const SLOTS: usize = 2;
/// Ports of one mesh: its own from the first, its components' from [`PORTS_OWN`].
const PORTS: u16 = 40;
/// Ports that the broker and the agents may take.
const PORTS_OWN: u16 = 20;
/// Blocks of ports, from [`PORT_FIRST`] to below those that the kernel gives to clients.
const BLOCKS: u32 = 400;
/// First port of the first block.
const PORT_FIRST: u16 = 15_000;
/// Variable that keeps the directory of a mesh that has ended, for a person to look at.
const KEEP: &str = "RAZAR_E2E_KEEP";
/// Name of the link to the broker's program, in the mesh's directory.
const BROKER_LINK: &str = "nats-server";
/// Lines of the node's log that a failed test shows.
const LOG_LINES: usize = 25;

/// A mesh of its own.
#[derive(Debug)]
pub struct Mesh {
    dir: tempfile::TempDir,
    name: String,
    port: u16,
    env: Vec<(String, String)>,
    // Held until everything has ended.
    _slot: File,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit code; -1: by a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// An agent that the test itself runs beside a mesh; it ends with this.
#[derive(Debug)]
pub struct ByHand(Child);

impl ByHand {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

static MESHES: AtomicU32 = AtomicU32::new(0);

impl Mesh {
    /// A place for a mesh; nothing is started.
    ///
    /// # Errors
    /// When a program or the broker is missing.
    pub fn new() -> Result<Self> {
        let agents = ["razar-orchestrator", "razar-recovery", "razar-registry", "razar-quarantine", "razar-watchdog", "razar-provision"];
        for program in ["razar", "razar-node", "razar-demo-service"].into_iter().chain(agents) {
            binary(program)?;
        }
        broker()?;
        let slot = slot()?;
        let number = MESHES.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("razar-e2e-").tempdir()?;
        let port = free_block(number)?;
        let mesh = Self { dir, name, port, env: Vec::new(), _slot: slot };
        mesh.break_broker(false)?;
        Ok(mesh)
    }

    /// With a variable for everything that is started.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A mesh in which `stack` is ready.
    ///
    /// # Errors
    /// When it does not become so.
    pub fn start(stack: impl FnOnce(&Self) -> Result<Stack>) -> Result<Self> {
        Self::new()?.started(stack)
    }

    /// Boots `stack`, which must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn started(self, stack: impl FnOnce(&Self) -> Result<Stack>) -> Result<Self> {
        let stack = stack(&self)?;
        self.up(&stack)?.ok()?;
        Ok(self)
    }

    /// Name of the mesh, the root of its subjects.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for what a test needs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The mesh's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The `n`th port for components, n < 20.
    #[must_use]
    pub fn port(&self, n: u16) -> u16 {
        self.port + PORTS_OWN + n
    }

    /// The broker's port.
    #[must_use]
    pub fn broker_port(&self) -> u16 {
        self.port
    }

    /// From now on the broker's program ends at once with an error, or works again.
    ///
    /// # Errors
    /// When the link to it cannot be written.
    pub fn break_broker(&self, broken: bool) -> Result<()> {
        let (link, new) = (self.dir().join(BROKER_LINK), self.dir().join("link"));
        std::os::unix::fs::symlink(if broken { PathBuf::from("/bin/false") } else { broker()? }, &new)?;
        Ok(fs::rename(new, link)?)
    }

    pub(super) fn environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RAZAR_") || text.starts_with("OTEL_") {
                command.env_remove(&name);
            }
        }
        command
            .env("RAZAR_MESH", &self.name)
            .env("RAZAR_SERVER", format!("nats://127.0.0.1:{}", self.port))
            .env("RAZAR_STATE_DIR", self.state())
            .env("RAZAR_NATS_SERVER", self.dir().join(BROKER_LINK))
            .env("TZ", "UTC")
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null());
    }

    /// Runs `razar` with `args`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn razar(&self, args: &[&str]) -> Result<Said> {
        let mut command = Command::new(binary("razar")?);
        self.environment(&mut command);
        let out = command.args(args).current_dir(self.dir()).output()?;
        Ok(said(&out))
    }

    /// Writes `stack` to `razar.yaml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, stack: &Stack) -> Result<String> {
        let path = self.dir().join("razar.yaml");
        stack.write(&path)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// `razar up --detach` of `stack`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn up(&self, stack: &Stack) -> Result<Said> {
        self.up_with(stack, &[])
    }

    /// `razar up --detach` of `stack`, with more arguments.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn up_with(&self, stack: &Stack, args: &[&str]) -> Result<Said> {
        let file = self.file(stack)?;
        let mut all = vec!["up", "--detach", file.as_str()];
        all.extend_from_slice(args);
        if !args.contains(&"--timeout") {
            all.extend(["--timeout", "60s"]);
        }
        self.razar(&all)
    }

    /// Starts the guard as `razar up` does, with the plan that is on disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn guard(&self) -> Result<()> {
        let mut command = Command::new(binary("razar-node")?);
        self.environment(&mut command);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.state().join("node.log"))?;
        command
            .arg("guard")
            .env("RAZAR_EMBEDDED", "1")
            .env("RAZAR_NODE", "a")
            .env("RAZAR_BIN_DIR", binary("razar")?.parent().context("a program lies in a directory")?)
            .current_dir("/")
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut guard = command.spawn()?;
        // Reaped as soon as it ends, or it would look alive.
        thread::spawn(move || guard.wait());
        Ok(())
    }

    /// The registry's view.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn observed(&self) -> Result<v1::Observed> {
        let said = self.razar(&["status", "--all", "--json"])?.ok()?;
        let reply: v1::StatusReply = razar_bus_schema::json::from_json(said.out.trim())?;
        reply.observed.context("a status without a view")
    }

    /// A component as the registry sees it.
    ///
    /// # Errors
    /// When it is unknown there.
    pub fn component(&self, name: &str) -> Result<v1::ObservedComponent> {
        let found = self.observed()?.components.into_iter().find(|c| c.instance.as_ref().is_some_and(|i| i.component == name));
        found.with_context(|| format!("the registry knows no {name}"))
    }

    /// Pid of a component's living process, as `razar status NAME --pid` says it.
    ///
    /// # Errors
    /// When none lives.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let said = self.razar(&["status", name, "--pid"])?.ok()?;
        said.out.trim().parse().with_context(|| format!("no pid of {name}: {said:?}"))
    }

    /// Pid and state of each instance in order of name, the mesh's own left out.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub fn pids(&self) -> Result<Vec<(String, u32)>> {
        let of = |c: v1::ObservedComponent| Some((c.instance?, c.process?.pid));
        let own = |c: &v1::ObservedComponent| c.stack != "system";
        Ok(self.observed()?.components.into_iter().filter(own).filter_map(of).map(|(i, pid)| (i.component, pid)).collect())
    }

    /// Waits until `name` is ready.
    ///
    /// # Errors
    /// When it does not become so.
    pub fn wait_ready(&self, name: &str) -> Result<v1::ObservedComponent> {
        wait_for(&format!("{name} ready"), SOON, || {
            let seen = self.component(name)?;
            Ok((seen.state() == v1::InstanceState::Ready).then_some(seen))
        })
    }

    /// Every event, oldest first.
    ///
    /// # Errors
    /// When the bus is away.
    pub fn events(&self) -> Result<Vec<v1::Event>> {
        let said = self.razar(&["events", "--since", "1970-01-01T00:00:00Z", "--json"])?.ok()?;
        said.out.lines().map(|line| Ok(razar_bus_schema::json::from_json::<v1::Event>(line)?)).collect()
    }

    /// Events of `kind` about component `name`, oldest first.
    ///
    /// # Errors
    /// As [`Mesh::events`].
    pub fn events_of(&self, name: &str, kind: &str) -> Result<Vec<v1::Event>> {
        let about = |e: &v1::Event| e.kind == kind && e.instance.as_ref().is_some_and(|i| i.component == name);
        Ok(self.events()?.into_iter().filter(about).collect())
    }

    /// Waits for the first event of `kind` about `name` that `is` accepts.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_event(&self, name: &str, kind: &str, is: impl Fn(&v1::Event) -> bool) -> Result<v1::Event> {
        wait_for(&format!("{kind} of {name}"), SOON, || Ok(self.events_of(name, kind)?.into_iter().find(|e| is(e))))
    }

    /// Living processes of the mesh.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        of_mesh(&self.name)
    }

    /// Pid of the guard.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn guard_pid(&self) -> Result<u32> {
        self.node_process(true)
    }

    /// Pid of the node's agent.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn agent_pid(&self) -> Result<u32> {
        self.node_process(false)
    }

    fn node_process(&self, guard: bool) -> Result<u32> {
        let is = |p: &Process| p.command.contains("razar-node") && p.command.split(' ').any(|word| word == "guard") == guard;
        let found: Vec<u32> = self.processes().iter().filter(|p| is(p)).map(|p| p.pid).collect();
        // A child that it has just made looks like it until its exec.
        let is_child = |pid: &u32| parent_of(*pid).is_some_and(|parent| found.contains(&parent));
        match found.iter().filter(|pid| !is_child(pid)).collect::<Vec<_>>().as_slice() {
            [pid] => Ok(**pid),
            other => bail!("{} of the node's processes where one was looked for (guard: {guard})", other.len()),
        }
    }

    /// Starts the mesh's broker by hand, with the configuration that the node wrote: as if it had come back by itself.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn broker_by_hand(&self) -> Result<()> {
        let mut command = Command::new(broker()?);
        self.environment(&mut command);
        let mut child = command.arg("-c").arg(self.state().join("broker/nats.conf")).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        thread::spawn(move || child.wait());
        Ok(())
    }

    /// A replica of an agent by hand, as anybody may run one anywhere; `port` of the loopback leads to the broker. It logs to
    /// `by-hand.log` in the state directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn by_hand(&self, program: &str, port: u16, replica: &str) -> Result<ByHand> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.state().join("by-hand.log"))?;
        let mut command = Command::new(binary(program)?);
        self.environment(&mut command);
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{port}")).env("RAZAR_REPLICA", replica).stdout(log.try_clone()?).stderr(log);
        Ok(ByHand(command.spawn()?))
    }

    /// A second node by hand, without a guard, with a state directory of its own; `port` of the loopback leads to the broker.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn node_by_hand(&self, node: &str, port: u16) -> Result<ByHand> {
        let state = self.dir().join(node);
        fs::create_dir_all(&state)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.state().join("by-hand.log"))?;
        let mut command = Command::new(binary("razar-node")?);
        self.environment(&mut command);
        command.arg("agent").env("RAZAR_NODE", node).env("RAZAR_STATE_DIR", &state);
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{port}")).stdout(log.try_clone()?).stderr(log);
        Ok(ByHand(command.spawn()?))
    }

    /// A client of the broker that is none of the mesh's.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn raw(&self) -> Result<Raw> {
        Raw::connect(self.port)
    }

    /// The node's own log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.state().join("node.log")).unwrap_or_default()
    }

    /// What the mesh's own component `name` wrote, and nothing when it wrote nothing.
    #[must_use]
    pub fn log_of(&self, name: &str) -> String {
        let mut text = String::new();
        let mut open = vec![self.state().join("logs")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.to_string_lossy().contains(name) {
                    text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
                }
            }
        }
        text
    }

    /// Ends the mesh as an operator does; nothing may be left of it, and nobody may have panicked.
    ///
    /// # Errors
    /// When `razar down` fails or a process is left.
    pub fn end(self) -> Result<()> {
        self.razar(&["down"])?.ok()?;
        self.end_checked()
    }

    /// The checks of [`Mesh::end`] alone, for a mesh that is down already.
    ///
    /// # Errors
    /// When a process is left, or somebody panicked.
    pub fn end_checked(self) -> Result<()> {
        let left = self.processes();
        ensure!(left.is_empty(), "left after razar down: {left:?}");
        self.nobody_panicked()
    }

    /// Nobody of the mesh's own panicked so far.
    ///
    /// # Errors
    /// When somebody did.
    pub fn nobody_panicked(&self) -> Result<()> {
        let by_hand = fs::read_to_string(self.state().join("by-hand.log")).unwrap_or_default();
        let agents = ["registry", "orchestrator", "recovery", "quarantine", "watchdog"].map(|name| (name, self.log_of(name)));
        for (who, text) in [("node", self.log()), ("an agent by hand", by_hand)].into_iter().chain(agents) {
            ensure!(!text.contains("panicked at"), "{who} panicked:\n{}", tail(&text));
        }
        Ok(())
    }

    /// Kills every process at once, as a loss of power does. True when none is left.
    pub fn kill_all(&self) -> bool {
        // The guard first, or it would start again what is killed.
        if let Ok(guard) = self.guard_pid() {
            drop(signal(guard, Signal::KILL));
        }
        for _ in 0..250 {
            let left = self.processes();
            if left.is_empty() {
                return true;
            }
            for process in left {
                drop(signal(process.pid, Signal::KILL));
            }
            thread::sleep(LOOK);
        }
        false
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // The runner shows it where a test failed.
        eprintln!("the node of {} said last:\n{}", self.name, tail(&self.log()));
        self.kill_all();
        if std::env::var_os(KEEP).is_some() {
            eprintln!("kept: {}", self.dir().display());
            self.dir.disable_cleanup(true);
        }
        remove_groups(&self.name);
    }
}

impl Said {
    /// It must have ended well.
    ///
    /// # Errors
    /// When it did not.
    pub fn ok(self) -> Result<Self> {
        self.is(0)
    }

    /// It must have ended with `code`.
    ///
    /// # Errors
    /// When it did not.
    pub fn is(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "exit {} where {code} was due; stdout:\n{}\nstderr:\n{}", self.code, self.out, self.err);
        Ok(self)
    }
}

fn said(out: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// One of [`SLOTS`] places on this machine, kept by a file lock: it holds across test binaries too.
fn slot() -> Result<File> {
    let dir = std::env::temp_dir().join("razar-e2e-slots");
    fs::create_dir_all(&dir)?;
    let files = (0..SLOTS).map(|n| File::create(dir.join(n.to_string()))).collect::<Result<Vec<_>, _>>()?;
    // Unlimited on purpose: the test runner bounds the whole, and the neighbours' tests bound themselves.
    loop {
        for file in &files {
            if file.try_lock().is_ok() {
                return Ok(file.try_clone()?);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// First port of a block nobody listens on.
fn free_block(number: u32) -> Result<u16> {
    let first = std::process::id().wrapping_mul(7).wrapping_add(number.wrapping_mul(3));
    for n in 0..BLOCKS {
        let block = u16::try_from(first.wrapping_add(n) % BLOCKS)?;
        let port = PORT_FIRST + block * PORTS;
        if (port..port + PORTS).all(|p| TcpListener::bind((Ipv4Addr::LOCALHOST, p)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no {PORTS} free ports in a row")
}

/// Empty control groups of a mesh whose guard was killed.
fn remove_groups(mesh: &str) {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let top = PathBuf::from(root).join("razar").join(mesh);
        let mut dirs = vec![top];
        let mut next = 0;
        while let Some(dir) = dirs.get(next).cloned() {
            dirs.extend(fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
            next += 1;
        }
        for dir in dirs.iter().rev() {
            drop(fs::remove_dir(dir));
        }
    }
}
