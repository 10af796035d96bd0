//! A stack boots, is changed, and goes down again: `razar` as it is typed, with the programs, a broker and components as they are.

use std::{collections::BTreeMap, fs, io::ErrorKind, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Said, Stack, alive, http_get, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// `web` after `api` after `db`; `cache` by itself.
fn chain(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("chain")
        .with(Part::demo("db", mesh.port(0))?.arg("--start-delay=100ms"))
        .with(Part::demo("api", mesh.port(1))?.after("db"))
        .with(Part::demo("web", mesh.port(2))?.after("api"))
        .with(Part::demo("cache", mesh.port(3))?))
}

fn pids(mesh: &Mesh) -> Result<BTreeMap<String, u32>> {
    Ok(mesh.pids()?.into_iter().collect())
}

fn missions_ended(mesh: &Mesh) -> Result<Vec<v1::MissionCompleted>> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::MissionCompleted(m)) => Some(m),
        _ => None,
    };
    Ok(mesh.events()?.into_iter().filter_map(of).collect())
}

#[test]
fn a_stack_boots_in_the_order_of_its_dependencies_and_goes_down_without_a_trace() -> Result<()> {
    let mesh = Mesh::start(chain)?;
    let events = mesh.events()?;
    let place = |kind: &str, name: &str| {
        let is = |e: &v1::Event| e.kind == kind && e.instance.as_ref().is_some_and(|i| i.component == name);
        events.iter().position(is).with_context(|| format!("no {kind} of {name}"))
    };
    for (first, then) in [("db", "api"), ("api", "web")] {
        ensure!(place("component_ready", first)? < place("component_started", then)?, "{then} started before {first} was ready");
    }
    for port in 0..4 {
        ensure!(http_get(mesh.port(port), "/health")?.starts_with("HTTP/1.1 200"));
    }
    let said = mesh.razar(&["status", "--check"])?;
    ensure!(said.code == 0, "{} {}", said.out, said.err);
    // The broker's timers may be late, nobody else's (ADR 40).
    let ours = fs::read_to_string("/proc/self/timerslack_ns")?;
    for (name, expected) in [("broker", "1000000"), ("registry", ours.trim()), ("web", ours.trim())] {
        match fs::read_to_string(format!("/proc/{}/timerslack_ns", mesh.pid(name)?)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => println!("another's timer slack may not be read here: not tested"),
            slack => ensure!(slack?.trim() == expected, "{name}"),
        }
    }
    mesh.end()
}

/// Who follows a mesh in the foreground is not left behind when another terminal ends it, or when nobody heals it any more.
#[test]
fn up_in_the_foreground_ends_with_the_mesh() -> Result<()> {
    let mesh = Mesh::new()?;
    let file = mesh.file(&chain(&mesh)?)?;
    let ready = || wait_for("web ready", SOON, || Ok(mesh.pid("web").ok()));
    let followed = |end: &dyn Fn() -> Result<()>| -> Result<Said> {
        thread::scope(|scope| {
            let up = scope.spawn(|| mesh.razar(&["up", &file]));
            let ended = ready().and_then(|_| end());
            let said = up.join().map_err(|_| anyhow!("up panicked"))?;
            ended.and(said)
        })
    };
    let said = followed(&|| mesh.razar(&["down"])?.ok().map(drop))?.ok()?;
    ensure!(said.err.contains("the mesh was ended; state kept"), "{}", said.err);
    // Its guard and its agent, so that neither brings the other back.
    let said = followed(&|| {
        let both = [mesh.guard_pid()?, mesh.agent_pid()?];
        both.into_iter().try_for_each(|pid| signal(pid, Signal::STOP))?;
        both.into_iter().try_for_each(|pid| signal(pid, Signal::KILL))
    })?;
    let said = said.is(69)?;
    ensure!(said.err.contains("the mesh's node is gone; what runs goes on") && said.err.contains("next: "), "{}", said.err);
    mesh.up(&chain(&mesh)?)?.ok()?;
    mesh.end()
}

#[test]
fn a_second_up_of_the_same_file_touches_nothing() -> Result<()> {
    let mesh = Mesh::start(chain)?;
    let before = pids(&mesh)?;
    mesh.up(&chain(&mesh)?)?.ok()?;
    ensure!(pids(&mesh)? == before, "a process changed");
    ensure!(mesh.events_of("db", "component_started")?.len() == 1);
    mesh.end()
}

#[test]
fn a_changed_file_touches_only_what_changed() -> Result<()> {
    let mesh = Mesh::start(chain)?;
    let before = pids(&mesh)?;
    let changed = chain(&mesh)?.with(Part::demo("cache", mesh.port(3))?.arg("--log-every=1s")).with(Part::demo("new", mesh.port(4))?);
    mesh.up(&changed)?.ok()?;
    let after = pids(&mesh)?;
    for name in ["db", "api", "web"] {
        ensure!(before.get(name) == after.get(name), "{name} was touched");
    }
    ensure!(before.get("cache") != after.get("cache"), "cache has the old command");
    ensure!(after.contains_key("new"));
    mesh.end()
}

#[test]
fn a_profile_is_switched_as_a_difference() -> Result<()> {
    let stack = |mesh: &Mesh| -> Result<Stack> {
        let profiles = json!({ "small": { "include": ["db", "api", "cache"] }, "full": { "include": ["db", "api", "web", "cache"] } });
        Ok(chain(mesh)?.set("profiles", profiles))
    };
    let mesh = Mesh::new()?;
    mesh.up_with(&stack(&mesh)?, &["--profile", "small"])?.ok()?;
    let small = pids(&mesh)?;
    ensure!(small.keys().collect::<Vec<_>>() == ["api", "cache", "db"], "{small:?}");
    mesh.razar(&["profile", "full"])?.ok()?;
    mesh.wait_ready("web")?;
    let full = pids(&mesh)?;
    ensure!(small.iter().all(|(name, pid)| full.get(name) == Some(pid)), "what stays was touched: {small:?} {full:?}");
    let web = *full.get("web").context("web")?;
    mesh.razar(&["profile", "small"])?.ok()?;
    wait_for("web gone", SOON, || Ok((!alive(web)).then_some(())))?;
    let again = pids(&mesh)?;
    ensure!(small.iter().all(|(name, pid)| again.get(name) == Some(pid)), "what stays was touched: {small:?} {again:?}");
    mesh.end()
}

#[test]
fn the_name_of_another_stack_is_refused() -> Result<()> {
    let mesh = Mesh::start(chain)?;
    let before = pids(&mesh)?;
    let said = mesh.up(&Stack::new("other").with(Part::demo("db", mesh.port(0))?))?.is(77)?;
    ensure!(said.err.contains("refused") && said.err.contains("chain"), "{}", said.err);
    ensure!(pids(&mesh)? == before);
    mesh.end()
}

#[test]
fn a_plan_without_a_fifth_of_the_stack_needs_approval() -> Result<()> {
    let mesh = Mesh::start(chain)?;
    let before = pids(&mesh)?;
    let fewer = chain(&mesh)?.without("web").without("cache");
    let said = mesh.up(&fewer)?.is(77)?;
    ensure!(said.err.contains("--approve"), "it says what to type: {}", said.err);
    ensure!(pids(&mesh)? == before, "a refused plan changes nothing");
    mesh.up_with(&fewer, &["--approve"])?.ok()?;
    wait_for("the others gone", SOON, || Ok((mesh.processes().iter().all(|p| !p.command.contains("--name=web"))).then_some(())))?;
    mesh.end()
}

#[test]
fn what_crashes_on_boot_is_isolated_blocks_its_dependents_and_the_boot_is_not_well() -> Result<()> {
    let mesh = Mesh::new()?;
    let bad = Part::demo("db", mesh.port(0))?.arg("--fail-first=100").arg("--error=no space on device").arg("--state=db.starts");
    let restart = json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } });
    let said = mesh.up(&chain(&mesh)?.with(bad.set("restart", restart)))?.is(1)?;
    ensure!(said.err.contains("no space on device") || said.out.contains("no space on device"), "{said:?}");
    let failed = mesh.events_of("db", "component_failed")?;
    ensure!(failed.len() == 2, "its node and one rung: {failed:?}");
    let Some(Fact::ComponentFailed(fact)) = failed.first().and_then(|e| e.fact.clone()) else { anyhow::bail!("no fact") };
    ensure!(fact.last_error == "no space on device" && fact.restarts == 3, "{fact:?}");
    ensure!(mesh.events_of("api", "component_started")?.is_empty(), "api was started without its dependency");
    ensure!(mesh.component("api")?.state() == v1::InstanceState::Waiting);
    ensure!(mesh.component("cache")?.state() == v1::InstanceState::Ready, "what does not depend on it runs");
    ensure!(missions_ended(&mesh)?.iter().any(|m| m.quarantined == ["db"] && m.blocked == ["api", "web"]), "{:?}", missions_ended(&mesh)?);
    ensure!(mesh.razar(&["status", "--check"])?.code == 2, "a required component failed");
    mesh.end()
}

#[test]
fn who_starts_slowly_is_not_killed() -> Result<()> {
    let mesh = Mesh::start(|mesh| Ok(Stack::new("slow").with(Part::demo("model", mesh.port(0))?.arg("--start-delay=6s"))))?;
    ensure!(mesh.events_of("model", "component_started")?.len() == 1);
    ensure!(mesh.events_of("model", "component_exited")?.is_empty());
    mesh.end()
}

#[test]
fn who_lies_about_being_ready_is_found_out_by_a_probe_of_the_port() -> Result<()> {
    let mesh = Mesh::new()?;
    let liar = Part::demo("liar", mesh.port(0))?
        .arg("--lie")
        .arg(&format!("--health-port={}", mesh.port(1)))
        .set("ports", json!([mesh.port(0), mesh.port(1)]))
        .set("readiness", json!({ "tcp": { "port": mesh.port(0) }, "period": "100ms" }))
        .set("startup", json!({ "tcp": { "port": mesh.port(0) }, "period": "100ms", "failure_threshold": 10 }))
        .unset("liveness");
    let stack = Stack::new("lie").with(liar).with(Part::demo("api", mesh.port(2))?.after("liar"));
    let said = mesh.up_with(&stack, &["--timeout", "8s"])?;
    ensure!(said.code != 0, "{said:?}");
    ensure!(mesh.events_of("api", "component_started")?.is_empty(), "api was started on a lie");
    ensure!(mesh.events_of("liar", "component_ready")?.is_empty());
    mesh.end()
}

#[test]
fn a_wrong_file_is_refused_with_every_error_and_starts_nothing() -> Result<()> {
    let mesh = Mesh::new()?;
    let path = mesh.dir().join("razar.yaml");
    let file = path.to_string_lossy().into_owned();
    let deep = "[".repeat(5_000);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n";
    let wrong: [&[u8]; 6] = [b"", b"\0\xff\xfe", b"name: x\n", deep.as_bytes(), bomb.as_bytes(), b"name: [\n"];
    for text in wrong {
        std::fs::write(&path, text)?;
        let said = mesh.razar(&["up", "--detach", &file])?.is(64)?;
        ensure!(said.err.contains("razar.yaml"), "it says where: {}", said.err);
    }
    let two = "name: x\ncomponents:\n  a: { chakra: heart, command: [x], readiness: none, dependson: {} }\n  b: { chakra: heart, command: [x] }\n";
    std::fs::write(&path, two)?;
    let said = mesh.razar(&["validate", &file])?.is(64)?;
    ensure!(said.out.contains("unknown_key") && said.out.contains("no_probe"), "{said:?}");
    ensure!(mesh.processes().is_empty(), "a wrong file started something");
    Ok(())
}

#[test]
fn the_state_survives_a_restart_of_everything() -> Result<()> {
    let once = |mesh: &Mesh| -> Result<Stack> {
        let count = mesh.dir().join("migrations").to_string_lossy().into_owned();
        let migrate = Part::shell("migrate", &format!("echo once >> {count}")).set("one_shot", json!(true)).unset("readiness");
        Ok(chain(mesh)?.with(migrate))
    };
    let mesh = Mesh::start(once)?;
    let before: Vec<String> = mesh.events()?.into_iter().map(|e| e.id).collect();
    mesh.razar(&["down"])?.ok()?;
    ensure!(mesh.processes().is_empty(), "left: {:?}", mesh.processes());
    mesh.up(&once(&mesh)?)?.ok()?;
    let after: Vec<String> = mesh.events()?.into_iter().map(|e| e.id).collect();
    ensure!(after.starts_with(&before), "what was told before is told no more");
    ensure!(std::fs::read_to_string(mesh.dir().join("migrations"))? == "once\n", "the one-shot ran twice");
    ensure!(pids(&mesh)?.len() >= 4);
    mesh.end()
}

#[test]
fn who_ignores_sigterm_is_killed_at_its_grace_and_that_is_said() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        Ok(Stack::new("deaf").with(Part::demo("deaf", mesh.port(0))?.arg("--ignore-term").set("stop", json!({ "grace": "500ms" }))))
    })?;
    let pid = mesh.pid("deaf")?;
    mesh.razar(&["stop", "deaf"])?.ok()?;
    wait_for("its end", Duration::from_secs(5), || Ok((!alive(pid)).then_some(())))?;
    let told = mesh.wait_event("deaf", "component_stopped", |_| true)?;
    let Some(Fact::ComponentStopped(stopped)) = told.fact else { anyhow::bail!("no fact") };
    ensure!(stopped.killed, "{stopped:?}");
    mesh.razar(&["start", "deaf"])?.ok()?;
    mesh.wait_ready("deaf")?;
    let said = mesh.razar(&["down"])?.ok()?;
    ensure!((said.out.clone() + &said.err).contains("killed"), "{said:?}");
    mesh.end_checked()
}
