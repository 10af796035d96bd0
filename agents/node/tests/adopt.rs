//! What a new agent finds of the last one's: real processes, a real journal, a real file of exits.

#![expect(clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{SpawnPlanned, Spawned},
};
use razar_node::adopt::{Found, FoundState, Survey, identity_of, identity_record, survey};
use razar_node::guard::{Exits, exits_path};
use razar_node::journal::Restored;
use razar_node::logs::LogStore;
use razar_os::{BootId, Process, Signal, Spawn};

/// A state directory and the processes that a test starts with it.
struct Node {
    dir: tempfile::TempDir,
    logs: LogStore,
    started: Vec<Process>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let logs = LogStore::new(dir.path().join("logs"));
        Self { dir, logs, started: Vec::new() }
    }

    fn plan(&self, component: &str, start: u64) -> (SpawnPlanned, std::fs::File) {
        let (instance, incarnation) = (Instance::new(component, 0), Incarnation::new(1, start));
        let log = self.logs.open(&instance, incarnation).unwrap();
        let planned = SpawnPlanned {
            instance: Some((&instance).into()),
            incarnation: Some(incarnation.into()),
            log_path: log.path.display().to_string(),
            log_device: log.id.dev,
            log_inode: log.id.inode,
            boot_id: BootId::current().unwrap().to_string(),
            ..SpawnPlanned::default()
        };
        (planned, log.file)
    }

    fn start(&mut self, log: &std::fs::File, script: &str) -> Process {
        let argv = ["sh", "-c", script].map(OsString::from);
        let env = [(OsString::from("PATH"), std::env::var_os("PATH").unwrap())];
        let mut order = Spawn::new("sh".as_ref(), &argv, self.dir.path(), log.as_fd());
        order.env = &env;
        let process = razar_os::spawn(&order).unwrap().into_process().unwrap();
        self.started.push(process.try_clone().unwrap());
        process
    }

    fn survey(&self, restored: &Restored) -> Survey {
        let mut exits = Exits::open(&exits_path(self.dir.path())).unwrap();
        survey(restored, &mut exits, self.logs.dir()).unwrap()
    }

    fn number_in(&self, name: &str) -> i32 {
        let mut number = None;
        wait(name, || {
            number = std::fs::read_to_string(self.dir.path().join(name)).ok().and_then(|text| text.trim().parse().ok());
            number.is_some()
        });
        number.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &self.started {
            let _ = process.signal_group(Signal::KILL);
            let _ = process.signal(Signal::KILL);
            let _ = process.reap();
        }
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spawned(planned: SpawnPlanned, process: &Process) -> Restored {
    let process = Some(identity_record(&process.identity()));
    Restored { processes: vec![Spawned { planned: Some(planned), process }], ..Restored::default() }
}

fn only(survey: Survey) -> Found {
    assert!(survey.strangers.is_empty(), "{:?}", survey.strangers);
    let [found] = <[Found; 1]>::try_from(survey.found).unwrap();
    found
}

#[test]
fn an_identity_survives_the_journal() {
    let me = Process::current_holder(razar_os::Pid::this()).unwrap().unwrap().identity();
    assert_eq!(identity_of(&identity_record(&me)), Some(me));
    assert_eq!(identity_of(&razar_bus_schema::v1::ProcessIdentity::default()), None);
}

#[test]
fn a_living_process_is_adopted() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 3);
    let process = node.start(&log, "sleep 1000; :");
    let found = only(node.survey(&spawned(planned, &process)));
    assert_eq!((found.instance, found.incarnation), (Instance::new("api", 0), Incarnation::new(1, 3)));
    let FoundState::Alive { process: alive, unrecorded } = found.state else { panic!("{:?}", found.state) };
    assert_eq!((alive.identity(), unrecorded), (process.identity(), false));
}

#[test]
fn a_number_that_was_used_again_is_not_adopted() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 1);
    let process = node.start(&log, "exec sleep 1000");
    let mut other = identity_record(&process.identity());
    other.start_time_ticks -= 1;
    let restored = Restored { processes: vec![Spawned { planned: Some(planned), process: Some(other) }], ..Restored::default() };
    let found = only(node.survey(&restored));
    // The one that has the number now holds the log, so it is told as what the old one left behind, and is no main process.
    let FoundState::Exited { status: None, stragglers } = found.state else { panic!("{:?}", found.state) };
    assert_eq!(stragglers, [process.identity()]);
}

#[test]
fn an_exit_in_between_keeps_the_status_that_the_guard_noted_and_its_stragglers() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 1);
    let process = node.start(&log, "setsid sh -c 'echo $$ > left; exec sleep 1000' & while [ ! -e left ]; do sleep 0.01; done; exit 9");
    let left = Process::current_holder(razar_os::Pid::new(node.number_in("left")).unwrap()).unwrap().unwrap();
    node.started.push(left.try_clone().unwrap());
    wait("it ended", || process.has_exited().unwrap());
    assert_eq!(process.reap().unwrap().unwrap().code, Some(9));
    let identity = process.identity();
    let noted = format!("boot {}\n{} {} exit 9\n", identity.boot_id, identity.pid, identity.start_time_ticks);
    std::fs::write(exits_path(node.dir.path()), noted).unwrap();
    let found = only(node.survey(&spawned(planned, &process)));
    let FoundState::Exited { status, stragglers } = found.state else { panic!("{:?}", found.state) };
    assert_eq!(status.unwrap().code, Some(9));
    assert_eq!(stragglers, [left.identity()]);
}

#[test]
fn an_exit_that_nobody_noted_is_unknown() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 1);
    let process = node.start(&log, "exit 0");
    wait("it ended", || process.has_exited().unwrap());
    process.reap().unwrap();
    let found = only(node.survey(&spawned(planned, &process)));
    assert!(matches!(&found.state, FoundState::Exited { status: None, stragglers } if stragglers.is_empty()), "{:?}", found.state);
}

#[test]
fn a_start_that_was_never_recorded_is_found_by_its_log() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 1);
    let main = node.start(&log, "setsid sh -c 'echo $$ > child; exec sleep 1000' & sleep 1000; :");
    let child = node.number_in("child");
    node.started.push(Process::current_holder(razar_os::Pid::new(child).unwrap()).unwrap().unwrap());
    let restored = Restored { planned: vec![planned.clone()], ..Restored::default() };
    let found = only(node.survey(&restored));
    let FoundState::Alive { process, unrecorded: true } = found.state else { panic!("{:?}", found.state) };
    assert_eq!(process.identity(), main.identity(), "the main process, not one that it started");

    // A plan of another boot was never this machine's process.
    let other_boot = SpawnPlanned { boot_id: "00000000-0000-0000-0000-000000000001".to_owned(), ..planned };
    let restored = Restored { planned: vec![other_boot], ..Restored::default() };
    assert!(matches!(only(node.survey(&restored)).state, FoundState::NotThere));
}

#[test]
fn a_plan_without_a_process_was_never_started() {
    let node = Node::new();
    let (planned, _log) = node.plan("api", 1);
    let restored = Restored { planned: vec![planned], ..Restored::default() };
    assert!(matches!(only(node.survey(&restored)).state, FoundState::NotThere));
}

#[test]
fn what_writes_to_our_logs_and_is_not_in_the_journal_is_a_stranger() {
    let mut node = Node::new();
    let (planned, log) = node.plan("api", 1);
    let known = node.start(&log, "exec sleep 1000");
    let (_, foreign_log) = node.plan("redis", 7);
    let foreign = node.start(&foreign_log, "exec sleep 1000");
    // One that writes elsewhere is nobody's business.
    let elsewhere = std::fs::File::create(node.dir.path().join("elsewhere")).unwrap();
    node.start(&elsewhere, "exec sleep 1000");
    let found = node.survey(&spawned(planned, &known));
    assert_eq!(found.found.len(), 1);
    assert_eq!(found.strangers.len(), 1, "{:?}", found.strangers);
    let stranger = &found.strangers[0];
    assert_eq!(stranger.process.identity(), foreign.identity());
    assert_eq!((&stranger.instance, stranger.incarnation), (&Instance::new("redis", 0), Incarnation::new(1, 7)));
    // Its log's name may have gone; the file it holds is known still.
    let path: PathBuf = node.logs.path(&stranger.instance, stranger.incarnation);
    std::fs::remove_file(&path).unwrap();
    let again = node.survey(&Restored::default());
    let mut names: Vec<_> = again.strangers.iter().map(|s| s.instance.component.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["api", "redis"]);
    assert!(Path::new(&again.strangers[0].log_path).starts_with(node.logs.dir()));
}
