//! `events`: the stream as it is, a line an event; the last ones, those since a time, or what happens from now on.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus::{FoldItem, Start};
use razar_bus_schema::{
    event::{KINDS, subject_of},
    subject::{MESH_CHAKRA, Subjects},
    time::system_time,
    v1,
};

use crate::{
    args::{Events, Global},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::Link,
    render::{
        event::{incarnation, summary},
        text::escape,
        time::{clock, instant},
    },
};

/// Events shown when neither a time nor following is asked for.
const LAST: usize = 100;

/// Events looked through at first for the last matching ones.
const WINDOW_FIRST: u64 = 2_000;

/// A read of events that are there brings the next one at once.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The chakras that exist by themselves.
const CHAKRAS: [&str; 7] = ["root", "sacral", "solar", "heart", "throat", "third_eye", "crown"];

/// Shows events.
///
/// # Errors
/// Exit 64 for a pattern or time that is none, 69 when the bus is away.
pub(crate) async fn run(args: &Events, console: &Console, global: &Global) -> Done {
    let since = args.since.as_deref().map(|s| instant(s, SystemTime::now(), console.zone)).transpose();
    let since = since.map_err(|why| Failure::new(Exit::Arguments, why))?;
    let link = Link::open(console, global).await?;
    let status = link.status().await.map(|(reply, _)| reply).unwrap_or_default();
    let pattern = subject_pattern(&args.pattern, &global.mesh, &chakras(&status)).map_err(|why| Failure::new(Exit::Arguments, why))?;
    let at = Place { link: &link, status: &status, pattern: &pattern };
    match (since, args.follow) {
        (None, false) => last(&at, console).await,
        (None, true) => {
            let feed = Feed::new(&link, link.events_after(&pattern, &status));
            follow(feed, console, link.bus.subjects(), None, true).await
        }
        (Some(since), on) => {
            let start = at.start_of(since).await;
            let feed = Feed::new(&link, link.bus.follow_events(&pattern, start));
            follow(feed, console, link.bus.subjects(), Some(since), on).await
        }
    }
}

/// A place in the stream not after the first event stored at `since`, as far as the registry knows the stream.
///
/// # Errors
/// Exit 69 when the registry does not answer.
pub(crate) async fn start_of(link: &Link, since: SystemTime) -> Result<Start, Failure> {
    let (status, _) = link.status().await?;
    Ok(Place { link, status: &status, pattern: ">" }.start_of(since).await)
}

fn chakras(status: &v1::StatusReply) -> BTreeSet<String> {
    let seen = status.observed.iter().flat_map(|o| &o.components).map(|c| c.chakra.clone());
    seen.chain(CHAKRAS.map(str::to_owned)).chain([MESH_CHAKRA.to_owned()]).collect()
}

struct Place<'a> {
    link: &'a Link,
    status: &'a v1::StatusReply,
    pattern: &'a str,
}

impl Place<'_> {
    /// Epoch and newest sequence of the stream, as the registry knows them.
    fn head(&self) -> Option<(String, u64)> {
        let observed = self.status.observed.as_ref()?;
        (!observed.stream_epoch.is_empty()).then(|| (observed.stream_epoch.clone(), observed.applied_sequence))
    }

    /// A place in the stream not after the first event stored at `since`: found by halving.
    async fn start_of(&self, since: SystemTime) -> Start {
        let Some((epoch, head)) = self.head() else { return Start::Beginning };
        let (mut low, mut high) = (0, head);
        while high.saturating_sub(low) > WINDOW_FIRST {
            let middle = low + (high - low) / 2;
            match self.stored_after(&epoch, middle).await {
                Some(stored) if stored < since => low = middle,
                Some(_) => high = middle,
                None => return Start::Beginning,
            }
        }
        if low == 0 { Start::Beginning } else { Start::After { epoch, sequence: low } }
    }

    async fn stored_after(&self, epoch: &str, sequence: u64) -> Option<SystemTime> {
        let mut fold = self.link.bus.fold_events(Start::After { epoch: epoch.to_owned(), sequence });
        let first = async {
            loop {
                match fold.next().await? {
                    FoldItem::Event { stored, .. } => return Some(stored),
                    FoldItem::Reset { .. } => return None,
                    FoldItem::DeadLetter { .. } => {}
                    FoldItem::CaughtUp { .. } => return Some(SystemTime::now()),
                }
            }
        };
        tokio::time::timeout(READ_LIMIT, first).await.ok().flatten()
    }
}

/// The last [`LAST`] that match: a window that grows until it holds them or begins at the beginning.
async fn last(at: &Place<'_>, console: &Console) -> Done {
    let mut window = WINDOW_FIRST;
    loop {
        let start = match at.head() {
            Some((epoch, head)) if head > window => Start::After { epoch, sequence: head - window },
            _ => Start::Beginning,
        };
        let whole = start == Start::Beginning;
        let mut feed = Feed::new(at.link, at.link.bus.follow_events(at.pattern, start));
        let mut kept: VecDeque<(u64, Box<v1::Event>)> = VecDeque::with_capacity(LAST);
        loop {
            match tokio::time::timeout(READ_LIMIT, feed.next()).await {
                Err(_) => return Err(Failure::new(Exit::OutOfReach, "the stream of events does not answer; what happened is unknown")),
                Ok(Item::Event { sequence, event, .. }) => {
                    if kept.len() == LAST {
                        kept.pop_front();
                    }
                    kept.push_back((sequence, event));
                }
                Ok(Item::Note(note)) => console.note(&escape(&note)),
                Ok(Item::CaughtUp | Item::End) => break,
            }
        }
        if whole || kept.len() == LAST {
            if kept.is_empty() {
                console.note(&format!("no event matches {}", at.pattern));
            }
            return kept
                .iter()
                .try_for_each(|(sequence, event)| show(*sequence, event, console, at.link.bus.subjects()))
                .map(|()| Exit::Well);
        }
        window = window.saturating_mul(8);
    }
}

/// What comes, from `since` on; ends when all is read unless it is to go on.
async fn follow(mut feed: Feed, console: &Console, subjects: &Subjects, since: Option<SystemTime>, on: bool) -> Done {
    loop {
        let item = tokio::select! {
            item = feed.next() => item,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        match item {
            Item::Event { sequence, event, stored } => {
                let at = event.time.as_ref().map_or(stored, system_time);
                if since.is_none_or(|since| at >= since) {
                    show(sequence, &event, console, subjects)?;
                }
            }
            Item::CaughtUp if !on => return Ok(Exit::Well),
            Item::CaughtUp => {}
            Item::Note(note) => console.note(&escape(&note)),
            Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
        }
    }
}

fn show(sequence: u64, event: &v1::Event, console: &Console, subjects: &Subjects) -> Result<(), Failure> {
    if console.json { console.message(event) } else { console.line(&line(sequence, event, console, subjects)) }
}

/// `8120 14:02:11.204 heart.memory-store.component_exited 1.1 exit 1`
fn line(sequence: u64, event: &v1::Event, console: &Console, subjects: &Subjects) -> String {
    let at = event.time.as_ref().map_or_else(|| "-".to_owned(), |t| clock(system_time(t), console.zone));
    let subject = subject_of(subjects, event);
    let tail = subject.strip_prefix(subjects.mesh()).and_then(|s| s.strip_prefix(".event.")).unwrap_or(&subject);
    format!("{sequence} {at} {} {} {}", escape(tail), incarnation(event), summary(event)).trim_end().to_owned()
}

/// The subject after `<mesh>.event.` that a person means by `typed`: tokens as they are, or the name of a chakra, a component or a kind.
fn subject_pattern(typed: &str, mesh: &str, chakras: &BTreeSet<String>) -> Result<String, String> {
    let tail = typed.strip_prefix(mesh).and_then(|t| t.strip_prefix(".event.")).unwrap_or(typed);
    let tokens: Vec<&str> = tail.split('.').collect();
    let sound = |t: &&str| !t.is_empty() && t.chars().all(|c| c.is_ascii_alphanumeric() || "-_*>".contains(c));
    let ends_early = tokens.iter().rev().skip(1).any(|t| t.contains('>'));
    if tokens.len() > 3 || !tokens.iter().all(sound) || ends_early {
        return Err(format!("`{}` is no pattern: heart.>, *.api.*, api, component_exited", escape(typed)));
    }
    Ok(match tokens.as_slice() {
        [">"] => ">".to_owned(),
        [one] if *one == "*" || chakras.contains(*one) => format!("{one}.>"),
        [one] if KINDS.contains(one) => format!("*.*.{one}"),
        [one] => format!("*.{one}.>"),
        [_, ">"] => tail.to_owned(),
        [a, b] => format!("{a}.{b}.>"),
        _ => tail.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::time::Zone;

    #[test]
    fn patterns_are_subjects_or_names() {
        let chakras = chakras(&v1::StatusReply::default());
        let pattern = |typed| subject_pattern(typed, "razar", &chakras);
        for (typed, meant) in [
            (">", ">"),
            ("heart.>", "heart.>"),
            ("razar.event.heart.>", "heart.>"),
            ("heart", "heart.>"),
            ("root.web", "root.web.>"),
            ("api", "*.api.>"),
            ("component_exited", "*.*.component_exited"),
            ("*.*.chakra_down", "*.*.chakra_down"),
            ("mesh", "mesh.>"),
        ] {
            assert_eq!(pattern(typed), Ok(meant.to_owned()), "{typed}");
        }
        for bad in ["", "a..b", ">.a", "a b", "a.b.c.d"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let fact = v1::event::Fact::ComponentExited(v1::ComponentExited {
            status: Some(v1::ExitStatus { code: Some(1), ..Default::default() }),
            ..Default::default()
        });
        let event = v1::Event {
            kind: "component_exited".to_owned(),
            time: Some(razar_bus_schema::time::timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(50_531_204))),
            chakra: "heart".to_owned(),
            instance: Some(v1::InstanceId { component: "memory-store".to_owned(), ordinal: 0 }),
            incarnation: Some(v1::Incarnation { generation: 1, start: 1 }),
            fact: Some(fact),
            ..Default::default()
        };
        let console = Console::new("razar".to_owned(), false, false, false, Zone::Utc);
        let subjects = Subjects::new("razar").unwrap();
        assert_eq!(line(8120, &event, &console, &subjects), "8120 14:02:11.204 heart.memory-store.component_exited 1.1 exit 1");
    }
}
