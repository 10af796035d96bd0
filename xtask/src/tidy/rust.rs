//! Rules for Rust source, on its syntax tree: sizes, names, where unsafe code and processes may be, and what a policy may not touch.

use std::collections::BTreeSet;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::tree::{File, Tree};
use super::{Breach, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule { name: "rust-parses", why: "a file that cannot be read by the rules would pass all of them", check: parses },
    Rule {
        name: "functions-under-70-lines",
        why: "a function is read as one thought; control flow stays in the parent, leaves are pure",
        check: functions_are_short,
    },
    Rule {
        name: "files-under-600-lines",
        why: "features attach to the biggest file because the handles are there",
        check: files_are_short,
    },
    Rule {
        name: "mains-are-thin",
        why: "an agent's main reads config, starts telemetry, runs and exits; the rest is tested in the library",
        check: mains_are_thin,
    },
    Rule {
        name: "files-say-what-they-are",
        why: "a reader learns from the first lines what lives here and what does not",
        check: files_have_headers,
    },
    Rule {
        name: "no-empty-names",
        why: "manager, helper, util and common name nothing, so anything ends up in them",
        check: names_mean_something,
    },
    Rule {
        name: "only-os-is-unsafe",
        why: "one crate, small enough to be read whole, holds what the compiler cannot check",
        check: only_os_is_unsafe,
    },
    Rule { name: "no-bare-allow", why: "`expect` with a reason tells why, and says when it is no longer needed", check: no_bare_allow },
    Rule {
        name: "only-the-node-starts-processes",
        why: "quarantine and the fencing rules hold because no other path leads to a process; the command line may start the node",
        check: only_the_node_starts_processes,
    },
    Rule {
        name: "policies-are-pure",
        why: "time, randomness and ids are passed in: replaying a stream fires nothing, and a seed replays a whole mesh",
        check: policies_are_pure,
    },
];

/// A function has fewer lines than this, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// A file has at most this many lines.
const FILE_LINES_MAX: usize = 600;
/// An agent's main has fewer lines than this.
const MAIN_LINES_MAX: usize = 40;
const EMPTY_NAMES: &[&str] = &["manager", "managers", "helper", "helpers", "util", "utils", "common"];
/// Where code may start processes; `cli` only in the one module that starts the node.
const STARTERS: &[&str] = &["agents/node/", "crates/os/", "cli/", "xtask/", "tests/", "bench/", "examples/"];

/// What one file holds, as far as rules ask.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Where and why it does not parse.
    error: Option<(usize, String)>,
    functions: Vec<(String, usize, usize)>,
    names: Vec<(String, usize)>,
    unsafes: Vec<usize>,
    bare_allows: Vec<usize>,
    /// Paths in use declarations and in code outside tests, as `a::b::c`.
    paths: Vec<(String, usize)>,
}

impl<'ast> Visit<'ast> for Facts {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item(&mut self, item: &'ast syn::Item) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "syn's enum is open, and most items have no type's name")]
        let named = match item {
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            syn::Item::Mod(item) => Some(&item.ident),
            _ => None,
        };
        self.names.extend(named.map(|ident| (ident.to_string(), line(ident))));
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
        });
        let paths = self.paths.len();
        visit::visit_item_mod(self, item);
        if is_test {
            self.paths.truncate(paths);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.used("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.push((segments.join("::"), line(path)));
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let reasoned = || matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().contains("reason ="));
        if attribute.path().is_ident("allow") && !reasoned() {
            self.bare_allows.push(line(attribute));
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafes.push(line(block));
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.unsafes.extend(item.unsafety.as_ref().map(line));
        visit::visit_item_impl(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.unsafes.extend(signature.unsafety.as_ref().map(line));
        visit::visit_signature(self, signature);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.unsafes.push(line(item));
    }
}

impl Facts {
    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.fn_token.span().start().line;
        let last = block.brace_token.span.close().end().line;
        self.functions.push((signature.ident.to_string(), first, last + 1 - first));
    }

    fn used(&mut self, prefix: &str, tree: &syn::UseTree) {
        let joined = |name: &syn::Ident| if prefix.is_empty() { name.to_string() } else { format!("{prefix}::{name}") };
        match tree {
            syn::UseTree::Path(path) => self.used(&joined(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.paths.push((joined(&name.ident), line(name))),
            syn::UseTree::Rename(rename) => self.paths.push((joined(&rename.ident), line(rename))),
            syn::UseTree::Glob(glob) => self.paths.push((format!("{prefix}::*"), line(glob))),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.used(prefix, item)),
        }
    }
}

fn line(spanned: &impl Spanned) -> usize {
    spanned.span().start().line
}

impl Facts {
    /// Reads Rust source; what does not parse holds nothing but its error.
    pub(super) fn of(text: &str) -> Self {
        let mut facts = Self::default();
        match syn::parse_file(text) {
            Ok(syntax) => facts.visit_file(&syntax),
            Err(error) => facts.error = Some((error.span().start().line, error.to_string())),
        }
        facts
    }
}

/// Breaches in each Rust file, as (line, what).
fn each_file(tree: &Tree, found: impl Fn(&File, &Facts) -> Vec<(usize, String)>) -> Vec<Breach> {
    let in_file = |file| found(file, file.facts()).into_iter().map(|(line, what)| Breach::new(&file.path, line, what)).collect::<Vec<_>>();
    tree.ending(".rs").flat_map(in_file).collect()
}

fn parses(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |_, facts| facts.error.iter().cloned().collect())
}

fn functions_are_short(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |_, facts| {
        let long = facts.functions.iter().filter(|(_, _, lines)| *lines >= FUNCTION_LINES_MAX);
        long.map(|(name, line, lines)| (*line, format!("`{name}` has {lines} lines"))).collect()
    })
}

fn files_are_short(tree: &Tree) -> Vec<Breach> {
    let counted = tree.ending(".rs").map(|file| (file, file.text.lines().count()));
    let long = counted.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    long.map(|(file, lines)| Breach::new(&file.path, 0, format!("{lines} lines; split it by subject"))).collect()
}

fn mains_are_thin(tree: &Tree) -> Vec<Breach> {
    let mains = tree.ending("/src/main.rs").filter(|file| file.path.starts_with("agents/"));
    let fat = mains.map(|file| (file, file.text.lines().count())).filter(|(_, lines)| *lines >= MAIN_LINES_MAX);
    fat.map(|(file, lines)| Breach::new(&file.path, 0, format!("{lines} lines; move them into the library"))).collect()
}

fn files_have_headers(tree: &Tree) -> Vec<Breach> {
    let bare = tree.ending(".rs").filter(|file| !file.text.starts_with("//!"));
    bare.map(|file| Breach::new(&file.path, 1, "begin with `//!`: what lives here, and what deliberately does not")).collect()
}

/// `LogFile` and `log_file` both as `log`, `file`.
fn words(name: &str) -> BTreeSet<String> {
    let mut spaced = String::new();
    for c in name.chars() {
        if c.is_uppercase() || !c.is_alphanumeric() {
            spaced.push(' ');
        }
        spaced.extend(c.to_lowercase().filter(|c| c.is_alphanumeric()));
    }
    spaced.split_whitespace().map(str::to_owned).collect()
}

fn is_empty_name(name: &str) -> bool {
    words(name).iter().any(|word| EMPTY_NAMES.contains(&word.as_str()))
}

fn names_mean_something(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |file, facts| {
        let mut found: Vec<_> = facts
            .names
            .iter()
            .filter(|(name, _)| is_empty_name(name))
            .map(|(name, line)| (*line, format!("`{name}`: name what it does")))
            .collect();
        if file.path.split('/').any(|part| is_empty_name(part.trim_end_matches(".rs"))) {
            found.push((0, "the file or its folder: name what is in it".to_owned()));
        }
        found
    })
}

fn only_os_is_unsafe(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |file, facts| {
        let lines = facts.unsafes.iter().filter(|_| !file.path.starts_with("crates/os/"));
        lines.map(|line| (*line, "move it into crates/os behind a safe function".to_owned())).collect()
    })
}

fn no_bare_allow(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |_, facts| facts.bare_allows.iter().map(|line| (*line, "write `#[expect(lint, reason = \"…\")]`".to_owned())).collect())
}

/// Whether the file is product code, seen from the rule on processes.
fn may_start_processes(path: &str) -> bool {
    STARTERS.iter().any(|starter| path.starts_with(starter)) || path.contains("/tests/")
}

fn only_the_node_starts_processes(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut in_cli = BTreeSet::new();
    for file in tree.ending(".rs") {
        let facts = file.facts();
        for (path, line) in facts.paths.iter().filter(|(path, _)| path.ends_with("process::Command") || path.contains("process::Command::"))
        {
            if !may_start_processes(&file.path) {
                breaches.push(Breach::new(&file.path, *line, format!("`{path}`: ask the node")));
            } else if file.path.starts_with("cli/src/") && in_cli.insert(&file.path) && in_cli.len() > 1 {
                breaches.push(Breach::new(&file.path, *line, "a second module of the command line starts processes; one starts the node"));
            }
        }
    }
    breaches
}

/// What makes a decision depend on more than its arguments.
fn is_impure(path: &str) -> bool {
    let reads_clock = path.ends_with("Instant::now") || path.ends_with("SystemTime::now");
    let outside =
        ["tokio", "rand", "async_nats", "razar_bus", "razar_os", "std::fs", "std::net", "std::process", "std::thread", "std::env"];
    reads_clock || outside.iter().any(|outside| path == *outside || path.strip_prefix(outside).is_some_and(|rest| rest.starts_with("::")))
}

fn policies_are_pure(tree: &Tree) -> Vec<Breach> {
    each_file(tree, |file, facts| {
        let is_policy = file.path.contains("/src/policy.rs") || file.path.contains("/src/policy/");
        let impure = facts.paths.iter().filter(|(path, _)| is_policy && is_impure(path));
        impure.map(|(path, line)| (*line, format!("`{path}`: take it as an argument, or leave it to the shell"))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken_by;

    fn broken(path: &str, code: &str) -> Vec<&'static str> {
        broken_by(&[(path, &format!("//! Test.\n{code}"))])
    }

    const KEPT: [&str; 0] = [];

    #[test]
    fn what_does_not_parse_is_seen() {
        assert_eq!(broken("crates/a.rs", "fn ("), ["rust-parses"]);
    }

    #[test]
    fn a_long_function_is_seen() {
        let function = |lines: usize| format!("impl A {{\n    fn long() {{\n{}    }}\n}}\n", "        call();\n".repeat(lines - 2));
        assert_eq!(broken("crates/a.rs", &function(70)), ["functions-under-70-lines"]);
        assert_eq!(broken("crates/a.rs", &function(69)), KEPT);
    }

    #[test]
    fn a_long_file_is_seen() {
        assert_eq!(broken("crates/a.rs", &"// line\n".repeat(600)), ["files-under-600-lines"]);
        assert_eq!(broken("crates/a.rs", &"// line\n".repeat(599)), KEPT);
    }

    #[test]
    fn a_fat_main_of_an_agent_is_seen() {
        let lines = "// line\n".repeat(39);
        assert_eq!(broken("agents/node/src/main.rs", &lines), ["mains-are-thin"]);
        assert_eq!(broken("xtask/src/main.rs", &lines), KEPT);
    }

    #[test]
    fn a_file_without_a_header_is_seen() {
        assert_eq!(broken_by(&[("crates/a.rs", "// Not a header.\n")]), ["files-say-what-they-are"]);
    }

    #[test]
    fn an_empty_name_is_seen() {
        for code in ["struct LogManager;", "mod util {}", "enum HelperKind {}"] {
            assert_eq!(broken("crates/a.rs", code), ["no-empty-names"], "{code}");
        }
        assert_eq!(broken("crates/common/a.rs", ""), ["no-empty-names"]);
        assert_eq!(broken("crates/a.rs", "struct Commoner; struct Utility;"), KEPT);
    }

    #[test]
    fn unsafe_code_is_seen_outside_os() {
        for code in ["fn f() { unsafe { g() } }", "unsafe fn f() {}", "unsafe impl Send for A {}", "unsafe extern \"C\" {}"] {
            assert_eq!(broken("crates/bus/a.rs", code), ["only-os-is-unsafe"], "{code}");
            assert_eq!(broken("crates/os/a.rs", code), KEPT, "{code}");
        }
    }

    #[test]
    fn a_bare_allow_is_seen() {
        assert_eq!(broken("crates/a.rs", "#[allow(dead_code)]\nfn f() {}"), ["no-bare-allow"]);
        assert_eq!(broken("crates/a.rs", "#[expect(dead_code, reason = \"later\")]\nfn f() {}"), KEPT);
    }

    #[test]
    fn starting_processes_is_seen_outside_the_node() {
        for code in ["use std::process::Command;", "use tokio::process::{Child, Command};", "fn f() { std::process::Command::new(\"a\"); }"]
        {
            assert_eq!(broken("agents/registry/src/a.rs", code), ["only-the-node-starts-processes"], "{code}");
            assert_eq!(broken("agents/node/src/a.rs", code), KEPT, "{code}");
        }
        assert_eq!(broken("agents/registry/src/a.rs", "#[cfg(test)]\nmod tests { use std::process::Command; }"), KEPT);
        let header = "//! Test.\nuse std::process::Command;\n";
        assert_eq!(broken_by(&[("cli/src/a.rs", header)]), KEPT);
        assert_eq!(broken_by(&[("cli/src/a.rs", header), ("cli/src/b.rs", header)]), ["only-the-node-starts-processes"]);
    }

    #[test]
    fn an_impure_policy_is_seen() {
        for code in
            ["fn f() { std::time::Instant::now(); }", "use tokio::sync::mpsc;", "fn f() { let x: u8 = rand::random(); }", "use std::fs;"]
        {
            assert_eq!(broken("agents/node/src/policy/a.rs", code), ["policies-are-pure"], "{code}");
            assert_eq!(broken("agents/node/src/agent.rs", code), KEPT, "{code}");
        }
        assert_eq!(broken("agents/node/src/policy.rs", "use std::time::{Duration, Instant};"), KEPT);
    }
}
