//! `backup_label`: where recovery of a base backup has to start.
//!
//! Source: `src/backend/access/transam/xlogbackup.c`. The backup history file in the archive
//! (`….backup`) has the same lines and a few more, so it can be read here too.

use crate::wal_name::SegmentName;
use crate::{FormatError, Lsn, TimelineId};

const FILE: &str = "backup_label";

/// How the lines begin that only the label of an incremental backup has.
const INCREMENTAL: &[u8] = b"INCREMENTAL FROM ";

/// The label of the full backup made from an incremental one: without the lines that name the backup it was based on,
/// as `pg_combinebackup` writes it. A server does not start with these lines.
#[must_use]
pub fn without_incremental(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines
        .filter(|line| !line.starts_with(INCREMENTAL))
        .flatten()
        .copied()
        .collect()
}

/// The contents of a `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay has to start: the redo position of the backup's checkpoint.
    pub start_lsn: Lsn,
    /// The segment that position is in.
    pub start_segment: SegmentName,
    /// Where the backup's checkpoint record is.
    pub checkpoint_lsn: Lsn,
    /// How the backup was made: "streamed", or "pg_start_backup" before PostgreSQL 15.
    pub method: Option<String>,
    /// What it was taken from: "primary" ("master" before PostgreSQL 14) or "standby".
    pub from: Option<String>,
    /// When it started, in the time zone of the server's log.
    pub start_time: Option<String>,
    /// The label its maker gave it.
    pub label: Option<String>,
    /// The timeline it started on.
    pub start_timeline: TimelineId,
    /// Start and timeline of the backup that this one is based on (PostgreSQL 17 and later).
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

impl BackupLabel {
    /// Reads a `backup_label`. Unknown lines are skipped, as in PostgreSQL.
    ///
    /// # Errors
    /// When a line about the start is missing or malformed, or contradicts another.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut lines = Lines::new(bytes);
        let (start_lsn, start_segment) = lines.require("START WAL LOCATION: ", start_location)?;
        let checkpoint_lsn = lines.require("CHECKPOINT LOCATION: ", |text| text.parse().ok())?;
        let mut label = Self {
            start_lsn,
            start_segment,
            checkpoint_lsn,
            method: None,
            from: None,
            start_time: None,
            label: None,
            start_timeline: start_segment.timeline,
            incremental_from: None,
        };
        label.read_rest(&mut lines)?;
        Ok(label)
    }

    fn read_rest(&mut self, lines: &mut Lines<'_>) -> Result<(), FormatError> {
        let (mut incremental_lsn, mut incremental_timeline) = (None, None);
        while let Some(line) = lines.next() {
            let Some((key, value)) = line.split_once(": ") else {
                continue;
            };
            let text = || Some(value.to_owned());
            match key {
                "BACKUP METHOD" => self.method = text(),
                "BACKUP FROM" => self.from = text(),
                "START TIME" => self.start_time = text(),
                "LABEL" => self.label = text(),
                "START TIMELINE" => {
                    let timeline: TimelineId = value.parse().map_err(|_| lines.wrong("a timeline"))?;
                    if timeline != self.start_segment.timeline {
                        return Err(lines.wrong(&format!("timeline {}", self.start_segment.timeline)));
                    }
                }
                "INCREMENTAL FROM LSN" => {
                    incremental_lsn = Some(value.parse().map_err(|_| lines.wrong("an LSN"))?);
                }
                "INCREMENTAL FROM TLI" => {
                    incremental_timeline = Some(value.parse().map_err(|_| lines.wrong("a timeline"))?);
                }
                _ => {}
            }
        }
        self.incremental_from = incremental_lsn.zip(incremental_timeline);
        Ok(())
    }
}

/// `0/900028 (file 000000010000000000000009)`
pub(crate) fn start_location(text: &str) -> Option<(Lsn, SegmentName)> {
    let (lsn, file) = text.split_once(" (file ")?;
    Some((lsn.parse().ok()?, file.strip_suffix(')')?.parse().ok()?))
}

/// The file's lines, with the number of the one last read.
struct Lines<'a> {
    rest: std::slice::Split<'a, u8, fn(&u8) -> bool>,
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes.split(|&byte| byte == b'\n'),
            number: 0,
        }
    }

    fn next(&mut self) -> Option<String> {
        self.number += 1;
        self.rest
            .next()
            .map(|line| String::from_utf8_lossy(line).into_owned())
    }

    /// The value of the next line, which must begin with `key`. A backup history file has the backup's stop position in
    /// between.
    fn require<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, FormatError> {
        let mut line = self.next().unwrap_or_default();
        if line.starts_with("STOP WAL LOCATION: ") {
            line = self.next().unwrap_or_default();
        }
        line.strip_prefix(key)
            .and_then(read)
            .ok_or_else(|| self.wrong(key.trim_end_matches(": ")))
    }

    fn wrong(&self, expected: &str) -> FormatError {
        FormatError::new(FILE, self.number, format!("Expected {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\n\
        CHECKPOINT LOCATION: 0/900060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-21 00:25:17 UTC\nLABEL: nightly: all\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_what_postgresql_writes() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x90_0028));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000009");
        assert_eq!(label.checkpoint_lsn, Lsn(0x90_0060));
        assert_eq!(label.label.as_deref(), Some("nightly: all"));
        assert_eq!(label.from.as_deref(), Some("primary"));
        assert_eq!(label.start_time.as_deref(), Some("2026-11-21 00:25:17 UTC"));
        assert_eq!(label.incremental_from, None);
    }

    #[test]
    fn reads_the_increments_origin() {
        let text = format!("{LABEL}INCREMENTAL FROM LSN: 0/0800028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn(0x80_0028), TimelineId(1))));
        assert_eq!(without_incremental(text.as_bytes()), LABEL.as_bytes());
    }

    #[test]
    fn reads_a_backup_history_file() {
        let stop = "STOP WAL LOCATION: 0/900100 (file 000000010000000000000009)\nCHECKPOINT";
        let text =
            LABEL.replacen("CHECKPOINT", stop, 1) + "STOP TIME: 2026-11-21 00:25:18 UTC\nSTOP TIMELINE: 1\n";
        assert_eq!(
            BackupLabel::parse(text.as_bytes()),
            BackupLabel::parse(LABEL.as_bytes())
        );
    }

    #[test]
    fn says_which_line_is_wrong() {
        let wrong =
            |from: &str, to: &str| BackupLabel::parse(LABEL.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert_eq!(
            wrong("START WAL", "start wal").to_string(),
            "backup_label, line 1: Expected START WAL LOCATION"
        );
        assert_eq!(wrong("0/900060", "none").line, 2);
        assert_eq!(wrong(")\n", ")\r\n").line, 1);
        assert_eq!(
            wrong("TIMELINE: 1", "TIMELINE: 2").to_string(),
            "backup_label, line 7: Expected timeline 1"
        );
        assert_eq!(BackupLabel::parse(b"").unwrap_err().line, 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail: Vec<u8>) {
            let _ = BackupLabel::parse(&tail);
            let _ = BackupLabel::parse(&[LABEL.as_bytes(), &tail].concat());
        }
    }
}
