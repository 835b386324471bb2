//! `tablespace_map`: where the tablespaces of a base backup were.
//!
//! One line for each: the tablespace's OID, a space, the path of its directory. A line feed,
//! carriage return or backslash in the path has a backslash before it. Source: `do_pg_backup_start`
//! in `src/backend/access/transam/xlog.c`, `read_tablespace_map` in `xlogrecovery.c`.

use crate::FormatError;

const FILE: &str = "tablespace_map";

/// Reads a `tablespace_map` into OIDs and paths, in the file's order.
///
/// # Errors
/// A line without OID or path; a last line that does not end.
pub fn parse(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, FormatError> {
    let mut tablespaces = Vec::new();
    let mut line = Vec::new();
    let mut number = 1;
    let mut after_backslash = false;
    for &byte in bytes {
        match byte {
            b'\n' | b'\r' if !after_backslash => {
                // The two bytes of a CR LF have an empty line between them.
                if !line.is_empty() {
                    tablespaces.push(parse_line(&line, number)?);
                    line.clear();
                }
                number += usize::from(byte == b'\n');
            }
            b'\\' if !after_backslash => after_backslash = true,
            _ => {
                line.push(byte);
                after_backslash = false;
            }
        }
    }
    if !line.is_empty() || after_backslash {
        return Err(FormatError::new(
            FILE,
            number,
            "The line has no end, so the file is cut short",
        ));
    }
    Ok(tablespaces)
}

fn parse_line(line: &[u8], number: usize) -> Result<(u32, Vec<u8>), FormatError> {
    let wrong = || {
        FormatError::new(
            FILE,
            number,
            "Expected the OID of a tablespace, a space and its path",
        )
    };
    let space = line.iter().position(|&byte| byte == b' ').ok_or_else(wrong)?;
    let (oid, path) = line.split_at(space);
    let oid = std::str::from_utf8(oid)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(wrong)?;
    match path {
        [b' ', path @ ..] if !path.is_empty() && oid > 0 => Ok((oid, path.to_vec())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The file PostgreSQL would write.
    fn write(tablespaces: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut file = Vec::new();
        for (oid, path) in tablespaces {
            file.extend(format!("{oid} ").into_bytes());
            for &byte in path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    file.push(b'\\');
                }
                file.push(byte);
            }
            file.push(b'\n');
        }
        file
    }

    #[test]
    fn says_which_line_is_wrong() {
        for (bytes, line) in [
            (&b"16384 /a\n16385\n"[..], 2),
            (b"x /a\n", 1),
            (b"0 /a\n", 1),
            (b"16384 \n", 1),
            (b"16384 /a", 1),
            (b"16384 /a\\", 1),
        ] {
            assert_eq!(parse(bytes).unwrap_err().line, line);
        }
    }

    #[test]
    fn an_empty_file_has_none() {
        assert_eq!(parse(b""), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_path_round_trips(
            tablespaces in prop::collection::vec((1_u32.., prop::collection::vec(1_u8.., 1..40)), 0..5)
        ) {
            prop_assert_eq!(parse(&write(&tablespaces)), Ok(tablespaces));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
