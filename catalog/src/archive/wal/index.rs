//! The tables that say which segment holds which points in time.
//!
//! A row is a segment's [`SegmentIndex`] plus the record that starts in the segment and ends in a later one; the parts
//! of this record are in the catalog records of the segments it crosses. Segments arrive in any order and may be
//! removed. With each change, all rows that one of its parts completes or breaks are rebuilt from the records. So a row
//! depends only on what is archived, and a rebuild gives the same result.

use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::wal_scan::{Fragment, Record, SegmentIndex, StopReason, WalLevel, join};
use barmanfs_pg::{Lsn, SegmentSize};
use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension, params};

use crate::archive::wal::WalFile;
use crate::error::Result;
use crate::index::records;

/// No record spans more segments: the longest record has 1 GiB, and the smallest segments have 1 MiB.
const CROSSED_MAX: u64 = 1024 + 1;

/// What is at a segment's beginning.
mod head {
    /// A record starts there.
    pub(super) const NONE: i64 = 0;
    /// The end of a record.
    pub(super) const ENDS: i64 = 1;
    /// The middle of a record that continues in the next segment.
    pub(super) const RUNS_THROUGH: i64 = 2;
}

/// A segment of a server.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    server: &'a str,
    timeline: u32,
    number: u64,
    size: SegmentSize,
}

impl<'a> Place<'a> {
    fn of(file: &'a WalFile) -> Option<Self> {
        let WalName::Segment(name) = file.name else {
            return None;
        };
        let size = SegmentSize::try_from(file.size_bytes).ok()?;
        Some(Self {
            server: file.server.as_str(),
            timeline: name.timeline.0,
            number: name.start_lsn(size).segment_number(size),
            size,
        })
    }

    fn start(&self) -> Lsn {
        Lsn(self.number.saturating_mul(self.size.bytes()))
    }
}

/// Enters an archived file, if it is a segment; `record` is its record's row.
pub(crate) fn enter(db: &Connection, record: i64, file: &WalFile) -> Result<()> {
    let Some(place) = Place::of(file) else {
        return Ok(());
    };
    let index = file.index.clone().unwrap_or_default();
    write(db, &place, record, index)?;
    rejoin_before(db, &place)
}

/// Removes the rows that came from this record.
pub(crate) fn forget(db: &Connection, record: i64) -> Result<()> {
    // A file that belongs to two histories is in two archives.
    let mut query = db.prepare_cached("SELECT server FROM segments WHERE record = ?1")?;
    let archives: Vec<String> = query
        .query_map([record], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if archives.is_empty() {
        return Ok(());
    }
    let file = file_of(db, record)?;
    let Some(place) = Place::of(&file) else {
        return Ok(());
    };
    for server in &archives {
        let place = Place { server, ..place };
        clear(db, server, place.timeline, place.number)?;
        rejoin_before(db, &place)?;
    }
    Ok(())
}

/// Removes the rows of the segments of an archive whose names are in a range, if they were archived by then.
pub(crate) fn forget_range(
    db: &Connection,
    server: &str,
    (first, last): (&str, &str),
    archived_by: i64,
) -> Result<()> {
    let mut query = db.prepare_cached(
        "SELECT s.timeline, s.number, s.record FROM wal w JOIN segments s ON s.record = w.record AND s.server = w.server
         WHERE w.server = ?1 AND w.name BETWEEN ?2 AND ?3 AND w.archived_at <= ?4 ORDER BY w.name",
    )?;
    let rows = query.query_map(params![server, first, last, archived_by], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    let forgotten: Vec<(u32, u64, i64)> = rows.collect::<rusqlite::Result<_>>()?;
    for &(timeline, number, _) in &forgotten {
        clear(db, server, timeline, number)?;
    }
    for (_, number, record) in forgotten {
        // What crosses from a segment that stays into this one is not complete any more.
        if number > 0 && !at(db, server, number - 1)?.is_empty() {
            let file = file_of(db, record)?;
            if let Some(place) = Place::of(&file) {
                rejoin_before(db, &Place { server, ..place })?;
            }
        }
    }
    Ok(())
}

fn clear(db: &Connection, server: &str, timeline: u32, number: u64) -> Result<()> {
    for table in ["segments", "restore_points", "parameter_changes"] {
        db.prepare_cached(&format!(
            "DELETE FROM {table} WHERE server = ?1 AND timeline = ?2 AND number = ?3"
        ))?
        .execute(params![server, timeline, number])?;
    }
    Ok(())
}

/// Rebuilds a segment's row.
fn write(db: &Connection, place: &Place<'_>, record: i64, mut index: SegmentIndex) -> Result<()> {
    let (head, has_tail) = (head_of(place, &index), index.tail.is_some());
    let mut ends_in = place.number;
    if let Some(tail) = index.tail.take()
        && let Some((crossing, last)) = complete(db, place, &tail)?
    {
        index.add(crossing.lsn, crossing.facts);
        ends_in = last;
    }
    let (ends_early, end) = end_of(place, &index);
    clear(db, place.server, place.timeline, place.number)?;
    let micros =
        |time: Option<barmanfs_pg::TimestampMicros>| time.map(barmanfs_pg::TimestampMicros::unix_micros);
    db.prepare_cached(
        "INSERT INTO segments (server, timeline, number, record, end_lsn, last_lsn, time_min, time_max,
             checkpoint_time, xid_min, xid_max, commits, ends_in, ends_early, head, tail, reads, unknown, tablespaces)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )?
    .execute(params![
        place.server,
        place.timeline,
        place.number,
        record,
        end.0.cast_signed(),
        index.last_lsn.map(|lsn| lsn.0.cast_signed()),
        micros(index.commit_time_min),
        micros(index.commit_time_max),
        micros(index.checkpoint_time_last),
        index.xid_min,
        index.xid_max,
        index.commits,
        ends_in,
        ends_early,
        head,
        has_tail,
        index.reads,
        index.is_of_unknown_version(),
        index.tablespaces.len(),
    ])?;
    // If a name occurs twice in a segment, each occurrence has its own LSN.
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO restore_points (server, name, timeline, lsn, number, time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for point in &index.restore_points {
        insert.execute(params![
            place.server,
            point.name,
            place.timeline,
            point.lsn.0.cast_signed(),
            place.number,
            point.time.unix_micros()
        ])?;
    }
    write_parameter_changes(db, place, &index)
}

fn write_parameter_changes(db: &Connection, place: &Place<'_>, index: &SegmentIndex) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO parameter_changes (server, timeline, number, lsn, minimal, required)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for change in &index.parameter_changes {
        let required = serde_json::to_string(&change.parameters.required)
            .map_err(|error| crate::Error::Invalid(error.to_string()))?;
        insert.execute(params![
            place.server,
            place.timeline,
            place.number,
            change.lsn.0.cast_signed(),
            change.parameters.wal_level == WalLevel::Minimal,
            required
        ])?;
    }
    Ok(())
}

fn head_of(place: &Place<'_>, index: &SegmentIndex) -> i64 {
    match &index.head {
        None => head::NONE,
        Some(_) if index.end_lsn > place.start() => head::ENDS,
        Some(_) => head::RUNS_THROUGH,
    }
}

/// Whether replay ends in the segment, and where its records end. WAL of an unknown version is assumed to be complete.
fn end_of(place: &Place<'_>, index: &SegmentIndex) -> (bool, Lsn) {
    let segment_end = Lsn(place.start().0.saturating_add(place.size.bytes()));
    match &index.stopped {
        Some(stop) if stop.reason != StopReason::UnknownVersion => (true, index.end_lsn),
        Some(_) => (false, segment_end),
        None if index.end_lsn > place.start() => (false, index.end_lsn),
        None => (false, segment_end),
    }
}

/// Rebuilds the rows of earlier segments whose last record may be completed by the segment at `place`.
fn rejoin_before(db: &Connection, place: &Place<'_>) -> Result<()> {
    let mut timeline = place.timeline;
    let first = place.number.saturating_sub(CROSSED_MAX);
    for number in (first..place.number).rev() {
        let mut runs_through = None;
        for row in at(db, place.server, number)? {
            if row.timeline > timeline {
                break;
            }
            if row.has_tail {
                let owner = Place {
                    timeline: row.timeline,
                    number,
                    ..*place
                };
                write(
                    db,
                    &owner,
                    row.record,
                    file_of(db, row.record)?.index.unwrap_or_default(),
                )?;
            }
            if row.head == head::RUNS_THROUGH {
                runs_through = Some(row.timeline);
            }
        }
        match runs_through {
            Some(found) => timeline = found,
            None => break,
        }
    }
    Ok(())
}

/// The record that begins with `tail` in the segment at `place`, and the number of the segment it ends in. It continues
/// in the next segment of the same timeline or, if a new timeline begins there, in that one's.
fn complete(db: &Connection, place: &Place<'_>, tail: &Fragment) -> Result<Option<(Record, u64)>> {
    let mut heads = Vec::new();
    continued(db, place, tail, &mut heads)
}

fn continued(
    db: &Connection,
    place: &Place<'_>,
    tail: &Fragment,
    heads: &mut Vec<Fragment>,
) -> Result<Option<(Record, u64)>> {
    if heads.len() as u64 > CROSSED_MAX {
        return Ok(None);
    }
    let number = place.number + 1;
    for row in at(db, place.server, number)? {
        if row.timeline < place.timeline || row.head == head::NONE {
            continue;
        }
        let Some(head) = file_of(db, row.record)?.index.and_then(|index| index.head) else {
            continue;
        };
        heads.push(head);
        let found = if row.head == head::RUNS_THROUGH {
            let next = Place {
                timeline: row.timeline,
                number,
                ..*place
            };
            continued(db, &next, tail, heads)?
        } else {
            let parts: Vec<&Fragment> = heads.iter().collect();
            join(tail, &parts).map(|record| (record, number))
        };
        if found.is_some() {
            return Ok(found);
        }
        heads.pop();
    }
    Ok(None)
}

/// The part of a segment's row that is needed to join records.
struct Joint {
    timeline: u32,
    record: i64,
    head: i64,
    has_tail: bool,
}

/// The segments of this number on all timelines, ordered by timeline.
fn at(db: &Connection, server: &str, number: u64) -> Result<Vec<Joint>> {
    // Without INDEXED BY, SQLite would scan all segments of the server to get the order.
    let mut query = db.prepare_cached(
        "SELECT timeline, record, head, tail FROM segments INDEXED BY segments_by_number
         WHERE server = ?1 AND number = ?2 ORDER BY timeline",
    )?;
    let rows = query.query_map(params![server, number], |row| {
        Ok(Joint {
            timeline: row.get(0)?,
            record: row.get(1)?,
            head: row.get(2)?,
            has_tail: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn file_of(db: &Connection, record: i64) -> Result<WalFile> {
    let (id, payload) = db
        .prepare_cached("SELECT id, payload FROM records WHERE seq = ?1")?
        .query_row([record], |row| {
            Ok((RecordId(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?
        .ok_or_else(|| crate::Error::Invalid(format!("The catalog has no record {record}")))?;
    records::parse(id, &payload)
}
