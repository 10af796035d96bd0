//! Who plays beside recovery: its own processes, and a node that tells what a test says.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use razar_bus::{Bus, FoldItem, Start};
use razar_bus_schema::{
    bucket::{IntentKey, lease_key},
    event::{Kind as _, node_event_id},
    ids::{Incarnation, Incident, Instance},
    stream::Store,
    time::timestamp,
    v1::{self, RunMode, event::Fact, intent::Want},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::broker::{Broker, free_port, soon};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A process of recovery; ends with the test.
pub(crate) struct Replica {
    pub(crate) name: String,
    http: u16,
    child: Child,
}

impl Replica {
    pub(crate) fn start(broker: &Broker, name: &str) -> Result<Self> {
        Self::of(broker, name, 1)
    }

    /// One that divides its decisions into so many shards.
    pub(crate) fn of(broker: &Broker, name: &str, shards: u32) -> Result<Self> {
        let http = free_port()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-recovery"));
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{}", broker.port)).env("RAZAR_REPLICA", name);
        command.env("RAZAR_HTTP", format!("127.0.0.1:{http}")).stdin(Stdio::null());
        command.env("RAZAR_SHARDS", shards.to_string());
        if std::env::var_os("RAZAR_TEST_LOGS").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Self { name: name.to_owned(), http, child: command.spawn()? })
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        drop((self.child.kill(), self.child.wait()));
    }

    /// Waits until `/readyz` says `word`.
    pub(crate) async fn says(&self, word: &str) -> Result<()> {
        let said = async {
            while !self.readyz().await.is_ok_and(|text| text.contains(word)) {
                tokio::time::sleep(LOOK).await;
            }
        };
        soon("/readyz says so", said).await
    }

    async fn readyz(&self) -> Result<String> {
        self.get("/readyz").await
    }

    /// The shards that it says it decides about.
    pub(crate) async fn decides(&self) -> Vec<u32> {
        let text = self.get("/metrics").await.unwrap_or_default();
        let held = |line: &str| line.strip_prefix("razar_shard_held{shard=\"")?.strip_suffix("\"} 1")?.parse().ok();
        text.lines().filter_map(held).collect()
    }

    /// Waits until it decides about so many.
    pub(crate) async fn decides_about(&self, count: usize) -> Result<Vec<u32>> {
        let held = async {
            loop {
                let held = self.decides().await;
                if held.len() == count {
                    return held;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        soon("shards", held).await
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
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

/// A node that tells what it is told to tell.
pub(crate) struct Node {
    bus: Bus,
    sequence: u64,
}

impl Node {
    pub(crate) async fn join(bus: &Bus) -> Result<Self> {
        let mut node = Self { bus: bus.clone(), sequence: 0 };
        node.publish(None, Fact::NodeJoined(v1::NodeJoined { node_epoch: "e1".to_owned(), ..Default::default() })).await?;
        Ok(node)
    }

    /// The orchestrator's record of `name`.
    pub(crate) async fn desire(&self, name: &str) -> Result<()> {
        let instance = Instance::new(name, 0);
        let spec = v1::ComponentSpec {
            name: name.to_owned(),
            chakra: "heart".to_owned(),
            heal: vec!["restart".to_owned(), "clear_state".to_owned()],
            state: vec!["/x".to_owned()],
            ..Default::default()
        };
        let desired = v1::Desired {
            instance: Some((&instance).into()),
            generation: 1,
            mode: RunMode::Run.into(),
            spec: Some(spec),
            ..Default::default()
        };
        let intent = v1::Intent { want: Some(Want::Desired(desired)), ..Default::default() };
        self.bus.put_intents(&[(IntentKey::Desired(instance), intent, 0)]).await?;
        Ok(())
    }

    /// Four lives, and its node gives it up.
    pub(crate) async fn exhaust(&mut self, name: &str) -> Result<()> {
        for start in 1..4 {
            self.tell(name, start, Fact::ComponentStarted(v1::ComponentStarted::default())).await?;
            self.tell(name, start, Fact::ComponentExited(v1::ComponentExited::default())).await?;
        }
        self.fail(name, 4).await
    }

    /// One more life that fails.
    pub(crate) async fn fail(&mut self, name: &str, start: u64) -> Result<()> {
        let cause = if start == 4 { "budget_spent" } else { "rung_failed" };
        self.tell(name, start, Fact::ComponentStarted(v1::ComponentStarted::default())).await?;
        self.tell(name, start, Fact::ComponentExited(v1::ComponentExited::default())).await?;
        self.tell(name, start, Fact::ComponentFailed(v1::ComponentFailed { cause: cause.to_owned(), ..Default::default() })).await
    }

    pub(crate) async fn tell(&mut self, name: &str, start: u64, fact: Fact) -> Result<()> {
        self.publish(Some((name, start)), fact).await
    }

    async fn publish(&mut self, about: Option<(&str, u64)>, fact: Fact) -> Result<()> {
        self.sequence += 1;
        let instance = about.map(|(name, _)| Instance::new(name, 0));
        let incident = instance.clone().map(|instance| Incident { instance, incarnation: Incarnation::new(1, 1), signs_of_life: 0 });
        let event = v1::Event {
            id: node_event_id("a", "e1", self.sequence),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(SystemTime::now())),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.sequence }),
            chakra: if about.is_some() { "heart".to_owned() } else { String::new() },
            instance: instance.as_ref().map(Into::into),
            incarnation: about.map(|(_, start)| Incarnation::new(1, start).into()),
            incident: incident.as_ref().map(Into::into),
            fact: Some(fact),
            ..Default::default()
        };
        let stored = async { while self.bus.publish_event(&event, "").await.is_err() {} };
        soon("the event to be stored", stored).await
    }
}

async fn record(bus: &Bus, name: &str) -> Option<v1::RecoveryOrder> {
    let read = bus.get_intent(&IntentKey::Recovery(Instance::new(name, 0))).await.ok()?;
    match read?.0.want {
        Some(Want::Recovery(order)) => Some(order),
        _ => None,
    }
}

/// The order of that attempt, once it is written.
pub(crate) async fn order_of(bus: &Bus, name: &str, attempt: u32) -> Result<v1::RecoveryOrder> {
    let written = async {
        loop {
            if let Some(order) = record(bus, name).await.filter(|o| o.attempt == attempt) {
                return order;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    soon("the order", written).await
}

/// Waits until the record asks for nothing any more.
pub(crate) async fn ended(bus: &Bus, name: &str) -> Result<()> {
    let ended = async {
        while record(bus, name).await.is_none_or(|o| !o.ended) {
            tokio::time::sleep(LOOK).await;
        }
    };
    soon("the end of the order", ended).await
}

/// Which of `replicas` holds the shard, once one of them does: a dead one holds it for its lease.
pub(crate) async fn holder(bus: &Bus, replicas: &[Replica]) -> Result<usize> {
    let bucket = bus.bucket(Store::Leases);
    let held = async {
        loop {
            if let Ok(Some(entry)) = bucket.get(&lease_key("recovery", 0)).await {
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

/// What recovery has told of components, oldest first, with the ids.
pub(crate) async fn told(bus: &Bus) -> Result<Vec<(String, String)>> {
    Ok(events(bus).await?.into_iter().map(|e| (line(&e), e.id)).collect())
}

/// What recovery has told of components, oldest first.
pub(crate) async fn events(bus: &Bus) -> Result<Vec<v1::Event>> {
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
    let ours = events.into_iter().filter(|e| e.instance.is_some() && e.source.as_ref().is_some_and(|s| s.kind == "recovery"));
    Ok(ours.collect())
}

fn line(event: &v1::Event) -> String {
    match &event.fact {
        Some(Fact::RungTried(t)) => format!("rung_tried {} {}", t.rung, t.outcome),
        Some(Fact::Recovered(r)) => format!("recovered {}", r.rung),
        _ => event.kind.clone(),
    }
}
