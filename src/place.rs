//! Where a repository is: in a directory, or in an object store with a directory of this host as its cache.
//!
//! This joins what knows object stores (`barmanfs_bucket`) and what knows repositories (`barmanfs_catalog`). All commands open the
//! repository here.

mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use barmanfs_bucket::{Abilities, Bucket, Location};
use barmanfs_catalog::{
    CreateOptions, Error as CatalogError, Monitor, RebuildReport, RemotePacks, Repository, Silent,
    new_settings, refuse_plain,
};
use bytes::Bytes;

use crate::config::{BucketKeys, Config};
use crate::error::Error;
use store::Store;

/// What a command says first may not take longer: a wrong name or key shows at once.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(20);

const SETTINGS: &str = "repository.json";

/// Where a repository is. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    home: PathBuf,
    bucket: Option<Arc<InBucket>>,
}

#[derive(Debug)]
struct InBucket {
    location: Location,
    keys: BucketKeys,
    cache_max_bytes: u64,
    store: OnceLock<Arc<Store>>,
}

impl Place {
    /// What the configuration names.
    pub(crate) fn of(config: &Config) -> Self {
        let bucket = config.location.as_ref().map(|location| InBucket {
            location: location.clone(),
            keys: config.bucket.clone(),
            cache_max_bytes: config.cache_max_bytes,
            store: OnceLock::new(),
        });
        Self {
            home: config.repository.clone(),
            bucket: bucket.map(Arc::new),
        }
    }

    /// A directory.
    pub(crate) fn directory(home: &Path) -> Self {
        Self {
            home: home.to_path_buf(),
            bucket: None,
        }
    }

    /// The directory with the catalog.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Whether it is in an object store.
    pub(crate) fn is_remote(&self) -> bool {
        self.bucket.is_some()
    }

    /// What the configuration calls it.
    pub(crate) fn shown(&self) -> String {
        match &self.bucket {
            Some(bucket) => bucket.location.to_string(),
            None => self.home.display().to_string(),
        }
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// Those of [`Repository::open`] and [`Repository::open_cached`].
    pub(crate) fn open(&self) -> Result<Repository, CatalogError> {
        self.open_by(Store::packs)
    }

    /// Opens it for reading what is really there: past the cache of this host.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(crate) fn open_uncached(&self) -> Result<Repository, CatalogError> {
        self.open_by(Store::direct_packs)
    }

    fn open_by(&self, packs: impl FnOnce(&Arc<Store>) -> RemotePacks) -> Result<Repository, CatalogError> {
        match &self.bucket {
            None => Repository::open(&self.home),
            Some(bucket) => {
                let store = bucket.store(&self.home)?;
                Repository::open_cached(&self.home, &packs(&store), &mut Silent)
            }
        }
    }

    /// Makes a repository where there is none. In an object store, what that can do is tried first; `said` gets it in words.
    ///
    /// # Errors
    /// When there is one already, or the place cannot be used.
    pub(crate) fn create(&self, said: &mut dyn FnMut(String)) -> Result<Repository, CatalogError> {
        let Some(bucket) = &self.bucket else {
            return Repository::create(&self.home, CreateOptions::default());
        };
        refuse_plain(&self.home)?;
        let store = bucket.store(&self.home)?;
        let soon = store.bucket().within(FIRST_ANSWER_WITHIN);
        let abilities = Abilities::probe(&soon)?;
        said(abilities.to_string());
        abilities.require()?;
        // Another host may make it at the same moment; then that one counts.
        match soon.create(SETTINGS, &Bytes::from(new_settings(CreateOptions::default())?)) {
            Err(barmanfs_store::Error::Invalid(_)) => {}
            created => drop(created?),
        }
        self.open()
    }

    /// Makes its catalog from its packs.
    ///
    /// # Errors
    /// Those of [`Repository::rebuild_with`].
    pub(crate) fn rebuild(
        &self,
        force: bool,
        monitor: &mut dyn Monitor,
    ) -> Result<RebuildReport, CatalogError> {
        match &self.bucket {
            None => Repository::rebuild_with(&self.home, force, monitor),
            Some(bucket) => {
                let packs = bucket.store(&self.home)?.packs();
                // The directory must be there first.
                drop(Repository::open_cached(&self.home, &packs, &mut Silent));
                Repository::rebuild_remote(&self.home, &packs, force, monitor)
            }
        }
    }

    /// Makes this host the one that writes into the object store. Returns the name of the one before.
    ///
    /// # Errors
    /// Where the repository is in a directory; when another host takes it over at the same moment; when the store cannot be used.
    pub(crate) fn take_over(&self) -> Result<Option<String>, Error> {
        let Some(bucket) = &self.bucket else {
            return Err(Error::usage(format!(
                "{} is a directory: every process on this host writes into it, and there is nothing to take over",
                self.shown()
            )));
        };
        let store = bucket.store(&self.home)?;
        drop(self.open()?);
        let before = store.take_over()?;
        if before.is_some() {
            Repository::refill_cache(&self.home, &store.packs(), &mut Silent)?;
        }
        Ok(before)
    }

    /// What cannot be done with a repository in an object store is refused.
    ///
    /// # Errors
    /// With what cannot be done, if it is in one.
    pub(crate) fn refuse_remote(&self, what: &str) -> Result<(), Error> {
        match self.is_remote() {
            false => Ok(()),
            true => Err(Error::failed(format!(
                "{what} does not work with a repository in an object store yet, and {} is one",
                self.shown()
            ))),
        }
    }
}

impl InBucket {
    fn store(&self, home: &Path) -> Result<Arc<Store>, CatalogError> {
        if let Some(store) = self.store.get() {
            return Ok(Arc::clone(store));
        }
        let settings = self.keys.settings();
        let settings = settings.map_err(|error| CatalogError::Invalid(error.to_string()))?;
        let bucket = Arc::new(Bucket::open(&self.location, &settings)?);
        let store = Arc::new(Store::open(bucket, home, self.cache_max_bytes));
        Ok(Arc::clone(self.store.get_or_init(|| store)))
    }
}

/// The packs of a store, as the catalog takes them.
fn packs(storage: Arc<dyn barmanfs_store::PackStorage>, store: &Arc<Store>) -> RemotePacks {
    RemotePacks {
        storage,
        remote: Arc::clone(store) as _,
    }
}
