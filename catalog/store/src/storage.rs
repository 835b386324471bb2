//! Storage of packs: what every place for them must do, and the one that is a directory.
//!
//! Packs are immutable: they are written once, from front to back, appear under their id when complete and
//! durable, and are only ever read or removed after that.

use std::fmt::Debug;
use std::time::Duration;

use crate::error::Result;
use crate::id::PackId;
use crate::seal::Keys;

mod counted;
mod local;
mod part;
mod regular;
mod sealed;

pub use counted::CountedPacks;
pub use local::LocalPacks;
pub use part::{Listed, Part, PartMark};
pub use regular::{open_regular, open_unlinked};
pub use sealed::SealedPacks;

/// Storage for packs. No method has a default: each storage has to say what is right for it, and each wrapper has to pass
/// each method on.
pub trait PackStorage: Send + Sync + Debug {
    /// The keys by which its packs are sealed. Places for packs have none: [`SealedPacks`] adds them.
    fn keys(&self) -> &Keys;

    /// Begins a pack under a new id, invisible to all readers until [`PackUpload::finish`]. The storage chooses the id,
    /// because what makes a good one depends on where packs are: a directory wants ids that need no agreement between
    /// processes and no memory, a bucket wants ids that can be asked for in their order.
    ///
    /// # Errors
    /// When nothing can be written.
    fn begin(&self) -> Result<Box<dyn PackUpload>>;

    /// Begins a copy of a pack of another storage, under the id that it has there. [`PackUpload::finish`] is done, too, when
    /// the pack is here already with the same bytes.
    ///
    /// # Errors
    /// When nothing can be written. `finish` fails when the pack is here with other bytes, and leaves those as they are.
    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>>;

    /// Fills `buf` with the pack's bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::MissingPack`](crate::Error::MissingPack) when there is no such pack,
    /// [`Error::Damaged`](crate::Error::Damaged) when it ends before `buf` is full or the medium cannot be
    /// read.
    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Announces that these bytes will be read in a moment, so that they can be prefetched. This is a hint: an error
    /// shows when they are read.
    fn will_read(&self, id: PackId, offset: u64, bytes: u32);

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

    /// The state of a part, to find out later whether it has changed. Costs microseconds.
    ///
    /// # Errors
    /// When the state cannot be determined.
    fn part_mark(&self, part: Part) -> Result<PartMark>;

    /// Calls `each` with everything that lies in a part; not at all if there is no such part.
    ///
    /// # Errors
    /// When the part cannot be listed, and whatever `each` returns.
    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()>;

    /// Removes a pack; a missing pack is no error. After a crash the pack may be back, unless [`settle`](Self::settle)
    /// was called in between.
    ///
    /// # Errors
    /// When it exists and cannot be removed.
    fn remove(&self, id: PackId) -> Result<()>;

    /// Makes it durable that these packs exist, or do not exist: after a crash that is as it is now. Otherwise it is
    /// uncertain for a pack that was found rather than made by [`PackUpload::finish`] in this process. There is nothing
    /// to do in a storage where everything visible is durable.
    ///
    /// # Errors
    /// When that is not possible.
    fn settle(&self, packs: &[PackId]) -> Result<()>;

    /// Removes what killed writers left behind, if it is older than `older_than`; never what a living writer is still
    /// writing. Returns how many were removed.
    ///
    /// # Errors
    /// When the storage cannot be listed or something cannot be removed.
    fn remove_abandoned(&self, older_than: Duration) -> Result<usize>;
}

/// A pack being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub trait PackUpload: Send + Debug {
    /// The id of the new pack. No other pack has or had it, unless it is a copy of one.
    fn id(&self) -> PackId;

    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be written; the upload is unusable after that.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the pack durable, then visible under its id, then that durable too.
    ///
    /// # Errors
    /// When any of this fails. The pack may exist nevertheless: complete, but not known to anyone yet.
    fn finish(self: Box<Self>) -> Result<()>;
}
