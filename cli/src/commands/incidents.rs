//! `incidents` and `incident`: what the stream of events tells of failures and what was done about them. Nobody else is asked.

use std::time::{Duration, SystemTime};

use crate::{
    args::{Global, IncidentArgs, Incidents},
    commands::events::start_of,
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::Link,
    render::{
        incident::{Book, Wanted, lines},
        text::escape,
        time::instant,
    },
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
    let wanted = args.id.clone().map_or(Wanted::Newest, Wanted::Named);
    let book = read(&link, console, None, wanted).await?;
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
    if console.json {
        return told.events.iter().try_for_each(|event| console.message(event)).map(|()| Exit::Well);
    }
    console.lines(told.story(SystemTime::now(), console.zone)).map(|()| Exit::Well)
}

async fn read(link: &Link, console: &Console, since: Option<SystemTime>, wanted: Wanted) -> Result<Book, Failure> {
    let start = match since {
        Some(since) => start_of(link, since).await?,
        None => razar_bus::Start::Beginning,
    };
    let mut feed = Feed::new(link, link.bus.follow_events(">", start));
    let mut book = Book::new(wanted);
    loop {
        match tokio::time::timeout(READ_LIMIT, feed.next()).await {
            Err(_) => return Err(Failure::new(Exit::OutOfReach, "the stream of events does not answer; what happened is unknown")),
            Ok(Item::Event { event, stored, .. }) => book.fold(&event, stored),
            Ok(Item::Note(note)) => console.note(&escape(&note)),
            Ok(Item::CaughtUp) => return Ok(book),
            Ok(Item::End) => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
        }
    }
}
