//! One component.

use std::collections::BTreeMap;

use super::{Reader, probe};
use crate::{
    diagnostic::Code,
    file::{Backoff, Component, Condition, DependsOn, Logs, Placement, Policy, Resources, Restart, Rung, Secret, Stop},
    tree::{Kind, Node},
};

/// Largest `priority`: higher numbers tell nothing more.
const PRIORITY_MAX: u32 = 1000;

/// Most replicas of one component.
const REPLICAS_MAX: u32 = 1000;

/// Largest counts of files, restarts and threads: nobody means more.
pub(super) const COUNT_MAX: u32 = 1_000_000;

/// Words of Compose, Kubernetes and systemd for ours.
const SYNONYMS: [(&str, &str); 20] = [
    ("args", "command"),
    ("cmd", "command"),
    ("entrypoint", "command"),
    ("exec", "command"),
    ("run", "command"),
    ("cwd", "working_dir"),
    ("workdir", "working_dir"),
    ("environment", "env"),
    ("expose", "ports"),
    ("healthcheck", "readiness"),
    ("health_check", "readiness"),
    ("readinessProbe", "readiness"),
    ("livenessProbe", "liveness"),
    ("startupProbe", "startup"),
    ("labels", "metadata"),
    ("after", "depends_on"),
    ("requires", "depends_on"),
    ("needs", "depends_on"),
    ("stop_signal", "stop: { signal: … }"),
    ("stop_grace_period", "stop: { grace: … }"),
];

pub(super) fn component(r: &mut Reader<'_>, node: &Node) -> Option<Component> {
    let mut f = r.fields(node)?;
    let out = Component {
        description: f.get(r, "description", Reader::string),
        chakra: f.must(r, "chakra", Reader::string),
        priority: f.get(r, "priority", |r, n| r.number(n, 0, PRIORITY_MAX)),
        command: f.must(r, "command", command),
        working_dir: f.get(r, "working_dir", Reader::path),
        env: f.or(r, "env", environment),
        secrets: f.or(r, "secrets", secrets),
        ports: f.or(r, "ports", Reader::ports),
        startup: f.get(r, "startup", probe::probe),
        readiness: f.get(r, "readiness", probe::readiness),
        liveness: f.get(r, "liveness", probe::probe),
        stop: f.or(r, "stop", stop),
        required: f.get(r, "required", Reader::flag),
        on_node_loss: f.get(r, "on_node_loss", on_node_loss),
        state: f.or(r, "state", Reader::paths),
        resources: f.get(r, "resources", resources),
        depends_on: f.or(r, "depends_on", depends_on),
        restart: f.or(r, "restart", restart),
        heal: f.get(r, "heal", heal),
        provides: f.or(r, "provides", Reader::strings),
        replicas: f.get(r, "replicas", |r, n| r.number(n, 1, REPLICAS_MAX)),
        node: f.or(r, "node", placement),
        one_shot: f.get(r, "one_shot", Reader::flag),
        metadata: f.or(r, "metadata", Reader::texts),
        logs: f.or(r, "logs", logs),
        slow_probe: f.get(r, "slow_probe", Reader::period),
    };
    f.not_yet(r, "on_demand", "leave it out: it runs from boot to `razar down`, or as `razar start` and `razar stop` say");
    f.not_yet(r, "vram", "leave it out: device memory is not granted yet");
    f.end(r, &SYNONYMS);
    Some(out)
}

pub(super) fn command(r: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let command = r.strings(node)?;
    if command.first().is_none_or(String::is_empty) {
        r.show(Code::BadValue, node.at, "`command` names no program", Some("`command: [redis-server, --port, \"6380\"]`".to_owned()));
        return None;
    }
    Some(command)
}

/// `env` as a mapping; Compose's list of `NAME=value` is understood too.
pub(super) fn environment(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
    let out: BTreeMap<String, String> = if let Kind::List(_) = &node.kind {
        let pairs = r.list(node, |r, item| {
            let text = r.text(item)?;
            let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            if pair.is_none() {
                r.show(Code::BadValue, item.at, "an entry of `env` is NAME=value", Some("`env: { NAME: value }`".to_owned()));
            }
            pair
        })?;
        pairs.into_iter().collect()
    } else {
        r.texts(node)?
    };
    variable_names(r, node, out.keys());
    Some(out)
}

fn variable_names<'n>(r: &mut Reader<'_>, node: &Node, names: impl Iterator<Item = &'n String>) {
    for name in names.filter(|n| n.is_empty() || n.contains(['=', '\0'])) {
        r.show(Code::BadName, node.at, format!("`{}` names no environment variable", super::printable(name)), None);
    }
}

fn secrets(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, Secret>> {
    let out = r.named(node, |r, entry| {
        if matches!(entry.value.kind, Kind::Scalar { .. }) && !entry.value.is_null() {
            let hint = format!("`{}: {{ file: ./secrets/… }}`", super::printable(&entry.key));
            // Not shown: it may be the secret.
            r.error(Code::WrongType, entry.at, "a secret is a file that is read at each start", Some(hint));
            return None;
        }
        let mut f = r.fields(&entry.value)?;
        let out = Secret { file: f.must(r, "file", Reader::path) };
        f.end(r, &[("path", "file")]);
        Some(out)
    })?;
    variable_names(r, node, out.keys());
    Some(out)
}

pub(super) fn stop(r: &mut Reader<'_>, node: &Node) -> Option<Stop> {
    let mut f = r.fields(node)?;
    let out = Stop { signal: f.get(r, "signal", Reader::signal), grace: f.get(r, "grace", Reader::duration) };
    f.end(r, &[("timeout", "grace"), ("period", "grace")]);
    Some(out)
}

fn on_node_loss(r: &mut Reader<'_>, node: &Node) -> Option<()> {
    let text = r.text(node)?;
    match text.as_str() {
        "stay" => return Some(()),
        "move" => {
            r.show(Code::NotYet, node.at, format!("`on_node_loss: move` is not in release {}", super::RELEASE), Some("`stay`".to_owned()))
        }
        _ => r.show(
            Code::BadValue,
            node.at,
            format!("`on_node_loss`: `{}` is not known", super::printable(&text)),
            Some("`stay`".to_owned()),
        ),
    }
    None
}

fn resources(r: &mut Reader<'_>, node: &Node) -> Option<Resources> {
    let mut f = r.fields(node)?;
    let out = Resources {
        memory: f.get(r, "memory", Reader::size),
        cpu: f.get(r, "cpu", Reader::cores),
        open_files: f.get(r, "open_files", |r, n| r.number(n, 1, COUNT_MAX)),
        restart: f.get(r, "restart", Reader::flag),
    };
    f.end(r, &[("mem", "memory"), ("rss", "memory"), ("cpus", "cpu"), ("nofile", "open_files")]);
    Some(out)
}

const CONDITIONS: [(&str, Condition); 6] = [
    ("started", Condition::Started),
    ("ready", Condition::Ready),
    ("completed", Condition::Completed),
    ("service_started", Condition::Started),
    ("service_healthy", Condition::Ready),
    ("service_completed_successfully", Condition::Completed),
];

fn depends_on(r: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, DependsOn>> {
    if let Kind::List(items) = &node.kind {
        let mut out = BTreeMap::new();
        for item in items {
            if let Some(name) = r.text(item) {
                r.below(&name.clone(), item.at, item.at, |_| out.insert(name, DependsOn::default()));
            }
        }
        return Some(out);
    }
    r.named(node, |r, entry| {
        let mut f = r.fields(&entry.value)?;
        let out = DependsOn {
            condition: f.get(r, "condition", |r, n| r.word(n, &CONDITIONS)),
            required: f.get(r, "required", Reader::flag),
            restart: f.get(r, "restart", Reader::flag),
        };
        f.end(r, &[]);
        Some(out)
    })
}

pub(super) fn restart(r: &mut Reader<'_>, node: &Node) -> Option<Restart> {
    const POLICIES: [(&str, Policy); 5] = [
        ("on-failure", Policy::OnFailure),
        ("always", Policy::Always),
        ("never", Policy::Never),
        ("no", Policy::Never),
        ("unless-stopped", Policy::Always),
    ];
    if let Kind::Scalar { .. } = &node.kind {
        // Compose's short form.
        return Some(Restart { policy: r.word(node, &POLICIES), ..Restart::default() });
    }
    let mut f = r.fields(node)?;
    let out = Restart {
        policy: f.get(r, "policy", |r, n| r.word(n, &POLICIES)),
        backoff: f.or(r, "backoff", backoff),
        reset_after: f.get(r, "reset_after", Reader::duration),
        max: f.get(r, "max", |r, n| r.number(n, 0, 1000)),
        within: f.get(r, "within", Reader::period),
    };
    f.end(r, &[("condition", "policy"), ("max_attempts", "max"), ("window", "within"), ("delay", "backoff")]);
    Some(out)
}

fn backoff(r: &mut Reader<'_>, node: &Node) -> Option<Backoff> {
    let mut f = r.fields(node)?;
    let out = Backoff {
        first: f.get(r, "first", Reader::duration),
        base: f.get(r, "base", Reader::duration),
        factor: f.get(r, "factor", |r, n| r.decimal(n, 1.0, 100.0)),
        max: f.get(r, "max", Reader::duration),
        jitter: f.get(r, "jitter", |r, n| r.decimal(n, 0.0, 1.0)),
    };
    f.end(r, &[("initial", "first"), ("min", "base"), ("multiplier", "factor")]);
    Some(out)
}

fn heal(r: &mut Reader<'_>, node: &Node) -> Option<Vec<Rung>> {
    const RUNGS: [(&str, Rung); 4] = [
        ("restart", Rung::Restart),
        ("clear_state", Rung::ClearState),
        ("dependencies", Rung::Dependencies),
        ("chakra_hook", Rung::ChakraHook),
    ];
    let said = r.list(node, |r, item| {
        if matches!(&item.kind, Kind::Scalar { text, .. } if text == "quarantine") {
            r.show(Code::BadValue, item.at, "`quarantine` is always the last rung", Some("leave it out".to_owned()));
            return None;
        }
        r.word(item, &RUNGS)
    })?;
    let mut rungs: Vec<Rung> = Vec::new();
    for rung in said {
        if rungs.contains(&rung) {
            r.show(Code::BadValue, node.at, "a rung stands twice in `heal`", None);
        } else {
            rungs.push(rung);
        }
    }
    Some(rungs)
}

fn placement(r: &mut Reader<'_>, node: &Node) -> Option<Placement> {
    let mut f = r.fields(node)?;
    let out = Placement { labels: f.or(r, "labels", Reader::texts) };
    f.end(r, &[("selector", "labels"), ("nodeSelector", "labels")]);
    Some(out)
}

pub(super) fn logs(r: &mut Reader<'_>, node: &Node) -> Option<Logs> {
    let mut f = r.fields(node)?;
    let out = Logs { max_size: f.get(r, "max_size", Reader::size), keep: f.get(r, "keep", |r, n| r.number(n, 0, 1000)) };
    f.end(r, &[("max_files", "keep"), ("max-size", "max_size")]);
    Some(out)
}
