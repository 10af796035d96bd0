//! Starting: what the child gets, what it does not get, how a start fails, what it costs.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use razar_os::{Spawn, SpawnError, SpawnStep, spawn};
use support::{Place, env, until, words};

#[test]
fn the_child_gets_its_program_arguments_environment_and_directory_and_nothing_else() {
    let place = Place::new();
    let script = "echo \"$0|$1\"; pwd; env | sort; ulimit -n; cat; cat /proc/self/timerslack_ns; echo err >&2";
    let argv = words(&["sh", "-c", script, "zero", "one"]);
    let env = env(&[("PATH", "/usr/bin:/bin"), ("COLOUR", "a=b")]);
    let mut order = Spawn::new(OsStr::new("sh"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    order.nofile = Some(123);
    order.timer_slack = Some(Duration::from_millis(3));
    let process = spawn(&order).unwrap().into_process().unwrap();
    until("it ends", || process.has_exited().unwrap());
    assert!(process.reap().unwrap().unwrap().is_success());
    let here = place.dir.path().canonicalize().unwrap();
    let here = here.display();
    assert_eq!(place.log_text(), format!("zero|one\n{here}\nCOLOUR=a=b\nPATH=/usr/bin:/bin\nPWD={here}\n123\n3000000\nerr\n"));
}

#[test]
fn only_the_descriptors_asked_for_reach_the_child() {
    let place = Place::new();
    // One that nobody marked close-on-exec, as a careless library would leave it.
    let (mut read_end, write_end) = std::io::pipe().unwrap();
    // SAFETY: the descriptor is fresh and owned here.
    let leaky = unsafe { std::fs::File::from_raw_fd(libc::dup(write_end.as_raw_fd())) };
    // A source that is another's target: 3 and 4 cross over in a test binary as often as not.
    let other = fs::File::open("/dev/zero").unwrap();
    let argv = words(&["sh", "-c", "ls -l /proc/$$/fd; echo ready >&7"]);
    let env = env(&[("PATH", "/usr/bin:/bin")]);
    let fds = [(write_end.as_fd(), 7), (other.as_fd(), write_end.as_raw_fd().max(3)), (write_end.as_fd(), 3.max(other.as_raw_fd()))];
    let mut order = Spawn::new(OsStr::new("sh"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    order.fds = if fds[1].1 == 7 || fds[2].1 == 7 || fds[1].1 == fds[2].1 { &fds[..1] } else { &fds };
    let mut expected: Vec<i32> = [0, 1, 2].into_iter().chain(order.fds.iter().map(|(_, target)| *target)).collect();
    expected.sort_unstable();
    let process = spawn(&order).unwrap().into_process().unwrap();
    drop((leaky, write_end));
    let mut said = String::new();
    read_end.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    until("it ends", || process.has_exited().unwrap());
    process.reap().unwrap();
    let log = place.log_text();
    let mut seen: Vec<i32> = log.lines().filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next()?.parse().ok()).collect();
    seen.sort_unstable();
    assert_eq!(seen, expected, "{log}");
    assert!(log.lines().any(|line| line.ends_with(" 0 -> /dev/null")), "{log}");
}

#[test]
fn descriptors_arrive_at_their_numbers_though_these_are_in_use() {
    let place = Place::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    let files = names.map(|name| fs::File::create(place.path(name)).unwrap());
    // The numbers that come next, in reverse: whoever copies one by one writes over what is still to be copied.
    let next = files[5].as_raw_fd() + 1;
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).zip((next..next + 6).rev()).collect();
    let argv = words(&["sh", "-c", "ls -l /proc/$$/fd"]);
    let env = env(&[("PATH", "/usr/bin:/bin")]);
    let mut order = Spawn::new(OsStr::new("sh"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    order.fds = &fds;
    let process = spawn(&order).unwrap().into_process().unwrap();
    until("it ends", || process.has_exited().unwrap());
    process.reap().unwrap();
    let log = place.log_text();
    for (name, (_, target)) in names.iter().zip(&fds) {
        let line = format!(" {target} -> {}", place.path(name).display());
        assert!(log.contains(&line), "{line} is not in\n{log}");
    }
}

#[test]
fn the_child_leads_a_session_and_takes_signals_by_default() {
    let place = Place::new();
    let running = place.sh("kill -PIPE $$; echo not reached");
    assert_eq!(running.wait().signal, Some(13), "Rust ignores SIGPIPE; a component must not inherit that");

    let running = place.sh("cat /proc/self/status; ps -o sid=,pgid= -p $$ | tr -d ' '");
    let pid = running.process.pid();
    assert!(running.wait().is_success());
    let log = place.log_text();
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = log.lines().find(|line| line.starts_with(set)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{log}");
    }
    assert!(log.contains(&format!("{pid}{pid}")), "{log}");
}

#[test]
fn the_child_can_be_told_its_own_pid() {
    let place = Place::new();
    let argv = words(&["sh", "-c", "echo $LISTEN_PID $$"]);
    let env = env(&[("PATH", "/usr/bin:/bin")]);
    let mut order = Spawn::new(OsStr::new("sh"), &argv, place.dir.path(), place.log.as_fd());
    order.env = &env;
    order.pid_variable = Some("LISTEN_PID");
    let process = spawn(&order).unwrap().into_process().unwrap();
    until("it ends", || process.has_exited().unwrap());
    process.reap().unwrap();
    assert_eq!(place.log_text(), format!("{0} {0}\n", process.pid()));
}

#[test]
fn a_failed_start_says_what_failed() {
    let place = Place::new();
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(place.path(name), text).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("plain", "#!/bin/sh\n", 0o644);
    write("lost", "#!/no/such/interpreter\n", 0o755);
    write("noise", "neither\n", 0o755);
    fs::create_dir(place.path("sub")).unwrap();
    let fails = |program: &str| place.try_spawn(program).unwrap_err();

    assert!(matches!(fails("nothing"), SpawnError::ProgramNotFound { searched: Some(_), .. }));
    assert!(matches!(fails("./nothing"), SpawnError::ProgramNotFound { searched: None, .. }));
    assert!(matches!(fails("plain"), SpawnError::NotExecutable { .. }));
    assert!(matches!(fails("./plain"), SpawnError::NotExecutable { .. }));
    assert!(matches!(fails("./sub"), SpawnError::NotExecutable { .. }));
    assert!(matches!(fails("lost"), SpawnError::InterpreterMissing { .. }));
    assert!(matches!(fails("noise"), SpawnError::NotAProgram { .. }));
    assert!(matches!(fails(""), SpawnError::Invalid { .. }));
    assert!(matches!(fails("a\0b"), SpawnError::Invalid { .. } | SpawnError::ProgramNotFound { .. }));
    for error in [fails("nothing"), fails("lost"), fails("noise")] {
        println!("{error}");
        assert!(!error.is_transient());
    }

    let argv = words(&["true"]);
    let nowhere = place.path("gone");
    let mut order = Spawn::new(OsStr::new("/bin/true"), &argv, &nowhere, place.log.as_fd());
    assert!(matches!(spawn(&order).unwrap_err(), SpawnError::WorkingDirectory { path, .. } if path == nowhere));
    order.cwd = Path::new("/");
    let bad = [(place.log.as_fd(), 2)];
    order.fds = &bad;
    assert!(matches!(spawn(&order).unwrap_err(), SpawnError::Invalid { .. }));
    order.fds = &[];
    // Not a cgroup.
    order.cgroup = Some(place.log.as_fd());
    let error = spawn(&order).unwrap_err();
    assert!(matches!(error, SpawnError::Step { step: SpawnStep::Cgroup | SpawnStep::Clone, .. }), "{error:?}");
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero())).unwrap();
    assert_eq!(children.trim(), "", "a failed start leaves no zombie");
}

#[test]
fn starting_costs_microseconds() {
    let place = Place::new();
    let argv = words(&["true"]);
    // Ballast that a fork would have to copy the page tables of.
    let ballast = vec![1_u8; 100 * 1024 * 1024];
    let mut times = Vec::new();
    for _ in 0..200 {
        let order = Spawn::new(OsStr::new("/bin/true"), &argv, Path::new("/"), place.log.as_fd());
        let started = Instant::now();
        let process = spawn(&order).unwrap().into_process().unwrap();
        times.push(started.elapsed());
        razar_os::wait_readable(&[process.as_fd()], Some(support::PATIENCE)).unwrap();
        assert!(process.reap().unwrap().unwrap().is_success());
    }
    times.sort_unstable();
    println!("spawn with {} MB resident: median {:?}, p95 {:?}", ballast.len() >> 20, times[100], times[190]);
}

#[test]
fn many_threads_start_at_once() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // One log each: who has the log is of the tree, and is killed with it.
                let place = Place::new();
                for n in 0..25 {
                    let running = place.sh(&format!("exit {n}"));
                    assert_eq!(running.wait().code, Some(n));
                }
            });
        }
    });
}
