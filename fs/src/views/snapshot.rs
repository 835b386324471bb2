//! The servers and backups at one moment. When the repository's generation has changed, those that may have changed are
//! read again: WAL arrives all the time, and lists are requested far more often than they change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use barmanfs_catalog::{Backup, BackupId, BackupStatus, Change, Changes, Repository, ServerName};
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
    /// Those that can be started when more WAL has arrived.
    waiting: Vec<Backup>,
    /// The newest backup of each label, as an index into `backups`.
    newest_of_label: BTreeMap<String, usize>,
}

impl ServerState {
    fn load(repository: &Repository, name: ServerName, options: &ViewOptions) -> Result<Self> {
        let mut waiting = Vec::new();
        let mut backups: Vec<Arc<Backup>> = Vec::new();
        for backup in repository.backups(&name)? {
            match backup.status {
                BackupStatus::Done if backup.root.is_some() => backups.push(Arc::new(backup)),
                BackupStatus::WaitingForWals if backup.root.is_some() => match options.with_waiting {
                    true => backups.push(Arc::new(backup)),
                    false => waiting.push(backup),
                },
                _ => {}
            }
        }
        let labels = backups.iter().enumerate();
        let newest_of_label = labels.filter_map(|(place, backup)| Some((backup.label.clone()?, place)));
        Ok(Self {
            name,
            newest_of_label: newest_of_label.collect(),
            backups,
            waiting,
        })
    }

    /// Whether more WAL makes more backups complete.
    fn gains_by_wal(&self, repository: &Repository) -> Result<bool> {
        for backup in &self.waiting {
            if repository.has_its_wal(backup)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest backup of the server's history. A backup of a clone is not what the server was.
    pub(crate) fn latest(&self) -> Option<&Arc<Backup>> {
        self.backups.iter().rfind(|backup| backup.is_of_current_history())
    }

    pub(crate) fn oldest(&self) -> Option<&Arc<Backup>> {
        self.backups.iter().find(|backup| backup.is_of_current_history())
    }

    pub(crate) fn backup(&self, id: BackupId) -> Option<&Arc<Backup>> {
        let place = self.backups.binary_search_by_key(&id, |backup| backup.id).ok()?;
        self.backups.get(place)
    }

    /// The newest backup with this label.
    pub(super) fn newest_labelled(&self, label: &str) -> Option<&Arc<Backup>> {
        self.backups.get(*self.newest_of_label.get(label)?)
    }

    /// The labels of its backups.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.newest_of_label.keys().map(String::as_str)
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
    /// The present state, in which servers without changes are those of this one.
    fn updated(&self, repository: &Repository, options: &ViewOptions, changes: &Changes) -> Result<Self> {
        let shown = |name: &ServerName| options.servers.as_ref().is_none_or(|names| names.contains(name));
        let mut servers = Vec::new();
        for name in repository.servers()?.into_iter().filter(shown) {
            let known = self.server(name.as_str()).cloned();
            let still = match (known, changes.of(&name)) {
                (Some(known), None) => Some(known),
                (Some(known), Some(Change::Wal)) if !known.gains_by_wal(repository)? => Some(known),
                _ => None,
            };
            servers.push(match still {
                Some(known) => known,
                None => Arc::new(ServerState::load(repository, name, options)?),
            });
        }
        Ok(Self { servers })
    }

    pub(crate) fn server(&self, name: &str) -> Option<&Arc<ServerState>> {
        let by_name = |server: &Arc<ServerState>| server.name.as_str().cmp(name);
        self.servers.get(self.servers.binary_search_by(by_name).ok()?)
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
        let (before, changes) = match &*last {
            Some((known, snapshot)) if *known == generation => return Ok(Arc::clone(snapshot)),
            Some((known, snapshot)) => (
                Arc::clone(snapshot),
                repository.changes_between(*known, generation)?,
            ),
            None => (Arc::default(), Changes::All),
        };
        let snapshot = Arc::new(before.updated(repository, options, &changes)?);
        *last = Some((generation, Arc::clone(&snapshot)));
        Ok(snapshot)
    }
}
