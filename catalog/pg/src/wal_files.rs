//! Checks the small files of the archive, `.history` and `.backup`, against their names.
//!
//! PostgreSQL writes them whole, so a truncated or empty file is left over from a crash or a failed copy. A file that
//! PostgreSQL cannot read must not be acknowledged: recovery would stop at it, and a wrong position in a history would
//! mislead it.

use crate::backup_label::start_location;
use crate::history::TimelineHistory;
use crate::wal_name::WalName;
use crate::{FormatError, SegmentSize};

const HISTORY: &str = "Timeline history";
const BACKUP: &str = "Backup history";

/// Checks the content of a `.history` or `.backup` file; other files are not checked.
///
/// # Errors
/// The first thing that PostgreSQL would not have written.
pub fn check_small_file(name: &WalName, bytes: &[u8]) -> Result<(), FormatError> {
    match name {
        WalName::History(timeline) => {
            check_whole(HISTORY, bytes)?;
            let history = TimelineHistory::parse(bytes, *timeline)?;
            check_ancestors(&history)
        }
        WalName::BackupHistory { .. } => {
            check_whole(BACKUP, bytes)?;
            check_backup_history(name, bytes)
        }
        WalName::Segment(_) | WalName::Partial(_) => Ok(()),
    }
}

/// The reasons and labels in it may be in any encoding; the rest is lines of ASCII.
fn check_whole(file: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
    let lines = bytes.split(|&byte| byte == b'\n');
    if bytes.is_empty() {
        return Err(FormatError::new(file, 1, "It is empty"));
    }
    for (number, line) in (1..).zip(lines) {
        if line.contains(&0) {
            return Err(FormatError::new(file, number, "It has a zero byte"));
        }
    }
    let last = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
    match bytes.last() {
        Some(b'\n') => Ok(()),
        _ => Err(FormatError::new(file, last, "It ends in the midst of the line")),
    }
}

fn check_ancestors(history: &TimelineHistory) -> Result<(), FormatError> {
    let entries = history.entries();
    if entries.is_empty() {
        return Err(FormatError::new(HISTORY, 1, "It names no timeline before"));
    }
    for pair in entries.windows(2) {
        if let [earlier, later] = pair
            && later.switch_lsn < earlier.switch_lsn
        {
            let reason = format!(
                "Timeline {} was left at {}, before it began at {}",
                later.timeline, later.switch_lsn, earlier.switch_lsn
            );
            return Err(FormatError::new(HISTORY, 1, reason));
        }
    }
    Ok(())
}

/// Checks only the lines that PostgreSQL itself writes: a label may contain anything, even further lines.
fn check_backup_history(name: &WalName, bytes: &[u8]) -> Result<(), FormatError> {
    let mut lines = bytes.split(|&byte| byte == b'\n').map(String::from_utf8_lossy);
    for (number, key) in [(1, "START WAL LOCATION: "), (2, "STOP WAL LOCATION: ")] {
        let line = lines.next().unwrap_or_default();
        let place = line.strip_prefix(key).and_then(start_location);
        let Some((lsn, segment)) = place else {
            return Err(FormatError::new(
                BACKUP,
                number,
                format!("Expected {}", key.trim_end_matches(": ")),
            ));
        };
        if let (
            1,
            WalName::BackupHistory {
                segment: named,
                offset,
            },
        ) = (number, name)
        {
            let in_segment = |size: u64| lsn.0 & (size - 1) == u64::from(*offset);
            if segment != *named || !sizes().any(in_segment) {
                let reason = format!("It is of a backup that starts at {lsn} in {segment}");
                return Err(FormatError::new(BACKUP, number, reason));
            }
        }
    }
    match lines
        .next()
        .unwrap_or_default()
        .starts_with("CHECKPOINT LOCATION: ")
    {
        true => Ok(()),
        false => Err(FormatError::new(BACKUP, 3, "Expected CHECKPOINT LOCATION")),
    }
}

/// The sizes a segment can have, in bytes.
fn sizes() -> impl Iterator<Item = u64> {
    (20..=30)
        .map(|power| 1 << power)
        .filter(|bytes| SegmentSize::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, bytes: &[u8]) -> Result<(), String> {
        check_small_file(&name.parse().unwrap(), bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn histories_as_postgresql_writes_them_pass() {
        for bytes in [
            &b"1\t0/3000000\tno recovery target specified\n"[..],
            b"1\t0/3000000\tbefore 2026-11-20\n\n2\t0/3000000\tat restore point \"\xe9\"\n",
        ] {
            check("00000003.history", bytes).unwrap();
        }
    }

    #[test]
    fn other_histories_are_refused() {
        for (name, bytes, says) in [
            ("00000002.history", &b"hello\n"[..], "hello"),
            ("00000002.history", b"", "empty"),
            ("00000002.history", b"\n\n", "no timeline"),
            ("00000002.history", b"# nothing\n", "no timeline"),
            ("00000002.history", b"1\t0/3000000\treason", "midst"),
            ("00000002.history", b"1\t0/30", "midst"),
            ("00000002.history", b"2\t0/3000000\treason\n", "order"),
            ("00000001.history", b"1\t0/3000000\treason\n", "order"),
            ("00000003.history", b"2\t0/1\tr\n1\t0/2\tr\n", "order"),
            ("00000003.history", b"1\t0/5\tr\n2\t0/4\tr\n", "before it began"),
            ("00000002.history", b"1\t0/3000000\treason\n\0\0\0\n", "zero"),
            ("00000002.history", b"1 \xff\xfe\n", "LSN"),
        ] {
            let error = check(name, bytes).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    const BACKUP: &str = "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\n\
        STOP WAL LOCATION: 0/900100 (file 000000010000000000000009)\nCHECKPOINT LOCATION: 0/900060\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nLABEL: a\nSTART TIMELINE: 99\n";

    #[test]
    fn backup_histories_must_match_their_names() {
        let name = "000000010000000000000009.00000028.backup";
        check(name, BACKUP.as_bytes()).unwrap();
        check("000000010000000000000009.00900028.backup", BACKUP.as_bytes()).unwrap();
        check("00000001000000000000000A.00000028.backup", BACKUP.as_bytes()).unwrap_err();
        check("000000010000000000000009.00000029.backup", BACKUP.as_bytes()).unwrap_err();
        check(name, b"hello\n").unwrap_err();
        check(name, b"").unwrap_err();
        check(name, &BACKUP.as_bytes()[..30]).unwrap_err();
        check(name, BACKUP.replace("STOP", "HALT").as_bytes()).unwrap_err();
    }
}
