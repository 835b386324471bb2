//! Finds from its path which relation a file of the data directory belongs to.
//!
//! Source of the names: `parse_filename_for_nontemp_relation` in
//! `src/backend/storage/file/reinit.c`, `GetRelationPath` in `src/common/relpath.c`.

use std::fmt;

/// A file that holds (a part of) one fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// OID of the tablespace, where it is not one of the two built-in ones.
    pub tablespace: Option<u32>,
    /// OID of the database; `None` for relations that all databases share.
    pub database: Option<u32>,
    /// The number in the names of the relation's files (`pg_class.relfilenode`).
    pub filenode: u32,
    /// Which fork of the relation.
    pub fork: Fork,
    /// Number of the part: relations are cut at 1 GiB, and the first part is 0.
    pub segment: u32,
}

/// The parallel files of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The rows or index entries.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "free space map",
            Self::VisibilityMap => "visibility map",
            Self::Init => "init",
        })
    }
}

/// The relation file at `path`, relative to the data directory; `None` for every other file,
/// temporary relations included.
#[must_use]
pub fn parse(path: &[u8]) -> Option<RelationFile> {
    let path = std::str::from_utf8(path).ok()?;
    let parts: Vec<&str> = path.splitn(6, '/').collect();
    let (tablespace, database, name) = match parts.as_slice() {
        ["global", name] => (None, None, name),
        ["base", database, name] => (None, Some(number(database)?), name),
        ["pg_tblspc", tablespace, version, database, name] if version.starts_with("PG_") => {
            (Some(number(tablespace)?), Some(number(database)?), name)
        }
        _ => return None,
    };
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, number(segment)?),
        None => (*name, 0),
    };
    let (filenode, fork) = match name.split_once('_') {
        None => (name, Fork::Main),
        Some((filenode, "fsm")) => (filenode, Fork::FreeSpaceMap),
        Some((filenode, "vm")) => (filenode, Fork::VisibilityMap),
        Some((filenode, "init")) => (filenode, Fork::Init),
        Some(_) => return None,
    };
    Some(RelationFile {
        tablespace,
        database,
        filenode: number(filenode)?,
        fork,
        segment,
    })
}

/// A number from 1 without sign or leading zeroes, as in the names of relation files.
fn number(digits: &str) -> Option<u32> {
    digits
        .starts_with(|first: char| matches!(first, '1'..='9'))
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_relation_files() {
        let file = |tablespace, database, filenode, fork, segment| {
            Some(RelationFile {
                tablespace,
                database,
                filenode,
                fork,
                segment,
            })
        };
        assert_eq!(parse(b"global/1260"), file(None, None, 1260, Fork::Main, 0));
        assert_eq!(
            parse(b"base/5/16384.17"),
            file(None, Some(5), 16384, Fork::Main, 17)
        );
        assert_eq!(
            parse(b"base/5/16384_vm"),
            file(None, Some(5), 16384, Fork::VisibilityMap, 0)
        );
        assert_eq!(
            parse(b"pg_tblspc/16400/PG_15_202209061/5/16384_fsm.1"),
            file(Some(16400), Some(5), 16384, Fork::FreeSpaceMap, 1)
        );
    }

    #[test]
    fn other_files_are_none() {
        for path in [
            "",
            "PG_VERSION",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "global/pg_control",
            "base/5/t3_16384",
            "base/5/016384",
            "base/5/16384.0",
            "base/5/16384_toast",
            "base/5/16384.1.2",
            "base/5/99999999999",
            "base/5/6/16384",
            "pg_tblspc/16400/other/5/16384",
            "pg_xact/0000",
            "base/+5/16384",
        ] {
            assert_eq!(parse(path.as_bytes()), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read_or_not(path: Vec<u8>) {
            let _ = parse(&path);
        }
    }
}
