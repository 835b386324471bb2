//! Takes the files of one backup from a source, and stores them while they are read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use barmanfs_catalog::{Repository, ServerName};
use barmanfs_store::{Attributes, FileMap, Finder, TreeReader};

use super::allowance::Allowance;
use super::composed::Composed;
use super::own_wal::OwnWal;
use super::{Identity, has_damaged_files, manifest};
use crate::backup::compose::Incompatible;
use crate::backup::files::{BackupFiles, MANIFEST, file_map};
use crate::error::Error;
use crate::output::printable;
use crate::postgres::{Archive, EndBlocks, SinkError, TarEntry, TarKind, TarReader, TarSink};
use crate::progress::Progress;
use crate::signals::Interruption;

/// Bytes to read at a time.
const READ_BYTES: usize = 256 << 10;

/// The mode of a data directory, until the source says another one.
const ROOT_MODE: u32 = 0o700;

/// Where the files of one backup go. Paths are relative to the data directory; tablespaces are `pg_tblspc/<oid>/`.
pub(crate) struct Intake<'a> {
    pub(super) files: BackupFiles<'a>,
    pub(super) repository: &'a Repository,
    pub(super) server: &'a ServerName,
    pub(super) progress: &'a Progress,
    pub(super) signals: &'a Interruption,
    /// Bytes that were read so far; those of files that were taken over are not.
    pub(super) read_bytes: u64,
    /// Bytes of files that were taken over without reading them.
    pub(super) shared_bytes: u64,
    pub(super) total_bytes: Option<u64>,
    wal: OwnWal,
    /// What archives may still hold.
    allowance: Allowance,
    /// Whether the present member of an archive is not stored.
    is_passed_over: bool,
    /// The imported backup that files were taken over from last.
    pub(super) other: Option<Other>,
    /// Files that were put together, to be checked when the tree is complete.
    pub(super) composed: Vec<Composed>,
    /// Whether it was the repository that failed, so that no other backup can be stored either.
    pub(super) repository_failed: bool,
    buffer: Vec<u8>,
}

/// What a tar archive of a base backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The data directory or a tablespace, as a server sends it.
    Files(Archive),
    /// The WAL, as `pg_basebackup` writes it: `pg_wal.tar`.
    Wal,
}

/// The files of an imported backup.
pub(super) struct Other {
    identity: Identity,
    /// `None` if it is not here.
    files: Option<Finder>,
}

impl<'a> Intake<'a> {
    pub(crate) fn new(
        files: BackupFiles<'a>,
        (repository, server): (&'a Repository, &'a ServerName),
        (progress, signals): (&'a Progress, &'a Interruption),
        (total_bytes, wal): (Option<u64>, OwnWal),
    ) -> Self {
        Self {
            files,
            repository,
            server,
            progress,
            signals,
            read_bytes: 0,
            shared_bytes: 0,
            total_bytes,
            wal,
            allowance: Allowance::default(),
            is_passed_over: false,
            other: None,
            composed: Vec::new(),
            repository_failed: false,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Bytes that were read.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The mode of a data directory before its source says another one.
    pub(crate) const fn root_mode() -> u32 {
        ROOT_MODE
    }

    /// Prepares for the checksums and sizes of this manifest, before any file. A manifest that is known only later is checked by reading
    /// back what was stored.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn expect(&mut self, manifest: &mut File) -> Result<(), Error> {
        let outline = manifest::outline(manifest);
        let outline =
            outline.map_err(|error| Error::failed(format!("Cannot read backup_manifest: {error}")))?;
        if let Some(algorithm) = outline.sha2 {
            self.files.sum(algorithm, manifest::CHANGED);
        }
        self.allowance = outline.size_bytes.map(Allowance::of).unwrap_or_default();
        Ok(())
    }

    /// A directory for copies that are needed on the way.
    pub(crate) fn spool(&self) -> &'a Path {
        self.repository.path()
    }

    /// Whether a file at this path is stored. Of `pg_wal`, only what the backup needs is.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        self.wal.has(path)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// For a path that is refused or came before.
    pub(crate) fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        if !self.wal.has_directory(path) {
            return Ok(());
        }
        let added = self.files.directory(path, attributes);
        added.map_err(|error| self.failed(path, &error))
    }

    /// Adds a file of exactly `size_bytes`. `INCREMENTAL.<name>` is put together with the parent's file.
    ///
    /// # Errors
    /// When it cannot be read, has another size, or cannot be stored.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        if path == MANIFEST {
            return Err(Error::failed(
                "backup_manifest came as a file of the data directory",
            ));
        }
        if !self.wal.has(path) {
            return Ok(());
        }
        let begun = self.files.begin_file(path, attributes, size_bytes);
        begun.map_err(|error| self.failed(path, &error))?;
        let mut left = size_bytes;
        while left > 0 {
            let length = self.next(path, content)?;
            if length == 0 {
                return Err(wrong(path, format_args!("it ends {left} bytes early")));
            }
            left = left
                .checked_sub(length as u64)
                .ok_or_else(|| wrong(path, format_args!("it has more than {size_bytes} bytes")))?;
            let written = self.files.write(self.buffer.get(..length).unwrap_or_default());
            written.map_err(|error| self.failed(path, &error))?;
        }
        // What checks the content does so at its end.
        if self.next(path, content)? > 0 {
            return Err(wrong(path, format_args!("it has more than {size_bytes} bytes")));
        }
        let ended = self.files.end_file();
        ended.map_err(|error| self.failed(path, &error))
    }

    /// Takes a file over from another backup of the source, if that was imported and has it with this size: nothing is
    /// read. Returns whether it was taken.
    ///
    /// # Errors
    /// When that backup cannot be looked up, or the file cannot be stored.
    pub(crate) fn same_as(
        &mut self,
        other: &Identity,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
    ) -> Result<bool, Error> {
        // Its SHA-2 is known only of what is read.
        if self.files.is_summing() {
            return Ok(false);
        }
        let found = self.file_of(other, path)?;
        let Some((trees, map)) = found.filter(|(_, map)| map.size_bytes == size_bytes) else {
            return Ok(false);
        };
        let stored = self.files.stored_file(path, attributes, (&trees, &map));
        stored.map_err(|error| self.failed(path, &error))?;
        self.shared_bytes += size_bytes;
        self.show()?;
        Ok(true)
    }

    /// The file at this path in another backup of the source, if both are here.
    ///
    /// # Errors
    /// When they cannot be looked up.
    pub(super) fn file_of(
        &mut self,
        other: &Identity,
        path: &[u8],
    ) -> Result<Option<(TreeReader, FileMap)>, Error> {
        if self.other.as_ref().is_none_or(|last| last.identity != *other) {
            let mut found = other.find(self.repository, self.server)?;
            // The source may still be good.
            if let Some(here) = &found
                && has_damaged_files(self.repository, here)?
            {
                found = None;
            }
            let files =
                found.and_then(|backup| Some(Finder::new(self.repository.trees(), backup.root?.directory)));
            self.other = Some(Other {
                identity: other.clone(),
                files,
            });
        }
        let Some(files) = self.other.as_mut().and_then(|other| other.files.as_mut()) else {
            return Ok(None);
        };
        let map = files.find(path).map_err(barmanfs_catalog::Error::from)?;
        Ok(map.and_then(file_map).map(|map| (files.tree().clone(), map)))
    }

    /// Adds what a tar archive of a base backup holds, as PostgreSQL writes it.
    ///
    /// # Errors
    /// When it cannot be read, is cut or no such archive, or cannot be stored.
    pub(crate) fn archive(&mut self, part: Part, name: &str, content: &mut dyn Read) -> Result<(), Error> {
        let mut tar = TarReader::new(name, EndBlocks::Required);
        match part {
            Part::Files(archive) => self.files.begin_archive(archive),
            Part::Wal => self.files.begin_wal_archive(),
        }
        loop {
            let length = self.next(name.as_bytes(), content)?;
            let bytes = self.buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let mut wanted = Wanted {
                files: &mut self.files,
                wal: &self.wal,
                allowance: &mut self.allowance,
                is_passed_over: &mut self.is_passed_over,
            };
            let fed = tar.feed(bytes, &mut wanted);
            fed.map_err(|error| self.failed_in(&error))?;
        }
        tar.finish().map_err(|error| Error::failed(error.to_string()))
    }

    /// Reads into the buffer.
    fn next(&mut self, path: &[u8], content: &mut dyn Read) -> Result<usize, Error> {
        self.show()?;
        let length = loop {
            match content.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What reads may have noticed it first.
                    self.show()?;
                    return Err(wrong(path, format_args!("it cannot be read: {error}")));
                }
                Ok(length) => break length,
            }
        };
        self.read_bytes += length as u64;
        Ok(length)
    }

    pub(super) fn show(&mut self) -> Result<(), Error> {
        if self.signals.requested() {
            self.repository_failed = true;
            return Err(Error::failed("Interrupted"));
        }
        let done = self.read_bytes + self.shared_bytes;
        self.progress
            .set(done, self.total_bytes.map(|total| total.max(done)));
        Ok(())
    }

    pub(super) fn failed(&mut self, path: &[u8], error: &SinkError) -> Error {
        self.note(error.as_ref());
        wrong(path, format_args!("{error}"))
    }

    fn failed_in(&mut self, error: &crate::postgres::Error) -> Error {
        if let Some(failed) = error.sink::<barmanfs_store::Error>() {
            self.repository_failed |= !failed.is_damage();
        }
        Error::failed(error.to_string())
    }

    fn note(&mut self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let is_of_source = error.is::<Incompatible>()
            || error
                .downcast_ref::<barmanfs_store::Error>()
                .is_some_and(|error| error.is_damage() || matches!(error, barmanfs_store::Error::Invalid(_)));
        self.repository_failed |= !is_of_source;
    }
}

/// Passes on what is stored of an archive.
struct Wanted<'i, 'a> {
    files: &'i mut BackupFiles<'a>,
    wal: &'i OwnWal,
    allowance: &'i mut Allowance,
    is_passed_over: &'i mut bool,
}

impl TarSink for Wanted<'_, '_> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        let path = self.files.path_of(entry);
        self.allowance.take(&path, entry.size_bytes)?;
        let is_wanted = match entry.kind {
            TarKind::Directory => self.wal.has_directory(&path),
            TarKind::File | TarKind::Symlink => self.wal.has(&path),
        };
        *self.is_passed_over = !is_wanted;
        match is_wanted {
            true => self.files.entry(entry),
            false => Ok(()),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        match self.is_passed_over {
            true => Ok(()),
            false => self.files.data(bytes),
        }
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        match self.is_passed_over {
            true => Ok(()),
            false => self.files.end_entry(),
        }
    }
}

pub(super) fn wrong(path: &[u8], why: std::fmt::Arguments<'_>) -> Error {
    Error::failed(format!("{}: {why}", printable(path)))
}
