//! Paths in a tree: relative to its root, and only one for each file.

use crate::error::{Error, Result};
use crate::listing::check_name;

/// Maximum length of a path in bytes, as on Linux (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// Checks a path that came from outside and removes a leading "./": "./base/5/1259" is "base/5/1259".
///
/// # Errors
/// [`Error::Invalid`]: it is empty, absolute, too long, leads outside (".."), or has a name no file can have.
pub(super) fn checked(path: &[u8]) -> Result<&[u8]> {
    let refused =
        |reason: String| Error::Invalid(format!("Path \"{}\" is refused: {reason}", path.escape_ascii()));
    let relative = path.strip_prefix(b"./").unwrap_or(path);
    if relative.starts_with(b"/") {
        return Err(refused(
            "It is absolute, and only paths below the backup's root are stored".to_owned(),
        ));
    }
    if relative.len() > MAX_PATH_BYTES {
        return Err(refused(format!(
            "It has {} bytes, at most {MAX_PATH_BYTES} are possible",
            relative.len()
        )));
    }
    relative
        .split(|&byte| byte == b'/')
        .try_for_each(check_name)
        .map_err(refused)?;
    Ok(relative)
}

/// The directory a path is in (empty: the root) and its name there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

/// How many directories a path goes down; 0 for the root.
pub(super) fn depth(path: &[u8]) -> usize {
    if path.is_empty() {
        0
    } else {
        1 + path.iter().filter(|&&byte| byte == b'/').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_stay_as_they_are() {
        assert_eq!(checked(b"base/5/1259").unwrap(), b"base/5/1259");
        assert_eq!(checked(b"./PG_VERSION").unwrap(), b"PG_VERSION");
        assert_eq!(checked(b"...").unwrap(), b"...");
        assert_eq!(checked(b"odd name\xff\n").unwrap(), b"odd name\xff\n");
    }

    #[test]
    fn bad_paths_are_refused_with_the_reason() {
        let long_name = vec![b'x'; 256];
        let long_path = b"abc/".repeat(1025);
        let cases: [(&[u8], &str); 12] = [
            (b"", "is empty"),
            (b"./", "is empty"),
            (b"/etc/passwd", "It is absolute"),
            (b".//etc/passwd", "It is absolute"),
            (b"..", "is not a name of its own"),
            (b"base/../../etc", "is not a name of its own"),
            (b"base/./5", "is not a name of its own"),
            (b"base//5", "is empty"),
            (b"base/5/", "is empty"),
            (b"base/\x005", "NUL"),
            (&long_name, "longer than 255"),
            (&long_path, "It has 4100 bytes"),
        ];
        for (path, reason) in cases {
            let error = checked(path).unwrap_err().to_string();
            assert!(error.starts_with("Path \"") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn parts() {
        assert_eq!(split(b"PG_VERSION"), (&b""[..], &b"PG_VERSION"[..]));
        assert_eq!(split(b"base/5/1259"), (&b"base/5"[..], &b"1259"[..]));
        assert_eq!([depth(b""), depth(b"base"), depth(b"base/5")], [0, 1, 2]);
    }
}
