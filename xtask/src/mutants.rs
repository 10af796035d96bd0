//! `cargo xtask mutants`: shows that each rule's test can fail. `tests/mutations.toml` names, for each rule, a place in the product that
//! carries it out, what stands there without the rule, and the test that must then fail. Whether the list still fits the sources is
//! asked by `cargo xtask tidy`, without compiling; how one mutation is tried is in `trial`, where it is tried in `scratch`.

mod scratch;
mod trial;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use scratch::Scratch;
use trial::Outcome;

/// The list, relative to the root.
pub(crate) const LIST: &str = "tests/mutations.toml";
/// Stories without a rule that the list may point to.
const STORIES: std::ops::RangeInclusive<u32> = 1..=15;

/// One mutation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    /// Kebab-case, for the filter and the table.
    pub(crate) name: String,
    /// The rule, in a sentence.
    pub(crate) rule: String,
    /// Number of the shortest story that goes wrong without the rule; none: it was not searched for.
    pub(crate) story: Option<u32>,
    /// File of the product, relative to the root.
    pub(crate) file: String,
    /// What stands there, exactly once.
    pub(crate) text: String,
    /// What stands there without the rule.
    pub(crate) without: String,
    /// Package of the test.
    pub(crate) package: String,
    /// `lib`, or the name of an integration test.
    pub(crate) target: String,
    /// The test's full name.
    pub(crate) test: String,
}

impl Mutant {
    /// The file without the rule, or what keeps the mutation from being made.
    fn apply(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.text).count() {
            1 => Ok(source.replacen(&self.text, &self.without, 1)),
            0 => Err(format!("{} no longer holds the text that `{}` replaces", self.file, self.name)),
            n => Err(format!("{} holds the text that `{}` replaces {n} times", self.file, self.name)),
        }
    }

    /// The test's name without its modules.
    fn test_function(&self) -> &str {
        self.test.rsplit("::").next().unwrap_or(&self.test)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// Reads the list.
///
/// # Errors
/// When it is no list of mutations.
pub(crate) fn parse(text: &str) -> Result<Vec<Mutant>> {
    Ok(toml::from_str::<List>(text)?.mutant)
}

/// What is wrong with the list as it stands, a sentence each. `read` gives a file of the repository, `sources` the paths of a package's
/// target.
pub(crate) fn misfits<'t>(
    mutants: &[Mutant],
    read: impl Fn(&str) -> Option<&'t str>,
    sources: impl Fn(&str, &str) -> Vec<&'t str>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, mutant) in mutants.iter().enumerate() {
        let name = &mutant.name;
        if mutants.iter().take(at).any(|other| other.name == *name) {
            wrong.push(format!("`{name}` is there twice"));
        }
        if mutant.story.is_some_and(|story| !STORIES.contains(&story)) {
            wrong.push(format!("`{name}` points to a story that does not exist"));
        }
        match read(&mutant.file).map(|source| mutant.apply(source)) {
            None => wrong.push(format!("`{name}` mutates {}, which is not there", mutant.file)),
            Some(Err(why)) => wrong.push(why),
            Some(Ok(_)) => {}
        }
        let declared = format!("fn {}(", mutant.test_function());
        if !sources(&mutant.package, &mutant.target).iter().any(|source| source.contains(&declared)) {
            wrong.push(format!("`{name}` names the test {} of {} ({}), which is not there", mutant.test, mutant.package, mutant.target));
        }
    }
    wrong
}

/// Tries every mutation whose name contains `filter`, prints what came of each, and fails unless every one was caught.
///
/// # Errors
/// When a mutation survives, does not compile or no longer applies, when a test fails without it, or when nothing can be tried at all.
pub(crate) fn run(root: &Path, filter: Option<&str>) -> Result<()> {
    let list = std::fs::read_to_string(root.join(LIST)).with_context(|| format!("reading {LIST}"))?;
    let wanted = |mutant: &Mutant| filter.is_none_or(|words| mutant.name.contains(words));
    let mutants: Vec<_> = parse(&list).with_context(|| LIST.to_owned())?.into_iter().filter(wanted).collect();
    if mutants.is_empty() {
        bail!("no mutation of {LIST} has {:?} in its name", filter.unwrap_or_default());
    }
    let began = Instant::now();
    let scratch = Scratch::open(root)?;
    let sound = trial::sound(&scratch, &mutants)?;
    println!("{} tests pass without a mutation ({:.0?})", sound.len(), began.elapsed());
    let width = mutants.iter().map(|m| m.name.len()).max().unwrap_or_default();
    let mut uncaught = 0;
    for mutant in &mutants {
        let began = Instant::now();
        let outcome = if sound.contains(mutant.test.as_str()) { trial::mutate(&scratch, mutant)? } else { Outcome::Unsound };
        uncaught += usize::from(outcome != Outcome::Caught);
        println!("{:width$}  {:>5.1?}s  {}", mutant.name, began.elapsed().as_secs_f32(), outcome.sentence(mutant));
    }
    println!("{} of {} mutations caught in {:.0?}", mutants.len() - uncaught, mutants.len(), began.elapsed());
    if uncaught > 0 {
        bail!("{uncaught} mutations were not caught: the rule has no test that can fail, or the list is behind the sources");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(text: &str) -> Mutant {
        let list = format!(
            "[[mutant]]\nname = 'a'\nrule = 'r'\nstory = 5\nfile = 'src/lib.rs'\ntext = '{text}'\nwithout = 'true'\n\
             package = 'p'\ntarget = 'lib'\ntest = 'tests::holds'\n"
        );
        parse(&list).unwrap().remove(0)
    }

    fn misfits_of(mutants: &[Mutant]) -> Vec<String> {
        misfits(
            mutants,
            |path| (path == "src/lib.rs").then_some("let a = b; let c = b;"),
            |package, target| if (package, target) == ("p", "lib") { vec!["fn holds() {"] } else { Vec::new() },
        )
    }

    #[test]
    fn a_list_that_fits_has_no_misfits() {
        assert_eq!(misfits_of(&[mutant("a = b")]), [""; 0]);
    }

    #[test]
    fn a_text_must_be_there_once() {
        assert!(misfits_of(&[mutant("= b;")])[0].contains("2 times"));
        assert!(misfits_of(&[mutant("= d;")])[0].contains("no longer"));
        let elsewhere = Mutant { file: "src/main.rs".to_owned(), ..mutant("a = b") };
        assert!(misfits_of(&[elsewhere])[0].contains("not there"));
    }

    #[test]
    fn a_test_must_be_in_the_target_that_is_named() {
        let other = Mutant { test: "tests::hold".to_owned(), ..mutant("a = b") };
        let away = Mutant { target: "policy".to_owned(), ..mutant("a = b") };
        assert!(misfits_of(&[other])[0].contains("tests::hold"));
        assert!(misfits_of(&[away])[0].contains("(policy)"));
    }

    #[test]
    fn names_are_there_once_and_stories_exist() {
        let unknown = Mutant { story: Some(16), ..mutant("a = b") };
        assert_eq!(misfits_of(&[mutant("a = b"), unknown]).len(), 2);
    }

    #[test]
    fn a_mutation_replaces_the_text_alone() {
        assert_eq!(mutant("a = b").apply("let a = b;").unwrap(), "let true;");
    }
}
