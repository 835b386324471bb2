//! Barman's `backup.info`: lines `key=value` in the order of the keys. Barman gives up at a key that it does not know, and
//! reads some values as literals of Python.

use std::fmt::Write as _;

use barmanfs_catalog::{Backup, BackupName, ConfigurationFiles};
use barmanfs_foreign::barman::literal;
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::SegmentName;
use jiff::Timestamp;

use super::own_segments;

/// What Barman calls a backup that `pg_basebackup` took.
const MODE: &str = "postgres";

/// Barman wants a path. Of a server whose files are all in its data directory, that is not known here.
const UNKNOWN: &str = "unknown";

/// The description of a backup as Barman keeps it. `label` is the content of its `backup_label`.
pub(super) fn text(backup: &Backup, label: Option<&str>, files: Option<&ConfigurationFiles>) -> String {
    let data = files.map_or(UNKNOWN, |files| &files.data_directory);
    let segments = own_segments(backup);
    let (first, last) = (segments.first(), segments.last());
    let size = backup.segment_size;
    let path = |path: Option<&String>, name: &str| path.cloned().unwrap_or_else(|| format!("{data}/{name}"));
    // Barman copies each of these from a directory of its own.
    let tablespaces = backup.tablespaces.iter().filter(|space| !space.is_in_place());
    let tablespaces = literal::tablespaces(
        tablespaces.map(|space| (space.name.as_deref(), space.oid, space.location.as_str())),
    );
    let mut fields = vec![
        ("backup_label", label.map_or_else(none, literal::quoted)),
        (
            "begin_offset",
            or_none(backup.start_lsn.map(|lsn| lsn.segment_offset(size))),
        ),
        ("begin_time", time(backup.begin_time)),
        ("begin_wal", or_none(first.map(SegmentName::to_string))),
        ("begin_xlog", or_none(backup.start_lsn)),
        ("children_backup_ids", none()),
        ("cluster_size", backup.logical_bytes.to_string()),
        ("compression", none()),
        (
            "config_file",
            path(
                files.and_then(|files| files.config_file.as_ref()),
                "postgresql.conf",
            ),
        ),
        ("copy_stats", none()),
        ("data_checksums", checksums(backup).to_owned()),
        ("deduplicated_size", backup.logical_bytes.to_string()),
        ("encryption", none()),
        (
            "end_offset",
            or_none(backup.stop_lsn.map(|lsn| lsn.segment_offset(size))),
        ),
        ("end_time", backup.end_time.map_or_else(none, time)),
        ("end_wal", or_none(last.map(SegmentName::to_string))),
        ("end_xlog", or_none(backup.stop_lsn)),
        ("error", none()),
        (
            "hba_file",
            path(files.and_then(|files| files.hba_file.as_ref()), "pg_hba.conf"),
        ),
        (
            "ident_file",
            path(files.and_then(|files| files.ident_file.as_ref()), "pg_ident.conf"),
        ),
        ("included_files", none()),
        ("mode", MODE.to_owned()),
        ("parent_backup_id", none()),
        ("pgdata", data.to_owned()),
        ("server_name", backup.server.to_string()),
        ("size", backup.logical_bytes.to_string()),
        ("status", backup.status.to_string()),
        ("summarize_wal", none()),
        ("systemid", backup.system_id.to_string()),
        ("tablespaces", tablespaces),
        ("timeline", or_none(backup.timeline.map(|timeline| timeline.0))),
        ("version", backup.server_version.0.to_string()),
        ("xlog_segment_size", size.bytes().to_string()),
    ];
    if let Some(name) = backup
        .label
        .as_ref()
        .filter(|name| name.parse::<BackupName>().is_ok())
    {
        fields.insert(1, ("backup_name", name.clone()));
    }
    fields.iter().fold(String::new(), |mut text, (key, value)| {
        let _never_fails = writeln!(text, "{key}={value}");
        text
    })
}

fn none() -> String {
    "None".to_owned()
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(none, |value| value.to_string())
}

fn checksums(backup: &Backup) -> &'static str {
    match backup.data_checksums {
        Some(true) => "on",
        Some(false) => "off",
        None => "None",
    }
}

/// `2026-11-28 15:55:01.861771+00:00`
fn time(time: TimestampMicros) -> String {
    let time = Timestamp::from_microsecond(time.unix_micros()).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%d %H:%M:%S.%6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backup;
    use barmanfs_catalog::BackupStatus;

    #[test]
    fn keys_are_barmans_and_in_order() {
        let text = text(
            &backup(BackupStatus::Done),
            Some("START WAL\nLABEL: it's\n"),
            None,
        );
        let keys: Vec<&str> = text
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0))
            .collect();
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(text.lines().count(), keys.len());
        for line in [
            r"backup_label='START WAL\nLABEL: it\'s\n'",
            "begin_time=2026-11-20 10:15:00.250000+00:00",
            "begin_wal=000000010000000000000005",
            "begin_offset=40",
            "end_wal=000000010000000000000006",
            "tablespaces=[('fast', 16435, '/srv/fast')]",
            "status=DONE",
            "version=150018",
            "xlog_segment_size=16777216",
            "systemid=7710414268036822209",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        // A label that is no name would be one that Barman's commands do not find.
        assert!(!text.contains("backup_name"), "{text}");
    }
}
