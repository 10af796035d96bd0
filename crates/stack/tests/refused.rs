//! Wrong files and exactly what is said about each: `refused/NAME.yaml` with `refused/NAME.txt`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use razar_stack::{Diagnostics, FILE_BYTES_MAX, Outside, Severity, Source, load, load_with};

/// A machine on which the files of `tests` lie in `/srv/stack`, and no program that is called missing.
struct Here;

impl Outside for Here {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn text(&self, path: &Path) -> Result<String, String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let below = path.strip_prefix("/srv/stack").map_err(|e| e.to_string())?;
        fs::read_to_string(dir.join(below)).map_err(|_| "no such file".to_owned())
    }

    fn program(&self, program: &str) -> Result<(), String> {
        if program.contains("missing") { Err(format!("{program}: no such file")) } else { Ok(()) }
    }
}

fn said(text: &str) -> Diagnostics {
    match load_with(&Source { file: "razar.yaml", text, dir: Path::new("/srv/stack") }, &Here) {
        Ok(loaded) => loaded.warnings,
        Err(found) => found,
    }
}

#[test]
fn each_wrong_file_gets_exactly_its_diagnostics() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    assert!(files.len() > 25, "{} files in {}", files.len(), dir.display());
    let mut wrong = Vec::new();
    for file in files {
        let expected = fs::read_to_string(file.with_extension("txt")).unwrap().replace("{RELEASE}", env!("CARGO_PKG_VERSION"));
        let found = said(&fs::read_to_string(&file).unwrap()).to_string() + "\n";
        if found != expected {
            wrong.push(format!("--- {}\nexpected:\n{expected}\nfound:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_but_the_largest_files_is_met_by_a_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let texts: String = fs::read_dir(&dir).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect();
    for code in razar_stack::Code::ALL {
        assert!(texts.contains(&format!("[{}]", code.as_str())), "no wrong file shows {}", code.as_str());
    }
}

#[test]
fn a_file_too_large_is_not_even_parsed() {
    let found = said(&"#".repeat(FILE_BYTES_MAX + 1)).to_string();
    assert_eq!(found, format!("error[too_large] razar.yaml has {} bytes; a stack file has at most {FILE_BYTES_MAX}", FILE_BYTES_MAX + 1));
}

#[test]
fn a_component_too_large_for_the_bus_is_refused() {
    let long = "x".repeat(30_000);
    let env: String = (0..5).map(|n| format!("      V{n}: {long}\n")).collect();
    let found = said(&format!("name: s\ncomponents:\n  a:\n    chakra: root\n    command: [a]\n    readiness: none\n    env:\n{env}"));
    assert!(found.to_string().starts_with("error[too_large] razar.yaml:3:3 a: 150"), "{found}");
}

#[test]
fn hundreds_of_mistakes_are_cut_and_counted() {
    let many: String = (0..500).map(|n| format!("  c{n}: {{ chakra: root, command: [a], readiness: none, wrong: 1 }}\n")).collect();
    let found = said(&format!("name: s\ncomponents:\n{many}"));
    assert_eq!(found.all().len(), razar_stack::DIAGNOSTICS_MAX);
    assert_eq!(found.left_out(), 300);
    assert!(found.to_string().ends_with("\n300 more are not shown"));
}

#[test]
fn programs_get_an_object_a_line() {
    let found = said("name: s\ncomponents:\n  a: { chakra: root, comand: [a], readiness: none }\n");
    assert_eq!(
        found.to_json_lines(),
        concat!(
            r#"{"severity":"error","code":"unknown_key","file":"razar.yaml","line":3,"column":22,"component":"a","#,
            r#""message":"`comand` is not known","hint":"`command`","#,
            r#""excerpt":{"text":"  a: { chakra: root, comand: [a], readiness: none }","before":21,"width":6}}"#,
            "\n"
        )
    );
    assert!(found.has_errors() && found.all()[0].severity == Severity::Error);
}

#[test]
fn a_variable_s_value_is_never_told() {
    let text = "name: s\ncomponents:\n  a: { chakra: root, command: [a], ports: [\"${SECRET}\"], readiness: none }\n";
    let source = Source { file: "razar.yaml", text, dir: Path::new("/srv") };
    let found = load(&source, &|_| Some("hunter2".to_owned())).unwrap_err().to_string();
    assert!(found.contains("`${SECRET}` is not a port") && !found.contains("hunter2"), "{found}");
}
