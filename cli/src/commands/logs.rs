//! `logs`: last lines of components' output from their nodes, merged by time, then what is written from now on.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use prost::Message;
use razar_bus_schema::{
    time::{duration, system_time},
    v1,
};

use crate::{
    args::{Global, Logs},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::Link,
    lookup,
    render::{
        log::{line, merge, name},
        time::instant,
    },
};

/// Lines that a node gives at most.
const LINES_MAX: u32 = 1000;

/// A node streams for so long after it was asked; then it is asked again.
const FOLLOW: Duration = Duration::from_secs(60);

/// Lines of each instance remembered, so that what came between two streams is told, and what was told is not told twice.
const RECENT: usize = 200;

/// Lines held while the terminal is slow; more are dropped, the oldest first.
const QUEUE_MAX: usize = 8192;

/// An instance whose lines are wanted.
struct Wanted {
    component: String,
    ordinal: u32,
    node: String,
    chakra: String,
}

/// Shows the lines.
///
/// # Errors
/// Exit 64 for an unknown name or time, 69 when the mesh or a node is away.
pub(crate) async fn run(args: &Logs, console: &Console, global: &Global) -> Done {
    let since = args.since.as_deref().map(|s| instant(s, SystemTime::now(), console.zone)).transpose();
    let since = since.map_err(|why| Failure::new(Exit::Arguments, why))?;
    let link = Link::open(console, global).await?;
    let wanted = wanted(&args.names, &link).await?;
    let width = wanted.iter().map(|w| w.name().len()).max().unwrap_or(0);
    let mut stream = if args.follow { Some(Stream::open(&link).await?) } else { None };
    let lines = if since.is_some() { LINES_MAX } else { args.lines };
    let tail = tails(&wanted, &link, lines, args.follow).await?;
    let is_new = |l: &&v1::LogLine| since.is_none_or(|since| l.time.as_ref().is_none_or(|t| system_time(t) >= since));
    for log in tail.iter().filter(is_new) {
        show(log, width, console)?;
    }
    match stream.as_mut() {
        None => Ok(Exit::Well),
        Some(stream) => stream.follow(&wanted, &tail, &link, width, console).await,
    }
}

/// Followed lines, and the starts of processes, after which a node is asked to stream the new one's.
struct Stream {
    lines: razar_bus::Subscription,
    starts: Feed,
    dropped: u64,
}

impl Stream {
    /// Subscribed before the tail is asked for, so that nothing is missed.
    async fn open(link: &Link) -> Result<Self, Failure> {
        let lines = link.bus.subscribe(&link.bus.subjects().logs(), QUEUE_MAX).await.map_err(|e| link.silent("bus", &e))?;
        link.bus.flush().await.map_err(|e| link.silent("bus", &e))?;
        let status = link.status().await.map(|(reply, _)| reply).unwrap_or_default();
        Ok(Self { lines, starts: Feed::new(link, link.events_after("*.*.component_started", &status)), dropped: 0 })
    }

    async fn follow(&mut self, wanted: &[Wanted], tail: &[v1::LogLine], link: &Link, width: usize, console: &Console) -> Done {
        let mut recent: BTreeMap<String, VecDeque<String>> = BTreeMap::new();
        for log in tail {
            remember(&mut recent, log);
        }
        let mut renew = tokio::time::interval(FOLLOW);
        renew.tick().await;
        loop {
            let mut again = Vec::new();
            tokio::select! {
                message = self.lines.next() => {
                    let Some(message) = message else { return Err(Failure::new(Exit::OutOfReach, "the bus was closed")) };
                    let Ok(log) = v1::LogLine::decode(message.payload) else { continue };
                    if is_wanted(&log, &message.subject, wanted) {
                        show(&log, width, console)?;
                        remember(&mut recent, &log);
                    }
                    if self.lines.dropped() > self.dropped {
                        console.note(&format!("-- {} lines dropped: they come faster than they are read", self.lines.dropped() - self.dropped));
                        self.dropped = self.lines.dropped();
                    }
                }
                item = self.starts.next() => match item {
                    Item::Event { event, .. } => again.extend(wanted.iter().filter(|w| w.is(event.instance.as_ref()))),
                    Item::Note(note) => console.note(&note),
                    Item::CaughtUp => {}
                    Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
                },
                _ = renew.tick() => again.extend(wanted),
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
            }
            for w in again {
                match tails(std::slice::from_ref(w), link, u32::try_from(RECENT).unwrap_or(LINES_MAX), true).await {
                    Ok(tail) => {
                        let known = recent.get(&w.name()).map(|r| r.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_or_default();
                        let texts: Vec<&str> = tail.iter().map(|l| l.text.as_str()).collect();
                        for log in tail.iter().skip(overlap(&known, &texts)) {
                            show(log, width, console)?;
                            remember(&mut recent, log);
                        }
                    }
                    Err(failure) => console.note(&format!("-- {}", failure.text)),
                }
            }
        }
    }
}

fn remember(recent: &mut BTreeMap<String, VecDeque<String>>, log: &v1::LogLine) {
    let texts = recent.entry(name(log)).or_default();
    if texts.len() == RECENT {
        texts.pop_front();
    }
    texts.push_back(log.text.clone());
}

/// How many of `tail`'s first lines are `known` already: the longest beginning of it that `known` ends with.
fn overlap(known: &[&str], tail: &[&str]) -> usize {
    let longest = known.len().min(tail.len());
    let ends_with = |n: &usize| known.get(known.len() - n..) == tail.get(..*n);
    // A tail that begins before what is known: known whole inside it.
    let inside = (!known.is_empty()).then(|| tail.windows(known.len()).rposition(|w| w == known)).flatten().map(|at| at + known.len());
    (0..=longest).rev().find(ends_with).unwrap_or(0).max(inside.unwrap_or(0))
}

impl Wanted {
    fn name(&self) -> String {
        format!("{}.{}", self.component, self.ordinal)
    }

    fn is(&self, instance: Option<&v1::InstanceId>) -> bool {
        instance.is_some_and(|i| i.component == self.component && i.ordinal == self.ordinal)
    }
}

async fn wanted(names: &[String], link: &Link) -> Result<Vec<Wanted>, Failure> {
    let (reply, _) = link.status().await?;
    let known = reply.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let mut wanted = Vec::new();
    for typed in names {
        for c in lookup::instances(known, typed)? {
            let Some(instance) = lookup::instance_of(c) else { continue };
            if c.node.is_empty() {
                return Err(Failure::new(Exit::NotWell, format!("{instance} is placed on no node yet: it has written nothing")));
            }
            let (node, chakra) = (c.node.clone(), c.chakra.clone());
            wanted.push(Wanted { component: instance.component, ordinal: instance.ordinal, node, chakra });
        }
    }
    Ok(wanted)
}

async fn tails(wanted: &[Wanted], link: &Link, lines: u32, follow: bool) -> Result<Vec<v1::LogLine>, Failure> {
    let mut all = Vec::new();
    for w in wanted {
        let request =
            v1::LogTailRequest { component: w.component.clone(), ordinal: w.ordinal, lines, follow: follow.then(|| duration(FOLLOW)) };
        let reply = link.logs(&w.node, &request).await?;
        if reply.unknown {
            return Err(Failure::new(Exit::NotWell, format!("node {} does not know {}.{} yet", w.node, w.component, w.ordinal)));
        }
        all.extend(reply.lines);
    }
    Ok(merge(all))
}

fn is_wanted(log: &v1::LogLine, subject: &str, wanted: &[Wanted]) -> bool {
    let of = |w: &Wanted| w.component == log.component && w.ordinal == log.ordinal && subject.contains(&format!(".log.{}.", w.chakra));
    wanted.iter().any(of)
}

fn show(log: &v1::LogLine, width: usize, console: &Console) -> Result<(), Failure> {
    if console.json { console.message(log) } else { console.line(&line(log, width.max(name(log).len()), console.zone)) }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn what_was_told_is_not_told_twice() {
        assert_eq!(overlap(&["a", "b", "c"], &["b", "c", "d"]), 2);
        assert_eq!(overlap(&["b", "c"], &["a", "b", "c", "d"]), 3, "the tail goes further back");
        assert_eq!(overlap(&["a", "b"], &["x", "y"]), 0);
        assert_eq!(overlap(&[], &["x"]), 0);
        assert_eq!(overlap(&["a", "a"], &["a", "a"]), 2);
    }
}
