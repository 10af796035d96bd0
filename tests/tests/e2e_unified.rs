//! The 77 components of `examples/unified-77`, hurt: starved of CPU, the root of the deepest tree, ten at once, all at once, a whole chakra, one that keeps
//! dying and one that lies. What can be healed is healed at once and alone; what cannot is isolated, and nobody else is touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::{
    ids::Incident,
    v1::{self, InstanceState as State},
};
use razar_tests::e2e::{Mesh, binary, signal, wait_for};
use rustix::process::Signal;

/// All of them boot in a tenth of it.
const BOOT: &str = "120s";
/// All of them are back in a tenth of it.
const BACK: Duration = Duration::from_secs(90);
/// How long there are as many CPU hogs as components.
const STARVED: Duration = Duration::from_secs(20);
/// Components in profile `full`.
const ALL: usize = 77;
/// Everything else depends on it, over seven further layers.
const ROOT: &str = "service-registry";
/// Nobody depends on these two.
const FLAPPER: &str = "got-tot-agent";
const LIAR: &str = "knowledge-base";

type Pids = BTreeMap<String, u32>;

fn pids(mesh: &Mesh) -> Result<Pids> {
    Ok(mesh.pids()?.into_iter().collect())
}

fn ready(mesh: &Mesh) -> Result<BTreeSet<String>> {
    let is = |c: &v1::ObservedComponent| c.stack != "system" && c.state() == State::Ready;
    let name = |c: v1::ObservedComponent| c.instance.map(|i| i.component);
    Ok(mesh.observed()?.components.into_iter().filter(is).filter_map(name).collect())
}

/// Kills these at once and waits until each is another process and ready, and as many incidents more are healed where they began.
fn hurt(mesh: &Mesh, names: &[String]) -> Result<()> {
    let before = pids(mesh)?;
    let told = mesh.events()?.len();
    for name in names {
        signal(*before.get(name).context("no such component")?, Signal::KILL)?;
    }
    wait_for("the killed to be back", BACK, || {
        let (now, well) = (pids(mesh)?, ready(mesh)?);
        Ok(names.iter().all(|n| now.get(n) != before.get(n) && well.contains(n)).then_some(()))
    })?;
    let after = pids(mesh)?;
    let touched: Vec<_> = before.keys().filter(|n| before.get(*n) != after.get(*n)).collect();
    ensure!(touched.iter().all(|n| names.contains(n)), "killed {names:?}, but {touched:?} are others now");
    // Who falls together with what it depends on is blocked by it, and its end is no incident.
    let incidents = |events: &[v1::Event], kinds: &[&str]| -> BTreeSet<String> {
        let of = events.iter().filter(|e| kinds.contains(&e.kind.as_str())).filter_map(|e| e.incident.as_ref());
        of.filter_map(|id| Some(Incident::try_from(id).ok()?.to_string())).collect()
    };
    let events = wait_for("the incidents to end", BACK, || {
        let events = mesh.events()?;
        let since = events.get(told..).context("the stream is shorter")?.to_vec();
        let (opened, ended) = (incidents(&since, &["component_exited"]), incidents(&since, &["recovered", "incident_withdrawn"]));
        Ok((!opened.is_empty() && opened.is_subset(&ended)).then_some(since))
    })?;
    let count = |kind: &str| events.iter().filter(|e| e.kind == kind).count();
    ensure!(count("component_started") * 10 <= names.len() * 11, "{} starts for {} failures", count("component_started"), names.len());
    for unwanted in ["component_failed", "recovery_started", "brake_engaged", "quarantined"] {
        ensure!(count(unwanted) == 0, "{unwanted} though all was healed where it fell");
    }
    Ok(())
}

/// As many CPU hogs as components, for a while: everybody is slow, and nobody is taken for dead.
fn starve(mesh: &Mesh) -> Result<()> {
    let (before, told) = (pids(mesh)?, mesh.events()?.len());
    let mut hogs = Vec::new();
    for _ in 0..ALL {
        hogs.push(Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn()?);
    }
    std::thread::sleep(STARVED);
    for hog in &mut hogs {
        drop((hog.kill(), hog.wait()));
    }
    ensure!(pids(mesh)? == before, "somebody was started anew");
    let events = mesh.events()?;
    let since = events.get(told..).context("the stream is shorter")?;
    let wrong = ["component_unresponsive", "component_exited", "component_failed", "node_lost", "agent_down"];
    let wrong: Vec<_> = since.iter().filter(|e| wrong.contains(&e.kind.as_str())).collect();
    ensure!(wrong.is_empty(), "told of healthy ones: {wrong:?}");
    Ok(())
}

/// The stack file with one component's entry changed.
fn changed(text: &str, name: &str, change: impl Fn(&str) -> String) -> Result<String> {
    let head = format!("\n  {name}:\n");
    let at = text.find(&head).context("no such component")? + 1;
    let rest = text.get(at..).context("no text")?;
    let length = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
    let entry = rest.get(..length).context("no entry")?;
    Ok(format!("{}{}{}", text.get(..at).context("no text")?, change(entry), rest.get(length..).context("no text")?))
}

/// One dies two seconds after each ready; one answers on its health port and serves nothing, which a probe of its port finds out.
fn worsened(text: &str) -> Result<String> {
    let restart = "    restart: { backoff: { first: 0s, base: 50ms, max: 100ms } }\n";
    let text = changed(text, FLAPPER, |entry| {
        format!("{}{restart}", entry.replacen("--start-delay", "--exit-after=2s, --exit-code=1, --start-delay", 1))
    })?;
    changed(&text, LIAR, |entry| {
        let lines = entry.lines().map(|line| match line.trim_start().split(':').next() {
            Some("command") => line.replacen("--start-delay", "--lie, --start-delay", 1),
            Some("readiness") => {
                let port = line_port(entry);
                format!("    readiness: {{ tcp: {{ port: {port} }}, period: 100ms }}\n    startup: {{ tcp: {{ port: {port} }}, period: 100ms, failure_threshold: 20 }}")
            }
            _ => line.to_owned(),
        });
        lines.map(|line| line + "\n").collect::<String>() + restart
    })
}

/// Port of an entry, by its arguments.
fn line_port(entry: &str) -> String {
    let from = entry.split("--port=").nth(1).unwrap_or_default();
    from.chars().take_while(char::is_ascii_digit).collect()
}

#[test]
fn all_seventy_seven_are_hurt_and_end_as_they_should() -> Result<()> {
    let demo = binary("razar-demo-service")?;
    let mesh = Mesh::new()?.with_env("RAZAR_DEMO_SERVICE", demo.to_str().context("no UTF-8")?);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/unified-77/razar.yaml");
    let text = std::fs::read_to_string(example)?;
    let file = mesh.dir().join("razar.yaml");
    std::fs::write(&file, &text)?;
    let up = ["up", "--detach", "--profile", "full", "--timeout", BOOT, file.to_str().context("no UTF-8")?];
    mesh.razar(&up)?.ok()?;
    let all = ready(&mesh)?;
    ensure!(all.len() == ALL, "{} of {ALL} ready", all.len());

    starve(&mesh)?;
    hurt(&mesh, &[ROOT.to_owned()])?;
    hurt(&mesh, &all.iter().filter(|n| *n != ROOT).take(10).cloned().collect::<Vec<_>>())?;
    hurt(&mesh, &all.iter().cloned().collect::<Vec<_>>())?;

    std::fs::write(&file, worsened(&text)?)?;
    let before = pids(&mesh)?;
    let said = mesh.razar(&up)?.is(1)?;
    ensure!(mesh.component(LIAR)?.state() == State::Quarantined, "the boot did not wait for what it cannot do without: {said:?}");
    for name in [FLAPPER, LIAR] {
        wait_for(&format!("{name} to be isolated"), BACK, || Ok((mesh.component(name)?.state() == State::Quarantined).then_some(())))?;
        ensure!(!mesh.events_of(name, "recovery_failed")?.is_empty(), "{name} was isolated before its ladder was climbed");
    }
    let (after, well) = (pids(&mesh)?, ready(&mesh)?);
    ensure!(well.len() == ALL - 2, "{} of {} ready", well.len(), ALL - 2);
    ensure!(well.iter().all(|n| before.get(n) == after.get(n)), "somebody else was started anew");
    mesh.end()
}
