//! One component in detail: what it is, its probes, limits, dependencies, and what it uses.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    ids::Incarnation,
    time::{duration_or, std_duration, system_time},
    v1::{self, probe::Check},
};

use super::{
    event::exit_and_error,
    status::{name_of, state_word},
    text::{bytes, escape},
    time::{age, exact, span},
};

/// The lines of `status NAME`. `known` is everybody, for the states of the dependencies; `why` is the node's answer, if there is one.
pub(crate) fn detail(
    c: &v1::ObservedComponent,
    why: Option<&v1::WhyReply>,
    known: &[v1::ObservedComponent],
    now: SystemTime,
) -> Vec<String> {
    let spec = why.and_then(|w| w.spec.as_ref());
    let mut lines = vec![headline(c, now)];
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<11} {value}"));
        }
    };
    field("why", reason(c, why));
    field("process", process(c, now));
    if let Some(spec) = spec {
        field("command", spec.command.iter().map(|w| super::text::shell(&escape(w))).collect::<Vec<_>>().join(" "));
        let roles = [("startup", &spec.startup), ("readiness", &spec.readiness), ("liveness", &spec.liveness)];
        for (role, probe) in roles {
            field(role, probe.as_ref().map(|p| probe_words(p, role == "readiness")).unwrap_or_default());
        }
        if spec.readiness_none {
            field("readiness", "none: ready once spawned".to_owned());
        } else if spec.one_shot {
            field("readiness", "one-shot: its success".to_owned());
        }
        field("restart", restart(spec));
    }
    let usage = why.and_then(|w| w.usage.as_ref());
    field("limits", limits(spec.and_then(|s| s.resources.as_ref()), usage));
    field("needs", needs(c, spec, known));
    field("needed by", needed_by(c, known));
    let last_exit = c.last_exit.as_ref().map(|e| exit_and_error(Some(e), &c.last_error)).unwrap_or_default();
    field("last exit", last_exit);
    field("provides", c.desired.as_ref().map(|d| escape(&d.provides.join(" "))).unwrap_or_default());
    field("endpoint", c.desired.as_ref().map(|d| escape(&d.endpoint)).unwrap_or_default());
    lines
}

fn headline(c: &v1::ObservedComponent, now: SystemTime) -> String {
    let incarnation = c.incarnation.as_ref().filter(|i| i.start > 0).map(|i| format!(" {}", Incarnation::from(i))).unwrap_or_default();
    let since = c.since.as_ref().map(|at| format!(" for {}", ago(at, now))).unwrap_or_default();
    let node = if c.node.is_empty() { "no node".to_owned() } else { format!("node {}", escape(&c.node)) };
    let rank = c.desired.as_ref().map(|d| format!(", rank {}", d.rank)).unwrap_or_default();
    let need = c.desired.as_ref().map(|d| if d.required { ", required" } else { ", optional" }).unwrap_or_default();
    format!("{}{incarnation} {}{since}; {}, {node}{rank}{need}", name_of(c), state_word(c.state), escape(&c.chakra))
}

fn ago(at: &prost_types::Timestamp, now: SystemTime) -> String {
    age(now.duration_since(system_time(at)).unwrap_or_default())
}

fn reason(c: &v1::ObservedComponent, why: Option<&v1::WhyReply>) -> String {
    let verdict = why.map(|w| w.verdict.trim()).unwrap_or_default();
    let reason = c.reason.as_ref().map(|r| r.text.trim()).unwrap_or_default();
    escape(if verdict.is_empty() { reason } else { verdict })
}

fn process(c: &v1::ObservedComponent, now: SystemTime) -> String {
    let Some(p) = &c.process else { return "none".to_owned() };
    let took = c.last_took.as_ref().map(|d| format!(", ready in {}", span(std_duration(d)))).unwrap_or_default();
    let incident = c.incident_since.as_ref().map(|at| format!(", incident open for {}", ago(at, now))).unwrap_or_default();
    format!("pid {}, start {} of its generation{took}{incident}", p.pid, c.starts)
}

/// `http 127.0.0.1:8200/health each 1s, 1s to answer, 3 failures`
pub(crate) fn probe_words(probe: &v1::Probe, readiness: bool) -> String {
    // Defaults as the contract says.
    const PERIOD: Duration = Duration::from_secs(1);
    const READINESS: Duration = Duration::from_secs(5);
    let (by_default, timeout) = if readiness { (READINESS, READINESS) } else { (PERIOD, PERIOD) };
    let host = |host: &str| if host.is_empty() { "127.0.0.1".to_owned() } else { escape(host) };
    let what = match &probe.check {
        Some(Check::Http(h)) => {
            format!("http {}:{}{}", host(&h.host), h.port, if h.path.is_empty() { "/".to_owned() } else { escape(&h.path) })
        }
        Some(Check::Tcp(t)) => format!("tcp {}:{}", host(&t.host), t.port),
        Some(Check::Exec(e)) => format!("exec {}", escape(&e.command.join(" "))),
        Some(Check::Grpc(g)) => format!("grpc {}:{} {}", host(&g.host), g.port, escape(&g.service)).trim_end().to_owned(),
        Some(Check::Log(l)) => return format!("a line that matches {}", escape(&l.pattern)),
        Some(Check::Notify(_)) => return "sd_notify".to_owned(),
        Some(Check::Heartbeat(h)) => {
            return format!("beats each {}, {} missed", exact(duration_or(h.interval.as_ref(), PERIOD)), h.misses.max(1));
        }
        None => return "unknown, of a newer version".to_owned(),
    };
    let period = exact(duration_or(probe.period.as_ref(), by_default));
    let timeout = exact(duration_or(probe.timeout.as_ref(), timeout));
    let failures = if probe.failure_threshold == 0 { 3 } else { probe.failure_threshold };
    format!("{what} each {period}, {timeout} to answer, {}", super::text::count(failures as usize, "failure"))
}

fn restart(spec: &v1::ComponentSpec) -> String {
    let Some(r) = &spec.restart else { return String::new() };
    let policy = match r.policy() {
        v1::RestartPolicy::Never => return "never".to_owned(),
        v1::RestartPolicy::Always => "always",
        v1::RestartPolicy::OnFailure | v1::RestartPolicy::Unspecified => "on failure",
    };
    let within = exact(duration_or(r.budget_within.as_ref(), Duration::from_secs(90)));
    format!("{policy}, {} in {within}", r.budget_max)
}

fn limits(limits: Option<&v1::ResourceLimits>, usage: Option<&v1::ResourceUsage>) -> String {
    let cores = |millis: u32| format!("{:.2}", f64::from(millis) / 1000.0);
    let of = |name: &str, used: Option<String>, limit: Option<String>| match (used, limit) {
        (Some(used), Some(limit)) => Some(format!("{name} {used} of {limit}")),
        (Some(used), None) => Some(format!("{name} {used}")),
        (None, Some(limit)) => Some(format!("{name} at most {limit}")),
        (None, None) => None,
    };
    let limit = |get: fn(&v1::ResourceLimits) -> u64| limits.map(get).filter(|n| *n > 0);
    let millis = limits.map(|l| l.cpu_millis).filter(|n| *n > 0);
    let parts = [
        of("memory", usage.map(|u| bytes(u.memory_bytes)), limit(|l| l.memory_bytes).map(bytes)),
        of("cpu", usage.map(|u| cores(u.cpu_millis)), millis.map(cores)),
        of("files", usage.map(|u| u.open_files.to_string()), limit(|l| u64::from(l.open_files)).map(|n| n.to_string())),
        usage.map(|u| super::text::count(u.threads as usize, "thread")),
        usage.map(|u| if u.processes == 1 { "1 process".to_owned() } else { format!("{} processes", u.processes) }),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `postgres ready (ready), migrate completed (completed)`: what is needed, and what is.
fn needs(c: &v1::ObservedComponent, spec: Option<&v1::ComponentSpec>, known: &[v1::ObservedComponent]) -> String {
    let state = |name: &str| {
        let of_name = |k: &&v1::ObservedComponent| k.instance.as_ref().is_some_and(|i| i.component == name);
        known.iter().find(of_name).map_or("unknown", |k| state_word(k.state))
    };
    let condition = |d: &v1::Dependency| match d.condition() {
        v1::DependencyCondition::Started => "started",
        v1::DependencyCondition::Completed => "completed",
        v1::DependencyCondition::Ready | v1::DependencyCondition::Unspecified => "ready",
    };
    let told: Vec<String> = match spec {
        Some(spec) => {
            let one = |d: &v1::Dependency| {
                let optional = if d.required { "" } else { ", optional" };
                format!("{} {} (is {}{optional})", escape(&d.component), condition(d), state(&d.component))
            };
            spec.depends_on.iter().map(one).collect()
        }
        None => {
            let names = c.desired.as_ref().map(|d| d.depends_on.as_slice()).unwrap_or_default();
            names.iter().map(|n| format!("{} (is {})", escape(n), state(n))).collect()
        }
    };
    told.join(", ")
}

fn needed_by(c: &v1::ObservedComponent, known: &[v1::ObservedComponent]) -> String {
    let Some(me) = &c.instance else { return String::new() };
    let needs_me = |k: &&v1::ObservedComponent| k.desired.as_ref().is_some_and(|d| d.depends_on.contains(&me.component));
    known.iter().filter(needs_me).map(name_of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use razar_bus_schema::time::{duration, timestamp};

    use super::*;

    #[test]
    fn the_detail_says_probes_limits_and_dependencies() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let api = v1::ObservedComponent {
            instance: Some(v1::InstanceId { component: "api".to_owned(), ordinal: 0 }),
            chakra: "throat".to_owned(),
            node: "a".to_owned(),
            incarnation: Some(v1::Incarnation { generation: 1, start: 2 }),
            state: v1::InstanceState::Ready.into(),
            since: Some(timestamp(now - Duration::from_secs(42))),
            process: Some(v1::ProcessIdentity { pid: 4711, ..Default::default() }),
            starts: 2,
            last_took: Some(duration(Duration::from_millis(290))),
            desired: Some(v1::DesiredChanged { rank: 9, required: true, ..Default::default() }),
            ..Default::default()
        };
        let why = v1::WhyReply {
            verdict: "runs by rule 8".to_owned(),
            spec: Some(v1::ComponentSpec {
                command: vec!["/bin/api".to_owned(), "--port".to_owned()],
                readiness: Some(v1::Probe {
                    check: Some(Check::Http(v1::HttpCheck { port: 8200, path: "/health".to_owned(), ..Default::default() })),
                    ..Default::default()
                }),
                depends_on: vec![v1::Dependency { component: "db".to_owned(), required: true, ..Default::default() }],
                resources: Some(v1::ResourceLimits { memory_bytes: 1 << 30, ..Default::default() }),
                ..Default::default()
            }),
            usage: Some(v1::ResourceUsage { memory_bytes: 12 << 20, cpu_millis: 30, open_files: 9, threads: 4, processes: 1 }),
            ..Default::default()
        };
        assert_eq!(
            detail(&api, Some(&why), &[], now),
            [
                "api 1.2 ready for 42s; throat, node a, rank 9, required",
                "  why         runs by rule 8",
                "  process     pid 4711, start 2 of its generation, ready in 290ms",
                "  command     /bin/api --port",
                "  readiness   http 127.0.0.1:8200/health each 5s, 5s to answer, 3 failures",
                "  limits      memory 12MiB of 1GiB, cpu 0.03, files 9, 4 threads, 1 process",
                "  needs       db ready (is unknown)",
            ]
        );
    }
}
