//! Timeline history files, `00000003.history`: where a timeline and its ancestors began.
//!
//! Source: `src/backend/access/transam/timeline.c`.

use serde::{Deserialize, Serialize};

use crate::{FormatError, Lsn, TimelineId};

const FILE: &str = "Timeline history";

/// One ancestor of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where the next timeline begins: the ancestor's WAL belongs to the history up to here.
    pub switch_lsn: Lsn,
    /// Why it was left, in PostgreSQL's words.
    pub reason: String,
}

/// A timeline and its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

impl TimelineHistory {
    /// The history of a timeline that has no ancestors, as timeline 1; it has no file.
    #[must_use]
    pub fn without_ancestors(timeline: TimelineId) -> Self {
        Self {
            timeline,
            entries: Vec::new(),
        }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// A line that is not `timeline`, LSN and reason; ancestors that do not ascend.
    pub fn parse(bytes: &[u8], timeline: TimelineId) -> Result<Self, FormatError> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| FormatError::new(FILE, number, reason);
            let entry = parse_entry(line).map_err(|error| wrong(error.to_string()))?;
            let earlier = entries.last();
            if earlier.is_some_and(|earlier| earlier.timeline >= entry.timeline) || entry.timeline >= timeline
            {
                return Err(wrong(format!("Timeline {} is out of order", entry.timeline)));
            }
            entries.push(entry);
        }
        Ok(Self { timeline, entries })
    }

    /// The timeline whose history this is.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Its ancestors, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// Where `ancestor` was left; `None` for the timeline itself and for one that is no ancestor.
    #[must_use]
    pub fn switch_point(&self, ancestor: TimelineId) -> Option<Lsn> {
        self.entries
            .iter()
            .find(|entry| entry.timeline == ancestor)
            .map(|entry| entry.switch_lsn)
    }

    /// Whether the WAL of `timeline` up to `lsn` is part of this history: recovery along this
    /// timeline can start from a backup that ended there.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.timeline || self.switch_point(timeline).is_some_and(|switch| lsn <= switch)
    }
}

fn parse_entry(line: &str) -> Result<HistoryEntry, crate::ParseError> {
    let (timeline, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    let (lsn, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Ok(HistoryEntry {
        timeline: timeline.parse()?,
        switch_lsn: lsn.parse()?,
        reason: reason.trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THIRD: &[u8] = b"1\t0/A000128\tno recovery target specified\n\n\
        # a comment\n2\t0/C0000A0\tbefore 2026-11-20 14:03:07.1+00\n";

    #[test]
    fn reads_what_postgresql_writes() {
        let history = TimelineHistory::parse(THIRD, TimelineId(3)).unwrap();
        assert_eq!(history.entries().len(), 2);
        assert_eq!(history.entries()[1].reason, "before 2026-11-20 14:03:07.1+00");
        assert_eq!(history.switch_point(TimelineId(1)), Some(Lsn(0xA00_0128)));
        assert_eq!(history.switch_point(TimelineId(3)), None);
    }

    #[test]
    fn an_ancestor_counts_up_to_its_switch_point() {
        let history = TimelineHistory::parse(THIRD, TimelineId(3)).unwrap();
        assert!(history.contains(TimelineId(1), Lsn(0xA00_0128)));
        assert!(!history.contains(TimelineId(1), Lsn(0xA00_0129)));
        assert!(history.contains(TimelineId(3), Lsn(u64::MAX)));
        assert!(!history.contains(TimelineId(4), Lsn(0)));
        assert!(TimelineHistory::without_ancestors(TimelineId(1)).contains(TimelineId(1), Lsn(5)));
    }

    #[test]
    fn says_which_line_is_wrong() {
        for (bytes, line) in [
            (&b"1\n"[..], 1),
            (b"\nx\t0/1\tr\n", 2),
            (b"1\t0/1\tr\n1\t0/2\tr\n", 2),
            (b"3\t0/1\tr\n", 1),
            (b"1\t01\tr\n", 1),
        ] {
            let error = TimelineHistory::parse(bytes, TimelineId(3)).unwrap_err();
            assert_eq!(error.line, line, "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = TimelineHistory::parse(&bytes, TimelineId(9));
        }
    }
}
