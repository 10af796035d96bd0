//! The node's journal: every event, spawn and memory, appended to segment files before it takes effect, so that the next agent of this
//! node knows what the last one did. Written at once (`write`), on disk within 100 ms (`fdatasync` on a thread of its own).
//! What is recorded, and what follows from what was restored, is decided by the policy. Publishing events is `outbox.rs`.
//!
//! Nothing is numbered twice: after an end that may have lost records (another boot, not closed; or a damaged tail) event sequences and
//! starts go on a block of 1,024 further (more, if what was damaged may have used more), and never is more than a block not yet on disk.
//!
//! A full disk (or more than 256 MiB of events that the bus does not take) stops the journal, not the node: state is kept in memory and
//! written with the next snapshot, events are held in memory up to a bound, unnumbered, and what goes beyond is counted as lost, the
//! oldest first. Events already journalled are never dropped.

mod backlog;
pub(crate) mod frame;
mod mark;
mod segment;
mod state;
mod sync;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use razar_bus_schema::{
    PAYLOAD_BYTES_MAX,
    event::node_event_id,
    ids::{Incarnation, Instance},
    v1::{self, Event, InstanceMemory, JournalRecord, NodeSequence, SpawnPlanned, Spawned, journal_record::Record},
};

pub use backlog::Backlog;
pub(crate) use mark::replace_file;

use self::{
    mark::Mark,
    segment::{Content, Segment},
    state::State,
    sync::Syncer,
};

/// Numbers skipped after an end that may have lost records, and the most records that may wait for the disk.
pub const BLOCK: u64 = 1024;
/// Unacknowledged events given out at open; the outbox reads the rest from disk.
pub const RESTORED_EVENTS_MAX: usize = 4096;
/// Events held in memory while the disk takes none.
const HELD_EVENTS_MAX: usize = 4096;
/// No record that uses up a number is smaller.
const RECORD_BYTES_MIN: u64 = 16;
/// Acknowledgements that share one record: published again after a crash, these are known by their ids.
const ACKS_PER_RECORD: u64 = 64;

/// Bounds of the files.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size at which a new segment is begun.
    pub segment_bytes: u64,
    /// Size of all segments at which no further event is taken.
    pub disk_bytes: u64,
}

impl Default for Limits {
    /// Segments of 4 MiB (read back in some milliseconds), 256 MiB in all (a day and more of events at one a tenth of a second).
    fn default() -> Self {
        Self { segment_bytes: 4 * 1024 * 1024, disk_bytes: 256 * 1024 * 1024 }
    }
}

/// Why something was not journalled. The node goes on without.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bus has not taken events for so long that they fill their share of the disk.
    #[error("journal is full: {bytes} bytes of events wait for the bus")]
    Full {
        /// Size of all segments.
        bytes: u64,
    },
    /// The event is larger than the bus takes; it is not held.
    #[error("event {kind} has {bytes} bytes, more than the {PAYLOAD_BYTES_MAX} that the bus takes")]
    TooLarge {
        /// Its kind.
        kind: String,
        /// Its size.
        bytes: usize,
    },
}

/// What was found at open.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Epoch of this journal: 16 hex digits.
    pub node_epoch: String,
    /// The journal begins anew: there was none, or it could not be read.
    pub new_epoch: bool,
    /// The last end may have lost records, so numbers go on a block further; see `start_floor`.
    pub jumped: bool,
    /// Highest start that may have been used in a generation that `memories` does not know: 0, or above what was skipped. It concerns the
    /// generations that are desired when the node first reads its plan; later ones are new.
    pub start_floor: u64,
    /// Memory per instance; starts are raised by a block after a jump.
    pub memories: BTreeMap<Instance, InstanceMemory>,
    /// Processes that may live.
    pub processes: Vec<Spawned>,
    /// Spawns planned of which the outcome is unknown.
    pub planned: Vec<SpawnPlanned>,
    /// Oldest events that the broker has not acknowledged, in order, at most [`RESTORED_EVENTS_MAX`].
    pub unacknowledged: Vec<Event>,
    /// How many there are in all, on disk.
    pub unacknowledged_total: u64,
    /// Highest acknowledged event sequence.
    pub acknowledged: u64,
    /// Sequence of the next event.
    pub next_sequence: u64,
    /// What had to be cut or put aside, in words; empty: all was whole.
    pub damage: Vec<String>,
}

/// State of the journal, for `/readyz`, metrics and beats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalStatus {
    /// Why the journal cannot be written at present; none: it can.
    pub failing: Option<String>,
    /// Events in memory that wait for the disk, not numbered yet.
    pub events_held: usize,
    /// Events lost because the disk took none for too long.
    pub events_lost: u64,
    /// Size of all segments.
    pub bytes: u64,
    /// Number of segments.
    pub segments: usize,
    /// Records written and not yet known to be on disk.
    pub unsynced: u64,
}

/// The open journal. Calls write to the page cache and return in microseconds; only a rotation and more than a block of unsynced records
/// wait for the disk.
pub struct Journal {
    dir: PathBuf,
    node: String,
    boot_id: String,
    limits: Limits,
    state: State,
    segments: BTreeMap<u64, Segment>,
    number: u64,
    file: Arc<File>,
    /// The end of the current segment is not whole and could not be cut: nothing may follow it.
    broken: bool,
    syncer: Syncer,
    written: u64,
    /// Value of `written` at which the current segment's head is on disk, and older segments can go.
    head_mark: u64,
    acks_recorded: u64,
    held: VecDeque<Event>,
    events_lost: u64,
    /// Why the last event was held back.
    refused: Option<String>,
    /// Why the last write failed.
    failing: Option<String>,
    /// Memory holds what no record says: a snapshot comes before the next record.
    behind: bool,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).field("segment", &self.number).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in `dir` (made if missing), for the node of this name, in this boot of the kernel. The caller holds the node's lock.
    ///
    /// # Errors
    /// The directory cannot be read or written: the node must not start then, since it would number things anew.
    pub fn open(dir: &Path, node: &str, boot_id: &str) -> Result<(Self, Restored), JournalError> {
        Self::open_with(dir, node, boot_id, Limits::default())
    }

    /// As [`Self::open`], with other bounds.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, node: &str, boot_id: &str, limits: Limits) -> Result<(Self, Restored), JournalError> {
        let io_error = |what| move |source| JournalError::Io { what, path: dir.to_owned(), source };
        razar_os::make_private_dir(dir).map_err(io_error("make"))?;
        let mut found = Found::read(dir).map_err(io_error("read"))?;
        let mark = Mark::read(dir);
        let same_boot = mark.as_ref().is_some_and(|mark| mark.boot_id == boot_id);
        let lost_nothing = same_boot || mark.as_ref().is_some_and(|mark| mark.clean);
        let new_epoch = found.state.is_none();
        let skip = found.skip(lost_nothing);
        let jumped = !new_epoch && skip > 0;
        let mut state = found.state.take().unwrap_or_else(|| State::new(format!("{:016x}", rand::random::<u64>())));
        if jumped {
            state.skip(skip);
        }
        if mark.is_none_or(|mark| mark.clean || mark.boot_id != boot_id) {
            Mark { boot_id: boot_id.to_owned(), clean: false }.write(dir).map_err(io_error("mark"))?;
        }
        let restored = found.restored(&state, new_epoch, if jumped { skip } else { 0 });
        let current = found.segments.last_key_value().map(|(n, s)| (*n, s.bytes));
        let reusable = current.filter(|(_, bytes)| !new_epoch && !jumped && *bytes < limits.segment_bytes);
        let (number, file) = match reusable {
            Some((number, _)) => {
                let path = segment::path(dir, number);
                (number, OpenOptions::new().append(true).open(path).map_err(io_error("open a segment in"))?)
            }
            None => {
                let number = current.map_or(1, |(n, _)| n + 1).max(found.next_number);
                let (file, bytes) =
                    segment::create(&segment::path(dir, number), state.to_snapshot()).map_err(io_error("write a segment in"))?;
                // The skipped block must be on disk before anything is numbered from it.
                let synced = file.sync_data().and_then(|()| File::open(dir)?.sync_all());
                synced.map_err(io_error("sync"))?;
                found.segments.insert(number, Segment { bytes, ..Segment::default() });
                (number, file)
            }
        };
        let journal = Self {
            dir: dir.to_owned(),
            node: node.to_owned(),
            boot_id: boot_id.to_owned(),
            limits,
            acks_recorded: state.acknowledged,
            state,
            segments: found.segments,
            number,
            file: Arc::new(file),
            broken: false,
            syncer: Syncer::start(dir).map_err(io_error("start the sync of"))?,
            written: 0,
            head_mark: 0,
            held: VecDeque::new(),
            events_lost: 0,
            refused: None,
            failing: None,
            behind: false,
        };
        Ok((journal, restored))
    }

    /// Epoch of this journal.
    #[must_use]
    pub fn node_epoch(&self) -> &str {
        &self.state.node_epoch
    }

    /// A reader of the events on disk, for the outbox.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog::new(self.dir.clone())
    }

    /// Numbers the event, names it, and writes it. Returns the events that are now in the journal, in order, to be published: this one, and
    /// before it those that a full disk had held back. The caller gives its time and all else.
    ///
    /// # Errors
    /// The disk does not take it: the event is held in memory (see [`Self::retry_held`]). [`JournalError::TooLarge`]: it is not.
    pub fn append_event(&mut self, event: Event) -> Result<Vec<Event>, JournalError> {
        let bytes = event.encoded_len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(JournalError::TooLarge { kind: event.kind, bytes });
        }
        if self.held.len() >= HELD_EVENTS_MAX {
            self.held.pop_front();
            self.events_lost += 1;
        }
        self.held.push_back(event);
        let mut stored = Vec::with_capacity(1);
        let outcome = self.store_held(&mut stored);
        // What was stored is stored, even when a later one was not.
        if stored.is_empty() { outcome.map(|()| stored) } else { Ok(stored) }
    }

    /// Tries again to write events that were held back; call it every second or so while [`JournalStatus::events_held`] is not 0.
    /// Returns those now in the journal, to be published.
    pub fn retry_held(&mut self) -> Vec<Event> {
        let mut stored = Vec::new();
        // The failure is in the status.
        let _ = self.store_held(&mut stored);
        stored
    }

    fn store_held(&mut self, stored: &mut Vec<Event>) -> Result<(), JournalError> {
        while let Some(mut event) = self.held.pop_front() {
            let sequence = self.state.next_sequence;
            event.id = node_event_id(&self.node, &self.state.node_epoch, sequence);
            event.node_sequence = Some(NodeSequence { node: self.node.clone(), epoch: self.state.node_epoch.clone(), sequence });
            let record = JournalRecord { record: Some(Record::Event(event)) };
            let written = self.has_room().and_then(|()| self.write(&record));
            let Some(Record::Event(event)) = record.record else { continue };
            if let Err(error) = written {
                self.refused = Some(chain(&error));
                self.held.push_front(event);
                return Err(error);
            }
            self.refused = None;
            self.state.next_sequence = sequence.saturating_add(1);
            if let Some(segment) = self.segments.get_mut(&self.number) {
                segment.events += 1;
                segment.last_event = sequence;
            }
            stored.push(event);
        }
        Ok(())
    }

    fn has_room(&self) -> Result<(), JournalError> {
        let bytes = self.bytes();
        if bytes < self.limits.disk_bytes { Ok(()) } else { Err(JournalError::Full { bytes }) }
    }

    /// A spawn is about to happen. Its start counts as used from now on.
    ///
    /// # Errors
    /// The disk does not take it; it is kept in memory and in the next snapshot. Healing goes on.
    pub fn spawn_planned(&mut self, planned: SpawnPlanned) -> Result<(), JournalError> {
        self.record(Record::SpawnPlanned(planned))
    }

    /// A spawn happened.
    ///
    /// # Errors
    /// As [`Self::spawn_planned`].
    pub fn spawned(&mut self, spawned: Spawned) -> Result<(), JournalError> {
        self.record(Record::Spawned(spawned))
    }

    /// A process is gone and settled, or a planned spawn never happened.
    ///
    /// # Errors
    /// As [`Self::spawn_planned`].
    pub fn gone(&mut self, instance: &Instance, incarnation: Incarnation) -> Result<(), JournalError> {
        self.record(Record::ProcessGone(v1::ProcessGone { instance: Some(instance.into()), incarnation: Some(incarnation.into()) }))
    }

    /// Something must be remembered of an instance; it replaces what was remembered before.
    ///
    /// # Errors
    /// As [`Self::spawn_planned`].
    pub fn remember(&mut self, memory: InstanceMemory) -> Result<(), JournalError> {
        self.record(Record::Memory(memory))
    }

    /// Events up to this sequence are stored by the broker; segments that hold nothing else are deleted.
    ///
    /// # Errors
    /// As [`Self::spawn_planned`]; the events would be published once more after a crash.
    pub fn acknowledged(&mut self, sequence: u64) -> Result<(), JournalError> {
        self.state.acknowledged = self.state.acknowledged.max(sequence);
        self.delete_settled();
        if self.state.acknowledged < self.acks_recorded + ACKS_PER_RECORD {
            return Ok(());
        }
        self.record_acknowledged()
    }

    fn record_acknowledged(&mut self) -> Result<(), JournalError> {
        let sequence = self.state.acknowledged;
        self.record(Record::Acknowledged(v1::Acknowledged { sequence }))?;
        self.acks_recorded = sequence;
        Ok(())
    }

    /// Makes everything durable and marks the journal as closed in order, so that the next open loses no numbers.
    ///
    /// # Errors
    /// The disk does not take it; the next open then goes on a block further.
    pub fn close(mut self) -> Result<(), JournalError> {
        if self.acks_recorded < self.state.acknowledged {
            self.record_acknowledged()?;
        }
        self.syncer.flush();
        let io_error = |source| JournalError::Io { what: "close", path: self.dir.clone(), source };
        if self.syncer.error().is_some() || self.syncer.synced() < self.written {
            return Err(io_error(io::Error::other("not everything could be synced")));
        }
        Mark { boot_id: self.boot_id.clone(), clean: true }.write(&self.dir).map_err(io_error)
    }

    /// State of the journal.
    #[must_use]
    pub fn status(&self) -> JournalStatus {
        JournalStatus {
            failing: self.failing.clone().or_else(|| self.refused.clone()).or_else(|| self.syncer.error()),
            events_held: self.held.len(),
            events_lost: self.events_lost,
            bytes: self.bytes(),
            segments: self.segments.len(),
            unsynced: self.written.saturating_sub(self.syncer.synced()),
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum()
    }

    /// Folds into memory first: what the disk does not take now is in the next snapshot.
    fn record(&mut self, record: Record) -> Result<(), JournalError> {
        self.state.fold(record.clone());
        let written = self.write(&JournalRecord { record: Some(record) });
        self.behind |= written.is_err();
        written
    }

    fn write(&mut self, record: &JournalRecord) -> Result<(), JournalError> {
        let written = self.try_write(record);
        self.failing = written.as_ref().err().map(chain);
        written
    }

    fn try_write(&mut self, record: &JournalRecord) -> Result<(), JournalError> {
        let bytes_now = self.segments.get(&self.number).map_or(0, |s| s.bytes);
        if self.broken || self.behind {
            self.rotate()?;
        } else if bytes_now >= self.limits.segment_bytes {
            // A disk that has no room for a new segment may still have some in this one.
            let _ = self.rotate();
        }
        let frame = frame::encode(record);
        let path = || segment::path(&self.dir, self.number);
        let size = self.segments.get(&self.number).map_or(0, |s| s.bytes);
        if let Err(source) = (&*self.file).write_all(&frame) {
            self.broken = self.file.set_len(size).is_err();
            return Err(JournalError::Io { what: "write to", path: path(), source });
        }
        if let Some(segment) = self.segments.get_mut(&self.number) {
            segment.bytes += frame.len() as u64;
        }
        self.written += 1;
        self.syncer.note(&self.file, self.written, false);
        if self.written.saturating_sub(self.syncer.synced()) >= BLOCK {
            self.syncer.flush();
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        let number = self.number + 1;
        let path = segment::path(&self.dir, number);
        let (file, bytes) =
            segment::create(&path, self.state.to_snapshot()).map_err(|source| JournalError::Io { what: "begin", path, source })?;
        self.file = Arc::new(file);
        self.number = number;
        (self.broken, self.behind) = (false, false);
        self.segments.insert(number, Segment { bytes, ..Segment::default() });
        self.written += 1;
        self.head_mark = self.written;
        self.acks_recorded = self.state.acknowledged;
        self.syncer.note(&self.file, self.written, true);
        self.delete_settled();
        Ok(())
    }

    /// Deletes segments of which all events are acknowledged, once the head of the current one, which holds their state, is on disk.
    fn delete_settled(&mut self) {
        if self.segments.len() < 2 || self.syncer.synced() < self.head_mark {
            return;
        }
        let (number, acknowledged, dir) = (self.number, self.state.acknowledged, &self.dir);
        self.segments.retain(|n, segment| {
            let needed = *n == number || segment.last_event > acknowledged;
            // One that cannot be deleted is found again at the next open.
            needed || std::fs::remove_file(segment::path(dir, *n)).is_err()
        });
    }
}

/// What the directory held.
#[derive(Default)]
struct Found {
    state: Option<State>,
    segments: BTreeMap<u64, Segment>,
    next_number: u64,
    /// Bytes of newest records that could not be read.
    lost_bytes: u64,
    events: Vec<Event>,
    events_total: u64,
    damage: Vec<String>,
}

impl Found {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let numbers = segment::list(dir)?;
        found.next_number = numbers.last().map_or(1, |n| n + 1);
        // The newest segment with a whole head holds the state; what is newer was not finished when the power went.
        let mut base = None;
        let mut older = numbers;
        while let Some(number) = older.pop() {
            let content = segment::read(&segment::path(dir, number))?;
            if content.has_head() {
                base = Some((number, content));
                break;
            }
            found.put_aside(dir, number)?;
        }
        let Some((number, content)) = base else { return Ok(found) };
        found.use_as_base(dir, number, content)?;
        let acknowledged = found.state.as_ref().map_or(0, |s| s.acknowledged);
        let mut events = Vec::new();
        for earlier in older {
            let content = segment::read(&segment::path(dir, earlier))?;
            if content.lost_bytes > 0 {
                found.damage.push(format!("segment {earlier} is damaged after {} bytes", content.good_bytes));
            }
            found.segments.insert(earlier, content.describe());
            found.take_events(&content.records, acknowledged, &mut events);
        }
        // Those of the newest segment come last.
        let newest = std::mem::take(&mut found.events);
        events.extend(newest);
        events.truncate(RESTORED_EVENTS_MAX);
        found.events = events;
        Ok(found)
    }

    fn use_as_base(&mut self, dir: &Path, number: u64, content: Content) -> io::Result<()> {
        if content.lost_bytes > 0 {
            self.lost_bytes += content.lost_bytes;
            self.damage.push(format!("segment {number} was cut after {} bytes", content.good_bytes));
            OpenOptions::new().write(true).open(segment::path(dir, number))?.set_len(content.good_bytes)?;
        }
        self.segments.insert(number, content.describe());
        let mut state = State::default();
        content.records.iter().for_each(|record| state.fold(record.clone()));
        let mut events = Vec::new();
        self.take_events(&content.records, state.acknowledged, &mut events);
        self.events = events;
        self.state = Some(state);
        Ok(())
    }

    fn take_events(&mut self, records: &[Record], acknowledged: u64, into: &mut Vec<Event>) {
        for event in records.iter().filter_map(segment::event_of).filter(|e| segment::sequence_of(e) > acknowledged) {
            self.events_total += 1;
            if into.len() < RESTORED_EVENTS_MAX {
                into.push(event.clone());
            }
        }
    }

    fn put_aside(&mut self, dir: &Path, number: u64) -> io::Result<()> {
        self.lost_bytes += std::fs::metadata(segment::path(dir, number))?.len().max(1);
        self.damage.push(format!("segment {number} has no readable head and was put aside"));
        let path = segment::path(dir, number);
        std::fs::rename(&path, path.with_extension("bad"))
    }

    /// Numbers to be skipped: those that what was lost may have used.
    fn skip(&self, lost_nothing: bool) -> u64 {
        let unsynced = if lost_nothing { 0 } else { BLOCK };
        if self.lost_bytes == 0 { unsynced } else { BLOCK.max(self.lost_bytes / RECORD_BYTES_MIN) }
    }

    fn restored(&mut self, state: &State, new_epoch: bool, skipped: u64) -> Restored {
        // A start in a generation that is lost may have been numbered above an earlier floor; sequences, which are skipped as well and
        // never go back, are above all of them.
        let start_floor = if skipped > 0 { skipped.max(state.next_sequence / BLOCK * BLOCK) } else { 0 };
        Restored {
            node_epoch: state.node_epoch.clone(),
            new_epoch,
            jumped: skipped > 0,
            start_floor,
            memories: state.memories.clone(),
            processes: state.processes.values().cloned().collect(),
            planned: state.planned.values().cloned().collect(),
            unacknowledged: std::mem::take(&mut self.events),
            unacknowledged_total: self.events_total,
            acknowledged: state.acknowledged,
            next_sequence: state.next_sequence,
            damage: std::mem::take(&mut self.damage),
        }
    }
}

/// The error with its causes, in one line.
fn chain(error: &JournalError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
