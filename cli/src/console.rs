//! The two streams and the terminal: data to stdout, the rest to stderr, a live footer and colours on a terminal alone.
//! What the words are is `render`'s business.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
};

use anstyle::{AnsiColor, Style};

use crate::{
    exit::{Exit, Failure},
    render::{text, time::Zone},
};

/// Width assumed where the terminal tells none.
const WIDTH_DEFAULT: usize = 80;

/// What a word means; its colour never says more than the word does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Well.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// Beside the point.
    Quiet,
}

/// Where a command writes.
#[derive(Debug)]
pub(crate) struct Console {
    /// `argv[0]` as typed, for suggestions.
    pub(crate) program: String,
    /// One JSON object per line instead of text.
    pub(crate) json: bool,
    /// Nothing but data and errors.
    pub(crate) quiet: bool,
    /// More detail.
    pub(crate) verbose: bool,
    /// Zone of clocks.
    pub(crate) zone: Zone,
    colour: bool,
    terminal: bool,
    footer: Mutex<String>,
}

impl Console {
    /// For this process: colours when stdout is a terminal, `NO_COLOR` is not set and the terminal is not dumb.
    pub(crate) fn new(program: String, json: bool, quiet: bool, verbose: bool, zone: Zone) -> Self {
        let terminal = std::io::stdout().is_terminal() && !json;
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let colour = terminal && !set("NO_COLOR") && !dumb;
        Self { program, json, quiet, verbose, zone, colour, terminal: terminal && !dumb, footer: Mutex::new(String::new()) }
    }

    /// Whether lines go to a terminal, so that a footer may be shown.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The terminal's width in characters.
    pub(crate) fn width(&self) -> usize {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        size.map(|s| usize::from(s.ws_col)).filter(|w| *w > 0).unwrap_or(WIDTH_DEFAULT)
    }

    /// A whole command that helps, `argv[0]` as typed.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let words: Vec<_> = words.iter().map(|w| text::shell(w)).collect();
        format!("{} {}", self.program, words.join(" "))
    }

    /// `word` in the colour of its meaning, where colours are shown.
    pub(crate) fn paint(&self, tone: Tone, word: &str) -> String {
        if !self.colour {
            return word.to_owned();
        }
        let style = match tone {
            Tone::Good => Style::new().fg_color(Some(AnsiColor::Green.into())),
            Tone::Warn => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
            Tone::Bad => Style::new().fg_color(Some(AnsiColor::Red.into())).bold(),
            Tone::Quiet => Style::new().dimmed(),
        };
        format!("{style}{word}{style:#}")
    }

    /// A line of data. A reader that has gone away ends the command without a word.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        self.write(&format!("{line}\n"))
    }

    /// Lines of data.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn lines<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) -> Result<(), Failure> {
        lines.into_iter().try_for_each(|line| self.line(line.as_ref()))
    }

    /// A message of the contract as one line of JSON.
    ///
    /// # Errors
    /// When stdout cannot be written, or the message has no JSON.
    pub(crate) fn message<M: prost::Message + prost::Name>(&self, message: &M) -> Result<(), Failure> {
        let json = razar_bus_schema::json::to_json(message).map_err(|e| Failure::new(Exit::NotWell, e.to_string()))?;
        self.line(&json)
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let footer = self.footer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        let wipe = if footer.is_empty() { "" } else { "\r\x1b[2K" };
        let wrote = write!(out, "{wipe}{text}{footer}").and_then(|()| out.flush());
        match wrote {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Well, "")),
            Err(e) => Err(Failure::new(Exit::NotWell, format!("cannot write to stdout: {e}"))),
        }
    }

    /// Replaces the live footer (empty: none); on a terminal only, cut to its width.
    pub(crate) fn footer(&self, text: &str) {
        if !self.terminal || self.quiet {
            return;
        }
        let text = text::cut(text, self.width().saturating_sub(1));
        let mut footer = self.footer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *footer == text {
            return;
        }
        let mut out = std::io::stdout().lock();
        // A footer is decoration: where it cannot be written, the next line of data says so.
        let _ = write!(out, "\r\x1b[2K{text}").and_then(|()| out.flush());
        *footer = text;
    }

    /// Clears the screen, for `--watch` on a terminal.
    pub(crate) fn clear(&self) {
        if self.terminal {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\x1b[H\x1b[2J").and_then(|()| out.flush());
        }
    }

    /// Something beside the data, unless `-q`: to stderr.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.error(text);
        }
    }

    /// What must be known: to stderr, always.
    pub(crate) fn error(&self, text: &str) {
        let footer = self.footer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let wipe = if footer.is_empty() { "" } else { "\r\x1b[2K" };
        // Where even stderr is gone, the exit code is left.
        let _ = writeln!(std::io::stderr().lock(), "{wipe}{text}");
        if !footer.is_empty() {
            let _ = write!(std::io::stdout().lock(), "{footer}");
            let _ = std::io::stdout().lock().flush();
        }
    }

    /// Says why a command failed and what to type next, and gives its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> Exit {
        self.footer("");
        if !failure.text.is_empty() {
            self.error(&failure.text);
        }
        if let Some(next) = &failure.next {
            self.error(&format!("next: {next}"));
        }
        failure.exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_is_a_whole_command_with_the_program_as_typed() {
        let console = Console::new("./razar".to_owned(), false, false, false, Zone::Utc);
        assert_eq!(
            console.command(&["release", "reranker", "--note", "what was mended"]),
            "./razar release reranker --note 'what was mended'"
        );
    }

    #[test]
    fn a_pipe_has_neither_colour_nor_footer() {
        // The test's stdout may be a terminal; JSON output is treated as a pipe.
        let console = Console::new("razar".to_owned(), true, false, false, Zone::Utc);
        assert_eq!(console.paint(Tone::Bad, "failed"), "failed");
        console.footer("[1/2] x");
        assert!(console.footer.lock().unwrap().is_empty());
    }
}
