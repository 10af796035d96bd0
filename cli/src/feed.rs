//! Events as a command follows them: in order, none twice, with a word when the bus was away. What they mean is the command's matter.

use std::time::Instant;

use razar_bus::{Connection, EventFold, FoldItem};
use razar_bus_schema::v1;
use tokio::sync::watch;

use crate::{link::Link, render::time::age};

/// What comes.
#[derive(Debug)]
pub(crate) enum Item {
    /// An event.
    Event {
        /// Its sequence in the stream.
        sequence: u64,
        /// The event.
        event: Box<v1::Event>,
        /// When the broker stored it.
        stored: std::time::SystemTime,
    },
    /// All that was there is read.
    CaughtUp,
    /// A line about the stream itself, for stderr.
    Note(String),
    /// The bus was closed.
    End,
}

/// A fold with the state of its connection.
#[derive(Debug)]
pub(crate) struct Feed {
    fold: EventFold,
    connection: watch::Receiver<Connection>,
    away_since: Option<Instant>,
    last: u64,
    began: bool,
    recreated: bool,
}

impl Feed {
    /// Follows `fold`.
    pub(crate) fn new(link: &Link, fold: EventFold) -> Self {
        Self { fold, connection: link.bus.connection(), away_since: None, last: 0, began: false, recreated: false }
    }

    /// The next item. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Item {
        loop {
            let item = tokio::select! {
                biased;
                changed = self.connection.changed() => {
                    if changed.is_err() {
                        return Item::End;
                    }
                    if let Connection::Down { since } | Connection::Refused { since, .. } = &*self.connection.borrow_and_update() {
                        self.away_since.get_or_insert(*since);
                    }
                    continue;
                }
                item = self.fold.next() => item,
            };
            match item {
                None => return Item::End,
                Some(FoldItem::Reset { .. }) => {
                    self.recreated = self.began;
                    self.began = true;
                }
                Some(FoldItem::Event { sequence, event, stored, .. }) => {
                    self.last = sequence;
                    self.began = true;
                    return Item::Event { sequence, event, stored };
                }
                Some(FoldItem::DeadLetter { sequence, subject, why, .. }) => {
                    return Item::Note(format!("-- {sequence} on {subject} is no event: {why}"));
                }
                Some(FoldItem::CaughtUp { sequence }) => {
                    self.began = true;
                    let Some(since) = self.away_since.take() else { return Item::CaughtUp };
                    let lost = if std::mem::take(&mut self.recreated) { "the stream was made anew" } else { "none lost" };
                    let at = sequence.max(self.last);
                    return Item::Note(format!("-- bus away {}, resumed at {at}, {lost}", age(since.elapsed())));
                }
            }
        }
    }
}
