//! From the journal to the bus, in order: feeds journalled events to a publisher that goes on through a lost broker, and tells up to
//! where they are stored. Holds a bounded part of a backlog in memory; the journal's segments hold the rest.
//! Numbering and acknowledging in the journal is the caller's: an event is pushed here only after it was journalled.
//! What is told, and in which order, is not decided here; when a burst of it goes is (`burst`).

mod burst;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use razar_bus::{BusError, EventPublisher};
use razar_bus_schema::{time::system_time, v1::Event};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::burst::Burst;
use crate::journal::{Backlog, Restored};

/// Events kept in memory that were not offered yet.
pub const EVENTS_IN_MEMORY_MAX: usize = 4096;
/// Events offered and not acknowledged: folds keep a window of 256 bits per node.
pub const WINDOW: usize = 256;
/// Pause after the segments could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What brings events to the stream in order, whatever happens to the connection: the bus's own publisher, or a test's.
pub trait Publisher: Send + 'static {
    /// Takes the event, whose sequence is above all taken before; false: no room now, offer it again after progress.
    ///
    /// # Errors
    /// The event can never be taken.
    fn offer(&mut self, sequence: u64, event: &Event) -> Result<bool, BusError>;

    /// Waits for progress; the highest sequence up to which everything taken is stored. Cancel safe.
    fn progressed(&mut self) -> impl Future<Output = u64> + Send;
}

impl Publisher for EventPublisher {
    fn offer(&mut self, sequence: u64, event: &Event) -> Result<bool, BusError> {
        let traceparent = event.trace.as_ref().map_or("", |trace| trace.traceparent.as_str());
        EventPublisher::offer(self, sequence, event, traceparent)
    }

    async fn progressed(&mut self) -> u64 {
        EventPublisher::progressed(self).await.acknowledged
    }
}

/// State of the outbox, for beats, `/readyz` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Events journalled and not known to be stored by the broker.
    pub unacknowledged: u64,
    /// Age of the oldest of them, by this machine's clock.
    pub oldest_age: Option<Duration>,
    /// Events stored by the broker since this agent began.
    pub published_total: u64,
    /// Events that the bus can never take, passed over.
    pub refused_total: u64,
    /// Events that should have been on disk and were not (a damaged segment).
    pub missing_total: u64,
}

struct Inner {
    /// Journalled, not offered yet, in order.
    queue: VecDeque<Event>,
    /// Offered, not acknowledged: sequence and time.
    in_flight: VecDeque<(u64, SystemTime)>,
    /// Highest sequence offered, queued or, while `spilled`, known to be on disk only.
    newest: u64,
    /// Highest sequence that went through the queue.
    queued: u64,
    /// What follows the queue is on disk only.
    spilled: bool,
    status: OutboxStatus,
    began: Instant,
    burst: Burst,
    /// So many wait until all is stored: while somebody does, nothing is held back.
    hurried_by: usize,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Notify,
    acked: watch::Sender<u64>,
}

/// Handle of the outbox's task; dropping it ends the task. What was not published is still in the journal.
pub struct Outbox {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Starts with what the journal held at open. Needs a tokio runtime.
    pub fn start(publisher: impl Publisher, backlog: Backlog, restored: &Restored) -> Self {
        let queue: VecDeque<Event> = restored.unacknowledged.iter().cloned().collect();
        let queued = queue.back().map_or(restored.acknowledged, sequence_of);
        let on_disk = restored.unacknowledged_total > queue.len() as u64;
        let newest = if on_disk { restored.next_sequence.saturating_sub(1) } else { queued };
        let status = OutboxStatus { unacknowledged: restored.unacknowledged_total, ..OutboxStatus::default() };
        let (in_flight, began, burst) = (VecDeque::new(), Instant::now(), Burst::default());
        let inner = Inner { queue, in_flight, newest, queued, spilled: on_disk, status, began, burst, hurried_by: 0 };
        let acked = watch::Sender::new(restored.acknowledged);
        let shared = Arc::new(Shared { inner: Mutex::new(inner), wake: Notify::new(), acked });
        let task = tokio::spawn(run(Arc::clone(&shared), publisher, backlog));
        Self { shared, task }
    }

    /// Takes a journalled event, whose sequence is above all pushed before. Never waits.
    pub fn push(&self, event: Event) {
        let mut inner = self.shared.lock();
        let sequence = sequence_of(&event);
        inner.newest = inner.newest.max(sequence);
        inner.status.unacknowledged += 1;
        let now = inner.began.elapsed();
        inner.burst.note(now);
        inner.spilled |= inner.queue.len() >= EVENTS_IN_MEMORY_MAX;
        if !inner.spilled {
            inner.queued = sequence;
            inner.queue.push_back(event);
        }
        drop(inner);
        self.shared.wake.notify_one();
    }

    /// The highest sequence up to which all events are stored by the broker, as it grows: tell the journal.
    #[must_use]
    pub fn acked(&self) -> watch::Receiver<u64> {
        self.shared.acked.subscribe()
    }

    /// State of the outbox.
    #[must_use]
    pub fn status(&self) -> OutboxStatus {
        let inner = self.shared.lock();
        let queued = || inner.queue.front().and_then(|event| event.time.as_ref()).map(system_time);
        let oldest = inner.in_flight.front().map(|(_, at)| *at).or_else(queued);
        let age = oldest.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        OutboxStatus { oldest_age: age, ..inner.status }
    }

    /// Waits until everything pushed is stored, at most for `limit`; whether it is.
    pub async fn drained(&self, limit: Duration) -> bool {
        let _hurry = Hurry::new(&self.shared);
        let mut acked = self.acked();
        let empty = async {
            while self.shared.lock().status.unacknowledged > 0 {
                if acked.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, empty).await;
        self.shared.lock().status.unacknowledged == 0
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Somebody waits until all is stored, as long as this lives.
struct Hurry<'a>(&'a Shared);

impl<'a> Hurry<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.lock().hurried_by += 1;
        shared.wake.notify_one();
        Self(shared)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.lock().hurried_by -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much longer what is queued waits for the end of a burst.
    fn hold(&self) -> Option<Duration> {
        let inner = self.lock();
        inner.burst.hold(inner.began.elapsed(), inner.queue.len()).filter(|_| inner.hurried_by == 0)
    }

    /// Offers what the window and the publisher have room for.
    fn offer(&self, publisher: &mut impl Publisher) {
        let mut inner = self.lock();
        while inner.in_flight.len() < WINDOW {
            let Some(event) = inner.queue.front() else { return inner.burst.gone() };
            let sequence = sequence_of(event);
            let at = event.time.as_ref().map_or_else(SystemTime::now, system_time);
            match publisher.offer(sequence, event) {
                Ok(false) => return,
                Ok(true) => inner.in_flight.push_back((sequence, at)),
                Err(error) => {
                    tracing::error!(id = event.id, %error, "the bus can never take this event; it is passed over");
                    inner.status.refused_total += 1;
                    inner.status.unacknowledged = inner.status.unacknowledged.saturating_sub(1);
                    self.wake_waiters();
                }
            }
            inner.queue.pop_front();
        }
    }

    fn acknowledged(&self, sequence: u64) {
        let mut inner = self.lock();
        while inner.in_flight.front().is_some_and(|(first, _)| *first <= sequence) {
            inner.in_flight.pop_front();
            inner.status.published_total += 1;
            inner.status.unacknowledged = inner.status.unacknowledged.saturating_sub(1);
        }
        drop(inner);
        self.acked.send_if_modified(|known| {
            let grown = sequence > *known;
            *known = sequence.max(*known);
            grown
        });
    }

    /// Fewer are unacknowledged, though nothing more was acknowledged: who waits for none looks again.
    fn wake_waiters(&self) {
        self.acked.send_modify(|_| {});
    }

    /// Where to read on, when memory is used up and there is more on disk.
    fn read_from(&self) -> Option<u64> {
        let inner = self.lock();
        (inner.spilled && inner.queue.is_empty()).then_some(inner.queued)
    }

    fn refill(&self, events: Vec<Event>, asked_newest: u64) {
        let mut inner = self.lock();
        match events.last().map(sequence_of) {
            Some(last) => {
                inner.queued = last;
                inner.queue.extend(events);
            }
            // Nothing there, although everything up to here was journalled before it was pushed.
            None if inner.newest == asked_newest => {
                let known = inner.in_flight.len() as u64;
                inner.status.missing_total += inner.status.unacknowledged.saturating_sub(known);
                inner.status.unacknowledged = known;
                inner.queued = asked_newest;
                self.wake_waiters();
            }
            // Pushed while the disk was read: read again.
            None => {}
        }
        inner.spilled = inner.queued < inner.newest;
    }
}

async fn run(shared: Arc<Shared>, mut publisher: impl Publisher, mut backlog: Backlog) {
    loop {
        if let Some(after) = shared.read_from() {
            let newest = shared.lock().newest;
            let mut reader = backlog.clone();
            let read = tokio::task::spawn_blocking(move || Ok((reader.read_after(after, EVENTS_IN_MEMORY_MAX)?, reader))).await;
            match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
                Ok((events, reader)) => {
                    shared.refill(events, newest);
                    backlog = reader;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read events back from the journal");
                    tokio::time::sleep(READ_AGAIN).await;
                    continue;
                }
            }
        }
        let hold = shared.hold();
        if hold.is_none() {
            shared.offer(&mut publisher);
            if shared.read_from().is_some() && shared.lock().in_flight.len() < WINDOW {
                continue;
            }
        }
        tokio::select! {
            sequence = publisher.progressed() => shared.acknowledged(sequence),
            () = shared.wake.notified() => {}
            () = tokio::time::sleep(hold.unwrap_or_default()), if hold.is_some() => {}
        }
    }
}

fn sequence_of(event: &Event) -> u64 {
    event.node_sequence.as_ref().map_or(0, |at| at.sequence)
}
