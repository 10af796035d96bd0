//! A component that hangs: stopped by SIGSTOP while it is probed each 100 ms; stopped, and deadlocked, with default settings. Until the
//! stored `component_ready` of its next incarnation is received. The hangs of one kind overlap: each waits for a clock, not for a core.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{Read, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use razar_os::Signal;

use crate::{
    mesh::{Follower, Mesh, Sync},
    programs::{Programs, free_ports},
    report::{Line, Samples, Target},
};

/// Time between two hangs: no divisor of a probe's period, so that they meet every phase of it.
const STEP: Duration = Duration::from_millis(137);
/// A component is settled when its probes have their rhythm.
const SETTLED: Duration = Duration::from_millis(1_200);
/// The demo service answers nothing any more after it was asked this.
const HANG_PATH: &str = "/hang";

/// A kind of hang.
#[derive(Debug, Clone, Copy)]
enum Kind {
    StoppedFast,
    Stopped,
    Deadlocked,
}

impl Kind {
    const ALL: [Self; 3] = [Self::StoppedFast, Self::Stopped, Self::Deadlocked];

    fn prefix(self) -> &'static str {
        match self {
            Self::StoppedFast => "fast",
            Self::Stopped => "stopped",
            Self::Deadlocked => "deadlocked",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::StoppedFast => "stopped, probed each 100 ms -> replaced",
            Self::Stopped => "stopped, default settings -> replaced",
            Self::Deadlocked => "deadlocked, default settings -> replaced",
        }
    }

    fn most(self) -> f64 {
        match self {
            Self::StoppedFast => 250.0,
            Self::Stopped => 2_500.0,
            Self::Deadlocked => 4_500.0,
        }
    }
}

/// Measures.
///
/// # Errors
/// When the mesh cannot be had, or a hang is not seen.
pub(crate) async fn measure(programs: &Programs, hangs: u32) -> Result<Vec<Line>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("razar.yaml");
    let ports = free_ports(Kind::ALL.len() * usize::try_from(hangs)?)?;
    let mut victims: Vec<(Kind, String, u16)> = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        if let Some(kind) = Kind::ALL.get(index % Kind::ALL.len()) {
            victims.push((*kind, format!("{}{}", kind.prefix(), index / Kind::ALL.len()), port));
        }
    }
    std::fs::write(&path, stack(&programs.demo(), &victims)?)?;
    let mesh = Mesh::up(programs, &path, &[], Sync::Always).await?;
    let mut lines = Vec::new();
    for kind in Kind::ALL {
        let prefix = kind.prefix();
        let of_kind: Vec<_> = victims.iter().filter(|(_, name, _)| name.starts_with(prefix)).map(|(_, n, p)| (n.clone(), *p)).collect();
        let samples = replaced(&mesh, kind, &of_kind).await?;
        lines.push(Line::times(kind.what(), samples, &[Target::Largest(kind.most())]));
    }
    mesh.down().await?;
    Ok(lines)
}

async fn replaced(mesh: &Mesh, kind: Kind, victims: &[(String, u16)]) -> Result<Samples> {
    let mut follower = Follower::of(mesh).await?;
    let mut processes = Vec::new();
    for (name, port) in victims {
        processes.push((name.clone(), *port, follower.settled(name, SETTLED).await?));
    }
    let hang = async move {
        let mut began = HashMap::new();
        for (name, port, process) in processes {
            match kind {
                Kind::StoppedFast | Kind::Stopped => drop(process.signal(Signal::STOP)?),
                Kind::Deadlocked => tokio::task::spawn_blocking(move || deadlock(port)).await??,
            }
            began.insert(name, Instant::now());
            tokio::time::sleep(STEP).await;
        }
        Ok::<_, anyhow::Error>(began)
    };
    let come_back = async {
        let mut back = HashMap::new();
        while back.len() < victims.len() {
            let (name, at) = follower.next_ready().await.with_context(|| format!("{} of {} came back", back.len(), victims.len()))?;
            if victims.iter().any(|(victim, _)| *victim == name) {
                back.insert(name, at);
            }
        }
        Ok(back)
    };
    let (began, back) = tokio::try_join!(hang, come_back)?;
    let mut samples = Samples::default();
    for (name, at) in back {
        samples.push(at.duration_since(*began.get(&name).context("came back without a hang")?));
    }
    Ok(samples)
}

fn deadlock(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {HANG_PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn stack(demo: &str, victims: &[(Kind, String, u16)]) -> Result<String> {
    let mut text = "name: bench-hang\nmesh: { parallel_starts: 100, local_restarts: { max: 1000, within: 24h } }\ncomponents:\n".to_owned();
    for (kind, name, port) in victims {
        let settings = if matches!(kind, Kind::StoppedFast) { ", period: 100ms, timeout: 100ms" } else { "" };
        writeln!(
            text,
            "  {name}:\n    chakra: heart\n    command: [{demo}, --name={name}, --port={port}, --notify, --hang-on={HANG_PATH}]"
        )?;
        writeln!(text, "    ports: [{port}]\n    readiness: {{ notify: true }}")?;
        writeln!(text, "    liveness: {{ http: {{ port: {port}, path: /alive }}{settings} }}")?;
    }
    Ok(text)
}
