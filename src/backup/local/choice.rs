//! What of a running server's files is in a backup: what the server would send itself.
//!
//! Source of the rules: `excludeDirContents`, `excludeFiles`, `sendDir` and `sendTablespace` in
//! `src/backend/backup/basebackup.c`. Names count at any depth, as there.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use barmanfs_pg::recreated::{
    EMPTIED_DIRECTORIES, is_relation_cache, is_temporary_file, is_temporary_relation,
};
use barmanfs_pg::relation_name::{self, Fork};
use barmanfs_store::Attributes;

use tracing::subscriber::NoSubscriber;

use super::CONTROL;
use super::place::{DataDirectory, in_seconds};
use crate::backup::pages::is_unlogged;
use crate::backup::wal_directories;
use crate::error::Error;
use crate::output::printable;
use crate::signals::Interruption;
use crate::walk::{self, Choice, Visitor, attributes, cannot_read, leave_link_out};

/// Files of a running server, or of another backup.
const LEFT_OUT: [&[u8]; 7] = [
    b"backup_label",
    b"backup_manifest",
    b"current_logfiles.tmp",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"tablespace_map",
];

/// Permissions of a directory in the place of a link.
const DIRECTORY_MODE: u32 = 0o700;

/// The directory of the links to tablespaces.
const TABLESPACES: &[u8] = b"pg_tblspc";

/// A tablespace within the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InPlace {
    pub(super) oid: u32,
    pub(super) location: String,
}

/// A file that is to be read.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) path: Vec<u8>,
    pub(super) place: PathBuf,
    pub(super) size_bytes: u64,
}

/// Takes what is in the backup.
pub(super) trait Target {
    /// # Errors
    /// Any ends the walk.
    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error>;

    /// # Errors
    /// Any ends the walk.
    fn file(&mut self, job: Job) -> Result<(), Error>;
}

/// The walk through one data directory.
#[derive(Debug)]
pub(super) struct Walk {
    data: PathBuf,
    major: u32,
    root: Attributes,
    /// Tablespaces that are there at the start. Those that are made later come from the WAL.
    tablespaces: BTreeSet<Vec<u8>>,
    /// Places of tablespaces below the data directory, which are not read twice.
    inside: BTreeSet<PathBuf>,
    /// The repository and its mounts, which would hold themselves.
    own: Vec<PathBuf>,
}

impl Walk {
    /// # Errors
    /// When the directory of tablespaces cannot be read.
    pub(super) fn new(
        data: &DataDirectory,
        (major, root): (u32, Attributes),
        own: Vec<PathBuf>,
    ) -> Result<Self, Error> {
        let data = fs::canonicalize(data.path()).map_err(|error| cannot_read(data.path(), &error))?;
        let links = data.join("pg_tblspc");
        let (mut tablespaces, mut inside) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(&links).map_err(|error| cannot_read(&links, &error))? {
            let entry = entry.map_err(|error| cannot_read(&links, &error))?;
            let name = entry.file_name();
            if !is_oid(name.as_bytes()) {
                continue;
            }
            tablespaces.insert(name.as_bytes().to_vec());
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if let Some(place) = fs::canonicalize(entry.path()).ok().filter(|_| is_link)
                && place.starts_with(&data)
            {
                inside.insert(place);
            }
        }
        Ok(Self {
            data,
            major,
            root,
            tablespaces,
            inside,
            own,
        })
    }

    /// Tablespaces that are directories of `pg_tblspc` itself.
    pub(super) fn in_place(&self) -> Vec<InPlace> {
        let names = self.tablespaces.iter().filter_map(|name| {
            let location = format!("pg_tblspc/{}", String::from_utf8_lossy(name));
            let found = fs::symlink_metadata(self.data.join(&location)).ok()?;
            let oid = std::str::from_utf8(name).ok()?.parse().ok()?;
            found.is_dir().then_some(InPlace { oid, location })
        });
        names.collect()
    }

    /// Shows everything to `target`.
    ///
    /// # Errors
    /// When something cannot be read, and those of the target.
    pub(super) fn run(&self, target: &mut dyn Target) -> Result<(), Error> {
        walk::walk(&mut Walking { walk: self, target }, &self.data, b"")
    }

    /// The size of all files, for the progress; `None` if something prevents it. What is left out is said when the files are read.
    pub(super) fn total_bytes(&self, signals: &Interruption) -> Option<u64> {
        struct Sizes<'s>(u64, &'s Interruption);
        impl Target for Sizes<'_> {
            fn directory(&mut self, _: &[u8], _: Attributes) -> Result<(), Error> {
                match self.1.requested() {
                    true => Err(Error::failed("Interrupted")),
                    false => Ok(()),
                }
            }

            fn file(&mut self, job: Job) -> Result<(), Error> {
                self.0 += job.size_bytes;
                Ok(())
            }
        }
        let mut sizes = Sizes(0, signals);
        let walked = tracing::subscriber::with_default(NoSubscriber::new(), || self.run(&mut sizes));
        walked.ok().map(|()| sizes.0)
    }

    /// The directory that a tablespace has for this version.
    fn is_of_version(&self, name: &[u8]) -> bool {
        name.starts_with(format!("PG_{}_", self.major).as_bytes())
    }
}

struct Walking<'w, 't> {
    walk: &'w Walk,
    target: &'t mut dyn Target,
}

impl Visitor for Walking<'_, '_> {
    fn is_live(&self) -> bool {
        true
    }

    fn choose(&mut self, path: &[u8], place: &Path, found: &Metadata) -> Result<Choice, Error> {
        let (parent, name) = split(path);
        if is_left_out(name) || path == CONTROL {
            return Ok(Choice::LeaveOut);
        }
        if path == b"pg_wal" {
            for path in wal_directories(self.walk.major) {
                self.target.directory(path, as_directory(found))?;
            }
            return Ok(Choice::Stored);
        }
        if EMPTIED_DIRECTORIES.contains(&name) && (found.is_dir() || found.is_symlink()) {
            self.target.directory(path, as_directory(found))?;
            return Ok(Choice::Stored);
        }
        if found.is_dir() && self.walk.own.iter().any(|own| own == place) {
            tracing::warn!(
                "{} is of barmanfs itself, and left out. What destroys the data directory destroys a repository in it, too: \
                 move it to another disk",
                printable(place.as_os_str().as_bytes())
            );
            return Ok(Choice::LeaveOut);
        }
        if parent == TABLESPACES && found.is_symlink() {
            return self.tablespace(path, name, place, found);
        }
        if let Some(rest) = parent.strip_prefix(b"pg_tblspc/")
            && is_oid(rest)
            && !self.walk.is_of_version(name)
        {
            return Ok(Choice::LeaveOut);
        }
        if is_database(parent) && is_reset(path, name, place) {
            return Ok(Choice::LeaveOut);
        }
        if found.is_symlink() {
            return leave_link_out(path, place);
        }
        if found.is_dir() && self.walk.inside.contains(place) {
            self.target.directory(path, in_seconds(attributes(found)))?;
            return Ok(Choice::Stored);
        }
        Ok(Choice::Take)
    }

    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        self.target.directory(path, in_seconds(attributes))
    }

    fn file(&mut self, path: &[u8], place: &Path, found: &Metadata) -> Result<(), Error> {
        self.target.file(Job {
            path: path.to_vec(),
            place: place.to_owned(),
            size_bytes: found.len(),
        })
    }
}

impl Walking<'_, '_> {
    /// A directory takes the place of a tablespace's link, with what is at its end.
    fn tablespace(
        &mut self,
        path: &[u8],
        name: &[u8],
        place: &Path,
        found: &Metadata,
    ) -> Result<Choice, Error> {
        let like = Attributes {
            mode: self.walk.root.mode,
            ..in_seconds(attributes(found))
        };
        self.target.directory(path, like)?;
        if !self.walk.tablespaces.contains(name) {
            return Ok(Choice::Stored);
        }
        match fs::metadata(place) {
            // Dropped meanwhile, link and all.
            Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(place).is_err() => {}
            Err(error) => return Err(cannot_read(place, &error)),
            Ok(_) => walk::walk(self, place, path)?,
        }
        Ok(Choice::Stored)
    }
}

/// What a link looks like as a directory.
fn as_directory(found: &Metadata) -> Attributes {
    let like = in_seconds(attributes(found));
    match found.is_symlink() {
        true => Attributes {
            mode: DIRECTORY_MODE,
            ..like
        },
        false => like,
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

fn is_left_out(name: &[u8]) -> bool {
    LEFT_OUT.contains(&name) || is_temporary_file(name) || is_relation_cache(name)
}

fn is_oid(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

/// `base/<oid>` or `pg_tblspc/<oid>/PG_<version>/<oid>`.
fn is_database(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    match parts.as_slice() {
        [b"base", database] => is_oid(database),
        [b"pg_tblspc", space, version, database] => {
            is_oid(space) && version.starts_with(b"PG_") && is_oid(database)
        }
        _ => false,
    }
}

/// A temporary relation, or a file of an unlogged one but for its init fork.
fn is_reset(path: &[u8], name: &[u8], place: &Path) -> bool {
    is_temporary_relation(name)
        || relation_name::parse(path)
            .is_some_and(|file| file.fork != Fork::Init && is_unlogged(place, file.filenode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_left_out_at_any_depth_and_only_in_full() {
        for name in [
            "postmaster.pid",
            "pg_internal.init.4711",
            "pgsql_tmp",
            "pgsql_tmp12.0",
            "tablespace_map",
        ] {
            assert!(is_left_out(name.as_bytes()), "{name}");
        }
        for name in [
            "backup_label.old",
            "postmaster.external.pid",
            "PG_VERSION",
            "x.pgsql_tmp",
        ] {
            assert!(!is_left_out(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn relations_are_only_in_the_directories_of_databases() {
        for path in ["base/5", "pg_tblspc/16384/PG_18_202506291/5"] {
            assert!(is_database(path.as_bytes()), "{path}");
        }
        for path in [
            "base",
            "base/pgsql_tmp",
            "global",
            "base/5/6",
            "pg_tblspc/16384/x/5",
            "pg_tblspc/16384",
        ] {
            assert!(!is_database(path.as_bytes()), "{path}");
        }
    }
}
