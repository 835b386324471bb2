//! A cache of the archived segments that are known to be damaged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_store::ChunkId;
use barmanfs_store::sync::lock;

use crate::names::ServerName;

/// A segment, and what it needs and nobody has.
pub(crate) type Needing = (SegmentName, Vec<ChunkId>);

/// What was found for a list of damaged places.
#[derive(Debug, Default)]
pub(crate) struct DamagedWal(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    state: State,
    archives: BTreeMap<ServerName, Arc<Vec<Needing>>>,
}

/// Changes with each place that becomes known as damaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Which catalog it is.
    pub(crate) replaced: u64,
    /// The newest record of damage.
    pub(crate) record: i64,
}

impl DamagedWal {
    pub(crate) fn found(&self, state: State, archive: &ServerName) -> Option<Arc<Vec<Needing>>> {
        let known = lock(&self.0);
        let archive = known.archives.get(archive);
        archive.filter(|_| known.state == state).cloned()
    }

    pub(crate) fn keep(&self, state: State, archive: &ServerName, found: &Arc<Vec<Needing>>) {
        let mut known = lock(&self.0);
        if known.state != state {
            *known = Found {
                state,
                archives: BTreeMap::new(),
            };
        }
        known.archives.insert(archive.clone(), Arc::clone(found));
    }
}
