//! The password file, `~/.pgpass`: lines of `host:port:database:user:password`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Secret;

/// The search for a password.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The host of the settings; `localhost` for the default socket directory.
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Any of these matches. A replication connection has the name `replication`.
    pub(super) databases: &'a [&'a str],
    pub(super) user: &'a str,
}

/// The first matching password in the file.
///
/// Without the file there is no password. As in libpq, a file that others can read is ignored with a warning:
/// its passwords are no longer secret.
pub(super) fn look_up(path: &Path, wanted: Wanted<'_>) -> Option<Secret> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("Could not read password file {}: {error}", path.display());
            }
            return None;
        }
    };
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        tracing::warn!(
            "Password file {} is not a plain file; it is not used",
            path.display()
        );
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            "Password file {} has group or world access and is not used; permissions should be u=rw (0600) or less",
            path.display()
        );
        return None;
    }
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    lines.filter_map(|line| password_in(&line, wanted)).next()
}

/// The line's password if its four fields match.
fn password_in(line: &[u8], wanted: Wanted<'_>) -> Option<Secret> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    let port = wanted.port.to_string();
    let fits = |field: &Field, value: &str| field.is_wildcard || field.text == value.as_bytes();
    let host = next_field(&mut rest)?;
    let port_field = next_field(&mut rest)?;
    let database = next_field(&mut rest)?;
    let user = next_field(&mut rest)?;
    let all_fit = fits(&host, wanted.host)
        && fits(&port_field, &port)
        && wanted.databases.iter().any(|name| fits(&database, name))
        && fits(&user, wanted.user);
    all_fit.then(|| Secret::new(unescape(rest)))
}

struct Field {
    /// `*` alone, not escaped.
    is_wildcard: bool,
    text: Vec<u8>,
}

/// Takes one field and the colon after it; `None` if there is no colon.
fn next_field(rest: &mut &[u8]) -> Option<Field> {
    let line = *rest;
    let mut escaped = false;
    let end = line.iter().position(|&byte| {
        let ends = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    let (raw, after) = line.split_at(end);
    *rest = after.get(1..)?;
    Some(Field {
        is_wildcard: raw == b"*",
        text: unescape(raw),
    })
}

/// A backslash makes the next byte literal.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => text.extend(bytes.next().copied()),
            _ => text.push(byte),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        host: "db.example.com",
        port: 5432,
        databases: &["replication", "main"],
        user: "bar:man",
    };

    #[test]
    fn fields_wildcards_and_escapes() {
        let cases: &[(&str, Option<&str>)] = &[
            (r"db.example.com:5432:replication:bar\:man:secret", Some("secret")),
            (r"*:*:*:*:any", Some("any")),
            (r"*:*:main:*:by name", Some("by name")),
            (r"*:*:other:*:x", None),
            (r"*:5433:*:*:x", None),
            (r"localhost:*:*:*:x", None),
            (r"\*:*:*:*:x", None),
            (r"*:*:*:bar\:man:a\:b\\c:d", Some(r"a:b\c:d")),
            ("*:*:*:*:dos\r", Some("dos")),
            (r"#*:*:*:*:x", None),
            (r"*:*:*:*", None),
            ("", None),
            (r"*:*:*:*:", Some("")),
        ];
        for (line, expected) in cases {
            let found = password_in(line.as_bytes(), WANTED);
            assert_eq!(
                found.as_ref().map(Secret::expose),
                expected.map(str::as_bytes),
                "{line}"
            );
        }
    }

    #[test]
    fn the_first_matching_line_wins_and_the_file_must_be_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pass");
        std::fs::write(&path, "x:*:*:*:no\n*:*:*:*:first\n*:*:*:*:second").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(look_up(&path, WANTED).is_none());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(look_up(&path, WANTED).unwrap().expose(), b"first");
        assert!(look_up(&directory.path().join("absent"), WANTED).is_none());
        assert!(look_up(directory.path(), WANTED).is_none());
    }
}
