//! EVENTS read in order, for folding: every event once, what cannot be read named, and a word when all of it is read.
//! What an event means for a view is the agents' matter.

use std::{collections::VecDeque, time::SystemTime};

use prost::Message;
use razar_bus_schema::{stream::Store, v1};
use tokio::sync::mpsc;

use crate::{
    Bus,
    ordered::{self, Plan, Raw, Read},
};

/// Where a fold begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// At the oldest event that the stream keeps.
    Beginning,
    /// After a sequence that was applied in this epoch of the stream; in another epoch the fold begins anew.
    After {
        /// Epoch id of the stream.
        epoch: String,
        /// Last sequence applied.
        sequence: u64,
    },
}

/// One step of a fold.
#[derive(Debug)]
pub enum FoldItem {
    /// Forget everything folded so far; what follows is the stream from its beginning. First item of a fold, unless it goes on
    /// in the epoch that [`Start::After`] named; then whenever the stream was recreated or has lost what was applied.
    Reset {
        /// Epoch id of the stream.
        epoch: String,
    },
    /// An event.
    Event {
        /// Sequence in the stream.
        sequence: u64,
        /// The event.
        event: Box<v1::Event>,
        /// Events behind it; 0: this is the newest.
        pending: u64,
        /// When the broker stored it.
        stored: SystemTime,
        /// Header `traceparent`; empty: none.
        traceparent: String,
    },
    /// A message that is no event; pass it over, visibly.
    DeadLetter {
        /// Sequence in the stream.
        sequence: u64,
        /// Subject.
        subject: String,
        /// What is wrong with it.
        why: String,
        /// Its size in bytes.
        bytes: usize,
    },
    /// Everything up to `sequence` is read; comes once after each (re)connection.
    CaughtUp {
        /// Newest sequence of the stream.
        sequence: u64,
    },
}

/// An endless ordered read of EVENTS. Survives the broker's end without gaps and without repeating an event.
#[derive(Debug)]
pub struct EventFold {
    bus: Bus,
    reads: mpsc::Receiver<Read>,
    ready: VecDeque<FoldItem>,
    caught_up: bool,
}

impl Bus {
    /// Reads every event. Returns at once; a bus that is away or a stream that is not there yet is waited for.
    #[must_use]
    pub fn fold_events(&self, start: Start) -> EventFold {
        let plan = match start {
            Start::Beginning => Plan::Fold { epoch: None, after: 0 },
            Start::After { epoch, sequence } => Plan::Fold { epoch: Some(epoch), after: sequence },
        };
        let reads = ordered::read(self, Store::Events, self.subjects().events(), plan);
        EventFold { bus: self.clone(), reads, ready: VecDeque::with_capacity(2), caught_up: false }
    }

    /// Follows events whose subject matches `pattern` after the mesh's `event` token (`heart.>`), from now or from the beginning;
    /// for people who look on.
    #[must_use]
    pub fn follow_events(&self, pattern: &str, start: Start) -> EventFold {
        let plan = match start {
            Start::Beginning => Plan::Fold { epoch: None, after: 0 },
            Start::After { epoch, sequence } => Plan::Fold { epoch: Some(epoch), after: sequence },
        };
        let reads = ordered::read(self, Store::Events, self.subjects().events_matching(pattern), plan);
        EventFold { bus: self.clone(), reads, ready: VecDeque::with_capacity(2), caught_up: false }
    }
}

impl EventFold {
    /// The next item. Cancel-safe. `None` only when this process has closed the bus.
    pub async fn next(&mut self) -> Option<FoldItem> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            match self.reads.recv().await? {
                Read::Began { epoch, anew, head, pending } => {
                    self.caught_up = pending == 0;
                    if anew {
                        self.ready.push_back(FoldItem::Reset { epoch });
                    }
                    if pending == 0 {
                        self.ready.push_back(FoldItem::CaughtUp { sequence: head });
                    }
                }
                Read::Message(raw) => self.take(raw),
            }
        }
    }

    fn take(&mut self, raw: Raw) {
        let (sequence, pending) = (raw.sequence, raw.pending);
        let item = match v1::Event::decode(raw.payload.clone()) {
            Ok(event) => FoldItem::Event { sequence, event: Box::new(event), pending, stored: raw.stored, traceparent: raw.traceparent() },
            Err(error) => {
                self.bus.count_dead_letter();
                FoldItem::DeadLetter { sequence, why: error.to_string(), bytes: raw.payload.len(), subject: raw.subject }
            }
        };
        self.ready.push_back(item);
        if pending == 0 && !self.caught_up {
            self.caught_up = true;
            self.ready.push_back(FoldItem::CaughtUp { sequence });
        }
    }
}
