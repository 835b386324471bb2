//! `INCREMENTAL.<name>`: the blocks of a relation file that changed since an earlier backup (PostgreSQL 17 and later).
//!
//! Layout, all numbers `u32` in the byte order of the server: magic, number of blocks listed, truncation length, the
//! blocks' numbers within this file; where any are listed, zeros up to a multiple of the block size; then the listed
//! blocks in the same order. Blocks that are not listed are those of the earlier backup, as far as the truncation
//! length goes. Sources: `src/include/backup/basebackup_incremental.h`, `sendFile` in
//! `src/backend/backup/basebackup.c`, `src/bin/pg_combinebackup/reconstruct.c`.

use crate::relation_name;

/// Bytes of a block: the default, and the only size that is understood.
const BLOCK_BYTES: u64 = 8192;
/// Maximum number of blocks of a relation file: 1 GiB (`RELSEG_SIZE`).
const FILE_BLOCKS_MAX: u32 = 131_072;
/// How every such file begins.
const MAGIC: u32 = 0xd3ae_1f0d;
/// Magic, number of blocks, truncation length.
const FIELDS_BYTES: u64 = 12;
/// The prefix of the names of such files.
const PREFIX: &[u8] = b"INCREMENTAL.";

/// The path of the file that an incremental file is for: `base/5/1259` for `base/5/INCREMENTAL.1259`. `None` if the
/// prefix has no meaning: only relation files are sent like this.
#[must_use]
pub fn plain_path(path: &[u8]) -> Option<Vec<u8>> {
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    let (directory, name) = path.split_at_checked(slash + 1)?;
    let plain = [directory, name.strip_prefix(PREFIX)?].concat();
    relation_name::parse(&plain).is_some().then_some(plain)
}

/// The part before the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncrementalHeader {
    blocks: Vec<u32>,
    truncation_blocks: u32,
    clamped: bool,
}

impl IncrementalHeader {
    /// The blocks that follow, by their numbers within this file, ascending.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// From this block on, nothing is taken from the earlier backup.
    #[must_use]
    pub fn truncation_blocks(&self) -> u32 {
        self.truncation_blocks
    }

    /// Whether the truncation length exceeds the blocks of a file, as it did for truncated relations of several files
    /// up to 17.7 and 18.1. It then means the blocks of a file.
    #[must_use]
    pub fn clamped(&self) -> bool {
        self.clamped
    }

    /// Blocks of the whole file: as many as the truncation length, or as the last listed block needs.
    #[must_use]
    pub fn result_blocks(&self) -> u32 {
        let listed = self.blocks.last().map_or(0, |last| last + 1);
        listed.max(self.truncation_blocks)
    }

    /// Bytes before the first block.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        header_bytes(self.blocks.len() as u64)
    }

    /// Bytes of the incremental file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.header_bytes() + self.blocks.len() as u64 * BLOCK_BYTES
    }
}

fn header_bytes(blocks: u64) -> u64 {
    match blocks {
        0 => FIELDS_BYTES,
        _ => (FIELDS_BYTES + 4 * blocks).next_multiple_of(BLOCK_BYTES),
    }
}

/// An incremental file that PostgreSQL would not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IncrementalError {
    /// It begins with something else.
    #[error(
        "It begins with {found:08x} instead of {MAGIC:08x}: this is no incremental file, or one of a big-endian server"
    )]
    WrongMagic {
        /// What it begins with.
        found: u32,
    },
    /// More blocks than a relation file can have.
    #[error("It lists {found} blocks, and a relation file has at most {FILE_BLOCKS_MAX}")]
    TooManyBlocks {
        /// How many.
        found: u32,
    },
    /// A block that is out of order, comes twice, or is beyond a file's end.
    #[error("It lists block {block}{}: blocks ascend, up to {}", after(previous), FILE_BLOCKS_MAX - 1)]
    WrongBlock {
        /// The block.
        block: u32,
        /// The one listed before it.
        previous: Option<u32>,
    },
    /// Its length does not fit its list of blocks.
    #[error("It has {found} bytes, and {expected} with the blocks it lists")]
    WrongSize {
        /// The length according to the list.
        expected: u64,
        /// The actual length.
        found: u64,
    },
}

fn after(previous: &Option<u32>) -> String {
    previous.map_or_else(String::new, |previous| format!(" after block {previous}"))
}

/// Reads a header that comes in pieces of any size. Needs at most the memory of the list: 512 KiB.
#[derive(Debug)]
pub struct HeaderParser {
    file_bytes: u64,
    taken_bytes: u64,
    /// The number being read.
    word: [u8; 4],
    count: u32,
    truncation_blocks: u32,
    blocks: Vec<u32>,
}

impl HeaderParser {
    /// The parser for a file of this length.
    #[must_use]
    pub fn new(file_bytes: u64) -> Self {
        Self {
            file_bytes,
            taken_bytes: 0,
            word: [0; 4],
            count: 0,
            truncation_blocks: 0,
            blocks: Vec::new(),
        }
    }

    /// Takes the bytes it needs from `bytes`. Returns how many it took, and the header once it is complete. The blocks
    /// follow; nothing may be pushed after that.
    ///
    /// # Errors
    /// See [`IncrementalError`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(usize, Option<IncrementalHeader>), IncrementalError> {
        let mut used = 0;
        for &byte in bytes {
            if self.is_complete() {
                break;
            }
            self.take(byte)?;
            used += 1;
        }
        Ok((used, self.is_complete().then(|| self.header())))
    }

    fn is_complete(&self) -> bool {
        self.taken_bytes >= FIELDS_BYTES && self.taken_bytes == header_bytes(u64::from(self.count))
    }

    fn header(&mut self) -> IncrementalHeader {
        IncrementalHeader {
            blocks: std::mem::take(&mut self.blocks),
            truncation_blocks: self.truncation_blocks.min(FILE_BLOCKS_MAX),
            clamped: self.truncation_blocks > FILE_BLOCKS_MAX,
        }
    }

    fn take(&mut self, byte: u8) -> Result<(), IncrementalError> {
        let [_, b, c, d] = self.word;
        self.word = [b, c, d, byte];
        self.taken_bytes += 1;
        if self.taken_bytes.is_multiple_of(4) {
            return self.take_word(self.taken_bytes / 4 - 1, u32::from_le_bytes(self.word));
        }
        Ok(())
    }

    fn take_word(&mut self, position: u64, word: u32) -> Result<(), IncrementalError> {
        match position {
            0 if word != MAGIC => return Err(IncrementalError::WrongMagic { found: word }),
            0 => {}
            1 => self.begin_list(word)?,
            2 => self.truncation_blocks = word,
            _ if self.blocks.len() as u64 == u64::from(self.count) => {}
            _ => {
                let previous = self.blocks.last().copied();
                if word >= FILE_BLOCKS_MAX || previous.is_some_and(|previous| previous >= word) {
                    return Err(IncrementalError::WrongBlock {
                        block: word,
                        previous,
                    });
                }
                self.blocks.push(word);
            }
        }
        Ok(())
    }

    fn begin_list(&mut self, count: u32) -> Result<(), IncrementalError> {
        if count > FILE_BLOCKS_MAX {
            return Err(IncrementalError::TooManyBlocks { found: count });
        }
        let expected = header_bytes(u64::from(count)) + u64::from(count) * BLOCK_BYTES;
        if expected != self.file_bytes {
            return Err(IncrementalError::WrongSize {
                expected,
                found: self.file_bytes,
            });
        }
        self.count = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file as PostgreSQL writes it, without its blocks; and its length with them.
    fn header(truncation_blocks: u32, blocks: &[u32]) -> (Vec<u8>, u64) {
        let count = u32::try_from(blocks.len()).unwrap();
        let words = [MAGIC, count, truncation_blocks]
            .into_iter()
            .chain(blocks.iter().copied());
        let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        if count > 0 {
            bytes.resize(bytes.len().next_multiple_of(8192), 0);
        }
        let file_bytes = bytes.len() as u64 + u64::from(count) * 8192;
        (bytes, file_bytes)
    }

    fn error(bytes: &[u8], file_bytes: u64) -> String {
        HeaderParser::new(file_bytes).push(bytes).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let (bytes, file_bytes) = header(100, &[3, 7, 150]);
        let (used, parsed) = HeaderParser::new(file_bytes)
            .push(&[bytes.as_slice(), b"blocks"].concat())
            .unwrap();
        let parsed = parsed.unwrap();
        assert_eq!((used, parsed.blocks()), (8192, &[3, 7, 150][..]));
        assert_eq!((parsed.truncation_blocks(), parsed.result_blocks()), (100, 151));
        assert_eq!((parsed.header_bytes(), parsed.file_bytes()), (8192, 4 * 8192));
        assert!(!parsed.clamped());
    }

    #[test]
    fn a_file_without_changes_is_twelve_bytes() {
        let (bytes, file_bytes) = header(5, &[]);
        let (used, parsed) = HeaderParser::new(file_bytes).push(&bytes).unwrap();
        assert_eq!((used, parsed.unwrap().result_blocks()), (12, 5));
    }

    #[test]
    fn a_truncation_length_beyond_the_file_is_clamped() {
        let (bytes, file_bytes) = header(200_000, &[]);
        let parsed = HeaderParser::new(file_bytes).push(&bytes).unwrap().1.unwrap();
        assert_eq!(
            (parsed.truncation_blocks(), parsed.clamped()),
            (FILE_BLOCKS_MAX, true)
        );
    }

    #[test]
    fn headers_postgresql_would_not_write_are_refused() {
        let (good, file_bytes) = header(9, &[1, 2]);
        let mut magic = good.clone();
        magic[0] ^= 1;
        let mut many = good.clone();
        many[4..8].copy_from_slice(&131_073_u32.to_le_bytes());
        let errors = [
            error(&magic, file_bytes),
            error(&many, file_bytes),
            error(&good, file_bytes - 1),
            error(&header(9, &[2, 2]).0, file_bytes),
            error(&header(9, &[1, 131_072]).0, file_bytes),
        ];
        assert_eq!(
            errors,
            [
                "It begins with d3ae1f0c instead of d3ae1f0d: this is no incremental file, or one of a big-endian server",
                "It lists 131073 blocks, and a relation file has at most 131072",
                "It has 24575 bytes, and 24576 with the blocks it lists",
                "It lists block 2 after block 2: blocks ascend, up to 131071",
                "It lists block 131072 after block 1: blocks ascend, up to 131071",
            ]
        );
    }

    #[test]
    fn the_prefix_has_a_meaning_for_relations_only() {
        let plain = |path: &str| plain_path(path.as_bytes()).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(
            plain("base/5/INCREMENTAL.1259_vm.1").as_deref(),
            Some("base/5/1259_vm.1")
        );
        assert_eq!(plain("global/INCREMENTAL.1213").as_deref(), Some("global/1213"));
        let space = "pg_tblspc/16384/PG_18_202506291/5";
        assert_eq!(
            plain(&format!("{space}/INCREMENTAL.17")),
            Some(format!("{space}/17"))
        );
        for path in [
            "INCREMENTAL.1",
            "base/5/1259",
            "base/5/INCREMENTAL.mine",
            "mine/INCREMENTAL.1",
            "base/5/INCREMENTAL.",
        ] {
            assert_eq!(plain(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(
            blocks in proptest::collection::btree_set(0..FILE_BLOCKS_MAX, 0..3000),
            truncation_blocks in 0..=FILE_BLOCKS_MAX,
            piece in 1_usize..10_000,
        ) {
            let blocks: Vec<u32> = blocks.into_iter().collect();
            let (bytes, file_bytes) = header(truncation_blocks, &blocks);
            let mut parser = HeaderParser::new(file_bytes);
            let mut found = None;
            for piece in bytes.chunks(piece) {
                let (used, header) = parser.push(piece).unwrap();
                prop_assert_eq!(used, piece.len());
                found = found.or(header);
            }
            let found = found.unwrap();
            prop_assert_eq!(found.blocks(), &blocks);
            prop_assert_eq!(found.file_bytes(), file_bytes);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, file_bytes: u64, count: u32) {
            let _ = HeaderParser::new(file_bytes).push(&bytes);
            let head = [MAGIC.to_le_bytes(), count.to_le_bytes()].concat();
            let _ = HeaderParser::new(file_bytes).push(&[head, bytes].concat());
        }
    }
}
