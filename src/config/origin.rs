//! Where a setting is written, and what there is to say about it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct File(Arc<Path>);

impl File {
    pub(super) fn new(path: impl AsRef<Path>) -> Self {
        Self(path.as_ref().into())
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A line of it, counted from 1.
    pub(super) fn at(&self, line: usize) -> Origin {
        Origin {
            file: self.clone(),
            line,
        }
    }
}

/// The place of a section or of a key. `Display` is `FILE:LINE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    file: File,
    line: usize,
}

impl Origin {
    /// The file.
    pub(crate) fn file(&self) -> &Path {
        self.file.path()
    }

    /// The line, counted from 1.
    pub(crate) fn line(&self) -> usize {
        self.line
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file().display(), self.line)
    }
}

/// Why a server is disabled. `Display` is `FILE:LINE: message`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// The line that is wrong.
    pub(crate) origin: Origin,
    /// What is wrong with it, and what is allowed.
    pub(crate) message: String,
    /// Whether nothing of the server may be stored, not even WAL that arrives: it would be less safe than what somebody
    /// asked for.
    pub(crate) forbids_storing: bool,
}

impl Problem {
    /// About the form of a file. It does not stop archiving.
    pub(super) fn of_form(origin: Origin, message: String) -> Self {
        Self {
            origin,
            message,
            forbids_storing: false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// A warning about a line. `Display` is `FILE:LINE: message`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Notice {
    /// The line.
    pub(crate) origin: Origin,
    /// What there is to say about it.
    pub(crate) message: String,
    /// The message is that the key has no effect.
    pub(crate) is_without_effect: bool,
    /// The message is about what one key does, which [`super::Setting`] says as well.
    pub(crate) is_about_a_value: bool,
}

impl Notice {
    /// About the form of a file.
    pub(super) fn of_form(origin: &Origin, message: String) -> Self {
        Self {
            origin: origin.clone(),
            message,
            is_without_effect: false,
            is_about_a_value: false,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}
