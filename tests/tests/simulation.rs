//! The mesh from many seeds: whatever fails, the invariants hold, and once faults cease everything settles.
//! `RAZAR_SIM_SEEDS` says how many (2,000), `RAZAR_SIM_FROM` from which on, `RAZAR_SIM_SEED` which single one, with its story, and
//! `RAZAR_SIM_WITHOUT` and `RAZAR_SIM_FAULTY` as which shrunk run of it.

#![expect(clippy::panic, reason = "a test says what failed by failing")]

use std::time::Instant;

use razar_tests::sim::run::{self, Plan};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Seeds of an ordinary run.
const SEEDS: u64 = 2_000;

/// Seeds that have failed before, a line each: `seed  # what it showed`.
fn regressions() -> Vec<u64> {
    listed(include_str!("../seeds/simulation.txt"))
}

/// Seeds that fail still, their cause not found: an ordinary run says that it passes over them.
fn open() -> Vec<u64> {
    listed(include_str!("../seeds/open.txt"))
}

fn listed(text: &str) -> Vec<u64> {
    let seeds = text.lines().map(|line| line.split('#').next().unwrap_or("").trim()).filter(|line| !line.is_empty());
    seeds.map(|seed| seed.parse().unwrap_or_else(|_| panic!("{seed} is no seed"))).collect()
}

#[test]
fn whatever_fails_the_invariants_hold_and_it_settles() {
    if let Some(seed) = number("RAZAR_SIM_SEED") {
        let text = |name: &str| std::env::var(name).ok();
        let plan = Plan::parse(text("RAZAR_SIM_WITHOUT").as_deref(), text("RAZAR_SIM_FAULTY").as_deref());
        let plan = plan.unwrap_or_else(|why| panic!("{why}"));
        let as_shrunk = !plan.without.is_empty() || plan.faulty.is_some();
        let outcome = run::run(seed, &plan);
        println!("{}", outcome.story);
        println!("seed {seed}: {} steps, {:?}, faults {:?} for {:?}", outcome.steps, outcome.lasted, outcome.faults, outcome.faulty);
        if let Some(violation) = &outcome.violation {
            panic!("{}", if as_shrunk { format!("{}: {}", violation.invariant, violation.text) } else { run::report(seed) });
        }
        return;
    }
    let began = Instant::now();
    let from = number("RAZAR_SIM_FROM").unwrap_or(1);
    let count = number("RAZAR_SIM_SEEDS").unwrap_or(SEEDS);
    let mut seeds = regressions();
    let open = open();
    seeds.extend((from..from + count).filter(|seed| !open.contains(seed)));
    println!("NOT RUN: seeds that fail still, {open:?}");
    let summary = run::run_all(&seeds);
    println!(
        "{} seeds in {:.1?}: {} steps, {} starts, {} kills, {} rungs, {} isolations, {:.1} simulated hours",
        summary.seeds,
        began.elapsed(),
        summary.steps,
        summary.starts,
        summary.kills,
        summary.rungs,
        summary.isolations,
        summary.lasted.as_secs_f64() / 3600.0
    );
    let Some((seed, _)) = summary.failed.first() else { return };
    let list: Vec<String> = summary.failed.iter().map(|(seed, v)| format!("  {seed}  {}: {}", v.invariant, v.text)).collect();
    panic!("{}\nall that failed:\n{}", run::report(*seed), list.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_story() {
    for seed in [1, 3, 6] {
        let (first, second) = (run::run(seed, &Plan::default()), run::run(seed, &Plan::default()));
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
        assert_ne!(first.hash, run::run(seed + 1, &Plan::default()).hash, "another seed, another story");
    }
}
