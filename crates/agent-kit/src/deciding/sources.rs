//! Everything that a deciding agent listens to, in the order in which it is heard.

use std::time::Duration;

use razar_bus::{
    BucketWatch, CommandItem, CommandSource, Connection, EventFold, FoldItem, IntentItem, IntentWatch, Query, QueryServer, ShardLeases,
    WatchItem,
};
use tokio::sync::{mpsc, watch};

use super::{Decider, Source, shell::Done};
use crate::Shutdown;

/// One thing that happened.
pub(super) enum Input<D: Decider> {
    Stop,
    Event(FoldItem),
    Intent(IntentItem),
    Store(WatchItem),
    Command(CommandItem),
    Query(Box<Query>),
    Item(<D::Source as Source>::Item),
    Lease,
    Connection,
    Done(Done<D::Outcome>),
    Timer,
    /// The bus was closed by this process.
    Closed,
}

pub(super) struct Sources<D: Decider> {
    pub(super) events: EventFold,
    pub(super) intents: Option<IntentWatch>,
    pub(super) store: Option<BucketWatch>,
    pub(super) commands: Option<CommandSource>,
    /// Keeps the agent among the mesh's services, also when nobody asks it anything.
    pub(super) queries: QueryServer,
    pub(super) answers: bool,
    /// Whether it answers them now: who has only begun to read knows nothing yet, and would say so for the truth.
    pub(super) answers_now: bool,
    pub(super) leases: ShardLeases,
    pub(super) connection: watch::Receiver<Connection>,
    pub(super) done: mpsc::Receiver<Done<D::Outcome>>,
    pub(super) shutdown: Shutdown,
    /// `None` once it has ended.
    pub(super) further: Option<D::Source>,
}

impl<D: Decider> Sources<D> {
    /// The next input. Cancel-safe. Questions before events, so that a replica that falls behind answers; commands are read only by who may
    /// decide.
    pub(super) async fn next(&mut self, leads: bool, timer: Duration) -> Input<D> {
        tokio::select! {
            biased;
            () = self.shutdown.asked() => Input::Stop,
            changed = self.connection.changed() => if changed.is_ok() { Input::Connection } else { Input::Closed },
            () = self.leases.changed() => Input::Lease,
            done = self.done.recv() => done.map_or(Input::Closed, Input::Done),
            query = self.queries.next(), if self.answers && self.answers_now => query.map_or(Input::Closed, |query| Input::Query(Box::new(query))),
            item = of(self.intents.as_mut().map(IntentWatch::next)) => item.map_or(Input::Closed, Input::Intent),
            item = of(self.store.as_mut().map(BucketWatch::next)) => item.map_or(Input::Closed, Input::Store),
            item = self.events.next() => item.map_or(Input::Closed, Input::Event),
            item = of(self.further.as_mut().map(Source::next)) => self.item(item),
            item = of(self.commands.as_mut().map(CommandSource::next)), if leads => Input::Command(item),
            () = tokio::time::sleep(timer) => Input::Timer,
        }
    }

    /// Waits for so long, or for the next question, which is given back: it is answered once what has come meanwhile is folded.
    pub(super) async fn question_within(&mut self, limit: Duration) -> Option<Input<D>> {
        if !self.answers {
            tokio::time::sleep(limit).await;
            return None;
        }
        let query = tokio::time::timeout(limit, self.queries.next()).await.ok().flatten();
        query.map(|query| Input::Query(Box::new(query)))
    }

    fn item(&mut self, item: Option<<D::Source as Source>::Item>) -> Input<D> {
        if item.is_none() {
            self.further = None;
        }
        item.map_or(Input::Timer, Input::Item)
    }
}

/// What `future` gives; without one, nothing ever.
async fn of<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
