//! The disk under the broker and the node is full (25): it is said, nobody stops, and nothing that was acknowledged is lost.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1;
use razar_tests::e2e::{Disk, Mesh, Part, SOON, Stack, alive, holds_for, http_get, signal, told_once_and_in_order, wait_for};
use rustix::process::Signal;

/// The broker finds out when it writes next, and is started again some looks after there is room.
const PATIENCE: Duration = Duration::from_secs(60);

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

fn troubles(mesh: &Mesh) -> Result<Vec<String>> {
    let said = mesh.razar(&["status", "--json"])?.ok()?;
    let reply: v1::StatusReply = razar_bus_schema::json::from_json(said.out.trim())?;
    Ok(reply.troubles.into_iter().map(|t| t.code).collect())
}

/// Waits until all of these are told at once.
fn wait_told(mesh: &Mesh, codes: &[&str]) -> Result<()> {
    wait_for(&format!("{codes:?} told"), PATIENCE, || {
        let told = troubles(mesh)?;
        Ok(codes.iter().all(|code| told.iter().any(|t| t == code)).then_some(()))
    })
}

/// The one living process of the demo service `name`, other than `old`, once it answers.
fn wait_healed(mesh: &Mesh, name: &str, old: u32) -> Result<u32> {
    let (flag, port) = (format!("--name={name}"), mesh.port(if name == "db" { 0 } else { 1 }));
    wait_for(&format!("{name} healed with the disk full"), SOON, || {
        let found: Vec<u32> = mesh.processes().into_iter().filter(|p| p.command.contains(&flag) && p.pid != old).map(|p| p.pid).collect();
        Ok(found.first().copied().filter(|_| found.len() == 1 && http_get(port, "/health").is_ok()))
    })
}

/// Mutations caught: the node looks at no disk; `log_internal_errors` is left on (agents end at their next log line); `Upkeep::decide`
/// starts no broker again.
#[test]
fn a_full_disk_is_said_stops_nobody_and_loses_nothing() -> Result<()> {
    let disk = Disk::new()?;
    let mesh = Mesh::new()?;
    disk.hold(&mesh.state())?;
    let mesh = mesh.started(pair)?;
    let (before, api, db, broker) = (mesh.events()?, mesh.pid("api")?, mesh.pid("db")?, mesh.pid("broker")?);
    let agents = (mesh.agent_pid()?, mesh.guard_pid()?, mesh.pid("registry")?, mesh.pid("orchestrator")?);
    ensure!(troubles(&mesh)?.is_empty(), "{:?}", troubles(&mesh)?);

    disk.fill()?;
    signal(db, Signal::KILL)?;
    let second = wait_healed(&mesh, "db", db)?;
    wait_told(&mesh, &["disk_full", "broker_store"])?;
    let said = mesh.razar(&["status", "--check"])?.is(1)?;
    // How much of what db did was still stored differs; `starting` is the last that is known then.
    ensure!(
        said.out.contains("is full, ") && said.out.contains("pair: degraded") && said.out.contains("node a: disk full"),
        "{}",
        said.out
    );
    ensure!(said.out.contains("the broker cannot store: ") && said.out.contains("next: "), "{}", said.out);
    signal(second, Signal::KILL)?;
    let third = wait_healed(&mesh, "db", second)?;
    // What is told of these no longer fits into the last block of the journal.
    signal(api, Signal::KILL)?;
    let api = wait_healed(&mesh, "api", api)?;
    wait_told(&mesh, &["disk_full", "broker_store", "journal"])?;
    holds_for("who ran runs on", Duration::from_secs(3), || {
        Ok([api, third, agents.0, agents.1, agents.2, agents.3].into_iter().all(alive))
    })?;
    ensure!(alive(broker), "a broker is not started again on a full disk");

    disk.free()?;
    wait_for("all well again", PATIENCE, || Ok(troubles(&mesh)?.is_empty().then_some(())))?;
    wait_for("both recoveries told", PATIENCE, || Ok((mesh.events_of("db", "recovered")?.len() >= 2).then_some(())))?;
    wait_for("a command carried out", PATIENCE, || Ok((mesh.razar(&["restart", "api", "--timeout", "5s"])?.code == 0).then_some(())))?;
    let after = mesh.events()?;
    told_once_and_in_order(&after)?;
    let ids: BTreeSet<&str> = after.iter().map(|e| e.id.as_str()).collect();
    ensure!(before.iter().all(|e| ids.contains(e.id.as_str())), "what was acknowledged before is gone");
    let of_db: Vec<&str> =
        after.iter().filter(|e| e.instance.as_ref().is_some_and(|i| i.component == "db")).map(|e| e.kind.as_str()).collect();
    let healed = ["component_exited", "component_started", "component_ready", "recovered"];
    ensure!(of_db.ends_with(&[healed, healed].concat()), "{of_db:?}");
    ensure!(mesh.pid("db")? == third && mesh.component("db")?.incarnation.context("db")?.start == 3);
    ensure!((mesh.agent_pid()?, mesh.guard_pid()?) == (agents.0, agents.1), "the node itself was not started again");
    mesh.end()
}
