//! From text to document: tree, types, checks, defaults. Either everything that is wrong, or a stack that can be planned.

use std::{
    collections::{BTreeMap, BTreeSet},
    path,
    time::Duration,
};

use crate::{
    check,
    diagnostic::{Code, Diagnostics, Position},
    document::{ChakraSpec, DOCUMENT_BYTES_MAX, HookSpec, KnownErrorSpec, Limits, ProfileSpec, StackDocument},
    errors,
    file::{Chakra, Hook, Profile, ProfileLimits, StackFile},
    fill, names,
    read::{self, Places, Reader},
    tree,
};

/// A stack file that was read by someone else.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name of the file as people know it (`razar.yaml`), for diagnostics.
    pub file: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Its directory, absolute and without links; relative paths begin here.
    pub dir: &'a path::Path,
}

/// A sound stack.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As it is stored and planned.
    pub document: StackDocument,
    /// Doubts; no errors among them.
    pub warnings: Diagnostics,
    /// As it was written.
    pub file: StackFile,
    places: Places,
}

impl Loaded {
    /// Where the value at `path` stands in the file (`["components", "api", "ports", "0"]`); the key of what is around it
    /// when the file does not say it.
    #[must_use]
    pub fn place(&self, path: &[&str]) -> Option<Position> {
        let at = if self.places.has(path) { self.places.value(path) } else { self.places.key(path) };
        (at.line > 0).then_some(at)
    }
}

/// What lies outside of a stack file and is named in it, as its reader can see it.
pub trait Outside {
    /// The variable `name`; absent: it is not set.
    fn variable(&self, name: &str) -> Option<String>;
    /// The text of a file.
    ///
    /// # Errors
    /// In words: why it cannot be read.
    fn text(&self, path: &path::Path) -> Result<String, String>;
    /// Whether a program can be run: with a slash in it an absolute path, else a name to be found on PATH.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    fn program(&self, program: &str) -> Result<(), String>;
}

/// Variables alone: files that the stack names are taken for empty, and no program is looked for.
struct Blind<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Outside for Blind<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn text(&self, _: &path::Path) -> Result<String, String> {
        Ok(String::new())
    }

    fn program(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Reads, checks and resolves a stack file where nothing but variables can be looked up: `${NAME}` means what `variables` says.
///
/// # Errors
/// Everything that is wrong with the file, in the order of its lines; warnings too.
pub fn load(source: &Source<'_>, variables: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
    load_with(source, &Blind(variables))
}

/// Reads, checks and resolves a stack file together with what it names outside of itself.
///
/// # Errors
/// Everything that is wrong with it and with the files that it names, in the order of their lines; warnings too.
pub fn load_with(source: &Source<'_>, outside: &dyn Outside) -> Result<Loaded, Diagnostics> {
    let variables = &|name: &str| outside.variable(name);
    let mut reader = Reader::new(source.file, source.text, variables);
    let (root, faults) = tree::parse(source.text);
    for fault in faults {
        reader.show(fault.code, fault.at, fault.message, fault.hint);
    }
    let Some(root) = root.filter(|root| !root.is_null()) else {
        if reader.found.is_empty() {
            reader.error(Code::Empty, Position::default(), "the file says nothing", Some("`name:` and `components:`".to_owned()));
        }
        return Err(Diagnostics::new(reader.found));
    };
    let file = read::stack(&mut reader, &root);
    let stack = check::stack(&mut reader, &file, source.dir);
    check::hooks(&mut reader, &file, source.dir, outside);
    let known = errors::named(&mut reader, &file, source, outside);
    let document = document(&file, stack, known, source.dir);
    if let Err(error) = document.to_bytes() {
        reader.error(Code::TooLarge, Position::default(), error.to_string(), Some(format!("at most {DOCUMENT_BYTES_MAX} bytes")));
    }
    let found = Diagnostics::new(reader.found);
    if found.has_errors() {
        return Err(found);
    }
    Ok(Loaded { document, warnings: found, file, places: reader.places })
}

fn document(
    file: &StackFile,
    sets: BTreeMap<String, BTreeSet<String>>,
    known_errors: Vec<KnownErrorSpec>,
    dir: &path::Path,
) -> StackDocument {
    let whole = ProfileSpec {
        components: file.components.keys().cloned().collect(),
        parallel_starts: file.mesh.parallel_starts.unwrap_or(fill::PARALLEL_STARTS_DEFAULT),
        timeout_millis: millis(file.mesh.timeout.unwrap_or(fill::TIMEOUT_DEFAULT)),
        ..ProfileSpec::default()
    };
    let profiles = sets.into_iter().map(|(name, components)| {
        let spec = profile(file, &name, components, &whole);
        (name, spec)
    });
    StackDocument {
        name: file.name.clone(),
        description: file.description.clone().unwrap_or_default(),
        failed_boots: file.mesh.failed_boots.unwrap_or(fill::FAILED_BOOTS_DEFAULT),
        chakras: chakras(file, dir),
        components: file.components.iter().map(|(name, c)| (name.clone(), fill::component(name, c, file, dir))).collect(),
        profiles: profiles.collect(),
        whole,
        escalation_hook: file.mesh.escalation_hook.as_ref().map(|hook| hook_spec(hook, dir)),
        known_errors,
    }
}

/// A profile's figures: its own, else those of what it extends, else the whole stack's.
fn profile(file: &StackFile, name: &str, components: BTreeSet<String>, whole: &ProfileSpec) -> ProfileSpec {
    let line: Vec<&Profile> = check::lineage(file, name).into_iter().filter_map(|n| file.profiles.get(n)).collect();
    let limit = |of: fn(&ProfileLimits) -> Option<u64>| line.iter().find_map(|p| of(&p.limits)).unwrap_or(0);
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    ProfileSpec {
        components,
        autoload: line.iter().flat_map(|p| p.autoload.iter().cloned()).collect(),
        limits: Limits {
            memory_bytes: limit(|l| l.memory),
            cpu_permille: small(limit(|l| l.cpu.map(u64::from))),
            threads: small(limit(|l| l.threads.map(u64::from))),
        },
        parallel_starts: line.iter().find_map(|p| p.parallel_starts).unwrap_or(whole.parallel_starts),
        timeout_millis: line.iter().find_map(|p| p.timeout).map_or(whole.timeout_millis, millis),
    }
}

fn chakras(file: &StackFile, dir: &path::Path) -> BTreeMap<String, ChakraSpec> {
    let spec = |chakra: &Chakra, default: f64| ChakraSpec {
        health_threshold: chakra.health_threshold.unwrap_or(default),
        heal_hook: chakra.heal_hook.as_ref().map(|hook| hook_spec(hook, dir)),
    };
    let nothing = Chakra::default();
    let mut out: BTreeMap<String, ChakraSpec> = names::CHAKRAS
        .iter()
        .map(|(name, threshold)| ((*name).to_owned(), spec(file.chakras.get(*name).unwrap_or(&nothing), *threshold)))
        .collect();
    for (name, chakra) in &file.chakras {
        out.entry(name.clone()).or_insert_with(|| spec(chakra, names::HEALTH_THRESHOLD_DEFAULT));
    }
    out
}

fn hook_spec(hook: &Hook, dir: &path::Path) -> HookSpec {
    HookSpec {
        command: fill::command(&hook.command, dir),
        timeout_millis: millis(hook.timeout.unwrap_or(fill::HOOK_TIMEOUT_DEFAULT)),
        env: hook.env.clone(),
        working_dir: dir.to_string_lossy().into_owned(),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
