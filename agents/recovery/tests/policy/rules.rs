//! The rules without which a healthy one is killed or something stays stuck for ever; each against a history that breaks it.

use razar_bus_schema::v1::{self, InstanceState, QuarantinePhase as Phase, RunMode, event::Fact};

use crate::bench::{Bench, spec};

fn pair() -> Bench {
    let mut b = Bench::new(&[spec("db", &[]), spec("api", &["db"])]);
    b.started("db", "1.1");
    b.ready("db", "1.1");
    b
}

#[test]
fn a_record_is_overwritten_only_when_its_event_is_in_events() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take();
    b.mute = true;
    b.rung_fails("api", "1.5");
    b.pass(1);
    assert_eq!(b.take(), ["rung_tried restart failed clear_state"], "told, and not known to be stored");
    b.pass(5);
    assert_eq!(b.take(), ["rung_tried restart failed clear_state"], "told again, under the same id");
    let ids: Vec<&str> = b.events.iter().rev().take(2).map(|e| e.id.as_str()).collect();
    assert_eq!(ids[0], ids[1]);
    b.mute = false;
    b.pass(5);
    assert_eq!(b.take(), ["rung_tried restart failed clear_state", "order clear_state#2 of api@1.1: 1.5 clearing"]);
    b.mute = true;
    b.rung_fails("api", "1.6");
    b.pass(1);
    assert_eq!(b.take(), ["rung_tried clear_state failed quarantine"], "nor is the next one overwritten");
}

#[test]
fn a_successor_goes_on_where_the_last_holder_stopped() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take_over();
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4", "recovery_started restart clear_state quarantine"]);
    b.rung_fails("api", "1.5");
    b.take();
    b.take_over();
    assert_eq!(b.take(), [""; 0], "the failure that its order rests on is not the failure of its order");
    b.started("api", "1.6");
    b.take_over();
    b.ready("api", "1.6");
    b.pass(5);
    assert_eq!(b.take(), ["rung_tried clear_state ok", "recovered clear_state 1.6", "end clear_state#2 of api@1.1"]);
    b.take_over();
    assert_eq!(b.take(), [""; 0]);
}

#[test]
fn who_fails_between_the_judgement_and_its_telling_fails_anew() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.lost_kind = "recovered";
    b.pass(5);
    b.exited("api", "1.5");
    b.failed("api", "1.5", "rung_failed");
    b.lost_kind = "";
    b.take();
    b.pass(5);
    b.close("api");
    b.pass(60);
    let lines = b.take();
    assert!(lines.contains(&"order restart#1 of api@1.5: 1.5".to_owned()), "{lines:#?}");
    assert!(!lines.iter().any(|l| l.starts_with("incident_withdrawn")), "{lines:#?}");
}

#[test]
fn an_order_whose_incident_has_ended_is_not_withdrawn_when_the_next_one_opens() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.conflict = true;
    b.pass(5);
    b.close("api");
    b.local_recovery("api", 5);
    b.exited("api", "1.6");
    b.failed("api", "1.6", "budget_spent");
    b.take();
    b.conflict = false;
    b.pass(5);
    assert_eq!(b.take()[0], "end restart#1 of api@1.1");
}

#[test]
fn in_new_events_the_ladder_goes_on_behind_the_tries_that_its_record_tells_of() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.lose_events();
    b.inventoried(&[("api", "1.5", InstanceState::Failed)]);
    b.failed_again("api", "1.5");
    let lines = b.take();
    assert_eq!(lines.last().map(String::as_str), Some("order restart#3 of api@1.1: 1.5"), "{lines:#?}");
}

/// Simulation, seed 18603. Mutation caught: `follow` goes on where EVENTS know less than the record.
#[test]
fn in_new_events_an_order_waits_until_its_node_has_told_what_became_of_it() {
    let changed = || Fact::DesiredChanged(v1::DesiredChanged { generation: 1, ..Default::default() });
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.take();
    b.lose_events();
    b.tell("api", "1.0", changed());
    assert_eq!(b.take(), [""; 0], "nobody has said yet that it lives");
    b.inventoried(&[("api", "1.5", InstanceState::Ready)]);
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.pass(30);
    let lines = ["recovery_started restart clear_state quarantine", "rung_tried restart ok", "recovered restart 1.5"];
    assert_eq!(b.take(), [&lines[..], &["end restart#1 of api@1.1"]].concat());
}

#[test]
fn a_failure_that_is_told_again_is_no_other() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take();
    b.failed_again("api", "1.4");
    b.pass(5);
    assert_eq!(b.take(), [""; 0]);
    let mut b = Bench::new(&[spec("api", &[])]);
    b.failed_again("api", "1.4");
    assert_eq!(b.take()[0], "order restart#1 of api@1.4: 1.4", "unless the first telling was lost");
}

#[test]
fn whom_only_an_inventory_tells_of_is_asked_at_its_node() {
    let mut b = Bench::new(&[spec("db", &[]), v1::ComponentSpec { heal: Vec::new(), ..spec("api", &["db"]) }]);
    let db = [("db", "1.1", InstanceState::Ready)];
    b.holds(&[("db", "1.1", InstanceState::Starting)]);
    b.inventoried(&db);
    b.exhaust("api");
    b.holds(&db);
    b.pass(5);
    let lines = b.take();
    assert_eq!(
        lines,
        ["recovery_started quarantine", "ask a", "ask a", "recovery_failed 0 boom"],
        "an answer that disagrees is asked for again"
    );
}

#[test]
fn a_lost_write_is_written_again_and_nothing_is_ordered_twice() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.conflict = true;
    b.exhaust("api");
    b.conflict = false;
    b.pass(1);
    assert_eq!(b.take(), ["order restart#1 of api@1.1: 1.4", "recovery_started restart clear_state quarantine"]);
    b.pass(1);
    assert_eq!(b.take(), [""; 0]);
}

#[test]
fn a_try_during_which_a_dependency_was_another_does_not_count() {
    let mut b = pair();
    b.exhaust("api");
    b.take();
    b.exited("db", "1.1");
    b.started("db", "1.2");
    b.ready("db", "1.2");
    b.close("db");
    b.rung_fails("api", "1.5");
    assert_eq!(b.take(), ["rung_tried restart void restart", "order restart#2 of api@1.1: 1.5"]);
    b.rung_fails("api", "1.6");
    assert_eq!(b.take()[0], "rung_tried restart failed clear_state", "this one counts");
}

#[test]
fn a_try_during_which_a_dependency_lost_its_condition_does_not_count() {
    let mut b = pair();
    b.exhaust("api");
    b.take();
    b.tell("db", "1.1", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.ready("db", "1.1");
    b.rung_fails("api", "1.5");
    assert_eq!(b.take()[0], "rung_tried restart void restart");
}

#[test]
fn no_rung_is_ordered_on_a_dependency_that_lacks_its_condition() {
    let mut b = pair();
    b.tell("db", "1.1", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.exhaust("api");
    assert_eq!(b.take(), [""; 0]);
    b.ready("db", "1.1");
    assert_eq!(b.take()[0], "order restart#1 of api@1.1: 1.4");
}

#[test]
fn an_order_that_nobody_has_carried_out_is_no_try() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take();
    b.pass(40);
    assert_eq!(b.take(), ["rung_tried restart void restart", "order restart#2 of api@1.1: 1.4"]);
}

#[test]
fn what_is_blocked_is_withdrawn() {
    let mut b = pair();
    b.exhaust("api");
    b.started("api", "1.5");
    b.take();
    b.blocked("api", "1.5", "db");
    assert_eq!(b.take(), ["rung_tried restart void", "incident_withdrawn blocked", "end restart#1 of api@1.1"]);
    b.pass(3_600);
    assert_eq!(b.take(), [""; 0]);
}

/// `api` is given up, and started by a rung; its try does not count, since what it needs was away.
fn tried_without_db(b: &mut Bench) {
    b.exhaust("api");
    b.take();
    b.started("api", "1.5");
    b.tell("db", "1.1", Fact::ComponentUnready(v1::ComponentUnready::default()));
    b.pass(40);
    assert_eq!(b.take(), ["rung_tried restart void restart"], "the next try waits for db");
}

/// The next rung would end one that is well.
#[test]
fn what_came_up_in_a_try_that_did_not_count_is_let_be() {
    for (holds, after_db) in [(true, false), (true, true), (false, false)] {
        let mut b = pair();
        tried_without_db(&mut b);
        let (first, second) = if after_db { (("db", "1.1"), ("api", "1.5")) } else { (("api", "1.5"), ("db", "1.1")) };
        b.ready(first.0, first.1);
        b.pass(1);
        assert_eq!(b.take(), [""; 0], "it may be about to come up");
        b.ready(second.0, second.1);
        b.pass(3);
        assert_eq!(b.take(), [""; 0], "it has to hold first");
        if holds {
            b.pass(3);
            assert_eq!(b.take(), ["incident_withdrawn ready", "end restart#1 of api@1.1"]);
            b.pass(3_600);
            assert_eq!(b.take(), [""; 0]);
        } else {
            b.rung_fails("api", "1.5");
            assert_eq!(b.take(), ["order restart#2 of api@1.1: 1.5"]);
        }
    }
}

/// A try that did not count is not waited for longer than what it depends on needs to be of use.
#[test]
fn what_does_not_come_up_after_its_dependency_gets_the_next_rung() {
    let mut b = pair();
    tried_without_db(&mut b);
    b.ready("db", "1.1");
    b.pass(6);
    assert_eq!(b.take(), ["order restart#2 of api@1.1: 1.5"]);
}

/// Its end was on its way when it failed: with its incident closed, and no other open, it would be nobody's.
#[test]
fn what_came_up_and_failed_before_that_was_told_fails_anew() {
    let mut b = pair();
    tried_without_db(&mut b);
    b.ready("api", "1.5");
    b.ready("db", "1.1");
    b.pass(4);
    b.rung_fails("api", "1.5");
    b.take();
    b.tell("api", "1.5", Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "ready".to_owned() }));
    b.close("api");
    b.pass(120);
    let lines = b.take();
    assert!(lines.contains(&"order restart#1 of api@1.5: 1.5".to_owned()), "{lines:#?}");
}

/// What is done is not begun anew.
#[test]
fn what_was_completed_in_a_try_that_did_not_count_is_done() {
    let mut b = Bench::new(&[spec("db", &[]), v1::ComponentSpec { one_shot: true, ..spec("api", &["db"]) }]);
    b.started("db", "1.1");
    b.ready("db", "1.1");
    tried_without_db(&mut b);
    b.tell("api", "1.5", Fact::ComponentReady(v1::ComponentReady { completed: true, ..Default::default() }));
    b.ready("db", "1.1");
    assert_eq!(b.take(), ["incident_withdrawn ready", "end restart#1 of api@1.1"]);
}

#[test]
fn what_is_to_be_stopped_or_has_a_new_generation_is_withdrawn() {
    for (generation, mode, why) in [(1, RunMode::Stop, "to_be_stopped"), (2, RunMode::Run, "new_generation")] {
        let mut b = Bench::new(&[spec("api", &[])]);
        b.exhaust("api");
        b.take();
        b.desire(&spec("api", &[]), generation, mode);
        assert_eq!(
            b.take(),
            ["rung_tried restart void".to_owned(), format!("incident_withdrawn {why}"), "end restart#1 of api@1.1".to_owned()]
        );
    }
}

#[test]
fn what_its_node_withdraws_is_not_withdrawn_again() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take();
    b.tell("api", "1.4", Fact::IncidentWithdrawn(v1::IncidentWithdrawn { why: "sign_of_life".to_owned() }));
    assert_eq!(b.take(), ["rung_tried restart void", "end restart#1 of api@1.1"]);
}

#[test]
fn what_a_quarantine_has_settled_gets_no_rung() {
    for phase in [Phase::Isolated, Phase::Probation, Phase::Unspecified] {
        let mut b = Bench::new(&[spec("api", &[])]);
        b.quarantine("api", phase);
        b.exhaust("api");
        assert_eq!(b.take(), [""; 0], "{phase:?}");
    }
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.take();
    b.quarantine("api", Phase::Isolated);
    assert_eq!(b.take(), ["rung_tried restart void", "end restart#1 of api@1.1"]);
    b.tell("api", "1.4", Fact::Quarantined(v1::Quarantined::default()));
    b.quarantine("api", Phase::Released);
    assert_eq!(b.take(), [""; 0], "its incident is over");
    b.close("api");
    b.started("api", "1.5");
    b.exited("api", "1.5");
    b.failed("api", "1.5", "budget_spent");
    assert_eq!(b.take()[0], "order restart#1 of api@1.5: 1.5", "released, it may be healed again");
}

#[test]
fn a_late_word_of_a_release_ends_no_later_incident() {
    let mut b = Bench::new(&[v1::ComponentSpec { heal: vec!["restart".to_owned()], ..spec("api", &[]) }]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.quarantine("api", Phase::Isolated);
    b.tell("api", "1.5", Fact::Quarantined(v1::Quarantined::default()));
    b.quarantine("api", Phase::Released);
    b.close("api");
    b.take();
    b.started("api", "1.6");
    b.exited("api", "1.6");
    b.mute = true;
    b.failed("api", "1.6", "budget_spent");
    b.mute = false;
    b.tell("api", "1.6", Fact::Released(v1::Released::default()));
    b.pass(6);
    assert_eq!(b.take(), ["order restart#1 of api@1.6: 1.6", "recovery_started restart quarantine", "recovery_started restart quarantine"]);
    b.rung_fails("api", "1.7");
    let lines = b.take();
    assert!(lines.contains(&"recovery_failed 1 boom".to_owned()), "{lines:?}");
}

#[test]
fn the_clock_stands_still_while_its_node_is_away() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.take();
    b.lose_node();
    b.pass(3_600);
    assert_eq!(b.take(), [""; 0]);
    b.tell("other", "1.1", Fact::ComponentStarted(v1::ComponentStarted::default()));
    b.pass(30);
    assert_eq!(b.take(), [""; 0], "it has its whole time from then on");
    b.pass(10);
    assert_eq!(b.take()[0], "rung_tried restart failed clear_state");
}

#[test]
fn a_failure_after_the_end_that_its_node_has_not_heard_of_is_a_new_incident() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.started("api", "1.5");
    b.ready("api", "1.5");
    b.pass(5);
    b.take();
    b.exited("api", "1.5");
    b.failed("api", "1.5", "rung_failed");
    b.pass(60);
    assert_eq!(b.take()[0], "order restart#1 of api@1.5: 1.5");
}

#[test]
fn late_copies_of_old_facts_change_nothing() {
    let mut b = Bench::new(&[spec("api", &[])]);
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.take();
    b.failed("api", "1.4", "budget_spent");
    b.repeat_all();
    assert_eq!(b.take(), [""; 0]);
}

#[test]
fn before_the_last_rung_the_nodes_of_dependencies_are_asked_afresh() {
    let mut b = pair();
    b.exhaust("api");
    b.rung_fails("api", "1.5");
    b.take();
    b.rung_fails("api", "1.6");
    assert_eq!(b.take(), ["ask a"], "nobody answers, and nothing is told");
    b.holds(&[("db", "1.2", InstanceState::Ready)]);
    b.pass(5);
    let void = ["ask a", "rung_tried clear_state void clear_state", "order clear_state#3 of api@1.1: 1.6 clearing"];
    assert_eq!(b.take(), void, "db is another than EVENTS say as yet");
    b.holds(&[("db", "1.1", InstanceState::Ready)]);
    b.rung_fails("api", "1.7");
    assert_eq!(b.take()[..3], ["ask a", "rung_tried clear_state failed quarantine", "recovery_failed 3 boom"]);
}

#[test]
fn a_component_without_rungs_is_not_given_up_on_moving_ground() {
    let mut b = Bench::new(&[spec("db", &[]), v1::ComponentSpec { heal: Vec::new(), ..spec("api", &["db"]) }]);
    b.started("db", "1.1");
    b.ready("db", "1.1");
    b.exhaust("api");
    assert_eq!(b.take(), ["recovery_started quarantine", "ask a"]);
    b.holds(&[("db", "1.1", InstanceState::Unready)]);
    b.pass(5);
    b.pass(60);
    assert_eq!(b.take(), ["ask a", "ask a"], "asked again, and not given up");
}
