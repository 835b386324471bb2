//! What the packs of a primary hold: a cache of their footers.
//!
//! The catalog of the primary is not read: it may be on another host, where SQLite cannot be shared. The footers of its
//! packs say the same. Each footer is read once and kept in an SQLite file of this repository, with the tables of a
//! catalog. Of the records only deletions are interpreted, and these only here: nothing that a primary sends means
//! anything in this repository before it was chosen and copied.
//!
//! The cache can be thrown away. A pack that the primary's sweep has removed is forgotten with the records that no other
//! pack has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{
    ClosedPack, Listed, PackId, PackStorage, Part, PartMark, Record, RecordId, read_footer,
};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::{CATALOG, now, regular, replace_file};
use crate::index::chunk_lists;
use crate::index::db::{Db, remove_catalog};
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::runs::merge;
use crate::index::unread::PackProblem;
use crate::monitor::{Monitor, Unit};

/// What is remembered of the directories of the packs.
const PARTS: &str = "parts.json";

/// Packs entered in one transaction: bounds what is in memory, and saves syncs.
const PACKS_AT_ONCE: usize = 8;

/// All directories are listed again after this time, whatever their times say: the clock of the primary may be wrong.
const LISTED_FOR_MICROS: i64 = 3600 * 1_000_000;

/// The footers of a primary's packs.
#[derive(Debug)]
pub(super) struct Footers {
    pub(super) db: Arc<Db>,
    pub(super) storage: Arc<dyn PackStorage>,
    directory: PathBuf,
    /// The lock that is held while packs are entered or forgotten.
    lock: String,
}

/// Result of a look at the primary.
#[derive(Debug, Default)]
pub(super) struct Refreshed {
    /// Packs whose footers were read.
    pub(super) new_packs: u64,
    /// Packs that are gone since the last time.
    pub(super) gone_packs: u64,
    /// Packs that cannot be read.
    pub(super) problems: Vec<PackProblem>,
}

/// What is remembered of the directories.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Parts {
    /// Changes when the cache is made again.
    made: String,
    /// When all directories were last listed.
    #[serde(default)]
    listed_at: Option<TimestampMicros>,
    /// The directories in which every pack was read, by the first byte of the ids.
    #[serde(default)]
    settled: BTreeMap<u8, PartMark>,
}

/// Only deletions mean something here.
fn derive(db: &Connection, seq: i64, record: &Record) -> Result<()> {
    if Kind::of(record.kind) == Some(Kind::Deletion) {
        let deletion: records::Deletion = records::parse(record.id, &record.payload)?;
        db.prepare_cached("INSERT OR IGNORE INTO deletions (annulled, record) VALUES (?1, ?2)")?
            .execute(params![deletion.of.as_bytes(), seq])?;
    }
    Ok(())
}

impl Footers {
    /// Opens the cache for the packs of the primary whose repository has this id, or makes it.
    pub(super) fn open(node: &Repository, primary: &str, storage: Arc<dyn PackStorage>) -> Result<Self> {
        let directory = super::directory(node).join(primary);
        fs::create_dir_all(&directory).map_err(|source| Error::io("create", &directory, source))?;
        let catalog = directory.join(CATALOG);
        let owner = node.home.owner().clone();
        let opened = match read_parts(&directory)? {
            Some(_) => Db::open(&catalog, owner.clone(), derive, Arc::clone(&storage)),
            None => Err(Error::CatalogMissing {
                path: catalog.clone(),
            }),
        };
        let db = match opened {
            Ok(db) => db,
            Err(
                Error::CatalogMissing { .. }
                | Error::CatalogLayout { .. }
                | Error::CatalogNewer { .. }
                | Error::CatalogDamaged { .. },
            ) => {
                remove_catalog(&catalog)?;
                Db::create(&catalog)?;
                let parts = Parts {
                    made: RecordId::random()?.to_string(),
                    ..Parts::default()
                };
                write_parts(&directory, &parts)?;
                Db::open(&catalog, owner, derive, Arc::clone(&storage))?
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            db: Arc::new(db),
            storage,
            directory,
            lock: format!("sync-packs-{primary}"),
        })
    }

    /// What tells this cache from one that is made after it was lost.
    pub(super) fn made(&self) -> Result<String> {
        Ok(read_parts(&self.directory)?.unwrap_or_default().made)
    }

    /// Reads the footers of new packs, and forgets the packs that are gone.
    pub(super) fn refresh(&self, node: &Repository, monitor: &mut dyn Monitor) -> Result<Refreshed> {
        let _lock = node
            .locks
            .wait_exclusive(&self.lock, "a look at the packs of the primary")?;
        let mut parts = read_parts(&self.directory)?.unwrap_or_default();
        let at = now();
        let is_recent = |listed: TimestampMicros| {
            let age = at.unix_micros().saturating_sub(listed.unix_micros());
            (0..LISTED_FOR_MICROS).contains(&age)
        };
        if !parts.listed_at.is_some_and(is_recent) {
            parts.settled.clear();
            parts.listed_at = Some(at);
        }
        let mut found = Refreshed::default();
        let mut gone = Vec::new();
        for part in Part::all() {
            let Part::First(first) = part else { continue };
            let clock = SystemTime::now();
            let mark = self.storage.part_mark(part)?;
            if parts.settled.get(&first) == Some(&mark) {
                continue;
            }
            parts.settled.remove(&first);
            let (new, missing) = self.compare(part)?;
            gone.extend(missing);
            let problems = found.problems.len();
            self.enter(&new, &mut found, monitor)?;
            if found.problems.len() == problems && mark.is_settled(clock) {
                parts.settled.insert(first, mark);
            }
        }
        found.gone_packs = gone.len() as u64;
        if !gone.is_empty() {
            self.db.write(|transaction| forget(transaction, &gone))?;
            merge::compact(&self.db)?;
        }
        write_parts(&self.directory, &parts)?;
        Ok(found)
    }

    /// The packs of a part that are not known yet, and the rows of those that are gone.
    fn compare(&self, part: Part) -> Result<(Vec<PackId>, Vec<i64>)> {
        let mut listed = BTreeSet::new();
        self.storage.list_part(part, &mut |entry| {
            if let Listed::Pack(pack) = entry {
                listed.insert(pack);
            }
            Ok(())
        })?;
        let Part::First(first) = part else {
            return Ok((Vec::new(), Vec::new()));
        };
        let (mut from, mut to) = ([0; PackId::BYTES], [u8::MAX; PackId::BYTES]);
        (from[0], to[0]) = (first, first);
        let known: HashMap<PackId, i64> = self.db.read(|db| {
            let mut known = db.prepare_cached("SELECT id, seq FROM packs WHERE id BETWEEN ?1 AND ?2")?;
            let rows = known.query_map(params![from, to], |row| Ok((PackId(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let gone = known.iter().filter(|(pack, _)| !listed.contains(pack));
        let gone = gone.map(|(_, seq)| *seq).collect();
        listed.retain(|pack| !known.contains_key(pack));
        Ok((listed.into_iter().collect(), gone))
    }

    fn enter(&self, packs: &[PackId], found: &mut Refreshed, monitor: &mut dyn Monitor) -> Result<()> {
        for some in packs.chunks(PACKS_AT_ONCE) {
            let mut read: Vec<ClosedPack> = Vec::new();
            for pack in some {
                match read_footer(self.storage.as_ref(), *pack) {
                    Ok(closed) => read.push(closed),
                    // A sweep has removed it since it was listed.
                    Err(barmanfs_store::Error::MissingPack(_)) => {}
                    Err(error @ barmanfs_store::Error::NewerFormat { .. }) => found.problem(*pack, &error),
                    Err(error) if error.is_damage() => found.problem(*pack, &error),
                    Err(error) => return Err(error.into()),
                }
            }
            self.db.write(|transaction| {
                // Records that cannot be read are named each time the offer is read.
                read.iter()
                    .try_for_each(|pack| records::enter(transaction, derive, pack, None).map(drop))
            })?;
            found.new_packs += read.len() as u64;
            monitor.progress(found.new_packs, None, Unit::Packs);
        }
        Ok(())
    }
}

impl Refreshed {
    fn problem(&mut self, pack: PackId, error: &barmanfs_store::Error) {
        self.problems.push(PackProblem {
            pack,
            reason: error.to_string(),
        });
    }
}

/// Forgets packs, and the records that no other pack has.
fn forget(db: &Connection, gone: &[i64]) -> Result<()> {
    db.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS gone (pack INTEGER PRIMARY KEY); DELETE FROM gone;
         CREATE TEMP TABLE IF NOT EXISTS loose (record INTEGER PRIMARY KEY); DELETE FROM loose;",
    )?;
    for pack in gone {
        db.prepare_cached("INSERT OR IGNORE INTO gone (pack) VALUES (?1)")?
            .execute([pack])?;
        chunk_lists::forget(db, *pack)?;
    }
    db.execute_batch(
        "INSERT OR IGNORE INTO loose SELECT record FROM record_packs WHERE pack IN (SELECT pack FROM gone);
         DELETE FROM record_packs WHERE pack IN (SELECT pack FROM gone);
         DELETE FROM loose WHERE record IN (SELECT record FROM record_packs);
         DELETE FROM deletions WHERE record IN (SELECT record FROM loose);
         DELETE FROM records WHERE seq IN (SELECT record FROM loose);
         DELETE FROM packs WHERE seq IN (SELECT pack FROM gone);
         DELETE FROM gone; DELETE FROM loose;",
    )?;
    Ok(())
}

fn read_parts(directory: &Path) -> Result<Option<Parts>> {
    let path = directory.join(PARTS);
    match regular::read(&path) {
        Ok(json) => Ok(serde_json::from_slice(&json).ok()),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("read", &path, source)),
    }
}

fn write_parts(directory: &Path, parts: &Parts) -> Result<()> {
    let json = serde_json::to_vec(parts).map_err(|error| Error::Invalid(error.to_string()))?;
    replace_file(&directory.join(PARTS), &json)
}
