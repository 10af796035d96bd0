//! What was measured, as lines: floor, median, p99, ratio, target, and whether it is met. A table for people, an array for programs.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

/// Times of one measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a time.
    pub(crate) fn push(&mut self, took: Duration) {
        self.add(took.as_secs_f64() * 1e3);
    }

    /// Adds a figure in the line's own unit.
    pub(crate) fn add(&mut self, figure: f64) {
        self.0.push(figure);
        self.0.sort_by(f64::total_cmp);
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one, in milliseconds for times.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The one that 99 of 100 do not exceed; of fewer than 100 the largest.
    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    fn quantile(&self, share: f64) -> f64 {
        // Nearest rank: never a figure that was not measured.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among few samples"
        )]
        let rank = (share * self.0.len() as f64).ceil().max(1.0) as usize;
        self.0.get(rank - 1).copied().unwrap_or(f64::NAN)
    }
}

/// A line of the report.
#[derive(Debug)]
pub(crate) struct Line {
    /// What was measured.
    pub(crate) what: String,
    /// Unit of its figures.
    pub(crate) unit: &'static str,
    /// What was measured, each time.
    pub(crate) samples: Samples,
    /// What this machine allows, in the same unit; none: the target is no ratio.
    pub(crate) floor: Option<f64>,
    /// What is aimed at; empty: the line is for comparison.
    pub(crate) targets: Vec<Target>,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Median at most so many times the floor.
    Ratio(f64),
    /// Median at most so much.
    Median(f64),
    /// p99 at most so much.
    P99(f64),
    /// Largest at most so much.
    Largest(f64),
}

impl Line {
    /// A line of times.
    pub(crate) fn times(what: impl Into<String>, samples: Samples, targets: &[Target]) -> Self {
        Self { what: what.into(), unit: "ms", samples, floor: None, targets: targets.to_vec() }
    }

    /// With the floor that it is compared with.
    pub(crate) fn beside(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }

    /// A line of one figure.
    pub(crate) fn figure(what: impl Into<String>, unit: &'static str, figure: f64, most: f64) -> Self {
        let mut samples = Samples::default();
        samples.add(figure);
        Self { what: what.into(), unit, samples, floor: None, targets: vec![Target::Median(most)] }
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.samples.median() / floor)
    }

    fn met(&self, target: Target) -> bool {
        match target {
            Target::Ratio(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Target::Median(most) => self.samples.median() <= most,
            Target::P99(most) => self.samples.p99() <= most,
            Target::Largest(most) => self.samples.quantile(1.0) <= most,
        }
    }

    fn verdict(&self) -> Option<bool> {
        (!self.targets.is_empty()).then(|| self.targets.iter().all(|target| self.met(*target)))
    }

    fn targets_text(&self) -> String {
        let text = |target: &Target| match target {
            Target::Ratio(most) => format!("{most}x floor"),
            Target::Median(most) => format!("{most} {}", self.unit),
            Target::P99(most) => format!("p99 {most} {}", self.unit),
            Target::Largest(most) => format!("all {most} {}", self.unit),
        };
        self.targets.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

/// All lines.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    lines: Vec<Line>,
    failed: Vec<String>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, lines: Vec::new(), failed: Vec::new() }
    }

    /// Says what it runs on.
    pub(crate) fn machine(&self) {
        if !self.json {
            let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
            let cores = std::thread::available_parallelism().map_or(0, usize::from);
            println!("{cores} cores, load before {}", load.split(' ').take(2).collect::<Vec<_>>().join(" "));
            println!("{:<58}{:>5}{:>10}{:>10}{:>10}{:>8}  {:<24}met", "what", "n", "floor", "median", "p99", "ratio", "target (at most)");
        }
    }

    /// Takes a section's lines; a section that could not be measured is said, and the others go on.
    pub(crate) fn take(&mut self, section: &str, lines: Result<Vec<Line>>) {
        match lines {
            Ok(lines) => {
                for line in lines {
                    self.print(&line);
                    self.lines.push(line);
                }
            }
            Err(error) => {
                eprintln!("{section}: not measured: {error:#}");
                self.failed.push(format!("{section}: {error:#}"));
            }
        }
    }

    fn print(&self, line: &Line) {
        if self.json {
            return;
        }
        let number = |figure: f64| format!("{figure:.2}");
        let met = line.verdict().map_or("", |met| if met { "yes" } else { "NO" });
        println!(
            "{:<58}{:>5}{:>10}{:>10}{:>10}{:>8}  {:<24}{met}",
            format!("{} ({})", line.what, line.unit),
            line.samples.len(),
            line.floor.map(number).unwrap_or_default(),
            number(line.samples.median()),
            if line.samples.len() > 1 { number(line.samples.p99()) } else { String::new() },
            line.ratio().map(|ratio| format!("{ratio:.2}x")).unwrap_or_default(),
            line.targets_text(),
        );
    }

    /// Ends the report.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(&self) -> Result<()> {
        let missed = self.lines.iter().filter(|line| line.verdict() == Some(false)).count();
        if !self.json {
            println!("{missed} of {} lines miss their target", self.lines.len());
            return Ok(());
        }
        let lines = self.lines.iter().map(|line| {
            json!({
                "what": line.what, "unit": line.unit, "n": line.samples.len(), "floor": line.floor, "median": line.samples.median(),
                "p99": line.samples.p99(), "ratio": line.ratio(), "target": line.targets_text(), "met": line.verdict(),
            })
        });
        println!("{}", json!({ "lines": lines.collect::<Vec<_>>(), "not_measured": self.failed }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(figures: &[f64]) -> Samples {
        let mut samples = Samples::default();
        figures.iter().for_each(|figure| samples.add(*figure));
        samples
    }

    #[test]
    fn quantiles_are_figures_that_were_measured() {
        let hundred = samples(&(1..=100).rev().map(f64::from).collect::<Vec<_>>());
        assert_eq!((hundred.median(), hundred.p99()), (50.0, 99.0));
        let one = samples(&[7.0]);
        assert_eq!((one.median(), one.p99()), (7.0, 7.0));
    }

    #[test]
    fn a_line_meets_all_its_targets_or_misses() {
        let line = Line::times("x", samples(&[1.0, 2.0, 9.0]), &[Target::Ratio(2.0), Target::P99(5.0)]).beside(1.0);
        assert!(line.met(Target::Ratio(2.0)) && !line.met(Target::P99(5.0)));
        assert_eq!(line.verdict(), Some(false));
        assert_eq!(Line::times("x", samples(&[1.0]), &[]).verdict(), None);
    }
}
