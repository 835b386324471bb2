//! The command line that calls this program from elsewhere: from PostgreSQL, cron or a service. None of them has a
//! shell's `PATH`.

use std::path::{Path, PathBuf};

/// The path in the README's instructions. Used if the program's own path is unknown.
const INSTALLED: &str = "/usr/local/bin/barmanfs";

/// The words that call this program with its present configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    program: PathBuf,
    config: Option<PathBuf>,
}

impl Invocation {
    /// The running program. `config` is the file from the command line, if any.
    pub(crate) fn current(config: Option<&Path>) -> Self {
        // A program that was replaced while it runs no longer has a path.
        let own = std::env::current_exe().ok().filter(|path| path.exists());
        Self {
            program: own.unwrap_or_else(|| INSTALLED.into()),
            config: config.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        }
    }

    /// The file of the configuration that was given on the command line.
    pub(crate) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The command line for a shell: `/usr/local/bin/barmanfs -c /etc/other.conf ARGUMENTS`.
    pub(crate) fn with(&self, arguments: &str) -> String {
        let mut line = quoted(&self.program);
        if let Some(config) = &self.config {
            line += " -c ";
            line += &quoted(config);
        }
        format!("{line} {arguments}")
    }

    /// The line of `postgresql.conf` that archives for `server`.
    pub(crate) fn archive_command(&self, server: &str) -> String {
        // In the quotes of a setting, a quote is doubled. A percent sign is doubled because it would be a placeholder.
        let command = self.with(&format!("wal-archive {server} "));
        let command = command.replace('\'', "''").replace('%', "%%");
        format!("archive_command = '{command}%p'")
    }
}

/// Quotes a path for a shell, only if it has special characters.
fn quoted(path: &Path) -> String {
    quoted_text(&path.to_string_lossy())
}

/// Quotes a word for a shell, only if it has special characters.
pub(crate) fn quoted_text(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@:,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_for_elsewhere_has_absolute_paths_and_is_quoted() {
        let plain = Invocation {
            program: "/usr/local/bin/barmanfs".into(),
            config: None,
        };
        assert_eq!(
            plain.archive_command("main"),
            "archive_command = '/usr/local/bin/barmanfs wal-archive main %p'"
        );
        let strange = Invocation {
            program: "/opt/my tools/barmanfs".into(),
            config: Some("/etc/100%/b.conf".into()),
        };
        assert_eq!(
            strange.with("check main"),
            "'/opt/my tools/barmanfs' -c '/etc/100%/b.conf' check main"
        );
        assert_eq!(
            strange.archive_command("main"),
            "archive_command = '''/opt/my tools/barmanfs'' -c ''/etc/100%%/b.conf'' wal-archive main %p'"
        );
    }

    #[test]
    fn a_relative_configuration_is_made_absolute() {
        let line = Invocation::current(Some(Path::new("b.conf"))).with("version");
        assert!(
            line.starts_with('/') && line.contains("/b.conf version"),
            "{line}"
        );
    }
}
