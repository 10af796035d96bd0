//! Streams and buckets that somebody deletes under a running mesh (29): they are made again, nobody is started again, and what is asked
//! and told from then on is as before.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1;
use razar_tests::e2e::{Mesh, Part, Raw, SOON, Stack, alive, holds_for, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// A store is missed within two seconds, readers of the old one see within five that it has gone; commands wait for both.
const WITHIN: Duration = Duration::from_secs(30);
/// A restart that was asked for may come late; it is not to be asked for once more as long as it may.
const RESTART: [&str; 4] = ["restart", "api", "--timeout", "20s"];

fn pair(mesh: &Mesh) -> Result<Stack> {
    // It is killed once for each store that is lost.
    let db = Part::demo("db", mesh.port(0))?.set("restart", json!({ "max": 10, "within": "5m" }));
    Ok(Stack::new("pair").with(db).with(Part::demo("api", mesh.port(1))?.after("db")))
}

/// Pids of all, the mesh's own too.
fn pids(mesh: &Mesh) -> Result<BTreeMap<String, u32>> {
    let of = |c: v1::ObservedComponent| Some((c.instance?.component, c.process?.pid));
    Ok(mesh.observed()?.components.into_iter().filter_map(of).collect())
}

fn exists(raw: &mut Raw, stream: &str) -> bool {
    raw.jetstream(&format!("STREAM.INFO.{stream}"), "").is_ok()
}

fn recreated(raw: &mut Raw, stream: &str) -> Result<()> {
    raw.jetstream(&format!("STREAM.DELETE.{stream}"), "")?;
    wait_for(&format!("{stream} again"), SOON, || Ok(exists(raw, stream).then_some(())))
}

/// A crash is healed and told, and a command carried out, with the same processes but the two that were hurt on purpose.
fn works(mesh: &Mesh, before: &BTreeMap<String, u32>, lost: &str) -> Result<BTreeMap<String, u32>> {
    for (who, pid) in before {
        ensure!(alive(*pid), "{who} was started again after the loss of {lost}");
    }
    let (db, api) = (*before.get("db").context("db")?, *before.get("api").context("api")?);
    signal(db, Signal::KILL)?;
    wait_for(&format!("db's recovery told after the loss of {lost}"), WITHIN, || {
        let told = mesh.events_of("db", "component_exited")?.len();
        Ok((told > 0 && mesh.pid("db").ok().is_some_and(|pid| pid != db && alive(pid))).then_some(()))
    })?;
    wait_for(&format!("a restart by hand after the loss of {lost}"), WITHIN, || Ok((mesh.razar(&RESTART)?.code == 0).then_some(())))?;
    wait_for(&format!("all well after the loss of {lost}"), WITHIN, || {
        let said = mesh.razar(&["status", "--check"])?;
        Ok((said.code == 0 && said.out.contains("pair: 2/2 ready") && said.out.contains("5 agents, 1 node")).then_some(()))
    })?;
    let after = wait_for("everybody known again", WITHIN, || Ok(Some(pids(mesh)?).filter(|after| after.len() == before.len())))?;
    for (who, pid) in &after {
        let hurt = who == "db" || who == "api";
        ensure!((before.get(who) == Some(pid)) != hurt, "{who} after the loss of {lost}: {before:?} {after:?}");
    }
    ensure!(!alive(api) && mesh.component("db")?.state() == v1::InstanceState::Ready);
    Ok(after)
}

fn lose_one_after_the_other(labels: &[(&str, &str)]) -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (mut before, mut raw, name) = (pids(&mesh)?, mesh.raw()?, mesh.name().to_owned());
    let starts =
        || -> Result<BTreeSet<String>> { Ok(mesh.events()?.into_iter().filter(|e| e.kind == "agent_started").map(|e| e.id).collect()) };
    for (prefix, label) in labels {
        let told = starts()?;
        recreated(&mut raw, &format!("{prefix}{name}_{label}"))?;
        before = works(&mesh, &before, label)?;
        // What follows from one is named after it: a late word from the stream before must have another name.
        let again = starts()?;
        ensure!(*label != "events" || again.len() == told.len() && again.is_disjoint(&told), "{again:?} after {told:?}");
    }
    mesh.end()
}

/// Mutation caught: the node asks for no stores.
#[test]
fn a_lost_stream_is_made_again_and_nobody_is_started_again() -> Result<()> {
    lose_one_after_the_other(&[("", "events"), ("", "commands"), ("", "logs"), ("OBJ_", "stacks")])
}

/// Mutations caught: the head of a bucket made anew is not read again; a lost plan is not written again.
#[test]
fn a_lost_bucket_is_made_again_and_nobody_is_started_again() -> Result<()> {
    lose_one_after_the_other(&[("KV_", "intents"), ("KV_", "missions"), ("KV_", "observed"), ("KV_", "leases")])
}

/// Somebody else makes EVENTS anew as soon as a new agent of the node has told into them, before it looks at its stores: the new ones are
/// not taken for those that it told into. Mutation caught: which they are is asked at the first look.
#[test]
fn events_made_anew_under_a_new_agent_of_the_node_hear_of_all_that_live() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, mut raw, stream) = (pids(&mesh)?, mesh.raw()?, format!("{}_events", mesh.name()));
    let joined = || Ok::<_, anyhow::Error>(mesh.events()?.iter().filter(|e| e.kind == "node_joined").count());
    let told = joined()?;
    signal(mesh.agent_pid()?, Signal::KILL)?;
    wait_for("the new agent to have told", SOON, || Ok((joined()? > told).then_some(())))?;
    // Its loop has turned by then, twice at least, and seen that it was stored.
    for _ in 0..3 {
        wait_for("an answer of the node", SOON, || Ok(raw.request(&format!("{}.node.a.ping", mesh.name()), b"").ok()))?;
    }
    raw.jetstream(&format!("STREAM.DELETE.{stream}"), "")?;
    let provision = mesh.by_hand("razar-provision", mesh.broker_port(), "by-hand")?;
    wait_for("events again", SOON, || Ok(exists(&mut raw, &stream).then_some(())))?;
    works(&mesh, &before, "events")?;
    drop(provision);
    mesh.end()
}

/// With the stream and the bucket both gone only the node's inventory says what it is that runs; a successor of the orchestrator knows
/// nothing else. Mutation caught: the inventory tells no hash.
#[test]
fn losing_events_and_intents_together_restarts_nothing() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (mut raw, name) = (mesh.raw()?, mesh.name().to_owned());
    let own = |mesh: &Mesh| -> Result<BTreeMap<String, u32>> { Ok(mesh.pids()?.into_iter().collect()) };
    for kill_orchestrator in [false, true] {
        let (before, orchestrator) = (own(&mesh)?, mesh.pid("orchestrator")?);
        let generation = mesh.component("api")?.incarnation.context("api")?.generation;
        for stream in [format!("{name}_events"), format!("KV_{name}_intents")] {
            raw.jetstream(&format!("STREAM.DELETE.{stream}"), "")?;
        }
        if kill_orchestrator {
            signal(orchestrator, Signal::KILL)?;
        }
        let desired = format!(r#"{{"last_by_subj":"$KV.{name}_intents.desired.api.0"}}"#);
        wait_for("desired written again", WITHIN, || Ok(raw.jetstream(&format!("STREAM.MSG.GET.KV_{name}_intents"), &desired).ok()))?;
        wait_for("everybody known again", WITHIN, || Ok((own(&mesh)? == before).then_some(())))?;
        holds_for("nobody is started again", Duration::from_secs(3), || Ok(before.values().all(|pid| alive(*pid))))?;
        ensure!(mesh.component("api")?.incarnation.context("api")?.generation == generation, "placed anew");
        wait_for("a restart by hand", WITHIN, || Ok((mesh.razar(&RESTART)?.code == 0).then_some(())))?;
        ensure!(mesh.pid("db")? == *before.get("db").context("db")?, "db was not asked for");
    }
    mesh.end()
}
