//! Names in what another tool keeps.

use barmanfs_pg::ParseError;

/// A name that the tool does not give, or that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of a {what} of {tool}")]
pub struct InvalidName {
    tool: &'static str,
    what: &'static str,
    text: String,
}

impl InvalidName {
    pub(crate) fn new(tool: &'static str, what: &'static str, text: &str) -> Self {
        let text = text.chars().take(ParseError::SHOWN_CHARACTERS).collect();
        Self { tool, what, text }
    }
}
