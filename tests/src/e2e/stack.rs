//! Stack files, written from Rust: JSON, which is YAML too. One part is one component.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::binary;

/// A stack file in the making.
#[derive(Debug, Clone)]
pub struct Stack {
    name: String,
    parts: Vec<Part>,
    rest: Map<String, Value>,
}

/// A component in the making.
#[derive(Debug, Clone)]
pub struct Part {
    name: String,
    fields: Map<String, Value>,
    command: Vec<String>,
}

impl Stack {
    /// An empty stack.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), parts: Vec::new(), rest: Map::new() }
    }

    /// With one component more, or in place of the one of the same name.
    #[must_use]
    pub fn with(mut self, part: Part) -> Self {
        self.parts.retain(|p| p.name != part.name);
        self.parts.push(part);
        self
    }

    /// Without a component.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.parts.retain(|p| p.name != name);
        self
    }

    /// With a key at the top of the file.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.rest.insert(key.to_owned(), value);
        self
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |p: &Part| {
            let mut fields = p.fields.clone();
            fields.insert("command".to_owned(), json!(p.command));
            (p.name.clone(), Value::Object(fields))
        };
        let mut file = self.rest.clone();
        file.insert("name".to_owned(), json!(self.name));
        file.insert("components".to_owned(), Value::Object(self.parts.iter().map(part).collect()));
        format!("{:#}\n", Value::Object(file))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, self.text())?)
    }
}

impl Part {
    /// The demo service, listening on `port` and probed there.
    ///
    /// # Errors
    /// When it was not built.
    pub fn demo(name: &str, port: u16) -> Result<Self> {
        let program = binary("razar-demo-service")?.to_string_lossy().into_owned();
        let part = Self::of(name, vec![program, format!("--name={name}"), format!("--port={port}")]);
        Ok(part
            .set("ports", json!([port]))
            .set("readiness", json!({ "http": { "port": port, "path": "/health" }, "period": "250ms" }))
            .set("liveness", json!({ "http": { "port": port, "path": "/alive" }, "period": "250ms", "timeout": "250ms" })))
    }

    /// A shell script without probes.
    #[must_use]
    pub fn shell(name: &str, script: &str) -> Self {
        Self::of(name, vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]).set("readiness", json!("none"))
    }

    fn of(name: &str, command: Vec<String>) -> Self {
        let part = Self { name: name.to_owned(), fields: Map::new(), command };
        part.set("chakra", json!("heart")).set("stop", json!({ "grace": "2s" }))
    }

    /// With a field set, or replaced.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.fields.insert(key.to_owned(), value);
        self
    }

    /// Without a field.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.fields.remove(key);
        self
    }

    /// With an argument more.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.push(argument.to_owned());
        self
    }

    /// After `name` is ready.
    #[must_use]
    pub fn after(mut self, name: &str) -> Self {
        let needs = self.fields.entry("depends_on").or_insert_with(|| json!({}));
        if let Some(needs) = needs.as_object_mut() {
            needs.insert(name.to_owned(), json!({ "condition": "ready" }));
        }
        self
    }
}
