//! The story of a run: a line for everything that happens (when, who, what), the last of them kept, all of them in one hash.

use std::{collections::VecDeque, fmt, fmt::Write as _, time::Duration};

/// Lines that are kept for a failing seed.
const LINES_KEPT: usize = 60;

/// The story.
#[derive(Debug, Clone)]
pub struct Story {
    lines: VecDeque<String>,
    hash: u64,
    count: u64,
    line: String,
    all: bool,
}

impl Default for Story {
    fn default() -> Self {
        let all = std::env::var_os("RAZAR_SIM_STORY").is_some_and(|v| v == "all");
        Self { lines: VecDeque::new(), hash: 0xcbf2_9ce4_8422_2325, count: 0, line: String::new(), all }
    }
}

impl Story {
    /// Adds a line.
    pub fn tell(&mut self, at: Duration, who: fmt::Arguments<'_>, what: fmt::Arguments<'_>) {
        self.line.clear();
        let _ = write!(self.line, "{:>12.6} ", at.as_secs_f64());
        let start = self.line.len();
        let _ = write!(self.line, "{who}");
        while self.line.len() < start + 10 {
            self.line.push(' ');
        }
        let _ = write!(self.line, " {what}");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.count += 1;
        let reused = if self.lines.len() >= LINES_KEPT && !self.all { self.lines.pop_front() } else { None };
        let mut kept = reused.unwrap_or_default();
        kept.clear();
        kept.push_str(&self.line);
        self.lines.push_back(kept);
    }

    /// Hash over every line told.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines were told.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The last lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
