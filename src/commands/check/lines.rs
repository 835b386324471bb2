//! The lines of the answer: what was found, and how bad it is.

use serde::Serialize;

use crate::error::Error;
use crate::output::printable;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Somebody should look at it. Nothing is known to be lost.
    Warning,
    /// Something is wrong now.
    Failed,
}

impl Level {
    /// The word in the answer.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
        }
    }
}

/// One line of the answer: a fact with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// What was looked at.
    pub(super) name: &'static str,
    /// How it is.
    pub(super) level: Level,
    /// What was found, and what to do about it.
    pub(super) hint: Option<String>,
}

impl Line {
    /// As it should be.
    pub(super) fn ok(name: &'static str, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, hint)
    }

    /// To be looked at.
    pub(super) fn warning(name: &'static str, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Warning, hint)
    }

    /// Wrong.
    pub(super) fn failed(name: &'static str, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Failed, hint)
    }

    fn new(name: &'static str, level: Level, hint: impl Into<String>) -> Self {
        let hint: String = hint.into();
        Self {
            name,
            level,
            hint: Some(printable(hint.as_bytes())),
        }
    }
}

/// Collects lines.
#[derive(Debug, Default)]
pub(super) struct Lines(pub(super) Vec<Line>);

impl Lines {
    /// As it should be.
    pub(super) fn ok(&mut self, name: &'static str, hint: impl Into<Option<String>>) {
        let hint: Option<String> = hint.into();
        self.0.push(Line {
            name,
            level: Level::Ok,
            hint: hint.map(|hint| printable(hint.as_bytes())),
        });
    }

    /// Wrong.
    pub(super) fn failed(&mut self, name: &'static str, hint: impl Into<String>) {
        self.0.push(Line::failed(name, hint));
    }

    /// Takes findings in.
    pub(super) fn extend(&mut self, found: impl IntoIterator<Item = Line>) {
        self.0.extend(found);
    }

    /// The worst of them.
    pub(super) fn worst(&self) -> Level {
        self.0.iter().map(|line| line.level).max().unwrap_or(Level::Ok)
    }

    /// OK with what was found, or the error with its remedy.
    pub(super) fn result<T>(
        &mut self,
        name: &'static str,
        result: Result<T, Error>,
        found: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.ok(name, found(&value));
                Some(value)
            }
            Err(error) => {
                let hint = error
                    .hint_text()
                    .map(|hint| format!(". {hint}"))
                    .unwrap_or_default();
                self.failed(name, format!("{error}{hint}"));
                None
            }
        }
    }
}
