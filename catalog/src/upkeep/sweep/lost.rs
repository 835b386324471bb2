//! What a sweep does about chunks that no pack holds: it records those that are needed, and forgets the others.

use std::collections::BTreeSet;

use barmanfs_store::RecordId;

use crate::archive::damage::{NO_PACK, Places, is_lost};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::upkeep::sweep::Sweep;
use crate::upkeep::sweep::mark::Mark;

impl Sweep<'_> {
    /// Records of lost chunks that mean nothing any more: each of their chunks is stored again, or nothing needs it. While
    /// there is such a record, backups look up each chunk.
    pub(super) fn settled(&self, mark: &Mark) -> Result<BTreeSet<RecordId>> {
        let mut settled = BTreeSet::new();
        self.repository.each_damage(&mut |record, known| {
            if known.pack != NO_PACK {
                return Ok(());
            }
            for id in &known.chunks {
                if mark.uses(id)? && self.repository.db.read(|db| is_lost(db, id))? {
                    return Ok(());
                }
            }
            settled.insert(record);
            Ok(())
        })?;
        Ok(settled)
    }

    /// Records what is lost, and annuls the records that are settled.
    pub(super) fn note_lost(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        if self.report.missing_chunks > 0 || self.repository.is_unexamined()? {
            self.repository.note_lost(&self.gate, monitor)?;
        }
        let settled: Vec<RecordId> = std::mem::take(&mut self.settled).into_iter().collect();
        match settled.is_empty() {
            true => Ok(()),
            false => self.repository.write_damage(Places::new(), &settled, "sweep"),
        }
    }
}
