//! `xlog.db`: the WAL files that Barman has archived. It may be behind what is in the directory, or ahead of it.

use barmanfs_pg::wal_name::WalName;

use super::shown;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct XlogLine {
    /// The file's name.
    pub name: WalName,
    /// Its size as it is stored.
    pub stored_bytes: u64,
    /// Seconds since 1970 at which it was last changed.
    pub time_s: f64,
    /// The compression Barman believes it has.
    pub compression: Option<String>,
    /// The encryption Barman believes it has.
    pub encryption: Option<String>,
}

/// More than a line ever has.
pub const LONGEST_LINE_BYTES: usize = 4096;

/// A line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no line of xlog.db")]
pub struct BadLine(String);

impl XlogLine {
    /// Reads a line, with or without its end. Early releases wrote three or four columns.
    ///
    /// # Errors
    /// When it has no name of a WAL file, no size or no time.
    pub fn parse(line: &str) -> Result<Self, BadLine> {
        let wrong = || BadLine(shown(line));
        let mut columns = line.trim_end_matches(['\n', '\r']).split('\t');
        let mut column = || columns.next().map(str::trim);
        let name = column().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let stored_bytes = column().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let time_s = column()
            .and_then(|text| text.parse().ok())
            .filter(|time: &f64| time.is_finite())
            .ok_or_else(wrong)?;
        let mut optional = || {
            column()
                .filter(|text| !matches!(*text, "" | "None"))
                .map(str::to_owned)
        };
        Ok(Self {
            name,
            stored_bytes,
            time_s,
            compression: optional(),
            encryption: optional(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_all_releases_are_read() {
        let line =
            XlogLine::parse("000000010000000000000006\t588658\t1795880709.3660507\tgzip\tgpg\n").unwrap();
        assert_eq!(line.name.to_string(), "000000010000000000000006");
        assert_eq!(
            (line.stored_bytes, line.time_s),
            (588_658, 1_795_880_709.366_050_7)
        );
        assert_eq!(line.compression.as_deref(), Some("gzip"));
        assert_eq!(line.encryption.as_deref(), Some("gpg"));
        for early in [
            "00000002.history\t41\t1796008852",
            "00000002.history\t41\t1796008852.1\tNone",
            "000000010000000000000004.00000028.backup\t350\t1796008852.3\tNone\tNone",
        ] {
            let line = XlogLine::parse(early).unwrap();
            assert_eq!((line.compression, line.encryption), (None, None));
        }
        for wrong in [
            "",
            "x",
            "../000000010000000000000006\t1\t1",
            "000000010000000000000006",
            "000000010000000000000006\t-1\t1",
            "000000010000000000000006\t1\tnan",
            "000000010000000000000006\t1\t",
        ] {
            assert!(XlogLine::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "[0-9A-F]{24}\t.*|.*") {
            let _ = XlogLine::parse(&line);
        }
    }
}
