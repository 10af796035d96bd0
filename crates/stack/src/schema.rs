//! The JSON Schema of the stack file, for editors; made from the types of `file` and their comments.

use serde_json::{Value, json};

use crate::file::StackFile;

/// JSON Schema (2020-12) of the stack file, indented, with descriptions and an example; ends with a newline.
#[must_use]
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(StackFile).to_value();
    if let Value::Object(root) = &mut schema {
        root.insert("examples".to_owned(), json!([example()]));
        root.insert("patternProperties".to_owned(), json!({ "^x-": { "description": "Notes and anchors of yours; not read." } }));
    }
    // A schema is a tree of texts; writing it cannot fail.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

fn example() -> Value {
    json!({
        "name": "my-stack",
        "components": {
            "redis": {
                "chakra": "heart",
                "command": ["redis-server", "--port", "6380"],
                "ports": [6380],
                "readiness": { "exec": ["redis-cli", "-p", "6380", "ping"] }
            },
            "api": {
                "chakra": "throat",
                "command": ["./api.sh"],
                "ports": [8080],
                "readiness": { "http": { "port": 8080, "path": "/health" } },
                "depends_on": { "redis": { "condition": "ready" } }
            }
        }
    })
}
