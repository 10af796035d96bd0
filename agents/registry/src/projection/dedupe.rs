//! What was folded before: a node's events by their place in its journal, agents' events by id.

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::{
    event::Kind as _,
    ids::is_name,
    places::{Places, Sight},
    v1,
};

use super::{ENTITIES_MAX, Key, Projection, components::forget_life};

/// Stream sequences back to which ids of agents' events are remembered. A copy of an event comes at most a broker outage after it, and
/// a fold that begins at a snapshot can read so many again.
pub const AGENT_EVENT_WINDOW: u64 = 4096;

/// Ids of the agents' events among the last [`AGENT_EVENT_WINDOW`] stream sequences.
#[derive(Debug, Clone, Default)]
pub(super) struct SeenIds {
    by_sequence: BTreeMap<u64, String>,
    ids: BTreeSet<String>,
}

impl SeenIds {
    /// Remembers `id`; false if it is remembered already.
    pub(super) fn first_time(&mut self, sequence: u64, id: &str) -> bool {
        let oldest = sequence.saturating_sub(AGENT_EVENT_WINDOW);
        while let Some(entry) = self.by_sequence.first_entry() {
            if *entry.key() > oldest {
                break;
            }
            self.ids.remove(&entry.remove());
        }
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.by_sequence.insert(sequence, id.to_owned());
        true
    }
}

impl Projection {
    /// Whether `event` is seen for the first time; `None`: it is of a journal that its node no longer has.
    pub(super) fn is_first_sight(&mut self, stream_sequence: u64, event: &v1::Event) -> Option<bool> {
        let Some(place) = &event.node_sequence else {
            return Some(event.id.is_empty() || self.seen.first_time(stream_sequence, &event.id));
        };
        if !is_name(&place.node) || (!self.nodes.contains_key(&place.node) && self.nodes.len() >= ENTITIES_MAX) {
            return None;
        }
        let node = self.nodes.entry(place.node.clone()).or_default();
        let known = node.joined.as_ref().map_or("", |j| j.node_epoch.as_str());
        let mut places = Places::restore(known, node.journal_sequence, &node.journal_window, node.former_journals.clone());
        // A new journal tells of itself, and of nothing that was known of the node before.
        let begins = known != place.epoch;
        let joins = event.fact.as_ref().is_some_and(|f| f.kind() == "node_joined");
        let sight = places.see(&place.epoch, place.sequence, joins);
        match sight {
            Sight::Former => return None,
            Sight::Again => return Some(false),
            Sight::First | Sight::FirstOfNewJournal => {}
        }
        if begins {
            node.name.clone_from(&place.node);
            node.joined = Some(v1::NodeJoined { node_epoch: place.epoch.clone(), ..Default::default() });
        }
        node.journal_sequence = places.highest();
        node.journal_window = places.window().to_vec();
        node.former_journals = places.former().to_vec();
        node.last_sequence = stream_sequence;
        self.dirty.insert(Key::Node(place.node.clone()));
        if sight == Sight::FirstOfNewJournal {
            self.forget_lives(&place.node);
        }
        Some(true)
    }

    /// A node with a new journal counts its starts anew: what it ran before is unknown until it tells.
    fn forget_lives(&mut self, node: &str) {
        for (instance, component) in self.components.iter_mut().filter(|(_, c)| c.node == node) {
            component.incarnation = None;
            forget_life(component);
            component.set_state(v1::InstanceState::Unspecified);
            self.dirty.insert(Key::Component(instance.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_forgotten_past_the_window() {
        let mut seen = SeenIds::default();
        assert!(seen.first_time(1, "a"));
        assert!(!seen.first_time(2, "a"));
        assert!(seen.first_time(AGENT_EVENT_WINDOW + 1, "b"));
        assert!(seen.first_time(AGENT_EVENT_WINDOW + 2, "a"));
        assert_eq!(seen.ids.len(), seen.by_sequence.len());
    }
}
