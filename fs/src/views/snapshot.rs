//! The servers and backups at one moment. They are read again when the repository's generation has changed, because
//! lists are requested far more often than they change.

use std::sync::{Arc, Mutex};

use barmanfs_catalog::{Backup, BackupId, BackupStatus, Repository, ServerName};
use barmanfs_store::Attributes;
use barmanfs_store::sync::lock;

use super::context::ViewOptions;
use crate::error::Result;

/// A server.
#[derive(Debug)]
pub(crate) struct ServerState {
    /// The server's name.
    pub(crate) name: ServerName,
    /// Its backups that can be started, oldest first.
    pub(crate) backups: Vec<Arc<Backup>>,
}

impl ServerState {
    /// The newest backup of the server's history. A backup of a clone is not what the server was.
    pub(crate) fn latest(&self) -> Option<&Arc<Backup>> {
        self.backups.iter().rfind(|backup| backup.is_of_current_history())
    }

    pub(crate) fn oldest(&self) -> Option<&Arc<Backup>> {
        self.backups.iter().find(|backup| backup.is_of_current_history())
    }

    pub(crate) fn backup(&self, id: BackupId) -> Option<&Arc<Backup>> {
        self.backups.iter().find(|backup| backup.id == id)
    }

    /// The owner of the server's files, from its newest backup.
    pub(super) fn owner(&self) -> Option<&Attributes> {
        self.latest()
            .or(self.backups.last())
            .and_then(|backup| backup.root.as_ref())
            .map(|root| &root.attributes)
    }
}

/// All servers at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The servers that are shown, by name.
    pub(crate) servers: Vec<Arc<ServerState>>,
}

impl Snapshot {
    fn load(repository: &Repository, options: &ViewOptions) -> Result<Self> {
        let shown = |name: &ServerName| options.servers.as_ref().is_none_or(|names| names.contains(name));
        let mut servers = Vec::new();
        for name in repository.servers()?.into_iter().filter(shown) {
            let mut backups = repository.backups(&name)?;
            let is_shown = |backup: &Backup| backup.status == BackupStatus::Done || options.with_waiting;
            backups.retain(|backup| backup.is_complete() && is_shown(backup));
            let backups = backups.into_iter().map(Arc::new).collect();
            servers.push(Arc::new(ServerState { name, backups }));
        }
        Ok(Self { servers })
    }

    pub(crate) fn server(&self, name: &str) -> Option<&Arc<ServerState>> {
        self.servers.iter().find(|server| server.name.as_str() == name)
    }
}

/// The last snapshot and its generation.
#[derive(Debug, Default)]
pub(super) struct SnapshotCache {
    last: Mutex<Option<(u64, Arc<Snapshot>)>>,
}

impl SnapshotCache {
    pub(super) fn current(&self, repository: &Repository, options: &ViewOptions) -> Result<Arc<Snapshot>> {
        // Read before the backups: a later change makes the next call read again.
        let generation = repository.generation()?;
        let mut last = lock(&self.last);
        if let Some((known, snapshot)) = &*last
            && *known == generation
        {
            return Ok(Arc::clone(snapshot));
        }
        let snapshot = Arc::new(Snapshot::load(repository, options)?);
        *last = Some((generation, Arc::clone(&snapshot)));
        Ok(snapshot)
    }
}
