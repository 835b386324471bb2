//! Repairs what is known to be damaged here with what the primary has.
//!
//! A verification records chunks of which no good copy is here. What needs such a chunk names it by its id. So a good copy
//! repairs everything that needs it, backups and WAL, as when a backup stores it again.

use std::collections::BTreeSet;

use barmanfs_store::ChunkId;

use crate::archive::damage::{is_lost, recorded_after};
use crate::error::{Error, Result};
use crate::index::chunk_index::places;
use crate::names::BackupId;
use crate::upkeep::sync::Sync;

/// Chunks that are looked at together.
const BATCH: usize = 1024;

/// What could not be read on the primary.
#[derive(Default)]
struct Unread {
    chunks: u64,
    first: Option<Error>,
}

impl Sync<'_> {
    /// Copies what is damaged here and good on the primary.
    pub(super) fn repair(&mut self) -> Result<()> {
        let mut after = None;
        let (before, mut unread) = (self.copier.copied_chunks, Unread::default());
        loop {
            let recorded = self
                .node
                .db
                .read(|db| recorded_after(db, after.as_ref(), BATCH))?;
            let Some(last) = recorded.last().copied() else {
                break;
            };
            after = Some(last);
            let lost = self.lost_of(recorded)?;
            self.copy_again(&lost, &mut unread)?;
        }
        self.copier.publish()?;
        match self.copier.copied_chunks - before {
            0 => {}
            1 => self
                .report
                .notes
                .push("1 chunk that was damaged here came again".to_owned()),
            chunks => self
                .report
                .notes
                .push(format!("{chunks} chunks that were damaged here came again")),
        }
        if let Some(error) = unread.first {
            self.problem(format!(
                "{} chunks that are damaged here cannot be read on the primary either: {error}",
                unread.chunks
            ));
        }
        Ok(())
    }

    /// Those that have no good place here and some place on the primary.
    fn lost_of(&self, mut chunks: Vec<ChunkId>) -> Result<BTreeSet<ChunkId>> {
        let lost = self.node.db.read(|db| {
            let mut lost = Vec::new();
            for id in chunks.drain(..) {
                if is_lost(db, &id)? {
                    lost.push(id);
                }
            }
            Ok(lost)
        })?;
        self.footers.db.read(|db| {
            let mut there = BTreeSet::new();
            for id in lost {
                if !places(db, &id)?.is_empty() {
                    there.insert(id);
                }
            }
            Ok(there)
        })
    }

    /// Copies them together, and one by one if that fails: one that is damaged there stops no other.
    fn copy_again(&mut self, lost: &BTreeSet<ChunkId>, unread: &mut Unread) -> Result<()> {
        if self.copy_all(lost.iter())?.is_none() {
            return Ok(());
        }
        for id in lost {
            if let Some(error) = self.copy_all(std::iter::once(id))? {
                unread.chunks += 1;
                unread.first.get_or_insert(error);
            }
        }
        Ok(())
    }

    /// Returns what is wrong with the data of the primary, if anything is.
    fn copy_all<'c>(&mut self, chunks: impl Iterator<Item = &'c ChunkId>) -> Result<Option<Error>> {
        let copied = chunks
            .copied()
            .try_for_each(|id| self.copier.want(id))
            .and_then(|()| self.copier.copy_wanted());
        match copied {
            Err(error) if error.is_damage() => {
                self.copier.forget_wanted();
                Ok(Some(error))
            }
            copied => copied.map(|()| None),
        }
    }

    /// A backup that was asked for by its id and is still damaged is not what was asked for.
    pub(super) fn tell_damage(&mut self, id: BackupId) -> Result<()> {
        let mut here = self.node.backups(self.server)?;
        here.retain(|backup| backup.id == id);
        if self.node.damaged_backups(&here)?.contains(&id) {
            self.problem(format!(
                "Backup {id} is damaged here, and the primary does not have all that is missing"
            ));
        }
        Ok(())
    }
}
