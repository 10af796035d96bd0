//! The ladder's course, from what a node gives up to its end.

use std::time::Duration;

use razar_bus_schema::{
    time::std_duration,
    v1::{self, RunMode, event::Fact, intent::Want},
};

use crate::bench::{Bench, spec};

const STARTED: &str = "recovery_started restart clear_state quarantine";

#[test]
fn the_second_rung_clears_state_and_cures() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4", STARTED]);
    b.pass(1);
    b.rung_fails("api", "1.5");
    assert_eq!(b.take(), ["rung_tried restart failed clear_state", "order clear_state#2 of api@1.1: 1.5 clearing"]);
    b.started("api", "1.6");
    b.pass(1);
    b.ready("api", "1.6");
    b.pass(4);
    assert_eq!(b.take(), [""; 0], "the soak is not over");
    b.pass(1);
    assert_eq!(b.take(), ["rung_tried clear_state ok", "recovered clear_state 1.6", "end clear_state#2 of api@1.1"]);
    let Some(Fact::Recovered(recovered)) = b.events.last().and_then(|e| e.fact.clone()) else { unreachable!("{:?}", b.events) };
    assert_eq!((recovered.took.as_ref().map(std_duration), recovered.starts), (Some(Duration::from_secs(2)), 5));
    b.pass(3_600);
    assert_eq!(b.take(), [""; 0]);
}

#[test]
fn past_the_last_rung_it_is_told_once_and_dependents_are_let_go() {
    let mut b = Bench::new(&[v1::ComponentSpec { state: Vec::new(), ..spec("api", &[]) }]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    assert_eq!(
        b.take(),
        [
            "order restart#1 of api@1.1: 1.4",
            "recovery_started restart quarantine",
            "rung_tried restart failed quarantine",
            "recovery_failed 1 boom",
            "let go restart#1 of api@1.1",
        ]
    );
    b.pass(3_600);
    assert_eq!(b.take(), [""; 0], "it is quarantine's");
}

#[test]
fn who_hears_late_that_it_was_given_up_tells_of_its_own_try_before_it_lets_go() {
    let mut former = Bench::new(&[v1::ComponentSpec { state: Vec::new(), ..spec("api", &[]) }]);
    former.exhaust("api");
    former.rung_fails("api", "1.5");
    let given_up = former.events.iter().find(|e| e.kind == "recovery_failed").unwrap();
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4", STARTED]);
    b.hears(given_up);
    assert_eq!(b.take(), ["rung_tried restart void", "let go restart#1 of api@1.1"]);
}

#[test]
fn a_component_without_rungs_is_past_help_at_once() {
    let mut b = Bench::new(&[v1::ComponentSpec { heal: Vec::new(), ..spec("api", &[]) }]);
    b.exhaust("api");
    assert_eq!(b.take(), ["recovery_started quarantine", "recovery_failed 0 boom"]);
}

#[test]
fn a_start_that_never_gets_ready_fails_at_the_deadline() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.take();
    b.pass(34);
    assert_eq!(b.take(), [""; 0]);
    b.pass(3);
    assert_eq!(b.take(), ["rung_tried restart failed clear_state", "order clear_state#2 of api@1.1: 1.5 clearing"]);
}

#[test]
fn the_deadline_is_never_below_startup_limit_and_soak() {
    let startup = v1::Probe { failure_threshold: 100, ..Default::default() };
    let mut b = Bench::new(&[v1::ComponentSpec { startup: Some(startup), ..spec("api", &[]) }]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.take();
    b.pass(105);
    assert_eq!(b.take(), [""; 0]);
    b.pass(2);
    assert_eq!(b.take()[0], "rung_tried restart failed clear_state");
}

#[test]
fn ready_inside_the_deadline_soaks_past_it() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.pass(33);
    b.ready("api", "1.5");
    b.take();
    b.pass(4);
    assert_eq!(b.take(), [""; 0]);
    b.pass(1);
    assert_eq!(b.take()[0], "rung_tried restart ok");
}

#[test]
fn a_soak_that_is_broken_begins_anew() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.pass(4);
    b.tell("api", "1.5", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.ready("api", "1.5");
    b.take();
    b.pass(4);
    assert_eq!(b.take(), [""; 0]);
    b.pass(1);
    assert_eq!(b.take()[0], "rung_tried restart ok");
}

#[test]
fn what_cannot_be_prepared_has_failed_its_rung() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.take();
    b.failed("api", "1.5", "start_failed");
    assert_eq!(b.take(), ["rung_tried clear_state failed quarantine", "recovery_failed 2 boom", "let go clear_state#2 of api@1.1"]);
}

#[test]
fn a_restart_waits_and_clearing_does_not() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    let backoffs: Vec<_> = b
        .orders
        .iter()
        .map(|intent| match &intent.want {
            Some(Want::Recovery(order)) => order.backoff.as_ref().map(std_duration),
            _ => None,
        })
        .collect();
    assert!(backoffs[0].is_some_and(|d| d > Duration::from_millis(890) && d < Duration::from_millis(1110)), "{backoffs:?}");
    assert_eq!(backoffs[1], None);
    assert!(b.orders.iter().all(|o| o.trace.is_some() && o.reason.is_some() && !o.told_by_event_id.is_empty()));
}

#[test]
fn a_second_incident_waits_for_the_cooldown() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.pass(5);
    b.close("api");
    b.take();
    b.exited("api", "1.5");
    b.failed("api", "1.5", "budget_spent");
    b.pass(59);
    assert_eq!(b.take(), [""; 0]);
    b.pass(1);
    assert_eq!(b.take(), ["order restart#1 of api@1.5: 1.5", STARTED]);
}

#[test]
fn the_ladder_restarts_nothing_against_its_policy() {
    for cause in ["policy_never", "policy_on_failure"] {
        let mut b = Bench::new(&[spec("api", &[])]);
        b.started("api", "1.1");
        b.exited("api", "1.1");
        b.failed("api", "1.1", cause);
        assert_eq!(b.take(), [""; 0], "{cause}");
    }
}

#[test]
fn a_one_shot_that_is_done_does_not_flap() {
    let mut b = Bench::new(&[v1::ComponentSpec { one_shot: true, ..spec("api", &[]) }]);
    b.started("api", "1.1");
    for start in 1..=11 {
        b.exited("api", &format!("1.{start}"));
        let next = format!("1.{}", start + 1);
        b.started("api", &next);
        b.tell("api", &next, Fact::ComponentReady(v1::ComponentReady { completed: true, ..Default::default() }));
        b.tell("api", &next, Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() }));
        b.close("api");
    }
    b.pass(60);
    assert_eq!(b.take(), [""; 0]);
}

/// `api`, which is well.
fn well() -> Bench {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.started("api", "1.1");
    b.ready("api", "1.1");
    b
}

#[test]
fn slow_flapping_is_taken_up_and_the_next_time_one_rung_higher() {
    let mut b = well();
    for start in 1..=10 {
        b.local_recovery("api", start);
        b.pass(3_600);
    }
    assert_eq!(b.take(), [""; 0], "ten in a day are borne");
    b.local_recovery("api", 11);
    assert_eq!(b.take(), ["order restart#1 of api@1.12: 1.12", STARTED]);
    b.started("api", "1.13");
    b.ready("api", "1.13");
    b.pass(60);
    assert_eq!(b.take(), ["rung_tried restart ok", "recovered restart 1.13", "end restart#1 of api@1.12"]);
    b.pass(60);
    for start in 13..=23 {
        b.local_recovery("api", start);
    }
    assert_eq!(b.take(), ["order clear_state#1 of api@1.24: 1.24 clearing", STARTED]);
}

#[test]
fn the_recovery_of_a_copy_that_was_placed_elsewhere_since_does_not_count() {
    let mut b = well();
    for start in 1..=10 {
        b.local_recovery("api", start);
    }
    b.desire(&spec("api", &[]), 2, RunMode::Run);
    b.started("api", "2.1");
    b.tell("api", "1.12", Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() }));
    assert_eq!(b.take(), [""; 0], "the eleventh is of another place");
    b.ready("api", "2.1");
    b.tell("api", "2.1", Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() }));
    assert!(b.take().iter().any(|l| l.starts_with("order restart#1 of api@2.1")), "the component flaps all the same");
}

#[test]
fn old_recoveries_are_forgotten() {
    let mut b = well();
    for start in 1..=40 {
        b.local_recovery("api", start);
        b.pass(3 * 3_600);
    }
    assert_eq!(b.take(), [""; 0], "eight in a day");
}

/// One boot of generation `boot` in which no rung helps; what was told.
fn lost_boot(b: &mut Bench, boot: u64, ready: &[&str]) -> Vec<String> {
    let spec = v1::ComponentSpec { heal: vec!["restart".to_owned()], ..spec("api", &[]) };
    b.close("api");
    b.mission(&format!("m{boot}"), ready);
    b.desire(&spec, boot, v1::RunMode::Run);
    let withdrawn = b.take();
    assert_eq!(withdrawn.iter().any(|l| l == "incident_withdrawn new_generation"), (2..5).contains(&boot), "{withdrawn:?}");
    for start in 1..=2 {
        b.started("api", &format!("{boot}.{start}"));
        b.exited("api", &format!("{boot}.{start}"));
        b.failed("api", &format!("{boot}.{start}"), if start == 1 { "budget_spent" } else { "rung_failed" });
    }
    b.take()
}

#[test]
fn who_ended_failed_in_three_boots_in_a_row_goes_to_the_last_rung_at_once() {
    let mut b = Bench::new(&[]);
    for boot in 1..=3 {
        assert!(lost_boot(&mut b, boot, &[]).contains(&"recovery_failed 1 boom".to_owned()), "boot {boot}");
    }
    assert_eq!(lost_boot(&mut b, 4, &[]), ["recovery_started restart quarantine", "recovery_failed 0 boom"]);
    assert!(lost_boot(&mut b, 5, &["api"]).contains(&"recovery_failed 1 boom".to_owned()), "it was well in between");
}

/// Boot `boot` of generation `boot`: its node gives it up while the ladder is at its first rung, and the boot ends so; what was told.
fn boot_without_it(b: &mut Bench, boot: u64, outcome: &str) -> Vec<String> {
    b.close("api");
    b.mission(&format!("m{boot}"), &[]);
    b.desire(&spec("api", &[]), boot, v1::RunMode::Run);
    b.started("api", &format!("{boot}.1"));
    b.exited("api", &format!("{boot}.1"));
    b.take();
    b.failed("api", &format!("{boot}.1"), "budget_spent");
    b.mission_ends(&format!("m{boot}"), &[], &["api"], outcome);
    b.take()
}

#[test]
fn who_fails_its_third_boot_is_given_up_with_that_whatever_the_ladder_was_at() {
    let mut b = Bench::new(&[]);
    for boot in 1..=2 {
        assert_eq!(boot_without_it(&mut b, boot, "complete").len(), 2, "the ladder takes it up and goes on, boot {boot}");
    }
    let third = boot_without_it(&mut b, 3, "incomplete");
    assert_eq!(third, ["order restart#1 of api@3.1: 3.1".to_owned(), STARTED.to_owned()]);
    b.rung_fails("api", "3.2");
    let rest = b.take();
    assert_eq!(
        rest,
        ["rung_tried restart failed quarantine", "recovery_failed 1 boom", "let go restart#1 of api@3.1"],
        "its state is kept"
    );
}

#[test]
fn who_has_no_order_yet_is_given_up_at_once_when_its_third_boot_ends() {
    let mut b = Bench::new(&[]);
    for boot in 1..=3 {
        b.close("api");
        b.mission(&format!("m{boot}"), &[]);
        b.desire(&spec("api", &[]), boot, v1::RunMode::Run);
        b.started("api", &format!("{boot}.1"));
        b.exited("api", &format!("{boot}.1"));
        b.take();
        b.mission_ends(&format!("m{boot}"), &[], &["api"], "timed_out");
        assert_eq!(b.take(), [""; 0], "its node is at it yet");
    }
    b.failed("api", "3.1", "budget_spent");
    assert_eq!(b.take(), ["recovery_started restart clear_state quarantine", "recovery_failed 0 boom"]);
}

#[test]
fn a_boot_counts_once_and_only_one_that_started_it() {
    let mut b = Bench::new(&[]);
    boot_without_it(&mut b, 1, "complete");
    // One that was superseded says nothing, nor does a mission that left it as it was.
    boot_without_it(&mut b, 2, "superseded");
    b.mission_ends("a switch", &[], &["api"], "complete");
    boot_without_it(&mut b, 3, "complete");
    for start in 2..=3 {
        b.rung_fails("api", &format!("3.{start}"));
    }
    assert!(b.take().contains(&"recovery_failed 2 boom".to_owned()), "every rung was tried");
    assert_eq!(b.state.facts().view(&crate::bench::id("api")).unwrap().lost_boots, (2, "m3".to_owned()), "given up in a lost boot");
}

#[test]
fn a_void_try_of_one_that_is_lost_asks_its_ground_before_it_is_given_up() {
    let mut b = Bench::new(&[spec("db", &[])]);
    b.started("db", "1.1");
    b.ready("db", "1.1");
    for boot in 1..=3 {
        b.close("api");
        b.mission(&format!("m{boot}"), &[]);
        b.desire(&spec("api", &["db"]), boot, v1::RunMode::Run);
        b.started("api", &format!("{boot}.1"));
        b.exited("api", &format!("{boot}.1"));
        b.failed("api", &format!("{boot}.1"), "budget_spent");
        if boot == 3 {
            b.take();
        }
        b.mission_ends(&format!("m{boot}"), &[], &["api"], "complete");
    }
    b.holds(&[("db", "1.2", v1::InstanceState::Ready)]);
    b.rung_fails("api", "3.2");
    assert_eq!(b.take(), ["ask a", "rung_tried restart void restart", "ask a"], "db is another than is known");
    b.holds(&[("db", "1.1", v1::InstanceState::Ready)]);
    b.pass(5);
    assert_eq!(b.take(), ["ask a", "recovery_failed 1 boom", "let go restart#1 of api@3.1"]);
}

/// Simulation, seed 316. What was written is gone with its bucket: an order that nobody has would be followed for ever.
#[test]
fn an_order_in_a_bucket_before_is_not_in_this_one() {
    let api = spec("api", &[]);
    let mut b = Bench::new(std::slice::from_ref(&api));
    b.slow = true;
    b.exhaust("api");
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4"]);
    b.lose_intents();
    b.answered();
    b.desire(&api, 1, v1::RunMode::Run);
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4", STARTED]);
}
