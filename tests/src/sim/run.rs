//! A seed from its beginning to its end, many seeds on all cores, and what a failing one is worth to a person: its story, its command,
//! and the fewest faults and steps that still make it fail.

use std::{
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    checks::Violation,
    faults::{ALL, Fault},
    world::World,
};

/// Steps of a seed; the longest of thousands took a tenth.
pub const STEPS_MAX: u64 = 3_000_000;

/// Real time that a failing seed is worth.
const SHRINK_LIMIT: Duration = Duration::from_secs(20);

/// How a seed is to be run.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Kinds of faults that are taken away.
    pub without: Vec<Fault>,
    /// Faults cease after this time; none: as the seed says.
    pub faulty: Option<Duration>,
}

impl Plan {
    /// The plan that a report names: kinds of faults with commas between, and nanoseconds with faults.
    ///
    /// # Errors
    /// With what is no fault, or no number.
    pub fn parse(without: Option<&str>, faulty: Option<&str>) -> Result<Self, String> {
        let named = |name: &str| ALL.into_iter().find(|fault| format!("{fault:?}") == name).ok_or_else(|| format!("{name} is no fault"));
        let names = without.unwrap_or_default().split(',').filter(|name| !name.is_empty());
        let nanos = |text: &str| text.parse().map(Duration::from_nanos).map_err(|_| format!("{text} is no number"));
        Ok(Self { without: names.map(named).collect::<Result<_, _>>()?, faulty: faulty.map(nanos).transpose()? })
    }
}

/// What came of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What must never have happened.
    pub violation: Option<Violation>,
    /// Hash of the whole story.
    pub hash: u64,
    /// Steps.
    pub steps: u64,
    /// Starts made.
    pub starts: u64,
    /// Kills made.
    pub kills: u64,
    /// Rungs ordered, and isolations by the ladder.
    pub healing: (u64, u64),
    /// Simulated time.
    pub lasted: Duration,
    /// The last lines of the story.
    pub story: String,
    /// Kinds of faults that were on.
    pub faults: Vec<Fault>,
    /// Time with faults.
    pub faulty: Duration,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, plan: &Plan) -> Outcome {
    let mut world = World::new(seed);
    plan.without.iter().for_each(|fault| world.faults.without(*fault));
    let seconds = world.chaos.millis(20_000, 150_000);
    let faulty = plan.faulty.unwrap_or(seconds);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.run_until(faulty, STEPS_MAX);
        if world.checks.violation.is_none() {
            world.settle(STEPS_MAX);
        }
    }));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        world.checks.violation =
            Some(Violation { invariant: "I11".to_owned(), text: text.unwrap_or_else(|| "a policy panicked".to_owned()) });
    }
    Outcome {
        violation: world.checks.violation.clone(),
        hash: world.story.hash(),
        steps: world.steps,
        starts: world.checks.starts,
        kills: world.checks.kills,
        healing: (world.checks.healing.rungs, world.checks.healing.isolations),
        lasted: world.now,
        story: world.story.text(),
        faults: world.faults.kinds(),
        faulty,
    }
}

/// The smallest plan that still breaks the same invariant: without as many kinds of faults, and with as short a time of them, as will do.
#[must_use]
pub fn shrink(seed: u64) -> (Plan, Outcome) {
    let mut best = (Plan::default(), run(seed, &Plan::default()));
    let Some(invariant) = best.1.violation.as_ref().map(|v| v.invariant.clone()) else { return best };
    let began = std::time::Instant::now();
    let fails = |outcome: &Outcome| outcome.violation.as_ref().is_some_and(|v| v.invariant == invariant);
    for fault in best.1.faults.clone() {
        if began.elapsed() > SHRINK_LIMIT {
            return best;
        }
        let mut plan = best.0.clone();
        plan.without.push(fault);
        let outcome = run(seed, &plan);
        if fails(&outcome) {
            best = (plan, outcome);
        }
    }
    let (mut low, mut high) = (Duration::ZERO, best.1.faulty.min(best.1.lasted));
    for _ in 0..10 {
        if began.elapsed() > SHRINK_LIMIT {
            break;
        }
        let middle = (low + high) / 2;
        let plan = Plan { faulty: Some(middle), ..best.0.clone() };
        let outcome = run(seed, &plan);
        if fails(&outcome) {
            high = middle;
            best = (plan, outcome);
        } else {
            low = middle;
        }
    }
    best
}

/// What a person needs to know of a failing seed.
#[must_use]
pub fn report(seed: u64) -> String {
    let (plan, outcome) = shrink(seed);
    let mut text = String::new();
    let _ = writeln!(text, "\n{}", outcome.story);
    if let Some(Violation { invariant, text: what }) = &outcome.violation {
        let _ = writeln!(text, "seed {seed} breaks {invariant}: {what}");
    }
    let _ = writeln!(text, "faults that it needs: {:?}, for {:?}; {} steps", outcome.faults, outcome.faulty, outcome.steps);
    let names: Vec<String> = plan.without.iter().map(|fault| format!("{fault:?}")).collect();
    let (without, faulty) = (names.join(","), outcome.faulty.as_nanos());
    let command = "cargo test -p razar-tests --test simulation -- --nocapture";
    let _ = writeln!(text, "as shrunk: RAZAR_SIM_SEED={seed} RAZAR_SIM_WITHOUT={without} RAZAR_SIM_FAULTY={faulty} {command}");
    let _ = writeln!(text, "as it was: RAZAR_SIM_SEED={seed} {command}");
    text
}

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that failed, with what they broke.
    pub failed: Vec<(u64, Violation)>,
    /// Steps in all.
    pub steps: u64,
    /// Starts in all.
    pub starts: u64,
    /// Kills in all.
    pub kills: u64,
    /// Rungs in all.
    pub rungs: u64,
    /// Isolations by the ladder in all.
    pub isolations: u64,
    /// Simulated time in all.
    pub lasted: Duration,
}

/// Runs these seeds on all cores; stops early once a few have failed.
#[must_use]
pub fn run_all(seeds: &[u64]) -> Summary {
    const FAILURES_ENOUGH: usize = 10;
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    let work = || {
        loop {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
            let Some(seed) = seeds.get(at) else { return };
            let outcome = run(*seed, &Plan::default());
            let mut all = summary.lock().unwrap();
            all.seeds += 1;
            all.steps += outcome.steps;
            all.starts += outcome.starts;
            all.kills += outcome.kills;
            all.rungs += outcome.healing.0;
            all.isolations += outcome.healing.1;
            all.lasted += outcome.lasted;
            if let Some(violation) = outcome.violation {
                all.failed.push((*seed, violation));
            }
            if all.failed.len() >= FAILURES_ENOUGH {
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut summary = summary.into_inner().unwrap();
    summary.failed.sort_by_key(|(seed, _)| *seed);
    summary
}
