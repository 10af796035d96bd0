//! Segment files: their names, how they are listed, read and made. Each begins with a snapshot of everything.
//! When one is begun or deleted is decided in `journal.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use razar_bus_schema::v1::{Event, JournalRecord, JournalSnapshot, journal_record::Record};

use super::frame::{self, Frames};

/// What is known of a segment without reading it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment {
    pub(super) bytes: u64,
    /// Highest sequence of an event in it; 0: it holds none.
    pub(super) last_event: u64,
    /// Events in it.
    pub(super) events: u64,
}

/// A segment's content.
pub(super) struct Content {
    pub(super) records: Vec<Record>,
    pub(super) good_bytes: u64,
    /// Bytes behind them that are no whole records.
    pub(super) lost_bytes: u64,
}

impl Content {
    /// The snapshot that a whole segment begins with.
    pub(super) fn has_head(&self) -> bool {
        matches!(self.records.first(), Some(Record::Snapshot(_)))
    }

    pub(super) fn describe(&self) -> Segment {
        let mut segment = Segment { bytes: self.good_bytes, ..Segment::default() };
        for event in self.records.iter().filter_map(event_of) {
            segment.events += 1;
            segment.last_event = segment.last_event.max(sequence_of(event));
        }
        segment
    }
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.log"))
}

/// Numbers of the segments there are, ascending.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> = name.to_str().and_then(|n| n.strip_suffix(".log")).and_then(|n| n.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn read(path: &Path) -> io::Result<Content> {
    let bytes = std::fs::read(path)?;
    let mut frames = Frames::new(&bytes);
    let records = frames.by_ref().filter_map(|record| record.record).collect();
    let good = frames.good_bytes();
    Ok(Content { records, good_bytes: good as u64, lost_bytes: bytes.len().saturating_sub(good) as u64 })
}

/// Makes a segment that begins with this snapshot. On failure no file is left.
pub(super) fn create(path: &Path, snapshot: JournalSnapshot) -> io::Result<(File, u64)> {
    let head = frame::encode(&JournalRecord { record: Some(Record::Snapshot(snapshot)) });
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let made = (|| {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&temporary)?;
        file.set_len(0)?;
        file.write_all(&head)?;
        std::fs::rename(&temporary, path)?;
        Ok(file)
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made.map(|file| (file, head.len() as u64))
}

pub(super) fn event_of(record: &Record) -> Option<&Event> {
    match record {
        Record::Event(event) => Some(event),
        Record::Snapshot(_)
        | Record::SpawnPlanned(_)
        | Record::Spawned(_)
        | Record::ProcessGone(_)
        | Record::Acknowledged(_)
        | Record::Memory(_) => None,
    }
}

/// The event's place in the journal, from 1; 0: it has none.
pub(super) fn sequence_of(event: &Event) -> u64 {
    event.node_sequence.as_ref().map_or(0, |at| at.sequence)
}
