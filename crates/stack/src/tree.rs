//! YAML text to a tree that knows the place of every key and value: aliases and merge keys expanded, everything bounded.
//! Scalars stay texts; what type is wanted where is for `read` to say.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Span, options};

use crate::diagnostic::{Code, Position};

/// Largest stack file, in bytes: the 77-component example has 40 KiB.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Most nodes of a file after its aliases are expanded: stops alias bombs, far above any real file.
pub const NODES_MAX: usize = 100_000;

/// Deepest nesting of a file: the format itself has nine levels.
const DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) kind: Kind,
    size: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Scalar { text: String, plain: bool },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Position,
    pub(crate) value: Rc<Node>,
}

impl Node {
    /// `~`, `null` or nothing at all.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(crate) fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { .. } => "a single value",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }
}

/// A mistake in the text itself.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) at: Position,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Fault {
    fn new(code: Code, at: Position, message: impl Into<String>) -> Self {
        Self { code, at, message: message.into(), hint: None }
    }
}

/// The tree of `text` (absent when it cannot be had), and what is wrong with the text.
pub(crate) fn parse(text: &str) -> (Option<Rc<Node>>, Vec<Fault>) {
    let mut faults = Vec::new();
    if text.len() > FILE_BYTES_MAX {
        let message = format!("has {} bytes; a stack file has at most {FILE_BYTES_MAX}", text.len());
        faults.push(Fault::new(Code::TooLarge, Position::default(), message));
        return (None, faults);
    }
    let options = options! { emit_comments: false, flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let outcome = match event {
            Ok((event, span)) => builder.take(event, position(span)),
            Err(error) => {
                let marker = error.marker();
                let at = Position { line: count(marker.line()), column: count(marker.col() + 1), width: 1 };
                if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
                    Err(Fault::new(Code::TooLarge, at, format!("nested deeper than {DEPTH_MAX}")))
                } else {
                    Err(Fault::new(Code::Syntax, at, error.info()))
                }
            }
        };
        if let Err(fault) = outcome {
            faults.append(&mut builder.faults);
            faults.push(fault);
            return (None, faults);
        }
    }
    faults.append(&mut builder.faults);
    (builder.root, faults)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn position(span: Span) -> Position {
    let (start, end) = (span.start, span.end);
    let width = if start.line() == end.line() { end.col().saturating_sub(start.col()).max(1) } else { 1 };
    Position { line: count(start.line()), column: count(start.col() + 1), width: count(width) }
}

/// A collection that is still open.
#[derive(Debug)]
struct Open {
    at: Position,
    anchor: usize,
    collected: Collected,
}

#[derive(Debug)]
enum Collected {
    List(Vec<Rc<Node>>),
    Map { entries: Vec<Entry>, key: Option<(String, Position)> },
}

#[derive(Debug, Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    nodes: usize,
    documents: usize,
    faults: Vec<Fault>,
}

impl Builder {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the parser may add events; those that carry no value are passed over")]
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Fault> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Fault::new(Code::Syntax, at, "a second document begins here; a stack is one document"));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                self.finish(at, anchor, Kind::Scalar { text: text.into_owned(), plain }, 1)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open { at, anchor, collected: Collected::List(Vec::new()) });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open { at, anchor, collected: Collected::Map { entries: Vec::new(), key: None } });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(Fault::new(Code::Syntax, at, "an alias inside what it names"));
                };
                let size = node.size;
                self.place(Rc::new(Node { at, kind: node.kind.clone(), size }))
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), Fault> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let (kind, size) = match open.collected {
            Collected::List(items) => {
                let size = items.iter().map(|n| n.size).sum::<usize>();
                (Kind::List(items), size)
            }
            Collected::Map { entries, .. } => {
                let entries = self.merged(entries);
                let size = entries.iter().map(|e| e.value.size).sum::<usize>();
                (Kind::Map(entries), size)
            }
        };
        self.finish(open.at, open.anchor, kind, size + 1)
    }

    fn finish(&mut self, at: Position, anchor: usize, kind: Kind, size: usize) -> Result<(), Fault> {
        let node = Rc::new(Node { at, kind, size });
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.place(node)
    }

    /// Puts a finished node into what is open.
    fn place(&mut self, node: Rc<Node>) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(if matches!(node.kind, Kind::Scalar { .. }) { 1 } else { node.size });
        if self.nodes > NODES_MAX * (DEPTH_MAX + 1) || node.size > NODES_MAX {
            return Err(Fault::new(Code::TooLarge, node.at, format!("expands to more than {NODES_MAX} values")));
        }
        match self.open.last_mut().map(|o| &mut o.collected) {
            None => self.root = Some(node),
            Some(Collected::List(items)) => items.push(node),
            Some(Collected::Map { entries, key }) => match (key.take(), &node.kind) {
                (Some((key, at)), _) => entries.push(Entry { key, at, value: node }),
                (None, Kind::Scalar { text, .. }) => *key = Some((text.clone(), node.at)),
                (None, Kind::List(_) | Kind::Map(_)) => {
                    return Err(Fault::new(Code::Syntax, node.at, format!("{} as a key", node.what())));
                }
            },
        }
        Ok(())
    }

    /// Keys that stand twice are told and dropped; what `<<` brings in fills what is not said.
    fn merged(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut first: HashMap<String, Position> = HashMap::new();
        let mut own = Vec::with_capacity(entries.len());
        let mut merges = Vec::new();
        for entry in entries {
            if entry.key == "<<" {
                merges.push(entry);
                continue;
            }
            if let Some(earlier) = first.get(&entry.key) {
                let mut fault = Fault::new(Code::DuplicateKey, entry.at, format!("`{}` stands twice", entry.key));
                fault.hint = Some(format!("the first is at {earlier}"));
                self.faults.push(fault);
            } else {
                first.insert(entry.key.clone(), entry.at);
                own.push(entry);
            }
        }
        let mut known: HashSet<String> = first.into_keys().collect();
        for merge in merges {
            let sources = match &merge.value.kind {
                Kind::List(items) => items.clone(),
                Kind::Map(_) | Kind::Scalar { .. } => vec![Rc::clone(&merge.value)],
            };
            for source in sources {
                if let Kind::Map(inner) = &source.kind {
                    own.extend(inner.iter().filter(|e| known.insert(e.key.clone())).cloned());
                } else {
                    self.faults.push(Fault::new(Code::WrongType, source.at, "`<<` merges mappings only"));
                }
            }
        }
        own
    }
}
