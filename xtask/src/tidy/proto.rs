//! The contract's own rules, beyond what buf knows. Line by line: the files keep one declaration a line.

use std::sync::LazyLock;

use regex::Regex;

use super::tree::Tree;
use super::{Breach, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "contract-says-what-it-means",
        why: "every message, field and value says unit, default and the meaning of absence: the .proto files are the documentation that \
              other languages read",
        check: says_what_it_means,
    },
    Rule {
        name: "no-map-in-the-contract",
        why: "a map's order is random, and the projection rebuilt from the stream has to be the same byte for byte",
        check: no_map,
    },
];

/// A declaration that needs words: a message, enum, service, method, field or value.
static DECLARES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^\s*(?:(?:message|enum|service|rpc)\s+(\w+)|(?:(?:repeated|optional)\s+)?(?:[\w.]+\s+)?(\w+)\s*=\s*\d+\s*[;\[])").ok()
});

fn says_what_it_means(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.ending(".proto") {
        let mut commented = false;
        for (at, line) in file.text.lines().enumerate() {
            let bare = line.trim_start();
            if bare.starts_with("//") {
                commented = true;
                continue;
            }
            let trailing = line.contains(" //");
            let declared = DECLARES.as_ref().and_then(|pattern| pattern.captures(line));
            if let Some(name) = declared.as_ref().and_then(|found| found.get(1).or_else(|| found.get(2)))
                && !commented
                && !trailing
            {
                breaches.push(Breach::new(&file.path, at + 1, format!("`{}` has no comment above it", name.as_str())));
            }
            // An attribute line between a comment and its declaration does not occur in proto3.
            commented = false;
        }
    }
    breaches
}

fn no_map(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.ending(".proto") {
        for (at, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.trim_start().starts_with("map<") || code.contains(" map<") {
                breaches.push(Breach::new(&file.path, at + 1, "write a repeated message with a key field, sorted by it"));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken_by;

    #[test]
    fn what_has_no_comment_is_seen() {
        for bare in [
            "message Event {\n}\n",
            "// An event.\nmessage Event {\n  string id = 1;\n}\n",
            "// An event.\nmessage Event {\n  // Id.\n  string id = 1;\n  repeated razar.v1.Name names = 2;\n}\n",
            "// A kind.\nenum Kind {\n  KIND_UNSPECIFIED = 0;\n}\n",
            "// An event.\n\nmessage Event {\n}\n",
        ] {
            assert_eq!(broken_by(&[("proto/a.proto", bare)]), ["contract-says-what-it-means"], "{bare}");
        }
        let said = "// An event.\nmessage Event {\n  // Id.\n  string id = 1;\n  uint32 code = 2; // exit code\n  reserved 3;\n}\n";
        assert_eq!(broken_by(&[("proto/a.proto", said)]), [""; 0]);
    }

    #[test]
    fn a_map_is_seen() {
        let map = "// A.\nmessage A {\n  // By name.\n  map<string, string> by_name = 1;\n}\n";
        assert_eq!(broken_by(&[("proto/a.proto", map)]), ["no-map-in-the-contract"]);
    }
}
