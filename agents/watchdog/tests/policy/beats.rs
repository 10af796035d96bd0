//! Instances that beat.

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, event::Fact},
};

use crate::world::{World, ms};

fn beating(every: u64) -> (World, Instance) {
    let mut w = World::new(1);
    w.node("a");
    let db = w.beating("db", ms(every));
    w.pass(ms(8_000));
    assert_eq!(w.told(), [""; 0]);
    (w, db)
}

fn hung(incarnation: Incarnation, signs: u64) -> v1::SilenceReply {
    let evidence = v1::HangEvidence { window: v1::HangWindow::Stopped.into(), windows: 1, ..Default::default() };
    v1::SilenceReply { incarnation: Some(incarnation.into()), signs_of_life: signs, hung: true, evidence: Some(evidence), incident: None }
}

#[test]
fn one_that_does_not_beat_and_hangs_by_its_nodes_view_is_unresponsive() {
    let (mut w, db) = beating(1_000);
    w.beater("db").silent = true;
    w.looks.insert(db.clone(), v1::SilenceReply { hung: false, ..hung(Incarnation::new(1, 1), 0) });
    w.pass(ms(5_000));
    assert_eq!(w.told(), [""; 0], "missing beats alone are no evidence");
    w.looks.insert(db.clone(), hung(Incarnation::new(1, 1), 2));
    w.pass(ms(1_100));
    let event = w.only("component_unresponsive");
    let ready = w.stream.iter().find(|e| e.kind == "component_ready").unwrap();
    assert_eq!((&event.cause_id, event.incarnation), (&ready.id, Some(v1::Incarnation { generation: 1, start: 1 })));
    assert_eq!(event.incident.as_ref().unwrap().signs_of_life, 2, "its incident is as its node would name it");
    let Some(Fact::ComponentUnresponsive(fact)) = &event.fact else { panic!() };
    assert_eq!(fact.evidence.as_ref().unwrap().window(), v1::HangWindow::Stopped);
    w.pass(ms(10_000));
    assert_eq!(w.told(), ["component_unresponsive"], "once");
}

#[test]
fn a_tenth_of_a_second_is_kept_where_it_is_asked_for() {
    let (mut w, db) = beating(100);
    w.looks.insert(db, hung(Incarnation::new(1, 1), 0));
    w.beater("db").silent = true;
    w.pass(ms(450));
    assert_eq!(w.told(), ["component_unresponsive"]);
}

#[test]
fn a_nodes_view_of_another_incarnation_says_nothing() {
    let (mut w, db) = beating(1_000);
    w.beater("db").silent = true;
    w.looks.insert(db, hung(Incarnation::new(1, 2), 0));
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn a_sign_given_meanwhile_voids_what_the_node_saw() {
    let (mut w, db) = beating(1_000);
    w.beater("db").silent = true;
    w.pass(ms(4_500));
    w.beater("db").silent = false;
    w.pass(ms(1_000));
    w.looks.insert(db, hung(Incarnation::new(1, 1), 0));
    w.pass(ms(10_000));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn a_new_incarnation_is_heard_from_when_it_is_ready() {
    let (mut w, db) = beating(1_000);
    w.looks.insert(db.clone(), hung(Incarnation::new(1, 2), 0));
    w.beater("db").silent = true;
    w.exits(&db, Incarnation::new(1, 1));
    w.pass(ms(10_000));
    assert_eq!(w.told().iter().filter(|k| **k == "component_unresponsive").count(), 0, "who does not live does not beat");
    w.ready(&db, Incarnation::new(1, 2));
    w.pass(ms(2_900));
    assert!(!w.told().contains(&"component_unresponsive"));
    w.pass(ms(1_000));
    assert!(w.told().contains(&"component_unresponsive"));
}

/// Its node says when a start has had its time; from then on a hang is a hang, ready or not.
#[test]
fn one_whose_start_takes_too_long_is_to_be_heard_as_well() {
    let (mut w, db) = beating(1_000);
    let second = Incarnation::new(1, 2);
    w.looks.insert(db.clone(), hung(second, 0));
    w.beater("db").silent = true;
    w.exits(&db, Incarnation::new(1, 1));
    w.node_tells("a", Some((&db, second)), Fact::ComponentStarted(v1::ComponentStarted::default()));
    w.pass(ms(20_000));
    let degraded = |kind: v1::DegradedKind| Fact::ComponentDegraded(v1::ComponentDegraded { kind: kind.into(), ..Default::default() });
    w.node_tells("a", Some((&db, second)), degraded(v1::DegradedKind::Starved));
    w.pass(ms(5_000));
    assert!(!w.told().contains(&"component_unresponsive"), "it may still be on its way");
    w.node_tells("a", Some((&db, second)), degraded(v1::DegradedKind::Slow));
    w.pass(ms(2_900));
    assert!(!w.told().contains(&"component_unresponsive"));
    w.pass(ms(1_000));
    assert!(w.told().contains(&"component_unresponsive"));
    w.exits(&db, second);
    w.node_tells("a", Some((&db, Incarnation::new(1, 3))), Fact::ComponentStarted(v1::ComponentStarted::default()));
    w.looks.insert(db, hung(Incarnation::new(1, 3), 0));
    w.pass(ms(10_000));
    assert_eq!(w.told().iter().filter(|k| **k == "component_unresponsive").count(), 1, "the next start has its time again");
}

/// Its node says which incident is open; an own one would begin another ladder, for each start that hangs.
#[test]
fn a_start_that_hangs_is_told_in_the_incident_that_it_was_to_end() {
    let first = Incarnation::new(1, 1);
    for (open, told) in [(Some(first), first), (Some(Incarnation::new(1, 2)), Incarnation::new(1, 2)), (None, Incarnation::new(1, 2))] {
        let (mut w, db) = beating(1_000);
        w.ready(&db, Incarnation::new(1, 2));
        let incident = open.map(|incarnation| (&Incident { instance: db.clone(), incarnation, signs_of_life: 0 }).into());
        w.looks.insert(db, v1::SilenceReply { incident, ..hung(Incarnation::new(1, 2), 0) });
        w.pass(ms(5_000));
        let verdict = w.only("component_unresponsive");
        assert_eq!(Incident::try_from(verdict.incident.as_ref().unwrap()).unwrap().incarnation, told, "open: {open:?}");
        assert_eq!(verdict.incarnation, Some(Incarnation::new(1, 2).into()));
    }
}

#[test]
fn beats_of_a_former_incarnation_are_none() {
    let (mut w, db) = beating(1_000);
    w.ready(&db, Incarnation::new(1, 2));
    w.looks.insert(db, hung(Incarnation::new(1, 2), 0));
    w.pass(ms(5_000));
    assert_eq!(w.told(), ["component_unresponsive"]);
}

#[test]
fn nothing_is_said_of_what_is_on_a_lost_node() {
    let (mut w, db) = beating(1_000);
    w.looks.insert(db, hung(Incarnation::new(1, 1), 0));
    w.answering.clear();
    w.beater("a").silent = true;
    w.pass(ms(600));
    w.beater("db").silent = true;
    w.pass(ms(10_000));
    assert_eq!(w.told(), ["node_lost"]);
}

#[test]
fn what_is_withdrawn_may_be_judged_anew() {
    let (mut w, db) = beating(1_000);
    w.looks.insert(db.clone(), hung(Incarnation::new(1, 1), 0));
    w.beater("db").silent = true;
    w.pass(ms(5_000));
    w.node_tells("a", Some((&db, Incarnation::new(1, 1))), Fact::IncidentWithdrawn(v1::IncidentWithdrawn::default()));
    w.beater("db").silent = false;
    w.pass(ms(3_000));
    w.beater("db").silent = true;
    w.pass(ms(5_000));
    assert_eq!(w.told(), ["component_unresponsive"; 2]);
}
