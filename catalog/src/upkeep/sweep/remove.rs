//! Removes packs that nothing refers to.
//!
//! First the rows are deleted, in one transaction; then the file. So a reader never finds a row whose pack is gone
//! while the chunk is elsewhere. A kill in between leaves an orphan, which the next sweep adopts and removes. Both are done
//! under a lock: a failed look-up of another process, which finds the file without a row, must not enter the pack that is
//! about to go ([`ENTRY`]).

use barmanfs_store::PackId;

use crate::error::Result;
use crate::index::condemned::{self, PackRow};
use crate::index::forget::forget;
use crate::index::unread::ENTRY;
use crate::upkeep::sweep::Sweep;
use crate::upkeep::sweep::mark::Mark;

impl Sweep<'_> {
    /// Removes those of the condemned `packs` in which the mark found nothing.
    pub(super) fn remove_dead(&mut self, mark: &Mark, packs: Vec<PackRow>) -> Result<()> {
        let mut dead = Vec::new();
        for pack in packs {
            if self.is_dead(mark, &pack)? {
                dead.push(pack);
            }
        }
        self.remove(&dead)
    }

    /// Removes condemned packs. The removal is durable before anything else is done: a deletion may be found
    /// superfluous next, and what it annuls must not reappear without it.
    pub(super) fn remove(&mut self, packs: &[PackRow]) -> Result<()> {
        let ids: Vec<PackId> = packs.iter().map(|pack| pack.id).collect();
        let removed = packs.iter().try_for_each(|pack| self.remove_one(pack));
        self.repository.storage.settle(&ids)?;
        removed
    }

    /// Removes a condemned pack, unless a writer that needs it has been added to its list.
    fn remove_one(&mut self, pack: &PackRow) -> Result<()> {
        let _entry = self.repository.locks.wait_exclusive(ENTRY, "removal of a pack")?;
        let forgotten = self.repository.db.write(|transaction| {
            let awaited = condemned::is_awaited(transaction, pack.seq)?;
            if !awaited {
                forget(transaction, pack.seq)?;
            }
            Ok(!awaited)
        })?;
        if !forgotten {
            return Ok(());
        }
        self.repository.storage.remove(pack.id)?;
        self.report.removed_packs += 1;
        self.report.removed_bytes += pack.bytes;
        Ok(())
    }
}
