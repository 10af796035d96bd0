//! When telling waits for healing: in a burst of events, as a boot or the death of many makes, what is told one by one takes the
//! processors from what is starting. Together it costs the broker and every agent a part of that.
//! Pure: instants are passed in, of any clock that only rises.

use std::collections::VecDeque;
use std::time::Duration;

/// So many events within [`RECENT`] are a burst. Two crashes at once, with their restarts, make eight: they are none.
const BURST_EVENTS: usize = 12;
/// How long an event counts, and so how soon after its end a burst is told.
const RECENT: Duration = Duration::from_millis(25);
/// No event is held back for longer, however long the burst.
const HELD_MAX: Duration = Duration::from_millis(50);
/// More than that are not held back: half of what may be unacknowledged at once.
const HELD_EVENTS_MAX: usize = super::WINDOW / 2;

/// What came lately, and since when some of it waits.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// When the newest [`BURST_EVENTS`] came, oldest first.
    newest: VecDeque<Duration>,
    /// When the first came that waits.
    waits_since: Option<Duration>,
}

impl Burst {
    /// An event came, and waits.
    pub(super) fn note(&mut self, now: Duration) {
        if self.newest.len() == BURST_EVENTS {
            self.newest.pop_front();
        }
        self.newest.push_back(now);
        self.waits_since.get_or_insert(now);
    }

    /// All that waited has gone.
    pub(super) fn gone(&mut self) {
        self.waits_since = None;
    }

    /// How much longer the `waiting` events are to wait; `None`: they go now.
    pub(super) fn hold(&self, now: Duration, waiting: usize) -> Option<Duration> {
        let oldest = self.newest.front().filter(|_| self.newest.len() == BURST_EVENTS)?;
        let until = (*oldest + RECENT).min(self.waits_since? + HELD_MAX);
        until.checked_sub(now).filter(|left| !left.is_zero() && (1..HELD_EVENTS_MAX).contains(&waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn burst(times: impl IntoIterator<Item = u64>) -> Burst {
        let mut burst = Burst::default();
        times.into_iter().for_each(|at| burst.note(ms(at)));
        burst
    }

    /// Mutation caught: the number of events is not looked at.
    #[test]
    fn two_crashes_with_their_restarts_are_told_at_once() {
        assert_eq!(burst([0, 0, 1, 1, 3, 3, 4, 4]).hold(ms(4), 8), None);
        assert_eq!(burst([]).hold(ms(1), 1), None);
    }

    #[test]
    fn many_go_together_when_no_more_come() {
        let burst = burst([0; 4].into_iter().chain(0..8));
        assert_eq!(burst.hold(ms(7), 1), Some(ms(18)));
        assert_eq!(burst.hold(ms(24), 1), Some(ms(1)));
        assert_eq!(burst.hold(ms(25), 1), None);
    }

    #[test]
    fn many_that_come_slowly_are_no_burst() {
        assert_eq!(burst((0..20).map(|n| n * 3)).hold(ms(57), 1), None);
    }

    /// Mutations caught: since when something waits is forgotten at each look; it is kept when what waited has gone.
    #[test]
    fn nothing_waits_longer_than_the_limit_however_long_it_goes_on() {
        let mut burst = Burst::default();
        let mut went = Vec::new();
        for now in 0..200 {
            burst.note(ms(now));
            burst.note(ms(now));
            if burst.hold(ms(now), 1).is_none() {
                went.push(now);
                burst.gone();
            }
        }
        assert_eq!(went, [0, 1, 2, 3, 4, 55, 106, 157], "twelve have come at 5; held from 5 to 55, from 56 to 106, from 107 to 157");
    }

    /// Mutation caught: what could not go begins to wait anew.
    #[test]
    fn what_was_let_go_and_found_no_room_waits_for_room_alone() {
        let mut burst = burst([0; 12]);
        (1..70).for_each(|at| burst.note(ms(at)));
        assert_eq!(burst.hold(ms(50), 100), None);
        assert_eq!(burst.hold(ms(69), 100), None);
        burst.gone();
        burst.note(ms(70));
        burst.note(ms(70));
        burst.note(ms(70));
        assert!(burst.hold(ms(70), 3).is_some());
    }

    #[test]
    fn what_fills_half_of_the_window_goes() {
        let burst = burst([0; 12]);
        assert!(burst.hold(ms(7), HELD_EVENTS_MAX - 1).is_some());
        assert_eq!(burst.hold(ms(7), HELD_EVENTS_MAX), None);
        assert_eq!(burst.hold(ms(7), 0), None, "nothing waits");
    }
}
