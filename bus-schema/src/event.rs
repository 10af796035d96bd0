//! Facts: their names, the computed ids of events, and the subject that an event goes out on.

use crate::{
    ids::{Incarnation, Instance},
    subject::{MESH_CHAKRA, NO_COMPONENT, Subjects},
    v1::{self, event::Fact},
};

/// Names of all facts, in the order of the contract.
pub const KINDS: [&str; 57] = [
    "component_started",
    "component_ready",
    "component_unready",
    "component_exited",
    "component_unkillable",
    "component_unresponsive",
    "component_degraded",
    "component_blocked",
    "component_failed",
    "component_stopped",
    "chakra_down",
    "chakra_recovered",
    "recovered",
    "recovery_started",
    "incident_withdrawn",
    "order_void",
    "rung_tried",
    "brake_engaged",
    "brake_released",
    "recovery_failed",
    "quarantined",
    "released",
    "load_requested",
    "component_loading",
    "component_loaded",
    "component_unloaded",
    "node_joined",
    "node_inventory",
    "node_lost",
    "agent_down",
    "patch_proposed",
    "patch_applied",
    "patch_reverted",
    "failure_pulse",
    "snapshot_taken",
    "restored",
    "profile_switched",
    "mission_started",
    "mission_completed",
    "great_spiral",
    "out_of_sync",
    "operator_command",
    "escalated",
    "vram_pressure",
    "breaker_opened",
    "breaker_half_opened",
    "breaker_closed",
    "desired_changed",
    "dead_lettered",
    "agent_started",
    "limit_exceeded",
    "hook_ran",
    "node_returned",
    "agent_returned",
    "limit_restored",
    "probation_started",
    "rung_granted",
];

/// Names a fact as subjects and [`v1::Event::kind`] do.
pub trait Kind {
    /// Name in snake_case.
    fn kind(&self) -> &'static str;
}

impl Kind for Fact {
    fn kind(&self) -> &'static str {
        match self {
            Fact::ComponentStarted(_) => "component_started",
            Fact::ComponentReady(_) => "component_ready",
            Fact::ComponentUnready(_) => "component_unready",
            Fact::ComponentExited(_) => "component_exited",
            Fact::ComponentUnkillable(_) => "component_unkillable",
            Fact::ComponentUnresponsive(_) => "component_unresponsive",
            Fact::ComponentDegraded(_) => "component_degraded",
            Fact::ComponentBlocked(_) => "component_blocked",
            Fact::ComponentFailed(_) => "component_failed",
            Fact::ComponentStopped(_) => "component_stopped",
            Fact::ChakraDown(_) => "chakra_down",
            Fact::ChakraRecovered(_) => "chakra_recovered",
            Fact::Recovered(_) => "recovered",
            Fact::RecoveryStarted(_) => "recovery_started",
            Fact::IncidentWithdrawn(_) => "incident_withdrawn",
            Fact::OrderVoid(_) => "order_void",
            Fact::RungGranted(_) => "rung_granted",
            Fact::RungTried(_) => "rung_tried",
            Fact::BrakeEngaged(_) => "brake_engaged",
            Fact::BrakeReleased(_) => "brake_released",
            Fact::RecoveryFailed(_) => "recovery_failed",
            Fact::Quarantined(_) => "quarantined",
            Fact::Released(_) => "released",
            Fact::LoadRequested(_) => "load_requested",
            Fact::ComponentLoading(_) => "component_loading",
            Fact::ComponentLoaded(_) => "component_loaded",
            Fact::ComponentUnloaded(_) => "component_unloaded",
            Fact::NodeJoined(_) => "node_joined",
            Fact::NodeInventory(_) => "node_inventory",
            Fact::NodeLost(_) => "node_lost",
            Fact::AgentDown(_) => "agent_down",
            Fact::PatchProposed(_) => "patch_proposed",
            Fact::PatchApplied(_) => "patch_applied",
            Fact::PatchReverted(_) => "patch_reverted",
            Fact::FailurePulse(_) => "failure_pulse",
            Fact::SnapshotTaken(_) => "snapshot_taken",
            Fact::Restored(_) => "restored",
            Fact::ProfileSwitched(_) => "profile_switched",
            Fact::MissionStarted(_) => "mission_started",
            Fact::MissionCompleted(_) => "mission_completed",
            Fact::GreatSpiral(_) => "great_spiral",
            Fact::OutOfSync(_) => "out_of_sync",
            Fact::OperatorCommand(_) => "operator_command",
            Fact::Escalated(_) => "escalated",
            Fact::VramPressure(_) => "vram_pressure",
            Fact::BreakerOpened(_) => "breaker_opened",
            Fact::BreakerHalfOpened(_) => "breaker_half_opened",
            Fact::BreakerClosed(_) => "breaker_closed",
            Fact::DesiredChanged(_) => "desired_changed",
            Fact::DeadLettered(_) => "dead_lettered",
            Fact::AgentStarted(_) => "agent_started",
            Fact::LimitExceeded(_) => "limit_exceeded",
            Fact::HookRan(_) => "hook_ran",
            Fact::NodeReturned(_) => "node_returned",
            Fact::AgentReturned(_) => "agent_returned",
            Fact::LimitRestored(_) => "limit_restored",
            Fact::ProbationStarted(_) => "probation_started",
        }
    }
}

/// Id of a node's event: its place in the node's journal.
#[must_use]
pub fn node_event_id(node: &str, epoch: &str, sequence: u64) -> String {
    format!("n:{node}:{epoch}:{sequence}")
}

/// Reason code of what a node tells once more: its last agent may have died before it did, or EVENTS may be new.
pub const TOLD_AGAIN: &str = "told_again";

/// Id of an agent's event: what it says, of what, and what caused it. Every replica computes the same.
#[must_use]
pub fn agent_event_id(agent: &str, kind: &str, instance: Option<&Instance>, incarnation: Option<Incarnation>, cause: &str) -> String {
    let instance = instance.map_or_else(|| "_".to_owned(), Instance::key);
    let incarnation = incarnation.map_or_else(|| "_".to_owned(), |i| i.to_string());
    format!("a:{agent}:{kind}:{instance}:{incarnation}:{cause}")
}

/// Subject of an event: by its chakra and component; a fact about a whole chakra has no component, one about the mesh names its source.
#[must_use]
pub fn subject_of(subjects: &Subjects, event: &v1::Event) -> String {
    let chakra = if event.chakra.is_empty() { MESH_CHAKRA } else { &event.chakra };
    let component = match (&event.instance, chakra) {
        (Some(instance), _) => instance.component.as_str(),
        (None, MESH_CHAKRA) => {
            event.source.as_ref().map_or(NO_COMPONENT, |s| if s.kind == "node" { s.id.as_str() } else { s.kind.as_str() })
        }
        (None, _) => NO_COMPONENT,
    };
    subjects.event(chakra, component, &event.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_the_names_of_the_contract() {
        let pool = prost_reflect::DescriptorPool::decode(crate::DESCRIPTORS).unwrap();
        let event = pool.get_message_by_name("razar.v1.Event").unwrap();
        let fact = event.oneofs().find(|o| o.name() == "fact").unwrap();
        let names: Vec<_> = fact.fields().map(|f| f.name().to_owned()).collect();
        assert_eq!(names, KINDS);
    }

    #[test]
    fn subjects_name_what_the_fact_is_about() {
        let subjects = Subjects::new("razar").unwrap();
        let fact = Fact::ChakraDown(v1::ChakraDown::default());
        let mut event = v1::Event { kind: fact.kind().to_owned(), chakra: "heart".to_owned(), fact: Some(fact), ..Default::default() };
        assert_eq!(subject_of(&subjects, &event), "razar.event.heart._.chakra_down");
        event.instance = Some((&Instance::new("redis", 1)).into());
        assert_eq!(subject_of(&subjects, &event), "razar.event.heart.redis.chakra_down");
        let joined = v1::Event {
            kind: "node_joined".to_owned(),
            source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
            ..Default::default()
        };
        assert_eq!(subject_of(&subjects, &joined), "razar.event.mesh.a.node_joined");
    }
}
