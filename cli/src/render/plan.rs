//! The plan as a table: order, node and reason of each row, then what changes, how long it should take and what decides that.

use std::collections::BTreeSet;

use razar_stack::{Change, Plan, Row, Waited};

use super::{
    text::{columns, escape},
    time::seconds,
};

/// The table and the sentence that ends it. With something running, rows that stay as they are show only when `all` are asked for.
pub(crate) fn table(plan: &Plan, all: bool) -> Vec<String> {
    let running = plan.rows.iter().any(|r| r.change != Change::Start) || !plan.stops.is_empty();
    let changes = plan.rows.iter().any(|r| r.change != Change::Keep) || !plan.stops.is_empty();
    let shown: Vec<&Row> = plan.rows.iter().filter(|r| all || !running || r.change != Change::Keep).collect();
    let mut lines = Vec::new();
    if !shown.is_empty() || !plan.stops.is_empty() {
        let mut rows = vec![["RANK", "WAVE", "COMPONENT", "CHAKRA", "NODE", "AFTER", "TAKES", "WHY"].map(str::to_owned).to_vec()];
        rows.extend(shown.iter().map(|r| cells(r, running && changes)));
        rows.extend(plan.stops.iter().map(|s| {
            let name = razar_bus_schema::ids::Instance::new(s.component.clone(), s.ordinal).to_string();
            let none = String::new;
            vec![s.rank.to_string(), none(), name, none(), s.node.clone(), none(), none(), "stop: no longer in the plan".to_owned()]
        }));
        lines.extend(columns(&rows));
    }
    lines.push(verdict(plan, running));
    lines
}

fn cells(row: &Row, with_change: bool) -> Vec<String> {
    let change = match row.change {
        _ if !with_change => "",
        Change::Start => "start: ",
        Change::Update => "update: ",
        Change::Keep => "keep: ",
    };
    let slot = match &row.waited {
        Waited::Slot(of) => format!("; waits for the slot of {}", escape(of)),
        Waited::Nothing | Waited::Dependency(_) => String::new(),
    };
    vec![
        row.rank.to_string(),
        (row.wave + 1).to_string(),
        row.instance().to_string(),
        escape(&row.chakra),
        escape(&row.node),
        row.after.join(" "),
        row.takes.map(seconds).unwrap_or_default(),
        format!("{change}{}{slot}", escape(&row.why)),
    ]
}

fn verdict(plan: &Plan, running: bool) -> String {
    let count = |change| plan.rows.iter().filter(|r| r.change == change).count();
    let (start, update, keep, stop) = (count(Change::Start), count(Change::Update), count(Change::Keep), plan.stops.len());
    if start + update + stop == 0 {
        return format!("nothing to change: {} as planned", super::text::count(keep, "component"));
    }
    let mut changes = format!("{start} to start");
    if update > 0 {
        changes.push_str(&format!(", {update} to update"));
    }
    changes.push_str(&format!(", {stop} to stop"));
    if running {
        changes.push_str(&format!(", {keep} kept"));
    }
    let moving: BTreeSet<&str> = plan.rows.iter().filter(|r| r.change != Change::Keep).map(|r| r.component.as_str()).collect();
    if moving.is_empty() {
        return changes;
    }
    let guessed = plan.basis.guessed.iter().filter(|g| moving.contains(g.as_str())).count();
    let basis = match (plan.basis.boots, guessed) {
        (0, _) => format!("no boot is known; {} guessed for each", seconds(razar_stack::TAKES_GUESS)),
        (boots, 0) => format!("median of {}", super::text::count(boots, "boot")),
        (boots, n) => format!("median of {}; {n} guessed", super::text::count(boots, "boot")),
    };
    let path: Vec<_> = plan.critical.steps.iter().map(|s| escape(&s.instance)).collect();
    let queued = plan.critical.queued;
    let queued = if queued.is_zero() { String::new() } else { format!("; {} of it queued for a slot", seconds(queued)) };
    format!("{changes}; {} expected ({basis}): {}{queued}", seconds(plan.expected), path.join(" > "))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, time::Duration};

    use razar_bus_schema::ids::Instance;
    use razar_stack::{History, NodeFacts, Running, Source, load, plan, spec_hash};

    use super::*;

    const STACK: &str = "name: demo
components:
  db: { chakra: heart, priority: 1, command: [/bin/db], readiness: none }
  api: { chakra: throat, command: [/bin/api], readiness: none, depends_on: { db: { condition: ready } } }
";

    fn planned(history: &History, running: impl Fn(&razar_stack::Resolved) -> BTreeMap<Instance, Running>) -> Plan {
        let source = Source { file: "razar.yaml", text: STACK, dir: Path::new("/srv") };
        let resolved = load(&source, &|_| None).unwrap().document.resolve("").unwrap();
        let node = NodeFacts { name: "a".to_owned(), cpus: 2, ..NodeFacts::default() };
        plan(&resolved, &[node], history, &running(&resolved)).unwrap()
    }

    #[test]
    fn a_first_plan_is_a_table_with_a_guess() {
        let lines = table(&planned(&History::default(), |_| BTreeMap::new()), false);
        assert_eq!(
            lines,
            [
                "RANK WAVE COMPONENT CHAKRA NODE AFTER TAKES WHY",
                "1    1    db        heart  a    -     -     P1; the only node",
                "2    2    api       throat a    db    -     P5; the only node",
                "2 to start, 0 to stop; 2.00s expected (no boot is known; 1.00s guessed for each): db > api",
            ]
        );
    }

    #[test]
    fn a_plan_beside_what_runs_is_the_difference() {
        let takes = [("db", 400), ("api", 300)].map(|(n, ms)| (n.to_owned(), vec![Duration::from_millis(ms); 5]));
        let history = History { takes: takes.into_iter().collect() };
        let running = |resolved: &razar_stack::Resolved| {
            let hash = spec_hash(resolved.component("db").unwrap());
            let record = |spec_hash: String, rank| Running { node: "a".to_owned(), generation: 3, spec_hash, wanted: true, rank };
            [("db", record(hash, 1)), ("api", record("old".to_owned(), 2)), ("gone", record("x".to_owned(), 3))]
                .map(|(n, r)| (Instance::new(n, 0), r))
                .into_iter()
                .collect()
        };
        let lines = table(&planned(&history, running), false);
        assert_eq!(lines[0], "RANK WAVE COMPONENT CHAKRA NODE AFTER TAKES WHY");
        assert!(lines[1].starts_with("2    2    api       throat a    db    0.30s update: P5; "), "{}", lines[1]);
        assert_eq!(lines[2], "3    -    gone      -      a    -     -     stop: no longer in the plan");
        assert_eq!(lines[3], "0 to start, 1 to update, 1 to stop, 1 kept; 0.30s expected (median of 5 boots): api");
    }

    #[test]
    fn nothing_to_change_is_said_so() {
        let running = |resolved: &razar_stack::Resolved| {
            let record = |name: &str, rank| {
                let spec_hash = spec_hash(resolved.component(name).unwrap());
                (Instance::new(name, 0), Running { node: "a".to_owned(), generation: 1, spec_hash, wanted: true, rank })
            };
            [record("db", 1), record("api", 2)].into_iter().collect()
        };
        assert_eq!(table(&planned(&History::default(), running), false), ["nothing to change: 2 components as planned"]);
    }
}
