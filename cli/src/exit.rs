//! How a command ends: the exit codes of `experience.md`, and failures that carry one, what is wrong and what to type next.
//! Printing them is `console`'s and `main`'s business.

/// Exit codes; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Well.
    Well = 0,
    /// Not well: boot incomplete, outcome failed, doctor FAIL, degraded.
    NotWell = 1,
    /// `status --check`: a required component failed.
    Critical = 2,
    /// Wrong arguments or a wrong file.
    Arguments = 64,
    /// Bus or mesh out of reach.
    OutOfReach = 69,
    /// Accepted, no outcome in time.
    NoOutcome = 75,
    /// Refused.
    Refused = 77,
    /// Interrupted.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// What is wrong, a line each.
    pub(crate) text: String,
    /// One whole command that helps, `argv[0]` as typed.
    pub(crate) next: Option<String>,
}

impl Failure {
    /// A failure that ends with `exit`.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), next: None }
    }

    /// With the command to type next.
    #[must_use]
    pub(crate) fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::NotWell, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::NotWell, error.to_string())
    }
}

/// What every command returns.
pub(crate) type Done = Result<Exit, Failure>;
