//! Which windows of a file will change, so that their old content is fetched in the order of the disk.

use crate::error::Result;
use crate::file_map::FileMap;
use crate::id::ChunkId;
use crate::tree::reader::{TreeReader, WindowCursor};

/// Number of windows that are expected at once. Their frames and bases take 16 MiB when nothing compresses, mostly one.
const BATCH: usize = 64;

/// The windows that will change.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// In ascending order.
    windows: Vec<u64>,
    /// How many of them have been handed out.
    given: usize,
    /// How many have begun since.
    begun: usize,
    cursor: WindowCursor,
}

impl Expected {
    /// These windows, in ascending order; some may come twice.
    pub(super) fn new(windows: impl Iterator<Item = u64>) -> Self {
        let mut windows: Vec<u64> = windows.collect();
        windows.dedup();
        // A single window has no neighbours.
        if windows.len() == 1 {
            windows.clear();
        }
        Self {
            windows,
            ..Self::default()
        }
    }

    /// A window begins: returns the chunks of the next batch when it is time to fetch them.
    pub(super) fn begin(&mut self, tree: &TreeReader, map: &FileMap) -> Result<Vec<ChunkId>> {
        self.begun += 1;
        if self.begun + BATCH / 2 <= self.given || self.given == self.windows.len() {
            return Ok(Vec::new());
        }
        let end = self.windows.len().min(self.given + BATCH);
        let mut chunks = Vec::new();
        for n in self.windows.get(self.given..end).unwrap_or_default() {
            if *n < map.window_count() {
                chunks.extend(self.cursor.window(tree, map, *n)?.chunk);
            }
        }
        self.given = end;
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::file_map::{Window, Windows};
    use crate::testing::TestStore;

    fn chunk(n: u64) -> ChunkId {
        ChunkId::of(&n.to_le_bytes())
    }

    /// What is handed out when each of these windows begins, in a file of 16 windows.
    fn batches(windows: &[u64]) -> Vec<Vec<ChunkId>> {
        let tree = TreeReader::new(Arc::clone(&TestStore::new().reader));
        let window = |n| Window {
            chunk: (n != 3).then(|| chunk(n)),
            crc32c: 0,
        };
        let map = FileMap {
            size_bytes: 16 * 8192,
            window_bytes: 8192,
            crc32c: 0,
            windows: Windows::Inline((0..16).map(window).collect()),
        };
        let mut expected = Expected::new(windows.iter().copied());
        let begun = windows.iter().map(|_| expected.begin(&tree, &map).unwrap());
        begun.collect()
    }

    #[test]
    fn a_batch_comes_before_the_last_one_is_used_up() {
        // Windows past the end of the old file have no chunk.
        let windows: Vec<u64> = (0..200).collect();
        let sizes: Vec<usize> = batches(&windows).iter().map(Vec::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 15);
        assert_eq!(sizes[0], 15);
        let mut expected = Expected::new(windows.iter().copied());
        let tree = TreeReader::new(Arc::clone(&TestStore::new().reader));
        let empty = FileMap {
            size_bytes: 0,
            window_bytes: 8192,
            crc32c: 0,
            windows: Windows::Inline(Vec::new()),
        };
        let given: Vec<usize> = (0..200)
            .map(|_| {
                expected.begin(&tree, &empty).unwrap();
                expected.given
            })
            .collect();
        // Half a batch before they are needed.
        assert_eq!(
            [given[0], given[31], given[32], given[96], given[160], given[199]],
            [64, 64, 128, 192, 200, 200]
        );
    }

    #[test]
    fn single_windows_are_not_announced() {
        assert!(batches(&[5]).iter().all(Vec::is_empty));
        assert!(batches(&[5, 5]).iter().all(Vec::is_empty));
        assert_eq!(batches(&[5, 7])[0], [chunk(5), chunk(7)]);
    }
}
