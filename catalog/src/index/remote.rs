//! A repository whose packs are in an object store: its directory on this host is a cache.
//!
//! The directory has a catalog, locks, the state of what runs, clones and the spool, as that of any repository, but no packs. A file
//! says which store it goes with. Other hosts have directories of their own, and one host writes at a time. The host that writes
//! knows all packs. The others look for new ones when somebody looks, and forget those that the writing host has removed.

use std::fmt::Debug;
use std::sync::Arc;

use barmanfs_store::{PackId, PackStorage, Result as StoreResult};
use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::index::db::Db;

/// Is there when the catalog has something that the store no longer has, and must be made again.
pub(crate) const STALE: &str = "stale";

/// The bytes of a stream's name, with which the ids of its packs begin.
pub type StreamPrefix = [u8; 8];

/// What the catalog asks of an object store besides its packs.
pub trait Remote: Debug + Send + Sync {
    /// What people call the place.
    fn place(&self) -> &str;

    /// Its repository.json; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn settings(&self) -> StoreResult<Option<Vec<u8>>>;

    /// Its packs, read without the cache of this host.
    fn direct(&self) -> Arc<dyn PackStorage>;

    /// Calls `each` with every pack and its size.
    ///
    /// # Errors
    /// When they cannot be listed, and whatever `each` returns.
    fn sizes(&self, each: &mut dyn FnMut(PackId, u64) -> StoreResult<()>) -> StoreResult<()>;

    /// Calls `each` with packs that may be new. `newest` returns the newest known pack of a stream. This may miss some; when it lists,
    /// only packs that were put long after they were begun.
    ///
    /// # Errors
    /// When the store cannot be asked, and whatever `newest` and `each` return.
    fn news(
        &self,
        lists: bool,
        newest: &dyn Fn(StreamPrefix) -> StoreResult<Option<PackId>>,
        each: &mut dyn FnMut(PackId) -> StoreResult<()>,
    ) -> StoreResult<()>;

    /// Refuses to write unless this host is the one that writes, or none is and it becomes that one. What it remembers will do: it asks
    /// again before each pack.
    ///
    /// # Errors
    /// With the host that writes; when the store cannot be asked.
    fn require_writing(&self) -> StoreResult<()>;

    /// The same for what may put no pack: the store is asked now.
    ///
    /// # Errors
    /// As for [`require_writing`](Self::require_writing).
    fn require_writing_now(&self) -> StoreResult<()>;

    /// The other host that writes, if one does, asked now.
    ///
    /// # Errors
    /// When the store cannot be asked.
    fn writing_elsewhere(&self) -> StoreResult<Option<String>>;

    /// Whether this host writes, as far as it remembers. The store is asked now and then, and not waited for.
    fn seems_to_write(&self) -> bool;
}

/// The packs of a repository in an object store.
#[derive(Debug, Clone)]
pub struct RemotePacks {
    /// The packs, as everything reads and writes them.
    pub storage: Arc<dyn PackStorage>,
    /// The store.
    pub remote: Arc<dyn Remote>,
}

/// The newest pack of a stream in the catalog.
pub(crate) fn newest_of(db: &Db, stream: StreamPrefix) -> Result<Option<PackId>> {
    let (mut from, mut to) = ([0; PackId::BYTES], [u8::MAX; PackId::BYTES]);
    from[..stream.len()].copy_from_slice(&stream);
    to[..stream.len()].copy_from_slice(&stream);
    db.read(|db| {
        let mut newest =
            db.prepare_cached("SELECT id FROM packs WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")?;
        let found = newest.query_row(params![from, to], |row| row.get(0).map(PackId));
        Ok(found.optional()?)
    })
}
