//! What each kind of record means: the rows it adds to the catalog's tables.
//!
//! The rows do not depend on the order of the records: a deletion counts whether it comes before or after the record it
//! annuls, and if two records claim the same place, the earlier one gets it.

use barmanfs_store::{Record, RecordId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::archive::backup::{Backup, BackupStatus, boot_test, configuration};
use crate::archive::wal::{self, QuarantinedWal, WalFile, removal};
use crate::archive::{damage, history, keep, servers};
use crate::error::Result;
use crate::index::records::{Deletion, Kind, is_annulled, parse};
use crate::index::schema::GO_WITH_THEIR_RECORD;

/// Enters a record into the tables for its kind.
pub(crate) fn derive(db: &Connection, seq: i64, record: &Record) -> Result<()> {
    // A record of a later release is kept, and not interpreted.
    let Some(kind) = Kind::of(record.kind) else {
        return Ok(());
    };
    // A deletion is permanent.
    if kind != Kind::Deletion && is_annulled(db, record.id)? {
        return Ok(());
    }
    let (id, payload) = (record.id, record.payload.as_slice());
    match kind {
        Kind::Backup | Kind::Snapshot => derive_backup(db, seq, id, &parse(id, payload)?),
        Kind::Wal => derive_wal(db, seq, id, &parse(id, payload)?),
        Kind::Deletion => annul(db, seq, &parse(id, payload)?),
        Kind::Keep => keep::derive(db, seq, &parse(id, payload)?),
        Kind::QuarantinedWal => derive_quarantine(db, seq, id, &parse(id, payload)?),
        Kind::Server => servers::derive(db, seq, id, &parse(id, payload)?),
        Kind::BootTest => boot_test::derive(db, seq, id, &parse(id, payload)?),
        Kind::Damage => damage::derive(db, seq, &parse(id, payload)?),
        Kind::History => history::records::derive(db, seq, id, &parse(id, payload)?),
        Kind::WalRemoval => removal::derive(db, seq, &parse(id, payload)?),
        Kind::Configuration => configuration::derive(db, seq, id, &parse(id, payload)?),
    }
}

/// Whether the payload of a record can be read. Nothing is said about a record of a later release.
pub(crate) fn can_be_read(record: &Record) -> Result<()> {
    let (id, payload) = (record.id, record.payload.as_slice());
    match Kind::of(record.kind) {
        None => Ok(()),
        Some(Kind::Backup | Kind::Snapshot) => parse::<Backup>(id, payload).map(drop),
        Some(Kind::Wal) => parse::<WalFile>(id, payload).map(drop),
        Some(Kind::Deletion) => parse::<Deletion>(id, payload).map(drop),
        Some(Kind::Keep) => parse::<keep::KeepRecord>(id, payload).map(drop),
        Some(Kind::QuarantinedWal) => parse::<QuarantinedWal>(id, payload).map(drop),
        Some(Kind::Server) => parse::<servers::ServerRecord>(id, payload).map(drop),
        Some(Kind::BootTest) => parse::<boot_test::BootTestRecord>(id, payload).map(drop),
        Some(Kind::Damage) => parse::<damage::DamagedPlaces>(id, payload).map(drop),
        Some(Kind::History) => parse::<history::records::HistoryRecord>(id, payload).map(drop),
        Some(Kind::WalRemoval) => parse::<removal::WalRemoval>(id, payload).map(drop),
        Some(Kind::Configuration) => parse::<configuration::ConfigurationRecord>(id, payload).map(drop),
    }
}

fn annul(db: &Connection, seq: i64, deletion: &Deletion) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO deletions (annulled, record) VALUES (?1, ?2)")?
        .execute(params![deletion.of.as_bytes(), seq])?;
    boot_test::annul(db, deletion.of)?;
    configuration::annul(db, deletion.of)?;
    let target: Option<i64> = db
        .prepare_cached("SELECT seq FROM records WHERE id = ?1")?
        .query_row([deletion.of.as_bytes()], |row| row.get(0))
        .optional()?;
    if let Some(target) = target {
        wal::index::forget(db, target)?;
        for table in GO_WITH_THEIR_RECORD {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE record = ?1"))?
                .execute([target])?;
        }
    }
    Ok(())
}

/// Ids are assigned under the server's lock. Still, an id may occur twice: a backup was killed after its last pack was
/// durable but before it was entered in the catalog, the next run recorded its id as failed, and the pack is found as
/// an orphan later. Then the backup is complete after all.
fn derive_backup(db: &Connection, seq: i64, id: RecordId, backup: &Backup) -> Result<()> {
    let failed = backup.status == BackupStatus::Failed;
    db.prepare_cached(
        "INSERT INTO backups (server, id, record, failed) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (server, id) DO UPDATE SET record = excluded.record, failed = excluded.failed
         WHERE (excluded.failed, ?5) < (failed, (SELECT id FROM records WHERE seq = record))",
    )?
    .execute(params![
        backup.server.as_str(),
        backup.id.to_string(),
        seq,
        failed,
        id.as_bytes()
    ])?;
    Ok(())
}

/// Archiving is serialized per name. If two records still claim one name (repositories merged by hand), the earlier one
/// gets it, in whatever order they are read.
fn derive_wal(db: &Connection, seq: i64, id: RecordId, file: &WalFile) -> Result<()> {
    match history::records::placed_in(db, id)? {
        Some(server) => enter_wal(
            db,
            seq,
            id,
            &WalFile {
                server,
                ..file.clone()
            },
        )?,
        None => enter_wal(db, seq, id, file)?,
    }
    history::records::share(db, seq, id, file)
}

/// Enters a file into the archive named in it, unless it has been removed from there.
pub(crate) fn enter_wal(db: &Connection, seq: i64, id: RecordId, file: &WalFile) -> Result<()> {
    if removal::applies_to(db, &file.server, &file.name, file.archived_at)? {
        return Ok(());
    }
    db.prepare_cached(
        "INSERT INTO wal (server, name, record, size_bytes, archived_at, new_stored_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (server, name) DO UPDATE SET record = excluded.record, size_bytes = excluded.size_bytes,
             archived_at = excluded.archived_at, new_stored_bytes = excluded.new_stored_bytes
         WHERE (excluded.archived_at, ?7) < (archived_at, (SELECT id FROM records WHERE seq = record))",
    )?
    .execute(params![
        file.server.as_str(),
        file.name.to_string(),
        seq,
        file.size_bytes,
        file.archived_at.unix_micros(),
        file.new_stored_bytes,
        id.as_bytes()
    ])?;
    let counts = db
        .prepare_cached("SELECT 1 FROM wal WHERE record = ?1 AND server = ?2")?
        .exists(params![seq, file.server.as_str()])?;
    if counts {
        wal::index::enter(db, seq, file)?;
    }
    Ok(())
}

fn derive_quarantine(db: &Connection, seq: i64, id: RecordId, kept: &QuarantinedWal) -> Result<()> {
    if history::records::placed_in(db, id)?.is_some() {
        // A decision made its history the one that counts.
        return derive_wal(db, seq, id, &kept.file);
    }
    db.prepare_cached("INSERT INTO quarantine (record, server, name) VALUES (?1, ?2, ?3)")?
        .execute(params![
            seq,
            kept.file.server.as_str(),
            kept.file.name.to_string()
        ])?;
    Ok(())
}
