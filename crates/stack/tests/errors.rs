//! The error registry: what the built-in entries know, whose word counts first, and what a stack's own file may say.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly, its helpers too")]

use std::path::Path;

use razar_bus_schema::v1;
use razar_stack::{
    Source,
    errors::{Registry, read},
};

fn list(text: &str) -> Registry {
    let entries = read(&Source { file: "errors.yaml", text, dir: Path::new("/") }).unwrap();
    Registry::new(&entries.iter().map(razar_stack::KnownErrorSpec::to_known).collect::<Vec<_>>())
}

fn of(registry: &Registry, error: &str) -> (String, String, String) {
    let v1::Issue { known, issue_type, suggested_fix, .. } = registry.issue(error);
    (known, issue_type, suggested_fix)
}

#[test]
fn the_built_in_entries_name_what_is_missing() {
    let table = [
        ("ModuleNotFoundError: No module named 'torch'", "python-module-missing", "dependency", "install torch"),
        ("ImportError: No module named sklearn.linear_model", "python-module-missing", "dependency", "install sklearn.linear_model"),
        ("Error: Cannot find module 'express'", "node-module-missing", "dependency", "install express"),
        (
            "libcuda.so.1: cannot open shared object file: No such file",
            "shared-library-missing",
            "dependency",
            "install the library libcuda.so.1, or put it on LD_LIBRARY_PATH",
        ),
        (
            "OSError: [Errno 98] Address already in use",
            "address-in-use",
            "external",
            "stop what holds the port (razar doctor names it), or choose another one",
        ),
        ("OSError: [Errno 28] No space left on device", "disk-full", "external", "free disk space"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
            "device-memory-exhausted",
            "external",
            "free GPU memory, or load a smaller model or batch",
        ),
        (
            "dial tcp 127.0.0.1:5433: connect: connection refused",
            "connection-refused",
            "external",
            "start what it connects to, or add it to depends_on",
        ),
    ];
    for (error, known, kind, fix) in table {
        assert_eq!(of(&Registry::default(), error), (known.to_owned(), kind.to_owned(), fix.to_owned()), "{error}");
    }
}

#[test]
fn what_no_entry_knows_is_judged_by_its_words() {
    let table = [
        ("ImportError: cannot import name 'x' from 'y'", "dependency", "install what it could not load"),
        ("AssertionError", "logic", "mend the code or the data that it names"),
        ("TypeError: 'NoneType' object is not callable", "logic", "mend the code or the data that it names"),
        ("ValueError: 3", "logic", "mend the code or the data that it names"),
        ("KeyError: 'id'", "logic", "mend the code or the data that it names"),
        ("IndexError: list index out of range", "logic", "mend the code or the data that it names"),
        ("AttributeError: x", "logic", "mend the code or the data that it names"),
    ];
    for (error, kind, fix) in table {
        assert_eq!(of(&Registry::default(), error), (String::new(), kind.to_owned(), fix.to_owned()), "{error}");
    }
    for error in ["", "signal 9", "503 from model index"] {
        assert_eq!(of(&Registry::default(), error).1, "external", "{error}");
    }
}

#[test]
fn a_stacks_own_entries_are_asked_first_and_in_order() {
    let registry = list(
        r#"
errors:
  - { name: cache, pattern: "JSONDecodeError: (?<file>cache/\\S+)", issue: logic, fix: "remove {file}, not {other} or ${HOME}", begin_with: clear_state }
  - { name: any-json, pattern: JSONDecodeError, issue: logic, fix: mend the JSON }
  - { name: torch, pattern: "No module named 'torch'", issue: dependency, fix: make gpu, begin_with: quarantine }
"#,
    );
    let cache = registry.issue("JSONDecodeError: cache/index.json");
    assert_eq!((cache.known.as_str(), cache.rung.as_str()), ("cache", "clear_state"));
    assert_eq!(cache.suggested_fix, "remove cache/index.json, not {other} or ${HOME}");
    assert_eq!(registry.issue("JSONDecodeError: x").known, "any-json");
    let torch = registry.issue("ModuleNotFoundError: No module named 'torch'");
    assert_eq!((torch.suggested_fix.as_str(), torch.rung.as_str()), ("make gpu", "quarantine"));
    assert_eq!(registry.issue("No module named 'jax'").known, "python-module-missing");
}

#[test]
fn what_a_group_catches_is_cut_and_cleaned() {
    let registry = list("errors: [{ name: a, pattern: \"bad (?<what>.*)\", issue: logic, fix: \"mend {what}\" }]");
    let fix = registry.issue(&format!("bad \u{1b}[31m{}", "x".repeat(10_000))).suggested_fix;
    assert!(fix.len() < 120 && !fix.contains('\u{1b}'), "{fix}");
}

#[test]
fn a_pattern_cannot_make_a_search_slow() {
    let registry = list("errors: [{ name: a, pattern: \"(a+)+b$\", issue: logic, fix: x }]");
    let began = std::time::Instant::now();
    assert!(registry.issue(&"a".repeat(100_000)).known.is_empty());
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}
