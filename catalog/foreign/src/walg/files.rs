//! `files_metadata.json`: the files of a backup. Early releases had the same in the sentinel.
//!
//! It may have a GiB, most of which are lists that nothing here needs: it is read as a stream, and only names and states of files
//! are kept.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::path;

/// The most files of a backup.
const FILES_MAX: usize = 16 << 20;

/// What is stored of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// All of it.
    Whole,
    /// The pages that changed since the backup before.
    Increment,
    /// Nothing: it is as in the backup before.
    Skipped,
}

/// Why a list of files is not taken.
#[derive(Debug, thiserror::Error)]
#[error("the list of its files cannot be read: {0}")]
pub struct FilesError(#[from] serde_json::Error);

/// The files and directories of a backup, by their paths in the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesMetadata {
    files: HashMap<Box<[u8]>, FileState>,
}

impl FilesMetadata {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, is cut, is not of this form, or names a file outside the data directory.
    pub fn parse(source: impl Read) -> Result<Self, FilesError> {
        let mut files = Self::default();
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(source));
        json.deserialize_map(Document(&mut files))?;
        json.end()?;
        Ok(files)
    }

    /// Whether nothing is known: the backup was taken without a list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What is stored of a file.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<FileState> {
        self.files.get(path).copied()
    }

    /// Takes a file out of the list.
    pub fn take(&mut self, path: &[u8]) -> Option<FileState> {
        self.files.remove(path)
    }

    /// The files that are in the list still, by their paths.
    #[must_use]
    pub fn into_rest(self) -> Vec<(Box<[u8]>, FileState)> {
        let mut rest: Vec<_> = self.files.into_iter().collect();
        rest.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        rest
    }
}

/// The object around everything.
struct Document<'a>(&'a mut FilesMetadata);

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the object of files_metadata.json")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "Files" => map.next_value_seed(Files(&mut *self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The object of files.
struct Files<'a>(&'a mut FilesMetadata);

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Files<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of files")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let files = &mut self.0.files;
        while let Some(name) = map.next_key::<String>()? {
            let file: Description = map.next_value()?;
            let state = match (file.is_incremented, file.is_skipped) {
                (false, false) => FileState::Whole,
                (true, false) => FileState::Increment,
                (false, true) => FileState::Skipped,
                (true, true) => {
                    return Err(A::Error::custom(format_args!(
                        "{name:?} is both an increment and skipped"
                    )));
                }
            };
            let name = name.strip_prefix('/').unwrap_or(&name);
            if name.is_empty() {
                // The data directory itself.
                continue;
            }
            path::relative(name.as_bytes()).map_err(A::Error::custom)?;
            if files.len() >= FILES_MAX {
                return Err(A::Error::custom(format_args!(
                    "there are more than {FILES_MAX} files"
                )));
            }
            if files.insert(name.as_bytes().into(), state).is_some() {
                return Err(A::Error::custom(format_args!("{name:?} is listed twice")));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Description {
    #[serde(rename = "IsIncremented", default)]
    is_incremented: bool,
    #[serde(rename = "IsSkipped", default)]
    is_skipped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<FilesMetadata, FilesError> {
        FilesMetadata::parse(text.as_bytes())
    }

    #[test]
    fn files_have_states_and_the_rest_is_passed_over() {
        let text = r#"{"Files":{"/PG_VERSION":{"IsIncremented":false,"IsSkipped":true,"MTime":"2026-11-20T10:15:00.1Z","CorruptBlocks":null,
            "UpdatesCount":0},"/":{},"/base/5/1259":{"IsIncremented":true,"IsSkipped":false},"base/5":{}},
            "TarFileSets":{"part_001.tar.lz4":["/PG_VERSION"]},"DatabasesByNames":{"postgres":{"oid":5}}}"#;
        let mut files = parse(text).unwrap();
        assert_eq!(files.get(b"PG_VERSION"), Some(FileState::Skipped));
        assert_eq!(files.take(b"base/5/1259"), Some(FileState::Increment));
        assert_eq!(files.take(b"base/5/1259"), None);
        let rest = files.into_rest();
        let rest: Vec<_> = rest.iter().map(|(path, state)| (&**path, *state)).collect();
        assert_eq!(
            rest,
            [
                (&b"PG_VERSION"[..], FileState::Skipped),
                (&b"base/5"[..], FileState::Whole)
            ]
        );
        for empty in [r#"{"Files":null}"#, "{}", r#"{"LSN":1,"Files":{}}"#] {
            assert!(parse(empty).unwrap().is_empty(), "{empty}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "",
            "[]",
            "{} x",
            r#"{"Files":3}"#,
            r#"{"Files":{"/../etc/passwd":{}}}"#,
            r#"{"Files":{"//x":{}}}"#,
            r#"{"Files":{"/x":{},"x":{}}}"#,
            r#"{"Files":{"/x":{"IsIncremented":true,"IsSkipped":true}}}"#,
            r#"{"Files":{"/x":{"IsSkipped":1}}}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let text = r#"{"Files":{"/x":{"IsSkipped":true}},"TarFileSets":{}}"#;
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "{end}");
        }
        // Deep nesting ends with an error, and not with the stack.
        assert!(parse(&format!(r#"{{"x":{}"#, "[".repeat(100_000))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(name in "\\PC{0,20}", rest in "\\PC{0,60}") {
            let _ = parse(&rest);
            let text = serde_json::json!({"Files": {name: {"IsSkipped": true}}}).to_string();
            let _ = parse(&text);
        }
    }
}
