//! Makes the places of chunks in a catalog of an earlier release as this one keeps them.
//!
//! Up to layout 10 each place had a row in a table `chunks`. That table was sorted by ids. SQLite sorts it by packs, and
//! [`Bulk`] what it gives by shortened ids, both in temporary files where it is large. In memory are the chunks of one pack.

use std::time::{Duration, Instant};

use barmanfs_store::layout::PACK_MAX_CHUNKS;
use barmanfs_store::{ChunkId, Encoding};
use rusqlite::{Connection, Row};

use crate::error::{Error, Result};
use crate::index::chunk_lists::{self, ListedChunk};
use crate::index::runs::{Bulk, Key};
use crate::index::schema;

/// How often it says how far it is.
const SAID_EVERY: Duration = Duration::from_secs(2);

/// Replaces the table `chunks`, if there is one, and gives runs their tokens, in the transaction that upgrades the catalog.
pub(crate) fn places_of_chunks(db: &Connection) -> Result<()> {
    let old = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'chunks'";
    if !db.prepare(old)?.exists([])? {
        return add_tokens(db);
    }
    db.execute_batch(schema::CREATE_PLACES)?;
    {
        let mut all = db.prepare(
            "SELECT pack, id, position, stored_bytes, raw_bytes, encoding, base FROM chunks ORDER BY pack, position",
        )?;
        let mut rows = all.query([])?;
        let (mut of_pack, all_keys) = (OfPack::default(), Bulk::new());
        let mut progress = Progress::of(db)?;
        while let Some(row) = rows.next()? {
            let pack = row.get(0)?;
            if pack != of_pack.pack {
                progress.advance(of_pack.chunks.len());
                of_pack.enter(db, &all_keys)?;
                of_pack.pack = pack;
            }
            of_pack.push(row)?;
        }
        of_pack.enter(db, &all_keys)?;
        all_keys.write(db)?;
    }
    Ok(db.execute_batch("DROP TABLE chunks")?)
}

/// Layout 11 has the same tables, but no tokens.
fn add_tokens(db: &Connection) -> Result<()> {
    let has = "SELECT 1 FROM pragma_table_info('runs') WHERE name = 'token'";
    if !db.prepare(has)?.exists([])? {
        db.execute_batch(
            "ALTER TABLE runs ADD COLUMN token INTEGER NOT NULL DEFAULT 0; UPDATE runs SET token = random();",
        )?;
    }
    Ok(())
}

/// Says how far it is, if it takes long.
struct Progress {
    all: usize,
    done: usize,
    said: Instant,
}

impl Progress {
    fn of(db: &Connection) -> Result<Self> {
        let all = "SELECT coalesce(sum(chunks), 0) FROM packs";
        Ok(Self {
            all: db.query_row(all, [], |row| row.get(0))?,
            done: 0,
            said: Instant::now(),
        })
    }

    fn advance(&mut self, chunks: usize) {
        self.done += chunks;
        if self.said.elapsed() >= SAID_EVERY {
            self.said = Instant::now();
            tracing::info!("Places of {} of {} chunks are converted", self.done, self.all);
        }
    }
}

/// The chunks of one pack.
#[derive(Default)]
struct OfPack {
    pack: i64,
    keys: Vec<Key>,
    chunks: Vec<ListedChunk>,
}

impl OfPack {
    fn push(&mut self, row: &Row<'_>) -> Result<()> {
        let damaged = |reason: String| Error::CatalogDamaged {
            path: std::path::PathBuf::new(),
            reason,
        };
        if self.chunks.len() == PACK_MAX_CHUNKS {
            return Err(damaged(format!("Pack {} has too many chunks", self.pack)));
        }
        let number: u8 = row.get(5)?;
        let encoding = Encoding::from_u8(number)
            .ok_or_else(|| damaged(format!("Unknown encoding {number} of a chunk")))?;
        let base = row.get::<_, Option<[u8; ChunkId::BYTES]>>(6)?.map(ChunkId);
        if (encoding == Encoding::Delta) != base.is_some() {
            return Err(damaged(
                "A chunk's encoding and its base do not go together".to_owned(),
            ));
        }
        self.keys.push(Key::from(&ChunkId(row.get(1)?)));
        self.chunks.push(ListedChunk {
            offset: row.get(2)?,
            stored_bytes: row.get(3)?,
            raw_bytes: row.get(4)?,
            encoding,
            base,
        });
        Ok(())
    }

    fn enter(&mut self, db: &Connection, all_keys: &Bulk) -> Result<()> {
        chunk_lists::enter(db, self.pack, self.chunks.drain(..))?;
        all_keys.add(self.pack, self.keys.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use barmanfs_store::testing::noise;
    use barmanfs_store::{ClosedPack, Frame, PackWriter, PackedChunk};
    use rusqlite::params;

    use super::*;
    use crate::archive::derive::derive;
    use crate::home::{CATALOG, with_suffix};
    use crate::index::chunk_index::places;
    use crate::index::db::remove_catalog;
    use crate::index::repository::{Repository, temporary};

    /// The table of layout 10.
    const CHUNKS: &str = "
        DROP TABLE chunk_lists; DROP TABLE runs; DROP TABLE run_pages;
        CREATE TABLE chunks (
            id BLOB NOT NULL,
            pack INTEGER NOT NULL,
            position INTEGER NOT NULL,
            stored_bytes INTEGER NOT NULL,
            raw_bytes INTEGER NOT NULL,
            encoding INTEGER NOT NULL,
            base BLOB,
            PRIMARY KEY (id, pack)
        ) WITHOUT ROWID;
        PRAGMA user_version = 10;";

    fn make_pack(repository: &Repository, seed: u8, count: u8) -> ClosedPack {
        let mut pack = PackWriter::begin(repository.storage.as_ref()).unwrap();
        for number in 0..count {
            let mut id = [number; 32];
            id[31] = seed % 4;
            let base = number.is_multiple_of(3).then_some(ChunkId([250; 32]));
            let frame = Frame {
                encoding: base.map_or(Encoding::Zstd, |_| Encoding::Delta),
                bytes: noise(seed.into(), 1 + usize::from(number)),
            };
            pack.append(ChunkId(id), 1 + usize::from(number % 2), base, &frame)
                .unwrap();
        }
        // Only its first place was in the table.
        let again = Frame {
            encoding: Encoding::Stored,
            bytes: vec![7; 50],
        };
        pack.append(ChunkId([1; 32]), 50, None, &again).unwrap();
        pack.append(ChunkId([1; 32]), 50, None, &again).unwrap();
        pack.append(ChunkId([201; 32]), 50, None, &again).unwrap();
        pack.close().unwrap()
    }

    fn insert(db: &Connection, pack: &ClosedPack, chunk: &PackedChunk) {
        let row = "INSERT OR IGNORE INTO chunks SELECT ?1, seq, ?3, ?4, ?5, ?6, ?7 FROM packs WHERE id = ?2";
        db.execute(
            row,
            params![
                chunk.id.as_bytes(),
                pack.id.as_bytes(),
                chunk.offset,
                chunk.stored_bytes,
                chunk.raw_bytes,
                chunk.encoding as u8,
                chunk.base.as_ref().map(ChunkId::as_bytes),
            ],
        )
        .unwrap();
    }

    /// A repository whose catalog has the layout of the release before, and its packs.
    fn of_the_release_before() -> (tempfile::TempDir, PathBuf, Vec<ClosedPack>) {
        let (directory, repository) = temporary();
        let writer = repository.writer("test").unwrap();
        let packs: Vec<ClosedPack> = (0..20)
            .map(|seed| make_pack(&repository, seed, 10 * seed))
            .collect();
        packs.iter().for_each(|pack| writer.publish(pack).unwrap());
        let made = repository.db.write(|db| {
            db.execute_batch(CHUNKS)?;
            for pack in &packs {
                pack.chunks.iter().for_each(|chunk| insert(db, pack, chunk));
            }
            Ok(())
        });
        made.unwrap();
        (directory, repository.path().to_path_buf(), packs)
    }

    /// The first place that each pack has of a chunk is found, and nothing is left of the old table.
    fn assert_is_converted(repository: &Repository, packs: &[ClosedPack]) {
        for chunk in packs.iter().flat_map(|pack| &pack.chunks) {
            let found = repository.db.read(|db| places(db, &chunk.id)).unwrap();
            let mut found: Vec<_> = found.into_iter().map(|place| place.location).collect();
            let expected = packs.iter().flat_map(|pack| {
                let first = pack.chunks.iter().find(|of| of.id == chunk.id);
                first.map(|first| first.location(pack.id))
            });
            let mut expected: Vec<_> = expected.collect();
            found.sort_by_key(|place| (place.pack, place.offset));
            expected.sort_by_key(|place| (place.pack, place.offset));
            assert_eq!(found, expected, "{}", chunk.id);
        }
        let count = "SELECT count(*) FROM sqlite_schema WHERE name = 'chunks'";
        let left: i64 = repository
            .db
            .read(|db| Ok(db.query_row(count, [], |row| row.get(0))?))
            .unwrap();
        assert_eq!(left, 0);
        assert_eq!(repository.catalog_faults().unwrap(), [""; 0]);
    }

    #[test]
    fn a_catalog_of_the_release_before_finds_the_same_places() {
        let (_directory, path, packs) = of_the_release_before();
        for _ in 0..2 {
            assert_is_converted(&Repository::open_with(&path, derive).unwrap(), &packs);
        }
    }

    #[test]
    fn a_conversion_that_was_killed_begins_again() {
        let (_directory, path, packs) = of_the_release_before();
        let (catalog, wal) = (path.join(CATALOG), with_suffix(&path.join(CATALOG), "-wal"));
        let killed = Connection::open(&catalog).unwrap();
        killed
            .execute_batch("PRAGMA cache_size = 3; PRAGMA wal_autocheckpoint = 0; BEGIN IMMEDIATE")
            .unwrap();
        let before = fs::metadata(&wal).unwrap().len();
        places_of_chunks(&killed).unwrap();
        // What is on the disk now is what a kill would leave; parts of the conversion are among it.
        let left = [catalog, wal].map(|file| (fs::read(&file).unwrap(), file));
        assert!(left[1].0.len() as u64 > before + 40_000, "{}", left[1].0.len());
        drop(killed);
        remove_catalog(&path.join(CATALOG)).unwrap();
        for (bytes, file) in left {
            fs::write(file, bytes).unwrap();
        }
        assert_is_converted(&Repository::open_with(&path, derive).unwrap(), &packs);
    }

    /// Run by hand, optimized:
    /// `MADE_UP_CHUNKS=10000000 cargo test --release -p barmanfs-catalog --lib figures_of_a_conv -- --ignored --nocapture`
    #[test]
    #[ignore = "takes minutes, and says something only when it is optimized"]
    fn figures_of_a_conversion() {
        let chunks = std::env::var("MADE_UP_CHUNKS").map_or(1_000_000, |count| count.parse().unwrap());
        let (_directory, repository) = temporary();
        let path = repository.path().to_path_buf();
        let made = repository.db.write(|db| {
            db.execute_batch(CHUNKS)?;
            db.execute(
                "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?1 / 1500)
                 INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) SELECT randomblob(16), 1, 1500, 1, 1 FROM n",
                [chunks],
            )?;
            Ok(db.execute(
                "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?1)
                 INSERT INTO chunks SELECT id, 1 + n / 1500, 32 + n % 1500 * 45000, 45000, 131072, encoding, base
                 FROM (SELECT randomblob(32) id, n, 1 + (n % 3 = 0) encoding, iif(n % 3 = 0, randomblob(32), NULL) base FROM n)
                 ORDER BY id",
                [chunks],
            )?)
        });
        assert_eq!(made.unwrap(), chunks);
        let before = repository.catalog_bytes();
        drop(repository);
        let began = Instant::now();
        let repository = Repository::open_with(&path, derive).unwrap();
        let took = began.elapsed();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        let after = repository.catalog_bytes();
        repository.db.shrink().unwrap();
        let shrunk = repository.catalog_bytes();
        println!("{chunks} chunks in {took:?}, {peak}; {before} bytes, then {after}, shrunk {shrunk}");
    }

    #[test]
    fn rows_that_cannot_be_are_damage_and_the_catalog_stays_as_it_was() {
        let (_directory, repository) = temporary();
        let path = repository.path().to_path_buf();
        repository
            .db
            .write(|db| {
                db.execute_batch(CHUNKS)?;
                db.execute(
                    "INSERT INTO chunks VALUES (zeroblob(32), 1, 32, 3, 3, 9, NULL)",
                    [],
                )?;
                Ok(())
            })
            .unwrap();
        drop(repository);
        for _ in 0..2 {
            let error = Repository::open_with(&path, derive).unwrap_err();
            assert!(matches!(error, Error::CatalogDamaged { .. }), "{error}");
        }
    }

    #[test]
    fn runs_of_the_layout_before_get_tokens() {
        let (_directory, repository) = temporary();
        let writer = repository.writer("test").unwrap();
        let packs: Vec<ClosedPack> = (0..3).map(|seed| make_pack(&repository, seed, 20)).collect();
        packs.iter().for_each(|pack| writer.publish(pack).unwrap());
        let before = "ALTER TABLE runs DROP COLUMN token; PRAGMA user_version = 11";
        repository.db.write(|db| Ok(db.execute_batch(before)?)).unwrap();
        let path = repository.path().to_path_buf();
        drop((writer, repository));
        let repository = Repository::open_with(&path, derive).unwrap();
        let tokens = "SELECT count(DISTINCT token) = count(*) AND count(*) = 3 FROM runs";
        let differ: bool = repository
            .db
            .read(|db| Ok(db.query_row(tokens, [], |row| row.get(0))?))
            .unwrap();
        assert!(differ);
        for chunk in packs.iter().flat_map(|pack| &pack.chunks) {
            assert!(!repository.db.read(|db| places(db, &chunk.id)).unwrap().is_empty());
        }
    }
}
