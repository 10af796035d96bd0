//! The commands against a real broker: what they send, what they say, on which stream, and with which exit code.

mod mesh;

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use anyhow::{Context, Result};
use mesh::{Mesh, SOON, World, component, event};
use razar_bus_schema::v1::{self, InstanceState as State, event::Fact};

fn took(ms: u64) -> Option<prost_types::Duration> {
    Some(razar_bus_schema::time::duration(Duration::from_millis(ms)))
}

fn ready(ms: u64) -> Fact {
    Fact::ComponentReady(v1::ComponentReady { took: took(ms), ..Default::default() })
}

fn accepted() -> v1::Receipt {
    v1::Receipt { accepted: true, agent: "orchestrator".to_owned(), ..Default::default() }
}

#[tokio::test]
async fn status_is_data_on_stdout_and_its_check_an_exit_code() -> Result<()> {
    let mesh = Mesh::start(World { components: vec![component("redis"), component("postgres")], ..World::default() }).await?;
    let well = mesh.razar(&["status", "--check"]).await?;
    assert_eq!((well.exit, well.err.as_str()), (0, ""));
    assert!(well.out.starts_with("heart 2/2 redis postgres\ndemo: 2/2 ready for 2h; mesh: 2 agents, 1 node, bus "), "{}", well.out);
    assert!(!well.out.contains('\u{1b}'), "a pipe has no colour");
    mesh.world.lock().unwrap().components[0].state = State::Failed.into();
    let critical = mesh.razar(&["status", "--check"]).await?;
    assert_eq!(critical.exit, 2, "{}", critical.out);
    assert!(critical.out.contains("next: ") && critical.out.trim_end().ends_with("why redis"), "{}", critical.out);
    assert_eq!(mesh.razar(&["status", "postgres", "--pid"]).await?.out, "4711\n");
    let unknown = mesh.razar(&["status", "postgers"]).await?;
    assert_eq!((unknown.exit, unknown.err.as_str(), unknown.out.as_str()), (64, "no component postgers; nearest: postgres\n", ""));
    Ok(())
}

#[tokio::test]
async fn json_is_the_message_of_the_bus_in_one_line() -> Result<()> {
    let mesh = Mesh::start(World { components: vec![component("redis")], ..World::default() }).await?;
    let said = mesh.razar(&["status", "--json"]).await?;
    assert_eq!(said.out.lines().count(), 1);
    let reply: v1::StatusReply = razar_bus_schema::json::from_json(said.out.trim())?;
    assert_eq!(reply.observed.unwrap().components[0].process.as_ref().unwrap().pid, 4711);
    Ok(())
}

#[tokio::test]
async fn a_restart_waits_for_the_later_generation() -> Result<()> {
    let effect = |_: &str, _: &str| {
        let stopped = Fact::ComponentStopped(v1::ComponentStopped { took: took(10), why: "replaced".to_owned(), ..Default::default() });
        (accepted(), vec![event(1, "redis", 1, 1, stopped), event(2, "redis", 2, 1, ready(710))])
    };
    let world = World { components: vec![component("redis")], on_command: Some(Box::new(effect)), ..World::default() };
    let mesh = Mesh::start(world).await?;
    let said = mesh.razar(&["command", "orchestrator", "restart", "redis", "--reason", "upgrade"]).await?;
    let lines: Vec<_> = said.out.lines().collect();
    assert!(lines[0].starts_with("accepted by orchestrator, "), "{}", said.out);
    assert_eq!((said.exit, lines[1], lines.len()), (0, "redis ready 2.1 in 0.71s", 2));
    let (verb, target, command) = mesh.world.lock().unwrap().commands[0].clone();
    assert_eq!((verb.as_str(), target.as_str(), command.reason.as_str(), command.issuer.as_str()), ("restart", "redis", "upgrade", "ann"));
    Ok(())
}

#[tokio::test]
async fn a_refusal_names_the_nearest_and_what_to_type() -> Result<()> {
    let effect = |_: &str, _: &str| {
        let reason = "no component memroy-store; nearest: memory-store".to_owned();
        let receipt = v1::Receipt {
            reason,
            code: "unknown_component".to_owned(),
            nearest: vec!["memory-store".to_owned()],
            agent: "orchestrator".to_owned(),
            ..Default::default()
        };
        (receipt, Vec::new())
    };
    let mesh = Mesh::start(World { on_command: Some(Box::new(effect)), ..World::default() }).await?;
    let said = mesh.razar(&["restart", "memroy-store"]).await?;
    assert_eq!((said.exit, said.out.as_str()), (77, ""));
    let lines: Vec<_> = said.err.lines().collect();
    assert_eq!(lines[0], "refused by orchestrator: no component memroy-store; nearest: memory-store");
    assert!(lines[1].starts_with("next: ") && lines[1].ends_with("razar restart memory-store"), "{}", lines[1]);
    Ok(())
}

#[tokio::test]
async fn without_an_outcome_in_time_it_says_so() -> Result<()> {
    let effect = |_: &str, _: &str| (accepted(), Vec::new());
    let world = World { components: vec![component("redis")], on_command: Some(Box::new(effect)), ..World::default() };
    let mesh = Mesh::start(world).await?;
    let said = mesh.razar(&["restart", "redis", "--timeout", "300ms"]).await?;
    assert_eq!(said.exit, 75);
    assert!(said.err.contains("accepted, no outcome in 300ms: redis\nnext: "), "{}", said.err);
    let receipt = mesh.razar(&["restart", "redis", "--no-wait", "--json"]).await?;
    let read: v1::Receipt = razar_bus_schema::json::from_json(receipt.out.trim())?;
    assert!(read.accepted && receipt.exit == 0);
    Ok(())
}

/// Who had read a command may die with it; the next is given it after some seconds, and its receipt is still waited for.
#[tokio::test]
async fn a_receipt_is_waited_for_as_long_as_an_outcome() -> Result<()> {
    let effect = |_: &str, _: &str| {
        std::thread::sleep(Duration::from_millis(5_500));
        (v1::Receipt { reason: "too late for that".to_owned(), ..accepted() }, vec![event(1, "redis", 2, 1, ready(50))])
    };
    let mesh = Mesh::start(World { components: vec![component("redis")], on_command: Some(Box::new(effect)), ..World::default() }).await?;
    let said = mesh.razar(&["restart", "redis", "--timeout", "20s"]).await?;
    assert!(said.err.contains("no receipt from orchestrator within 5s; waiting 20s at most\n"), "{}", said.err);
    assert_eq!(said.exit, 0, "{}{}", said.out, said.err);
    let said = mesh.razar(&["command", "nobody", "restart", "redis", "--timeout", "300ms"]).await?;
    assert_eq!(said.exit, 75);
    assert!(
        said.err.contains("no receipt from nobody within 300ms: command ") && said.err.contains("within 60s of the asking"),
        "{}",
        said.err
    );
    Ok(())
}

#[tokio::test]
async fn events_are_the_stream_by_pattern() -> Result<()> {
    let mesh = Mesh::start(World::default()).await?;
    mesh.tell(event(1, "redis", 1, 1, ready(50))).await?;
    let exited = v1::ComponentExited {
        status: Some(v1::ExitStatus { code: Some(1), ..Default::default() }),
        last_error: "no \u{1b}[2Jdisk".to_owned(),
        ..Default::default()
    };
    mesh.tell(event(2, "redis", 1, 1, Fact::ComponentExited(exited))).await?;
    let said = mesh.razar(&["events", "component_exited"]).await?;
    assert_eq!(said.out, "2 13:46:40.002 heart.redis.component_exited 1.1 exit 1: \"no \\u{1b}[2Jdisk\"\n", "{}", said.err);
    assert_eq!(mesh.razar(&["events", "redis"]).await?.out.lines().count(), 2);
    let none = mesh.razar(&["events", "throat"]).await?;
    assert_eq!((none.exit, none.out.as_str(), none.err.as_str()), (0, "", "no event matches throat.>\n"));
    assert_eq!(mesh.razar(&["events", "a..b"]).await?.exit, 64);
    assert_eq!(mesh.razar(&["events", "--since", "1h"]).await?.out, "", "both happened in 1970");
    assert_eq!(mesh.razar(&["events", "--since", "1970-01-01T00:00:00Z"]).await?.out.lines().count(), 2);
    Ok(())
}

#[tokio::test]
async fn following_goes_on_with_what_happens() -> Result<()> {
    let mesh = Mesh::start(World::default()).await?;
    mesh.tell(event(1, "redis", 1, 1, ready(50))).await?;
    let mut child = mesh.command(&["events", "--follow", "--since", "1970-01-01T00:00:00Z"]).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let first = tokio::task::spawn_blocking(move || (lines.next(), lines));
    let (first, mut lines) = tokio::time::timeout(SOON, first).await??;
    assert!(first.context("a line")??.starts_with("1 "));
    mesh.tell(event(2, "redis", 1, 2, ready(50))).await?;
    let second = tokio::time::timeout(SOON, tokio::task::spawn_blocking(move || lines.next())).await??;
    assert!(second.context("a line")??.starts_with("2 "));
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[tokio::test]
async fn why_is_the_nodes_table_and_logs_are_merged() -> Result<()> {
    let line = v1::WhyLine {
        rule: 8,
        name: "else run".to_owned(),
        says: "run".to_owned(),
        writer: "node a".to_owned(),
        won: true,
        ..Default::default()
    };
    let why = v1::WhyReply { lines: vec![line], verdict: "redis is ready".to_owned(), ..Default::default() };
    let log = |component: &str, ms: u64, text: &str| v1::LogLine {
        component: component.to_owned(),
        time: Some(razar_bus_schema::time::timestamp(std::time::UNIX_EPOCH + Duration::from_millis(ms))),
        text: text.to_owned(),
        ..Default::default()
    };
    let logs = vec![log("redis", 2, "second"), log("db", 1, "first")];
    let mesh = Mesh::start(World { components: vec![component("redis"), component("db")], why, logs, ..World::default() }).await?;
    assert_eq!(
        mesh.razar(&["why", "redis"]).await?.out,
        "   RULE     SAYS WRITER AGE REASON\n8> else run run  node a -   -\nredis is ready\n"
    );
    assert!(mesh.razar(&["why"]).await?.out.starts_with("nothing is wrong at the root; demo: 2/2 ready"));
    let said = mesh.razar(&["logs", "redis", "db"]).await?;
    assert_eq!(said.out, "00:00:00.001 db.0    | first\n00:00:00.002 redis.0 | second\n", "{}", said.err);
    Ok(())
}

const STACK: &str = "name: demo\ncomponents:\n  db: { chakra: heart, command: [/bin/db], readiness: none }\n";

fn boot(outcome: &str) -> Vec<v1::Event> {
    let to_start = vec!["db".to_owned()];
    let began =
        Fact::MissionStarted(v1::MissionStarted { mission_id: "m1".to_owned(), stack: "demo".to_owned(), to_start, ..Default::default() });
    let ended = Fact::MissionCompleted(v1::MissionCompleted {
        mission_id: "m1".to_owned(),
        outcome: outcome.to_owned(),
        took: took(400),
        ..Default::default()
    });
    let mut events = vec![
        event(1, "", 0, 0, began),
        event(1, "db", 1, 1, Fact::ComponentStarted(v1::ComponentStarted::default())),
        event(401, "db", 1, 1, ready(400)),
        event(402, "", 0, 0, ended),
    ];
    for (n, event) in events.iter_mut().enumerate() {
        event.id = format!("t:{n}");
        event.node_sequence = None;
        if event.instance.as_ref().is_some_and(|i| i.component.is_empty()) {
            event.instance = None;
            event.chakra = "mesh".to_owned();
        }
    }
    events
}

#[tokio::test]
async fn up_stores_the_stack_applies_it_and_follows_the_boot() -> Result<()> {
    let effect = |_: &str, _: &str| (v1::Receipt { mission_id: "m1".to_owned(), ..accepted() }, boot("complete"));
    let mesh = Mesh::start(World { on_command: Some(Box::new(effect)), ..World::default() }).await?;
    std::fs::write(mesh.folder().join("razar.yaml"), STACK)?;
    let said = mesh.razar(&["up", "--detach"]).await?;
    assert_eq!(
        said.out.lines().collect::<Vec<_>>(),
        [
            " 0.40s db ready 0.40s",
            "all 1 component ready in 0.40s  (. waits  : queued  = starting  x exit)",
            " db 0.40s ========================================",
            "critical path: db 0.40s; no queue on it",
        ],
        "{}",
        said.err
    );
    assert_eq!((said.exit, said.err.as_str()), (0, ""));
    let (verb, target, command) = mesh.world.lock().unwrap().commands[0].clone();
    assert_eq!((verb.as_str(), target.as_str()), ("apply", "demo"));
    let stored =
        mesh.bus.objects(razar_bus_schema::stream::Store::Stacks).get(&command.stack_revision, 1 << 20).await?.context("stored")?;
    assert_eq!(razar_bus_schema::ids::sha256_hex(&stored), command.stack_revision);
    Ok(())
}

#[tokio::test]
async fn an_incomplete_boot_ends_with_1_and_a_wrong_file_with_64() -> Result<()> {
    let effect = |_: &str, _: &str| (v1::Receipt { mission_id: "m1".to_owned(), ..accepted() }, boot("incomplete"));
    let mesh = Mesh::start(World { on_command: Some(Box::new(effect)), ..World::default() }).await?;
    std::fs::write(mesh.folder().join("razar.yaml"), STACK)?;
    assert_eq!(mesh.razar(&["up", "-d"]).await?.exit, 1);
    std::fs::write(mesh.folder().join("wrong.yaml"), STACK.replace("readiness", "readines"))?;
    let wrong = mesh.razar(&["up", "-d", "wrong.yaml"]).await?;
    assert_eq!(wrong.exit, 64);
    assert!(wrong.err.starts_with("error[unknown_key] wrong.yaml:3:"), "{}", wrong.err);
    let profile = mesh.razar(&["up", "-d", "--profile", "core"]).await?;
    assert_eq!((profile.exit, profile.err.as_str()), (64, "no profile `core`\n"));
    Ok(())
}

#[tokio::test]
async fn a_bus_that_is_away_is_unknown_not_down() -> Result<()> {
    let mut mesh = Mesh::start(World::default()).await?;
    mesh.kill_broker();
    let said = mesh.razar(&["status"]).await?;
    assert_eq!((said.exit, said.out.as_str()), (69, ""));
    assert!(said.err.starts_with("bus away: 127.0.0.1:"), "{}", said.err);
    assert!(said.err.contains(" refuses; the mesh's state is unknown\n"), "{}", said.err);
    Ok(())
}

#[tokio::test]
async fn arguments_that_are_wrong_end_with_64() -> Result<()> {
    let mesh = Mesh::start(World::default()).await?;
    for words in [&["statsu"][..], &["status", "--timeout", "soon"], &["restart"], &["command", "orchestrator", "restart", "a b"]] {
        assert_eq!(mesh.razar(words).await?.exit, 64, "{words:?}");
    }
    Ok(())
}
