//! From the start of an instance to its readiness: what is waited for, what is said once, and what takes too long.

use std::time::Duration;

use razar_bus_schema::v1::{self, InstanceState as State};

use super::{
    super::Input,
    bench::{Bench, component, desired, id},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_slow_start_is_not_killed_by_early_refusals_and_one_past_its_limit_is() {
    use super::super::probing::{Answer, Role};
    let mut slow = component("api", &[]);
    slow.startup = Some(v1::Probe { failure_threshold: 10, ..slow.readiness.clone().unwrap() });
    let mut b = Bench::running(&[slow]);
    let end = b.now.mono + Duration::from_millis(9_900);
    let refuse = |b: &mut Bench| {
        let inst = b.node.instance(&id("api")).unwrap();
        if inst.probes.startup.asked.is_some() {
            let (instance, incarnation) = (inst.id.clone(), inst.incarnation);
            let (answer, detail, took) = (Answer::Refused, "refused".into(), Duration::ZERO);
            b.input(Input::Probed { instance, incarnation, role: Role::Startup, answer, detail, took, window: None });
        }
    };
    while b.now.mono < end {
        refuse(&mut b);
        b.pass(Duration::from_millis(1));
    }
    assert!(!b.take().iter().any(|l| l.starts_with("kill")), "ten failures at a period of a second are ten seconds");
    for _ in 0..1_000 {
        refuse(&mut b);
        b.pass(Duration::from_millis(1));
    }
    assert!(b.take().contains(&"kill api@1.1".to_owned()));
}

#[test]
fn a_start_that_hangs_is_found_once_it_had_its_time() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.pass(Duration::from_secs(29));
    assert!(b.node.instance(&id("api")).unwrap().probes.liveness.asked.is_none(), "slow is not hung");
    b.take();
    b.silence("api", 'T');
    assert_eq!(b.take(), ["component_degraded api@1.1", "kill api@1.1", "component_unresponsive api@1.1"]);
}

#[test]
fn who_says_ready_before_its_startup_probe_has_passed_is_heard() {
    use razar_bus_schema::v1::probe::Check;
    let mut api = component("api", &[]);
    api.startup = api.readiness.take();
    api.readiness = Some(v1::Probe { check: Some(Check::Notify(v1::NotifyCheck {})), ..Default::default() });
    let mut b = Bench::running(&[api]);
    b.ready("api");
    assert_eq!(b.state("api"), State::Starting);
    starts_up(&mut b);
    assert_eq!(b.state("api"), State::Ready);
}

/// It says so once: an agent that dies in between does not take it along.
#[test]
fn what_a_start_has_said_outlives_the_agent_that_heard_it() {
    use super::super::probing::{Answer, Role};
    let first = razar_bus_schema::ids::Incarnation::new(1, 1);
    let told = || Some(v1::Probe { check: Some(v1::probe::Check::Notify(v1::NotifyCheck {})), ..Default::default() });
    for startup_is_told in [true, false] {
        let mut api = component("api", &[]);
        (api.startup, api.readiness) = if startup_is_told { (told(), api.readiness) } else { (api.readiness, told()) };
        let mut b = Bench::running(&[api]);
        let (said, asked) = if startup_is_told { (Role::Startup, Role::Readiness) } else { (Role::Readiness, Role::Startup) };
        b.input(Input::Sign { instance: id("api"), incarnation: first, role: said, detail: "READY=1".into() });
        b.turn();
        assert_eq!(b.state("api"), State::Starting);
        b.restart_agent(&[]);
        assert_eq!(b.state("api"), State::Starting);
        b.pass(SECOND);
        let (answer, detail, took) = (Answer::Passed, "passes".into(), Duration::ZERO);
        b.input(Input::Probed { instance: id("api"), incarnation: first, role: asked, answer, detail, took, window: None });
        b.turn();
        assert_eq!(b.state("api"), State::Ready, "told at the start: {startup_is_told}");
        // It says nothing for the next life, whatever is answered there.
        b.exit("api", 1);
        b.restart_agent(&[]);
        b.pass(SECOND);
        let (incarnation, answer, took) = (razar_bus_schema::ids::Incarnation::new(1, 2), Answer::Passed, Duration::ZERO);
        b.input(Input::Probed { instance: id("api"), incarnation, role: asked, answer, detail: "passes".into(), took, window: None });
        b.turn();
        assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "1.2"));
    }
}

/// The plan on the disk could not be read: who it is comes with its record.
#[test]
fn what_is_taken_over_before_it_is_known_is_heard_all_the_same() {
    use super::super::probing::Role;
    let told = || Some(v1::Probe { check: Some(v1::probe::Check::Notify(v1::NotifyCheck {})), ..Default::default() });
    for says in [true, false] {
        let mut api = component("api", &[]);
        api.readiness = told().filter(|_| says);
        api.readiness_none = !says;
        let mut b = Bench::running(std::slice::from_ref(&api));
        if !says {
            assert_eq!(b.state("api"), State::Ready, "nothing is asked of it");
            b.forget_state("api");
        }
        b.plan = v1::PlanOnDisk::default();
        b.restart_agent(&[]);
        assert_eq!(b.state("api"), State::Starting);
        if says {
            let incarnation = razar_bus_schema::ids::Incarnation::new(1, 1);
            b.input(Input::Sign { instance: id("api"), incarnation, role: Role::Readiness, detail: "READY=1".into() });
            b.turn();
        }
        b.desire(&desired(&api, 1, 1));
        b.settle();
        assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Ready, "1.1"), "{says}");
    }
}

#[test]
fn without_readiness_the_startup_probe_is_waited_for() {
    let mut api = component("api", &[]);
    api.startup = api.readiness.take();
    api.readiness_none = true;
    let mut b = Bench::running(&[api]);
    assert_eq!(b.state("api"), State::Starting);
    starts_up(&mut b);
    assert_eq!(b.state("api"), State::Ready);
}

fn starts_up(b: &mut Bench) {
    use super::super::probing::{Answer, Role};
    b.pass(Duration::from_millis(1));
    let incarnation = b.node.instance(&id("api")).unwrap().incarnation;
    b.input(Input::Probed {
        instance: id("api"),
        incarnation,
        role: Role::Startup,
        answer: Answer::Passed,
        detail: "http 200".into(),
        took: Duration::from_millis(1),
        window: None,
    });
}
