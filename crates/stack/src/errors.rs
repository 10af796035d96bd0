//! The error registry: recurring errors, known by a pattern in the last line of error output, with the issue type, what helps, and where
//! useful the rung that the ladder begins with. A stack's own entries come from a file beside it and are asked first, then the built-in
//! ones, and what neither knows is judged by a few words. Who asks is the node that gives a component up, so that the answer is a fact of
//! its event and the same for whoever reads it.

use std::{path::Path, sync::LazyLock};

use razar_bus_schema::v1;
use regex::{Captures, Regex, RegexBuilder};

use crate::{
    diagnostic::{Code, Diagnostics, Position},
    document::KnownErrorSpec,
    file::StackFile,
    fill,
    load::{Outside, Source},
    names,
    read::{Reader, printable},
    tree::{self, Kind, Node},
};

/// Entries of a stack's own list: they travel in the record of each of its components.
pub const ENTRIES_MAX: usize = 64;
/// Longest pattern and longest fix, in bytes.
const TEXT_BYTES_MAX: usize = 512;
/// Largest compiled pattern, in bytes: bounds what counted repetitions may cost in memory; time is linear by construction.
const COMPILED_BYTES_MAX: usize = 256 * 1024;
/// Longest text that a pattern's group may put into a fix, in characters.
const GROUP_CHARS_MAX: usize = 100;
/// What an entry may say of the kind of trouble.
const ISSUE_TYPES: [&str; 3] = ["dependency", "logic", "external"];
/// Rungs that an entry may begin with; the last one is past all help.
const RUNGS: [&str; 5] = ["restart", "clear_state", "dependencies", "chakra_hook", "quarantine"];

/// The list that is compiled in.
const BUILT_IN: &str = include_str!("errors.yaml");

/// The built-in entries, compiled. They are part of the program, and a test reads them.
static KNOWN: LazyLock<Registry> = LazyLock::new(|| {
    let source = Source { file: "errors.yaml", text: BUILT_IN, dir: Path::new("/") };
    let known: Vec<v1::KnownError> = read(&source).unwrap_or_default().iter().map(KnownErrorSpec::to_known).collect();
    Registry::new(&known)
});

/// Words of a missing module or library, in lower case.
const DEPENDENCY: [&str; 12] = [
    "importerror",
    "modulenotfounderror",
    "no module named",
    "cannot import name",
    "cannot find module",
    "module not found",
    "err_module_not_found",
    "cannot open shared object file",
    "error while loading shared libraries",
    "classnotfoundexception",
    "noclassdeffounderror",
    "cannot load such file",
];

/// Words of a mistake in the program or its data, in lower case.
const LOGIC: [&str; 9] = [
    "assertionerror",
    "assertion",
    "typeerror",
    "valueerror",
    "keyerror",
    "indexerror",
    "attributeerror",
    "jsondecodeerror",
    "panicked at",
];

/// Entries ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    entries: Vec<(v1::KnownError, Regex)>,
}

impl Registry {
    /// Compiles entries; one whose pattern is none is passed over, since whoever wrote it has been told.
    #[must_use]
    pub fn new(entries: &[v1::KnownError]) -> Self {
        let entries = entries.iter().take(ENTRIES_MAX).filter_map(|entry| Some((entry.clone(), compile(&entry.pattern).ok()?)));
        Self { entries: entries.collect() }
    }

    /// What is known of `error`: by the entries here in order, then by the built-in ones, else guessed from its words.
    #[must_use]
    pub fn issue(&self, error: &str) -> v1::Issue {
        self.find(error).or_else(|| KNOWN.find(error)).unwrap_or_else(|| guess(error))
    }

    fn find(&self, error: &str) -> Option<v1::Issue> {
        self.entries.iter().find_map(|(entry, pattern)| {
            let found = pattern.captures(error)?;
            Some(v1::Issue {
                known: entry.name.clone(),
                issue_type: entry.issue_type.clone(),
                suggested_fix: filled(&entry.fix, &found),
                rung: entry.rung.clone(),
            })
        })
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(COMPILED_BYTES_MAX).build()
}

/// The fix with what the pattern's groups caught in place of their names.
fn filled(fix: &str, found: &Captures<'_>) -> String {
    let mut out = String::with_capacity(fix.len());
    let mut rest = fix;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let named = after.split_once('}').and_then(|(name, rest)| Some((found.name(name)?.as_str(), rest)));
        if let Some((caught, after)) = named {
            out.extend(caught.chars().filter(|c| !c.is_control()).take(GROUP_CHARS_MAX));
            rest = after;
        } else {
            out.push('{');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Judges by a few words of the text: what no entry knows.
#[must_use]
pub fn guess(error: &str) -> v1::Issue {
    let issue = |issue_type: &str, fix: &str| v1::Issue {
        issue_type: issue_type.to_owned(),
        suggested_fix: fix.to_owned(),
        ..v1::Issue::default()
    };
    let text = error.to_ascii_lowercase();
    if DEPENDENCY.iter().any(|word| text.contains(word)) {
        issue("dependency", "install what it could not load")
    } else if LOGIC.iter().any(|word| text.contains(word)) {
        issue("logic", "mend the code or the data that it names")
    } else {
        issue("external", "look at what it needs from outside: network, disk, memory, other services")
    }
}

/// The entries of the file that the stack names; what is wrong with it is told with its own lines.
pub(crate) fn named(r: &mut Reader<'_>, file: &StackFile, source: &Source<'_>, outside: &dyn Outside) -> Vec<KnownErrorSpec> {
    let Some(path) = &file.mesh.errors else { return Vec::new() };
    let whole = fill::absolute(path, source.dir);
    match outside.text(&whole) {
        Ok(text) if text.is_empty() => Vec::new(),
        Ok(text) => {
            let name = path.to_string_lossy();
            match read(&Source { file: &name, text: &text, dir: source.dir }) {
                Ok(entries) => entries,
                Err(found) => {
                    r.found.extend(found.all().iter().cloned());
                    Vec::new()
                }
            }
        }
        Err(why) => {
            let at = r.places.value(&["mesh", "errors"]);
            r.show(Code::FileMissing, at, format!("`errors` cannot be read: {why}"), None);
            Vec::new()
        }
    }
}

/// Reads a list of known errors.
///
/// # Errors
/// Everything that is wrong with it, each with its line.
pub fn read(source: &Source<'_>) -> Result<Vec<KnownErrorSpec>, Diagnostics> {
    let mut r = Reader::new(source.file, source.text, &|_| None);
    let (root, faults) = tree::parse(source.text);
    for fault in faults {
        r.show(fault.code, fault.at, fault.message, fault.hint);
    }
    let mut entries = Vec::new();
    match root.filter(|root| !root.is_null()) {
        Some(root) => entries = list(&mut r, &root),
        None if r.found.is_empty() => r.error(Code::Empty, Position::default(), "the file says nothing", Some("`errors:`".to_owned())),
        None => {}
    }
    let found = Diagnostics::new(r.found);
    if found.has_errors() { Err(found) } else { Ok(entries) }
}

fn list(r: &mut Reader<'_>, root: &Node) -> Vec<KnownErrorSpec> {
    let Some(mut f) = r.fields(root) else { return Vec::new() };
    let entries: Vec<KnownErrorSpec> = f.must(r, "errors", |r, n| r.list(n, entry));
    f.end(r, &[("known_errors", "errors"), ("signatures", "errors")]);
    if entries.len() > ENTRIES_MAX {
        r.error(Code::TooLarge, root.at, format!("{} entries; a list has at most {ENTRIES_MAX}", entries.len()), None);
    }
    for (index, one) in entries.iter().enumerate() {
        if entries.iter().take(index).any(|before| before.name == one.name && !one.name.is_empty()) {
            let at = r.places.value(&["errors", &index.to_string(), "name"]);
            r.show(Code::DuplicateKey, at, format!("`{}` stands twice", printable(&one.name)), None);
        }
    }
    entries
}

fn entry(r: &mut Reader<'_>, node: &Node) -> Option<KnownErrorSpec> {
    let mut f = r.fields(node)?;
    let out = KnownErrorSpec {
        name: f.must(r, "name", name),
        pattern: f.must(r, "pattern", pattern),
        issue_type: f.must(r, "issue", |r, n| word(r, n, &ISSUE_TYPES)),
        fix: f.must(r, "fix", raw),
        rung: f.get(r, "begin_with", |r, n| word(r, n, &RUNGS)).unwrap_or_default(),
    };
    f.end(r, &[("regex", "pattern"), ("type", "issue"), ("rung", "begin_with"), ("suggested_fix", "fix")]);
    Some(out)
}

/// A text as it is written: a pattern is full of `$`, and a fix may speak of variables.
fn raw(r: &mut Reader<'_>, node: &Node) -> Option<String> {
    let Kind::Scalar { text, .. } = &node.kind else { return r.text(node) };
    let text = text.trim();
    if text.len() > TEXT_BYTES_MAX {
        r.show(Code::TooLarge, node.at, format!("{} bytes; at most {TEXT_BYTES_MAX}", text.len()), None);
        return None;
    }
    if text.is_empty() || text.chars().any(char::is_control) {
        r.show(Code::BadValue, node.at, "one line of text is wanted here", None);
        return None;
    }
    Some(text.to_owned())
}

fn name(r: &mut Reader<'_>, node: &Node) -> Option<String> {
    let name = raw(r, node)?;
    if names::is_component_name(&name) {
        return Some(name);
    }
    let rule = "a-z, 0-9 and `-`, at most 63".to_owned();
    r.show(Code::BadName, node.at, format!("`{}` is no name of an error", printable(&name)), Some(rule));
    None
}

fn pattern(r: &mut Reader<'_>, node: &Node) -> Option<String> {
    let pattern = raw(r, node)?;
    let why = match compile(&pattern) {
        Ok(compiled) if compiled.is_match("") => "it matches the empty text, and so every error".to_owned(),
        Ok(_) => return Some(pattern),
        Err(regex::Error::CompiledTooBig(_)) => format!("compiled it takes more than {COMPILED_BYTES_MAX} bytes: fewer repetitions"),
        Err(error) => {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
        }
    };
    r.show(Code::BadPattern, node.at, format!("`{}`: {why}", printable(&pattern)), None);
    None
}

fn word(r: &mut Reader<'_>, node: &Node, words: &[&'static str]) -> Option<String> {
    let table: Vec<(&str, &'static str)> = words.iter().map(|w| (*w, *w)).collect();
    r.word(node, &table).map(str::to_owned)
}
