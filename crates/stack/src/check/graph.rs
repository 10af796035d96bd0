//! Dependencies: that they exist, that what must complete can, and that nothing waits for itself.

use std::collections::BTreeMap;

use crate::{
    diagnostic::{Code, Position},
    file::{Condition, StackFile},
    names::nearest,
    read::{Reader, printable},
};

fn edge(r: &Reader<'_>, from: &str, to: &str) -> Position {
    r.places.key(&["components", from, "depends_on", to])
}

pub(super) fn dependencies(r: &mut Reader<'_>, file: &StackFile) {
    for (name, component) in &file.components {
        r.subject = Some(printable(name));
        for (on, how) in &component.depends_on {
            let at = edge(r, name, on);
            let completes = matches!(how.condition, Some(Condition::Completed | Condition::ServiceCompletedSuccessfully));
            if on == name {
                r.error(Code::SelfDependency, at, "waits for itself", Some("remove it".to_owned()));
            } else if let Some(dependency) = file.components.get(on) {
                if completes && dependency.one_shot != Some(true) {
                    let at = r.places.value(&["components", name, "depends_on", on, "condition"]);
                    let hint = format!("`condition: ready`, or `one_shot: true` at {on}");
                    r.error(Code::NeverCompletes, at, format!("waits until {on} is completed, but it runs on"), Some(hint));
                }
            } else {
                let hint = nearest(on, file.components.keys().map(String::as_str)).map(|n| format!("`{n}`"));
                r.show(Code::UnknownComponent, at, format!("waits for `{}`, which is no component", printable(on)), hint);
            }
        }
        r.subject = None;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Open,
    Done,
}

/// Tells a circle for each edge that closes one: without those edges there is none left.
pub(super) fn cycles(r: &mut Reader<'_>, file: &StackFile) {
    let mut visits: BTreeMap<&str, Visit> = BTreeMap::new();
    // In the order of the file, so that the first circle told is the one that a reader meets first.
    let mut names: Vec<&str> = file.components.keys().map(String::as_str).collect();
    names.sort_by_key(|n| (r.places.key(&["components", n]), *n));
    let mut found: Vec<Vec<&str>> = Vec::new();
    for root in names {
        if visits.contains_key(root) {
            continue;
        }
        // Depth first without recursion: names on the way, each with the dependencies still to be followed.
        let mut way: Vec<(&str, Vec<&str>)> = vec![(root, followers(file, root))];
        visits.insert(root, Visit::Open);
        while let Some((name, left)) = way.last_mut() {
            let Some(next) = left.pop() else {
                visits.insert(name, Visit::Done);
                way.pop();
                continue;
            };
            match visits.get(next) {
                Some(Visit::Done) => {}
                Some(Visit::Open) => found.push(way.iter().map(|(n, _)| *n).skip_while(|n| *n != next).collect()),
                None => {
                    visits.insert(next, Visit::Open);
                    way.push((next, followers(file, next)));
                }
            }
        }
    }
    for circle in found {
        tell(r, &circle);
    }
}

/// Known dependencies of a component, last first; itself is told elsewhere.
fn followers<'f>(file: &'f StackFile, name: &str) -> Vec<&'f str> {
    let on = file.components.get(name).map(|c| &c.depends_on);
    let mut out: Vec<&str> = on.into_iter().flat_map(|d| d.keys().map(String::as_str)).filter(|d| *d != name).collect();
    out.retain(|d| file.components.contains_key(*d));
    out.reverse();
    out
}

/// The whole circle, beginning with the edge that comes first in the file, with the places of all its edges.
fn tell(r: &mut Reader<'_>, circle: &[&str]) {
    let mut edges: Vec<(&str, Position)> =
        circle.iter().zip(circle.iter().cycle().skip(1)).map(|(from, to)| (*from, edge(r, from, to))).collect();
    let first = edges.iter().enumerate().min_by_key(|(_, (_, at))| *at).map_or(0, |(index, _)| index);
    edges.rotate_left(first);
    let mut names: Vec<&str> = edges.iter().map(|(name, _)| *name).collect();
    names.extend(names.first().copied());
    let mut places = edges.iter().map(|(_, at)| *at);
    let Some(at) = places.next() else { return };
    let others: Vec<String> = places.map(|p| p.to_string()).collect();
    let hint = match others.split_last() {
        None => "drop the edge".to_owned(),
        Some((last, [])) => format!("drop the edge here or at {last}"),
        Some((last, more)) => format!("drop the edge here, at {} or at {last}", more.join(", ")),
    };
    r.error(Code::Cycle, at, names.join(" > "), Some(hint));
}
