//! What is wrong with a stack file: code, place, component, sentence and hint, for people (rendered) and for programs (JSON).
//! Nothing is judged here; `read` and `check` do that.

use std::fmt;

use serde::Serialize;

/// Most diagnostics that one file gets: a person reads the first few, and a hostile file must not fill memory.
pub const DIAGNOSTICS_MAX: usize = 200;

/// Longest excerpt of a source line, in characters: two lines of a terminal.
const EXCERPT_CHARS_MAX: usize = 160;

/// Characters kept before the marked place when a long line is cut.
const EXCERPT_LEAD_CHARS: usize = 40;

/// Where something stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Position {
    /// Line from 1; 0 when the whole file is meant.
    pub line: u32,
    /// Column in characters from 1; 0 when the whole file is meant.
    pub column: u32,
    /// Characters marked on that line, at least 1.
    #[serde(skip)]
    pub width: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; it probably does not mean what it says.
    Warning,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)?) => {
        /// What kind of mistake it is; the text is stable, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $variant),* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable text: `unknown_key`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

codes! {
    /// Not YAML.
    Syntax = "syntax",
    /// Larger, deeper or more repetitive than any stack file.
    TooLarge = "too_large",
    /// Nothing in it, or no component.
    Empty = "empty",
    /// A key stands twice in one mapping.
    DuplicateKey = "duplicate_key",
    /// A key that is not known.
    UnknownKey = "unknown_key",
    /// A list where a mapping is wanted, and the like.
    WrongType = "wrong_type",
    /// A text that does not say what is wanted here.
    BadValue = "bad_value",
    /// A key that must be there is not.
    MissingKey = "missing_key",
    /// Known to the format, but not in this release.
    NotYet = "not_yet",
    /// A variable that has neither value nor default.
    Variable = "variable",
    /// Not a name.
    BadName = "bad_name",
    /// A name that the mesh keeps for itself.
    ReservedName = "reserved_name",
    /// A chakra that does not exist.
    UnknownChakra = "unknown_chakra",
    /// A component that does not exist.
    UnknownComponent = "unknown_component",
    /// A profile that does not exist.
    UnknownProfile = "unknown_profile",
    /// Profiles that extend each other in a circle.
    ProfileCycle = "profile_cycle",
    /// Components that wait for each other.
    Cycle = "cycle",
    /// A component that waits for itself.
    SelfDependency = "self_dependency",
    /// A required dependency that the profile leaves out.
    OutsideProfile = "outside_profile",
    /// A dependency to be completed on something that never completes.
    NeverCompletes = "never_completes",
    /// A port that two components of one profile claim.
    PortTwice = "port_twice",
    /// Replicas that would all claim the same port.
    ReplicaPorts = "replica_ports",
    /// A component that nothing tells ready.
    NoProbe = "no_probe",
    /// A probe in a role that it cannot play.
    ProbeRole = "probe_role",
    /// A backoff so long that the restart budget is never spent.
    BurstUnreachable = "burst_unreachable",
    /// A state path whose removal would remove more than state.
    UnsafeState = "unsafe_state",
    /// A probe of a port that the component does not list.
    ProbePort = "probe_port",
    /// A liveness probe that asks the peers too.
    LivenessIsReadiness = "liveness_is_readiness",
    /// A liveness probe that a stopped process passes.
    LivenessTcp = "liveness_tcp",
    /// A probe that is never asked.
    ProbeUnused = "probe_unused",
    /// A hook whose program is not there, or cannot be run.
    HookMissing = "hook_missing",
    /// A file that the stack names and that cannot be read.
    FileMissing = "file_missing",
    /// A pattern that is no regular expression, or too large a one.
    BadPattern = "bad_pattern",
}

/// A line of the file with the place that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// The line, cut to a readable length, control characters replaced.
    pub text: String,
    /// Characters before the marked place.
    pub before: u32,
    /// Characters marked.
    pub width: u32,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// Which kind.
    pub code: Code,
    /// File, as it was named.
    pub file: String,
    /// Where in it.
    #[serde(flatten)]
    pub at: Position,
    /// Component (or chakra, or profile) concerned.
    pub component: Option<String>,
    /// What is wrong, one sentence; empty where code and component say it all.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The line itself, where its text is what is wrong.
    pub excerpt: Option<Excerpt>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}[{}] {}", self.code.as_str(), self.file)?;
        if self.at.line > 0 {
            write!(f, ":{}", self.at)?;
        }
        match (&self.component, self.message.as_str()) {
            (Some(component), "") => write!(f, " {component}")?,
            (Some(component), message) => write!(f, " {component}: {message}")?,
            (None, message) => write!(f, " {message}")?,
        }
        match (&self.excerpt, &self.hint) {
            (Some(excerpt), hint) => excerpt.write(f, self.at.line, hint.as_deref()),
            (None, Some(hint)) => write!(f, "; hint: {hint}"),
            (None, None) => Ok(()),
        }
    }
}

impl Excerpt {
    /// The line at `at` of `text`; absent when the text has no such line.
    pub(crate) fn of(text: &str, at: Position) -> Option<Self> {
        let line = text.lines().nth(usize::try_from(at.line).ok()?.checked_sub(1)?)?;
        let start = usize::try_from(at.column).ok()?.checked_sub(1)?;
        let skipped = if line.chars().count() > EXCERPT_CHARS_MAX { start.saturating_sub(EXCERPT_LEAD_CHARS) } else { 0 };
        let shown: String = line.chars().skip(skipped).take(EXCERPT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let before = start - skipped;
        let width = usize::try_from(at.width).ok()?.clamp(1, shown.chars().count().saturating_sub(before).max(1));
        Some(Self { text: shown, before: u32::try_from(before).ok()?, width: u32::try_from(width).ok()? })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, line: u32, hint: Option<&str>) -> fmt::Result {
        let number = line.to_string();
        let gutter = " ".repeat(number.len() + 2);
        let before = " ".repeat(self.before as usize);
        let carets = "^".repeat(self.width as usize);
        write!(f, "\n  {number} | {}\n{gutter} | {before}{carets}", self.text.trim_end())?;
        hint.map_or(Ok(()), |hint| write!(f, " hint: {hint}"))
    }
}

/// Everything that is wrong with a file, in the order of the lines. Its `Display` is what `razar validate` prints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    #[serde(skip)]
    left_out: usize,
}

impl Diagnostics {
    /// Sorts by place (then code) and keeps the first [`DIAGNOSTICS_MAX`], errors before warnings when they are too many.
    pub(crate) fn new(mut list: Vec<Diagnostic>) -> Self {
        let left_out = list.len().saturating_sub(DIAGNOSTICS_MAX);
        if list.len() > DIAGNOSTICS_MAX {
            list.sort_by_key(|d| (d.severity, d.at));
            list.truncate(DIAGNOSTICS_MAX);
        }
        let key = |d: &Diagnostic| (d.file.clone(), d.at, d.code, d.component.clone(), d.message.clone());
        list.sort_by_cached_key(key);
        list.dedup();
        Self { list, left_out }
    }

    /// All of them, in the order of the lines.
    #[must_use]
    pub fn all(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Whether any of them refuses the file.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many more there were than [`DIAGNOSTICS_MAX`].
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// One JSON object a line, for `--json`.
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        self.list.iter().filter_map(|d| serde_json::to_string(d).ok()).map(|line| line + "\n").collect()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.list.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.left_out > 0 { write!(f, "\n{} more are not shown", self.left_out) } else { Ok(()) }
    }
}

impl std::error::Error for Diagnostics {}
