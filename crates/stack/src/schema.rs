//! The JSON Schema of the stack file, for editors; made from the types of `file` and their comments.

use serde_json::{Value, json};

use crate::file::StackFile;

/// JSON Schema (2020-12) of the stack file, indented, with descriptions and an example; ends with a newline.
#[must_use]
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(StackFile).to_value();
    variables_too(&mut schema);
    if let Value::Object(root) = &mut schema {
        root.insert("examples".to_owned(), json!([example()]));
        root.insert("patternProperties".to_owned(), json!({ "^x-": { "description": "Notes and anchors of yours; not read." } }));
    }
    // A schema is a tree of texts; writing it cannot fail.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

/// Wherever a number or a truth value is wanted, a text with a variable in it will do.
fn variables_too(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(types) =
                map.get("type").map(type_names).filter(|t| t.iter().any(|t| ["integer", "number", "boolean"].contains(&t.as_str())))
                && !types.contains(&"string".to_owned())
            {
                let types: Vec<String> = types.into_iter().chain(["string".to_owned()]).collect();
                map.insert("type".to_owned(), json!(types));
                map.insert("pattern".to_owned(), json!(r"\$\{"));
            }
            map.values_mut().for_each(variables_too);
        }
        Value::Array(items) => items.iter_mut().for_each(variables_too),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `"type"` as a list; anything else (a property that is called so) has none.
fn type_names(of: &Value) -> Vec<String> {
    match of {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
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
