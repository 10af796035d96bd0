//! A component is isolated and earns its release, with the programs as they are: no path goes round the isolation, neither a start by hand
//! nor a restart of whoever keeps it; what is released serves again.

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::InstanceState as State;
use razar_tests::e2e::{Mesh, Part, SOON, Stack, alive, http_get, signal, wait_for};
use rustix::process::Signal;

/// `web` needs `worker`; `cache` needs nobody.
fn stack(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("isolated")
        .with(Part::demo("worker", mesh.port(0))?)
        .with(Part::demo("web", mesh.port(1))?.after("worker"))
        .with(Part::demo("cache", mesh.port(2))?))
}

/// Pid of the agent quarantine.
fn keeper(mesh: &Mesh) -> Result<u32> {
    let found = mesh.processes().into_iter().find(|p| p.command.contains("razar-quarantine"));
    found.map(|p| p.pid).context("no quarantine lives")
}

/// It is isolated, nothing of it lives, and a start by hand is refused with what to type instead.
fn stays_isolated(mesh: &Mesh) -> Result<()> {
    wait_for("worker quarantined", SOON, || Ok((mesh.component("worker")?.state() == State::Quarantined).then_some(())))?;
    let said = mesh.razar(&["start", "worker"])?.is(77)?;
    ensure!(said.err.contains("worker is quarantined") && said.err.contains("leaks"), "{}", said.err);
    ensure!(said.err.contains("release worker --note"), "it says what to type: {}", said.err);
    ensure!(!mesh.processes().iter().any(|p| p.command.contains("--name=worker")), "something of it lives");
    Ok(())
}

#[test]
fn what_is_isolated_by_hand_stays_so_through_restarts_until_a_hand_releases_it() -> Result<()> {
    let mesh = Mesh::start(stack)?;
    let pid = mesh.pid("worker")?;
    let said = mesh.razar(&["quarantine", "worker", "--note", "leaks", "--for", "2h"])?.ok()?;
    ensure!(said.out.contains("worker quarantined until ") && said.out.contains("; blocks web"), "{}", said.out);
    ensure!(!alive(pid), "it was said to be stopped");
    stays_isolated(&mesh)?;
    mesh.wait_event("web", "component_blocked", |e| !e.reason.as_ref().is_none_or(|r| r.text.is_empty()))?;
    let told = mesh.razar(&["status"])?.ok()?.out;
    ensure!(told.contains("left, then probation; manual: \"leaks\"") && told.contains("1 quarantined"), "{told}");

    signal(keeper(&mesh)?, Signal::KILL)?;
    signal(mesh.agent_pid()?, Signal::KILL)?;
    wait_for("another quarantine", SOON, || Ok(keeper(&mesh).ok()))?;
    stays_isolated(&mesh)?;

    mesh.razar(&["down"])?.ok()?;
    let said = mesh.up(&stack(&mesh)?)?.is(1)?;
    ensure!(said.out.contains("quarantined worker") || said.err.contains("quarantined worker"), "{} {}", said.out, said.err);
    stays_isolated(&mesh)?;
    mesh.wait_ready("cache")?;
    wait_for("web blocked", SOON, || Ok(mesh.razar(&["status"])?.out.contains("blocked by worker").then_some(())))?;

    let said = mesh.razar(&["release", "worker"])?.is(77)?;
    ensure!(said.err.contains("needs a note"), "{}", said.err);
    let said = mesh.razar(&["release", "worker", "--note", "mended"])?.ok()?;
    // Heard as an event, or seen by a look at the projection.
    ensure!(said.out.contains("worker released; ready"), "{}", said.out);
    mesh.wait_ready("web")?;
    ensure!(http_get(mesh.port(0), "/health")?.starts_with("HTTP/1.1 200"));
    let table = mesh.razar(&["quarantine", "--list", "--markdown"])?.ok()?.out;
    for part in ["| timestamp | component | action | issue type | details |", "| worker | quarantined | manual | for 2h: \"leaks\" |"] {
        ensure!(table.contains(part), "{table}");
    }
    ensure!(table.contains("| worker | released | manual | by hand: \"mended\" |"), "{table}");
    mesh.end()
}

#[test]
fn what_was_isolated_for_a_short_time_is_released_by_a_passing_probe() -> Result<()> {
    let mesh = Mesh::start(stack)?;
    mesh.razar(&["quarantine", "worker", "--note", "a moment", "--for", "1s"])?.ok()?;
    mesh.wait_event("worker", "probation_started", |_| true)?;
    wait_for("its trial to be shown", SOON, || Ok(mesh.razar(&["status"])?.out.contains("on probation").then_some(())))?;
    let released = mesh.wait_event("worker", "released", |_| true)?;
    ensure!(released.reason.is_some_and(|r| r.text.contains("on probation")));
    ensure!(mesh.component("worker")?.state() == State::Ready, "it served before it was released");
    mesh.wait_ready("web")?;
    ensure!(mesh.razar(&["release", "worker", "--note", "late"])?.is(77)?.err.contains("is not quarantined"));
    mesh.end()
}

#[test]
fn one_failure_on_probation_sends_it_back() -> Result<()> {
    let mesh = Mesh::start(stack)?;
    let first = mesh.events_of("cache", "component_ready")?.len();
    mesh.razar(&["quarantine", "cache", "--note", "odd", "--for", "1s"])?.ok()?;
    wait_for("cache on probation", SOON, || Ok((mesh.events_of("cache", "component_ready")?.len() > first).then_some(())))?;
    signal(mesh.pid("cache")?, Signal::KILL)?;
    wait_for("cache isolated again", SOON, || Ok((mesh.events_of("cache", "quarantined")?.len() == 2).then_some(())))?;
    wait_for("cache quarantined", SOON, || Ok((mesh.component("cache")?.state() == State::Quarantined).then_some(())))?;
    let failed = mesh.events_of("cache", "component_failed")?;
    ensure!(failed.len() == 1, "no restart of its own on probation: {failed:?}");
    mesh.end()
}

#[test]
fn what_cannot_be_isolated_or_released_is_refused_with_the_reason() -> Result<()> {
    let mesh = Mesh::start(stack)?;
    let said = mesh.razar(&["quarantine", "wroker"])?.is(77)?;
    ensure!(said.err.contains("no component wroker") && said.err.contains("worker"), "{}", said.err);
    ensure!(mesh.razar(&["quarantine", "registry"])?.is(77)?.err.contains("a part of the mesh"));
    ensure!(mesh.razar(&["release", "web", "--note", "x"])?.is(77)?.err.contains("is not quarantined"));
    mesh.end()
}

/// From a client of anybody's: what is asked too late, of nobody, without a note, or twice has a clear answer and no effect.
#[test]
fn what_is_asked_wrongly_on_the_bus_is_answered_and_does_nothing() -> Result<()> {
    let mesh = Mesh::start(stack)?;
    let (pid, mut raw) = (mesh.pid("worker")?, mesh.raw()?);
    let mut ask = |verb: &str, target: &str, text: &str| -> Result<(bool, String, String)> {
        let subject = format!("{}.command.quarantine.{verb}.{target}", mesh.name());
        let said: serde_json::Value = serde_json::from_slice(&raw.request(&subject, text.as_bytes())?)?;
        let text = |key: &str| said.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        Ok((said.get("accepted").and_then(serde_json::Value::as_bool).unwrap_or_default(), text("code"), text("reason")))
    };
    let (taken, code, why) = ask("quarantine", "worker", r#"{"commandId":"late","expiresAt":"2020-01-01T00:00:00Z"}"#)?;
    ensure!(!taken && code == "expired", "{code}: {why}");
    let (taken, code, why) = ask("quarantine", "wroker", r#"{"note":"x"}"#)?;
    ensure!(!taken && code == "unknown_component" && why.contains("nearest: worker"), "{code}: {why}");
    let (taken, code, why) = ask("release", "worker", r#"{"note":" "}"#)?;
    ensure!(!taken && code == "not_quarantined", "{code}: {why}");
    let (taken, code, why) = ask("isolate", "worker", "{}")?;
    ensure!(!taken && code == "unknown_verb" && why.contains("it knows quarantine and release"), "{code}: {why}");
    ensure!(alive(pid) && mesh.events_of("worker", "quarantined")?.is_empty(), "nothing of this had an effect");

    // A required root is isolated if a person wants so, who is told what that costs; and once, however often it is asked for.
    for _ in 0..3 {
        let (taken, _, why) = ask("quarantine", "worker", r#"{"commandId":"once","note":"leaks"}"#)?;
        ensure!(taken && why.contains("worker, a required one, is quarantined for 30m; it blocks web"), "{why}");
    }
    stays_isolated(&mesh)?;
    ensure!(mesh.events_of("worker", "quarantined")?.len() == 1, "{:?}", mesh.events_of("worker", "quarantined")?);
    let (taken, code, why) = ask("release", "worker", r#"{"commandId":"mute"}"#)?;
    ensure!(!taken && code == "note_missing" && why.contains("needs a note"), "{code}: {why}");
    mesh.end()
}
