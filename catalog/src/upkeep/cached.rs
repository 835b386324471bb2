//! The directory that is the cache of a repository in an object store: made when it is missing, and opened.
//!
//! Nothing in it is needed to make it again but what is nowhere else: the spool, clones, and the configuration.

use std::fs;
use std::path::Path;

use crate::archive::derive::derive;
use crate::error::{Error, Result};
use crate::home::cache_of::{cache_of, mark, require_cache_of};
use crate::home::locks::{FileLocks, Locks};
use crate::home::settings::{SETTINGS, parse_settings};
use crate::home::{CATALOG, Home, PACKS, make_directories, write_durably};
use crate::index::remote::{RemotePacks, STALE};
use crate::index::repository::Repository;
use crate::monitor::Monitor;
use crate::upkeep::rebuild::{Options, rebuild};

/// The lock of a process that makes the directory.
const MAKING: &str = "make";

impl Repository {
    /// Opens a repository in an object store. The directory `path` is its cache, and is made and filled if it is missing or
    /// incomplete: this reads the footers of all packs.
    ///
    /// # Errors
    /// [`Error::NoRepository`] when there is none in the store; when `path` has something else; when the store cannot be read, or the
    /// directory cannot be written.
    pub fn open_cached(path: &Path, packs: &RemotePacks, monitor: &mut dyn Monitor) -> Result<Self> {
        if !is_made(path) {
            make(path, packs, monitor)?;
        }
        let repository = Self::open_remote(path, packs, derive)?;
        repository.refresh();
        if path.join(STALE).exists() {
            drop(repository);
            make_again(path, packs, monitor);
            return Self::open_remote(path, packs, derive);
        }
        Ok(repository)
    }

    /// After this host has taken the repository over: its catalog gets everything that is there, and forgets what is not.
    ///
    /// # Errors
    /// When the store cannot be read; [`Error::Occupied`] while something writes on this host.
    pub fn refill_cache(path: &Path, packs: &RemotePacks, monitor: &mut dyn Monitor) -> Result<()> {
        require_cache_of(path, packs.remote.place())?;
        rebuild(path, Some(packs), &WITHOUT_EXAMINATION, monitor).map(drop)
    }
}

/// What is missing is found by the next sweep or verification: that reads much, and the command that opens a repository waits.
const WITHOUT_EXAMINATION: Options = Options {
    made_settings: None,
    force: true,
    examines: false,
};

fn is_made(path: &Path) -> bool {
    path.join(SETTINGS).exists() && path.join(CATALOG).exists()
}

/// Makes the directory. Of several processes one does, and the others wait. What a crash leaves is completed.
fn make(path: &Path, packs: &RemotePacks, monitor: &mut dyn Monitor) -> Result<()> {
    let place = packs.remote.place();
    let settings = packs
        .remote
        .settings()?
        .ok_or_else(|| Error::NoRepository { path: place.into() })?;
    parse_settings(&settings, place.as_ref(), format!("{place}/{SETTINGS}").as_ref())?;
    if cache_of(path)?.is_none() {
        refuse_other_content(path)?;
    }
    fs::create_dir_all(path).map_err(|source| Error::io("create", path, source))?;
    let home = Home::at(path)?;
    let _acting = home.act()?;
    make_directories(path)?;
    let locks = FileLocks::of(&home);
    let making = locks.wait_exclusive(MAKING, "making the cache of the repository")?;
    let made = fill(path, packs, &settings, monitor);
    making.remove();
    made
}

fn fill(path: &Path, packs: &RemotePacks, settings: &[u8], monitor: &mut dyn Monitor) -> Result<()> {
    if is_made(path) {
        return Ok(());
    }
    let place = packs.remote.place();
    match cache_of(path)? {
        None => mark(path, place)?,
        Some(_) => require_cache_of(path, place)?,
    }
    write_durably(&path.join(SETTINGS), settings)?;
    tracing::info!("Reading what {place} has, into {}", path.display());
    let report = rebuild(path, Some(packs), &WITHOUT_EXAMINATION, monitor)?;
    for problem in &report.problems {
        tracing::error!("Pack {} is left out: {}", problem.pack, problem.reason);
    }
    Ok(())
}

/// A repository of its own must not become a cache.
fn refuse_other_content(path: &Path) -> Result<()> {
    let is_other = [SETTINGS, CATALOG, PACKS]
        .iter()
        .find(|name| path.join(name).exists());
    match is_other {
        None => Ok(()),
        Some(name) => Err(Error::CannotCreate {
            path: path.to_path_buf(),
            reason: format!("it has '{name}', and is no cache of a repository elsewhere"),
        }),
    }
}

/// The catalog has what another host has deleted and removed. While something writes here, the next one makes it again.
fn make_again(path: &Path, packs: &RemotePacks, monitor: &mut dyn Monitor) {
    let again = Home::at(path).and_then(|home| {
        let _acting = home.act()?;
        rebuild(path, Some(packs), &WITHOUT_EXAMINATION, monitor)?;
        let marker = path.join(STALE);
        fs::remove_file(&marker).map_err(|source| Error::io("remove", &marker, source))
    });
    if let Err(error) = again {
        tracing::warn!("The catalog may have what is no longer there: {error}");
    }
}
