//! The `restore_command` that reads `wal/` on a mount.
//!
//! PostgreSQL takes exit code 1 for "the archive ends here" and promotes. So 1 may mean nothing else: not that the
//! mount is gone, nor that a directory may not be read, nor that the copy failed. For these it is 255, on which recovery stops with
//! FATAL and can be tried again.

use std::path::Path;

use barmanfs_catalog::ServerName;

/// The command, as PostgreSQL gives it to `sh` once it has replaced `%f` and `%p`; needs coreutils alone. In a
/// configuration file it stands between single quotes. `None` where the mount point's path cannot be written there.
///
/// First the proof that the segment is absent, then the copy: a segment that is archived in between is copied.
pub fn restore_command(mount_point: &Path, server: &ServerName) -> Option<String> {
    let mount_point = mount_point
        .to_str()
        .filter(|path| !path.contains(['\n', '\r', '\0']))?;
    let at = in_double_quotes(mount_point);
    Some(format!(
        "test -e \"{at}/.barmanfs/absent/{server}/%f\" && exit 1; \
         cp \"{at}/{server}/wal/%f\" \"%p\" || exit 255"
    ))
}

/// A path between double quotes of `sh`, in a command in which PostgreSQL replaces `%`.
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

    #[test]
    fn hostile_paths_are_quoted() {
        let server: ServerName = "main".parse().unwrap();
        let command = restore_command(Path::new("/mnt/backups"), &server).unwrap();
        assert_eq!(
            command,
            "test -e \"/mnt/backups/.barmanfs/absent/main/%f\" && exit 1; \
             cp \"/mnt/backups/main/wal/%f\" \"%p\" || exit 255"
        );
        let command = restore_command(Path::new("/a \"b\" $HOME/50%"), &server).unwrap();
        assert!(
            command.contains("\"/a \\\"b\\\" \\$HOME/50%%/main/wal/%f\""),
            "{command}"
        );
        assert_eq!(restore_command(Path::new("/a\nb"), &server), None);
    }
}
