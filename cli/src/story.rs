//! The events of one incident, found in EVENTS without reading all of it: by their component's subjects, and by a search for the place
//! where it began, since the incarnations of an instance only rise. What the events say is the book's matter.

use std::time::SystemTime;

use razar_bus::{BusError, EventBounds, Start};
use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, event::Fact},
};

use crate::{
    commands::incidents::next,
    console::Console,
    exit::{Exit, Failure},
    feed::Feed,
    link::Link,
    render::incident::{Book, Wanted},
};

/// Newest events in which the newest incident is looked for, then ten times as many, and so on.
const WINDOW: u64 = 1_000;
/// The search for the beginning ends when so few events are left.
const SPAN_MIN: u64 = 512;
/// Events of other replicas, or of none, that are looked past at one place of the search.
const LOOKS_MAX: usize = 64;
/// Events of its component that are read after an incident is over: what was told late.
const AFTER_END: usize = 64;
/// Dependents' events that are looked at.
const BLOCKED_MAX: usize = 10_000;

/// A book in which the incident `id`, or the newest of the instance `id`, or the newest of all is kept whole; empty: there is none.
///
/// # Errors
/// Exit 69 when the bus is away.
pub(crate) async fn find(link: &Link, console: &Console, id: Option<&str>) -> Result<Book, Failure> {
    let bounds = link.bus.event_bounds().await.map_err(|e| out_of_reach(&e))?;
    let named = id.map(str::parse::<Incident>).and_then(Result::ok);
    let id = match (named, id) {
        (Some(id), _) => Some(id),
        (None, None) => newest(link, console, &bounds, ">", None).await?,
        (None, Some(name)) => match name.parse::<Instance>() {
            Ok(instance) => newest(link, console, &bounds, &of(&instance), Some(&instance)).await?,
            Err(_) => None,
        },
    };
    let Some(id) = id else { return Ok(Book::new(Wanted::Newest)) };
    let mut book = Book::new(Wanted::Named(id.to_string()));
    let from = beginning(link, &id, &bounds).await.map_err(|e| out_of_reach(&e))?;
    let (mut began, mut ended, mut after) = (None, bounds.last, 0);
    let mut feed = Feed::new(link, link.bus.follow_events(&of(&id.instance), start(&bounds, from)));
    while let Some((sequence, event, stored)) = next(&mut feed, console).await? {
        book.fold(&event, stored);
        let Some(told) = book.wanted(false) else { continue };
        began.get_or_insert(sequence);
        if told.is_settled() {
            if after == 0 {
                ended = sequence;
            }
            after += 1;
            if after > AFTER_END {
                break;
            }
        }
    }
    if let Some(began) = began {
        held_up(link, &mut book, began, ended).await.map_err(|e| out_of_reach(&e))?;
    }
    Ok(book)
}

fn out_of_reach(error: &BusError) -> Failure {
    Failure::new(Exit::OutOfReach, format!("the stream of events does not answer: {error}"))
}

/// Subjects of an instance's events, and of its component's other replicas.
fn of(instance: &Instance) -> String {
    format!("*.{}.*", instance.component)
}

fn start(bounds: &EventBounds, from: u64) -> Start {
    if from <= bounds.first { Start::Beginning } else { Start::After { epoch: bounds.epoch.clone(), sequence: from - 1 } }
}

/// The incident of which something was told last, among events that match `pattern`, of `instance` if one is given.
async fn newest(
    link: &Link,
    console: &Console,
    bounds: &EventBounds,
    pattern: &str,
    instance: Option<&Instance>,
) -> Result<Option<Incident>, Failure> {
    let mut window = WINDOW;
    loop {
        let from = (bounds.last + 1).saturating_sub(window).max(bounds.first);
        let mut feed = Feed::new(link, link.bus.follow_events(pattern, start(bounds, from)));
        let mut found = None;
        while let Some((_, event, _)) = next(&mut feed, console).await? {
            let id = event.incident.as_ref().and_then(|id| Incident::try_from(id).ok());
            found = id.filter(|id| instance.is_none_or(|instance| id.instance == *instance)).or(found);
        }
        if found.is_some() || from <= bounds.first {
            return Ok(found);
        }
        window = window.saturating_mul(10);
    }
}

/// A sequence not behind the first event of the incident, and not far before it.
async fn beginning(link: &Link, id: &Incident, bounds: &EventBounds) -> Result<u64, BusError> {
    let (mut low, mut high) = (bounds.first, bounds.last + 1);
    while high.saturating_sub(low) > SPAN_MIN {
        let middle = low + (high - low) / 2;
        match incarnation_at(link, id, middle).await? {
            Place::At(sequence, incarnation) if incarnation < id.incarnation => low = sequence + 1,
            Place::At(..) | Place::BehindAll => high = middle,
            Place::Unknown => return Ok(low),
        }
    }
    Ok(low)
}

/// What is at a place of the stream.
enum Place {
    /// The next event of the instance, and its incarnation.
    At(u64, Incarnation),
    /// None comes any more.
    BehindAll,
    /// It cannot be said with few looks.
    Unknown,
}

async fn incarnation_at(link: &Link, id: &Incident, mut sequence: u64) -> Result<Place, BusError> {
    for _ in 0..LOOKS_MAX {
        let Some((at, event, _)) = link.bus.next_event(&of(&id.instance), sequence).await? else { return Ok(Place::BehindAll) };
        let about = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        match &event.incarnation {
            // What others than nodes tell of an instance may name no start.
            Some(incarnation) if about.as_ref() == Some(&id.instance) && incarnation.start > 0 => {
                return Ok(Place::At(at, incarnation.into()));
            }
            _ => sequence = at + 1,
        }
    }
    Ok(Place::Unknown)
}

/// Folds whom the incident held up, as its dependents told it between its first event and its last.
async fn held_up(link: &Link, book: &mut Book, began: u64, ended: u64) -> Result<(), BusError> {
    let mut sequence = began;
    for _ in 0..BLOCKED_MAX {
        let found: Option<(u64, v1::Event, SystemTime)> = link.bus.next_event("*.*.component_blocked", sequence).await?;
        let Some((at, event, stored)) = found.filter(|(at, ..)| *at <= ended) else { break };
        if matches!(event.fact, Some(Fact::ComponentBlocked(_))) {
            book.fold_held_up(&event, stored);
        }
        sequence = at + 1;
    }
    Ok(())
}
