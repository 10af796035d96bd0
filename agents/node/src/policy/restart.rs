//! The local budget: how many restarts a node may spend on an instance inside a period, and the delay before each.
//! Randomness is a hash of what is restarted, so that the same run gives the same delays.

use std::{collections::VecDeque, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    time, v1,
};

/// Restarts remembered; above any sensible `max`, so that the memory is bounded.
const RESTARTS_KEPT: usize = 256;

/// Restarts spent, and how many lives in a row were short.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budget {
    /// Instants of local restarts, oldest first, monotonic.
    pub restarts: VecDeque<Duration>,
    /// Incarnations in a row that died before they were ready long enough.
    pub short_lives: u32,
}

/// What the budget says of the next restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Restart number `number` of the period after `delay`.
    Restart {
        /// Number inside the period, from 1.
        number: u32,
        /// Delay before it.
        delay: Duration,
    },
    /// Spent: restarts inside the period.
    Spent(u32),
}

/// Limits of a specification, with their defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Restarts allowed in `within`.
    pub max: u32,
    /// Period.
    pub within: Duration,
    first: Duration,
    base: Duration,
    factor: f64,
    longest: Duration,
    jitter: f64,
    /// Time of being ready that ends a row of short lives.
    pub reset_after: Duration,
    /// Past the budget, go on at the longest delay.
    pub endless: bool,
    /// Policy.
    pub policy: v1::RestartPolicy,
}

impl Limits {
    /// Limits of `spec`; what it leaves out has the default that its .proto names.
    #[must_use]
    pub fn of(spec: &v1::ComponentSpec) -> Self {
        let none = v1::RestartSpec::default();
        let r = spec.restart.as_ref().unwrap_or(&none);
        let or = |value: f64, default: f64| if value.is_finite() && value > 0.0 { value } else { default };
        Self {
            max: if r.budget_within.is_none() && r.budget_max == 0 { 3 } else { r.budget_max },
            within: time::duration_or(r.budget_within.as_ref(), Duration::from_secs(90)),
            first: time::duration_or(r.first.as_ref(), Duration::ZERO),
            base: time::duration_or(r.base.as_ref(), Duration::from_secs(1)),
            factor: or(r.factor, 2.0),
            longest: time::duration_or(r.max.as_ref(), Duration::from_secs(60)),
            jitter: or(r.jitter, 0.0).min(1.0),
            reset_after: time::duration_or(r.reset_after.as_ref(), Duration::from_secs(1)),
            endless: r.endless,
            policy: r.policy(),
        }
    }

    /// Delay after `short_lives` short lives in a row, with the jitter of `dice` (0–1).
    #[must_use]
    pub fn delay(&self, short_lives: u32, dice: f64) -> Duration {
        match short_lives {
            0 => Duration::ZERO,
            1 => self.first,
            n => {
                let exponent = i32::try_from(n - 2).unwrap_or(i32::MAX);
                let seconds = (self.base.as_secs_f64() * self.factor.powi(exponent)).min(self.longest.as_secs_f64());
                Duration::try_from_secs_f64(seconds * (1.0 - self.jitter / 2.0 + self.jitter * dice)).unwrap_or(self.longest)
            }
        }
    }
}

impl Budget {
    /// An incarnation died after it had been ready for `ready_for`.
    pub fn died(&mut self, ready_for: Duration, limits: &Limits) {
        self.short_lives = if ready_for >= limits.reset_after { 0 } else { self.short_lives.saturating_add(1) };
    }

    /// What is allowed at `now`.
    #[must_use]
    pub fn allow(&self, limits: &Limits, dice: f64, now: Duration) -> Allowance {
        let spent = self.spent(limits, now);
        if spent < limits.max {
            return Allowance::Restart { number: spent + 1, delay: limits.delay(self.short_lives, dice) };
        }
        if limits.endless {
            return Allowance::Restart { number: spent + 1, delay: limits.longest };
        }
        Allowance::Spent(spent)
    }

    /// Restarts inside the period that ends at `now`.
    #[must_use]
    pub fn spent(&self, limits: &Limits, now: Duration) -> u32 {
        let inside = self.restarts.iter().filter(|at| now.saturating_sub(**at) < limits.within).count();
        u32::try_from(inside).unwrap_or(u32::MAX)
    }

    /// A restart was made at `now`.
    pub fn spend(&mut self, now: Duration) {
        if self.restarts.len() == RESTARTS_KEPT {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
    }

    /// Gives the budget back.
    pub fn give_back(&mut self) {
        *self = Self::default();
    }
}

/// A number in 0–1 that is the same for the same incarnation and salt.
#[must_use]
pub fn dice(instance: &Instance, incarnation: Incarnation, salt: u64) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ salt;
    let text = format!("{instance}@{incarnation}");
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 29;
    f64::from(u32::try_from(hash >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits::of(&v1::ComponentSpec::default())
    }

    /// Faults 22 and 51: numbers that no stack file gives, from a record of anybody's.
    #[test]
    fn odd_numbers_of_a_record_give_a_delay_all_the_same() {
        let longest = prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX };
        for odd in [f64::NAN, f64::INFINITY, -1.0, f64::MAX, f64::MIN_POSITIVE] {
            let restart = v1::RestartSpec { jitter: odd, factor: odd, base: Some(longest), max: Some(longest), ..Default::default() };
            let limits = Limits::of(&v1::ComponentSpec { restart: Some(restart), ..Default::default() });
            for lives in [0, 1, 2, 9, u32::MAX] {
                let _ = Duration::from_secs(1) + limits.delay(lives, 1.0);
            }
        }
    }

    #[test]
    fn the_first_is_at_once_and_the_third_is_the_last() {
        let (mut budget, limits) = (Budget::default(), limits());
        let mut said = Vec::new();
        for second in [0, 1, 3, 8] {
            let now = Duration::from_secs(second);
            budget.died(Duration::ZERO, &limits);
            said.push(budget.allow(&limits, 0.5, now));
            budget.spend(now);
        }
        let restart = |number, seconds| Allowance::Restart { number, delay: Duration::from_secs(seconds) };
        assert_eq!(said, [restart(1, 0), restart(2, 1), restart(3, 2), Allowance::Spent(3)]);
    }

    #[test]
    fn who_was_ready_long_enough_is_restarted_at_once() {
        let (mut budget, limits) = (Budget::default(), limits());
        budget.died(Duration::ZERO, &limits);
        budget.died(Duration::ZERO, &limits);
        budget.died(Duration::from_secs(1), &limits);
        assert_eq!(budget.allow(&limits, 0.5, Duration::ZERO), Allowance::Restart { number: 1, delay: Duration::ZERO });
    }

    #[test]
    fn the_window_slides() {
        let (mut budget, limits) = (Budget::default(), limits());
        for second in [0, 1, 2] {
            budget.spend(Duration::from_secs(second));
        }
        assert_eq!(budget.allow(&limits, 0.5, Duration::from_secs(89)), Allowance::Spent(3));
        assert_eq!(budget.allow(&limits, 0.5, Duration::from_secs(90)), Allowance::Restart { number: 3, delay: Duration::ZERO });
    }

    #[test]
    fn the_system_is_never_given_up() {
        let mut endless = limits();
        endless.endless = true;
        let mut budget = Budget::default();
        for _ in 0..1_000 {
            budget.spend(Duration::ZERO);
        }
        assert_eq!(budget.restarts.len(), RESTARTS_KEPT);
        assert!(matches!(budget.allow(&endless, 0.5, Duration::ZERO), Allowance::Restart { delay, .. } if delay == endless.longest));
    }

    proptest! {
        #[test]
        fn delays_stay_inside_their_bounds(lives in 0_u32..5_000, dice in 0.0_f64..1.0) {
            let mut limits = limits();
            limits.jitter = 0.2;
            prop_assert!(limits.delay(lives, dice) <= limits.longest.mul_f64(1.1));
        }

        #[test]
        fn dice_stay_on_the_table(generation in any::<u64>(), start in any::<u64>(), salt in any::<u64>()) {
            let value = dice(&Instance::new("api", 0), Incarnation::new(generation, start), salt);
            prop_assert!((0.0..=1.0).contains(&value));
        }
    }
}
