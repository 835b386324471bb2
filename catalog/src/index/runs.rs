//! Which packs may have a chunk: shortened ids in sorted runs.
//!
//! An *entry* has the first eight bytes of a chunk's id, its *key*, and where the chunk is: the row of its pack and its
//! number in the pack. A *run* is a sequence of sorted entries, in pages that fill one page of SQLite each. A page is
//! found by the run and the first forty bits of its first key. No two pages of a run have keys with the same forty bits, so one page of each
//! run has all entries of a key. A look-up reads that page of each run, the largest run first, except of those that have no such
//! entry according to a filter ([`filters`]).
//!
//! A new pack makes one small run, in the transaction that enters the pack: writing goes to a few new pages, wherever its
//! ids are. As soon as [`FAN`] runs have the same *level*, they are merged into one of the next level. So an entry is
//! written once on each level, and the number of runs grows with the logarithm of the number of packs. The merge is made
//! in steps, by the processes that enter packs ([`merge`]).
//!
//! Entries of a pack that is gone stay until the next merge. Numbers of packs are never used twice, so such an entry
//! names a pack that is not there, and a look-up ignores it. When too many are dead, a sweep merges all runs
//! ([`compact`](merge::compact)).
//!
//! An entry proves nothing: other ids may have the same key. What the ids are is in the packs' footers
//! ([`chunk_index`](crate::index::chunk_index)).

use std::ops::ControlFlow;

use barmanfs_store::ChunkId;
use rusqlite::{Connection, params};

use crate::error::{Error, Result};
use crate::index::sorted::Collector;

pub(crate) mod filters;
#[cfg(test)]
mod measure;
pub(crate) mod merge;
#[cfg(test)]
mod tests;

/// Runs of a level that are merged into one of the next.
const FAN: usize = 8;

/// Entries of a run of level 0, about those of one full pack. A larger new run begins on a higher level.
const LOWEST: usize = 2048;

const KEY_BYTES: usize = 8;
const ENTRY_BYTES: usize = KEY_BYTES + 4 + 2;

/// With its head such a page fills a leaf of the table.
const PAGE_ENTRIES: usize = 4048 / ENTRY_BYTES;

/// Bits of a key in the key of its page. Above them is the number of the run.
const HEAD_BITS: u32 = 40;

/// Behind all heads.
const END: i64 = 1 << HEAD_BITS;

/// An entry as it is stored. All numbers are big-endian, so the order of the bytes is the order of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Entry([u8; ENTRY_BYTES]);

/// Where a chunk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    /// The pack's row.
    pub(crate) pack: i64,
    /// The number of the chunk in the pack.
    pub(crate) number: u16,
}

/// The shortened id of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl From<&ChunkId> for Key {
    fn from(id: &ChunkId) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = id.0;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl Key {
    fn head(self) -> i64 {
        (self.0 >> (u64::BITS - HEAD_BITS)).cast_signed()
    }
}

impl Entry {
    fn new(key: Key, pack: u32, number: u16) -> Self {
        let mut bytes = [0; ENTRY_BYTES];
        let (id, place) = bytes.split_at_mut(KEY_BYTES);
        id.copy_from_slice(&key.0.to_be_bytes());
        let (of_pack, in_pack) = place.split_at_mut(4);
        of_pack.copy_from_slice(&pack.to_be_bytes());
        in_pack.copy_from_slice(&number.to_be_bytes());
        Self(bytes)
    }

    fn key(&self) -> Key {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Key(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    fn candidate(&self) -> Candidate {
        let [.., a, b, c, d, e, f] = self.0;
        Candidate {
            pack: u32::from_be_bytes([a, b, c, d]).into(),
            number: u16::from_be_bytes([e, f]),
        }
    }
}

/// The entries of a page.
fn entries(page: &[u8]) -> Result<&[[u8; ENTRY_BYTES]]> {
    match page.as_chunks() {
        (entries, []) => Ok(entries),
        _ => Err(Error::CatalogDamaged {
            path: std::path::PathBuf::new(),
            reason: format!("A page of shortened ids has {} bytes", page.len()),
        }),
    }
}

/// The key of the first page of a run that may have this head.
fn page_key(run: i64, head: i64) -> i64 {
    (run << HEAD_BITS) | head
}

/// The entries of a pack's chunks, whose keys come in the order of their numbers.
fn of_pack(pack: i64, keys: impl Iterator<Item = Key>) -> Result<impl Iterator<Item = Entry>> {
    let row =
        u32::try_from(pack).map_err(|_| Error::Invalid("The catalog has had too many packs".to_owned()))?;
    let numbered = (0..=u16::MAX).zip(keys);
    Ok(numbered.map(move |(number, key)| Entry::new(key, row, number)))
}

/// Enters the keys of a pack's chunks, in the order of their numbers, and continues merges.
pub(crate) fn add(db: &Connection, pack: i64, keys: impl Iterator<Item = Key>) -> Result<()> {
    let mut all: Vec<Entry> = of_pack(pack, keys)?.collect();
    let Some(one) = all.first().map(Entry::key) else {
        return Ok(());
    };
    all.sort_unstable();
    let run = free_number(db)?;
    insert_run(db, run, all.len())?;
    write_pages(db, run, &all)?;
    merge::go_on(db, one, all.len())
}

fn insert_run(db: &Connection, run: i64, entries: usize) -> Result<()> {
    db.prepare_cached("INSERT INTO runs (run, level, entries, token) VALUES (?1, ?2, ?3, random())")?
        .execute(params![run, level_of(entries), entries])?;
    Ok(())
}

/// Enters the keys of all packs at once, into a catalog that is being made: they are sorted in files, and each is written once.
pub(crate) struct Bulk(Collector<ENTRY_BYTES>);

impl Bulk {
    pub(crate) fn new() -> Self {
        Self(Collector::new())
    }

    /// Adds the keys of a pack's chunks, in the order of their numbers.
    pub(crate) fn add(&self, pack: i64, keys: impl Iterator<Item = Key>) -> Result<()> {
        self.0.add(of_pack(pack, keys)?.map(|entry| entry.0))
    }

    /// Makes a run of all.
    pub(crate) fn write(self, db: &Connection) -> Result<()> {
        let sorted = self.0.finish();
        let mut rest = sorted.all()?;
        let run = free_number(db)?;
        let (mut page, mut count): (Vec<Entry>, usize) = (Vec::new(), 0);
        while let Some(entry) = rest.next()?.map(Entry) {
            let last = page.last().map(|last| last.key().head());
            if page.len() >= PAGE_ENTRIES && last != Some(entry.key().head()) {
                write_pages(db, run, &page)?;
                page.clear();
            }
            page.push(entry);
            count += 1;
        }
        write_pages(db, run, &page)?;
        match count {
            0 => Ok(()),
            _ => insert_run(db, run, count),
        }
    }
}

/// The level on which a run of so many entries begins.
fn level_of(entries: usize) -> u32 {
    let lowest = entries / LOWEST;
    lowest.checked_ilog(FAN).map_or(0, |level| level + 1)
}

/// The least number that no run has. Numbers are used again, since they take a part of the pages' keys.
fn free_number(db: &Connection) -> Result<i64> {
    let mut free = db.prepare_cached(
        "SELECT min(n) FROM (SELECT 1 AS n UNION ALL SELECT run + 1 FROM runs) WHERE n NOT IN (SELECT run FROM runs)",
    )?;
    Ok(free.query_row([], |row| row.get(0))?)
}

/// Writes entries that come after all others of the run, or begin with those of its last page.
fn write_pages(db: &Connection, run: i64, mut rest: &[Entry]) -> Result<()> {
    let mut insert =
        db.prepare_cached("INSERT OR REPLACE INTO run_pages (first, entries) VALUES (?1, ?2)")?;
    while let Some(first) = rest.first() {
        let mut count = rest.len().min(PAGE_ENTRIES);
        let head = |at: usize| rest.get(at).map(|entry| entry.key().head());
        while count < rest.len() && head(count) == head(count - 1) {
            count += 1;
        }
        let (page, others) = rest.split_at(count);
        let bytes: Vec<u8> = page.iter().flat_map(|entry| entry.0).collect();
        insert.execute(params![page_key(run, first.key().head()), bytes])?;
        rest = others;
    }
    Ok(())
}

/// Calls `each` with the places where a chunk with this key may be, until it breaks. Queries in `each` see the same state of the
/// catalog.
///
/// Of a merge, either the runs that it takes entries from are looked at or the new one, by how far it has come; and of all these,
/// only those that have no filter or pass it ([`filters`]).
pub(crate) fn candidates(
    db: &Connection,
    key: Key,
    each: &mut dyn FnMut(Candidate) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut pages = db.prepare_cached(
        "SELECT (SELECT p.entries FROM run_pages p WHERE p.first BETWEEN r.run << 40 AND (r.run << 40) | ?1
                 ORDER BY p.first DESC LIMIT 1)
         FROM runs r
         WHERE (r.reached IS NULL OR r.reached > ?1)
           AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.run = r.into_run AND o.reached > ?1)
           AND may_have(r.token, ?2)
         ORDER BY r.entries DESC",
    )?;
    let mut rows = pages.query([key.head(), key.0.cast_signed()])?;
    let mut found: Vec<Candidate> = Vec::new();
    while let Some(row) = rows.next()? {
        let page = row.get_ref(0)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
        let page = entries(page.unwrap_or_default())?;
        let wanted = key.0.to_be_bytes();
        let from = page.partition_point(|entry| entry.as_slice() < wanted.as_slice());
        found.clear();
        let same = page
            .iter()
            .skip(from)
            .take_while(|entry| entry.starts_with(&wanted));
        found.extend(same.map(|entry| Entry(*entry).candidate()));
        for candidate in &found {
            if each(*candidate)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
