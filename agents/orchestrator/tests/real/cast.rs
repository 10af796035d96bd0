//! Who plays beside the orchestrator: its own processes, a node that does at once what it is told, and somebody who reads along.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use razar_bus::{Bus, FoldItem, IntentItem, IntentRecord, Start};
use razar_bus_schema::{
    bucket::IntentKey,
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Instance},
    stream::Store,
    time::timestamp,
    v1::{self, RunMode, event::Fact},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::broker::{Broker, free_port, soon};

/// A process of the orchestrator; ends with the test.
pub(crate) struct Replica {
    pub(crate) name: String,
    http: u16,
    child: Child,
}

impl Replica {
    pub(crate) fn start(broker: &Broker, name: &str) -> Result<Self> {
        Self::through(broker.port, name)
    }

    /// On a port that leads to the broker.
    pub(crate) fn through(port: u16, name: &str) -> Result<Self> {
        let http = free_port()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-orchestrator"));
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{port}")).env("RAZAR_REPLICA", name);
        command.env("RAZAR_HTTP", format!("127.0.0.1:{http}")).stdin(Stdio::null());
        if std::env::var_os("RAZAR_TEST_LOGS").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Self { name: name.to_owned(), http, child: command.spawn()? })
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = self.get("/metrics").await?;
        Ok(text.lines().find_map(|l| l.strip_prefix(name)).and_then(|rest| rest.trim().parse().ok()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stores a stack file's document by its content hash; its revision.
pub(crate) async fn store(bus: &Bus, text: &str) -> Result<String> {
    let source = razar_stack::Source { file: "razar.yaml", text, dir: Path::new("/srv") };
    let loaded = razar_stack::load(&source, &|_| None).map_err(|found| anyhow::anyhow!("{found}"))?;
    let revision = loaded.document.revision()?;
    bus.objects(Store::Stacks).put(&revision, &loaded.document.to_bytes()?).await?;
    Ok(revision)
}

/// A node that starts and stops at once, in a task.
pub(crate) struct PlayedNode {
    task: tokio::task::AbortHandle,
}

impl PlayedNode {
    pub(crate) fn start(bus: &Bus, name: &str, epoch: &str) -> Self {
        let play = Play {
            bus: bus.clone(),
            name: name.to_owned(),
            epoch: epoch.to_owned(),
            sequence: 0,
            held: BTreeMap::new(),
            publisher: bus.event_publisher(),
        };
        Self { task: tokio::spawn(play.run()).abort_handle() }
    }
}

impl Drop for PlayedNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Play {
    bus: Bus,
    name: String,
    epoch: String,
    sequence: u64,
    held: BTreeMap<Instance, (u64, bool)>,
    publisher: razar_bus::EventPublisher,
}

impl Play {
    async fn run(mut self) {
        let joined = Fact::NodeJoined(v1::NodeJoined { node_epoch: self.epoch.clone(), ..Default::default() });
        self.tell(None, joined).await;
        let mut intents = self.bus.watch_intents();
        let mut staged = Vec::new();
        while let Some(item) = intents.next().await {
            match item {
                IntentItem::Epoch(bucket_epoch) => {
                    let node_epoch = self.epoch.clone();
                    let inventory = v1::NodeInventory { node_epoch, bucket_epoch, ..Default::default() };
                    let mark = v1::intent::Want::Mark(v1::EpochMark { bucket_epoch: inventory.bucket_epoch.clone() });
                    self.tell(None, Fact::NodeInventory(inventory)).await;
                    // It plays quarantine, too; of several the first one sets the mark.
                    let mark = v1::Intent { want: Some(mark), ..Default::default() };
                    drop(self.bus.put_intents(&[(IntentKey::Mark("quarantine".to_owned()), mark, 0)]).await);
                }
                IntentItem::Record { record, settled, .. } => {
                    if let IntentRecord::Known { intent, .. } = record
                        && let Some(v1::intent::Want::Desired(desired)) = intent.want
                    {
                        staged.push(desired);
                    }
                    if settled {
                        self.follow(std::mem::take(&mut staged)).await;
                    }
                }
                IntentItem::Settled { .. } => self.follow(std::mem::take(&mut staged)).await,
            }
        }
    }

    async fn follow(&mut self, records: Vec<v1::Desired>) {
        let (name, epoch) = (self.name.clone(), self.epoch.clone());
        for desired in records.into_iter().filter(|d| d.node == name && d.node_epoch == epoch) {
            let instance: Instance = desired.instance.as_ref().unwrap().try_into().unwrap();
            let (generation, lives) = self.held.get(&instance).copied().unwrap_or_default();
            assert!(desired.generation >= generation, "the generation of {instance} fell");
            if desired.mode() == RunMode::Stop {
                self.held.insert(instance.clone(), (desired.generation, false));
                if lives {
                    let about = (&instance, Incarnation::new(generation, 1));
                    self.tell(Some(about), Fact::ComponentStopped(v1::ComponentStopped::default())).await;
                }
            } else if desired.generation > generation {
                self.held.insert(instance.clone(), (desired.generation, true));
                let about = (&instance, Incarnation::new(desired.generation, 1));
                self.tell(Some(about), Fact::ComponentStarted(v1::ComponentStarted::default())).await;
                self.tell(Some(about), Fact::ComponentReady(v1::ComponentReady::default())).await;
            }
        }
    }

    async fn tell(&mut self, about: Option<(&Instance, Incarnation)>, fact: Fact) {
        self.sequence += 1;
        let event = v1::Event {
            id: node_event_id(&self.name, &self.epoch, self.sequence),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(SystemTime::now())),
            source: Some(v1::Actor { kind: "node".to_owned(), id: self.name.clone() }),
            node_sequence: Some(v1::NodeSequence { node: self.name.clone(), epoch: self.epoch.clone(), sequence: self.sequence }),
            chakra: if about.is_some() { "heart".to_owned() } else { String::new() },
            instance: about.map(|(i, _)| i.into()),
            incarnation: about.map(|(_, i)| i.into()),
            fact: Some(fact),
            ..Default::default()
        };
        while !self.publisher.offer(self.sequence, &event, "").unwrap() {
            self.publisher.progressed().await;
        }
    }
}

/// Reads every event.
pub(crate) struct Follower {
    events: Arc<Mutex<Vec<v1::Event>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    pub(crate) fn start(bus: &Bus) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut fold = bus.fold_events(Start::Beginning);
        let filled = events.clone();
        let task = tokio::spawn(async move {
            while let Some(item) = fold.next().await {
                if let FoldItem::Event { event, .. } = item {
                    filled.lock().unwrap().push(*event);
                }
            }
        });
        Self { events, task: task.abort_handle() }
    }

    pub(crate) fn all(&self) -> Vec<v1::Event> {
        self.events.lock().unwrap().clone()
    }

    async fn find<T>(&self, what: &str, pick: impl Fn(&Fact) -> Option<T>) -> Result<T> {
        let found = async {
            loop {
                let hit = self.events.lock().unwrap().iter().find_map(|e| e.fact.as_ref().and_then(&pick));
                if let Some(hit) = hit {
                    return hit;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon(what, found).await.with_context(|| {
            let kinds: Vec<String> = self.all().into_iter().map(|e| format!("{} {:?}", e.kind, e.reason.map(|r| r.text))).collect();
            format!("told so far: {}", kinds[kinds.len().saturating_sub(20)..].join("\n"))
        })
    }

    pub(crate) async fn mission_completed(&mut self, id: &str) -> Result<v1::MissionCompleted> {
        self.find("the mission's end", |fact| match fact {
            Fact::MissionCompleted(c) if c.mission_id == id => Some(c.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn command_end(&mut self, id: &str) -> Result<String> {
        self.find("the command's end", |fact| match fact {
            Fact::OperatorCommand(c) if c.command_id == id && c.result != "accepted" => Some(c.result.clone()),
            _ => None,
        })
        .await
    }
}
