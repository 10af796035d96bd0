//! `doctor`: what would keep a mesh from working on this machine, each finding with its fix. Looks, and changes nothing without `--fix`.

use std::path::Path;

use crate::{
    args::{Doctor, Global},
    console::{Console, Tone},
    exit::{Done, Exit},
    link::{Link, server},
    mesh::{BROKER_VERSION, Place, broker_version, find_binary, find_broker, host_port},
    ports,
    render::text::{bytes, count, escape},
    stack_file,
};

/// Past this the disk is nearly full: a full one stores no event.
const DISK_WARN_PERCENT: u64 = 90;

/// Past this there is no room for a day's events.
const DISK_FAIL_PERCENT: u64 = 98;

/// Free bytes past which a percentage worries nobody.
const DISK_FREE_ENOUGH: u64 = 20 << 30;

/// Open files of a node with 77 components: a pidfd, a log and probes each, with room.
const OPEN_FILES_MIN: u64 = 1024;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    what: String,
    fix: String,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), fix: String::new() }
    }

    fn warn(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warn, what: what.into(), fix: fix.into() }
    }

    fn fail(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Fail, what: what.into(), fix: fix.into() }
    }

    fn told(&self, console: &Console) -> String {
        let (word, tone) = match self.level {
            Level::Ok => ("ok  ", Tone::Good),
            Level::Warn => ("warn", Tone::Warn),
            Level::Fail => ("FAIL", Tone::Bad),
        };
        let fix = if self.fix.is_empty() { String::new() } else { format!("; fix: {}", self.fix) };
        format!("{} {}{fix}", console.paint(tone, word), self.what)
    }

    fn json(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        serde_json::json!({ "level": level, "what": self.what, "fix": self.fix }).to_string()
    }
}

/// Looks at everything; exit 1 if something fails.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) async fn run(args: &Doctor, console: &Console, global: &Global) -> Done {
    let place = Place::of(&global.mesh);
    let address = server(global, place.facts().as_ref());
    let link = Link::connect(&global.mesh, &address).await.ok();
    let mut findings = vec![broker(), node()];
    findings.push(bus(&address, link.as_ref(), &place));
    findings.extend(stack(&args.file, link.as_ref()).await);
    findings.push(disk(&place.dir));
    findings.push(open_files());
    findings.extend([pidfds(), cgroups()]);
    findings.extend(state(&place, args.fix));
    for finding in &findings {
        if console.json {
            console.line(&finding.json())?;
        } else if finding.level != Level::Ok || console.verbose {
            console.line(&finding.told(console))?;
        }
    }
    let of = |level| findings.iter().filter(|f| f.level == level).count();
    if !console.json {
        let verdict = match (of(Level::Fail), of(Level::Warn)) {
            (0, 0) => format!("well: {}", count(findings.len(), "check")),
            (0, warnings) => format!("{}, {}", count(findings.len(), "check"), count(warnings, "warning")),
            (failed, _) => format!("{}, {failed} failed", count(findings.len(), "check")),
        };
        console.line(&verdict)?;
    }
    Ok(if of(Level::Fail) > 0 { Exit::NotWell } else { Exit::Well })
}

fn broker() -> Finding {
    let (a, b, c) = BROKER_VERSION;
    match find_broker() {
        Err(failure) => Finding::fail(failure.text.trim_end_matches("; fix: make tools"), "make tools"),
        Ok(path) => match broker_version(&path) {
            None => Finding::fail(format!("{} does not say its version", path.display()), "make tools"),
            Some(v) if v < BROKER_VERSION => Finding::fail(
                format!("{} is {}.{}.{}: older than {a}.{b}.{c}, it can lose acknowledged data", path.display(), v.0, v.1, v.2),
                "make tools",
            ),
            Some(v) => Finding::ok(format!("nats-server {}.{}.{} at {}", v.0, v.1, v.2, path.display())),
        },
    }
}

fn node() -> Finding {
    match find_binary("razar-node") {
        Some(path) => Finding::ok(format!("razar-node at {}", path.display())),
        None => Finding::fail("razar-node is neither beside this program nor on PATH", "make build"),
    }
}

fn bus(address: &str, link: Option<&Link>, place: &Place) -> Finding {
    if link.is_some() {
        return Finding::ok(format!("the bus answers on {}", escape(address)));
    }
    let held = host_port(address).and_then(|(_, port)| Some((port, ports::holder(port)?)));
    match (held, place.guard()) {
        (Some((port, holder)), _) => {
            Finding::fail(format!("port {port} of the bus: held by {holder}, which is no broker"), "stop it, or --server with another port")
        }
        (None, Some(guard)) => Finding::fail(
            format!("the mesh runs (pid {}) and its bus does not answer on {}", guard.pid, escape(address)),
            format!("see {}", place.log().display()),
        ),
        (None, None) => Finding::ok("no mesh runs here"),
    }
}

/// Ports of the stack that are held by what is not of the mesh.
async fn stack(file: &Path, link: Option<&Link>) -> Vec<Finding> {
    if !file.is_file() {
        return Vec::new();
    }
    let loaded = match stack_file::read(file) {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(found)) => {
            let what = format!("{}: {}", file.display(), count(found.all().len(), "error"));
            return vec![Finding::fail(what, format!("razar validate {}", file.display()))];
        }
        Err(failure) => return vec![Finding::fail(failure.text, "another file")],
    };
    let ours = match link {
        Some(link) => link.status().await.ok().and_then(|(reply, _)| reply.observed).unwrap_or_default(),
        None => razar_bus_schema::v1::Observed::default(),
    };
    let running =
        |name: &str| ours.components.iter().any(|c| c.process.is_some() && c.instance.as_ref().is_some_and(|i| i.component == name));
    let mut findings = Vec::new();
    for (name, spec) in loaded.document.components.iter().filter(|(name, _)| !running(name)) {
        for (at, port) in spec.ports.iter().enumerate() {
            let Ok(port) = u16::try_from(*port) else { continue };
            let Some(holder) = ports::holder(port) else { continue };
            let line = loaded.place(&["components", name, "ports", &at.to_string()]).map(|p| format!(":{}", p.line)).unwrap_or_default();
            let what = format!("port {port} of {name}: held by {holder}, not ours");
            findings.push(Finding::fail(what, format!("stop it, or {}{line}", file.display())));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(format!("no port of {} is held by others", file.display())));
    }
    findings
}

fn disk(dir: &Path) -> Finding {
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statvfs(existing) else {
        return Finding::warn(format!("the disk of {} cannot be looked at", dir.display()), "RAZAR_STATE_DIR on another disk");
    };
    let (total, free) = (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize));
    let percent = 100 - free.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
    let what = format!("disk of {} {percent}% full", existing.display());
    // What is to be freed to come below the mark at which it was said.
    let to_free = bytes((total / 100).saturating_mul(percent.saturating_sub(DISK_WARN_PERCENT).max(1)));
    match percent {
        p if p >= DISK_FAIL_PERCENT => Finding::fail(format!("{what}: a full disk stores no event"), format!("free {to_free}")),
        p if p >= DISK_WARN_PERCENT && free < DISK_FREE_ENOUGH => {
            Finding::warn(format!("{what}: a full disk stores no event"), format!("free {to_free}"))
        }
        _ => Finding::ok(what),
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.current {
        Some(n) if n < OPEN_FILES_MIN => {
            let most = limit.maximum.map_or_else(|| "unlimited".to_owned(), |m| m.to_string());
            Finding::warn(format!("{n} open files allowed, {OPEN_FILES_MIN} are little enough"), format!("ulimit -n {most}"))
        }
        Some(n) => Finding::ok(format!("{n} open files allowed")),
        None => Finding::ok("open files without limit"),
    }
}

fn pidfds() -> Finding {
    match rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()) {
        Ok(_) => Finding::ok("the kernel has pidfds"),
        Err(e) => Finding::fail(format!("the kernel has no pidfds ({e}): an exit cannot be seen at once"), "Linux 5.4 or newer"),
    }
}

fn cgroups() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let v2 = mounts.lines().filter_map(|l| {
        let mut fields = l.split_whitespace().skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(at)
    });
    let writable = v2.clone().find(|at| rustix::fs::access(*at, rustix::fs::Access::WRITE_OK).is_ok());
    match (writable, v2.count()) {
        (Some(at), _) => Finding::ok(format!("cgroup v2 at {at}: whole trees end at once")),
        (None, 0) => Finding::ok("no cgroup v2: trees are ended by group, session and tag"),
        (None, _) => Finding::ok("cgroup v2 is not writable here: trees are ended by group, session and tag"),
    }
}

/// What an earlier mesh left: a pid file without a guard, processes without a guard, an address that nobody has.
fn state(place: &Place, fix: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if place.guard().is_some() {
        return findings;
    }
    let left = place.processes();
    if !left.is_empty() {
        let told: Vec<_> = left.iter().map(|(pid, name)| format!("{pid} ({})", escape(name))).collect();
        findings.push(Finding::warn(format!("no guard, but processes of the mesh: pid {}", told.join(", ")), "razar up: it adopts them"));
        return findings;
    }
    let stale = place.dir.join("mesh.json");
    if !stale.exists() {
        return findings;
    }
    if fix {
        findings.push(match std::fs::remove_file(&stale) {
            Ok(()) => Finding::ok(format!("{} of a mesh that has ended: removed", stale.display())),
            Err(e) => Finding::warn(format!("{} cannot be removed: {e}", stale.display()), format!("rm {}", stale.display())),
        });
    } else {
        findings.push(Finding::ok(format!("{} is of a mesh that has ended", stale.display())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::time::Zone;

    #[test]
    fn a_finding_says_its_fix() {
        let console = Console::new("razar".to_owned(), true, false, false, Zone::Utc);
        let held = Finding::fail("port 5433 of postgres: held by pid 4121 (postgres), not ours", "stop it, or razar.yaml:9");
        assert_eq!(held.told(&console), "FAIL port 5433 of postgres: held by pid 4121 (postgres), not ours; fix: stop it, or razar.yaml:9");
        assert_eq!(Finding::ok("the kernel has pidfds").told(&console), "ok   the kernel has pidfds");
    }

    #[tokio::test]
    async fn a_port_that_is_held_is_named_with_its_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("razar.yaml");
        let text = format!(
            "name: demo\ncomponents:\n  db:\n    chakra: heart\n    command: [/bin/db]\n    ports: [{port}]\n    readiness: none\n"
        );
        std::fs::write(&file, text).unwrap();
        let findings = stack(&file, None).await;
        let me = std::process::id();
        assert_eq!(findings[0].level, Level::Fail);
        assert!(findings[0].what.starts_with(&format!("port {port} of db: held by pid {me} (")), "{findings:?}");
        assert!(findings[0].fix.ends_with("razar.yaml:6"), "{findings:?}");
    }
}
