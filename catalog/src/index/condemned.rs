//! Condemned packs: what a sweep is about to remove, and the writers that it must wait for.
//!
//! All else in the catalog is derived from packs; this is not. Only this module reads and writes it:
//!
//! | column or table | means | written by |
//! |---|---|---|
//! | `packs.writer` | who made the pack | the writer, when it enters the pack |
//! | `packs.condemned_at` | nothing new may refer to the pack (the time is only for people) | a sweep |
//! | `packs.writers_listed` | 1: the pack's list has all writers that were at work when it was condemned | a sweep |
//! | `condemned_before` | the list: the pack waits until these writers have ended | a sweep; a writer adds itself |
//!
//! There is one sweep at a time (the lock `sweep`). Its steps, each durable before the next begins:
//!
//! 1. [`condemn`](Condemned::condemn) marks the pack as condemned.
//! 2. It probes which writers are at work, and makes the list of them.
//! 3. [`ready`](Condemned::ready) finds that all of them have ended, and empties the list.
//! 4. A mark of what is in use begins. If it finds something in the pack, [`rescue`](Condemned::rescue) revokes the
//!    condemnation.
//! 5. Otherwise the pack's rows are deleted, unless its list has grown again ([`is_awaited`], in the same transaction),
//!    and then its file.
//!
//! If step 2 finds no writer, and nothing was added since the mark that condemned the pack, that mark serves step 4.
//!
//! The steps of a writer:
//!
//! - a. It registers ([`presence`]).
//! - b. It looks up what it wants to refer to, and gets no place in a condemned pack. What it refers to without a
//!   look-up needs more: either it sees first that nothing at all is condemned ([`all_is_reusable`]), or it adds itself
//!   to the lists of all condemned packs ([`Condemned::keep_all`]), and only then checks that what it refers to exists.
//! - c. It enters its records.
//! - d. It ends.
//!
//! Why the two cannot miss each other: a writer does *a* before *b*, a sweep does 1 before 2.
//!
//! - If *b* comes after 1, the writer sees the condemnation.
//! - If *b* comes before 1, then *a* comes before 2. So at step 2 the writer is at work and gets on the list, or it has
//!   ended. In both cases it has ended by step 3, and the mark of step 4 finds its records. (If it was killed before it
//!   could enter a finished pack, the sweep enters that pack before it marks.)
//! - If a writer adds itself to the list before step 3, the pack waits for it. If it does so later, step 5 sees it. If
//!   it does so after step 5, its check finds that what it wants to refer to is gone.
//!
//! A writer's own packs hold chunks to which its records refer only at its end. They would seem dead until then, so a
//! pack is not condemned while its writer is at work ([`Condemned::candidates`]). A pack without a writer was made by a
//! sweep, or was entered by another process before its writer did so; when the writer comes, it adds its name
//! ([`set_writer`]).
//!
//! A kill between two steps leaves a state from which the next sweep continues. It makes missing lists first
//! ([`Condemned::list_writers`]). Writers that ended before that have their records in the catalog, where the next mark
//! finds them.
//!
//! A rebuild loses this state. That only delays a sweep: what was condemned is then in use or dead like any other pack.
//! But the state must not be lost while a writer or a sweep is at work ([`allow_loss`]).
//!
//! [`all_is_reusable`]: crate::index::chunk_index::all_is_reusable

use std::collections::BTreeSet;

use barmanfs_store::PackId;
use rusqlite::{Connection, Row, params};

use crate::error::Result;
use crate::home::locks::{Lock, Locks};
use crate::home::now;
use crate::home::presence::{self, WriterName};
use crate::index::db::Db;
use crate::index::repository::Repository;

/// The SQL condition that the pack of this row of `packs` is condemned; for queries that join it with other tables.
macro_rules! is_condemned {
    ($packs:literal) => {
        concat!($packs, ".condemned_at IS NOT NULL")
    };
}
pub(crate) use is_condemned;

/// A pack that a sweep decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackRow {
    /// The pack's row.
    pub(crate) seq: i64,
    pub(crate) id: PackId,
    pub(crate) bytes: u64,
    /// Bytes of its chunks as they are stored.
    pub(crate) stored_bytes: u64,
}

/// The condemned packs of a repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Condemned<'a> {
    db: &'a Db,
    locks: &'a dyn Locks,
}

impl Repository {
    /// Its condemned packs.
    pub(crate) fn condemned(&self) -> Condemned<'_> {
        Condemned {
            db: &self.db,
            locks: self.locks.as_ref(),
        }
    }
}

impl Condemned<'_> {
    /// The condemned packs up to the row `newest`.
    pub(crate) fn packs(&self, newest: i64) -> Result<Vec<PackRow>> {
        self.select(is_condemned!("p"), newest, |_| true)
    }

    /// The packs up to the row `newest` that may be condemned: those that are not, except the packs of the writers
    /// `at_work`, which have not recorded yet what they use.
    pub(crate) fn candidates(&self, newest: i64, at_work: &BTreeSet<WriterName>) -> Result<Vec<PackRow>> {
        self.select("p.condemned_at IS NULL", newest, |writer| {
            writer.is_none_or(|writer| !at_work.contains(&writer))
        })
    }

    /// All packs up to `newest`, condemned or not.
    pub(crate) fn all(&self, newest: i64) -> Result<Vec<PackRow>> {
        self.select("1", newest, |_| true)
    }

    /// Condemns packs: writers that begin after this do not find anything in them. Returns the writers that are at work
    /// now, which may have found something before; the packs wait for them.
    pub(crate) fn condemn(&self, packs: &[PackRow]) -> Result<BTreeSet<WriterName>> {
        let at_micros = now().unix_micros();
        self.db.write(|transaction| {
            let mut condemn = transaction
                .prepare_cached("UPDATE packs SET condemned_at = ?2, writers_listed = 0 WHERE seq = ?1")?;
            for pack in packs {
                condemn.execute(params![pack.seq, at_micros])?;
            }
            Ok(())
        })?;
        self.list_writers()
    }

    /// Makes the lists of the condemned packs that have none yet, as after a killed sweep. Returns the writers that are
    /// at work now. It must come after the condemnation is durable: then a writer that begins in between is listed
    /// needlessly, but none is missed.
    pub(crate) fn list_writers(&self) -> Result<BTreeSet<WriterName>> {
        let at_work = presence::at_work(self.locks)?;
        let unlisted = "p.condemned_at IS NOT NULL AND p.writers_listed = 0";
        let packs = self.select(unlisted, i64::MAX, |_| true)?;
        if !packs.is_empty() {
            self.db.write(|transaction| {
                let mut add = transaction.prepare_cached(
                    "INSERT OR IGNORE INTO condemned_before (pack, writer) VALUES (?1, ?2)",
                )?;
                let mut listed =
                    transaction.prepare_cached("UPDATE packs SET writers_listed = 1 WHERE seq = ?1")?;
                for pack in &packs {
                    for writer in &at_work {
                        add.execute(params![pack.seq, writer.0])?;
                    }
                    listed.execute([pack.seq])?;
                }
                Ok(())
            })?;
        }
        Ok(at_work)
    }

    /// The condemned packs whose writers have all ended. Their lists are emptied: a writer that is added later was not
    /// at work yet.
    pub(crate) fn ready(&self) -> Result<Vec<PackRow>> {
        let listed = "p.condemned_at IS NOT NULL AND p.writers_listed = 1";
        let condemned = self.select(listed, i64::MAX, |_| true)?;
        if condemned.is_empty() {
            return Ok(Vec::new());
        }
        self.db.write(|transaction| {
            // A list cannot grow during this transaction, so a writer that is not at work now has ended.
            let at_work = presence::at_work(self.locks)?;
            let mut before =
                transaction.prepare_cached("SELECT writer FROM condemned_before WHERE pack = ?1")?;
            let mut ready = Vec::new();
            for pack in condemned {
                let writers = before.query_map([pack.seq], |row| row.get(0).map(WriterName))?;
                let writers: BTreeSet<WriterName> = writers.collect::<rusqlite::Result<_>>()?;
                if writers.is_disjoint(&at_work) {
                    empty_list(transaction, pack.seq)?;
                    ready.push(pack);
                }
            }
            Ok(ready)
        })
    }

    /// Revokes the condemnation of a pack that is in use after all.
    pub(crate) fn rescue(&self, pack: &PackRow) -> Result<()> {
        self.db.write(|transaction| {
            empty_list(transaction, pack.seq)?;
            transaction.execute(
                "UPDATE packs SET condemned_at = NULL, writers_listed = 0 WHERE seq = ?1",
                [pack.seq],
            )?;
            Ok(())
        })
    }

    /// Keeps everything that is condemned now until this writer has ended.
    pub(crate) fn keep_all(&self, writer: &WriterName) -> Result<()> {
        self.db.write(|transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO condemned_before (pack, writer)
                 SELECT seq, ?1 FROM packs WHERE condemned_at IS NOT NULL",
                [&writer.0],
            )?;
            Ok(())
        })
    }

    /// The packs up to the row `newest` for which `condition` holds and whose writer is `wanted`. A row takes 40 bytes: a
    /// million of them is 64 TB of packs. Names of writers, which take twice that, are not kept.
    fn select(
        &self,
        condition: &'static str,
        newest: i64,
        wanted: impl Fn(Option<WriterName>) -> bool,
    ) -> Result<Vec<PackRow>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT p.seq, p.id, p.bytes, p.stored_bytes, p.writer FROM packs p
                 WHERE p.seq <= ?1 AND {condition} ORDER BY p.seq"
            ))?;
            let mut rows = query.query([newest])?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let writer: Option<String> = row.get(4)?;
                if wanted(writer.map(WriterName)) {
                    packs.push(pack(row)?);
                }
            }
            Ok(packs)
        })
    }
}

fn pack(row: &Row<'_>) -> rusqlite::Result<PackRow> {
    Ok(PackRow {
        seq: row.get(0)?,
        id: PackId(row.get(1)?),
        bytes: row.get(2)?,
        stored_bytes: row.get(3)?,
    })
}

fn empty_list(db: &Connection, pack: i64) -> Result<()> {
    db.prepare_cached("DELETE FROM condemned_before WHERE pack = ?1")?
        .execute([pack])?;
    Ok(())
}

/// Whether writers are on the list of a condemned pack. It must be asked in the transaction that deletes the pack's
/// rows.
pub(crate) fn is_awaited(db: &Connection, pack: i64) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM condemned_before WHERE pack = ?1")?
        .exists([pack])?)
}

/// Notes who made a pack, in the transaction that enters it. If a sweep has entered the pack already, without its
/// writer, this adds the writer.
pub(crate) fn set_writer(db: &Connection, pack: PackId, writer: &WriterName) -> Result<()> {
    db.prepare_cached("UPDATE packs SET writer = ?2 WHERE id = ?1 AND writer IS NULL")?
        .execute(params![pack.as_bytes(), writer.0])?;
    Ok(())
}

/// A rebuild makes a catalog in which nothing is condemned and no pack has a writer. That is right as long as the
/// result lives: no writer and no sweep is at work. Of the writers before, all records are in packs; and a sweep later
/// condemns again what nothing refers to.
///
/// # Errors
/// [`Error::Occupied`](crate::error::Error::Occupied) while a writer or a sweep is at work.
pub(crate) fn allow_loss(locks: &dyn Locks) -> Result<Lock> {
    presence::keep_writers_out(locks, "rebuild of the catalog")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;

    /// A repository with one pack, whose writer has ended.
    fn repository() -> (tempfile::TempDir, Repository) {
        let (directory, repository) = temporary();
        repository
            .writer("the first")
            .unwrap()
            .write_records(Vec::new())
            .unwrap();
        (directory, repository)
    }

    fn candidates(repository: &Repository) -> Vec<PackRow> {
        let at_work = presence::at_work(repository.locks.as_ref()).unwrap();
        repository.condemned().candidates(i64::MAX, &at_work).unwrap()
    }

    #[test]
    fn packs_of_a_writer_at_work_are_not_condemned() {
        let (_directory, repository) = repository();
        let writer = repository.writer("the second").unwrap();
        writer.write_records(Vec::new()).unwrap();
        assert_eq!(candidates(&repository).len(), 1);
        drop(writer);
        assert_eq!(candidates(&repository).len(), 2);
    }

    #[test]
    fn a_pack_waits_for_those_before_and_those_that_add_themselves() {
        let (_directory, repository) = repository();
        let condemned = repository.condemned();
        let before = repository.writer("before").unwrap();
        let packs = candidates(&repository);
        assert_eq!(condemned.condemn(&packs).unwrap().len(), 1);
        assert!(candidates(&repository).is_empty());
        let after = repository.writer("after").unwrap();
        assert!(condemned.ready().unwrap().is_empty());
        drop(before);
        assert_eq!(condemned.ready().unwrap(), packs);

        let is_awaited = || repository.db.read(|db| is_awaited(db, packs[0].seq)).unwrap();
        assert!(!is_awaited());
        after.keep_condemned().unwrap();
        assert!(is_awaited());
        assert!(condemned.ready().unwrap().is_empty());
        drop(after);
        assert_eq!(condemned.ready().unwrap(), packs);

        condemned.rescue(&packs[0]).unwrap();
        assert!(condemned.packs(i64::MAX).unwrap().is_empty());
        assert_eq!(candidates(&repository), packs);
    }

    #[test]
    fn a_list_that_a_killed_sweep_did_not_make_is_made_first() {
        let (_directory, repository) = repository();
        let condemned = repository.condemned();
        condemned.condemn(&candidates(&repository)).unwrap();
        let kill = "UPDATE packs SET writers_listed = 0";
        repository.db.write(|db| Ok(db.execute(kill, [])?)).unwrap();
        let writer = repository.writer("at work").unwrap();
        assert!(condemned.ready().unwrap().is_empty());
        condemned.list_writers().unwrap();
        assert!(condemned.ready().unwrap().is_empty());
        drop(writer);
        assert_eq!(condemned.ready().unwrap().len(), 1);
    }

    #[test]
    fn the_state_is_not_lost_while_a_writer_is_at_work() {
        let (_directory, repository) = repository();
        let locks = repository.locks.as_ref();
        let writer = repository.writer("at work").unwrap();
        let refused = allow_loss(locks).unwrap_err().to_string();
        assert!(refused.contains("at work, process "), "{refused}");
        drop(writer);
        let lock = allow_loss(locks).unwrap();
        assert!(repository.writer("too early").is_err());
        drop(lock);
        repository.writer("after that").unwrap();
    }
}
