//! What needs more than one place of the file to judge: names that must exist, circles, ports, probes, restarts, profiles.
//! The form of single values was judged by `read`.

mod graph;
mod ports;
mod probes;
mod profiles;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use profiles::lineage;
use prost::Message as _;

use crate::{
    diagnostic::{Code, Position},
    file::{Component, Policy, StackFile},
    fill::{self, Figures},
    load::Outside,
    names,
    read::{Reader, printable},
    units::show_duration,
};

/// Largest specification of a component, in bytes: half a message of the bus leaves room for the record around it.
const SPEC_BYTES_MAX: usize = razar_bus_schema::PAYLOAD_BYTES_MAX / 2;

/// Checks the whole file; gives the components of each profile.
pub(crate) fn stack(r: &mut Reader<'_>, file: &StackFile, dir: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut bursts = BTreeSet::new();
    for (name, component) in &file.components {
        if r.unreadable.contains(name) {
            continue;
        }
        r.subject = Some(printable(name));
        chakra(r, name, component, file);
        probes::component(r, name, component);
        state(r, name, component, dir);
        burst(r, name, component, file, &mut bursts);
        ports::replicas(r, name, component);
        provides(r, name, component);
        environment(r, name, component);
        size(r, name, component, file, dir);
        r.subject = None;
    }
    graph::dependencies(r, file);
    graph::cycles(r, file);
    let sets = profiles::sets(r, file);
    ports::twice(r, file, &sets);
    sets
}

fn chakra(r: &mut Reader<'_>, name: &str, component: &Component, file: &StackFile) {
    let known = || names::CHAKRAS.iter().map(|(name, _)| *name).chain(file.chakras.keys().map(String::as_str));
    let chakra = component.chakra.as_str();
    if chakra.is_empty() || known().any(|k| k == chakra) {
        return;
    }
    let at = r.places.value(&["components", name, "chakra"]);
    let hint = names::nearest(chakra, known()).map_or_else(|| known().collect::<Vec<_>>().join(", "), |n| format!("`{n}`"));
    r.show(Code::UnknownChakra, at, format!("`{}` is no chakra", printable(chakra)), Some(hint));
}

/// A hook is run when something is wrong: that it is not there is better known before.
pub(crate) fn hooks(r: &mut Reader<'_>, file: &StackFile, dir: &Path, outside: &dyn Outside) {
    let of_chakras =
        file.chakras.iter().map(|(name, chakra)| (vec!["chakras", name.as_str(), "heal_hook", "command", "0"], &chakra.heal_hook));
    let of_mesh = (vec!["mesh", "escalation_hook", "command", "0"], &file.mesh.escalation_hook);
    for (path, hook) in of_chakras.chain([of_mesh]) {
        let command = hook.as_ref().map(|hook| fill::command(&hook.command, dir)).unwrap_or_default();
        let Some(Err(why)) = command.first().map(|program| outside.program(program)) else { continue };
        let of = path.first().filter(|first| **first == "chakras").and_then(|_| path.get(1)).map(|name| printable(name));
        r.subject = of;
        let at = r.places.value(&path);
        r.show(
            Code::HookMissing,
            at,
            format!("the hook cannot be run: {why}"),
            Some("a program, or a script with a #! line and x".to_owned()),
        );
        r.subject = None;
    }
}

/// A state path is removed with all that is in it: it must not hold the stack itself.
fn state(r: &mut Reader<'_>, name: &str, component: &Component, dir: &Path) {
    for (index, path) in component.state.iter().enumerate() {
        let whole: PathBuf = fill::absolute(path, dir);
        let climbs = whole.components().any(|part| part == std::path::Component::ParentDir);
        if whole.parent().is_none() || dir.starts_with(&whole) || climbs {
            let at = r.places.value(&["components", name, "state", &index.to_string()]);
            let message = format!("`state` would remove {}", printable(&whole.display().to_string()));
            r.error(Code::UnsafeState, at, message, Some("a folder of the component's own, below this file's".to_owned()));
        }
    }
}

/// Capabilities are asked for by name.
fn provides(r: &mut Reader<'_>, name: &str, component: &Component) {
    for (index, capability) in component.provides.iter().enumerate() {
        if !razar_bus_schema::ids::is_name(&capability.replace(['.', ':', '/'], "-")) {
            let at = r.places.value(&["components", name, "provides", &index.to_string()]);
            let hint = "a-z, 0-9 and `-_.:/`, at most 63".to_owned();
            r.error(Code::BadName, at, format!("`{}` names no capability", printable(capability)), Some(hint));
        }
    }
}

/// A variable has one value: the visible one or the secret one.
fn environment(r: &mut Reader<'_>, name: &str, component: &Component) {
    for variable in component.secrets.keys().filter(|v| component.env.contains_key(*v)) {
        let at = r.places.key(&["components", name, "env", variable]);
        let other = r.places.key(&["components", name, "secrets", variable]);
        let message = format!("`{}` is a secret too ({other})", printable(variable));
        r.error(Code::DuplicateKey, at, message, Some("remove it from `env`, which is visible on the bus".to_owned()));
    }
}

/// A record carries one specification, and must pass the bus.
fn size(r: &mut Reader<'_>, name: &str, component: &Component, file: &StackFile, dir: &Path) {
    let bytes = fill::component(name, component, file, dir).encoded_len();
    if bytes > SPEC_BYTES_MAX {
        let at = r.places.key(&["components", name]);
        let hint = "long texts belong into files".to_owned();
        r.error(Code::TooLarge, at, format!("{bytes} bytes; a component has at most {SPEC_BYTES_MAX}"), Some(hint));
    }
}

/// The delays before the restarts of the budget must fit into its period, or it is never spent and the ladder never comes.
fn burst(r: &mut Reader<'_>, name: &str, component: &Component, file: &StackFile, told: &mut BTreeSet<Position>) {
    let figures = Figures::of(&component.restart, file);
    if figures.policy == Policy::Never || component.one_shot == Some(true) {
        return;
    }
    let mut sum = Duration::ZERO;
    let mut longest = Duration::ZERO;
    for n in 1..=figures.budget_max {
        let delay = figures.delay(n);
        sum = sum.saturating_add(delay);
        longest = longest.max(delay);
    }
    if sum <= figures.budget_within {
        return;
    }
    let path = ["components", name, "restart"];
    let own = r.places.has(&path);
    let above = [["defaults", "restart"], ["mesh", "local_restarts"]];
    let at = if own {
        r.places.value(&path)
    } else {
        above.iter().find(|p| r.places.has(*p)).map_or_else(|| r.places.key(&path), |p| r.places.value(p))
    };
    // What is said once for all components is told once.
    if !told.insert(at) {
        return;
    }
    let subject = r.subject.clone();
    if !own {
        r.subject = None;
    }
    let enough = rounded_up(sum.mul_f64(1.0 + figures.jitter));
    let message =
        format!("backoff {} never makes {} in {}", show_duration(longest), figures.budget_max, show_duration(figures.budget_within));
    r.error(Code::BurstUnreachable, at, message, Some(format!("within: {}", show_duration(enough))));
    r.subject = subject;
}

/// Up to whole seconds below two minutes, whole minutes above.
fn rounded_up(span: Duration) -> Duration {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    Duration::from_secs(if seconds < 120 { seconds } else { seconds.div_ceil(60) * 60 })
}
