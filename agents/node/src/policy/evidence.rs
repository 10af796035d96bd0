//! Evidence of a hang: what one failed liveness window was, by the kernel's view of the process tree at both of its ends, and
//! when a row of windows amounts to a hang. Starvation is no hang, and one signal is no evidence.

use std::time::Duration;

use razar_bus_schema::v1::HangWindow;

/// Windows busy or waiting for the disk count a tenth of those asleep: working hard is a weaker sign.
const BUSY_FACTOR: u32 = 10;
/// CPU time burnt since the last answer that amounts to a hang by itself.
const CPU_WITHOUT_ANSWER: Duration = Duration::from_secs(10);
/// Share of the timeout by which the node's own timer may be late before the window is void: 1/5.
const LATE_DIVISOR: u32 = 5;

/// One task (thread) at one end of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Thread id.
    pub tid: u32,
    /// State letter of /proc (`R`, `S`, `D`, `T`, `t`, `Z`…).
    pub state: char,
    /// Time on a CPU, nanoseconds.
    pub run_ns: u64,
    /// Time waited for a CPU, nanoseconds.
    pub delay_ns: u64,
}

/// A process tree at one end of a window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// Living tasks of the component, its descendants and known orphans.
    pub tasks: Vec<Task>,
    /// A debugger is attached to one of them.
    pub traced: bool,
}

/// One failed liveness probe with both samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// At its beginning.
    pub before: Sample,
    /// At its end.
    pub after: Sample,
    /// Timeout that was asked for.
    pub timeout: Duration,
    /// Length that it had by the node's clock.
    pub lasted: Duration,
}

/// What a window was, with the figures it was told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Its kind.
    pub kind: HangWindow,
    /// Run time of the tree in it.
    pub run: Duration,
    /// Run delay of the tree in it.
    pub delay: Duration,
    /// Tasks at its end.
    pub tasks: u32,
}

/// Says what a window was; the first match wins.
#[must_use]
pub fn classify(window: &Window) -> Verdict {
    let (mut run_ns, mut delay_ns) = (0_u64, 0_u64);
    let (mut waits_unserved, mut on_disk) = (false, false);
    for after in &window.after.tasks {
        let before = window.before.tasks.iter().find(|t| t.tid == after.tid);
        run_ns = run_ns.saturating_add(after.run_ns.saturating_sub(before.map_or(0, |b| b.run_ns)));
        delay_ns = delay_ns.saturating_add(after.delay_ns.saturating_sub(before.map_or(0, |b| b.delay_ns)));
        if let Some(before) = before {
            let still = before.run_ns == after.run_ns && before.delay_ns == after.delay_ns;
            waits_unserved |= before.state == 'R' && after.state == 'R' && still;
            on_disk |= before.state == 'D' && after.state == 'D';
        }
    }
    let (run, delay) = (Duration::from_nanos(run_ns), Duration::from_nanos(delay_ns));
    let idle = run.saturating_mul(100) < window.lasted;
    let starved = waits_unserved || (delay >= run && delay.saturating_mul(4) > window.lasted);
    let all_stopped = {
        let mut living = window.after.tasks.iter().filter(|t| t.state != 'Z' && t.state != 'X').peekable();
        let before_stopped = window.before.tasks.iter().filter(|t| t.state != 'Z' && t.state != 'X').all(|t| t.state == 'T');
        living.peek().is_some() && living.all(|t| t.state == 'T') && before_stopped
    };
    let kind = if window.lasted > window.timeout + window.timeout / LATE_DIVISOR {
        HangWindow::Void
    } else if window.before.traced || window.after.traced {
        HangWindow::Traced
    } else if all_stopped {
        HangWindow::Stopped
    } else if starved {
        HangWindow::Starved
    } else if on_disk && idle {
        HangWindow::Disk
    } else if idle {
        HangWindow::Asleep
    } else {
        HangWindow::Busy
    };
    Verdict { kind, run, delay, tasks: u32::try_from(window.after.tasks.len()).unwrap_or(u32::MAX) }
}

/// The row of failed windows of one incarnation; an answer clears it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HangRow {
    asleep: u32,
    counted: u32,
    run: Duration,
    delay: Duration,
}

impl HangRow {
    /// The component answered.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// Adds a failed window, and says whether the row amounts to a hang. `threshold` is the probe's `failure_threshold`; while a
    /// dependency's condition is unmet (`blocked`) only a stopped window counts.
    pub fn add(&mut self, verdict: &Verdict, threshold: u32, blocked: bool) -> bool {
        let threshold = threshold.max(1);
        match verdict.kind {
            HangWindow::Void | HangWindow::Traced | HangWindow::Unspecified => return false,
            HangWindow::Stopped => {
                self.counted += 1;
                return true;
            }
            HangWindow::Starved | HangWindow::Disk | HangWindow::Asleep | HangWindow::Busy if blocked => return false,
            HangWindow::Starved => {}
            HangWindow::Asleep => {
                self.asleep += 1;
                self.counted += 1;
            }
            HangWindow::Disk | HangWindow::Busy => {
                self.asleep = 0;
                self.counted += 1;
            }
        }
        self.run += verdict.run;
        self.delay += verdict.delay;
        self.asleep >= threshold || self.counted >= threshold.saturating_mul(BUSY_FACTOR) || self.run >= CPU_WITHOUT_ANSWER
    }

    /// Windows that counted so far.
    #[must_use]
    pub fn windows(&self) -> u32 {
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn task(state: char, run_ms: u64, delay_ms: u64) -> Task {
        Task { tid: 1, state, run_ns: run_ms * MS, delay_ns: delay_ms * MS }
    }

    fn window(before: &[Task], after: &[Task]) -> Window {
        let lasted = Duration::from_millis(500);
        Window {
            before: Sample { tasks: before.to_vec(), traced: false },
            after: Sample { tasks: after.to_vec(), traced: false },
            timeout: lasted,
            lasted,
        }
    }

    fn check(before: Task, after: Task, expect: HangWindow) {
        assert_eq!(classify(&window(&[before], &[after])).kind, expect, "{before:?} {after:?}");
    }

    /// The measured looks of a failed 500 ms probe, one line each.
    #[test]
    fn windows_are_told_apart_as_measured() {
        check(task('T', 100, 0), task('T', 100, 0), HangWindow::Stopped);
        check(task('S', 100, 0), task('S', 100, 0), HangWindow::Asleep);
        check(task('R', 100, 0), task('R', 550, 50), HangWindow::Busy);
        check(task('S', 100, 0), task('S', 120, 4), HangWindow::Busy);
        check(task('R', 100, 0), task('R', 113, 500), HangWindow::Starved);
        check(task('R', 100, 0), task('R', 105, 480), HangWindow::Starved);
        check(task('R', 100, 0), task('R', 100, 0), HangWindow::Starved);
        check(task('D', 100, 0), task('D', 100, 0), HangWindow::Disk);
    }

    #[test]
    fn a_late_or_traced_window_says_nothing() {
        let mut late = window(&[task('T', 1, 1)], &[task('T', 1, 1)]);
        late.lasted = Duration::from_millis(601);
        assert_eq!(classify(&late).kind, HangWindow::Void);
        let mut traced = window(&[task('T', 1, 1)], &[task('T', 1, 1)]);
        traced.after.traced = true;
        assert_eq!(classify(&traced).kind, HangWindow::Traced);
    }

    #[test]
    fn a_stopped_main_thread_beside_a_running_one_is_not_stopped() {
        let before = [task('T', 1, 0), Task { tid: 2, ..task('S', 1, 0) }];
        assert_eq!(classify(&window(&before, &before)).kind, HangWindow::Asleep);
    }

    fn verdict(kind: HangWindow, run_ms: u64) -> Verdict {
        Verdict { kind, run: Duration::from_millis(run_ms), delay: Duration::ZERO, tasks: 1 }
    }

    fn windows_until_hung(kinds: &[HangWindow], run_ms: u64, blocked: bool) -> Option<usize> {
        let mut row = HangRow::default();
        kinds.iter().cycle().take(1000).position(|k| row.add(&verdict(*k, run_ms), 3, blocked)).map(|at| at + 1)
    }

    #[test]
    fn rows_amount_to_a_hang_as_the_rule_says() {
        use HangWindow::{Asleep, Busy, Disk, Starved, Stopped, Traced, Void};
        let cases: &[(&[HangWindow], u64, bool, Option<usize>)] = &[
            (&[Stopped], 0, false, Some(1)),
            (&[Stopped], 0, true, Some(1)),
            (&[Asleep], 0, false, Some(3)),
            (&[Asleep], 0, true, None),
            (&[Asleep, Starved, Void], 0, false, Some(7)),
            (&[Busy], 1, false, Some(30)),
            (&[Disk], 0, false, Some(30)),
            (&[Busy, Asleep], 1, false, Some(30)),
            (&[Busy], 1_000, false, Some(10)),
            (&[Starved], 1_000, false, Some(10)),
            (&[Starved], 0, false, None),
            (&[Void], 9_999, false, None),
            (&[Traced], 9_999, false, None),
        ];
        for (kinds, run_ms, blocked, expect) in cases {
            assert_eq!(windows_until_hung(kinds, *run_ms, *blocked), *expect, "{kinds:?} {run_ms} {blocked}");
        }
    }

    #[test]
    fn an_answer_clears_the_row() {
        let mut row = HangRow::default();
        let asleep = verdict(HangWindow::Asleep, 0);
        assert!(!row.add(&asleep, 3, false) && !row.add(&asleep, 3, false));
        row.answered();
        assert!(!row.add(&asleep, 3, false) && !row.add(&asleep, 3, false) && row.add(&asleep, 3, false));
    }

    proptest! {
        #[test]
        fn a_tree_that_gets_no_cpu_is_never_hung(windows in proptest::collection::vec((0_u64..3, 250_u64..900), 1..200)) {
            let mut row = HangRow::default();
            for (run, delay) in windows {
                let seen = classify(&window(&[task('R', 0, 0)], &[task('R', run, delay)]));
                prop_assert!(!row.add(&seen, 3, false));
            }
        }
    }
}
