//! The expected course of a boot: the node's own rule (lowest rank that could start takes the next slot) played with the
//! times of earlier boots, and the chain that decides how long it takes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use razar_bus_schema::v1;

use super::{Change, Path, Row, Step, TAKES_GUESS, Waited};

/// What is expected of one row.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) starts: Duration,
    pub(super) ready: Duration,
    pub(super) waited: Waited,
    /// Row whose condition came last.
    released_by: Option<usize>,
    startable: Duration,
}

struct Course<'a> {
    rows: &'a [Row],
    out: Vec<Expected>,
    unmet: Vec<usize>,
    /// Per row: (dependent row, whether `started` is enough).
    dependents: Vec<Vec<(usize, bool)>>,
    startable: BTreeMap<&'a str, BTreeSet<usize>>,
    slots: BTreeMap<&'a str, u32>,
    freed_by: BTreeMap<&'a str, usize>,
    finishing: BinaryHeap<Reverse<(Duration, usize)>>,
}

/// Plays the boot of `rows` (in order of rank) with `slots` on each node; rows are never more than the plan's bound.
pub(super) fn course(components: &[v1::ComponentSpec], rows: &[Row], slots: u32) -> Vec<Expected> {
    let specs: BTreeMap<&str, &v1::ComponentSpec> = components.iter().map(|c| (c.name.as_str(), c)).collect();
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        places.entry(&row.component).or_default().push(index);
    }
    let nothing =
        Expected { starts: Duration::ZERO, ready: Duration::ZERO, waited: Waited::Nothing, released_by: None, startable: Duration::ZERO };
    let mut course = Course {
        rows,
        out: vec![nothing; rows.len()],
        unmet: vec![0; rows.len()],
        dependents: vec![Vec::new(); rows.len()],
        startable: BTreeMap::new(),
        slots: rows.iter().map(|r| (r.node.as_str(), slots)).collect(),
        freed_by: BTreeMap::new(),
        finishing: BinaryHeap::new(),
    };
    for (index, row) in rows.iter().enumerate() {
        let Some(spec) = specs.get(row.component.as_str()).filter(|_| row.change != Change::Keep) else { continue };
        for on in &spec.depends_on {
            let started = on.condition == i32::from(v1::DependencyCondition::Started);
            for dependency in places.get(on.component.as_str()).map_or(&[][..], Vec::as_slice) {
                if rows.get(*dependency).is_some_and(|r| r.change != Change::Keep) {
                    course.wait(index, *dependency, started);
                }
            }
        }
    }
    course.play();
    course.out
}

impl<'a> Course<'a> {
    fn wait(&mut self, index: usize, dependency: usize, started: bool) {
        if let (Some(unmet), Some(dependents)) = (self.unmet.get_mut(index), self.dependents.get_mut(dependency)) {
            *unmet += 1;
            dependents.push((index, started));
        }
    }

    fn play(&mut self) {
        for (index, row) in self.rows.iter().enumerate() {
            if row.change != Change::Keep && self.unmet.get(index) == Some(&0) {
                self.startable.entry(&row.node).or_default().insert(index);
            }
        }
        let mut now = Duration::ZERO;
        loop {
            while let Some((node, index)) = self.next_start() {
                self.start(node, index, now);
            }
            let Some(Reverse((at, first))) = self.finishing.pop() else { return };
            now = at;
            self.finish(first, now);
            while let Some(Reverse((_, index))) = self.finishing.peek().copied().filter(|Reverse((at, _))| *at == now) {
                self.finishing.pop();
                self.finish(index, now);
            }
        }
    }

    /// The lowest rank that could start on a node with a free slot.
    fn next_start(&self) -> Option<(&'a str, usize)> {
        self.startable
            .iter()
            .filter(|(node, _)| self.slots.get(*node).is_some_and(|free| *free > 0))
            .find_map(|(node, waiting)| waiting.first().map(|index| (*node, *index)))
    }

    fn start(&mut self, node: &'a str, index: usize, now: Duration) {
        if let Some(free) = self.slots.get_mut(node) {
            *free -= 1;
        }
        if let Some(waiting) = self.startable.get_mut(node) {
            waiting.remove(&index);
        }
        let takes = self.rows.get(index).and_then(|r| r.takes).unwrap_or(TAKES_GUESS);
        let behind = self.freed_by.get(node).and_then(|i| self.rows.get(*i)).map(|r| r.instance().to_string());
        if let Some(out) = self.out.get_mut(index) {
            out.starts = now;
            out.ready = now + takes;
            out.waited = match (now > out.startable, behind, out.released_by.and_then(|i| self.rows.get(i))) {
                (true, Some(behind), _) => Waited::Slot(behind),
                (_, _, Some(dependency)) => Waited::Dependency(dependency.component.clone()),
                (_, _, None) => Waited::Nothing,
            };
        }
        self.finishing.push(Reverse((now + takes, index)));
        self.release(index, now, true);
    }

    fn finish(&mut self, index: usize, now: Duration) {
        if let Some(row) = self.rows.get(index) {
            *self.slots.entry(&row.node).or_default() += 1;
            self.freed_by.insert(&row.node, index);
        }
        self.release(index, now, false);
    }

    /// Lets go what waited for `index` to be started, or to be ready.
    fn release(&mut self, index: usize, now: Duration, started: bool) {
        let waiting = self.dependents.get(index).cloned().unwrap_or_default();
        for (dependent, _) in waiting.into_iter().filter(|(_, on_start)| *on_start == started) {
            let (Some(unmet), Some(out), Some(row)) =
                (self.unmet.get_mut(dependent), self.out.get_mut(dependent), self.rows.get(dependent))
            else {
                continue;
            };
            *unmet -= 1;
            if *unmet == 0 {
                (out.startable, out.released_by) = (now, Some(index));
                self.startable.entry(&row.node).or_default().insert(dependent);
            }
        }
    }
}

/// Expected time of the whole, and the chain of what waited for what, from the last to be ready backwards.
pub(super) fn critical(rows: &[Row], course: &[Expected]) -> (Duration, Path) {
    let last = (0..rows.len()).filter(|i| rows.get(*i).is_some_and(|r| r.change != Change::Keep));
    let ready = |i: usize| course.get(i).map_or(Duration::ZERO, |e| e.ready);
    let Some(last) = last.max_by_key(|i| (ready(*i), Reverse(*i))) else { return (Duration::ZERO, Path::default()) };
    let mut path = Path::default();
    let mut at = Some(last);
    while let Some((row, expected)) = at.and_then(|i| rows.get(i).zip(course.get(i))) {
        let queued = expected.starts.saturating_sub(expected.startable);
        path.queued += queued;
        path.steps.push(Step { instance: row.instance().to_string(), takes: expected.ready.saturating_sub(expected.starts), queued });
        at = expected.released_by;
    }
    path.steps.reverse();
    (ready(last), path)
}
