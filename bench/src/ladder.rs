//! From a component's `component_failed` until its node has acted on the order of recovery: event stored, folded by recovery, order written,
//! folded by the node, state cleared, spawned. By the node's clock, at both ends.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, time::SystemTime};

use anyhow::{Context, Result, ensure};
use razar_bus::{EventFold, FoldItem, Start};
use razar_bus_schema::{
    time,
    v1::{self, event::Fact},
};
use razar_os::{Pid, Process, Signal};

use crate::{
    bare, floor,
    mesh::{Mesh, Sync, next},
    programs::{Programs, free_ports},
    report::{Line, Samples, Target},
};

/// Components in each of two chakras: what cannot be taken back is done at most twelve times an hour in a chakra.
const COMPONENTS: usize = 11;
const CHAKRAS: [&str; 2] = ["heart", "throat"];

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or a component does not come back.
pub(crate) async fn measure(programs: &Programs) -> Result<Vec<Line>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("razar.yaml");
    std::fs::write(&path, stack(&programs.demo())?)?;
    let mut lines = Vec::new();
    for (sync, how) in [(Sync::Always, "sync always"), (Sync::BrokerDefault, "broker's default sync")] {
        let floor = bare::ordered(programs, sync, u32::try_from(COMPONENTS * CHAKRAS.len())?).await?.median();
        let samples = ways(programs, &path, sync).await?;
        let what = format!("component_failed -> order -> its node has started it, {how}");
        lines.push(Line::times(what, samples, &[Target::Median(3.0)]).beside(floor));
    }
    Ok(lines)
}

async fn ways(programs: &Programs, path: &Path, sync: Sync) -> Result<Samples> {
    let mesh = Mesh::up(programs, path, &[], sync).await?;
    let victims: Vec<(String, u32)> = mesh.status().await?.components.into_iter().filter_map(victim).collect();
    ensure!(victims.len() == COMPONENTS * CHAKRAS.len(), "{} components run", victims.len());
    // Asked for before the first kill: to ask for it is work for the broker, and what is told on the way wakes nobody here.
    let mut readiness = mesh.bus.follow_events("*.*.component_ready", Start::Beginning);
    while !matches!(next(&mut readiness).await?, FoldItem::CaughtUp { .. }) {}
    for (name, pid) in &victims {
        tokio::time::sleep(floor::PAUSE).await;
        let pid = Pid::new(i32::try_from(*pid)?).context("no pid")?;
        Process::current_holder(pid)?.context("it has ended by itself")?.signal(Signal::KILL)?;
        back(&mut readiness, name).await?;
    }
    let samples = acted(&mesh.history().await?)?;
    ensure!(samples.len() == victims.len(), "{} of {} were started by a rung", samples.len(), victims.len());
    mesh.down().await?;
    Ok(samples)
}

fn victim(component: v1::ObservedComponent) -> Option<(String, u32)> {
    (component.stack == "bench-ladder").then_some(())?;
    Some((component.instance?.component, component.process?.pid))
}

/// Waits until `name` is told ready.
async fn back(readiness: &mut EventFold, name: &str) -> Result<()> {
    loop {
        if let FoldItem::Event { event, .. } = next(readiness).await.with_context(|| format!("{name} is not back"))?
            && event.instance.is_some_and(|instance| instance.component == name)
        {
            return Ok(());
        }
    }
}

/// For each component from the failure that its node told to the start after it.
fn acted(events: &[v1::Event]) -> Result<Samples> {
    let (mut failed, mut samples) = (BTreeMap::<&str, SystemTime>::new(), Samples::default());
    for event in events {
        let (Some(instance), Some(at)) = (&event.instance, event.time.as_ref().map(time::system_time)) else { continue };
        match &event.fact {
            Some(Fact::ComponentFailed(_)) => drop(failed.insert(&instance.component, at)),
            Some(Fact::ComponentStarted(_)) => {
                if let Some(failed) = failed.remove(instance.component.as_str()) {
                    samples.push(at.duration_since(failed)?);
                }
            }
            _ => {}
        }
    }
    Ok(samples)
}

/// Components without restarts of their node's own, whose ladder begins without a backoff.
fn stack(demo: &str) -> Result<String> {
    let ports = free_ports(COMPONENTS * CHAKRAS.len())?;
    let slots = ports.len();
    let mut text =
        format!("name: bench-ladder\nmesh: {{ parallel_starts: {slots}, local_restarts: {{ max: 0, within: 90s }} }}\ncomponents:\n");
    for (n, port) in ports.into_iter().enumerate() {
        let chakra = CHAKRAS.get(n % CHAKRAS.len()).context("no chakra")?;
        writeln!(text, "  c{n}:\n    chakra: {chakra}\n    command: [{demo}, --name=c{n}, --port={port}, --notify]")?;
        writeln!(text, "    ports: [{port}]\n    readiness: {{ notify: true }}\n    state: [./state/c{n}]\n    heal: [clear_state]")?;
        writeln!(text, "    liveness: {{ http: {{ port: {port}, path: /alive }} }}")?;
    }
    Ok(text)
}
