//! Copies a whole repository into a place of an object store, and back.
//!
//! Packs are copied as they are, under keys made of their ids, and only those that are missing: a copy that was interrupted
//! goes on where it ended. [`out`] copies a directory that is in use, [`back`] makes a repository of a copy again.

pub(crate) mod back;
pub(crate) mod out;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use barmanfs_bucket::{Bucket, FromVersions, Location};
use barmanfs_store::PackId;
use serde::Serialize;

use crate::config::BucketKeys;
use crate::error::Error;

/// What the copy says first may not take longer: a wrong name or key shows at once.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The key of the settings of a repository.
const SETTINGS: &str = "repository.json";

/// What the keys of a repository are under.
const KEYS: &str = "keys";

/// What must not be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyOptions {
    /// Nothing is changed.
    pub(crate) dry_run: bool,
    /// Packs that the repository no longer has are removed from the bucket.
    pub(crate) delete: bool,
}

/// What a copy has done, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Copied {
    /// The id of the repository.
    pub(crate) repository: String,
    /// Packs of the repository, and their bytes.
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
    /// Packs that were there already.
    pub(crate) present_packs: u64,
    /// Packs that were copied, or would be.
    pub(crate) copied_packs: u64,
    pub(crate) copied_bytes: u64,
    /// Packs in the bucket that the repository no longer has.
    pub(crate) extra_packs: u64,
    pub(crate) extra_bytes: u64,
    /// Those of them that were removed, or would be.
    pub(crate) removed_packs: u64,
    /// Packs that were not removed because the store locks them.
    pub(crate) locked: Vec<LockedPack>,
    /// Whether what was removed stays in the bucket as an old version.
    pub(crate) keeps_versions: bool,
    /// What was read of old versions; null if the newest were read.
    pub(crate) from_versions: Option<OldVersions>,
    /// What could not be copied.
    pub(crate) problems: Vec<CopyProblem>,
}

/// A pack that could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct CopyProblem {
    pub(crate) pack: String,
    pub(crate) reason: String,
}

/// A pack that the store does not let go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct LockedPack {
    pub(crate) pack: String,
    /// Until when; null if a person has to release it.
    pub(crate) until: Option<String>,
}

impl LockedPack {
    fn new(pack: PackId, until: Option<jiff::Timestamp>) -> Self {
        Self {
            pack: pack.to_string(),
            until: until.map(|until| until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        }
    }
}

/// What was found among the versions of a bucket.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct OldVersions {
    /// Objects that had been deleted.
    pub(crate) deleted: u64,
    /// Objects that had been overwritten.
    pub(crate) overwritten: u64,
    /// Objects that came too late.
    pub(crate) too_late: u64,
}

impl From<FromVersions> for OldVersions {
    fn from(found: FromVersions) -> Self {
        Self {
            deleted: found.deleted,
            overwritten: found.overwritten,
            too_late: found.too_late,
        }
    }
}

impl CopyProblem {
    fn new(pack: &impl ToString, reason: &impl ToString) -> Self {
        Self {
            pack: pack.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// A place of an object store.
pub(crate) fn open(location: &Location, keys: &BucketKeys) -> Result<Arc<Bucket>, Error> {
    Ok(Arc::new(Bucket::open(location, &keys.settings()?)?))
}

/// The bucket for the first requests of a copy.
fn first(bucket: &Bucket) -> Bucket {
    bucket.within(FIRST_ANSWER_WITHIN.min(bucket.patience()))
}

/// The settings of the repository that a bucket has, if it has one.
fn settings_in(bucket: &Bucket) -> Result<Option<Vec<u8>>, Error> {
    let found = first(bucket).get(SETTINGS)?;
    Ok(found.map(|found| found.bytes.to_vec()))
}

/// The files of a bucket's keys.
fn keys_in(bucket: &Bucket) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut names = Vec::new();
    bucket.list(KEYS, &mut |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    let mut files = Vec::new();
    for name in names {
        if let Some(found) = bucket.get(&name)? {
            files.push((name, found.bytes.to_vec()));
        }
    }
    Ok(files)
}

/// What a repository.json says of encryption: a copy of a repository before it was encrypted is another one.
fn key_in(settings: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Encryption {
        key: String,
    }
    #[derive(serde::Deserialize)]
    struct Encrypted {
        encryption: Option<Encryption>,
    }
    let encrypted: Encrypted = serde_json::from_slice(settings).ok()?;
    Some(encrypted.encryption?.key)
}

/// The id in a repository.json.
fn id_in(settings: &[u8], place: &str) -> Result<String, Error> {
    #[derive(serde::Deserialize)]
    struct Named {
        id: String,
    }
    let named: Named = serde_json::from_slice(settings).map_err(|error| {
        Error::failed(format!(
            "{place}/{SETTINGS} is damaged, or what answers there is no object store: {error}"
        ))
        .hint("Put it back from the repository or from any other copy of it: it never changes")
    })?;
    Ok(named.id)
}
