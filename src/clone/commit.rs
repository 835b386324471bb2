//! Makes a clone a backup of its server. What was changed is read and stored; all else is taken from the backup that
//! the clone is based on, without reading it.
//!
//! The backup starts as the clone would: at once after a clean shutdown, otherwise with crash recovery from the WAL in
//! its `pg_wal`. The clone is not changed.

use std::fs::File;

use barmanfs_catalog::{
    Backup, BackupEnd, BackupRun, BackupSelector, Error as CatalogError, NewBackup, Repository, Tablespace,
};
use barmanfs_live::{Kind, NodeAttributes};
use barmanfs_pg::ServerVersion;
use barmanfs_store::layout::{DATA_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use barmanfs_store::{Attributes, DirectoryRef, TreeReader};

use super::OfflineClone;
use super::backup_contents::{Inclusion, inclusion};
use super::needed_wal::{Needed, Position};
use crate::error::Error;
use crate::made_manifest;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;

/// The directory of tablespaces, which are directories in a clone.
const TABLESPACES: &[u8] = b"pg_tblspc";

/// The name of the manifest in the tree, and its mode, the same as in `pg_basebackup`.
const MANIFEST: &[u8] = b"backup_manifest";
const MANIFEST_MODE: u32 = 0o600;

/// Zeros to write at a time.
const ZEROS: &[u8] = &[0; 128 << 10];

/// Bytes of a segment to read at a time.
const READ_BYTES: usize = 128 << 10;

/// A clone that is being made a backup.
struct Commit<'a> {
    repository: &'a Repository,
    clone: &'a OfflineClone,
    position: Position,
    progress: Progress,
    signals: Interruption,
    /// Bytes of the clone read so far.
    read_bytes: u64,
    tablespaces: Vec<u32>,
}

/// Makes a backup of a clone. It ends complete or not at all.
pub(crate) fn commit(
    repository: &Repository,
    clone: &OfflineClone,
    label: Option<String>,
    quiet: bool,
) -> Result<Backup, Error> {
    let position = Position::of(clone)?;
    let base = base_of(repository, clone)?;
    let (server, name) = (&clone.description.server, &clone.description.name);
    let control = &position.control;
    let server_version = match &base {
        Some(base) => base.server_version,
        None => version(clone)?,
    };
    let new = NewBackup {
        label,
        system_id: control.system_id,
        server_version,
        segment_size: control.segment_size,
        wal_included: true,
        fork: None,
        timezone: base.as_ref().and_then(|base| base.timezone.clone()),
    };
    let shut_down = position.is_shut_down();
    let mut work = Commit {
        repository,
        clone,
        position,
        progress: Progress::start(format!("Commit of {name}"), Counted::Bytes, quiet),
        signals: Interruption::watch(|| {})?,
        read_bytes: 0,
        tablespaces: Vec::new(),
    };
    let writer = repository.writer(&format!("commit of {}", clone.described()))?;
    let mut run = writer.begin_backup(server, new)?;
    let id = run.id();
    let made = run
        .build_on_clone(&clone.description, shut_down)
        .map_err(Error::from)
        .and_then(|()| work.run(&mut run, server_version, base.as_ref()));
    let context =
        |error: Error| error.context(format_args!("Backup {id} of clone {name} of {server} FAILED"));
    match made {
        Ok(end) => run.finish(end).map_err(|error| context(error.into())),
        Err(error) => {
            run.fail(&error.to_string());
            Err(context(error))
        }
    }
}

/// The backup the clone is based on; it may have been deleted.
fn base_of(repository: &Repository, clone: &OfflineClone) -> Result<Option<Backup>, Error> {
    let selector = BackupSelector::Id(clone.description.origin.backup);
    match repository.backup(&clone.description.server, &selector) {
        Err(CatalogError::NoSuchBackup { .. }) => Ok(None),
        found => Ok(Some(found?)),
    }
}

/// The version as far as the data directory shows it: the first release of its major version.
fn version(clone: &OfflineClone) -> Result<ServerVersion, Error> {
    let text = clone.read_small(b"PG_VERSION", 16)?.unwrap_or_default();
    ServerVersion::of_data_directory(&text)
        .ok_or_else(|| Error::failed(format!("PG_VERSION of {} holds no version", clone.described())))
}

impl Commit<'_> {
    /// Stores the tree and its manifest.
    fn run(
        &mut self,
        run: &mut BackupRun,
        version: ServerVersion,
        base: Option<&Backup>,
    ) -> Result<BackupEnd, Error> {
        let clone = self.clone;
        clone.walk(&mut |path, found| self.store(run, path, found))?;
        let root = clone.files.attributes(clone.files.root())?.stored();
        self.progress.note("writing directories and manifest");
        let (trees, directory) = run.end_tree(root)?;
        let (mut content, size_bytes) = self.manifest(&trees, &directory, version)?;
        let attributes = Attributes {
            mode: MANIFEST_MODE,
            ..root
        };
        run.add_file(MANIFEST, attributes, size_bytes, &mut content)?;
        let control = &self.position.control;
        Ok(BackupEnd {
            start_lsn: control.redo,
            stop_lsn: self.position.checkpoint_end,
            timeline: control.timeline,
            data_checksums: Some(control.data_checksum_version != 0),
            tablespaces: self.tablespaces(base),
            sent_bytes: self.read_bytes,
            checksum_failures: Vec::new(),
            from_standby: false,
        })
    }

    fn manifest(
        &self,
        trees: &TreeReader,
        root: &DirectoryRef,
        version: ServerVersion,
    ) -> Result<(File, u64), Error> {
        let names_cluster = version.major() >= made_manifest::NAMES_CLUSTER_SINCE;
        let system_id = names_cluster.then_some(self.position.control.system_id);
        made_manifest::write(
            (trees, root),
            system_id,
            self.position.range(),
            self.repository.path(),
        )
    }

    /// Stores one entry. Returns whether to enter a directory.
    fn store(&mut self, run: &BackupRun, path: &[u8], found: &NodeAttributes) -> Result<bool, Error> {
        if self.signals.requested() {
            return Err(Error::failed("Interrupted"));
        }
        let inclusion = inclusion(path);
        match (found.kind, inclusion) {
            (_, Inclusion::LeftOut) | (Kind::Socket, _) => return Ok(false),
            (Kind::Directory, Inclusion::Wal) => {}
            (Kind::Directory, _) => {
                self.note_tablespace(path);
                run.tree()?.directory(path, found.stored())?;
                return Ok(inclusion == Inclusion::Included);
            }
            (Kind::Symlink, _) => self.symlink(run, path, found)?,
            (Kind::File, Inclusion::Wal) => self.wal(run, path, found)?,
            (Kind::File, _) => self.file(run, path, found, DATA_WINDOW_BYTES)?,
        }
        Ok(false)
    }

    fn file(
        &mut self,
        run: &BackupRun,
        path: &[u8],
        found: &NodeAttributes,
        window_bytes: u32,
    ) -> Result<(), Error> {
        let files = &self.clone.files;
        self.read_bytes += files.store_file(found.node, run.tree()?, path, window_bytes)?;
        self.progress.set(self.read_bytes, None);
        Ok(())
    }

    fn wal(&mut self, run: &BackupRun, path: &[u8], found: &NodeAttributes) -> Result<(), Error> {
        let name = path.strip_prefix(b"pg_wal/").unwrap_or(path);
        match self.position.needs(self.clone, name, found)? {
            Needed::No => Ok(()),
            Needed::All => self.file(run, path, found, STREAM_WINDOW_BYTES),
            Needed::Beginning(bytes) => self.beginning(run, path, found, bytes),
        }
    }

    /// Stores the beginning of a segment, and fills the rest with zeros.
    fn beginning(
        &mut self,
        run: &BackupRun,
        path: &[u8],
        found: &NodeAttributes,
        bytes: u64,
    ) -> Result<(), Error> {
        let size_bytes = found.size_bytes;
        let mut sink = run
            .tree()?
            .file(path, found.stored(), size_bytes, STREAM_WINDOW_BYTES)?;
        let mut at = 0;
        while at < size_bytes {
            let read = bytes.saturating_sub(at);
            let (end, from_clone) = if read > 0 {
                (bytes, true)
            } else {
                (size_bytes, false)
            };
            let length = usize::try_from(end - at).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            if from_clone {
                sink.write(&self.clone.read(found.node, at, length)?)?;
                self.read_bytes += length as u64;
            } else {
                sink.write(ZEROS.get(..length).unwrap_or(ZEROS))?;
            }
            at += length as u64;
        }
        Ok(sink.finish()?)
    }

    /// A tablespace's link leads out of the clone, and its target is not part of the clone.
    fn symlink(&self, run: &BackupRun, path: &[u8], found: &NodeAttributes) -> Result<(), Error> {
        let target = self.clone.files.readlink(found.node)?;
        if path.starts_with(&[TABLESPACES, b"/"].concat()) {
            let hint = "Move what is in the tablespace to one with an empty location, or to pg_default";
            return Err(self.clone.leads_out(path, &target).hint(hint));
        }
        Ok(run.tree()?.symlink(path, found.stored(), &target)?)
    }

    fn note_tablespace(&mut self, path: &[u8]) {
        let oid: Option<u32> = path
            .strip_prefix(TABLESPACES)
            .and_then(|path| path.strip_prefix(b"/"))
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| name.parse().ok());
        self.tablespaces.extend(oid);
    }

    /// The tablespaces of the backup. For those that the base has, too, more than the number is known.
    fn tablespaces(&self, base: Option<&Backup>) -> Vec<Tablespace> {
        let known = base.map_or(&[][..], |base| &base.tablespaces);
        let described = |oid: &u32| {
            let known = known.iter().find(|space| space.oid == *oid);
            known.cloned().unwrap_or_else(|| Tablespace {
                oid: *oid,
                name: None,
                location: format!("pg_tblspc/{oid}"),
            })
        };
        self.tablespaces.iter().map(described).collect()
    }
}
