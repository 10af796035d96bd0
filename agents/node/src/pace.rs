//! Whether the loop stood, and what held it up: it waited for a processor, it worked, or neither (a disk, a lock, a signal, a
//! machine that slept). Pure.

use std::time::Duration;

use razar_os::ThreadTimes;

/// From one turn of the house to the next: longer than this, and whoever hears the beats has missed one.
const STOOD_AFTER: Duration = Duration::from_secs(2);

/// The turn before this one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    last: Option<(Duration, Option<ThreadTimes>)>,
}

/// How long the loop took to turn, and what of it the kernel accounts for. Up to a second is its rest between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stood {
    pub(crate) lasted: Duration,
    /// What it was given meanwhile; `None`: the kernel did not tell.
    pub(crate) given: Option<ThreadTimes>,
}

impl Pace {
    /// A turn of the house at `now`, when the loop's thread had been given `times`.
    pub(crate) fn turned(&mut self, now: Duration, times: Option<ThreadTimes>) -> Option<Stood> {
        let (at, before) = self.last.replace((now, times))?;
        let lasted = now.saturating_sub(at);
        let given = times.zip(before).map(|(times, before)| ThreadTimes {
            ran: times.ran.saturating_sub(before.ran),
            waited: times.waited.saturating_sub(before.waited),
        });
        (lasted > STOOD_AFTER).then_some(Stood { lasted, given })
    }
}

impl std::fmt::Display for Stood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Duration| time.as_secs_f64();
        write!(f, "the loop turned after {:.1} s", seconds(self.lasted))?;
        let Some(given) = self.given else { return Ok(()) };
        let rest = self.lasted.saturating_sub(given.ran + given.waited);
        let (ran, waited, rest) = (seconds(given.ran), seconds(given.waited), seconds(rest));
        write!(f, ": {ran:.1} s it ran, {waited:.1} s it waited for a processor, {rest:.1} s for anything else")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_loop_that_stood_is_told_with_what_held_it_up() {
        let mut pace = Pace::default();
        let times = |ran, waited| Some(ThreadTimes { ran: ms(ran), waited: ms(waited) });
        assert_eq!(pace.turned(ms(10_000), times(500, 100)), None, "nothing came before");
        assert_eq!(pace.turned(ms(11_900), times(600, 900)), None, "late, and no beat is missed");
        let stood = pace.turned(ms(16_600), times(700, 4_900)).expect("it stood");
        assert_eq!(stood, Stood { lasted: ms(4_700), given: times(100, 4_000) });
        let said = "the loop turned after 4.7 s: 0.1 s it ran, 4.0 s it waited for a processor, 0.6 s for anything else";
        assert_eq!(stood.to_string(), said);
        let untold = pace.turned(ms(20_000), None).map(|stood| stood.to_string());
        assert_eq!(untold.as_deref(), Some("the loop turned after 3.4 s"));
        assert_eq!(pace.turned(ms(30_000), times(900, 5_000)).expect("it stood").given, None, "from when is not known");
    }
}
