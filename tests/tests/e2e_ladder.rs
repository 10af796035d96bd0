//! The ladder: what a node has given up is healed by a rung, or told to be past help; its dependents are blocked meanwhile, and cost
//! nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Stack, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// A rung has half a minute at least, and there are two, each with a soak.
const LADDER: Duration = Duration::from_secs(90);

/// `web` after `store`, which fails for as long as its cache is there; local restarts are spent at once.
fn stack(mesh: &Mesh, heal: &[&str]) -> Result<Stack> {
    let cache = mesh.dir().join("cache");
    std::fs::create_dir_all(&cache)?;
    std::fs::write(cache.join("index.json"), "{")?;
    let store = Part::demo("store", mesh.port(0))?
        .arg(&format!("--break-file={}", cache.join("index.json").display()))
        .arg("--break-error=JSONDecodeError: cache/index.json")
        .set("state", json!([cache]))
        .set("heal", json!(heal))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    Ok(Stack::new("ladder").with(store).with(Part::demo("web", mesh.port(1))?.after("store")).with(Part::demo("other", mesh.port(2))?))
}

fn wait_event(mesh: &Mesh, name: &str, kind: &str) -> Result<v1::Event> {
    wait_for(&format!("{kind} of {name}"), LADDER, || Ok(mesh.events_of(name, kind)?.into_iter().next()))
}

fn tries(mesh: &Mesh) -> Result<Vec<(String, String, String)>> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::RungTried(t)) => Some((t.rung, t.outcome, t.next)),
        _ => None,
    };
    Ok(mesh.events_of("store", "rung_tried")?.into_iter().filter_map(of).collect())
}

fn tried(rung: &str, outcome: &str, next: &str) -> (String, String, String) {
    (rung.to_owned(), outcome.to_owned(), next.to_owned())
}

/// Nobody who waits for `store` was started or blamed.
fn web_was_blocked_and_cost_nothing(mesh: &Mesh) -> Result<()> {
    let Some(Fact::ComponentBlocked(blocked)) = mesh.events_of("web", "component_blocked")?.into_iter().find_map(|e| e.fact) else {
        anyhow::bail!("web was not blocked")
    };
    ensure!(blocked.by.iter().any(|b| b.component == "store"), "{blocked:?}");
    for kind in ["component_exited", "component_failed", "recovery_started"] {
        ensure!(mesh.events_of("web", kind)?.is_empty(), "{kind} of web");
    }
    Ok(())
}

#[test]
fn what_fails_until_its_state_is_cleared_is_cured_by_the_second_rung() -> Result<()> {
    let mesh = Mesh::new()?;
    // The boot waits for the ladder, and is well in the end.
    mesh.up(&stack(&mesh, &["restart", "clear_state"])?)?.is(0)?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    let Some(Fact::Recovered(fact)) = &recovered.fact else { anyhow::bail!("no fact") };
    ensure!(fact.rung == "clear_state" && fact.starts >= 4, "{fact:?}");
    ensure!(tries(&mesh)? == [tried("restart", "failed", "clear_state"), tried("clear_state", "ok", "")], "{:?}", tries(&mesh)?);
    ensure!(!mesh.dir().join("cache").exists(), "its state is still there");
    mesh.wait_ready("web")?;
    web_was_blocked_and_cost_nothing(&mesh)?;
    let incident = recovered.incident.context("of no incident")?;
    ensure!(mesh.events_of("store", "component_exited")?.iter().all(|e| e.incident.as_ref() == Some(&incident)));
    // The node has heard that it is over, and the whole story can be read.
    wait_for("the order to be ended", SOON, || {
        let why = mesh.razar(&["why", "store", "--json"])?.ok()?;
        let why: v1::WhyReply = razar_bus_schema::json::from_json(why.out.trim())?;
        Ok(why.incident.is_none().then_some(()))
    })?;
    let story = mesh.razar(&["incident", "store"])?.ok()?.out;
    in_order(&story, &["component_exited", "component_failed", "recovery_started", "rung_tried", "recovered", "healed in"])?;
    ensure!(story.contains("restart failed; next clear_state") && story.contains("blocked web"), "{story}");
    let replayed = mesh.razar(&["incident", "store", "--replay"])?.ok()?.out;
    ensure!(replayed.contains("4 decisions replayed: the same"), "{replayed}");
    let line = mesh.razar(&["incidents", "--since", "1h"])?.ok()?.out;
    ensure!(line.contains("recovered") && line.contains("clear_state") && line.contains("JSONDecodeError"), "{line}");
    ensure!(mesh.razar(&["incidents", "--open"])?.ok()?.out.is_empty());
    mesh.end()
}

fn kill_both(mesh: &Mesh) -> Result<()> {
    let recovery = mesh.pid("recovery")?;
    signal(mesh.agent_pid()?, Signal::KILL)?;
    signal(recovery, Signal::KILL)
}

/// Fault 1: the agent that climbs, then the one that carries it out, die in the middle of a rung; the ladder ends as if nothing had been.
#[test]
fn a_ladder_goes_on_whoever_dies() -> Result<()> {
    let mesh = Mesh::new()?;
    mesh.up_with(&stack(&mesh, &["restart", "clear_state"])?, &["--no-wait"])?.ok()?;
    wait_event(&mesh, "store", "recovery_started")?;
    kill_both(&mesh)?;
    wait_for("the second rung to be ready", LADDER, || Ok((mesh.component("store")?.state() == v1::InstanceState::Ready).then_some(())))?;
    kill_both(&mesh)?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "clear_state"), "{recovered:?}");
    ensure!(tries(&mesh)? == [tried("restart", "failed", "clear_state"), tried("clear_state", "ok", "")], "{:?}", tries(&mesh)?);
    mesh.wait_ready("web")?;
    ensure!(mesh.events_of("store", "recovered")?.len() == 1 && mesh.events_of("store", "recovery_started")?.len() == 1);
    mesh.end()
}

/// Each of `words` after the one before.
fn in_order(text: &str, words: &[&str]) -> Result<()> {
    let mut rest = text;
    for word in words {
        let at = rest.find(word).with_context(|| format!("no {word} where it belongs:\n{text}"))?;
        rest = rest.get(at + word.len()..).unwrap_or_default();
    }
    Ok(())
}

#[test]
fn what_no_rung_heals_is_told_so_and_the_rest_runs_on() -> Result<()> {
    let mesh = Mesh::new()?;
    mesh.up(&stack(&mesh, &["restart"])?)?.is(1)?;
    let failed = wait_event(&mesh, "store", "recovery_failed")?;
    let Some(Fact::RecoveryFailed(fact)) = &failed.fact else { anyhow::bail!("no fact") };
    ensure!(fact.attempts == 1 && fact.last_error == "JSONDecodeError: cache/index.json", "{fact:?}");
    ensure!(tries(&mesh)? == [tried("restart", "failed", "quarantine")], "{:?}", tries(&mesh)?);
    ensure!(mesh.dir().join("cache").exists(), "its state was cleared, which nobody had asked for");
    web_was_blocked_and_cost_nothing(&mesh)?;
    // How it stands afterwards is for whoever isolates it.
    let line = mesh.razar(&["incidents"])?.ok()?.out;
    ensure!(line.contains("store@1.1") && !line.contains("recovered"), "{line}");
    in_order(
        &mesh.razar(&["incident", "store@1.1"])?.ok()?.out,
        &["recovery_started", "restart failed; next quarantine", "recovery_failed"],
    )?;
    // Rung, its failure, the end of the ladder, and the isolation are decided the same again.
    let replayed = mesh.razar(&["incident", "store@1.1", "--replay"])?.ok()?.out;
    ensure!(replayed.contains("4 decisions replayed: the same"), "{replayed}");
    ensure!(mesh.component("other")?.state() == v1::InstanceState::Ready);
    ensure!(mesh.events_of("web", "component_started")?.is_empty());
    mesh.end()
}
