//! The scripts that run before and after an operation, as they are configured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A server's hook scripts.
#[derive(Debug, Clone, Default)]
pub(crate) struct HookScripts {
    /// Command lines of a shell, by their keys.
    pub(crate) scripts: BTreeMap<String, String>,
    /// How long a hook may take, with all its attempts; `None` for no limit.
    pub(crate) timeout: Option<Duration>,
    /// The command that is run when a check fails or is good again.
    pub(crate) notify_command: Option<String>,
    /// The main file of the configuration.
    pub(crate) configuration: PathBuf,
}

impl HookScripts {
    /// Whether any script is to be run for an operation, by the word for it in the keys.
    pub(crate) fn has(&self, operation: &str) -> bool {
        let is_its = |key: &String| {
            let starts = |phase: &str| key.starts_with(&format!("{phase}_{operation}_"));
            starts("pre") || starts("post")
        };
        self.scripts.keys().any(is_its)
    }
}
