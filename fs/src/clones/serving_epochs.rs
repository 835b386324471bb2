//! Decides whether the data that this mount's kernel has cached of a clone is still valid.
//!
//! The kernel keeps names, attributes and pages of a clone after the mount has released it. They stay valid as long as
//! nothing else changes the clone; committing or copying it does not. Another mount that serves it may change it. When
//! the clone comes back after that, a new *epoch* begins: its root and everything in it get other inode numbers. Old
//! names lead nowhere, and old inode numbers are stale. (Notifying the kernel would not be enough: the names that it
//! has cached as absent are not known here.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard};

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, Repository, ServerName};
use barmanfs_store::RecordId;
use barmanfs_store::sync::lock;

use crate::error::Result;

/// The first epoch. Inode numbers are then the same in every mount.
pub(super) const FIRST: u64 = 0;

/// The epochs of the clones that a mount has served.
#[derive(Debug)]
pub(super) struct ServingEpochs {
    /// The id of this mount.
    mount: RecordId,
    /// The clones this mount has served, at most one for each name.
    served: Mutex<HashMap<(ServerName, CloneName), Epoch>>,
}

#[derive(Debug)]
struct Epoch {
    /// Distinguishes it from a later clone with the same name.
    clone: RecordId,
    number: u64,
    /// The mount id that was recorded when the epoch began.
    served_by: Option<RecordId>,
}

impl ServingEpochs {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            mount: RecordId::random()?,
            served: Mutex::default(),
        })
    }

    /// The epoch of a clone, or the one it would have if it were served now.
    pub(super) fn current(&self, repository: &Repository, clone: &CloneDescription) -> Result<u64> {
        let mut served = self.lock();
        let known = served.get_mut(&(clone.server.clone(), clone.name.clone()));
        let Some(epoch) = known.filter(|epoch| epoch.clone == clone.id) else {
            return Ok(FIRST);
        };
        let by = repository.clone_served_by(&clone.server, &clone.name)?;
        if epoch.served_by != by {
            epoch.number += 1;
            epoch.served_by = by;
        }
        Ok(epoch.number)
    }

    /// Starts to serve a clone in its present epoch. Returns whether no other process can have written to it since it
    /// was created or this mount released it: then all of it is durable.
    pub(super) fn begin(
        &self,
        repository: &Repository,
        lock: &CloneLock,
        clone: &CloneDescription,
    ) -> Result<bool> {
        let before = repository.clone_served_by(&clone.server, &clone.name)?;
        repository.mark_clone_served(lock, &clone.server, &clone.name, self.mount)?;
        let first = Epoch {
            clone: clone.id,
            number: FIRST,
            served_by: Some(self.mount),
        };
        match self.lock().entry((clone.server.clone(), clone.name.clone())) {
            Entry::Occupied(known) if known.get().clone == clone.id => {
                known.into_mut().served_by = Some(self.mount);
            }
            known => {
                known.insert_entry(first);
            }
        }
        Ok(before.is_none_or(|by| by == self.mount))
    }

    /// Forgets a removed clone.
    pub(super) fn forget(&self, server: &ServerName, name: &CloneName) {
        self.lock().remove(&(server.clone(), name.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServerName, CloneName), Epoch>> {
        lock(&self.served)
    }
}
