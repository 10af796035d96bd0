//! When telling waits for healing: in a burst of events, as a boot or the death of many makes, what is told one by one takes the
//! processors from what is starting. Together it costs the broker and every agent a part of that.
//! Pure: instants are passed in, of any clock that only rises.

use std::collections::VecDeque;
use std::time::Duration;

/// So many events within [`RECENT`] are a burst. Two crashes at once, with their restarts, are none.
pub(super) const BURST_EVENTS: usize = 8;
/// How long an event counts, and so how soon after its end a burst is told.
pub(super) const RECENT: Duration = Duration::from_millis(10);
/// No event is held back for longer, however long the burst.
pub(super) const HELD_MAX: Duration = Duration::from_millis(50);
/// More than that are not held back: half of what may be unacknowledged at once.
pub(super) const HELD_EVENTS_MAX: usize = super::WINDOW / 2;

/// What came lately, and since when some of it waits.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// When the newest [`BURST_EVENTS`] came, oldest first.
    newest: VecDeque<Duration>,
    held_since: Option<Duration>,
}

impl Burst {
    /// An event came.
    pub(super) fn note(&mut self, now: Duration) {
        if self.newest.len() == BURST_EVENTS {
            self.newest.pop_front();
        }
        self.newest.push_back(now);
    }

    /// How much longer the `waiting` events are to wait; `None`: they go now.
    pub(super) fn hold(&mut self, now: Duration, waiting: usize) -> Option<Duration> {
        let oldest = self.newest.front().filter(|_| self.newest.len() == BURST_EVENTS);
        let over_at = oldest.map_or(Duration::ZERO, |at| *at + RECENT);
        if waiting == 0 || waiting >= HELD_EVENTS_MAX || over_at <= now {
            self.held_since = None;
            return None;
        }
        let until = over_at.min(*self.held_since.get_or_insert(now) + HELD_MAX);
        let left = until.checked_sub(now).filter(|left| !left.is_zero());
        self.held_since = self.held_since.filter(|_| left.is_some());
        left
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
    fn a_few_events_go_at_once() {
        assert_eq!(burst(0..7).hold(ms(7), 7), None);
        assert_eq!(burst([]).hold(ms(1), 1), None);
    }

    #[test]
    fn many_go_together_when_no_more_come() {
        let mut burst = burst(0..8);
        assert_eq!(burst.hold(ms(7), 1), Some(ms(3)));
        assert_eq!(burst.hold(ms(9), 1), Some(ms(1)));
        assert_eq!(burst.hold(ms(10), 1), None);
    }

    #[test]
    fn many_that_come_slowly_are_no_burst() {
        assert_eq!(burst((0..20).map(|n| n * 2)).hold(ms(38), 1), None);
    }

    /// Mutations caught: the first instant of holding back is forgotten at each look; it is kept when what waited has gone.
    #[test]
    fn nothing_waits_longer_than_the_limit_however_long_it_goes_on() {
        let mut burst = burst(0..8);
        let mut gone = Vec::new();
        for now in 8..200 {
            burst.note(ms(now));
            if burst.hold(ms(now), 1).is_none() {
                gone.push(now);
            }
        }
        assert_eq!(gone, [58, 109, 160], "held from 8 to 58, from 59 to 109, from 110 to 160");
    }

    #[test]
    fn what_fills_half_of_the_window_goes() {
        let mut burst = burst(0..8);
        assert!(burst.hold(ms(7), HELD_EVENTS_MAX - 1).is_some());
        assert_eq!(burst.hold(ms(7), HELD_EVENTS_MAX), None);
    }

    #[test]
    fn what_waits_for_nothing_begins_no_wait() {
        let mut burst = burst(0..8);
        assert_eq!(burst.hold(ms(8), 0), None);
        (9..100).for_each(|at| burst.note(ms(at)));
        assert!(burst.hold(ms(99), 1).is_some());
    }
}
