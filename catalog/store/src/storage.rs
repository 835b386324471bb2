//! Where packs are kept: the one place that knows about files, to be replaced by an object store later.
//!
//! Packs are immutable: they are written once, from front to back, appear under their id when complete and
//! durable, and are only ever read or removed after that.

use std::fmt::Debug;
use std::time::Duration;

use crate::error::Result;
use crate::id::PackId;

mod local;
mod part;
mod regular;

pub use local::LocalPacks;
pub use part::{Listed, Part, PartMark};
pub use regular::open_regular;

/// A keeper of packs.
pub trait PackStorage: Send + Sync + Debug {
    /// Begins a pack, invisible to all readers until [`PackUpload::finish`].
    ///
    /// # Errors
    /// When nothing can be written.
    fn begin(&self, id: PackId) -> Result<Box<dyn PackUpload>>;

    /// Fills `buf` with the pack's bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::MissingPack`](crate::Error::MissingPack) when there is no such pack,
    /// [`Error::Damaged`](crate::Error::Damaged) when it ends before `buf` is full or the medium cannot be
    /// read.
    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Says that these bytes will be read in a moment, so that they can be on their way already. A hint: an error
    /// shows when they are read.
    fn will_read(&self, _id: PackId, _offset: u64, _bytes: u32) {}

    /// Size of the pack in bytes.
    ///
    /// # Errors
    /// [`Error::MissingPack`](crate::Error::MissingPack) when there is no such pack.
    fn bytes(&self, id: PackId) -> Result<u64>;

    /// Calls `each` with every complete pack, in no particular order.
    ///
    /// # Errors
    /// When the packs cannot be listed, and whatever `each` returns.
    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()>;

    /// Tells whether a part has changed since it was looked at. Costs microseconds.
    ///
    /// # Errors
    /// When that cannot be told.
    fn part_mark(&self, _part: Part) -> Result<PartMark> {
        Ok(PartMark::Unknown)
    }

    /// Calls `each` with what lies in a part; with nothing where there is no such part.
    ///
    /// # Errors
    /// When the part cannot be listed, and whatever `each` returns.
    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.list(&mut |pack| match part {
            Part::First(first) if pack.as_bytes().first() == Some(&first) => each(Listed::Pack(pack)),
            _ => Ok(()),
        })
    }

    /// Removes a pack; one that is not there is no error. After a crash it may be back, unless [`settle`](Self::settle)
    /// was called in between.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove(&self, id: PackId) -> Result<()>;

    /// Makes durable that these packs are there, or are not: after a crash that is as it is now. Of a pack that was
    /// found, and not made by [`PackUpload::finish`] in this process, it is not known otherwise. Nothing is to be done
    /// where what can be seen is durable.
    ///
    /// # Errors
    /// When that is not possible.
    fn settle(&self, _packs: &[PackId]) -> Result<()> {
        Ok(())
    }

    /// Removes what killed writers left behind, where that is older than `older_than`; never what a living
    /// writer still writes. Returns how many were removed.
    ///
    /// # Errors
    /// When the storage cannot be listed or something cannot be removed.
    fn remove_abandoned(&self, older_than: Duration) -> Result<usize>;
}

/// A pack being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub trait PackUpload: Send + Debug {
    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be written; the upload is then of no more use.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the pack durable, then visible under its id, then that durable too.
    ///
    /// # Errors
    /// When any of this fails. The pack may be there all the same: a whole one, which nobody knows of yet.
    fn finish(self: Box<Self>) -> Result<()>;
}
