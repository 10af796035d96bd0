//! The watchdog's events, each made from facts alone, so that every replica tells the same verdict under the same id.

use std::time::Duration;

use razar_bus_schema::{
    event::{Kind as _, agent_event_id},
    ids::{Incident, Instance, sha256_hex},
    presence::lost_node_cause,
    subject::MESH_CHAKRA,
    time,
    trace::Context,
    v1::{self, event::Fact},
};

use super::{Now, State, facts::View};

/// Kind of this agent, in ids and subjects.
pub const AGENT: &str = "watchdog";

/// Longest cause that an id carries as it is: verdicts follow from verdicts, and their ids would grow without end.
const CAUSE_BYTES_MAX: usize = 80;
/// Hexadecimal digits of a longer one's hash.
const CAUSE_DIGITS: usize = 32;

/// What an event says beside its fact.
pub(super) struct Said {
    pub(super) code: &'static str,
    pub(super) text: String,
    /// Id of the event that caused it.
    pub(super) cause: String,
}

/// A cause as an id carries it.
fn short(cause: &str) -> String {
    if cause.len() <= CAUSE_BYTES_MAX {
        return cause.to_owned();
    }
    sha256_hex(cause.as_bytes()).chars().take(CAUSE_DIGITS).collect()
}

impl State {
    fn event(&self, fact: Fact, said: Said, now: Now) -> v1::Event {
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(now.wall)),
            source: Some(v1::Actor { kind: AGENT.to_owned(), id: self.who.replica.clone() }),
            chakra: MESH_CHAKRA.to_owned(),
            cause_id: said.cause,
            reason: Some(v1::Reason { code: said.code.to_owned(), text: said.text }),
            mesh: self.who.mesh.clone(),
            fact: Some(fact),
            ..v1::Event::default()
        }
    }

    /// An event about a node.
    pub(super) fn about_node(&self, node: &str, fact: Fact, said: Said, now: Now) -> Box<v1::Event> {
        let id = agent_event_id(AGENT, fact.kind(), None, None, &format!("{node}:{}", short(&said.cause)));
        let incident = v1::IncidentId { mesh_cause: lost_node_cause(node), ..v1::IncidentId::default() };
        self.in_story(v1::Event { id, incident: Some(incident), ..self.event(fact, said, now) })
    }

    /// An event about an agent.
    pub(super) fn about_agent(&self, kind: &str, id: &str, fact: Fact, said: Said, now: Now) -> Box<v1::Event> {
        let event_id = agent_event_id(AGENT, fact.kind(), None, None, &format!("{kind}/{id}:{}", short(&said.cause)));
        self.in_story(v1::Event { id: event_id, ..self.event(fact, said, now) })
    }

    /// An event about a chakra, or all of them (`mesh`).
    pub(super) fn about_chakra(&self, chakra: &str, fact: Fact, said: Said, now: Now) -> Box<v1::Event> {
        let id = agent_event_id(AGENT, fact.kind(), None, None, &format!("{chakra}:{}", short(&said.cause)));
        self.in_story(v1::Event { id, chakra: chakra.to_owned(), ..self.event(fact, said, now) })
    }

    /// A verdict begins a story of its own; what ends it, which it is the cause of, belongs to that.
    fn in_story(&self, event: v1::Event) -> Box<v1::Event> {
        let ends = matches!(event.fact, Some(Fact::NodeReturned(_) | Fact::AgentReturned(_) | Fact::ChakraRecovered(_)));
        let verdict = if ends { &event.cause_id } else { &event.id };
        let trace = Some(Context::incident(&self.who.mesh, verdict).into());
        Box::new(v1::Event { trace, ..event })
    }

    /// An event about an instance; `detail` tells two apart that follow from one event.
    pub(super) fn about_instance(
        &self,
        (id, view): (&Instance, &View),
        fact: Fact,
        (said, detail): (Said, &str),
        now: Now,
    ) -> Box<v1::Event> {
        let cause = if detail.is_empty() { short(&said.cause) } else { format!("{detail}:{}", short(&said.cause)) };
        let chakra = self.desired(id).map(|(_, spec)| spec.chakra.clone()).unwrap_or_default();
        Box::new(v1::Event {
            id: agent_event_id(AGENT, fact.kind(), Some(id), Some(view.incarnation), &cause),
            chakra,
            instance: Some(id.into()),
            incarnation: Some(view.incarnation.into()),
            stack: view.stack.clone(),
            ..self.event(fact, said, now)
        })
    }

    /// The same about an incident.
    pub(super) fn of_incident(&self, mut event: Box<v1::Event>, incident: &Incident) -> Box<v1::Event> {
        event.incident = Some(incident.into());
        event.trace = Some(Context::incident(&self.who.mesh, &incident.to_string()).into());
        event
    }
}

/// A length of time as people read it.
pub(super) fn spoken(span: Duration) -> String {
    format!("{:.1}s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_verdicts_on_verdicts_stay_short() {
        let mut cause = "n:a:0f3c:17".to_owned();
        assert_eq!(short(&cause), cause);
        for _ in 0..50 {
            cause = agent_event_id(AGENT, "node_returned", None, None, &format!("a:{}", short(&cause)));
            assert!(cause.len() < 160, "{cause}");
        }
    }
}
