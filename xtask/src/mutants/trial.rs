//! One mutation: made in the copy, built, its test run, taken back. Caught is a test that runs and fails; what does not compile shows
//! nothing about the test, and what hangs fails for a reason that nobody wrote down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Mutant;
use super::scratch::Scratch;

/// A test that takes longer hangs: the slowest wait 30 s for what a mutation keeps from happening.
const TEST_LIMIT: Duration = Duration::from_secs(120);
/// A cold build of the tests of all agents on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(3_600);
/// How often a running program is looked at: short against a build.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of a compiler's or test's words that are shown.
const SHOWN_LINES: usize = 12;

/// What came of one mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The test fails with it.
    Caught,
    /// The test passes with it.
    Survived,
    /// It is no program.
    NotCompiled(String),
    /// The test ended neither way in time.
    Hung,
    /// The text is not in the file, or there more than once.
    NotApplied(String),
    /// The test fails, or does not exist, without it.
    Unsound,
}

impl Outcome {
    /// As the table says it.
    pub(super) fn sentence(&self, mutant: &Mutant) -> String {
        match self {
            Self::Caught => format!("caught by {}", mutant.test_function()),
            Self::Survived => format!("SURVIVED {}", mutant.test),
            Self::NotCompiled(why) => format!("DOES NOT COMPILE\n{why}"),
            Self::Hung => format!("HANGS {} for {TEST_LIMIT:?}", mutant.test),
            Self::NotApplied(why) => format!("DOES NOT APPLY: {why}"),
            Self::Unsound => format!("NO TEST: {} fails or does not exist without the mutation", mutant.test),
        }
    }
}

/// The tests that pass without any mutation.
pub(super) fn sound<'m>(scratch: &Scratch, mutants: &'m [Mutant]) -> Result<BTreeSet<&'m str>> {
    let mut targets: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for mutant in mutants {
        targets.entry((&mutant.package, &mutant.target)).or_default().insert(&mutant.test);
    }
    let mut sound = BTreeSet::new();
    for ((package, target), tests) in targets {
        let program = match build(scratch, package, target)? {
            Ok(program) => program,
            Err(said) => {
                println!("the tests of {package} ({target}) cannot be built:\n{said}");
                continue;
            }
        };
        for name in tests {
            if run(scratch, package, &program, name)? == Ended::Passed {
                sound.insert(name);
            }
        }
    }
    Ok(sound)
}

/// Tries one mutation; the copy is afterwards as it was before.
pub(super) fn mutate(scratch: &Scratch, mutant: &Mutant) -> Result<Outcome> {
    let source = scratch.read(&mutant.file)?;
    let mutated = match mutant.apply(&source) {
        Ok(mutated) => mutated,
        Err(why) => return Ok(Outcome::NotApplied(why)),
    };
    scratch.write(&mutant.file, &mutated)?;
    let outcome = try_out(scratch, mutant);
    scratch.write(&mutant.file, &source)?;
    outcome
}

fn try_out(scratch: &Scratch, mutant: &Mutant) -> Result<Outcome> {
    let program = match build(scratch, &mutant.package, &mutant.target)? {
        Ok(program) => program,
        Err(said) => return Ok(Outcome::NotCompiled(said)),
    };
    Ok(match run(scratch, &mutant.package, &program, &mutant.test)? {
        Ended::Failed => Outcome::Caught,
        Ended::Hung => Outcome::Hung,
        Ended::Passed | Ended::NotRun => Outcome::Survived,
    })
}

/// Builds a target's tests; the program, or what the compiler said.
fn build(scratch: &Scratch, package: &str, target: &str) -> Result<Result<PathBuf, String>> {
    let mut arguments = vec!["test", "--locked", "--no-run", "--package", package];
    if target == "lib" {
        arguments.push("--lib");
    } else {
        arguments.extend(["--test", target]);
    }
    let (status, said) = call(scratch, &mut scratch.cargo(&arguments), BUILD_LIMIT)?;
    // `  Executable tests/policy/main.rs (target/debug/deps/policy-…)`
    let line = said.lines().rev().find(|line| line.trim_start().starts_with("Executable "));
    let program = line.and_then(|line| line.rsplit_once('(')).map(|(_, path)| scratch.path(path.trim_end_matches(')')));
    match (status, program) {
        (Some(status), Some(program)) if status.success() => Ok(Ok(program)),
        _ => Ok(Err(end_of(&said))),
    }
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Passed,
    Failed,
    Hung,
    /// There is no test of that name.
    NotRun,
}

/// Runs one test, where cargo would run it.
fn run(scratch: &Scratch, package: &str, program: &Path, name: &str) -> Result<Ended> {
    let folder = scratch.folder_of(package)?;
    let mut command = Command::new(program);
    command.args(["--exact", name]).current_dir(&folder).env("CARGO_MANIFEST_DIR", &folder);
    let (status, said) = call(scratch, &mut command, TEST_LIMIT)?;
    Ok(match status {
        None => Ended::Hung,
        Some(status) if status.success() && said.contains("test result: ok. 1 passed;") => Ended::Passed,
        Some(_) if said.contains("test result: FAILED. 0 passed; 1 failed;") => Ended::Failed,
        Some(_) => Ended::NotRun,
    })
}

fn end_of(said: &str) -> String {
    let from = said.lines().count().saturating_sub(SHOWN_LINES);
    said.lines().skip(from).collect::<Vec<_>>().join("\n")
}

/// Runs a program; its status, `None` when it was ended at `limit`, and what it said.
fn call(scratch: &Scratch, command: &mut Command, limit: Duration) -> Result<(Option<ExitStatus>, String)> {
    let path = scratch.output();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let output = File::create(&path)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let said = fs::read(&path)?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}
