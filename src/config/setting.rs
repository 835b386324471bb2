//! What a key does here: the answer of `config check` for each line of a configuration.

use super::keys::{self, Secrecy};
use super::origin::Origin;
use super::secrets::{HIDDEN, Secrets};
use crate::output::printable;
use crate::postgres::Conninfo;

/// What a setting does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// What is written.
    Obeyed,
    /// It is empty or `None`: the default holds, and nothing is inherited.
    Unset,
    /// Something else than what is written.
    Mapped(String),
    /// Nothing, for this reason.
    Nothing(String),
    /// It is wrong. The text says what is allowed, and what happens now.
    Wrong(String),
}

/// A value that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Continues a message that begins with the key.
    pub(super) message: String,
    /// See [`super::Problem::forbids_storing`].
    pub(super) forbids_storing: bool,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self {
            message,
            forbids_storing: false,
        }
    }
}

/// The section that a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The section itself.
    Own,
    /// `[DEFAULT]` of the same file.
    Default,
    /// The global section.
    Global,
    /// The active model of this name.
    Model(String),
}

/// A key as it is set for a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The key, in lower case.
    pub(crate) key: String,
    /// The value that counts, printable and without secrets.
    pub(crate) value: String,
    /// The line that sets it.
    pub(crate) origin: Origin,
    /// Where it was inherited from.
    pub(crate) source: Source,
    /// What it does.
    pub(crate) effect: Effect,
}

impl Setting {
    /// Whether its value, or the key itself, is wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        matches!(self.effect, Effect::Wrong(_))
    }
}

/// A value as it may be shown.
pub(super) fn shown(key: &str, value: &str, secrets: &Secrets) -> String {
    match keys::secrecy(key) {
        Secrecy::Plain => secrets.hide(printable(value.as_bytes())),
        Secrecy::ConnectionString => Conninfo::without_secrets(value, |value| secrets.are_in(value))
            .map_or_else(|| HIDDEN.to_owned(), |text| printable(text.as_bytes())),
        Secrecy::Hidden => HIDDEN.to_owned(),
    }
}
