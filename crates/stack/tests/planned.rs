//! The plan: order, placement, expected course, critical path, and the difference to what runs.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use razar_bus_schema::{ids::Instance, v1};
use razar_stack::{Change, History, NodeFacts, Plan, PlanError, Resolved, Row, Running, Source, Waited, load, plan};

/// A stack of components written as `name [priority] [> dependency …]`, with so many slots.
fn stack(slots: u32, components: &[&str]) -> Resolved {
    let mut text = format!("name: s\nmesh: {{ parallel_starts: {slots} }}\ncomponents:\n");
    for line in components {
        let (head, on) = line.split_once(" > ").unwrap_or((line, ""));
        let (name, priority) = head.split_once(' ').unwrap_or((head, "5"));
        let on: Vec<&str> = on.split_whitespace().collect();
        text += &format!(
            "  {name}: {{ chakra: root, command: [x], readiness: none, priority: {priority}, depends_on: [{}] }}\n",
            on.join(", ")
        );
    }
    resolved(&text)
}

fn resolved(text: &str) -> Resolved {
    let source = Source { file: "razar.yaml", text, dir: Path::new("/srv") };
    load(&source, &|_| None).unwrap_or_else(|found| panic!("{found}")).document.resolve("").unwrap()
}

fn nodes(names: &[&str]) -> Vec<NodeFacts> {
    names.iter().map(|name| NodeFacts { name: (*name).to_owned(), ..NodeFacts::default() }).collect()
}

fn takes(of: &[(&str, u64)]) -> History {
    History { takes: of.iter().map(|(name, millis)| ((*name).to_owned(), vec![Duration::from_millis(*millis)])).collect() }
}

fn fresh(resolved: &Resolved, history: &History) -> Plan {
    plan(resolved, &nodes(&["a"]), history, &BTreeMap::new()).unwrap()
}

/// What runs after `plan` was carried out.
fn carried_out(plan: &Plan) -> BTreeMap<Instance, Running> {
    let record = |row: &Row| Running {
        node: row.node.clone(),
        generation: row.generation,
        spec_hash: row.spec_hash.clone(),
        wanted: true,
        rank: row.rank,
    };
    plan.rows.iter().map(|row| (row.instance(), record(row))).collect()
}

fn row<'p>(plan: &'p Plan, name: &str) -> &'p Row {
    plan.rows.iter().find(|row| row.component == name).unwrap()
}

#[test]
fn the_order_is_by_wave_then_priority_then_name() {
    let plan = fresh(&stack(4, &["z 0", "a", "b", "m 1 > z", "c 0 > m a", "d > a"]), &History::default());
    let order: Vec<_> = plan.rows.iter().map(|r| (r.rank, r.wave, r.component.as_str())).collect();
    assert_eq!(order, [(1, 0, "z"), (2, 0, "a"), (3, 0, "b"), (4, 1, "m"), (5, 1, "d"), (6, 2, "c")]);
    assert_eq!(row(&plan, "c").after, ["a", "m"]);
}

#[test]
fn a_component_starts_when_its_own_dependencies_are_ready_not_when_the_wave_is() {
    let plan = fresh(&stack(4, &["slow", "fast", "next > fast"]), &takes(&[("slow", 900), ("fast", 100), ("next", 100)]));
    let next = row(&plan, "next");
    assert_eq!((next.starts, next.ready), (Duration::from_millis(100), Duration::from_millis(200)));
    assert_eq!(next.waited, Waited::Dependency("fast".to_owned()));
    assert_eq!(plan.expected, Duration::from_millis(900));
}

#[test]
fn the_critical_path_is_what_decides() {
    let history = takes(&[("embedder", 2980), ("worker", 620), ("scheduler", 200), ("redis", 50)]);
    let plan = fresh(&stack(6, &["embedder 0", "redis 1", "worker > embedder redis", "scheduler > worker"]), &history);
    let path: Vec<_> = plan.critical.steps.iter().map(|s| s.instance.as_str()).collect();
    assert_eq!(path, ["embedder", "worker", "scheduler"]);
    assert_eq!((plan.expected, plan.critical.queued), (Duration::from_millis(3800), Duration::ZERO));
    assert_eq!((plan.basis.boots, plan.basis.guessed.len()), (1, 0));
}

#[test]
fn slots_make_a_queue_and_the_plan_says_behind_whom() {
    let plan = fresh(&stack(1, &["a", "b", "c > a"]), &takes(&[("a", 100), ("b", 200), ("c", 50)]));
    assert_eq!(row(&plan, "b").waited, Waited::Slot("a".to_owned()));
    // The lowest rank that can start takes the slot: b (wave 0) goes before c (wave 1).
    assert_eq!((row(&plan, "c").starts, row(&plan, "c").waited.clone()), (Duration::from_millis(300), Waited::Slot("b".to_owned())));
    assert_eq!((plan.expected, plan.critical.queued), (Duration::from_millis(350), Duration::from_millis(200)));
}

#[test]
fn a_slot_is_held_until_ready_and_started_is_enough_for_some() {
    let text = "name: s
components:
  a: { chakra: root, command: [a], readiness: none }
  b: { chakra: root, command: [b], readiness: none, depends_on: { a: { condition: started } } }
";
    let plan = fresh(&resolved(text), &takes(&[("a", 500), ("b", 100)]));
    assert_eq!(row(&plan, "b").starts, Duration::ZERO);
    assert_eq!(plan.expected, Duration::from_millis(500));
}

#[test]
fn the_median_boot_counts_and_a_guess_is_called_one() {
    let mut history = takes(&[("a", 1)]);
    history.takes.insert("a".to_owned(), [300, 100, 9000, 200, 250].map(Duration::from_millis).to_vec());
    let plan = fresh(&stack(4, &["a", "b"]), &history);
    assert_eq!(row(&plan, "a").takes, Some(Duration::from_millis(250)));
    assert_eq!(row(&plan, "b").takes, None);
    assert_eq!((plan.basis.boots, plan.basis.guessed.as_slice()), (5, &["b".to_owned()][..]));
    assert_eq!(plan.expected, razar_stack::TAKES_GUESS);
}

#[test]
fn a_second_plan_of_the_same_changes_nothing() {
    let stack = stack(4, &["a", "b > a"]);
    let first = fresh(&stack, &History::default());
    let second = plan(&stack, &nodes(&["a"]), &History::default(), &carried_out(&first)).unwrap();
    assert!(!second.changes());
    assert!(second.rows.iter().all(|r| r.change == Change::Keep && r.generation == 1));
    assert_eq!((second.expected, second.critical.steps.len()), (Duration::ZERO, 0));
}

#[test]
fn only_what_changed_is_touched_and_what_left_stops_in_reverse_rank() {
    let running = carried_out(&fresh(&stack(4, &["a", "b > a", "gone", "left > gone"]), &History::default()));
    let next = plan(&stack(4, &["a 1", "b", "new"]), &nodes(&["a"]), &takes(&[("b", 70), ("new", 40)]), &running).unwrap();
    assert_eq!((row(&next, "a").change, row(&next, "a").generation), (Change::Keep, 1));
    assert_eq!((row(&next, "b").change, row(&next, "b").generation), (Change::Update, 2));
    assert_eq!((row(&next, "new").change, row(&next, "new").generation), (Change::Start, 1));
    assert_eq!(next.stops.iter().map(|s| s.component.as_str()).collect::<Vec<_>>(), ["left", "gone"]);
    assert_eq!(next.counts(), (2, 2, 1));
    assert_eq!((row(&next, "b").waited.clone(), next.expected), (Waited::Nothing, Duration::from_millis(70)));
    assert!(row(&next, "b").why.ends_with("its specification changed"), "{}", row(&next, "b").why);
}

#[test]
fn what_was_stopped_starts_again_with_a_new_generation() {
    let stack = stack(4, &["a"]);
    let mut running = carried_out(&fresh(&stack, &History::default()));
    running.values_mut().for_each(|r| (r.wanted, r.generation) = (false, 4));
    let again = plan(&stack, &nodes(&["a"]), &History::default(), &running).unwrap();
    assert_eq!((again.rows[0].change, again.rows[0].generation), (Change::Start, 5));
}

#[test]
fn instances_spread_over_nodes_and_stay_where_they_are() {
    let text = "name: s
components:
  gpu-one: { chakra: root, command: [a], readiness: none, node: { labels: { gpu: true } } }
  many: { chakra: root, command: [a], readiness: none, replicas: 4 }
";
    let stack = resolved(text);
    let mut both = nodes(&["b", "a"]);
    both[0].labels.insert("gpu".to_owned(), "true".to_owned());
    let first = plan(&stack, &both, &History::default(), &BTreeMap::new()).unwrap();
    let placed: Vec<_> = first.rows.iter().map(|r| format!("{} {}: {}", r.instance(), r.node, r.why)).collect();
    assert_eq!(
        placed,
        [
            "gpu-one b: P5; the only node with gpu=true",
            "many a: P5; fewest instances (0)",
            "many.1 a: P5; fewest instances (1)",
            "many.2 b: P5; fewest instances (1)",
            "many.3 a: P5; fewest instances (2)",
        ]
    );
    let mut three = both.clone();
    three.extend(nodes(&["c"]));
    let second = plan(&stack, &three, &History::default(), &carried_out(&first)).unwrap();
    assert!(!second.changes(), "a node that joins moves nothing");
    let alone = plan(&stack, &nodes(&["b"])[..], &History::default(), &carried_out(&first));
    assert!(matches!(alone, Err(PlanError::NoMatch { .. })), "b lost its label");
    let away = plan(&stack, &both[..1], &History::default(), &carried_out(&first)).unwrap();
    assert_eq!(away.rows[1].why, "P5; stays on a, which is away");
    assert!(!away.changes(), "what holds state is not doubled");
}

#[test]
fn fewer_replicas_stop_the_last_ones() {
    let text = |n: u32| format!("name: s\ncomponents:\n  many: {{ chakra: root, command: [a], readiness: none, replicas: {n} }}\n");
    let running = carried_out(&fresh(&resolved(&text(4)), &History::default()));
    let next = plan(&resolved(&text(2)), &nodes(&["a"]), &History::default(), &running).unwrap();
    assert_eq!(next.stops.iter().map(|s| s.ordinal).collect::<Vec<_>>(), [3, 2]);
    assert!(next.rows.iter().all(|r| r.change == Change::Keep), "the others run on");
}

#[test]
fn there_is_no_plan_without_a_node_or_with_a_circle() {
    let stack = stack(4, &["a", "b > a"]);
    let none = plan(&stack, &[], &History::default(), &BTreeMap::new()).unwrap_err();
    assert_eq!(none.to_string(), "no node has joined");
    let mut circle = stack.clone();
    circle.components[0].depends_on = vec![v1::Dependency { component: "b".to_owned(), required: true, ..v1::Dependency::default() }];
    let error = plan(&circle, &nodes(&["a"]), &History::default(), &BTreeMap::new()).unwrap_err();
    assert_eq!(error.to_string(), "these wait for each other: a, b");
    let mut missing = stack;
    missing.components.remove(0);
    let error = plan(&missing, &nodes(&["a"]), &History::default(), &BTreeMap::new()).unwrap_err();
    assert_eq!(error.to_string(), "b needs a, which is not in the profile");
}

#[test]
fn records_carry_all_that_a_node_needs() {
    let stack = stack(3, &["a", "b > a"]);
    let plan = fresh(&stack, &History::default());
    let epochs = BTreeMap::from([("a".to_owned(), "e7".to_owned())]);
    let records = plan.desired(&stack, &epochs, "m1", true);
    let b = &records[1];
    assert_eq!(b.instance, Some(v1::InstanceId { component: "b".to_owned(), ordinal: 0 }));
    assert_eq!((b.node.as_str(), b.node_epoch.as_str(), b.generation, b.rank, b.wave), ("a", "e7", 1, 2, 1));
    assert_eq!((b.mode(), b.parallel_starts, b.stack.as_str(), b.mission_id.as_str(), b.fresh), (v1::RunMode::Run, 3, "s", "m1", true));
    assert_eq!(b.stack_revision, stack.revision);
    assert_eq!(b.spec_hash, razar_stack::spec_hash(b.spec.as_ref().unwrap()));
}

#[test]
fn the_plan_is_plain_json() {
    let plan = fresh(&stack(1, &["a"]), &takes(&[("a", 1500)]));
    let json = plan.to_json();
    assert!(json.contains(r#""takes":"1.500s","change":"start","generation":1"#), "{json}");
    assert!(json.contains(r#""expected":"1.500s","critical":{"steps":[{"instance":"a","takes":"1.500s","queued":"0.000s"}]"#), "{json}");
}
