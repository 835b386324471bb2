//! The mark of a directory that is the cache of a repository in an object store.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{regular, write_durably};
use crate::error::{Error, Result};

/// The file that makes a directory the cache of a repository elsewhere.
const MARKER: &str = "cache-of.json";

/// The content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CacheOf {
    place: String,
}

/// The place whose cache a directory is; `None` if it is none.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn cache_of(path: &Path) -> Result<Option<String>> {
    let file = path.join(MARKER);
    match regular::read(&file) {
        Ok(text) => match serde_json::from_slice::<CacheOf>(&text) {
            Ok(of) => Ok(Some(of.place)),
            Err(error) => Err(Error::Invalid(format!("{} is damaged: {error}", file.display()))),
        },
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::io("read", &file, source)),
    }
}

/// Makes a directory the cache of a place.
pub(crate) fn mark(path: &Path, place: &str) -> Result<()> {
    let of = CacheOf {
        place: place.to_owned(),
    };
    let text = serde_json::to_string(&of).map_err(|error| Error::Invalid(error.to_string()))?;
    write_durably(&path.join(MARKER), format!("{text}\n").as_bytes())
}

/// Refuses the cache of another place, or of none.
pub(crate) fn require_cache_of(path: &Path, place: &str) -> Result<()> {
    match cache_of(path)? {
        Some(of) if of == place => Ok(()),
        Some(of) => Err(Error::Invalid(format!(
            "{} is the cache of the repository {of}, not of {place}: name another directory with 'cache'",
            path.display()
        ))),
        None => Err(Error::Invalid(format!(
            "{} is a repository of its own, and no cache of {place}: name another directory with 'cache'",
            path.display()
        ))),
    }
}

/// A cache has no packs: it must not be taken for a repository.
pub(crate) fn refuse_cache(path: &Path) -> Result<()> {
    match cache_of(path)? {
        None => Ok(()),
        Some(place) => Err(Error::Invalid(format!(
            "{} is the cache of the repository {place}: its packs are there. Name that one as 'repository'",
            path.display()
        ))),
    }
}
