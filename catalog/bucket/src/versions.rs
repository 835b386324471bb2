//! The oldest version of each object, from listings of a bucket that keeps versions.
//!
//! Every key is created once, so what came later under it is somebody else's doing, and a deletion hides what was written. The
//! store itself says when a version came; nobody who may write can say otherwise.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use object_store::path::Path as Key;
use percent_encoding::percent_decode_str;
use serde::Deserialize;

/// Where keys are made and deleted to try a store.
pub(crate) const TRIALS: &str = "probe";

/// What was found among the versions of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FromVersions {
    /// Objects that are read although they were deleted.
    pub deleted: u64,
    /// Objects of which an older version is read than the newest.
    pub overwritten: u64,
    /// Objects that came too late, and are left out.
    pub too_late: u64,
}

/// One version of an object.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) id: String,
    pub(crate) bytes: u64,
    came: Timestamp,
    is_newest: bool,
}

/// The oldest versions.
#[derive(Debug)]
pub(crate) struct Versions {
    /// With the slash at its end; empty for the whole bucket.
    prefix: String,
    oldest: BTreeMap<Key, Version>,
    /// Keys whose newest version is a mark of deletion.
    deleted: BTreeSet<Key>,
    before: Option<Timestamp>,
    /// Where the next page begins: a key and a version; nothing after the last page.
    next: Option<(String, String)>,
}

/// A page of a listing. What it has beside this does not matter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_version_id_marker: String,
    #[serde(default, rename = "Version")]
    versions: Vec<Listed>,
    #[serde(default, rename = "DeleteMarker")]
    marks: Vec<Mark>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    version_id: String,
    is_latest: bool,
    last_modified: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mark {
    key: String,
    is_latest: bool,
}

impl Versions {
    pub(crate) fn new(prefix: &str, before: Option<Timestamp>) -> Self {
        Self {
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            oldest: BTreeMap::new(),
            deleted: BTreeSet::new(),
            before,
            next: Some((String::new(), String::new())),
        }
    }

    /// The query of the next page, if there is one. Keys come encoded: XML has no place for some characters that they may have.
    pub(crate) fn next_page(&self) -> Option<Vec<(&'static str, String)>> {
        let (key, version) = self.next.as_ref()?;
        let mut query = vec![("encoding-type", "url".to_owned())];
        if !key.is_empty() {
            query.push(("key-marker", key.clone()));
        }
        if !self.prefix.is_empty() {
            query.push(("prefix", self.prefix.clone()));
        }
        if !version.is_empty() {
            query.push(("version-id-marker", version.clone()));
        }
        query.push(("versions", String::new()));
        Some(query)
    }

    /// Takes a page in.
    ///
    /// # Errors
    /// When it is none, or the same as before.
    pub(crate) fn add(&mut self, page: &[u8]) -> Result<(), String> {
        let page: Page = quick_xml::de::from_reader(page)
            .map_err(|error| format!("the store's answer is no list of versions: {error}"))?;
        for listed in page.versions {
            if let Some(key) = self.key(&listed.key) {
                self.enter(key, listed)?;
            }
        }
        for mark in page.marks.iter().filter(|mark| mark.is_latest) {
            if let Some(key) = self.key(&mark.key) {
                self.deleted.insert(key);
            }
        }
        let next = page
            .is_truncated
            .then(|| (decoded(&page.next_key_marker), page.next_version_id_marker));
        if next.as_ref().is_some_and(|next| next.0.is_empty()) || (next.is_some() && next == self.next) {
            return Err("the store lists the same versions again".to_owned());
        }
        self.next = next;
        Ok(())
    }

    /// A key of a repository: no other program's, and none that a copy made and deleted to try the store.
    fn key(&self, listed: &str) -> Option<Key> {
        let key = decoded(listed);
        let is_trial = key
            .strip_prefix(&self.prefix)
            .is_some_and(|key| key.split('/').next() == Some(TRIALS));
        (!is_trial).then(|| Key::parse(key).ok()).flatten()
    }

    /// Versions of one key come from the newest to the oldest, and their times may be the same.
    fn enter(&mut self, key: Key, listed: Listed) -> Result<(), String> {
        let came = listed
            .last_modified
            .parse()
            .map_err(|_| "a version has no time".to_owned())?;
        let version = Version {
            id: listed.version_id,
            bytes: listed.size,
            came,
            is_newest: listed.is_latest,
        };
        match self.oldest.get_mut(&key) {
            Some(known) if known.came < came => {}
            Some(known) => *known = version,
            None => {
                self.oldest.insert(key, version);
            }
        }
        Ok(())
    }

    /// Ends the listing: what came too late goes.
    pub(crate) fn found(&mut self) -> FromVersions {
        let all = self.oldest.len();
        if let Some(before) = self.before {
            self.oldest.retain(|_, version| version.came < before);
        }
        let (mut deleted, mut overwritten) = (0, 0);
        for (key, version) in &self.oldest {
            match self.deleted.contains(key) {
                true => deleted += 1,
                false => overwritten += u64::from(!version.is_newest),
            }
        }
        FromVersions {
            deleted,
            overwritten,
            too_late: (all - self.oldest.len()) as u64,
        }
    }

    pub(crate) fn of(&self, key: &Key) -> Option<&Version> {
        self.oldest.get(key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Version)> {
        self.oldest.iter()
    }
}

fn decoded(key: &str) -> String {
    percent_decode_str(&key.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entries: &str, more: &str) -> String {
        format!("<ListVersionsResult><EncodingType>url</EncodingType>{more}{entries}</ListVersionsResult>")
    }

    fn version(key: &str, id: &str, newest: bool, time: &str) -> String {
        format!(
            "<Version><Key>{key}</Key><VersionId>{id}</VersionId><IsLatest>{newest}</IsLatest>\
             <LastModified>{time}</LastModified><Size>1</Size><Owner><ID>x</ID></Owner></Version>"
        )
    }

    const LAST: &str = "<IsTruncated>false</IsTruncated>";
    const EARLY: &str = "2026-01-01T00:00:00.000Z";
    const LATE: &str = "2026-02-01T00:00:00.000Z";

    fn taken(pages: &[String], before: Option<&str>) -> (Versions, FromVersions) {
        let mut versions = Versions::new("p", before.map(|time| time.parse().unwrap()));
        for page in pages {
            assert!(versions.next_page().is_some());
            versions.add(page.as_bytes()).unwrap();
        }
        assert!(versions.next_page().is_none());
        let found = versions.found();
        (versions, found)
    }

    fn id<'a>(versions: &'a Versions, key: &str) -> Option<&'a str> {
        versions.of(&Key::from(key)).map(|version| version.id.as_str())
    }

    /// The kind: whatever comes after the first version of a key changes nothing, over several pages and within one second.
    #[test]
    fn the_oldest_version_counts() {
        let mark = "<DeleteMarker><Key>p%2Fgone</Key><VersionId>m</VersionId><IsLatest>true</IsLatest>\
             <LastModified>2026-03-01T00:00:00.000Z</LastModified></DeleteMarker>";
        let first = [
            version("p%2Fa", "3", true, LATE),
            version("p%2Fa", "2", false, EARLY),
        ]
        .concat();
        let second = [
            version("p%2Fa", "1", false, EARLY),
            mark.to_owned(),
            version("p%2Fgone", "g", false, EARLY),
            version("p%2Fplain", "p", true, EARLY),
            version("p%2Fprobe%2Fx", "x", false, EARLY),
            version("p%2F%01", "odd", true, EARLY),
        ]
        .concat();
        let more = "<IsTruncated>true</IsTruncated><NextKeyMarker>p%2Fa</NextKeyMarker>\
             <NextVersionIdMarker>2</NextVersionIdMarker>";
        let (versions, found) = taken(&[page(&first, more), page(&second, LAST)], None);
        assert_eq!(id(&versions, "p/a"), Some("1"));
        assert_eq!(id(&versions, "p/gone"), Some("g"));
        assert_eq!(id(&versions, "p/plain"), Some("p"));
        assert_eq!(id(&versions, "p/probe/x"), None);
        assert_eq!((found.deleted, found.overwritten), (1, 1));
    }

    #[test]
    fn what_came_too_late_is_left_out() {
        let all = [
            version("p%2Fa", "1", true, EARLY),
            version("p%2Ffalse", "f", true, LATE),
        ]
        .concat();
        let (versions, found) = taken(&[page(&all, LAST)], Some("2026-01-15T00:00:00Z"));
        assert_eq!(
            (id(&versions, "p/a"), id(&versions, "p/false")),
            (Some("1"), None)
        );
        assert_eq!(found.too_late, 1);
    }

    #[test]
    fn a_listing_that_goes_round_ends() {
        let more = "<IsTruncated>true</IsTruncated><NextKeyMarker>p%2Fa</NextKeyMarker>";
        let mut versions = Versions::new("p", None);
        versions.add(page("", more).as_bytes()).unwrap();
        versions.add(page("", more).as_bytes()).unwrap_err();
        let nowhere = page("", "<IsTruncated>true</IsTruncated>");
        Versions::new("p", None).add(nowhere.as_bytes()).unwrap_err();
        Versions::new("p", None).add(b"<html>hello").unwrap_err();
    }
}
