//! The projection by tables: events in, states out; and its properties: duplicates change nothing, a rebuild gives the same bytes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail loudly, its helpers too")]
use proptest::prelude::*;
use prost::Message as _;
use razar_bus_schema::{
    event::{Kind as _, agent_event_id, node_event_id},
    ids::{Incarnation, Instance},
    presence::lost_node_cause,
    v1::{self, InstanceState, event::Fact},
};
use razar_registry::projection::{AGENT_EVENT_WINDOW, ESCALATIONS_KEPT, Folded, Key, MISSIONS_KEPT, Projection};

/// An event of node `a` about `api`, at journal place `sequence`.
fn of_node(sequence: u64, incarnation: (u64, u64), fact: Fact) -> v1::Event {
    of_node_epoch("e1", sequence, incarnation, fact)
}

fn of_node_epoch(epoch: &str, sequence: u64, incarnation: (u64, u64), fact: Fact) -> v1::Event {
    v1::Event {
        id: node_event_id("a", epoch, sequence),
        kind: fact.kind().to_owned(),
        time: Some(prost_types::Timestamp { seconds: i64::try_from(sequence).unwrap(), nanos: 0 }),
        source: Some(v1::Actor { kind: "node".to_owned(), id: "a".to_owned() }),
        node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: epoch.to_owned(), sequence }),
        chakra: "throat".to_owned(),
        instance: Some((&Instance::new("api", 0)).into()),
        incarnation: Some(Incarnation::new(incarnation.0, incarnation.1).into()),
        stack: "demo".to_owned(),
        fact: Some(fact),
        ..Default::default()
    }
}

fn of_orchestrator(cause: &str, instance: Option<&Instance>, fact: Fact) -> v1::Event {
    v1::Event {
        id: agent_event_id("orchestrator", fact.kind(), instance, None, cause),
        kind: fact.kind().to_owned(),
        source: Some(v1::Actor { kind: "orchestrator".to_owned(), id: "orchestrator-1".to_owned() }),
        instance: instance.map(Into::into),
        fact: Some(fact),
        ..Default::default()
    }
}

fn desired(mode: &str, rank: u32, generation: u64) -> Fact {
    Fact::DesiredChanged(v1::DesiredChanged {
        node: "a".to_owned(),
        mode: mode.to_owned(),
        rank,
        generation,
        provides: vec!["chat".to_owned()],
        ..Default::default()
    })
}

fn started() -> Fact {
    Fact::ComponentStarted(v1::ComponentStarted {
        process: Some(v1::ProcessIdentity { pid: 7, ..Default::default() }),
        ..Default::default()
    })
}

fn ready() -> Fact {
    Fact::ComponentReady(v1::ComponentReady { took: Some(prost_types::Duration { seconds: 0, nanos: 5 }), ..Default::default() })
}

fn exited() -> Fact {
    Fact::ComponentExited(v1::ComponentExited { last_error: "boom".to_owned(), ..Default::default() })
}

fn fold(events: &[v1::Event]) -> Projection {
    let mut projection = Projection::new("s1");
    for (sequence, event) in (1..).zip(events) {
        projection.apply(sequence, event);
    }
    projection
}

fn api(projection: &Projection) -> v1::ObservedComponent {
    projection.observed().components.first().cloned().expect("api is known")
}

/// One table for all kinds: after these events, `api` is in this state with or without an open incident.
#[track_caller]
fn check(facts: &[Fact], state: InstanceState, incident: bool) {
    let events: Vec<_> = (1..).zip(facts).map(|(n, fact)| of_node(n, (1, 1), fact.clone())).collect();
    let seen = api(&fold(&events));
    assert_eq!(seen.state(), state);
    assert_eq!(seen.incident.is_some(), incident);
    assert_eq!(seen.incident_since.is_some(), incident);
}

#[test]
fn each_kind_leaves_its_state() {
    use InstanceState as S;
    check(&[started()], S::Starting, false);
    check(&[started(), ready()], S::Ready, false);
    check(&[started(), ready(), Fact::ComponentUnready(v1::ComponentUnready::default())], S::Unready, false);
    check(&[started(), ready(), exited()], S::Exited, true);
    check(&[started(), ready(), exited(), Fact::Recovered(v1::Recovered::default())], S::Exited, false);
    check(&[started(), exited(), Fact::ComponentFailed(v1::ComponentFailed::default())], S::Failed, true);
    check(&[started(), ready(), Fact::ComponentUnresponsive(v1::ComponentUnresponsive::default())], S::Ready, true);
    check(&[started(), ready(), exited(), Fact::IncidentWithdrawn(v1::IncidentWithdrawn::default())], S::Exited, false);
    check(&[exited(), Fact::Quarantined(v1::Quarantined::default())], S::Quarantined, false);
    let stopped = || Fact::ComponentStopped(v1::ComponentStopped::default());
    check(&[Fact::Quarantined(v1::Quarantined::default()), stopped()], S::Quarantined, false);
    check(&[Fact::Quarantined(v1::Quarantined::default()), Fact::Released(v1::Released::default())], S::Waiting, false);
    let trial = || Fact::ProbationStarted(v1::ProbationStarted::default());
    check(&[Fact::Quarantined(v1::Quarantined::default()), trial()], S::Probation, false);
    check(&[Fact::Quarantined(v1::Quarantined::default()), trial(), started()], S::Starting, false);
    check(&[started(), ready(), stopped()], S::Stopped, false);
    check(&[started(), Fact::ComponentReady(v1::ComponentReady { completed: true, ..Default::default() })], S::Completed, false);
    let blocked = || Fact::ComponentBlocked(v1::ComponentBlocked { by: vec![v1::Blocker::default()] });
    check(&[blocked()], S::Waiting, false);
    check(&[started(), ready(), blocked()], S::Ready, false);
    check(&[desired("run", 1, 1)], S::Waiting, false);
    check(&[desired("stop", 1, 1)], S::Stopped, false);
    check(&[desired("stop", 1, 1), started(), exited()], S::Exited, false);
}

#[test]
fn what_is_told_of_an_incident_is_kept_until_it_ends() {
    let events = [of_node(1, (1, 1), started()), of_node(2, (1, 1), exited()), of_node(3, (1, 2), started()), of_node(4, (1, 2), exited())];
    let seen = api(&fold(&events));
    assert_eq!(seen.incident.as_ref().and_then(|i| i.incarnation), Some(Incarnation::new(1, 1).into()));
    assert_eq!((seen.incident_exits, seen.starts), (2, 2));
    assert_eq!(seen.last_error, "boom");
    assert_eq!(seen.process, None);
}

/// Mutation caught: what tells of a trial is stale behind the start that it allowed.
#[test]
fn a_trial_is_known_until_it_ends_however_quick_its_node_is() {
    let isolated = Fact::Quarantined(v1::Quarantined { issue_type: "logic".to_owned(), ..Default::default() });
    let trial = Fact::ProbationStarted(v1::ProbationStarted { attempts: 4, ..Default::default() });
    let told = |n, incarnation, fact: &Fact| of_node(n, incarnation, fact.clone());
    let begun = [told(1, (1, 4), &exited()), told(2, (1, 4), &isolated), told(3, (1, 5), &started()), told(4, (1, 4), &trial)];
    let seen = api(&fold(&begun));
    assert_eq!((seen.state(), seen.probation.as_ref().map(|p| p.attempts)), (InstanceState::Starting, Some(4)));
    let released = Fact::Released(v1::Released { mode: "auto".to_owned(), ..Default::default() });
    let ends = |last: v1::Event| api(&fold(&begun.iter().cloned().chain([told(5, (1, 5), &ready()), last]).collect::<Vec<_>>()));
    let well = ends(told(6, (1, 4), &released));
    assert_eq!((well.state(), &well.probation, &well.quarantined), (InstanceState::Ready, &None, &None));
    let back = ends(told(6, (1, 5), &isolated));
    assert_eq!((back.state(), back.probation.is_none(), back.quarantined.is_some()), (InstanceState::Quarantined, true, true));
}

/// Mutation caught: what the brake was told for outlives it.
#[test]
fn what_is_escalated_of_the_mesh_is_known_until_its_cause_ends() {
    let told = |n: u64, cause: &str, fact: Fact| v1::Event {
        id: agent_event_id("recovery", fact.kind(), None, None, &format!("{cause} {n}")),
        kind: fact.kind().to_owned(),
        source: Some(v1::Actor { kind: "recovery".to_owned(), id: "r1".to_owned() }),
        incident: Some(v1::IncidentId { mesh_cause: cause.to_owned(), ..Default::default() }),
        fact: Some(fact),
        ..Default::default()
    };
    let escalated = |about: &str| Fact::Escalated(v1::Escalated { severity: "P1".to_owned(), about: about.to_owned(), count: 0 });
    let mut projection = fold(&[told(1, "brake", escalated("many")), told(2, "", escalated("other"))]);
    let known = |p: &Projection| -> Vec<(u64, String)> {
        p.observed().escalations.iter().map(|e| (e.last_sequence, e.escalated.clone().unwrap_or_default().about)).collect()
    };
    assert_eq!(known(&projection), [(1, "many".to_owned()), (2, "other".to_owned())]);
    assert_eq!(known(&Projection::from_snapshot(projection.observed())), known(&projection), "a snapshot holds them");
    assert!(projection.keys().contains(&Key::Escalation(1)) && Key::parse("escalations.1") == Some(Key::Escalation(1)));
    projection.apply(3, &told(3, "brake", Fact::BrakeReleased(v1::BrakeReleased::default())));
    assert_eq!(known(&projection), [(2, "other".to_owned())]);
    assert!(projection.take_dirty().contains(&Key::Escalation(1)) && projection.value(&Key::Escalation(1)).is_none());
    for n in 4..40 {
        projection.apply(n, &told(n, "", escalated("more")));
    }
    assert_eq!(known(&projection).len(), ESCALATIONS_KEPT);
}

#[test]
fn the_newest_incarnation_wins() {
    let mut projection = fold(&[of_node(1, (2, 1), started()), of_node(2, (2, 1), ready())]);
    assert_eq!(projection.apply(3, &of_node(3, (1, 9), exited())), Folded::Stale);
    assert_eq!(api(&projection).state(), InstanceState::Ready);
    assert_eq!(projection.apply(4, &of_node(4, (3, 1), started())), Folded::Applied);
    assert_eq!((api(&projection).state(), api(&projection).starts), (InstanceState::Starting, 1));
}

#[test]
fn an_older_desire_is_stale() {
    let api0 = Instance::new("api", 0);
    let mut projection = fold(&[of_orchestrator("c2", Some(&api0), desired("run", 4, 2))]);
    assert_eq!(projection.apply(2, &of_orchestrator("c1", Some(&api0), desired("stop", 4, 1))), Folded::Stale);
    assert_eq!(api(&projection).desired.unwrap().mode, "run");
}

#[test]
fn a_copy_is_known_by_its_place_or_its_id() {
    let event = of_node(1, (1, 1), exited());
    let mut projection = fold(&[event.clone(), of_node(2, (1, 2), started())]);
    assert_eq!(projection.apply(3, &event), Folded::Duplicate);
    let told = of_orchestrator("c1", Some(&Instance::new("api", 0)), desired("run", 1, 1));
    assert_eq!(projection.apply(4, &told), Folded::Applied);
    assert_eq!(projection.apply(5, &told), Folded::Duplicate);
    assert_eq!(projection.apply(5, &of_node(3, (1, 2), ready())), Folded::Duplicate, "a stream sequence is folded once");
}

#[test]
fn a_new_journal_replaces_the_old_one() {
    let joined = |epoch: &str| Fact::NodeJoined(v1::NodeJoined { node_epoch: epoch.to_owned(), ..Default::default() });
    let old: Vec<_> = (1..400).map(|n| of_node(n, (1, n), started())).collect();
    let mut projection = fold(&old);
    assert_eq!(projection.apply(400, &of_node_epoch("e2", 1, (2, 1), joined("e2"))), Folded::Applied);
    assert_eq!(projection.apply(401, &of_node(399, (1, 399), exited())), Folded::Stale, "a late copy from the old journal");
    assert_eq!(projection.apply(402, &of_node_epoch("e2", 2, (2, 1), started())), Folded::Applied);
    let node = projection.observed().nodes.remove(0);
    assert_eq!((node.joined.unwrap().node_epoch.as_str(), node.journal_sequence), ("e2", 2));
}

#[test]
fn an_inventory_corrects_what_was_missed() {
    let item = v1::InventoryItem {
        instance: Some((&Instance::new("api", 0)).into()),
        generation: 4,
        incarnation: Some(Incarnation::new(4, 2).into()),
        state: InstanceState::Ready.into(),
        ..Default::default()
    };
    let inventory = Fact::NodeInventory(v1::NodeInventory { node_epoch: "e1".to_owned(), items: vec![item], ..Default::default() });
    let mut event = of_node(1, (0, 0), inventory);
    event.instance = None;
    event.incarnation = None;
    let seen = api(&fold(&[event]));
    assert_eq!((seen.state(), seen.node.as_str(), seen.incarnation), (InstanceState::Ready, "a", Some(Incarnation::new(4, 2).into())));
}

#[test]
fn of_a_lost_node_it_is_known_since_when() {
    let mut joined = of_node(1, (0, 0), Fact::NodeJoined(v1::NodeJoined::default()));
    (joined.instance, joined.incarnation) = (None, None);
    let mut lost = of_orchestrator(&joined.id, None, Fact::NodeLost(v1::NodeLost::default()));
    lost.cause_id.clone_from(&joined.id);
    lost.incident = Some(v1::IncidentId { mesh_cause: lost_node_cause("a"), ..Default::default() });
    lost.time = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
    let node = |events: &[v1::Event]| fold(events).observed().nodes.remove(0);
    let (before, after) = (node(std::slice::from_ref(&joined)), node(&[joined.clone(), lost.clone()]));
    assert_eq!((before.lost, before.presence_at), (false, joined.time));
    assert_eq!((after.lost, after.presence_at, after.joined_at), (true, lost.time, joined.time));
}

#[test]
fn unknown_and_incomplete_events_are_counted_and_passed_over() {
    let mut unknown = of_node(1, (1, 1), started());
    unknown.fact = None;
    unknown.kind = "component_of_tomorrow".to_owned();
    let mut nameless = of_node(2, (1, 1), started());
    nameless.instance = None;
    let mut projection = Projection::new("s1");
    assert_eq!(projection.apply(1, &unknown), Folded::Unknown);
    assert_eq!(projection.apply(2, &nameless), Folded::Incomplete);
    projection.dead_letter(3);
    let observed = projection.observed();
    assert_eq!((observed.unknown_events, observed.dead_letters, observed.applied_sequence), (2, 1, 3));
}

#[test]
fn what_left_the_plan_vanishes_with_the_next_mission() {
    let api0 = Instance::new("api", 0);
    let mission = |id: &str, stop: &[&str]| {
        let started =
            v1::MissionStarted { mission_id: id.to_owned(), to_stop: stop.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() };
        of_orchestrator(id, None, Fact::MissionStarted(started))
    };
    let mut projection = fold(&[
        of_orchestrator("c1", Some(&api0), desired("run", 1, 1)),
        of_node(1, (1, 1), started()),
        mission("m2", &["api"]),
        of_orchestrator("c2", Some(&api0), desired("stop", 0, 1)),
    ]);
    projection.apply(5, &mission("m3", &[]));
    assert_eq!(projection.observed().components.len(), 1, "it is not told stopped yet");
    projection.apply(6, &of_node(2, (1, 1), Fact::ComponentStopped(v1::ComponentStopped::default())));
    projection.take_dirty();
    projection.apply(7, &mission("m4", &[]));
    assert!(projection.observed().components.is_empty());
    assert!(projection.take_dirty().contains(&Key::Component(api0.clone())));
    assert_eq!(projection.value(&Key::Component(api0)), None);
}

#[test]
fn missions_and_agents_are_bounded() {
    let mut projection = Projection::new("s1");
    for n in 0..40u64 {
        let mission = v1::MissionStarted { mission_id: format!("m{n}"), ..Default::default() };
        projection.apply(2 * n + 1, &of_orchestrator(&format!("m{n}"), None, Fact::MissionStarted(mission)));
        let agent = v1::AgentStarted { kind: "registry".to_owned(), id: format!("r{n}"), ..Default::default() };
        projection.apply(2 * n + 2, &of_orchestrator(&format!("r{n}"), None, Fact::AgentStarted(agent)));
    }
    let observed = projection.observed();
    assert_eq!((observed.missions.len(), observed.agents.len()), (MISSIONS_KEPT, 16));
    assert_eq!(observed.missions[0].started.as_ref().unwrap().mission_id, "m20", "the newest are kept, oldest first");
    assert!(observed.agents.iter().any(|a| a.started.as_ref().unwrap().id == "r39"));
}

#[test]
fn discovery_is_by_name_capability_and_readiness() {
    let api0 = Instance::new("api", 0);
    let projection = fold(&[of_orchestrator("c1", Some(&api0), desired("run", 1, 1)), of_node(1, (1, 1), started())]);
    let count = |name: &str, capability: &str, ready: bool| {
        let request = v1::DiscoverRequest { name: name.to_owned(), capability: capability.to_owned(), ready };
        projection.discover(&request).components.len()
    };
    assert_eq!(count("", "chat", false), 1);
    assert_eq!(count("api", "", false), 1);
    assert_eq!(count("", "vision", false), 0);
    assert_eq!(count("", "chat", true), 0);
}

fn any_fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        Just(started()),
        Just(ready()),
        Just(exited()),
        Just(Fact::ComponentUnready(v1::ComponentUnready::default())),
        Just(Fact::ComponentFailed(v1::ComponentFailed::default())),
        Just(Fact::ComponentStopped(v1::ComponentStopped::default())),
        Just(Fact::ComponentBlocked(v1::ComponentBlocked::default())),
        Just(Fact::Recovered(v1::Recovered::default())),
        Just(Fact::Quarantined(v1::Quarantined::default())),
        any::<bool>().prop_map(|passed| degraded(v1::DegradedKind::Slow, passed)),
        prop_oneof![Just("memory"), Just("cpu")].prop_map(exceeded),
        Just(restored("memory")),
        (0u32..3, 1u64..4).prop_map(|(rank, generation)| desired(if rank == 0 { "stop" } else { "run" }, rank, generation)),
    ]
}

/// Streams of events from a node and an agent, with copies, late ones and missions among them.
fn any_stream() -> impl Strategy<Value = Vec<v1::Event>> {
    let event = prop_oneof![
        6 => (1u64..300, 1u64..4, 1u64..4, any_fact()).prop_map(|(n, g, s, fact)| of_node(n, (g, s), fact)),
        2 => (0u64..20, any_fact()).prop_map(|(n, fact)| of_orchestrator(&format!("c{n}"), Some(&Instance::new("api", 1)), fact)),
        1 => (0u64..30).prop_map(|n| {
            let mission = v1::MissionStarted { mission_id: format!("m{n}"), ..Default::default() };
            of_orchestrator(&format!("m{n}"), None, Fact::MissionStarted(mission))
        }),
        1 => (1u64..20, 0u64..3).prop_map(|(n, e)| of_node_epoch(&format!("e{e}"), n, (1, 1), started())),
    ];
    proptest::collection::vec(event, 1..200)
}

proptest! {
    #[test]
    fn folded_twice_it_is_the_same_byte_for_byte(events in any_stream()) {
        prop_assert_eq!(fold(&events).observed().encode_to_vec(), fold(&events).observed().encode_to_vec());
    }

    #[test]
    fn from_a_snapshot_and_the_tail_it_is_the_same_byte_for_byte(events in any_stream(), cut in 0usize..200) {
        let cut = cut.min(events.len());
        let whole = fold(&events);
        let snapshot = fold(&events[..cut]).observed().encode_to_vec();
        let mut resumed = Projection::from_snapshot(v1::Observed::decode(snapshot.as_slice()).unwrap());
        let numbered = || (1u64..).zip(&events);
        let at = u64::try_from(cut).unwrap();
        for (sequence, event) in numbered().filter(|(n, _)| *n <= at && *n > at.saturating_sub(AGENT_EVENT_WINDOW)) {
            resumed.prime(sequence, event);
        }
        for (sequence, event) in numbered() {
            resumed.apply(sequence, event);
        }
        prop_assert_eq!(resumed.observed().encode_to_vec(), whole.observed().encode_to_vec());
    }

    #[test]
    fn copies_change_nothing(events in any_stream()) {
        let mut once = Projection::new("s1");
        let mut twice = Projection::new("s1");
        for (n, event) in (1u64..).zip(&events) {
            once.apply(2 * n, event);
            twice.apply(2 * n - 1, event);
            twice.apply(2 * n, event);
        }
        let strip = |p: &Projection| {
            let mut o = p.observed();
            o.unknown_events = 0;
            o.components.iter_mut().for_each(|c| c.last_sequence = 0);
            o.nodes.iter_mut().for_each(|c| c.last_sequence = 0);
            o.missions.iter_mut().for_each(|c| c.last_sequence = 0);
            o
        };
        prop_assert_eq!(strip(&once), strip(&twice));
    }

    #[test]
    fn dirty_keys_are_all_that_changed(events in any_stream()) {
        let mut projection = Projection::new("s1");
        let mut bucket = std::collections::BTreeMap::new();
        for (sequence, event) in (1..).zip(&events) {
            projection.apply(sequence, event);
            for key in projection.take_dirty() {
                match projection.value(&key) {
                    Some(bytes) => bucket.insert(key, bytes),
                    None => bucket.remove(&key),
                };
            }
        }
        let whole: std::collections::BTreeMap<_, _> =
            projection.keys().into_iter().map(|k| (k.clone(), projection.value(&k).unwrap())).collect();
        prop_assert_eq!(bucket, whole);
    }
}

#[test]
fn what_people_were_told_stays_until_it_is_over() {
    let told = |facts: &[(u64, Fact)]| {
        let events: Vec<_> = (1..).zip(facts).map(|(n, (start, fact))| of_node(n, (1, *start), fact.clone())).collect();
        api(&fold(&events)).escalated.map(|e| e.severity)
    };
    let escalated = |start| (start, Fact::Escalated(v1::Escalated { severity: "P3".to_owned(), ..Default::default() }));
    assert_eq!(told(&[(2, started()), escalated(1)]).as_deref(), Some("P3"), "it is about a row of lives, not about the newest");
    assert_eq!(told(&[(1, started()), escalated(1), (1, Fact::Recovered(v1::Recovered::default()))]), None);
    assert_eq!(told(&[(1, started()), escalated(1), (1, Fact::Released(v1::Released::default()))]), None);
    assert_eq!(told(&[(1, started()), escalated(1), (1, exited())]).as_deref(), Some("P3"));
}

fn degraded(kind: v1::DegradedKind, passed: bool) -> Fact {
    Fact::ComponentDegraded(v1::ComponentDegraded { kind: kind.into(), detail: "as seen".to_owned(), passed })
}

fn exceeded(resource: &str) -> Fact {
    Fact::LimitExceeded(v1::LimitExceeded { resource: resource.to_owned(), used: 9, limit: 5 })
}

fn restored(resource: &str) -> Fact {
    Fact::LimitRestored(v1::LimitRestored { resource: resource.to_owned(), used: 4, limit: 5 })
}

fn ready_again() -> Fact {
    Fact::ComponentReady(v1::ComponentReady { again: true, ..Default::default() })
}

/// What `api` is said to be after these facts of one life: its degradation, and what it uses too much of.
fn troubles_after(facts: &[Fact]) -> (String, Vec<String>) {
    let mut projection = Projection::new("s1");
    for (sequence, fact) in (1..).zip(std::iter::once(&started()).chain(facts)) {
        projection.apply(sequence, &of_node(sequence, (1, 1), fact.clone()));
    }
    let api = projection.observed().components.pop().expect("it was told of");
    (api.degraded, api.over_limits.into_iter().map(|limit| limit.resource).collect())
}

#[test]
fn a_degradation_lasts_until_it_is_told_to_have_passed_and_a_limit_until_it_is_kept_again() {
    use v1::DegradedKind::{Slow, Starved};
    let none = (String::new(), Vec::new());
    assert_eq!(troubles_after(&[degraded(Slow, false)]).0, "slow: as seen");
    assert_eq!(troubles_after(&[degraded(Slow, false), degraded(Slow, true)]), none);
    assert_eq!(troubles_after(&[degraded(Slow, false), degraded(Starved, false), degraded(Slow, true)]).0, "starved: as seen");
    let (slow, over) = troubles_after(&[degraded(Slow, false), exceeded("memory"), exceeded("cpu"), restored("cpu")]);
    assert_eq!((slow.as_str(), over), ("slow: as seen", vec!["memory".to_owned()]), "each is its own");
    assert_eq!(troubles_after(&[exceeded("memory"), ready_again()]).1, ["memory"], "ready is not within its limit");
    assert_eq!(troubles_after(&[exceeded("memory"), exceeded("memory")]).1, ["memory"]);
}

#[test]
fn how_a_life_fared_ends_with_it() {
    let none = (String::new(), Vec::new());
    let trouble = [degraded(v1::DegradedKind::Slow, false), exceeded("memory")];
    let ends = [
        Fact::ComponentExited(v1::ComponentExited::default()),
        Fact::ComponentStopped(v1::ComponentStopped::default()),
        Fact::ComponentFailed(v1::ComponentFailed::default()),
        Fact::ComponentReady(v1::ComponentReady { completed: true, ..Default::default() }),
    ];
    for end in ends {
        let facts: Vec<_> = trouble.iter().cloned().chain([end.clone()]).collect();
        assert_eq!(troubles_after(&facts), none, "{end:?}");
    }
}

/// Told again by who took it over, it is what that one says; and the next life is told by itself, whichever fact names it first.
#[test]
fn a_life_is_as_it_was_told_last_and_a_new_one_is_well() {
    let trouble = [degraded(v1::DegradedKind::Slow, false), exceeded("memory")];
    let again = Fact::ComponentStarted(v1::ComponentStarted { adopted: true, ..Default::default() });
    let facts: Vec<_> = trouble.iter().cloned().chain([again]).collect();
    assert_eq!(troubles_after(&facts), (String::new(), vec!["memory".to_owned()]));

    for (of, first) in [("its start", started()), ("its readiness", ready())] {
        let mut projection = Projection::new("s1");
        for (sequence, fact) in (1..).zip([&started()].into_iter().chain(&trouble)) {
            projection.apply(sequence, &of_node(sequence, (1, 1), fact.clone()));
        }
        projection.apply(8, &of_node(8, (1, 2), first));
        let api = projection.observed().components.pop().expect("it was told of");
        assert_eq!((api.degraded.as_str(), api.over_limits.len()), ("", 0), "told first: {of}");
    }
}

/// It was measured before it ended, and the word came after.
#[test]
fn who_has_ended_is_over_no_limit() {
    let exited = Fact::ComponentExited(v1::ComponentExited::default());
    assert_eq!(troubles_after(&[exited, exceeded("memory")]), (String::new(), Vec::new()));
}
