//! Which of a node's events a fold has seen: the highest sequence of its journal and those below it that are told apart, and which journals
//! the node had before. Every fold of EVENTS goes by this, so that a copy changes none, however late it comes.

use std::collections::BTreeMap;

use crate::v1::{self, FormerJournal};

/// Sequences up to a journal's highest that are told apart; a node has at most so many events unacknowledged.
pub const WINDOW: u64 = 256;
/// Former journals of a node that are remembered. One is lost with a disk, so that a late copy from one longer ago is not to be expected.
pub const FORMER_MAX: usize = 8;

/// Bytes of [`Places::window`].
const WINDOW_BYTES: usize = 32;

/// Places in one node's journal that were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    epoch: String,
    former: Vec<FormerJournal>,
    highest: u64,
    window: [u8; WINDOW_BYTES],
    /// Place of the newest inventory.
    inventory: u64,
}

/// What a place is to a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Not seen before.
    First,
    /// Not seen before, and of a journal that takes the place of another one.
    FirstOfNewJournal,
    /// Seen before, or too far below the highest to tell.
    Again,
    /// Of a journal that the node no longer has.
    Former,
}

impl Places {
    /// What a projection has kept: epoch, highest sequence and window of the present journal, and those before, oldest first.
    #[must_use]
    pub fn restore(epoch: &str, highest: u64, window: &[u8], former: Vec<FormerJournal>) -> Self {
        let mut bytes = [0; WINDOW_BYTES];
        bytes.iter_mut().zip(window).for_each(|(to, from)| *to = *from);
        Self { epoch: epoch.to_owned(), former, highest, window: bytes, inventory: 0 }
    }

    /// Notes a place. `joins`: it is that of a `node_joined`, by which a node tells its journal, and what it holds anew where EVENTS are
    /// new: events reach a stream in the order of their journal, so that what comes of before that is a copy, from EVENTS that are gone.
    pub fn see(&mut self, epoch: &str, sequence: u64, joins: bool) -> Sight {
        let changes = self.epoch != epoch;
        let replaces = changes && !self.epoch.is_empty();
        let mut again = FormerJournal { node_epoch: epoch.to_owned(), ..FormerJournal::default() };
        if replaces {
            let known = self.former.iter().position(|former| former.node_epoch == epoch);
            // A new journal counts from 1, so its first events are inside the window; anything else is a late copy from an old one.
            let begins = known.is_none() && (sequence <= WINDOW || joins);
            let lives = known.and_then(|at| self.former.get(at)).is_some_and(|f| sequence > f.highest && (joins || !f.over));
            if !begins && !lives {
                return Sight::Former;
            }
            if let Some(at) = known {
                again = self.former.remove(at);
            } else if self.former.len() >= FORMER_MAX {
                self.former.remove(0);
            }
            self.former.push(FormerJournal { node_epoch: std::mem::take(&mut self.epoch), highest: self.highest, over: sequence == 1 });
        }
        if changes {
            // Which of its earlier ones were seen is not remembered: all of them, since they came in order.
            let window = if again.highest > 0 { [u8::MAX; WINDOW_BYTES] } else { [0; WINDOW_BYTES] };
            (self.epoch, self.highest, self.window, self.inventory) = (again.node_epoch, again.highest, window, 0);
        }
        let first = self.note(sequence);
        if joins && first {
            self.note_below(sequence);
        }
        match (first, replaces) {
            (true, true) => Sight::FirstOfNewJournal,
            (true, false) => Sight::First,
            (false, _) => Sight::Again,
        }
    }

    /// Whether the inventory at this place of the present journal is the newest that was seen.
    fn is_newest_inventory(&mut self, sequence: u64) -> bool {
        let newest = sequence >= self.inventory;
        self.inventory = self.inventory.max(sequence);
        newest
    }

    /// Epoch of the present journal; empty: nothing was seen.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The journals before, oldest first.
    #[must_use]
    pub fn former(&self) -> &[FormerJournal] {
        &self.former
    }

    /// Highest sequence seen of the present journal.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The sequences up to the highest that were seen, bit 0 of byte 0 the highest.
    #[must_use]
    pub fn window(&self) -> &[u8] {
        &self.window
    }

    fn note(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            self.shift(sequence - self.highest);
            self.highest = sequence;
        }
        let below = self.highest - sequence;
        let Some(byte) = self.window.get_mut(usize::try_from(below / 8).unwrap_or(usize::MAX)) else { return false };
        let mask = 1 << (below % 8);
        let fresh = *byte & mask == 0;
        *byte |= mask;
        fresh
    }

    /// Takes all below a place for seen.
    fn note_below(&mut self, sequence: u64) {
        let from = usize::try_from(self.highest - sequence).unwrap_or(usize::MAX).saturating_add(1);
        for (at, byte) in self.window.iter_mut().enumerate() {
            *byte |= u8::MAX.checked_shl(u32::try_from(from.saturating_sub(at * 8)).unwrap_or(u32::MAX)).unwrap_or(0);
        }
    }

    /// Moves every bit `by` places up; what leaves the window is forgotten.
    fn shift(&mut self, by: u64) {
        let Ok(bytes) = usize::try_from(by / 8) else { return self.window.fill(0) };
        if bytes >= WINDOW_BYTES {
            return self.window.fill(0);
        }
        self.window.rotate_right(bytes);
        self.window.iter_mut().take(bytes).for_each(|b| *b = 0);
        let mut carry = 0u16;
        for byte in &mut self.window {
            let moved = (u16::from(*byte) << (by % 8)) | carry;
            carry = moved >> 8;
            *byte = u8::try_from(moved & 0xff).unwrap_or(0);
        }
    }
}

/// Whether an inventory is the newest of its node, by the places that a fold keeps for each. In EVENTS that are new a late one may come for
/// the first time before their node has joined them, behind one that it told at once, for a new bucket.
pub fn is_newest_inventory(places: &mut BTreeMap<String, Places>, inventory: &v1::Event) -> bool {
    let Some(place) = &inventory.node_sequence else { return true };
    places.get_mut(&place.node).is_none_or(|places| places.is_newest_inventory(place.sequence))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1u64..900, 1..400)) {
            let (mut places, mut model) = (Places::default(), BTreeSet::new());
            for sequence in sequences {
                let top = model.last().copied().unwrap_or(0);
                let expected = (sequence > top || top - sequence < WINDOW) && model.insert(sequence);
                prop_assert_eq!(places.see("e", sequence, false) == Sight::First, expected, "{}", sequence);
                places = Places::restore(places.epoch(), places.highest(), places.window(), places.former().to_vec());
            }
        }
    }

    #[test]
    fn what_was_told_before_a_join_says_nothing_after_it() {
        for (joined, highest) in [(54, 54), (54, 58), (260, 300), (3, 400), (1, 1), (16, 24)] {
            let mut places = Places::default();
            let first: Vec<u64> = (joined + 1..=highest).filter(|n| n % 2 == 0).collect();
            first.iter().for_each(|n| assert_eq!(places.see("a", *n, false), Sight::First));
            let near = highest - joined < WINDOW;
            assert_eq!(places.see("a", joined, true), if near { Sight::First } else { Sight::Again });
            for sequence in 1..=highest + 2 {
                let fresh = sequence > joined && !first.contains(&sequence) && (sequence > highest || highest - sequence < WINDOW);
                assert_eq!(places.see("a", sequence, false) == Sight::First, fresh, "{sequence} of {joined} and {highest}");
            }
        }
    }

    #[test]
    fn an_inventory_that_comes_late_is_not_the_newest() {
        let mut places = Places::default();
        places.see("a", 11, false);
        assert!(places.is_newest_inventory(11));
        assert_eq!(places.see("a", 3, false), Sight::First, "its EVENTS do not know it");
        assert!(!places.is_newest_inventory(3) && places.is_newest_inventory(12));
        places.see("b", 1, true);
        assert!(places.is_newest_inventory(1), "another journal counts anew");
    }

    /// A fold that begins behind the loss of a journal takes a late copy from it for a new one, until the one that lives says more.
    #[test]
    fn a_journal_that_says_more_lives() {
        let mut places = Places::default();
        for sequence in 1..=40 {
            assert_eq!(places.see("new", sequence, false), Sight::First);
        }
        assert_eq!(places.see("old", 12, false), Sight::FirstOfNewJournal, "for all that is known");
        assert_eq!(places.see("new", 40, false), Sight::Former, "a copy says nothing");
        assert_eq!(places.see("new", 41, false), Sight::FirstOfNewJournal);
        assert_eq!(places.see("new", 39, false), Sight::Again);
        assert_eq!(places.see("new", 42, false), Sight::First);
        assert_eq!(places.see("old", 12, false), Sight::Former);
    }

    /// Simulation: what an agent had sent when its disk was lost came behind the first events of its successor. Mutation caught: `see` does
    /// not ask whether a former journal is over.
    #[test]
    fn a_journal_whose_successor_was_seen_to_begin_is_over_whatever_comes_of_it_late() {
        let mut places = Places::default();
        (1..=62).for_each(|n| assert_eq!(places.see("old", n, n == 1), Sight::First));
        assert_eq!(places.see("new", 1, true), Sight::FirstOfNewJournal);
        assert_eq!(places.see("new", 2, false), Sight::First);
        assert_eq!(places.see("old", 63, false), Sight::Former, "late, and no copy");
        assert_eq!(places.see("new", 3, false), Sight::First);
        let mut kept = Places::restore(places.epoch(), places.highest(), places.window(), places.former().to_vec());
        assert_eq!(kept.see("old", 64, false), Sight::Former);
        // Who joins lives: what was taken for its successor was none.
        assert_eq!(kept.see("old", 65, true), Sight::FirstOfNewJournal);
        assert_eq!(kept.see("new", 4, false), Sight::FirstOfNewJournal);
    }

    #[test]
    fn a_new_journal_takes_the_place_of_the_old_one_for_good() {
        let mut places = Places::default();
        assert_eq!(places.see("a", 7_000, false), Sight::First, "a fold may begin anywhere");
        assert_eq!(places.see("b", 300, false), Sight::Former, "it cannot be the beginning of a new one");
        assert_eq!(places.see("b", 3, false), Sight::FirstOfNewJournal);
        assert_eq!(places.see("b", 1, true), Sight::First);
        for (sequence, joins) in [(1, true), (2, false), (7_000, false)] {
            assert_eq!(places.see("a", sequence, joins), Sight::Former, "late, from a journal that is gone");
        }
        assert_eq!(places.see("c", 9_000, true), Sight::FirstOfNewJournal, "it says itself that it joins");
        assert_eq!(places.see("b", 3, false), Sight::Former);
        let former: Vec<_> = places.former().iter().map(|f| (f.node_epoch.as_str(), f.highest)).collect();
        assert_eq!((places.epoch(), former), ("c", vec![("a", 7_000), ("b", 3)]));
        for n in 0..100 {
            assert_eq!(places.see(&format!("d{n}"), 1, true), Sight::FirstOfNewJournal);
        }
        assert_eq!(places.former().len(), FORMER_MAX);
    }
}
