//! The guard with real processes. Without the test harness, since this program is also the guard (`guard <dir> <command…>`) and an agent
//! (`agent <dir>`) that it tests, and a guard must be single-threaded.

#![expect(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use razar_node::guard::{self, Exits, GuardConfig, GuardWatch, KeptSockets};
use razar_os::{BoundSocket, ExitStatus, NotifySocket, Pid, Process, Signal};

/// Sockets that `giver` gives.
const GIVEN: usize = 40;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("guard") => ExitCode::from(guard::run(GuardConfig { state_dir: PathBuf::from(&args[1]), agent_command: args[2..].to_vec() })),
        Some("agent") => agent(Path::new(&args[1])),
        Some("listener") => listener(Path::new(&args[1])),
        Some("giver") => giver(Path::new(&args[1])),
        _ => run_tests(&args),
    }
}

fn run_tests(args: &[OsString]) -> ExitCode {
    let tests: [(&str, fn()); 14] = [
        ("an_agent_that_is_killed_is_started_again_at_once", an_agent_that_is_killed_is_started_again_at_once),
        ("quick_deaths_are_spaced_and_never_given_up", quick_deaths_are_spaced_and_never_given_up),
        ("exits_of_orphans_are_noted_with_their_code", exits_of_orphans_are_noted_with_their_code),
        ("an_exit_between_two_agents_keeps_its_code", an_exit_between_two_agents_keeps_its_code),
        ("a_bad_config_and_an_ordered_end_end_the_guard", a_bad_config_and_an_ordered_end_end_the_guard),
        ("a_stop_is_passed_on_and_waited_for", a_stop_is_passed_on_and_waited_for),
        ("a_second_signal_ends_the_guard_and_leaves_the_agent", a_second_signal_ends_the_guard_and_leaves_the_agent),
        ("a_second_guard_of_the_same_node_is_refused", a_second_guard_of_the_same_node_is_refused),
        ("an_agent_that_loses_its_guard_starts_another", an_agent_that_loses_its_guard_starts_another),
        ("a_command_that_cannot_be_started_is_tried_on", a_command_that_cannot_be_started_is_tried_on),
        ("what_is_said_between_two_agents_is_heard_by_the_second", what_is_said_between_two_agents_is_heard_by_the_second),
        ("a_socket_outlives_its_guard_and_is_let_go_with_its_file", a_socket_outlives_its_guard_and_is_let_go_with_its_file),
        ("nobody_waits_for_agents_that_never_live", nobody_waits_for_agents_that_never_live),
        ("sockets_given_right_after_one_another_are_taken", sockets_given_right_after_one_another_are_taken),
    ];
    if args.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&str> = args.iter().filter_map(|a| a.to_str()).filter(|a| !a.starts_with('-')).collect();
    let exact = args.iter().any(|a| a == "--exact");
    let fits = |name: &str| wanted.is_empty() || wanted.iter().any(|w| if exact { name == *w } else { name.contains(w) });
    // Said as the test harness says it: others read that.
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| fits(name)) {
        let is_ok = std::panic::catch_unwind(test).is_ok();
        *(if is_ok { &mut passed } else { &mut failed }) += 1;
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured");
    ExitCode::from(u8::from(failed > 0))
}

/// An agent that does nothing but see to its guard.
fn agent(dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let watch = GuardWatch::new().unwrap();
    std::fs::write(dir.join("agent.pid"), std::process::id().to_string()).unwrap();
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::select! {
            gone = watch.gone() => {
                gone.unwrap();
                let me = std::env::current_exe().unwrap();
                let command = [me.clone().into(), "guard".into(), dir.into(), me.into(), "agent".into(), dir.into()];
                guard::respawn(&command, dir, &[]).unwrap();
                ExitCode::SUCCESS
            }
            _ = term.recv() => ExitCode::SUCCESS,
        }
    })
}

/// An agent that binds a notification socket, or has it from the agent before it, and writes down what waits there without taking it.
fn listener(dir: &Path) -> ExitCode {
    let mut kept = KeptSockets::inherited();
    let path = dir.join("notify");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let watch = GuardWatch::new().unwrap();
    runtime.block_on(async {
        let bound = kept.take(&path).unwrap_or_else(|| {
            let bound = BoundSocket::bind(&path).unwrap();
            kept.keep(&bound).unwrap();
            std::fs::OpenOptions::new().create(true).append(true).open(dir.join("binds")).unwrap().write_all(b"bound\n").unwrap();
            bound
        });
        let socket = NotifySocket::new(bound).unwrap();
        std::fs::write(dir.join("agent.pid"), std::process::id().to_string()).unwrap();
        tokio::select! {
            () = async {
                let heard = socket.peek().await.unwrap();
                std::fs::write(dir.join(format!("heard.{}", std::process::id())), heard.status.unwrap_or_default()).unwrap();
                std::future::pending().await
            } => {}
            gone = watch.gone() => {
                gone.unwrap();
                let me = std::env::current_exe().unwrap();
                let command = [me.clone().into(), "guard".into(), dir.into(), me.into(), "listener".into(), dir.into()];
                guard::respawn(&command, dir, &[socket.bound().as_fd()]).unwrap();
            }
        }
    });
    ExitCode::SUCCESS
}

/// An agent that gives sockets to its guard, one each millisecond, and then lives on.
fn giver(dir: &Path) -> ExitCode {
    let kept = KeptSockets::inherited();
    for n in 0..GIVEN {
        let bound = BoundSocket::bind(&dir.join(format!("notify.{n}"))).unwrap();
        kept.keep(&bound).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::write(dir.join("agent.pid"), std::process::id().to_string()).unwrap();
    loop {
        std::thread::park();
    }
}

/// A guard with a shell script as agent; both end with it.
struct Node {
    dir: tempfile::TempDir,
    guard: Child,
}

impl Node {
    fn with_script(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let command =
            ["sh".into(), "-c".into(), format!("cd {}; echo $$ >> starts; echo $$ > agent.pid; {script}", dir.path().display()).into()];
        Self::with_command(dir, &command)
    }

    fn with_command(dir: tempfile::TempDir, command: &[OsString]) -> Self {
        let guard = guard_of(dir.path(), command).spawn().unwrap();
        Self { dir, guard }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn number_in(&self, name: &str) -> Pid {
        let mut number = None;
        wait(name, || {
            number = std::fs::read_to_string(self.path(name)).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::new);
            number.is_some()
        });
        number.unwrap()
    }

    fn process_in(&self, name: &str) -> Process {
        Process::current_holder(self.number_in(name)).unwrap().unwrap_or_else(|| panic!("the process of {name} has gone"))
    }

    fn starts(&self) -> usize {
        std::fs::read_to_string(self.path("starts")).map_or(0, |text| text.lines().count())
    }

    fn signal(&self, signal: Signal) {
        let guard = Process::current_holder(Pid::new(i32::try_from(self.guard.id()).unwrap()).unwrap()).unwrap().unwrap();
        guard.signal(signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        wait("the end of the guard", || {
            status = self.guard.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        if let Ok(Some(other)) = guard::running(self.dir.path()) {
            let _ = other.signal(Signal::KILL);
        }
        for name in ["agent.pid", "orphan.pid"] {
            let pid = std::fs::read_to_string(self.path(name)).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::new);
            if let Some(Ok(Some(process))) = pid.map(Process::current_holder) {
                let _ = process.signal(Signal::KILL);
            }
        }
    }
}

fn guard_of(dir: &Path, command: &[OsString]) -> Command {
    let mut guard = Command::new(std::env::current_exe().unwrap());
    guard.arg("guard").arg(dir).args(command).stdin(Stdio::null()).stderr(std::fs::File::create(dir.join("stderr")).unwrap());
    guard
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn an_agent_that_is_killed_is_started_again_at_once() {
    let node = Node::with_script("echo \"$RAZAR_GUARD\" > guard; exec sleep 1000");
    let first = node.process_in("agent.pid");
    wait("the agent is told its guard", || std::fs::read_to_string(node.path("guard")).is_ok_and(|g| g.ends_with('\n')));
    let told = std::fs::read_to_string(node.path("guard")).unwrap();
    assert_eq!(told, std::fs::read_to_string(node.path("guard.pid")).unwrap());
    assert!(told.starts_with(&format!("{} ", node.guard.id())));
    assert_eq!(guard::running(node.dir.path()).unwrap().unwrap().pid().as_raw().unsigned_abs(), node.guard.id());

    let killed_at = Instant::now();
    first.signal(Signal::KILL).unwrap();
    wait("a second start", || node.starts() == 2);
    let took = killed_at.elapsed();
    println!("  killed to started again and running its first command: {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    wait("another process", || node.number_in("agent.pid") != first.pid());
}

fn quick_deaths_are_spaced_and_never_given_up() {
    let node = Node::with_script("date +%s%N >> times; exit 3");
    wait("ten starts", || node.starts() >= 10);
    let times: Vec<u64> = std::fs::read_to_string(node.path("times")).unwrap().lines().map(|l| l.parse().unwrap()).collect();
    let gaps: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    // 0, 10, 20, 40, 80, 160, 320, 640, 1000 ms, each with the start itself on top.
    for (gap, least) in gaps.iter().zip([0, 10, 20, 40, 80, 160, 320, 640, 1000]) {
        assert!(*gap >= least && *gap < least + 400, "{gaps:?}");
    }
}

fn exits_of_orphans_are_noted_with_their_code() {
    // The middle shell ends at once, so its child becomes the guard's.
    let orphan = "setsid sh -c 'echo $$ > orphan.pid; while [ ! -e go ]; do sleep 0.01; done; exit 7'";
    let node = Node::with_script(&format!("sh -c \"{}\" ; exec sleep 1000", format_args!("{} &", orphan.replace('$', "\\$"))));
    let orphan = node.process_in("orphan.pid");
    let mut exits = Exits::open(&guard::exits_path(node.dir.path())).unwrap();
    let start = orphan.identity().start_time_ticks;
    assert_eq!(exits.take(orphan.pid(), start).unwrap(), None, "it lives");
    std::fs::write(node.path("go"), "").unwrap();
    let mut noted = None;
    wait("the exit is noted", || {
        noted = exits.take(orphan.pid(), start).unwrap();
        noted.is_some()
    });
    assert_eq!(noted, Some(ExitStatus { code: Some(7), signal: None, core_dumped: false }));
    assert!(Process::open(&orphan.identity()).unwrap().is_none(), "it was reaped");
    assert_eq!(exits.take(orphan.pid(), start + 1).unwrap(), None, "another start time is another process");
}

fn an_exit_between_two_agents_keeps_its_code() {
    // A component of the first agent ends by SIGKILL after that agent; the second one is slow to come.
    let script = "if [ $(wc -l < starts) = 1 ]; then setsid sleep 1000 & echo $! > orphan.pid; fi; exec sleep 1000";
    let node = Node::with_script(script);
    let component = node.process_in("orphan.pid");
    node.process_in("agent.pid").signal(Signal::KILL).unwrap();
    wait("a second start", || node.starts() == 2);
    component.signal(Signal::KILL).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut exits = Exits::open(&guard::exits_path(node.dir.path())).unwrap();
    let status = runtime.block_on(guard::status_of(&component, &mut exits)).unwrap();
    assert_eq!(status, Some(ExitStatus { code: None, signal: Some(9), core_dumped: false }));
    // And without the kernel's own record of it.
    let mut exits = Exits::open(&guard::exits_path(node.dir.path())).unwrap();
    let mut noted = None;
    wait("the exit is noted", || {
        noted = exits.take(component.pid(), component.identity().start_time_ticks).unwrap();
        noted.is_some()
    });
    assert_eq!(noted, status);
}

fn a_bad_config_and_an_ordered_end_end_the_guard() {
    for code in [64, 0] {
        let mut node = Node::with_script(&format!("exit {code}"));
        assert_eq!(node.code(), Some(code));
        assert_eq!(node.starts(), 1);
    }
}

fn a_stop_is_passed_on_and_waited_for() {
    let mut node = Node::with_script("trap 'sleep 0.2; echo done > stopped; exit 0' TERM; echo > ready; while :; do sleep 0.02; done");
    wait("the agent is ready", || node.path("ready").exists());
    node.signal(Signal::INT);
    assert_eq!(node.code(), Some(0));
    assert!(node.path("stopped").exists());
    assert_eq!(node.starts(), 1);
}

fn a_second_signal_ends_the_guard_and_leaves_the_agent() {
    let mut node = Node::with_script("trap 'echo > asked' TERM; echo > ready; while :; do sleep 0.02; done");
    let agent = node.process_in("agent.pid");
    wait("the agent is ready", || node.path("ready").exists());
    node.signal(Signal::TERM);
    wait("the agent was asked", || node.path("asked").exists());
    node.signal(Signal::TERM);
    assert_eq!(node.code(), Some(1));
    assert!(!agent.has_exited().unwrap());
}

fn a_second_guard_of_the_same_node_is_refused() {
    let node = Node::with_script("exec sleep 1000");
    node.number_in("agent.pid");
    let mut second = guard_of(node.dir.path(), &["true".into()]);
    assert_eq!(second.status().unwrap().code(), Some(1));
    let said = std::fs::read_to_string(node.path("stderr")).unwrap();
    assert!(said.contains("another guard runs this node already"), "{said}");
    assert_eq!(node.starts(), 1);
}

fn an_agent_that_loses_its_guard_starts_another() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let command = [me.into(), "agent".into(), dir.path().into()];
    let mut node = Node::with_command(dir, &command);
    let first_agent = node.process_in("agent.pid");
    node.guard.kill().unwrap();
    node.guard.wait().unwrap();
    let lost = node.guard.id();
    let mut second = None;
    wait("another guard", || {
        second = guard::running(node.dir.path()).unwrap().filter(|guard| guard.pid().as_raw().unsigned_abs() != lost);
        second.is_some()
    });
    wait("another agent", || node.number_in("agent.pid") != first_agent.pid());
    wait("the first agent has gone", || first_agent.has_exited().unwrap());
    second.unwrap().signal(Signal::TERM).unwrap();
    wait("the second guard has gone", || guard::running(node.dir.path()).unwrap().is_none());
}

fn a_command_that_cannot_be_started_is_tried_on() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("agent");
    let node = Node::with_command(dir, &[missing.clone().into()]);
    wait("it was said", || std::fs::read_to_string(node.path("stderr")).is_ok_and(|said| said.contains("cannot start the agent")));
    let script = format!("#!/bin/sh\ncd {}\necho $$ > agent.pid\nexec sleep 1000\n", node.dir.path().display());
    let arriving = node.path("arriving");
    std::fs::write(&arriving, script).unwrap();
    std::fs::set_permissions(&arriving, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&arriving, &missing).unwrap();
    node.number_in("agent.pid");
}

/// A guard whose agent listens, and that agent's process.
fn listening() -> (Node, Process) {
    let dir = tempfile::tempdir().unwrap();
    let command = [std::env::current_exe().unwrap().into(), "listener".into(), dir.path().into()];
    let node = Node::with_command(dir, &command);
    let agent = node.process_in("agent.pid");
    (node, agent)
}

/// Sockets that a guard holds.
fn sockets_of(guard: &Process) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", guard.pid())).unwrap();
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count()
}

fn send(node: &Node, status: &str) -> std::io::Result<usize> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(format!("READY=1\nSTATUS={status}").as_bytes(), node.path("notify"))
}

fn wait_heard(node: &Node, agent: Pid, status: &str) {
    let path = node.path(&format!("heard.{agent}"));
    wait("what was said to be heard", || std::fs::read_to_string(&path).is_ok_and(|heard| heard == status));
}

/// The agent after `last`.
fn next_agent(node: &Node, last: Pid) -> Process {
    let mut next = None;
    wait("another agent", || {
        next = Process::current_holder(node.number_in("agent.pid")).unwrap().filter(|agent| agent.pid() != last);
        next.is_some()
    });
    next.unwrap()
}

fn what_is_said_between_two_agents_is_heard_by_the_second() {
    let (node, first) = listening();
    node.signal(Signal::STOP);
    first.signal(Signal::KILL).unwrap();
    wait("the end of the agent", || first.has_exited().unwrap());
    send(&node, "nobody lives").unwrap();
    node.signal(Signal::CONT);
    let second = next_agent(&node, first.pid());
    wait_heard(&node, second.pid(), "nobody lives");
    // It looked and did not take: so does the next one.
    second.signal(Signal::KILL).unwrap();
    let third = next_agent(&node, second.pid());
    wait_heard(&node, third.pid(), "nobody lives");
    assert_eq!(std::fs::read_to_string(node.path("binds")).unwrap().lines().count(), 1, "bound once");
}

fn a_socket_outlives_its_guard_and_is_let_go_with_its_file() {
    let (mut node, first) = listening();
    node.signal(Signal::KILL);
    node.code();
    let second = next_agent(&node, first.pid());
    wait("the end of the first agent", || first.has_exited().unwrap());
    let guard = guard::running(node.dir.path()).unwrap().unwrap();
    guard.signal(Signal::STOP).unwrap();
    second.signal(Signal::KILL).unwrap();
    wait("the end of the agent", || second.has_exited().unwrap());
    send(&node, "to another guard's").unwrap();
    guard.signal(Signal::CONT).unwrap();
    let third = next_agent(&node, second.pid());
    wait_heard(&node, third.pid(), "to another guard's");
    assert_eq!(std::fs::read_to_string(node.path("binds")).unwrap().lines().count(), 1, "bound once");
    let before = sockets_of(&guard);
    std::fs::remove_file(node.path("notify")).unwrap();
    third.signal(Signal::KILL).unwrap();
    let fourth = next_agent(&node, third.pid());
    assert_eq!(std::fs::read_to_string(node.path("binds")).unwrap().lines().count(), 2, "the file was gone");
    // What agents gave is taken, and what is gone is let go, before the next one is started.
    fourth.signal(Signal::KILL).unwrap();
    let fourth = next_agent(&node, fourth.pid());
    assert_eq!(sockets_of(&guard), before, "one of both is kept");
    guard.signal(Signal::KILL).unwrap();
    fourth.signal(Signal::KILL).unwrap();
}

/// The guard gathers what it is given in one go, and does not leave it where it would be lost with it.
fn sockets_given_right_after_one_another_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let command = [std::env::current_exe().unwrap().into(), "giver".into(), dir.path().into()];
    let node = Node::with_command(dir, &command);
    node.process_in("agent.pid");
    let guard = guard::running(node.dir.path()).unwrap().unwrap();
    // Both ends of the channel are sockets, too.
    wait("all sockets to be kept", || sockets_of(&guard) >= GIVEN + 2);
}

/// Words are kept for an agent that comes, not for one that never does: who says something waits once its socket is full.
fn nobody_waits_for_agents_that_never_live() {
    let dir = tempfile::tempdir().unwrap();
    let (me, broken) = (std::env::current_exe().unwrap(), dir.path().join("broken"));
    let script = format!("[ -e {} ] && exit 1; exec {} listener {}", broken.display(), me.display(), dir.path().display());
    let node = Node::with_command(dir, &["sh".into(), "-c".into(), script.into()]);
    let first = node.process_in("agent.pid");
    std::fs::write(&broken, "").unwrap();
    first.signal(Signal::KILL).unwrap();
    wait("the end of the agent", || first.has_exited().unwrap());
    send(&node, "kept at first").unwrap();
    wait("the socket to be let go", || send(&node, "").is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));
    assert!(std::fs::read_to_string(node.path("stderr")).unwrap().contains("components wait no more"));
    std::fs::remove_file(&broken).unwrap();
    let second = next_agent(&node, first.pid());
    send(&node, "heard").unwrap();
    wait_heard(&node, second.pid(), "heard");
}
