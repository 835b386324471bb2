//! What a store can do, found out by trying. Nobody's word counts: stores that ignore a condition say so nowhere.

use std::fmt;

use barmanfs_store::{Error, RecordId};
use bytes::Bytes;

use crate::Result;
use crate::bucket::Bucket;
use crate::versions::TRIALS;

/// What was found out about a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    place: String,
    /// A key that is taken stays as it is.
    pub keeps_first: bool,
    /// What is overwritten stays as an old version. It is only found out where a key is overwritten.
    pub keeps_versions: bool,
    /// What was put is listed at once.
    pub lists_at_once: bool,
    /// Bytes come back as they were put, and parts of them can be read.
    pub reads_back: bool,
    /// Why the credentials cannot delete, if so. A copy needs that only to remove packs.
    pub cannot_delete: Option<String>,
}

impl Abilities {
    /// Creates a key twice, reads and lists it, and deletes it.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses to do one of these.
    pub fn probe(bucket: &Bucket) -> Result<Self> {
        let key = format!("{TRIALS}/{}", RecordId::random()?);
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        bucket.create(&key, &first)?;
        let version = bucket.version(&key)?;
        let was_new = bucket.put(&key, &second)?;
        let old = match version.filter(|_| was_new) {
            Some(version) => bucket.get_version(&key, &version)?,
            None => None,
        };
        let read = bucket.get(&key)?;
        let end = bucket.get_end(&key, 2)?;
        let mut lists_at_once = false;
        bucket.list(TRIALS, &mut |listed, _| {
            lists_at_once |= listed == key;
            Ok(())
        })?;
        let is_first = read.as_ref().is_some_and(|found| found.bytes == first);
        Ok(Self {
            place: bucket.place().to_owned(),
            keeps_first: !was_new && is_first,
            keeps_versions: old.is_some_and(|found| found.bytes == first),
            lists_at_once,
            reads_back: read.is_some()
                && end
                    .is_some_and(|found| found.bytes.len() == 2 && first.ends_with(&found.bytes) == is_first),
            cannot_delete: bucket.delete(&key).err().map(|error| error.to_string()),
        })
    }

    /// Refuses a store in which packs are not safe.
    ///
    /// # Errors
    /// With what it does not do.
    pub fn require(&self) -> Result<()> {
        self.require_for(self.keeps_first)
    }

    /// Refuses a store in which a copy is not safe. Where a bucket keeps versions, a condition may be ignored, as Ceph does: the
    /// first version of each key is still there.
    ///
    /// # Errors
    /// With what it does not do.
    pub fn require_for_copies(&self) -> Result<()> {
        self.require_for(self.keeps_first || self.keeps_versions)
    }

    fn require_for(&self, is_safe: bool) -> Result<()> {
        let lacks = [
            (
                is_safe,
                "overwrites a key that must be created once, although it was asked not to",
            ),
            (self.lists_at_once, "does not list what has just been put"),
            (self.reads_back, "does not give back what was put"),
        ];
        match lacks.iter().find(|(is_able, _)| !is_able) {
            None => Ok(()),
            Some((_, lack)) => Err(Error::Invalid(format!(
                "{} cannot be used: this store {lack}; see docs/object-stores.md for those that can",
                self.place
            ))),
        }
    }
}

impl fmt::Display for Abilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let can = |is_able: bool| if is_able { "yes" } else { "NO" };
        writeln!(f, "{}:", self.place)?;
        writeln!(
            f,
            "  a key is created once and never overwritten: {}",
            can(self.keeps_first)
        )?;
        writeln!(f, "  what was put is listed at once: {}", can(self.lists_at_once))?;
        writeln!(f, "  parts of objects can be read: {}", can(self.reads_back))?;
        match &self.cannot_delete {
            None => write!(f, "  objects can be deleted: yes"),
            Some(reason) => write!(
                f,
                "  objects can be deleted: no, so --delete does not work ({reason})"
            ),
        }
    }
}
