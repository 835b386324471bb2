//! Decides which packs to condemn, and which condemned ones to keep after all.

use std::collections::BTreeSet;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Record, RecordId, key_of_pack};
use rusqlite::Connection;

use crate::archive::backup::configuration::ConfigurationRecord;
use crate::archive::damage;
use crate::archive::wal::{QuarantinedWal, removal};
use crate::error::Result;
use crate::home::now;
use crate::home::presence::{self, WriterName};
use crate::index::condemned::{PackRow, is_condemned};
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::upkeep::sweep::Sweep;
use crate::upkeep::sweep::mark::Mark;

/// A deletion is kept at least this long, and as long as any pack has the record it annuls: until then that pack may
/// reappear, if the repository is put together again from a copy.
const DELETION_KEPT_MICROS: i64 = 24 * 3600 * 1_000_000;

/// Packs to condemn.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    /// Packs with nothing in use.
    pub(super) dead: Vec<PackRow>,
    /// Packs with many dead bytes, with damage that was stored again, or with a damaged footer; condemned once their live
    /// content has been copied.
    pub(super) sparse: Vec<PackRow>,
}

impl Sweep<'_> {
    /// Revokes the condemnation of packs that are in use after all.
    pub(super) fn rescue(&mut self, mark: &Mark) -> Result<()> {
        let condemned = self.repository.condemned();
        for pack in condemned.packs(mark.newest_pack)? {
            if !self.is_dead(mark, &pack)? {
                condemned.rescue(&pack)?;
                self.report.rescued_packs += 1;
            }
        }
        Ok(())
    }

    /// The packs to condemn; none of those of the writers `at_work`.
    pub(super) fn doomed(&self, mark: &Mark, at_work: &BTreeSet<WriterName>) -> Result<Doomed> {
        let mut doomed = Doomed::default();
        let damaged = self.repository.db.read(damage::damaged_packs)?;
        let without_footer = self.repository.packs_without_footer()?;
        let newest = mark.newest_pack.min(self.newest);
        for pack in self.repository.condemned().candidates(newest, at_work)? {
            let dead_bytes = pack
                .stored_bytes
                .saturating_sub(mark.in_use(pack.seq).stored_bytes);
            if self.is_dead(mark, &pack)? {
                doomed.dead.push(pack);
                continue;
            }
            // While a damaged place exists, backups look up each chunk. So a pack is given up once none of its chunks
            // in use is damaged in it.
            let is_damaged = damaged.contains(&pack.seq);
            let is_left = is_damaged && {
                let in_use = mark.chunks_in(pack.seq)?;
                let is_any_damaged = |db: &Connection| damage::is_any_damaged(db, pack.id, &in_use);
                !self.repository.db.read(is_any_damaged)?
            };
            // A rebuild would lose what is in a pack without its footer. A copy has one again.
            let is_whole_again = without_footer.contains(&pack.id) && !is_damaged;
            let is_to_seal = self.options.seal_plain
                && !matches!(
                    key_of_pack(self.repository.storage.as_ref(), pack.id),
                    Ok(Some(_))
                );
            if is_left
                || is_to_seal
                || is_whole_again
                || dead_bytes * 100 > pack.stored_bytes * u64::from(self.options.dead_percent)
            {
                doomed.sparse.push(pack);
            }
        }
        Ok(doomed)
    }

    /// Whether neither a chunk nor a record of a pack is in use.
    pub(super) fn is_dead(&self, mark: &Mark, pack: &PackRow) -> Result<bool> {
        Ok(mark.in_use(pack.seq).chunks == 0 && live_records(self.repository, pack)?.is_empty())
    }

    /// Counts the packs that must wait, and names the writers they wait for.
    pub(super) fn count_waiting(&mut self) -> Result<()> {
        self.report.waiting_packs = self.repository.condemned().packs(i64::MAX)?.len() as u64;
        if self.report.waiting_packs > 0 {
            self.report.waiting_for = presence::described(self.repository.locks.as_ref())?;
        }
        Ok(())
    }
}

/// The records in a pack that still have a meaning and that this pack must keep. Of several packs with the same
/// record, one must keep it: one that stays before a condemned one, then the oldest.
pub(super) fn live_records(repository: &Repository, pack: &PackRow) -> Result<Vec<Record>> {
    let now = now();
    repository.db.read(|db| {
        let mut query = db.prepare_cached(concat!(
            "SELECT r.id, r.kind, r.payload FROM record_packs p JOIN records r ON r.seq = p.record
             WHERE p.pack = ?1 AND r.id NOT IN (SELECT annulled FROM deletions) AND p.pack = (
                 SELECT k.seq FROM record_packs h JOIN packs k ON k.seq = h.pack WHERE h.record = p.record
                 ORDER BY ",
            is_condemned!("k"),
            ", k.seq LIMIT 1)",
        ))?;
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
                Some(Kind::Damage) => damage::is_needed(db, &records::parse(record.id, &record.payload)?)?,
                Some(Kind::Wal) => {
                    !removal::is_dead(db, record.id, &records::parse(record.id, &record.payload)?)?
                }
                Some(Kind::QuarantinedWal) => {
                    let kept: QuarantinedWal = records::parse(record.id, &record.payload)?;
                    !removal::is_dead_decided(db, record.id, &kept.file)?
                }
                Some(Kind::WalRemoval) => {
                    removal::is_needed(db, record.id, &records::parse(record.id, &record.payload)?)?
                }
                Some(Kind::Configuration) => {
                    let of: ConfigurationRecord = records::parse(record.id, &record.payload)?;
                    !records::is_annulled(db, of.of)?
                }
                // They mean something until they are annulled.
                Some(
                    Kind::Backup
                    | Kind::Snapshot
                    | Kind::Keep
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
