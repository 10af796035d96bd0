//! Processes as the kernel tells them: who belongs to a mesh, who lives, and signals to them. Nothing here asks the mesh.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// How long a loopback peer may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A living process of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Pid.
    pub pid: u32,
    /// Arguments, blanks between them.
    pub command: String,
}

/// Processes whose environment names mesh `mesh`, or whose cgroup is one of it; zombies are none.
#[must_use]
pub(super) fn of_mesh(mesh: &str) -> Vec<Process> {
    let variable = format!("RAZAR_MESH={mesh}");
    let group = format!("/razar/{mesh}/");
    let of = |pid: u32| {
        if pid == std::process::id() || !alive(pid) {
            return None;
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let in_group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().contains(&group);
        let named = environment.split(|b| *b == 0).any(|v| v == variable.as_bytes());
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        (named || in_group).then_some(Process { pid, command })
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(of).collect()
}

/// Fields of `/proc/PID/stat` after the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Whether a process with this number lives, and is no zombie.
#[must_use]
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// Value of a variable in the environment that it was started with.
#[must_use]
pub fn environment_of(pid: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let of = |entry: &[u8]| Some(String::from_utf8_lossy(entry).strip_prefix(name)?.strip_prefix('=')?.to_owned());
    environment.split(|b| *b == 0).find_map(of)
}

/// Its parent.
#[must_use]
pub fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let to = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no pid"))?;
    rustix::process::kill_process(to, signal).with_context(|| format!("sending {signal:?} to {pid}"))
}

/// Whether anybody listens on a port of the loopback.
#[must_use]
pub fn port_is_open(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER).is_ok()
}

/// Status line and body of a GET.
///
/// # Errors
/// When nobody answers.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let mut peer = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER)?;
    peer.set_read_timeout(Some(ANSWER))?;
    peer.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
