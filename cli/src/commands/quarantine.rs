//! `quarantine` and `release`: commands to the agent quarantine, and waiting until they have had their effect; and the log of both, from
//! the stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use razar_bus::Start;
use razar_bus_schema::{
    ids::Instance,
    time::{duration, std_duration, system_time},
    v1::{self, event::Fact},
};

use crate::{
    args::{Global, Quarantine, Release},
    commands::lifecycle::{receipt, send, wait},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::Link,
    outcome::Waiter,
    render::{
        event::{subject_name, summary},
        text::{columns, count, escape, or_dash, quote},
        time::{clock, rfc3339, short_clock},
    },
};

/// The agent that both ask.
const AGENT: &str = "quarantine";
/// A read of events that are there brings the next one at once.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Isolates a component, or shows the log.
///
/// # Errors
/// Exit 77 when it is refused, 75 when it does not stop in time, 69 when the mesh is away.
pub(crate) async fn run(args: Quarantine, console: &Console, global: &Global) -> Done {
    let Some(name) = args.name.as_deref().filter(|_| !args.list) else { return list(&args, console, global).await };
    let command = v1::Command { note: args.note.clone(), r#for: args.r#for.map(duration), ..Default::default() };
    let link = Link::open(console, global).await?;
    let before = link.caught_up().await?;
    let known = before.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let feed = Feed::new(&link, link.events_after(">", &before));
    let sent = send(&link, (AGENT, "quarantine", name), command, console, global).await?;
    console.note(&receipt(&sent, AGENT, console, &["quarantine"], name)?);
    if global.no_wait {
        return no_wait(sent.receipt(), console);
    }
    let waiter = Waiter::new("quarantine", name, sent.receipt(), known).isolates(&until(args.r#for, console), &blocks(name, known));
    wait(&link, feed, vec![waiter], console, global).await
}

/// Releases what is isolated.
///
/// # Errors
/// Exit 77 when it is refused, 75 when it is not ready in time, 69 when the mesh is away.
pub(crate) async fn release(args: Release, console: &Console, global: &Global) -> Done {
    let command = v1::Command { note: args.note.clone(), ..Default::default() };
    let link = Link::open(console, global).await?;
    let before = link.caught_up().await?;
    let known = before.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let feed = Feed::new(&link, link.events_after(">", &before));
    let sent = send(&link, (AGENT, "release", &args.name), command, console, global).await?;
    console.note(&receipt(&sent, AGENT, console, &["release"], &args.name)?);
    if global.no_wait {
        return no_wait(sent.receipt(), console);
    }
    wait(&link, feed, vec![Waiter::new("release", &args.name, sent.receipt(), known)], console, global).await
}

fn no_wait(receipt: &v1::Receipt, console: &Console) -> Done {
    if console.json {
        console.message(receipt)?;
    }
    Ok(Exit::Well)
}

/// ` until 16:20`, by this machine's clock; nothing where the agent's own default holds.
fn until(long: Option<Duration>, console: &Console) -> String {
    let at = long.and_then(|long| SystemTime::now().checked_add(long));
    at.map(|at| format!(" until {}", short_clock(at, console.zone))).unwrap_or_default()
}

/// `; blocks api scheduler`: who depends on `name`, those behind them too.
fn blocks(name: &str, known: &[v1::ObservedComponent]) -> String {
    let mut found: BTreeSet<String> = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        for c in known {
            let needs = c.desired.as_ref().is_some_and(|d| d.mode != "stop" && d.depends_on.contains(&name));
            let Some(own) = c.instance.as_ref().map(|i| i.component.clone()).filter(|_| needs) else { continue };
            if found.insert(own.clone()) {
                open.push(own);
            }
        }
    }
    let names: Vec<String> = found.iter().map(|n| escape(n)).collect();
    if names.is_empty() { String::new() } else { format!("; blocks {}", names.join(" ")) }
}

/// The log of isolations and releases, oldest first.
async fn list(args: &Quarantine, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    let mut events = BTreeMap::new();
    for kind in ["quarantined", "probation_started", "released"] {
        read(&link, kind, console, &mut events).await?;
    }
    let about = |e: &v1::Event| args.name.as_ref().is_none_or(|n| e.instance.as_ref().is_some_and(|i| i.component == *n));
    let events: Vec<&v1::Event> = events.values().filter(|e| about(e)).collect();
    if console.json {
        events.iter().try_for_each(|event| console.message(*event))?;
        return Ok(Exit::Well);
    }
    let rows = rows(&events);
    if args.markdown {
        console.lines(markdown(&rows))?;
    } else if rows.is_empty() {
        console.note("nothing was ever quarantined");
    } else {
        let plain = |row: &Row| {
            let at = row.at.map_or_else(|| "-".to_owned(), |at| clock(at, console.zone));
            vec![at, row.component.clone(), row.action.clone(), row.issue.clone(), row.details.clone()]
        };
        console.lines(columns(&rows.iter().map(plain).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Well)
}

async fn read(link: &Link, kind: &str, console: &Console, events: &mut BTreeMap<u64, v1::Event>) -> Result<(), Failure> {
    let mut feed = Feed::new(link, link.bus.follow_events(&format!("*.*.{kind}"), Start::Beginning));
    loop {
        match tokio::time::timeout(READ_LIMIT, feed.next()).await {
            Err(_) => return Err(Failure::new(Exit::OutOfReach, "the stream of events does not answer; what happened is unknown")),
            Ok(Item::Event { sequence, event, .. }) => {
                events.insert(sequence, *event);
            }
            Ok(Item::Note(note)) => console.note(&escape(&note)),
            Ok(Item::CaughtUp | Item::End) => return Ok(()),
        }
    }
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    at: Option<SystemTime>,
    component: String,
    action: String,
    issue: String,
    details: String,
}

fn rows(events: &[&v1::Event]) -> Vec<Row> {
    let mut issues: BTreeMap<Instance, String> = BTreeMap::new();
    let row = |event: &&v1::Event| {
        let instance = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        if let (Some(Fact::Quarantined(q)), Some(instance)) = (&event.fact, &instance) {
            issues.insert(instance.clone(), q.issue_type.clone());
        }
        let issue = instance.and_then(|i| issues.get(&i).cloned()).unwrap_or_default();
        let reason = event.reason.as_ref().map(|r| r.text.as_str()).unwrap_or_default();
        let details = match &event.fact {
            Some(Fact::Released(r)) if r.mode == "manual" => format!("by hand: {}", quote(&r.note)),
            Some(Fact::Released(_)) => format!("by itself: {}", escape(reason)),
            Some(Fact::ProbationStarted(_)) => escape(reason),
            Some(Fact::Quarantined(q)) => {
                let long = q
                    .duration
                    .as_ref()
                    .map_or_else(|| "until released".to_owned(), |d| format!("for {}", crate::render::time::exact(std_duration(d))));
                let attempts = if q.attempts > 0 { format!(", {}", count(q.attempts as usize, "attempt")) } else { String::new() };
                let fix = if q.suggested_fix.is_empty() { String::new() } else { format!("; fix: {}", escape(&q.suggested_fix)) };
                format!("{long}{attempts}: {}{fix}", quote(reason))
            }
            _ => summary(event),
        };
        Row {
            at: event.time.as_ref().map(system_time),
            component: subject_name(event),
            action: escape(&event.kind),
            issue: or_dash(&escape(&issue)).to_owned(),
            details,
        }
    };
    events.iter().map(row).collect()
}

/// A table as Markdown has it.
fn markdown(rows: &[Row]) -> Vec<String> {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut lines = vec!["| timestamp | component | action | issue type | details |".to_owned(), "|---|---|---|---|---|".to_owned()];
    lines.extend(rows.iter().map(|row| {
        let at = row.at.map_or_else(|| "-".to_owned(), rfc3339);
        format!("| {at} | {} | {} | {} | {} |", cell(&row.component), cell(&row.action), cell(&row.issue), cell(&row.details))
    }));
    lines
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::event::Kind as _;

    use super::*;

    fn event(second: u64, fact: Fact, reason: &str) -> v1::Event {
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(razar_bus_schema::time::timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(second))),
            instance: Some(v1::InstanceId { component: "reranker".to_owned(), ordinal: 0 }),
            reason: Some(v1::Reason { code: String::new(), text: reason.to_owned() }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    #[test]
    fn the_log_is_a_markdown_table() {
        let isolated = v1::Quarantined {
            issue_type: "dependency".to_owned(),
            suggested_fix: "install torch".to_owned(),
            attempts: 4,
            duration: Some(duration(Duration::from_secs(1800))),
            known: String::new(),
        };
        let released = v1::Released { mode: "manual".to_owned(), note: "a|b".to_owned() };
        let trial = v1::ProbationStarted { issue_type: "dependency".to_owned(), attempts: 4, ..Default::default() };
        let events = [
            event(1, Fact::Quarantined(isolated), "No module named 'torch'"),
            event(2, Fact::ProbationStarted(trial), "on probation after 1800s: No module named 'torch'"),
            event(3, Fact::Released(released), ""),
        ];
        let events: Vec<&v1::Event> = events.iter().collect();
        assert_eq!(
            markdown(&rows(&events)),
            [
                "| timestamp | component | action | issue type | details |",
                "|---|---|---|---|---|",
                "| 1970-01-01T00:00:01.000Z | reranker | quarantined | dependency | for 30m, 4 attempts: \"No module named 'torch'\"; fix: \
                 install torch |",
                "| 1970-01-01T00:00:02.000Z | reranker | probation_started | dependency | on probation after 1800s: No module named 'torch' |",
                "| 1970-01-01T00:00:03.000Z | reranker | released | dependency | by hand: \"a\\|b\" |",
            ]
        );
    }

    #[test]
    fn it_is_said_who_is_blocked_those_behind_too() {
        let component = |name: &str, needs: &[&str]| v1::ObservedComponent {
            instance: Some(v1::InstanceId { component: name.to_owned(), ordinal: 0 }),
            desired: Some(v1::DesiredChanged {
                mode: "run".to_owned(),
                depends_on: needs.iter().map(|n| (*n).to_owned()).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let known = [component("db", &[]), component("api", &["db"]), component("web", &["api"]), component("cache", &[])];
        assert_eq!(blocks("db", &known), "; blocks api web");
        assert_eq!(blocks("web", &known), "");
    }
}
