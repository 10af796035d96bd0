//! Runs hooks: each in a session of its own, in a cgroup of its own where the machine allows, its output in a pipe that is also the tag by
//! which its processes are found. A hook that takes too long, or is no longer wanted, is killed with all that it started, and so is what
//! one leaves behind. What follows from its end is the policy's to say.

mod output;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use razar_bus_schema::{ids::sha256_hex, trace::Context, v1};
use razar_os::{Cgroups, FileId, ProcTable, Process, Tree, monotonic_now};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    environment,
    logs::clean,
    news::News,
    policy::{
        Input,
        hooks::{HookEnd, HookKey, HookOutcome, HookRun},
    },
    processes::{Places, exit_record},
};

use output::{OUTPUT_BYTES_MAX, Output};

/// Time between two looks at a hook's processes, where no cgroup holds them: who is seen once is found again, whatever it does to hide.
const LOOK: Duration = Duration::from_millis(200);
/// How long the kill of a tree is waited for.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long the end of the node waits for its hooks to be killed.
const CLOSE_LIMIT: Duration = Duration::from_secs(6);

/// The hooks that run.
pub(crate) struct Hooks {
    dir: PathBuf,
    places: Places,
    cgroups: Option<Cgroups>,
    running: BTreeMap<HookKey, (Option<oneshot::Sender<()>>, JoinHandle<()>)>,
    news: mpsc::Sender<News>,
}

impl Hooks {
    /// None runs: what the last agent of this node left running is killed, since nobody waits for it any more.
    pub(crate) fn open(dir: PathBuf, places: Places, news: mpsc::Sender<News>) -> Self {
        if let Err(error) = clear_away(&dir) {
            tracing::error!(%error, "hooks of the last agent could not be cleared away");
        }
        Self { dir, places, cgroups: Cgroups::detect(), running: BTreeMap::new(), news }
    }

    /// Runs one; its end comes as news.
    pub(crate) fn run(&mut self, run: HookRun) {
        let (keep, ended) = oneshot::channel();
        let (key, program) = (run.key.clone(), program_of(&run.hook));
        let name = name_of(&key);
        let (news, dir, cgroups, places) = (self.news.clone(), self.dir.clone(), self.cgroups.clone(), self.places.clone());
        let begun = start(&run, &name, &dir, cgroups.as_ref(), &places);
        let timeout = run.timeout();
        let task = {
            let key = key.clone();
            tokio::spawn(async move {
                let end = match begun {
                    Ok(running) => attend(running, timeout, ended).await,
                    Err(why) => HookEnd::not_started(&why),
                };
                if let Some(cgroups) = &cgroups {
                    let _ = cgroups.remove(&places.mesh, &places.node, &cgroup_name(&name));
                }
                let input = Input::HookEnded { key, program, end };
                let _ = news.send(News::HookEnded(Box::new(input))).await;
            })
        };
        self.running.insert(key, (Some(keep), task));
    }

    /// Kills one that is no longer wanted.
    pub(crate) fn end(&mut self, key: &HookKey) {
        // Its end is told as that of any other: the task goes on until then.
        if let Some((keep, _)) = self.running.get_mut(key) {
            *keep = None;
        }
    }

    /// One has ended.
    pub(crate) fn ended(&mut self, key: &HookKey) {
        self.running.remove(key);
    }

    /// Kills all that run, and waits for that.
    pub(crate) async fn close(&mut self) {
        for (_, (keep, task)) in std::mem::take(&mut self.running) {
            drop(keep);
            let _ = tokio::time::timeout(CLOSE_LIMIT, task).await;
        }
    }
}

impl HookEnd {
    fn not_started(why: &str) -> Self {
        let output = clean(why.as_bytes(), OUTPUT_BYTES_MAX);
        Self { outcome: HookOutcome::NotStarted, status: None, took: Duration::ZERO, output, output_cut: false, stragglers: 0 }
    }
}

/// A hook's process with what bounds it.
struct Running {
    process: Process,
    tree: Tree,
    has_cgroup: bool,
    output: Output,
}

fn program_of(hook: &v1::Hook) -> String {
    hook.command.first().cloned().unwrap_or_default()
}

/// A name for the run's file and cgroup: ids of events are no file names.
fn name_of(key: &HookKey) -> String {
    let text = match key {
        HookKey::Chakra { incident, attempt, .. } => format!("chakra:{incident}:{attempt}"),
        HookKey::Escalation(id) => format!("escalation:{id}"),
    };
    sha256_hex(text.as_bytes()).chars().take(16).collect()
}

fn cgroup_name(name: &str) -> String {
    format!("hook.{name}")
}

/// Kills whoever still writes to a hook's output, and removes the files.
fn clear_away(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let tag = FileId::of_path(&path)?;
        Tree::of_orphans(Some(tag), None).kill(KILL_WAIT)?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn start(run: &HookRun, name: &str, dir: &Path, cgroups: Option<&Cgroups>, places: &Places) -> Result<Running, String> {
    let said = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    fs::create_dir_all(dir).map_err(said("the folder for its output"))?;
    let path = dir.join(name);
    let cgroup = cgroups.and_then(|all| all.create(&places.mesh, &places.node, &cgroup_name(name)).ok()).map(Arc::new);
    let traceparent = run.trace.as_ref().and_then(|t| Context::parse(&t.traceparent)).map(|c| c.header()).unwrap_or_default();
    let env = environment::of_hook(run, places, &traceparent, |name| std::env::var_os(name));
    let argv: Vec<OsString> = run.hook.command.iter().map(OsString::from).collect();
    let program = argv.first().ok_or("its command is empty")?;
    let cwd = if run.hook.working_dir.is_empty() { Path::new("/") } else { Path::new(&run.hook.working_dir) };
    let (output, writes, tag) = Output::open(&path).map_err(said("the pipe for its output"))?;
    let mut order = razar_os::Spawn::new(program, &argv, cwd, writes.as_fd());
    order.env = &env;
    order.cgroup = cgroup.as_ref().map(|c| c.as_fd());
    let spawned = razar_os::spawn(&order).map_err(|e| crate::processes::with_sources(&e));
    let process = spawned.and_then(|child| child.into_process().map_err(|e| e.to_string())).inspect_err(|_| output.remove())?;
    let has_cgroup = cgroup.is_some();
    let tree = Tree::new(&process, Some(tag), cgroup).map_err(said("its processes"))?;
    Ok(Running { process, tree, has_cgroup, output })
}

async fn attend(mut running: Running, timeout: Duration, mut unwanted: oneshot::Receiver<()>) -> HookEnd {
    let begun = monotonic_now();
    let over = tokio::time::sleep(timeout);
    tokio::pin!(over);
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            biased;
            waited = running.process.wait_exit() => break waited.is_ok().then_some(HookOutcome::Ok),
            _ = &mut unwanted => break Some(HookOutcome::Abandoned),
            () = &mut over => break Some(HookOutcome::TimedOut),
            _ = looks.tick(), if !running.has_cgroup => {
                let looked = tokio::task::spawn_blocking(move || {
                    if let Ok(table) = ProcTable::read() {
                        running.tree.refresh(&table);
                    }
                    running
                });
                match looked.await {
                    Ok(back) => running = back,
                    Err(_) => return HookEnd::not_started("it cannot be watched"),
                }
            }
            () = running.output.read() => {}
        }
    };
    let took = monotonic_now().saturating_sub(begun);
    tokio::task::spawn_blocking(move || finish(running, outcome.unwrap_or(HookOutcome::Failed), took))
        .await
        .unwrap_or_else(|_| HookEnd::not_started("its end was not seen"))
}

/// Kills what is left of it, reaps it, and reads what it said.
fn finish(mut running: Running, outcome: HookOutcome, took: Duration) -> HookEnd {
    // First what it left behind, while its number is certain.
    let ended = running.process.has_exited().unwrap_or(false);
    let report = running.tree.kill(KILL_WAIT);
    let killed = match report {
        Ok(report) => report.signalled.saturating_sub(u32::from(!ended)),
        Err(error) => {
            tracing::warn!(%error, "what a hook left behind could not be cleared away");
            let _ = running.process.signal(razar_os::Signal::KILL);
            0
        }
    };
    let status = match running.process.exit() {
        Ok(razar_os::Exit::Ended(status)) => Some(status),
        Ok(razar_os::Exit::Running | razar_os::Exit::Unknown) | Err(_) => None,
    };
    let well = status.as_ref().is_some_and(razar_os::ExitStatus::is_success);
    let outcome = if outcome == HookOutcome::Ok && !well { HookOutcome::Failed } else { outcome };
    let (output, output_cut) = running.output.take();
    HookEnd { outcome, status: status.map(|s| exit_record(Some(s), None)), took, output, output_cut, stragglers: killed }
}

#[cfg(test)]
mod tests;
