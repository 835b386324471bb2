//! Condemns packs, rescues them, and decides when one may be removed.

use std::collections::BTreeSet;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{PackId, Record, RecordId};
use rusqlite::{Connection, params};

use crate::archive::damage;
use crate::error::Result;
use crate::home::now;
use crate::index::records::{self, Deletion, Kind};
use crate::upkeep::sweep::Sweep;
use crate::upkeep::sweep::mark::Mark;

/// A deletion is kept at least this long, and as long as any pack has the record it annuls: until then that pack may
/// reappear, if the repository is put together again from a copy.
const DELETION_KEPT_MICROS: i64 = 24 * 3600 * 1_000_000;

/// A pack to decide about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackRow {
    pub(super) seq: i64,
    pub(super) id: PackId,
    pub(super) bytes: u64,
    pub(super) stored_bytes: u64,
    /// The lock of the writer that made it.
    writer: Option<String>,
}

/// Packs to condemn.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    /// Packs with nothing in use.
    pub(super) dead: Vec<PackRow>,
    /// Packs with many dead bytes, or with damage that was stored again; condemned once their live content has been
    /// copied.
    pub(super) sparse: Vec<PackRow>,
}

impl Sweep<'_> {
    /// The condemned packs whose writers have all ended. Their lists are emptied: a writer that is added later was not
    /// active yet.
    pub(super) fn ready_to_go(&self) -> Result<Vec<PackRow>> {
        let condemned = self.packs("condemned_at IS NOT NULL AND writers_listed = 1", i64::MAX)?;
        if condemned.is_empty() {
            return Ok(condemned);
        }
        self.repository.db.write(|transaction| {
            // A list cannot grow during this transaction, so a writer that is not alive now has ended.
            let at_work = self.writers_at_work()?;
            let mut before =
                transaction.prepare_cached("SELECT writer FROM condemned_before WHERE pack = ?1")?;
            let mut ended = transaction.prepare_cached("DELETE FROM condemned_before WHERE pack = ?1")?;
            let mut ready = Vec::new();
            for pack in condemned {
                let writers = before.query_map([pack.seq], |row| row.get(0))?;
                let writers: BTreeSet<String> = writers.collect::<rusqlite::Result<_>>()?;
                if writers.is_disjoint(&at_work) {
                    ended.execute([pack.seq])?;
                    ready.push(pack);
                }
            }
            Ok(ready)
        })
    }

    /// Revokes the condemnation of packs that are in use after all.
    pub(super) fn rescue(&mut self, mark: &Mark) -> Result<()> {
        for pack in self.packs("condemned_at IS NOT NULL", mark.newest_pack)? {
            if !self.is_dead(mark, &pack)? {
                self.repository.db.write(|transaction| {
                    transaction.execute("DELETE FROM condemned_before WHERE pack = ?1", [pack.seq])?;
                    transaction.execute(
                        "UPDATE packs SET condemned_at = NULL, writers_listed = 0 WHERE seq = ?1",
                        [pack.seq],
                    )?;
                    Ok(())
                })?;
                self.report.rescued_packs += 1;
            }
        }
        Ok(())
    }

    /// The packs to condemn. Packs of active writers are left out: these writers have not recorded yet what they use.
    pub(super) fn doomed(&self, mark: &Mark, at_work: &BTreeSet<String>) -> Result<Doomed> {
        let mut doomed = Doomed::default();
        let damaged = self.repository.db.read(damage::damaged_packs)?;
        for pack in self.packs("condemned_at IS NULL", mark.newest_pack.min(self.newest))? {
            if pack
                .writer
                .as_ref()
                .is_some_and(|writer| at_work.contains(writer))
            {
                continue;
            }
            let dead_bytes = pack
                .stored_bytes
                .saturating_sub(mark.in_use(pack.seq)?.stored_bytes);
            if self.is_dead(mark, &pack)? {
                doomed.dead.push(pack);
                continue;
            }
            // While a damaged place exists, backups look up each chunk. So a pack is given up once none of its chunks
            // in use is damaged in it.
            let is_left = match damaged.get(&pack.seq) {
                Some(damaged) => !mark.chunks_in(pack.seq)?.iter().any(|id| damaged.contains(id)),
                None => false,
            };
            if is_left || dead_bytes * 100 > pack.stored_bytes * u64::from(self.options.dead_percent) {
                doomed.sparse.push(pack);
            }
        }
        Ok(doomed)
    }

    /// Whether neither a chunk nor a record of a pack is in use.
    pub(super) fn is_dead(&self, mark: &Mark, pack: &PackRow) -> Result<bool> {
        Ok(mark.in_use(pack.seq)?.chunks == 0 && self.live_records(pack)?.is_empty())
    }

    /// The records in a pack that still have a meaning and that this pack must keep. Of several packs with the same
    /// record, one must keep it: one that stays before a condemned one, then the oldest.
    pub(super) fn live_records(&self, pack: &PackRow) -> Result<Vec<Record>> {
        let now = now();
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.kind, r.payload FROM record_packs p JOIN records r ON r.seq = p.record
                 WHERE p.pack = ?1 AND r.id NOT IN (SELECT annulled FROM deletions) AND p.pack = (
                     SELECT k.seq FROM record_packs h JOIN packs k ON k.seq = h.pack WHERE h.record = p.record
                     ORDER BY k.condemned_at IS NOT NULL, k.seq LIMIT 1)",
            )?;
            let mut rows = query.query([pack.seq])?;
            let mut live = Vec::new();
            while let Some(row) = rows.next()? {
                let record = Record {
                    id: RecordId(row.get(0)?),
                    kind: row.get(1)?,
                    payload: row.get(2)?,
                };
                let is_live = match Kind::of(record.kind) {
                    Some(Kind::Deletion) => is_needed(db, &records::parse(record.id, &record.payload)?, now)?,
                    Some(Kind::Damage) => {
                        damage::is_needed(db, &records::parse(record.id, &record.payload)?)?
                    }
                    // They mean something until they are annulled.
                    Some(
                        Kind::Backup
                        | Kind::Wal
                        | Kind::QuarantinedWal
                        | Kind::Server
                        | Kind::BootTest
                        | Kind::History,
                    )
                    | None => true,
                };
                if is_live {
                    live.push(record);
                }
            }
            Ok(live)
        })
    }

    /// Condemns packs: writers that begin after this do not find anything in them.
    pub(super) fn condemn(&self, packs: &[PackRow]) -> Result<()> {
        let at = now().unix_micros();
        self.repository.db.write(|transaction| {
            let mut condemn = transaction
                .prepare_cached("UPDATE packs SET condemned_at = ?2, writers_listed = 0 WHERE seq = ?1")?;
            for pack in packs {
                condemn.execute(params![pack.seq, at])?;
            }
            Ok(())
        })
    }

    /// Records, for condemned packs, which writers are active now; returns these writers. It must come after the
    /// condemnation is durable: then a writer that begins in between is listed needlessly, but none is missed.
    pub(super) fn list_writers_of_new(&self) -> Result<BTreeSet<String>> {
        let at_work = self.writers_at_work()?;
        let packs = self.packs("condemned_at IS NOT NULL AND writers_listed = 0", i64::MAX)?;
        if !packs.is_empty() {
            self.repository.db.write(|transaction| {
                let mut add = transaction.prepare_cached(
                    "INSERT OR IGNORE INTO condemned_before (pack, writer) VALUES (?1, ?2)",
                )?;
                let mut listed =
                    transaction.prepare_cached("UPDATE packs SET writers_listed = 1 WHERE seq = ?1")?;
                for pack in &packs {
                    at_work
                        .iter()
                        .try_for_each(|writer| add.execute(params![pack.seq, writer]).map(drop))?;
                    listed.execute([pack.seq])?;
                }
                Ok(())
            })?;
        }
        Ok(at_work)
    }

    /// Counts the packs that must wait, and names the writers they wait for.
    pub(super) fn count_waiting(&mut self) -> Result<()> {
        self.report.waiting_packs = self.packs("condemned_at IS NOT NULL", i64::MAX)?.len() as u64;
        if self.report.waiting_packs > 0 {
            let locks = &self.repository.locks;
            self.report.waiting_for = self
                .writers_at_work()?
                .iter()
                .map(|name| locks.holder(name))
                .collect();
        }
        Ok(())
    }

    /// The packs up to `newest` for which `condition` holds. A row is small: a million of them is 64 TB of packs.
    fn packs(&self, condition: &'static str, newest: i64) -> Result<Vec<PackRow>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT seq, id, bytes, stored_bytes, writer FROM packs WHERE seq <= ?1 AND {condition} ORDER BY seq"
            ))?;
            let rows = query.query_map([newest], |row| {
                Ok(PackRow {
                    seq: row.get(0)?,
                    id: PackId(row.get(1)?),
                    bytes: row.get(2)?,
                    stored_bytes: row.get(3)?,
                    writer: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// A deletion is needed as long as any pack may hold what it annuls.
fn is_needed(db: &Connection, deletion: &Deletion, now: TimestampMicros) -> Result<bool> {
    let annulled_known = db
        .prepare_cached("SELECT 1 FROM records WHERE id = ?1")?
        .exists([deletion.of.as_bytes()])?;
    Ok(annulled_known
        || now.unix_micros()
            < deletion
                .deleted_at
                .unix_micros()
                .saturating_add(DELETION_KEPT_MICROS))
}
