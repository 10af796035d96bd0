//! Which of a node's events were folded before: the highest sequence of its journal and the 256 below it.

/// Sequences below the highest that are told apart; a node has at most so many events unacknowledged.
const WINDOW: u64 = 256;

/// Places in one node's journal that were folded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) epoch: String,
    highest: u64,
    /// Bit n of word w: the sequence `highest - (64 w + n)` was folded.
    bits: [u64; 4],
}

impl Places {
    /// Notes a place; false if it was noted before, is too old to tell, or belongs to a journal that the node no longer has.
    pub(super) fn first_time(&mut self, epoch: &str, sequence: u64, joins: bool) -> bool {
        if self.epoch != epoch {
            // A new journal counts from 1; anything else is a late copy from an old one.
            if !self.epoch.is_empty() && sequence > WINDOW && !joins {
                return false;
            }
            *self = Self { epoch: epoch.to_owned(), ..Self::default() };
        }
        if sequence > self.highest {
            self.shift(sequence - self.highest);
            self.highest = sequence;
        }
        let below = self.highest - sequence;
        let Some(word) = usize::try_from(below / 64).ok().and_then(|w| self.bits.get_mut(w)) else { return false };
        let mask = 1 << (below % 64);
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    fn shift(&mut self, by: u64) {
        for _ in 0..by.min(WINDOW) {
            let mut carry = 0;
            for word in &mut self.bits {
                let next = *word >> 63;
                *word = (*word << 1) | carry;
                carry = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1u64..900, 1..300)) {
            let (mut places, mut model) = (Places::default(), BTreeSet::new());
            for sequence in sequences {
                let top = model.last().copied().unwrap_or(0);
                let expected = (sequence > top || top - sequence < WINDOW) && model.insert(sequence);
                prop_assert_eq!(places.first_time("e", sequence, false), expected, "{}", sequence);
            }
        }
    }
}
