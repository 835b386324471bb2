//! Rebuilds the catalog from the packs alone.
//!
//! It works in whatever state the old catalog is: that one is read only to say what is missing. The new catalog is
//! built next to it and replaces it when it is complete and durable. A kill before that changes nothing. A kill in the
//! middle of the exchange leaves no catalog, and everything else refuses to work until the rebuild is run again.
//! Writers are kept out meanwhile; readers notice the exchange within a second.
//!
//! What is needed and in no pack is recorded as lost before any writer is let in ([`lost`]). If the rebuild ends before
//! that, a mark in the new catalog keeps backups from being deleted until a verification or a sweep has done it.
//!
//! Damaged packs are left out, and then the old catalog is kept, because it shows what they held. A sweep frees nothing
//! while they are there.
//!
//! Records are entered first, and what they mean afterwards, deletions before all others. So the order in which packs
//! are found does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use barmanfs_store::{ClosedPack, IdHash, Listed, PackId, PackStorage, Part, PlainPacks};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;

use crate::archive::backup::Backup;
use crate::archive::derive::derive;
use crate::error::{Error, Result};
use crate::home::cache_of::{refuse_cache, require_cache_of};
use crate::home::keys::{self, Encryption};
use crate::home::locks::{FileLocks, Lock};
use crate::home::settings::{CreateOptions, Settings, read_settings, write_settings};
use crate::home::{CATALOG, Home, PACKS, make_directories, sync_directory, with_suffix};
use crate::index::condemned;
use crate::index::db::{self, check_files, remove_catalog};
use crate::index::footers::{FROM_OBJECTS, read_each};
use crate::index::records;
use crate::index::remote::RemotePacks;
use crate::index::repository::{Repository, keys_of, local_packs, refuse_encryption};
use crate::index::runs::Bulk;
use crate::index::unread::PackProblem;
use crate::monitor::{Monitor, Unit};
use crate::upkeep::verify::lost;

/// The catalog that was replaced. It is kept where packs were missing or damaged.
pub(super) const OLD_CATALOG: &str = "catalog.sqlite.old";

/// Page cache in KiB while the tables grow: chunk ids arrive in random order, and this holds the upper levels and most
/// of the leaves for a few million of them.
const CACHE_KIB: i64 = 64 * 1024;

/// Result of a rebuild.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Packs that were read.
    pub packs: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Backups, including failed ones.
    pub backups: u64,
    /// Archived WAL files.
    pub wal_files: u64,
    /// Whether repository.json was missing and has been created again.
    pub made_settings: bool,
    /// Packs of the old catalog, as far as it could be read, that no longer exist.
    pub missing: Vec<PackId>,
    /// Damaged packs, and records that could not be understood. What they held is missing.
    pub problems: Vec<PackProblem>,
    /// Backups in the old catalog, as far as it could be read, of which no pack has the record any more.
    pub gone_backups: Vec<BackupsOf>,
    /// Number of archived files of the old catalog of which no pack has the record any more.
    pub gone_wal_files: u64,
    /// Needed chunks that cannot be read because they, or their bases, are in no pack.
    pub lost_chunks: u64,
    /// Complete backups that need such a chunk.
    pub damaged_backups: Vec<BackupsOf>,
    /// Why nobody could look for such chunks, if so: then it is not known what is lost, and nothing is deleted until a
    /// verification has looked.
    pub not_examined: Option<String>,
    /// Where the old catalog is kept, if there was one: only after problems. It shows what is missing.
    pub kept_catalog: Option<PathBuf>,
}

/// Backups of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupsOf {
    /// The server.
    pub server: String,
    /// Their ids.
    pub backups: BTreeSet<String>,
}

impl RebuildReport {
    /// Whether everything that the packs hold, and everything that the old catalog had, is in the new one, and nothing is
    /// lost.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty()
            && self.missing.is_empty()
            && self.lost_chunks == 0
            && self.not_examined.is_none()
    }
}

impl Repository {
    /// Rebuilds the catalog of the repository at `path`, and repository.json if there are only packs. Damaged packs are
    /// left out and reported. The old catalog is read only to say what is missing; if none of its packs exists, it is not
    /// replaced. Writes a pack with the ids of needed chunks that are in no pack, if there are any.
    ///
    /// # Errors
    /// [`Error::NoPackLeft`]; [`Error::Occupied`] while a writer or a sweep is running; [`Error::NoRepository`]; when a
    /// pack cannot be read for another reason than damage, or was written by a later release.
    pub fn rebuild(path: &Path, monitor: &mut dyn Monitor) -> Result<RebuildReport> {
        Self::rebuild_with(path, false, monitor)
    }

    /// The same; with `force` also if none of the packs in the old catalog exists.
    ///
    /// # Errors
    /// As for [`rebuild`](Self::rebuild).
    pub fn rebuild_with(path: &Path, force: bool, monitor: &mut dyn Monitor) -> Result<RebuildReport> {
        refuse_cache(path)?;
        let made_settings = match read_settings(&Home::at(path)?) {
            Err(Error::SettingsMissing { .. } | Error::BadSettings { .. }) => Some(settings_again(path)?),
            settings => settings.map(|_| None)?,
        };
        let options = Options {
            made_settings,
            force,
            examines: true,
        };
        rebuild(path, None, &options, monitor)
    }

    /// The same for a repository in an object store, whose cache is the directory `path`. What is lost is only recorded where this host
    /// writes.
    ///
    /// # Errors
    /// As for [`rebuild`](Self::rebuild).
    pub fn rebuild_remote(
        path: &Path,
        packs: &RemotePacks,
        force: bool,
        monitor: &mut dyn Monitor,
    ) -> Result<RebuildReport> {
        require_cache_of(path, packs.remote.place())?;
        let options = Options {
            made_settings: None,
            force,
            examines: packs.remote.writing_elsewhere()?.is_none(),
        };
        rebuild(path, Some(packs), &options, monitor)
    }
}

/// How a catalog is rebuilt.
#[derive(Debug)]
pub(super) struct Options {
    /// The content of repository.json, if that is missing or damaged, and is made.
    pub(super) made_settings: Option<Settings>,
    /// Even where none of the packs of the old catalog is there.
    pub(super) force: bool,
    /// What is missing is found and recorded.
    pub(super) examines: bool,
}

pub(super) fn rebuild(
    path: &Path,
    remote: Option<&RemotePacks>,
    options: &Options,
    monitor: &mut dyn Monitor,
) -> Result<RebuildReport> {
    let home = Home::at(path)?;
    let settings = options
        .made_settings
        .clone()
        .map_or_else(|| read_settings(&home), Ok)?;
    let (packs, at_once) = match remote {
        None => (local_packs(path, keys_of(&home, &settings)?)?, 1),
        Some(remote) => {
            refuse_encryption(&settings, path, remote.remote.place())?;
            (remote.remote.direct(), FROM_OBJECTS)
        }
    };
    check_files(&path.join(CATALOG))?;
    make_directories(path)?;
    let lock = condemned::allow_loss(&FileLocks::of(&home))?;
    remove_leftovers(path)?;
    let new = tempfile::Builder::new()
        .prefix(&format!("{CATALOG}.rebuild-"))
        .tempfile_in(path)
        .map_err(|source| Error::io("create a file in", path, source))?
        .into_temp_path();
    let known = match remote {
        // What another host has removed is not missing.
        Some(_) if !options.examines => Known::default(),
        _ => Known::read(&path.join(CATALOG)),
    };
    let built = build(&new, packs.as_ref(), at_once, &known, monitor);
    let mut report = built.map_err(|error| error.in_catalog(&new))?;
    if !options.force && report.packs == 0 && !report.missing.is_empty() {
        return Err(Error::NoPackLeft {
            path: remote.map_or(path.join(PACKS), |remote| remote.remote.place().into()),
            known: known.packs.len(),
        });
    }
    exchange(path, new)?;
    if let Some(settings) = &options.made_settings {
        write_settings(path, settings)?;
    }
    report.made_settings = options.made_settings.is_some();
    // Nothing needs anything yet.
    let is_empty = report.packs == 0;
    if (options.examines || is_empty)
        && let Err(error) = find_lost(path, remote, &lock, &mut report, monitor)
    {
        report.not_examined = Some(error.to_string());
    }
    if let Err(error) = settle(&path.join(CATALOG)) {
        tracing::warn!("The catalog is readable only where SQLite can write beside it: {error}");
    }
    let old = path.join(OLD_CATALOG);
    if report.is_complete() {
        remove_catalog(&old)?;
    } else if is_there(&old)? {
        report.kept_catalog = Some(old);
    }
    Ok(report)
}

/// A repository.json for packs that have none, with what the keys say that are there. Packs of a repository that was plain once
/// may still be plain.
fn settings_again(path: &Path) -> Result<Settings> {
    let settings = Settings::new(CreateOptions::default())?;
    let opened = keys::open_all(path)?;
    let Some(first) = keys::first(&opened) else {
        return Ok(settings);
    };
    let plain = match first.id_hash() {
        IdHash::Blake3 => PlainPacks::Accepted,
        IdHash::Blake3Keyed => PlainPacks::Refused,
    };
    let encryption = Encryption::new(&settings.id, first, plain)?;
    Ok(settings.encrypted(encryption))
}

/// Puts what was written last into the catalog's file itself, so that it can be read where nothing can be written. A reader
/// prevents that, and does no harm.
fn settle(catalog: &Path) -> Result<()> {
    let connection = Connection::open_with_flags(catalog, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    connection.close().map_err(|(_, error)| error.into())
}

/// Records what is needed and in no pack, and which backups need it.
fn find_lost(
    path: &Path,
    remote: Option<&RemotePacks>,
    lock: &Lock,
    report: &mut RebuildReport,
    monitor: &mut dyn Monitor,
) -> Result<()> {
    monitor.stage("Finding what is missing");
    let new = match remote {
        None => Repository::open_with(path, derive)?,
        Some(remote) => Repository::open_remote(path, remote, derive)?,
    };
    // What cron has found was found in the catalog before.
    if !new.repository_memory()?.catalog_faults.is_empty() {
        new.remember_of_repository(|memory| memory.catalog_faults.clear())?;
    }
    report.lost_chunks = new.note_lost(lock, monitor)?;
    if report.lost_chunks == 0 {
        return Ok(());
    }
    for server in new.servers()? {
        let mut backups = new.backups(&server)?;
        backups.retain(Backup::is_complete);
        let damaged = new.damaged_backups(&backups)?;
        if !damaged.is_empty() {
            report.damaged_backups.push(BackupsOf {
                server: server.to_string(),
                backups: damaged.iter().map(ToString::to_string).collect(),
            });
        }
    }
    Ok(())
}

/// What a catalog knows; nothing where it cannot be read.
#[derive(Debug, Default)]
struct Known {
    packs: Vec<PackId>,
    backups: BTreeMap<String, BTreeSet<String>>,
    wal_files: u64,
}

impl Known {
    fn read(catalog: &Path) -> Self {
        let open = || -> Result<Connection> {
            let connection = Connection::open_with_flags(catalog, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            Ok(connection)
        };
        let old = match open() {
            Ok(old) => old,
            Err(error) => {
                tracing::debug!("The catalog before cannot be opened: {error}");
                return Self::default();
            }
        };
        Self {
            packs: or_nothing(packs_in(&old)),
            backups: or_nothing(backups_in(&old)),
            wal_files: or_nothing(wal_files_in(&old)),
        }
    }
}

fn or_nothing<T: Default>(read: Result<T>) -> T {
    read.unwrap_or_else(|error| {
        tracing::debug!("The catalog before cannot be read: {error}");
        T::default()
    })
}

fn packs_in(catalog: &Connection) -> Result<Vec<PackId>> {
    let mut all = catalog.prepare("SELECT id FROM packs ORDER BY id")?;
    let rows = all.query_map([], |row| row.get(0).map(PackId))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn backups_in(catalog: &Connection) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut all = catalog.prepare("SELECT server, id FROM backups")?;
    let mut rows = all.query([])?;
    let mut backups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        backups.entry(row.get(0)?).or_default().insert(row.get(1)?);
    }
    Ok(backups)
}

fn wal_files_in(catalog: &Connection) -> Result<u64> {
    let count = "SELECT count(DISTINCT record) FROM wal";
    Ok(catalog.query_row(count, [], |row| row.get(0))?)
}

/// Notes what the old catalog knew and the new one does not.
fn compare(connection: &Connection, known: &Known, report: &mut RebuildReport) -> Result<()> {
    report.missing = missing_in(connection, &known.packs)?;
    let backups = backups_in(connection)?;
    for (server, before) in &known.backups {
        let now = backups.get(server);
        let is_gone = |id: &&String| now.is_none_or(|now| !now.contains(*id));
        let gone: BTreeSet<String> = before.iter().filter(is_gone).cloned().collect();
        if !gone.is_empty() {
            report.gone_backups.push(BackupsOf {
                server: server.clone(),
                backups: gone,
            });
        }
    }
    report.wal_files = wal_files_in(connection)?;
    report.gone_wal_files = known.wal_files.saturating_sub(report.wal_files);
    Ok(())
}

/// Those of them that are not in the new catalog.
fn missing_in(connection: &Connection, known: &[PackId]) -> Result<Vec<PackId>> {
    let mut missing = Vec::new();
    for pack in known {
        if !records::knows_pack(connection, *pack)? {
            missing.push(*pack);
        }
    }
    Ok(missing)
}

/// Removes the remains of killed rebuilds. No rebuild can be running: this process holds the lock.
fn remove_leftovers(path: &Path) -> Result<()> {
    let unreadable = |source| Error::io("list", path, source);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let left = name.to_str().and_then(|name| name.strip_prefix(CATALOG));
        if left.is_some_and(|rest| rest.starts_with(".rebuild-")) {
            fs::remove_file(entry.path()).map_err(|source| Error::io("remove", &entry.path(), source))?;
        }
    }
    Ok(())
}

/// Fills the new catalog and makes it durable.
fn build(
    file: &Path,
    packs: &dyn PackStorage,
    at_once: usize,
    known: &Known,
    monitor: &mut dyn Monitor,
) -> Result<RebuildReport> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    db::allow_shrinking(&connection)?;
    // No one reads the file before it is complete and synced as a whole.
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db::create_tables(&connection)?;
    let mut report = RebuildReport::default();
    monitor.stage("Reading packs");
    enter_packs(&connection, packs, at_once, &mut report, monitor)?;
    derive_all(&connection, &mut report)?;
    report.backups = connection.query_row("SELECT count(*) FROM backups", [], |row| row.get(0))?;
    compare(&connection, known, &mut report)?;
    lost::mark_unexamined(&connection)?;
    // From here on, SQLite would make files beside it that have its name.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.close().map_err(|(_, error)| error)?;
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::io("sync", file, source))?;
    Ok(report)
}

fn enter_packs(
    connection: &Connection,
    storage: &dyn PackStorage,
    at_once: usize,
    report: &mut RebuildReport,
    monitor: &mut dyn Monitor,
) -> Result<()> {
    // Each takes sixteen bytes: a million of them, 64 TB of data, fit easily.
    let mut packs = Vec::new();
    storage.list(&mut |pack| {
        packs.push(pack);
        Ok(())
    })?;
    // Packs of killed writers may not be durable yet.
    storage.settle(&packs)?;
    let keys = Bulk::new();
    read_each(storage, &packs, at_once, &mut |pack, footer| {
        match footer {
            Ok(closed) => {
                enter_one(connection, &closed, &keys)?;
                report.packs += 1;
                report.chunks += closed.chunks.len() as u64;
            }
            Err(error) if error.is_damage() => report.problems.push(PackProblem {
                pack,
                reason: error.to_string(),
            }),
            // The pack may be intact, and would be left out permanently: the next sweep would treat what it refers to
            // as dead.
            Err(error) => return Err(error.into()),
        }
        monitor.progress(report.packs, None, Unit::Packs);
        Ok(())
    })?;
    in_transaction(connection, |transaction| keys.write(transaction))?;
    // Keys are not moved by hand, as files are.
    match at_once {
        1 => tell_astray(connection, storage, report),
        _ => Ok(()),
    }
}

/// Packs under other names are not entered: no look-up would find them there. They do no harm if the pack itself is in
/// its place.
fn tell_astray(connection: &Connection, storage: &dyn PackStorage, report: &mut RebuildReport) -> Result<()> {
    for part in Part::all() {
        storage.list_part(part, &mut |listed| {
            if let Listed::Astray { path, pack } = listed
                && !records::knows_pack(connection, pack)?
            {
                let reason = format!("It lies under another name, {}: give it its own", path.display());
                report.problems.push(PackProblem { pack, reason });
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn enter_one(connection: &Connection, pack: &ClosedPack, keys: &Bulk) -> Result<()> {
    in_transaction(connection, |transaction| {
        records::enter_without_deriving(transaction, pack, keys)
    })
}

fn in_transaction(connection: &Connection, work: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    let transaction = connection.unchecked_transaction()?;
    work(&transaction)?;
    Ok(transaction.commit()?)
}

/// Enters what the records mean.
fn derive_all(connection: &Connection, report: &mut RebuildReport) -> Result<()> {
    let transaction = connection.unchecked_transaction()?;
    records::derive_all(&transaction, derive, &mut |record, error| {
        report.problems.push(PackProblem {
            pack: pack_of(&transaction, record)?,
            reason: error.to_string(),
        });
        Ok(())
    })?;
    Ok(transaction.commit()?)
}

fn pack_of(connection: &Connection, record: i64) -> Result<PackId> {
    let mut pack = connection.prepare_cached(
        "SELECT p.id FROM record_packs h JOIN packs p ON p.seq = h.pack WHERE h.record = ?1 LIMIT 1",
    )?;
    Ok(PackId(pack.query_row(params![record], |row| row.get(0))?))
}

/// Replaces the old catalog with the new one. SQLite's files next to the old one must be removed first: SQLite would
/// take them for the new one's. And before they are removed, the old one must be moved away: without them it may be
/// damaged.
fn exchange(path: &Path, new: tempfile::TempPath) -> Result<()> {
    let catalog = path.join(CATALOG);
    set_aside(&catalog, &path.join(OLD_CATALOG))?;
    sync_directory(path)?;
    remove_catalog(&catalog)?;
    new.persist(&catalog)
        .map_err(|error| Error::io("rename", &catalog, error.error))?;
    sync_directory(path)
}

/// Moves the catalog and its WAL out of the way, unless a catalog that an earlier rebuild with problems replaced is
/// there already: that one has more in it. If only a WAL is found, a rebuild was killed between the two moves.
fn set_aside(catalog: &Path, old: &Path) -> Result<()> {
    if is_there(catalog)? && is_there(old)? {
        return Ok(());
    }
    for suffix in ["", "-wal"] {
        let (from, to) = (with_suffix(catalog, suffix), with_suffix(old, suffix));
        if is_there(&from)? && !is_there(&to)? {
            fs::rename(&from, &to).map_err(|source| Error::io("rename", &from, source))?;
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|source| Error::io("look for", path, source))
}

#[cfg(test)]
mod tests {
    use barmanfs_store::testing::{Call, TestPacks};
    use barmanfs_store::{LocalPacks, PackWriter};

    use super::*;
    use crate::monitor::Silent;

    #[test]
    fn packs_are_durable_before_they_are_entered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(PACKS);
        let packs = LocalPacks::create(&path).unwrap();
        let mut made = [(); 3].map(|()| PackWriter::begin(&packs).unwrap().close().unwrap().id);
        let storage = TestPacks::new(LocalPacks::open(&path).unwrap());
        let connection = Connection::open_in_memory().unwrap();
        db::create_tables(&connection).unwrap();
        let mut report = RebuildReport::default();
        enter_packs(&connection, &storage, 1, &mut report, &mut Silent).unwrap();
        assert_eq!(report.packs, 3);
        let calls = storage.calls();
        let reads = |call: &Call| matches!(call, Call::Bytes(_) | Call::Read(_));
        let before_reading = calls.iter().take_while(|call| !reads(call));
        let [Call::Settle(first)] = before_reading
            .filter(|call| **call != Call::List)
            .collect::<Vec<_>>()[..]
        else {
            panic!("{calls:?}");
        };
        let mut first = first.clone();
        made.sort_unstable();
        first.sort_unstable();
        assert_eq!(first, made);
    }
}
