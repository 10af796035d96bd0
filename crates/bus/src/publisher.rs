//! Events going out: one by one with an acknowledgement, or a journal's in order, however often the connection is lost.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use prost::Message;
use razar_bus_schema::{event::subject_of, v1};
use tokio::sync::{mpsc, watch};

use crate::{
    Bus, BusError, REQUEST_LIMIT, TRACEPARENT,
    batch::{self, BatchMessage, PubAck},
    connection::{check_size, jittered, read_answer},
};

/// Most events of a node that are unacknowledged: folds keep a window of 256 bits.
pub const WINDOW: usize = 256;
/// Below this, one by one is quicker: the broker makes a store on its disk for each batch.
const BATCH_MIN: usize = 8;
/// Most bytes of events sent as one batch.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Events under way singly: of a crash, the end and the start are being stored when the readiness follows.
const AHEAD_MAX: usize = 3;
/// First and longest pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Header by which the broker drops repetitions inside its window.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Header by which the broker takes an event only behind the one whose id it names.
const EXPECTED_LAST_ID: &str = "Nats-Expected-Last-Msg-Id";

/// An event is in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// Sequence in the stream.
    pub sequence: u64,
    /// It was there already.
    pub duplicate: bool,
}

impl Bus {
    /// Publishes one event and waits until it is stored. Its id makes a repetition harmless: on a retryable error publish again.
    /// `traceparent`: empty for none.
    ///
    /// # Errors
    /// When the bus is down or does not answer (the event may be stored), the event is larger than 256 KiB, or is forbidden.
    pub async fn publish_event(&self, event: &v1::Event, traceparent: &str) -> Result<Acked, BusError> {
        let outgoing = Outgoing::new(self, 0, event, traceparent)?;
        outgoing.send_alone(self).await
    }

    /// A publisher for a journal: in order, across reconnects and restarts of the broker.
    #[must_use]
    pub fn event_publisher(&self) -> EventPublisher {
        let (queue, outgoing) = mpsc::channel(WINDOW);
        let (progress_tx, progress) = watch::channel(Progress::default());
        let unacknowledged = Arc::new(AtomicUsize::new(0));
        let (bus, waiting) = (self.clone(), VecDeque::with_capacity(WINDOW));
        let (answers, unacknowledged_too) = (FuturesOrdered::new(), unacknowledged.clone());
        let sender = Sender { bus, outgoing, waiting, answers, alone: true, progress: progress_tx, unacknowledged: unacknowledged_too };
        tokio::spawn(sender.run());
        EventPublisher { bus: self.clone(), queue, progress, offered: 0, unacknowledged }
    }
}

/// How far an [`EventPublisher`] is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every event offered with a journal sequence up to this is stored in EVENTS.
    pub acknowledged: u64,
    /// Sequence in the stream of the newest acknowledged one.
    pub stream_sequence: u64,
    /// How many were acknowledged as known already.
    pub duplicates: u64,
    /// Failed tries so far.
    pub failures: u64,
    /// Why the newest try failed; none once one has succeeded since.
    pub failing: Option<BusError>,
}

/// Sends a journal's events in order. The first goes out alone; the next few follow without waiting for its answer, each refused by the
/// broker unless the one before it is the last that it stored; what gathers meanwhile goes as one atomic batch. After any failure the
/// oldest goes alone until it is acknowledged. So the stream never sees them out of order, even when the client library loses part of what
/// it had buffered. At most [`WINDOW`] events are held; the journal holds the rest.
#[derive(Debug)]
pub struct EventPublisher {
    bus: Bus,
    queue: mpsc::Sender<Outgoing>,
    progress: watch::Receiver<Progress>,
    offered: u64,
    unacknowledged: Arc<AtomicUsize>,
}

impl EventPublisher {
    /// Takes an event with its journal sequence, which must be above every one offered before. Returns false, taking nothing, while
    /// [`WINDOW`] are unacknowledged: offer it again after [`EventPublisher::progressed`]. `traceparent`: empty for none.
    ///
    /// # Errors
    /// [`BusError::TooLarge`] for one that the broker can never take: note it and go on with the next.
    pub fn offer(&mut self, journal_sequence: u64, event: &v1::Event, traceparent: &str) -> Result<bool, BusError> {
        if self.room() == 0 {
            return Ok(false);
        }
        let Ok(place) = self.queue.try_reserve() else { return Ok(false) };
        place.send(Outgoing::new(&self.bus, journal_sequence, event, traceparent)?);
        self.unacknowledged.fetch_add(1, Ordering::AcqRel);
        self.offered = self.offered.max(journal_sequence);
        Ok(true)
    }

    /// Events that may be offered now.
    #[must_use]
    pub fn room(&self) -> usize {
        WINDOW.saturating_sub(self.unacknowledged.load(Ordering::Acquire))
    }

    /// Highest journal sequence that was taken.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for the next change of [`EventPublisher::progress`]. Cancel-safe.
    pub async fn progressed(&mut self) -> Progress {
        if self.progress.changed().await.is_err() {
            // The sender lives as long as the queue; it ends only with the runtime.
            std::future::pending::<()>().await;
        }
        self.progress.borrow_and_update().clone()
    }

    /// Waits until everything offered is stored, for at most `limit`; whether it is.
    pub async fn drained(&mut self, limit: Duration) -> bool {
        let offered = self.offered;
        let done = self.progress.wait_for(|p| p.acknowledged >= offered);
        tokio::time::timeout(limit, done).await.is_ok_and(|r| r.is_ok())
    }
}

#[derive(Debug, Clone)]
struct Outgoing {
    journal_sequence: u64,
    message: BatchMessage,
}

impl Outgoing {
    fn new(bus: &Bus, journal_sequence: u64, event: &v1::Event, traceparent: &str) -> Result<Self, BusError> {
        let payload = Bytes::from(event.encode_to_vec());
        check_size(payload.len())?;
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID, event.id.as_str());
        if !traceparent.is_empty() {
            headers.insert(TRACEPARENT, traceparent);
        }
        let subject = subject_of(bus.subjects(), event);
        Ok(Self { journal_sequence, message: BatchMessage { subject, headers, payload } })
    }

    /// The same, refused by the broker unless `before` is the last that it has stored.
    fn after(&self, before: Option<&Self>) -> Self {
        let mut next = self.clone();
        if let Some(id) = before.and_then(|b| b.message.headers.get(MESSAGE_ID)) {
            next.message.headers.insert(EXPECTED_LAST_ID, id.clone());
        }
        next
    }

    async fn send_alone(self, bus: &Bus) -> Result<Acked, BusError> {
        let message = self.message;
        let answer = bus.request_raw(&message.subject, Some(message.headers), message.payload, REQUEST_LIMIT).await;
        let answer = answer.map_err(|e| e.or_missing("events"))?;
        let ack: PubAck = read_answer(&answer.payload, "events")?;
        Ok(Acked { sequence: ack.seq, duplicate: ack.duplicate })
    }
}

/// The answer to an event that is under way.
type Answer = BoxFuture<'static, Result<Acked, BusError>>;

struct Sender {
    bus: Bus,
    outgoing: mpsc::Receiver<Outgoing>,
    /// Not known to be stored, oldest first; the first of them are under way.
    waiting: VecDeque<Outgoing>,
    /// One answer for each that is under way.
    answers: FuturesOrdered<Answer>,
    /// The oldest goes alone: nothing follows it before its answer.
    alone: bool,
    progress: watch::Sender<Progress>,
    unacknowledged: Arc<AtomicUsize>,
}

impl Sender {
    async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            if self.waiting.is_empty() {
                let Some(next) = self.outgoing.recv().await else { return };
                self.waiting.push_back(next);
            }
            while self.waiting.len() < WINDOW
                && let Ok(next) = self.outgoing.try_recv()
            {
                self.waiting.push_back(next);
            }
            if !self.bus.until_up().await {
                return;
            }
            match self.step().await {
                Ok(()) => pause = RETRY_MIN,
                // Not stored, and nothing that came after it: whatever was in between, alone it goes.
                Err(BusError::Duplicate | BusError::Overtaken) => {}
                Err(error) => {
                    tracing::warn!(%error, waiting = self.waiting.len(), "cannot publish events yet");
                    self.progress.send_modify(|p| {
                        p.failures += 1;
                        p.failing = Some(error);
                    });
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Sends what may go, and waits for one answer or one more event.
    async fn step(&mut self) -> Result<(), BusError> {
        let count = self.batch_size();
        if count > 1 && self.answers.is_empty() {
            return self.send_batch(count).await;
        }
        let room = if self.alone { 1 } else { AHEAD_MAX };
        // What has gathered goes as one batch, once those under way are answered.
        while count == 1 && self.answers.len() < room {
            let sent = self.answers.len();
            let Some(next) = self.waiting.get(sent) else { break };
            let before = sent.checked_sub(1).and_then(|i| self.waiting.get(i));
            let (bus, next) = (self.bus.clone(), next.after(before));
            self.answers.push_back(async move { next.send_alone(&bus).await }.boxed());
        }
        tokio::select! {
            biased;
            Some(answer) = self.answers.next() => self.answered(answer).await,
            Some(next) = self.outgoing.recv(), if self.waiting.len() < WINDOW => {
                self.waiting.push_back(next);
                Ok(())
            }
        }
    }

    async fn answered(&mut self, answer: Result<Acked, BusError>) -> Result<(), BusError> {
        match answer {
            Ok(acked) => {
                self.stored(1, acked);
                Ok(())
            }
            Err(error) => {
                // Each that was sent ahead is stored only behind the one before it: if one was, all before it were.
                let mut behind = 1;
                while let Some(answer) = self.answers.next().await {
                    behind += 1;
                    if let Ok(acked) = answer {
                        self.stored(std::mem::take(&mut behind), acked);
                    }
                }
                self.alone = true;
                Err(error)
            }
        }
    }

    fn batch_size(&self) -> usize {
        let waiting = self.waiting.iter().skip(self.answers.len());
        if self.alone || waiting.len() < BATCH_MIN {
            return 1;
        }
        let mut bytes = 0;
        let fits = waiting.take_while(|o| {
            bytes += o.message.payload.len();
            bytes <= BATCH_BYTES_MAX
        });
        fits.count().max(1)
    }

    async fn send_batch(&mut self, count: usize) -> Result<(), BusError> {
        let messages = self.waiting.iter().take(count).map(|o| o.message.clone()).collect();
        match batch::commit(&self.bus, messages, "events").await {
            Ok(sequences) => {
                self.stored(count, Acked { sequence: sequences.last().copied().unwrap_or(0), duplicate: false });
                Ok(())
            }
            Err(error) => {
                self.alone = true;
                Err(error)
            }
        }
    }

    /// The oldest `count` are stored.
    fn stored(&mut self, count: usize, acked: Acked) {
        // Repetitions come in rows: while they do, a batch would be refused.
        self.alone = acked.duplicate;
        let done = self.waiting.drain(..count).map(|o| o.journal_sequence).max().unwrap_or(0);
        self.unacknowledged.fetch_sub(count, Ordering::AcqRel);
        self.progress.send_modify(|p| {
            p.acknowledged = p.acknowledged.max(done);
            p.stream_sequence = p.stream_sequence.max(acked.sequence);
            p.duplicates += u64::from(acked.duplicate);
            p.failing = None;
        });
    }
}
