//! The stacks of `examples/` and the one of the format's description are sound, and plan as they should.

use std::{collections::BTreeMap, path::Path};

use razar_stack::{History, NodeFacts, Outside, Source, load_with, plan};

/// The machine that the tests run on, without variables; whether a program is there is seen where it is run.
struct Here;

impl Outside for Here {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn text(&self, path: &Path) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|error| error.to_string())
    }

    fn program(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn the_examples_are_sound_and_plan() {
    for (name, components) in [("quickstart", 12), ("unified-77", 77), ("llm-stack", 6), ("healing", 3)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name).canonicalize().unwrap();
        let text = std::fs::read_to_string(dir.join("razar.yaml")).unwrap();
        let loaded = load_with(&Source { file: "razar.yaml", text: &text, dir: &dir }, &Here).map_err(|d| d.to_string()).unwrap();
        assert_eq!(loaded.warnings.to_string(), "", "{name}");
        let mut profiles = loaded.document.profile_names();
        profiles.push("");
        for profile in profiles {
            let resolved = loaded.document.resolve(profile).unwrap();
            let node = NodeFacts { name: "a".to_owned(), ..NodeFacts::default() };
            let plan = plan(&resolved, &[node], &History::default(), &BTreeMap::new()).unwrap();
            assert!(!profile.is_empty() || plan.rows.len() == components, "{name} {profile} {}", plan.rows.len());
        }
    }
}
