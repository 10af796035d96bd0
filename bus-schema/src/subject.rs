//! Subjects of the mesh as functions, each with its template: code never spells a subject, and spans never carry an id in a name.
//! The catalogue at the end is what `docs/subjects.md` is generated from.

use crate::ids::{IdError, Instance, is_name};

/// Root token of a mesh that names none.
pub const MESH_DEFAULT: &str = "razar";

/// Token that stands for "no component" in the subject of a chakra's fact.
pub const NO_COMPONENT: &str = "_";

/// Chakra token of facts about the mesh itself.
pub const MESH_CHAKRA: &str = "mesh";

/// Target token of a command that concerns the whole mesh.
pub const NO_TARGET: &str = "_";

/// The subjects of one mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    mesh: String,
}

impl Subjects {
    /// Subjects under the root token `mesh`.
    ///
    /// # Errors
    /// When `mesh` is no name.
    pub fn new(mesh: &str) -> Result<Self, IdError> {
        if is_name(mesh) { Ok(Self { mesh: mesh.to_owned() }) } else { Err(IdError::Name(mesh.to_owned())) }
    }

    /// The root token.
    #[must_use]
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// Fact about an instance, a chakra (`component` = [`NO_COMPONENT`]) or the mesh (`chakra` = [`MESH_CHAKRA`]).
    #[must_use]
    pub fn event(&self, chakra: &str, component: &str, kind: &str) -> String {
        format!("{}.event.{chakra}.{component}.{kind}", self.mesh)
    }

    /// Every fact.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.event.>", self.mesh)
    }

    /// Facts by a pattern as people type it after `razar.event.` (`heart.>`).
    #[must_use]
    pub fn events_matching(&self, pattern: &str) -> String {
        format!("{}.event.{pattern}", self.mesh)
    }

    /// A command to an agent.
    #[must_use]
    pub fn command(&self, agent: &str, verb: &str, target: &str) -> String {
        format!("{}.command.{agent}.{verb}.{target}", self.mesh)
    }

    /// Every command to `agent`.
    #[must_use]
    pub fn commands_to(&self, agent: &str) -> String {
        format!("{}.command.{agent}.>", self.mesh)
    }

    /// A command handed over to the replica of `agent` that decides about its target.
    #[must_use]
    pub fn handover(&self, agent: &str, replica: &str) -> String {
        format!("{}.handover.{agent}.{replica}", self.mesh)
    }

    /// Every command.
    #[must_use]
    pub fn commands(&self) -> String {
        format!("{}.command.>", self.mesh)
    }

    /// A question to an agent, answered by any of its replicas.
    #[must_use]
    pub fn query(&self, agent: &str, verb: &str) -> String {
        format!("{}.query.{agent}.{verb}", self.mesh)
    }

    /// A question to a node.
    #[must_use]
    pub fn node(&self, node: &str, verb: &str) -> String {
        format!("{}.node.{node}.{verb}", self.mesh)
    }

    /// A beat; `kind` is `node`, `agent` or `component`.
    #[must_use]
    pub fn heartbeat(&self, kind: &str, id: &str) -> String {
        format!("{}.heartbeat.{kind}.{id}", self.mesh)
    }

    /// The beat of a component's instance.
    #[must_use]
    pub fn heartbeat_of(&self, instance: &Instance) -> String {
        self.heartbeat("component", &instance.key())
    }

    /// Beats of every component.
    #[must_use]
    pub fn component_heartbeats(&self) -> String {
        format!("{}.heartbeat.component.>", self.mesh)
    }

    /// Every beat.
    #[must_use]
    pub fn heartbeats(&self) -> String {
        format!("{}.heartbeat.>", self.mesh)
    }

    /// Log lines of a component.
    #[must_use]
    pub fn log(&self, chakra: &str, component: &str) -> String {
        format!("{}.log.{chakra}.{component}", self.mesh)
    }

    /// Every log line.
    #[must_use]
    pub fn logs(&self) -> String {
        format!("{}.log.>", self.mesh)
    }

    /// Reads an event's subject.
    #[must_use]
    pub fn parse_event<'s>(&self, subject: &'s str) -> Option<EventSubject<'s>> {
        let mut tokens = subject.strip_prefix(self.mesh.as_str())?.strip_prefix(".event.")?.split('.');
        let parsed = EventSubject { chakra: tokens.next()?, component: tokens.next()?, kind: tokens.next()? };
        tokens.next().is_none().then_some(parsed)
    }

    /// Reads a command's subject.
    #[must_use]
    pub fn parse_command<'s>(&self, subject: &'s str) -> Option<CommandSubject<'s>> {
        let mut tokens = subject.strip_prefix(self.mesh.as_str())?.strip_prefix(".command.")?.splitn(3, '.');
        let parsed = CommandSubject { agent: tokens.next()?, verb: tokens.next()?, target: tokens.next()? };
        let filled = [parsed.agent, parsed.verb, parsed.target].iter().all(|t| !t.is_empty());
        filled.then_some(parsed)
    }
}

/// Tokens of an event's subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSubject<'s> {
    /// Chakra, or [`MESH_CHAKRA`].
    pub chakra: &'s str,
    /// Component, [`NO_COMPONENT`], or the agent or node.
    pub component: &'s str,
    /// Kind.
    pub kind: &'s str,
}

/// Tokens of a command's subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandSubject<'s> {
    /// Agent addressed.
    pub agent: &'s str,
    /// Verb.
    pub verb: &'s str,
    /// Target: component (`api`, `api.1`), stack, profile or [`NO_TARGET`].
    pub target: &'s str,
}

/// One line of the catalogue of subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Template with `<placeholders>`.
    pub template: &'static str,
    /// Delivery class.
    pub class: &'static str,
    /// Type of the payload.
    pub payload: &'static str,
    /// Type of the answer, `-` if none.
    pub answer: &'static str,
    /// What it is for.
    pub what: &'static str,
}

/// Every subject of the contract, in the order of the documentation.
#[must_use]
pub fn catalogue() -> &'static [Entry] {
    const fn entry(template: &'static str, class: &'static str, payload: &'static str, answer: &'static str, what: &'static str) -> Entry {
        Entry { template, class, payload, answer, what }
    }
    const ALL: &[Entry] = &[
        entry("razar.event.<chakra>.<component>.<kind>", "event", "Event", "-", "a fact about a component"),
        entry("razar.event.<chakra>._.<kind>", "event", "Event", "-", "a fact about a whole chakra"),
        entry("razar.event.mesh.<agent or node>.<kind>", "event", "Event", "-", "a fact about the mesh itself"),
        entry("razar.command.orchestrator.apply.<stack>", "command", "Command", "Receipt", "put a stored stack revision in force"),
        entry(
            "razar.command.orchestrator.profile.<profile>",
            "command",
            "Command",
            "Receipt",
            "switch the profile, as a diff; `_`: every component",
        ),
        entry("razar.command.orchestrator.start.<component>", "command", "Command", "Receipt", "run what was stopped by hand"),
        entry("razar.command.orchestrator.stop.<component>", "command", "Command", "Receipt", "stop it until it is started by hand"),
        entry("razar.command.orchestrator.restart.<component>", "command", "Command", "Receipt", "a new generation, that is a new process"),
        entry("razar.command.orchestrator.down.<stack>", "command", "Command", "Receipt", "stop everything in reverse order of rank"),
        entry(
            "razar.command.quarantine.quarantine.<component>",
            "command",
            "Command",
            "Receipt",
            "isolate it; `note` says why, `for` how long, then probation",
        ),
        entry("razar.command.quarantine.release.<component>", "command", "Command", "Receipt", "end its quarantine; `note` is required"),
        entry("razar.query.registry.status", "query", "StatusRequest", "StatusReply", "the projection, from memory"),
        entry("razar.query.registry.discover", "query", "DiscoverRequest", "DiscoverReply", "who is called so, who offers what"),
        entry("razar.query.orchestrator.plan", "query", "PlanRequest", "PlanReply", "the plan in force"),
        entry("razar.node.<node>.why", "query", "WhyRequest", "WhyReply", "the precedence table of an instance"),
        entry("razar.node.<node>.logs", "query", "LogTailRequest", "LogTailReply", "last log lines; following them"),
        entry("razar.node.<node>.inventory", "query", "InventoryRequest", "InventoryReply", "what the node holds, and what it uses"),
        entry("razar.node.<node>.ping", "query", "PingRequest", "PingReply", "a sign of life"),
        entry(
            "razar.node.<node>.silence",
            "query",
            "SilenceRequest",
            "SilenceReply",
            "what the node makes of an instance that does not beat",
        ),
        entry("razar.query.watchdog.health", "query", "HealthRequest", "HealthReply", "how the mesh is, in numbers"),
        entry(
            "razar.handover.<agent>.<replica>",
            "query",
            "Command",
            "empty once it is taken",
            "a command that another replica has read, for the holder of its target's shard",
        ),
        entry("razar.heartbeat.<kind>.<id>", "heartbeat", "Heartbeat", "-", "a beat of a node, an agent or a component"),
        entry("razar.log.<chakra>.<component>", "log", "LogLine", "-", "log lines while somebody follows"),
    ];
    ALL
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "[a-z0-9][a-z0-9_-]{0,10}";

    proptest! {
        #[test]
        fn event_subjects_round_trip(mesh in NAME, chakra in NAME, component in NAME, kind in NAME) {
            let subjects = Subjects::new(&mesh).unwrap();
            let subject = subjects.event(&chakra, &component, &kind);
            prop_assert_eq!(
                subjects.parse_event(&subject),
                Some(EventSubject { chakra: &chakra, component: &component, kind: &kind })
            );
        }

        #[test]
        fn command_subjects_round_trip(agent in NAME, verb in NAME, target in "[a-z0-9][a-z0-9_-]{0,10}(\\.[0-9]{1,3})?") {
            let subjects = Subjects::new(MESH_DEFAULT).unwrap();
            let subject = subjects.command(&agent, &verb, &target);
            prop_assert_eq!(
                subjects.parse_command(&subject),
                Some(CommandSubject { agent: &agent, verb: &verb, target: &target })
            );
        }

        #[test]
        fn any_subject_is_survived(subject in ".*") {
            let subjects = Subjects::new(MESH_DEFAULT).unwrap();
            let _ = (subjects.parse_event(&subject), subjects.parse_command(&subject));
        }
    }

    #[test]
    fn another_mesh_is_not_ours() {
        let subjects = Subjects::new("razar").unwrap();
        assert_eq!(subjects.parse_event("razar2.event.heart.api.component_ready"), None);
        assert!(Subjects::new("razar.x").is_err());
    }
}
