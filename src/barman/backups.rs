//! `list-backups`, `show-backup`, and what `backup` and `delete` say.
//!
//! Barman knows nothing of backups that were made of a clone: a script would take such a one for the newest of the server.
//! So they are left out. Every other backup is `full`, whatever the server sent: in Barman, an `incremental` one cannot be
//! restored without its parent.

use std::collections::HashMap;

use barmanfs_catalog::retention::{RetentionRules, RetentionState};
use barmanfs_catalog::{Backup, BackupId, BackupName, Keep, Repository, SegmentTotals, ServerName};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, TimestampMicros};
use serde_json::{Map, Value, json};

use super::units;
use crate::error::Error;
use crate::moment;
use crate::output::{Format, Output, printable};

/// Barman's type of a backup that depends on no other one.
const TYPE: &str = "full";
/// No retention policy says anything.
const NO_RETENTION: &str = "-";

/// The backups of a server that Barman would have, oldest first.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    repository: &'a Repository,
    server: ServerName,
    backups: Vec<Backup>,
    /// What the retention policy says of each.
    retention: HashMap<BackupId, RetentionState>,
}

/// The WAL of a backup.
#[derive(Debug, Default)]
struct Wal {
    /// From its begin to its end.
    own: SegmentTotals,
    /// From there to the next backup's begin, or to the end of the archive.
    after: SegmentTotals,
}

impl<'a> Listed<'a> {
    /// All backups of a server.
    pub(crate) fn read(
        repository: &'a Repository,
        server: ServerName,
        rules: &RetentionRules,
    ) -> Result<Self, Error> {
        let mut backups = repository.backups(&server)?;
        let known = repository.reliability(&backups)?;
        let judged = repository.retention_states(&backups, &known, rules, moment::now())?;
        backups.retain(Backup::is_of_server);
        Ok(Self {
            repository,
            server,
            backups,
            retention: judged
                .into_iter()
                .map(|judged| (judged.id, judged.state))
                .collect(),
        })
    }

    fn retention(&self, backup: &Backup) -> RetentionState {
        let state = self.retention.get(&backup.id);
        state.copied().unwrap_or(RetentionState::None)
    }

    /// An entry for each backup, the newest first; with `minimal` only ids.
    fn entries(&self, minimal: bool) -> Result<Vec<Value>, Error> {
        let newest_first = self.backups.iter().enumerate().rev();
        newest_first
            .map(|(place, backup)| match minimal {
                true => Ok(json!(backup.id)),
                false => self.entry(place, backup),
            })
            .collect()
    }

    fn entry(&self, place: usize, backup: &Backup) -> Result<Value, Error> {
        let mut entry = head(backup);
        if let (true, Some(end)) = (backup.has_ended_well(), backup.end_time) {
            let wal = self.wal(place, backup)?;
            let size_bytes = backup.logical_bytes + wal.own.new_stored_bytes;
            let wal_bytes = wal.after.new_stored_bytes;
            entry.extend(object(json!({
                "end_time": units::moment(end),
                "end_time_timestamp": timestamp(end),
                "retention_status": match self.retention(backup) {
                    // Barman's list has only what is not valid.
                    RetentionState::Valid | RetentionState::ValidForItsEnd => NO_RETENTION,
                    state => state.as_str(),
                },
                "size": units::size(size_bytes),
                "size_bytes": size_bytes,
                "wal_size": units::size(wal_bytes),
                "wal_size_bytes": wal_bytes,
            })));
        }
        Ok(Value::Object(entry))
    }

    fn wal(&self, place: usize, backup: &Backup) -> Result<Wal, Error> {
        let Some((begin, end)) = segments(backup) else {
            return Ok(Wal::default());
        };
        let archive = self.repository.wal(backup.archive());
        let after = end.next(backup.segment_size);
        let mut later = self.backups.iter().skip(place + 1);
        let next = later.find_map(|next| segments(next).filter(|_| next.has_ended_well()));
        // The next backup may begin in the segment in which this one ends.
        let until = next.map(|(begin, _)| begin.max(after));
        Ok(Wal {
            own: match backup.wal_included {
                true => SegmentTotals::default(),
                false => archive.range(begin, Some(after))?,
            },
            after: archive.range(after, until)?,
        })
    }

    /// All about the backup with this id, if it is one of these.
    fn details(&self, id: BackupId) -> Result<Option<Value>, Error> {
        let Some(place) = self.backups.iter().position(|backup| backup.id == id) else {
            return Ok(None);
        };
        let Some(backup) = self.backups.get(place) else {
            return Ok(None);
        };
        let mut details = head(backup);
        details.extend(object(json!({
            "system_id": backup.system_id,
            "server_information": {
                "data_checksums": backup.data_checksums.map(|on| if on { "on" } else { "off" }),
                "summarize_wal": null,
            },
        })));
        match (backup.has_ended_well(), backup.end_time) {
            (true, Some(end)) => self.content(&mut details, place, backup, end)?,
            _ => details.extend(
                backup
                    .error
                    .as_ref()
                    .map(|error| ("error".to_owned(), json!(error))),
            ),
        }
        Ok(Some(Value::Object(details)))
    }

    fn content(
        &self,
        details: &mut Map<String, Value>,
        place: usize,
        backup: &Backup,
        end: TimestampMicros,
    ) -> Result<(), Error> {
        let wal = self.wal(place, backup)?;
        let neighbour =
            |id: Option<&Backup>, none: &str| id.map_or_else(|| json!(none), |backup| json!(backup.id));
        let complete = |backup: &&Backup| backup.has_ended_well();
        let (before, rest) = self.backups.split_at_checked(place).unwrap_or_default();
        let previous = before.iter().rfind(complete);
        let next = rest.iter().skip(1).find(complete);
        details.extend(object(json!({
            "cluster_size": units::size(backup.logical_bytes),
            "cluster_size_bytes": backup.logical_bytes,
            "postgresql_version": backup.server_version.0,
            "pgdata_directory": null,
            "tablespaces": backup.tablespaces.iter().map(|tablespace| json!({
                "name": tablespace.name, "location": tablespace.location, "oid": tablespace.oid,
            })).collect::<Vec<_>>(),
            "base_backup_information": base_backup(backup, end, &wal.own),
            "catalog_information": {
                "retention_policy": match self.retention(backup) {
                    RetentionState::None => "not enforced",
                    state => state.as_str(),
                },
                "previous_backup": neighbour(previous, "- (this is the oldest base backup)"),
                "next_backup": neighbour(next, "- (this is the latest base backup)"),
                "children_backup_ids": null,
            },
            "wal_information": wal_after(&wal.after),
        })));
        Ok(())
    }
}

/// What every backup has.
pub(super) fn head(backup: &Backup) -> Map<String, Value> {
    let mut head = object(json!({
        "backup_id": backup.id,
        "backup_type": if backup.is_snapshot() { "snapshot" } else { TYPE },
        "status": backup.status.as_str(),
    }));
    if let Some(name) = name(backup) {
        head.insert("backup_name".to_owned(), json!(name));
    }
    head
}

/// A label that can be used as a name.
fn name(backup: &Backup) -> Option<&String> {
    let label = backup.label.as_ref();
    label.filter(|label| label.parse::<BackupName>().is_ok())
}

fn base_backup(backup: &Backup, end: TimestampMicros, wal: &SegmentTotals) -> Value {
    let micros = end.unix_micros().saturating_sub(backup.begin_time.unix_micros());
    let micros = u64::try_from(micros).unwrap_or_default().max(1);
    let seconds = micros / 1_000_000;
    let throughput = u128::from(backup.sent_bytes) * 1_000_000 / u128::from(micros);
    let throughput = u64::try_from(throughput).unwrap_or(u64::MAX);
    let with_wal = backup.new_stored_bytes + wal.new_stored_bytes;
    let names = segments(backup);
    let offset = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.segment_offset(backup.segment_size));
    let mut value = object(json!({
        "backup_method": "postgres",
        "backup_size": units::size(backup.new_stored_bytes),
        "backup_size_bytes": backup.new_stored_bytes,
        "backup_size_with_wals": units::size(with_wal),
        "backup_size_with_wals_bytes": with_wal,
        "begin_lsn": backup.start_lsn,
        "begin_offset": offset(backup.start_lsn),
        "begin_time": units::iso(backup.begin_time),
        "begin_time_timestamp": timestamp(backup.begin_time),
        "begin_wal": names.map(|(begin, _)| begin.to_string()),
        "compression": null,
        "copy_time": units::duration(seconds),
        "copy_time_seconds": units::ratio(micros, 1_000_000),
        "encryption": null,
        "end_lsn": backup.stop_lsn,
        "end_offset": offset(backup.stop_lsn),
        "end_time": units::iso(end),
        "end_time_timestamp": timestamp(end),
        "end_wal": names.map(|(_, end)| end.to_string()),
        "number_of_workers": 1,
        "throughput": format!("{}/s", units::size(throughput)),
        "throughput_bytes": throughput,
        "timeline": backup.timeline,
        "wal_num": wal.files,
        "wal_size": units::size(wal.new_stored_bytes),
        "wal_size_bytes": wal.new_stored_bytes,
    }));
    if wal.files > 0 {
        let saved = 1.0 - units::ratio(wal.new_stored_bytes, wal.logical_bytes);
        value.insert("wal_compression_ratio".to_owned(), json!(units::percent(saved)));
    }
    Value::Object(value)
}

/// Where a number would be 0, Barman has the number, else a text.
fn wal_after(wal: &SegmentTotals) -> Value {
    let seconds = match (wal.began, wal.ended) {
        (Some(began), Some(ended)) => units::ratio(
            u64::try_from(ended.unix_micros() - began.unix_micros()).unwrap_or_default(),
            1_000_000,
        ),
        _ => 0.0,
    };
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let rate = if seconds > 0.0 {
        wal.files as f64 / seconds
    } else {
        0.0
    };
    let saved = 1.0 - units::ratio(wal.new_stored_bytes, wal.logical_bytes);
    let or_zero = |is_known: bool, known: Value| if is_known { known } else { json!(0) };
    json!({
        "compression_ratio": or_zero(wal.files > 0, json!(units::percent(saved))),
        "disk_usage": units::size(wal.new_stored_bytes),
        "disk_usage_bytes": wal.new_stored_bytes,
        "last_available": wal.last.map(|name| name.to_string()),
        "no_of_files": wal.files,
        "timelines": [],
        "wal_rate": or_zero(rate > 0.0, json!(format!("{:.2}/hour", rate * 3600.0))),
        "wal_rate_per_second": or_zero(rate > 0.0, json!(rate)),
    })
}

/// The segments in which a backup begins and ends.
fn segments(backup: &Backup) -> Option<(SegmentName, SegmentName)> {
    let (timeline, start, stop) = (backup.timeline?, backup.start_lsn?, backup.stop_lsn?);
    let last = Lsn(stop.0.checked_sub(1)?);
    let at = |lsn| SegmentName::from_lsn(timeline, lsn, backup.segment_size);
    Some((at(start), at(last.max(start))))
}

fn timestamp(time: TimestampMicros) -> String {
    time.unix_micros().div_euclid(1_000_000).to_string()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// `list-backups`: the newest first.
pub(crate) fn list(
    out: &mut Output,
    format: Format,
    servers: &[Listed<'_>],
    minimal: bool,
) -> Result<(), Error> {
    for server in servers {
        let entries = server.entries(minimal)?;
        match format {
            Format::Json => out.barman_result(server.server.as_str(), json!(entries))?,
            Format::Console => {
                for entry in &entries {
                    out.line(line(server.server.as_str(), entry))?;
                }
            }
        }
    }
    Ok(())
}

/// `main 20261128T155501 'nightly' - F - Sat Nov 28 15:55:19 2026 - Size: 53.3 MiB - WAL Size: 16.2 KiB`
fn line(server: &str, entry: &Value) -> String {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let Some(id) = text("backup_id") else {
        return entry.as_str().unwrap_or_default().to_owned();
    };
    let name = text("backup_name").map(|name| format!(" '{name}'"));
    let kind = TYPE.get(..1).unwrap_or_default().to_uppercase();
    let mut line = format!("{server} {id}{} - {kind} - ", name.unwrap_or_default());
    let status = text("status").unwrap_or_default();
    let (Some(end), Some(size), Some(wal_size)) = (text("end_time"), text("size"), text("wal_size")) else {
        return line + status;
    };
    line += &format!("{end} - Size: {size} - WAL Size: {wal_size}");
    for mark in [status, text("retention_status").unwrap_or_default()] {
        if !matches!(mark, "DONE" | NO_RETENTION) {
            line += &format!(" - {mark}");
        }
    }
    line
}

/// The lines of `show-backup`: a heading, or a name and the place of its value.
const ROWS: &[(&str, &str)] = &[
    ("Backup Name", "/backup_name"),
    ("Server Name", "/server_name"),
    ("System Id", "/system_id"),
    ("Status", "/status"),
    ("PostgreSQL Version", "/postgresql_version"),
    ("Estimated Cluster Size", "/cluster_size"),
    ("Error", "/error"),
    ("Server information", ""),
    ("Checksums", "/server_information/data_checksums"),
    ("Base backup information", ""),
    ("Backup Method", "/base_backup_information/backup_method"),
    ("Backup Type", "/backup_type"),
    ("Backup Size", "/base_backup_information/backup_size"),
    ("WAL Size", "/base_backup_information/wal_size"),
    ("Timeline", "/base_backup_information/timeline"),
    ("Begin WAL", "/base_backup_information/begin_wal"),
    ("End WAL", "/base_backup_information/end_wal"),
    ("Number of WALs", "/base_backup_information/wal_num"),
    ("Begin time", "/base_backup_information/begin_time"),
    ("End time", "/base_backup_information/end_time"),
    ("Copy time", "/base_backup_information/copy_time"),
    ("Estimated throughput", "/base_backup_information/throughput"),
    ("Begin Offset", "/base_backup_information/begin_offset"),
    ("End Offset", "/base_backup_information/end_offset"),
    ("Begin LSN", "/base_backup_information/begin_lsn"),
    ("End LSN", "/base_backup_information/end_lsn"),
    ("WAL information", ""),
    ("Number of files", "/wal_information/no_of_files"),
    ("Disk usage", "/wal_information/disk_usage"),
    ("WAL rate", "/wal_information/wal_rate"),
    ("Compression ratio", "/wal_information/compression_ratio"),
    ("Last available", "/wal_information/last_available"),
    ("Catalog information", ""),
    ("Retention Policy", "/catalog_information/retention_policy"),
    ("Previous Backup", "/catalog_information/previous_backup"),
    ("Next Backup", "/catalog_information/next_backup"),
];

/// `show-backup`
pub(crate) fn show(out: &mut Output, format: Format, server: &Listed<'_>, id: BackupId) -> Result<(), Error> {
    let name = server.server.as_str();
    let Some(mut details) = server.details(id)? else {
        let error = format!("Backup {id} of server {name} was made of a clone: Barman has no such backup");
        return Err(Error::failed(error).hint(format!("'barmanfs show-backup {name} {id}' shows it")));
    };
    if format == Format::Json {
        return out.barman_result(name, details);
    }
    if let Some(fields) = details.as_object_mut() {
        fields.insert("server_name".to_owned(), json!(name));
    }
    out.line(format_args!("Backup {id}:"))?;
    let mut heading = None;
    for (row, place) in ROWS {
        let value = match details.pointer(place) {
            Some(Value::String(text)) => text.clone(),
            // Instead of a text, there is a 0.
            Some(_) if matches!(*row, "WAL rate" | "Compression ratio") => continue,
            Some(value) if value.is_number() => value.to_string(),
            Some(Value::Object(_)) => {
                heading = Some(row);
                continue;
            }
            _ => continue,
        };
        if let Some(heading) = heading.take() {
            out.line(format_args!("\n  {heading}:"))?;
        }
        let value = printable(value.as_bytes());
        let is_nested = place.rfind('/').is_some_and(|slash| slash > 0) || *row == "Backup Type";
        match is_nested {
            true => out.line(format_args!("    {row:<21}: {value}"))?,
            false => out.line(format_args!("  {row:<23}: {value}"))?,
        }
    }
    Ok(())
}

/// `keep`: whether and how a backup is kept.
pub(crate) fn keep_status(
    out: &mut Output,
    format: Format,
    backup: &Backup,
    keep: Option<&Keep>,
) -> Result<(), Error> {
    let target = keep.map_or_else(|| "nokeep".to_owned(), |keep| keep.target.to_string());
    match format {
        Format::Json => out.barman_result(
            backup.server.as_str(),
            json!({"keep_status": {"description": "Keep", "message": target}}),
        ),
        Format::Console => out.line(format_args!("Server {}:\n\tKeep: {target}", backup.server)),
    }
}

/// What `backup` says of the backups that were taken.
pub(crate) fn taken(out: &mut Output, backups: &[Backup]) -> Result<(), Error> {
    for backup in backups {
        let Some(end) = backup.end_time.filter(|_| backup.has_ended_well()) else {
            continue;
        };
        let took = units::duration(end.saturating_duration_since(backup.begin_time).as_secs());
        let (size, stored) = (backup.logical_bytes, backup.new_stored_bytes);
        let saved = units::percent(1.0 - units::ratio(stored, size));
        out.line(format_args!(
            "Backup {} of server {} using {} method",
            backup.id,
            backup.server,
            if backup.is_snapshot() {
                "snapshot"
            } else {
                "postgres"
            }
        ))?;
        if let (Some((begin_wal, end_wal)), Some(begin), Some(end)) =
            (segments(backup), backup.start_lsn, backup.stop_lsn)
        {
            let offset = |lsn: Lsn| lsn.segment_offset(backup.segment_size);
            let (first, last) = (offset(begin), offset(end));
            out.line(format_args!(
                "Backup start at LSN: {begin} ({begin_wal}, {first:08X})"
            ))?;
            out.line(format_args!("Backup end at LSN: {end} ({end_wal}, {last:08X})"))?;
        }
        out.line(format_args!(
            "Backup size: {}. Actual size on disk: {} (-{saved} deduplication ratio).",
            units::size(size),
            units::size(stored)
        ))?;
        let began = units::iso(backup.begin_time);
        out.line(format_args!(
            "Backup completed (start time: {began}, elapsed time: {took})"
        ))?;
    }
    Ok(())
}

/// What `delete` says of the backups that are gone.
pub(crate) fn deleted(out: &mut Output, backups: &[Backup], began: TimestampMicros) -> Result<(), Error> {
    for Backup { id, server, .. } in backups {
        out.line(format_args!("Deleting backup {id} for server {server}"))?;
        out.line(format_args!(
            "Deleted backup {id} (start time: {}, elapsed time: {})",
            units::moment(began),
            units::duration(0)
        ))?;
    }
    Ok(())
}
