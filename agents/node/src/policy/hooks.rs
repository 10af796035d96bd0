//! Hooks: programs of the stack that the node runs once and waits for. A chakra's comes before a start that a rung makes, and the start
//! follows only if it ended well; that of escalations is run for what people must know of, one at a time. How a process is kept inside its
//! bounds is in `crate::hooks`; here is when one runs, and what follows from its end.

use std::{collections::VecDeque, time::Duration};

use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incident, Instance},
    time,
    v1::{self, InstanceState as State, event::Fact, intent::Want},
};

use super::{Action, Node, Now, folding::describe_exit, restart::Limits};

/// Time of a hook that names none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Escalations of the node's own that wait for the hook; the oldest gives way.
const OWN_MAX: usize = 32;

/// Which run of a hook is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKey {
    /// A chakra's, before a start.
    Chakra {
        /// Instance that is to be started.
        instance: Instance,
        /// Incident of the rung.
        incident: Incident,
        /// Its try.
        attempt: u32,
    },
    /// That of escalations: id of the event, or for the node's own a text in its place.
    Escalation(String),
}

/// A hook to be run.
#[derive(Debug, Clone)]
pub struct HookRun {
    /// Which run.
    pub key: HookKey,
    /// The program.
    pub hook: v1::Hook,
    /// What it is told in its environment, beside the mesh, the node and what the stack file says.
    pub told: Vec<(&'static str, String)>,
    /// Trace that it belongs to.
    pub trace: Option<v1::TraceContext>,
}

impl HookRun {
    /// Time after which it is killed.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        time::duration_or(self.hook.timeout.as_ref(), TIMEOUT)
    }
}

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookOutcome {
    /// Exit 0.
    Ok,
    /// Another exit, or a signal.
    Failed,
    /// It was killed when its time was over.
    TimedOut,
    /// Its program could not be started.
    NotStarted,
    /// It was killed because what it was run for is no longer wanted.
    Abandoned,
}

impl HookOutcome {
    /// As the event says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::NotStarted => "not_started",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What came of a hook.
#[derive(Debug, Clone)]
pub struct HookEnd {
    /// How it ended.
    pub outcome: HookOutcome,
    /// Exit of its main process.
    pub status: Option<v1::ExitStatus>,
    /// Time that it ran.
    pub took: Duration,
    /// The end of its output, redacted; or why it was not started.
    pub output: String,
    /// There was more output before that.
    pub output_cut: bool,
    /// Processes that it had left behind, and that were ended.
    pub stragglers: u32,
}

impl HookEnd {
    fn text(&self, program: &str) -> String {
        let last = self.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let said = if last.is_empty() { String::new() } else { format!(": {last}") };
        match self.outcome {
            HookOutcome::Ok => format!("hook {program} ended well after {:.1?}", self.took),
            HookOutcome::Failed => format!("hook {program} failed, {}", describe_exit(&self.status.unwrap_or_default(), last)),
            HookOutcome::TimedOut => format!("hook {program} was killed after {:.1?}{said}", self.took),
            HookOutcome::NotStarted => format!("hook {program} could not be started{said}"),
            HookOutcome::Abandoned => format!("hook {program} was ended: its start is no longer wanted"),
        }
    }
}

/// Escalations that wait for their hook, and the one that runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Escalating {
    own: VecDeque<v1::Escalation>,
    /// Ids of the record's that have had their hook in this life of the agent.
    done: std::collections::BTreeSet<String>,
    running: Option<v1::Escalation>,
    /// Number of the next of the node's own.
    next: u64,
}

impl Node {
    /// Runs the hook that comes before the start of `id`; where its chakra has none, the rung has failed.
    pub(super) fn run_chakra_hook(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let (Some(key), Some(wanted)) = (inst.hook.clone(), inst.wanted.clone()) else { return };
        let HookKey::Chakra { incident, attempt, .. } = &key else { return };
        let rung = self.order_of(id).map_or_else(String::new, |o| o.order.rung.clone());
        let Some(hook) = wanted.desired.chakra_hook.clone() else {
            self.preparation_failed(id, format!("chakra {} has no hook", wanted.spec.chakra), now);
            return;
        };
        let told = vec![
            ("RAZAR_HOOK", "chakra".to_owned()),
            ("RAZAR_CHAKRA", wanted.spec.chakra.clone()),
            ("RAZAR_COMPONENT", id.component.clone()),
            ("RAZAR_ORDINAL", id.ordinal.to_string()),
            ("RAZAR_INCARNATION", inst.incarnation.to_string()),
            ("RAZAR_INCIDENT", incident.to_string()),
            ("RAZAR_RUNG", rung),
            ("RAZAR_ATTEMPT", attempt.to_string()),
            ("RAZAR_LAST_ERROR", inst.last_error.clone()),
        ];
        let trace = self.story(inst);
        self.actions.push(Action::RunHook(Box::new(HookRun { key, hook, told, trace })));
    }

    /// What comes before a start has failed: the rung has, without a start.
    pub(super) fn preparation_failed(&mut self, id: &Instance, why: String, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        inst.last_error = why;
        inst.slot = false;
        inst.hook = None;
        let limits = inst.spec().map(|s| Limits::of(s));
        self.set_state(id, State::Exited, "what comes before the start failed", now);
        if let Some(limits) = limits {
            self.fail(id, &limits, "start_failed", now);
        }
    }

    /// A start that is no longer wanted needs no hook.
    pub(super) fn abandon_hook(&mut self, id: &Instance) {
        if let Some(key) = self.instances.get_mut(id).and_then(|inst| inst.hook.take()) {
            self.actions.push(Action::EndHook(key));
        }
    }

    /// A hook ended: it is told in any case; a start that waits for it follows, or the rung has failed.
    pub(super) fn fold_hook_ended(&mut self, key: &HookKey, program: &str, end: HookEnd, now: Now) {
        let text = end.text(program);
        let (hook, attempt) = match key {
            HookKey::Chakra { attempt, .. } => ("chakra", *attempt),
            HookKey::Escalation(_) => ("escalation", 0),
        };
        let fact = Fact::HookRan(v1::HookRan {
            hook: hook.to_owned(),
            outcome: end.outcome.name().to_owned(),
            status: end.status,
            took: Some(time::duration(end.took)),
            output: end.output,
            output_cut: end.output_cut,
            stragglers_killed: end.stragglers,
            program: program.to_owned(),
            attempt,
        });
        match key {
            HookKey::Chakra { instance, incident, .. } => {
                let mut event = self.draft(Some(instance), fact, end.outcome.name(), &text, now);
                event.incident = Some(incident.into());
                self.tells.push(event);
                let waits = self.instances.get(instance).is_some_and(|i| i.hook.as_ref() == Some(key) && i.state == State::Preparing);
                if waits && end.outcome == HookOutcome::Ok {
                    if let Some(inst) = self.instances.get_mut(instance) {
                        inst.hook = None;
                    }
                    self.spawn_prepared(instance, now);
                } else if waits {
                    self.preparation_failed(instance, text, now);
                }
            }
            HookKey::Escalation(id) => {
                let about = self.escalating.running.take().unwrap_or_default();
                let instance = about.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
                let known = instance.filter(|i| self.instances.contains_key(i));
                let mut event = self.draft(known.as_ref(), fact, end.outcome.name(), &text, now);
                event.cause_id.clone_from(id);
                self.tells.push(event);
            }
        }
    }

    /// What the node itself escalates has its hook too.
    pub(super) fn escalate_own(&mut self, id: &Instance, severity: &str, about: &str) {
        let number = self.escalating.next;
        self.escalating.next = number.wrapping_add(1);
        let chakra = self.instances.get(id).and_then(|i| i.spec()).map_or_else(String::new, |s| s.chakra.clone());
        let item = v1::Escalation {
            event_id: format!("{}:{}:{number}", self.config.node, self.config.node_epoch),
            severity: severity.to_owned(),
            about: about.to_owned(),
            instance: Some(id.into()),
            incident: None,
            chakra,
        };
        if self.escalating.own.len() >= OWN_MAX {
            self.escalating.own.pop_front();
        }
        self.escalating.own.push_back(item);
    }

    /// The next escalation that has had no hook, if none runs and there is one.
    pub(super) fn run_escalation_hook(&mut self) {
        if self.escalating.running.is_some() {
            return;
        }
        let record = self.intents.escalations(&self.config.node);
        self.escalating.done.retain(|id| record.iter().any(|item| item.event_id == *id));
        if record.is_empty() && self.escalating.own.is_empty() {
            return;
        }
        let Some(hook) = self.escalation_hook() else { return };
        let ordered = record.into_iter().find(|item| !self.escalating.done.contains(&item.event_id));
        let Some(item) = self.escalating.own.pop_front().or(ordered) else { return };
        self.escalating.done.insert(item.event_id.clone());
        let instance = item.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        let incident = item.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
        let told = vec![
            ("RAZAR_HOOK", "escalation".to_owned()),
            ("RAZAR_ESCALATION", item.event_id.clone()),
            ("RAZAR_SEVERITY", item.severity.clone()),
            ("RAZAR_ABOUT", item.about.clone()),
            ("RAZAR_CHAKRA", item.chakra.clone()),
            ("RAZAR_COMPONENT", instance.as_ref().map_or_else(String::new, |i| i.component.clone())),
            ("RAZAR_ORDINAL", instance.as_ref().map_or_else(String::new, |i| i.ordinal.to_string())),
            ("RAZAR_INCIDENT", incident.map_or_else(String::new, |i| i.to_string())),
        ];
        let key = HookKey::Escalation(item.event_id.clone());
        self.escalating.running = Some(item);
        self.actions.push(Action::RunHook(Box::new(HookRun { key, hook, told, trace: None })));
    }

    /// The hook of escalations that the newest record names.
    fn escalation_hook(&self) -> Option<v1::Hook> {
        let wanted = self.instances.values().filter(|i| i.group() == super::Group::User).filter_map(|i| i.wanted.as_ref());
        wanted.max_by_key(|w| w.place.revision)?.desired.escalation_hook.clone()
    }
}

impl super::Intents {
    /// What `node` is to run the hook of escalations for.
    fn escalations(&self, node: &str) -> Vec<v1::Escalation> {
        match self.want(&IntentKey::Escalation(node.to_owned())) {
            Some(Want::Escalations(escalations)) => escalations.items.clone(),
            _ => Vec::new(),
        }
    }
}
