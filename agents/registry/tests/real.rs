//! The registry as a process, against a real broker: questions, the bucket, its rebuilding, a killed leader, a start at a snapshot.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly, its helpers too")]

#[path = "../../../crates/bus/tests/real/broker.rs"]
mod broker;
#[expect(dead_code, unreachable_pub, reason = "shared with the end-to-end tests; not every part is used here")]
#[path = "../../../tests/src/e2e/proxy.rs"]
mod proxy;

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use broker::{Broker, SOON, free_port, soon};
use prost::Message as _;
use razar_bus::{Bus, EventPublisher};
use razar_bus_schema::{
    bucket::lease_key,
    event::{Kind as _, agent_event_id, node_event_id},
    ids::{Incarnation, Instance},
    stream::Store,
    v1::{self, InstanceState, event::Fact},
};
use razar_registry::projection::Projection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Replica {
    name: String,
    http: u16,
    child: Child,
    /// Holds the configuration file.
    _folder: tempfile::TempDir,
}

impl Replica {
    fn start(broker: &Broker, name: &str) -> Result<Self> {
        Self::through(broker.port, name)
    }

    /// On a port that leads to the broker.
    fn through(port: u16, name: &str) -> Result<Self> {
        let (http, folder) = (free_port()?, tempfile::tempdir()?);
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "[settings]\nsnapshot_events = 500\n")?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_razar-registry"));
        command.env("RAZAR_SERVER", format!("nats://127.0.0.1:{port}")).env("RAZAR_REPLICA", name).env("RAZAR_CONFIG", file);
        command.env("RAZAR_HTTP", format!("127.0.0.1:{http}")).stdin(Stdio::null());
        if std::env::var_os("RAZAR_TEST_LOGS").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Self { name: name.to_owned(), http, child: command.spawn()?, _folder: folder })
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let line = text.lines().find_map(|l| l.strip_prefix(name)).map(|rest| rest.trim().parse());
        Ok(line.unwrap_or(Ok(0.0))?)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tells facts as node `a`, and folds them itself.
struct Teller {
    publisher: EventPublisher,
    sequence: u64,
}

impl Teller {
    fn new(bus: &Bus) -> Self {
        Self { publisher: bus.event_publisher(), sequence: 0 }
    }

    async fn tell(&mut self, component: &str, incarnation: (u64, u64), fact: Fact) {
        self.sequence += 1;
        let event = v1::Event {
            id: node_event_id("a", "e1", self.sequence),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.sequence }),
            chakra: "heart".to_owned(),
            instance: Some((&Instance::new(component, 0)).into()),
            incarnation: Some(Incarnation::new(incarnation.0, incarnation.1).into()),
            stack: "demo".to_owned(),
            fact: Some(fact),
            ..Default::default()
        };
        while !self.publisher.offer(self.sequence, &event, "").unwrap() {
            self.publisher.progressed().await;
        }
    }

    async fn life(&mut self, component: &str, generation: u64) {
        self.tell(component, (generation, 1), Fact::ComponentStarted(v1::ComponentStarted::default())).await;
        self.tell(component, (generation, 1), Fact::ComponentReady(v1::ComponentReady::default())).await;
    }

    async fn done(&mut self) {
        assert!(self.publisher.drained(SOON).await);
    }
}

async fn status(bus: &Bus) -> Result<v1::StatusReply> {
    Ok(bus.ask("razar.query.registry.status", &v1::StatusRequest::default(), SOON).await?)
}

/// The projection as folded here from the stream, key by key.
async fn folded(bus: &Bus) -> Result<(Projection, BTreeMap<String, Vec<u8>>)> {
    let mut fold = bus.fold_events(razar_bus::Start::Beginning);
    let mut projection = Projection::default();
    let reading = async {
        while let Some(item) = fold.next().await {
            match item {
                razar_bus::FoldItem::Reset { epoch } => projection = Projection::new(&epoch),
                razar_bus::FoldItem::Event { sequence, event, .. } => {
                    projection.apply(sequence, &event);
                }
                razar_bus::FoldItem::DeadLetter { sequence, .. } => projection.dead_letter(sequence),
                razar_bus::FoldItem::CaughtUp { .. } => return,
            }
        }
    };
    soon("the stream is read", reading).await?;
    let keys = projection.keys().into_iter().map(|k| (k.to_string(), projection.value(&k).unwrap())).collect();
    Ok((projection, keys))
}

async fn bucket(bus: &Bus) -> Result<BTreeMap<String, Vec<u8>>> {
    Ok(bus.bucket(Store::Observed).entries().await?.into_iter().map(|e| (e.key, e.value.to_vec())).collect())
}

/// Waits until the bucket holds what a fold of the whole stream gives, byte for byte.
async fn bucket_agrees(bus: &Bus) -> Result<()> {
    let agreed = async {
        loop {
            let (folded, held) = (folded(bus).await?, bucket(bus).await?);
            if folded.1 == held && !held.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the bucket agrees with the stream", agreed).await?
}

async fn leader(bus: &Bus) -> Result<String> {
    let bucket = bus.bucket(Store::Leases);
    let held = async {
        loop {
            if let Ok(Some(entry)) = bucket.get(&lease_key("registry", 0)).await {
                return String::from_utf8_lossy(&entry.value).into_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("somebody leads", held).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_is_what_the_stream_says_whatever_happens_to_either() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut replicas = [Replica::start(&broker, "r1")?, Replica::start(&broker, "r2")?];
    let mut teller = Teller::new(&bus);
    for n in 0..40 {
        teller.life(&format!("c{n}"), 1).await;
    }
    teller.done().await;
    bucket_agrees(&bus).await?;

    // A poison message is put aside, told once, and passed over.
    bus.publish("razar.event.heart.c1.component_ready", bytes_of(b"\xff\xff\xff"), "").await?;
    teller.life("c1", 2).await;
    teller.done().await;
    soon("the poison is told", async {
        while status(&bus).await.is_ok_and(|s| s.observed.is_none_or(|o| o.dead_letters == 0)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await?;

    // The leader is killed while the stream goes on; the other takes the shard.
    let leads = leader(&bus).await?;
    let at = replicas.iter().position(|r| r.name == leads).unwrap();
    replicas[at].kill();
    for n in 0..40 {
        teller.life(&format!("c{n}"), 3).await;
    }
    teller.done().await;
    bucket_agrees(&bus).await?;

    // Wiped, it is rebuilt, the same byte for byte.
    let before = bucket(&bus).await?;
    for entry in bus.bucket(Store::Observed).entries().await? {
        let _ = bus.bucket(Store::Observed).delete(&entry.key, entry.revision).await;
    }
    bucket_agrees(&bus).await?;
    let after = bucket(&bus).await?;
    for (key, value) in before {
        assert_eq!(after.get(&key), Some(&value), "{key}");
    }
    let told = folded(&bus).await?.0.observed();
    assert_eq!(told.dead_letters, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_at_a_snapshot_gives_the_same_and_reads_little() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let first = Replica::start(&broker, "r1")?;
    let mut teller = Teller::new(&bus);
    for n in 0..3_000u64 {
        teller.life(&format!("c{}", n % 50), 1 + n / 50).await;
    }
    teller.done().await;
    soon("a snapshot is stored", async {
        loop {
            let read = bus.objects(Store::Stacks).get("snapshot-registry", 1 << 24).await;
            if let Ok(Some(bytes)) = read
                && v1::Observed::decode(bytes.as_slice()).is_ok_and(|o| o.applied_sequence > 5_000)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await?;
    drop(first);
    teller.life("late", 1).await;
    teller.done().await;
    let second = Replica::start(&broker, "r2")?;
    let (mine, _) = folded(&bus).await?;
    // The first word that there is: it says nothing before it has read.
    let reply = soon("an answer", async {
        loop {
            match status(&bus).await {
                Ok(reply) if reply.replica == "r2" => return reply,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    })
    .await?;
    assert_eq!(reply.lag, 0);
    let components = |o: v1::Observed| o.components.into_iter().map(|c| c.encode_to_vec()).collect::<Vec<_>>();
    assert_eq!(components(reply.observed.unwrap()), components(mine.observed()));
    let window = f64::from(u32::try_from(razar_registry::projection::AGENT_EVENT_WINDOW)?);
    assert!(second.metric("razar_events_folded_total").await? < window + 1_200.0, "it read the window and the tail alone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_from_memory() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let _replica = Replica::start(&broker, "r1")?;
    let mut teller = Teller::new(&bus);
    teller.life("api", 1).await;
    teller.done().await;
    let fact = Fact::DesiredChanged(v1::DesiredChanged {
        generation: 1,
        mode: "run".to_owned(),
        provides: vec!["chat".to_owned()],
        ..Default::default()
    });
    let api = Instance::new("api", 0);
    let event = v1::Event {
        id: agent_event_id("orchestrator", "desired_changed", Some(&api), None, "c1"),
        kind: "desired_changed".to_owned(),
        instance: Some((&api).into()),
        chakra: "heart".to_owned(),
        fact: Some(fact),
        ..Default::default()
    };
    bus.publish_event(&event, "").await?;
    let found: v1::DiscoverReply = soon("it is found by what it offers", async {
        loop {
            let request = v1::DiscoverRequest { capability: "chat".to_owned(), ready: true, ..Default::default() };
            let reply: Result<v1::DiscoverReply, _> = bus.ask("razar.query.registry.discover", &request, SOON).await;
            if let Ok(reply) = reply
                && !reply.components.is_empty()
            {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await?;
    assert_eq!(found.components[0].state(), InstanceState::Ready);
    Ok(())
}

/// How many clients the broker has cut off for reading too slowly.
async fn slow_consumers(monitor: u16) -> Result<u64> {
    let mut peer = tokio::net::TcpStream::connect(("127.0.0.1", monitor)).await?;
    peer.write_all(b"GET /varz HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer).await?;
    let (_, count) = answer.split_once("\"slow_consumers\": ").context("no count")?;
    Ok(count.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
}

/// Fault 11: a replica reads too slowly while questions and events flood it; the broker cuts it off. It comes back by itself, and its
/// projection is the same, byte for byte, as one that was folded without trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_as_too_slow_has_lost_and_doubled_nothing() -> Result<()> {
    let monitor = free_port()?;
    let broker = Broker::with(&format!("http: \"127.0.0.1:{monitor}\"\nwrite_deadline: \"300ms\"\nmax_pending: 1048576"))?;
    let bus = broker.provisioned().await?;
    let proxy = proxy::Proxy::start(broker.port)?;
    let replica = Replica::through(proxy.port(), "r1")?;
    let mut teller = Teller::new(&bus);
    teller.life("c0", 1).await;
    teller.done().await;
    bucket_agrees(&bus).await?;
    proxy.hold(proxy::Way::ToClient);
    for n in 0..300 {
        teller.life(&format!("c{}", n % 40), 2 + n).await;
    }
    teller.done().await;
    let question = bytes::Bytes::from(vec![0xff; 100_000]);
    soon("the broker to cut it off", async {
        while slow_consumers(monitor).await? == 0 {
            bus.publish("razar.query.registry.status", question.clone(), "").await?;
        }
        anyhow::Ok(())
    })
    .await??;
    proxy.mend();
    bucket_agrees(&bus).await?;
    let (mine, reply) = (folded(&bus).await?.0.observed(), status(&bus).await?);
    assert_eq!(reply.observed.unwrap().encode_to_vec(), mine.encode_to_vec());
    assert_eq!(replica.metric("razar_dead_letters_total").await?, 0.0);
    assert!(proxy.connections() >= 2, "it came back over another connection");
    Ok(())
}

fn bytes_of(bytes: &'static [u8]) -> bytes::Bytes {
    bytes::Bytes::from_static(bytes)
}
