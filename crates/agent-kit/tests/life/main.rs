//! The life of a real process: exit codes, health, metrics, beats, spans, and an end that waits for nobody.

#[path = "../../../bus/tests/real/broker.rs"]
mod broker;
mod collector;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use broker::{Broker, SOON, soon};
use prost::Message;
use razar_bus::{FoldItem, Start};
use razar_bus_schema::v1::{self, event::Fact};

/// The example agent, built beside the tests.
fn program() -> Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let path = tests.parent().and_then(|p| p.parent()).context("no target folder")?.join("examples/idle");
    anyhow::ensure!(path.is_file(), "{} is missing: run `cargo test -p razar-agent-kit` without a filter of targets", path.display());
    Ok(path)
}

struct Process {
    child: Child,
    http: String,
    _settings: tempfile::NamedTempFile,
}

impl Process {
    /// Starts the agent and waits until it tells its address.
    fn start(settings: &str, env: &[(&str, String)]) -> Result<Self> {
        let (mut command, file) = command(settings, env)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        anyhow::ensure!(!line.trim().is_empty(), "the agent ended at once");
        Ok(Self { child, http: line.trim().to_owned(), _settings: file })
    }

    /// Status and body of a GET.
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("status")?.parse()?;
        let body = answer.split_once("\r\n\r\n").context("body")?.1.to_owned();
        Ok((status, body))
    }

    /// Asks it to end; how it ended, and how long that took.
    fn end(mut self) -> Result<(ExitStatus, Duration)> {
        let asked = Instant::now();
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let status = self.child.wait()?;
        Ok((status, asked.elapsed()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's command, and its file of settings, to be kept while it runs.
fn command(settings: &str, env: &[(&str, String)]) -> Result<(Command, tempfile::NamedTempFile)> {
    let mut file = tempfile::NamedTempFile::new()?;
    write!(file, "[settings]\n{settings}\n")?;
    let mut command = Command::new(program()?);
    command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped()).envs(env.iter().map(|(k, v)| (k, v)));
    command.env("RAZAR_CONFIG", file.path());
    Ok((command, file))
}

/// Runs it to its end: exit code and what it said.
fn ended(settings: &str, env: (&str, String)) -> Result<(Option<i32>, String)> {
    let (mut command, _file) = command(settings, &[env])?;
    let output = command.output()?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

fn server(broker: &Broker) -> (&'static str, String) {
    ("RAZAR_SERVER", format!("127.0.0.1:{}", broker.port))
}

/// Waits for something that a process does by itself.
fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        anyhow::ensure!(began.elapsed() < SOON, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_wrong_configuration_exits_64_and_says_what() -> Result<()> {
    let cases = [
        ("", ("RAZAR_HTTP", "nowhere"), "RAZAR_HTTP"),
        ("stal = true", ("RAZAR_MESH", "razar"), "stal"),
        ("", ("RAZAR_CREDENTIALS", "/nonexistent"), "/nonexistent"),
    ];
    for (settings, (name, value), told) in cases {
        let (code, stderr) = ended(settings, (name, value.to_owned()))?;
        assert_eq!(code, Some(64), "{stderr}");
        assert!(stderr.contains(told) && stderr.contains("razar-idle"), "{stderr}");
    }
    Ok(())
}

#[test]
fn a_failed_start_and_a_failed_agent_exit_1() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (code, stderr) = ended("", ("RAZAR_HTTP", taken.local_addr()?.to_string()))?;
    assert_eq!(code, Some(1), "{stderr}");
    let (code, stderr) = ended("fail = true", ("RAZAR_MESH", "razar".to_owned()))?;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("it was told to fail"), "{stderr}");
    Ok(())
}

#[test]
fn an_agent_says_that_the_bus_is_away_and_lives_on() -> Result<()> {
    let mut broker = Broker::start()?;
    let process = Process::start("", &[server(&broker)])?;
    until("ready", || Ok(process.get("/readyz")? == (200, r#"{"ready":true,"reasons":{}}"#.to_owned())))?;
    broker.kill();
    until("not ready", || {
        let (status, body) = process.get("/readyz")?;
        Ok(status == 503 && body == r#"{"ready":false,"reasons":{"bus":"the bus is away"}}"#)
    })?;
    assert_eq!(process.get("/healthz")?.0, 200);
    let (_, metrics) = process.get("/metrics")?;
    for name in [
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "razar_bus_up 0",
        "razar_bus_reconnects_total 0",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
    broker.spawn()?;
    until("ready again", || Ok(process.get("/readyz")?.0 == 200))?;
    let (status, took) = process.end()?;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    Ok(())
}

#[test]
fn a_loop_that_stands_still_is_not_alive() -> Result<()> {
    let process = Process::start("stall = true", &[])?;
    assert_eq!(process.get("/healthz")?.0, 200);
    until("dead", || Ok(process.get("/healthz")?.0 == 503))?;
    let (status, took) = process.end()?;
    assert!(status.success() && took < Duration::from_secs(5), "{status} {took:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_tells_that_it_started_and_beats() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.provisioned().await?;
    let mut beats = bus.subscribe("razar.heartbeat.agent.>", 16).await?;
    bus.flush().await?;
    let replica = ("RAZAR_REPLICA", "idle-1".to_owned());
    let process = Process::start("", &[server(&broker), replica])?;
    let mut fold = bus.fold_events(Start::Beginning);
    let event = loop {
        match soon("an event", fold.next()).await?.context("ended")? {
            FoldItem::Event { event, .. } => break event,
            FoldItem::Reset { .. } | FoldItem::CaughtUp { .. } | FoldItem::DeadLetter { .. } => {}
        }
    };
    assert!(event.id.starts_with("a:idle:agent_started:_:_:idle-1:"), "{}", event.id);
    let http = process.http.clone();
    assert!(matches!(&event.fact, Some(Fact::AgentStarted(s)) if s.kind == "idle" && s.id == "idle-1" && s.http == http), "{event:?}");
    for cycle in 1..=2 {
        let message = soon("a beat", beats.next()).await?.context("ended")?;
        assert_eq!(message.subject, "razar.heartbeat.agent.idle-1");
        let beat = v1::Heartbeat::decode(message.payload)?;
        assert!(beat.cycle >= cycle && beat.loop_age.is_some(), "{beat:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_a_collector_by_grpc_and_by_http() -> Result<()> {
    for (protocol, mut collector) in [("grpc", collector::grpc().await?), ("http/protobuf", collector::http().await?)] {
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone()), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned())];
        let process = Process::start("spans = 3", &env)?;
        // The end of the process sends what is left.
        let (status, _) = tokio::task::spawn_blocking(move || process.end()).await??;
        assert!(status.success());
        let mut spans = Vec::new();
        while spans.len() < 3 {
            spans.extend(soon("spans", collector.received.recv()).await?.context("the collector ended")?);
        }
        let (service, span) = spans.first().context("a span")?;
        assert_eq!((service.as_str(), span.name.as_str()), ("razar-idle", "process {event}"));
        assert_eq!((span.trace_id.as_slice(), span.parent_span_id.as_slice()), ([7; 16].as_slice(), [9; 8].as_slice()));
        assert_eq!(span.kind, 5, "CONSUMER");
        assert_eq!(span.status.as_ref().map(|s| (s.code, s.message.as_str())), Some((2, "it did not come")));
        for key in ["service.name", "service.instance.id", "razar.rank"] {
            assert!(span.attributes.iter().any(|a| a.key == key), "{key}");
        }
    }
    Ok(())
}

#[test]
fn a_collector_that_never_answers_slows_nothing() -> Result<()> {
    // It takes connections and says nothing.
    let hole = std::net::TcpListener::bind("127.0.0.1:0")?;
    for protocol in ["grpc", "http/protobuf"] {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", hole.local_addr()?));
        let began = Instant::now();
        let process = Process::start("spans = 20000", &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned())])?;
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let (_, metrics) = process.get("/metrics")?;
        let dropped = metrics.lines().find_map(|l| l.strip_prefix("razar_spans_dropped_total ")).context("no count of drops")?;
        assert!(dropped.parse::<u64>()? >= 20_000 - 8192 - 512 - 512, "{dropped}");
        let (status, took) = process.end()?;
        assert!(status.success() && took < Duration::from_secs(5), "{protocol}: {status} {took:?}");
    }
    Ok(())
}

#[test]
fn without_a_collector_there_is_no_thread_for_spans() -> Result<()> {
    let process = Process::start("spans = 3", &[])?;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.child.id()))?;
    let names: Vec<_> = tasks.map(|t| Ok(std::fs::read_to_string(t?.path().join("comm"))?)).collect::<Result<_>>()?;
    assert!(!names.iter().any(|n| n.trim() == "spans"), "{names:?}");
    Ok(())
}

#[test]
fn connections_that_say_nothing_do_not_shut_the_others_out_for_long() -> Result<()> {
    let process = Process::start("", &[])?;
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(&process.http)).collect::<Result<_, _>>()?;
    let began = Instant::now();
    assert_eq!(process.get("/healthz")?.0, 200);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(silent);
    Ok(())
}
