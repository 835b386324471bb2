//! Summaries of WAL, `pg_wal/summaries/*.summary`: which blocks of which relations a range of WAL has changed.
//!
//! Source of the format: `src/common/blkreftable.c`, of the names `src/backend/backup/walsummary.c`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use crate::{Lsn, TimelineId};

const MAGIC: u32 = 0x652B_137B;

/// Blocks of a chunk.
const CHUNK_BLOCKS: u32 = 1 << 16;

/// A chunk with this many numbers of 16 bits is a map of bits instead of a list.
const BITMAP_NUMBERS: usize = CHUNK_BLOCKS as usize / 16;

/// Bytes of what stands before the chunks of a fork.
const ENTRY_BYTES: usize = 24;

/// More chunks than a relation can have.
const CHUNKS_MAX: u32 = 1 << 16;

/// What PostgreSQL writes for "no limit".
const NO_LIMIT: u32 = u32::MAX;

/// The name of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SummaryName {
    /// The timeline of the WAL.
    pub timeline: TimelineId,
    /// Where the range begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
}

impl FromStr for SummaryName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_suffix(".summary").ok_or(())?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
        if digits.len() != 40 || !digits.bytes().all(is_hex) {
            return Err(());
        }
        let number = |from: usize, to: usize| {
            let digits = digits.get(from..to).ok_or(())?;
            u64::from_str_radix(digits, 16).map_err(|_| ())
        };
        Ok(Self {
            timeline: TimelineId(u32::try_from(number(0, 8)?).map_err(|_| ())?),
            start: Lsn(number(8, 24)?),
            end: Lsn(number(24, 40)?),
        })
    }
}

impl fmt::Display for SummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}{:016X}{:016X}.summary",
            self.timeline.0, self.start.0, self.end.0
        )
    }
}

/// A fork of a relation, as WAL names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ForkName {
    /// OID of its tablespace; those of the built-in ones, too.
    pub tablespace: u32,
    /// OID of its database; 0 for relations that all databases share.
    pub database: u32,
    /// The number in the names of its files; 0 for the database as a whole.
    pub filenode: u32,
    /// 0 is the main fork.
    pub fork: u32,
}

/// A summary that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// It cannot be read, or is cut short.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not what PostgreSQL writes.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// The changes of one fork.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkChanges {
    limit_block: Option<u32>,
    /// Chunks of blocks, with a bit for each unit.
    chunks: BTreeMap<u32, Vec<u64>>,
    /// Bits of a chunk.
    units: u32,
}

impl ForkChanges {
    /// The shortest length in blocks that the fork has had: 0 if it was created or removed.
    #[must_use]
    pub fn limit_block(&self) -> Option<u32> {
        self.limit_block
    }

    /// Whether a block of this unit has changed.
    #[must_use]
    pub fn has(&self, unit: u64) -> bool {
        let units = u64::from(self.units.max(1));
        let chunk = u32::try_from(unit / units).ok();
        let Some(bits) = chunk.and_then(|chunk| self.chunks.get(&chunk)) else {
            return false;
        };
        let bit = unit % units;
        let word = usize::try_from(bit / 64).ok().and_then(|word| bits.get(word));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, chunk: u32, unit: u32) {
        let bits = self.chunks.entry(chunk).or_default();
        let word = (unit / 64) as usize;
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        if let Some(bits) = bits.get_mut(word) {
            *bits |= 1 << (unit % 64);
        }
    }
}

/// What several summaries together say has changed, in units of several blocks.
#[derive(Debug, Clone)]
pub struct ChangedBlocks {
    unit_blocks: u32,
    forks: HashMap<ForkName, ForkChanges>,
}

impl ChangedBlocks {
    /// Nothing yet. `unit_blocks` is a power of two.
    #[must_use]
    pub fn new(unit_blocks: u32) -> Self {
        Self {
            unit_blocks: unit_blocks.clamp(1, CHUNK_BLOCKS),
            forks: HashMap::new(),
        }
    }

    /// The changes of a fork, if there are any.
    #[must_use]
    pub fn of(&self, name: &ForkName) -> Option<&ForkChanges> {
        self.forks.get(name)
    }

    /// Whether the database of this fork was created or moved: then nothing of it is as it was.
    #[must_use]
    pub fn has_new_database(&self, name: &ForkName) -> bool {
        let database = ForkName {
            filenode: 0,
            fork: 0,
            ..*name
        };
        self.forks.contains_key(&database)
    }

    /// Adds what a summary says. The order of summaries does not matter.
    ///
    /// # Errors
    /// When it cannot be read or is damaged. What was added by then stays.
    pub fn read(&mut self, input: impl Read) -> Result<(), SummaryError> {
        let mut input = Summed { input, crc32c: 0 };
        if u32::from_le_bytes(input.take()?) != MAGIC {
            return Err(SummaryError::Damaged("it does not begin as a summary does"));
        }
        loop {
            let entry: [u8; ENTRY_BYTES] = input.take()?;
            if entry == [0; ENTRY_BYTES] {
                break;
            }
            self.read_fork(&entry, &mut input)?;
        }
        let expected = input.crc32c;
        match u32::from_le_bytes(input.take()?) == expected {
            true => Ok(()),
            false => Err(SummaryError::Damaged("its checksum is wrong")),
        }
    }

    fn read_fork(
        &mut self,
        entry: &[u8; ENTRY_BYTES],
        input: &mut Summed<impl Read>,
    ) -> Result<(), SummaryError> {
        let mut fields = entry
            .chunks_exact(4)
            .map(|field| field.try_into().map_or(0, u32::from_le_bytes));
        let mut next = || fields.next().unwrap_or_default();
        let name = ForkName {
            tablespace: next(),
            database: next(),
            filenode: next(),
            fork: next(),
        };
        let (limit, chunks) = (next(), next());
        if chunks > CHUNKS_MAX {
            return Err(SummaryError::Damaged(
                "a relation has more blocks than it can have",
            ));
        }
        let unit_blocks = self.unit_blocks;
        let changes = self.forks.entry(name).or_default();
        changes.units = CHUNK_BLOCKS / unit_blocks;
        if limit != NO_LIMIT {
            changes.limit_block = Some(changes.limit_block.map_or(limit, |known| known.min(limit)));
        }
        let sizes = numbers(input, chunks as usize)?;
        for (chunk, size) in (0..).zip(sizes) {
            if usize::from(size) > BITMAP_NUMBERS {
                return Err(SummaryError::Damaged("a chunk is too large"));
            }
            let found = numbers(input, usize::from(size))?;
            if found.len() == BITMAP_NUMBERS {
                // Each number has a bit for 16 blocks.
                for (n, bits) in (0..).zip(found) {
                    for bit in (0..16).filter(|bit| bits >> bit & 1 == 1) {
                        changes.set(chunk, (n * 16 + bit) / unit_blocks);
                    }
                }
            } else {
                for block in found {
                    changes.set(chunk, u32::from(block) / unit_blocks);
                }
            }
        }
        Ok(())
    }
}

/// Reads, and computes the checksum.
struct Summed<R> {
    input: R,
    crc32c: u32,
}

impl<R: Read> Summed<R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        Ok(())
    }
}

/// So many numbers of 16 bits.
fn numbers(input: &mut Summed<impl Read>, count: usize) -> io::Result<Vec<u16>> {
    let mut bytes = vec![0; count * 2];
    input.fill(&mut bytes)?;
    let numbers = bytes
        .chunks_exact(2)
        .map(|number| number.try_into().map_or(0, u16::from_le_bytes));
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: ForkName = ForkName {
        tablespace: 1663,
        database: 5,
        filenode: 16384,
        fork: 0,
    };

    /// A summary of forks, each with a limit and chunks as they are stored.
    fn summary(forks: &[(ForkName, u32, &[&[u16]])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for (name, limit, chunks) in forks {
            let fields = [
                name.tablespace,
                name.database,
                name.filenode,
                name.fork,
                *limit,
                u32::try_from(chunks.len()).unwrap(),
            ];
            fields.iter().for_each(|field| bytes.extend(field.to_le_bytes()));
            for chunk in *chunks {
                bytes.extend(u16::try_from(chunk.len()).unwrap().to_le_bytes());
            }
            for number in chunks.iter().flat_map(|chunk| chunk.iter()) {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.extend([0; ENTRY_BYTES]);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    #[test]
    fn names_are_read_and_written() {
        let text = "00000001000000000200002800000001030001A8.summary";
        let name: SummaryName = text.parse().unwrap();
        assert_eq!(name.timeline, TimelineId(1));
        assert_eq!((name.start, name.end), (Lsn(0x0200_0028), Lsn(0x1_0300_01A8)));
        assert_eq!(name.to_string(), text);
        for wrong in ["", ".summary", "temp.summary", &text[1..], &text.to_lowercase()] {
            assert!(wrong.parse::<SummaryName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn blocks_of_several_summaries_are_added_up() {
        let mut bitmap = vec![0_u16; BITMAP_NUMBERS];
        bitmap[2] = 1 << 3;
        let mut changed = ChangedBlocks::new(16);
        let first = summary(&[(TABLE, NO_LIMIT, &[&[0, 17], &[], &bitmap])]);
        changed.read(first.as_slice()).unwrap();
        changed
            .read(summary(&[(TABLE, 500, &[&[33]])]).as_slice())
            .unwrap();
        changed.read(summary(&[(TABLE, 900, &[])]).as_slice()).unwrap();
        let of = changed.of(&TABLE).unwrap();
        assert_eq!(of.limit_block(), Some(500));
        let per_chunk = u64::from(CHUNK_BLOCKS / 16);
        let found: Vec<u64> = (0..4 * per_chunk).filter(|unit| of.has(*unit)).collect();
        assert_eq!(found, [0, 1, 2, 2 * per_chunk + 2]);
        let other = ForkName { fork: 2, ..TABLE };
        assert!(changed.of(&other).is_none() && !changed.has_new_database(&TABLE));
        let database = ForkName { filenode: 0, ..TABLE };
        changed.read(summary(&[(database, 0, &[])]).as_slice()).unwrap();
        assert!(changed.has_new_database(&other));
    }

    #[test]
    fn a_damaged_summary_is_refused() {
        let good = summary(&[(TABLE, NO_LIMIT, &[&[1, 2, 3]])]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(ChangedBlocks::new(16).read(bad.as_slice()).is_err(), "byte {at}");
            assert!(ChangedBlocks::new(16).read(&good[..at]).is_err(), "{at} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes: Vec<u8>) {
            let _ = ChangedBlocks::new(16).read([&MAGIC.to_le_bytes()[..], &bytes].concat().as_slice());
        }
    }
}
