//! What the catalog keeps of the chunks of each pack: sizes, encodings and bases, in the order of their frames, without
//! their ids.
//!
//! The pack's footer has all of that, and the ids. This copy takes some four bytes for a whole chunk. It saves a read of
//! the footer for each chunk that is read, and when the footer is damaged, the frames can still be read.
//!
//! A row of `chunk_lists` has as many chunks as fit into one page of SQLite. Its key is the pack's row and the number of
//! its first chunk in the pack, so new packs come at the table's end, and a pack's rows go with one range.
//!
//! A row, for each chunk: a byte with the encoding and flags; the decoded size, if it is another one than before; the
//! offset, if it is not where the frame before ends; the stored size; the base of a delta, if it is another one than
//! before. Numbers are LEB128.

use barmanfs_store::layout::PACK_MAX_CHUNKS;
use barmanfs_store::{ChunkId, ChunkLocation, Encoding, PackId, PackedChunk};
use rusqlite::{Connection, params};

use crate::error::{Error, Result};

/// Largest list in a row: with its head it fills a leaf of the table, and needs no second page.
const LIST_BYTES: usize = 4040;

/// Most bytes that one chunk takes in a list.
const ENTRY_BYTES_MAX: usize = 1 + 3 * 5 + ChunkId::BYTES;

/// A key is the pack's row, shifted by so many bits, and the number of a chunk in it.
const NUMBER_BITS: u32 = 16;
const _: () = assert!(PACK_MAX_CHUNKS <= 1 << NUMBER_BITS);

const ENCODING: u8 = 0b0000_0011;
const HAS_RAW_BYTES: u8 = 0b0000_0100;
const HAS_OFFSET: u8 = 0b0000_1000;
const SAME_BASE: u8 = 0b0001_0000;

/// A chunk in a list: all but its id and its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedChunk {
    pub(crate) offset: u32,
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
    pub(crate) encoding: Encoding,
    pub(crate) base: Option<ChunkId>,
}

impl ListedChunk {
    /// Where this chunk of `pack` is.
    pub(crate) fn location(&self, pack: PackId) -> ChunkLocation {
        ChunkLocation {
            pack,
            offset: self.offset,
            stored_bytes: self.stored_bytes,
            raw_bytes: self.raw_bytes,
            encoding: self.encoding,
            base: self.base,
        }
    }
}

impl From<&PackedChunk> for ListedChunk {
    fn from(chunk: &PackedChunk) -> Self {
        Self {
            offset: chunk.offset,
            stored_bytes: chunk.stored_bytes,
            raw_bytes: chunk.raw_bytes,
            encoding: chunk.encoding,
            base: chunk.base,
        }
    }
}

/// The key of a chunk's place in the table.
pub(crate) fn key(pack: i64, number: u16) -> i64 {
    (pack << NUMBER_BITS) | i64::from(number)
}

/// The pack's row and the number of the first chunk of a row with this key.
pub(crate) fn of_key(key: i64) -> (i64, u16) {
    (key >> NUMBER_BITS, (key & i64::from(u16::MAX)) as u16)
}

/// Enters the chunks of a pack.
pub(crate) fn enter(
    db: &Connection,
    pack: i64,
    chunks: impl ExactSizeIterator<Item = ListedChunk>,
) -> Result<()> {
    if chunks.len() > PACK_MAX_CHUNKS {
        return Err(Error::Invalid(format!(
            "A pack has {} chunks, and at most {PACK_MAX_CHUNKS} are possible",
            chunks.len()
        )));
    }
    let mut insert = db.prepare_cached("INSERT INTO chunk_lists (first, list) VALUES (?1, ?2)")?;
    let mut row = Row::new(0);
    for (number, chunk) in (0_u16..).zip(chunks) {
        if row.list.len() + ENTRY_BYTES_MAX > LIST_BYTES {
            insert.execute(params![key(pack, row.first), row.list])?;
            row = Row::new(number);
        }
        row.push(&chunk);
    }
    if !row.list.is_empty() {
        insert.execute(params![key(pack, row.first), row.list])?;
    }
    Ok(())
}

/// Forgets the chunks of a pack.
pub(crate) fn forget(db: &Connection, pack: i64) -> Result<()> {
    db.prepare_cached("DELETE FROM chunk_lists WHERE first BETWEEN ?1 AND ?2")?
        .execute([key(pack, 0), key(pack, u16::MAX)])?;
    Ok(())
}

/// The chunk at a position of a list.
pub(crate) fn at(list: &[u8], position: usize) -> Result<Option<ListedChunk>> {
    each(list).nth(position).transpose()
}

/// The chunks of a list.
pub(crate) fn each(list: &[u8]) -> impl Iterator<Item = Result<ListedChunk>> {
    let mut fields = Fields(list);
    let mut state = State::default();
    std::iter::from_fn(move || {
        if fields.0.is_empty() {
            return None;
        }
        let parsed = parse(&mut fields, &mut state);
        if parsed.is_none() {
            fields = Fields(&[]);
        }
        Some(parsed.ok_or_else(damaged))
    })
}

/// A row that is being filled.
struct Row {
    first: u16,
    list: Vec<u8>,
    state: State,
}

/// What the chunk before leaves to the next one.
#[derive(Default)]
struct State {
    end: u32,
    raw_bytes: u32,
    base: Option<ChunkId>,
}

impl State {
    fn pass(&mut self, chunk: &ListedChunk) {
        self.end = chunk.offset.wrapping_add(chunk.stored_bytes);
        self.raw_bytes = chunk.raw_bytes;
        self.base = chunk.base.or(self.base);
    }
}

impl Row {
    fn new(first: u16) -> Self {
        Self {
            first,
            list: Vec::with_capacity(LIST_BYTES),
            state: State::default(),
        }
    }

    fn push(&mut self, chunk: &ListedChunk) {
        let mut flags = chunk.encoding as u8;
        let has = |flag, is| if is { flag } else { 0 };
        flags |= has(HAS_RAW_BYTES, chunk.raw_bytes != self.state.raw_bytes);
        flags |= has(HAS_OFFSET, chunk.offset != self.state.end);
        flags |= has(SAME_BASE, chunk.base.is_some() && chunk.base == self.state.base);
        self.list.push(flags);
        if flags & HAS_RAW_BYTES != 0 {
            push_number(&mut self.list, chunk.raw_bytes);
        }
        if flags & HAS_OFFSET != 0 {
            push_number(&mut self.list, chunk.offset);
        }
        push_number(&mut self.list, chunk.stored_bytes);
        if let Some(base) = &chunk.base
            && flags & SAME_BASE == 0
        {
            self.list.extend_from_slice(base.as_bytes());
        }
        self.state.pass(chunk);
    }
}

fn push_number(list: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        list.push(number as u8 | 0x80);
        number >>= 7;
    }
    list.push(number as u8);
}

fn parse(fields: &mut Fields<'_>, state: &mut State) -> Option<ListedChunk> {
    let flags = fields.byte()?;
    let encoding = Encoding::from_u8(flags & ENCODING)?;
    let raw_bytes = match flags & HAS_RAW_BYTES {
        0 => state.raw_bytes,
        _ => fields.number()?,
    };
    let offset = match flags & HAS_OFFSET {
        0 => state.end,
        _ => fields.number()?,
    };
    let stored_bytes = fields.number()?;
    let base = match (encoding, flags & SAME_BASE) {
        (Encoding::Stored | Encoding::Zstd, _) => None,
        (Encoding::Delta, 0) => Some(ChunkId(fields.0.split_off(..ChunkId::BYTES)?.try_into().ok()?)),
        (Encoding::Delta, _) => Some(state.base?),
    };
    let chunk = ListedChunk {
        offset,
        stored_bytes,
        raw_bytes,
        encoding,
        base,
    };
    state.pass(&chunk);
    Some(chunk)
}

/// Bytes still to be parsed.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        let mut number = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            let bits = u32::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

fn damaged() -> Error {
    Error::CatalogDamaged {
        path: std::path::PathBuf::new(),
        reason: "A list of a pack's chunks cannot be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::schema;
    use barmanfs_store::testing::noise;

    fn catalog() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(schema::CREATE_PLACES).unwrap();
        db
    }

    /// Chunks of all encodings and sizes; some bases repeat, and some offsets leave gaps.
    fn chunks(count: usize) -> Vec<ListedChunk> {
        let mut end = 32_u32;
        let bytes = noise(5, count * 8);
        bytes
            .chunks_exact(8)
            .map(|of| {
                let encoding = Encoding::from_u8(of[0] % 3).unwrap();
                let stored_bytes = u32::from_le_bytes([of[1], of[2], of[3] % 8, 0]);
                let offset = end + u32::from(of[4] % 16 == 0) * 77;
                end = offset + stored_bytes / 64;
                ListedChunk {
                    offset,
                    stored_bytes: stored_bytes / 64,
                    raw_bytes: if of[5] % 8 == 0 { u32::from(of[6]) } else { 131_072 },
                    encoding,
                    base: (encoding == Encoding::Delta).then_some(ChunkId([of[7] % 4; 32])),
                }
            })
            .collect()
    }

    fn rows(db: &Connection) -> Vec<(i64, Vec<u8>)> {
        let mut all = db
            .prepare("SELECT first, list FROM chunk_lists ORDER BY first")
            .unwrap();
        let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn lists_give_back_what_was_entered() {
        for count in [0, 1, 100, 3000, PACK_MAX_CHUNKS] {
            let db = catalog();
            let (chunks, others) = (chunks(count), chunks(10));
            for (pack, of) in [(1, &others), (2, &chunks), (3, &others)] {
                enter(&db, pack, of.iter().copied()).unwrap();
            }
            let mut read = Vec::new();
            for (first, list) in rows(&db).into_iter().filter(|row| of_key(row.0).0 == 2) {
                assert_eq!(usize::from(of_key(first).1), read.len());
                assert!(list.len() <= LIST_BYTES);
                assert_eq!(at(&list, 0).unwrap(), chunks.get(read.len()).copied());
                read.extend(each(&list).map(Result::unwrap));
            }
            assert_eq!(read, chunks);
            forget(&db, 2).unwrap();
            let packs: Vec<i64> = rows(&db).into_iter().map(|row| of_key(row.0).0).collect();
            assert_eq!(packs, [1, 3]);
        }
    }

    #[test]
    fn a_whole_chunk_takes_four_bytes() {
        let db = catalog();
        let mut offset = 32;
        let chunks: Vec<ListedChunk> = (0..2000_u32)
            .map(|number| {
                let stored_bytes = 40_000 + number % 50_000;
                offset += stored_bytes;
                ListedChunk {
                    offset: offset - stored_bytes,
                    stored_bytes,
                    raw_bytes: 131_072,
                    encoding: Encoding::Zstd,
                    base: None,
                }
            })
            .collect();
        enter(&db, 1, chunks.into_iter()).unwrap();
        let bytes: usize = rows(&db).iter().map(|row| row.1.len()).sum();
        assert!(bytes <= 2000 * 4 + 50, "{bytes}");
    }

    #[test]
    fn no_bytes_are_trusted() {
        let db = catalog();
        enter(&db, 1, chunks(50).into_iter()).unwrap();
        let list = rows(&db).remove(0).1;
        for cut in 0..list.len() {
            let whole = each(&list[..cut]).take_while(Result::is_ok).count();
            assert!(whole <= 50);
        }
        for seed in 0..200 {
            let bad = noise(seed, 100);
            each(&bad).take_while(Result::is_ok).count();
        }
        assert!(at(&[3, 1], 0).is_err());
        assert!(at(&[2 | SAME_BASE, 1], 0).is_err());
    }
}
