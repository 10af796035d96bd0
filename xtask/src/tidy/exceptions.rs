//! The files that may break a rule, each with its reason. One that is no longer needed is itself a breach, so the list only holds
//! what is true.

use super::Rule;
use super::tree::Tree;

/// A file that may break one rule.
#[derive(Debug)]
pub(crate) struct Exception {
    /// The rule's name.
    pub(crate) rule: &'static str,
    /// The file, relative to the root.
    pub(crate) path: &'static str,
    /// Why this file may; read by people alone.
    #[expect(dead_code, reason = "the field exists so that nobody adds an exception without saying why")]
    pub(crate) reason: &'static str,
}

/// All of them.
pub(super) const EXCEPTIONS: &[Exception] = &[
    Exception { rule: "the-project-alone", path: "xtask/src/tidy/text.rs", reason: "the rule itself: it spells what it looks for" },
    Exception { rule: "functions-under-70-lines", path: "tests/src/sim/faults.rs", reason: "one arm for each fault, and nothing else" },
];

/// The rule that the list itself has to keep; `check` in the parent carries it out, after all others.
pub(super) const NEEDED: Rule = Rule {
    name: "exceptions-are-needed",
    why: "an exception that nothing needs hides the next breach; remove it from xtask/src/tidy/exceptions.rs",
    check: none,
};

fn none(_tree: &Tree) -> Vec<super::Breach> {
    Vec::new()
}
