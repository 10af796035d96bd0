//! Scalars: variables substituted, then read as text, number, truth value, duration, size, port, name or path.

use std::{path::PathBuf, time::Duration};

use super::{Reader, printable};
use crate::{
    diagnostic::Code,
    names::nearest,
    tree::{Kind, Node},
    units,
};

/// Longest text of one value after substitution, in bytes: an environment string may be as long, a plan of many must fit the bus.
const VALUE_BYTES_MAX: usize = 32 * 1024;

/// Deepest nesting of defaults in defaults: `${A:-${B:-c}}` is two.
const VARIABLE_DEPTH_MAX: u32 = 8;

/// What stands before the `}` that closes, and after it; inner `${…}` are passed over.
fn split_closed(text: &str) -> Option<(&str, &str)> {
    let mut open = 0_usize;
    for (at, c) in text.char_indices() {
        let (before, after) = text.split_at_checked(at)?;
        match c {
            '{' if before.ends_with('$') => open += 1,
            '}' if open == 0 => return Some((before, after.strip_prefix('}')?)),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

impl Reader<'_> {
    /// A text, with its variables substituted; numbers and truth values are texts as written.
    pub(crate) fn text(&mut self, node: &Node) -> Option<String> {
        let Kind::Scalar { text, .. } = &node.kind else {
            self.wrong_type(node, "a text", None);
            return None;
        };
        if node.is_null() {
            let message = format!("{} is empty", self.here());
            self.show(Code::WrongType, node.at, message, Some("\"\" if it is meant to be".to_owned()));
            return None;
        }
        let out = self.substituted(text, node, 0)?;
        if out.len() > VALUE_BYTES_MAX || out.contains('\0') {
            let message = format!("{} has a NUL or more than {VALUE_BYTES_MAX} bytes", self.here());
            self.show(Code::BadValue, node.at, message, None);
            return None;
        }
        Some(out)
    }

    /// `${VAR}`, `${VAR:-default}` and `$$`. A single `$` before anything else stands for itself, as in shell patterns.
    fn substituted(&mut self, text: &str, node: &Node, depth: u32) -> Option<String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut whole = true;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            if let Some(next) = after.strip_prefix('$') {
                out.push('$');
                rest = next;
            } else if let Some(inner) = after.strip_prefix('{') {
                let Some((inside, next)) = split_closed(inner).filter(|_| depth < VARIABLE_DEPTH_MAX) else {
                    self.show(Code::Variable, node.at, "`${` is not closed", Some("`$$` for a dollar sign".to_owned()));
                    return None;
                };
                match self.variable(inside, node, depth) {
                    Some(value) => out.push_str(&value),
                    None => whole = false,
                }
                rest = next;
            } else {
                out.push('$');
                rest = after;
            }
            if out.len() > VALUE_BYTES_MAX {
                break;
            }
        }
        out.push_str(rest);
        whole.then_some(out)
    }

    /// The value of what stands between `${` and `}`.
    fn variable(&mut self, inside: &str, node: &Node, depth: u32) -> Option<String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let sound = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !sound {
            let message = format!("`${{{}}}` names no variable", printable(inside));
            self.show(Code::Variable, node.at, message, Some("`${NAME}` or `${NAME:-default}`".to_owned()));
            return None;
        }
        // As in shells: `:-` takes the default for an empty value too.
        match ((self.variables)(name).filter(|value| default.is_none() || !value.is_empty()), default) {
            (Some(value), _) => Some(value),
            (None, Some(default)) => self.substituted(default, node, depth + 1),
            (None, None) => {
                let hint = format!("`${{{name}:-default}}`, or set it: {name}=… razar up");
                self.show(Code::Variable, node.at, format!("`${{{name}}}` has no value"), Some(hint));
                None
            }
        }
    }

    /// Reads a scalar by `parse`, or says that it is no `wanted`.
    fn scalar<T>(&mut self, node: &Node, wanted: &str, example: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(node)?;
        let out = parse(&text);
        if out.is_none() {
            // The file's own text: what a variable holds may be a secret.
            let written = if let Kind::Scalar { text, .. } = &node.kind { printable(text) } else { String::new() };
            let message = format!("{}: `{written}` is not {wanted}", self.here());
            self.show(Code::BadValue, node.at, message, (!example.is_empty()).then(|| example.to_owned()));
        }
        out
    }

    pub(crate) fn string(&mut self, node: &Node) -> Option<String> {
        self.text(node)
    }

    pub(crate) fn strings(&mut self, node: &Node) -> Option<Vec<String>> {
        self.list(node, Self::text)
    }

    pub(crate) fn path(&mut self, node: &Node) -> Option<PathBuf> {
        self.scalar(node, "a path", "`./folder`", |t| (!t.is_empty()).then(|| PathBuf::from(t)))
    }

    pub(crate) fn paths(&mut self, node: &Node) -> Option<Vec<PathBuf>> {
        self.list(node, Self::path)
    }

    pub(crate) fn flag(&mut self, node: &Node) -> Option<bool> {
        self.scalar(node, "true or false", "", |t| match t.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// A whole number in a range.
    pub(crate) fn number(&mut self, node: &Node, min: u32, max: u32) -> Option<u32> {
        self.scalar(node, &format!("a whole number from {min} to {max}"), "", |t| t.parse().ok().filter(|n| (min..=max).contains(n)))
    }

    /// A number in a range.
    pub(crate) fn decimal(&mut self, node: &Node, min: f64, max: f64) -> Option<f64> {
        self.scalar(node, &format!("a number from {min} to {max}"), "", |t| t.parse().ok().filter(|n| (min..=max).contains(n)))
    }

    pub(crate) fn port(&mut self, node: &Node) -> Option<u16> {
        self.scalar(node, "a port", "1 to 65535", |t| t.parse().ok().filter(|p| *p > 0))
    }

    pub(crate) fn ports(&mut self, node: &Node) -> Option<Vec<u16>> {
        self.list(node, Self::port)
    }

    pub(crate) fn duration(&mut self, node: &Node) -> Option<Duration> {
        self.scalar(node, "a duration", "`1m30s`, `250ms`", units::parse_duration)
    }

    /// A duration that must not be zero.
    pub(crate) fn period(&mut self, node: &Node) -> Option<Duration> {
        self.scalar(node, "a duration of 1ms or more", "`1s`, `250ms`", |t| {
            units::parse_duration(t).filter(|d| *d >= Duration::from_millis(1))
        })
    }

    pub(crate) fn size(&mut self, node: &Node) -> Option<u64> {
        self.scalar(node, "a size", "`512MiB`, `2GiB`", units::parse_size)
    }

    pub(crate) fn percent(&mut self, node: &Node) -> Option<u32> {
        self.scalar(node, "a share", "`50%`", units::parse_percent)
    }

    pub(crate) fn cores(&mut self, node: &Node) -> Option<u32> {
        self.scalar(node, "a number of cores", "`1.5`", units::parse_cores)
    }

    pub(crate) fn signal(&mut self, node: &Node) -> Option<i32> {
        self.scalar(node, "a signal", "`SIGTERM`, `SIGINT`", units::parse_signal)
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node)?;
        let meant = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if meant.is_none() {
            let hint = match nearest(&text, words.iter().map(|(word, _)| *word)) {
                Some(word) => format!("`{word}`"),
                None => words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            };
            let message = format!("{}: `{}` is not known", self.here(), printable(&text));
            self.show(Code::BadValue, node.at, message, Some(hint));
        }
        meant
    }

    /// Name to text, as in `env`.
    pub(crate) fn texts(&mut self, node: &Node) -> Option<std::collections::BTreeMap<String, String>> {
        self.named(node, |r, entry| r.text(&entry.value))
    }
}
