//! A cache of segment indexes that are not in the segments' records, because an earlier release
//! archived the segments.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use barmanfs_pg::wal_scan::SegmentIndex;
use barmanfs_store::ChunkId;
use barmanfs_store::sync::lock;

/// Number of cached indexes: enough for a few recoveries at a time, a few KiB each.
const KEPT_MAX: usize = 256;

/// Indexes of segments whose records do not have them, by content; the newest last.
#[derive(Debug, Default)]
pub(crate) struct ReadSegments {
    kept: Mutex<VecDeque<(ChunkId, Arc<SegmentIndex>)>>,
}

impl ReadSegments {
    pub(crate) fn find(&self, key: &ChunkId) -> Option<Arc<SegmentIndex>> {
        let kept = lock(&self.kept);
        let found = kept.iter().rev().find(|(known, _)| known == key);
        found.map(|(_, index)| Arc::clone(index))
    }

    pub(crate) fn keep(&self, key: ChunkId, index: &Arc<SegmentIndex>) {
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((key, Arc::clone(index)));
    }
}
