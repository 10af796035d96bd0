//! A real mesh for the end-to-end tests: the programs as they are built, a real broker, real components, on free ports of the
//! loopback and in a state directory of its own. What is asserted about it is in `tests/e2e_*.rs`; the simulation is `sim`.

mod collector;
mod disk;
mod mesh;
mod process;
mod processors;
mod proxy;
mod raw;
mod stack;
mod tools;
mod wired;

pub use collector::{Arrived, Collector};
pub use disk::Disk;
pub use mesh::{ByHand, Mesh, Said};
pub use process::{Process, alive, environment_of, http_get, parent_of, port_is_open, signal};
pub use processors::Processors;
pub use proxy::{Proxy, Way};
pub use raw::Raw;
pub use stack::{Part, Stack};
pub use tools::{binary, broker};
pub use wired::Wired;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use razar_bus_schema::v1::{self, event::Fact};

/// How long anything may take that takes milliseconds on an idle machine: two busy cores are no failure.
pub const SOON: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `look` gives something, at most for `limit`.
///
/// # Errors
/// When it gave nothing in time (the error says what was waited for), or an error at the last look.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        let seen = look();
        match seen {
            Ok(Some(found)) => return Ok(found),
            Err(error) if Instant::now() >= until => return Err(error.context(format!("waited {limit:?} for {what}"))),
            Ok(None) if Instant::now() >= until => bail!("waited {limit:?} for {what}"),
            Ok(None) | Err(_) => thread::sleep(LOOK),
        }
    }
}

/// Looks as long as `limit` that `holds` stays true: for what must not happen.
///
/// # Errors
/// When it did not, or could not be looked at.
pub fn holds_for(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        anyhow::ensure!(holds()?, "no longer so: {what}");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// What was told once this holds: each id once; every mission begun and ended once; no incarnation started twice; one word and one end for
/// each command. Waited for, as the end of a command is told after what was asked for has come.
///
/// # Errors
/// When it is not so within `limit`.
pub fn one_end_each(mesh: &Mesh, limit: Duration) -> Result<Vec<v1::Event>> {
    wait_for("one end of each", limit, || {
        let events = mesh.events()?;
        ended_once(&events)?;
        Ok(Some(events))
    })
}

fn ended_once(events: &[v1::Event]) -> Result<()> {
    let ids: BTreeSet<&str> = events.iter().map(|e| e.id.as_str()).collect();
    ensure!(ids.len() == events.len(), "{} events, {} ids", events.len(), ids.len());
    let (mut missions, mut starts, mut commands) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::<&str, Vec<&str>>::new());
    for event in events {
        match &event.fact {
            Some(Fact::MissionStarted(m)) => missions.entry(&m.mission_id).or_insert((0, 0)).0 += 1,
            Some(Fact::MissionCompleted(m)) => missions.entry(&m.mission_id).or_insert((0, 0)).1 += 1,
            Some(Fact::ComponentStarted(_)) if event.stack != "system" => {
                *starts.entry(format!("{:?} {:?}", event.instance, event.incarnation)).or_insert(0) += 1;
            }
            Some(Fact::OperatorCommand(c)) => commands.entry(&c.command_id).or_default().push(&c.result),
            _ => {}
        }
    }
    ensure!(missions.values().all(|counts| *counts == (1, 1)), "{missions:?}");
    ensure!(starts.values().all(|count| *count == 1), "{starts:?}");
    ensure!(commands.values().all(|words| words.len() == 2 && words.contains(&"accepted")), "{commands:?}");
    Ok(())
}

/// Each id once; each node's sequences from 1 upward, none missing and none out of order.
///
/// # Errors
/// When it is not so.
pub fn told_once_and_in_order(events: &[v1::Event]) -> Result<()> {
    let ids: BTreeSet<&str> = events.iter().map(|e| e.id.as_str()).collect();
    ensure!(ids.len() == events.len(), "{} events, {} ids", events.len(), ids.len());
    let mut last: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for at in events.iter().filter_map(|e| e.node_sequence.as_ref()) {
        let before = last.insert((&at.node, &at.epoch), at.sequence).unwrap_or(0);
        ensure!(at.sequence > before, "{} after {before}", at.sequence);
    }
    Ok(())
}
