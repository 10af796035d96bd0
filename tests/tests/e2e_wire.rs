//! The line between a whole mesh and its broker is hurt: every agent and the node are behind it, and a life is lived meanwhile (a boot with
//! something that only a rung cures, a death, a restart by hand, an isolation and its release, another plan). Numbers in comments are those
//! of the fault catalogue. What one client makes of such a line is tested in `crates/bus`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use razar_bus_schema::v1::{self, InstanceState as State, event::Fact};
use razar_tests::e2e::{Mesh, Part, SOON, Stack, Way, Wired, one_end_each, signal, told_once_and_in_order, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// What takes milliseconds on a whole line: a dead connection is found in five seconds, a consumer that stands in twenty.
const HURT: Duration = Duration::from_secs(60);
/// For what the command line waits by itself.
const TIMEOUT: [&str; 2] = ["--timeout", "90s"];

/// `api` needs `db`; `store` fails for as long as its cache is there.
fn stack(mesh: &Mesh, round: &str) -> Result<Stack> {
    let cache = mesh.dir().join("cache");
    let store = Part::demo("store", mesh.port(2))?
        .arg(&format!("--break-file={}", cache.join("index.json").display()))
        .set("state", json!([cache]))
        .set("heal", json!(["clear_state"]))
        .set("restart", json!({ "backoff": { "first": "0s", "base": "50ms", "max": "100ms" } }));
    let api = Part::demo("api", mesh.port(1))?.after("db").set("env", json!({ "ROUND": round }));
    Ok(Stack::new("wire").with(Part::demo("db", mesh.port(0))?).with(api).with(store))
}

/// A command of an operator, who tries again where nobody was there to be asked, and nothing was sent.
fn razar(mesh: &Mesh, args: &[&str]) -> Result<()> {
    let said = wait_for("somebody to answer", HURT, || {
        let said = mesh.razar(&[args, &TIMEOUT].concat())?;
        Ok((!said.err.contains("no registry answers")).then_some(said))
    })?;
    said.ok().map(drop).with_context(|| format!("razar {}", args.join(" ")))
}

/// `razar up`, again until somebody answers: one whose line is cut at that moment looks like no mesh.
fn up(mesh: &Mesh, round: &str) -> Result<()> {
    let stack = stack(mesh, round)?;
    wait_for("razar up", HURT, || mesh.up_with(&stack, &TIMEOUT)?.ok().map(|_| Some(())))
}

/// Pid of a component, asked for until somebody answers.
fn pid(mesh: &Mesh, name: &str) -> Result<u32> {
    wait_for(&format!("pid of {name}"), HURT, || mesh.pid(name).map(Some))
}

fn count(mesh: &Mesh, name: &str, kind: &str) -> Result<usize> {
    Ok(mesh.events_of(name, kind)?.len())
}

fn wait_count(mesh: &Mesh, name: &str, kind: &str, wanted: usize) -> Result<()> {
    wait_for(&format!("{kind} of {name}, {wanted} in all"), HURT, || Ok((count(mesh, name, kind)? == wanted).then_some(())))
}

fn wait_state(mesh: &Mesh, name: &str, state: State) -> Result<()> {
    wait_for(&format!("{name} to be {state:?}"), HURT, || Ok((mesh.component(name)?.state() == state).then_some(())))
}

/// A life in five steps; `hurt` comes before each of them.
fn live(wired: &Wired, mut hurt: impl FnMut(&Wired) -> Result<()>) -> Result<()> {
    let mesh = &wired.mesh;
    let mut step = |what: &str, act: &dyn Fn() -> Result<()>| {
        hurt(wired)?;
        let began = Instant::now();
        act().with_context(|| what.to_owned())?;
        eprintln!("{what} took {:?}", began.elapsed());
        Ok::<_, anyhow::Error>(())
    };
    let cache = mesh.dir().join("cache");
    std::fs::create_dir_all(&cache)?;
    std::fs::write(cache.join("index.json"), "{")?;
    step("a boot with a rung", &|| {
        up(mesh, "one")?;
        ["db", "api", "store"].iter().try_for_each(|name| wait_state(mesh, name, State::Ready))
    })?;
    let api = pid(mesh, "api")?;
    step("a death", &|| {
        signal(pid(mesh, "db")?, Signal::KILL)?;
        wait_count(mesh, "db", "recovered", 1)?;
        wait_state(mesh, "db", State::Ready)
    })?;
    ensure!(pid(mesh, "api")? == api, "api was touched");
    step("a restart by hand", &|| {
        razar(mesh, &["restart", "api"])?;
        wait_state(mesh, "api", State::Ready)
    })?;
    step("an isolation and its release", &|| {
        razar(mesh, &["quarantine", "store", "--note", "by hand", "--for", "30m"])?;
        wait_state(mesh, "store", State::Quarantined)?;
        razar(mesh, &["release", "store", "--note", "by hand"])?;
        wait_state(mesh, "store", State::Ready)
    })?;
    step("another plan", &|| {
        up(mesh, "two")?;
        wait_state(mesh, "api", State::Ready)
    })
}

/// Everything had one effect, one end, and nobody was touched or judged who had done nothing.
fn it_was_lived_once(mesh: &Mesh) -> Result<()> {
    let events = one_end_each(mesh, HURT)?;
    let starts = |name: &str| count(mesh, name, "component_started");
    // Four of store by its node, one by a rung, one after its release.
    ensure!((starts("db")?, starts("api")?, starts("store")?) == (2, 3, 6), "{} {} {}", starts("db")?, starts("api")?, starts("store")?);
    let cured = |e: &&v1::Event| matches!(&e.fact, Some(Fact::Recovered(r)) if r.rung == "clear_state");
    ensure!(events.iter().filter(cured).count() == 1, "the rung cured it once");
    for unwanted in ["node_lost", "agent_down", "component_unresponsive", "recovery_failed", "dead_lettered", "brake_engaged"] {
        let told: Vec<_> = events.iter().filter(|e| e.kind == unwanted).collect();
        ensure!(told.is_empty(), "{told:?}");
    }
    Ok(())
}

/// Fault 31: what everybody writes is carried out, and the answer is lost: records, the batch of a plan, events.
#[test]
fn a_life_whose_writes_are_not_answered() -> Result<()> {
    let wired = Wired::start(1)?;
    let name = wired.mesh.name().to_owned();
    live(&wired, |wired| {
        for (subject, times) in
            [("intents.desired", 1), ("intents.recovery", 1), ("intents.quarantine", 1), ("missions", 2), ("observed", 2)]
        {
            wired.line.lose_answers(&format!("$KV.{name}_{subject}."), times);
        }
        wired.line.lose_answers(&format!("{name}.event."), 3);
        Ok(())
    })?;
    ensure!(wired.line.struck() >= 25, "{} answers were lost", wired.line.struck());
    it_was_lived_once(&wired.mesh)?;
    told_once_and_in_order(&wired.mesh.events()?)?;
    wired.end()
}

/// Fault 14: whatever goes either way comes twice: events, commands, records, and the writes of them.
#[test]
fn a_life_in_which_everything_comes_twice() -> Result<()> {
    let wired = Wired::start(1)?;
    let name = wired.mesh.name().to_owned();
    live(&wired, |wired| {
        for subject in [format!("{name}.event."), format!("$KV.{name}_intents."), format!("$KV.{name}_missions.")] {
            wired.line.double(Way::ToClient, &subject, 6);
            wired.line.double(Way::ToBroker, &subject, 3);
        }
        wired.line.double(Way::ToClient, &format!("{name}.command."), 2);
        Ok(())
    })?;
    ensure!(wired.line.struck() >= 60, "{} messages were doubled", wired.line.struck());
    it_was_lived_once(&wired.mesh)?;
    told_once_and_in_order(&wired.mesh.events()?)?;
    wired.end()
}

/// Fault 15: everything is late, and some of it is overtaken by what follows: events on their way into the stream and out of it, records.
#[test]
fn a_life_in_which_what_is_told_is_late_and_out_of_order() -> Result<()> {
    let wired = Wired::start(1)?;
    let name = wired.mesh.name().to_owned();
    wired.line.delay(Duration::from_millis(150));
    live(&wired, |wired| {
        for subject in [format!("{name}.event."), format!("$KV.{name}_intents.")] {
            wired.line.overtake(Way::ToClient, &subject, 4);
            wired.line.overtake(Way::ToBroker, &subject, 3);
        }
        Ok(())
    })?;
    ensure!(wired.line.struck() >= 40, "{} messages were overtaken", wired.line.struck());
    it_was_lived_once(&wired.mesh)?;
    wired.end()
}

/// Names of the consumers of a stream.
fn consumers(mesh: &Mesh, stream: &str) -> Result<Vec<String>> {
    let answer = mesh.raw()?.jetstream(&format!("CONSUMER.NAMES.{stream}"), "")?;
    Ok(answer.get("consumers").and_then(|names| serde_json::from_value(names.clone()).ok()).unwrap_or_default())
}

/// The streams that somebody folds or watches.
fn read(mesh: &Mesh) -> [String; 4] {
    let name = mesh.name();
    [format!("{name}_events"), format!("KV_{name}_intents"), format!("KV_{name}_missions"), format!("KV_{name}_observed")]
}

/// Fault 12: watches and folds skip what is new, and then lose their consumers.
#[test]
fn a_life_whose_watches_skip_and_end() -> Result<()> {
    let wired = Wired::start(1)?;
    let name = wired.mesh.name().to_owned();
    live(&wired, |wired| {
        for stream in read(&wired.mesh) {
            for consumer in consumers(&wired.mesh, &stream)? {
                // One that ended meanwhile is as good.
                drop(wired.mesh.raw()?.jetstream(&format!("CONSUMER.DELETE.{stream}.{consumer}"), ""));
            }
        }
        for subject in ["intents", "missions", "observed"] {
            wired.line.lose(Way::ToClient, &format!("$KV.{name}_{subject}."), 3);
        }
        wired.line.lose(Way::ToClient, &format!("{name}.event."), 4);
        Ok(())
    })?;
    ensure!(wired.line.struck() >= 25, "{} messages were lost", wired.line.struck());
    it_was_lived_once(&wired.mesh)?;
    told_once_and_in_order(&wired.mesh.events()?)?;
    wired.end()
}

/// Fault 13: every consumer of the mesh stands still with messages pending, that of the commands too; their heartbeats go on.
#[test]
fn a_mesh_whose_consumers_stand_still_goes_on() -> Result<()> {
    let wired = Wired::start(1)?;
    let mesh = &wired.mesh;
    let pause = || {
        let mut paused = 0;
        for stream in read(mesh).into_iter().chain([format!("{}_commands", mesh.name())]) {
            for consumer in consumers(mesh, &stream)? {
                let call = format!("CONSUMER.PAUSE.{stream}.{consumer}");
                paused += usize::from(mesh.raw()?.jetstream(&call, r#"{"pause_until":"2100-01-01T00:00:00Z"}"#).is_ok());
            }
        }
        // Five folds of EVENTS, five readers of intents, two buckets, two queues.
        ensure!(paused >= 10, "{paused} consumers were there");
        Ok::<_, anyhow::Error>(())
    };
    mesh.up(&stack(mesh, "one")?)?.ok()?;
    let api = mesh.pid("api")?;
    pause()?;
    signal(mesh.pid("db")?, Signal::KILL)?;
    wait_count(mesh, "db", "recovered", 1)?;
    wait_for("the registry to fold it", HURT, || Ok(mesh.component("db")?.incarnation.is_some_and(|i| i.start == 2).then_some(())))?;
    ensure!(mesh.pid("api")? == api, "api was touched");
    pause()?;
    razar(mesh, &["restart", "api"])?;
    wait_for("another api", HURT, || Ok(mesh.component("api")?.incarnation.is_some_and(|i| i.generation == 2).then_some(())))?;
    one_end_each(mesh, HURT)?;
    told_once_and_in_order(&mesh.events()?)?;
    for unwanted in ["node_lost", "agent_down", "recovery_started"] {
        ensure!(mesh.events()?.iter().all(|e| e.kind != unwanted), "{unwanted} though only consumers stood");
    }
    wired.end()
}

/// Fault 8: the broker's ends of all connections vanish before each step, and nobody is told.
#[test]
fn a_life_on_connections_that_are_half_open() -> Result<()> {
    let wired = Wired::start(1)?;
    live(&wired, |wired| {
        wired.line.orphan();
        Ok(())
    })?;
    ensure!(wired.line.connections() >= 30, "{} connections were made", wired.line.connections());
    it_was_lived_once(&wired.mesh)?;
    told_once_and_in_order(&wired.mesh.events()?)?;
    wired.end()
}

/// Faults 5 and 32: whoever holds the shards is stopped before each step, and wakes as one of two that think so. Nothing is done twice.
#[test]
fn a_life_whose_holders_sleep_and_wake() -> Result<()> {
    let wired = Wired::start(2)?;
    let mut asleep: Vec<String> = Vec::new();
    live(&wired, |wired| {
        asleep.drain(..).try_for_each(|replica| wired.signal(&replica, Signal::CONT))?;
        for agent in ["orchestrator", "recovery", "quarantine"] {
            let holds = wait_for("a holder", SOON, || Ok(wired.holder(agent).ok()))?;
            wired.signal(&holds, Signal::STOP)?;
            asleep.push(holds);
        }
        Ok(())
    })?;
    asleep.drain(..).try_for_each(|replica| wired.signal(&replica, Signal::CONT))?;
    one_end_each(&wired.mesh, HURT)?;
    told_once_and_in_order(&wired.mesh.events()?)?;
    let starts = |name: &str| count(&wired.mesh, name, "component_started");
    ensure!((starts("db")?, starts("api")?, starts("store")?) == (2, 3, 6), "{} {} {}", starts("db")?, starts("api")?, starts("store")?);
    wired.end()
}

/// What was told of messages that nobody could use: subject and reason.
fn dead_letters(mesh: &Mesh) -> Result<Vec<(String, String)>> {
    let of = |e: v1::Event| match e.fact {
        Some(Fact::DeadLettered(told)) => Some((told.subject, told.why)),
        _ => None,
    };
    Ok(mesh.events()?.into_iter().filter_map(of).collect())
}

/// Fault 18: who is to tell of a dead letter dies before it has told, and who would hear of it is away. It is told all the same, once.
#[test]
fn a_dead_letter_is_told_whoever_was_away() -> Result<()> {
    let mut wired = Wired::start(1)?;
    wired.mesh.up(&stack(&wired.mesh, "one")?)?.ok()?;
    let name = wired.mesh.name().to_owned();
    let (event, command) = (format!("{name}.event.heart.db.component_exited"), format!("{name}.command.orchestrator.restart.db"));
    let told = |wired: &Wired, wanted: &[&str]| {
        let mut seen = Vec::new();
        let waited = wait_for("what was told of dead letters", HURT, || {
            seen = dead_letters(&wired.mesh)?.into_iter().map(|(subject, _)| subject).collect::<Vec<_>>();
            seen.sort();
            Ok((seen == wanted).then_some(()))
        });
        waited.with_context(|| format!("told of {seen:?}, not of {wanted:?}"))
    };

    // They refuse and put aside, and their word of it is lost on its way; then they die.
    let lost = wired.line.struck();
    wired.line.lose(Way::ToBroker, &format!("{name}.event.mesh."), 1_000);
    let mut raw = wired.mesh.raw()?;
    let receipt: v1::Receipt = prost::Message::decode(raw.request(&command, b"\xff\xff")?.as_slice())?;
    ensure!(receipt.code == "malformed", "{receipt:?}");
    raw.publish(&event, b"\xff\xff")?;
    wait_for("both words to be lost", SOON, || Ok((wired.line.struck() >= lost + 2).then_some(())))?;
    let open = wired.line.open();
    for agent in ["orchestrator", "registry"] {
        wired.kill(agent, 1)?;
    }
    wait_for("what they said last to be lost too", SOON, || Ok((wired.line.open() + 2 <= open).then_some(())))?;
    wired.line.forget();
    ensure!(dead_letters(&wired.mesh)?.is_empty(), "nobody could have told");
    for agent in ["orchestrator", "registry"] {
        wired.run(agent, 1)?;
    }
    told(&wired, &[&command, &event])?;

    // Nobody is there when it comes.
    for agent in ["orchestrator", "registry"] {
        wired.kill(agent, 1)?;
    }
    raw.publish(&command, b"\xff\xfe")?;
    raw.publish(&event, b"\xff\xfe")?;
    for agent in ["orchestrator", "registry"] {
        wired.run(agent, 1)?;
    }
    told(&wired, &[&command, &command, &event, &event])?;
    razar(&wired.mesh, &["restart", "db"])?;
    one_end_each(&wired.mesh, HURT)?;
    wired.end()
}
