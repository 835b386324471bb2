//! Paths of files inside a backup, as a foreign source names them.

/// A path inside a data directory that a source must not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a path inside a data directory", .0.escape_ascii())]
pub struct UnsafePath(Vec<u8>);

/// The longest path that is accepted, as Linux's `PATH_MAX`.
const LONGEST_BYTES: usize = 4096;

/// The longest name in a path, as Linux's `NAME_MAX`.
const LONGEST_NAME_BYTES: usize = 255;

/// Checks a relative path: it is not empty, has no leading or trailing slash, and no component is empty, `.`, `..`, too long
/// or has a NUL.
///
/// # Errors
/// [`UnsafePath`] with the path.
pub fn relative(path: &[u8]) -> Result<&[u8], UnsafePath> {
    let is_safe = |name: &[u8]| {
        !matches!(name, b"" | b"." | b"..") && name.len() <= LONGEST_NAME_BYTES && !name.contains(&0)
    };
    match path.len() <= LONGEST_BYTES && path.split(|byte| *byte == b'/').all(is_safe) {
        true => Ok(path),
        false => Err(UnsafePath(path.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_stay_inside_are_taken() {
        for good in [
            "PG_VERSION",
            "base/5/1259",
            "pg_tblspc/16384/PG_18_202506291/5/1",
            "..a/b..",
        ] {
            assert_eq!(relative(good.as_bytes()), Ok(good.as_bytes()));
        }
        let long = "a".repeat(256);
        let deep = "a/".repeat(2048) + "ab";
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "a//b",
            "a/",
            "./a",
            "a/../../b",
            "..",
            "a\0b",
            &long,
            &deep,
        ] {
            assert!(relative(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
