//! The top level: mesh, defaults, chakras, components, profiles.

use std::collections::BTreeMap;

use razar_bus_schema::shard::SHARDS_MAX;

use super::{Reader, component, probe};
use crate::{
    diagnostic::Code,
    file::{Budget, Chakra, Component, Defaults, Hook, Mesh, Profile, ProfileLimits, StackFile},
    names,
    tree::Node,
};

/// Most components of a stack: their starts still fit one trace, their records one atomic batch.
const COMPONENTS_MAX: usize = 1000;

/// Most start slots of a node.
const PARALLEL_STARTS_MAX: u32 = 1000;

/// Reads the whole file; what could not be read is left at its default, and told.
pub(crate) fn stack(r: &mut Reader<'_>, node: &Node) -> StackFile {
    let Some(mut f) = r.fields(node) else { return StackFile::default() };
    let out = StackFile {
        name: f.must(r, "name", |r, n| name(r, n, "stack")),
        description: f.get(r, "description", Reader::string),
        mesh: f.or(r, "mesh", mesh),
        defaults: f.or(r, "defaults", defaults),
        chakras: f.or(r, "chakras", chakras),
        components: f.must(r, "components", components),
        profiles: f.or(r, "profiles", profiles),
    };
    let synonyms = [("services", "components"), ("processes", "components"), ("layers", "chakras")];
    f.end(r, &synonyms);
    out
}

fn name(r: &mut Reader<'_>, node: &Node, of: &str) -> Option<String> {
    let name = r.text(node)?;
    if !names::is_component_name(&name) {
        let message = format!("`{}` is no name of a {of}", super::printable(&name));
        r.show(Code::BadName, node.at, message, Some(name_hint(&name)));
        return None;
    }
    if names::RESERVED_STACKS.contains(&name.as_str()) {
        r.show(Code::ReservedName, node.at, format!("`{name}` is the mesh's own"), None);
        return None;
    }
    Some(name)
}

/// What a name is made of, with the nearest one that is.
fn name_hint(name: &str) -> String {
    let rule = "a-z, 0-9 and `-`, at most 63";
    names::mended(name).map_or_else(|| rule.to_owned(), |mended| format!("`{mended}` ({rule})"))
}

fn mesh(r: &mut Reader<'_>, node: &Node) -> Option<Mesh> {
    let mut f = r.fields(node)?;
    let out = Mesh {
        parallel_starts: f.get(r, "parallel_starts", |r, n| r.number(n, 1, PARALLEL_STARTS_MAX)),
        local_restarts: f.or(r, "local_restarts", |r, n| {
            let mut f = r.fields(n)?;
            let budget = Budget { max: f.get(r, "max", |r, n| r.number(n, 0, 1000)), within: f.get(r, "within", Reader::period) };
            f.end(r, &[]);
            Some(budget)
        }),
        timeout: f.get(r, "timeout", Reader::period),
        shards: f.get(r, "shards", |r, n| r.number(n, 1, SHARDS_MAX)),
        failed_boots: f.get(r, "failed_boots", |r, n| r.number(n, 1, 1000)),
        errors: f.get(r, "errors", Reader::path),
        escalation_hook: f.get(r, "escalation_hook", hook),
    };
    f.end(r, &[]);
    Some(out)
}

fn defaults(r: &mut Reader<'_>, node: &Node) -> Option<Defaults> {
    let mut f = r.fields(node)?;
    let out = Defaults {
        stop: f.or(r, "stop", component::stop),
        logs: f.or(r, "logs", component::logs),
        restart: f.or(r, "restart", component::restart),
        probes: f.or(r, "probes", probe::defaults),
        slow_probe: f.get(r, "slow_probe", Reader::period),
    };
    f.end(r, &[]);
    Some(out)
}

fn chakras(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, Chakra>> {
    r.named(node, |r, entry| {
        r.subject = Some(super::printable(&entry.key));
        if entry.key == "mesh" {
            r.error(Code::ReservedName, entry.at, "no chakra can have the mesh's own name", None);
        } else if !razar_bus_schema::ids::is_name(&entry.key) {
            r.error(Code::BadName, entry.at, "no name of a chakra", Some("a-z, 0-9, `-` and `_`, at most 63, not `_` first".to_owned()));
        }
        let out = chakra(r, &entry.value);
        r.subject = None;
        out
    })
}

fn chakra(r: &mut Reader<'_>, node: &Node) -> Option<Chakra> {
    let mut f = r.fields(node)?;
    let out = Chakra {
        description: f.get(r, "description", Reader::string),
        health_threshold: f.get(r, "health_threshold", |r, n| r.decimal(n, 0.0, 1.0)),
        heal_hook: f.get(r, "heal_hook", hook),
    };
    f.end(r, &[]);
    Some(out)
}

fn hook(r: &mut Reader<'_>, node: &Node) -> Option<Hook> {
    let mut f = r.fields(node)?;
    let out = Hook {
        command: f.must(r, "command", component::command),
        timeout: f.get(r, "timeout", Reader::period),
        env: f.or(r, "env", component::environment),
    };
    f.end(r, &[]);
    Some(out)
}

fn components(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, Component>> {
    let out = r.named(node, |r, entry| {
        r.subject = Some(super::printable(&entry.key));
        if !names::is_component_name(&entry.key) {
            r.error(Code::BadName, entry.at, "no name of a component", Some(name_hint(&entry.key)));
        } else if names::is_reserved(&entry.key) {
            let hint = format!("`{}-1`, `my-{}`", entry.key, entry.key);
            r.error(Code::ReservedName, entry.at, "the mesh has a component of its own by this name", Some(hint));
        }
        let out = component::component(r, &entry.value);
        r.subject = None;
        if out.is_none() {
            r.unreadable.insert(entry.key.clone());
        }
        // Unreadable ones stay known by name, so that what depends on them is not told off too.
        Some(out.unwrap_or_default())
    })?;
    if out.is_empty() {
        r.error(Code::Empty, node.at, "`components` has none", None);
    } else if out.len() > COMPONENTS_MAX {
        r.error(Code::TooLarge, node.at, format!("{} components; a stack has at most {COMPONENTS_MAX}", out.len()), None);
    }
    Some(out)
}

fn profiles(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, Profile>> {
    r.named(node, |r, entry| {
        r.subject = Some(format!("profile {}", super::printable(&entry.key)));
        if !razar_bus_schema::ids::is_name(&entry.key) {
            r.error(Code::BadName, entry.at, "no name of a profile", Some(name_hint(&entry.key)));
        }
        let out = profile(r, &entry.value);
        r.subject = None;
        Some(out.unwrap_or_default())
    })
}

fn profile(r: &mut Reader<'_>, node: &Node) -> Option<Profile> {
    let mut f = r.fields(node)?;
    let out = Profile {
        description: f.get(r, "description", Reader::string),
        extends: f.get(r, "extends", Reader::string),
        include: f.or(r, "include", Reader::strings),
        autoload: f.or(r, "autoload", Reader::strings),
        limits: f.or(r, "limits", limits),
        parallel_starts: f.get(r, "parallel_starts", |r, n| r.number(n, 1, PARALLEL_STARTS_MAX)),
        timeout: f.get(r, "timeout", Reader::period),
    };
    f.end(r, &[("components", "include"), ("services", "include"), ("inherits", "extends")]);
    Some(out)
}

fn limits(r: &mut Reader<'_>, node: &Node) -> Option<ProfileLimits> {
    let mut f = r.fields(node)?;
    let out = ProfileLimits {
        memory: f.get(r, "memory", Reader::size),
        cpu: f.get(r, "cpu", Reader::percent),
        threads: f.get(r, "threads", |r, n| r.number(n, 1, component::COUNT_MAX)),
    };
    f.end(r, &[]);
    Some(out)
}
