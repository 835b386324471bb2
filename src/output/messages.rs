//! Barman's JSON: one object in one line, with results by server and messages in lists.
//!
//! Messages are printed as they come, because there may be millions (the files of a backup). Warnings and errors come at
//! the end.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::output::Kept;

/// The key of messages.
const INFO: &str = "_INFO";
/// The key of warnings.
const WARNING: &str = "_WARNING";
/// The key of errors.
const ERROR: &str = "_ERROR";

/// What has been printed, and what is left to print.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Whether the list of messages has been begun.
    begun: bool,
    /// One result for each server.
    results: Map<String, Value>,
}

impl Messages {
    /// Prints a message.
    pub(super) fn info(&mut self, out: &mut impl Write, text: &str) -> io::Result<()> {
        let text = super::harmless_json(&json!(text).to_string()).into_owned();
        match std::mem::replace(&mut self.begun, true) {
            false => write!(out, "{{{}: [{text}", json!(INFO)),
            true => write!(out, ", {text}"),
        }
    }

    /// Sets the result of a server.
    pub(super) fn result(&mut self, name: &str, value: Value) {
        self.results.insert(name.to_owned(), value);
    }

    /// The text that is left to print.
    pub(super) fn end(&mut self, error: Option<&Error>, kept: Kept) -> String {
        let mut rest = std::mem::take(&mut self.results);
        let mut errors = kept.errors;
        errors.extend(error.map(|error| match error.hint_text() {
            Some(hint) => format!("{error}. {hint}"),
            None => error.to_string(),
        }));
        for (key, texts) in [(WARNING, kept.warnings), (ERROR, errors)] {
            if !texts.is_empty() {
                rest.insert(key.to_owned(), json!(texts));
            }
        }
        let rest = Value::Object(rest).to_string();
        match (self.begun, rest.strip_prefix('{')) {
            (true, Some("}")) => "]}\n".to_owned(),
            (true, Some(rest)) => format!("], {rest}\n"),
            _ => format!("{rest}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(texts: &[&str], results: &[&str], warnings: &[&str], error: Option<&Error>) -> Value {
        let (mut messages, mut out) = (Messages::default(), Vec::new());
        for text in texts {
            messages.info(&mut out, text).unwrap();
        }
        let kept = Kept {
            warnings: warnings.iter().map(ToString::to_string).collect(),
            errors: Vec::new(),
        };
        for name in results {
            messages.result(name, json!({}));
        }
        out.extend(messages.end(error, kept).into_bytes());
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn messages_and_results_are_one_object_in_one_line() {
        let error = Error::failed("it is gone").hint("Look for it");
        assert_eq!(printed(&[], &[], &[], None), json!({}));
        assert_eq!(
            printed(&["a", "b\"c"], &[], &[], None),
            json!({"_INFO": ["a", "b\"c"]})
        );
        assert_eq!(
            printed(&[], &["main"], &["w"], None),
            json!({"main": {}, "_WARNING": ["w"]})
        );
        assert_eq!(
            printed(&["a"], &["main"], &[], Some(&error)),
            json!({"_INFO": ["a"], "main": {}, "_ERROR": ["it is gone. Look for it"]})
        );
    }
}
