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

/// Asked after a second, as this role; it answers like this.
fn answers(b: &mut Bench, role: Role, answer: Answer, took: Duration, window: Option<Window>) {
    b.pass(SECOND);
    let inst = b.node.instance(&id("api")).unwrap();
    let asked = if role == Role::Liveness { inst.probes.liveness.asked } else { inst.probes.readiness.asked };
    if asked.is_none() {
        return;
    }
    let (incarnation, detail) = (inst.incarnation, "http".to_owned());
    b.input(Input::Probed { instance: id("api"), incarnation, role, answer, detail, took, window });
}

fn passes_in(b: &mut Bench, took: Duration) {
    answers(b, Role::Liveness, Answer::Passed, took, None);
}

/// It ran for as good as nothing, and wanted to.
fn is_starved(b: &mut Bench) {
    let sample = |delay_ns| Sample { tasks: vec![Task { tid: 1, state: 'R', run_ns: 0, delay_ns }], traced: false };
    let window = Window { before: sample(0), after: sample(900_000_000), timeout: SECOND, lasted: SECOND };
    answers(b, Role::Liveness, Answer::Failed, SECOND, Some(window));
}

/// What was told of degradations: the kind, and whether it has passed.
fn told(b: &Bench) -> Vec<(DegradedKind, bool)> {
    let degraded = |event: &razar_bus_schema::v1::Event| match &event.fact {
        Some(Fact::ComponentDegraded(told)) => Some((told.kind(), told.passed)),
        _ => None,
    };
    b.events.iter().filter_map(degraded).collect()
}

const BEGAN: (DegradedKind, bool) = (DegradedKind::Slow, false);
const PASSED: (DegradedKind, bool) = (DegradedKind::Slow, true);

#[test]
fn slowness_is_told_once_and_that_it_passed_after_three_periods_without_it() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [BEGAN]);
    // Readiness is asked each five seconds, the other each second: fifteen of them, and a slow one in between begins them anew.
    (0..14).for_each(|_| passes_in(&mut b, QUICK));
    passes_in(&mut b, SLOW);
    (0..14).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN]);
    passes_in(&mut b, QUICK);
    assert_eq!(told(&b), [BEGAN, PASSED]);
    passes_in(&mut b, QUICK);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [BEGAN, PASSED, BEGAN]);
}

/// One probe is slow all the time, and the other never: it is slow.
#[test]
fn a_quick_probe_does_not_excuse_a_slow_one() {
    let mut b = ready();
    for _ in 0..60 {
        answers(&mut b, Role::Liveness, Answer::Passed, QUICK, None);
        answers(&mut b, Role::Readiness, Answer::Passed, SLOW, None);
    }
    assert_eq!(told(&b), [BEGAN]);
}

#[test]
fn who_was_starved_and_answers_again_is_starved_no_longer() {
    let mut b = ready();
    is_starved(&mut b);
    assert_eq!(told(&b), [(DegradedKind::Starved, false)]);
    (0..14).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b).len(), 1);
    passes_in(&mut b, QUICK);
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
    (0..20).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN]);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [BEGAN, BEGAN]);
}

/// A start that took too long is told slow; that it has become ready says that this has passed.
#[test]
fn a_slow_start_has_passed_once_it_is_ready() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.pass(31 * SECOND);
    assert_eq!(told(&b), [BEGAN]);
    b.ready("api");
    (0..20).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN]);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [BEGAN, BEGAN], "a slowness of its own is told");
}

/// Who takes over tells once more what was told last: the last agent may have died before it did; and it tells the end.
#[test]
fn the_next_agent_tells_what_was_told_last_and_that_it_has_passed() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    b.restart_agent(&[]);
    passes_in(&mut b, SLOW);
    assert_eq!(told(&b), [BEGAN, BEGAN]);
    (0..15).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN, BEGAN, PASSED]);
    b.restart_agent(&[]);
    (0..20).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN, BEGAN, PASSED, PASSED]);
    // Nothing of it is told of the next life.
    b.exit("api", 1);
    b.pass(SECOND);
    b.restart_agent(&[]);
    assert_eq!(told(&b).len(), 4);
}

/// It is worse than slow: that is no end of it.
#[test]
fn what_fails_meanwhile_has_not_passed() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    for _ in 0..20 {
        answers(&mut b, Role::Readiness, Answer::Passed, QUICK, None);
        answers(&mut b, Role::Liveness, Answer::Failed, SECOND, None);
    }
    assert_eq!(told(&b), [BEGAN]);
}

/// Short of CPU it is starved in one window and slow in the next: that is one trouble.
#[test]
fn two_kinds_that_alternate_are_the_greater_one() {
    let mut b = ready();
    for _ in 0..10 {
        passes_in(&mut b, SLOW);
        is_starved(&mut b);
    }
    assert_eq!(told(&b), [BEGAN, (DegradedKind::Starved, false)]);
}

/// The watchdog judges a start by it: that it took too long is told to EVENTS that are new, whatever came since.
#[test]
fn a_slow_start_is_told_again_as_one() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.pass(31 * SECOND);
    is_starved(&mut b);
    assert_eq!(told(&b), [BEGAN, (DegradedKind::Starved, false)]);
    b.events.clear();
    b.node.tell_living(b.now);
    b.turn();
    assert_eq!(told(&b), [BEGAN, (DegradedKind::Starved, false)]);
}

/// EVENTS that are new know nothing of it.
#[test]
fn it_is_told_again_with_the_life_that_it_is_of() {
    let mut b = ready();
    passes_in(&mut b, SLOW);
    b.events.clear();
    b.node.tell_living(b.now);
    b.turn();
    let kinds: Vec<_> = b.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["component_started", "component_ready", "component_degraded"], "in this order: ready takes back what was before");
    (0..15).for_each(|_| passes_in(&mut b, QUICK));
    assert_eq!(told(&b), [BEGAN, PASSED]);
}
