//! Who plays beside quarantine: its own processes, and a node that holds nothing.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use razar_bus::{Bus, FoldItem, IntentItem, Start};
use razar_bus_schema::{
    bucket::IntentKey,
    event::{Kind as _, node_event_id},
    ids::Instance,
    time::timestamp,
    v1::{self, RunMode, event::Fact, intent::Want},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::broker::{Broker, free_port, soon};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A process of quarantine; ends with the test.
pub(crate) struct Replica {
    http: u16,
    child: Child,
}

impl Replica {
    pub(crate) fn start(broker: &Broker, name: &str, shards: u32) -> Result<Self> {
        let http = free_port()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-quarantine"));
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{}", broker.port)).env("RAZAR_REPLICA", name);
        command.env("RAZAR_SHARDS", shards.to_string());
        command.env("RAZAR_HTTP", format!("127.0.0.1:{http}")).stdin(Stdio::null());
        if std::env::var_os("RAZAR_TEST_LOGS").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Self { http, child: command.spawn()? })
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        drop((self.child.kill(), self.child.wait()));
    }

    /// Waits until it decides about so many shards.
    pub(crate) async fn decides_about(&self, count: usize) -> Result<Vec<u32>> {
        let held = |text: String| -> Vec<u32> {
            let held = |line: &str| line.strip_prefix("razar_shard_held{shard=\"")?.strip_suffix("\"} 1")?.parse().ok();
            text.lines().filter_map(held).collect()
        };
        let waiting = async {
            loop {
                let held = held(self.metrics().await.unwrap_or_default());
                if held.len() == count {
                    return held;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        soon("shards", waiting).await
    }

    /// The first line of its numbers that begins so.
    pub(crate) async fn metric(&self, name: &str) -> Option<String> {
        self.metrics().await.ok()?.lines().find(|line| line.starts_with(name)).map(str::to_owned)
    }

    async fn metrics(&self) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// A node that has joined, and holds nothing.
pub(crate) struct Node {
    bus: Bus,
    sequence: u64,
}

impl Node {
    pub(crate) async fn join(bus: &Bus) -> Result<Self> {
        let mut node = Self { bus: bus.clone(), sequence: 0 };
        node.tell(Fact::NodeJoined(v1::NodeJoined { node_epoch: "e1".to_owned(), ..Default::default() })).await?;
        let mut intents = bus.watch_intents();
        let epoch = async {
            loop {
                if let IntentItem::Epoch(epoch) = intents.next().await? {
                    return Some(epoch);
                }
            }
        };
        let bucket_epoch = soon("the epoch of the bucket", epoch).await?.context("the bus was closed")?;
        let fact = v1::NodeInventory { node_epoch: "e1".to_owned(), bucket_epoch, ..Default::default() };
        node.tell(Fact::NodeInventory(fact)).await?;
        Ok(node)
    }

    /// The orchestrator's record of `name`.
    pub(crate) async fn desire(&mut self, name: &str) -> Result<()> {
        let instance = Instance::new(name, 0);
        let desired = v1::Desired {
            instance: Some((&instance).into()),
            generation: 1,
            mode: RunMode::Run.into(),
            spec: Some(v1::ComponentSpec { name: name.to_owned(), chakra: "heart".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let intent = v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() };
        self.bus.put_intents(&[(IntentKey::Desired(instance), intent, 0)]).await?;
        Ok(())
    }

    async fn tell(&mut self, fact: Fact) -> Result<()> {
        self.sequence += 1;
        let event = v1::Event {
            id: node_event_id("a", "e1", self.sequence),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(SystemTime::now())),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.sequence }),
            fact: Some(fact),
            ..Default::default()
        };
        self.bus.publish_event(&event, "").await?;
        Ok(())
    }
}

/// Waits for the mark of the bucket.
pub(crate) async fn marked(bus: &Bus) -> Result<()> {
    let mark = async {
        while !matches!(bus.get_intent(&IntentKey::Mark("quarantine".to_owned())).await, Ok(Some(_))) {
            tokio::time::sleep(LOOK).await;
        }
    };
    soon("the mark", mark).await
}

/// Who wrote the record of a component last.
pub(crate) async fn isolated_by(bus: &Bus, name: &str) -> Result<String> {
    let (intent, _) = bus.get_intent(&IntentKey::QuarantineComponent(name.to_owned())).await?.context("no record")?;
    Ok(intent.writer.map(|writer| writer.id).unwrap_or_default())
}

/// What was told of a command, once its end is.
pub(crate) async fn ends_of(bus: &Bus, id: &str) -> Result<Vec<String>> {
    let mut fold = bus.fold_events(Start::Beginning);
    let told = async {
        let mut told = Vec::new();
        while let Some(item) = fold.next().await {
            if let FoldItem::Event { event, .. } = item
                && let Some(Fact::OperatorCommand(command)) = event.fact
                && command.command_id == id
            {
                told.push(command.result);
                if told.len() == 2 {
                    break;
                }
            }
        }
        told
    };
    soon("the end of the command", told).await
}
