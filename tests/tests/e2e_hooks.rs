//! Hooks and the error registry with the programs as they are: a chakra's hook that cures, one that hangs, the hook of escalations, and a
//! known error that says where the ladder begins.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::{self, InstanceState as State, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Stack, alive, binary, wait_for};
use serde_json::{Value, json};

/// Two rungs with their backoff and soak.
const LADDER: Duration = Duration::from_secs(90);

fn script(mesh: &Mesh, name: &str, text: &str) -> Result<PathBuf> {
    let path = mesh.dir().join(name);
    fs::write(&path, format!("#!/bin/sh\nDIR={}\n{text}\n", mesh.dir().display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// `store`, which fails for as long as the file `broken` is there, in a chakra whose hook is `hook`; `other` runs beside it.
fn stack(mesh: &Mesh, heal: &[&str], hook: Value, figures: Value) -> Result<Stack> {
    let stack = Stack::new("hooks").with(store(mesh, heal)?).with(Part::demo("other", mesh.port(1))?);
    Ok(stack.set("chakras", json!({ "heart": { "heal_hook": hook } })).set("mesh", figures))
}

fn store(mesh: &Mesh, heal: &[&str]) -> Result<Part> {
    let broken = mesh.dir().join("broken");
    fs::write(&broken, "")?;
    let store = Part::demo("store", mesh.port(0))?
        .arg(&format!("--break-file={}", broken.display()))
        .arg("--break-error=ConnectionError: no route to 10.0.0.7")
        .set("state", json!([broken]))
        .set("heal", json!(heal))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    Ok(store)
}

fn wait_event(mesh: &Mesh, name: &str, kind: &str) -> Result<v1::Event> {
    wait_for(&format!("{kind} of {name}"), LADDER, || Ok(mesh.events_of(name, kind)?.into_iter().next()))
}

fn tries(mesh: &Mesh) -> Result<Vec<String>> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::RungTried(t)) => Some(format!("{} {} {}", t.rung, t.outcome, t.next).trim_end().to_owned()),
        _ => None,
    };
    Ok(mesh.events_of("store", "rung_tried")?.into_iter().filter_map(of).collect())
}

fn hook_ran(event: &v1::Event) -> Result<&v1::HookRan> {
    match &event.fact {
        Some(Fact::HookRan(ran)) => Ok(ran),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn a_chakras_hook_cures_what_no_restart_does() -> Result<()> {
    let mesh = Mesh::new()?;
    let heal =
        script(&mesh, "heal.sh", "echo $RAZAR_COMPONENT of $RAZAR_CHAKRA: $RAZAR_INCIDENT; rm $DIR/broken; echo token=hunter22 mended")?;
    mesh.up(&stack(&mesh, &["restart", "chakra_hook"], json!({ "command": [heal] }), json!({}))?)?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "chakra_hook"), "{recovered:?}");
    ensure!(tries(&mesh)? == ["restart failed chakra_hook", "chakra_hook ok"], "{:?}", tries(&mesh)?);
    let told = mesh.events_of("store", "hook_ran")?;
    ensure!(told.len() == 1, "{told:?}");
    let ran = hook_ran(&told[0])?;
    ensure!((ran.outcome.as_str(), ran.output.as_str()) == ("ok", "store of heart: store@1.1\ntoken=*** mended"), "{ran:?}");
    ensure!(told[0].incident == recovered.incident, "it belongs to the incident");
    let story = mesh.razar(&["incident", "store"])?.ok()?.out;
    ensure!(story.contains("heal.sh ok after") && story.contains("mended"), "{story}");
    mesh.wait_ready("store")?;
    mesh.end()
}

#[test]
fn a_hook_that_hangs_fails_its_rung_and_people_are_told() -> Result<()> {
    let mesh = Mesh::new()?;
    let heal = script(&mesh, "heal.sh", "setsid sleep 1000 & echo $! > $DIR/child; echo begun; echo $$ > $DIR/pid; sleep 1000")?;
    let page = script(&mesh, "page.sh", "echo \"$RAZAR_SEVERITY $RAZAR_COMPONENT $RAZAR_ABOUT\" >> $DIR/pages; echo sent")?;
    let figures = json!({ "escalation_hook": { "command": [page], "timeout": "10s" } });
    mesh.up(&stack(&mesh, &["restart", "chakra_hook"], json!({ "command": [heal], "timeout": "1s" }), figures)?)?;
    let failed = wait_event(&mesh, "store", "recovery_failed")?;
    ensure!(tries(&mesh)? == ["restart failed chakra_hook", "chakra_hook failed quarantine"], "{:?}", tries(&mesh)?);
    let ran = mesh.wait_event("store", "hook_ran", |e| hook_ran(e).is_ok_and(|ran| ran.hook == "chakra"))?;
    ensure!(hook_ran(&ran)?.outcome == "timed_out" && hook_ran(&ran)?.output == "begun", "{ran:?}");
    let Some(Fact::RecoveryFailed(fact)) = &failed.fact else { anyhow::bail!("no fact") };
    ensure!(fact.last_error.contains("was killed after 1.0s: begun"), "{fact:?}");
    for file in ["pid", "child"] {
        let pid: u32 = fs::read_to_string(mesh.dir().join(file))?.trim().parse()?;
        ensure!(!alive(pid), "{file} {pid} lives on");
    }
    wait_for("store quarantined", SOON, || Ok((mesh.component("store")?.state() == State::Quarantined).then_some(())))?;
    let status = mesh.razar(&["status"])?.out;
    ensure!(status.contains("store") && status.contains("; escalated P"), "{status}");
    // The same error and the end of the ladder, each told once and paged once.
    let pages = wait_for("two pages", SOON, || {
        let pages = fs::read_to_string(mesh.dir().join("pages")).unwrap_or_default();
        Ok((pages.lines().count() >= 2).then_some(pages))
    })?;
    ensure!(pages.lines().any(|l| l.starts_with("P3 store store: the same error 3 times")), "{pages}");
    ensure!(pages.lines().any(|l| l.starts_with("P2 store store: no rung helped, it is isolated")), "{pages}");
    let of_pages = |e: &v1::Event| hook_ran(e).is_ok_and(|ran| ran.hook == "escalation" && ran.outcome == "ok" && ran.output == "sent");
    wait_for("both told", SOON, || {
        let told = mesh.events()?.iter().filter(|e| e.kind == "hook_ran" && of_pages(e)).count();
        Ok((told == 2).then_some(()))
    })?;
    ensure!(mesh.component("other")?.state() == State::Ready);
    mesh.end()
}

#[test]
fn a_known_error_is_named_and_says_where_the_ladder_begins() -> Result<()> {
    let mesh = Mesh::new()?;
    fs::write(
        mesh.dir().join("errors.yaml"),
        "errors:\n  - name: no-route\n    pattern: 'no route to (?<host>\\S+)'\n    issue: external\n    fix: mend the route to {host}\n    begin_with: clear_state\n",
    )?;
    let heal = script(&mesh, "heal.sh", "exit 0")?;
    let errors = mesh.dir().join("errors.yaml");
    mesh.up(&stack(&mesh, &["restart", "clear_state"], json!({ "command": [heal] }), json!({ "errors": errors }))?)?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "clear_state"), "{recovered:?}");
    ensure!(tries(&mesh)? == ["clear_state ok"], "{:?}", tries(&mesh)?);
    let failed = wait_event(&mesh, "store", "component_failed")?;
    let Some(Fact::ComponentFailed(v1::ComponentFailed { issue: Some(issue), .. })) = &failed.fact else { anyhow::bail!("{failed:?}") };
    ensure!((issue.known.as_str(), issue.suggested_fix.as_str()) == ("no-route", "mend the route to 10.0.0.7"), "{issue:?}");
    let story = mesh.razar(&["incident", "store"])?.ok()?.out;
    ensure!(story.contains("known as no-route: mend the route to 10.0.0.7"), "{story}");
    mesh.end()
}

#[test]
fn a_wrong_pattern_and_a_hook_that_is_not_there_are_refused_with_file_and_line() -> Result<()> {
    let mesh = Mesh::new()?;
    fs::write(mesh.dir().join("errors.yaml"), "errors:\n  - name: open\n    pattern: 'no (route'\n    issue: external\n    fix: x\n")?;
    let figures = json!({ "errors": mesh.dir().join("errors.yaml") });
    let file = mesh.file(&stack(&mesh, &["restart"], json!({ "command": ["./nowhere/heal.sh"] }), figures)?)?;
    for verb in ["validate", "up"] {
        let said = mesh.razar(&[verb, &file])?.is(64)?;
        let said = format!("{}{}", said.out, said.err);
        ensure!(said.contains("errors.yaml:3:14 `no (route`: unclosed group"), "{verb}: {said}");
        ensure!(said.contains("error[hook_missing]") && said.contains("nowhere/heal.sh: no such file"), "{verb}: {said}");
    }
    ensure!(mesh.processes().is_empty(), "nothing was started");
    Ok(())
}

/// Fault 1: the node's agent dies while a hook runs; the next one ends what is left of it and runs it once more, and the ladder goes on.
#[test]
fn a_hook_goes_on_whoever_dies() -> Result<()> {
    let mesh = Mesh::new()?;
    let heal = script(&mesh, "heal.sh", "echo $$ >> $DIR/pids; [ $(wc -l < $DIR/pids) -ge 2 ] || sleep 1000; rm $DIR/broken")?;
    // Its mission waits for the ladder, and so for the hook.
    mesh.up_with(&stack(&mesh, &["chakra_hook"], json!({ "command": [heal], "timeout": "10m" }), json!({}))?, &["--no-wait"])?;
    let pids = || -> Vec<u32> {
        let text = fs::read_to_string(mesh.dir().join("pids")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    };
    let first = wait_for("the hook to run", LADDER, || Ok(pids().first().copied()))?;
    razar_tests::e2e::signal(mesh.agent_pid()?, rustix::process::Signal::KILL)?;
    let recovered = wait_event(&mesh, "store", "recovered").context("after the agent's death")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "chakra_hook"), "{recovered:?}");
    ensure!(!alive(first), "two of it would have run at once");
    ensure!(pids().len() == 2, "{:?}", pids());
    ensure!(tries(&mesh)? == ["chakra_hook ok"], "{:?}", tries(&mesh)?);
    mesh.end()
}

#[test]
fn a_chakra_that_is_down_has_its_hook_run_before_any_other_rung() -> Result<()> {
    let mesh = Mesh::new()?;
    let heal = script(&mesh, "heal.sh", "rm $DIR/broken")?;
    let rungs = ["restart", "clear_state", "chakra_hook"];
    // Its node is still at it when the watchdog finds its chakra down.
    let slow = store(&mesh, &rungs)?.set("restart", json!({ "backoff": { "first": "0s", "base": "4s", "max": "8s" } }));
    let stack = stack(&mesh, &rungs, json!({ "command": [heal] }), json!({}))?.with(slow);
    fs::remove_file(mesh.dir().join("broken"))?;
    mesh.up(&stack)?.ok()?;
    fs::write(mesh.dir().join("broken"), "")?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "chakra_hook"), "{recovered:?}");
    ensure!(tries(&mesh)? == ["chakra_hook ok"], "{:?}", tries(&mesh)?);
    let told = |kind: &str| -> Result<usize> { Ok(mesh.events()?.iter().filter(|e| e.kind == kind && e.chakra == "heart").count()) };
    wait_for("the chakra to be well", SOON, || Ok((told("chakra_recovered")? == 1).then_some(())))?;
    ensure!(told("chakra_down")? == 1, "it went down once");
    mesh.end()
}

fn copied(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copied(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// `examples/healing`, as its README walks through it.
#[test]
fn the_example_of_healing_does_as_it_says() -> Result<()> {
    let mesh = Mesh::new()?.with_env("RAZAR_DEMO_SERVICE", &binary("razar-demo-service")?.to_string_lossy());
    let dir = mesh.dir().join("healing");
    copied(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/healing"), &dir)?;
    mesh.razar(&["up", "--detach", &dir.join("razar.yaml").to_string_lossy(), "--timeout", "60s"])?.ok()?;
    let rung = |name: &str| match wait_event(&mesh, name, "recovered")?.fact {
        Some(Fact::Recovered(recovered)) => Ok(recovered.rung),
        other => anyhow::bail!("{other:?}"),
    };
    fs::create_dir_all(dir.join("cache"))?;
    fs::write(dir.join("cache/index.json"), "{")?;
    ensure!(rung("search")? == "clear_state" && !dir.join("cache/index.json").exists());
    let story = mesh.razar(&["incident", "search"])?.ok()?.out;
    ensure!(story.contains("index-corrupt") && story.contains("remove cache/index.json"), "{story}");
    fs::write(dir.join("break/route"), "")?;
    ensure!(rung("gateway")? == "chakra_hook" && !dir.join("break/route").exists());
    let hook = wait_event(&mesh, "gateway", "hook_ran")?;
    ensure!(hook_ran(&hook)?.output.contains("restoring the route for gateway, which said: OSError"), "{hook:?}");
    fs::write(dir.join("break/weights"), "")?;
    wait_event(&mesh, "model", "quarantined")?;
    wait_for("somebody to be paged", SOON, || {
        Ok(fs::read_to_string(dir.join("pages.log")).is_ok_and(|pages| pages.contains("third_eye model: ")).then_some(()))
    })?;
    fs::remove_file(dir.join("break/weights"))?;
    mesh.razar(&["release", "model", "--note", "weights are back"])?.ok()?;
    mesh.wait_ready("model")?;
    mesh.end()
}

/// `store` stands on `mid`, which serves on while `base`, below it, has an incident of its own.
#[test]
fn what_fails_above_an_incident_waits_for_it_and_is_started_after_it() -> Result<()> {
    let mesh = Mesh::new()?;
    let heal = script(&mesh, "heal.sh", "while [ ! -e $DIR/go ]; do sleep 0.05; done; rm $DIR/base-broken")?;
    let broken = mesh.dir().join("base-broken");
    let base = Part::demo("base", mesh.port(2))?
        .arg(&format!("--break-file={}", broken.display()))
        .set("heal", json!(["chakra_hook"]))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    let mut stack = stack(&mesh, &["restart", "dependencies"], json!({ "command": [heal], "timeout": "60s" }), json!({}))?;
    stack = stack.with(base).with(Part::demo("mid", mesh.port(3))?.after("base"));
    let store = Part::demo("store", mesh.port(0))?
        .after("mid")
        .arg(&format!("--break-file={}", mesh.dir().join("broken").display()))
        .set("state", json!([mesh.dir().join("broken")]))
        .set("heal", json!(["restart", "dependencies"]))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    stack = stack.with(store);
    fs::remove_file(mesh.dir().join("broken"))?;
    mesh.up(&stack)?.ok()?;
    for (file, name) in [("base-broken", "base"), ("broken", "store")] {
        // It ends of this by itself.
        fs::write(mesh.dir().join(file), "")?;
        wait_event(&mesh, name, "component_failed")?;
    }
    let tried = wait_event(&mesh, "store", "rung_tried")?;
    ensure!(tried.reason.is_some_and(|r| r.text.contains("next dependencies: waits for base@1.1")), "{:?}", tries(&mesh)?);
    fs::write(mesh.dir().join("go"), "")?;
    wait_event(&mesh, "base", "recovered")?;
    let recovered = wait_event(&mesh, "store", "recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "dependencies"), "{recovered:?}");
    ensure!(tries(&mesh)? == ["restart failed dependencies", "dependencies ok"], "{:?}", tries(&mesh)?);
    mesh.end()
}
