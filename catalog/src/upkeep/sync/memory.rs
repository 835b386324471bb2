//! What a node remembers of its syncs with a primary: `sync/<server>.json`.
//!
//! It paces nothing and decides only what is looked at again. A lost file costs one comparison with everything that the
//! primary has; then a backup that was deleted here by hand comes back, unless a policy would delete it.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::RecordId;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::{now, regular, write_durably};
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::upkeep::sync::wal::Wanted;

/// The directory of the files and of the caches. It is made by the first sync.
const SYNC: &str = "sync";

/// Problems that are remembered, and bytes of each.
const PROBLEMS: usize = 20;
const PROBLEM_BYTES: usize = 1000;

/// What is remembered of the syncs of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncMemory {
    /// The id of the primary's repository.
    #[serde(default)]
    pub primary: String,
    /// When the last sync began.
    #[serde(default)]
    pub began_at: Option<TimestampMicros>,
    /// When a sync last reached its end, and so had everything that the primary had when it began.
    #[serde(default)]
    pub synced_at: Option<TimestampMicros>,
    /// All WAL that the primary had archived at this time is here.
    #[serde(default)]
    pub current_at: Option<TimestampMicros>,
    /// Why the last sync failed.
    #[serde(default)]
    pub error: Option<String>,
    /// What the last sync could not take.
    #[serde(default)]
    pub problems: Vec<String>,
    /// The cache that `through` is about.
    #[serde(default)]
    pub(crate) made: String,
    /// All records of WAL up to this row of the cache are here, or are not wanted here.
    #[serde(default)]
    pub(crate) through: i64,
    /// The WAL that was wanted when that was decided.
    #[serde(default)]
    pub(super) wanted: Option<Wanted>,
    /// The records of the backups that came from the primary. One that is not here any more was deleted here, and is not
    /// fetched again.
    #[serde(default)]
    pub(crate) fetched: Vec<RecordId>,
    /// The records of backups of the primary that could not be taken. They are tried each time, and no other one is left out
    /// for their sake.
    #[serde(default)]
    pub(crate) untaken: BTreeSet<RecordId>,
    /// The same as `fetched` for backups of a Barman, by their names there.
    #[serde(default)]
    pub fetched_names: BTreeSet<String>,
    /// Of a Barman on another host: all WAL is here that its list had up to this file, at this position in the list.
    #[serde(default)]
    pub listed_through: Option<(String, u64)>,
    /// When that list was last compared from its beginning: a file may come late, and its name is an early one.
    #[serde(default)]
    pub listed_at: Option<TimestampMicros>,
}

/// The directory of all that belongs to syncs.
pub(super) fn directory(node: &Repository) -> PathBuf {
    node.home.join(SYNC)
}

impl Repository {
    /// The directory of what syncs need beside packs, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory_of_syncs(&self) -> Result<PathBuf> {
        let _acting = self.as_owner()?;
        let directory = directory(self);
        match fs::create_dir(&directory) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                Err(Error::io("create", &directory, source))
            }
            _ => Ok(directory),
        }
    }

    /// What is remembered of a server's syncs; nothing if there was none, or the file is lost or unreadable.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn sync_memory(&self, server: &ServerName) -> Result<SyncMemory> {
        let path = directory(self).join(format!("{server}.json"));
        match regular::read(&path) {
            Ok(json) => Ok(serde_json::from_slice(&json).unwrap_or_default()),
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(SyncMemory::default()),
            Err(source) => Err(Error::io("read", &path, source)),
        }
    }

    /// Notes the result of a sync that this crate has not done itself: an import from another tool.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_sync(&self, server: &ServerName, change: impl FnOnce(&mut SyncMemory)) -> Result<()> {
        let mut memory = self.sync_memory(server)?;
        memory.error = None;
        change(&mut memory);
        self.write_sync_memory(server, &mut memory)
    }

    /// Notes why a sync failed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_failed_sync(&self, server: &ServerName, error: &str) -> Result<()> {
        let mut memory = self.sync_memory(server)?;
        memory.error = Some(error.to_owned());
        self.write_sync_memory(server, &mut memory)
    }

    pub(super) fn write_sync_memory(&self, server: &ServerName, memory: &mut SyncMemory) -> Result<()> {
        let _acting = self.as_owner()?;
        memory.problems.truncate(PROBLEMS);
        for text in memory.problems.iter_mut().chain(&mut memory.error) {
            let end = (0..=PROBLEM_BYTES.min(text.len())).rfind(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or_default());
        }
        let mut json =
            serde_json::to_vec_pretty(memory).map_err(|error| Error::Invalid(error.to_string()))?;
        json.push(b'\n');
        write_durably(&self.directory_of_syncs()?.join(format!("{server}.json")), &json)
    }
}

impl SyncMemory {
    /// Notes that a sync begins.
    pub(super) fn begin(&mut self, primary: &str, made: String) {
        self.began_at = Some(now());
        if (self.primary.as_str(), &self.made) != (primary, &made) {
            self.through = 0;
        }
        primary.clone_into(&mut self.primary);
        self.made = made;
    }

    /// Notes which WAL is wanted from now on. What was not wanted before is among the records that were passed.
    pub(super) fn want(&mut self, wanted: Wanted) {
        if !self
            .wanted
            .as_ref()
            .is_some_and(|before| before.contains(&wanted))
        {
            self.through = 0;
        }
        self.wanted = Some(wanted);
    }

    /// Whether a file was wanted when the present pass over the records began.
    pub(super) fn wants(&self, name: &WalName) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.has(name))
    }
}
