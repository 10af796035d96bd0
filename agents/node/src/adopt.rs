//! What the last agent of this node left behind: which of its processes live, which ended and how, and which of its planned starts
//! happened although nobody wrote so. Only looks; what is adopted, stopped or started anew is decided by the policy.
//! The caller holds the node's lock, so that nobody starts anything meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{ProcessIdentity, SpawnPlanned},
};
use razar_os::{BootId, Exit, ExitStatus, FileId, Identity, Pid, Process};

use crate::{guard::Exits, journal::Restored};

/// One start of the last agent's.
#[derive(Debug)]
pub struct Found {
    /// What was started, or was about to be.
    pub planned: SpawnPlanned,
    /// Instance, as an id.
    pub instance: Instance,
    /// Incarnation, as an id.
    pub incarnation: Incarnation,
    /// What has become of it.
    pub state: FoundState,
}

/// What has become of a start.
#[derive(Debug)]
pub enum FoundState {
    /// It lives.
    Alive {
        /// Its main process.
        process: Process,
        /// It was found by its tag: the journal says only that it was planned, so write it down.
        unrecorded: bool,
    },
    /// Its main process has ended; how, if anybody knows.
    Exited {
        /// How it ended.
        status: Option<ExitStatus>,
        /// Processes that still have its log file open: its tree, to be killed before it is started anew.
        stragglers: Vec<Identity>,
    },
    /// Planned, and no process carries its tag: it was never started, or has come and gone.
    NotThere,
}

/// A process that writes to a log file of this node and belongs to nothing in its journal: another epoch's.
#[derive(Debug)]
pub struct Stranger {
    /// The process.
    pub process: Process,
    /// The log file, below the node's directory of logs; a path that was removed meanwhile ends in ` (deleted)`.
    pub log_path: PathBuf,
    /// The instance that the path names.
    pub instance: Instance,
    /// The incarnation that the path names.
    pub incarnation: Incarnation,
}

/// What a survey found.
#[derive(Debug, Default)]
pub struct Survey {
    /// One for each process and each plan of the journal, by instance and incarnation.
    pub found: Vec<Found>,
    /// Processes of another epoch: to be stopped, and told.
    pub strangers: Vec<Stranger>,
}

/// The identity that the journal keeps of a process.
#[must_use]
pub fn identity_record(identity: &Identity) -> ProcessIdentity {
    ProcessIdentity {
        pid: identity.pid.as_raw().unsigned_abs(),
        start_time_ticks: identity.start_time_ticks,
        boot_id: identity.boot_id.to_string(),
        pidfd_inode: identity.pidfd_inode,
    }
}

/// The identity in a record of the journal; none if it names no process.
#[must_use]
pub fn identity_of(record: &ProcessIdentity) -> Option<Identity> {
    Some(Identity {
        pid: Pid::new(i32::try_from(record.pid).ok()?)?,
        start_time_ticks: record.start_time_ticks,
        boot_id: record.boot_id.parse().ok()?,
        pidfd_inode: record.pidfd_inode,
    })
}

/// Looks for everything that the journal says may live, and for processes that write below `logs_dir` and are not in it. Takes a few
/// milliseconds for some hundred processes; blocks on `/proc`.
///
/// # Errors
/// `/proc` cannot be read or descriptors are short: nothing is known then, and nothing may be started.
pub fn survey(restored: &Restored, exits: &mut Exits, logs_dir: &Path) -> io::Result<Survey> {
    let boot = BootId::current()?;
    let tagged = Tagged::scan()?;
    let mut survey = Survey::default();
    let mut known = BTreeSet::new();
    for spawned in &restored.processes {
        let Some(planned) = &spawned.planned else { continue };
        let tag = tag_of(planned);
        known.insert(tag);
        let identity = spawned.process.as_ref().and_then(identity_of);
        let state = match identity {
            Some(identity) => state_of(&identity, exits, || tagged.of(tag))?,
            None => by_tag(tag, planned, boot, &tagged)?,
        };
        survey.found.extend(found(planned, state));
    }
    for planned in &restored.planned {
        let tag = tag_of(planned);
        known.insert(tag);
        survey.found.extend(found(planned, by_tag(tag, planned, boot, &tagged)?));
    }
    survey.found.sort_by(|a, b| (&a.instance, a.incarnation).cmp(&(&b.instance, b.incarnation)));
    survey.strangers = tagged.strangers(&known, logs_dir)?;
    Ok(survey)
}

fn found(planned: &SpawnPlanned, state: FoundState) -> Option<Found> {
    let instance = Instance::try_from(planned.instance.as_ref()?).ok()?;
    let incarnation = planned.incarnation.as_ref()?.into();
    Some(Found { planned: planned.clone(), instance, incarnation, state })
}

fn tag_of(planned: &SpawnPlanned) -> FileId {
    FileId { dev: planned.log_device, inode: planned.log_inode }
}

fn state_of(identity: &Identity, exits: &mut Exits, tagged: impl FnOnce() -> io::Result<Vec<Process>>) -> io::Result<FoundState> {
    let mut status = None;
    if let Some(process) = Process::open(identity)? {
        match process.exit()? {
            Exit::Running => return Ok(FoundState::Alive { process, unrecorded: false }),
            Exit::Ended(ended) => status = Some(ended),
            Exit::Unknown => {}
        }
    }
    if status.is_none() && identity.boot_id == BootId::current()? {
        status = exits.take(identity.pid, identity.start_time_ticks)?;
    }
    let stragglers = if identity.boot_id == BootId::current()? { tagged()? } else { Vec::new() };
    let stragglers = stragglers.iter().map(Process::identity).filter(|found| found != identity).collect();
    Ok(FoundState::Exited { status, stragglers })
}

/// A plan without a process: the one that leads its session is the main process, and of several the oldest.
fn by_tag(tag: FileId, planned: &SpawnPlanned, boot: BootId, tagged: &Tagged) -> io::Result<FoundState> {
    if planned.boot_id.parse() != Ok(boot) {
        return Ok(FoundState::NotThere);
    }
    let mut candidates = tagged.of(tag)?;
    candidates.sort_by_key(|process| (process.identity().start_time_ticks, process.pid()));
    match candidates.iter().position(|process| leads_session(process.pid())) {
        Some(main) => Ok(FoundState::Alive { process: candidates.swap_remove(main), unrecorded: true }),
        None if candidates.is_empty() => Ok(FoundState::NotThere),
        // The main process has gone and left children: who it was is not known, so neither is how it ended.
        None => Ok(FoundState::Exited { status: None, stragglers: candidates.iter().map(Process::identity).collect() }),
    }
}

fn leads_session(pid: Pid) -> bool {
    let raw = rustix::process::Pid::from_raw(pid.as_raw());
    raw.is_some() && rustix::process::getsid(raw).ok() == raw
}

/// Every process of the machine that we may look at, by the files that are its stdout and stderr.
struct Tagged {
    by_file: BTreeMap<FileId, BTreeMap<Pid, PathBuf>>,
}

impl Tagged {
    fn scan() -> io::Result<Self> {
        let mut by_file: BTreeMap<FileId, BTreeMap<Pid, PathBuf>> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::new) else { continue };
            if pid == Pid::this() {
                continue;
            }
            for fd in [1, 2] {
                let link = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
                // One that has gone, or is not ours to look at.
                let (Ok(id), Ok(path)) = (FileId::of_path(&link), std::fs::read_link(&link)) else { continue };
                // Pipes, sockets and terminals tag nothing.
                if path.is_absolute() && !path.starts_with("/dev") {
                    by_file.entry(id).or_default().insert(pid, path);
                }
            }
        }
        Ok(Self { by_file })
    }

    /// Living processes with this file, verified to have it still after each was pinned by its pidfd.
    fn of(&self, tag: FileId) -> io::Result<Vec<Process>> {
        let mut processes = Vec::new();
        for pid in self.by_file.get(&tag).into_iter().flat_map(BTreeMap::keys) {
            processes.extend(pinned(*pid, tag)?);
        }
        Ok(processes)
    }

    fn strangers(&self, known: &BTreeSet<FileId>, logs_dir: &Path) -> io::Result<Vec<Stranger>> {
        let mut strangers = Vec::new();
        for (tag, holders) in self.by_file.iter().filter(|(tag, _)| !known.contains(tag)) {
            for (pid, path) in holders.iter().filter(|(_, path)| path.starts_with(logs_dir)) {
                let Some((instance, incarnation)) = named_by(path) else { continue };
                if let Some(process) = pinned(*pid, *tag)? {
                    strangers.push(Stranger { process, log_path: path.clone(), instance, incarnation });
                }
            }
        }
        Ok(strangers)
    }
}

fn pinned(pid: Pid, tag: FileId) -> io::Result<Option<Process>> {
    let Some(process) = Process::current_holder(pid)? else { return Ok(None) };
    let has_tag = [1, 2].iter().any(|fd| FileId::of_path(Path::new(&format!("/proc/{pid}/fd/{fd}"))).is_ok_and(|id| id == tag));
    // What was looked at was this process only if it has not ended meanwhile.
    Ok((has_tag && !process.has_exited()?).then_some(process))
}

/// Instance and incarnation in `…/<component>.<ordinal>/<generation>.<start>.log`.
fn named_by(path: &Path) -> Option<(Instance, Incarnation)> {
    let instance = path.parent()?.file_name()?.to_str()?.parse().ok()?;
    let (incarnation, _) = path.file_name()?.to_str()?.split_once(".log")?;
    Some((instance, incarnation.parse().ok()?))
}
