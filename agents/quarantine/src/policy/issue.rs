//! What kind of trouble the last error's text tells of, and what may help.

/// An issue type with a suggested fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// `dependency`, `logic`, `external` or `manual`.
    pub kind: &'static str,
    /// What may help, for people.
    pub fix: String,
}

/// Issue type of what an operator isolated.
pub const MANUAL: &str = "manual";

/// Words of a missing module or library, in lower case.
const DEPENDENCY: [&str; 12] = [
    "importerror",
    "modulenotfounderror",
    "no module named",
    "cannot import name",
    "cannot find module",
    "module not found",
    "err_module_not_found",
    "cannot open shared object file",
    "error while loading shared libraries",
    "classnotfoundexception",
    "noclassdeffounderror",
    "cannot load such file",
];

/// Words of a mistake in the program or its data, in lower case.
const LOGIC: [&str; 9] = [
    "assertionerror",
    "assertion",
    "typeerror",
    "valueerror",
    "keyerror",
    "indexerror",
    "attributeerror",
    "jsondecodeerror",
    "panicked at",
];

/// Judges by the text of the last error.
#[must_use]
pub fn of(error: &str) -> Issue {
    let text = error.to_ascii_lowercase();
    if DEPENDENCY.iter().any(|word| text.contains(word)) {
        let fix = module(error).map_or_else(|| "install what it could not load".to_owned(), |name| format!("install {name}"));
        return Issue { kind: "dependency", fix };
    }
    if LOGIC.iter().any(|word| text.contains(word)) {
        return Issue { kind: "logic", fix: "mend the code or the data that it names".to_owned() };
    }
    Issue { kind: "external", fix: "look at what it needs from outside: network, disk, memory, other services".to_owned() }
}

/// The module that could not be loaded, where the text quotes one: `No module named 'torch'`.
fn module(error: &str) -> Option<&str> {
    let rest = error.split_once("odule named ").or_else(|| error.split_once("find module ")).map(|(_, rest)| rest)?;
    let name = rest.trim_start_matches(['\'', '"']).split(['\'', '"', ' ', ';', ',']).next()?;
    (!name.is_empty() && name.len() <= 100).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_the_last_error_tells_the_type() {
        let table = [
            ("ModuleNotFoundError: No module named 'torch'", "dependency", "install torch"),
            ("Error: Cannot find module 'express'", "dependency", "install express"),
            ("ImportError: cannot import name 'x' from 'y'", "dependency", "install what it could not load"),
            ("libcuda.so.1: cannot open shared object file", "dependency", "install what it could not load"),
            ("AssertionError", "logic", "mend the code or the data that it names"),
            ("TypeError: 'NoneType' object is not callable", "logic", "mend the code or the data that it names"),
            ("ValueError: 3", "logic", "mend the code or the data that it names"),
            ("KeyError: 'id'", "logic", "mend the code or the data that it names"),
            ("IndexError: list index out of range", "logic", "mend the code or the data that it names"),
            ("AttributeError: x", "logic", "mend the code or the data that it names"),
        ];
        for (error, kind, fix) in table {
            assert_eq!(of(error), Issue { kind, fix: fix.to_owned() }, "{error}");
        }
        for error in ["", "connection refused", "signal 9", "503 from model index"] {
            assert_eq!(of(error).kind, "external", "{error}");
        }
    }
}
