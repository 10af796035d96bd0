//! A boot, a crash and a command as their traces, from a real mesh and a collector in the test: each one trace, with every hop in it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use razar_tests::e2e::{Arrived, Collector, Mesh, Part, SOON, Stack, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// Spans of one component in one trace.
const COMPONENT_SPANS_MAX: usize = 12;

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

fn traced() -> Result<(Collector, Mesh)> {
    let collector = Collector::start()?;
    let mesh = Mesh::new()?.with_env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()).started(pair)?;
    Ok((collector, mesh))
}

/// The trace that has a root of this name, once every one of its spans has its parent in it and `whole` is content.
fn whole_trace(collector: &Collector, root: &str, whole: impl Fn(&[Arrived]) -> bool) -> Result<Vec<Arrived>> {
    let look = || {
        let spans = collector.spans();
        let Some(root) = spans.iter().find(|s| s.name == root && s.parent.is_empty()) else { return Ok(None) };
        let trace: Vec<_> = spans.iter().filter(|s| s.trace == root.trace).cloned().collect();
        let ids: BTreeSet<_> = trace.iter().map(|s| s.id.as_str()).collect();
        let orphans: Vec<_> = trace.iter().filter(|s| !s.parent.is_empty() && !ids.contains(s.parent.as_str())).map(|s| &s.name).collect();
        if !orphans.is_empty() || !whole(&trace) {
            let names: Vec<_> = trace.iter().map(|s| s.name.as_str()).collect();
            bail!("without their parents: {orphans:?}; in all: {names:#?}");
        }
        Ok(Some(trace))
    };
    wait_for(&format!("the whole trace of {root}"), SOON, look)
}

fn count(trace: &[Arrived], name: &str) -> usize {
    trace.iter().filter(|s| s.name == name).count()
}

fn only<'t>(trace: &'t [Arrived], name: &str) -> Result<&'t Arrived> {
    let mut found = trace.iter().filter(|s| s.name == name);
    let first = found.next().with_context(|| format!("no span {name}"))?;
    ensure!(found.next().is_none(), "several spans {name}");
    Ok(first)
}

/// Every sending and acting-on bears what messaging asks for.
fn hops_are_described(trace: &[Arrived]) -> Result<()> {
    for hop in trace.iter().filter(|s| s.sends || s.processes) {
        let operation = if hop.sends { "send" } else { "process" };
        let attribute = |key: &str| hop.attributes.get(key).map_or("", String::as_str);
        ensure!(attribute("messaging.system") == "nats", "{hop:?}");
        ensure!([attribute("messaging.operation.name"), attribute("messaging.operation.type")] == [operation; 2], "{hop:?}");
        ensure!(hop.name == format!("{operation} {}", attribute("messaging.destination.template")), "{hop:?}");
    }
    Ok(())
}

#[test]
fn a_boot_is_one_trace_with_every_hop_in_it() -> Result<()> {
    let (collector, mesh) = traced()?;
    let event = |kind: &str| format!("razar.event.<chakra>.<component>.{kind}");
    let all = |trace: &[Arrived]| {
        count(trace, &format!("send {}", event("component_ready"))) == 2
            && count(trace, &format!("send {}", event("mission_completed"))) == 1
    };
    let trace = whole_trace(&collector, "mission", all)?;
    hops_are_described(&trace)?;
    // From the operator's shell to the component: each hop is sent by one and acted on by the next.
    let (command, desired) = ("razar.command.<agent>.<verb>.<target>", "$KV.<bucket>.desired.<component>.<ordinal>");
    let sent = only(&trace, &format!("send {command}"))?;
    let taken = only(&trace, &format!("process {command}"))?;
    ensure!((sent.service.as_str(), sent.sends) == ("razar-cli", true), "{sent:?}");
    ensure!((taken.service.as_str(), taken.processes, &taken.parent) == ("razar-orchestrator", true, &sent.id), "{taken:?}");
    let written = only(&trace, &format!("send {desired}"))?;
    for acted_on in trace.iter().filter(|s| s.name == format!("process {desired}")) {
        ensure!((acted_on.service.as_str(), acted_on.processes, &acted_on.parent) == ("razar-node", true, &written.id), "{acted_on:?}");
        let start = trace.iter().find(|s| s.parent == acted_on.id).context("a start follows")?;
        let steps: BTreeSet<_> = trace.iter().filter(|s| s.parent == start.id).map(|s| s.name.as_str()).collect();
        ensure!(start.name == "start component" && steps.is_superset(&["spawn", "await ready"].into()), "{steps:?}");
    }
    ensure!(count(&trace, &format!("process {desired}")) == 2);
    for kind in ["component_started", "component_ready", "desired_changed"] {
        ensure!(count(&trace, &format!("send {}", event(kind))) == 2, "{kind}");
    }
    let last = only(&trace, &format!("process {}", event("component_ready")))?;
    ensure!(trace.iter().any(|s| s.id == last.parent && s.sends), "what ended the mission was sent: {last:?}");
    // A waterfall: api's bar begins while db is starting, and its process comes when db is ready.
    let start_of = |name: &str| {
        let of = |s: &&Arrived| s.name == "start component" && s.attributes.get("razar.component").is_some_and(|c| c == name);
        trace.iter().find(of).with_context(|| format!("no start of {name}"))
    };
    let (db, api) = (start_of("db")?, start_of("api")?);
    let wait = trace.iter().find(|s| s.name == "wait dependencies" && s.parent == api.id).context("api waits")?;
    let spawn = trace.iter().find(|s| s.name == "spawn" && s.parent == api.id).context("api is spawned")?;
    ensure!(wait.time.0 < db.time.1 && spawn.time.0 >= db.time.1, "{db:?} {wait:?} {spawn:?}");
    within_bounds(&trace)?;
    mesh.end()
}

fn within_bounds(trace: &[Arrived]) -> Result<()> {
    let mut per_component: BTreeMap<&str, usize> = BTreeMap::new();
    let of = |s: &Arrived| ["db", "api"].into_iter().find(|name| s.attributes.values().any(|v| v.split('.').any(|part| part == *name)));
    trace.iter().filter_map(of).for_each(|name| *per_component.entry(name).or_default() += 1);
    ensure!(per_component.len() == 2 && per_component.values().all(|n| *n <= COMPONENT_SPANS_MAX), "{per_component:?}");
    Ok(())
}

#[test]
fn a_crash_and_its_recovery_are_one_trace() -> Result<()> {
    let (collector, mesh) = traced()?;
    let old = mesh.pid("api")?;
    signal(old, Signal::KILL)?;
    let kinds = ["component_exited", "component_started", "component_ready", "recovered"];
    let sent = kinds.map(|kind| format!("send razar.event.<chakra>.<component>.{kind}"));
    let trace = whole_trace(&collector, "incident", |trace| sent.iter().all(|name| count(trace, name) == 1))?;
    hops_are_described(&trace)?;
    let (exit, start) = (only(&trace, "component exit")?, only(&trace, "start component")?);
    let (root, ready) = (only(&trace, "incident")?, only(&trace, "await ready")?);
    ensure!([&exit.parent, &start.parent] == [&root.id; 2]);
    ensure!(exit.time.1 <= start.time.1 && ready.time.1 <= root.time.1, "exit, then restart, then ready, then recovered");
    ensure!(trace.len() <= COMPONENT_SPANS_MAX && trace.iter().all(|s| s.service == "razar-node"));
    mesh.end()
}

#[test]
fn a_restart_by_hand_is_one_trace() -> Result<()> {
    let (collector, mesh) = traced()?;
    mesh.razar(&["restart", "api"])?.ok()?;
    let command = "send razar.command.<agent>.<verb>.<target>";
    let trace = whole_trace(&collector, command, |trace| {
        count(trace, "start component") == 1 && count(trace, "send razar.event.<chakra>.<component>.operator_command") == 2
    })?;
    hops_are_described(&trace)?;
    let services: BTreeSet<_> = trace.iter().map(|s| s.service.as_str()).collect();
    ensure!(services == ["razar-cli", "razar-node", "razar-orchestrator"].into(), "{services:?}");
    ensure!(count(&trace, "stop component") == 1);
    within_one(&trace)?;
    mesh.end()
}

/// An isolation is its command's story, and what it does to its chakra a verdict's.
#[test]
fn an_isolation_by_hand_and_the_verdict_on_its_chakra_are_a_trace_each() -> Result<()> {
    let (collector, mesh) = traced()?;
    let sent = |kind: &str| format!("send razar.event.<chakra>.<component>.{kind}");
    mesh.razar(&["quarantine", "api", "--note", "leaks", "--for", "1h"])?.ok()?;
    let command = "send razar.command.<agent>.<verb>.<target>";
    let trace = whole_trace(&collector, command, |trace| {
        count(trace, &sent("quarantined")) == 1 && count(trace, &sent("operator_command")) == 2 && count(trace, "stop component") == 1
    })?;
    hops_are_described(&trace)?;
    let services: BTreeSet<_> = trace.iter().map(|s| s.service.as_str()).collect();
    ensure!(services == ["razar-cli", "razar-node", "razar-quarantine"].into(), "{services:?}");
    let taken = only(&trace, "process razar.command.<agent>.<verb>.<target>")?;
    ensure!((taken.service.as_str(), &taken.parent) == ("razar-quarantine", &only(&trace, command)?.id), "{taken:?}");
    wait_for("the verdict", SOON, || Ok(mesh.events()?.iter().any(|e| e.kind == "out_of_sync").then_some(())))?;
    mesh.razar(&["release", "api", "--note", "mended"])?.ok()?;
    let trace = whole_trace(&collector, "below threshold", |trace| count(trace, &sent("chakra_recovered")) == 1)?;
    hops_are_described(&trace)?;
    ensure!(count(&trace, &sent("chakra_down")) == 1 && count(&trace, "down") == 1, "{trace:#?}");
    ensure!(trace.iter().all(|s| s.service == "razar-watchdog"));
    mesh.end()
}

/// What no rung helps is one trace from the first exit to its isolation, whoever had a part in it.
#[test]
fn an_incident_that_ends_in_isolation_is_one_trace() -> Result<()> {
    let collector = Collector::start()?;
    let mesh = Mesh::new()?.with_env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let broken = mesh.dir().join("broken");
    let db = Part::demo("db", mesh.port(0))?
        .arg(&format!("--break-file={}", broken.display()))
        .set("heal", json!(["restart"]))
        .set("restart", json!({ "max": 0, "within": "1m", "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    mesh.up(&Stack::new("alone").with(db))?.ok()?;
    std::fs::write(&broken, "")?;
    let sent = |kind: &str| format!("send razar.event.<chakra>.<component>.{kind}");
    let trace = whole_trace(&collector, "incident", |trace| count(trace, &sent("quarantined")) == 1)?;
    hops_are_described(&trace)?;
    let services: BTreeSet<_> = trace.iter().map(|s| s.service.as_str()).collect();
    ensure!(services == ["razar-node", "razar-quarantine", "razar-recovery"].into(), "{services:?}");
    ensure!(count(&trace, "rung") == 1 && count(&trace, "start component") == 1, "{trace:#?}");
    for (kind, times) in [("component_exited", 2), ("component_failed", 2), ("recovery_failed", 1)] {
        ensure!(count(&trace, &sent(kind)) == times, "{kind}: {trace:#?}");
    }
    mesh.end()
}

fn within_one(trace: &[Arrived]) -> Result<()> {
    let of_api = trace.iter().filter(|s| s.service == "razar-node").count();
    ensure!(of_api <= COMPONENT_SPANS_MAX, "{of_api} spans");
    Ok(())
}
