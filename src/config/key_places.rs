//! The keys of the global section about encrypted repositories: where their keys are.

use std::path::PathBuf;

use super::values::absolute;

/// What they say.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyPlaces {
    /// A file with age identities, or the 32 bytes of one.
    pub(crate) file: Option<PathBuf>,
    /// A shell command that prints the same.
    pub(crate) command: Option<String>,
    /// A file with a passphrase in its first line.
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// Whether the key is one of these.
pub(super) fn is_one(key: &str) -> bool {
    matches!(key, "key_file" | "key_command" | "passphrase_file")
}

impl KeyPlaces {
    /// Sets a key.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "key_file" => self.file = Some(absolute(value)?),
            "passphrase_file" => self.passphrase_file = Some(absolute(value)?),
            _ => self.command = Some(value.to_owned()),
        }
        Ok(())
    }

    /// Whether any is there.
    pub(crate) fn are_named(&self) -> bool {
        self.file.is_some() || self.command.is_some() || self.passphrase_file.is_some()
    }
}
