//! Operators' commands: what each verb asks for, why one is refused, and what it writes. A command is settled in the record that it
//! changes, then told, then answered; so a repeated one finds itself settled or told and has no second effect.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    bucket::IntentKey,
    ids::is_name,
    time,
    trace::Context,
    v1::{self, QuarantinePhase as Phase},
};
use razar_stack::names;

use super::{Action, Now, RECORD_SETTLED_MAX, Record, State, Writes, epoch::proto, events::AGENT, issue::MANUAL};

/// Commands that wait at once; the stream delivers no more unacknowledged ones.
pub const PENDING_MAX: usize = 64;
/// Verbs that this agent knows.
pub const VERBS: [&str; 2] = ["quarantine", "release"];
/// An accepted command whose end has not come by then is told failed.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// Longest isolation; longer is no time but for ever.
const ISOLATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A command that is not answered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// Handle of the shell, for the answer.
    pub token: u64,
    /// Id, computed where the sender gave none.
    pub id: String,
    /// Verb of the subject.
    pub verb: String,
    /// Target of the subject.
    pub target: String,
    /// The command.
    pub command: v1::Command,
    /// Not to be taken up after this.
    pub expires: SystemTime,
    /// Refused, and to be told.
    pub refusal: Option<Refusal>,
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    code: &'static str,
    text: String,
    nearest: Vec<String>,
}

/// What is to become of a command.
enum Judged {
    /// Something has to be told first.
    Wait,
    Refused(Refusal),
    Write(Writes),
}

fn refuse(code: &'static str, text: impl Into<String>) -> Judged {
    Judged::Refused(Refusal { code, text: text.into(), nearest: Vec::new() })
}

fn unknown(target: &str, known: BTreeSet<String>) -> Judged {
    let nearest = names::likely(target, known);
    let hint = nearest.first().map(|n| format!("; nearest: {n}")).unwrap_or_default();
    Judged::Refused(Refusal { code: "unknown_component", text: format!("no component {target}{hint}"), nearest })
}

impl State {
    /// What the sender of a command that waits says of its trace.
    pub(super) fn pending_trace(&self, command: &str) -> Option<Context> {
        self.pending.iter().find(|p| p.id == command).and_then(|p| Context::parse(&p.command.traceparent))
    }

    /// Settled in a record, that is: it has had its effect.
    fn is_settled(&self, id: &str) -> bool {
        self.records.values().any(|r| r.intent.settled_command_ids.iter().any(|s| s == id))
    }

    /// Commands whose outcome is told are answered.
    pub(super) fn answer(&mut self, actions: &mut Vec<Action>) {
        let facts = &self.facts;
        self.pending.retain(|pending| {
            let Some(known) = facts.command(&pending.id) else { return true };
            let refused = known.told.result == "refused";
            let receipt = v1::Receipt {
                accepted: !refused,
                reason: known.reason.text.clone(),
                command_id: pending.id.clone(),
                mission_id: String::new(),
                nearest: pending.refusal.as_ref().map(|r| r.nearest.clone()).unwrap_or_default(),
                agent: AGENT.to_owned(),
                code: if refused { known.reason.code.clone() } else { String::new() },
            };
            actions.push(Action::Answer { token: pending.token, verb: pending.verb.clone(), receipt: Box::new(receipt) });
            false
        });
    }

    /// What is to be told of commands: that they are taken up, or refused.
    pub(super) fn verdicts(&self, now: Now) -> Vec<v1::Event> {
        let mut events = Vec::new();
        for pending in self.pending.iter().filter(|p| self.facts.command(&p.id).is_none()) {
            let (result, code, text) = if self.is_settled(&pending.id) {
                ("accepted", "accepted", self.settled_text(pending))
            } else if let Some(refusal) = &pending.refusal {
                ("refused", refusal.code, refusal.text.clone())
            } else {
                continue;
            };
            let told = v1::OperatorCommand {
                command_id: pending.id.clone(),
                issuer: if pending.command.issuer.is_empty() { "anonymous".to_owned() } else { pending.command.issuer.clone() },
                verb: pending.verb.clone(),
                target: pending.target.clone(),
                result: result.to_owned(),
            };
            events.push(self.command_event(told, (code, text), now.wall));
        }
        events
    }

    fn settled_text(&self, pending: &Pending) -> String {
        let target = &pending.target;
        if pending.verb == "release" {
            return format!("{target} is released");
        }
        let long = self.isolation(&pending.command);
        let blocked = self.dependents(target);
        let required = if self.desired.iter().any(|(i, d)| i.component == *target && d.required) { ", a required one," } else { "" };
        let blocks = if blocked.is_empty() { String::new() } else { format!("; it blocks {}", blocked.join(" ")) };
        format!("{target}{required} is quarantined for {}{blocks}", words(long))
    }

    /// Components in the plan that cannot do without `component`, those behind them too.
    fn dependents(&self, component: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut open = vec![component.to_owned()];
        while let Some(name) = open.pop() {
            for (instance, _) in self.desired.iter().filter(|(_, d)| d.runs && d.needs.contains(&name)) {
                if !found.contains(&instance.component) && instance.component != component {
                    found.push(instance.component.clone());
                    open.push(instance.component.clone());
                }
            }
        }
        found.sort();
        found
    }

    fn isolation(&self, command: &v1::Command) -> Duration {
        command.r#for.as_ref().map_or(self.limits.isolation, time::std_duration).min(ISOLATION_MAX)
    }

    /// Looks at the oldest command that is neither settled nor refused; what it writes, if it writes.
    pub(super) fn next_command(&mut self, now: Now) -> Writes {
        let undecided = |p: &&Pending| p.refusal.is_none() && self.facts.command(&p.id).is_none() && !self.is_settled(&p.id);
        let Some(pending) = self.pending.iter().find(undecided).cloned() else { return Writes::new() };
        match self.judge(&pending, now) {
            Judged::Wait => Writes::new(),
            Judged::Write(writes) => writes,
            Judged::Refused(refusal) => {
                if let Some(waiting) = self.pending.iter_mut().find(|p| p.id == pending.id) {
                    waiting.refusal = Some(refusal);
                }
                Writes::new()
            }
        }
    }

    fn judge(&self, p: &Pending, now: Now) -> Judged {
        if p.expires <= now.wall {
            return refuse("expired", "the command has expired");
        }
        let component = p.target.split('.').next().unwrap_or_default();
        if VERBS.contains(&p.verb.as_str()) && names::is_reserved(component) {
            return refuse("reserved", format!("{component} is a part of the mesh, which is never isolated"));
        }
        match p.verb.as_str() {
            "quarantine" => self.judge_quarantine(p, now),
            "release" => self.judge_release(p, now),
            verb => refuse("unknown_verb", format!("quarantine knows no verb {verb}; it knows quarantine and release")),
        }
    }

    fn known_names(&self) -> BTreeSet<String> {
        let planned: BTreeSet<String> = self.desired.iter().filter(|(_, d)| d.in_plan).map(|(i, _)| i.component.clone()).collect();
        if planned.is_empty() { self.facts.names().into_iter().filter(|n| !names::is_reserved(n)).collect() } else { planned }
    }

    fn judge_quarantine(&self, p: &Pending, now: Now) -> Judged {
        let known = self.known_names();
        if let Some((component, _)) = p.target.split_once('.').filter(|(c, _)| known.contains(*c)) {
            return refuse("whole_component", format!("by hand a whole component is isolated; name {component}"));
        }
        if !is_name(&p.target) || !known.contains(&p.target) {
            return unknown(&p.target, known);
        }
        let key = IntentKey::QuarantineComponent(p.target.clone());
        let before = self.records.get(&key);
        if before.is_some_and(|r| !self.is_told(&key, r)) {
            return Judged::Wait;
        }
        let note = if p.command.note.is_empty() { &p.command.reason } else { &p.command.note };
        let want = v1::Quarantine {
            component: p.target.clone(),
            phase: Phase::Isolated.into(),
            duration: Some(proto(self.isolation(&p.command))),
            issue_type: MANUAL.to_owned(),
            incident: before.and_then(Record::want).and_then(|w| w.incident.clone()),
            ..Default::default()
        };
        let text = if note.is_empty() { "isolated by hand".to_owned() } else { note.clone() };
        let trace = self.command_trace(&p.id).into();
        let write = self.write(&key, want, ("by_hand", text), &p.id, Some(trace), now);
        Judged::Write(vec![settle(write, &p.id)])
    }

    fn judge_release(&self, p: &Pending, now: Now) -> Judged {
        let component = p.target.split('.').next().unwrap_or_default();
        let whole = self.records.get(&IntentKey::QuarantineComponent(component.to_owned()));
        if component != p.target && whole.is_some_and(|r| r.phase() != Phase::Released) {
            return refuse("whole_component", format!("{component} is quarantined as a whole; release {component}"));
        }
        let held: Vec<(IntentKey, &Record)> = self
            .keys_of(&p.target)
            .into_iter()
            .filter_map(|key| self.records.get(&key).map(|r| (key, r)))
            .filter(|(_, r)| r.phase() != Phase::Released)
            .collect();
        if held.is_empty() {
            let known = self.known_names();
            if !known.contains(component) {
                return unknown(&p.target, known);
            }
            return refuse("not_quarantined", format!("{} is not quarantined", p.target));
        }
        if p.command.note.trim().is_empty() {
            return refuse("note_missing", "a release by hand needs a note that says what was mended");
        }
        if held.iter().any(|(key, r)| !self.is_told(key, r)) {
            return Judged::Wait;
        }
        let trace: v1::TraceContext = self.command_trace(&p.id).into();
        let release = |(key, record): &(IntentKey, &Record)| {
            let want = v1::Quarantine {
                phase: Phase::Released.into(),
                duration: None,
                note: p.command.note.trim().to_owned(),
                ..record.want().cloned().unwrap_or_default()
            };
            let text = format!("released by hand: {}", p.command.note.trim());
            settle(self.write(key, want, ("released", text), &p.id, Some(trace.clone()), now), &p.id)
        };
        Judged::Write(held.iter().map(release).collect())
    }

    /// What is to be told of accepted commands whose end has come.
    pub(super) fn command_ends(&self, now: Now) -> Vec<v1::Event> {
        let end = |open: &super::CommandFacts| {
            let late = now.mono >= open.seen + COMMAND_LIMIT;
            let ended = self.command_end(&open.told);
            let (well, code, text) = ended.or_else(|| late.then(|| (false, "timed_out", "it had no outcome in ten minutes".to_owned())))?;
            let told = v1::OperatorCommand { result: if well { "done" } else { "failed" }.to_owned(), ..open.told.clone() };
            Some(self.command_event(told, (code, text), now.wall))
        };
        let ours = self.facts.open_commands().filter(|open| self.shards.decides(super::component(&open.told.target)));
        ours.filter_map(end).collect()
    }

    fn command_end(&self, told: &v1::OperatorCommand) -> Option<(bool, &'static str, String)> {
        let target = &told.target;
        let mut keys = self.keys_of(target);
        keys.retain(|k| self.records.get(k).is_some_and(|r| r.intent.settled_command_ids.contains(&told.command_id)));
        let records: Vec<(&IntentKey, &Record)> = keys.iter().filter_map(|k| Some((k, self.records.get(k)?))).collect();
        if records.iter().any(|(key, r)| !self.is_told(key, r)) {
            return None;
        }
        if told.verb == "release" {
            return Some((true, "released", format!("{target} is released")));
        }
        let isolated = records.iter().all(|(_, r)| r.phase() == Phase::Isolated);
        if !isolated {
            return Some((true, "superseded", format!("{target} is isolated no more")));
        }
        records.iter().all(|(key, _)| self.is_put_down(key)).then(|| (true, "stopped", format!("{target} is stopped and isolated")))
    }

    pub(super) fn command_deadline(&self) -> Option<Duration> {
        self.facts.open_commands().map(|c| c.seen + COMMAND_LIMIT).min()
    }
}

/// Marks a write as the effect of a command.
fn settle(mut write: (IntentKey, v1::Intent, u64), command: &str) -> (IntentKey, v1::Intent, u64) {
    let settled = &mut write.1.settled_command_ids;
    settled.push(command.to_owned());
    let surplus = settled.len().saturating_sub(RECORD_SETTLED_MAX);
    settled.drain(..surplus);
    write
}

/// `2h`, `26m`, `1m30s`: two units at most.
fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut told = Vec::new();
    for (size, unit) in units {
        if rest / size > 0 && told.len() < 2 {
            told.push(format!("{}{unit}", rest / size));
        }
        rest %= size;
    }
    if told.is_empty() { format!("{}ms", span.as_millis()) } else { told.concat() }
}
