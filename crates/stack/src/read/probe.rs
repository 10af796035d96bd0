//! Probes, their times and thresholds.

use super::Reader;
use crate::{
    diagnostic::Code,
    file::{Grpc, Heartbeat, Http, Log, Probe, ProbeDefaults, Readiness, Tcp, Timing},
    tree::{Kind, Node},
};

/// Largest threshold: a day of questions each second.
const THRESHOLD_MAX: u32 = 86_400;

/// The ways to ask; a probe has exactly one.
const CHECKS: [&str; 7] = ["http", "tcp", "exec", "grpc", "log", "notify", "heartbeat"];

/// Words of Kubernetes and Compose for ours.
const SYNONYMS: [(&str, &str); 8] = [
    ("httpGet", "http"),
    ("tcpSocket", "tcp"),
    ("test", "exec"),
    ("interval", "period"),
    ("periodSeconds", "period"),
    ("timeoutSeconds", "timeout"),
    ("retries", "failure_threshold"),
    ("start_period", "initial_delay"),
];

/// The fields of [`Timing`], read out of the mapping that holds them.
macro_rules! timing {
    ($fields:ident, $r:ident) => {
        Timing {
            period: $fields.get($r, "period", Reader::period),
            timeout: $fields.get($r, "timeout", Reader::period),
            failure_threshold: $fields.get($r, "failure_threshold", |r, n| r.number(n, 1, THRESHOLD_MAX)),
            success_threshold: $fields.get($r, "success_threshold", |r, n| r.number(n, 1, THRESHOLD_MAX)),
            initial_delay: $fields.get($r, "initial_delay", Reader::duration),
        }
    };
}

pub(super) fn defaults(r: &mut Reader<'_>, node: &Node) -> Option<ProbeDefaults> {
    let mut f = r.fields(node)?;
    let out = ProbeDefaults {
        startup: f.or(r, "startup", timing),
        readiness: f.or(r, "readiness", timing),
        liveness: f.or(r, "liveness", timing),
    };
    f.end(r, &[]);
    Some(out)
}

fn timing(r: &mut Reader<'_>, node: &Node) -> Option<Timing> {
    let mut f = r.fields(node)?;
    let out = timing!(f, r);
    f.end(r, &SYNONYMS);
    Some(out)
}

pub(super) fn readiness(r: &mut Reader<'_>, node: &Node) -> Option<Readiness> {
    match &node.kind {
        Kind::Scalar { text, .. } if text == "none" => Some(Readiness::None),
        Kind::Scalar { .. } => {
            r.wrong_type(node, "a probe", Some("`none`, or `{ http: { port: 8080, path: /health } }`".to_owned()));
            None
        }
        Kind::Map(_) | Kind::List(_) => probe(r, node).map(|p| Readiness::Probe(Box::new(p))),
    }
}

pub(super) fn probe(r: &mut Reader<'_>, node: &Node) -> Option<Probe> {
    let mut f = r.fields(node)?;
    let said: Vec<&str> = CHECKS.into_iter().filter(|check| f.has(check)).collect();
    let out = Probe {
        http: f.get(r, "http", http),
        tcp: f.get(r, "tcp", tcp),
        exec: f.get(r, "exec", exec),
        grpc: f.get(r, "grpc", grpc),
        log: f.get(r, "log", log),
        notify: f.get(r, "notify", notify),
        heartbeat: f.get(r, "heartbeat", heartbeat),
        timing: timing!(f, r),
    };
    f.end(r, &SYNONYMS);
    match said.as_slice() {
        [_] => {}
        [] => r.show(Code::MissingKey, node.at, format!("{} asks nothing", r.here()), Some(format!("one of {}", CHECKS.join(", ")))),
        many => r.show(
            Code::BadValue,
            node.at,
            format!("{} asks in {} ways", r.here(), many.len()),
            Some(format!("one of {}", many.join(", "))),
        ),
    }
    Some(out)
}

fn http(r: &mut Reader<'_>, node: &Node) -> Option<Http> {
    let mut f = r.fields(node)?;
    let out = Http {
        host: f.get(r, "host", Reader::string),
        port: f.must(r, "port", Reader::port),
        path: f.get(r, "path", path),
        headers: f.or(r, "headers", Reader::texts),
    };
    f.end(r, &[("url", "path"), ("httpHeaders", "headers")]);
    Some(out)
}

fn path(r: &mut Reader<'_>, node: &Node) -> Option<String> {
    let text = r.text(node)?;
    let sound = text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic());
    if !sound {
        r.show(Code::BadValue, node.at, "`path` begins with `/` and has no spaces", Some("`/health`".to_owned()));
    }
    sound.then_some(text)
}

fn tcp(r: &mut Reader<'_>, node: &Node) -> Option<Tcp> {
    let mut f = r.fields(node)?;
    let out = Tcp { host: f.get(r, "host", Reader::string), port: f.must(r, "port", Reader::port) };
    f.end(r, &[]);
    Some(out)
}

fn grpc(r: &mut Reader<'_>, node: &Node) -> Option<Grpc> {
    let mut f = r.fields(node)?;
    let out = Grpc {
        host: f.get(r, "host", Reader::string),
        port: f.must(r, "port", Reader::port),
        service: f.get(r, "service", Reader::string),
    };
    f.end(r, &[]);
    Some(out)
}

fn exec(r: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let command = r.strings(node)?;
    if command.first().is_none_or(String::is_empty) {
        r.show(Code::BadValue, node.at, "`exec` names no program", Some("`exec: [pg_isready, -p, \"5433\"]`".to_owned()));
        return None;
    }
    Some(command)
}

fn log(r: &mut Reader<'_>, node: &Node) -> Option<Log> {
    let mut f = r.fields(node)?;
    let pattern = f.must(r, "pattern", |r, node| {
        let pattern = r.text(node)?;
        match regex::Regex::new(&pattern) {
            Ok(_) => Some(pattern),
            Err(error) => {
                let why = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                r.show(Code::BadValue, node.at, format!("`pattern` is no regular expression: {why}"), None);
                None
            }
        }
    });
    f.end(r, &[("regex", "pattern"), ("line", "pattern")]);
    Some(Log { pattern })
}

fn notify(r: &mut Reader<'_>, node: &Node) -> Option<()> {
    if r.flag(node)? {
        return Some(());
    }
    r.show(Code::BadValue, node.at, "`notify` can only be true", Some("leave it out, or name another probe".to_owned()));
    None
}

fn heartbeat(r: &mut Reader<'_>, node: &Node) -> Option<Heartbeat> {
    let mut f = r.fields(node)?;
    let out =
        Heartbeat { interval: f.get(r, "interval", Reader::period), misses: f.get(r, "misses", |r, n| r.number(n, 1, THRESHOLD_MAX)) };
    f.end(r, &[]);
    Some(out)
}
