//! The file in which the guard notes how orphans ended, and the agent's view of it: one line each, the newest 4,096 kept.
//! Good for one boot; not synced, since it means nothing after it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use razar_os::{BootId, Exit, ExitStatus, FileId, Pid, Process, Reaped};

/// Size at which the file is written anew with its newest lines.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Lines kept then: fifty for each component of a large node.
const LINES_KEPT: usize = 4096;
/// Exits that a reader holds: more than a file of 1 MiB has lines.
const KNOWN_MAX: usize = 65_536;
/// How long the guard may take to reap a process that has just ended, before its status counts as unknown.
const REAP_WAIT: Duration = Duration::from_millis(100);

/// The guard's side.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    boot_id: BootId,
    bytes: u64,
    /// The last write may have left half a line.
    torn: bool,
}

impl Writer {
    /// Opens the file, keeping what another guard of this boot noted in it.
    pub(super) fn open(path: &Path, boot_id: BootId) -> io::Result<Self> {
        let mut kept = Vec::new();
        if let Ok(file) = File::open(path) {
            let mut lines = BufReader::new(file).lines();
            if lines.next().and_then(Result::ok).is_some_and(|head| head == head_line(boot_id)) {
                kept = lines.map_while(Result::ok).filter(|line| parse(line).is_some()).collect();
            }
        }
        Self::rewrite(path, boot_id, &kept)
    }

    fn rewrite(path: &Path, boot_id: BootId, lines: &[String]) -> io::Result<Self> {
        let temporary = path.with_extension("tmp");
        let newest = lines.get(lines.len().saturating_sub(LINES_KEPT)..).unwrap_or_default();
        let mut text = head_line(boot_id) + "\n";
        for line in newest {
            text.push_str(line);
            text.push('\n');
        }
        std::fs::write(&temporary, &text)?;
        let file = OpenOptions::new().append(true).open(&temporary)?;
        std::fs::rename(&temporary, path)?;
        Ok(Self { path: path.to_owned(), file, boot_id, bytes: text.len() as u64, torn: false })
    }

    /// Notes these exits.
    pub(super) fn note(&mut self, reaped: &[Reaped]) -> io::Result<()> {
        if self.bytes > FILE_BYTES_MAX {
            let lines: Vec<String> = BufReader::new(File::open(&self.path)?).lines().skip(1).map_while(Result::ok).collect();
            *self = Self::rewrite(&self.path, self.boot_id, &lines)?;
        }
        let mut text = if self.torn { "\n".to_owned() } else { String::new() };
        for dead in reaped {
            // Without its start time the number names nobody.
            if let Some(start) = dead.start_time_ticks {
                text.push_str(&line(dead.pid, start, dead.status));
            }
        }
        self.bytes += text.len() as u64;
        let written = self.file.write_all(text.as_bytes());
        self.torn = written.is_err();
        written
    }
}

fn head_line(boot_id: BootId) -> String {
    format!("boot {boot_id}")
}

fn line(pid: Pid, start: u64, status: ExitStatus) -> String {
    let (kind, number) = match (status.code, status.signal) {
        (Some(code), _) => ("exit", code),
        (None, signal) => (if status.core_dumped { "core" } else { "signal" }, signal.unwrap_or(0)),
    };
    format!("{pid} {start} {kind} {number}\n")
}

fn parse(line: &str) -> Option<((i32, u64), ExitStatus)> {
    let mut fields = line.split(' ');
    let key = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let kind = fields.next()?;
    let number: i32 = fields.next()?.parse().ok()?;
    let status = match kind {
        "exit" => ExitStatus { code: Some(number), signal: None, core_dumped: false },
        "signal" | "core" => ExitStatus { code: None, signal: Some(number), core_dumped: kind == "core" },
        _ => return None,
    };
    fields.next().is_none().then_some((key, status))
}

/// The agent's side: how processes ended that were not its children, or ended in its absence.
#[derive(Debug)]
pub struct Exits {
    path: PathBuf,
    boot_id: BootId,
    read: Option<(FileId, u64)>,
    known: HashMap<(i32, u64), ExitStatus>,
}

impl Exits {
    /// The exits in the file at this path ([`super::exits_path`]); it need not exist yet.
    ///
    /// # Errors
    /// The boot id cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), boot_id: BootId::current()?, read: None, known: HashMap::new() })
    }

    /// How the process with this number and start time ended, if the guard has noted it; each is given once.
    ///
    /// # Errors
    /// The file cannot be read; that it is not there is no error.
    pub fn take(&mut self, pid: Pid, start_time_ticks: u64) -> io::Result<Option<ExitStatus>> {
        let key = (pid.as_raw(), start_time_ticks);
        if !self.known.contains_key(&key) {
            self.refresh()?;
        }
        Ok(self.known.remove(&key))
    }

    fn refresh(&mut self) -> io::Result<()> {
        if self.known.len() > KNOWN_MAX {
            // What nobody asked for: processes inside components. Those that matter are asked for when they end.
            self.known.clear();
        }
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let id = FileId::of_fd(&file)?;
        // Another file: the guard has written it anew, with what is known already and what is not.
        let mut offset = self.read.filter(|(known, _)| *known == id).map_or(0, |(_, offset)| offset);
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::Start(offset))?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 {
            let Some(whole) = line.strip_suffix('\n') else { break };
            if offset == 0 && whole != head_line(self.boot_id) {
                return Ok(());
            }
            self.known.extend(parse(whole));
            offset += line.len() as u64;
            line.clear();
        }
        self.read = Some((id, offset));
        Ok(())
    }
}

/// How an ended process ended: reaped here if it is our child, else as the kernel or the guard tell, who may need some milliseconds for it.
/// `None`: unknown. While it runs: waits. Cancel safe, except that a status already taken is gone.
///
/// # Errors
/// None that a caller can mend.
pub async fn status_of(process: &Process, exits: &mut Exits) -> io::Result<Option<ExitStatus>> {
    process.wait_exit().await?;
    let identity = process.identity();
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Exit::Ended(status) = process.exit()? {
            return Ok(Some(status));
        }
        if let Some(status) = exits.take(identity.pid, identity.start_time_ticks)? {
            return Ok(Some(status));
        }
        if waited >= REAP_WAIT {
            return Ok(None);
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reaped(pid: i32, code: i32) -> Reaped {
        let status = ExitStatus { code: Some(code), signal: None, core_dumped: false };
        Reaped { pid: Pid::new(pid).unwrap(), start_time_ticks: Some(5), pidfd_inode: None, status }
    }

    #[test]
    fn the_file_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let mut writer = Writer::open(&path, BootId::current().unwrap()).unwrap();
        let mut exits = Exits::open(&path).unwrap();
        let lines = 200_000;
        for first in (1..lines).step_by(1000) {
            writer.note(&(first..first + 1000).map(|pid| reaped(pid, pid % 256)).collect::<Vec<_>>()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() < FILE_BYTES_MAX + 64 * 1024);
            let newest = Pid::new(first + 999).unwrap();
            assert_eq!(exits.take(newest, 5).unwrap().unwrap().code, Some((first + 999) % 256));
        }
        let mut late = Exits::open(&path).unwrap();
        for pid in lines - 4000..lines {
            assert!(late.take(Pid::new(pid).unwrap(), 5).unwrap().is_some(), "{pid}");
        }
    }

    #[test]
    fn another_guard_of_the_same_boot_goes_on_and_one_of_another_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let boot = BootId::current().unwrap();
        let other: BootId = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        Writer::open(&path, boot).unwrap().note(&[reaped(7, 1)]).unwrap();
        // Torn, as by a full disk.
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "8 5 ex").unwrap();
        Writer::open(&path, boot).unwrap().note(&[reaped(9, 2)]).unwrap();
        let mut exits = Exits::open(&path).unwrap();
        assert_eq!(exits.take(Pid::new(7).unwrap(), 5).unwrap().unwrap().code, Some(1));
        assert_eq!(exits.take(Pid::new(9).unwrap(), 5).unwrap().unwrap().code, Some(2));
        assert_eq!(exits.take(Pid::new(9).unwrap(), 5).unwrap(), None, "each is given once");
        Writer::open(&path, other).unwrap();
        assert_eq!(Exits::open(&path).unwrap().take(Pid::new(7).unwrap(), 5).unwrap(), None);
    }

    #[test]
    fn every_status_survives_its_line() {
        for (code, signal, core_dumped) in
            [(Some(0), None, false), (Some(255), None, false), (None, Some(9), false), (None, Some(11), true)]
        {
            let status = ExitStatus { code, signal, core_dumped };
            let written = line(Pid::new(42).unwrap(), 99, status);
            assert_eq!(parse(written.trim_end()), Some(((42, 99), status)));
        }
        for bad in ["", "1", "1 2", "1 2 exit", "1 2 exit x", "1 2 left 3", "1 2 exit 3 4"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
