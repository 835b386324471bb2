//! The one JSON document that a command with `--json` prints, whether it succeeds or fails.
//!
//! Programs read standard output to its end and parse it. So an error is in there, too: a command that fails prints a
//! document with [`ERROR_KEY`], and with what it had found by then. That is why a document is printed at the end, and
//! only a list that is too long for memory before.

use barmanfs_catalog::json;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// The key of the error.
const ERROR_KEY: &str = "error";

/// What is to be printed, or has been begun.
#[derive(Debug, Default)]
pub(super) enum Document {
    /// Nothing yet.
    #[default]
    Empty,
    /// A document that is complete unless the command fails.
    Value(Value),
    /// A list whose elements are printed one by one.
    List {
        /// Number of elements so far.
        elements: u64,
    },
}

impl Document {
    /// Sets the document.
    pub(super) fn set(&mut self, value: Value) {
        *self = Self::Value(value);
    }

    /// Begins a document with a list under `name`. Returns the text to print.
    pub(super) fn begin_list(&mut self, name: &str) -> String {
        *self = Self::List { elements: 0 };
        let version = json::SCHEMA_VERSION;
        format!("{{\n  \"schema_version\": {version},\n  \"{name}\": [\n")
    }

    /// Adds an element to the list. Returns the text to print.
    pub(super) fn element(&mut self, value: &Value) -> String {
        let separator = match self {
            Self::List { elements: 0 } => "",
            _ => ",\n",
        };
        if let Self::List { elements } = self {
            *elements += 1;
        }
        format!("{separator}{value}")
    }

    /// The text that is left to print.
    pub(super) fn end(&mut self, error: Option<&Error>) -> String {
        let error = error.map(error_object);
        match (std::mem::take(self), error) {
            (Self::Empty, None) => String::new(),
            (Self::Empty, Some(error)) => {
                pretty(&with_error(json::document(&json!({})).unwrap_or_default(), error))
            }
            (Self::Value(value), None) => pretty(&value),
            (Self::Value(value), Some(error)) => pretty(&with_error(value, error)),
            (Self::List { .. }, None) => "\n]}\n".to_owned(),
            (Self::List { .. }, Some(error)) => format!("\n],\n\"{ERROR_KEY}\": {error}}}\n"),
        }
    }
}

fn error_object(error: &Error) -> Value {
    json!({
        "message": error.to_string(),
        "hint": error.hint_text(),
        "exit_code": error.code(),
    })
}

fn with_error(document: Value, error: Value) -> Value {
    let mut fields = match document {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.insert(ERROR_KEY.to_owned(), error);
    Value::Object(fields)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn failed() -> Error {
        Error::failed("it is gone").hint("look for it")
    }

    #[test]
    fn a_failed_command_has_a_document_with_the_error() {
        assert_eq!(
            parsed(&Document::default().end(Some(&Error::usage("no such thing")))),
            json!({
                "schema_version": 1,
                "error": {"message": "no such thing", "hint": null, "exit_code": 2},
            })
        );
    }

    #[test]
    fn an_error_joins_what_was_found() {
        let mut document = Document::default();
        document.set(json!({"schema_version": 1, "backups": [1]}));
        let error = json!({"message": "it is gone", "hint": "look for it", "exit_code": 1});
        assert_eq!(
            parsed(&document.end(Some(&failed()))),
            json!({"schema_version": 1, "backups": [1], "error": error})
        );
        for done in [None, Some(&failed())] {
            let mut text = document.begin_list("files");
            text.push_str(&document.element(&json!({"path": "a"})));
            text.push_str(&document.element(&json!({"path": "b"})));
            text.push_str(&document.end(done));
            assert_eq!(parsed(&text)["files"], json!([{"path": "a"}, {"path": "b"}]));
            assert_eq!(parsed(&text)["error"].is_object(), done.is_some());
        }
        let mut text = document.begin_list("files");
        text.push_str(&document.end(None));
        assert_eq!(parsed(&text), json!({"schema_version": 1, "files": []}));
    }
}
