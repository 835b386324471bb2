//! Whether what this mount's kernel knows of a clone is still so.
//!
//! The kernel keeps names, attributes and pages of a clone while the mount has let go of it, which is right as long as nobody
//! else changes anything: who commits or copies a clone does not. Another mount that serves it does. When the clone comes back
//! after that, a new *epoch* begins: its root has another number, and so has everything in it. No old name leads there, and
//! who still holds an old number is told that it is stale. (Telling the kernel what to forget would not do: nobody
//! knows all the names it remembers as absent.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, Repository, ServerName};
use barmanfs_store::RecordId;

use crate::error::Result;

/// The epoch in which a mount serves a clone first. Numbers are then what they are in every other mount.
pub(super) const FIRST: u64 = 0;

/// See the module.
#[derive(Debug)]
pub(super) struct ServingEpochs {
    /// This mount's mark.
    mount: RecordId,
    /// The clones this mount has served: one for each name at most.
    served: Mutex<HashMap<(ServerName, CloneName), Epoch>>,
}

#[derive(Debug)]
struct Epoch {
    /// Another clone may have the name one day.
    clone: RecordId,
    number: u64,
    /// The mark that was there when it began.
    served_by: Option<RecordId>,
}

impl ServingEpochs {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            mount: RecordId::random()?,
            served: Mutex::default(),
        })
    }

    /// The epoch a clone is in, or would be in if it were served now.
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

    /// This mount begins to serve a clone in the epoch it is in: from now on the kernel knows something of it. Returns whether
    /// nobody else can have written to it since it was made or this mount let go of it: then all of it is durable.
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

    /// A clone has been removed.
    pub(super) fn forget(&self, server: &ServerName, name: &CloneName) {
        self.lock().remove(&(server.clone(), name.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServerName, CloneName), Epoch>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
