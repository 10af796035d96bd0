//! A broker with a stand-in for registry, orchestrator and one node, which answer what a test puts into them: what the commands say
//! is tested here, what agents decide in their own crates.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use razar_bus::{Bus, CommandItem, Config, provision};
use razar_bus_schema::{event::Kind, v1};

/// Longest that any test waits for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the stand-in knows and does.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) components: Vec<v1::ObservedComponent>,
    pub(crate) missions: Vec<v1::ObservedMission>,
    pub(crate) plan: v1::PlanReply,
    pub(crate) why: v1::WhyReply,
    pub(crate) logs: Vec<v1::LogLine>,
    /// Commands taken up: verb, target, command.
    pub(crate) commands: Vec<(String, String, v1::Command)>,
    /// What a command leads to: its receipt, and events.
    pub(crate) on_command: Option<Effect>,
    pub(crate) epoch: String,
    pub(crate) applied: u64,
}

type Effect = Box<dyn Fn(&str, &str) -> (v1::Receipt, Vec<v1::Event>) + Send>;

/// A mesh of one test.
pub(crate) struct Mesh {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) bus: Bus,
    pub(crate) server: String,
    folder: tempfile::TempDir,
    broker: Option<Child>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What a command printed.
pub(crate) struct Said {
    pub(crate) exit: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn server_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("RAZAR_NATS_SERVER") {
        return Ok(path.into());
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    let fetched = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/razar/tools/nats-server-2.15.1"));
    let found = on_path.chain(fetched).map(|folder| folder.join("nats-server")).find(|p| p.is_file());
    found.context("no nats-server: run `make tools`, or set RAZAR_NATS_SERVER")
}

impl Mesh {
    pub(crate) async fn start(world: World) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.path().join("server.conf");
        let store = folder.path().join("store");
        std::fs::write(
            &config,
            format!("host: 127.0.0.1\nport: {port}\nmax_payload: 262144\njetstream {{ store_dir: \"{}\" }}\n", store.display()),
        )?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let broker =
            Command::new(server_binary()?).arg("-c").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let server = format!("nats://127.0.0.1:{port}");
        let config = Config { servers: vec![server.clone()], mesh: "razar".to_owned(), name: "stand-in".to_owned(), credentials: None };
        let bus = Bus::connect(config).await?;
        let mut mesh = Self { world: Arc::new(Mutex::new(world)), bus, server, folder, broker: Some(broker), tasks: Vec::new() };
        mesh.bus.ready(SOON).await?;
        provision(&mesh.bus).await?;
        mesh.serve().await?;
        Ok(mesh)
    }

    async fn serve(&mut self) -> Result<()> {
        let subjects = self.bus.subjects().clone();
        let endpoints = [
            ("status", subjects.query("registry", "status")),
            ("plan", subjects.query("orchestrator", "plan")),
            ("why", subjects.node("a", "why")),
            ("logs", subjects.node("a", "logs")),
        ];
        let mut queries = self.bus.serve("stand-in", "0.1.0", "answers what a test says", &endpoints).await?;
        let mut commands = self.bus.serve_commands("orchestrator").await?;
        self.bus.flush().await?;
        let world = self.world.clone();
        self.tasks.push(tokio::spawn(async move {
            while let Some(query) = queries.next().await {
                let _ = answer(&query, &world).await;
            }
        }));
        let (world, bus) = (self.world.clone(), self.bus.clone());
        self.tasks.push(tokio::spawn(async move {
            loop {
                let CommandItem::Command(received) = commands.next().await else { continue };
                let (mut receipt, events) = {
                    let mut world = world.lock().unwrap();
                    world.commands.push((received.verb.clone(), received.target.clone(), received.command.clone()));
                    world.on_command.as_ref().map(|effect| effect(&received.verb, &received.target)).unwrap_or_default()
                };
                receipt.command_id.clone_from(&received.command.command_id);
                let _ = received.settle(receipt).await;
                for event in events {
                    tell(&bus, &world, event).await.unwrap();
                }
            }
        }));
        // The epoch of the stream, as the registry learns it.
        let mut fold = self.bus.fold_events(razar_bus::Start::Beginning);
        let first = tokio::time::timeout(SOON, fold.next()).await?;
        let Some(razar_bus::FoldItem::Reset { epoch }) = first else { bail!("{first:?}") };
        self.world.lock().unwrap().epoch = epoch;
        Ok(())
    }

    /// Publishes an event, and lets the registry know of it.
    pub(crate) async fn tell(&self, event: v1::Event) -> Result<()> {
        tell(&self.bus, &self.world, event).await
    }

    pub(crate) fn kill_broker(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            let _ = broker.kill();
            let _ = broker.wait();
        }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar"));
        command
            .args(words)
            .arg("--utc")
            .env_clear()
            .env("RAZAR_SERVER", &self.server)
            .env("RAZAR_STATE_DIR", self.folder.path().join("state"))
            .env("USER", "ann")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Runs `razar` to its end.
    pub(crate) async fn razar(&self, words: &[&str]) -> Result<Said> {
        let mut command = self.command(words);
        let began = Instant::now();
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(began.elapsed() < SOON, "{words:?} took {:?}", began.elapsed());
        Ok(Said {
            exit: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.kill_broker();
    }
}

async fn tell(bus: &Bus, world: &Arc<Mutex<World>>, event: v1::Event) -> Result<()> {
    let mut publisher = None;
    for _ in 0..50 {
        match bus.publish_event(&event, "").await {
            Ok(acked) => {
                publisher = Some(acked.sequence);
                break;
            }
            Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error.into()),
        }
    }
    world.lock().unwrap().applied = publisher.context("the event was not stored")?;
    Ok(())
}

async fn answer(query: &razar_bus::Query, world: &Arc<Mutex<World>>) -> Result<()> {
    match query.verb {
        "status" => {
            let reply = {
                let world = world.lock().unwrap();
                let agent = |kind: &str| v1::ObservedAgent {
                    started: Some(v1::AgentStarted { kind: kind.to_owned(), ..Default::default() }),
                    ..Default::default()
                };
                let observed = v1::Observed {
                    stream_epoch: world.epoch.clone(),
                    applied_sequence: world.applied,
                    components: world.components.clone(),
                    missions: world.missions.clone(),
                    nodes: vec![v1::ObservedNode { name: "a".to_owned(), ..Default::default() }],
                    agents: vec![agent("orchestrator"), agent("registry")],
                    ..Default::default()
                };
                v1::StatusReply { observed: Some(observed), ..Default::default() }
            };
            query.answer(&reply).await?;
        }
        "plan" => {
            let reply = world.lock().unwrap().plan.clone();
            query.answer(&reply).await?;
        }
        "why" => {
            let reply = world.lock().unwrap().why.clone();
            query.answer(&reply).await?;
        }
        _ => {
            let request: v1::LogTailRequest = query.read()?;
            let lines = world.lock().unwrap().logs.iter().filter(|l| l.component == request.component).cloned().collect();
            query.answer(&v1::LogTailReply { lines, unknown: false }).await?;
        }
    }
    Ok(())
}

/// An event of the node about a component.
pub(crate) fn event(n: u64, component: &str, generation: u64, start: u64, fact: v1::event::Fact) -> v1::Event {
    v1::Event {
        id: format!("n:a:e1:{n}"),
        kind: fact.kind().to_owned(),
        time: Some(razar_bus_schema::time::timestamp(std::time::UNIX_EPOCH + Duration::from_millis(1_000_000_000 + n))),
        source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
        node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: n }),
        chakra: "heart".to_owned(),
        instance: Some(v1::InstanceId { component: component.to_owned(), ordinal: 0 }),
        incarnation: Some(v1::Incarnation { generation, start }),
        mesh: "razar".to_owned(),
        stack: "demo".to_owned(),
        fact: Some(fact),
        ..Default::default()
    }
}

/// A component that is ready.
pub(crate) fn component(name: &str) -> v1::ObservedComponent {
    v1::ObservedComponent {
        instance: Some(v1::InstanceId { component: name.to_owned(), ordinal: 0 }),
        stack: "demo".to_owned(),
        chakra: "heart".to_owned(),
        node: "a".to_owned(),
        incarnation: Some(v1::Incarnation { generation: 1, start: 1 }),
        state: v1::InstanceState::Ready.into(),
        since: Some(razar_bus_schema::time::timestamp(std::time::SystemTime::now() - Duration::from_secs(7200))),
        process: Some(v1::ProcessIdentity { pid: 4711, ..Default::default() }),
        desired: Some(v1::DesiredChanged { mode: "run".to_owned(), generation: 1, required: true, ..Default::default() }),
        ..Default::default()
    }
}
