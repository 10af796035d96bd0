//! One subject that is to be heard: its last sign, how many beats are missing, and what a question about it came to. A beat whose loop
//! stands, or that repeats its number, is no sign: a frozen loop behind a living socket is silent. Pure.

use std::time::Duration;

use razar_bus_schema::{ids::Incarnation, time, v1};

/// What a question about a subject came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Question {
    /// None was put since its last sign.
    #[default]
    None,
    /// Put then, and not ended.
    Put(Duration),
    /// Put then, and it ended without an answer.
    Unanswered {
        /// When it was put.
        put: Duration,
        /// Nobody listened for it: it is cut off.
        no_responders: bool,
    },
}

/// Beats that a subject owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// Time between two.
    pub interval: Duration,
    /// Missing ones that count as silence.
    pub misses: u32,
    /// Lateness that every beat is granted.
    pub slack: Duration,
}

impl Rhythm {
    /// From the last sign to where it is silent.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.interval.saturating_mul(self.misses.max(1))
    }
}

/// A subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Since when it is to be heard.
    pub known: Duration,
    /// Incarnation that is to be heard; only of components.
    pub incarnation: Incarnation,
    /// Its last sign.
    pub sign: Option<Duration>,
    /// Its beats say that its loop stands: when the first of them came, when the newest, and how long it stood by that.
    pub stands: Option<(Duration, Duration, Duration)>,
    /// The question about it.
    pub question: Question,
    /// What its node's view of it was last; only of components.
    pub seen: Option<v1::SilenceReply>,
    /// When it is looked at next.
    pub due: Duration,
    cycle: u64,
}

/// How a subject is at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Silence counts from then.
    pub since: Duration,
    /// Beats that are missing.
    pub missed: u32,
    /// When that number grows next.
    pub next: Duration,
}

impl Watch {
    /// A subject that is to be heard from `known` on.
    #[must_use]
    pub fn new(known: Duration, incarnation: Incarnation) -> Self {
        Self { known, incarnation, due: known, ..Self::default() }
    }

    /// The same one from `known` on, with the signs that it gave before: it may be another process, whose loop has not stood.
    #[must_use]
    pub fn begun_anew(&self, known: Duration) -> Self {
        Self { known, due: known, question: Question::None, seen: None, stands: None, ..self.clone() }
    }

    /// A beat was heard. `stands`: it says that its loop stands, and follows another that came within this time. True: it is a sign of life.
    pub fn heard(&mut self, beat: &v1::Heartbeat, stands: Option<Duration>, now: Duration) -> bool {
        if let Some(patience) = stands {
            let age = time::duration_or(beat.loop_age.as_ref(), Duration::ZERO);
            // Behind a gap a row begins anew: the loop may have turned meanwhile, unheard.
            let row = self.stands.filter(|(_, newest, _)| *newest + patience > now);
            self.stands = Some((row.map_or(now, |(first, ..)| first), now, age));
            return false;
        }
        // Who counts its beats counts them all: one number twice is an echo of an old loop, or a copy.
        if beat.cycle != 0 && beat.cycle == self.cycle {
            return false;
        }
        self.cycle = beat.cycle;
        self.signs(now);
        true
    }

    /// It gave a sign of life of any kind.
    pub fn signs(&mut self, now: Duration) {
        (self.sign, self.stands, self.question, self.seen) = (Some(now), None, Question::None, None);
    }

    /// How silent it is, for an observer that is current since `current`.
    #[must_use]
    pub fn silence(&self, rhythm: &Rhythm, current: Duration, now: Duration) -> Silence {
        let since = self.known.max(self.sign.unwrap_or_default()).max(current);
        let interval = rhythm.interval.max(Duration::from_millis(1));
        let quiet = now.saturating_sub(since + rhythm.slack);
        let missed = u32::try_from(quiet.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
        Silence { since, missed, next: since + rhythm.slack + interval.saturating_mul(missed.saturating_add(1)) }
    }

    /// Time since its last sign, by which it is told.
    #[must_use]
    pub fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.sign.unwrap_or(self.known))
    }

    /// Whether more than one beat in a row has said that its loop stands: the first may have been sent by a process that had just woken.
    /// Who says so no longer is silent, and judged for that.
    #[must_use]
    pub fn stands(&self, rhythm: &Rhythm, now: Duration) -> Option<Duration> {
        let (first, newest, age) = self.stands?;
        let says_so = newest + rhythm.patience() > now && newest.saturating_sub(first) >= rhythm.interval / 2;
        says_so.then_some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RHYTHM: Rhythm = Rhythm { interval: Duration::from_secs(1), misses: 3, slack: Duration::from_millis(20) };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Beats of a loop that stands come within three seconds of one another.
    const STANDS: Option<Duration> = Some(Duration::from_secs(3));

    fn beat(cycle: u64, age: u64) -> v1::Heartbeat {
        v1::Heartbeat { cycle, loop_age: Some(time::duration(ms(age))), ..Default::default() }
    }

    #[test]
    fn beats_are_missed_after_their_slack() {
        let mut w = Watch::new(ms(0), Incarnation::default());
        w.heard(&beat(1, 0), None, ms(500));
        let missed = |at| w.silence(&RHYTHM, ms(0), ms(at)).missed;
        assert_eq!([500, 1_519, 1_520, 2_520, 3_519, 3_520].map(missed), [0, 0, 1, 2, 2, 3]);
        assert_eq!(w.silence(&RHYTHM, ms(0), ms(1_600)).next, ms(2_520));
        assert_eq!(w.silence(&RHYTHM, ms(2_000), ms(3_520)).missed, 1, "only what a current observer has not heard");
    }

    #[test]
    fn a_loop_that_stands_is_silent_however_it_beats() {
        let mut w = Watch::new(ms(0), Incarnation::default());
        assert!(w.heard(&beat(1, 10), None, ms(1_000)));
        assert!(!w.heard(&beat(2, 3_100), STANDS, ms(4_000)));
        assert_eq!(w.stands(&RHYTHM, ms(4_000)), None, "once may be a process that has just woken");
        assert!(!w.heard(&beat(3, 4_100), STANDS, ms(5_000)));
        assert_eq!(w.stands(&RHYTHM, ms(5_000)), Some(ms(4_100)));
        assert_eq!(w.stands(&RHYTHM, ms(8_000)), None, "who says nothing more is silent");
        let mut unheard = w.clone();
        assert!(!unheard.heard(&beat(4, 8_100), STANDS, ms(9_000)));
        assert_eq!(unheard.stands(&RHYTHM, ms(9_000)), None, "behind a gap once is once again");
        assert_eq!(w.begun_anew(ms(5_100)).stands(&RHYTHM, ms(5_100)), None, "another process");
        assert_eq!(w.silent_for(ms(5_000)), ms(4_000));
        assert!(w.heard(&beat(4, 0), None, ms(6_000)));
        assert_eq!(w.stands(&RHYTHM, ms(6_000)), None);
    }

    #[test]
    fn a_repeated_number_is_no_sign_and_no_number_is_one() {
        let mut w = Watch::new(ms(0), Incarnation::default());
        assert!(w.heard(&beat(7, 0), None, ms(1_000)) && !w.heard(&beat(7, 0), None, ms(2_000)));
        assert!(w.heard(&beat(1, 0), None, ms(3_000)), "a new process counts anew");
        assert!(w.heard(&beat(0, 0), None, ms(4_000)) && w.heard(&beat(0, 0), None, ms(5_000)));
    }
}
