//! `backup.info`: what Barman knows of a backup.
//!
//! Lines `key=value`, sorted by key. Barman writes every key, so a key that is missing says that the file was cut. Keys
//! that are unknown are kept: they come from a later release.

use std::collections::BTreeMap;
use std::fmt;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, TimestampMicros};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::literal::Literal;
use super::names::BackupId;
use super::snapshots::Snapshots;
use super::{BadFile, shown};

/// More than such a file ever has: its longest value is a list of included files.
pub const LONGEST_BYTES: usize = 1 << 20;

const FILE: &str = "backup.info";

/// A backup's description.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupInfo {
    /// How far Barman came.
    pub status: Status,
    /// Its name, if somebody gave it one.
    pub name: Option<String>,
    /// How it was made: `rsync-concurrent`, `postgres`, `local-to-cloud-concurrent`.
    pub mode: Option<String>,
    /// When it began.
    pub begin_time: Option<Moment>,
    /// When it ended.
    pub end_time: Option<Moment>,
    /// Where in the WAL it begins.
    pub begin_lsn: Option<Lsn>,
    /// Where in the WAL it is consistent.
    pub end_lsn: Option<Lsn>,
    /// The first segment it needs.
    pub begin_wal: Option<SegmentName>,
    /// The last segment it needs.
    pub end_wal: Option<SegmentName>,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// The server's version.
    pub version: Option<ServerVersion>,
    /// The cluster. Releases before 2.9 did not write it.
    pub system_id: Option<SystemId>,
    /// The size of WAL segments. Releases before 2.2 did not write it.
    pub segment_size: SegmentSize,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The label. The file `backup_label` of an exclusive backup is only here.
    pub backup_label: Option<String>,
    /// The data directory on the server.
    pub data_directory: Option<String>,
    /// `postgresql.conf` on the server.
    pub config_file: Option<String>,
    /// `pg_hba.conf` on the server.
    pub hba_file: Option<String>,
    /// `pg_ident.conf` on the server.
    pub ident_file: Option<String>,
    /// Files that `postgresql.conf` includes, on the server.
    pub included_files: Vec<String>,
    /// Whether pages have checksums.
    pub data_checksums: Option<bool>,
    /// The backup on which an incremental one builds.
    pub parent: Option<BackupId>,
    /// The snapshots of disks that the data is in, if it is in such.
    pub snapshots: Option<Snapshots>,
    /// Barman's own measure of its size.
    pub size_bytes: Option<u64>,
    /// Keys that are not read here.
    pub other: BTreeMap<String, String>,
}

/// How far a backup came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing is copied.
    Empty,
    /// It is being made, or what made it is gone.
    Started,
    /// All files are there, the WAL is not.
    WaitingForWals,
    /// It is complete.
    Done,
    /// It is being copied from another Barman.
    Syncing,
    /// It failed.
    Failed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "EMPTY",
            Self::Started => "STARTED",
            Self::WaitingForWals => "WAITING_FOR_WALS",
            Self::Done => "DONE",
            Self::Syncing => "SYNCING",
            Self::Failed => "FAILED",
        })
    }
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its name.
    pub name: String,
    /// Its OID.
    pub oid: u32,
    /// Its directory on the server.
    pub location: String,
}

/// A time. Old releases wrote it without a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// With a zone.
    Exact(TimestampMicros),
    /// In the zone of Barman's host.
    Local(DateTime),
}

impl Moment {
    /// The moment, if times without a zone are in this one; `None` beyond the years of a timestamp.
    #[must_use]
    pub fn in_zone(self, zone: &TimeZone) -> Option<TimestampMicros> {
        match self {
            Self::Exact(moment) => Some(moment),
            Self::Local(time) => Some(zone.to_timestamp(time).ok()?.into()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Ok(moment) = text.parse() {
            return Some(Self::Exact(moment));
        }
        // Also what C's `ctime` writes, as the first releases did.
        let local = text
            .parse::<DateTime>()
            .or_else(|_| DateTime::strptime("%a %b %d %H:%M:%S %Y", text));
        local.ok().map(Self::Local)
    }
}

impl BackupInfo {
    /// Reads the file.
    ///
    /// # Errors
    /// When a line has no key, a value is not what its key needs, or keys are missing that Barman always writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadFile> {
        let mut fields = Fields::split(bytes)?;
        let version: Option<u32> = fields.parsed("version")?;
        let info = Self {
            status: fields.required("status", status)?,
            name: fields.text("backup_name"),
            mode: fields.text("mode"),
            begin_time: fields.optional("begin_time", Moment::parse)?,
            end_time: fields.optional("end_time", Moment::parse)?,
            begin_lsn: fields.parsed("begin_xlog")?,
            end_lsn: fields.parsed("end_xlog")?,
            begin_wal: fields.parsed("begin_wal")?,
            end_wal: fields.parsed("end_wal")?,
            timeline: fields.parsed("timeline")?,
            version: version.map(ServerVersion),
            system_id: fields.parsed("systemid")?,
            segment_size: fields
                .optional("xlog_segment_size", |text| {
                    SegmentSize::try_from(text.parse::<u64>().ok()?).ok()
                })?
                .unwrap_or(SegmentSize::DEFAULT),
            tablespaces: fields.optional("tablespaces", tablespaces)?.unwrap_or_default(),
            backup_label: fields.optional("backup_label", label)?,
            data_directory: fields.text("pgdata"),
            config_file: fields.text("config_file"),
            hba_file: fields.text("hba_file"),
            ident_file: fields.text("ident_file"),
            included_files: fields.optional("included_files", texts)?.unwrap_or_default(),
            data_checksums: fields.text("data_checksums").map(|text| text == "on"),
            parent: fields.parsed("parent_backup_id")?,
            snapshots: fields.text("snapshots_info").map(|text| Snapshots::parse(&text)),
            size_bytes: fields.parsed("size")?,
            other: fields.rest(),
        };
        Ok(info)
    }
}

fn status(text: &str) -> Option<Status> {
    Some(match text {
        "EMPTY" => Status::Empty,
        "STARTED" => Status::Started,
        "WAITING_FOR_WALS" => Status::WaitingForWals,
        "DONE" => Status::Done,
        "SYNCING" => Status::Syncing,
        "FAILED" => Status::Failed,
        _ => return None,
    })
}

/// `[('ts1', 16384, '/srv/ts1')]`
fn tablespaces(text: &str) -> Option<Vec<Tablespace>> {
    let one = |literal: &Literal| match literal.as_list()? {
        [Literal::Text(name), Literal::Int(oid), Literal::Text(location)] => Some(Tablespace {
            name: name.clone(),
            oid: u32::try_from(*oid).ok().filter(|oid| *oid > 0)?,
            location: location.clone(),
        }),
        _ => None,
    };
    match Literal::parse(text).ok()? {
        Literal::None => Some(Vec::new()),
        list => list.as_list()?.iter().map(one).collect(),
    }
}

fn texts(text: &str) -> Option<Vec<String>> {
    let literal = Literal::parse(text).ok()?;
    let elements = literal.as_list()?.iter();
    elements
        .map(|element| element.as_text().map(str::to_owned))
        .collect()
}

fn label(text: &str) -> Option<String> {
    Literal::parse(text).ok()?.as_text().map(str::to_owned)
}

/// The lines of the file that nobody has asked for.
struct Fields {
    /// The line's number, and the value; `None` where Barman wrote `None`.
    values: BTreeMap<String, (usize, Option<String>)>,
    lines: usize,
}

/// Keys that every release writes.
const ALWAYS: &[&str] = &[
    "begin_time",
    "begin_wal",
    "begin_xlog",
    "end_time",
    "end_wal",
    "end_xlog",
    "status",
    "tablespaces",
    "timeline",
    "version",
];

/// A key, and one that no release writes without it, because it came later. They find a cut between `version` and the end.
const COMES_WITH: (&str, &str) = ("xlog_segment_size", "systemid");

impl Fields {
    fn split(bytes: &[u8]) -> Result<Self, BadFile> {
        let mut fields = Self {
            values: BTreeMap::new(),
            lines: 1,
        };
        if bytes.len() > LONGEST_BYTES {
            return Err(bad(1, format!("The file has more than {LONGEST_BYTES} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let lines = before.iter().filter(|byte| **byte == b'\n').count();
            bad(lines + 1, "It is not UTF-8".to_owned())
        })?;
        for (number, line) in text.split_inclusive('\n').enumerate() {
            fields.lines = number + 1;
            fields.take(number + 1, line)?;
        }
        let missing = ALWAYS.iter().find(|key| !fields.values.contains_key(**key));
        let (later, earlier) = COMES_WITH;
        let is_cut = fields.values.contains_key(earlier) && !fields.values.contains_key(later);
        match missing.copied().or(is_cut.then_some(later)) {
            None => Ok(fields),
            Some(key) => Err(bad(
                fields.lines,
                format!("\"{key}\" is missing: the file was cut, or is no {FILE}"),
            )),
        }
    }

    fn take(&mut self, number: usize, line: &str) -> Result<(), BadFile> {
        let Some(whole) = line.strip_suffix('\n') else {
            return Err(bad(number, "The line has no end: the file was cut".to_owned()));
        };
        if whole.trim().is_empty() || whole.starts_with('#') {
            return Ok(());
        }
        let Some((key, value)) = whole.split_once('=') else {
            return Err(bad(number, format!("\"{}\" is not key=value", shown(whole))));
        };
        let value = Some(value.trim().to_owned()).filter(|value| value != "None");
        self.values.insert(key.trim().to_owned(), (number, value));
        Ok(())
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)?.1.filter(|value| !value.is_empty())
    }

    fn optional<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, BadFile> {
        let Some((line, Some(value))) = self.values.remove(key) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(bad(line, format!("\"{}\" is no value of {key}", shown(&value)))),
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, BadFile> {
        self.optional(key, |text| text.parse().ok())
    }

    fn required<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, BadFile> {
        let lines = self.lines;
        self.optional(key, read)?
            .ok_or_else(|| bad(lines, format!("\"{key}\" has no value")))
    }

    fn rest(self) -> BTreeMap<String, String> {
        let known = self.values.into_iter();
        known
            .filter_map(|(key, (_, value))| Some((key, value?)))
            .collect()
    }
}

fn bad(line: usize, reason: String) -> BadFile {
    BadFile {
        file: FILE,
        line,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of Barman 3.19.1, from a backup with rsync.
    const WRITTEN: &str = include_str!("backup_info/rsync_3.19.1.info");

    #[test]
    fn barmans_file_is_read() {
        let info = BackupInfo::parse(WRITTEN.as_bytes()).unwrap();
        assert_eq!(info.status, Status::Done);
        assert_eq!(info.name.as_deref(), Some("nightly"));
        assert_eq!(info.mode.as_deref(), Some("rsync-concurrent"));
        assert_eq!(info.begin_lsn, Some(Lsn(0x300_0028)));
        assert_eq!(info.end_lsn, Some(Lsn(0x300_0128)));
        assert_eq!(info.end_wal.unwrap().to_string(), "000000010000000000000003");
        assert_eq!(info.timeline, Some(TimelineId(1)));
        assert_eq!(info.version, Some(ServerVersion(190_000)));
        assert_eq!(info.system_id, Some(SystemId(7_713_799_263_263_997_419)));
        assert_eq!(info.segment_size, SegmentSize::DEFAULT);
        assert_eq!(
            info.tablespaces,
            [Tablespace {
                name: "ts1".to_owned(),
                oid: 16384,
                location: "/srv/ts1".to_owned()
            }]
        );
        let begin = info.begin_time.unwrap().in_zone(&TimeZone::UTC).unwrap();
        assert_eq!(begin.to_string(), "2026-11-30 03:20:51.796087+00");
        let label = info.backup_label.unwrap();
        assert!(
            label.starts_with("START WAL LOCATION: 0/03000028 (file") && label.ends_with("TIMELINE: 1\n")
        );
        assert_eq!(info.hba_file.as_deref(), Some("/etc/postgresql/main/pg_hba.conf"));
        assert_eq!(
            (info.data_checksums, info.parent, info.snapshots),
            (Some(true), None, None)
        );
        assert_eq!(info.other["server_name"], "main");
        assert!(!info.other.contains_key("children_backup_ids"), "it was None");
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_refused() {
        for end in 0..WRITTEN.len() {
            assert!(BackupInfo::parse(&WRITTEN.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn files_of_other_releases_are_read() {
        // Later keys are kept, comments and blank lines are none.
        let later = format!("# by hand\n\nzygote=[1]\n{WRITTEN}");
        assert_eq!(
            BackupInfo::parse(later.as_bytes()).unwrap().other["zygote"],
            "[1]"
        );
        // Early releases had neither system identifier nor the size of segments, and times without a zone.
        let early: String = WRITTEN
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("systemid") && !line.starts_with("xlog_seg"))
            .map(|line| line.replace("+00:00", ""))
            .collect();
        let info = BackupInfo::parse(early.as_bytes()).unwrap();
        assert_eq!(info.system_id, None);
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let begin = info.begin_time.unwrap().in_zone(&zone).unwrap();
        assert_eq!(begin.to_string(), "2026-11-30 02:20:51.796087+00");
        assert_eq!(
            Moment::parse("Wed Jul 23 11:00:43 2014"),
            Some(Moment::Local(jiff::civil::date(2014, 7, 23).at(11, 0, 43, 0)))
        );
    }

    #[test]
    fn values_that_are_not_what_their_key_needs_are_named() {
        for (key, value, line) in [
            ("status", "FINE", 28),
            ("status", "None", 34),
            ("begin_xlog", "3000028", 6),
            ("tablespaces", "[('ts1', 16384)]", 31),
            ("tablespaces", "[('ts1', -1, '/')]", 31),
            ("xlog_segment_size", "1000", 34),
            ("begin_time", "yesterday", 4),
            ("parent_backup_id", "../../etc", 24),
        ] {
            let changed: Vec<String> = WRITTEN
                .lines()
                .map(|written| match written.split_once('=') {
                    Some((name, _)) if name == key => format!("{key}={value}\n"),
                    _ => format!("{written}\n"),
                })
                .collect();
            let refused = BackupInfo::parse(changed.concat().as_bytes()).unwrap_err();
            assert!(refused.reason.contains(key), "{refused}");
            assert_eq!(refused.line, line, "{refused}");
        }
        let long = "#".repeat(LONGEST_BYTES + 1);
        assert!(BackupInfo::parse(long.as_bytes()).is_err());
        assert_eq!(BackupInfo::parse(b"a=1\nb=\xff\n").unwrap_err().line, 2);
    }

    proptest! {
        #[test]
        fn any_change_is_read_or_refused(at in 0_usize..2000, byte: u8) {
            let mut bytes = WRITTEN.as_bytes().to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            if let Err(refused) = BackupInfo::parse(&bytes) {
                prop_assert!(refused.line <= bytes.iter().filter(|byte| **byte == b'\n').count() + 1);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            prop_assert!(BackupInfo::parse(&bytes).is_err());
        }
    }
}
