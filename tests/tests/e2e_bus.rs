//! What comes over the bus from anybody: commands as JSON, poison, what is newer than this mesh (numbers of `reliability.md`'s catalogue in
//! brackets). The client is a few lines on a socket, none of the mesh's. Streams that somebody deletes are in `e2e_stores.rs`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use prost::Message;
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, Raw, SOON, Stack, http_get, signal, wait_for};
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

/// Faults 14 and 31: a client that did not hear its receipt sends the command again.
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

/// Faults 19, 20 and 22.
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

/// Faults 17, 19 and 51.
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

/// A number of an agent's `/metrics`.
fn metric(mesh: &Mesh, agent: &str, name: &str) -> Result<u64> {
    let agents = mesh.observed()?.agents;
    let address = agents.into_iter().filter_map(|a| a.started).find(|s| s.kind == agent).context("the agent")?.http;
    let port = address.rsplit(':').next().context("a port")?.parse()?;
    let text = http_get(port, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).with_context(|| format!("no {name}:\n{text}"))?;
    Ok(line.trim().parse()?)
}

/// Faults 17, 19, 20 and 22: what is no message is counted on `/metrics` by each agent that meets it, told once as `dead_lettered`, and
/// passed over: what comes behind it is folded. A command of the largest size that the broker lets through is refused with a receipt.
#[test]
fn a_poison_message_is_counted_told_and_passed_over() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, mut raw, name) = (pids(&mesh)?, mesh.raw()?, mesh.name().to_owned());
    let counts = |agent: &str| metric(&mesh, agent, "razar_dead_letters_total");
    let was = (counts("registry")?, counts("orchestrator")?);
    let subject = format!("{name}.event.heart.db.component_exited");
    raw.publish(&subject, b"\xff\xff\xff\xff")?;
    wait_for("both to count it", SOON, || Ok((counts("registry")? > was.0 && counts("orchestrator")? > was.1).then_some(())))?;
    let told = |subject: &str| {
        let of = |e: v1::Event| matches!(e.fact, Some(Fact::DeadLettered(told)) if told.subject == subject && !told.why.is_empty());
        Ok::<_, anyhow::Error>(mesh.events()?.into_iter().filter(|e| of(e.clone())).count())
    };
    wait_for("the event of it", SOON, || Ok((told(&subject)? == 1).then_some(())))?;

    let restart = format!("{name}.command.orchestrator.restart.db");
    let largest = vec![0xff; razar_bus_schema::PAYLOAD_BYTES_MAX];
    let receipt = v1::Receipt::decode(raw.request(&restart, &largest)?.as_slice())?;
    ensure!(!receipt.accepted && receipt.code == "malformed", "{receipt:?}");
    wait_for("the event of the command", SOON, || Ok((told(&restart)? == 1).then_some(())))?;
    // One byte more is the broker's to refuse; it closes that connection, and nobody else's.
    let larger = vec![0xff; razar_bus_schema::PAYLOAD_BYTES_MAX + 1];
    ensure!(mesh.raw()?.publish(&restart, &larger).is_err(), "the broker took it");
    nothing_has_happened(&mesh, &before)?;
    ensure!(told(&subject)? == 1, "it was told again");
    mesh.end()
}

/// Fault 16: a node that did not hear that its events were stored sends them again, long after the broker has forgotten their ids. They
/// are in the stream twice, and change nothing.
#[test]
fn facts_told_again_past_the_dedupe_window_change_nothing() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let db = mesh.pid("db")?;
    signal(db, Signal::KILL)?;
    mesh.wait_event("db", "recovered", |_| true)?;
    let (before, mut raw, events) = (pids(&mesh)?, mesh.raw()?, mesh.events()?);
    let folded = |stored: usize| wait_for("all folded", SOON, || Ok((mesh.observed()?.applied_sequence >= stored as u64).then_some(())));
    let components = || Ok::<_, anyhow::Error>(mesh.observed()?.components);
    folded(events.len())?;
    let view = components()?;
    let of_node: Vec<&v1::Event> = events.iter().filter(|e| e.node_sequence.is_some()).collect();
    ensure!(of_node.iter().any(|e| e.kind == "component_exited"), "nothing worth repeating");
    for event in &of_node {
        let instance = event.instance.as_ref().map_or("a", |i| i.component.as_str());
        let chakra = if event.instance.is_some() { event.chakra.as_str() } else { "mesh" };
        // Without a message id the broker compares with nothing, as it does once the window is over.
        raw.publish(&format!("{}.event.{chakra}.{instance}.{}", mesh.name(), event.kind), &event.encode_to_vec())?;
    }
    // They are published without an answer.
    let repeated = events.len() + of_node.len();
    let stored = wait_for("the repeated to be stored", SOON, || Ok(Some(mesh.events()?.len()).filter(|stored| *stored >= repeated)))?;
    folded(stored)?;
    ensure!(components()? == view, "the projection changed:\n{view:?}\n{:?}", components()?);
    nothing_has_happened(&mesh, &before)?;
    ensure!(mesh.component("db")?.incarnation.is_some_and(|i| i.generation == 1 && i.start == 3), "{:?}", mesh.component("db")?);
    mesh.end()
}

/// Fault 30: fifty writers at once. Clients ask for the same at the same moment, each under an id of its own. Each command has one effect
/// and one end.
#[test]
fn fifty_writers_at_once_have_one_effect_each() -> Result<()> {
    const WRITERS: usize = 50;
    let mesh = Mesh::start(pair)?;
    let was = mesh.component("db")?.incarnation.context("db")?.generation;
    let receipts: Vec<Result<Value>> = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let mesh = &mesh;
            move || command(&mut mesh.raw()?, mesh, "restart", "db", format!(r#"{{"commandId":"writer-{n}"}}"#).as_bytes())
        };
        let asked: Vec<_> = (0..WRITERS).map(|n| scope.spawn(ask(n))).collect();
        asked.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?).collect()
    });
    for receipt in receipts {
        let receipt = receipt?;
        ensure!(receipt["accepted"] == true, "{receipt}");
    }
    for n in 0..WRITERS {
        let id = format!("writer-{n}");
        wait_for(&format!("the end of {id}"), 3 * SOON, || Ok((!outcomes(&mesh, &id)?.is_empty()).then_some(())))?;
        let ends = outcomes(&mesh, &id)?;
        ensure!(ends.len() == 1 && ends.iter().all(|end| end.result == "done"), "{ends:?}");
    }
    let now = mesh.component("db")?.incarnation.context("db")?.generation;
    ensure!(now == was + WRITERS as u64, "{WRITERS} restarts led from generation {was} to {now}");
    mesh.end()
}

/// Faults 21 and 22.
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
    let degraded = Fact::ComponentDegraded(v1::ComponentDegraded { kind: 99, detail: "of tomorrow".to_owned(), ..Default::default() });
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
    let (mesh, key) = (mesh.name(), format!("components.{name}.0"));
    let bytes = raw.newest(&format!("KV_{mesh}_observed"), &format!("$KV.{mesh}_observed.{key}"))?;
    let component = v1::ObservedComponent::decode(bytes.as_slice())?;
    Ok((bytes, component))
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
