//! Commands that this replica has read and another decides about: kept until the holder of their shard has taken them, or until this
//! replica has come to hold it. They stay the broker's throughout, which delivers them again if whoever has them dies.

use std::{collections::BTreeMap, time::Duration};

use razar_bus::ReceivedCommand;

/// Pause after a try to hand a command over; one that came from another replica waits so long first, lest two that each take the other for
/// the holder play with it.
const PAUSE: Duration = Duration::from_millis(50);
/// Commands kept; the stream delivers no more unacknowledged ones.
const AWAY_MAX: usize = 256;

/// What is handed over.
pub(super) trait Handed {
    /// What it is about.
    fn target(&self) -> &str;
    /// Whether another replica handed it over to this one.
    fn was_handed_over(&self) -> bool;
}

impl Handed for ReceivedCommand {
    fn target(&self) -> &str {
        &self.target
    }

    fn was_handed_over(&self) -> bool {
        self.handed_over
    }
}

/// Component of a target (`api`, `api.1`).
pub(super) fn component(target: &str) -> &str {
    target.split('.').next().unwrap_or_default()
}

/// The commands of others.
#[derive(Debug)]
pub(super) struct Away<C> {
    waiting: BTreeMap<u64, Waiting<C>>,
    numbers: u64,
}

#[derive(Debug)]
struct Waiting<C> {
    command: C,
    /// Not to be handed over before; `None`: that is under way.
    at: Option<Duration>,
}

impl<C> Default for Away<C> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), numbers: 0 }
    }
}

impl<C: Handed> Away<C> {
    pub(super) fn put(&mut self, command: C, now: Duration) {
        self.numbers += 1;
        let at = if command.was_handed_over() { now + PAUSE } else { now };
        self.waiting.insert(self.numbers, Waiting { command, at: Some(at) });
        if self.waiting.len() > AWAY_MAX {
            // It comes again.
            self.waiting.pop_first();
        }
    }

    /// Takes out those about whose component is decided here now.
    pub(super) fn take(&mut self, decides: impl Fn(&str) -> bool) -> Vec<C> {
        let ours = |w: &Waiting<C>| w.at.is_some() && decides(component(w.command.target()));
        let numbers: Vec<u64> = self.waiting.iter().filter(|(_, w)| ours(w)).map(|(n, _)| *n).collect();
        numbers.into_iter().filter_map(|n| self.waiting.remove(&n)).map(|w| w.command).collect()
    }

    /// Those that are due to be handed over, each with the name of whom to; where nobody is known to decide they wait on.
    pub(super) fn due_to(&mut self, now: Duration, holder: impl Fn(&str) -> Option<String>) -> Vec<(u64, String)> {
        let mut due = Vec::new();
        for (number, waiting) in self.waiting.iter_mut().filter(|(_, w)| w.at.is_some_and(|at| at <= now)) {
            match holder(component(waiting.command.target())) {
                Some(holder) => {
                    waiting.at = None;
                    due.push((*number, holder));
                }
                None => waiting.at = Some(now + PAUSE),
            }
        }
        due
    }

    pub(super) fn get(&self, number: u64) -> Option<&C> {
        self.waiting.get(&number).map(|waiting| &waiting.command)
    }

    /// What came of it.
    pub(super) fn handed_over(&mut self, number: u64, taken: bool, now: Duration) {
        if taken {
            self.waiting.remove(&number);
        } else if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.at = Some(now + PAUSE);
        }
    }

    /// When the next is to be tried.
    pub(super) fn next_try(&self, now: Duration) -> Option<Duration> {
        self.waiting.values().filter_map(|w| w.at).min().map(|at| at.max(now))
    }

    /// Forgets all; what comes out is nobody's now, the rest is being taken by another.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = C> + use<C> {
        std::mem::take(&mut self.waiting).into_values().filter(|w| w.at.is_some()).map(|w| w.command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Command(&'static str, bool);

    impl Handed for Command {
        fn target(&self) -> &str {
            self.0
        }

        fn was_handed_over(&self) -> bool {
            self.1
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn to_b(_: &str) -> Option<String> {
        Some("b".to_owned())
    }

    #[test]
    fn a_command_goes_to_who_decides_and_is_kept_until_it_is_taken() {
        let mut away = Away::default();
        away.put(Command("api.1", false), ms(0));
        assert_eq!(away.due_to(ms(0), to_b), [(1, "b".to_owned())]);
        assert!(away.due_to(ms(500), to_b).is_empty(), "that is under way");
        assert!(away.take(|_| true).is_empty(), "the other may have taken it");
        away.handed_over(1, false, ms(500));
        assert!(away.due_to(ms(549), to_b).is_empty());
        assert_eq!(away.due_to(ms(550), to_b).len(), 1);
        away.handed_over(1, true, ms(560));
        assert_eq!(away.next_try(ms(560)), None);
    }

    #[test]
    fn it_waits_while_nobody_decides_and_is_taken_by_who_comes_to() {
        let mut away = Away::default();
        away.put(Command("api", false), ms(0));
        assert!(away.due_to(ms(0), |_| None).is_empty());
        assert_eq!(away.next_try(ms(1)), Some(ms(50)));
        assert!(away.take(|component| component == "db").is_empty());
        assert_eq!(away.take(|component| component == "api").len(), 1);
    }

    #[test]
    fn what_was_handed_over_here_by_mistake_does_not_go_back_at_once() {
        let mut away = Away::default();
        away.put(Command("api", true), ms(0));
        assert!(away.due_to(ms(49), to_b).is_empty());
        assert_eq!(away.due_to(ms(50), to_b).len(), 1);
    }
}
