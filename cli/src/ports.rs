//! Who holds a TCP port on this machine: `/proc/net/tcp` for the socket, `/proc/PID/fd` for its holder. Reads only; signals nobody.

use std::{fs, path::Path};

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its pid; absent when it belongs to another user, or to another namespace.
    pub(crate) pid: Option<u32>,
    /// Its name; empty when unknown.
    pub(crate) name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid} ({})", crate::render::text::escape(&self.name)),
            None => f.write_str("a process of another user"),
        }
    }
}

/// Who listens on `port` of any local address; `None`: nobody.
pub(crate) fn holder(port: u16) -> Option<Holder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|p| fs::read_to_string(p).unwrap_or_default());
    let inodes: Vec<u64> = tables.iter().flat_map(|t| listeners(t, port)).collect();
    (!inodes.is_empty()).then(|| process_of(&inodes).unwrap_or(Holder { pid: None, name: String::new() }))
}

/// Inodes of the sockets that listen on `port`, out of a table's text.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let found = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (found == port && state == LISTEN).then(|| fields.nth(5)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

fn process_of(inodes: &[u64]) -> Option<Holder> {
    let links: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    let mut pids: Vec<u32> = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let holds = |pid: &u32| {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| links.iter().any(|l| Path::new(l) == to)))
    };
    let pid = pids.into_iter().find(holds)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    Some(Holder { pid: Some(pid), name })
}

/// A port near `port` that nobody listens on, for a suggestion.
pub(crate) fn free_near(port: u16) -> Option<u16> {
    (port.checked_add(1)?..=port.saturating_add(200)).find(|p| std::net::TcpListener::bind(("127.0.0.1", *p)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_with_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(holder(port).unwrap().pid, Some(std::process::id()));
        drop(listener);
        assert_eq!(holder(port), None);
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   109        0 4711 1 x\n\
             1: 0100007F:1538 0100007F:9999 01 00000000:00000000 00:00000000 00000000   109        0 4712 1 x\n";
        assert_eq!(listeners(table, 5432), [4711]);
        assert!(listeners(table, 5433).is_empty());
    }
}
