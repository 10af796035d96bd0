//! The JSON Schema knows the same keys as the reader, says what each is for, and its example is a sound stack.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::{collections::BTreeSet, path::Path};

use razar_stack::{Code, Source, load, schema};
use serde_json::Value;

fn schema_value() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

/// Keys that are not known in `text`.
fn unknown(text: &str) -> BTreeSet<String> {
    let found = load(&Source { file: "f", text, dir: Path::new("/srv") }, &|_| None).unwrap_err();
    let keys = found.all().iter().filter(|d| d.code == Code::UnknownKey);
    keys.map(|d| d.message.split('`').nth(1).unwrap().to_owned()).collect()
}

/// The beginning of a file, up to where the keys of a definition stand.
const PLACES: &[(&str, &str)] = &[
    ("", ""),
    ("Mesh", "mesh:"),
    ("Budget", "mesh: { local_restarts: {"),
    ("Defaults", "defaults:"),
    ("ProbeDefaults", "defaults: { probes: {"),
    ("Timing", "defaults: { probes: { liveness: {"),
    ("Chakra", "chakras: { x: {"),
    ("Hook", "chakras: { x: { heal_hook: {"),
    ("Component", "components: { a: {"),
    ("Secret", "components: { a: { secrets: { X: {"),
    ("Probe", "components: { a: { liveness: {"),
    ("Http", "components: { a: { liveness: { http: {"),
    ("Tcp", "components: { a: { liveness: { tcp: {"),
    ("Grpc", "components: { a: { liveness: { grpc: {"),
    ("Log", "components: { a: { startup: { log: {"),
    ("Heartbeat", "components: { a: { liveness: { heartbeat: {"),
    ("Stop", "components: { a: { stop: {"),
    ("Resources", "components: { a: { resources: {"),
    ("DependsOn", "components: { a: { depends_on: { b: {"),
    ("Restart", "components: { a: { restart: {"),
    ("Backoff", "components: { a: { restart: { backoff: {"),
    ("Placement", "components: { a: { node: {"),
    ("Logs", "components: { a: { logs: {"),
    ("Profile", "profiles: { p: {"),
    ("ProfileLimits", "profiles: { p: { limits: {"),
];

#[test]
fn the_reader_knows_every_key_of_the_schema_and_the_schema_every_definition() {
    let schema = schema_value();
    let definitions = schema["$defs"].as_object().unwrap();
    let objects: BTreeSet<&str> = definitions.iter().filter(|(_, d)| d.get("properties").is_some()).map(|(n, _)| n.as_str()).collect();
    let listed: BTreeSet<&str> = PLACES.iter().map(|(name, _)| *name).filter(|n| !n.is_empty()).collect();
    assert_eq!(objects, listed);
    for (name, place) in PLACES {
        let definition = if name.is_empty() { &schema } else { &definitions[*name] };
        let keys = definition["properties"].as_object().unwrap().keys().cloned();
        let body: Vec<String> = keys.chain(["not-a-key".to_owned()]).map(|key| format!("{key}: {{}}")).collect();
        let open = place.matches('{').count();
        let text = if name.is_empty() {
            body.join("\n")
        } else if open == 0 {
            format!("{place} {{ {} }}", body.join(", "))
        } else {
            format!("{place} {} {}", body.join(", "), "}".repeat(open))
        };
        assert_eq!(unknown(&text), BTreeSet::from(["not-a-key".to_owned()]), "{name}: {text}");
    }
}

#[test]
fn every_key_says_what_it_is_for_and_no_other_is_allowed() {
    let schema = schema_value();
    let definitions = schema["$defs"].as_object().unwrap();
    for (name, definition) in definitions.iter().map(|(n, d)| (n.as_str(), d)).chain([("", &schema)]) {
        let Some(properties) = definition.get("properties").and_then(Value::as_object) else { continue };
        assert_eq!(definition["additionalProperties"], Value::Bool(false), "{name}");
        assert!(definition["description"].is_string(), "{name}");
        for (key, value) in properties {
            assert!(value["description"].is_string(), "{name}.{key} says nothing");
        }
    }
}

#[test]
fn the_example_of_the_schema_is_a_sound_stack() {
    let schema = schema_value();
    let text = schema["examples"][0].to_string();
    let loaded = load(&Source { file: "f", text: &text, dir: Path::new("/srv") }, &|_| None).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
}
