//! What is degraded is told once, and so is that it has passed.

use std::time::Duration;

use razar_bus_schema::v1::{DegradedKind, InstanceState as State, event::Fact};

use super::{
    super::{
        Input,
        evidence::{Sample, Task, Window},
        probing::{Answer, Role},
    },
    bench::{Bench, component, id},
};

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_millis(4);
const SLOW: Duration = Duration::from_millis(700);

/// A component that is ready and has told so.
fn ready() -> Bench {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.take();
    b
}

fn answers(b: &mut Bench, answer: Answer, took: Duration, window: Option<Window>) {
    b.pass(SECOND);
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    let detail = "http".to_owned();
    b.input(Input::Probed { instance: id("api"), incarnation, role: Role::Liveness, answer, detail, took, window });
}

fn passes_in(b: &mut Bench, took: Duration) {
    answers(b, Answer::Passed, took, None);
}

/// It ran for as good as nothing, and wanted to.
fn is_starved(b: &mut Bench) {
    let sample = |delay_ns| Sample { tasks: vec![Task { tid: 1, state: 'R', run_ns: 0, delay_ns }], traced: false };
    let window = Window { before: sample(0), after: sample(900_000_000), timeout: SECOND, lasted: SECOND };
    answers(b, Answer::Failed, SECOND, Some(window));
}

/// What was told of degradations: the kind, and whether it has passed.
fn told(b: &Bench) -> Vec<(DegradedKind, bool)> {
    let degraded = |event: &razar_bus_schema::v1::Event| match &event.fact {
        Some(Fact::ComponentDegraded(told)) => Some((told.kind(), told.passed)),
        _ => None,
    };
    b.events.iter().filter_map(degraded).collect()
}

#[test]
fn slowness_is_told_once_and_that_it_passed_after_three_quick_answers() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [(DegradedKind::Slow, false)]);
    // A slow one in between: the row of good answers begins anew.
    for took in [QUICK, QUICK, SLOW, QUICK, QUICK] {
        passes_in(&mut b, took);
    }
    assert_eq!(told(&b), [(DegradedKind::Slow, false)]);
    passes_in(&mut b, QUICK);
    assert_eq!(told(&b), [(DegradedKind::Slow, false), (DegradedKind::Slow, true)]);
    passes_in(&mut b, QUICK);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [(DegradedKind::Slow, false), (DegradedKind::Slow, true), (DegradedKind::Slow, false)]);
}

#[test]
fn who_was_starved_and_answers_again_is_starved_no_longer() {
    let mut b = ready();
    is_starved(&mut b);
    assert_eq!(told(&b), [(DegradedKind::Starved, false)]);
    for _ in 0..3 {
        passes_in(&mut b, QUICK);
    }
    assert_eq!(told(&b), [(DegradedKind::Starved, false), (DegradedKind::Starved, true)]);
    assert_eq!(b.state("api"), State::Ready, "it was never ended for it");
}

/// That a new life is ready says that it is well: how the last one fared is forgotten with it.
#[test]
fn a_new_life_begins_undegraded() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    b.exit("api", 1);
    b.pass(SECOND);
    b.ready("api");
    for _ in 0..4 {
        passes_in(&mut b, QUICK);
    }
    assert_eq!(told(&b), [(DegradedKind::Slow, false)]);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [(DegradedKind::Slow, false), (DegradedKind::Slow, false)]);
}

/// A start that took too long is told slow; that it has become ready says that this has passed.
#[test]
fn a_slow_start_has_passed_once_it_is_ready() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.pass(31 * SECOND);
    assert_eq!(told(&b), [(DegradedKind::Slow, false)]);
    b.ready("api");
    for _ in 0..4 {
        passes_in(&mut b, QUICK);
    }
    assert_eq!(told(&b), [(DegradedKind::Slow, false)]);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b).len(), 2, "a slowness of its own is told");
}
