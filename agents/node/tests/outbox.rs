//! The outbox between a real journal and a publisher that can be held, broken and let go.

#![expect(clippy::unwrap_used, reason = "a test says what failed by failing")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use razar_bus::BusError;
use razar_bus_schema::{
    time::timestamp,
    v1::{self, Event, event::Fact},
};
use razar_node::journal::{Journal, Limits, Restored};
use razar_node::outbox::{EVENTS_IN_MEMORY_MAX, Outbox, Publisher, WINDOW};
use tokio::sync::watch;

/// What a publisher has taken, and up to where a test lets it be stored.
#[derive(Clone)]
struct Stream {
    taken: Arc<Mutex<Vec<u64>>>,
    stored: Arc<watch::Sender<u64>>,
}

struct Taker {
    stream: Stream,
    progress: watch::Receiver<u64>,
    held: VecDeque<u64>,
}

impl Stream {
    fn new() -> Self {
        Self { taken: Arc::default(), stored: Arc::new(watch::Sender::new(0)) }
    }

    fn publisher(&self) -> Taker {
        Taker { stream: self.clone(), progress: self.stored.subscribe(), held: VecDeque::new() }
    }

    fn taken(&self) -> Vec<u64> {
        self.taken.lock().unwrap().clone()
    }

    /// Stores whatever comes, from now on.
    fn let_go(&self) {
        self.stored.send_replace(u64::MAX);
    }
}

impl Publisher for Taker {
    fn offer(&mut self, sequence: u64, event: &Event) -> Result<bool, BusError> {
        if event.kind == "too_large" {
            return Err(BusError::TooLarge { bytes: 1, max: 0 });
        }
        self.held.push_back(sequence);
        self.stream.taken.lock().unwrap().push(sequence);
        Ok(true)
    }

    async fn progressed(&mut self) -> u64 {
        loop {
            let limit = *self.progress.borrow_and_update();
            let mut newest = None;
            while self.held.front().is_some_and(|sequence| *sequence <= limit) {
                newest = self.held.pop_front();
            }
            if let Some(sequence) = newest {
                return sequence;
            }
            self.progress.changed().await.unwrap();
        }
    }
}

fn event(kind: &str) -> Event {
    let fact = Fact::GreatSpiral(v1::GreatSpiral {});
    let time = timestamp(SystemTime::now() - Duration::from_secs(60));
    Event { kind: kind.to_owned(), time: Some(time), fact: Some(fact), ..Event::default() }
}

/// Small segments, so that a backlog spans many.
fn open(dir: &std::path::Path) -> (Journal, Restored) {
    Journal::open_with(dir, "a", "boot", Limits { segment_bytes: 16 * 1024, disk_bytes: u64::MAX }).unwrap()
}

/// An outbox that begins with an empty journal; nothing is stored yet.
fn begun() -> (tempfile::TempDir, Journal, Stream, Outbox) {
    let dir = tempfile::tempdir().unwrap();
    let (journal, restored) = open(dir.path());
    let stream = Stream::new();
    let outbox = Outbox::start(stream.publisher(), journal.backlog(), &restored);
    (dir, journal, stream, outbox)
}

fn push(journal: &mut Journal, outbox: &Outbox, count: usize) {
    for _ in 0..count {
        journal.append_event(event("great_spiral")).unwrap().into_iter().for_each(|event| outbox.push(event));
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn events_go_out_in_order_and_the_journal_learns_of_it() {
    let (dir, mut journal, stream, outbox) = begun();
    stream.let_go();
    let mut acked = outbox.acked();
    push(&mut journal, &outbox, 3);
    acked.wait_for(|sequence| *sequence == 3).await.unwrap();
    journal.acknowledged(3).unwrap();
    assert!(outbox.drained(Duration::from_secs(5)).await);
    assert_eq!(stream.taken(), [1, 2, 3]);
    let status = outbox.status();
    assert_eq!((status.unacknowledged, status.published_total, status.oldest_age), (0, 3, None));
    drop(outbox);
    journal.close().unwrap();
    assert_eq!(open(dir.path()).1.unacknowledged_total, 0);
}

/// Pushes bursts, each once the one before has gone, until `seen` has said of ten that it was so: a machine that stood still in one may
/// make it look so, or not.
async fn bursts_until(what: &str, journal: &mut Journal, outbox: &Outbox, stream: &Stream, mut seen: impl AsyncFnMut(usize) -> bool) {
    let (mut bursts, mut seen_in) = (0, 0);
    loop {
        let before = stream.taken().len();
        push(journal, outbox, 20);
        seen_in += usize::from(seen(before).await);
        if seen_in == 10 {
            return;
        }
        bursts += 1;
        assert!(bursts < 200, "seen in {seen_in} of 200 bursts: {what}");
        until("all of it has gone", || stream.taken().len() == before + 20).await;
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
}

/// Mutations caught: bursts are not held back; what has gone counts as waiting.
#[tokio::test]
async fn a_burst_goes_together_when_it_is_over() {
    let (_dir, mut journal, stream, outbox) = begun();
    stream.let_go();
    let none_goes = async |before| {
        let began = Instant::now();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        began.elapsed() < Duration::from_millis(5) && stream.taken().len() == before
    };
    bursts_until("a burst that waits", &mut journal, &outbox, &stream, none_goes).await;
    until("all is stored", || outbox.status().unacknowledged == 0).await;
    let total = u64::try_from(stream.taken().len()).unwrap();
    assert_eq!(stream.taken(), (1..=total).collect::<Vec<_>>());
}

/// Mutation caught: `drained` leaves a burst held back.
#[tokio::test]
async fn a_burst_goes_at_once_when_somebody_waits_for_it() {
    let (_dir, mut journal, stream, outbox) = begun();
    stream.let_go();
    let soon = async |_| {
        let began = Instant::now();
        assert!(outbox.drained(Duration::from_secs(20)).await);
        began.elapsed() < Duration::from_millis(5)
    };
    bursts_until("a burst that goes within 5 ms", &mut journal, &outbox, &stream, soon).await;
}

#[tokio::test]
async fn never_more_than_the_window_is_on_its_way() {
    let (_dir, mut journal, stream, outbox) = begun();
    push(&mut journal, &outbox, WINDOW * 2);
    until("the window is full", || stream.taken().len() == WINDOW).await;
    let status = outbox.status();
    assert_eq!(status.unacknowledged, 2 * WINDOW as u64);
    assert!(status.oldest_age.unwrap() >= Duration::from_secs(60));
    stream.stored.send_replace(1);
    until("one more goes out", || stream.taken().len() == WINDOW + 1).await;
    assert!(!outbox.drained(Duration::from_millis(20)).await);
    assert_eq!(stream.taken().len(), WINDOW + 1);
}

#[tokio::test]
async fn a_backlog_beyond_memory_is_read_from_disk_without_gap_or_double() {
    let (_dir, mut journal, stream, outbox) = begun();
    let total = EVENTS_IN_MEMORY_MAX * 2 + 500;
    push(&mut journal, &outbox, total);
    until("the window is full", || stream.taken().len() == WINDOW).await;
    stream.let_go();
    // More comes while it catches up.
    for _ in 0..50 {
        push(&mut journal, &outbox, 10);
        tokio::task::yield_now().await;
    }
    assert!(outbox.drained(Duration::from_secs(20)).await, "{:?}", outbox.status());
    assert_eq!(stream.taken(), (1..=total as u64 + 500).collect::<Vec<_>>());
    let status = outbox.status();
    assert_eq!((status.published_total, status.missing_total), (total as u64 + 500, 0));
}

#[tokio::test]
async fn a_new_agent_publishes_what_the_last_one_could_not() {
    let dir = tempfile::tempdir().unwrap();
    let total = EVENTS_IN_MEMORY_MAX + 700;
    {
        let (mut journal, _) = open(dir.path());
        for _ in 0..total {
            journal.append_event(event("great_spiral")).unwrap();
        }
    }
    let (mut journal, restored) = open(dir.path());
    assert_eq!(restored.unacknowledged_total, total as u64);
    assert!(restored.unacknowledged.len() < total);
    let stream = Stream::new();
    stream.let_go();
    let outbox = Outbox::start(stream.publisher(), journal.backlog(), &restored);
    push(&mut journal, &outbox, 1);
    assert!(outbox.drained(Duration::from_secs(20)).await, "{:?}", outbox.status());
    assert_eq!(stream.taken(), (1..=total as u64 + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_that_can_never_go_is_passed_over_visibly() {
    let (_dir, mut journal, stream, outbox) = begun();
    stream.let_go();
    for kind in ["great_spiral", "too_large", "great_spiral"] {
        journal.append_event(event(kind)).unwrap().into_iter().for_each(|event| outbox.push(event));
    }
    assert!(outbox.drained(Duration::from_secs(5)).await);
    assert_eq!(stream.taken(), [1, 3]);
    assert_eq!(*outbox.acked().borrow(), 3);
    let status = outbox.status();
    assert_eq!((status.refused_total, status.published_total), (1, 2));
}

#[tokio::test]
async fn segments_that_are_gone_are_counted_and_hold_up_nothing() {
    let (dir, mut journal, stream, outbox) = begun();
    push(&mut journal, &outbox, EVENTS_IN_MEMORY_MAX * 2);
    until("the window is full", || stream.taken().len() == WINDOW).await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "log") {
            std::fs::remove_file(path).unwrap();
        }
    }
    stream.let_go();
    assert!(outbox.drained(Duration::from_secs(20)).await, "{:?}", outbox.status());
    let status = outbox.status();
    assert!(status.missing_total > 0);
    assert_eq!(status.missing_total + status.published_total, 2 * EVENTS_IN_MEMORY_MAX as u64);
}
