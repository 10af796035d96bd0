//! `incidents` and `incident`: what the stream of events tells of failures and what was done about them. Nobody else is asked.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus::{IntentItem, IntentRecord};
use razar_bus_schema::{bucket::IntentKey, ids::Instance, v1};

use crate::{
    args::{Global, IncidentArgs, Incidents},
    commands::events::start_of,
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::Link,
    render::{
        incident::{Book, Told, Wanted, lines, replayed},
        text::escape,
        time::instant,
    },
    replay::Replay,
    story,
};

/// A read of events that are there brings the next one at once.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// A line for each incident, oldest first.
///
/// # Errors
/// Exit 64 for a time that is none, 69 when the bus is away.
pub(crate) async fn list(args: &Incidents, console: &Console, global: &Global) -> Done {
    let now = SystemTime::now();
    let since = args.since.as_deref().map(|s| instant(s, now, console.zone)).transpose();
    let since = since.map_err(|why| Failure::new(Exit::Arguments, why))?;
    let link = Link::open(console, global).await?;
    let book = read(&link, console, since, Wanted::Lines).await?;
    let shown = book.all().filter(|told| since.is_none_or(|since| told.touches(since)) && (!args.open || told.standing.is_open()));
    if console.json {
        for told in shown {
            console.message(&told.last)?;
        }
        return Ok(Exit::Well);
    }
    let shown = lines(shown, now, console.zone);
    if shown.is_empty() {
        console.note(if args.open { "no incident is open" } else { "no incident" });
    }
    console.lines(shown).map(|()| Exit::Well)
}

/// The story of one incident.
///
/// # Errors
/// Exit 64 for an incident that EVENTS does not know, 69 when the bus is away.
pub(crate) async fn show(args: &IncidentArgs, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    let book = match &args.id {
        // Replicas share their subjects: which of them has an open incident is known by all events alone.
        None if args.open => read(&link, console, None, Wanted::Newest).await?,
        id => story::find(&link, console, id.as_deref()).await?,
    };
    let Some(told) = book.wanted(args.open) else {
        let open = if args.open { " open" } else { "" };
        return match &args.id {
            None => {
                console.note(&format!("no incident{open}"));
                Ok(Exit::Well)
            }
            Some(id) => Err(Failure::new(Exit::Arguments, format!("no{open} incident `{}` in the stream of events", escape(id)))
                .next(console.command(&["incidents"]))),
        };
    };
    if args.replay {
        return replay(&link, console, told).await;
    }
    if console.json {
        return told.events.iter().try_for_each(|event| console.message(event)).map(|()| Exit::Well);
    }
    console.lines(told.story(SystemTime::now(), console.zone)).map(|()| Exit::Well)
}

/// Decides the incident once more.
async fn replay(link: &Link, console: &Console, told: &Told) -> Done {
    let present = desired_now(link).await?;
    let name = escape(&told.id.instance.to_string());
    if !present.contains_key(&told.id.instance) {
        let why = format!("{name} is in no plan any more; which rungs its ladder had is not known");
        return Err(Failure::new(Exit::Arguments, why).next(console.command(&["incident", &told.id.to_string()])));
    }
    let mut replay = Replay::new(told.id.clone(), link.bus.subjects().mesh(), present);
    let mut feed = Feed::new(link, link.bus.follow_events(">", razar_bus::Start::Beginning));
    while let Some((sequence, event, stored)) = next(&mut feed, console).await? {
        replay.fold(sequence, &event, stored);
    }
    let (decisions, changed) = replay.finish();
    if !changed.is_empty() {
        let names = escape(&changed.join(" "));
        console.note(&format!("replayed with the present specification of {names}, which has changed since"));
    }
    let otherwise = decisions.iter().position(|decision| !decision.agrees());
    if console.json {
        decisions.iter().filter_map(|decision| decision.decided.as_ref()).try_for_each(|(event, _)| console.message(event))?;
    } else {
        console.lines(replayed(&decisions, otherwise))?;
    }
    Ok(if otherwise.is_some() { Exit::NotWell } else { Exit::Well })
}

/// What is desired of each instance as it stands.
async fn desired_now(link: &Link) -> Result<BTreeMap<Instance, v1::Intent>, Failure> {
    let mut watch = link.bus.watch_intents();
    let mut present = BTreeMap::new();
    loop {
        let item = tokio::time::timeout(READ_LIMIT, watch.next()).await;
        let settled = match item {
            Err(_) | Ok(None) => return Err(Failure::new(Exit::OutOfReach, "what is desired cannot be read; the bus does not answer")),
            Ok(Some(IntentItem::Record { record, settled, .. })) => {
                if let IntentRecord::Known { key: IntentKey::Desired(instance), intent } = record {
                    present.insert(instance, *intent);
                }
                settled
            }
            Ok(Some(IntentItem::Settled { .. })) => true,
            Ok(Some(IntentItem::Epoch(_))) => false,
        };
        if settled {
            return Ok(present);
        }
    }
}

async fn read(link: &Link, console: &Console, since: Option<SystemTime>, wanted: Wanted) -> Result<Book, Failure> {
    let start = match since {
        Some(since) => start_of(link, since).await?,
        None => razar_bus::Start::Beginning,
    };
    let mut feed = Feed::new(link, link.bus.follow_events(">", start));
    let mut book = Book::new(wanted);
    while let Some((_, event, stored)) = next(&mut feed, console).await? {
        book.fold(&event, stored);
    }
    Ok(book)
}

/// The next event that is there; `None`: that was all.
pub(crate) async fn next(feed: &mut Feed, console: &Console) -> Result<Option<(u64, Box<v1::Event>, SystemTime)>, Failure> {
    loop {
        match tokio::time::timeout(READ_LIMIT, feed.next()).await {
            Err(_) => return Err(Failure::new(Exit::OutOfReach, "the stream of events does not answer; what happened is unknown")),
            Ok(Item::Event { sequence, event, stored }) => return Ok(Some((sequence, event, stored))),
            Ok(Item::Note(note)) => console.note(&escape(&note)),
            Ok(Item::CaughtUp) => return Ok(None),
            Ok(Item::End) => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
        }
    }
}
