//! What a node makes of the ladder's orders: whose story it is, what is held, what fails before a start, and what ends it.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident},
    v1::{self, InstanceState as State, event::Fact, intent::Want},
};

use super::{
    super::{
        Input,
        hooks::{HookEnd, HookKey, HookOutcome},
    },
    bench::{Bench, component, desired, id},
};

fn incident_of(b: &Bench, kind: &str) -> Option<String> {
    let event = b.events.iter().rev().find(|e| e.kind == kind)?;
    Incident::try_from(event.incident.as_ref()?).ok().map(|i| i.to_string())
}

#[test]
fn what_a_rung_starts_bears_the_incident_of_its_order() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.ready("api");
    b.order(Incarnation::new(1, 1), 1, None);
    b.exit("api", 0);
    assert_eq!(b.incarnation("api"), "1.2");
    assert_eq!(incident_of(&b, "component_started").as_deref(), Some("api@1.1"), "nothing had failed here");
    b.exit("api", 1);
    assert_eq!(incident_of(&b, "component_failed").as_deref(), Some("api@1.1"));
}

#[test]
fn what_is_held_while_its_dependency_recovers_is_blocked_as_before() {
    let mut b = Bench::running(&[component("db", &[]), component("api", &["db"])]);
    b.exhaust("db");
    b.hold("db", Duration::from_secs(10));
    let told = b.events.iter().rev().find_map(|e| match &e.fact {
        Some(Fact::ComponentBlocked(blocked)) => Some(blocked.by.len()),
        _ => None,
    });
    assert_eq!(told, Some(1), "nobody has unblocked it");
}

#[test]
fn state_that_cannot_be_cleared_fails_the_rung_without_a_start() {
    let spec = v1::ComponentSpec { state: vec!["/x".to_owned()], ..component("api", &[]) };
    let mut b = Bench::running(&[spec]);
    b.exhaust("api");
    b.take();
    let order = v1::RecoveryOrder {
        instance: Some((&id("api")).into()),
        incident: Some((&"api@1.1".parse::<Incident>().unwrap()).into()),
        attempt: 1,
        replaces: Some(Incarnation::new(1, 4).into()),
        clear_state: true,
        ..Default::default()
    };
    b.record("recovery.api.0", Want::Recovery(order));
    b.settle();
    assert_eq!((b.state("api"), b.take()), (State::Preparing, vec!["clear api".to_owned()]));
    b.input(Input::Prepared { instance: id("api"), failed: Some("/x: permission denied".to_owned()) });
    assert_eq!((b.state("api"), b.take()), (State::Failed, vec!["component_failed api@1.4".to_owned()]));
    let Some(Fact::ComponentFailed(failed)) = b.events.last().and_then(|e| e.fact.clone()) else { panic!("{:?}", b.events) };
    assert_eq!((failed.cause.as_str(), failed.last_error.as_str()), ("start_failed", "/x: permission denied"));
    assert!(!b.node.instance(&id("api")).unwrap().slot, "the next may start");
}

#[test]
fn a_newer_generation_ends_what_a_rung_began() {
    let spec = component("api", &[]);
    let mut b = Bench::running(std::slice::from_ref(&spec));
    b.exhaust("api");
    b.order(Incarnation::new(1, 4), 1, None);
    b.ready("api");
    b.take();
    b.desire(&desired(&spec, 2, 1));
    b.settle();
    b.exit("api", 0);
    assert_eq!(b.incarnation("api"), "2.1");
    assert!(b.take().contains(&"incident_withdrawn api@1.5".to_owned()));
    b.exit("api", 1);
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "2.2"), "restarted by its node");
    assert_eq!(incident_of(&b, "component_exited").as_deref(), Some("api@2.1"));
}

/// Mutation caught: what an isolation has ended is withdrawn by its node as well.
#[test]
fn an_incident_that_an_isolation_has_ended_has_no_second_end() {
    for (settled_for, withdrawn) in [(Incarnation::new(1, 1), false), (Incarnation::new(1, 2), true)] {
        let spec = component("api", &[]);
        let mut b = Bench::running(std::slice::from_ref(&spec));
        b.exhaust("api");
        b.take();
        // Its isolation is over when its node hears of it, and a new generation is desired.
        let incident = Incident { instance: id("api"), incarnation: settled_for, signs_of_life: 0 };
        let probation = v1::Quarantine {
            component: "api".to_owned(),
            ordinal: Some(0),
            phase: v1::QuarantinePhase::Probation.into(),
            incident: Some((&incident).into()),
            ..Default::default()
        };
        b.record("quarantine.api.0", Want::Quarantine(probation));
        b.desire(&desired(&spec, 2, 1));
        b.settle();
        let told = b.take();
        assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "2.1"));
        assert_eq!(told.iter().any(|line| line.starts_with("incident_withdrawn")), withdrawn, "{told:?}");
    }
}

/// `api` failed for good, with a chakra that has a hook, and the rung that runs it; by then `component_failed` and the order are told.
fn hooked(clear_state: bool) -> Bench {
    let spec = v1::ComponentSpec { state: vec!["/x".to_owned()], ..component("api", &[]) };
    let mut b = Bench::new();
    let hook = v1::Hook { command: vec!["/heal.sh".to_owned()], ..Default::default() };
    b.desire(&v1::Desired { chakra_hook: Some(hook), ..desired(&spec, 1, 1) });
    b.settle();
    b.exhaust("api");
    b.take();
    b.record("recovery.api.0", Want::Recovery(hook_order(1, Incarnation::new(1, 4), clear_state)));
    b.settle();
    b
}

fn hook_order(attempt: u32, replaces: Incarnation, clear_state: bool) -> v1::RecoveryOrder {
    v1::RecoveryOrder {
        instance: Some((&id("api")).into()),
        incident: Some((&"api@1.1".parse::<Incident>().unwrap()).into()),
        rung: "chakra_hook".to_owned(),
        attempt,
        replaces: Some(replaces.into()),
        chakra_hook: true,
        clear_state,
        ..Default::default()
    }
}

fn hook_ends(b: &mut Bench, outcome: HookOutcome, output: &str) {
    let key = b.hooks.last().unwrap().key.clone();
    let status = (outcome == HookOutcome::Failed).then(|| v1::ExitStatus { code: Some(3), ..Default::default() });
    let took = Duration::from_secs(1);
    let end = HookEnd { outcome, status, took, output: output.to_owned(), output_cut: false, stragglers: 0 };
    b.input(Input::HookEnded { key, program: "/heal.sh".to_owned(), end });
}

#[test]
fn a_start_waits_for_the_hook_of_its_rung_and_follows_when_that_ended_well() {
    let mut b = hooked(false);
    assert_eq!((b.state("api"), b.take()), (State::Preparing, vec!["hook /heal.sh".to_owned()]));
    let told = &b.hooks[0].told;
    for (name, value) in
        [("RAZAR_INCIDENT", "api@1.1"), ("RAZAR_INCARNATION", "1.4"), ("RAZAR_CHAKRA", "heart"), ("RAZAR_LAST_ERROR", "boom")]
    {
        assert!(told.contains(&(name, value.to_owned())), "{told:?}");
    }
    hook_ends(&mut b, HookOutcome::Ok, "flushed");
    assert_eq!(b.incarnation("api"), "1.5");
    assert!(b.take().contains(&"hook_ran api@1.4".to_owned()));
    let ran = b.events.iter().find(|e| e.kind == "hook_ran").unwrap();
    assert_eq!(Incident::try_from(ran.incident.as_ref().unwrap()).unwrap().to_string(), "api@1.1");
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Failed, "a start made by a rung has no local restarts");
}

#[test]
fn state_is_cleared_before_the_hook_runs() {
    let mut b = hooked(true);
    assert_eq!(b.take(), ["clear api"]);
    b.input(Input::Prepared { instance: id("api"), failed: None });
    assert_eq!((b.state("api"), b.take()), (State::Preparing, vec!["hook /heal.sh".to_owned()]));
}

#[test]
fn a_hook_that_does_not_end_well_fails_the_rung_without_a_start() {
    for (outcome, says) in [
        (HookOutcome::Failed, "hook /heal.sh failed, exit 3: \"no route\""),
        (HookOutcome::TimedOut, "hook /heal.sh was killed after 1.0s: no route"),
        (HookOutcome::NotStarted, "hook /heal.sh could not be started: no route"),
    ] {
        let mut b = hooked(false);
        b.take();
        hook_ends(&mut b, outcome, "begun\nno route\n");
        assert_eq!((b.state("api"), b.take()), (State::Failed, vec!["hook_ran api@1.4".to_owned(), "component_failed api@1.4".to_owned()]));
        let Some(Fact::ComponentFailed(failed)) = b.events.last().and_then(|e| e.fact.clone()) else { panic!("{:?}", b.events) };
        assert_eq!((failed.cause.as_str(), failed.last_error.as_str()), ("start_failed", says));
        assert!(!b.node.instance(&id("api")).unwrap().slot, "the next may start");
    }
}

#[test]
fn a_chakra_without_hook_fails_the_rung() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.exhaust("api");
    b.take();
    b.record("recovery.api.0", Want::Recovery(hook_order(1, Incarnation::new(1, 4), false)));
    b.settle();
    assert_eq!((b.state("api"), b.take()), (State::Failed, vec!["component_failed api@1.4".to_owned()]));
}

#[test]
fn a_hook_whose_start_is_no_longer_wanted_is_ended_and_starts_nothing() {
    let mut b = hooked(false);
    b.take();
    b.quarantine("quarantine.api.0", v1::QuarantinePhase::Isolated);
    assert_eq!(b.state("api"), State::Quarantined);
    assert!(b.take().contains(&"end hook".to_owned()));
    hook_ends(&mut b, HookOutcome::Abandoned, "");
    assert_eq!((b.state("api"), b.take()), (State::Quarantined, vec!["hook_ran api@1.4".to_owned()]));
}

/// Mutation caught: what was prepared starts although a dependency's recovery holds it by then.
#[test]
fn a_start_that_is_held_while_it_is_prepared_waits_until_it_is_no_longer() {
    let spec = v1::ComponentSpec { state: vec!["/x".to_owned()], ..component("api", &["db"]) };
    let mut b = Bench::running(&[component("db", &[]), spec]);
    b.ready("db");
    b.exhaust("api");
    let order = v1::RecoveryOrder { chakra_hook: false, ..hook_order(1, Incarnation::new(1, 4), true) };
    b.record("recovery.api.0", Want::Recovery(order));
    b.settle();
    assert_eq!(b.state("api"), State::Preparing);
    b.hold("db", Duration::from_secs(30));
    b.take();
    b.input(Input::Prepared { instance: id("api"), failed: None });
    assert_eq!((b.state("api"), b.take().iter().any(|line| line.starts_with("spawn"))), (State::Waiting, false));
    b.pass(Duration::from_secs(31));
    assert_eq!((b.state("api"), b.incarnation("api").as_str()), (State::Starting, "1.5"));
    b.exit("api", 1);
    assert_eq!(b.state("api"), State::Failed, "a start of a rung's has no restarts of its node's");
}

/// What comes before a start takes time, and gates are asked again at its end.
#[test]
fn a_start_whose_dependency_is_lost_while_it_is_prepared_waits_for_it() {
    for clear_state in [false, true] {
        let spec = v1::ComponentSpec { state: vec!["/x".to_owned()], ..component("api", &["db"]) };
        let mut b = Bench::running(&[component("db", &[]), spec.clone()]);
        let hook = v1::Hook { command: vec!["/heal.sh".to_owned()], ..Default::default() };
        b.desire(&v1::Desired { chakra_hook: Some(hook).filter(|_| !clear_state), ..desired(&spec, 1, 2) });
        b.settle();
        b.ready("db");
        b.exhaust("api");
        let order = v1::RecoveryOrder { chakra_hook: !clear_state, ..hook_order(1, Incarnation::new(1, 4), clear_state) };
        b.record("recovery.api.0", Want::Recovery(order));
        b.settle();
        assert_eq!(b.state("api"), State::Preparing);
        b.quarantine("quarantine.db.0", v1::QuarantinePhase::Isolated);
        b.exit("db", 0);
        b.take();
        if clear_state {
            b.input(Input::Prepared { instance: id("api"), failed: None });
        } else {
            hook_ends(&mut b, HookOutcome::Ok, "");
        }
        assert_eq!(b.state("api"), State::Waiting);
        assert!(!b.node.instance(&id("api")).unwrap().slot, "the next may start");
        assert!(!b.take().iter().any(|line| line.starts_with("spawn")));
    }
}

#[test]
fn the_end_of_another_run_starts_nothing() {
    let mut b = hooked(false);
    let HookKey::Chakra { instance, incident, attempt } = b.hooks[0].key.clone() else { panic!() };
    let end =
        HookEnd { outcome: HookOutcome::Ok, status: None, took: Duration::ZERO, output: String::new(), output_cut: false, stragglers: 0 };
    let key = HookKey::Chakra { instance, incident, attempt: attempt + 1 };
    b.input(Input::HookEnded { key, program: String::new(), end });
    assert_eq!(b.state("api"), State::Preparing);
}

#[test]
fn an_agent_that_begins_anew_runs_the_hook_again() {
    let mut b = hooked(false);
    b.restart_agent(&[]);
    assert_eq!((b.state("api"), b.hooks.len()), (State::Preparing, 2));
    hook_ends(&mut b, HookOutcome::Ok, "");
    assert_eq!(b.incarnation("api"), "1.5");
}

#[test]
fn what_is_given_up_says_what_is_known_of_its_error() {
    let known = v1::KnownError {
        name: "bang".to_owned(),
        pattern: "b(?<what>oo)m".to_owned(),
        issue_type: "logic".to_owned(),
        fix: "mend {what}".to_owned(),
        rung: "clear_state".to_owned(),
    };
    let mut b = Bench::new();
    b.desire(&v1::Desired { known_errors: vec![known], ..desired(&component("api", &[]), 1, 1) });
    b.desire(&desired(&component("other", &[]), 1, 2));
    b.settle();
    let issue = |b: &Bench| match b.events.iter().rev().find_map(|e| e.fact.clone().filter(|_| e.kind == "component_failed")) {
        Some(Fact::ComponentFailed(failed)) => failed.issue.unwrap(),
        other => panic!("{other:?}"),
    };
    b.exhaust("api");
    let v1::Issue { known, issue_type, suggested_fix, rung } = issue(&b);
    assert_eq!([known, issue_type, suggested_fix, rung], ["bang", "logic", "mend oo", "clear_state"].map(str::to_owned));
    b.exhaust("other");
    assert_eq!((issue(&b).known.as_str(), issue(&b).issue_type.as_str()), ("", "external"), "each by the list of its own record");
}

/// A node whose stack has a hook for escalations.
fn with_pager() -> Bench {
    let mut b = Bench::new();
    let hook = v1::Hook { command: vec!["/page.sh".to_owned()], ..Default::default() };
    b.desire(&v1::Desired { escalation_hook: Some(hook), ..desired(&component("api", &[]), 1, 1) });
    b.settle();
    b.take();
    b
}

fn escalate(b: &mut Bench, ids: &[&str]) {
    let item = |id: &&str| v1::Escalation {
        event_id: (*id).to_owned(),
        severity: "P2".to_owned(),
        about: format!("{id} happened"),
        instance: Some((&self::id("api")).into()),
        ..Default::default()
    };
    let record = v1::Escalations { node: "a".to_owned(), items: ids.iter().map(item).collect() };
    b.record("escalation.a", Want::Escalations(record));
    b.settle();
}

#[test]
fn each_escalation_has_its_hook_once_and_one_runs_at_a_time() {
    let mut b = with_pager();
    escalate(&mut b, &["e1", "e2"]);
    assert_eq!(b.take(), ["hook /page.sh"]);
    for (name, value) in [("RAZAR_ESCALATION", "e1"), ("RAZAR_SEVERITY", "P2"), ("RAZAR_ABOUT", "e1 happened"), ("RAZAR_COMPONENT", "api")]
    {
        assert!(b.hooks[0].told.contains(&(name, value.to_owned())), "{:?}", b.hooks[0].told);
    }
    hook_ends(&mut b, HookOutcome::Failed, "no network");
    assert_eq!(b.take(), ["hook /page.sh", "hook_ran api@1.1"], "what came of it is told, and the next has its turn");
    let told = b.events.iter().find(|e| e.kind == "hook_ran").unwrap();
    assert_eq!(told.cause_id, "e1");
    hook_ends(&mut b, HookOutcome::Ok, "");
    escalate(&mut b, &["e2"]);
    assert_eq!(b.take(), ["hook_ran api@1.1"], "e2 has had its hook");
    escalate(&mut b, &["e3"]);
    assert_eq!(b.take(), ["hook /page.sh"]);
}

#[test]
fn without_a_hook_an_escalation_waits() {
    let mut b = Bench::running(&[component("api", &[])]);
    b.take();
    escalate(&mut b, &["e1"]);
    assert_eq!(b.take(), [""; 0]);
}
