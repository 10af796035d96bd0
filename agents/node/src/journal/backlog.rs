//! Reading events back from the segments, for an outbox that holds only the newest part of a long backlog in memory.
//! Reads only; it may run on another thread while the journal is written.

use std::io;
use std::path::PathBuf;

use razar_bus_schema::v1::{Event, journal_record::Record};

use super::segment;

/// A reader of the journal's events, cheap to clone.
#[derive(Debug, Clone)]
pub struct Backlog {
    dir: PathBuf,
    /// Segment in which the last event was found: the next one is there or later.
    hint: u64,
}

impl Backlog {
    /// A reader of the journal in this directory.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, hint: 0 }
    }

    /// The first events with a sequence above `after`, in order, at most `max`. Empty: there are none on disk. Blocks on the disk; reads
    /// whole segments (4 MiB each).
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn read_after(&mut self, after: u64, max: usize) -> io::Result<Vec<Event>> {
        let mut found: Vec<Event> = Vec::new();
        let hint = self.hint;
        for number in segment::list(&self.dir)?.into_iter().filter(|n| *n >= hint) {
            let content = match segment::read(&segment::path(&self.dir, number)) {
                Ok(content) => content,
                // Deleted meanwhile, since all its events are acknowledged.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let events = content.records.into_iter().filter_map(|record| if let Record::Event(e) = record { Some(e) } else { None });
            found.extend(events.filter(|e| segment::sequence_of(e) > after));
            if !found.is_empty() {
                self.hint = number;
            }
            if found.len() >= max {
                found.truncate(max);
                break;
            }
        }
        Ok(found)
    }
}
