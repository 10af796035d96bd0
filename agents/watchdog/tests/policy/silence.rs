//! Who is silent, and who only seems so.

use std::time::Duration;

use razar_bus_schema::v1::event::Fact;
use razar_watchdog::policy::Action;

use crate::world::{World, ms};

/// A mesh of two nodes and two agents, heard for a while.
fn mesh(dogs: usize) -> World {
    let mut w = World::new(dogs);
    w.node("a");
    w.node("b");
    w.agent("registry", "a-registry");
    w.agent("recovery", "a-recovery");
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0], "who beats is not silent");
    w
}

/// From the last beat of `name` to what was told of it.
fn falls_silent(w: &mut World, name: &str, kind: &str) -> Duration {
    w.pass(ms(1_000));
    // At its very next beat it is silent.
    let (next, every) = (w.beater(name).next, w.beater(name).every);
    w.pass(next - w.now - ms(5));
    let last = next - every;
    w.beater(name).silent = true;
    for _ in 0..2_000 {
        if w.told().contains(&kind) {
            return w.now - last;
        }
        w.pass(ms(5));
    }
    panic!("{name} is never told: {:?}", w.told());
}

#[test]
fn a_node_that_is_cut_off_is_lost_three_beats_and_fifty_milliseconds_after_its_last() {
    let mut w = mesh(1);
    w.answering.remove("b");
    let took = falls_silent(&mut w, "b", "node_lost");
    assert!(took >= ms(3_000) && took <= ms(3_050), "{took:?}");
    let lost = w.only("node_lost");
    let joined = w.stream.iter().find(|e| e.kind == "node_joined" && e.id.starts_with("n:b")).unwrap();
    assert_eq!(lost.cause_id, joined.id, "the cause is its last change of state");
    assert_eq!(lost.incident.as_ref().unwrap().mesh_cause, "node_lost:b");
    let Some(Fact::NodeLost(fact)) = &lost.fact else { panic!("{lost:?}") };
    assert_eq!(fact.evidence, ["no_beats", "no_responders"]);
}

#[test]
fn a_node_that_is_there_and_says_nothing_is_waited_for_until_its_third_beat() {
    let mut w = mesh(1);
    w.mute.insert("b".to_owned());
    let took = falls_silent(&mut w, "b", "node_lost");
    assert!(took >= ms(3_000) && took <= ms(3_150), "{took:?}");
    let Some(Fact::NodeLost(fact)) = &w.only("node_lost").fact else { panic!() };
    assert_eq!(fact.evidence, ["no_beats", "no_answer"]);
}

#[test]
fn a_node_that_answers_is_not_lost_however_silent() {
    let mut w = mesh(1);
    w.beater("b").silent = true;
    w.pass(ms(60_000));
    assert_eq!(w.told(), [""; 0]);
    assert!(w.pings >= 20, "it is asked again and again: {}", w.pings);
}

#[test]
fn nobody_is_asked_while_all_beat() {
    assert_eq!(mesh(1).pings, 0);
}

#[test]
fn a_node_that_is_heard_again_returns_and_may_be_lost_again() {
    let mut w = mesh(1);
    w.answering.remove("b");
    falls_silent(&mut w, "b", "node_lost");
    w.pass(ms(20_000));
    w.beater("b").silent = false;
    w.pass(ms(2_000));
    assert_eq!(w.told(), ["node_lost", "node_returned"]);
    assert_eq!(w.only("node_returned").cause_id, w.only("node_lost").id);
    w.beater("b").silent = true;
    w.pass(ms(5_000));
    assert_eq!(w.told(), ["node_lost", "node_returned", "node_lost"], "under another id");
}

#[test]
fn an_agent_that_is_silent_is_down_and_returns() {
    let mut w = mesh(1);
    let took = falls_silent(&mut w, "a-registry", "agent_down");
    assert!(took >= ms(3_000) && took <= ms(3_050), "{took:?}");
    w.pass(ms(5_000));
    w.beater("a-registry").silent = false;
    w.pass(ms(2_000));
    assert_eq!(w.told(), ["agent_down", "agent_returned"]);
}

#[test]
fn a_loop_that_stands_behind_beats_is_found() {
    let mut w = mesh(1);
    let now = w.now;
    w.beater("a-registry").stands = Some(now);
    w.pass(ms(5_200));
    let Some(Fact::AgentDown(down)) = &w.only("agent_down").fact else { panic!() };
    assert_eq!((down.id.as_str(), down.evidence.as_slice()), ("a-registry", ["loop_stands".to_owned()].as_slice()));
    w.beater("a-registry").stands = None;
    w.pass(ms(2_000));
    assert_eq!(w.told(), ["agent_down", "agent_returned"]);
}

/// Its loop stands, and so its beats are no signs; it is lost when it is gone, and not before.
#[test]
fn a_node_whose_loop_stands_is_lost_only_when_it_answers_no_more() {
    let mut w = mesh(1);
    let now = w.now;
    w.beater("b").stands = Some(now);
    w.pass(ms(20_000));
    assert_eq!(w.told(), [""; 0]);
    assert!(w.pings < 40, "it is asked once a beat: {}", w.pings);
    w.beater("b").silent = true;
    w.answering.remove("b");
    w.pass(ms(5_000));
    assert_eq!(w.told(), ["node_lost"]);
}

#[test]
fn a_new_process_of_an_agent_is_there_before_it_beats() {
    let mut w = mesh(1);
    w.beater("a-registry").silent = true;
    w.pass(ms(5_000));
    w.agent("registry", "a-registry");
    w.pass(ms(3_000));
    assert_eq!(w.told(), ["agent_down"], "its start says that it is back");
}

#[test]
fn one_beat_of_a_loop_that_has_just_woken_says_nothing() {
    let mut w = mesh(1);
    let now = w.now;
    w.beater("a-registry").stands = Some(now.saturating_sub(ms(8_000)));
    w.pass(ms(1_000));
    w.beater("a-registry").stands = None;
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn beats_that_repeat_themselves_are_none() {
    let mut w = mesh(1);
    w.beater("a-recovery").repeats = true;
    w.pass(ms(6_000));
    assert_eq!(w.told(), ["agent_down"]);
}

/// Fault 5: every beat is late, and so is the proof that there are none.
#[test]
fn a_broker_that_stands_makes_nobody_silent() {
    let mut w = mesh(1);
    w.broker_stands = true;
    w.pass(ms(30_000));
    w.broker_stands = false;
    w.pass(ms(10_000));
    assert_eq!((w.told(), w.offered.iter().filter(|e| e.kind != "great_spiral").count()), (vec![], 0));
}

/// The broker is late by less than what suspends verdicts, and has a beat that is not handed on yet.
#[test]
fn a_beat_that_is_on_its_way_is_waited_for() {
    let mut w = mesh(1);
    let next = w.beater("a-registry").next;
    w.pass(next - w.now + ms(10));
    w.beater("a-registry").silent = true;
    w.pass(ms(2_800));
    w.broker_stands = true;
    let now = w.now;
    (w.beater("a-registry").silent, w.beater("a-registry").next) = (false, now);
    w.pass(ms(380));
    w.broker_stands = false;
    w.pass(ms(5_000));
    // What is given while the broker stands is not stored, and given all the same.
    assert_eq!(w.offered.iter().filter(|e| e.kind == "agent_down").count(), 0);
    assert_eq!(w.told(), [""; 0]);
}

/// Fault 50: an observer that was not scheduled has heard nothing.
#[test]
fn an_observer_that_was_stopped_gives_no_verdict_on_what_it_did_not_hear() {
    let mut w = mesh(1);
    // Everybody else dies just before it wakes, and comes back a second later: it must not count what it slept through.
    w.dogs[0].stopped = true;
    w.pass(ms(2_500));
    for name in ["a", "b", "a-registry", "a-recovery"] {
        w.beater(name).silent = true;
    }
    w.answering.clear();
    w.pass(ms(500));
    w.dogs[0].stopped = false;
    w.pass(ms(2_400));
    for name in ["a", "b", "a-registry", "a-recovery"] {
        w.beater(name).silent = false;
    }
    w.pass(ms(6_000));
    assert_eq!(w.told(), [""; 0]);
}

/// Fault 4: after a broker came back the others have time to find it.
#[test]
fn a_new_connection_counts_anew() {
    let mut w = mesh(1);
    let at = w.at();
    w.dogs[0].state.apply_disconnected();
    for name in ["a", "b", "a-registry", "a-recovery"] {
        w.beater(name).silent = true;
    }
    w.answering.clear();
    w.dogs[0].state.apply_connected(at);
    w.pass(ms(5_500));
    assert_eq!(w.told(), [""; 0], "three beats and the time to come back");
    w.pass(ms(1_000));
    assert_eq!(w.told().iter().filter(|k| **k == "node_lost").count(), 2, "and then it counts");
}

#[test]
fn what_was_dropped_may_have_been_a_beat() {
    let mut w = mesh(1);
    w.answering.remove("b");
    w.beater("b").silent = true;
    w.pass(ms(1_900));
    let at = w.at();
    w.dogs[0].state.apply_dropped(at);
    w.pass(ms(2_900));
    assert_eq!(w.told(), [""; 0]);
    w.pass(ms(300));
    assert_eq!(w.told(), ["node_lost"]);
}

/// Faults 2 and 32: both believe that they hold the shard.
#[test]
fn two_that_decide_give_one_verdict() {
    let mut w = mesh(2);
    w.dogs[1].leads = true;
    w.answering.remove("b");
    falls_silent(&mut w, "b", "node_lost");
    w.pass(ms(5_000));
    let ids: std::collections::BTreeSet<_> = w.offered.iter().filter(|e| e.kind == "node_lost").map(|e| &e.id).collect();
    assert_eq!((w.offered.iter().filter(|e| e.kind == "node_lost").count() >= 2, ids.len()), (true, 1));
    assert_eq!(w.told(), ["node_lost"]);
}

/// Fault 2: who decided dies with the node; the other has observed all the while.
#[test]
fn a_successor_goes_by_what_it_has_heard_itself() {
    let mut w = mesh(2);
    w.answering.remove("b");
    w.beater("b").silent = true;
    w.dogs[0].stopped = true;
    w.pass(ms(4_000));
    assert_eq!(w.told(), [""; 0], "nobody decides");
    w.dogs[1].leads = true;
    w.pass(ms(50));
    assert_eq!(w.told(), ["node_lost"]);
}

/// A verdict that comes late changes nothing, since its cause is no longer the last.
#[test]
fn a_verdict_on_a_life_that_is_over_is_void() {
    let mut w = mesh(1);
    let mut late = {
        w.answering.remove("b");
        falls_silent(&mut w, "b", "node_lost");
        w.only("node_lost").clone()
    };
    w.beater("b").silent = false;
    w.answering.insert("b".to_owned());
    w.pass(ms(2_000));
    late.id.push('x');
    w.stream.push(late);
    w.pass(ms(2_000));
    assert!(!w.dogs[0].state.facts().is_lost("b"));
    assert_eq!(w.told(), ["node_lost", "node_returned", "node_lost"]);
}

#[test]
fn an_own_replica_does_not_watch_itself_and_another_does() {
    let mut w = mesh(2);
    w.agent("watchdog", "w0");
    w.agent("watchdog", "w1");
    w.pass(ms(3_000));
    w.beater("w0").silent = true;
    w.beater("w1").silent = true;
    w.pass(ms(6_000));
    let Some(Fact::AgentDown(down)) = &w.only("agent_down").fact else { panic!() };
    assert_eq!(down.id, "w1");
}

/// One that was told down by another and decides now is back: nobody else would say so.
#[test]
fn a_replica_that_was_told_down_tells_its_own_return() {
    let mut w = mesh(2);
    w.agent("watchdog", "w1");
    w.pass(ms(3_000));
    w.beater("w1").silent = true;
    w.pass(ms(4_000));
    assert_eq!(w.told(), ["agent_down"]);
    (w.dogs[0].leads, w.dogs[1].leads) = (false, true);
    w.pass(ms(2_000));
    assert_eq!(w.told(), ["agent_down"], "it has not been heard");
    w.beater("w1").silent = false;
    w.pass(ms(2_000));
    assert_eq!(w.told(), ["agent_down", "agent_returned"]);
}

#[test]
fn an_agent_of_a_version_that_names_no_kind_is_heard() {
    let mut w = mesh(1);
    w.beater("a-registry").beat.agent.clear();
    w.pass(ms(20_000));
    assert_eq!(w.told(), [""; 0]);
}

/// A replica that has just woken may be given the lease before it hears anything: somebody may have come back meanwhile.
#[test]
fn who_wakes_hears_what_came_before_it_judges() {
    for (asleep, verdicts) in [(ms(0), 1), (ms(1_200), 0)] {
        let mut w = mesh(1);
        w.dogs[0].leads = false;
        w.beater("a-recovery").silent = true;
        w.pass(ms(4_000));
        let mut woken = w.at();
        (woken.mono, woken.wall) = (woken.mono + asleep, woken.wall + asleep);
        let published = |actions: Vec<Action>| actions.iter().filter(|a| matches!(a, Action::Publish(_))).count();
        assert_eq!(published(w.dogs[0].state.decide(woken)), verdicts, "after {asleep:?} of sleep");
        // Once it has turned it knows that it was late, and counts anew.
        w.dogs[0].state.apply_turn(woken);
        assert_eq!(published(w.dogs[0].state.decide(woken)), 0);
    }
}
