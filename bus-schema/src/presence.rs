//! Who is there, by EVENTS: when a node or an agent counts as silent, and when as heard again. Every fold of EVENTS goes by this, so that a
//! verdict that was overtaken by what it judged changes none.

use crate::v1::{self, event::Fact};

/// Prefix of the mesh-wide cause of an incident that a lost node is.
const NODE_LOST: &str = "node_lost:";

/// Mesh-wide cause of the incident that the loss of `node` is.
#[must_use]
pub fn lost_node_cause(node: &str) -> String {
    format!("{NODE_LOST}{node}")
}

/// Node that an event is about: the one that speaks, or the one that the watchdog has given a verdict on.
#[must_use]
pub fn node_of(event: &v1::Event) -> Option<&str> {
    let source = event.source.as_ref()?;
    if source.kind == "node" {
        return Some(&source.id);
    }
    if !matches!(event.fact, Some(Fact::NodeLost(_) | Fact::NodeReturned(_))) {
        return None;
    }
    event.incident.as_ref()?.mesh_cause.strip_prefix(NODE_LOST)
}

/// Agent that an event is about, as kind and id.
#[must_use]
pub fn agent_of(event: &v1::Event) -> Option<(&str, &str)> {
    match &event.fact {
        Some(Fact::AgentStarted(agent)) => Some((&agent.kind, &agent.id)),
        Some(Fact::AgentDown(agent)) => Some((&agent.kind, &agent.id)),
        Some(Fact::AgentReturned(agent)) => Some((&agent.kind, &agent.id)),
        _ => None,
    }
}

/// What an event is to the presence of whom it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It says nothing new.
    Same,
    /// From now on it counts as silent.
    Away,
    /// From now on it counts as there.
    Here,
    /// A verdict on a silence that was over when it was told.
    Void,
}

/// Presence of a node or an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    by: String,
    away: bool,
}

impl Presence {
    /// What a projection has kept.
    #[must_use]
    pub fn restore(by: &str, away: bool) -> Self {
        Self { by: by.to_owned(), away }
    }

    /// Folds an event about this node or agent that was not folded before. A verdict counts only if its cause is the last change.
    pub fn fold(&mut self, event: &v1::Event) -> Turn {
        // Of one whose beginning is no longer told a verdict is believed.
        let current = self.by.is_empty() || event.cause_id == self.by;
        let (turn, away) = match &event.fact {
            Some(Fact::NodeLost(_) | Fact::AgentDown(_)) if !current || self.away => return Turn::Void,
            Some(Fact::NodeReturned(_) | Fact::AgentReturned(_)) if !current || !self.away => return Turn::Void,
            Some(Fact::NodeLost(_) | Fact::AgentDown(_)) => (Turn::Away, true),
            Some(Fact::NodeReturned(_) | Fact::AgentReturned(_) | Fact::NodeJoined(_) | Fact::AgentStarted(_)) => (Turn::Here, false),
            // What a node tells from its journal says that it is there, whatever it is about.
            _ if self.away && event.node_sequence.is_some() => (Turn::Here, false),
            _ => return Turn::Same,
        };
        self.by.clone_from(&event.id);
        self.away = away;
        turn
    }

    /// Counts as silent.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        self.away
    }

    /// Id of the event that changed it last: the cause of the next verdict. Empty: none is known.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, cause: &str, fact: Fact) -> v1::Event {
        v1::Event { id: id.to_owned(), cause_id: cause.to_owned(), fact: Some(fact), ..Default::default() }
    }

    fn lost(id: &str, cause: &str) -> v1::Event {
        event(id, cause, Fact::NodeLost(v1::NodeLost::default()))
    }

    #[test]
    fn a_verdict_whose_cause_is_no_longer_the_last_changes_nothing() {
        let mut node = Presence::default();
        assert_eq!(node.fold(&event("j1", "", Fact::NodeJoined(v1::NodeJoined::default()))), Turn::Here);
        assert_eq!(node.fold(&event("j2", "", Fact::NodeJoined(v1::NodeJoined::default()))), Turn::Here);
        assert_eq!(node.fold(&lost("l1", "j1")), Turn::Void, "it joined again since");
        assert_eq!(node.fold(&lost("l2", "j2")), Turn::Away);
        assert_eq!(node.fold(&lost("l3", "l2")), Turn::Void, "it is lost already");
        let returned = |id: &str, cause: &str| event(id, cause, Fact::NodeReturned(v1::NodeReturned::default()));
        assert_eq!(node.fold(&returned("r1", "l1")), Turn::Void);
        assert_eq!(node.fold(&returned("r2", "l2")), Turn::Here);
        assert_eq!(node.fold(&lost("l4", "l2")), Turn::Void);
        assert_eq!((node.by(), node.is_away()), ("r2", false));
    }

    #[test]
    fn what_a_node_tells_brings_it_back() {
        let mut node = Presence::restore("j1", false);
        assert_eq!(node.fold(&lost("l1", "j1")), Turn::Away);
        let mut told = event("n:a:e:7", "", Fact::ComponentReady(v1::ComponentReady::default()));
        assert_eq!(node.fold(&told), Turn::Same, "it has no place in a journal");
        told.node_sequence = Some(v1::NodeSequence::default());
        assert_eq!(node.fold(&told), Turn::Here);
        assert_eq!(node.fold(&lost("l2", "j1")), Turn::Void, "it has spoken since");
        assert_eq!(node.fold(&lost("l3", "n:a:e:7")), Turn::Away);
    }

    #[test]
    fn a_verdict_on_one_whose_beginning_is_forgotten_is_believed() {
        let mut node = Presence::default();
        assert_eq!(node.fold(&lost("l1", "j1")), Turn::Away);
        assert_eq!(node.fold(&lost("l2", "j1")), Turn::Void);
    }

    #[test]
    fn an_event_names_whom_it_is_about() {
        let mut verdict = lost("l", "j");
        verdict.source = Some(v1::Actor { kind: "watchdog".to_owned(), id: "w".to_owned() });
        assert_eq!(node_of(&verdict), None);
        verdict.incident = Some(v1::IncidentId { mesh_cause: lost_node_cause("b"), ..Default::default() });
        assert_eq!(node_of(&verdict), Some("b"));
        verdict.source = Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() });
        assert_eq!(node_of(&verdict), Some("a"));
        let down = v1::AgentDown { kind: "registry".to_owned(), id: "r".to_owned(), ..Default::default() };
        assert_eq!(agent_of(&event("d", "", Fact::AgentDown(down))), Some(("registry", "r")));
    }
}
