//! Real processes are hurt, as `reliability.md`'s catalogue names it (numbers in brackets): agents, the broker and components are
//! killed, stopped and starved. What is sent over the bus is in `e2e_bus.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::{self, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Stack, alive, holds_for, http_get, parent_of, signal, told_once_and_in_order, wait_for};
use rustix::process::Signal;
use serde_json::json;

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

fn pids(mesh: &Mesh) -> Result<BTreeMap<String, u32>> {
    Ok(mesh.pids()?.into_iter().collect())
}

/// Living processes of the demo service by name.
fn copies(mesh: &Mesh, name: &str) -> Vec<u32> {
    let flag = format!("--name={name}");
    mesh.processes().iter().filter(|p| p.command.split(' ').any(|word| word == flag)).map(|p| p.pid).collect()
}

/// Waits until `name` lives in another process than `old`, ready, and alone.
fn wait_replaced(mesh: &Mesh, name: &str, old: u32) -> Result<u32> {
    wait_for(&format!("another {name} than {old}"), SOON, || {
        let seen = mesh.component(name)?;
        let pid = seen.process.as_ref().map(|p| p.pid).filter(|pid| *pid != old && alive(*pid));
        Ok(pid.filter(|_| seen.state() == v1::InstanceState::Ready))
    })
}

#[test]
fn agents_that_are_killed_come_back_and_no_component_notices() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let before = pids(&mesh)?;
    for agent in ["registry", "orchestrator"] {
        let old = mesh.pid(agent)?;
        signal(old, Signal::KILL)?;
        wait_replaced(&mesh, agent, old)?;
        ensure!(pids(&mesh)? == before, "{agent} took components with it");
    }
    for guard in [false, true] {
        let look = || if guard { mesh.guard_pid() } else { mesh.agent_pid() };
        let old = look()?;
        signal(old, Signal::KILL)?;
        wait_for("the node's process again", SOON, || Ok(look().ok().filter(|pid| *pid != old)))?;
        wait_for("the node's agent again, under its guard", SOON, || {
            Ok((parent_of(mesh.agent_pid()?) == Some(mesh.guard_pid()?)).then_some(()))
        })?;
        ensure!(pids(&mesh)? == before, "components were touched (guard killed: {guard})");
    }
    // It heals as before, and has forgotten and doubled nothing.
    for (name, old) in &before {
        signal(*old, Signal::KILL)?;
        wait_replaced(&mesh, name, *old)?;
        ensure!(copies(&mesh, name).len() == 1, "{name} is doubled");
    }
    told_once_and_in_order(&mesh.events()?)?;
    mesh.end()
}

#[test]
fn an_exit_while_the_agent_is_away_is_told_with_its_code() -> Result<()> {
    let script = "trap 'exit 42' USR1; while :; do sleep 0.05; done";
    let mesh = Mesh::start(|_| Ok(Stack::new("away").with(Part::shell("odd", script))))?;
    let (old, agent) = (mesh.pid("odd")?, mesh.agent_pid()?);
    // Stopped first, so that it cannot see the exit before it dies.
    signal(agent, Signal::STOP)?;
    signal(old, Signal::USR1)?;
    wait_for("the component's end", SOON, || Ok((!alive(old)).then_some(())))?;
    signal(agent, Signal::KILL)?;
    let told = mesh.wait_event("odd", "component_exited", |_| true)?;
    let Some(Fact::ComponentExited(exited)) = told.fact else { anyhow::bail!("no fact") };
    ensure!(exited.status.as_ref().and_then(|s| s.code) == Some(42) && exited.while_away, "{exited:?}");
    wait_replaced(&mesh, "odd", old)?;
    ensure!(mesh.events_of("odd", "component_exited")?.len() == 1, "told twice");
    mesh.end()
}

/// A component that says once that it is ready says so while no agent lives, or to one that dies before it has written that down.
#[test]
fn a_word_while_the_agent_is_away_is_heard_by_the_next() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (go, said) = (dir.path().join("go"), dir.path().join("said"));
    let says = "import os,socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])";
    let (wait, mark) = (format!("while [ ! -e {} ]; do sleep 0.02; done", go.display()), format!("touch {}", said.display()));
    let script = format!("{wait}; python3 -c \"{says}\" && {mark}; exec sleep 1000");
    fs::write(&go, "")?;
    let mesh = Mesh::start(|_| Ok(Stack::new("away").with(Part::shell("odd", &script).set("readiness", json!({ "notify": true })))))?;
    for guarded in [false, true] {
        let old = mesh.pid("odd")?;
        wait_for("its last word", SOON, || Ok(said.exists().then_some(())))?;
        fs::remove_file(&go)?;
        fs::remove_file(&said)?;
        signal(old, Signal::KILL)?;
        wait_for("another odd, not ready", SOON, || {
            let seen = mesh.component("odd")?;
            let is_new = seen.process.as_ref().is_some_and(|p| p.pid != old);
            Ok((is_new && seen.state() == v1::InstanceState::Starting).then_some(()))
        })?;
        let (agent, guard) = (mesh.agent_pid()?, mesh.guard_pid()?);
        if guarded {
            // It has the word before it, and dies before it looks.
            signal(agent, Signal::STOP)?;
        } else {
            // Nobody is there, and nobody comes yet.
            signal(guard, Signal::STOP)?;
            signal(agent, Signal::KILL)?;
        }
        fs::write(&go, "")?;
        wait_for("its word", SOON, || Ok(said.exists().then_some(())))?;
        if guarded {
            signal(agent, Signal::KILL)?;
        } else {
            signal(guard, Signal::CONT)?;
        }
        wait_replaced(&mesh, "odd", old)?;
        ensure!(mesh.agent_pid()? != agent && mesh.guard_pid()? == guard, "the agent was to be another, under the same guard");
    }
    ensure!(mesh.events_of("odd", "component_ready")?.len() == 3, "each life was ready once");
    mesh.end()
}

#[test]
fn a_killed_broker_costs_no_component_and_no_event() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, api) = (mesh.events()?, mesh.pid("api")?);
    let (db, broker) = (mesh.pid("db")?, mesh.pid("broker")?);
    signal(broker, Signal::KILL)?;
    signal(db, Signal::KILL)?;
    wait_for("the broker again", SOON, || Ok(mesh.pid("broker").ok().filter(|pid| *pid != broker)))?;
    wait_replaced(&mesh, "db", db)?;
    mesh.wait_event("db", "recovered", |_| true)?;
    let after = mesh.events()?;
    told_once_and_in_order(&after)?;
    let ids: BTreeSet<&str> = after.iter().map(|e| e.id.as_str()).collect();
    ensure!(before.iter().all(|e| ids.contains(e.id.as_str())), "what was told before is gone");
    ensure!(mesh.pid("api")? == api, "api was touched");
    mesh.end()
}

#[test]
fn a_stopped_broker_stops_nobody_else() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (db, api, broker) = (mesh.pid("db")?, mesh.pid("api")?, mesh.pid("broker")?);
    signal(broker, Signal::STOP)?;
    signal(db, Signal::KILL)?;
    wait_for("db healed without the bus", SOON, || {
        Ok(copies(&mesh, "db").into_iter().find(|pid| *pid != db && http_get(mesh.port(0), "/health").is_ok()))
    })?;
    holds_for("api lives", Duration::from_secs(5), || Ok(alive(api)))?;
    if alive(broker) {
        signal(broker, Signal::CONT)?;
    }
    mesh.wait_event("db", "recovered", |_| true)?;
    ensure!(mesh.pid("api")? == api && copies(&mesh, "db").len() == 1);
    told_once_and_in_order(&mesh.events()?)?;
    mesh.end()
}

#[test]
fn without_a_broker_a_machine_boots_and_heals_from_disk_and_tells_later() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let before: BTreeSet<String> = mesh.events()?.into_iter().map(|e| e.id).collect();
    ensure!(mesh.kill_all(), "something outlived SIGKILL");
    mesh.break_broker(true)?;
    mesh.guard()?;
    let up = |port: u16| wait_for("an answer without a broker", SOON, || Ok(http_get(port, "/health").ok()));
    up(mesh.port(0))?;
    up(mesh.port(1))?;
    let old = *copies(&mesh, "db").first().context("db")?;
    signal(old, Signal::KILL)?;
    let healed = wait_for("db healed", SOON, || {
        Ok(copies(&mesh, "db").into_iter().find(|pid| *pid != old && http_get(mesh.port(0), "/health").is_ok()))
    })?;
    let said = mesh.razar(&["status"])?.is(69)?;
    ensure!(said.err.contains("bus away"), "{}", said.err);
    // By hand: the node, which tried in vain for a while, waits up to a minute by now.
    mesh.broker_by_hand()?;
    wait_for("the registry again", SOON, || Ok(mesh.observed().ok()))?;
    wait_for("the recovery told", SOON, || Ok(mesh.events_of("db", "recovered")?.into_iter().find(|e| !before.contains(&e.id))))?;
    let events = mesh.events()?;
    told_once_and_in_order(&events)?;
    ensure!(before.iter().all(|id| events.iter().any(|e| &e.id == id)), "what was told before is gone");
    ensure!(mesh.pid("db")? == healed && copies(&mesh, "db").len() == 1 && copies(&mesh, "api").len() == 1);
    mesh.nobody_panicked()
}

#[test]
fn a_stopped_component_is_replaced_with_evidence() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (db, api) = (mesh.pid("db")?, mesh.pid("api")?);
    signal(db, Signal::STOP)?;
    wait_replaced(&mesh, "db", db)?;
    let told = mesh.wait_event("db", "component_unresponsive", |_| true)?;
    let Some(Fact::ComponentUnresponsive(hang)) = told.fact else { anyhow::bail!("no fact") };
    let evidence = hang.evidence.context("evidence")?;
    ensure!(evidence.window() == v1::HangWindow::Stopped && evidence.windows >= 1, "{evidence:?}");
    mesh.wait_event("db", "recovered", |_| true)?;
    ensure!(!alive(db), "the hung one lives");
    ensure!(mesh.pid("api")? == api, "api was touched");
    mesh.end()
}

#[test]
fn who_answers_no_more_is_replaced_though_its_process_lives() -> Result<()> {
    let mesh = Mesh::start(|mesh| Ok(Stack::new("stuck").with(Part::demo("db", mesh.port(0))?.arg("--hang-on=/deadlock"))))?;
    let db = mesh.pid("db")?;
    drop(http_get(mesh.port(0), "/deadlock"));
    wait_replaced(&mesh, "db", db)?;
    let told = mesh.wait_event("db", "component_unresponsive", |_| true)?;
    let Some(Fact::ComponentUnresponsive(hang)) = told.fact else { anyhow::bail!("no fact") };
    ensure!(hang.evidence.context("evidence")?.window() == v1::HangWindow::Asleep);
    mesh.end()
}

#[test]
fn descendants_die_with_their_component_and_the_port_is_free_again() -> Result<()> {
    let mesh = Mesh::new()?;
    let program = razar_tests::e2e::binary("razar-demo-service")?;
    // A session of its own, a port, and 50 that do nothing: all of it has to go when the parent does.
    let script = format!(
        "i=0; while [ $i -lt 50 ]; do sleep 3133 & i=$((i+1)); done; setsid {} --name=orphan --port={} & exec sleep 3132",
        program.display(),
        mesh.port(0)
    );
    let part = Part::shell("tree", &script).unset("readiness");
    let probe = json!({ "http": { "port": mesh.port(0), "path": "/health" } });
    let mesh = mesh.started(|mesh| Ok(Stack::new("tree").with(part.set("readiness", probe).set("ports", json!([mesh.port(0)])))))?;
    let (old, first) = (mesh.pid("tree")?, mesh.processes());
    let of_tree: Vec<u32> =
        first.iter().filter(|p| p.command.starts_with("sleep 313") || p.command.contains("--name=orphan")).map(|p| p.pid).collect();
    ensure!(of_tree.len() >= 52, "{first:?}");
    signal(old, Signal::KILL)?;
    wait_replaced(&mesh, "tree", old)?;
    ensure!(of_tree.iter().all(|pid| !alive(*pid)), "a descendant outlived its component");
    ensure!(copies(&mesh, "orphan").len() == 1);
    let told = mesh.wait_event("tree", "component_exited", |_| true)?;
    let Some(Fact::ComponentExited(exited)) = told.fact else { anyhow::bail!("no fact") };
    ensure!(exited.stragglers_killed >= 50, "{exited:?}");
    mesh.razar(&["stop", "tree"])?.ok()?;
    wait_for("the whole tree's end", SOON, || Ok(copies(&mesh, "orphan").is_empty().then_some(())))?;
    ensure!(!mesh.processes().iter().any(|p| p.command.starts_with("sleep 313")), "{:?}", mesh.processes());
    mesh.end()
}

#[test]
fn orphans_leave_no_zombies() -> Result<()> {
    // Each turn leaves a grandchild whose parent is gone before it.
    let script = "while :; do (sleep 0.05 & ) ; sleep 0.02; done";
    let mesh = Mesh::start(|_| Ok(Stack::new("orphans").with(Part::shell("sower", script))))?;
    let guard = mesh.guard_pid()?;
    let zombies = || {
        let of = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            Some(fields.next()? == "Z" && fields.next()?.parse() == Ok(guard))
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|pid| of(*pid) == Some(true)).count()
    };
    holds_for("few zombies wait for the guard", Duration::from_secs(3), || Ok(zombies() < 10))?;
    ensure!(mesh.events_of("sower", "component_exited")?.is_empty(), "an orphan's exit was taken for the component's");
    mesh.end()
}

#[test]
fn a_port_that_a_stranger_holds_is_named() -> Result<()> {
    let mesh = Mesh::new()?;
    let _stranger = TcpListener::bind(("127.0.0.1", mesh.port(0)))?;
    let restart = json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } });
    let stack = pair(&mesh)?.with(Part::demo("db", mesh.port(0))?.set("restart", restart));
    let said = mesh.up(&stack)?.is(1)?;
    let port = mesh.port(0).to_string();
    ensure!((said.out.clone() + &said.err).contains(&format!("127.0.0.1:{port}")), "{said:?}");
    let doctor = mesh.razar(&["doctor"])?.is(1)?;
    let text = doctor.out + &doctor.err;
    ensure!(text.contains(&port) && text.contains(&format!("pid {}", std::process::id())), "{text}");
    mesh.end()
}

/// Fault 47.
#[test]
fn a_flood_of_log_lines_is_bounded_and_hurts_nobody() -> Result<()> {
    const FILE: u64 = 1 << 20;
    const KEPT: u64 = 2;
    const BETWEEN_LOOKS: u64 = 50 << 20;
    let mesh = Mesh::start(|mesh| {
        // At most 100 MB a second.
        let script = "while :; do yes a line of the flood | head -c 10000000; sleep 0.1; done";
        let flood = Part::shell("flood", script).set("logs", json!({ "max_size": "1MiB", "keep": KEPT }));
        Ok(pair(mesh)?.with(flood))
    })?;
    let (before, db) = (pids(&mesh)?, mesh.pid("db")?);
    signal(db, Signal::KILL)?;
    wait_replaced(&mesh, "db", db)?;
    let mut most = 0;
    holds_for("the flood lives", Duration::from_secs(4), || {
        most = most.max(bytes_below(&mesh.state().join("logs"), "flood"));
        Ok(before.get("flood").is_some_and(|pid| alive(*pid)))
    })?;
    // What is written between two looks of the rotation comes on top.
    ensure!(most > FILE && most < (KEPT + 2) * FILE + BETWEEN_LOOKS, "{most} bytes of log");
    ensure!(mesh.razar(&["logs", "flood", "-n", "3"])?.ok()?.out.contains("a line of the flood"));
    mesh.end()
}

fn bytes_below(dir: &std::path::Path, name: &str) -> u64 {
    let of = |path: std::path::PathBuf| match fs::metadata(&path) {
        Ok(found) if found.is_dir() => bytes_below(&path, name),
        // What is on disk, not what a sparse file says.
        Ok(found) if path.to_string_lossy().contains(name) => std::os::unix::fs::MetadataExt::blocks(&found) * 512,
        _ => 0,
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| of(e.path())).sum()
}

#[test]
fn who_is_starved_of_cpu_is_not_killed() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        let hogs = (0..8).map(|n| Part::demo(&format!("hog-{n}"), mesh.port(n))).collect::<Result<Vec<_>>>()?;
        let stack = hogs.into_iter().fold(Stack::new("hogs"), |stack, hog| stack.with(hog.arg("--cpu-spin")));
        Ok(stack.with(Part::demo("quiet", mesh.port(9))?))
    })?;
    let before = pids(&mesh)?;
    holds_for("all live", Duration::from_secs(8), || Ok(before.values().all(|pid| alive(*pid))))?;
    ensure!(pids(&mesh)? == before);
    ensure!(mesh.events()?.iter().all(|e| e.kind != "component_unresponsive"), "somebody was found hung");
    mesh.end()
}

#[test]
fn an_agent_that_dies_during_a_boot_starts_nothing_twice() -> Result<()> {
    let mesh = Mesh::new()?.started(pair)?;
    let parts: Vec<String> = (2..8).map(|n| format!("part-{n}")).collect();
    let more = parts.iter().zip(2..).try_fold(pair(&mesh)?, |stack, (name, n)| {
        let part = Part::demo(name, mesh.port(n))?.arg("--start-delay=200ms");
        let after = if n == 2 { "api".to_owned() } else { format!("part-{}", n - 1) };
        Ok::<_, anyhow::Error>(stack.with(part.after(&after)))
    })?;
    let said = std::thread::scope(|scope| {
        let apply = scope.spawn(|| mesh.up(&more));
        let kills = [0, 2, 4].iter().try_for_each(|n| {
            let name = parts.get(*n).context("a part")?;
            wait_for(&format!("{name} started"), SOON, || Ok((!copies(&mesh, name).is_empty()).then_some(())))?;
            signal(mesh.agent_pid()?, Signal::KILL)
        });
        let said = apply.join().map_err(|_| anyhow::anyhow!("the apply panicked"))?;
        kills.and(said)
    })?;
    said.ok()?;
    for name in &parts {
        mesh.wait_ready(name)?;
        ensure!(copies(&mesh, name).len() == 1, "{name} is doubled");
        let pids: BTreeSet<u32> = mesh
            .events_of(name, "component_started")?
            .into_iter()
            .filter_map(|e| match e.fact {
                Some(Fact::ComponentStarted(started)) => started.process.map(|p| p.pid),
                _ => None,
            })
            .collect();
        ensure!(pids.len() == 1, "{name} was started {} times", pids.len());
    }
    told_once_and_in_order(&mesh.events()?)?;
    mesh.end()
}

/// Faults 1 and 2, with two replicas of each agent.
#[test]
fn replicas_carry_on_when_the_leader_is_killed_during_an_apply() -> Result<()> {
    let mesh = Mesh::new()?.with_env("RAZAR_AGENTS", "registry:2,orchestrator:2,quarantine:2").started(pair)?;
    let before = pids(&mesh)?;
    let more = (2..8).try_fold(pair(&mesh)?, |stack, n| {
        Ok::<_, anyhow::Error>(stack.with(Part::demo(&format!("part-{n}"), mesh.port(n))?.arg("--start-delay=300ms").after("api")))
    })?;
    let victims = (mesh.pid("orchestrator")?, mesh.pid("registry")?);
    let said = std::thread::scope(|scope| {
        let apply = scope.spawn(|| mesh.up(&more));
        let begun = wait_for("the mission begun", SOON, || {
            Ok(mesh.events()?.iter().filter(|e| e.kind == "mission_started").nth(1).is_some().then_some(()))
        });
        drop(signal(victims.0, Signal::KILL));
        drop(signal(victims.1, Signal::KILL));
        begun?;
        apply.join().map_err(|_| anyhow::anyhow!("the apply panicked"))?
    })?;
    said.ok()?;
    for n in 2..8 {
        mesh.wait_ready(&format!("part-{n}"))?;
        ensure!(copies(&mesh, &format!("part-{n}")).len() == 1 && mesh.events_of(&format!("part-{n}"), "component_started")?.len() == 1);
    }
    let after = pids(&mesh)?;
    ensure!(before.iter().all(|(name, pid)| after.get(name) == Some(pid)), "what stays was touched");
    let ended = mesh.events()?.iter().filter(|e| e.kind == "mission_completed").count();
    ensure!(ended == 2, "{ended} missions ended where 2 were begun");
    told_once_and_in_order(&mesh.events()?)?;
    mesh.end()
}
