//! Errors in a value or a file, each in one line.

/// A short text, such as an LSN or a file name, that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid {what} {text:?}: expected {expected}")]
pub struct ParseError {
    /// What the text should have been: "LSN", "timeline".
    pub what: &'static str,
    /// The text, cut after [`ParseError::SHOWN_CHARACTERS`].
    pub text: String,
    /// What a correct text looks like.
    pub expected: &'static str,
}

impl ParseError {
    /// How many characters of a wrong text are shown.
    pub const SHOWN_CHARACTERS: usize = 80;

    pub(crate) fn new(what: &'static str, text: &str, expected: &'static str) -> Self {
        let text = text.chars().take(Self::SHOWN_CHARACTERS).collect();
        Self { what, text, expected }
    }
}

/// One of PostgreSQL's own files is not as PostgreSQL writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {reason}")]
pub struct FormatError {
    /// The kind of file: "backup_label", "tablespace_map".
    pub file: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

impl FormatError {
    pub(crate) fn new(file: &'static str, line: usize, reason: impl Into<String>) -> Self {
        Self {
            file,
            line,
            reason: reason.into(),
        }
    }
}
