//! The `restore_command` that reads the archive on a mount, as a copy may replay it (`.barmanfs/replay`).
//!
//! PostgreSQL takes exit code 1 for "the archive ends here" and promotes. So 1 must not mean that the mount is gone, a
//! directory is not readable, or the copy failed. In these cases the code is 255, on which recovery stops with FATAL
//! and can be tried again.

use std::path::Path;

use barmanfs_catalog::ServerName;

/// PostgreSQL 13 cuts the command at MAXPGPATH (`src/backend/access/transam/xlogarchive.c`) after it has replaced `%f`
/// and `%p`, which take the rest.
const MAX_BYTES: usize = 1023 - 6 * 32;

/// The WAL that the command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Archived WAL.
    Archive,
    /// Archived WAL, and then the segment that is being received.
    WithUnfinished,
}

/// The command, as PostgreSQL passes it to `sh` after it has replaced `%f` and `%p`. It needs only coreutils. A
/// configuration file quotes it in single quotes. `None` if the mount point's path cannot be part of it.
///
/// It checks for the proof that the segment is absent before it copies, so a segment that is archived in between is
/// copied.
pub fn restore_command(mount_point: &Path, server: &ServerName) -> Option<String> {
    command(mount_point, server, Reading::Archive)
}

/// The same for either reading.
pub(super) fn command(mount_point: &Path, server: &ServerName, reading: Reading) -> Option<String> {
    let mount_point = mount_point
        .to_str()
        .filter(|path| !path.contains(['\n', '\r', '\0']))?;
    let at = in_double_quotes(mount_point);
    let absent = format!("test -e \"$m/.barmanfs/absent/{server}/%f\"");
    let ended = match reading {
        Reading::Archive => format!("{absent} && exit 1"),
        // A received segment may be archived before it is copied, so absence is checked again afterwards.
        Reading::WithUnfinished => format!(
            "{absent} && {{ cp \"$m/.barmanfs/receiving/{server}/%f\" \"%p\" 2>/dev/null && exit 0; {absent} && exit 1; }}"
        ),
    };
    let command = format!("m=\"{at}\"; {ended}; cp \"$m/.barmanfs/replay/{server}/%f\" \"%p\" || exit 255");
    (command.len() <= MAX_BYTES).then_some(command)
}

/// A path in double quotes of `sh`, in a command in which PostgreSQL replaces `%`.
fn in_double_quotes(path: &str) -> String {
    let mut quoted = String::new();
    for c in path.chars() {
        match c {
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            _ => quoted.push(c),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main() -> ServerName {
        "main".parse().unwrap()
    }

    #[test]
    fn restore_command_returns_1_only_on_proof() {
        assert_eq!(
            restore_command(Path::new("/mnt/backups"), &main()).unwrap(),
            "m=\"/mnt/backups\"; test -e \"$m/.barmanfs/absent/main/%f\" && exit 1; \
             cp \"$m/.barmanfs/replay/main/%f\" \"%p\" || exit 255"
        );
        assert_eq!(
            command(Path::new("/mnt/backups"), &main(), Reading::WithUnfinished).unwrap(),
            "m=\"/mnt/backups\"; test -e \"$m/.barmanfs/absent/main/%f\" && { \
             cp \"$m/.barmanfs/receiving/main/%f\" \"%p\" 2>/dev/null && exit 0; \
             test -e \"$m/.barmanfs/absent/main/%f\" && exit 1; }; \
             cp \"$m/.barmanfs/replay/main/%f\" \"%p\" || exit 255"
        );
    }

    #[test]
    fn hostile_paths_are_quoted_or_refused() {
        let command = restore_command(Path::new("/a \"b\" $HOME/50%"), &main()).unwrap();
        assert!(
            command.starts_with("m=\"/a \\\"b\\\" \\$HOME/50%%\"; "),
            "{command}"
        );
        assert_eq!(restore_command(Path::new("/a\nb"), &main()), None);
        let long = format!("/{}", "a".repeat(MAX_BYTES));
        assert_eq!(restore_command(Path::new(&long), &main()), None);
    }
}
