//! Packs that are complete and durable but not in the catalog: their writer was killed before it could enter them.
//!
//! They are adopted, not removed: they may hold a record that their writer was about to acknowledge, and chunks that
//! its next attempt will look up. A pack that its living writer is just entering may be adopted too; the second of the
//! two finds it in the catalog.
//!
//! Only the sweep itself removes packs, so no lock is needed here as for the surveys of other processes ([`unread`]).
//!
//! A pack that cannot be read may hold a backup's record, so everything may be in use: then nothing is freed.
//!
//! [`unread`]: crate::index::unread

use barmanfs_store::{Listed, PackId, Part, read_footer};

use crate::error::{Error, Result};
use crate::index::records;
use crate::index::repository::Repository;
use crate::index::unread::PackProblem;

/// Result of an adoption.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Packs that were entered.
    pub(super) packs: u64,
    /// Records in them that could not be understood.
    pub(super) problems: Vec<PackProblem>,
}

/// Enters all packs of the storage that are not in the catalog.
///
/// # Errors
/// When one of them cannot be read.
pub(super) fn adopt(repository: &Repository) -> Result<Adopted> {
    let mut adopted = Adopted::default();
    repository.storage.list(&mut |pack| {
        if !repository.knows_pack(pack)? {
            adopt_one(repository, pack, &mut adopted)?;
        }
        Ok(())
    })?;
    // Keys are not moved by hand, as files are.
    if !repository.is_remote() {
        refuse_astray(repository)?;
    }
    Ok(adopted)
}

/// A pack under another name, where no look-up finds it, may hold a backup's record as well.
fn refuse_astray(repository: &Repository) -> Result<()> {
    for part in Part::all() {
        repository.storage.list_part(part, &mut |listed| match listed {
            Listed::Astray { path, pack } if !repository.knows_pack(pack)? => {
                let what = format!("The file {}", path.display());
                let reason = format!("It is pack {pack} under another name: give it its name again");
                Err(Error::UnknownPack(barmanfs_store::Error::damaged(what, reason)).into())
            }
            _ => Ok(()),
        })?;
    }
    Ok(())
}

fn adopt_one(repository: &Repository, pack: PackId, adopted: &mut Adopted) -> Result<()> {
    let storage = repository.storage.as_ref();
    // Its writer may have been killed before it could do that, and a crash must not remove what is in the catalog.
    storage.settle(&[pack])?;
    let closed = match read_footer(storage, pack) {
        Err(error) if error.is_damage() => return Err(Error::UnknownPack(error)),
        closed => closed?,
    };
    let entered = repository
        .db
        .write(|transaction| records::enter(transaction, repository.db.derive(), &closed, None))?;
    adopted.packs += u64::from(entered.new);
    let problem = |error: Error| PackProblem {
        pack,
        reason: error.to_string(),
    };
    adopted
        .problems
        .extend(entered.bad_records.into_iter().map(problem));
    Ok(())
}
