//! What this machine allows when nothing supervises: a bare respawn, 77 spawned at once. The same programs, the same way of looking.

use std::{
    ffi::OsString,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::{fd::AsFd, unix::net::UnixDatagram},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use razar_os::{Child, Process, Signal, Spawn, append_file, spawn, wait_readable};

use crate::{programs::free_ports, report::Samples};

/// Pause between two looks at a port.
const LOOK: Duration = Duration::from_micros(50);
/// Longest wait for what takes a millisecond.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between two kills, as in the measurement of the mesh.
pub(crate) const PAUSE: Duration = Duration::from_millis(110);

/// Kills, and waits until the port listens again; the time of that. Blocks.
///
/// # Errors
/// When it does not die, or nothing listens in time.
pub(crate) fn kill_until_listening(process: &Process, port: u16, respawn: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    process.signal(Signal::KILL)?;
    // The dead one's backlog would answer until its socket is closed.
    if wait_readable(&[process.as_fd()], Some(LIMIT))? != [true] {
        bail!("a process outlived SIGKILL");
    }
    respawn()?;
    until_listening(port, began)?;
    Ok(began.elapsed())
}

fn until_listening(port: u16, began: Instant) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    while TcpStream::connect(address).is_err() {
        if began.elapsed() > LIMIT {
            bail!("nothing listens on {port}");
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// kill -9 → pidfd → spawn → listening, `count` times, by a loop that does nothing else. Blocks.
///
/// # Errors
/// When the demo service cannot be started.
pub(crate) fn respawn(demo: &Path, count: u32) -> Result<Samples> {
    let dir = tempfile::tempdir()?;
    let (log, _) = append_file(&dir.path().join("log"))?;
    let port = free_ports(1)?.first().copied().context("no port")?;
    let start = || start(demo, &["--name=floor".into(), format!("--port={port}").into()], &[], dir.path(), &log);
    let mut process = start()?.into_process()?;
    let mut samples = Samples::default();
    until_listening(port, Instant::now())?;
    for _ in 0..count {
        thread::sleep(PAUSE);
        let mut next = None;
        let took = kill_until_listening(&process, port, || {
            process.reap()?;
            next = Some(start()?);
            Ok(())
        });
        if let Some(child) = next {
            process = child.into_process()?;
        }
        samples.push(took?);
    }
    end(&process)?;
    Ok(samples)
}

/// `count` demo services that tell when they are ready, spawned from a thread per core: from the first spawn to the last word. Blocks.
///
/// # Errors
/// When they cannot be started.
pub(crate) fn parallel(demo: &Path, count: usize) -> Result<Duration> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let words = UnixDatagram::bind(&path)?;
    words.set_read_timeout(Some(LIMIT))?;
    let (log, _) = append_file(&dir.path().join("log"))?;
    let env = [("NOTIFY_SOCKET".into(), path.into_os_string())];
    let args: Vec<OsString> = vec!["--name=floor".into(), "--notify".into()];
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let began = Instant::now();
    let (children, told) = thread::scope(|scope| {
        let share = |index: usize| (0..count).filter(move |n| n % threads == index);
        let spawner = |index| {
            let (args, env, log, dir) = (&args, &env, &log, dir.path());
            scope.spawn(move || share(index).map(|_| start(demo, args, env, dir, log)).collect::<Vec<_>>())
        };
        let spawners: Vec<_> = (0..threads).map(spawner).collect();
        // Meanwhile the words are taken: ten fill a socket, and then the services wait.
        let mut word = [0; 64];
        let told = (0..count).try_for_each(|_| words.recv(&mut word).map(drop)).map(|()| began.elapsed());
        (spawners.into_iter().flat_map(|s| s.join().unwrap_or_default()).collect::<Vec<_>>(), told)
    });
    for child in children {
        end(&child?.into_process()?)?;
    }
    told.context("a service did not tell that it is ready")
}

/// Starts a demo service.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(demo: &Path, args: &[OsString], env: &[(OsString, OsString)], dir: &Path, log: &File) -> Result<Child> {
    let argv: Vec<OsString> = std::iter::once(demo.into()).chain(args.iter().cloned()).collect();
    Ok(spawn(&Spawn { env, ..Spawn::new(demo.as_os_str(), &argv, dir, log.as_fd()) })?)
}

/// Kills and reaps it.
///
/// # Errors
/// When it does not die.
pub(crate) fn end(process: &Process) -> Result<()> {
    process.signal(Signal::KILL)?;
    wait_readable(&[process.as_fd()], Some(LIMIT))?;
    process.reap()?;
    Ok(())
}
