//! What people must know of: the same error again and again, and what no rung healed. Told as `escalated`, and put before a node, which
//! alone starts processes and so runs the hook of the stack's config; answered by its `hook_ran`, an escalation leaves the record.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    event::{Kind as _, agent_event_id},
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, event::Fact, intent::Want},
};

use super::{AGENT, Announce, Now, RETRY_PAUSE, Record, State, View, WRITE_LIMIT, WriteError};

/// Times that the same error is told before people are.
const REPEATED: u32 = 3;
/// Period in which the same error is counted, from the first on.
const REPEATED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Different errors that are counted of one instance; the one told least lately gives way.
const ERRORS_MAX: usize = 8;
/// Longest text by which errors are compared, in characters.
const SIGNATURE_CHARS_MAX: usize = 200;
/// What is older, by the broker's clock, is news to nobody: a replica that reads an old stream tells nothing of it anew.
const NEWS_FOR: Duration = Duration::from_secs(3600);
/// Escalations that are owed or wait for their hook.
const WAITING_MAX: usize = 256;
/// Escalations in the record of one node.
const RECORD_MAX: usize = 32;

/// An error as it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    signature: String,
    count: u32,
    first: SystemTime,
}

/// An escalation that recovery owes.
#[derive(Debug, Clone, PartialEq)]
struct Due {
    id: String,
    why: Why,
    instance: Instance,
    incarnation: Incarnation,
    incident: Option<v1::IncidentId>,
    chakra: String,
    stack: String,
    cause: String,
    stored: SystemTime,
}

/// Why people must know.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// The same error, so often.
    Repeated(String, u32),
    /// No rung helped; its last error.
    PastHelp(String),
}

/// An escalation that no hook has been told of.
#[derive(Debug, Clone, PartialEq)]
struct Waiting {
    item: v1::Escalation,
    stored: SystemTime,
}

/// Everything folded about escalations.
#[derive(Debug, Clone, Default)]
pub(super) struct Escalations {
    /// When the newest event was stored, by the broker's clock: what is recent is measured by it.
    clock: Option<SystemTime>,
    due: VecDeque<Due>,
    waiting: VecDeque<Waiting>,
    answered: VecDeque<String>,
}

impl Escalations {
    pub(super) fn fold(&mut self, event: &v1::Event, view: Option<&mut View>, stored: SystemTime) {
        self.clock = self.clock.max(Some(stored));
        let by_node = event.source.as_ref().is_some_and(|s| s.kind == "node");
        match &event.fact {
            Some(Fact::ComponentExited(exited)) if event.incident.is_some() && !exited.last_error.is_empty() => {
                let count = view.map_or(0, |view| count(&mut view.errors, &exited.last_error, stored));
                if count == REPEATED {
                    self.owe(event, Why::Repeated(exited.last_error.clone(), count), stored);
                }
            }
            Some(Fact::RecoveryFailed(failed)) => self.owe(event, Why::PastHelp(failed.last_error.clone()), stored),
            // A node runs the hook of what it escalates itself.
            Some(Fact::Escalated(escalated)) if !by_node => self.wait(event, escalated, stored),
            Some(Fact::HookRan(ran)) if ran.hook == "escalation" => {
                self.waiting.retain(|w| w.item.event_id != event.cause_id);
                self.answered.push_back(event.cause_id.clone());
                if self.answered.len() > WAITING_MAX {
                    self.answered.pop_front();
                }
            }
            _ => {}
        }
    }

    pub(super) const fn clock(&self) -> Option<SystemTime> {
        self.clock
    }

    fn owe(&mut self, event: &v1::Event, why: Why, stored: SystemTime) {
        let Some(instance) = event.instance.as_ref().and_then(|i| Instance::try_from(i).ok()) else { return };
        let incarnation = event.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
        let id = agent_event_id(AGENT, "escalated", Some(&instance), Some(incarnation), &event.id);
        if self.due.iter().any(|due| due.id == id) {
            return;
        }
        if self.due.len() >= WAITING_MAX {
            self.due.pop_front();
        }
        self.due.push_back(Due {
            id,
            why,
            instance,
            incarnation,
            incident: event.incident.clone(),
            chakra: event.chakra.clone(),
            stack: event.stack.clone(),
            cause: event.id.clone(),
            stored,
        });
    }

    fn wait(&mut self, event: &v1::Event, escalated: &v1::Escalated, stored: SystemTime) {
        self.due.retain(|due| due.id != event.id);
        if self.answered.contains(&event.id) || self.waiting.iter().any(|w| w.item.event_id == event.id) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        let item = v1::Escalation {
            event_id: event.id.clone(),
            severity: escalated.severity.clone(),
            about: escalated.about.clone(),
            instance: event.instance.clone(),
            incident: event.incident.clone().filter(|i| Incident::try_from(i).is_ok()),
            chakra: event.chakra.clone(),
        };
        self.waiting.push_back(Waiting { item, stored });
    }

    fn is_news(&self, stored: SystemTime) -> bool {
        self.clock.and_then(|clock| clock.duration_since(stored).ok()).unwrap_or_default() < NEWS_FOR
    }
}

/// Counts an error of an instance; how often it was told by now.
fn count(errors: &mut VecDeque<Row>, text: &str, stored: SystemTime) -> u32 {
    errors.retain(|row| stored.duration_since(row.first).unwrap_or_default() < REPEATED_WITHIN);
    let signature = signature(text);
    let known = errors.iter().position(|row| row.signature == signature).and_then(|at| errors.remove(at));
    let mut row = known.unwrap_or(Row { signature, count: 0, first: stored });
    row.count = row.count.saturating_add(1);
    let count = row.count;
    errors.push_back(row);
    if errors.len() > ERRORS_MAX {
        errors.pop_front();
    }
    count
}

/// By what errors are the same: their text without its numbers, which are times, ports and addresses.
fn signature(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(SIGNATURE_CHARS_MAX) {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

impl State {
    /// Escalations that are owed and not in EVENTS.
    pub(super) fn owed_escalations(&self, now: Now) -> Vec<v1::Event> {
        let escalations = self.facts.escalations();
        let owed = escalations.due.iter().filter(|due| !self.facts.is_told(&due.id) && escalations.is_news(due.stored));
        owed.map(|due| self.escalated(due, now.wall)).collect()
    }

    fn escalated(&self, due: &Due, at: SystemTime) -> v1::Event {
        let required = self.desired(&due.instance).is_none_or(|(_, spec)| spec.required);
        let name = due.instance.to_string();
        let (severity, about, count) = match &due.why {
            Why::Repeated(error, count) => ("P3", format!("{name}: the same error {count} times: {error}"), *count),
            Why::PastHelp(error) => {
                let after = if error.is_empty() { String::new() } else { format!(": {error}") };
                (if required { "P2" } else { "P3" }, format!("{name}: no rung helped, it is isolated{after}"), 0)
            }
        };
        let fact = Fact::Escalated(v1::Escalated { severity: severity.to_owned(), about: about.clone(), count });
        let incident = due.incident.as_ref().and_then(|i| Incident::try_from(i).ok());
        v1::Event {
            id: due.id.clone(),
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(at)),
            source: Some(self.actor()),
            chakra: due.chakra.clone(),
            instance: Some((&due.instance).into()),
            incarnation: Some(due.incarnation.into()),
            trace: incident.as_ref().map(|i| self.trace_of(i)),
            incident: due.incident.clone(),
            cause_id: due.cause.clone(),
            reason: Some(v1::Reason { code: if count > 0 { "repeated" } else { "past_help" }.to_owned(), text: about }),
            mesh: self.who.mesh.clone(),
            stack: due.stack.clone(),
            fact: Some(fact),
            ..Default::default()
        }
    }

    /// A record of escalations was read or written; `None`: somebody deleted it, or wrote there what is none.
    pub fn apply_escalations(&mut self, node: &str, revision: u64, intent: Option<std::sync::Arc<v1::Intent>>, now: Now) {
        let known = self.announced.entry(node.to_owned()).or_default();
        if known.revision < revision {
            *known = Record { revision, seen: now.mono, intent };
        }
    }

    /// The records of escalations that are to be written.
    pub(super) fn announcements(&mut self, now: Now) -> Vec<Announce> {
        let mut out = Vec::new();
        for (node, items) in self.wanted_announcements() {
            let known = self.announced.get(&node);
            let stands = known.and_then(|r| match &r.intent.as_ref()?.want {
                Some(Want::Escalations(e)) => Some(e.items.as_slice()),
                _ => None,
            });
            let is_same = stands.map_or(items.is_empty(), |stands| stands == items);
            if is_same || self.announcing.get(&node).is_some_and(|until| *until > now.mono) {
                continue;
            }
            let expected = known.map_or(0, |r| r.revision);
            let (count, newest) = (items.len(), items.last().map(|i| i.event_id.clone()).unwrap_or_default());
            let intent = v1::Intent {
                writer: Some(self.actor()),
                cause_id: newest,
                reason: Some(v1::Reason { code: "escalations".to_owned(), text: format!("{count} wait for the escalation hook") }),
                decided_at: Some(time::timestamp(now.wall)),
                want: Some(Want::Escalations(v1::Escalations { node: node.clone(), items })),
                ..Default::default()
            };
            self.announcing.insert(node.clone(), now.mono + WRITE_LIMIT);
            out.push(Announce { node, intent: Box::new(intent), expected, bucket: self.bucket });
        }
        out
    }

    /// For each node that has a record, or is to have one, what it is to say.
    fn wanted_announcements(&self) -> BTreeMap<String, Vec<v1::Escalation>> {
        let mut wanted: BTreeMap<String, Vec<v1::Escalation>> = self.announced.keys().map(|node| (node.clone(), Vec::new())).collect();
        let escalations = self.facts.escalations();
        if escalations.waiting.is_empty() {
            return wanted;
        }
        let hooked = self.hooked_nodes();
        for waiting in escalations.waiting.iter().filter(|w| escalations.is_news(w.stored)) {
            let instance = waiting.item.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
            let own = instance.and_then(|i| self.facts.view(&i)).map(|view| view.node.clone());
            let node = own.filter(|node| hooked.contains(node)).or_else(|| hooked.first().cloned());
            if let Some(node) = node {
                wanted.entry(node).or_default().push(waiting.item.clone());
            }
        }
        for items in wanted.values_mut() {
            items.truncate(RECORD_MAX);
        }
        wanted
    }

    /// Present nodes that know of a hook for escalations.
    fn hooked_nodes(&self) -> BTreeSet<String> {
        let all = self.desired.keys().filter_map(|id| self.desired(id));
        let hooked = all.filter(|(desired, _)| desired.escalation_hook.is_some()).map(|(desired, _)| desired.node.clone());
        hooked.filter(|node| !self.facts.node(node).lost).collect()
    }

    /// What came of the write of a record of escalations.
    pub(super) fn apply_announced(&mut self, announce: Announce, result: Result<u64, WriteError>, now: Now) {
        match result {
            Ok(revision) => {
                self.announcing.remove(&announce.node);
                self.apply_escalations(&announce.node, revision, Some(std::sync::Arc::from(announce.intent)), now);
            }
            Err(_) => {
                self.announcing.insert(announce.node, now.mono + RETRY_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_differ_in_numbers_alone_are_the_same() {
        assert_eq!(signature("timeout after 1250ms at 10.0.0.3:5432"), signature("timeout after 8ms at 10.1.20.3:41"));
        assert_ne!(signature("timeout"), signature("refused"));
        assert_eq!(signature(&"x".repeat(9_999)).len(), SIGNATURE_CHARS_MAX);
    }

    #[test]
    fn an_error_is_counted_for_a_day_and_few_are_counted_at_once() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut rows = VecDeque::new();
        let counts: Vec<u32> = [0, 10, 20].map(|t| count(&mut rows, "boom 1", at(t))).to_vec();
        assert_eq!(counts, [1, 2, 3]);
        assert_eq!(count(&mut rows, "boom 2", at(86_400)), 1, "a day later it begins anew");
        for n in 0..50_u8 {
            count(&mut rows, &char::from(b'A' + n).to_string(), at(86_401));
        }
        assert_eq!(rows.len(), ERRORS_MAX);
    }
}
