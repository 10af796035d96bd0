//! Who is silent, and who only seems so, with the programs as they are (numbers in comments are those of the fault catalogue). What does
//! not happen is waited for by something later that does: a verdict on somebody who is silent is told after every one that was due before.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use razar_bus_schema::{
    presence::node_of,
    v1::{self, event::Fact},
};
use razar_tests::e2e::{Mesh, Part, Proxy, SOON, Stack, Way, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// Three beats of a second, fifty milliseconds, and what a test machine with many neighbours adds.
const VERDICT: Duration = Duration::from_millis(4_500);

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

/// Verdicts on nodes and agents, in order: kind, and whom it is about.
fn verdicts(mesh: &Mesh) -> Result<Vec<(String, String)>> {
    let about = |e: &v1::Event| match &e.fact {
        Some(Fact::NodeLost(_) | Fact::NodeReturned(_)) => node_of(e).map(str::to_owned),
        Some(Fact::AgentDown(a)) => Some(a.id.clone()),
        Some(Fact::AgentReturned(a)) => Some(a.id.clone()),
        _ => None,
    };
    Ok(mesh.events()?.iter().filter_map(|e| Some((e.kind.clone(), about(e)?))).collect())
}

fn wait_verdict(mesh: &Mesh, kind: &str, about: &str, times: usize) -> Result<()> {
    wait_for(&format!("{kind} of {about}"), SOON, || {
        let told = verdicts(mesh)?.into_iter().filter(|(k, a)| k == kind && a == about).count();
        Ok((told == times).then_some(()))
    })
}

fn joined(mesh: &Mesh, node: &str) -> Result<()> {
    wait_for("the node joined", SOON, || Ok(mesh.observed()?.nodes.iter().any(|n| n.name == node).then_some(())))
}

/// Fault 8, and a node that dies: first its line is half-open, so that it does not answer; then it is gone, and the broker says so.
#[test]
fn a_silent_node_is_lost_and_returns() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let line = Proxy::start(mesh.broker_port())?;
    let node = mesh.node_by_hand("b", line.port())?;
    joined(&mesh, "b")?;
    line.orphan();
    line.hold(Way::ToBroker);
    let cut = Instant::now();
    wait_verdict(&mesh, "node_lost", "b", 1)?;
    eprintln!("lost {:?} after its line was cut", cut.elapsed());
    let status = mesh.razar(&["status"])?.out;
    ensure!(status.contains("1 node, 1 lost"), "{status}");
    line.mend();
    wait_verdict(&mesh, "node_returned", "b", 1)?;
    ensure!(mesh.razar(&["status"])?.ok()?.out.contains("2 nodes"), "it is back");

    let killed = Instant::now();
    drop(node);
    wait_verdict(&mesh, "node_lost", "b", 2)?;
    let took = killed.elapsed();
    ensure!(took < VERDICT, "{took:?}");
    let lost = mesh.events()?.into_iter().rfind(|e| e.kind == "node_lost");
    let evidence = lost.and_then(|e| if let Some(Fact::NodeLost(l)) = e.fact { Some(l.evidence) } else { None }).unwrap_or_default();
    ensure!(evidence == ["no_beats", "no_responders"], "{evidence:?}");
    eprintln!("lost {took:?} after it was killed");
    mesh.end()
}

/// Faults 4 and 5: a broker that stands, and one that is gone, makes nobody silent.
#[test]
fn a_broker_that_is_away_makes_nobody_silent() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let node = mesh.node_by_hand("b", mesh.broker_port())?;
    joined(&mesh, "b")?;
    // Its node takes it for hung after a second; that it stands for longer is tested without a node.
    let broker = mesh.pid("broker")?;
    signal(broker, Signal::STOP)?;
    thread::sleep(Duration::from_millis(700));
    signal(broker, Signal::CONT)?;
    mesh.wait_ready("api")?;
    mesh.break_broker(true)?;
    signal(broker, Signal::KILL)?;
    thread::sleep(Duration::from_secs(6));
    mesh.break_broker(false)?;
    wait_for("the broker back", 3 * SOON, || Ok(mesh.observed().ok().map(drop)))?;
    drop(node);
    wait_verdict(&mesh, "node_lost", "b", 1)?;
    ensure!(verdicts(&mesh)? == [("node_lost".to_owned(), "b".to_owned())], "{:?}", verdicts(&mesh)?);
    mesh.end()
}

/// A chakra of which too little serves for too long is down, and `status --check` says so by its exit code.
#[test]
fn a_chakra_below_its_threshold_is_down_and_recovers() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        let part = Part::demo("db", mesh.port(0))?.set("chakra", json!("heart")).set("heal", json!([]));
        Ok(Stack::new("one").with(part.set("restart", json!({ "policy": "never" }))))
    })?;
    wait_for("the great spiral", SOON, || Ok(mesh.events()?.iter().any(|e| e.kind == "great_spiral").then_some(())))?;
    ensure!(mesh.razar(&["status", "--check"])?.code == 0);
    signal(mesh.pid("db")?, Signal::KILL)?;
    wait_for("chakra_down", SOON, || Ok(mesh.events()?.iter().any(|e| e.kind == "chakra_down" && e.chakra == "heart").then_some(())))?;
    let said = wait_for("status", SOON, || Ok(Some(mesh.razar(&["status", "--check"])?).filter(|s| s.out.contains("chakra heart: down"))))?;
    ensure!(said.code == 2 && said.out.contains("missing db"), "{said:?}");
    mesh.razar(&["restart", "db", "--no-wait"])?.ok()?;
    mesh.wait_ready("db")?;
    wait_for("chakra_recovered", SOON, || Ok(mesh.events()?.iter().any(|e| e.kind == "chakra_recovered").then_some(())))?;
    wait_for("well again", SOON, || Ok((mesh.razar(&["status", "--check"])?.code == 0).then_some(())))?;
    let all = mesh.razar(&["status", "--all"])?.ok()?.out;
    ensure!(all.contains("score "), "{all}");
    mesh.end()
}
