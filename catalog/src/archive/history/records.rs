//! Records of forks and decisions, and the tables derived from them.

use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};
use barmanfs_store::{Record, RecordId};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::archive::derive;
use crate::archive::wal::{self, WalFile};
use crate::error::Result;
use crate::index::records::{self, Kind};
use crate::names::ServerName;

/// The payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HistoryRecord {
    pub(crate) server: ServerName,
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
    pub(crate) at: TimestampMicros,
    pub(crate) event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// Two histories were detected.
    Fork { why: String, found_by: String },
    /// The later one counts.
    Restart(Restart),
    /// The archived one counts.
    Keep {
        /// The forks this settles.
        of: Vec<RecordId>,
        /// Records of refused segments that are archived from now on.
        #[serde(default)]
        taken: Vec<RecordId>,
    },
}

/// A decision for the later history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restart {
    /// The forks this settles.
    pub(crate) of: Vec<RecordId>,
    /// Records of archived files and backups that belong to the abandoned history.
    pub(crate) apart: Vec<RecordId>,
    /// Records of refused segments that are archived from now on.
    #[serde(default)]
    pub(crate) taken: Vec<RecordId>,
    /// Of the files common to both histories, the backups of the abandoned one need those from this position on.
    pub(crate) shared_from: Lsn,
}

/// Enters a record's content into the tables.
pub(crate) fn derive(db: &Connection, seq: i64, id: RecordId, record: &HistoryRecord) -> Result<()> {
    let server = record.server.as_str();
    match &record.event {
        Event::Fork { .. } => {
            db.prepare_cached(
                "INSERT INTO forks (record, id, server, timeline, lsn) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                seq,
                id.as_bytes(),
                server,
                record.timeline.0,
                record.lsn.0.cast_signed()
            ])?;
        }
        Event::Keep { of, taken } => {
            settle(db, seq, of, false)?;
            enter_decision(db, seq, record, None)?;
            for placed in taken {
                place(db, seq, *placed, &record.server)?;
            }
        }
        Event::Restart(restart) => {
            settle(db, seq, &restart.of, true)?;
            let key = ServerName::of_left_history(&record.server, id);
            enter_decision(db, seq, record, Some((&key, restart.shared_from)))?;
            for (ids, archive) in [(&restart.apart, &key), (&restart.taken, &record.server)] {
                for placed in ids {
                    place(db, seq, *placed, archive)?;
                }
            }
            share_all(db, record)?;
        }
    }
    Ok(())
}

/// `left`: the archive of the abandoned history, and the position from which it shares the files common to both.
fn enter_decision(
    db: &Connection,
    seq: i64,
    record: &HistoryRecord,
    left: Option<(&ServerName, Lsn)>,
) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO decisions (record, server, archive, decided_at, shared_from) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        seq,
        record.server.as_str(),
        left.map(|(archive, _)| archive.as_str()),
        record.at.unix_micros(),
        left.map(|(_, from)| from.0.cast_signed())
    ])?;
    Ok(())
}

fn settle(db: &Connection, seq: i64, of: &[RecordId], restart: bool) -> Result<()> {
    for fork in of {
        db.prepare_cached("INSERT OR IGNORE INTO decided (fork, record, restart) VALUES (?1, ?2, ?3)")?
            .execute(params![fork.as_bytes(), seq, restart])?;
    }
    Ok(())
}

/// From now on this record is a file of this archive; if the record has been read already, it is entered again.
fn place(db: &Connection, decision: i64, id: RecordId, archive: &ServerName) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO placed (id, record, archive) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_bytes(), decision, archive.as_str()])?;
    let known = db
        .prepare_cached("SELECT seq, kind, payload FROM records WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, u8>(1)?,
                row.get::<_, Vec<u8>>(2)?,
            ))
        })
        .optional()?;
    let Some((seq, kind, payload)) =
        known.filter(|(_, kind, _)| matches!(Kind::of(*kind), Some(Kind::Wal | Kind::QuarantinedWal)))
    else {
        return Ok(());
    };
    wal::index::forget(db, seq)?;
    for table in ["wal", "quarantine"] {
        db.prepare_cached(&format!("DELETE FROM {table} WHERE record = ?1"))?
            .execute([seq])?;
    }
    derive::derive(db, seq, &Record { id, kind, payload })
}

/// The archive that a decision placed a file or a backup in; the last decision counts,
/// and of two made in the same microsecond the one with the greater id: not the one that was read first.
pub(crate) fn placed_in(db: &Connection, id: RecordId) -> Result<Option<ServerName>> {
    let archive: Option<String> = db
        .prepare_cached(
            "SELECT p.archive FROM placed p JOIN decisions d ON d.record = p.record
                 JOIN records r ON r.seq = d.record WHERE p.id = ?1
             ORDER BY d.decided_at DESC, r.id DESC LIMIT 1",
        )?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(archive.map(ServerName::of_archive))
}

/// Enters the files of the server's archive that also belong to an abandoned history. Nothing is archived during a
/// decision, so everything found then is older than the decision.
fn share_all(db: &Connection, record: &HistoryRecord) -> Result<()> {
    let mut query = db.prepare(
        "SELECT r.id, r.payload, r.seq FROM wal w JOIN records r ON r.seq = w.record WHERE w.server = ?1",
    )?;
    let mut rows = query.query([record.server.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, file) = records::of_row::<WalFile>(row)?;
        found.push((row.get(2)?, id, file));
    }
    drop(rows);
    for (seq, id, file) in found {
        share(db, seq, id, &file)?;
    }
    Ok(())
}

/// Enters a file of the server's archive into the abandoned histories that share it.
pub(crate) fn share(db: &Connection, seq: i64, id: RecordId, file: &WalFile) -> Result<()> {
    let mut query = db.prepare_cached(
        // Excluded: files that had left the server's archive by then, and files that came into it only then or later.
        "SELECT archive, shared_from FROM decisions r WHERE server = ?1 AND archive IS NOT NULL AND decided_at > ?2
             AND NOT EXISTS (SELECT 1 FROM placed p JOIN decisions o ON o.record = p.record
                 WHERE p.id = ?3 AND ((p.archive <> r.server AND o.decided_at <= r.decided_at)
                     OR (p.archive = r.server AND o.decided_at >= r.decided_at)))
             -- And files that had been removed by then.
             AND NOT EXISTS (SELECT 1 FROM wal_removals m WHERE m.server = ?1 AND m.first <= ?4 AND m.last >= ?4
                 AND m.removed_at >= ?2 AND m.removed_at <= r.decided_at)",
    )?;
    let rows = query.query_map(
        params![
            file.server.as_str(),
            file.archived_at.unix_micros(),
            id.as_bytes(),
            file.name.segment().map(|segment| segment.to_string())
        ],
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)),
    )?;
    let sharing: Vec<(String, i64)> = rows.collect::<rusqlite::Result<_>>()?;
    for (archive, shared_from) in sharing {
        if is_needed(file, Lsn(shared_from.cast_unsigned())) {
            let archive = ServerName::of_archive(archive);
            derive::enter_wal(
                db,
                seq,
                id,
                &WalFile {
                    server: archive,
                    ..file.clone()
                },
            )?;
        }
    }
    Ok(())
}

fn is_needed(file: &WalFile, from: Lsn) -> bool {
    match (file.name, SegmentSize::try_from(file.size_bytes)) {
        (WalName::History(_), _) => true,
        (WalName::Segment(name), Ok(size)) => name.next(size).start_lsn(size) > from,
        _ => false,
    }
}

/// The archive that holds a backup's WAL, if that is not the server's current one.
pub(crate) fn archive_of(db: &Connection, id: RecordId, backup: &Backup) -> Result<Option<ServerName>> {
    if let Some(archive) = placed_in(db, id)? {
        return Ok(Some(archive));
    }
    let Some(fork) = backup.fork else {
        return Ok(None);
    };
    let is_now_the_servers = db
        .prepare_cached("SELECT 1 FROM decided WHERE fork = ?1 AND restart")?
        .exists([fork.as_bytes()])?;
    Ok((!is_now_the_servers).then(|| ServerName::of_left_history(&backup.server, fork)))
}
