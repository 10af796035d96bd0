//! What is brought back again and again: over its limits, where its stack file wants it replaced for that and where not, and below the
//! local budget (numbers in comments are those of the fault catalogue).

use std::time::Duration;

use anyhow::{Result, ensure};
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Stack, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// A verdict takes three measurements, five seconds apart; a rung its soak.
const JUDGED: Duration = Duration::from_secs(60);
/// Local recoveries that are borne in a day.
const BORNE: usize = 10;

fn count(mesh: &Mesh, name: &str, kind: &str) -> Result<usize> {
    Ok(mesh.events_of(name, kind)?.len())
}

/// Two that use more than they may: the one that is to be replaced is, through recovery; the other is only told of.
#[test]
fn who_is_over_its_limit_is_replaced_where_that_is_wanted() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        let part = |name: &str, n: u16, restart: bool| {
            let resources = json!({ "memory": "100KiB", "restart": restart });
            Ok::<_, anyhow::Error>(Part::demo(name, mesh.port(n))?.set("resources", resources))
        };
        Ok(Stack::new("limits").with(part("leak", 0, true)?).with(part("large", 1, false)?).with(Part::demo("other", mesh.port(2))?))
    })?;
    let before = (mesh.pid("leak")?, mesh.pid("large")?, mesh.pid("other")?);
    let recovered = wait_for("leak recovered", JUDGED, || Ok(mesh.events_of("leak", "recovered")?.into_iter().next()))?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "restart"), "{recovered:?}");
    let told = mesh.events_of("leak", "limit_exceeded")?.into_iter().next();
    let incident = told.as_ref().and_then(|e| e.incident.clone());
    ensure!(incident.is_some() && incident == recovered.incident, "its incident began with the limit: {told:?}");
    let order = mesh.events_of("leak", "recovery_started")?.into_iter().next();
    ensure!(order.as_ref().is_some_and(|e| e.incident == incident), "{order:?}");
    wait_for("large told of", JUDGED, || Ok((count(&mesh, "large", "limit_exceeded")? == 1).then_some(())))?;
    ensure!(mesh.pid("leak")? != before.0, "it was not replaced");
    ensure!((mesh.pid("large")?, mesh.pid("other")?) == (before.1, before.2), "somebody else was");
    ensure!(mesh.events_of("large", "limit_exceeded")?.iter().all(|e| e.incident.is_none()), "an alert is no incident");
    for name in ["large", "other"] {
        ensure!(count(&mesh, name, "recovery_started")? == 0 && count(&mesh, name, "component_exited")? == 0, "{name} was touched");
    }
    mesh.end()
}

/// Fault 44: one that dies again and again, never often enough for its local budget. The eleventh time its ladder is begun, once; its
/// dependent is not touched.
#[test]
fn who_flaps_below_the_limit_is_taken_to_the_ladder() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        let restart = json!({ "backoff": { "first": "0s", "base": "10ms", "max": "10ms" } });
        let stack = Stack::new("flaps").set("mesh", json!({ "local_restarts": { "max": 100, "within": "90s" } }));
        let part = |name, n| Ok::<_, anyhow::Error>(Part::demo(name, mesh.port(n))?.set("restart", restart.clone()));
        Ok(stack.with(part("db", 0)?).with(part("api", 1)?.after("db")))
    })?;
    let api = mesh.pid("api")?;
    for n in 1..=BORNE + 1 {
        ensure!(count(&mesh, "db", "recovery_started")? == 0, "taken up after {} recoveries", n - 1);
        let old = wait_for("db", SOON, || mesh.pid("db").map(Some))?;
        signal(old, Signal::KILL)?;
        wait_for(&format!("recovery {n}"), SOON, || Ok((count(&mesh, "db", "recovered")? == n).then_some(())))?;
        mesh.wait_ready("db")?;
    }
    let by = |e: &v1::Event| matches!(&e.fact, Some(Fact::Recovered(r)) if r.rung == "restart");
    wait_for("the rung", JUDGED, || Ok(mesh.events_of("db", "recovered")?.iter().any(by).then_some(())))?;
    ensure!(count(&mesh, "db", "recovery_started")? == 1 && count(&mesh, "db", "component_failed")? == 0);
    ensure!(count(&mesh, "db", "component_started")? == BORNE + 3, "{} starts", count(&mesh, "db", "component_started")?);
    ensure!(mesh.pid("api")? == api, "api was touched");
    ensure!(count(&mesh, "api", "recovery_started")? == 0 && count(&mesh, "api", "component_exited")? == 0);
    mesh.end()
}
