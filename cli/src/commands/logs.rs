//! `logs`: last lines of components' output from their nodes, merged by time, then what is written from now on.

use std::{
    collections::HashSet,
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
    link::Link,
    lookup,
    render::{
        log::{line, merge, name},
        time::instant,
    },
};

/// Lines that a node gives at most.
const LINES_MAX: u32 = 1000;

/// A node streams for so long after it was asked; asked again well before.
const FOLLOW: Duration = Duration::from_secs(30);

/// How often it is asked again.
const RENEW: Duration = Duration::from_secs(10);

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
    let width = wanted.iter().map(|w| format!("{}.{}", w.component, w.ordinal).len()).max().unwrap_or(0);
    // Subscribed before the tail is asked for: what is written in between comes twice, and is told once.
    let mut followed = if args.follow { Some(link.bus.subscribe(&link.bus.subjects().logs(), QUEUE_MAX).await.map_err(|e| link.silent("bus", &e))?) } else { None };
    if followed.is_some() {
        link.bus.flush().await.map_err(|e| link.silent("bus", &e))?;
    }
    let lines = if since.is_some() { LINES_MAX } else { args.lines };
    let shown = tails(&wanted, &link, lines, args.follow).await?;
    let shown: Vec<_> = shown.into_iter().filter(|l| since.is_none_or(|since| l.time.as_ref().is_none_or(|t| system_time(t) >= since))).collect();
    for log in &shown {
        show(log, width, console)?;
    }
    let Some(followed) = followed.as_mut() else { return Ok(Exit::Well) };
    let mut told: HashSet<Vec<u8>> = shown.iter().map(Message::encode_to_vec).collect();
    let mut renew = tokio::time::interval(RENEW);
    renew.tick().await;
    let mut dropped = 0;
    loop {
        tokio::select! {
            message = followed.next() => {
                let Some(message) = message else { return Err(Failure::new(Exit::OutOfReach, "the bus was closed")) };
                let Ok(log) = v1::LogLine::decode(message.payload) else { continue };
                if is_wanted(&log, &message.subject, &wanted) && !told.remove(&log.encode_to_vec()) {
                    show(&log, width, console)?;
                }
                if followed.dropped() > dropped {
                    console.note(&format!("-- {} lines dropped: they come faster than they are read", followed.dropped() - dropped));
                    dropped = followed.dropped();
                }
            }
            _ = renew.tick() => {
                told.clear();
                if let Err(failure) = tails(&wanted, &link, 1, true).await {
                    console.note(&format!("-- {}", failure.text));
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
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
        let request = v1::LogTailRequest {
            component: w.component.clone(),
            ordinal: w.ordinal,
            lines,
            follow: follow.then(|| duration(FOLLOW)),
        };
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
