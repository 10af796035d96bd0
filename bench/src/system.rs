//! What the mesh itself costs while it watches: PSS and CPU of guard, node, broker and agents, as the kernel accounts them; and how
//! quick it answers a question.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use razar_bus_schema::v1;

use crate::{
    mesh::{EVENT_LIMIT, Mesh, SYSTEM_STACK},
    report::{Line, Samples, Target},
};

/// After a boot the mesh has some folding and compacting to do, which is not watching.
const CALM: Duration = Duration::from_secs(3);
/// Questions asked on the bus, and by the command line.
const QUESTIONS: (usize, usize) = (200, 20);
/// Clock ticks of `/proc/PID/stat` in a second: fixed by the kernel's interface.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// What the mesh may take.
#[derive(Debug)]
pub(crate) struct Most {
    memory_mib: f64,
    cpu_percent: f64,
}

/// With one replica of each agent: 150 MB, told in MiB as the kernel tells it.
pub(crate) const ONE_EACH: Most = Most { memory_mib: 143.0, cpu_percent: 3.0 };
/// With three: 300 MB.
pub(crate) const THREE_EACH: Most = Most { memory_mib: 286.0, cpu_percent: 5.0 };

/// Memory and CPU of the mesh's own processes, with a line per process for comparison.
///
/// # Errors
/// When a process cannot be looked at.
pub(crate) async fn watch(mesh: &Mesh, over: Duration, with: &str, most: &Most) -> Result<Vec<Line>> {
    tokio::time::sleep(CALM).await;
    let processes = own(mesh).await?;
    let before = processes.iter().map(|(_, pid)| ticks(*pid)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    tokio::time::sleep(over).await;
    let wall = began.elapsed().as_secs_f64();
    let (mut lines, mut memory, mut cpu) = (Vec::new(), 0.0, 0.0);
    for ((name, pid), before) in processes.iter().zip(before) {
        let (pss, used) = (pss_mib(*pid)?, (ticks(*pid)? - before) / TICKS_PER_SECOND / wall * 100.0);
        memory += pss;
        cpu += used;
        lines.push(Line { targets: Vec::new(), ..Line::figure(format!("  of which {name}: memory"), "MiB PSS", pss, 0.0) });
        lines.push(Line { targets: Vec::new(), ..Line::figure(format!("  of which {name}: CPU"), "% of a core", used, 0.0) });
    }
    lines.insert(0, Line::figure(format!("the mesh watching 77{with}, memory"), "MiB PSS", memory, most.memory_mib));
    lines.insert(1, Line::figure(format!("the mesh watching 77{with}, CPU"), "% of a core", cpu, most.cpu_percent));
    Ok(lines)
}

/// Status questions, on the bus and by the command line.
///
/// # Errors
/// When one is not answered.
pub(crate) async fn status(mesh: &Mesh) -> Result<Vec<Line>> {
    let (mut bus, mut command) = (Samples::default(), Samples::default());
    let subject = mesh.bus.subjects().query("registry", "status");
    for _ in 0..QUESTIONS.0 {
        let began = Instant::now();
        let _: v1::StatusReply = mesh.bus.ask(&subject, &v1::StatusRequest::default(), EVENT_LIMIT).await?;
        bus.push(began.elapsed());
    }
    for _ in 0..QUESTIONS.1 {
        let began = Instant::now();
        mesh.run(&["status", "--json"]).await?;
        command.push(began.elapsed());
    }
    Ok(vec![
        Line::times("status of 77, asked on the bus", bus, &[Target::P99(10.0)]),
        Line::times("status of 77, `razar status --json` from start to end", command, &[Target::Median(10.0)]),
    ])
}

/// Names and pids of the mesh's own processes.
async fn own(mesh: &Mesh) -> Result<Vec<(String, u32)>> {
    let guard = mesh.guard()?;
    let mut processes = vec![("guard".to_owned(), guard)];
    processes.extend(children(guard).into_iter().filter(|pid| is_node(*pid)).map(|pid| ("node".to_owned(), pid)));
    let observed = mesh.status().await?;
    for component in observed.components.iter().filter(|c| c.stack == SYSTEM_STACK) {
        let name = component.instance.as_ref().map_or("", |i| i.component.as_str());
        if let Some(process) = &component.process {
            processes.push((name.to_owned(), process.pid));
        }
    }
    Ok(processes)
}

/// Pid of one of the mesh's own processes.
///
/// # Errors
/// When none of that name lives.
pub(crate) async fn pid_of(mesh: &Mesh, name: &str) -> Result<u32> {
    let found = own(mesh).await?.into_iter().find(|(known, _)| known == name);
    Ok(found.with_context(|| format!("no {name} lives"))?.1)
}

fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_node(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "razar-node")
}

/// Proportional share of memory: what is shared with other processes is counted once among all of them.
fn pss_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("memory of {pid}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no Pss of {pid}"))? / 1024.0)
}

/// CPU of all threads, user and system, in clock ticks.
///
/// # Errors
/// When the process cannot be looked at.
pub(crate) fn ticks(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("CPU of {pid}"))?;
    let fields: Vec<_> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).with_context(|| format!("no CPU of {pid}"));
    Ok(field(11)? + field(12)?)
}
