//! What was found in segments whose records do not say it: they were archived by an earlier release.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use barmanfs_pg::wal_scan::SegmentIndex;
use barmanfs_store::ChunkId;
use barmanfs_store::sync::lock;

/// Indexes kept of segments that had to be read: for a few recoveries at a time, a few KiB each.
const KEPT_MAX: usize = 256;

/// What is known of segments whose record does not say it, by their content; the newest last.
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
