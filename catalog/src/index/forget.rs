//! Deletes the rows of packs that are gone.

use barmanfs_store::PackId;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::error::Result;
use crate::index::chunk_lists;
use crate::index::records::Kind;

/// What the runs have of the pack's chunks goes with the next merge.
pub(crate) fn forget(transaction: &Transaction<'_>, pack: i64) -> Result<()> {
    chunk_lists::forget(transaction, pack)?;
    let mut records = transaction.prepare_cached("SELECT record FROM record_packs WHERE pack = ?1")?;
    let records: Vec<i64> = records
        .query_map([pack], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    transaction.execute("DELETE FROM record_packs WHERE pack = ?1", [pack])?;
    for record in records {
        forget_record(transaction, record)?;
    }
    transaction.execute("DELETE FROM packs WHERE seq = ?1", [pack])?;
    Ok(())
}

/// Deletes a record that no pack holds any more; it was annulled, or no longer has a meaning.
fn forget_record(transaction: &Transaction<'_>, record: i64) -> Result<()> {
    let held = transaction
        .prepare_cached("SELECT 1 FROM record_packs WHERE record = ?1")?
        .exists([record])?;
    if !held {
        transaction.execute("DELETE FROM deletions WHERE record = ?1", [record])?;
        transaction.execute("DELETE FROM damaged WHERE record = ?1", [record])?;
        transaction.execute("DELETE FROM wal_removals WHERE record = ?1", [record])?;
        transaction.execute("DELETE FROM records WHERE seq = ?1", [record])?;
    }
    Ok(())
}

/// Forgets a pack that another host has removed. Returns `false`, and leaves it, where a record of it still means something
/// here and is in no other pack: the record that annuls it was removed as well, so this catalog has to be made again.
pub(crate) fn forget_removed(transaction: &Transaction<'_>, pack: PackId) -> Result<bool> {
    let mut row = transaction.prepare_cached("SELECT seq FROM packs WHERE id = ?1")?;
    let row: Option<i64> = row.query_row([pack.as_bytes()], |row| row.get(0)).optional()?;
    let Some(row) = row else { return Ok(true) };
    if has_meaning(transaction, row)? {
        return Ok(false);
    }
    forget(transaction, row)?;
    Ok(true)
}

fn has_meaning(db: &Connection, pack: i64) -> Result<bool> {
    let mut only_here = db.prepare_cached(
        "SELECT 1 FROM record_packs h JOIN records r ON r.seq = h.record
         WHERE h.pack = ?1
         AND NOT EXISTS (SELECT 1 FROM record_packs o WHERE o.record = h.record AND o.pack <> ?1)
         AND r.id NOT IN (SELECT annulled FROM deletions)
         AND r.kind NOT IN (?2, ?3, ?4)
         AND (r.kind <> ?5 OR EXISTS (SELECT 1 FROM wal w WHERE w.record = r.seq))
         LIMIT 1",
    )?;
    Ok(only_here.exists(params![
        pack,
        Kind::Deletion,
        Kind::WalRemoval,
        Kind::Damage,
        Kind::Wal
    ])?)
}
