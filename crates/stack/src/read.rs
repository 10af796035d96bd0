//! The tree to the file's types, telling every mistake of form on the way: unknown keys, wrong types, bad values, variables.
//! What needs more than one place of the file to judge is in `check`.

mod component;
mod probe;
mod stack;
mod value;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use stack::stack;

use crate::{
    diagnostic::{Code, Diagnostic, Excerpt, Position, Severity},
    names::nearest,
    tree::{Entry, Kind, Node},
};

/// This release, for sentences on what it does not do yet.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Looks up a variable: the value, or absent.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Places of keys and values by their path in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    keys: BTreeMap<Vec<String>, Position>,
    values: BTreeMap<Vec<String>, Position>,
}

impl Places {
    /// Place of the key at `path`, else of the nearest place above it.
    pub(crate) fn key(&self, path: &[&str]) -> Position {
        Self::find(&self.keys, path)
    }

    /// Place of the value at `path`, else of the nearest place above it.
    pub(crate) fn value(&self, path: &[&str]) -> Position {
        Self::find(&self.values, path)
    }

    /// Whether the file says anything at `path`.
    pub(crate) fn has(&self, path: &[&str]) -> bool {
        self.values.contains_key(&path.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>())
    }

    fn find(places: &BTreeMap<Vec<String>, Position>, path: &[&str]) -> Position {
        let mut path: Vec<String> = path.iter().map(|p| (*p).to_owned()).collect();
        loop {
            if let Some(at) = places.get(&path) {
                return *at;
            }
            if path.pop().is_none() {
                return Position::default();
            }
        }
    }
}

/// Reads a tree and collects what is wrong with it.
pub(crate) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    variables: Variables<'a>,
    /// Component, chakra or profile that is being read.
    pub(crate) subject: Option<String>,
    path: Vec<String>,
    pub(crate) places: Places,
    pub(crate) found: Vec<Diagnostic>,
    /// Components of which nothing could be read, and that was told.
    pub(crate) unreadable: BTreeSet<String>,
    /// Paths with the known keys that unknown ones there probably mean.
    meant: BTreeSet<(Vec<String>, String)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str, variables: Variables<'a>) -> Self {
        Self {
            file,
            text,
            variables,
            subject: None,
            path: Vec::new(),
            places: Places::default(),
            found: Vec::new(),
            unreadable: BTreeSet::new(),
            meant: BTreeSet::new(),
        }
    }

    /// Tells a mistake whose text is shown.
    pub(crate) fn show(&mut self, code: Code, at: Position, message: impl Into<String>, hint: Option<String>) {
        let excerpt = Excerpt::of(self.text, at);
        self.tell(Severity::Error, code, at, message.into(), hint, excerpt);
    }

    /// Tells a mistake in one line.
    pub(crate) fn error(&mut self, code: Code, at: Position, message: impl Into<String>, hint: Option<String>) {
        self.tell(Severity::Error, code, at, message.into(), hint, None);
    }

    /// Tells a doubt in one line.
    pub(crate) fn warn(&mut self, code: Code, at: Position, message: impl Into<String>, hint: Option<String>) {
        self.tell(Severity::Warning, code, at, message.into(), hint, None);
    }

    fn tell(&mut self, severity: Severity, code: Code, at: Position, message: String, hint: Option<String>, excerpt: Option<Excerpt>) {
        let (file, component) = (self.file.to_owned(), self.subject.clone());
        self.found.push(Diagnostic { severity, code, file, at, component, message, hint, excerpt });
    }

    /// The last key of the path that is a word, for sentences: of `heal.0` it is `heal`.
    fn here(&self) -> String {
        match self.path.iter().rev().find(|key| key.parse::<usize>().is_err()) {
            Some(key) => format!("`{}`", printable(key)),
            None => "the file".to_owned(),
        }
    }

    /// Whether the file has a key at `path` that is not known but probably means `key`.
    pub(crate) fn meant(&self, path: &[&str], key: &str) -> bool {
        self.meant.iter().any(|(at, meant)| meant == key && at.iter().map(String::as_str).eq(path.iter().copied()))
    }

    fn wrong_type(&mut self, node: &Node, wanted: &str, hint: Option<String>) {
        let message = format!("{} is {}, not {}", self.here(), node.what(), wanted);
        self.show(Code::WrongType, node.at, message, hint);
    }

    /// The fields of a mapping; nothing at all is an empty one.
    pub(crate) fn fields<'t>(&mut self, node: &'t Node) -> Option<Fields<'t>> {
        match &node.kind {
            Kind::Map(entries) => Some(Fields { entries, known: Vec::new(), missing: Vec::new(), at: node.at }),
            Kind::Scalar { .. } if node.is_null() => Some(Fields { entries: &[], known: Vec::new(), missing: Vec::new(), at: node.at }),
            Kind::Scalar { .. } | Kind::List(_) => {
                self.wrong_type(node, "a mapping", None);
                None
            }
        }
    }

    /// Reads below `key`, remembering where it stands.
    pub(crate) fn below<T>(&mut self, key: &str, key_at: Position, value_at: Position, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        self.places.keys.insert(self.path.clone(), key_at);
        self.places.values.insert(self.path.clone(), value_at);
        let out = read(self);
        self.path.pop();
        out
    }

    /// A mapping whose keys are names of the user's.
    pub(crate) fn named<T>(&mut self, node: &Node, mut read: impl FnMut(&mut Self, &Entry) -> Option<T>) -> Option<BTreeMap<String, T>> {
        let fields = self.fields(node)?;
        let mut out = BTreeMap::new();
        for entry in fields.entries {
            let value = self.below(&entry.key, entry.at, entry.value.at, |r| read(r, entry));
            if let Some(value) = value {
                out.insert(entry.key.clone(), value);
            }
        }
        Some(out)
    }

    /// A list.
    pub(crate) fn list<T>(&mut self, node: &Node, mut read: impl FnMut(&mut Self, &Node) -> Option<T>) -> Option<Vec<T>> {
        match &node.kind {
            Kind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    out.extend(self.below(&index.to_string(), item.at, item.at, |r| read(r, item)));
                }
                Some(out)
            }
            Kind::Scalar { .. } if node.is_null() => Some(Vec::new()),
            Kind::Scalar { text, .. } => {
                let words: Vec<&str> = text.split_whitespace().take(12).collect();
                let hint = format!("{}: [{}]", self.path.last().map_or("", String::as_str), words.join(", "));
                self.wrong_type(node, "a list", Some(format!("`{hint}`")));
                None
            }
            Kind::Map(_) => {
                self.wrong_type(node, "a list", None);
                None
            }
        }
    }
}

/// Fields of a mapping that is being read: each is asked for once, what nobody asked for is unknown.
pub(crate) struct Fields<'t> {
    entries: &'t [Entry],
    known: Vec<&'static str>,
    missing: Vec<&'static str>,
    at: Position,
}

impl<'t> Fields<'t> {
    /// The field `key`, read by `read`; absent when it is not there or not well formed.
    pub(crate) fn get<'r, T>(
        &mut self,
        r: &mut Reader<'r>,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'r>, &'t Node) -> Option<T>,
    ) -> Option<T> {
        self.known.push(key);
        let entry = self.entries.iter().find(|e| e.key == key)?;
        if entry.value.is_null() {
            return None;
        }
        r.below(key, entry.at, entry.value.at, |r| read(r, &entry.value))
    }

    /// As [`Fields::get`], default when it is not there.
    pub(crate) fn or<'r, T: Default>(
        &mut self,
        r: &mut Reader<'r>,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'r>, &'t Node) -> Option<T>,
    ) -> T {
        self.get(r, key, read).unwrap_or_default()
    }

    /// As [`Fields::get`], told (at [`Fields::end`]) when it is not there.
    pub(crate) fn must<'r, T: Default>(
        &mut self,
        r: &mut Reader<'r>,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'r>, &'t Node) -> Option<T>,
    ) -> T {
        let present = self.entries.iter().any(|e| e.key == key && !e.value.is_null());
        if !present {
            self.missing.push(key);
        }
        self.or(r, key, read)
    }

    /// A key of the format that this release does not do yet.
    pub(crate) fn not_yet(&mut self, r: &mut Reader<'_>, key: &'static str, meanwhile: &str) {
        self.known.push(key);
        if let Some(entry) = self.entries.iter().find(|e| e.key == key) {
            let message = format!("`{key}` is not in release {RELEASE}");
            r.show(Code::NotYet, entry.at, message, Some(meanwhile.to_owned()));
        }
    }

    /// Whether `key` is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|e| e.key == key)
    }

    /// Tells the keys that nobody asked for, and those that are not there; `synonyms` are other formats' words for ours.
    pub(crate) fn end(self, r: &mut Reader<'_>, synonyms: &[(&str, &str)]) {
        for entry in self.entries.iter().filter(|e| !self.known.contains(&e.key.as_str())) {
            if r.path.is_empty() && entry.key.starts_with("x-") {
                continue; // Compose's place for anchors and notes.
            }
            let synonym = synonyms.iter().find(|(theirs, _)| *theirs == entry.key).map(|(_, ours)| *ours);
            let hint = match synonym.or_else(|| nearest(&entry.key, self.known.iter().copied())) {
                Some(key) => {
                    r.meant.insert((r.path.clone(), key.to_owned()));
                    Some(format!("`{key}`"))
                }
                None => (self.known.len() <= 8).then(|| format!("known here: {}", self.known.join(", "))),
            };
            let at = Position { width: u32::try_from(entry.key.chars().count()).unwrap_or(1).max(1), ..entry.at };
            r.show(Code::UnknownKey, at, format!("`{}` is not known", printable(&entry.key)), hint);
        }
        let path = r.path.clone();
        // The place of the owner's key reads better than that of its first value.
        let owner = if path.is_empty() { self.at } else { r.places.keys.get(&path).copied().unwrap_or(self.at) };
        let absent: Vec<&str> = self.missing.into_iter().filter(|key| !r.meant.contains(&(path.clone(), (*key).to_owned()))).collect();
        for key in absent {
            let told_by_subject = r.subject.is_some() && path.len() == 2;
            let message = if told_by_subject { format!("has no `{key}`") } else { format!("{} has no `{key}`", r.here()) };
            r.error(Code::MissingKey, owner, message, Some(format!("`{key}:`")));
        }
    }
}

/// A text of the user's inside a sentence: one line, no control characters, not endless.
pub(crate) fn printable(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}
