//! The projection as people read it: a line per chakra when all is well, else a line per unwell component, the worst last, then the verdict.
//! A state that nobody told is called unknown: never well, never down.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::Instance,
    time::{std_duration, system_time},
    v1::{self, InstanceState as State},
};

use super::{
    event::{blockers, exit_status, incident_name, limit},
    mesh::{down_line, escalation_line, mesh_words, score_line, trouble_line, trouble_words},
    text::{columns, count, escape, quote},
    time::age,
};
use crate::console::Tone;

/// Name of the mesh's own stack.
pub(crate) const SYSTEM_STACK: &str = "system";

/// How the stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// Everything desired is ready.
    Well,
    /// Something is not.
    Degraded,
    /// A required component failed.
    Critical,
}

/// A line with one word that may be coloured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What stands before the word.
    pub(crate) before: String,
    /// The word.
    pub(crate) word: String,
    /// What it means.
    pub(crate) tone: Tone,
    /// What stands behind it.
    pub(crate) after: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}{}", self.before, self.word, self.after)
    }
}

/// The whole status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// Chakras or components.
    pub(crate) lines: Vec<Line>,
    /// The verdict.
    pub(crate) verdict: Line,
    /// How it is.
    pub(crate) health: Health,
    /// Component to be asked about next, if one is unwell.
    pub(crate) worst: Option<String>,
}

/// Name of a state; one that is not told or from a newer version is unknown.
pub(crate) fn state_word(state: i32) -> &'static str {
    match State::try_from(state).unwrap_or(State::Unspecified) {
        State::Unspecified => "unknown",
        State::Waiting => "waiting",
        State::Preparing => "preparing",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Unready => "unready",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::Exited => "exited",
        State::Backoff => "backoff",
        State::Failed => "failed",
        State::Completed => "completed",
        State::Quarantined => "quarantined",
        State::Probation => "probation",
    }
}

fn tone(state: State) -> Tone {
    match state {
        State::Ready | State::Completed => Tone::Good,
        State::Failed | State::Quarantined => Tone::Bad,
        State::Stopped => Tone::Quiet,
        State::Unspecified
        | State::Waiting
        | State::Preparing
        | State::Starting
        | State::Unready
        | State::Stopping
        | State::Exited
        | State::Backoff
        | State::Probation => Tone::Warn,
    }
}

/// Printed name of an observed instance.
pub(crate) fn name_of(c: &v1::ObservedComponent) -> String {
    c.instance.as_ref().map_or_else(|| "-".to_owned(), |i| Instance::new(escape(&i.component), i.ordinal).to_string())
}

/// An instance with what follows from the rest of the projection.
struct Seen<'o> {
    observed: &'o v1::ObservedComponent,
    name: String,
    state: State,
    /// Its node, if that is lost.
    lost: Option<&'o v1::ObservedNode>,
}

impl Seen<'_> {
    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready | State::Completed)
    }

    fn mode(&self) -> &str {
        self.observed.desired.as_ref().map_or("run", |d| d.mode.as_str())
    }

    /// Not wanted at present: stopped by hand, left by the profile, or on demand and idle.
    fn is_put_aside(&self) -> bool {
        let rests = matches!(self.state, State::Stopped | State::Waiting);
        self.observed.process.is_none() && (self.mode() == "stop" || rests && self.mode() == "on_demand")
    }

    fn is_required(&self) -> bool {
        self.observed.desired.as_ref().is_none_or(|d| d.required)
    }

    /// It may be ready, and yet is on trial, degraded or over a limit.
    fn is_notable(&self) -> bool {
        let c = self.observed;
        c.probation.is_some() || !c.degraded.is_empty() || !c.over_limits.is_empty()
    }

    fn is_critical(&self) -> bool {
        self.is_required() && matches!(self.state, State::Failed | State::Quarantined)
    }

    /// The higher, the later it is told: what is blocked first, roots of incidents last.
    fn severity(&self) -> (bool, u8, bool) {
        let root = self.observed.incident.is_some() && self.observed.blocked_by.is_empty();
        let rank = match self.state {
            State::Ready | State::Completed => 0,
            State::Stopped => 1,
            State::Stopping => 2,
            State::Unready => 3,
            State::Waiting => 4,
            State::Preparing | State::Starting | State::Probation => 5,
            State::Quarantined => 6,
            State::Exited | State::Backoff => 7,
            State::Unspecified => 8,
            State::Failed => 9,
        };
        (root, rank, self.is_required())
    }

    fn why(&self, now: SystemTime) -> String {
        let c = self.observed;
        if self.lost.is_some() {
            return format!("node {} is lost; it may run on", escape(&c.node));
        }
        if !c.blocked_by.is_empty() {
            let by = format!("blocked by {}{}", blockers(&c.blocked_by), behind(self.on_probation()));
            return match (self.state, &c.last_exit) {
                (State::Unready, _) => format!("{by}; runs on"),
                (State::Waiting, Some(exit)) if exit.code.is_some_and(|code| code != 0) => {
                    format!("{by}; its {} cost no budget", exit_status(Some(exit)))
                }
                _ => by,
            };
        }
        if let Some(quarantined) = c.quarantined.as_ref().filter(|_| self.state == State::Quarantined) {
            return self.why_isolated(quarantined, now);
        }
        let mut parts = Vec::new();
        let reason = c.reason.as_ref().map(|r| r.text.trim()).unwrap_or_default();
        if !reason.is_empty() {
            parts.push(escape(reason));
        }
        if c.incident_exits > 1 {
            let since = c.incident_since.as_ref().map(|at| format!(" in {}", age(since(at, now)))).unwrap_or_default();
            parts.push(format!("{}{since}", count(c.incident_exits as usize, "exit")));
        }
        let error = c.last_error.trim();
        let mut told = parts.join("; ");
        if !error.is_empty() && !self.is_ready() && !reason.contains(error) {
            told = if told.is_empty() { quote(error) } else { format!("{told}: {}", quote(error)) };
        }
        let degraded = [escape(&c.degraded)].into_iter();
        let over = c.over_limits.iter().map(|l| format!("over its limit: {}", limit(&l.resource, l.used, l.limit)));
        for more in degraded.chain(over).chain([self.on_probation(), self.escalated()]).filter(|more| !more.is_empty()) {
            told = if told.is_empty() { more } else { format!("{told}; {more}") };
        }
        told
    }

    /// That it is on trial: `on probation, 4 attempts before`. Where nothing of it was started that is the reason itself.
    fn on_probation(&self) -> String {
        let Some(probation) = self.observed.probation.as_ref().filter(|_| self.state != State::Probation) else { return String::new() };
        let before =
            if probation.attempts > 0 { format!(", {} before", count(probation.attempts as usize, "attempt")) } else { String::new() };
        format!("on probation{before}")
    }

    /// What people were told of it last.
    fn escalated(&self) -> String {
        let Some(e) = &self.observed.escalated else { return String::new() };
        let often = if e.count == 0 { String::new() } else { format!(": the same error {}", count(e.count as usize, "time")) };
        format!("escalated {}{often}", escape(&e.severity))
    }

    /// `26m left, then probation; dependency: "No module named 'torch'"; fix: install torch`
    fn why_isolated(&self, q: &v1::Quarantined, now: SystemTime) -> String {
        let mut parts = vec![match q.duration.as_ref().map(std_duration) {
            None => "until it is released".to_owned(),
            Some(long) => match long.saturating_sub(self.age(now).unwrap_or_default()) {
                Duration::ZERO => "its time is over; on probation".to_owned(),
                left => format!("{} left, then probation", age(left)),
            },
        }];
        let reason = self.observed.reason.as_ref().map(|r| r.text.trim()).unwrap_or_default();
        let issue = escape(&q.issue_type);
        parts.push(if reason.is_empty() { issue } else { format!("{issue}: {}", quote(reason)) });
        if !q.suggested_fix.is_empty() {
            parts.push(format!("fix: {}", escape(&q.suggested_fix)));
        }
        parts.join("; ") + &behind(self.escalated())
    }

    /// Since when it is what it is; of what became unknown with its node, since that is lost.
    fn since(&self) -> Option<&prost_types::Timestamp> {
        self.lost.and_then(|node| node.presence_at.as_ref()).or(self.observed.since.as_ref())
    }

    fn age(&self, now: SystemTime) -> Option<Duration> {
        self.since().map(|at| since(at, now))
    }
}

/// `; more`, behind a sentence; nothing where there is nothing more.
fn behind(more: String) -> String {
    if more.is_empty() { more } else { format!("; {more}") }
}

pub(super) fn since(at: &prost_types::Timestamp, now: SystemTime) -> Duration {
    now.duration_since(system_time(at)).unwrap_or_default()
}

fn seen(observed: &v1::Observed) -> Vec<Seen<'_>> {
    let lost = |node: &str| observed.nodes.iter().find(|n| n.lost && n.name == node);
    let all = observed.components.iter().map(|c| (c, lost(&c.node)));
    let state = |c: &v1::ObservedComponent, lost: bool| if lost { State::Unspecified } else { c.state() };
    all.map(|(c, lost)| Seen { observed: c, name: name_of(c), state: state(c, lost.is_some()), lost }).collect()
}

/// The status of the stack in force; `bus` is the round trip of the question, `all` a line for each component, the mesh's own too.
pub(crate) fn report(reply: &v1::StatusReply, now: SystemTime, bus: Duration, all: bool) -> Report {
    let nothing = v1::Observed::default();
    let observed = reply.observed.as_ref().unwrap_or(&nothing);
    let everyone = seen(observed);
    let (system, mut own): (Vec<_>, Vec<_>) = everyone.into_iter().partition(|s| s.observed.stack == SYSTEM_STACK);
    if let Some(stack) = stack_in_force(observed) {
        // What is left of an earlier stack counts only while it lives.
        own.retain(|s| s.observed.stack == stack || s.observed.process.is_some());
    }
    let wanted: Vec<_> = own.iter().filter(|s| !s.is_put_aside()).collect();
    let mut unwell: Vec<_> = wanted.iter().copied().filter(|s| !s.is_ready()).collect();
    unwell.sort_by_key(|s| s.severity());
    let sick_system: Vec<_> = system.iter().filter(|s| !s.is_ready()).collect();
    let health = match () {
        () if wanted.iter().any(|s| s.is_critical()) || !observed.chakras.is_empty() => Health::Critical,
        () if !unwell.is_empty() || !sick_system.is_empty() || reply.troubles.iter().any(|t| !t.warning) => Health::Degraded,
        () => Health::Well,
    };
    let mut lines = if all {
        let mut every: Vec<_> = own.iter().chain(&system).collect();
        every.sort_by_key(|s| s.severity());
        component_lines(&every, now)
    } else {
        let well = unwell.is_empty() && sick_system.is_empty() && observed.chakras.is_empty();
        let so_so = wanted.iter().copied().filter(|s| s.is_ready() && s.is_notable());
        let notable: Vec<_> = so_so.chain(sick_system.iter().copied()).chain(unwell.iter().copied()).collect();
        let chakras = if well { chakra_lines(&wanted) } else { Vec::new() };
        chakras.into_iter().chain(component_lines(&notable, now)).collect()
    };
    lines.extend(observed.chakras.iter().map(|c| down_line(c, now)));
    lines.extend(observed.escalations.iter().filter_map(|e| escalation_line(e, now)));
    lines.extend(reply.troubles.iter().map(trouble_line));
    lines.extend(reply.health.as_ref().filter(|_| all).map(score_line));
    let verdict = verdict(&Parts { reply, observed, wanted: &wanted, own: &own, unwell: &unwell, health }, now, bus);
    let worst = unwell.last().or(sick_system.last()).map(|s| s.name.clone());
    Report { lines, verdict, health, worst }
}

/// What a verdict is made of.
struct Parts<'r> {
    reply: &'r v1::StatusReply,
    observed: &'r v1::Observed,
    wanted: &'r [&'r Seen<'r>],
    own: &'r [Seen<'r>],
    unwell: &'r [&'r Seen<'r>],
    health: Health,
}

fn component_lines(list: &[&Seen<'_>], now: SystemTime) -> Vec<Line> {
    let ages: Vec<_> = list.iter().map(|s| s.age(now).map_or_else(|| "-".to_owned(), age)).collect();
    let words: Vec<_> = list.iter().map(|s| state_word(s.state.into())).collect();
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let names_wide = width(&mut list.iter().map(|s| s.name.len()));
    let words_wide = width(&mut words.iter().map(|w| w.len()));
    let ages_wide = width(&mut ages.iter().map(String::len));
    let line = |((s, word), age): ((&&Seen<'_>, &&str), &String)| {
        let why = s.why(now);
        let why = super::text::or_dash(&why).to_owned();
        Line {
            before: format!("{:<names_wide$} ", s.name),
            word: (*word).to_owned(),
            tone: tone(s.state),
            after: format!("{:pad$} {age:<ages_wide$} {why}", "", pad = words_wide - word.len()),
        }
    };
    list.iter().zip(&words).zip(&ages).map(line).collect()
}

/// `heart  2/2 memory-store postgres`
fn chakra_lines(wanted: &[&Seen<'_>]) -> Vec<Line> {
    let mut chakras: BTreeMap<String, (usize, Vec<String>)> = BTreeMap::new();
    for s in wanted {
        let (ready, names) = chakras.entry(escape(&s.observed.chakra)).or_default();
        *ready += usize::from(s.is_ready());
        names.push(s.name.clone());
    }
    let mut rows: Vec<(usize, Vec<String>)> = chakras
        .into_iter()
        .map(|(chakra, (ready, names))| (chakra_order(&chakra), vec![chakra, format!("{ready}/{}", names.len()), names.join(" ")]))
        .collect();
    rows.sort_by_key(|(order, _)| *order);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let plain = |text: String| Line { before: String::new(), word: String::new(), tone: Tone::Good, after: text };
    columns(&rows).into_iter().map(plain).collect()
}

/// From the ground up, as `domain.md` lists them; chakras of a stack's own come last, by name.
fn chakra_order(chakra: &str) -> usize {
    const CHAKRAS: [&str; 7] = ["root", "sacral", "solar", "heart", "throat", "third_eye", "crown"];
    CHAKRAS.iter().position(|c| *c == chakra).unwrap_or(CHAKRAS.len())
}

fn verdict(parts: &Parts<'_>, now: SystemTime, bus: Duration) -> Line {
    let &Parts { reply, observed, wanted, own, unwell, health } = parts;
    let troubles = trouble_words(&reply.troubles);
    let mesh = mesh_words(observed, bus);
    let line = |before: String, word: &str, tone, after: String| Line { before, word: word.to_owned(), tone, after };
    let first = || own.first().map(|s| s.observed.stack.as_str());
    let Some(stack) = stack_in_force(observed).filter(|_| !own.is_empty()).or_else(first).map(escape) else {
        return line(String::new(), "no stack is in force", Tone::Quiet, format!("{troubles}; {mesh}"));
    };
    let aside = own.len() - wanted.len();
    let aside = if aside > 0 { format!(", {aside} stopped as asked") } else { String::new() };
    if wanted.is_empty() {
        return line(format!("{stack}: "), "stopped", Tone::Quiet, format!("{}{troubles}; {mesh}", aside.replacen(", ", ": ", 1)));
    }
    let total = wanted.len();
    let ready = wanted.iter().filter(|s| s.is_ready()).count();
    let down: Vec<_> = observed.chakras.iter().map(|c| escape(&c.name)).collect();
    let down = if down.is_empty() { String::new() } else { format!(", down: {}", down.join(" ")) };
    if unwell.is_empty() && down.is_empty() && !troubles.is_empty() {
        return line(format!("{stack}: "), "degraded", Tone::Warn, format!("; {ready}/{total} ready{aside}{troubles}; {mesh}"));
    }
    if unwell.is_empty() && down.is_empty() {
        let long = wanted.iter().filter_map(|s| s.age(now)).min().map(|d| format!(" for {}", age(d))).unwrap_or_default();
        return line(format!("{stack}: {ready}/{total} "), "ready", Tone::Good, format!("{long}{aside}; {mesh}"));
    }
    let booting = health != Health::Critical && unwell.iter().all(|s| s.observed.incident.is_none()) && mission_runs(observed, &stack);
    let (word, tone) = match health {
        Health::Critical => ("critical", Tone::Bad),
        Health::Well | Health::Degraded if booting => ("starting", Tone::Warn),
        Health::Well | Health::Degraded => ("degraded", Tone::Warn),
    };
    let began = |s: &&Seen<'_>| s.observed.incident_since.as_ref().or(s.since()).map(|at| since(at, now));
    let long = unwell.iter().filter_map(began).max().map(|d| format!(" for {}", age(d))).unwrap_or_default();
    let mut counts = vec![format!("{ready}/{total} ready")];
    for (state, word) in [(State::Failed, "failed"), (State::Quarantined, "quarantined"), (State::Unspecified, "unknown")] {
        let n = wanted.iter().filter(|s| s.state == state).count();
        if n > 0 {
            counts.push(format!("{n} {word}"));
        }
    }
    let mut incidents: Vec<_> = own.iter().filter_map(|s| incident_name(s.observed.incident.as_ref()?)).collect();
    incidents.sort();
    incidents.dedup();
    if !incidents.is_empty() {
        counts.push(format!("{} open", count(incidents.len(), "incident")));
    }
    line(format!("{stack}: "), word, tone, format!("{long}; {}{down}{aside}{troubles}", counts.join(", ")))
}

/// The stack that a mission put in force last; `None`: the missions tell of none.
pub(crate) fn stack_in_force(observed: &v1::Observed) -> Option<&str> {
    let stacks = observed.missions.iter().rev().filter_map(|m| m.started.as_ref()).map(|s| s.stack.as_str());
    stacks.into_iter().find(|s| !s.is_empty())
}

fn mission_runs(observed: &v1::Observed, stack: &str) -> bool {
    let of_stack = |m: &&v1::ObservedMission| m.started.as_ref().is_some_and(|s| s.stack == stack);
    observed.missions.iter().rev().find(of_stack).is_some_and(|m| m.completed.is_none())
}

#[cfg(test)]
mod tests;
