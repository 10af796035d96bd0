//! The best schedule that delays, dependencies and start slots allow. Finding it is hard in general; this takes the shortest of many
//! list schedules, and a bound below which none can be, so that the distance between the two is known. Pure.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A start: how long it takes, and what it waits for (indices).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// From spawn to ready.
    pub(crate) takes: Duration,
    /// What must be ready before.
    pub(crate) after: Vec<usize>,
}

/// The best schedule known, and what none can beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Best {
    /// Length of the shortest schedule found.
    pub(crate) found: Duration,
    /// The longer one of the longest chain and of the work shared by all slots.
    pub(crate) bound: Duration,
}

/// Orders tried beside the one by longest remaining chain.
const TRIES: u64 = 2_000;

/// The shortest schedule of `jobs` with `slots` at a time.
///
/// # Errors
/// When a job waits for one that comes after it: the jobs are to be in an order in which they could start.
pub(crate) fn best(jobs: &[Job], slots: usize) -> Result<Best> {
    ensure!(jobs.iter().enumerate().all(|(n, job)| job.after.iter().all(|before| *before < n)), "jobs out of order");
    let mut remaining: Vec<f64> = vec![0.0; jobs.len()];
    for (n, job) in jobs.iter().enumerate().rev() {
        let own = remaining.get(n).copied().unwrap_or_default() + job.takes.as_secs_f64();
        for before in job.after.iter().copied().chain([n]) {
            let rest = remaining.get_mut(before).context("no such job")?;
            // A job's own entry is its chain with itself; one that comes before it waits at least for that.
            *rest = rest.max(own);
        }
    }
    let chain = remaining.iter().copied().fold(0.0, f64::max);
    let work: f64 = jobs.iter().map(|job| job.takes.as_secs_f64()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of slots")]
    let bound = chain.max(work / slots.max(1) as f64);
    let mut found = length(jobs, slots, &remaining);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..TRIES {
        let shaken: Vec<f64> = remaining.iter().map(|rest| rest * (0.7 + 0.6 * unit(&mut random))).collect();
        found = found.min(length(jobs, slots, &shaken));
    }
    Ok(Best { found, bound: Duration::from_secs_f64(bound) })
}

/// xorshift, 0 to 1: the same tries in each run.
fn unit(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let share = (*state >> 11) as f64 / (1_u64 << 53) as f64;
    share
}

/// Length of the schedule in which, whenever a slot is free, the job with the highest rank among those that could start is started.
fn length(jobs: &[Job], slots: usize, rank: &[f64]) -> Duration {
    let mut ends: Vec<Option<Duration>> = vec![None; jobs.len()];
    let mut now = Duration::ZERO;
    loop {
        let ready = |before: &usize| ends.get(*before).copied().flatten().is_some_and(|end| end <= now);
        let running = ends.iter().flatten().filter(|end| **end > now).count();
        let could = jobs.iter().enumerate().filter(|(n, job)| ends.get(*n) == Some(&None) && job.after.iter().all(ready));
        let next = could.max_by(|(a, _), (b, _)| rank.get(*a).partial_cmp(&rank.get(*b)).unwrap_or(std::cmp::Ordering::Equal));
        match next {
            Some((n, job)) if running < slots.max(1) => {
                if let Some(end) = ends.get_mut(n) {
                    *end = Some(now + job.takes);
                }
            }
            _ => match ends.iter().flatten().filter(|end| **end > now).min() {
                Some(end) => now = *end,
                None => return now,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(takes: u64, after: &[usize]) -> Job {
        Job { takes: Duration::from_millis(takes), after: after.to_vec() }
    }

    #[test]
    fn a_chain_takes_its_length_whatever_the_slots() {
        let jobs = [job(10, &[]), job(20, &[0]), job(30, &[1])];
        let best = best(&jobs, 8).unwrap();
        assert_eq!((best.found, best.bound.as_millis()), (Duration::from_millis(60), 60));
    }

    #[test]
    fn slots_are_shared_and_the_long_one_starts_first() {
        let jobs = [job(10, &[]), job(10, &[]), job(20, &[])];
        assert_eq!(best(&jobs, 2).unwrap().found, Duration::from_millis(20));
        assert_eq!(best(&jobs, 1).unwrap().found, Duration::from_millis(40));
    }

    #[test]
    fn jobs_that_wait_for_later_ones_are_refused() {
        assert!(best(&[job(1, &[1]), job(1, &[])], 1).is_err());
    }
}
