//! Whether this observer is current: connected, on time, and hearing what the broker hears. Silence counts only since it is, and only up to
//! the newest echo of its own that came back: a message sent on the same way as every beat, so that what the broker had before it has
//! been heard. Pure.

use std::time::Duration;

use super::Rhythm;

/// Time between two echoes while fine beats are watched: what is noticed of a broker that stands is noticed after this and a limit below.
const ECHO_FINE: Duration = Duration::from_millis(100);
/// The same while none are: with the limit below a third of the silence that counts.
const ECHO_ROUGH: Duration = Duration::from_millis(500);
/// An echo that is not back by then was lost with its connection.
const ECHO_LOST: Duration = Duration::from_secs(3);
/// Lateness of the own loop, or of an echo, that voids the silence of those who beat faster than [`FINE_BELOW`].
const FINE_MAX: Duration = Duration::from_millis(100);
/// The same for all others: half of a beat.
const ROUGH_MAX: Duration = Duration::from_millis(500);
/// Beats that come faster than this are fine ones.
const FINE_BELOW: Duration = Duration::from_millis(1000);
/// A silence that counts sooner than this needs an observer that knows of a tenth of a second, too: it must be longer than what else goes
/// unnoticed of a broker that stands.
const PATIENT_FROM: Duration = Duration::from_secs(3);
/// Time that the others have to find the broker again after this one has: the longest pause between two tries of a client, and a half.
const REJOIN: Duration = Duration::from_secs(3);
/// The longest time between two turns of the loop while nothing happens and fine beats are watched; more is lateness.
const TURN_FINE: Duration = Duration::from_millis(50);
/// The same while none are.
const TURN_ROUGH: Duration = Duration::from_millis(250);

/// The observer's own state.
#[derive(Debug, Clone, Default)]
pub struct Currency {
    up_at: Option<Duration>,
    turned: Option<Duration>,
    fine: Option<Duration>,
    rough: Option<Duration>,
    echo: Option<(u64, Duration)>,
    sent_at: Option<Duration>,
    number: u64,
    proven: Option<Duration>,
    wanted: bool,
    watches_fine: bool,
    /// The echo before was late.
    slow: bool,
    interruptions: u64,
}

impl Currency {
    /// The connection came up. The others come back within `REJOIN`, and are not silent meanwhile.
    pub fn connected(&mut self, now: Duration) {
        self.disconnected();
        self.up_at = Some(now);
    }

    /// The connection was lost.
    pub fn disconnected(&mut self) {
        if self.up_at.take().is_some() {
            self.interruptions += 1;
        }
        (self.fine, self.rough, self.echo, self.sent_at, self.proven) = (None, None, None, None, None);
        self.slow = false;
    }

    /// Messages were dropped, or something else went unheard until now.
    pub fn missed(&mut self, now: Duration) {
        self.interrupted(Duration::MAX, now);
    }

    /// Whether beats that come faster than once a second are watched: only then the observer must know of a tenth of a second.
    pub fn watches_fine(&mut self, fine: bool) {
        if std::mem::replace(&mut self.watches_fine, fine) != fine && fine {
            // Nobody has looked so closely until now.
            self.fine = None;
            self.wanted = true;
        }
    }

    /// The longest time between two turns of the loop while nothing happens; more is lateness.
    #[must_use]
    pub const fn turn_max(&self) -> Duration {
        if self.watches_fine { TURN_FINE } else { TURN_ROUGH }
    }

    /// Whether beats of this rhythm need an observer that knows of a tenth of a second.
    #[must_use]
    pub fn needs_fine(rhythm: &Rhythm) -> bool {
        rhythm.interval < FINE_BELOW || rhythm.patience() < PATIENT_FROM
    }

    /// The loop turns. How late it does is how long nothing was heard.
    pub fn turned(&mut self, now: Duration) {
        let most = self.turn_max();
        let late = self.turned.replace(now).map_or(Duration::ZERO, |before| now.saturating_sub(before).saturating_sub(most));
        self.interrupted(late, now);
        if let Some((_, sent)) = self.echo {
            let waited = now.saturating_sub(sent);
            if waited > FINE_MAX {
                self.fine = None;
            }
            if waited > ROUGH_MAX && self.rough.take().is_some() {
                self.interruptions += 1;
            }
        }
    }

    /// Whether the loop is so late that what came meanwhile may be unheard: its turn comes first.
    #[must_use]
    pub fn owes_a_turn(&self, now: Duration) -> bool {
        self.turned.is_some_and(|before| now.saturating_sub(before) > self.turn_max() + FINE_MAX)
    }

    /// Echo `number` came back.
    pub fn echoed(&mut self, number: u64, now: Duration) {
        let Some((_, sent)) = self.echo.take_if(|(outstanding, _)| *outstanding == number) else { return };
        self.interrupted(now.saturating_sub(sent), now);
        let joined = self.up_at.map_or(now, |at| if self.proven.is_none() { at + REJOIN } else { now }).max(now);
        self.fine.get_or_insert(joined);
        self.rough.get_or_insert(joined);
        // Sent while the broker stood it may have overtaken what waited in other lines: the next one proves, however slow the line is.
        let slow = now.saturating_sub(sent) > FINE_MAX;
        if slow && !std::mem::replace(&mut self.slow, slow) {
            self.wanted = true;
        } else {
            self.slow = slow;
            self.proven = Some(sent);
        }
    }

    fn interrupted(&mut self, lasted: Duration, now: Duration) {
        if lasted > FINE_MAX {
            self.fine = self.fine.map(|since| since.max(now));
        }
        if lasted > ROUGH_MAX {
            self.interruptions += 1;
            self.rough = self.rough.map(|since| since.max(now));
        }
    }

    /// Since when the observer of beats of this interval is current; `None`: it is not.
    #[must_use]
    pub fn since(&self, interval: Duration) -> Option<Duration> {
        if interval < FINE_BELOW { self.fine } else { self.rough }
    }

    /// Up to when everything that the broker had is heard.
    #[must_use]
    pub const fn proven(&self) -> Option<Duration> {
        self.proven
    }

    /// A verdict waits for a newer proof.
    pub fn want_proof(&mut self) {
        self.wanted = true;
    }

    /// The echo to be sent now, if one is due.
    pub fn due_echo(&mut self, now: Duration) -> Option<u64> {
        self.up_at?;
        if self.echo.is_some_and(|(_, sent)| now.saturating_sub(sent) < ECHO_LOST) {
            return None;
        }
        let every = if self.watches_fine { ECHO_FINE } else { ECHO_ROUGH };
        let due = self.sent_at.is_none_or(|sent| now.saturating_sub(sent) >= every);
        if !due && !self.wanted {
            return None;
        }
        if self.echo.is_some() {
            (self.fine, self.rough) = (None, None);
        }
        self.wanted = false;
        self.number += 1;
        (self.echo, self.sent_at) = (Some((self.number, now)), Some(now));
        Some(self.number)
    }

    /// How often silence had to be counted anew.
    #[must_use]
    pub const fn interruptions(&self) -> u64 {
        self.interruptions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Turns every 20 ms from `from` to `to`; each echo is back after `trip`, the last at the end.
    fn run(c: &mut Currency, from: u64, to: u64, trip: u64) {
        let mut back: Vec<(u64, u64)> = Vec::new();
        for at in (from..=to).step_by(20) {
            let due = back.extract_if(.., |(when, _)| *when <= at).collect::<Vec<_>>();
            due.into_iter().for_each(|(_, n)| c.echoed(n, ms(at)));
            c.turned(ms(at));
            if let Some(n) = c.due_echo(ms(at)) {
                back.push((at + trip, n));
            }
        }
        back.into_iter().for_each(|(_, n)| c.echoed(n, ms(to)));
    }

    fn current() -> Currency {
        let mut c = Currency::default();
        c.connected(ms(0));
        run(&mut c, 0, 10_000, 20);
        c
    }

    #[test]
    fn others_have_time_to_come_back_after_a_connection() {
        let mut c = current();
        assert_eq!(c.since(BEAT), Some(REJOIN));
        assert!(c.proven() >= Some(ms(9_500)), "{:?}", c.proven());
        c.disconnected();
        assert_eq!((c.since(BEAT), c.proven()), (None, None));
        c.connected(ms(12_000));
        run(&mut c, 12_000, 13_000, 20);
        assert_eq!(c.since(BEAT), Some(ms(12_000) + REJOIN));
    }

    #[test]
    fn a_late_loop_counts_anew() {
        let mut c = current();
        c.watches_fine(true);
        run(&mut c, 10_020, 10_100, 20);
        run(&mut c, 10_260, 10_400, 20);
        assert_eq!(c.since(BEAT), Some(REJOIN), "a tenth of a second is borne");
        assert!(c.since(ms(100)) >= Some(ms(10_260)), "not by those who beat ten times a second");
        run(&mut c, 11_200, 11_400, 20);
        assert_eq!(c.since(BEAT), Some(ms(11_200)));
    }

    #[test]
    fn who_watches_no_fine_beats_turns_and_asks_seldom() {
        let mut c = current();
        let echoes = |c: &mut Currency, from: u64| {
            let mut count = 0;
            for at in (from..from + 5_000).step_by(20) {
                c.turned(ms(at));
                if let Some(n) = c.due_echo(ms(at)) {
                    c.echoed(n, ms(at));
                    count += 1;
                }
            }
            count
        };
        assert!(echoes(&mut c, 10_020) <= 11, "twice a second");
        c.turned(ms(15_240));
        assert_eq!(c.since(BEAT), Some(REJOIN), "a turn in a quarter of a second is on time");
        c.watches_fine(true);
        assert_eq!(c.since(ms(100)), None, "until now nobody looked so closely");
        assert!(echoes(&mut c, 15_260) >= 45 && c.turn_max() < ms(100), "ten times a second, the first at once");
        assert!(c.since(ms(100)).is_some());
    }

    #[test]
    fn a_broker_that_stands_suspends_and_counts_anew() {
        let mut c = current();
        c.want_proof();
        let n = c.due_echo(ms(10_150)).unwrap();
        for at in (10_150..14_000).step_by(20) {
            c.turned(ms(at));
        }
        assert_eq!(c.since(BEAT), None, "while its echo is out");
        c.echoed(n, ms(14_000));
        assert_eq!(c.since(BEAT), Some(ms(14_000)));
        let n = c.due_echo(ms(14_010)).unwrap();
        c.echoed(n, ms(14_020));
        assert_eq!(c.proven(), Some(ms(14_010)), "what it proves ends where it was sent");
    }

    #[test]
    fn an_echo_that_came_late_proves_nothing_until_the_next_has_come() {
        let mut c = current();
        c.want_proof();
        let n = c.due_echo(ms(10_150)).unwrap();
        c.echoed(n, ms(10_450));
        assert!(c.proven() < Some(ms(10_150)), "it may have overtaken what waited for the broker with it");
        let n = c.due_echo(ms(10_455)).unwrap();
        c.echoed(n, ms(10_800));
        assert_eq!(c.proven(), Some(ms(10_455)), "a line that is always slow proves as well");
    }

    #[test]
    fn a_lost_echo_is_sent_again_and_an_old_one_proves_nothing() {
        let mut c = current();
        c.want_proof();
        let n = c.due_echo(ms(10_150)).unwrap();
        assert_eq!(c.due_echo(ms(13_000)), None);
        let next = c.due_echo(ms(13_200)).unwrap();
        c.turned(ms(13_200));
        c.echoed(n, ms(13_210));
        assert_eq!(c.since(BEAT), None);
        c.echoed(next, ms(13_220));
        assert_eq!(c.since(BEAT), Some(ms(13_220)));
    }

    #[test]
    fn what_was_dropped_counts_anew_for_all() {
        let mut c = current();
        c.missed(ms(10_010));
        assert_eq!((c.since(BEAT), c.since(ms(100))), (Some(ms(10_010)), Some(ms(10_010))));
    }

    #[test]
    fn a_wanted_proof_is_sent_at_once() {
        let mut c = current();
        assert_eq!(c.due_echo(ms(10_010)), None);
        c.want_proof();
        assert!(c.due_echo(ms(10_010)).is_some());
    }
}
