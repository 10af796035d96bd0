//! examples/unified-77 with profile `full`: its boot beside the best schedule that its delays, dependencies and start slots allow; then,
//! while the mesh watches its components, what `system.rs` measures.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use razar_bus_schema::v1;
use razar_stack::{Source, load};

use crate::{
    mesh::{Mesh, Sync, span},
    programs::Programs,
    report::{Line, Samples, Target},
    schedule::{self, Best, Job},
    system,
};

/// Profile of the stack.
const PROFILE: &str = "full";
/// How the demo service is told its delay.
const DELAY: &str = "--start-delay=";

/// What is measured.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The boot.
    pub(crate) boot: bool,
    /// Memory, CPU and status queries, over so many seconds.
    pub(crate) watch: Option<u64>,
}

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or does not boot.
pub(crate) async fn measure(programs: &Programs, parts: &Parts) -> Result<Vec<Line>> {
    let path = programs.root.join("examples/unified-77/razar.yaml");
    let (best, components) = floor(&path, &programs.demo())?;
    let mesh = Mesh::up(programs, &path, &["--profile", PROFILE], Sync::Always).await?;
    let mut lines = Vec::new();
    let (took, ready) = span(&mesh.history().await?)?;
    ensure!(ready == components, "{ready} of {components} became ready");
    if parts.boot {
        let mut samples = Samples::default();
        samples.push(took);
        let what = format!("unified-77 full, beside the best schedule (bound {:.0} ms)", best.bound.as_secs_f64() * 1e3);
        lines.push(Line::times(what, samples, &[Target::Ratio(1.15)]).beside(best.found.as_secs_f64() * 1e3));
    }
    if let Some(seconds) = parts.watch {
        lines.extend(system::watch(&mesh, Duration::from_secs(seconds), "", &system::ONE_EACH).await?);
        lines.extend(system::status(&mesh).await?);
    }
    mesh.down().await?;
    Ok(lines)
}

/// What the mesh costs with three replicas of each agent, over so many seconds.
///
/// # Errors
/// When the mesh cannot be had, or does not boot.
pub(crate) async fn replicas(programs: &Programs, seconds: u64) -> Result<Vec<Line>> {
    let path = programs.root.join("examples/unified-77/razar.yaml");
    let mesh = Mesh::up(programs, &path, &["--profile", PROFILE, "--replicas", "3"], Sync::Always).await?;
    let lines = system::watch(&mesh, Duration::from_secs(seconds), " with three replicas of each agent", &system::THREE_EACH).await?;
    mesh.down().await?;
    Ok(lines)
}

fn floor(path: &Path, demo: &str) -> Result<(Best, usize)> {
    let text = fs::read_to_string(path)?;
    let dir = path.parent().context("no directory")?;
    let environment = |name: &str| if name == "RAZAR_DEMO_SERVICE" { Some(demo.to_owned()) } else { std::env::var(name).ok() };
    let loaded = load(&Source { file: "razar.yaml", text: &text, dir }, &environment).map_err(|wrong| anyhow!("{wrong}"))?;
    let resolved = loaded.document.resolve(PROFILE)?;
    let slots = usize::try_from(resolved.parallel_starts)?;
    Ok((schedule::best(&jobs(&resolved.components)?, slots)?, resolved.components.len()))
}

/// The components' starts in an order in which they could start.
fn jobs(components: &[v1::ComponentSpec]) -> Result<Vec<Job>> {
    let mut placed: Vec<&str> = Vec::new();
    let mut jobs = Vec::new();
    while placed.len() < components.len() {
        let before = placed.len();
        for component in components.iter().filter(|c| !placed.contains(&c.name.as_str())).collect::<Vec<_>>() {
            let present = component.depends_on.iter().filter(|d| components.iter().any(|c| c.name == d.component));
            let after: Option<Vec<usize>> = present.map(|d| placed.iter().position(|name| *name == d.component)).collect();
            if let Some(after) = after {
                jobs.push(Job { takes: delay(component)?, after });
                placed.push(&component.name);
            }
        }
        ensure!(placed.len() > before, "the dependencies have a cycle");
    }
    Ok(jobs)
}

fn delay(component: &v1::ComponentSpec) -> Result<Duration> {
    let Some(text) = component.command.iter().find_map(|arg| arg.strip_prefix(DELAY)) else { return Ok(Duration::ZERO) };
    let millis = match text.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>()?,
        None => text.strip_suffix('s').with_context(|| format!("{text} is no delay"))?.parse::<f64>()? * 1e3,
    };
    Ok(Duration::from_secs_f64(millis / 1e3))
}
