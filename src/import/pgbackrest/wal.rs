//! The archived WAL of a stanza, in the order in which it is taken.
//!
//! Each directory holds the WAL of one database; only those of the present one are taken. Names are listed directory by
//! directory, each of which holds 256 segments or fewer of 16 MiB.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_foreign::pgbackrest::{ArchiveInfo, ArchivedFile, Passphrase, archive_directory_version};
use barmanfs_pg::SystemId;
use barmanfs_store::open_unlinked;

use super::content::{Slice, Summed, decoded};
use crate::error::Error;
use crate::import::directory::cannot_read;
use crate::import::{ForeignWal, LeftOut};

/// What pgBackRest is still writing.
const TEMPORARY: &str = ".pgbackrest.tmp";

type Item = Result<ForeignWal, LeftOut>;

/// The files of an archive.
#[derive(Debug)]
pub(super) struct Files {
    passphrase: Option<Passphrase>,
    ready: VecDeque<Item>,
    /// Directories that are not listed yet.
    directories: VecDeque<PathBuf>,
}

impl Files {
    /// Finds the directories in `archive` with the WAL of `system_id`, and their history files.
    ///
    /// # Errors
    /// When the archive cannot be listed.
    pub(super) fn of(archive: &Path, info: ArchiveInfo, system_id: SystemId) -> Result<Self, Error> {
        let mut files = Self {
            passphrase: info.passphrase,
            ready: VecDeque::new(),
            directories: VecDeque::new(),
        };
        let mut databases = Vec::new();
        for name in names(archive).map_err(|error| cannot_read(archive, &error))? {
            let place = archive.join(&name);
            let Some((version, number)) = archive_directory_version(&name).filter(|_| place.is_dir()) else {
                continue;
            };
            let known = info
                .databases
                .iter()
                .find(|(id, known, _)| (*id, *known) == (number, version));
            let described = place.display().to_string();
            match known {
                Some((_, _, found)) if *found == system_id => databases.push((number, place)),
                Some((_, _, found)) => files.ready.push_back(Err(LeftOut::expected(
                    described,
                    format!("it is the WAL of another cluster, {found}"),
                ))),
                None => files
                    .ready
                    .push_back(Err(LeftOut::problem(described, "archive.info does not know it"))),
            }
        }
        databases.sort();
        for (_, place) in databases {
            files.list_database(&place)?;
        }
        Ok(files)
    }

    /// History files, and the directories with segments.
    fn list_database(&mut self, place: &Path) -> Result<(), Error> {
        for name in names(place).map_err(|error| cannot_read(place, &error))? {
            let inner = place.join(&name);
            let is_directory =
                name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) && inner.is_dir();
            match is_directory {
                true => self.directories.push_back(inner),
                false => self.add(&inner, &name),
            }
        }
        Ok(())
    }

    fn add(&mut self, place: &Path, name: &str) {
        if name.ends_with(TEMPORARY) {
            return;
        }
        let described = place.display().to_string();
        let file = match name.parse::<ArchivedFile>() {
            Ok(file) => file,
            Err(error) => {
                self.ready
                    .push_back(Err(LeftOut::problem(described, error.to_string())));
                return;
            }
        };
        let (place, passphrase) = (place.to_owned(), self.passphrase.clone());
        self.ready.push_back(Ok(ForeignWal {
            name: file.name,
            place: described,
            arriving: None,
            open: Box::new(move || open(&place, file, passphrase.as_ref())),
        }));
    }
}

fn open(place: &Path, file: ArchivedFile, passphrase: Option<&Passphrase>) -> io::Result<Box<dyn Read>> {
    let stored = Slice::whole(Arc::new(open_unlinked(place)?));
    let content = decoded(stored, passphrase, file.compression, false)?;
    Ok(match file.checksum {
        Some(sum) => Box::new(Summed::new(content, sum, "what it holds")),
        None => content,
    })
}

/// The names in a directory, in their order. What is not UTF-8 is shown as well as it can be, and is no name of pgBackRest.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

impl Iterator for Files {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let directory = self.directories.pop_front()?;
            match names(&directory) {
                Ok(names) => {
                    for name in names {
                        self.add(&directory.join(&name), &name);
                    }
                }
                // It has expired.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let (what, why) = (
                        directory.display().to_string(),
                        format!("it cannot be listed: {error}"),
                    );
                    return Some(Err(LeftOut::problem(what, why)));
                }
            }
        }
    }
}
