//! Writers: everything that adds to the repository.
//!
//! A writer registers before it looks anything up: it holds its own lock file until it ends. A sweep that condemns a
//! pack afterwards leaves it in place until this writer has ended; a writer that registers later sees that the pack is
//! condemned and refers to nothing in it. So whatever a writer once found stays until its records are in the catalog,
//! where the next sweep's mark finds them.
//!
//! A chunk of an existing tree may be in a condemned pack as well: the tree's writer found it there before, and the
//! tree can be deleted at any moment. So while anything is condemned, a backup looks up each chunk of the previous
//! backup ([`DepositOptions::trust_previous`]). A clone looks up none; instead it adds itself to the writers that all
//! condemned packs wait for ([`Writer::keep_condemned`]).
//!
//! The steps of a write, and what a kill in between leaves:
//! 1. Pack under a temporary name: an abandoned file, removed by a sweep.
//! 2. Pack durable under its final name: an orphan, whose chunks and records are adopted by a sweep or a rebuild. Its
//!    records are complete facts, their chunks are in it or in packs published before.
//! 3. One SQLite transaction with pack, chunks, records and what they mean: acknowledged once it has returned.

use std::sync::Arc;

use barmanfs_store::{ChunkIndex, DepositOptions, Depositor, PackWriter, Record, RecordId};

use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::make_directories;
use crate::index::chunk_index::{self, CatalogIndex};
use crate::index::repository::Repository;

/// The lock that every writer shares and a rebuild takes exclusively.
pub(crate) const GATE: &str = "writers";

/// Prefix of the lock files of single writers.
pub(crate) const WRITER_PREFIX: &str = "writer-";

/// A writer, registered for as long as this lives.
#[derive(Debug)]
pub struct Writer {
    repository: Repository,
    index: Arc<CatalogIndex>,
    purpose: String,
    name: String,
    lock: Option<Lock>,
    _gate: Lock,
}

impl Repository {
    /// Registers a writer. `purpose` describes its work in messages: "backup of main".
    ///
    /// # Errors
    /// [`Error::Occupied`] while the catalog is being rebuilt.
    pub fn writer(&self, purpose: &str) -> Result<Writer> {
        let _acting = self.as_owner()?;
        make_directories(self.path())?;
        self.keep_reserve();
        let gate = self
            .locks
            .try_shared(GATE, purpose)?
            .ok_or_else(|| Error::Occupied {
                what: "A rebuild of the catalog",
                holder: self.locks.holder(GATE),
                advice: "run again when it has ended",
            })?;
        let name = format!("{WRITER_PREFIX}{}", RecordId::random()?);
        let lock = self.locks.wait_exclusive(&name, purpose)?;
        // From here on no rebuild can replace the catalog.
        self.db.refresh()?;
        let index = CatalogIndex::for_writer(Arc::clone(&self.db), name.clone());
        Ok(Writer {
            repository: self.clone(),
            index: Arc::new(index),
            purpose: purpose.to_owned(),
            name,
            lock: Some(lock),
            _gate: gate,
        })
    }
}

impl Writer {
    /// The repository it writes to.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn purpose(&self) -> &str {
        &self.purpose
    }

    /// A pipeline that stores chunks.
    pub(crate) fn depositor(&self) -> Result<Depositor> {
        let repository = &self.repository;
        let index: Arc<dyn ChunkIndex> = Arc::clone(&self.index) as _;
        let reader = Arc::clone(repository.chunks());
        let options = DepositOptions {
            trust_previous: repository.db.read(chunk_index::all_is_reusable)?,
            ..repository.deposit_options()
        };
        let storage = Arc::clone(&repository.storage);
        Ok(Depositor::start(storage, index, reader, options)?)
    }

    /// Keeps everything that is condemned until this writer has ended. Whatever a record or clone refers to after this
    /// has returned, this writer may then refer to as well, without looking up each chunk.
    pub(crate) fn keep_condemned(&self) -> Result<()> {
        if self.repository.db.read(chunk_index::all_is_reusable)? {
            return Ok(());
        }
        self.repository.db.write(|transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO condemned_before (pack, writer)
                 SELECT seq, ?1 FROM packs WHERE condemned_at IS NOT NULL",
                [&self.name],
            )?;
            Ok(())
        })
    }

    /// Writes records that come without chunks; durable when it returns. Root may test and verify repositories of other
    /// users, and writes the records as the repository's owner.
    pub(crate) fn write_records(&self, records: Vec<Record>) -> Result<()> {
        let _acting = self.repository.as_owner()?;
        let mut pack = PackWriter::begin(self.repository.storage.as_ref())?;
        for record in records {
            pack.record(record)?;
        }
        Ok(self.index.publish(&pack.close()?)?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.remove();
        }
    }
}
