//! Archived segments that cannot be read back, as far as verifications and rebuilds have found.
//!
//! Which chunks a segment needs is in its record. So the segments that need a lost chunk are found by looking at each record, which is
//! done only while a chunk is lost, and once for each list of damaged places. A segment that is stored again counts no more at
//! once: whether its chunks are still lost is looked up each time.

use std::sync::Arc;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::ChunkId;
use rusqlite::{OptionalExtension, params};

use super::{LOST_IN_MEMORY_MAX, Lost, NOT_LOOKED, damaged_packs, is_lost};
use crate::archive::wal::WalFile;
use crate::error::Result;
use crate::index::damaged_wal::{Needing, State};
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Files of an archive that are all looked at: seconds. Of a larger one those whose records are in a pack with damage: a
/// segment and its record are stored in one pack and merged together.
const LOOKED_AT_MAX: u64 = 200_000;

/// Records that are read at a time.
const PAGE: usize = 1000;

impl Repository {
    /// The archived segments of which some bytes have no good place, in the order of their names. While no damage is known, this
    /// is one look-up.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read.
    pub fn damaged_segments(&self, archive: &ServerName) -> Result<Vec<SegmentName>> {
        let record = self.db.read(|db| {
            let mut newest = db.prepare_cached("SELECT max(record) FROM damaged WHERE record > ?1")?;
            Ok(newest.query_row([NOT_LOOKED], |row| row.get::<_, Option<i64>>(0))?)
        })?;
        let Some(record) = record else {
            return Ok(Vec::new());
        };
        let state = State {
            replaced: self.db.replaced(),
            record,
        };
        let found = match self.damaged_wal.found(state, archive) {
            Some(found) => found,
            None => {
                let found = Arc::new(self.find_damaged(archive)?);
                self.damaged_wal.keep(state, archive, &found);
                found
            }
        };
        self.still_damaged(archive, &found)
    }

    fn still_damaged(&self, archive: &ServerName, found: &[Needing]) -> Result<Vec<SegmentName>> {
        self.db.read(|db| {
            let mut entry = db.prepare_cached("SELECT 1 FROM wal WHERE server = ?1 AND name = ?2")?;
            let mut damaged = Vec::new();
            for (name, chunks) in found {
                let is_there = entry
                    .query_row(params![archive.as_str(), name.to_string()], |_| Ok(()))
                    .optional()?;
                for id in chunks.iter().filter(|_| is_there.is_some()) {
                    if is_lost(db, id)? {
                        damaged.push(*name);
                        break;
                    }
                }
            }
            Ok(damaged)
        })
    }

    fn find_damaged(&self, archive: &ServerName) -> Result<Vec<Needing>> {
        let lost = self.db.read(|db| Lost::find(db, LOST_IN_MEMORY_MAX))?;
        let mut found = Vec::new();
        if lost.is_nothing() {
            return Ok(found);
        }
        if self.wal(archive).totals()?.files > LOOKED_AT_MAX {
            for pack in self.db.read(damaged_packs)? {
                self.look_at(&self.wal_of_pack(archive, pack)?, &lost, &mut found)?;
            }
        } else {
            let mut after = None;
            loop {
                let files = self.wal(archive).files(after.as_ref(), PAGE)?;
                let Some(last) = files.last() else { break };
                after = Some(last.name);
                self.look_at(&files, &lost, &mut found)?;
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn wal_of_pack(&self, archive: &ServerName, pack: i64) -> Result<Vec<WalFile>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM record_packs p JOIN records r ON r.seq = p.record JOIN wal w ON w.record = r.seq
                 WHERE p.pack = ?1 AND w.server = ?2",
            )?;
            let mut rows = query.query(params![pack, archive.as_str()])?;
            let mut files = Vec::new();
            while let Some(row) = rows.next()? {
                files.push(records::of_row(row)?.1);
            }
            Ok(files)
        })
    }

    fn look_at(&self, files: &[WalFile], lost: &Lost, found: &mut Vec<Needing>) -> Result<()> {
        let trees = self.trees();
        for file in files {
            let WalName::Segment(name) = file.name else {
                continue;
            };
            let mut needed = Vec::new();
            let mut each = |id: ChunkId, _| {
                let is_lost = lost.contains(self, &id)?;
                if is_lost {
                    needed.push(id);
                }
                Ok(!is_lost)
            };
            match trees.chunks_of_file(&file.map, &mut each) {
                // A part of its map is damaged, and no verification has found that yet.
                Err(error) if error.is_damage() => {}
                other => other?,
            }
            if !needed.is_empty() {
                found.push((name, needed));
            }
        }
        Ok(())
    }
}
