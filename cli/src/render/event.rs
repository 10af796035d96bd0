//! One event in one line: what happened in a few words, with the last error line where there is one. Times and names are the caller's.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time::std_duration,
    v1::{self, event::Fact},
};

use super::{
    text::{bytes, count, escape, quote},
    time::{exact, span},
};

/// How a process ended: `exit 1`, `signal 9`, `signal 9, out of memory`; what nobody told is called unknown.
pub(crate) fn exit_status(status: Option<&v1::ExitStatus>) -> String {
    let Some(status) = status else { return "exit unknown".to_owned() };
    let how = match (status.code, status.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => format!("exit {code}"),
        (None, None) => "exit unknown".to_owned(),
    };
    if status.oom == Some(true) { format!("{how}, out of memory") } else { how }
}

/// How a process ended and its last line: `exit 1: "503 from model index"`.
pub(crate) fn exit_and_error(status: Option<&v1::ExitStatus>, last_error: &str) -> String {
    let how = exit_status(status);
    if last_error.trim().is_empty() { how } else { format!("{how}: {}", quote(last_error)) }
}

/// Incarnation as people read it (`1.3`), `-` where none is concerned.
pub(crate) fn incarnation(event: &v1::Event) -> String {
    event.incarnation.as_ref().filter(|i| i.generation > 0).map_or_else(|| "-".to_owned(), |i| Incarnation::from(i).to_string())
}

/// Who the event is about: `memory-store`, `api.1`; a chakra's fact its chakra, the mesh's its source.
pub(crate) fn subject_name(event: &v1::Event) -> String {
    if let Some(id) = &event.instance {
        return Instance::new(escape(&id.component), id.ordinal).to_string();
    }
    if !event.chakra.is_empty() && event.chakra != razar_bus_schema::subject::MESH_CHAKRA {
        return escape(&event.chakra);
    }
    event.source.as_ref().map_or_else(|| "mesh".to_owned(), |s| escape(if s.kind == "node" { &s.id } else { &s.kind }))
}

/// An incident's printed id (`memory-store@1.1`, or the cause of one of the mesh itself).
pub(crate) fn incident_name(id: &v1::IncidentId) -> Option<String> {
    if !id.mesh_cause.is_empty() {
        return Some(escape(&id.mesh_cause));
    }
    Incident::try_from(id).ok().map(|i| i.to_string())
}

/// `redis (is failed, must be ready)`, for each thing that blocks.
pub(crate) fn blockers(by: &[v1::Blocker]) -> String {
    let names: Vec<_> = by.iter().map(|b| escape(&b.component)).collect();
    names.join(", ")
}

fn blockers_long(by: &[v1::Blocker]) -> String {
    let one = |b: &v1::Blocker| format!("{} is {}, must be {}", escape(&b.component), word(&b.is), word(&b.needs));
    by.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn word(text: &str) -> String {
    if text.is_empty() { "unknown".to_owned() } else { escape(text).replace('_', " ") }
}

fn of(d: Option<&prost_types::Duration>) -> Duration {
    d.map(std_duration).unwrap_or_default()
}

fn list(names: &[String]) -> String {
    names.iter().map(|n| escape(n)).collect::<Vec<_>>().join(" ")
}

/// What happened, in a few words; empty where the kind says all. The Reason's text where this version knows no more.
pub(crate) fn summary(event: &v1::Event) -> String {
    let reason = || event.reason.as_ref().map(|r| escape(&r.text)).unwrap_or_default();
    let told = match event.fact.as_ref() {
        Some(fact) => process_fact(fact).or_else(|| healing_fact(fact)).or_else(|| mesh_fact(event, fact)).unwrap_or_default(),
        None => "of a newer version".to_owned(),
    };
    match &event.fact {
        _ if told.is_empty() => reason(),
        // Here the Reason says what the fact does not: the cause.
        Some(Fact::Recovered(_)) => with(told, &reason()),
        Some(Fact::OperatorCommand(c)) if c.result == "refused" || c.result == "failed" => with(told, &reason()),
        _ => told,
    }
}

fn with(told: String, reason: &str) -> String {
    if reason.is_empty() { told } else { format!("{told}: {reason}") }
}

/// Facts about a component's process.
fn process_fact(fact: &Fact) -> Option<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other facts are told by the next function; none is left out")]
    Some(match fact {
        Fact::ComponentStarted(s) => started(s),
        Fact::ComponentReady(r) => ready(r),
        Fact::ComponentUnready(u) => escape(&u.probe),
        Fact::ComponentExited(e) => {
            let away = if e.while_away { "; its agent was away" } else { "" };
            let stragglers = if e.stragglers_killed > 0 { format!("; {} left and killed", e.stragglers_killed) } else { String::new() };
            format!("{}{away}{stragglers}", exit_and_error(e.status.as_ref(), &e.last_error))
        }
        Fact::ComponentUnkillable(u) => {
            format!("outlives SIGKILL: pid {}", u.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
        }
        Fact::ComponentUnresponsive(u) => u.evidence.as_ref().map(evidence).unwrap_or_default(),
        Fact::ComponentDegraded(d) => degraded(d),
        Fact::ComponentBlocked(b) => blockers_long(&b.by),
        Fact::ComponentFailed(f) => failed(f),
        Fact::ComponentStopped(s) => stopped(s),
        Fact::LimitExceeded(l) => limit(&l.resource, l.used, l.limit),
        Fact::LimitRestored(l) => limit(&l.resource, l.used, l.limit),
        _ => return None,
    })
}

fn started(s: &v1::ComponentStarted) -> String {
    let pid = s.process.as_ref().map_or_else(String::new, |p| format!("pid {}", p.pid));
    if s.adopted {
        return format!("adopted, {pid}");
    }
    let restart = restart(s);
    if restart.is_empty() { pid } else { format!("{pid}, {restart}") }
}

/// `restarted at once, 1 of 3`, `restarted after 1.04s, 2 of 3`; empty for a first start.
pub(crate) fn restart(s: &v1::ComponentStarted) -> String {
    if s.restart == 0 {
        return String::new();
    }
    let delay = of(s.delay.as_ref());
    let when = if delay < Duration::from_millis(1) { "at once".to_owned() } else { format!("after {}", span(delay)) };
    format!("restarted {when}, {} of {}", s.restart, s.restart_max)
}

fn ready(r: &v1::ComponentReady) -> String {
    let what = if r.completed { "completed " } else { "" };
    let again = if r.again { "again, " } else { "" };
    let took = format!("{again}{what}{}", span(of(r.took.as_ref())));
    if r.probe.is_empty() { took } else { format!("{took}, {}", escape(&r.probe)) }
}

/// Evidence of a hang: `stopped, no CPU used; silent for 1.9s`; where no window was taken, what the probe said: `never ready: tcp refused`.
pub(crate) fn evidence(e: &v1::HangEvidence) -> String {
    if e.window() == v1::HangWindow::Unspecified && e.windows == 0 && !e.probe.is_empty() {
        let silent = of(e.silent_for.as_ref());
        return if silent.is_zero() {
            format!("never ready: {}", escape(&e.probe))
        } else {
            format!("{}; silent for {}", escape(&e.probe), span(silent))
        };
    }
    let window = match e.window() {
        v1::HangWindow::Unspecified => "unknown",
        v1::HangWindow::Void => "node late",
        v1::HangWindow::Traced => "traced",
        v1::HangWindow::Stopped => "stopped",
        v1::HangWindow::Starved => "starved",
        v1::HangWindow::Disk => "waits for the disk",
        v1::HangWindow::Asleep => "asleep",
        v1::HangWindow::Busy => "busy",
    };
    let run = of(e.run.as_ref());
    let cpu = if run.is_zero() { "no CPU used".to_owned() } else { format!("{} of CPU used", span(run)) };
    let windows = if e.windows > 1 { format!(" {} times", e.windows) } else { String::new() };
    let silent = of(e.silent_for.as_ref());
    let silent = if silent.is_zero() { String::new() } else { format!("; silent for {}", span(silent)) };
    format!("{window}{windows}, {cpu}{silent}")
}

fn degraded(d: &v1::ComponentDegraded) -> String {
    let kind = match d.kind() {
        v1::DegradedKind::Unspecified => "degraded",
        v1::DegradedKind::Slow => "slow",
        v1::DegradedKind::Starved => "starved",
        v1::DegradedKind::Traced => "traced",
    };
    let kind = if d.passed { format!("no longer {kind}") } else { kind.to_owned() };
    if d.detail.is_empty() { kind } else { format!("{kind}: {}", escape(&d.detail)) }
}

fn failed(f: &v1::ComponentFailed) -> String {
    let why = match f.cause.as_str() {
        "" | "budget_spent" => format!("{} in {} spent", count(f.restarts as usize, "restart"), exact(of(f.within.as_ref()))),
        "policy_never" => "its policy is never to restart".to_owned(),
        "start_failed" => "could not be started".to_owned(),
        "never_ready" => "never became ready".to_owned(),
        other => word(other),
    };
    format!("{why}; {}{}", exit_and_error(f.status.as_ref(), &f.last_error), known(f.issue.as_ref()))
}

/// What the error registry knows of an error, behind a sentence: what is guessed from its words alone is left to quarantine.
fn known(issue: Option<&v1::Issue>) -> String {
    let Some(issue) = issue.filter(|issue| !issue.known.is_empty()) else { return String::new() };
    let from = if issue.rung.is_empty() { String::new() } else { format!("; the ladder begins with {}", escape(&issue.rung)) };
    format!("; known as {}: {}{from}", escape(&issue.known), escape(&issue.suggested_fix))
}

/// `chakra hook /srv/heal.sh ok after 1.20s: "3 tasks flushed"`.
fn hook(h: &v1::HookRan) -> String {
    let last = h.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let said = if last.is_empty() { String::new() } else { format!(": {}", quote(last)) };
    let left =
        if h.stragglers_killed == 0 { String::new() } else { format!(", {} ended", count(h.stragglers_killed as usize, "straggler")) };
    let how =
        h.status.as_ref().filter(|_| h.outcome == "failed").map_or_else(String::new, |s| format!(", {}", exit_and_error(Some(s), "")));
    format!("{} {} {} after {}{how}{left}{said}", word(&h.hook), escape(&h.program), word(&h.outcome), span(of(h.took.as_ref())))
}

fn stopped(s: &v1::ComponentStopped) -> String {
    let took = of(s.took.as_ref());
    let why = if s.why.is_empty() || s.why == "desired" { String::new() } else { format!("{}, ", word(&s.why)) };
    if s.killed { format!("{why}killed after {}: it ignored the first signal", span(took)) } else { format!("{why}in {}", span(took)) }
}

/// `memory 600 MiB of 512 MiB`.
pub(crate) fn limit(resource: &str, used: u64, limit: u64) -> String {
    match resource {
        "memory" => format!("memory {} of {}", bytes(used), bytes(limit)),
        "cpu" => format!("cpu {} of {} cores", used as f64 / 1000.0, limit as f64 / 1000.0),
        other => format!("{} {used} of {limit}", word(other)),
    }
}

/// Facts about incidents, the ladder and quarantine.
fn healing_fact(fact: &Fact) -> Option<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other facts are told by the next function; none is left out")]
    Some(match fact {
        Fact::ChakraDown(c) => format!("missing {} for {}", list(&c.missing), span(of(c.delay.as_ref()))),
        Fact::ChakraRecovered(c) => format!("after {}", span(of(c.took.as_ref()))),
        Fact::Recovered(r) => {
            let starts = if r.starts > 1 { format!(", {} starts", r.starts) } else { String::new() };
            format!("{} {}{starts}", span(of(r.took.as_ref())), escape(&r.rung))
        }
        Fact::RecoveryStarted(r) => format!("{}{}", list(&r.rungs), known(r.issue.as_ref())),
        Fact::HookRan(h) => hook(h),
        Fact::IncidentWithdrawn(w) => word(&w.why),
        Fact::OrderVoid(v) => format!("{}: {}", escape(&v.key), word(&v.why)),
        Fact::RungGranted(r) => format!("{}, try {}", escape(&r.rung), r.attempt),
        Fact::RungTried(r) => {
            let next = if r.next.is_empty() { String::new() } else { format!("; next {}", escape(&r.next)) };
            format!("{} {}{next}", escape(&r.rung), word(&r.outcome))
        }
        Fact::BrakeEngaged(b) => format!("{} failed roots of {}", b.failed_roots, b.counted),
        Fact::BrakeReleased(b) => format!("after {}", span(of(b.took.as_ref()))),
        Fact::RecoveryFailed(r) => {
            let error = if r.last_error.is_empty() { String::new() } else { format!(": {}", quote(&r.last_error)) };
            format!("{}{error}{}", count(r.attempts as usize, "attempt"), known(r.issue.as_ref()))
        }
        Fact::Quarantined(q) => {
            let long = q.duration.as_ref().map_or_else(|| "until released".to_owned(), |d| format!("for {}", exact(std_duration(d))));
            let fix = if q.suggested_fix.is_empty() { String::new() } else { format!("; fix: {}", escape(&q.suggested_fix)) };
            let known = if q.known.is_empty() { String::new() } else { format!(", known as {}", escape(&q.known)) };
            format!("{long}, {}{known}{fix}", word(&q.issue_type))
        }
        Fact::ProbationStarted(p) => {
            let fix = if p.suggested_fix.is_empty() { String::new() } else { format!("; fix: {}", escape(&p.suggested_fix)) };
            format!("may start on trial, {}, {}{fix}", word(&p.issue_type), count(p.attempts as usize, "attempt"))
        }
        Fact::Released(r) => {
            if r.note.is_empty() {
                word(&r.mode)
            } else {
                format!("{}: {}", word(&r.mode), quote(&r.note))
            }
        }
        Fact::Escalated(e) => format!("{} {}", escape(&e.severity), escape(&e.about)),
        _ => return None,
    })
}

/// Facts about nodes, agents, missions and what is only planned for later agents.
fn mesh_fact(event: &v1::Event, fact: &Fact) -> Option<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "facts of agents that are not built yet are shown by their Reason")]
    Some(match fact {
        Fact::NodeJoined(n) => format!("{}, {}, {}", escape(&n.version), count(n.cpus as usize, "cpu"), bytes(n.memory_bytes)),
        Fact::NodeInventory(n) => count(n.items.len(), "instance"),
        Fact::NodeLost(n) => format!("node {} silent for {}", lost_node(event), span(of(n.silent_for.as_ref()))),
        Fact::NodeReturned(n) => format!("node {} after {}", lost_node(event), span(of(n.away.as_ref()))),
        Fact::AgentDown(a) if a.evidence.iter().any(|e| e == "loop_stands") => {
            format!("{} stands, last turned before {}", escape(&a.id), span(of(a.silent_for.as_ref())))
        }
        Fact::AgentDown(a) => format!("{} silent for {}", escape(&a.id), span(of(a.silent_for.as_ref()))),
        Fact::AgentReturned(a) => format!("{} after {}", escape(&a.id), span(of(a.away.as_ref()))),
        Fact::AgentStarted(a) => format!("{} {}", escape(&a.id), escape(&a.version)),
        Fact::ProfileSwitched(p) => {
            format!("{} to {}: {} to start, {} to stop", profile(&p.from), profile(&p.to), p.started.len(), p.stopped.len())
        }
        Fact::MissionStarted(m) => format!("{}: {} to start, {} to stop", escape(&m.stack), m.to_start.len(), m.to_stop.len()),
        Fact::MissionCompleted(m) => mission(m),
        Fact::OutOfSync(o) => list(&o.chakras),
        Fact::OperatorCommand(c) => format!("{} {} {} by {}", word(&c.verb), escape(&c.target), word(&c.result), escape(&c.issuer)),
        Fact::DesiredChanged(d) => format!("{} on {}, generation {}, rank {}", word(&d.mode), escape(&d.node), d.generation, d.rank),
        Fact::DeadLettered(d) => format!("{}: {}", escape(&d.subject), escape(&d.why)),
        Fact::ComponentLoading(l) if l.queue_position > 0 => format!("place {} in the queue", l.queue_position),
        Fact::ComponentLoaded(l) => span(of(l.took.as_ref())),
        Fact::ComponentUnloaded(u) => word(&u.why),
        _ => return None,
    })
}

/// Node that a verdict is on.
fn lost_node(event: &v1::Event) -> String {
    razar_bus_schema::presence::node_of(event).map_or_else(|| "-".to_owned(), escape)
}

fn profile(name: &str) -> String {
    if name.is_empty() { "every component".to_owned() } else { escape(name) }
}

fn mission(m: &v1::MissionCompleted) -> String {
    let mut parts = vec![format!("{} ready", m.ready.len())];
    for (names, what) in [(&m.failed, "failed"), (&m.blocked, "blocked"), (&m.quarantined, "quarantined")] {
        if !names.is_empty() {
            parts.push(format!("{what} {}", list(names)));
        }
    }
    format!("{} in {}: {}", word(&m.outcome), span(of(m.took.as_ref())), parts.join(", "))
}

/// As [`news`], where the caller knows how the incident began: `redis recovered 52ms local: signal 9`.
pub(crate) fn recovery_news(event: &v1::Event, cause: &str) -> Option<String> {
    let Some(Fact::Recovered(r)) = &event.fact else { return None };
    let starts = if r.starts > 1 { format!(", {} starts", r.starts) } else { String::new() };
    Some(format!("{} recovered {} {}{starts}: {cause}", subject_name(event), span(of(r.took.as_ref())), word(&r.rung)))
}

/// One line for `up` once the stack runs: `redis recovered 52ms local: signal 9`. `None` for what needs nobody's eye.
pub(crate) fn news(event: &v1::Event) -> Option<String> {
    // Who gives a verdict on a node or an agent is not whom it is about.
    let by_watchdog = matches!(event.fact, Some(Fact::NodeLost(_) | Fact::NodeReturned(_) | Fact::AgentDown(_) | Fact::AgentReturned(_)));
    let name = if by_watchdog { String::new() } else { format!("{} ", subject_name(event)) };
    let what = summary(event);
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not news is left to `events`")]
    let verb = match event.fact.as_ref()? {
        Fact::Recovered(_) => "recovered",
        Fact::ComponentReady(_) => "ready",
        Fact::ComponentUnready(_) => "unready",
        Fact::ComponentExited(_) => "exited",
        Fact::ComponentUnkillable(_) => "unkillable",
        Fact::ComponentUnresponsive(_) => "unresponsive",
        Fact::ComponentDegraded(d) if d.passed => "well again",
        Fact::ComponentDegraded(_) => "degraded",
        Fact::ComponentBlocked(_) => "blocked",
        Fact::ComponentFailed(_) => "failed",
        Fact::ComponentStopped(_) => "stopped",
        Fact::LimitExceeded(_) => "over its limit",
        Fact::ChakraDown(_) => "down",
        Fact::ChakraRecovered(_) => "recovered",
        Fact::Quarantined(_) => "quarantined",
        Fact::ProbationStarted(_) => "on probation",
        Fact::Released(_) => "released",
        Fact::LimitRestored(_) => "within its limit",
        Fact::NodeLost(_) => "lost",
        Fact::NodeReturned(_) => "returned",
        Fact::AgentDown(_) => "agent down",
        Fact::AgentReturned(_) => "agent returned",
        Fact::ProfileSwitched(_) => "profile switched",
        Fact::MissionStarted(_) => "mission started",
        Fact::MissionCompleted(_) => "mission",
        Fact::Escalated(_) => "escalated",
        Fact::HookRan(_) => "hook",
        Fact::RungTried(_) => "rung",
        _ => return None,
    };
    Some(if what.is_empty() { format!("{name}{verb}") } else { format!("{name}{verb} {what}") })
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::event::Kind;

    use super::*;

    fn event(fact: Fact) -> v1::Event {
        v1::Event {
            kind: fact.kind().to_owned(),
            chakra: "heart".to_owned(),
            instance: Some(v1::InstanceId { component: "redis".to_owned(), ordinal: 0 }),
            incarnation: Some(v1::Incarnation { generation: 1, start: 3 }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    fn wire(ms: u64) -> Option<prost_types::Duration> {
        Some(razar_bus_schema::time::duration(Duration::from_millis(ms)))
    }

    #[test]
    fn a_degradation_and_its_end_are_news() {
        let degraded = |detail: &str, passed| {
            let kind = v1::DegradedKind::Slow.into();
            event(Fact::ComponentDegraded(v1::ComponentDegraded { kind, detail: detail.to_owned(), passed }))
        };
        assert_eq!(news(&degraded("a probe took 700ms", false)).as_deref(), Some("redis degraded slow: a probe took 700ms"));
        assert_eq!(news(&degraded("a probe took 4ms", true)).as_deref(), Some("redis well again no longer slow: a probe took 4ms"));
    }

    #[test]
    fn who_never_became_ready_is_told_by_its_probe() {
        let never = v1::HangEvidence { probe: "connection refused".to_owned(), ..Default::default() };
        assert_eq!(evidence(&never), "never ready: connection refused");
        let silent = v1::HangEvidence { probe: "3 beats missed".to_owned(), silent_for: wire(3_000), ..Default::default() };
        assert_eq!(evidence(&silent), "3 beats missed; silent for 3.00s");
    }

    #[test]
    fn what_is_known_and_what_hooks_did_is_said() {
        let code = |code| Some(v1::ExitStatus { code: Some(code), ..Default::default() });
        let cases = [
            (
                Fact::RecoveryFailed(v1::RecoveryFailed {
                    attempts: 1,
                    last_error: "No module named 'torch'".to_owned(),
                    issue: Some(v1::Issue {
                        known: "python-module-missing".to_owned(),
                        suggested_fix: "install torch".to_owned(),
                        rung: "quarantine".to_owned(),
                        ..Default::default()
                    }),
                }),
                r#"1 attempt: "No module named 'torch'"; known as python-module-missing: install torch; the ladder begins with quarantine"#,
            ),
            (
                Fact::HookRan(v1::HookRan {
                    hook: "chakra".to_owned(),
                    outcome: "failed".to_owned(),
                    status: code(3),
                    took: wire(1_200),
                    output: "begun\nno route\n".to_owned(),
                    stragglers_killed: 2,
                    program: "/srv/heal.sh".to_owned(),
                    ..Default::default()
                }),
                r#"chakra /srv/heal.sh failed after 1.20s, exit 3, 2 stragglers ended: "no route""#,
            ),
        ];
        for (fact, told) in cases {
            assert_eq!(summary(&event(fact)), told);
        }
    }

    #[test]
    fn facts_say_what_happened() {
        let code = |code| Some(v1::ExitStatus { code: Some(code), ..Default::default() });
        let cases = [
            (
                Fact::ComponentExited(v1::ComponentExited {
                    status: code(1),
                    last_error: "503 from\x1b[2J index".to_owned(),
                    ..Default::default()
                }),
                r#"exit 1: "503 from\u{1b}[2J index""#,
            ),
            (Fact::ComponentExited(v1::ComponentExited::default()), "exit unknown"),
            (
                Fact::ComponentStarted(v1::ComponentStarted {
                    process: Some(v1::ProcessIdentity { pid: 7, ..Default::default() }),
                    restart: 2,
                    restart_max: 3,
                    delay: wire(1040),
                    ..Default::default()
                }),
                "pid 7, restarted after 1.04s, 2 of 3",
            ),
            (
                Fact::ComponentReady(v1::ComponentReady { took: wire(702), probe: "http 200 in 4ms".to_owned(), ..Default::default() }),
                "702ms, http 200 in 4ms",
            ),
            (
                Fact::ComponentUnresponsive(v1::ComponentUnresponsive {
                    evidence: Some(v1::HangEvidence {
                        window: v1::HangWindow::Stopped.into(),
                        windows: 1,
                        silent_for: wire(1900),
                        ..Default::default()
                    }),
                }),
                "stopped, no CPU used; silent for 1.90s",
            ),
            (
                Fact::ComponentFailed(v1::ComponentFailed {
                    restarts: 3,
                    within: wire(90_000),
                    status: code(1),
                    last_error: "No module named 'torch'".to_owned(),
                    cause: "budget_spent".to_owned(),
                    issue: None,
                }),
                r#"3 restarts in 90s spent; exit 1: "No module named 'torch'""#,
            ),
            (
                Fact::ComponentBlocked(v1::ComponentBlocked {
                    by: vec![v1::Blocker { component: "db".to_owned(), needs: "ready".to_owned(), is: "failed".to_owned() }],
                }),
                "db is failed, must be ready",
            ),
            (
                Fact::ComponentStopped(v1::ComponentStopped { took: wire(10_000), killed: true, ..Default::default() }),
                "killed after 10.0s: it ignored the first signal",
            ),
        ];
        for (fact, told) in cases {
            assert_eq!(summary(&event(fact)), told);
        }
    }

    #[test]
    fn a_fact_of_a_newer_version_is_told_by_its_reason_or_called_so() {
        let mut newer = event(Fact::GreatSpiral(v1::GreatSpiral {}));
        newer.reason = Some(v1::Reason { code: "x".to_owned(), text: "all in sync".to_owned() });
        assert_eq!(summary(&newer), "all in sync");
        let mut lost = event(Fact::NodeLost(v1::NodeLost { silent_for: wire(3020), ..Default::default() }));
        lost.source = Some(v1::Actor { kind: "watchdog".to_owned(), id: "w".to_owned() });
        lost.incident = Some(v1::IncidentId { mesh_cause: "node_lost:b".to_owned(), ..Default::default() });
        assert_eq!(news(&lost).unwrap(), "lost node b silent for 3.02s");
        newer.fact = None;
        assert_eq!(summary(&newer), "of a newer version");
    }

    #[test]
    fn a_recovery_is_told_with_how_it_began() {
        let recovered = event(Fact::Recovered(v1::Recovered { rung: "local".to_owned(), took: wire(52), starts: 1 }));
        assert_eq!(recovery_news(&recovered, "signal 9").unwrap(), "redis recovered 52ms local: signal 9");
        assert_eq!(recovery_news(&event(Fact::GreatSpiral(v1::GreatSpiral {})), "x"), None);
    }

    #[test]
    fn a_recovery_is_news_with_its_reason() {
        let mut recovered = event(Fact::Recovered(v1::Recovered { rung: "local".to_owned(), took: wire(52), starts: 1 }));
        recovered.reason = Some(v1::Reason { code: "exited".to_owned(), text: "signal 9".to_owned() });
        assert_eq!(news(&recovered).unwrap(), "redis recovered 52ms local: signal 9");
        assert_eq!(news(&event(Fact::GreatSpiral(v1::GreatSpiral {}))), None);
    }
}
