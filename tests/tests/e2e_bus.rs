//! What comes over the bus from anybody: commands as JSON, poison, what is newer than this mesh (numbers of `reliability.md`'s catalogue in
//! brackets). The client is a few lines on a socket, none of the mesh's. Streams that somebody deletes are in `e2e_stores.rs`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use prost::Message;
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, Raw, SOON, Stack, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

fn pids(mesh: &Mesh) -> Result<BTreeMap<String, u32>> {
    let of = |c: v1::ObservedComponent| Some((c.instance?.component, c.process?.pid));
    Ok(mesh.observed()?.components.into_iter().filter_map(of).collect())
}

/// A command as any client sends it; its receipt.
fn command(raw: &mut Raw, mesh: &Mesh, verb: &str, target: &str, payload: &[u8]) -> Result<Value> {
    let subject = format!("{}.command.orchestrator.{verb}.{target}", mesh.name());
    Ok(serde_json::from_slice(&raw.request(&subject, payload)?)?)
}

/// What was told of a command in the end.
fn outcomes(mesh: &Mesh, id: &str) -> Result<Vec<v1::OperatorCommand>> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::OperatorCommand(told)) if told.command_id == id && told.result != "accepted" => Some(told),
        _ => None,
    };
    Ok(mesh.events()?.into_iter().filter_map(of).collect())
}

/// The mesh goes on as if nothing had been: the same processes, and it heals and tells.
fn nothing_has_happened(mesh: &Mesh, before: &BTreeMap<String, u32>) -> Result<()> {
    let after = pids(mesh)?;
    ensure!(&after == before, "processes changed: {before:?} {after:?}");
    let db = mesh.pid("db")?;
    let healed = mesh.events_of("db", "recovered")?.len();
    signal(db, Signal::KILL)?;
    wait_for("db healed and told", SOON, || Ok((mesh.events_of("db", "recovered")?.len() > healed).then_some(())))?;
    mesh.nobody_panicked()
}

#[test]
fn a_command_as_json_has_a_receipt_at_once_and_its_outcome_as_an_event() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (db, api, mut raw) = (mesh.pid("db")?, mesh.pid("api")?, mesh.raw()?);
    let receipt = command(&mut raw, &mesh, "restart", "db", br#"{"commandId":"upgrade-1","reason":"upgrade","fieldOfTomorrow":{"a":1}}"#)?;
    ensure!(receipt["accepted"] == true && receipt["commandId"] == "upgrade-1" && receipt["agent"] == "orchestrator", "{receipt}");
    let told = wait_for("its outcome", SOON, || Ok(outcomes(&mesh, "upgrade-1")?.into_iter().next()))?;
    ensure!(told.result == "done" && told.verb == "restart" && told.target == "db", "{told:?}");
    wait_for("another process", SOON, || Ok(mesh.pid("db").ok().filter(|pid| *pid != db)))?;
    let ready = mesh.wait_event("db", "component_ready", |e| e.incarnation.as_ref().is_some_and(|i| i.generation == 2))?;
    ensure!(ready.incarnation.is_some_and(|i| i.start == 1));
    ensure!(mesh.pid("api")? == api, "api does not ask to be restarted with db");
    mesh.end()
}

#[test]
fn a_command_that_comes_twice_has_one_effect_and_one_receipt() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let mut raw = mesh.raw()?;
    let payload = br#"{"commandId":"once","reason":"sent by a client that did not hear"}"#;
    let first = command(&mut raw, &mesh, "restart", "db", payload)?;
    let second = command(&mut raw, &mesh, "restart", "db", payload)?;
    ensure!(first["accepted"] == true && first["commandId"] == second["commandId"] && second["accepted"] == true, "{first} {second}");
    mesh.wait_event("db", "component_ready", |e| e.incarnation.as_ref().is_some_and(|i| i.generation == 2))?;
    // Another command, accepted after both, so that a second effect would have come before it.
    let other = command(&mut raw, &mesh, "restart", "api", b"{\"commandId\":\"other\"}")?;
    ensure!(other["accepted"] == true, "{other}");
    mesh.wait_event("api", "component_ready", |e| e.incarnation.as_ref().is_some_and(|i| i.generation == 2))?;
    let generation = mesh.component("db")?.incarnation.context("db")?.generation;
    ensure!(generation == 2, "db is in generation {generation}");
    wait_for("its outcome", SOON, || Ok((!outcomes(&mesh, "once")?.is_empty()).then_some(())))?;
    ensure!(outcomes(&mesh, "once")?.len() == 1, "{:?}", outcomes(&mesh, "once")?);
    mesh.end()
}

#[test]
fn a_wrong_command_is_refused_with_the_reason() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, mut raw) = (pids(&mesh)?, mesh.raw()?);
    let refused = |receipt: &Value, code: &str| {
        ensure!(receipt.get("accepted").is_none_or(|a| a == false), "{receipt}");
        ensure!(receipt["code"] == code && receipt["reason"].as_str().is_some_and(|r| !r.is_empty()), "{code} was due: {receipt}");
        Ok(())
    };
    refused(&command(&mut raw, &mesh, "restart", "dbb", b"{}")?, "unknown_component")?;
    refused(&command(&mut raw, &mesh, "reboot", "db", b"{}")?, "unknown_verb")?;
    refused(&command(&mut raw, &mesh, "restart", "db", b"{\"reason\": [1]}")?, "malformed")?;
    refused(&command(&mut raw, &mesh, "restart", "db", b"{\"expiresAt\":\"2001-01-01T00:00:00Z\"}")?, "expired")?;
    refused(
        &command(&mut raw, &mesh, "restart", "db", format!("{{\"reason\":{}1{}}}", "[".repeat(9_000), "]".repeat(9_000)).as_bytes())?,
        "malformed",
    )?;
    let subject = format!("{}.command.orchestrator.restart.db", mesh.name());
    let receipt = v1::Receipt::decode(raw.request(&subject, b"\xff\xff\xff\xff no message at all")?.as_slice())?;
    ensure!(!receipt.accepted && receipt.code == "malformed", "{receipt:?}");
    let protobuf = v1::Command { reason: "as protobuf".to_owned(), ..Default::default() }.encode_to_vec();
    let receipt = v1::Receipt::decode(raw.request(&format!("{}.command.orchestrator.stop.nobody", mesh.name()), &protobuf)?.as_slice())?;
    ensure!(!receipt.accepted && receipt.code == "unknown_component" && receipt.command_id.len() == 32, "{receipt:?}");
    nothing_has_happened(&mesh, &before)?;
    mesh.end()
}

#[test]
fn poison_on_any_subject_is_put_aside_and_nobody_panics() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, mut raw, name) = (pids(&mesh)?, mesh.raw()?, mesh.name().to_owned());
    let poison: [&[u8]; 6] = [b"", b"\0", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"{\"id\":", b"not a message", &[0x0a; 200_000]];
    let sent = poison.len() as u64;
    for bytes in poison {
        for subject in [
            format!("{name}.event.heart.db.component_exited"),
            format!("{name}.event.mesh.a.node_joined"),
            format!("{name}.command.orchestrator.apply.pair"),
            format!("{name}.heartbeat.component.db.0"),
            format!("{name}.heartbeat.node.a"),
            format!("{name}.log.heart.db"),
            format!("{name}.query.registry.status"),
            format!("{name}.query.orchestrator.plan"),
            format!("{name}.node.a.why"),
            format!("{name}.node.a.logs"),
            format!("$KV.{name}_intents.desired.db.0"),
            format!("$KV.{name}_intents.recovery.db.0"),
            format!("$KV.{name}_intents.nobody.knows.this.key"),
            format!("$KV.{name}_observed.components.db.0"),
        ] {
            raw.publish(&subject, bytes)?;
        }
    }
    wait_for("the poison counted", SOON, || Ok((mesh.observed()?.dead_letters >= sent).then_some(())))?;
    nothing_has_happened(&mesh, &before)?;
    // The orchestrator's word on db was overwritten: it must be able to write it again.
    mesh.razar(&["restart", "db"])?.ok()?;
    ensure!(mesh.component("db")?.incarnation.is_some_and(|i| i.generation >= 2));
    mesh.end()
}

#[test]
fn what_is_newer_than_this_mesh_is_survived() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, mut raw, name) = (pids(&mesh)?, mesh.raw()?, mesh.name().to_owned());
    let unknown = mesh.observed()?.unknown_events;
    let db = v1::InstanceId { component: "db".to_owned(), ordinal: 0 };
    let event = |id: &str, kind: &str, fact| v1::Event {
        id: id.to_owned(),
        kind: kind.to_owned(),
        chakra: "heart".to_owned(),
        instance: Some(db.clone()),
        source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
        mesh: name.clone(),
        fact,
        ..Default::default()
    };
    // A kind of tomorrow in a field of tomorrow: number 900, as bytes.
    let mut tomorrow = event("tomorrow-1", "component_sang", None).encode_to_vec();
    tomorrow.extend_from_slice(&[0xa2, 0x38, 0x03, b'l', b'a', b'!']);
    raw.publish(&format!("{name}.event.heart.db.component_sang"), &tomorrow)?;
    // A value of tomorrow in an enum of today.
    let degraded = Fact::ComponentDegraded(v1::ComponentDegraded { kind: 99, detail: "of tomorrow".to_owned() });
    raw.publish(
        &format!("{name}.event.heart.db.component_degraded"),
        &event("tomorrow-2", "component_degraded", Some(degraded)).encode_to_vec(),
    )?;
    wait_for("it is counted", SOON, || Ok((mesh.observed()?.unknown_events > unknown).then_some(())))?;
    let told = mesh.events()?;
    ensure!(told.iter().any(|e| e.kind == "component_sang"), "razar events shows what it does not know");
    nothing_has_happened(&mesh, &before)?;
    mesh.end()
}

/// A component's record in the projection's bucket: its bytes, and what they say.
fn stored_component(raw: &mut Raw, mesh: &Mesh, name: &str) -> Result<(Vec<u8>, v1::ObservedComponent)> {
    let stream = format!("KV_{}_observed", mesh.name());
    let key = format!(r#"{{"last_by_subj":"$KV.{}_observed.components.{name}.0"}}"#, mesh.name());
    let answer = raw.jetstream(&format!("STREAM.MSG.GET.{stream}"), &key)?;
    let bytes = base64(answer.pointer("/message/data").and_then(Value::as_str).context("data")?)?;
    let component = v1::ObservedComponent::decode(bytes.as_slice())?;
    Ok((bytes, component))
}

fn base64(text: &str) -> Result<Vec<u8>> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::try_from(digits.iter().position(|d| *d == digit).context("a digit of base64")?)?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff)?);
        }
    }
    Ok(bytes)
}

#[test]
fn the_registrys_projection_is_the_same_when_it_was_wiped() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let mut raw = mesh.raw()?;
    let names = ["db", "api", "broker", "provision"];
    let mut stored = || names.iter().map(|name| stored_component(&mut raw, &mesh, name)).collect::<Result<Vec<_>>>();
    let told = || names.iter().map(|name| mesh.component(name)).collect::<Result<Vec<_>>>();
    let before = wait_for("the bucket as the answers are", SOON, || {
        let stored = stored()?;
        Ok((stored.iter().map(|(_, component)| component.clone()).collect::<Vec<_>>() == told()?).then_some(stored))
    })?;
    mesh.raw()?.jetstream(&format!("STREAM.PURGE.KV_{}_observed", mesh.name()), "")?;
    ensure!(stored().is_err(), "it was not wiped");
    signal(mesh.pid("registry")?, Signal::KILL)?;
    let after = wait_for("the projection written again", SOON, || Ok(stored().ok()))?;
    ensure!(before == after, "{before:?}\n{after:?}");
    mesh.end()
}

#[test]
fn every_agent_is_a_micro_service() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let mut raw = mesh.raw()?;
    for agent in ["registry", "orchestrator", "razar-node-a"] {
        let answer: Value = serde_json::from_slice(&raw.request(&format!("$SRV.INFO.{agent}"), b"")?)?;
        ensure!(answer["endpoints"].as_array().is_some_and(|e| !e.is_empty()), "{answer}");
    }
    mesh.end()
}
