//! Agents that are killed two at a time, replicas that take over from each other, and one that runs by hand behind a line that is cut
//! (numbers in comments are those of the fault catalogue). A replica is known by its `RAZAR_REPLICA`, a holder by the bucket of leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use prost::Message;
use razar_bus_schema::{
    bucket::lease_key,
    shard::ShardCount,
    v1::{self, event::Fact},
};
use razar_tests::e2e::{Mesh, Part, Proxy, SOON, Stack, Way, environment_of, one_end_each, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Replicas of each agent, where several are run.
const REPLICAS: usize = 3;
/// Shards of their decisions, where there are several.
const SHARDS: u32 = 4;
/// A rung has half a minute at least, and there are two, each with a soak.
const LADDER: Duration = Duration::from_secs(90);
/// A replica that holds the shard each time that its holder is killed has spent its node's budget for it, and is started again a minute later.
const AGREED: Duration = Duration::from_secs(150);
/// Components besides the pair.
const PARTS: std::ops::Range<u16> = 2..8;

fn pair(mesh: &Mesh) -> Result<Stack> {
    Ok(Stack::new("pair").with(Part::demo("db", mesh.port(0))?).with(Part::demo("api", mesh.port(1))?.after("db")))
}

fn part(n: u16) -> String {
    format!("part-{n}")
}

/// The pair and the parts, which start one after the other; `round` changes the specification of the parts.
fn more(mesh: &Mesh, round: &str) -> Result<Stack> {
    let stack = PARTS.clone().try_fold(pair(mesh)?, |stack, n| {
        let after = if n == PARTS.start { "api".to_owned() } else { part(n - 1) };
        let one = Part::demo(&part(n), mesh.port(n))?.arg("--start-delay=150ms").set("env", json!({ "ROUND": round }));
        Ok::<_, anyhow::Error>(stack.with(one.after(&after)))
    })?;
    let few: Vec<String> = ["db", "api"].map(str::to_owned).into_iter().chain((2..4).map(part)).collect();
    Ok(stack.set("profiles", json!({ "few": { "include": few } })))
}

/// The living process of a replica.
fn pid_of(mesh: &Mesh, replica: &str) -> Result<u32> {
    let found = mesh.processes().into_iter().map(|p| p.pid).find(|pid| environment_of(*pid, "RAZAR_REPLICA").as_deref() == Some(replica));
    found.with_context(|| format!("{replica} does not live"))
}

/// The replica that holds an agent's lease.
fn holder(mesh: &Mesh, agent: &str) -> Result<String> {
    let bucket = format!("{}_leases", mesh.name());
    let value = mesh.raw()?.newest(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{}", lease_key(agent, 0)))?;
    let name = String::from_utf8(value)?;
    ensure!(!name.is_empty(), "nobody holds the lease of {agent}");
    Ok(name)
}

/// What was told of a command, in order.
fn words(events: &[v1::Event], id: &str) -> Vec<String> {
    let of = |e: &v1::Event| match &e.fact {
        Some(Fact::OperatorCommand(told)) if told.command_id == id => Some(told.result.clone()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn generation(mesh: &Mesh, name: &str) -> Result<u64> {
    Ok(mesh.component(name)?.incarnation.with_context(|| format!("{name} never started"))?.generation)
}

/// Each event once; every mission begun and ended once; no incarnation started twice; one word and one end for each command.
fn one_story(mesh: &Mesh) -> Result<()> {
    let events = one_end_each(mesh, SOON)?;
    for event in &events {
        let Some(Fact::OperatorCommand(c)) = &event.fact else { continue };
        let words = words(&events, &c.command_id);
        ensure!(words.first().is_some_and(|w| w == "accepted"), "command {}: {words:?}", c.command_id);
    }
    Ok(())
}

/// Does `work` in a thread; `hurt` meanwhile.
fn meanwhile<T: Send>(work: impl FnOnce() -> Result<T> + Send, hurt: impl FnOnce() -> Result<()>) -> Result<T> {
    thread::scope(|scope| {
        let working = scope.spawn(work);
        let hurting = hurt();
        let done = working.join().map_err(|_| anyhow::anyhow!("the work panicked"))?;
        hurting.and(done)
    })
}

/// Kills both at once; a pid that has gone meanwhile is as good.
fn kill_both(one: u32, other: u32) {
    drop((signal(one, Signal::KILL), signal(other, Signal::KILL)));
}

/// Fault 2: two agents die in the same moment while an apply runs, first those that decide and observe, then the node's own and the one
/// that decides. What was begun is finished, once, and what stays is not touched.
#[test]
fn two_agents_killed_at_once_finish_what_was_begun() -> Result<()> {
    let mesh = Mesh::start(pair)?;
    let (before, began) = (mesh.pids()?, |name: String| mesh.events_of(&name, "component_started").map(|e| e.len()));
    let first = more(&mesh, "one")?;
    let victims = (mesh.pid("orchestrator")?, mesh.pid("registry")?);
    let said = meanwhile(
        || mesh.up(&first),
        || {
            wait_for("the first part begun", SOON, || Ok((began(part(2))? == 1).then_some(())))?;
            kill_both(victims.0, victims.1);
            Ok(())
        },
    )?;
    said.ok()?;
    PARTS.clone().try_for_each(|n| mesh.wait_ready(&part(n)).map(drop))?;

    let second = more(&mesh, "two")?;
    let orchestrator = wait_for("another orchestrator", SOON, || Ok(mesh.pid("orchestrator").ok().filter(|pid| *pid != victims.0)))?;
    let agent = mesh.agent_pid()?;
    let said = meanwhile(
        || mesh.up(&second),
        || {
            wait_for("the first part begun again", SOON, || Ok((began(part(2))? == 2).then_some(())))?;
            kill_both(orchestrator, agent);
            Ok(())
        },
    )?;
    said.ok()?;
    for n in PARTS {
        mesh.wait_ready(&part(n))?;
        ensure!(generation(&mesh, &part(n))? == 2 && began(part(n))? == 2, "{} was started {} times", part(n), began(part(n))?);
    }
    let after = mesh.pids()?;
    ensure!(before.iter().all(|one| after.contains(one)), "what stays was touched: {before:?} {after:?}");
    one_story(&mesh)?;
    mesh.end()
}

/// Numbers that differ from run to run; the seed is printed, and given again by `RAZAR_E2E_SEED`.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let given = std::env::var("RAZAR_E2E_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("RAZAR_E2E_SEED={seed}");
        Self(seed)
    }

    fn millis(&mut self, below: u64) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((self.0 >> 33) % below)
    }
}

/// Kills whoever holds both leases, at a moment of chance.
fn kill_holders(mesh: &Mesh, chance: &mut Chance) -> Result<()> {
    thread::sleep(chance.millis(600));
    let pid = |agent: &str| wait_for("a holder", SOON, || Ok(holder(mesh, agent).and_then(|name| pid_of(mesh, &name)).ok()));
    kill_both(pid("orchestrator")?, pid("registry")?);
    Ok(())
}

/// A command from any client, sent again until it has its receipt, always under the same id.
fn insist(mesh: &Mesh, verb: &str, target: &str, id: &str) -> Result<()> {
    let (subject, payload) = (format!("{}.command.orchestrator.{verb}.{target}", mesh.name()), json!({ "commandId": id }).to_string());
    let receipt: Value = wait_for(&format!("the receipt of {id}"), 3 * SOON, || {
        Ok(mesh.raw()?.request(&subject, payload.as_bytes()).ok().map(|answer| serde_json::from_slice(&answer)).transpose()?)
    })?;
    let is = |key: &str, value: Value| receipt.get(key) == Some(&value);
    ensure!(is("accepted", json!(true)) && is("commandId", json!(id)), "{receipt}");
    Ok(())
}

/// Asks until each replica of the registry has told the same projection up to the same event.
fn projections_agree(mesh: &Mesh) -> Result<()> {
    let (mut raw, subject) = (mesh.raw()?, format!("{}.query.registry.status", mesh.name()));
    let mut told: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let all = wait_for("one projection of all replicas", AGREED, || {
        let reply = v1::StatusReply::decode(raw.request(&subject, b"")?.as_slice())?;
        told.insert(reply.replica, reply.observed.context("a projection")?.encode_to_vec());
        Ok((told.len() >= REPLICAS && told.values().collect::<BTreeSet<_>>().len() == 1).then_some(told.len()))
    });
    all.with_context(|| {
        let read = |bytes: &Vec<u8>| v1::Observed::decode(bytes.as_slice()).map(|o| format!("{o:?}")).unwrap_or_default();
        told.iter().map(|(who, bytes)| format!("{who}: {}", read(bytes))).collect::<Vec<_>>().join("\n")
    })
    .map(drop)
}

/// Faults 1 and 2 with three replicas of each agent: whoever holds the leases is killed, at moments of chance, during an apply, a switch
/// of the profile, and commands. Each has one effect and one end, and all replicas of the registry tell the same.
#[test]
fn holders_killed_at_any_moment_repeat_and_lose_nothing() -> Result<()> {
    let mesh = Mesh::new()?;
    mesh.up_with(&pair(&mesh)?, &["--replicas", "3"])?.ok()?;
    let replicas = || Ok((mesh.observed()?.agents.iter().filter(|a| !a.down).count() >= 5 * REPLICAS).then_some(()));
    wait_for("three replicas of each", SOON, replicas)?;
    let mut chance = Chance::new();
    let (before, stack) = (mesh.pids()?, more(&mesh, "one")?);

    meanwhile(|| mesh.up(&stack), || kill_holders(&mesh, &mut chance))?.ok()?;
    PARTS.clone().try_for_each(|n| mesh.wait_ready(&part(n)).map(drop))?;

    meanwhile(|| mesh.razar(&["profile", "few", "--timeout", "60s"]), || kill_holders(&mesh, &mut chance))?.ok()?;
    let running: BTreeSet<String> = mesh.pids()?.into_iter().map(|(name, _)| name).collect();
    ensure!(running == ["db", "api", "part-2", "part-3"].map(str::to_owned).into(), "{running:?}");

    let began = Instant::now();
    for (n, name) in ["part-2", "part-3", "api"].into_iter().enumerate() {
        let (id, was) = (format!("restart-{n}"), generation(&mesh, name)?);
        meanwhile(|| insist(&mesh, "restart", name, &id), || if n == 1 { Ok(()) } else { kill_holders(&mesh, &mut chance) })?;
        wait_for(&format!("the end of {id}"), 2 * SOON, || Ok((words(&mesh.events()?, &id).len() == 2).then_some(())))?;
        ensure!(words(&mesh.events()?, &id) == ["accepted", "done"], "{:?}", words(&mesh.events()?, &id));
        ensure!(generation(&mesh, name)? == was + 1, "{name} was restarted more than once, or not at all");
    }
    eprintln!("three commands took {:?}", began.elapsed());
    ensure!(before.iter().any(|(name, pid)| name == "db" && mesh.pid("db").ok() == Some(*pid)), "db was touched");
    one_story(&mesh)?;
    projections_agree(&mesh)?;
    mesh.end()
}

/// Faults 7 and 8 for an agent: both replicas of the orchestrator run by hand, each behind a line of its own, and none is embedded. The
/// line of the one that decides is cut: first half-open, then one way. The other takes over each time, and nothing is done twice.
#[test]
fn a_replica_whose_line_is_cut_gives_way_to_another() -> Result<()> {
    let mesh = Mesh::new()?.with_env("RAZAR_AGENTS", "registry:1,quarantine:1");
    std::fs::create_dir_all(mesh.state())?;
    let names = ["first", "second"];
    let lines: Vec<Proxy> = names.iter().map(|_| Proxy::start(mesh.broker_port())).collect::<Result<_>>()?;
    let by_hand = |(name, line): (&&str, &Proxy)| mesh.by_hand("razar-orchestrator", line.port(), name);
    let replicas = names.iter().zip(&lines).map(by_hand).collect::<Result<Vec<_>>>()?;
    let stack = pair(&mesh)?;
    mesh.up(&stack)?.ok()?;
    let holds = |name: &str| Ok((holder(&mesh, "orchestrator")? == name).then_some(()));
    for (round, one_way) in [(2, false), (3, true)] {
        let decides = wait_for("a holder", SOON, || Ok(holder(&mesh, "orchestrator").ok().filter(|h| names.contains(&h.as_str()))))?;
        let at = names.iter().position(|name| *name == decides).context("one of them")?;
        let (line, other) = (lines.get(at).context("its line")?, names.get(1 - at).context("the other")?);
        if one_way {
            line.swallow(Way::ToClient);
        } else {
            // And nobody answers a new connection either.
            line.orphan();
            line.hold(Way::ToClient);
        }
        let cut = Instant::now();
        wait_for("the other to decide", SOON, || holds(other))?;
        eprintln!("{other} decides {:?} after the line of {decides} was cut", cut.elapsed());
        let id = format!("round-{round}");
        insist(&mesh, "restart", "api", &id)?;
        mesh.wait_event("api", "component_ready", |e| e.incarnation.as_ref().is_some_and(|i| i.generation == round))?;
        line.mend();
        wait_for(&format!("the end of {id}"), SOON, || Ok((words(&mesh.events()?, &id) == ["accepted", "done"]).then_some(())))?;
    }
    ensure!(generation(&mesh, "api")? == 3, "api is in generation {}", generation(&mesh, "api")?);
    one_story(&mesh)?;
    mesh.razar(&["down"])?.ok()?;
    drop(replicas);
    mesh.end_checked()
}

/// The replica that holds a shard of four.
fn shard_holder(mesh: &Mesh, agent: &str, shard: u32) -> Result<String> {
    let bucket = format!("{}_leases", mesh.name());
    let key = ShardCount::new(SHARDS)?.lease_key(agent, shard);
    let name = String::from_utf8(mesh.raw()?.newest(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{key}"))?)?;
    ensure!(!name.is_empty(), "nobody holds shard {shard} of {agent}");
    Ok(name)
}

/// Faults 1 and 2 with shards: three replicas share four of them. Whoever holds the shard of a component that climbs its ladder is killed in
/// the middle of it; another goes on, and the ladder ends as it would have.
#[test]
fn a_ladder_ends_as_it_would_have_when_its_shards_holder_is_killed() -> Result<()> {
    let mesh = Mesh::new()?;
    let cache = mesh.dir().join("cache");
    let broken = cache.join("index.json");
    let sick = Part::demo("sick", mesh.port(2))?
        .arg(&format!("--break-file={}", broken.display()))
        .arg("--break-error=JSONDecodeError: cache/index.json")
        .set("state", json!([cache]))
        .set("heal", json!(["restart", "clear_state"]))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    let stack = pair(&mesh)?.with(sick).set("mesh", json!({ "shards": SHARDS }));
    mesh.up_with(&stack, &["--replicas", "3"])?.ok()?;
    let shared = || {
        let holders: Result<BTreeSet<String>> = (0..SHARDS).map(|shard| shard_holder(&mesh, "recovery", shard)).collect();
        Ok(holders.ok().filter(|holders| holders.len() == REPLICAS).map(drop))
    };
    wait_for("the shards to be shared", SOON, shared)?;
    std::fs::create_dir_all(&cache)?;
    // It ends of this by itself.
    std::fs::write(&broken, "{")?;
    let wait = |kind: &str| wait_for(&format!("{kind} of sick"), LADDER, || Ok(mesh.events_of("sick", kind)?.into_iter().next()));
    wait("recovery_started")?;
    let victim = shard_holder(&mesh, "recovery", ShardCount::new(SHARDS)?.shard_of("sick"))?;
    signal(pid_of(&mesh, &victim)?, Signal::KILL)?;
    let recovered = wait("recovered")?;
    ensure!(matches!(&recovered.fact, Some(Fact::Recovered(r)) if r.rung == "clear_state"), "{recovered:?}");
    let tries: Vec<String> = mesh.events_of("sick", "rung_tried")?.iter().map(tried).collect();
    ensure!(tries == ["restart failed", "clear_state ok"], "{tries:?}");
    let counts = ["recovery_started", "rung_granted", "recovered"].map(|kind| mesh.events_of("sick", kind).map(|e| e.len()).unwrap_or(0));
    ensure!(counts == [1, 1, 1], "the ladder was climbed once: {counts:?}");
    one_story(&mesh)?;
    mesh.end()
}

fn tried(event: &v1::Event) -> String {
    match &event.fact {
        Some(Fact::RungTried(tried)) => format!("{} {}", tried.rung, tried.outcome),
        _ => String::new(),
    }
}
