//! Rules for every text file: what it may not speak of, and how scripts begin.

use std::sync::LazyLock;

use regex::Regex;

use super::tree::Tree;
use super::{Breach, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "the-project-alone",
        why: "files speak of the project, not of the machine or the sitting in which they were written: such words mean nothing to whoever \
              clones it",
        check: the_project_alone,
    },
    Rule {
        name: "scripts-are-strict",
        why: "a script that goes on after a failed line reports success for work that was not done",
        check: scripts_are_strict,
    },
];

/// Somebody's folders, and words of a sitting.
static FOREIGN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?:^|[\s"'`=(\[:])/(?:work|root|home|Users)/|\bshared/spec/|\bscratchpad\b|\bbefore-stop\b"#).ok());

fn the_project_alone(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in &tree.files {
        for (at, line) in file.text.lines().enumerate() {
            if let Some(found) = FOREIGN.as_ref().and_then(|pattern| pattern.find(line)) {
                breaches.push(Breach::new(&file.path, at + 1, format!("`{}` is not the project's", found.as_str().trim())));
            }
        }
    }
    breaches
}

fn scripts_are_strict(tree: &Tree) -> Vec<Breach> {
    let shell = |text: &str| text.starts_with("#!") && text.lines().next().is_some_and(|first| first.ends_with("sh"));
    let strict = |line: &str| matches!(line.trim(), "set -euo pipefail" | "set -eu");
    let loose = tree.files.iter().filter(|file| shell(&file.text) && !file.text.lines().any(strict));
    loose.map(|file| Breach::new(&file.path, 1, "write `set -euo pipefail` under the header")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken_by;

    #[test]
    fn a_machines_folder_is_seen() {
        for line in ["cd /root/x", "see `/home/me/notes`", "path = \"/work/main\""] {
            assert_eq!(broken_by(&[("docs/a.md", line)]), ["the-project-alone"], "{line}");
        }
        assert_eq!(broken_by(&[("docs/a.md", "GET http://localhost:1/work/ and a/root/b, tests/home/")]), [""; 0]);
    }

    #[test]
    fn a_loose_script_is_seen() {
        assert_eq!(broken_by(&[("a.sh", "#!/usr/bin/env bash\necho\n")]), ["scripts-are-strict"]);
        assert_eq!(broken_by(&[("a.sh", "#!/usr/bin/env bash\nset -euo pipefail\n")]), [""; 0]);
        assert_eq!(broken_by(&[("a.py", "#!/usr/bin/env python3\n")]), [""; 0]);
    }
}
