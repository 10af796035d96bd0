//! What the watchdog hears: a node that falls silent, played by the benchmark, until its `node_lost` is received from the stream; and the
//! CPU of the watchdog while it hears ten thousand beats a second of a thousand agents that it watches.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use prost::Message as _;
use razar_bus::{Bus, FoldItem, Start};
use razar_bus_schema::{
    event::{Kind as _, agent_event_id, node_event_id},
    presence::node_of,
    time::timestamp,
    v1::{self, event::Fact},
};

use crate::{
    mesh::{EVENT_LIMIT, Mesh, Sync},
    programs::{Programs, free_ports},
    report::{Line, Samples, Target},
    system,
};

/// Nodes that fall silent.
const NODES: usize = 10;
/// Time between two of them: no divisor of a beat.
const STEP: Duration = Duration::from_millis(137);
/// They are heard for this long first, longer than others have to come back after a connection.
const HEARD: Duration = Duration::from_secs(5);
/// Agents that are watched, and beats of each in a second.
const AGENTS: usize = 1_000;
const RATE: usize = 10;
/// Beats sent in a row, before others have their turn.
const BURST_MAX: usize = 200;
/// Events that are under way at once.
const AT_ONCE: usize = 64;
/// Time over which the watchdog's CPU is added up.
const OVER: Duration = Duration::from_secs(10);

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or a verdict does not come.
pub(crate) async fn measure(programs: &Programs) -> Result<Vec<Line>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("razar.yaml");
    let port = free_ports(1)?.first().copied().context("no port")?;
    let demo = programs.demo();
    let component = format!("chakra: heart, command: [{demo}, --name=one, --port={port}, --notify], ports: [{port}]");
    std::fs::write(&path, format!("name: bench-silence\ncomponents:\n  one: {{ {component}, readiness: {{ notify: true }} }}\n"))?;
    let mesh = Mesh::up(programs, &path, &[], Sync::Always).await?;
    let lines = vec![silent_nodes(&mesh).await?, hearing(&mesh).await?];
    mesh.down().await?;
    Ok(lines)
}

fn beat(kind: &str, id: &str, agent: &str, cycle: u64) -> v1::Heartbeat {
    v1::Heartbeat { kind: kind.to_owned(), id: id.to_owned(), agent: agent.to_owned(), cycle, ..Default::default() }
}

async fn send(bus: &Bus, beat: &v1::Heartbeat) -> Result<()> {
    bus.publish(&bus.subjects().heartbeat(&beat.kind, &beat.id), beat.encode_to_vec().into(), "").await?;
    Ok(())
}

/// From the last beat of each node to its `node_lost`.
async fn silent_nodes(mesh: &Mesh) -> Result<Line> {
    let names: Vec<String> = (0..NODES).map(|n| format!("silent{n}")).collect();
    for name in &names {
        let fact = Fact::NodeJoined(v1::NodeJoined { node_epoch: "bench".to_owned(), ..Default::default() });
        let event = v1::Event {
            id: node_event_id(name, "bench", 1),
            kind: fact.kind().to_owned(),
            time: Some(timestamp(SystemTime::now())),
            source: Some(v1::Actor { kind: "node".to_owned(), id: name.clone() }),
            node_sequence: Some(v1::NodeSequence { node: name.clone(), epoch: "bench".to_owned(), sequence: 1 }),
            fact: Some(fact),
            ..Default::default()
        };
        mesh.bus.publish_event(&event, "").await?;
    }
    let bus = mesh.bus.clone();
    let beating = async move {
        let began = Instant::now();
        let mut last: BTreeMap<String, Instant> = BTreeMap::new();
        let mut step = tokio::time::interval(STEP);
        let (mut at, mut next) = (0, vec![Duration::ZERO; NODES]);
        while began.elapsed() < HEARD + STEP * u32::try_from(NODES)? {
            step.tick().await;
            at += 1;
            for ((n, name), next) in names.iter().enumerate().zip(&mut next) {
                let until = HEARD + STEP * u32::try_from(n)?;
                if began.elapsed() < until && began.elapsed() >= *next {
                    *next = began.elapsed() + Duration::from_secs(1) - STEP;
                    send(&bus, &beat("node", name, "", at)).await?;
                    last.insert(name.clone(), Instant::now());
                }
            }
        }
        Ok::<_, anyhow::Error>(last)
    };
    let mut fold = mesh.bus.fold_events(Start::Beginning);
    let verdicts = async move {
        let mut lost: BTreeMap<String, Instant> = BTreeMap::new();
        while lost.len() < NODES {
            let item = tokio::time::timeout(EVENT_LIMIT, fold.next()).await.context("no verdict came")?.context("the bus was closed")?;
            if let FoldItem::Event { event, .. } = &item
                && matches!(event.fact, Some(Fact::NodeLost(_)))
                && let Some(name) = node_of(event)
            {
                lost.entry(name.to_owned()).or_insert_with(Instant::now);
            }
        }
        Ok::<_, anyhow::Error>(lost)
    };
    let (last, lost) = tokio::try_join!(beating, verdicts)?;
    let mut samples = Samples::default();
    for (name, at) in lost {
        samples.push(at.duration_since(*last.get(&name).context("a verdict on a node that never beat")?));
    }
    Ok(Line::times("a silent node's last beat -> node_lost received", samples, &[Target::Largest(3_050.0)]))
}

/// CPU of the watchdog at ten thousand beats a second.
async fn hearing(mesh: &Mesh) -> Result<Line> {
    let names: Vec<String> = (0..AGENTS).map(|n| format!("beater{n}")).collect();
    let mut told = tokio::task::JoinSet::new();
    for name in &names {
        let fact = Fact::AgentStarted(v1::AgentStarted { kind: "beater".to_owned(), id: name.clone(), ..Default::default() });
        let event = v1::Event {
            id: agent_event_id("beater", fact.kind(), None, None, name),
            kind: fact.kind().to_owned(),
            source: Some(v1::Actor { kind: "beater".to_owned(), id: name.clone() }),
            fact: Some(fact),
            ..Default::default()
        };
        let bus = mesh.bus.clone();
        told.spawn(async move { bus.publish_event(&event, "").await.map(drop) });
        // One by one the broker's syncs would take most of a minute.
        if told.len() >= AT_ONCE {
            told.join_next().await.context("one is under way")???;
        }
    }
    while let Some(one) = told.join_next().await {
        one??;
    }
    let pid = system::pid_of(mesh, "watchdog").await?;
    // A hundredth of a second's beats at a time.
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let (mut sent, mut before, mut began) = (0_usize, None, Instant::now());
    loop {
        tick.tick().await;
        let due = usize::try_from(began.elapsed().as_millis())? * AGENTS * RATE / 1_000;
        // A machine that cannot send as much in time sends less, and says so.
        for _ in 0..due.saturating_sub(sent).min(BURST_MAX) {
            let name = names.get(sent % AGENTS).context("a name")?;
            send(&mesh.bus, &beat("agent", name, "beater", u64::try_from(sent / AGENTS + 1)?)).await?;
            sent += 1;
        }
        match before {
            // The first second is for the subscription to find its rhythm.
            None if began.elapsed() > Duration::from_secs(1) => {
                (before, began, sent) = (Some(system::ticks(pid)?), Instant::now(), 0);
            }
            Some(before) if began.elapsed() >= OVER => {
                let used = (system::ticks(pid)? - before) / system::TICKS_PER_SECOND / began.elapsed().as_secs_f64() * 100.0;
                let what = format!("the watchdog at {} beats a second, CPU", u128::try_from(sent)? * 1_000 / began.elapsed().as_millis());
                return Ok(Line::figure(what, "% of a core", used, 10.0));
            }
            _ => {}
        }
    }
}
