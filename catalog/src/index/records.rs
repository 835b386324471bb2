//! Records: the facts kept in packs' footers, and the tables derived from them.
//!
//! A payload is JSON with a `version`. Every pack gets into the catalog through this module, whether it was just
//! written or found as an orphan ([`enter`]), or read by a rebuild ([`enter_without_deriving`], then [`derive_all`]).
//! One function defines what a record means ([`Derive`]), so a rebuild gives the same tables. The result does not
//! depend on the order of packs: a deletion names the record it annuls and may come before or after it, and if two
//! records claim the same place, the earlier one gets it.

use barmanfs_pg::TimestampMicros;
use barmanfs_store::layout::MAX_RECORD_BYTES;
use barmanfs_store::{ClosedPack, PackId, Record, RecordId};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, Row, ToSql, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::presence::WriterName;
use crate::index::chunk_lists::{self, ListedChunk};
use crate::index::condemned;
use crate::index::runs::{self, Bulk, Key};

/// Version of the payloads this release writes, and the newest it reads.
const PAYLOAD_VERSION: u32 = 1;

/// What a record is about. The numbers are part of the format, see `FORMAT.md`. All code that depends on the kind
/// matches each of them, so a new kind does not compile until everything has an answer for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A complete or failed backup.
    Backup = 1,
    /// An archived file.
    Wal = 2,
    /// Annuls another record.
    Deletion = 3,
    /// A person's decision to keep a backup.
    Keep = 4,
    /// A file in quarantine.
    QuarantinedWal = 5,
    /// A server and its cluster.
    Server = 6,
    /// A boot test of a backup and its result.
    BootTest = 7,
    /// Places of damaged chunks.
    Damage = 8,
    /// A fork of a timeline into two histories, or the decision which one counts.
    History = 9,
    /// The removal of a range of archived files.
    WalRemoval = 10,
    /// Configuration files of a backup, from outside the data directory.
    Configuration = 11,
    /// A backup whose files are a snapshot in the site's storage.
    Snapshot = 12,
}

impl Kind {
    /// The kind with this number; `None` for one of a later release.
    pub(crate) fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Backup,
            2 => Self::Wal,
            3 => Self::Deletion,
            4 => Self::Keep,
            5 => Self::QuarantinedWal,
            6 => Self::Server,
            7 => Self::BootTest,
            8 => Self::Damage,
            9 => Self::History,
            10 => Self::WalRemoval,
            11 => Self::Configuration,
            12 => Self::Snapshot,
            _ => return None,
        })
    }

    /// Its number in the format.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

impl ToSql for Kind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.number().into())
    }
}

/// Annuls a record permanently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deletion {
    pub(crate) of: RecordId,
    pub(crate) deleted_at: TimestampMicros,
    /// What it was, for messages: "backup 20261120T101500 of main".
    pub(crate) what: String,
}

#[derive(Serialize)]
struct Payload<T> {
    version: u32,
    #[serde(flatten)]
    body: T,
}

/// A new record of this kind.
pub(crate) fn record<T: Serialize>(kind: Kind, body: &T) -> Result<Record> {
    let id = RecordId::random()?;
    let bad = |reason: String| Error::BadRecord {
        id: id.to_string(),
        reason,
    };
    let payload = serde_json::to_vec(&Payload {
        version: PAYLOAD_VERSION,
        body,
    })
    .map_err(|e| bad(e.to_string()))?;
    if payload.len() > MAX_RECORD_BYTES {
        return Err(bad(format!(
            "It has {} bytes, at most {MAX_RECORD_BYTES} are possible",
            payload.len()
        )));
    }
    Ok(Record {
        id,
        kind: kind.number(),
        payload,
    })
}

/// Reads a record from a row that begins with its id and its payload.
pub(crate) fn of_row<T: DeserializeOwned>(row: &Row<'_>) -> Result<(RecordId, T)> {
    let (id, payload) = id_and_payload(row)?;
    Ok((id, parse(id, payload)?))
}

/// The same for a record that may be unreadable; its id is known nevertheless.
pub(crate) fn id_and_payload<'a>(row: &'a Row<'_>) -> Result<(RecordId, &'a [u8])> {
    let payload = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
    Ok((RecordId(row.get(0)?), payload))
}

/// Reads a record's payload.
pub(crate) fn parse<T: DeserializeOwned>(id: RecordId, payload: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad = |error: serde_json::Error| Error::BadRecord {
        id: id.to_string(),
        reason: error.to_string(),
    };
    let Version { version } = serde_json::from_slice(payload).map_err(bad)?;
    if version > PAYLOAD_VERSION {
        let what = format!("Record {id}");
        return Err(Error::NewerFormat {
            what,
            found: version,
            newest: PAYLOAD_VERSION,
        });
    }
    // Not through `Payload`: a flattened struct is parsed three times as slowly.
    serde_json::from_slice(payload).map_err(bad)
}

/// The records of a kind, not annulled, that name one of `named`; `of` is what a record names. One that cannot be read names
/// nothing.
pub(crate) fn naming<T: DeserializeOwned>(
    db: &Connection,
    kind: Kind,
    named: &[RecordId],
    of: impl Fn(&T) -> RecordId,
) -> Result<Vec<RecordId>> {
    let mut query = db.prepare_cached(
        "SELECT id, payload FROM records WHERE kind = ?1 AND kind <> 2
         AND id NOT IN (SELECT annulled FROM deletions)",
    )?;
    let mut rows = query.query([kind])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, payload) = id_and_payload(row)?;
        if parse::<T>(id, payload).is_ok_and(|record| named.contains(&of(&record))) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Enters what the record in row `seq` means into the tables for its kind. The archive module provides this function.
pub(crate) type Derive = fn(db: &Connection, seq: i64, record: &Record) -> Result<()>;

/// What [`enter`] did.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    /// Whether the pack is new in the catalog.
    pub(crate) new: bool,
    /// Records that could not be read. They are kept but have no meaning.
    pub(crate) bad_records: Vec<Error>,
}

/// Enters a pack: its chunks, its records, and what these mean. A pack that is already in the catalog stays as it is.
pub(crate) fn enter(
    db: &Connection,
    derive: Derive,
    pack: &ClosedPack,
    writer: Option<&WriterName>,
) -> Result<Entered> {
    let Some(seq) = enter_pack_row(db, pack, writer)? else {
        return Ok(Entered::default());
    };
    enter_chunks(db, seq, pack)?;
    let mut entered = Entered {
        new: true,
        bad_records: Vec::new(),
    };
    for record in &pack.records {
        let Some(record_seq) = enter_record(db, seq, record)? else {
            continue;
        };
        match derive(db, record_seq, record) {
            Err(error @ (Error::BadRecord { .. } | Error::NewerFormat { .. })) => {
                entered.bad_records.push(error);
            }
            other => other?,
        }
    }
    Ok(entered)
}

/// Enters a pack without the keys of its chunks, which are added to `keys`, and without what its records mean:
/// [`derive_all`] adds that once all packs are entered.
pub(crate) fn enter_without_deriving(db: &Connection, pack: &ClosedPack, keys: &Bulk) -> Result<()> {
    if let Some(seq) = enter_pack_row(db, pack, None)? {
        chunk_lists::enter(db, seq, pack.chunks.iter().map(ListedChunk::from))?;
        keys.add(seq, keys_of(pack))?;
        pack.records
            .iter()
            .try_for_each(|record| enter_record(db, seq, record).map(drop))?;
    }
    Ok(())
}

/// `None` when the pack is already in the catalog; a sweep may have adopted it before its writer entered it.
fn enter_pack_row(db: &Connection, pack: &ClosedPack, writer: Option<&WriterName>) -> Result<Option<i64>> {
    let stored: u64 = pack
        .chunks
        .iter()
        .map(|chunk| u64::from(chunk.stored_bytes))
        .sum();
    let raw: u64 = pack.chunks.iter().map(|chunk| u64::from(chunk.raw_bytes)).sum();
    let chunks = pack.chunks.len() as u64;
    let mut insert = db.prepare_cached(
        "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO NOTHING",
    )?;
    let fresh = insert.execute(params![pack.id.as_bytes(), pack.bytes, chunks, stored, raw])?;
    let seq = (fresh == 1).then(|| db.last_insert_rowid());
    if let Some(writer) = writer {
        condemned::set_writer(db, pack.id, writer)?;
    }
    Ok(seq)
}

fn enter_chunks(db: &Connection, seq: i64, pack: &ClosedPack) -> Result<()> {
    chunk_lists::enter(db, seq, pack.chunks.iter().map(ListedChunk::from))?;
    runs::add(db, seq, keys_of(pack))
}

fn keys_of(pack: &ClosedPack) -> impl Iterator<Item = Key> {
    pack.chunks.iter().map(|chunk| Key::from(&chunk.id))
}

/// Returns the record's row when it is new.
fn enter_record(db: &Connection, pack: i64, record: &Record) -> Result<Option<i64>> {
    let fresh = db
        .prepare_cached(
            "INSERT INTO records (id, kind, payload) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![record.id.as_bytes(), record.kind, record.payload])?;
    let seq: i64 = db
        .prepare_cached("SELECT seq FROM records WHERE id = ?1")?
        .query_row([record.id.as_bytes()], |row| row.get(0))?;
    db.prepare_cached("INSERT OR IGNORE INTO record_packs (record, pack) VALUES (?1, ?2)")?
        .execute([seq, pack])?;
    Ok((fresh == 1).then_some(seq))
}

/// Enters what all records mean: first deletions, then records about histories, then removals of WAL, then all others.
/// The first three kinds decide about other records, so with this order it does not matter in which order they arrived. `problem` gets the row
/// of each record that cannot be read, and the error.
pub(crate) fn derive_all(
    db: &Connection,
    derive: Derive,
    problem: &mut dyn FnMut(i64, Error) -> Result<()>,
) -> Result<()> {
    let mut all = db.prepare(
        "SELECT seq, id, kind, payload FROM records ORDER BY kind <> ?1, kind <> ?2, kind <> ?3, id",
    )?;
    let mut rows = all.query([Kind::Deletion, Kind::History, Kind::WalRemoval])?;
    while let Some(row) = rows.next()? {
        let seq = row.get(0)?;
        let record = Record {
            id: RecordId(row.get(1)?),
            kind: row.get(2)?,
            payload: row.get(3)?,
        };
        match derive(db, seq, &record) {
            Err(error @ (Error::BadRecord { .. } | Error::NewerFormat { .. })) => problem(seq, error)?,
            other => other?,
        }
    }
    Ok(())
}

/// Whether a pack is in the catalog.
pub(crate) fn knows_pack(db: &Connection, pack: PackId) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM packs WHERE id = ?1")?
        .exists([pack.as_bytes()])?)
}

/// Whether a deletion of this record has been read.
pub(crate) fn is_annulled(db: &Connection, record: RecordId) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM deletions WHERE annulled = ?1")?
        .exists([record.as_bytes()])?)
}
