//! `cargo xtask tidy`: what the architecture and the house rule, checked. Each rule has a name and its reason, which a breach is told
//! with; the rules themselves live by subject in the modules below, and what may break one, with why, in `exceptions.rs`.
//! What the compiler or clippy can see (unwrap, panics, missing documentation) is left to them.

mod exceptions;
mod layers;
mod mutations;
mod proto;
mod rust;
mod text;
mod tree;

use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use exceptions::Exception;
use tree::Tree;

/// One thing that every file has to keep.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Kebab-case, as breaches and exceptions name it.
    pub(crate) name: &'static str,
    /// Why the rule exists, in a sentence.
    pub(crate) why: &'static str,
    check: fn(&Tree) -> Vec<Breach>,
}

/// A place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Breach {
    /// Relative to the root.
    pub(crate) path: String,
    /// From 1; 0 is the file as a whole.
    pub(crate) line: usize,
    /// What is there, and what to do.
    pub(crate) what: String,
}

impl Breach {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

/// Every rule, in the order of the output.
fn rules() -> impl Iterator<Item = &'static Rule> {
    [layers::RULES, rust::RULES, proto::RULES, text::RULES, mutations::RULES].into_iter().flatten()
}

/// Checks the repository at `root` and prints every breach with its rule and the reason.
///
/// # Errors
/// When a rule is broken, when an exception is not needed, or when the files cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let found = check(&tree, exceptions::EXCEPTIONS);
    let mut breaches = 0;
    for (rule, broken) in &found {
        println!("{}: {}", rule.name, rule.why);
        for Breach { path, line, what } in broken {
            println!("  {path}:{line}: {what}");
        }
        breaches += broken.len();
    }
    if breaches > 0 {
        bail!("{breaches} breaches of {} rules", found.len());
    }
    println!("tidy: {} rules kept by {} files", rules().count(), tree.files.len());
    Ok(())
}

/// The rules that are broken, each with where; exceptions that nothing needs are breaches of [`exceptions::NEEDED`].
fn check(tree: &Tree, excepted: &'static [Exception]) -> Vec<(&'static Rule, Vec<Breach>)> {
    let mut used = vec![false; excepted.len()];
    let mut found = Vec::new();
    for rule in rules() {
        let mut broken = (rule.check)(tree);
        broken.retain(|breach| {
            let covering = excepted.iter().position(|e| e.rule == rule.name && e.path == breach.path);
            if let Some(used) = covering.and_then(|at| used.get_mut(at)) {
                *used = true;
            }
            covering.is_none()
        });
        if !broken.is_empty() {
            found.push((rule, broken));
        }
    }
    let unneeded = excepted.iter().zip(used).filter(|(_, used)| !used);
    let unneeded: Vec<_> = unneeded.map(|(e, _)| Breach::new(e.path, 0, format!("no longer breaks {}", e.rule))).collect();
    if !unneeded.is_empty() {
        found.push((&exceptions::NEEDED, unneeded));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the rules that `files` break.
    pub(super) fn broken_by(files: &[(&str, &str)]) -> Vec<&'static str> {
        let tree = Tree::of(files);
        check(&tree, &[]).into_iter().map(|(rule, _)| rule.name).collect()
    }

    #[test]
    fn this_repository_keeps_its_rules() {
        run(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap();
    }

    #[test]
    fn every_rule_has_a_name_of_its_own_and_a_reason() {
        let mut names: Vec<_> = rules().map(|rule| rule.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(rules().all(|rule| rule.why.len() > 20));
    }

    #[test]
    fn an_exception_silences_its_file_alone_and_must_be_needed() {
        const EXCEPTED: &[Exception] = &[
            Exception { rule: "files-say-what-they-are", path: "a.rs", reason: "test" },
            Exception { rule: "files-say-what-they-are", path: "c.rs", reason: "test" },
        ];
        let tree = Tree::of(&[("a.rs", "fn a() {}"), ("b.rs", "fn b() {}")]);
        let found = check(&tree, EXCEPTED);
        let names: Vec<_> = found.iter().flat_map(|(rule, broken)| broken.iter().map(|breach| (rule.name, breach.path.as_str()))).collect();
        assert_eq!(names, [("files-say-what-they-are", "b.rs"), ("exceptions-are-needed", "c.rs")]);
    }
}
