//! Properties: no text panics, every mistake has a place, a plan is a valid order and a possible course, the same input gives the
//! same bytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use proptest::prelude::*;
use razar_bus_schema::v1;
use razar_stack::{Change, History, NodeFacts, Plan, Resolved, Running, Source, StackDocument, load, plan};

/// Bits of stack files, right and wrong, to be put together at random.
const BITS: &[&str] = &[
    "name: s\n",
    "components:\n",
    "  a:\n",
    "  b: ",
    "    chakra: root\n",
    "    command: [x]\n",
    "    readiness: none\n",
    "    depends_on: [b]\n",
    "{ chakra: heart, command: [y], readiness: { http: { port: 80 } }, depends_on: { a: { condition: completed } } }\n",
    "profiles:\n",
    "  p: { include: [a, b], extends: p }\n",
    "mesh: { parallel_starts: 0 }\n",
    "defaults: { restart: { backoff: { base: 9999h } } }\n",
    "chakras: ",
    "&x",
    "*x",
    "<<: *x\n",
    "- ",
    "? ",
    ": ",
    "|\n",
    "\"",
    "'",
    "${",
    "${A:-",
    "}",
    "]",
    "[",
    "{",
    "#",
    "\t",
    "\n",
    "  ",
    "---\n",
    "...\n",
    "!!str ",
    "\u{0}",
    "é",
    "\r\n",
    "%YAML 1.2\n",
    "    ports: [80, 80]\n",
    "    replicas: 4294967296\n",
    "    startup: { log: { pattern: '(((' } }\n",
    "    state: [/]\n",
    "    restart: { backoff: { factor: 1e308, max: 1d } }\n",
];

fn said(text: &str) -> Result<StackDocument, razar_stack::Diagnostics> {
    load(&Source { file: "f", text, dir: Path::new("/srv") }, &|_| None).map(|loaded| loaded.document)
}

/// A stack without circles: each component depends on some before it, by index; with priority and time.
#[derive(Debug, Clone)]
struct Graph {
    components: Vec<(u32, u64, BTreeSet<usize>)>,
    slots: u32,
}

fn graphs() -> impl Strategy<Value = Graph> {
    let component = (0_u32..4, 0_u64..50, prop::collection::btree_set(0_usize..40, 0..4));
    (prop::collection::vec(component, 1..40), 1_u32..6).prop_map(|(mut components, slots)| {
        for (index, (_, _, on)) in components.iter_mut().enumerate() {
            on.retain(|other| *other < index);
        }
        Graph { components, slots }
    })
}

fn name(index: usize) -> String {
    // Names whose order is not that of the dependencies.
    format!("c{:02}", (index * 17) % 41)
}

impl Graph {
    fn resolved(&self) -> Resolved {
        let mut components: Vec<v1::ComponentSpec> = (self.components.iter().enumerate())
            .map(|(index, (priority, _, on))| v1::ComponentSpec {
                name: name(index),
                priority: *priority,
                replicas: 1,
                depends_on: on
                    .iter()
                    .map(|other| v1::Dependency { component: name(*other), required: true, condition: 2, restart: false })
                    .collect(),
                ..v1::ComponentSpec::default()
            })
            .collect();
        components.sort_by(|a, b| a.name.cmp(&b.name));
        Resolved { name: "s".to_owned(), components, parallel_starts: self.slots, ..Resolved::default() }
    }

    fn history(&self) -> History {
        let takes = self.components.iter().enumerate().map(|(i, (_, millis, _))| (name(i), vec![Duration::from_millis(*millis)]));
        History { takes: takes.collect() }
    }

    fn plan(&self) -> Plan {
        let node = NodeFacts { name: "a".to_owned(), ..NodeFacts::default() };
        plan(&self.resolved(), &[node], &self.history(), &BTreeMap::new()).unwrap()
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = said(&text).map_err(|found| found.to_string());
    }

    #[test]
    fn no_nearly_right_file_panics_and_every_mistake_has_a_place(bits in prop::collection::vec(prop::sample::select(BITS), 0..40)) {
        let text = format!("name: s\ncomponents:\n{}", bits.concat());
        if let Err(found) = said(&text) {
            prop_assert!(found.has_errors());
            let lines = u32::try_from(text.lines().count()).unwrap() + 1;
            for one in found.all() {
                prop_assert!(one.at.line >= 1 && one.at.line <= lines, "{one}");
                prop_assert!(one.at.column >= 1, "{one}");
                prop_assert!(!one.to_string().contains('\0'));
            }
            prop_assert_eq!(found.to_string(), said(&text).unwrap_err().to_string());
        }
    }

    #[test]
    fn no_bytes_are_a_stored_stack_by_accident(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(StackDocument::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_plan_is_a_valid_order(graph in graphs()) {
        let plan = graph.plan();
        let rank: BTreeMap<&str, (u32, u32)> = plan.rows.iter().map(|r| (r.component.as_str(), (r.rank, r.wave))).collect();
        prop_assert_eq!(plan.rows.len(), graph.components.len());
        for (index, row) in plan.rows.iter().enumerate() {
            prop_assert_eq!(row.rank as usize, index + 1);
            let deepest = row.after.iter().map(|on| rank[on.as_str()].1 + 1).max().unwrap_or(0);
            prop_assert_eq!(row.wave, deepest);
            for on in &row.after {
                prop_assert!(rank[on.as_str()].0 < row.rank);
            }
        }
        for pair in plan.rows.windows(2) {
            let key = |r: &razar_stack::Row| (r.wave, r.priority, r.component.clone());
            prop_assert!(key(&pair[0]) < key(&pair[1]));
        }
    }

    #[test]
    fn the_expected_course_is_possible_and_wastes_no_slot(graph in graphs()) {
        let plan = graph.plan();
        let ready: BTreeMap<&str, Duration> = plan.rows.iter().map(|r| (r.component.as_str(), r.ready)).collect();
        for row in &plan.rows {
            let startable = row.after.iter().map(|on| ready[on.as_str()]).max().unwrap_or_default();
            prop_assert!(row.starts >= startable, "{} starts before it can", row.component);
            prop_assert_eq!(row.ready, row.starts + row.takes.unwrap());
            let busy = |at: Duration| plan.rows.iter().filter(|r| r.starts <= at && at < r.ready).count();
            prop_assert!(busy(row.starts) <= graph.slots as usize);
            if row.starts > startable {
                // It queued: the moment before, every slot was taken.
                prop_assert!(busy(row.starts - Duration::from_nanos(1)) >= graph.slots as usize, "{} waits beside a free slot", row.component);
            }
        }
        let last = plan.rows.iter().map(|r| r.ready).max().unwrap();
        prop_assert_eq!(plan.expected, last);
        let on_path: Duration = plan.critical.steps.iter().map(|s| s.takes + s.queued).sum();
        prop_assert_eq!(on_path, last, "the critical path is the whole time");
    }

    #[test]
    fn the_same_input_gives_the_same_bytes(graph in graphs()) {
        prop_assert_eq!(graph.plan().to_json(), graph.plan().to_json());
        let mut shuffled = graph.resolved();
        shuffled.components.reverse();
        let node = NodeFacts { name: "a".to_owned(), ..NodeFacts::default() };
        let again = plan(&shuffled, &[node], &graph.history(), &BTreeMap::new()).unwrap();
        prop_assert_eq!(again.to_json(), graph.plan().to_json());
    }

    #[test]
    fn what_was_carried_out_is_kept_and_a_smaller_stack_only_stops(graph in graphs(), cut in 0_usize..40) {
        let first = graph.plan();
        let running: BTreeMap<_, _> = first.rows.iter().map(|r| (r.instance(), Running {
            node: r.node.clone(), generation: r.generation, spec_hash: r.spec_hash.clone(), wanted: true, rank: r.rank,
        })).collect();
        let mut smaller = graph.clone();
        smaller.components.truncate(cut.max(1));
        let node = NodeFacts { name: "a".to_owned(), ..NodeFacts::default() };
        let next = plan(&smaller.resolved(), &[node], &History::default(), &running).unwrap();
        prop_assert!(next.rows.iter().all(|r| r.change == Change::Keep));
        prop_assert_eq!(next.rows.len() + next.stops.len(), first.rows.len());
        prop_assert!(next.stops.windows(2).all(|s| s[0].rank > s[1].rank));
    }
}
