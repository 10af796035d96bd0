//! Ports: two components of one profile, or the replicas of one, must not claim the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::{Code, Position},
    file::{Component, StackFile},
    read::Reader,
};

pub(super) fn replicas(r: &mut Reader<'_>, name: &str, component: &Component) {
    let (Some(replicas @ 2..), Some(port)) = (component.replicas, component.ports.first()) else { return };
    let at = r.places.value(&["components", name, "replicas"]);
    r.error(Code::ReplicaPorts, at, format!("{replicas} replicas would all claim {port}"), Some("replicas: 1, or no `ports`".to_owned()));
}

/// A claim of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'f> {
    at: Position,
    component: &'f str,
}

/// Tells each claim that comes after another one of the same port in a profile; without profiles, in the whole stack.
pub(super) fn twice(r: &mut Reader<'_>, file: &StackFile, sets: &BTreeMap<String, BTreeSet<String>>) {
    let mut claims: BTreeMap<u16, Vec<Claim<'_>>> = BTreeMap::new();
    for (name, component) in &file.components {
        for (index, port) in component.ports.iter().enumerate() {
            let at = r.places.value(&["components", name, "ports", &index.to_string()]);
            claims.entry(*port).or_default().push(Claim { at, component: name });
        }
    }
    let together = |a: &str, b: &str| a == b || sets.is_empty() || sets.values().any(|set| set.contains(a) && set.contains(b));
    let taken: BTreeSet<u16> = claims.keys().copied().collect();
    for (port, mut claims) in claims {
        claims.sort();
        for (index, claim) in claims.iter().enumerate() {
            let Some(first) = claims.iter().take(index).find(|other| together(other.component, claim.component)) else { continue };
            let holder = if first.component == claim.component { "its own".to_owned() } else { format!("{}'s", first.component) };
            let free = (port..=u16::MAX).find(|p| !taken.contains(p));
            r.subject = Some(claim.component.to_owned());
            let message = format!("{port} is {holder} ({})", first.at);
            r.error(Code::PortTwice, claim.at, message, free.map(|p| format!("{p} is free")));
            r.subject = None;
        }
    }
}
