//! Statistics on bytes: logical, unique and stored.
//!
//! *Logical* bytes are those of the files. *Unique* bytes are those of the distinct chunks that hold them. *Stored*
//! bytes are the space that these chunks take in packs, including the bases of deltas. Each chunk counts for the oldest
//! backup of its server that refers to it, so the figures of a server's backups and WAL add up to the server's. A chunk
//! that two servers share counts for both, and once in the total.

use barmanfs_store::tree::ChunkRole;
use barmanfs_store::{ChunkId, ChunkLocation, DirectoryRef, FileMap};
use serde::Serialize;

use crate::archive::backup::BackupStatus;
use crate::archive::wal::WalTotals;
use crate::error::Result;
use crate::index::chunk_index::kept_place;
use crate::index::chunk_set::{ChunkSet, Met, Role};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// Number of archived files whose maps are held at a time.
const WAL_PAGE: usize = 500;

/// The size of something, measured in three ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Bytes of the files.
    pub logical_bytes: u64,
    /// Bytes of the distinct chunks in them.
    pub unique_bytes: u64,
    /// Bytes these take in packs.
    pub stored_bytes: u64,
}

impl Sizes {
    /// The factor by which counting each chunk only once reduces the bytes; `None` if there are none.
    pub fn dedup_ratio(&self) -> Option<f64> {
        ratio(self.logical_bytes, self.unique_bytes)
    }

    /// The factor by which compression and deltas reduce the bytes.
    pub fn compression_ratio(&self) -> Option<f64> {
        ratio(self.unique_bytes, self.stored_bytes)
    }

    fn add(&mut self, other: &Self) {
        self.logical_bytes += other.logical_bytes;
        self.unique_bytes += other.unique_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}

fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| of as f64 / to as f64)
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupStats {
    /// Its id.
    pub id: BackupId,
    /// Its status.
    pub status: BackupStatus,
    /// Its sizes; unique and stored bytes exclude what older backups have.
    #[serde(flatten)]
    pub sizes: Sizes,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerStats {
    /// Its name.
    pub server: ServerName,
    /// Its complete backups, oldest first.
    pub backups: Vec<BackupStats>,
    /// Its archived files.
    pub wal_files: u64,
    /// Their sizes.
    pub wal: Sizes,
    /// The total of its backups and WAL.
    pub total: Sizes,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Its servers, by name.
    pub servers: Vec<ServerStats>,
    /// The total of all servers.
    pub total: Sizes,
    /// Number of packs.
    pub packs: u64,
    /// Their bytes, including footers and what a sweep would free.
    pub pack_bytes: u64,
}

/// The packs of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PackTotals {
    /// Number of packs.
    pub packs: u64,
    /// Their bytes, including footers and what a sweep would free.
    pub bytes: u64,
    /// Those of them that are condemned: they go when the writers that may need them have ended.
    pub condemned: u64,
}

impl Repository {
    /// Counts the packs in the catalog.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn pack_totals(&self) -> Result<PackTotals> {
        self.db.read(|db| {
            let sum = "SELECT packs, bytes, condemned FROM pack_totals";
            Ok(db.query_row(sum, [], |row| {
                Ok(PackTotals {
                    packs: row.get(0)?,
                    bytes: row.get(1)?,
                    condemned: row.get(2)?,
                })
            })?)
        })
    }

    /// Computes the statistics. Reads every listing and map once, but no data.
    ///
    /// # Errors
    /// When the catalog, a listing or a map cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        let all = ChunkSet::new()?;
        let mut total = Sizes::default();
        let mut servers = Vec::new();
        for server in self.servers()? {
            let mut counter = Counter {
                repository: self,
                of_server: ChunkSet::new()?,
                all: &all,
                total: &mut total,
            };
            servers.push(counter.server(server)?);
        }
        let PackTotals {
            packs,
            bytes: pack_bytes,
            ..
        } = self.pack_totals()?;
        Ok(Stats {
            servers,
            total,
            packs,
            pack_bytes,
        })
    }
}

struct Counter<'a> {
    repository: &'a Repository,
    of_server: ChunkSet,
    all: &'a ChunkSet,
    total: &'a mut Sizes,
}

impl Counter<'_> {
    fn server(&mut self, server: ServerName) -> Result<ServerStats> {
        let mut total = Sizes::default();
        let mut backups = Vec::new();
        for backup in self.repository.backups(&server)? {
            let Some(root) = &backup.root else { continue };
            let mut sizes = self.tree(&root.directory)?;
            if let Some(files) = self.repository.configuration_files(&backup)? {
                sizes.add(&self.tree(&files.directory)?);
            }
            sizes.logical_bytes = backup.logical_bytes;
            total.add(&sizes);
            backups.push(BackupStats {
                id: backup.id,
                status: backup.status,
                sizes,
            });
        }
        let archive = self.repository.wal(&server);
        let WalTotals {
            files: wal_files,
            logical_bytes,
            ..
        } = archive.totals()?;
        let mut wal = Sizes {
            logical_bytes,
            ..Sizes::default()
        };
        let mut last = None;
        loop {
            let page = archive.files(last.as_ref(), WAL_PAGE)?;
            let Some(file) = page.last() else { break };
            last = Some(file.name);
            for file in &page {
                wal.add(&self.file(&file.map)?);
            }
        }
        total.add(&wal);
        self.total.logical_bytes += total.logical_bytes;
        Ok(ServerStats {
            server,
            backups,
            wal_files,
            wal,
            total,
        })
    }

    fn tree(&mut self, directory: &DirectoryRef) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        let trees = self.repository.trees();
        trees.chunks_of(directory, &mut |id, role| Ok(self.count(&id, role, &mut sizes)?))?;
        Ok(sizes)
    }

    fn file(&mut self, map: &FileMap) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        let trees = self.repository.trees();
        trees.chunks_of_file(map, &mut |id, role| Ok(self.count(&id, role, &mut sizes)?))?;
        Ok(sizes)
    }

    /// Counts a chunk, and returns whether what it refers to must still be counted.
    fn count(&mut self, id: &ChunkId, role: ChunkRole, sizes: &mut Sizes) -> Result<bool> {
        let met = self.of_server.meet(id, Role::Tree(role))?;
        if !matches!(met, Met::First | Met::InThisRoleFirst { as_base_only: true }) {
            return Ok(met != Met::Before);
        }
        let Some(location) = self.locate(id)? else {
            return Ok(true);
        };
        sizes.unique_bytes += u64::from(location.raw_bytes);
        if self.all.meet(id, Role::Tree(ChunkRole::Window))? != Met::Before {
            self.total.unique_bytes += u64::from(location.raw_bytes);
        }
        self.add_stored(id, &location, sizes)?;
        // A base that only deltas use takes space without being part of any file.
        if let Some(base) = location.base
            && let Some(location) = self.locate(&base)?
        {
            self.add_stored(&base, &location, sizes)?;
        }
        Ok(true)
    }

    fn add_stored(&mut self, id: &ChunkId, location: &ChunkLocation, sizes: &mut Sizes) -> Result<()> {
        if self.of_server.meet(id, Role::Base)? != Met::Before {
            sizes.stored_bytes += u64::from(location.stored_bytes);
        }
        if self.all.meet(id, Role::Base)? != Met::Before {
            self.total.stored_bytes += u64::from(location.stored_bytes);
        }
        Ok(())
    }

    /// The place of a chunk; `None` if it is missing: then it takes no space, and `verify` reports it.
    fn locate(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        let place = self.repository.db.read(|db| kept_place(db, id))?;
        Ok(place.map(|place| place.location))
    }
}
