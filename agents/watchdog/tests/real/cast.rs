//! Who plays beside the watchdog: its own processes, and nodes that join and beat, each over a connection of its own.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use prost::Message as _;
use razar_bus::{Bus, FoldItem, Start};
use razar_bus_schema::{
    bucket::lease_key,
    event::{Kind as _, node_event_id},
    stream::Store,
    time::timestamp,
    v1::{self, event::Fact},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::broker::{Broker, free_port, soon};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Time between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// A process of the watchdog; ends with the test.
pub(crate) struct Replica {
    name: String,
    http: u16,
    child: Child,
}

impl Replica {
    pub(crate) fn start(broker: &Broker, name: &str) -> Result<Self> {
        let http = free_port()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-watchdog"));
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{}", broker.port)).env("RAZAR_REPLICA", name);
        command.env("RAZAR_HTTP", format!("127.0.0.1:{http}")).stdin(Stdio::null());
        if std::env::var_os("RAZAR_TEST_LOGS").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Self { name: name.to_owned(), http, child: command.spawn()? })
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        drop((self.child.kill(), self.child.wait()));
    }

    /// Waits until it has heard several beats more than now, so that it is current.
    pub(crate) async fn hears(&self) -> Result<()> {
        let before = self.beats().await.unwrap_or(0);
        let heard = async {
            while self.beats().await.is_none_or(|heard| heard < before + 25) {
                tokio::time::sleep(LOOK).await;
            }
        };
        soon("beats to be heard", heard).await
    }

    async fn beats(&self) -> Option<u64> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        text.lines().find_map(|line| line.strip_prefix("razar_beats_heard_total ")?.trim().parse().ok())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// A node that joins and beats.
pub(crate) struct Node {
    bus: Bus,
    beating: tokio::task::JoinHandle<()>,
}

impl Node {
    pub(crate) async fn join(broker: &Broker, name: &'static str) -> Result<Self> {
        let bus = broker.bus().await?;
        let fact = Fact::NodeJoined(v1::NodeJoined { node_epoch: "e1".to_owned(), ..Default::default() });
        let event = v1::Event {
            id: node_event_id(name, "e1", 1),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(SystemTime::now())),
            source: Some(v1::Actor { kind: "node".to_owned(), id: name.to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: name.to_owned(), epoch: "e1".to_owned(), sequence: 1 }),
            fact: Some(fact),
            ..Default::default()
        };
        bus.publish_event(&event, "").await?;
        let beats = bus.clone();
        let beating = tokio::spawn(async move {
            let mut beat = v1::Heartbeat { kind: "node".to_owned(), id: name.to_owned(), ..Default::default() };
            loop {
                beat.cycle += 1;
                let _ = beats.publish(&beats.subjects().heartbeat("node", name), beat.encode_to_vec().into(), "").await;
                tokio::time::sleep(BEAT).await;
            }
        });
        Ok(Self { bus, beating })
    }

    /// It is gone, and says nothing of it.
    pub(crate) async fn leave(self) {
        self.beating.abort();
        self.bus.close(BEAT).await;
    }
}

/// Which of `replicas` holds the shard, once one of them does: a dead one holds it for its lease.
pub(crate) async fn holder(bus: &Bus, replicas: &[Replica]) -> Result<usize> {
    let bucket = bus.bucket(Store::Leases);
    let held = async {
        loop {
            if let Ok(Some(entry)) = bucket.get(&lease_key("watchdog", 0)).await {
                let name = String::from_utf8_lossy(&entry.value).into_owned();
                if let Some(at) = replicas.iter().position(|r| r.name == name) {
                    return at;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    soon("somebody leads", held).await
}

/// What watchdogs have told, oldest first.
pub(crate) async fn told(bus: &Bus) -> Result<Vec<v1::Event>> {
    let mut fold = bus.fold_events(Start::Beginning);
    let read = async {
        let mut events = Vec::new();
        loop {
            match fold.next().await? {
                FoldItem::Event { event, .. } => events.push(*event),
                FoldItem::CaughtUp { .. } => return Some(events),
                FoldItem::Reset { .. } | FoldItem::DeadLetter { .. } => {}
            }
        }
    };
    let events = soon("the stream", read).await?.context("the bus was closed")?;
    Ok(events.into_iter().filter(|e| e.source.as_ref().is_some_and(|s| s.kind == "watchdog") && e.kind != "agent_started").collect())
}

/// The first event of this kind that a watchdog tells.
pub(crate) async fn wait_told(bus: &Bus, kind: &str) -> Result<v1::Event> {
    let waited = async {
        loop {
            if let Some(event) = told(bus).await.ok().and_then(|events| events.into_iter().find(|e| e.kind == kind)) {
                return event;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    soon(kind, waited).await
}
