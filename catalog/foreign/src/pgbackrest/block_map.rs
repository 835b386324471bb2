//! The map of a file that is stored by blocks: where each block is.
//!
//! Blocks are stored in super blocks, which are compressed and encrypted as a whole. A file's super blocks may be in several
//! backups: each backup stores those blocks that changed, and a whole map. All numbers are little-endian base 128 with the
//! high bit for "more follows":
//!
//! ```text
//! flags               bit 0 is the version, and must be 0
//! references:         bit 0 last one; number of the backup in the manifest's list, from bit 3
//!   the first time:   bit 1 a bundle's number follows; bit 2 an offset follows
//!   again, continued: bit 1; its last super block goes on, which is the last one here if bit 2
//!   again:            bit 2 an offset follows, counted from the end of its last super block
//!   super blocks:     bit 0 last one; bit 1 its size in blocks follows (bit 0 of that: and bytes); bit 2 blocks follow
//!                     stored size from bit 3: the first one in the map, then the difference to the last one, in zigzag form
//!     blocks:         number of blocks, less one, from bit 1; bit 0 so many are skipped before. Without bit 2 above: all
//!       checksum      XXH128, cut; not used here, because the file as a whole has a SHA-1
//! ```
//!
//! The blocks are in the order of the file. A continued super block has no entry of its own, only blocks.

use std::collections::BTreeMap;

/// A super block may be at most so large; pgBackRest makes none above 16 MiB.
const MOST_SUPER_BLOCK_BYTES: u64 = 256 << 20;

/// Why a map is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockMapError {
    /// It ends too early.
    #[error("the block map is cut")]
    Cut,
    /// It says what cannot be.
    #[error("the block map is damaged: {0}")]
    Wrong(&'static str),
}

/// Blocks that are compressed and encrypted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperBlock {
    /// The backup that has it, by its number in the manifest's list of references.
    pub reference: u32,
    /// The bundle that has it; 0 if the file has one of its own.
    pub bundle: u64,
    /// Where it begins there.
    pub offset: u64,
    /// How much of it is stored there.
    pub stored_bytes: u64,
    /// How large it is without compression and encryption.
    pub bytes: u64,
}

/// Blocks of one super block that follow each other in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Their super block, by its number in [`BlockMap::super_blocks`].
    pub super_block: usize,
    /// Where they begin in it.
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    /// In the order in which the file needs them.
    pub super_blocks: Vec<SuperBlock>,
    /// In the order of the file.
    pub runs: Vec<Run>,
}

impl BlockMap {
    /// Reads the map of a file of `file_bytes`. Memory is in proportion to `bytes`.
    ///
    /// # Errors
    /// When it is cut or damaged, or its blocks are not exactly the file.
    pub fn parse(bytes: &[u8], sizes: super::Blocks, file_bytes: u64) -> Result<Self, BlockMapError> {
        let mut reader = Reader {
            rest: bytes,
            block_bytes: sizes.block_bytes,
            checksum_bytes: sizes.checksum_bytes,
            references: BTreeMap::new(),
            last_stored: 0,
            super_blocks: Vec::new(),
            runs: Vec::new(),
        };
        if reader.number()? & 1 != 0 {
            return Err(BlockMapError::Wrong("another version"));
        }
        while !reader.reference()? {}
        if !reader.rest.is_empty() {
            return Err(BlockMapError::Wrong("it goes on behind its end"));
        }
        let Reader {
            super_blocks, runs, ..
        } = reader;
        let map = Self { super_blocks, runs };
        map.check(sizes.block_bytes, file_bytes).map(|()| map)
    }

    /// What this file has that `before`, an earlier state of it with blocks of the same size, has not at the same place: where it
    /// is in the file, in ascending order, and where it is stored. `is_same` tells whether two references, one of each, are the
    /// same backup.
    #[must_use]
    pub fn changes(
        &self,
        before: &Self,
        block_bytes: u64,
        is_same: impl Fn(u32, u32) -> bool,
    ) -> Vec<(u64, Run)> {
        let stored_at = |map: &Self, run: Run| map.super_blocks.get(run.super_block).copied();
        let is_unchanged = |block: Run, earlier: Run| {
            let (Some(now), Some(then)) = (stored_at(self, block), stored_at(before, earlier)) else {
                return false;
            };
            is_same(now.reference, then.reference)
                && (now.bundle, now.offset, now.stored_bytes) == (then.bundle, then.offset, then.stored_bytes)
                && (block.offset, block.bytes) == (earlier.offset, earlier.bytes)
        };
        let mut earlier = before.blocks(block_bytes);
        let mut changes: Vec<(u64, Run)> = Vec::new();
        let mut at = 0_u64;
        for block in self.blocks(block_bytes) {
            let place = at;
            at += block.bytes;
            if earlier.next().is_some_and(|earlier| is_unchanged(block, earlier)) {
                continue;
            }
            match changes.last_mut() {
                Some((begin, run))
                    if *begin + run.bytes == place
                        && run.super_block == block.super_block
                        && run.offset + run.bytes == block.offset =>
                {
                    run.bytes += block.bytes;
                }
                _ => changes.push((place, block)),
            }
        }
        changes
    }

    /// Its blocks, each as a run of its own.
    fn blocks(&self, block_bytes: u64) -> impl Iterator<Item = Run> {
        let block_bytes = block_bytes.max(1);
        self.runs.iter().flat_map(move |run| {
            (0..run.bytes.div_ceil(block_bytes)).map(move |number| {
                let within = number * block_bytes;
                Run {
                    offset: run.offset + within,
                    bytes: block_bytes.min(run.bytes - within),
                    ..*run
                }
            })
        })
    }

    /// All blocks but the file's last one are whole.
    fn check(&self, block_bytes: u64, file_bytes: u64) -> Result<(), BlockMapError> {
        let mut end = 0_u64;
        for run in &self.runs {
            if !end.is_multiple_of(block_bytes) {
                return Err(BlockMapError::Wrong("a short block within the file"));
            }
            end = end
                .checked_add(run.bytes)
                .ok_or(BlockMapError::Wrong("too large"))?;
        }
        match end == file_bytes {
            true => Ok(()),
            false => Err(BlockMapError::Wrong("its blocks are not the size of the file")),
        }
    }
}

/// What is known of a backup that a map names: its last super block.
#[derive(Debug, Clone, Copy)]
struct Reference {
    number: usize,
    /// Blocks that were passed in it.
    next_block: u64,
    bundle: u64,
    bytes: u64,
}

struct Reader<'a> {
    rest: &'a [u8],
    block_bytes: u64,
    checksum_bytes: usize,
    references: BTreeMap<u32, Reference>,
    last_stored: u64,
    super_blocks: Vec<SuperBlock>,
    runs: Vec<Run>,
}

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, BlockMapError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(BlockMapError::Cut)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(BlockMapError::Wrong("a number above 64 bits"))
    }

    /// Reads the super blocks of a reference. True after the last one.
    fn reference(&mut self) -> Result<bool, BlockMapError> {
        let encoded = self.number()?;
        let id = u32::try_from(encoded >> 3).map_err(|_| BlockMapError::Wrong("an unlikely reference"))?;
        let known = self.references.get(&id).copied();
        let is_last = encoded & 1 != 0;
        let (offset, bundle, bytes) = match known {
            None => {
                let bundle = if encoded & 2 != 0 { self.number()? } else { 0 };
                let offset = if encoded & 4 != 0 { self.number()? } else { 0 };
                (offset, bundle, self.block_bytes)
            }
            Some(known) if encoded & 2 != 0 => {
                self.last_stored = self
                    .super_blocks
                    .get(known.number)
                    .map_or(0, |last| last.stored_bytes);
                self.blocks(id, known, true)?;
                if encoded & 4 != 0 {
                    return Ok(is_last);
                }
                (self.end_of(known)?, known.bundle, known.bytes)
            }
            Some(known) => {
                let gap = if encoded & 4 != 0 { self.number()? } else { 0 };
                let offset = self.end_of(known)?.checked_add(gap);
                (
                    offset.ok_or(BlockMapError::Wrong("too large"))?,
                    known.bundle,
                    known.bytes,
                )
            }
        };
        self.super_blocks_of(id, bundle, offset, bytes)?;
        Ok(is_last)
    }

    fn end_of(&self, known: Reference) -> Result<u64, BlockMapError> {
        let last = self.super_blocks.get(known.number);
        last.and_then(|last| last.offset.checked_add(last.stored_bytes))
            .ok_or(BlockMapError::Wrong("too large"))
    }

    fn super_blocks_of(
        &mut self,
        id: u32,
        bundle: u64,
        mut offset: u64,
        mut bytes: u64,
    ) -> Result<(), BlockMapError> {
        loop {
            let encoded = self.number()?;
            let stored_bytes = self.stored_size(encoded >> 3)?;
            if encoded & 2 != 0 {
                bytes = self.size()?;
            }
            let known = Reference {
                number: self.super_blocks.len(),
                next_block: 0,
                bundle,
                bytes,
            };
            self.super_blocks.push(SuperBlock {
                reference: id,
                bundle,
                offset,
                stored_bytes,
                bytes,
            });
            self.blocks(id, known, encoded & 4 != 0)?;
            let end = offset.checked_add(stored_bytes);
            offset = end.ok_or(BlockMapError::Wrong("too large"))?;
            if encoded & 1 != 0 {
                return Ok(());
            }
        }
    }

    fn stored_size(&mut self, encoded: u64) -> Result<u64, BlockMapError> {
        let size = match self.last_stored {
            0 => Some(encoded),
            last if encoded & 1 == 0 => last.checked_add(encoded >> 1),
            last => last.checked_sub((encoded >> 1) + 1),
        };
        self.last_stored = size.unwrap_or(0);
        size.filter(|size| *size > 0)
            .ok_or(BlockMapError::Wrong("a super block without size"))
    }

    /// The size of a super block that is not that of the one before.
    fn size(&mut self) -> Result<u64, BlockMapError> {
        let encoded = self.number()?;
        let remainder = if encoded & 1 != 0 { self.number()? } else { 0 };
        let size = (encoded >> 1)
            .checked_mul(self.block_bytes)
            .and_then(|size| size.checked_add(remainder));
        size.filter(|size| (1..=MOST_SUPER_BLOCK_BYTES).contains(size))
            .ok_or(BlockMapError::Wrong("the size of a super block"))
    }

    /// Reads the blocks of a super block, all of them or those that are named.
    fn blocks(&mut self, id: u32, mut known: Reference, is_part: bool) -> Result<(), BlockMapError> {
        let all = known.bytes.div_ceil(self.block_bytes);
        let (first, count) = if is_part {
            let encoded = self.number()?;
            let skipped = if encoded & 1 != 0 { self.number()? } else { 0 };
            (known.next_block.checked_add(skipped), (encoded >> 1) + 1)
        } else {
            (Some(0), all)
        };
        let within = first.and_then(|first| Some((first, first.checked_add(count)?)));
        let (first, end) = within
            .filter(|(_, end)| *end <= all)
            .ok_or(BlockMapError::Wrong("a block outside its super block"))?;
        let checksums = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(self.checksum_bytes));
        self.rest = checksums
            .and_then(|bytes| self.rest.get(bytes..))
            .ok_or(BlockMapError::Cut)?;
        // Neither product can overflow: a super block is at most MOST_SUPER_BLOCK_BYTES.
        let offset = first * self.block_bytes;
        let bytes = (end * self.block_bytes).min(known.bytes) - offset;
        self.runs.push(Run {
            super_block: known.number,
            offset,
            bytes,
        });
        known.next_block = end;
        self.references.insert(id, known);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Blocks;
    use super::*;
    use proptest::prelude::*;

    const SIZES: Blocks = Blocks {
        block_bytes: 8192,
        checksum_bytes: 6,
        map_bytes: 0,
    };

    #[derive(Default)]
    struct Map(Vec<u8>);

    impl Map {
        fn number(mut self, mut number: u64) -> Self {
            while number > 0x7f {
                self.0.push(number as u8 | 0x80);
                number >>= 7;
            }
            self.0.push(number as u8);
            self
        }

        fn checksums(mut self, count: usize) -> Self {
            self.0.resize(self.0.len() + count * 6, 0xab);
            self
        }

        fn parse(&self, file_bytes: u64) -> Result<BlockMap, BlockMapError> {
            BlockMap::parse(&self.0, SIZES, file_bytes)
        }
    }

    /// Reference 0, bundle 2, offset 100: a super block of three blocks and 10 bytes, stored in 500 bytes.
    fn full() -> Map {
        let map = Map::default().number(0).number(1 | 2 | 4).number(2).number(100);
        map.number(1 | 2 | 500 << 3)
            .number(3 << 1 | 1)
            .number(10)
            .checksums(4)
    }

    #[test]
    fn a_full_file_is_one_run() {
        let map = full().parse(3 * 8192 + 10).unwrap();
        let only = SuperBlock {
            reference: 0,
            bundle: 2,
            offset: 100,
            stored_bytes: 500,
            bytes: 3 * 8192 + 10,
        };
        assert_eq!(map.super_blocks, [only]);
        assert_eq!(
            map.runs,
            [Run {
                super_block: 0,
                offset: 0,
                bytes: 3 * 8192 + 10
            }]
        );
    }

    #[test]
    fn a_changed_block_splits_the_super_block_around_it() {
        // Block 0 of reference 0, a block of reference 1, then blocks 2 and 3 of reference 0 and the next super block.
        let map = Map::default().number(0).number(2 | 4).number(2).number(100);
        let map = map
            .number(1 | 2 | 4 | 500 << 3)
            .number(4 << 1)
            .number(0)
            .checksums(1);
        let map = map.number(1 << 3).number(1 | (99 * 2 + 1) << 3).checksums(1);
        let map = map.number(1 | 2).number(1 << 1 | 1).number(1).checksums(2);
        // Its size is as that of the one before (500), of which the continued one is the last.
        let map = map.number(1 | 2 | 1 << 3).number(1 << 1).checksums(1);
        let found = map.parse(5 * 8192).unwrap();
        assert_eq!(
            found.runs.iter().map(|run| run.super_block).collect::<Vec<_>>(),
            [0, 1, 0, 2]
        );
        assert_eq!(
            found.runs[2],
            Run {
                super_block: 0,
                offset: 2 * 8192,
                bytes: 2 * 8192
            }
        );
        assert_eq!(found.super_blocks[1].stored_bytes, 400);
        assert_eq!(
            (found.super_blocks[2].offset, found.super_blocks[2].bundle),
            (600, 2)
        );
    }

    #[test]
    fn what_is_stored_elsewhere_than_before_has_changed() {
        let block = |super_block: usize, number: u64, count: u64| Run {
            super_block,
            offset: number * 8192,
            bytes: count * 8192,
        };
        let stored = |reference: u32, offset: u64| SuperBlock {
            reference,
            bundle: 1,
            offset,
            stored_bytes: 700,
            bytes: 4 * 8192,
        };
        let before = BlockMap {
            super_blocks: vec![stored(0, 0), stored(0, 700)],
            runs: vec![block(0, 0, 4), block(1, 0, 2)],
        };
        let same = |now: u32, then: u32| now == then;
        assert_eq!(before.changes(&before, 8192, same), []);
        // Block 1 is of the next backup, 2 is what 3 was, and there are three blocks more.
        let now = BlockMap {
            super_blocks: vec![stored(0, 0), stored(1, 0), stored(0, 700), stored(1, 700)],
            runs: vec![
                block(0, 0, 1),
                block(1, 0, 1),
                block(0, 3, 1),
                block(0, 3, 1),
                block(2, 0, 2),
                block(3, 0, 2),
                block(3, 2, 1),
            ],
        };
        let expected = [
            (8192, block(1, 0, 1)),
            (2 * 8192, block(0, 3, 1)),
            (6 * 8192, block(3, 0, 3)),
        ];
        assert_eq!(now.changes(&before, 8192, same), expected);
        // Nothing is the same in another chain, and a shorter file has nothing behind its end.
        let all: u64 = now
            .changes(&before, 8192, |_, _| false)
            .iter()
            .map(|(_, run)| run.bytes)
            .sum();
        assert_eq!(all, 9 * 8192);
        assert_eq!(before.changes(&now, 8192, same), [(8192, block(0, 1, 2))]);
    }

    #[test]
    fn maps_that_cannot_be_are_refused() {
        let bytes = full().0;
        for length in 0..bytes.len() {
            assert!(
                BlockMap::parse(&bytes[..length], SIZES, 3 * 8192 + 10).is_err(),
                "{length}"
            );
        }
        assert!(full().number(0).parse(3 * 8192 + 10).is_err(), "behind its end");
        assert!(full().parse(3 * 8192 + 11).is_err(), "another size");
        assert!(Map::default().number(1).parse(0).is_err(), "version");
        let outside = Map::default()
            .number(0)
            .number(1)
            .number(1 | 4 | 9 << 3)
            .number(1 << 1)
            .checksums(2);
        assert_eq!(
            outside.parse(2 * 8192),
            Err(BlockMapError::Wrong("a block outside its super block"))
        );
        let huge = Map::default()
            .number(0)
            .number(1)
            .number(1 | 2 | 9 << 3)
            .number(u64::MAX);
        assert!(huge.parse(1).is_err());
        let many = Map::default()
            .number(0)
            .number(1)
            .number(1 | 4 | 9 << 3)
            .number(u64::MAX);
        assert!(many.parse(1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            block_bytes in 1_u64..1 << 40,
            checksum_bytes in 1_usize..17,
            file_bytes in any::<u64>(),
        ) {
            let sizes = Blocks { block_bytes, checksum_bytes, map_bytes: 0 };
            if let Ok(map) = BlockMap::parse(&bytes, sizes, file_bytes) {
                prop_assert_eq!(map.runs.iter().map(|run| run.bytes).sum::<u64>(), file_bytes);
                for run in &map.runs {
                    prop_assert!(run.offset + run.bytes <= map.super_blocks[run.super_block].bytes);
                }
            }
        }
    }
}
