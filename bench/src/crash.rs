//! kill -9 of a component: until its port listens again, beside a bare respawn; until a subscriber has the stored `component_ready`,
//! with the broker's default sync and with sync always.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    bare, floor,
    mesh::{Follower, Mesh, Sync},
    programs::{Programs, free_ports},
    report::{Line, Samples, Target},
};

/// Components in turn, so that each has been ready for long enough though one is killed each tenth of a second.
const COMPONENTS: usize = 12;
/// A start that was ready for a second earns the next one without delay.
const SETTLED: Duration = Duration::from_millis(1_050);

/// What is measured.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Until the port listens.
    pub(crate) listening: bool,
    /// Until the fact is received.
    pub(crate) ready: bool,
    /// Kills per measurement.
    pub(crate) kills: u32,
}

/// A component of the stack.
#[derive(Debug)]
struct Victim {
    name: String,
    port: u16,
}

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or a component does not come back.
pub(crate) async fn measure(programs: &Programs, parts: &Parts) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for sync in [Sync::Always, Sync::BrokerDefault] {
        if sync == Sync::Always || parts.ready {
            lines.extend(with_sync(programs, parts, sync).await?);
        }
    }
    Ok(lines)
}

async fn with_sync(programs: &Programs, parts: &Parts, sync: Sync) -> Result<Vec<Line>> {
    let dir = tempfile::tempdir()?;
    let (told, asked) = victims()?;
    let path = dir.path().join("razar.yaml");
    std::fs::write(&path, stack(&programs.demo(), &told, &asked)?)?;
    // Without the mesh: before it is there, and nobody asks.
    let bare = if parts.ready { Some(bare::ready(programs, sync, parts.kills).await?.median()) } else { None };
    let mesh = Mesh::up(programs, &path, &[], sync).await?;
    let mut follower = Follower::of(&mesh).await?;
    let mut lines = Vec::new();
    if parts.listening && sync == Sync::Always {
        let demo = programs.binary("razar-demo-service");
        for (victims, how) in [(&told, "notify"), (&asked, "http")] {
            lines.push(listening(&demo, &mut follower, victims, how, parts.kills).await?);
        }
    }
    if parts.ready {
        let (words, most) = match sync {
            Sync::Always => ("sync always", 5.5),
            Sync::BrokerDefault => ("broker's default sync", 3.5),
        };
        for (victims, how, floor) in [(&told, "notify", bare), (&asked, "http", None)] {
            let samples = until_ready(&mut follower, victims, parts.kills).await?;
            let what = format!("kill -> stored ready received, {how}, {words}");
            lines.push(Line { floor, ..Line::times(what, samples, &[Target::Median(most)]) });
        }
    }
    mesh.down().await?;
    Ok(lines)
}

async fn listening(demo: &Path, follower: &mut Follower, victims: &[Victim], how: &str, kills: u32) -> Result<Line> {
    let demo = demo.to_owned();
    let floor = tokio::task::spawn_blocking(move || floor::respawn(&demo, kills)).await??;
    let mut samples = Samples::default();
    for victim in victims.iter().cycle().take(usize::try_from(kills)?) {
        tokio::time::sleep(floor::PAUSE).await;
        let (process, port) = (follower.settled(&victim.name, SETTLED).await?, victim.port);
        let wait = move || floor::kill_until_listening(&process, port, || Ok(()));
        samples.push(tokio::task::spawn_blocking(wait).await?.with_context(|| format!("after a kill of {}", victim.name))?);
        follower.ready(&victim.name).await?;
    }
    Ok(Line::times(format!("kill -> listening again, {how}"), samples, &[Target::Ratio(2.0), Target::P99(5.0)]).beside(floor.median()))
}

async fn until_ready(follower: &mut Follower, victims: &[Victim], kills: u32) -> Result<Samples> {
    let mut samples = Samples::default();
    for victim in victims.iter().cycle().take(usize::try_from(kills)?) {
        tokio::time::sleep(floor::PAUSE).await;
        let process = follower.settled(&victim.name, SETTLED).await?;
        let began = std::time::Instant::now();
        process.signal(razar_os::Signal::KILL)?;
        samples.push(follower.ready(&victim.name).await?.duration_since(began));
    }
    Ok(samples)
}

/// Components that tell when they are ready, and components that are asked.
fn victims() -> Result<(Vec<Victim>, Vec<Victim>)> {
    let ports = free_ports(2 * COMPONENTS)?;
    let mut told: Vec<_> = ports.into_iter().enumerate().map(|(n, port)| Victim { name: format!("c{n}"), port }).collect();
    let asked = told.split_off(COMPONENTS);
    Ok((told, asked))
}

fn stack(demo: &str, told: &[Victim], asked: &[Victim]) -> Result<String> {
    let mut text = format!(
        "name: bench-crash\nmesh: {{ parallel_starts: {}, local_restarts: {{ max: 1000, within: 24h }} }}\ncomponents:\n",
        2 * COMPONENTS
    );
    for Victim { name, port } in told {
        writeln!(text, "  {name}:\n    chakra: heart\n    command: [{demo}, --name={name}, --port={port}, --notify]")?;
        writeln!(
            text,
            "    ports: [{port}]\n    readiness: {{ notify: true }}\n    liveness: {{ http: {{ port: {port}, path: /alive }} }}"
        )?;
    }
    for Victim { name, port } in asked {
        writeln!(text, "  {name}:\n    chakra: heart\n    command: [{demo}, --name={name}, --port={port}]\n    ports: [{port}]")?;
        writeln!(text, "    readiness: {{ http: {{ port: {port}, path: /health }} }}")?;
        writeln!(text, "    liveness: {{ http: {{ port: {port}, path: /alive }} }}")?;
    }
    Ok(text)
}
