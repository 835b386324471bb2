//! Old versions of objects, and what holds one, for stores that have words for these.

use std::sync::Arc;

use barmanfs_store::Error;
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;

use super::{Bucket, Found};
use crate::Result;
use crate::held::Held;
use crate::versions::{FromVersions, Versions};

impl Bucket {
    /// The same place as it was written first: of each object its oldest version, also where it was overwritten or deleted
    /// since. Objects whose oldest version is not older than `before` are left out.
    ///
    /// # Errors
    /// When the versions cannot be listed, or the store is not S3.
    pub fn at_oldest_versions(&self, before: Option<jiff::Timestamp>) -> Result<(Self, FromVersions)> {
        let Some(own) = &self.own else {
            return Err(Error::Invalid(format!(
                "{}: versions can be read from S3 only; see docs/object-stores.md for other stores",
                self.place
            )));
        };
        let mut versions = Versions::new(self.prefix.as_ref(), before);
        while let Some(query) = versions.next_page() {
            let root = Key::default();
            let page = || own.get(&root, &query);
            match self.request("list the versions of", "", 0, page)? {
                Ok(page) => versions
                    .add(&page)
                    .map_err(|reason| self.error("list the versions of", "", reason))?,
                Err(_) => return Err(self.error("list the versions of", "", "there are none".to_owned())),
            }
        }
        let found = versions.found();
        let bucket = Self {
            versions: Some(Arc::new(versions)),
            ..self.clone()
        };
        Ok((bucket, found))
    }

    /// What keeps an object from being deleted for good; `None` where the store has no words for it, or no such object.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn held(&self, key: &str) -> Result<Option<Held>> {
        let Some(own) = &self.own else {
            return Ok(None);
        };
        let location = self.key(key);
        let head = self.request("look at", key, 0, || own.head(&location))?;
        Ok(self.found(key, head)?.map(|headers| Held::of(&headers)))
    }

    /// The name of the newest version of an object, where the store keeps versions.
    pub(crate) fn version(&self, key: &str) -> Result<Option<String>> {
        let location = self.key(key);
        let head = self.request("look at", key, 0, || self.store.head(&location))?;
        let version = self.found(key, head)?.and_then(|meta| meta.version);
        Ok(version.filter(|version| version != "null"))
    }

    /// Reads one version of an object.
    pub(crate) fn get_version(&self, key: &str, version: &str) -> Result<Option<Found>> {
        self.read_version(key, None, Some(version.to_owned()))
    }

    pub(super) fn list_versions(
        &self,
        versions: &Versions,
        prefix: &Key,
        after: Option<&Key>,
        each: &mut dyn FnMut(&str, u64) -> Result<()>,
    ) -> Result<()> {
        for (key, version) in versions.all() {
            if key.prefix_matches(prefix)
                && after.is_none_or(|after| key > after)
                && let Some(key) = self.relative(key)
            {
                each(&key, version.bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn directories_of_versions(&self, versions: &Versions, prefix: &Key) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (key, _) in versions.all() {
            let mut parts = key.prefix_match(prefix).into_iter().flatten();
            if let (Some(name), Some(_)) = (parts.next(), parts.next())
                && names.last().is_none_or(|last| last != name.as_ref())
            {
                names.push(name.as_ref().to_owned());
            }
        }
        names
    }

    pub(super) fn refuse_versions(&self, deed: &'static str, key: &str) -> Result<()> {
        match self.versions {
            None => Ok(()),
            Some(_) => Err(self.error(deed, key, "old versions are only read".to_owned())),
        }
    }
}
