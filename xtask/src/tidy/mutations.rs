//! The list of mutations against the sources: what can be seen without compiling.

use super::tree::Tree;
use super::{Breach, Rule};
use crate::mutants;

pub(super) const RULES: &[Rule] = &[Rule {
    name: "mutations-fit",
    why: "a mutation that no longer applies, or names no test, shows nothing: bring tests/mutations.toml to what the sources say, then run \
          `cargo xtask mutants` for it",
    check: mutations_fit,
}];

fn mutations_fit(tree: &Tree) -> Vec<Breach> {
    let Some(list) = tree.files.iter().find(|file| file.path == mutants::LIST) else { return Vec::new() };
    let mutants = match mutants::parse(&list.text) {
        Ok(mutants) => mutants,
        Err(error) => return vec![Breach::new(mutants::LIST, 0, format!("{error:#}"))],
    };
    let read = |path: &str| tree.files.iter().find(|file| file.path == path).map(|file| file.text.as_str());
    let sources = |package: &str, target: &str| sources_of(tree, package, target);
    mutants::misfits(&mutants, read, sources).into_iter().map(|what| Breach::new(mutants::LIST, 0, what)).collect()
}

/// The texts that a target of a package is made of.
fn sources_of<'t>(tree: &'t Tree, package: &str, target: &str) -> Vec<&'t str> {
    let named = format!("name = \"{package}\"");
    let manifest = tree.ending("Cargo.toml").find(|file| file.text.lines().any(|line| line == named));
    let Some(folder) = manifest.and_then(|file| file.path.strip_suffix("Cargo.toml")) else { return Vec::new() };
    let (file, below) = match target {
        "lib" => (String::new(), format!("{folder}src/")),
        test => (format!("{folder}tests/{test}.rs"), format!("{folder}tests/{test}/")),
    };
    tree.files.iter().filter(|f| f.path == file || f.path.starts_with(&below)).map(|f| f.text.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken_by;

    const LIST: &str = "[[mutant]]\nname = 'a'\nrule = 'r'\nfile = 'a/src/lib.rs'\ntext = 'one'\nwithout = 'none'\npackage = 'razar-a'\n\
                        target = 'policy'\ntest = 'rules::holds'\n";
    const MANIFEST: &str = "[package]\nname = \"razar-a\"\n[lints]\nworkspace = true\n";

    #[test]
    fn a_list_behind_its_sources_is_seen() {
        let files = |source: &'static str, test: &'static str| {
            broken_by(&[
                ("tests/mutations.toml", LIST),
                ("crates/os/Cargo.toml", MANIFEST),
                ("a/src/lib.rs", source),
                ("crates/os/tests/policy/rules.rs", test),
            ])
        };
        let fits = files("//! One.\n//! one\n", "//! Tests.\nfn holds() {}\n");
        assert!(!fits.contains(&"mutations-fit"), "{fits:?}");
        assert!(files("//! One.\n", "//! Tests.\nfn holds() {}\n").contains(&"mutations-fit"));
        assert!(files("//! One.\n//! one\n", "//! Tests.\nfn held() {}\n").contains(&"mutations-fit"));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_seen() {
        assert!(broken_by(&[("tests/mutations.toml", "[[mutant]]\nnme = 'a'\n")]).contains(&"mutations-fit"));
    }
}
