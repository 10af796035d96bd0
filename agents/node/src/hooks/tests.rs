//! Hooks as real processes: what hangs, floods, forks, fails or is not there has a clear end, and nothing of it is left.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use razar_bus_schema::ids::{Incident, Instance};
use tokio::time::timeout;

use super::*;

/// A kill of a tree takes tens of milliseconds; two busy cores are no failure.
const SOON: Duration = Duration::from_secs(20);

struct Bench {
    dir: tempfile::TempDir,
    hooks: Hooks,
    news: mpsc::Receiver<News>,
    attempts: u32,
}

impl Bench {
    fn new() -> Self {
        Self::with_cgroups(true)
    }

    fn with_cgroups(cgroups: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, news) = mpsc::channel(16);
        let mut hooks = Hooks::open(dir.path().join("hooks"), places(dir.path()), sender);
        if !cgroups {
            hooks.cgroups = None;
        }
        Self { dir, hooks, news, attempts: 0 }
    }

    /// A script in the bench's folder; `$DIR` is that folder.
    fn script(&self, text: &str) -> String {
        let path = self.dir.path().join(format!("hook-{}.sh", self.attempts));
        fs::write(&path, format!("#!/bin/sh\nDIR={}\n{text}\n", self.dir.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn start(&mut self, program: String, limit: Duration) -> HookKey {
        self.attempts += 1;
        let key = key(self.attempts);
        let hook = v1::Hook {
            command: vec![program],
            working_dir: self.dir.path().to_string_lossy().into_owned(),
            env: vec![v1::EnvVar { name: "OF_THE_STACK".to_owned(), value: "yes".to_owned() }],
            timeout: Some(razar_bus_schema::time::duration(limit)),
        };
        let told = vec![("RAZAR_COMPONENT", "api".to_owned()), ("RAZAR_RUNG", "chakra_hook".to_owned())];
        self.hooks.run(HookRun { key: key.clone(), hook, told, trace: None });
        key
    }

    async fn ended(&mut self) -> HookEnd {
        let Some(News::HookEnded(input)) = timeout(SOON, self.news.recv()).await.unwrap() else { panic!("other news") };
        let Input::HookEnded { key, end, .. } = *input else { panic!("{input:?}") };
        self.hooks.ended(&key);
        end
    }

    async fn run(&mut self, text: &str, limit: Duration) -> HookEnd {
        let script = self.script(text);
        self.start(script, limit);
        self.ended().await
    }

    /// A number that the script wrote down, once it has.
    async fn number(&self, file: &str) -> i32 {
        let path = self.dir.path().join(file);
        for _ in 0..2_000 {
            if let Some(pid) = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()) {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {file}");
    }
}

fn places(dir: &Path) -> Places {
    // A mesh of its own: cgroups are named after it.
    let mesh = sha256_hex(dir.as_os_str().as_encoded_bytes()).chars().take(16).collect();
    Places { mesh, node: "a".to_owned(), server: "nats://x".to_owned(), notify_dir: dir.to_owned() }
}

fn key(attempt: u32) -> HookKey {
    let instance = Instance::new("api", 0);
    let incident: Incident = "api@1.1".parse().unwrap();
    HookKey::Chakra { instance, incident, attempt }
}

/// Whether a process is there and no zombie.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn one_that_ends_well_is_told_with_its_words() {
    let mut b = Bench::new();
    let end = b.run("echo flushed 3 tasks; echo done >&2", SOON).await;
    assert_eq!((end.outcome, end.output.as_str(), end.output_cut, end.stragglers), (HookOutcome::Ok, "flushed 3 tasks\ndone", false, 0));
    assert_eq!(end.status.and_then(|s| s.code), Some(0));
    assert_eq!(fs::read_dir(b.dir.path().join("hooks")).unwrap().count(), 0, "its file is gone");
}

#[tokio::test]
async fn it_gets_a_short_environment_and_the_folder_of_the_stack() {
    let mut b = Bench::new();
    let end = b.run("pwd; echo $RAZAR_COMPONENT $RAZAR_RUNG $RAZAR_NODE $OF_THE_STACK; env | grep -c CARGO", SOON).await;
    let lines: Vec<&str> = end.output.lines().collect();
    assert_eq!(lines[0], fs::canonicalize(b.dir.path()).unwrap().to_string_lossy());
    assert_eq!(lines[1..], ["api chakra_hook a yes", "0"], "nothing else is inherited");
}

#[tokio::test]
async fn another_exit_than_zero_has_failed() {
    let mut b = Bench::new();
    let end = b.run("echo no route to the gateway; exit 3", SOON).await;
    assert_eq!(
        (end.outcome, end.status.and_then(|s| s.code), end.output.as_str()),
        (HookOutcome::Failed, Some(3), "no route to the gateway")
    );
    let end = b.run("kill -SEGV $$", SOON).await;
    assert_eq!((end.outcome, end.status.and_then(|s| s.signal)), (HookOutcome::Failed, Some(11)));
}

#[tokio::test]
async fn what_is_not_there_or_cannot_run_is_not_started() {
    let mut b = Bench::new();
    b.start("/nowhere/heal.sh".to_owned(), SOON);
    let end = b.ended().await;
    assert_eq!((end.outcome, end.status), (HookOutcome::NotStarted, None));
    assert!(end.output.contains("/nowhere/heal.sh") && end.output.contains("not found"), "{}", end.output);
    let path = b.dir.path().join("plain.txt");
    fs::write(&path, "no program").unwrap();
    b.start(path.to_string_lossy().into_owned(), SOON);
    assert!(b.ended().await.output.contains("may not be executed"));
}

#[tokio::test]
async fn one_that_hangs_is_killed_when_its_time_is_over() {
    let mut b = Bench::new();
    let end = b.run("echo $$ > $DIR/pid; trap '' TERM INT HUP; echo waiting; while :; do sleep 1; done", Duration::from_millis(300)).await;
    assert_eq!((end.outcome, end.output.as_str()), (HookOutcome::TimedOut, "waiting"));
    assert!(end.took >= Duration::from_millis(300) && end.took < SOON, "{:?}", end.took);
    assert!(!lives(b.number("pid").await));
}

#[tokio::test]
async fn one_that_floods_leaves_its_last_words_and_nothing_on_the_disk() {
    let mut b = Bench::new();
    let script = b.script("head -c 30000000 /dev/zero | tr '\\0' x; echo; echo the end; touch $DIR/done; sleep 60");
    let key = b.start(script, SOON);
    let pipe = b.dir.path().join("hooks").join(name_of(&key));
    let until = monotonic_now() + SOON;
    while !b.dir.path().join("done").exists() {
        assert!(monotonic_now() < until, "it never ends");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fs::metadata(&pipe).unwrap().blocks(), 0, "what it said takes no room on the disk");
    b.hooks.end(&key);
    let end = b.ended().await;
    assert!(!pipe.exists());
    assert!(end.output_cut && end.output.len() <= OUTPUT_BYTES_MAX, "{} bytes", end.output.len());
    assert!(end.output.ends_with("the end"), "{}", end.output);
}

#[tokio::test]
async fn what_it_forks_goes_with_it_wherever_it_hides() {
    for cgroups in [true, false] {
        let mut b = Bench::with_cgroups(cgroups);
        // A child in a session of its own, orphaned, with its output elsewhere.
        let text = "setsid sh -c 'echo $$ > $DIR/pid; exec sleep 1000' </dev/null >/dev/null 2>&1 &\nsetsid sh -c 'echo $$ > $DIR/pid2; exec sleep 1000' &\n";
        let text = format!("export DIR\n{text}while [ ! -s $DIR/pid ] || [ ! -s $DIR/pid2 ]; do sleep 0.01; done; sleep 0.5; echo started");
        let end = b.run(&text, SOON).await;
        assert_eq!((end.outcome, end.output.as_str()), (HookOutcome::Ok, "started"), "cgroups: {cgroups}");
        for file in ["pid", "pid2"] {
            let pid = b.number(file).await;
            assert!(!lives(pid), "{file} {pid} lives on, cgroups: {cgroups}");
        }
        assert!(end.stragglers >= 2, "{} told, cgroups: {cgroups}", end.stragglers);
    }
}

#[tokio::test]
async fn one_that_is_no_longer_wanted_is_killed_and_told() {
    let mut b = Bench::new();
    let script = b.script("echo $$ > $DIR/pid; sleep 1000");
    let key = b.start(script, Duration::from_secs(600));
    let pid = b.number("pid").await;
    b.hooks.end(&key);
    assert_eq!(b.ended().await.outcome, HookOutcome::Abandoned);
    assert!(!lives(pid));
}

#[tokio::test]
async fn the_end_of_the_node_is_the_end_of_its_hooks() {
    let mut b = Bench::new();
    let script = b.script("echo $$ > $DIR/pid; sleep 1000");
    b.start(script, Duration::from_secs(600));
    let pid = b.number("pid").await;
    b.hooks.close().await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn what_the_last_agent_left_running_is_killed() {
    let mut b = Bench::new();
    let script = b.script("echo $$ > $DIR/pid; sleep 1000");
    b.start(script, Duration::from_secs(600));
    let pid = b.number("pid").await;
    let (sender, _news) = mpsc::channel(1);
    let next = Hooks::open(b.dir.path().join("hooks"), places(b.dir.path()), sender);
    assert!(!lives(pid), "nobody waits for it any more");
    assert_eq!(fs::read_dir(&next.dir).unwrap().count(), 0);
}

/// An agent that gives way to another one, or whose loop fails, ends nothing and leaves the next a trace of what runs.
#[test]
fn what_an_agent_that_gave_way_left_running_is_killed() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (b, pid) = first.block_on(async {
        let mut b = Bench::new();
        let script = b.script("trap '' PIPE; echo $$ > $DIR/pid; while :; do echo on; sleep 0.01; done");
        b.start(script, Duration::from_secs(600));
        let pid = b.number("pid").await;
        (b, pid)
    });
    first.shutdown_background();
    assert!(lives(pid));
    let (sender, _news) = mpsc::channel(1);
    let next = runtime().block_on(async { Hooks::open(b.dir.path().join("hooks"), places(b.dir.path()), sender) });
    assert!(!lives(pid), "nobody waits for it any more");
    assert_eq!(fs::read_dir(&next.dir).unwrap().count(), 0);
}

#[tokio::test]
async fn secrets_and_control_characters_are_not_told() {
    let mut b = Bench::new();
    let end = b.run("echo password=hunter22; printf 'a\\033[31mred\\007\\n'", SOON).await;
    assert!(!end.output.contains("hunter22") && end.output.contains("password=***"), "{}", end.output);
    assert!(!end.output.chars().any(|c| c.is_control() && c != '\n'), "{:?}", end.output);
}
