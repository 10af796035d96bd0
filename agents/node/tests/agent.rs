//! The node's agent as a process, with a real journal, real locks and real components, and no bus.

#![expect(clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, RunMode, intent::Want},
};
use razar_node::journal::{Journal, Restored};
use razar_node::logs::{LogStore, OpenedLog};
use razar_node::view;
use razar_os::{BootId, Process, Signal, Spawn};

/// Long against anything that is waited for here, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A state directory, what was started in it, and the agent, once it runs.
struct Node {
    dir: tempfile::TempDir,
    started: Vec<Process>,
    agent: Option<Child>,
}

impl Node {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), started: Vec::new(), agent: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, component: &str, incarnation: Incarnation) -> OpenedLog {
        LogStore::new(self.path("logs")).open(&Instance::new(component, 0), incarnation).unwrap()
    }

    fn journal(&self) -> (Journal, Restored) {
        Journal::open(&self.path("journal"), "a", &BootId::current().unwrap().to_string()).unwrap()
    }

    fn start(&mut self, output: &File, script: &str) -> Process {
        let argv = ["sh", "-c", script].map(OsString::from);
        let env = [(OsString::from("PATH"), std::env::var_os("PATH").unwrap())];
        let mut order = Spawn::new("sh".as_ref(), &argv, self.dir.path(), output.as_fd());
        order.env = &env;
        let process = razar_os::spawn(&order).unwrap().into_process().unwrap();
        self.started.push(process.try_clone().unwrap());
        process
    }

    /// The agent, with a broker that is never there, on a port of this test's own: the agent's own ports are looked for beside it.
    fn start_agent(&mut self) {
        let nobodys = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-node"));
        command.arg("agent").env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("RAZAR_STATE_DIR", self.dir.path()).env("RAZAR_SERVER", format!("nats://{nobodys}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.path("node.log")).unwrap());
        self.agent = Some(command.spawn().unwrap());
    }

    /// Ends the agent and nothing else.
    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Whether the agent has this file open.
    fn agent_has_open(&self, name: &str) -> bool {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.agent.as_ref().unwrap().id()));
        fds.unwrap().flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == self.path(name)))
    }

    /// The agent's numbers, once it gives any.
    fn numbers(&self) -> Option<String> {
        let mesh = std::fs::read_to_string(self.path("mesh.json")).ok()?;
        let address = mesh.split("\"node_http\": \"").nth(1)?.split('"').next()?;
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        for process in &self.started {
            let _ = process.signal_group(Signal::KILL);
            let _ = process.reap();
        }
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A plan of one component, `api`, that is asked for nothing.
fn plan(node_epoch: &str) -> v1::PlanOnDisk {
    let spec = v1::ComponentSpec {
        name: "api".to_owned(),
        command: ["sleep", "1000"].map(str::to_owned).to_vec(),
        working_dir: "/".to_owned(),
        readiness_none: true,
        ..Default::default()
    };
    let desired = v1::Desired {
        instance: Some((&Instance::new("api", 0)).into()),
        node: "a".to_owned(),
        node_epoch: node_epoch.to_owned(),
        generation: 1,
        mode: RunMode::Run.into(),
        spec: Some(spec),
        ..Default::default()
    };
    let intent = v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() };
    let record = v1::PlanRecord { key: "desired.api.0".to_owned(), revision: 1, intent: intent.encode_to_vec() };
    v1::PlanOnDisk { bucket_epoch: "bucket".to_owned(), revision: 1, records: vec![record] }
}

fn planned(log: &OpenedLog, incarnation: Incarnation) -> v1::SpawnPlanned {
    v1::SpawnPlanned {
        instance: Some((&Instance::new("api", 0)).into()),
        incarnation: Some(incarnation.into()),
        log_path: log.path.display().to_string(),
        log_device: log.id.dev,
        log_inode: log.id.inode,
        boot_id: BootId::current().unwrap().to_string(),
        ..Default::default()
    }
}

/// The child that an agent left between clone and exec has the lock, and is not yet what it will be: who looked before the lock was free
/// would see nothing, and start a second.
#[test]
fn a_child_between_clone_and_exec_is_waited_for_and_adopted() {
    let mut node = Node::new();
    let first = Incarnation::new(1, 1);
    let log = node.log("api", first);
    let (mut journal, _) = node.journal();
    let plan = plan(journal.node_epoch());
    view::PlanFile::new(node.path("plan.pb")).store(&plan, || plan.clone()).unwrap();
    journal.spawn_planned(planned(&log, first)).unwrap();
    journal.close().unwrap();
    let script = format!(
        "exec 9>lock; flock 9; echo > held; while [ ! -e go ]; do sleep 0.01; done; exec sleep 1000 >>{} 2>&1 9>&-",
        log.path.display()
    );
    let elsewhere = File::create(node.path("elsewhere")).unwrap();
    let child = node.start(&elsewhere, &script);
    wait("the child has the lock", || node.path("held").exists());
    node.start_agent();
    wait("the agent wants the lock", || node.agent_has_open("lock"));
    File::create(node.path("go")).unwrap();
    wait("something is ready", || node.numbers().is_some_and(|n| n.contains("instances{state=\"ready\"} 1")));
    node.kill_agent();
    let (_, restored) = node.journal();
    let lives: Vec<_> = restored.processes.iter().filter_map(|s| s.process.as_ref()).map(|p| p.pid).collect();
    assert_eq!(lives, [child.pid().as_raw().unsigned_abs()], "one copy, and the one that was under way");
}

#[test]
fn what_carries_another_epochs_tag_is_stopped_and_told() {
    let mut node = Node::new();
    let log = node.log("redis", Incarnation::new(1, 7));
    let foreign = node.start(&log.file, "exec sleep 1000");
    node.start_agent();
    wait("it is stopped", || foreign.has_exited().unwrap());
    wait("it is told", || Path::new(&node.path("mesh.json")).exists() && node.numbers().is_some_and(|n| n.contains("events_told")));
    wait("the agent has turned", || node.numbers().is_some_and(|n| !n.contains("events_told_total 0")));
    node.kill_agent();
    let (_, restored) = node.journal();
    let told = restored.unacknowledged.iter().find(|e| e.kind == "component_stopped").unwrap();
    assert_eq!(told.reason.as_ref().unwrap().code, "foreign_epoch");
    assert_eq!(told.instance, Some((&Instance::new("redis", 0)).into()));
}
