//! Who may build on whom, read from the manifests: layers one way, and dependencies that have one owner.

use super::tree::{File, Tree};
use super::{Breach, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "imports-go-one-way",
        why: "bus-schema < stack < bus < agent-kit < agents < cli < tests, and os < node: what is below can be understood, built and \
              tested without what is above",
        check: imports_go_one_way,
    },
    Rule {
        name: "agents-are-apart",
        why: "agents talk only through the bus, so that each can be run, killed and replaced alone; the command line has the policies of \
              recovery and quarantine, to decide recorded incidents once more",
        check: agents_are_apart,
    },
    Rule { name: "one-owner", why: "one crate knows each outside system, so that changing it touches one place", check: one_owner },
    Rule {
        name: "pure-crates",
        why: "the contract and the planner are functions of their arguments: the simulation and the command line run them without a runtime",
        check: pure_crates,
    },
    Rule {
        name: "lints-are-the-workspace's",
        why: "a crate with lints of its own would step out of the bans, the one on unsafe code above all; only crates/os may",
        check: lints_are_the_workspaces,
    },
];

const CONTRACT: &[&str] = &["razar-bus-schema"];
const BELOW_BUS: &[&str] = &["razar-bus-schema", "razar-stack"];
const BELOW_KIT: &[&str] = &["razar-bus-schema", "razar-stack", "razar-bus"];
const BELOW_AGENTS: &[&str] = &["razar-bus-schema", "razar-stack", "razar-bus", "razar-agent-kit"];
/// The policies of the agents whose decisions `razar incident --replay` makes once more.
const BELOW_CLI: &[&str] = &["razar-bus-schema", "razar-stack", "razar-bus", "razar-agent-kit", "razar-recovery", "razar-quarantine"];
const BELOW_NODE: &[&str] = &["razar-bus-schema", "razar-stack", "razar-bus", "razar-agent-kit", "razar-os"];

/// What a folder's crate may build on, among ours. `None`: on anything.
fn may_use(folder: &str) -> Result<Option<&'static [&'static str]>, String> {
    Ok(match folder {
        "bus-schema" | "crates/os" | "examples/demo-service" => Some(&[]),
        "crates/stack" | "xtask" => Some(CONTRACT),
        "crates/bus" => Some(BELOW_BUS),
        "crates/agent-kit" => Some(BELOW_KIT),
        "agents/node" => Some(BELOW_NODE),
        "cli" => Some(BELOW_CLI),
        "tests" | "bench" => None,
        agent if agent.starts_with("agents/") => Some(BELOW_AGENTS),
        _ => return Err(format!("{folder} has no layer yet: give it one in xtask/src/tidy/layers.rs")),
    })
}

/// Outside crates that only some folders may name.
const OWNED: &[(&str, &[&str])] = &[("async-nats", &["crates/bus"]), ("nvml-wrapper", &["agents/gpu"])];

/// Folders of pure crates, and what none of them may depend on.
const PURE: &[&str] = &["bus-schema", "crates/stack"];
const IMPURE: &[&str] = &["tokio", "async-nats", "hyper", "axum", "tonic", "reqwest", "rustix", "libc", "rand", "jiff"];

/// One dependency as a manifest declares it.
struct Dependency {
    name: String,
    line: usize,
    /// Used only by tests of the crate itself.
    dev: bool,
}

/// Each manifest with a package: its folder and its dependencies.
fn crates(tree: &Tree) -> impl Iterator<Item = (&File, &str, toml::Table)> {
    tree.ending("Cargo.toml").filter_map(|file| {
        let folder = file.path.strip_suffix("/Cargo.toml")?;
        let manifest: toml::Table = file.text.parse().ok()?;
        manifest.contains_key("package").then_some((file, folder, manifest))
    })
}

fn dependencies(file: &File, manifest: &toml::Table) -> Vec<Dependency> {
    let tables = [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)];
    let mut found = Vec::new();
    for (table, dev) in tables {
        let names = manifest.get(table).and_then(toml::Value::as_table).into_iter().flat_map(|table| table.keys());
        found.extend(names.map(|name| Dependency { name: name.clone(), line: line_of(&file.text, name), dev }));
    }
    found
}

/// Where `key` is declared; the first line that begins with it.
fn line_of(text: &str, key: &str) -> usize {
    let declares = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '.', '=']));
    text.lines().position(declares).map_or(0, |at| at + 1)
}

fn each_dependency(tree: &Tree, mut wrong: impl FnMut(&str, &Dependency) -> Option<String>) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (file, folder, manifest) in crates(tree) {
        for dependency in dependencies(file, &manifest) {
            if let Some(what) = wrong(folder, &dependency) {
                breaches.push(Breach::new(&file.path, dependency.line, what));
            }
        }
    }
    breaches
}

fn imports_go_one_way(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (file, folder, _) in crates(tree) {
        if let Err(what) = may_use(folder) {
            breaches.push(Breach::new(&file.path, 0, what));
        }
    }
    breaches.extend(each_dependency(tree, |folder, dependency| {
        let allowed = may_use(folder).ok()??;
        let upward = is_ours(&dependency.name) && !dependency.dev && !allowed.contains(&dependency.name.as_str());
        upward.then(|| format!("{folder} may not build on {}; it may on: {}", dependency.name, allowed.join(", ")))
    }));
    breaches
}

fn is_ours(name: &str) -> bool {
    name == "razar" || name.starts_with("razar-")
}

fn agents_are_apart(tree: &Tree) -> Vec<Breach> {
    let agents: Vec<String> = crates(tree)
        .filter(|(_, folder, _)| folder.starts_with("agents/"))
        .filter_map(|(_, _, manifest)| Some(manifest.get("package")?.get("name")?.as_str()?.to_owned()))
        .collect();
    each_dependency(tree, |folder, dependency| {
        let tests_all = matches!(folder, "tests" | "bench");
        let replays = folder == "cli" && BELOW_CLI.contains(&dependency.name.as_str());
        (!tests_all && !replays && agents.contains(&dependency.name))
            .then(|| format!("{folder} imports the agent {}; say it over the bus", dependency.name))
    })
}

fn one_owner(tree: &Tree) -> Vec<Breach> {
    each_dependency(tree, |folder, dependency| {
        let (_, owners) = OWNED.iter().find(|(owned, _)| *owned == dependency.name)?;
        (!owners.contains(&folder)).then(|| format!("only {} may name {}", owners.join(" and "), dependency.name))
    })
}

fn pure_crates(tree: &Tree) -> Vec<Breach> {
    each_dependency(tree, |folder, dependency| {
        let impure = PURE.contains(&folder) && !dependency.dev && IMPURE.contains(&dependency.name.as_str());
        impure.then(|| format!("{folder} is pure and may not use {}", dependency.name))
    })
}

fn lints_are_the_workspaces(tree: &Tree) -> Vec<Breach> {
    let inherits = |manifest: &toml::Table| manifest.get("lints")?.get("workspace")?.as_bool();
    crates(tree)
        .filter(|(_, folder, manifest)| *folder != "crates/os" && inherits(manifest) != Some(true))
        .map(|(file, ..)| Breach::new(&file.path, 0, "write `[lints]` and `workspace = true`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken_by;

    fn manifest(folder: &str, dependencies: &str) -> (String, String) {
        let name = folder.rsplit('/').next().unwrap();
        let text = format!("[package]\nname = \"razar-{name}\"\n[lints]\nworkspace = true\n{dependencies}");
        (format!("{folder}/Cargo.toml"), text)
    }

    fn broken(manifests: &[(String, String)]) -> Vec<&'static str> {
        let files: Vec<_> = manifests.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        broken_by(&files)
    }

    #[test]
    fn building_on_what_is_above_is_seen() {
        let upward = "[dependencies]\nrazar-bus.workspace = true\n";
        assert_eq!(broken(&[manifest("crates/stack", upward)]), ["imports-go-one-way"]);
        assert_eq!(broken(&[manifest("cli", upward)]), [""; 0]);
        let os = "[dependencies]\nrazar-os.workspace = true\n";
        assert_eq!(broken(&[manifest("agents/registry", os)]), ["imports-go-one-way"]);
        assert_eq!(broken(&[manifest("agents/node", os)]), [""; 0]);
    }

    #[test]
    fn a_crate_without_a_layer_is_seen() {
        assert_eq!(broken(&[manifest("crates/new", "")]), ["imports-go-one-way"]);
    }

    #[test]
    fn an_agent_that_imports_another_is_seen_even_in_its_tests() {
        let other = "[dev-dependencies]\nrazar-registry = { path = \"../registry\" }\n";
        let found = broken(&[manifest("agents/registry", ""), manifest("agents/node", other)]);
        assert_eq!(found, ["agents-are-apart"]);
    }

    #[test]
    fn a_second_owner_of_the_broker_is_seen() {
        let nats = "[dependencies]\nasync-nats = \"0.51\"\n";
        assert_eq!(broken(&[manifest("crates/bus", nats)]), [""; 0]);
        assert_eq!(broken(&[manifest("tests", nats)]), ["one-owner"]);
    }

    #[test]
    fn a_runtime_in_a_pure_crate_is_seen() {
        let tokio = "[dependencies]\ntokio.workspace = true\n";
        assert_eq!(broken(&[manifest("bus-schema", tokio)]), ["pure-crates"]);
        assert_eq!(broken(&[manifest("crates/bus", tokio)]), [""; 0]);
    }

    #[test]
    fn lints_of_its_own_are_seen() {
        let text = "[package]\nname = \"razar-bus\"\n[lints.rust]\nunsafe_code = \"allow\"\n";
        assert_eq!(broken_by(&[("crates/bus/Cargo.toml", text)]), ["lints-are-the-workspace's"]);
        assert_eq!(broken_by(&[("crates/os/Cargo.toml", text)]), [""; 0]);
    }
}
