//! Writers: everything that adds to the repository.
//!
//! A writer registers before it looks anything up, and refers to nothing in condemned packs. So whatever it once found
//! stays until its records are in the catalog; [`condemned`](crate::index::condemned) says why.
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

use barmanfs_store::{ChunkIndex, ClosedPack, DepositOptions, Depositor, PackWriter, Record};

use crate::error::{Error, Result};
use crate::home::make_directories;
use crate::home::presence::Registration;
use crate::home::settings::read_settings;
use crate::index::chunk_index::{self, CatalogIndex};
use crate::index::repository::Repository;

/// A writer, registered for as long as this lives.
#[derive(Debug)]
pub struct Writer {
    repository: Repository,
    index: Arc<CatalogIndex>,
    purpose: String,
    registration: Registration,
}

impl Repository {
    /// Registers a writer. `purpose` describes its work in messages: "backup of main".
    ///
    /// # Errors
    /// [`Error::Occupied`](crate::Error::Occupied) while the catalog is being rebuilt; when another host writes into the object store
    /// that has the packs.
    pub fn writer(&self, purpose: &str) -> Result<Writer> {
        self.require_writing()?;
        let _acting = self.as_owner()?;
        make_directories(self.path())?;
        self.keep_reserve();
        self.refuse_old_keys()?;
        let registration = Registration::new(self.locks.as_ref(), purpose)?;
        // From here on no rebuild can replace the catalog.
        self.db.refresh()?;
        let index = CatalogIndex::for_writer(Arc::clone(&self.db), registration.name().clone());
        Ok(Writer {
            repository: self.clone(),
            index: Arc::new(index),
            purpose: purpose.to_owned(),
            registration,
        })
    }
}

impl Repository {
    /// Who opened the repository before it had a key would write plain packs.
    fn refuse_old_keys(&self) -> Result<()> {
        if self.settings().encryption.is_some() {
            return Ok(());
        }
        match read_settings(&self.home) {
            Ok(now) if now.encryption.is_some() => Err(Error::Invalid(
                "The repository was encrypted since this process opened it: start it again, with the key in its configuration"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
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
        self.repository.condemned().keep_all(self.registration.name())
    }

    /// Writes records that come without chunks; durable when it returns. Root may test and verify repositories of other
    /// users, and writes the records as the repository's owner.
    pub(crate) fn write_records(&self, records: Vec<Record>) -> Result<()> {
        let _acting = self.repository.as_owner()?;
        let mut pack = PackWriter::begin(self.repository.storage.as_ref())?;
        for record in records {
            pack.record(record)?;
        }
        self.publish(&pack.close()?)
    }

    /// Enters a pack that this writer has made.
    pub(crate) fn publish(&self, pack: &ClosedPack) -> Result<()> {
        Ok(self.index.publish(pack)?)
    }
}
