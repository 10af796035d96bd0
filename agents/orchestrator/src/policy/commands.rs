//! Operators' commands: what each verb asks for, why one is refused, and what it writes. A command is settled in the record that it
//! changes, then told, then answered; so a repeated one finds itself settled or told and has no second effect.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::{Instance, is_name},
    time,
    trace::Context,
    v1::{self, InstanceState, RunMode},
};
use razar_stack::names;

use super::{
    Action, INSTANCES_MAX, Loaded, MissionsValue, Now, PLAN_SETTLED_MAX, State,
    events::{AGENT, command_event_id, mission_id, mission_trace},
    reconcile::stopped_by_hand,
};
use crate::blueprint::Blueprint;

/// Commands that wait at once; the stream delivers no more unacknowledged ones.
pub const PENDING_MAX: usize = 64;
/// Time after which stopping everything is given up.
const DOWN_TIMEOUT: Duration = Duration::from_secs(600);
/// A drop of more than one component in so many needs `approve`: 20 %.
const DROP_UNAPPROVED_ONE_IN: usize = 5;
/// Verbs that this agent knows.
pub const VERBS: [&str; 6] = ["apply", "profile", "start", "stop", "restart", "down"];

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
    /// Decided, and to be told: a refusal, or an acceptance that changes nothing.
    pub verdict: Option<Verdict>,
}

/// What was decided of a command without a write.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    accepted: bool,
    code: String,
    text: String,
    mission_id: String,
    nearest: Vec<String>,
}

/// What is to become of a command.
enum Judged {
    /// Something has to be known, told or written first.
    Wait,
    Verdict(Verdict),
    Write(Action),
}

fn refuse(code: &str, text: impl Into<String>) -> Judged {
    refuse_near(code, text, Vec::new())
}

fn refuse_near(code: &str, text: impl Into<String>, nearest: Vec<String>) -> Judged {
    let mut text = text.into();
    if let Some(first) = nearest.first() {
        text = format!("{text}; nearest: {first}");
    }
    Judged::Verdict(Verdict { accepted: false, code: code.to_owned(), text, mission_id: String::new(), nearest })
}

fn accept(text: impl Into<String>, mission: &str) -> Judged {
    let verdict = Verdict { accepted: true, code: String::new(), text: text.into(), mission_id: mission.to_owned(), nearest: Vec::new() };
    Judged::Verdict(verdict)
}

impl State {
    /// Revision and profile that a command needs to know.
    pub(super) fn blueprint_for(&self, command: &Pending) -> Option<(String, String)> {
        match command.verb.as_str() {
            "apply" => Some((command.command.stack_revision.clone(), command.command.profile.clone())).filter(|(r, _)| !r.is_empty()),
            "profile" => self.in_force().map(|m| (m.stack_revision.clone(), wanted_profile(command))),
            _ => None,
        }
    }

    /// What the sender of a command that waits says of its trace.
    pub(super) fn pending_trace(&self, command: &str) -> Option<Context> {
        self.pending.iter().find(|p| p.id == command).and_then(|p| Context::parse(&p.command.traceparent))
    }

    /// Settled in a record, that is: it has had its effect.
    fn is_settled(&self, id: &str) -> bool {
        let in_plan = self.plan.value.as_ref().is_some_and(|p| p.settled_command_ids.iter().any(|s| s == id));
        in_plan || self.records.values().any(|r| r.intent.settled_command_ids.iter().any(|s| s == id))
    }

    /// Commands whose outcome is told are answered.
    pub(super) fn answer(&mut self, actions: &mut Vec<Action>) {
        let facts = &self.facts;
        self.pending.retain(|pending| {
            let Some(known) = facts.command(&pending.id) else { return true };
            let receipt = v1::Receipt {
                accepted: known.told.result != "refused",
                reason: known.reason.text.clone(),
                command_id: pending.id.clone(),
                mission_id: known.mission_id.clone(),
                nearest: pending.verdict.as_ref().map(|v| v.nearest.clone()).unwrap_or_default(),
                agent: AGENT.to_owned(),
                code: if known.told.result == "refused" { known.reason.code.clone() } else { String::new() },
            };
            actions.push(Action::Answer { token: pending.token, verb: pending.verb.clone(), receipt: Box::new(receipt) });
            false
        });
    }

    /// What is to be told of commands: that they are taken up, or refused.
    pub(super) fn refusals(&self, now: Now) -> Vec<v1::Event> {
        let mut events = Vec::new();
        for pending in &self.pending {
            if self.facts.command(&pending.id).is_some() {
                continue;
            }
            let (accepted, code, text, mission) = if self.is_settled(&pending.id) {
                (true, "accepted", self.settled_text(pending), self.settled_mission(pending))
            } else if let Some(v) = &pending.verdict {
                (v.accepted, if v.accepted { "accepted" } else { v.code.as_str() }, v.text.clone(), v.mission_id.clone())
            } else {
                continue;
            };
            let told = v1::OperatorCommand {
                command_id: pending.id.clone(),
                issuer: if pending.command.issuer.is_empty() { "anonymous".to_owned() } else { pending.command.issuer.clone() },
                verb: pending.verb.clone(),
                target: pending.target.clone(),
                result: if accepted { "accepted" } else { "refused" }.to_owned(),
            };
            events.push(self.command_fact(told, &mission, (code, text), now.wall));
        }
        events
    }

    fn settled_text(&self, pending: &Pending) -> String {
        match pending.verb.as_str() {
            "apply" => format!("{} is put in force", pending.target),
            "profile" => format!("profile {} is put in force", pending.target),
            "restart" => format!("{} gets a new generation", pending.target),
            "start" => format!("{} is started", pending.target),
            "stop" => format!("{} is stopped until it is started by hand", pending.target),
            _ => "everything is stopped in reverse order".to_owned(),
        }
    }

    fn settled_mission(&self, pending: &Pending) -> String {
        let begins = matches!(pending.verb.as_str(), "apply" | "profile" | "down");
        let current = self.plan().filter(|_| begins).map(|m| m.mission_id.clone());
        current.unwrap_or_default()
    }

    /// Looks at the oldest command that is neither settled nor decided; what it writes, if it writes.
    pub(super) fn next_command(&mut self, now: Now) -> Option<Action> {
        let facts = &self.facts;
        let undecided = |p: &&Pending| p.verdict.is_none() && facts.command(&p.id).is_none() && !self.is_settled(&p.id);
        let pending = self.pending.iter().find(undecided)?.clone();
        match self.judge(&pending, now) {
            Judged::Wait => None,
            Judged::Write(action) => Some(action),
            Judged::Verdict(verdict) => {
                if let Some(waiting) = self.pending.iter_mut().find(|p| p.id == pending.id) {
                    waiting.verdict = Some(verdict);
                }
                None
            }
        }
    }

    fn judge(&self, p: &Pending, now: Now) -> Judged {
        if p.expires <= now.wall {
            return refuse("expired", "the command has expired");
        }
        match p.verb.as_str() {
            "apply" => self.judge_apply(p, now),
            "profile" => self.judge_profile(p, now),
            "start" | "stop" | "restart" => self.judge_component(p, now),
            "down" => self.judge_down(p, now),
            verb => {
                let known = VERBS.iter().map(|v| (*v).to_owned());
                refuse_near("unknown_verb", format!("orchestrator knows no verb {verb}"), names::likely(verb, known))
            }
        }
    }

    fn judge_apply(&self, p: &Pending, now: Now) -> Judged {
        if p.command.stack_revision.is_empty() {
            return refuse("malformed", "apply names no stack revision");
        }
        if matches!(p.target.as_str(), "system" | "mesh") || !is_name(&p.target) {
            return refuse("reserved", format!("{} is no name for a stack", p.target));
        }
        if let Some(other) = self.in_force().filter(|m| m.stack != p.target) {
            return refuse("another_stack", format!("{} is in force; take it down first", other.stack));
        }
        let blueprint = match self.blueprint_of(p) {
            Err(judged) => return judged,
            Ok(blueprint) => blueprint,
        };
        if blueprint.stack != p.target {
            return refuse("another_stack", format!("the revision is of {}, not of {}", blueprint.stack, p.target));
        }
        if let Some(running) = self.in_force().filter(|m| !m.ended && (m.fresh || !p.command.fresh))
            && running.stack_revision == blueprint.revision
            && running.profile == blueprint.profile
        {
            return accept("joins the mission under way", &running.mission_id);
        }
        if let Some(refusal) = self.shrinks(&blueprint, p) {
            return refusal;
        }
        self.begin(p, &blueprint, p.command.fresh, now)
    }

    /// Holds back a revision that drops more than a fifth of what is in force. Another profile of the same revision is meant to.
    fn shrinks(&self, blueprint: &Blueprint, p: &Pending) -> Option<Judged> {
        let plan = self.in_force().filter(|m| m.stack_revision != blueprint.revision)?;
        let current: BTreeSet<&str> = self
            .records
            .iter()
            .filter(|(i, r)| r.desired().is_some_and(|d| d.mode() != RunMode::Stop) || stopped_by_hand(plan, i))
            .map(|(i, _)| i.component.as_str())
            .collect();
        let dropped = current.iter().filter(|c| !blueprint.parts.contains_key(**c)).count();
        let too_many = dropped * DROP_UNAPPROVED_ONE_IN > current.len();
        (too_many && !p.command.approve)
            .then(|| refuse("needs_approval", format!("{dropped} of {} components would go; approve it if that is meant", current.len())))
    }

    fn judge_profile(&self, p: &Pending, now: Now) -> Judged {
        let Some(plan) = self.in_force() else { return refuse("nothing_in_force", "no stack is in force") };
        let blueprint = match self.blueprint_of(p) {
            Err(judged) => return judged,
            Ok(blueprint) => blueprint,
        };
        if plan.profile == blueprint.profile {
            return accept("that profile is in force", &plan.mission_id);
        }
        self.begin(p, &blueprint, false, now)
    }

    /// The blueprint that a command needs; `Err`: what is to become of the command without it.
    fn blueprint_of(&self, p: &Pending) -> Result<std::sync::Arc<Blueprint>, Judged> {
        let key = self.blueprint_for(p).ok_or(Judged::Wait)?;
        match self.blueprints.get(&key) {
            None => Err(Judged::Wait),
            Some(Loaded::Refused(code, text, nearest)) => Err(refuse_near(code, text.clone(), nearest.clone())),
            Some(Loaded::Blueprint(b)) if b.parts.is_empty() => Err(refuse("empty_plan", "the plan has no component")),
            Some(Loaded::Blueprint(b)) if b.instance_count() > INSTANCES_MAX => {
                Err(refuse("too_many", format!("{} instances; at most {INSTANCES_MAX} go into one plan", b.instance_count())))
            }
            Some(Loaded::Blueprint(b)) => Ok(b.clone()),
        }
    }

    /// The write that begins a mission, with its brief.
    fn begin(&self, p: &Pending, blueprint: &Blueprint, fresh: bool, now: Now) -> Judged {
        let id = mission_id(&blueprint.revision, &blueprint.profile, &p.id);
        let by_hand = self.in_force().map(|m| m.stopped_by_hand.clone()).unwrap_or_default();
        let known = |name: &String| blueprint.parts.contains_key(name.split('.').next().unwrap_or(name));
        let plan = v1::Mission {
            trace: Some(mission_trace(&self.who.mesh, &id)),
            mission_id: id,
            stack: blueprint.stack.clone(),
            stack_revision: blueprint.revision.clone(),
            profile: blueprint.profile.clone(),
            started_at: Some(time::timestamp(now.wall)),
            timeout: (!blueprint.timeout.is_zero()).then(|| time::duration(blueprint.timeout)),
            ended: false,
            settled_command_ids: self.settled_with(&p.id),
            fresh,
            stopped_by_hand: by_hand.into_iter().filter(known).collect(),
        };
        let brief = self.brief(&plan, blueprint);
        self.write_plan(plan, Some(brief))
    }

    fn judge_down(&self, p: &Pending, now: Now) -> Judged {
        let Some(plan) = self.in_force() else {
            let mission = self.plan().map_or("", |m| m.mission_id.as_str());
            return accept("nothing is in force", mission);
        };
        if p.target != "_" && p.target != plan.stack {
            return refuse_near("unknown_stack", format!("{} is not in force", p.target), vec![plan.stack.clone()]);
        }
        let id = mission_id("", "", &p.id);
        let down = v1::Mission {
            trace: Some(mission_trace(&self.who.mesh, &id)),
            mission_id: id,
            started_at: Some(time::timestamp(now.wall)),
            timeout: Some(time::duration(DOWN_TIMEOUT)),
            settled_command_ids: self.settled_with(&p.id),
            ..Default::default()
        };
        self.write_plan(down, None)
    }

    fn judge_component(&self, p: &Pending, now: Now) -> Judged {
        let Some(plan) = self.in_force() else { return refuse("nothing_in_force", "no stack is in force") };
        let Some(blueprint) = self.blueprint() else { return Judged::Wait };
        let targets: Vec<Instance> = blueprint.instances().into_iter().map(|(i, _)| i).filter(|i| is_target(i, &p.target)).collect();
        if targets.is_empty() {
            let known = blueprint.parts.keys().cloned();
            return refuse_near("unknown_component", format!("no component {}", p.target), names::likely(&p.target, known));
        }
        let isolated = |i: &&Instance| self.facts.view(i).is_some_and(|v| v.state == InstanceState::Quarantined);
        if p.verb != "stop"
            && let Some(isolated) = targets.iter().find(isolated)
        {
            let view = self.facts.view(isolated);
            let left = view.and_then(|v| v.isolated_until?.duration_since(now.wall).ok()).map(|d| format!(", {} left", rough(d)));
            let why = view.map(|v| v.why.as_str()).unwrap_or_default();
            return refuse("quarantined", format!("{isolated} is quarantined{}: \"{why}\"", left.unwrap_or_default()));
        }
        match p.verb.as_str() {
            "stop" => self.judge_stop(p, plan, &targets),
            "start" => self.judge_start(p, plan, &targets, now),
            _ if targets.iter().all(|i| stopped_by_hand(plan, i)) => {
                refuse("stopped", format!("{} is stopped by hand; start it", p.target))
            }
            _ => self.raise(p, targets.iter().filter(|i| !stopped_by_hand(plan, i)), "restarted by hand", now),
        }
    }

    fn judge_stop(&self, p: &Pending, plan: &v1::Mission, targets: &[Instance]) -> Judged {
        if targets.iter().all(|i| stopped_by_hand(plan, i)) {
            return accept(format!("{} is stopped already", p.target), "");
        }
        let mut names: BTreeSet<String> = plan.stopped_by_hand.iter().cloned().collect();
        names.insert(p.target.clone());
        self.rewrite_plan(p, plan, names)
    }

    fn judge_start(&self, p: &Pending, plan: &v1::Mission, targets: &[Instance], now: Now) -> Judged {
        if targets.iter().any(|i| stopped_by_hand(plan, i)) {
            return self.rewrite_plan(p, plan, self.names_without(plan, targets));
        }
        let failed = |i: &&Instance| self.facts.view(i).is_some_and(|v| v.state == InstanceState::Failed);
        if targets.iter().any(|i| failed(&i)) {
            return self.raise(p, targets.iter().filter(failed), "started by hand after it failed", now);
        }
        accept(format!("{} is to run already", p.target), "")
    }

    /// What stays stopped by hand when these are started: a whole component is told by its replicas where only some of them start.
    fn names_without(&self, plan: &v1::Mission, targets: &[Instance]) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for name in &plan.stopped_by_hand {
            let covered: Vec<&Instance> = self.records.keys().filter(|i| is_target(i, name)).collect();
            if covered.iter().any(|i| targets.contains(i)) {
                names.extend(covered.into_iter().filter(|i| !targets.contains(i)).map(Instance::key));
            } else if !targets.iter().any(|i| is_target(i, name)) {
                names.insert(name.clone());
            }
        }
        names
    }

    /// Raises the generation of these, all or none.
    fn raise<'i>(&self, p: &Pending, instances: impl Iterator<Item = &'i Instance>, why: &str, now: Now) -> Judged {
        let mut writes = Vec::new();
        for instance in instances {
            let Some(record) = self.records.get(instance) else {
                if self.is_to_be_placed(instance, now) {
                    return Judged::Wait;
                }
                return refuse("not_placed", self.waits_for().unwrap_or_else(|| format!("{instance} has no node yet")));
            };
            if !self.is_told(record) {
                return Judged::Wait;
            }
            let why = if p.command.reason.is_empty() { why.to_owned() } else { format!("{why}: {}", p.command.reason) };
            writes.extend(self.raised(instance, record, &p.id, &why, now));
        }
        if writes.is_empty() { Judged::Wait } else { Judged::Write(Action::WriteDesired { writes, bucket: self.intents_bucket }) }
    }

    fn rewrite_plan(&self, p: &Pending, plan: &v1::Mission, stopped: BTreeSet<String>) -> Judged {
        let settled_command_ids = self.settled_with(&p.id);
        self.write_plan(v1::Mission { stopped_by_hand: stopped.into_iter().collect(), settled_command_ids, ..plan.clone() }, None)
    }

    fn settled_with(&self, id: &str) -> Vec<String> {
        let mut settled = self.plan.value.as_ref().map(|p| p.settled_command_ids.clone()).unwrap_or_default();
        settled.push(id.to_owned());
        let surplus = settled.len().saturating_sub(PLAN_SETTLED_MAX);
        settled.drain(..surplus);
        settled
    }

    /// Overwrites the plan, if what it says is told.
    fn write_plan(&self, plan: v1::Mission, brief: Option<(MissionsValue, u64)>) -> Judged {
        if !self.plan_is_told() {
            return Judged::Wait;
        }
        let mut writes = vec![(MissionsValue::Plan(plan), self.plan.revision)];
        writes.extend(brief);
        Judged::Write(Action::WriteMissions { writes, bucket: self.missions_bucket, ended: None })
    }

    /// Whether the events that tell of the record `plan` are in EVENTS: its mission's beginning, and the command that it settled last.
    pub(super) fn plan_is_told(&self) -> bool {
        let Some(plan) = self.plan() else { return true };
        let began = plan.ended || self.facts.mission(&plan.mission_id).is_some();
        began && plan.settled_command_ids.last().is_none_or(|last| self.is_taken(last) || ended_by(plan, last))
    }

    pub(super) fn is_taken(&self, command: &str) -> bool {
        self.facts.command(command).is_some() || self.facts.is_told(&command_event_id(command, false))
    }
}

/// Whether a command began the mission that the plan says has ended: it was told then, before the end was written.
pub(super) fn ended_by(plan: &v1::Mission, command: &str) -> bool {
    plan.ended && mission_id(&plan.stack_revision, &plan.profile, command) == plan.mission_id
}

/// A time to wait, as people say it: `26m`, `1h59m`, `40s`.
fn rough(span: Duration) -> String {
    let (hours, minutes, seconds) = (span.as_secs() / 3600, span.as_secs() / 60 % 60, span.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    }
}

fn wanted_profile(p: &Pending) -> String {
    if p.target == "_" { p.command.profile.clone() } else { p.target.clone() }
}

/// Whether `name` (`api`: all of it; `api.1`: a replica) means this instance.
pub(super) fn is_target(instance: &Instance, name: &str) -> bool {
    instance.component == name || instance.key() == name
}
