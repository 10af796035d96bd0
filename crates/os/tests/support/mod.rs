//! What the tests of this crate share: a directory with a log file, starting shell scripts in it, waiting for conditions.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part of it; tests may fail loudly")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use razar_os::{FileId, Pid, Process, Spawn, SpawnError, Tree, append_file, spawn};

/// Long against anything that is waited for here, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the condition holds; fails the test when it does not.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A directory of its own with a log file.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) log: File,
    pub(crate) tag: FileId,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, tag) = append_file(&dir.path().join("logs/it.log")).unwrap();
        Self { dir, log, tag }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.path("logs/it.log")).unwrap()
    }

    /// The pid that a script wrote to a file of this name.
    #[track_caller]
    pub(crate) fn pid_in(&self, name: &str) -> Pid {
        let read = || std::fs::read_to_string(self.path(name)).ok().filter(|text| text.ends_with('\n'));
        until(name, || read().is_some());
        Pid::new(read().unwrap().trim().parse().unwrap()).unwrap()
    }

    /// Starts `sh -c script` here; `cgroup` if given.
    pub(crate) fn sh_in(&self, script: &str, cgroup: Option<BorrowedFd<'_>>) -> Running {
        let argv = words(&["sh", "-c", script]);
        let env = env(&[("PATH", "/usr/local/bin:/usr/bin:/bin")]);
        let mut order = Spawn::new(OsStr::new("sh"), &argv, self.dir.path(), self.log.as_fd());
        order.env = &env;
        order.cgroup = cgroup;
        let process = spawn(&order).unwrap().into_process().unwrap();
        Running { tree: Tree::new(&process, Some(self.tag), None).unwrap(), process }
    }

    pub(crate) fn sh(&self, script: &str) -> Running {
        self.sh_in(script, None)
    }

    pub(crate) fn try_spawn(&self, program: &str) -> Result<razar_os::Child, SpawnError> {
        let env = env(&[("PATH", self.dir.path().to_str().unwrap())]);
        let mut order = Spawn::new(OsStr::new(program), &[], self.dir.path(), self.log.as_fd());
        order.env = &env;
        spawn(&order)
    }
}

/// A started process with its tree, killed and reaped at the end of the test.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) tree: Tree,
}

impl Running {
    #[track_caller]
    pub(crate) fn wait(&self) -> razar_os::ExitStatus {
        until("the process ends", || self.process.has_exited().unwrap());
        self.process.reap().unwrap().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.tree.kill(PATIENCE);
        let _ = self.process.reap();
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

pub(crate) fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect()
}

/// State letter and parent of a process, none when it has gone.
pub(crate) fn state_and_parent(pid: Pid) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}
