//! Limits of resources.

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, event::Fact},
};
use razar_watchdog::policy::Measured;

use crate::world::{World, ms};

fn uses(w: &mut World, instance: &Instance, start: u64, memory: u64, cpu_millis: u32) {
    let usage = v1::ResourceUsage { memory_bytes: memory << 20, cpu_millis, open_files: 10, ..Default::default() };
    w.usage = vec![Measured { instance: instance.clone(), incarnation: Incarnation::new(1, start), usage }];
}

fn watched(resources: Option<v1::ResourceLimits>) -> (World, Instance) {
    let mut w = World::new(1);
    w.node("a");
    let db = w.desire("db", "heart", |spec| spec.resources = resources);
    w.ready(&db, Incarnation::new(1, 1));
    uses(&mut w, &db, 1, 100, 100);
    w.pass(ms(12_000));
    assert_eq!(w.told(), [""; 0]);
    (w, db)
}

#[test]
fn a_limit_that_is_crossed_is_told_once_and_once_when_it_is_kept_again() {
    let (mut w, db) = watched(Some(v1::ResourceLimits { memory_bytes: 512 << 20, ..Default::default() }));
    uses(&mut w, &db, 1, 600, 5_000);
    w.pass(ms(30_000));
    assert_eq!(w.told(), ["limit_exceeded"], "and cpu is not watched where limits are named without it");
    let Some(Fact::LimitExceeded(fact)) = &w.only("limit_exceeded").fact else { panic!() };
    assert_eq!((fact.resource.as_str(), fact.used >> 20, fact.limit >> 20), ("memory", 600, 512));
    uses(&mut w, &db, 1, 500, 0);
    w.pass(ms(30_000));
    assert_eq!(w.told(), ["limit_exceeded"], "just below it is not within");
    uses(&mut w, &db, 1, 400, 0);
    w.pass(ms(11_000));
    assert_eq!(w.told(), ["limit_exceeded", "limit_restored"]);
    uses(&mut w, &db, 1, 600, 0);
    w.pass(ms(11_000));
    assert_eq!(w.told(), ["limit_exceeded", "limit_restored", "limit_exceeded"], "each crossing is told");
}

#[test]
fn a_peak_is_not_told() {
    let (mut w, db) = watched(None);
    for _ in 0..4 {
        uses(&mut w, &db, 1, 2_000, 0);
        w.pass(ms(5_000));
        uses(&mut w, &db, 1, 100, 0);
        w.pass(ms(5_000));
    }
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn a_component_that_names_no_limits_has_the_meshs() {
    let (mut w, db) = watched(None);
    uses(&mut w, &db, 1, 1_100, 950);
    w.pass(ms(11_000));
    assert_eq!(w.told(), ["limit_exceeded"; 2], "memory and cpu");
}

#[test]
fn a_new_incarnation_begins_anew() {
    let (mut w, db) = watched(None);
    uses(&mut w, &db, 1, 1_100, 0);
    w.pass(ms(11_000));
    w.exits(&db, Incarnation::new(1, 1));
    w.ready(&db, Incarnation::new(1, 2));
    w.pass(ms(11_000));
    assert_eq!(w.told(), ["limit_exceeded"], "measured of the one before");
    uses(&mut w, &db, 2, 1_100, 0);
    w.pass(ms(11_000));
    assert_eq!(w.told(), ["limit_exceeded"; 2]);
}

#[test]
fn one_that_is_to_be_replaced_for_its_limits_is_told_in_an_incident() {
    for restart in [false, true] {
        let (mut w, db) = watched(Some(v1::ResourceLimits { memory_bytes: 512 << 20, restart, ..Default::default() }));
        uses(&mut w, &db, 1, 600, 0);
        w.pass(ms(11_000));
        assert_eq!(w.only("limit_exceeded").incident.is_some(), restart);
    }
}
