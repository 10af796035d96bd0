//! The summary at the end of a boot: a row per component on a common scale, and the critical path. Pure; the model is `boot`'s.

use std::time::Duration;

use crate::{
    boot::{Boot, Lane},
    render::{text::count, time::seconds},
};

/// Widest bar, in characters.
const BAR_MAX: f64 = 40.0;

/// Rows shown unless all are asked for: what explains the boot fits on a screen.
const ROWS_MAX: usize = 8;

/// The summary's lines.
pub(crate) fn summary(boot: &Boot, all_rows: bool) -> Vec<String> {
    let path = critical_path(boot);
    let mut lines = vec![format!("{}  (. waits  : queued  = starting  x exit)", headline(boot))];
    lines.extend(rows(boot, &path, all_rows));
    if let Some(told) = path_told(boot, &path) {
        lines.push(told);
    }
    lines
}

/// `all 12 components ready in 3.80s`, or what is missing.
pub(crate) fn headline(boot: &Boot) -> String {
    let (total, ready, took) = (boot.lanes().len(), boot.ready_count(), seconds(boot.took()));
    if let Some(ended) = boot.ended().filter(|m| m.outcome == "complete" && total == 0) {
        return format!("nothing to start: {} ready", count(ended.ready.len(), "component"));
    }
    let Some(ended) = boot.ended() else { return format!("{ready} of {total} components ready after {took}") };
    if ended.outcome == "complete" && ready == total {
        return format!("all {} ready in {took}", count(total, "component"));
    }
    let mut parts = vec![format!("{ready} of {} ready in {took}", count(total, "component"))];
    for (names, what) in [(&ended.failed, "failed"), (&ended.blocked, "blocked"), (&ended.quarantined, "quarantined")] {
        if !names.is_empty() {
            parts.push(format!("{what} {}", crate::render::text::escape(&names.join(" "))));
        }
    }
    if ended.outcome == "timed_out" || ended.outcome == "superseded" {
        parts.push(ended.outcome.replace('_', " "));
    }
    parts.join("; ")
}

/// Rows in order of the first start: the critical path, failed tries, the longest queues; the rest is counted.
fn rows(boot: &Boot, path: &[String], all_rows: bool) -> Vec<String> {
    let step = step(boot.took().as_secs_f64());
    let mut started: Vec<_> = boot.lanes().iter().filter(|(_, lane)| lane.first_start().is_some()).collect();
    let total = started.len();
    if !all_rows {
        started.sort_by_key(|(name, lane)| {
            (!path.contains(name), lane.failed_part().is_zero(), std::cmp::Reverse(lane.queued()), std::cmp::Reverse(lane.took()))
        });
        started.truncate(ROWS_MAX);
    }
    started.sort_by_key(|(name, lane)| (lane.first_start(), (*name).clone()));
    let width = started.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let more = total - started.len();
    let count = started.len();
    let row = |(at, (name, lane)): (usize, (&String, &Lane))| {
        let took = lane.took().map_or_else(|| "-".to_owned(), seconds);
        let more = if at + 1 == count && more > 0 { format!("  ({more} more)") } else { String::new() };
        format!(" {name:<width$} {took:>5} {}{more}", bar(lane, step))
    };
    started.into_iter().enumerate().map(row).collect()
}

/// Seconds a character stands for: 1, 2 or 5 times a power of ten, so that the whole fits into [`BAR_MAX`].
fn step(total: f64) -> f64 {
    let mut power = 0.001;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if total <= power * factor * BAR_MAX || power > 1e6 {
                return power * factor;
            }
        }
        power *= 10.0;
    }
}

fn bar(lane: &Lane, step: f64) -> String {
    let column = |d: Duration| (d.as_secs_f64() / step).round() as usize;
    let mut bar: Vec<char> = Vec::new();
    let fill = |from: usize, to: usize, c: char, bar: &mut Vec<char>| {
        if bar.len() < to {
            bar.resize(to, ' ');
        }
        bar.iter_mut().take(to).skip(from).for_each(|cell| *cell = c);
    };
    let mut free_from = Duration::ZERO;
    for (at, one) in lane.tries.iter().enumerate() {
        let queue_from = one.started.saturating_sub(one.queued).max(free_from);
        fill(column(free_from), column(queue_from), '.', &mut bar);
        fill(column(queue_from), column(one.started), ':', &mut bar);
        let next = lane.tries.get(at + 1).map(|t| t.started);
        let end = one.ready.or(one.exited).or(next).unwrap_or(one.started);
        fill(column(one.started), column(end).max(column(one.started) + 1), '=', &mut bar);
        free_from = one.exited.unwrap_or(end);
    }
    for exit in lane.tries.iter().filter_map(|t| t.exited) {
        let at = (exit.as_secs_f64() / step).floor() as usize;
        fill(at, at + 1, 'x', &mut bar);
    }
    bar.into_iter().collect()
}

/// Names from the first to the last: each started when the one before it, the last of its dependencies, became ready.
pub(crate) fn critical_path(boot: &Boot) -> Vec<String> {
    let lanes = boot.lanes();
    let last = lanes.iter().filter_map(|(name, lane)| Some((lane.ready_at()?, name))).max();
    let mut path: Vec<String> = Vec::new();
    let mut next = last.map(|(_, name)| name);
    while let Some(name) = next {
        if path.contains(name) {
            break;
        }
        path.push(name.clone());
        let needs = lanes.get(name).map(|lane| lane.needs.as_slice()).unwrap_or_default();
        let ready = |need: &String| lanes.get_key_value(need).and_then(|(key, lane)| Some((lane.ready_at()?, key)));
        next = needs.iter().filter_map(ready).max().map(|(_, key)| key);
    }
    path.reverse();
    path
}

fn path_told(boot: &Boot, path: &[String]) -> Option<String> {
    let one = |name: &String| {
        let lane = boot.lanes().get(name)?;
        let failed = lane.failed_part();
        let note = match lane.tries.iter().position(|t| t.ready.is_some()).unwrap_or(0) {
            0 => String::new(),
            1 => format!(" ({} a failed start)", seconds(failed)),
            n => format!(" ({} {n} failed starts)", seconds(failed)),
        };
        Some(format!("{name} {}{note}", seconds(lane.took()?)))
    };
    let told: Vec<_> = path.iter().filter_map(one).collect();
    let queued: Duration = path.iter().filter_map(|name| boot.lanes().get(name)).map(Lane::queued).sum();
    let queue = if queued < Duration::from_millis(5) { "no queue on it".to_owned() } else { format!("{} queued on it", seconds(queued)) };
    (!told.is_empty()).then(|| format!("critical path: {}; {queue}", told.join(" > ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::script::*;

    #[test]
    fn a_boot_reads_as_a_waterfall() {
        let (boot, _) = small_boot();
        assert_eq!(
            summary(&boot, false),
            [
                "all 5 components ready in 3.80s  (. waits  : queued  = starting  x exit)",
                " embedder     2.98s ===x==========================",
                " postgres     0.40s ====",
                " memory-store 0.50s .......:::::=====",
                " worker       0.62s ..............................======",
                " scheduler    0.20s ....................................==",
                "critical path: embedder 2.98s (0.38s a failed start) > worker 0.62s > scheduler 0.20s; no queue on it",
            ]
        );
    }

    #[test]
    fn an_incomplete_boot_names_what_is_missing() {
        let mut boot = Boot::new("m1", at(0));
        for e in [mission(&["api", "db"]), started(0, "db", 0, 0), exited(100, "db", ""), completed(90_000, &[], &["db"])] {
            boot.apply(&e);
        }
        let lines = summary(&boot, false);
        assert_eq!(lines[0], "0 of 2 components ready in 1m30s; failed db  (. waits  : queued  = starting  x exit)");
        assert_eq!(lines[1], " db     - x");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn many_components_are_cut_to_those_that_explain_the_boot() {
        let names: Vec<String> = (0..20).map(|n| format!("c{n:02}")).collect();
        let refs: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut boot = Boot::new("m1", at(0));
        boot.apply(&mission(&refs));
        for (n, name) in refs.iter().enumerate() {
            boot.apply(&started(0, name, 0, 0));
            boot.apply(&ready(100 + n as u64, name, 100 + n as u64));
        }
        boot.apply(&completed(119, &refs, &[]));
        let lines = summary(&boot, false);
        assert_eq!(lines.len(), 2 + ROWS_MAX);
        assert!(lines[ROWS_MAX].ends_with("  (12 more)"), "{}", lines[ROWS_MAX]);
        assert_eq!(summary(&boot, true).len(), 22);
    }
}
