//! A backup in the form of Barman's `backup.info`, for hook scripts that read that file.
//!
//! Lines `key=value`, sorted by key. What Barman does not know is `None`, and so is what has no meaning here.

use std::io::{self, Write};

use barmanfs_catalog::Backup;
use barmanfs_foreign::barman::literal;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, TimestampMicros};
use tempfile::NamedTempFile;

/// A temporary file with the description of a backup. Scripts see the status `status`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn file(backup: &Backup, status: &str) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{}-", backup.id))
        .suffix("-backup.info")
        .tempfile()?;
    file.write_all(text(backup, status).as_bytes())?;
    file.flush()?;
    Ok(file)
}

fn text(backup: &Backup, status: &str) -> String {
    let tablespaces = backup.tablespaces.iter();
    let tablespaces = literal::tablespaces(
        tablespaces.map(|space| (space.name.as_deref(), space.oid, space.location.as_str())),
    );
    let (begin, end) = (
        position(backup, backup.start_lsn),
        position(backup, backup.stop_lsn),
    );
    let version = backup.server_version.0;
    let mut lines = vec![
        ("backup_name", backup.label.clone()),
        (
            "begin_offset",
            begin.as_ref().map(|(_, offset)| offset.to_string()),
        ),
        ("begin_time", Some(time(backup.begin_time))),
        ("begin_wal", begin.map(|(segment, _)| segment)),
        ("begin_xlog", backup.start_lsn.map(|lsn| lsn.to_string())),
        (
            "data_checksums",
            backup
                .data_checksums
                .map(|on| if on { "on" } else { "off" }.to_owned()),
        ),
        ("deduplicated_size", Some(backup.new_stored_bytes.to_string())),
        ("end_offset", end.as_ref().map(|(_, offset)| offset.to_string())),
        ("end_time", backup.end_time.map(time)),
        ("end_wal", end.map(|(segment, _)| segment)),
        ("end_xlog", backup.stop_lsn.map(|lsn| lsn.to_string())),
        ("error", backup.error.as_deref().map(one_line)),
        ("mode", Some("postgres".to_owned())),
        ("parent_backup_id", None),
        ("server_name", Some(backup.server.to_string())),
        ("size", Some(backup.logical_bytes.to_string())),
        ("status", Some(status.to_owned())),
        ("systemid", Some(backup.system_id.to_string())),
        ("tablespaces", Some(tablespaces)),
        ("timeline", backup.timeline.map(|timeline| timeline.0.to_string())),
        ("version", Some(version.to_string())),
        ("xlog_segment_size", Some(backup.segment_size.bytes().to_string())),
    ];
    lines.sort_by_key(|(key, _)| *key);
    let line = |(key, value): (&str, Option<String>)| {
        format!("{key}={}\n", value.unwrap_or_else(|| "None".to_owned()))
    };
    lines.into_iter().map(line).collect()
}

/// The segment of a position, and the offset in it.
fn position(backup: &Backup, lsn: Option<Lsn>) -> Option<(String, u64)> {
    let (timeline, lsn) = backup.timeline.zip(lsn)?;
    let segment = SegmentName::from_lsn(timeline, lsn, backup.segment_size);
    Some((segment.to_string(), lsn.0 % backup.segment_size.bytes()))
}

fn time(time: TimestampMicros) -> String {
    let text = time.to_string();
    // Python's hours and minutes of the zone.
    match text.strip_suffix("+00") {
        Some(start) => format!("{start}+00:00"),
        None => text,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
