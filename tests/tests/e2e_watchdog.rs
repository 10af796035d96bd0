//! Who is silent, and who only seems so, with the programs as they are (numbers in comments are those of the fault catalogue). What does
//! not happen is waited for by something later that does: a verdict on somebody who is silent is told after every one that was due before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use prost::Message as _;
use razar_bus_schema::{
    bucket::lease_key,
    presence::node_of,
    v1::{self, event::Fact},
};
use razar_tests::e2e::{ByHand, Mesh, Part, Proxy, SOON, Stack, Way, signal, wait_for};
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

/// Beats for a component from a connection of its own, as long as it is not dropped or told to be silent.
struct Beats {
    silent: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Beats {
    fn begin(mesh: &Mesh, component: &str, every: Duration) -> Result<Self> {
        let beats = Self { silent: Arc::default(), ended: Arc::default() };
        let (silent, ended) = (beats.silent.clone(), beats.ended.clone());
        let (mut raw, subject) = (mesh.raw()?, format!("{}.heartbeat.component.{component}.0", mesh.name()));
        let mut beat = v1::Heartbeat { kind: "component".to_owned(), id: format!("{component}.0"), ..Default::default() };
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                beat.cycle += 1;
                if !silent.load(Ordering::Relaxed) && raw.publish(&subject, &beat.encode_to_vec()).is_err() {
                    return;
                }
                thread::sleep(every);
            }
        });
        Ok(beats)
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Fault 40: one that beats ten times a second stands. The watchdog says so, with its node's view of it; recovery has it replaced.
#[test]
fn a_component_that_stands_and_does_not_beat_is_replaced() -> Result<()> {
    let first = |mesh: &Mesh| Ok(Stack::new("beating").with(Part::demo("cache", mesh.port(1))?));
    let mesh = Mesh::start(first)?;
    // It is heard from its first moment.
    let beats = Beats::begin(&mesh, "db", Duration::from_millis(100))?;
    let part = Part::demo("db", mesh.port(0))?.set("liveness", json!({ "heartbeat": { "interval": "100ms", "misses": 3 } }));
    mesh.up(&first(&mesh)?.with(part))?.ok()?;
    let hung = mesh.pid("db")?;
    thread::sleep(Duration::from_secs(2));
    let told = mesh.events_of("db", "component_unresponsive")?;
    ensure!(told.is_empty() && mesh.pid("db")? == hung, "who beats is left alone: {told:?}");

    signal(hung, Signal::STOP)?;
    beats.silent.store(true, Ordering::Relaxed);
    let stopped = Instant::now();
    wait_for("another db", SOON, || Ok((mesh.pid("db")? != hung).then_some(())))?;
    eprintln!("replaced {:?} after it stood", stopped.elapsed());
    beats.silent.store(false, Ordering::Relaxed);
    let verdict = mesh.events_of("db", "component_unresponsive")?;
    ensure!(verdict.len() == 1, "{verdict:?}");
    let source = verdict.last().and_then(|e| e.source.clone()).map(|s| s.kind);
    ensure!(source.as_deref() == Some("watchdog"), "{source:?}");
    let rung = |e: &v1::Event| matches!(&e.fact, Some(Fact::Recovered(r)) if r.rung == "restart");
    mesh.wait_event("db", "recovered", rung)?;
    mesh.end()
}

/// Pid of a replica of the watchdog that runs by hand and holds its shard.
fn holder<'r>(mesh: &Mesh, replicas: &'r [(&'static str, ByHand)]) -> Result<&'r (&'static str, ByHand)> {
    let bucket = format!("{}_leases", mesh.name());
    wait_for("a holder", SOON, || {
        let value = mesh.raw()?.newest(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{}", lease_key("watchdog", 0)));
        let name = value.ok().and_then(|v| String::from_utf8(v).ok()).unwrap_or_default();
        Ok(replicas.iter().find(|(replica, _)| *replica == name))
    })
}

/// Faults 2, 32 and 50: the watchdog that decides is stopped for longer than silence takes, and wakes among others' beats that it has not
/// heard; then it dies in the same moment as a node. The other decides meanwhile. Nobody is called silent but who was.
#[test]
fn a_watchdog_that_sleeps_or_dies_calls_nobody_silent_but_who_was() -> Result<()> {
    let mesh = Mesh::new()?.with_env("RAZAR_AGENTS", "registry:1,quarantine:1,orchestrator:1,recovery:1");
    std::fs::create_dir_all(mesh.state())?;
    let mut replicas = Vec::new();
    for name in ["first", "second"] {
        replicas.push((name, mesh.by_hand("razar-watchdog", mesh.broker_port(), name)?));
    }
    mesh.up(&pair(&mesh)?)?.ok()?;
    let node = mesh.node_by_hand("b", mesh.broker_port())?;
    joined(&mesh, "b")?;

    let sleeper = holder(&mesh, &replicas)?;
    signal(sleeper.1.pid(), Signal::STOP)?;
    wait_verdict(&mesh, "agent_down", sleeper.0, 1)?;
    signal(sleeper.1.pid(), Signal::CONT)?;
    wait_verdict(&mesh, "agent_returned", sleeper.0, 1)?;

    let decides = holder(&mesh, &replicas)?.0;
    ensure!(decides != sleeper.0, "who slept does not hold the shard");
    let (dead, alive): (Vec<_>, Vec<_>) = replicas.into_iter().partition(|(name, _)| *name == decides);
    drop((dead, node));
    let killed = Instant::now();
    wait_verdict(&mesh, "node_lost", "b", 1)?;
    eprintln!("lost {:?} after both died", killed.elapsed());
    wait_verdict(&mesh, "agent_down", decides, 1)?;
    let expected =
        [("agent_down", sleeper_of(decides)), ("agent_returned", sleeper_of(decides)), ("agent_down", decides), ("node_lost", "b")];
    let mut told = verdicts(&mesh)?;
    told.sort();
    let mut expected: Vec<_> = expected.iter().map(|(kind, who)| ((*kind).to_owned(), (*who).to_owned())).collect();
    expected.sort();
    ensure!(told == expected, "{told:?}");
    mesh.razar(&["down"])?.ok()?;
    drop(alive);
    mesh.end_checked()
}

fn sleeper_of(decides: &str) -> &'static str {
    if decides == "first" { "second" } else { "first" }
}

/// A replica of an agent that is not scheduled is down; a frozen loop and a dead process look the same from here.
#[test]
fn an_agent_that_stands_is_down_and_returns() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let by_hand = mesh.by_hand("razar-registry", mesh.broker_port(), "hand")?;
    wait_for("it started", SOON, || {
        let is = |a: &v1::ObservedAgent| a.started.as_ref().is_some_and(|s| s.id == "hand");
        Ok(mesh.observed()?.agents.iter().any(is).then_some(()))
    })?;
    signal(by_hand.pid(), Signal::STOP)?;
    wait_verdict(&mesh, "agent_down", "hand", 1)?;
    // The broker gives each second question to the one that stands: it is put again.
    for _ in 0..8 {
        let said = mesh.razar(&["status"])?.ok()?.out;
        ensure!(said.contains("1 down"), "{said}");
    }
    signal(by_hand.pid(), Signal::CONT)?;
    wait_verdict(&mesh, "agent_returned", "hand", 1)?;
    ensure!(verdicts(&mesh)?.len() == 2, "{:?}", verdicts(&mesh)?);
    drop(by_hand);
    mesh.end()
}

/// What uses more than its limit is told once.
#[test]
fn a_component_over_its_limit_is_told() -> Result<()> {
    let mesh = Mesh::start(|mesh| {
        let part = Part::demo("db", mesh.port(0))?.set("resources", json!({ "memory": "100KiB" }));
        Ok(Stack::new("small").with(part))
    })?;
    let told = wait_for("limit_exceeded", 3 * SOON, || Ok(mesh.events_of("db", "limit_exceeded")?.into_iter().next()))?;
    let Some(Fact::LimitExceeded(fact)) = told.fact else { anyhow::bail!("{told:?}") };
    ensure!(fact.resource == "memory" && fact.limit == 100 * 1024 && fact.used > fact.limit, "{fact:?}");
    let status = mesh.razar(&["status", "--all"])?.ok()?.out;
    ensure!(status.contains("over its limit"), "{status}");
    mesh.end()
}

/// Who is slow is shown as long as it is, and that it is so no longer is told, by another agent than the one that told the beginning, too.
#[test]
fn a_slow_component_is_shown_until_it_is_quick_again() -> Result<()> {
    let mesh = Mesh::new()?;
    let pace = mesh.dir().join("pace");
    let take = |seconds: &str| std::fs::write(&pace, seconds);
    take("0")?;
    let looks = format!("sleep $(cat {})", pace.display());
    let asks = json!({ "exec": ["/bin/sh", "-c", looks], "period": "200ms", "timeout": "3s" });
    let mesh = mesh.started(|mesh| {
        let part = Part::demo("db", mesh.port(0))?.arg("--notify").set("readiness", json!({ "notify": true })).set("liveness", asks);
        Ok(Stack::new("small").with(part))
    })?;
    let told = |passed: bool| {
        let is = move |e: &v1::Event| matches!(&e.fact, Some(Fact::ComponentDegraded(d)) if d.passed == passed);
        mesh.wait_event("db", "component_degraded", is)
    };
    take("0.8")?;
    told(false)?;
    let shows = |words: &str| Ok::<_, anyhow::Error>(mesh.razar(&["status"])?.ok()?.out.contains(words));
    wait_for("the status to show it", SOON, || Ok(shows("db ready")?.then_some(())))?;
    ensure!(shows("slow: a probe took")?, "{}", mesh.razar(&["status"])?.out);

    let agent = mesh.agent_pid()?;
    signal(agent, Signal::KILL)?;
    wait_for("another agent", SOON, || Ok((mesh.agent_pid().is_ok_and(|pid| pid != agent)).then_some(())))?;
    take("0")?;
    told(true)?;
    wait_for("the status to forget it", SOON, || Ok((!shows("slow")?).then_some(())))?;
    ensure!(mesh.events_of("db", "component_exited")?.is_empty(), "slow is not hung");
    mesh.end()
}
