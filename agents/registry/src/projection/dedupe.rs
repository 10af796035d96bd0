//! What was folded before: a node's events by their place in its journal, agents' events by id.

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::{event::Kind as _, ids::is_name, v1};

use super::{ENTITIES_MAX, Key, Projection};

/// Stream sequences back to which ids of agents' events are remembered. A copy of an event comes at most a broker outage after it, and
/// a fold that begins at a snapshot can read so many again.
pub const AGENT_EVENT_WINDOW: u64 = 4096;

/// Sequences below a node's highest that are told apart; a node has at most so many events unacknowledged.
const NODE_WINDOW: u64 = 256;

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
        let known = node.joined.as_ref().map_or_else(String::new, |j| j.node_epoch.clone());
        if known != place.epoch {
            // A new journal counts from 1, so its first events are inside the window; anything else is a late copy from an old one.
            let joins = event.fact.as_ref().is_some_and(|f| f.kind() == "node_joined");
            if !known.is_empty() && place.sequence > NODE_WINDOW && !joins {
                return None;
            }
            node.name.clone_from(&place.node);
            node.joined = Some(v1::NodeJoined { node_epoch: place.epoch.clone(), ..Default::default() });
            node.journal_sequence = 0;
            node.journal_window = Vec::new();
            if !known.is_empty() {
                self.forget_lives(&place.node);
            }
        }
        let node = self.nodes.entry(place.node.clone()).or_default();
        let first = note(&mut node.journal_sequence, &mut node.journal_window, place.sequence);
        if first {
            node.last_sequence = stream_sequence;
            self.dirty.insert(Key::Node(place.node.clone()));
        }
        Some(first)
    }

    /// A node with a new journal counts its starts anew: what it ran before is unknown until it tells.
    fn forget_lives(&mut self, node: &str) {
        for (instance, component) in self.components.iter_mut().filter(|(_, c)| c.node == node) {
            component.incarnation = None;
            component.process = None;
            component.set_state(v1::InstanceState::Unspecified);
            self.dirty.insert(Key::Component(instance.clone()));
        }
    }
}

/// Notes `sequence` in the window below `highest`; false if it was noted before, or is too far below to tell.
fn note(highest: &mut u64, window: &mut Vec<u8>, sequence: u64) -> bool {
    window.resize(bytes_of(NODE_WINDOW), 0);
    if sequence > *highest {
        shift(window, sequence - *highest);
        *highest = sequence;
        return set(window, 0);
    }
    let below = *highest - sequence;
    below < NODE_WINDOW && set(window, below)
}

fn bytes_of(bits: u64) -> usize {
    usize::try_from(bits / 8).unwrap_or(0)
}

/// Sets bit `at`; false if it was set.
fn set(window: &mut [u8], at: u64) -> bool {
    let Some(byte) = window.get_mut(bytes_of(at)) else { return false };
    let mask = 1 << (at % 8);
    let fresh = *byte & mask == 0;
    *byte |= mask;
    fresh
}

/// Moves every bit `by` places up; what leaves the window is forgotten.
fn shift(window: &mut [u8], by: u64) {
    if by >= NODE_WINDOW {
        window.fill(0);
        return;
    }
    let (bytes, bits) = (bytes_of(by), by % 8);
    window.rotate_right(bytes);
    window.iter_mut().take(bytes).for_each(|b| *b = 0);
    let mut carry = 0u16;
    for byte in window.iter_mut() {
        let moved = (u16::from(*byte) << bits) | carry;
        carry = moved >> 8;
        *byte = u8::try_from(moved & 0xff).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1u64..900, 1..400)) {
            let (mut highest, mut window, mut model) = (0, Vec::new(), BTreeSet::new());
            for sequence in sequences {
                let top = model.last().copied().unwrap_or(0);
                let expected = (sequence > top || top - sequence < NODE_WINDOW) && model.insert(sequence);
                prop_assert_eq!(note(&mut highest, &mut window, sequence), expected, "{}", sequence);
                prop_assert_eq!(window.len(), 32);
            }
        }
    }

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
