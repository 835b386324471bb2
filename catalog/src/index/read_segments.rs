//! A cache of segment indexes that are not in the segments' records, because an earlier release
//! archived the segments.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::wal_scan::SegmentIndex;
use barmanfs_store::FileMap;
use barmanfs_store::sync::lock;

/// Number of cached indexes: enough for a few recoveries at a time, a few KiB each.
const KEPT_MAX: usize = 256;

/// Indexes of segments whose records do not have them, by name and content; the newest last.
#[derive(Debug, Default)]
pub(crate) struct ReadSegments {
    kept: Mutex<VecDeque<ReadSegment>>,
}

#[derive(Debug)]
struct ReadSegment {
    name: SegmentName,
    map: FileMap,
    index: Arc<SegmentIndex>,
}

impl ReadSegments {
    pub(crate) fn find(&self, name: SegmentName, map: &FileMap) -> Option<Arc<SegmentIndex>> {
        let kept = lock(&self.kept);
        let found = kept
            .iter()
            .rev()
            .find(|known| known.name == name && known.map == *map);
        found.map(|known| Arc::clone(&known.index))
    }

    pub(crate) fn keep(&self, name: SegmentName, map: &FileMap, index: &Arc<SegmentIndex>) {
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(ReadSegment {
            name,
            map: map.clone(),
            index: Arc::clone(index),
        });
    }
}
