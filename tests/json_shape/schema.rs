//! The schemas of the JSON documents: `docs/schema/NAME.json`, in JSON Schema 2020-12.
//!
//! A schema names every key and allows no other one, so that a new key fails a test until it is described there.
//! `BARMANFS_TEST_WRITE_SHAPE=1` adds to the schemas what the documents of this run have and they lack, and writes the
//! tables of `docs/json.md` again; the descriptions are written by hand.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// The tables of `docs/json.md` are behind this line.
const TABLES_BEGIN: &str = "<!-- The rest is written by the test json_shape from docs/schema. -->\n";

/// Documents of this run by the names of their schemas.
#[derive(Debug, Default)]
pub(super) struct Documents(BTreeMap<String, Vec<Value>>);

impl Documents {
    pub(super) fn add(&mut self, name: &str, document: Value) {
        self.0.entry(name.to_owned()).or_default().push(document);
    }

    /// Every document agrees with its schema, every schema is described, and so are its keys in `docs/json.md`.
    pub(super) fn assert_schemas(&self) {
        let writing = std::env::var_os("BARMANFS_TEST_WRITE_SHAPE").is_some();
        for (name, documents) in &self.0 {
            let file = directory().join(format!("{name}.json"));
            let stored = fs::read_to_string(&file).ok();
            let mut schema = match &stored {
                Some(text) => serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}")),
                None if writing => new_schema(name),
                None => panic!("{name} has no schema: write it with BARMANFS_TEST_WRITE_SHAPE=1"),
            };
            if writing {
                documents
                    .iter()
                    .for_each(|document| extend(&mut schema, document));
                let text = format!("{schema:#}\n");
                fs::write(&file, text).expect("Cannot write a schema");
            }
            assert_valid(name, &schema, documents);
        }
        let tables = tables();
        let file = directory().join("../json.md");
        let text = fs::read_to_string(&file).expect("Cannot read docs/json.md");
        let (head, stored) = text
            .split_once(TABLES_BEGIN)
            .expect("docs/json.md has a place for tables");
        if writing {
            fs::write(&file, format!("{head}{TABLES_BEGIN}{tables}")).expect("Cannot write docs/json.md");
        } else {
            assert!(
                stored == tables,
                "docs/json.md does not have the keys of the schemas: write it with BARMANFS_TEST_WRITE_SHAPE=1"
            );
        }
    }
}

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema"))
}

fn assert_valid(name: &str, schema: &Value, documents: &[Value]) {
    let validator = jsonschema::draft202012::new(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    for document in documents {
        let faults: Vec<String> = validator
            .iter_errors(document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(
            faults.is_empty(),
            "{name} differs from its schema: {}\n{document:#}",
            faults.join("\n")
        );
    }
}

fn new_schema(name: &str) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "description": "",
    })
}

/// Adds what a value has and its schema lacks. An object whose keys depend on the case has no `properties` in a schema.
fn extend(schema: &mut Value, value: &Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    let is_free = fields.contains_key("type") && !fields.contains_key("properties") && value.is_object();
    if is_free && types_of(fields).iter().any(|known| known == "object") {
        return;
    }
    add_type(fields, type_of(value));
    match value {
        Value::Object(members) => {
            let properties = fields.entry("properties").or_insert_with(|| json!({}));
            for (key, member) in members {
                let properties = properties.as_object_mut().expect("properties are an object");
                let of_key = properties
                    .entry(key.clone())
                    .or_insert_with(|| json!({"description": ""}));
                extend(of_key, member);
            }
            let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
            let names = json!(names);
            fields.insert("required".to_owned(), names);
            fields.insert("additionalProperties".to_owned(), json!(false));
        }
        Value::Array(elements) => {
            let items = fields.entry("items").or_insert_with(|| json!({}));
            elements.iter().for_each(|element| extend(items, element));
        }
        _ => {}
    }
}

fn types_of(schema: &Map<String, Value>) -> Vec<String> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn add_type(fields: &mut Map<String, Value>, found: &str) {
    let mut types = types_of(fields);
    let is_known = types
        .iter()
        .any(|known| known == found || (known == "number" && found == "integer"));
    if is_known {
        return;
    }
    types.push(found.to_owned());
    types.sort_by_key(|name| name == "null");
    let types = match types.as_slice() {
        [one] => json!(one),
        all => json!(all),
    };
    fields.insert("type".to_owned(), types);
}

/// The name that JSON Schema has for a value's type.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The keys of all schemas for people, one section for each schema.
fn tables() -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(directory())
        .expect("Cannot read docs/schema")
        .map(|entry| entry.expect("Cannot read docs/schema").path())
        .collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let schema: Value = serde_json::from_str(&fs::read_to_string(&file).expect("Cannot read a schema"))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let said = |key: &str| schema[key].as_str().unwrap_or_default().to_owned();
        assert!(
            !said("description").is_empty(),
            "{} has no description",
            file.display()
        );
        writeln!(text, "\n## {}\n\n{}", said("title"), said("description")).unwrap();
        writeln!(text, "\n| key | type | meaning |\n|---|---|---|").unwrap();
        rows(&schema, "", &mut text);
    }
    text
}

fn rows(schema: &Value, place: &str, text: &mut String) {
    for (key, of_key) in schema["properties"].as_object().into_iter().flatten() {
        if key == "schema_version" || key.ends_with("_epoch") {
            continue;
        }
        let place = match place {
            "" => key.clone(),
            place => format!("{place}.{key}"),
        };
        let description = of_key["description"].as_str().unwrap_or_default();
        assert!(
            !description.is_empty(),
            "{}: {place} has no description",
            schema["title"]
        );
        writeln!(text, "| `{place}` | {} | {description} |", types(of_key)).unwrap();
        rows(of_key, &place, text);
        rows(&of_key["items"], &format!("{place}[]"), text);
    }
}

fn types(schema: &Value) -> String {
    let types = schema.as_object().map(types_of).unwrap_or_default();
    types.join(", ")
}
