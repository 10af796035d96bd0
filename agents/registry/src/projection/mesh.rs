//! The fold of facts about nodes, agents and missions.

use razar_bus_schema::{
    ids::{Incarnation, Instance, is_name},
    presence::{Presence, Turn, node_of},
    v1::{self, InstanceState, event::Fact},
};

use super::{
    AGENTS_KEPT_PER_KIND, ENTITIES_MAX, ESCALATIONS_KEPT, Folded, Key, MISSIONS_KEPT, Projection, components::forget_life, instance_of,
    mission_id,
};

impl Projection {
    pub(super) fn fold_node(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        let Some(name) = node_of(event).filter(|name| is_name(name)).map(str::to_owned) else { return Folded::Incomplete };
        if !self.nodes.contains_key(&name) && self.nodes.len() >= ENTITIES_MAX {
            return Folded::Incomplete;
        }
        if self.fold_presence(sequence, event, &name) == Turn::Void {
            return Folded::Stale;
        }
        let node = self.nodes.entry(name.clone()).or_default();
        node.name.clone_from(&name);
        node.last_sequence = sequence;
        if let Fact::NodeJoined(joined) = fact {
            node.joined = Some(joined.clone());
            node.joined_at = event.time;
        }
        self.dirty.insert(Key::Node(name.clone()));
        if let Fact::NodeInventory(inventory) = fact {
            self.fold_inventory(sequence, event, &name, inventory);
        }
        Folded::Applied
    }

    /// Whether the node counts as lost, which whatever it tells ends. Of one that is not known nothing is noted.
    pub(super) fn fold_presence(&mut self, sequence: u64, event: &v1::Event, name: &str) -> Turn {
        let known = self.nodes.get(name);
        let mut presence = known.map_or_else(Presence::default, |n| Presence::restore(&n.presence_by, n.lost));
        let turn = presence.fold(event);
        if matches!(turn, Turn::Away | Turn::Here) {
            let node = self.nodes.entry(name.to_owned()).or_default();
            node.lost = presence.is_away();
            presence.by().clone_into(&mut node.presence_by);
            node.presence_at = event.time;
            node.last_sequence = sequence;
            self.dirty.insert(Key::Node(name.to_owned()));
        }
        turn
    }

    /// What the node holds corrects what was missed; what is known alike keeps its time.
    fn fold_inventory(&mut self, sequence: u64, event: &v1::Event, node: &str, inventory: &v1::NodeInventory) {
        for item in &inventory.items {
            let Some(instance) = instance_of(item.instance.as_ref()) else { continue };
            let Some(component) = self.component_entry(&instance) else { continue };
            let told = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            let known = component.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            if told < known || (told == known && component.state == item.state && component.node == node) {
                continue;
            }
            component.incarnation = Some(told.into());
            component.state = item.state;
            component.since = event.time;
            node.clone_into(&mut component.node);
            component.last_sequence = sequence;
            if told > known || !lives(item.state()) {
                forget_life(component);
            }
            self.dirty.insert(Key::Component(instance));
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    pub(super) fn fold_agent(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        match fact {
            Fact::AgentStarted(started) if is_name(&started.kind) && is_name(&started.id) => {
                let key = (started.kind.clone(), started.id.clone());
                let agent = v1::ObservedAgent {
                    started: Some(started.clone()),
                    started_at: event.time,
                    down: false,
                    last_sequence: sequence,
                    presence_by: event.id.clone(),
                };
                self.agents.insert(key, agent);
                self.dirty.insert(Key::Agent(started.kind.clone(), started.id.clone()));
                self.prune_agents(&started.kind);
                Folded::Applied
            }
            Fact::AgentDown(v1::AgentDown { kind, id, .. }) | Fact::AgentReturned(v1::AgentReturned { kind, id, .. }) => {
                let Some(agent) = self.agents.get_mut(&(kind.clone(), id.clone())) else { return Folded::Stale };
                let mut presence = Presence::restore(&agent.presence_by, agent.down);
                if presence.fold(event) == Turn::Void {
                    return Folded::Stale;
                }
                agent.down = presence.is_away();
                presence.by().clone_into(&mut agent.presence_by);
                agent.last_sequence = sequence;
                self.dirty.insert(Key::Agent(kind.clone(), id.clone()));
                Folded::Applied
            }
            _ => Folded::Incomplete,
        }
    }

    /// Keeps the newest replicas of `kind`: by the stream's order, which is the same for every fold.
    fn prune_agents(&mut self, kind: &str) {
        let mut of_kind: Vec<_> = self.agents.iter().filter(|((k, _), _)| k == kind).map(|(k, a)| (a.last_sequence, k.clone())).collect();
        of_kind.sort_unstable();
        let surplus = of_kind.len().saturating_sub(AGENTS_KEPT_PER_KIND);
        for (_, key) in of_kind.into_iter().take(surplus) {
            self.agents.remove(&key);
            self.dirty.insert(Key::Agent(key.0, key.1));
        }
    }

    /// A chakra that is down has a record; one that is well has none.
    pub(super) fn fold_chakra(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        if !is_name(&event.chakra) || (self.chakras.len() >= ENTITIES_MAX && !self.chakras.contains_key(&event.chakra)) {
            return Folded::Incomplete;
        }
        if let Fact::ChakraDown(down) = fact {
            let name = event.chakra.clone();
            let chakra = v1::ObservedChakra { name: name.clone(), down: Some(down.clone()), down_at: event.time, last_sequence: sequence };
            self.chakras.insert(name, chakra);
        } else {
            self.chakras.remove(&event.chakra);
        }
        self.dirty.insert(Key::Chakra(event.chakra.clone()));
        Folded::Applied
    }

    /// What people were told of the mesh itself: the newest are kept.
    pub(super) fn fold_escalation(&mut self, sequence: u64, event: &v1::Event, escalated: &v1::Escalated) -> Folded {
        let escalation = v1::ObservedEscalation {
            escalated: Some(escalated.clone()),
            at: event.time,
            source: event.source.clone(),
            mesh_cause: event.incident.as_ref().map(|i| i.mesh_cause.clone()).unwrap_or_default(),
            last_sequence: sequence,
        };
        self.escalations.insert(sequence, escalation);
        self.dirty.insert(Key::Escalation(sequence));
        while self.escalations.len() > ESCALATIONS_KEPT {
            let Some((oldest, _)) = self.escalations.pop_first() else { break };
            self.dirty.insert(Key::Escalation(oldest));
        }
        Folded::Applied
    }

    /// A mesh-wide cause has ended: what was told because of it is no news.
    pub(super) fn end_escalations(&mut self, event: &v1::Event) -> Folded {
        let Some(cause) = event.incident.as_ref().map(|i| i.mesh_cause.as_str()).filter(|cause| !cause.is_empty()) else {
            return Folded::Applied;
        };
        let ended: Vec<u64> = self.escalations.iter().filter(|(_, e)| e.mesh_cause == cause).map(|(sequence, _)| *sequence).collect();
        for sequence in ended {
            self.escalations.remove(&sequence);
            self.dirty.insert(Key::Escalation(sequence));
        }
        Folded::Applied
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "facts that say nothing about this are passed over, those of later versions too")]
    pub(super) fn fold_mission(&mut self, sequence: u64, event: &v1::Event, fact: &Fact) -> Folded {
        match fact {
            Fact::MissionStarted(started) if is_name(&started.mission_id) => {
                self.prune_components(started);
                let place = self.missions.last_key_value().map_or(0, |(place, _)| place + 1);
                let mission = v1::ObservedMission {
                    started: Some(started.clone()),
                    started_at: event.time,
                    completed: None,
                    last_sequence: sequence,
                };
                self.missions.insert(place, mission);
                self.dirty.insert(Key::Mission(started.mission_id.clone()));
                while self.missions.len() > MISSIONS_KEPT {
                    let Some((_, oldest)) = self.missions.pop_first() else { break };
                    self.dirty.insert(Key::Mission(mission_id(&oldest).to_owned()));
                }
                Folded::Applied
            }
            Fact::MissionCompleted(completed) => {
                let Some(mission) = self.missions.values_mut().find(|m| mission_id(m) == completed.mission_id) else {
                    return Folded::Stale;
                };
                mission.completed = Some(completed.clone());
                mission.last_sequence = sequence;
                self.dirty.insert(Key::Mission(completed.mission_id.clone()));
                Folded::Applied
            }
            _ => Folded::Incomplete,
        }
    }

    /// A new mission forgets what left the plan before it and has been told stopped. (A component that left is told with rank 0; one
    /// that is stopped by hand keeps its rank and stays.)
    fn prune_components(&mut self, started: &v1::MissionStarted) {
        let named = |instance: &Instance| {
            let key = instance.to_string();
            started.to_start.iter().chain(&started.to_stop).any(|n| *n == key || *n == instance.component)
        };
        let gone = |(instance, c): &(&Instance, &v1::ObservedComponent)| {
            c.desired.as_ref().is_some_and(|d| d.mode == "stop" && d.rank == 0) && !lives(c.state()) && !named(instance)
        };
        let gone: Vec<Instance> = self.components.iter().filter(gone).map(|(instance, _)| instance.clone()).collect();
        for instance in gone {
            self.components.remove(&instance);
            self.dirty.insert(Key::Component(instance));
        }
    }
}

/// Whether a process lives in this state, or is about to.
pub(super) const fn lives(state: InstanceState) -> bool {
    matches!(
        state,
        InstanceState::Preparing | InstanceState::Starting | InstanceState::Ready | InstanceState::Unready | InstanceState::Stopping
    )
}
