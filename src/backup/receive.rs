//! Stores the server's stream as a tree in the repository.
//!
//! The receiving thread parses tar headers and copies bytes into window buffers, nothing else: hashing, comparing and
//! compressing happen in the repository's threads. Tablespaces become the directories `pg_tblspc/<oid>/` of the tree;
//! the symbolic links the server sends in their place point into the live server and are never stored.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use barmanfs_catalog::BackupRun;
use barmanfs_store::layout::{DATA_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use barmanfs_store::{Attributes, FileMap, FileSink, Node};

use super::compose::{Altered, Composer};
use super::sent_manifest::SentManifestNotes;
use crate::cluster::ServerSettings;
use crate::error::Error;
use crate::postgres::{
    Archive, BackupStart, BaseBackupSink, EndBlocks, SinkError, TarEntry, TarKind, TarReader, TarSink,
};
use crate::progress::Progress;

/// The first version whose archives end with zero blocks.
const FIRST_WITH_END_BLOCKS: u32 = 15;
/// The directory of the WAL. The manifest does not list all of it.
pub(super) const WAL_DIRECTORY: &[u8] = b"pg_wal/";
/// The directory of the links to tablespaces.
const TABLESPACES: &[u8] = b"pg_tblspc/";
/// The name of the manifest in the tree.
pub(super) const MANIFEST: &[u8] = b"backup_manifest";
/// The same as in pg_basebackup.
const MANIFEST_MODE: u32 = 0o600;
/// The name of the label in the tree.
pub(super) const LABEL: &[u8] = b"backup_label";
/// A label is a few lines; anything longer is not a label.
pub(super) const LABEL_FILE_MAX_BYTES: usize = 64 << 10;
/// Bytes of the spooled manifest copied at a time.
const COPY_BYTES: usize = 128 << 10;

/// The spooled manifest, and the files that it must list.
#[derive(Debug)]
pub(super) struct Received {
    /// A nameless file, positioned at its start.
    pub(super) manifest: File,
    /// The received files, by the names under which they were sent.
    pub(super) files: FileSet,
    /// The files that are stored in another form; `None` for a full backup. With `Some`, the tree lacks the manifest.
    pub(super) altered: Option<SentManifestNotes>,
}

/// A set of names in constant space. Two sets are the same when their numbers and their sums of hashes are the same.
/// The hash is strong, so two different sets do not have the same sum by chance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FileSet {
    pub(super) count: u64,
    sum: u128,
}

impl FileSet {
    pub(super) fn add(&mut self, path: &[u8]) {
        let hash = blake3::hash(path);
        let half = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
        self.count += 1;
    }
}

/// Receives one base backup.
pub(super) struct Receiver<'a> {
    tar: Option<TarReader>,
    end_blocks: EndBlocks,
    files: Files<'a>,
    manifest: BufWriter<File>,
    manifest_bytes: u64,
    progress: &'a Progress,
    total_bytes: Option<u64>,
}

impl<'a> Receiver<'a> {
    /// `spool` is a directory with space for the manifest.
    pub(super) fn begin(
        run: &'a BackupRun,
        spool: &Path,
        cluster: &ServerSettings,
        composer: Option<Composer>,
        progress: &'a Progress,
    ) -> Result<Self, Error> {
        let end_blocks = match cluster.version.major() {
            FIRST_WITH_END_BLOCKS.. => EndBlocks::Required,
            _ => EndBlocks::Optional,
        };
        // Its size is known only at its end, and a large cluster's manifest does not fit into memory.
        let spool = spooled(spool)?;
        Ok(Self {
            tar: None,
            end_blocks,
            files: Files::new(run, composer, cluster.data_directory_mode),
            manifest: BufWriter::with_capacity(COPY_BYTES, spool),
            manifest_bytes: 0,
            progress,
            total_bytes: None,
        })
    }

    /// Adds the manifest of a full backup to the tree; that of an incremental one is created when its tree is complete.
    /// Returns owner, permissions and time of the data directory, and the data for the check against the manifest.
    pub(super) fn finish(self) -> Result<(Attributes, Received), Error> {
        let unusable =
            |error: std::io::Error| Error::failed(format!("Cannot spool backup_manifest: {error}"));
        let mut spool = self
            .manifest
            .into_inner()
            .map_err(|error| unusable(error.into_error()))?;
        spool.rewind().map_err(unusable)?;
        let root = self.files.root;
        let altered = match self.files.composer {
            Some(composer) => Some(composer.finish().finish().map_err(unusable)?),
            None => {
                let tree = self.files.run.tree()?;
                let mut sink = tree.file(
                    MANIFEST,
                    manifest_attributes(root),
                    self.manifest_bytes,
                    DATA_WINDOW_BYTES,
                )?;
                let mut buffer = vec![0; COPY_BYTES];
                loop {
                    match std::io::Read::read(&mut spool, &mut buffer).map_err(unusable)? {
                        0 => break,
                        length => sink.write(buffer.get(..length).unwrap_or_default())?,
                    }
                }
                sink.finish()?;
                spool.rewind().map_err(unusable)?;
                None
            }
        };
        let received = Received {
            manifest: spool,
            files: self.files.seen,
            altered,
        };
        Ok((root, received))
    }
}

/// Owner, permissions and time of the manifest, from those of the data directory.
pub(super) fn manifest_attributes(root: Attributes) -> Attributes {
    Attributes {
        mode: MANIFEST_MODE,
        ..root
    }
}

/// A nameless file in this directory.
pub(super) fn spooled(directory: &Path) -> Result<File, Error> {
    tempfile::tempfile_in(directory).map_err(|error| {
        Error::failed(format!(
            "Cannot create a temporary file in the repository: {error}"
        ))
    })
}

impl BaseBackupSink for Receiver<'_> {
    fn begin(&mut self, start: &BackupStart) -> Result<(), SinkError> {
        // The server counts whole files, even if it will send only some blocks of them.
        self.total_bytes = match self.files.composer {
            Some(_) => None,
            None => start.total_kib.and_then(|kib| kib.checked_mul(1024)),
        };
        self.progress.set(0, self.total_bytes);
        self.progress.note("");
        Ok(())
    }

    fn archive(&mut self, archive: Archive) -> Result<(), SinkError> {
        self.tar = Some(TarReader::new(archive.file_name(), self.end_blocks));
        self.files.begin(archive);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let tar = self
            .tar
            .as_mut()
            .ok_or("There is data before the first archive")?;
        Ok(tar.feed(bytes, &mut self.files)?)
    }

    fn end_archive(&mut self) -> Result<(), SinkError> {
        let tar = self.tar.take().ok_or("An archive ends that did not begin")?;
        Ok(tar.finish()?)
    }

    fn manifest(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.manifest_bytes += bytes.len() as u64;
        Ok(self.manifest.write_all(bytes)?)
    }

    fn progress(&mut self, bytes_done: u64) -> Result<(), SinkError> {
        // The server made its estimate before the backup began; the database may have grown since.
        self.progress
            .set(bytes_done, self.total_bytes.map(|total| total.max(bytes_done)));
        Ok(())
    }
}

/// Stores the members of archives in the tree.
struct Files<'a> {
    run: &'a BackupRun,
    /// Prefix for the names in the archive: `pg_tblspc/16384/`.
    prefix: Vec<u8>,
    is_main: bool,
    /// For an incremental backup.
    composer: Option<Composer>,
    current: Option<Current>,
    root: Attributes,
    root_is_known: bool,
    seen: FileSet,
}

/// The file that is being received.
enum Current {
    AsItComes(FileSink),
    Altered(Altered),
}

impl<'a> Files<'a> {
    fn new(run: &'a BackupRun, composer: Option<Composer>, root_mode: u32) -> Self {
        let root = Attributes {
            mode: root_mode,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
        };
        Self {
            run,
            prefix: Vec::new(),
            is_main: true,
            composer,
            current: None,
            root,
            root_is_known: false,
            seen: FileSet::default(),
        }
    }

    fn begin(&mut self, archive: Archive) {
        self.is_main = archive == Archive::Main;
        self.prefix = match archive {
            Archive::Main => Vec::new(),
            Archive::Tablespace(oid) => [TABLESPACES, oid.to_string().as_bytes(), b"/"].concat(),
        };
    }

    /// The data directory itself is not sent. This uses the attributes of its first file, which the server creates when
    /// the backup begins.
    fn learn_root(&mut self, entry: &TarEntry) {
        if self.is_main && !self.root_is_known {
            self.root = Attributes {
                mode: self.root.mode,
                ..attributes(entry)
            };
            self.root_is_known = true;
        }
    }

    fn begin_file(&mut self, path: &[u8], entry: &TarEntry) -> Result<(), SinkError> {
        let in_wal = path.starts_with(WAL_DIRECTORY);
        if path == MANIFEST {
            return Err(
                "The archive holds a file backup_manifest, which PostgreSQL never sends there".into(),
            );
        }
        if !in_wal {
            self.seen.add(path);
        }
        let composed = self.composer.as_ref();
        if let Some(altered) =
            composed.and_then(|composer| composer.begin(path, attributes(entry), entry.size_bytes))
        {
            self.current = Some(Current::Altered(altered));
            return Ok(());
        }
        let window_bytes = if in_wal && is_segment(path) {
            STREAM_WINDOW_BYTES
        } else {
            DATA_WINDOW_BYTES
        };
        let sink = self
            .run
            .tree()?
            .file(path, attributes(entry), entry.size_bytes, window_bytes)?;
        self.current = Some(Current::AsItComes(sink));
        Ok(())
    }

    /// Creates a directory in place of a tablespace's link, for the tablespace's files.
    fn link(&mut self, path: &[u8], entry: &TarEntry) -> Result<(), SinkError> {
        let oid = path.strip_prefix(TABLESPACES).unwrap_or_default();
        let is_tablespace = !oid.is_empty() && oid.iter().all(u8::is_ascii_digit);
        if !(self.is_main && is_tablespace) {
            return Err(format!(
                "The archive holds a symbolic link \"{}\", which PostgreSQL never sends",
                path.escape_ascii()
            )
            .into());
        }
        // A link's permissions mean nothing, so the directory gets those of the data directory.
        Ok(self.run.tree()?.directory(
            path,
            Attributes {
                mode: self.root.mode,
                ..attributes(entry)
            },
        )?)
    }
}

impl TarSink for Files<'_> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        self.learn_root(entry);
        let path = [self.prefix.as_slice(), &entry.path].concat();
        match entry.kind {
            TarKind::File => self.begin_file(&path, entry),
            TarKind::Directory => Ok(self.run.tree()?.directory(&path, attributes(entry))?),
            TarKind::Symlink => self.link(&path, entry),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        match (&mut self.current, &mut self.composer) {
            (Some(Current::AsItComes(sink)), _) => Ok(sink.write(bytes)?),
            (Some(Current::Altered(file)), Some(composer)) => composer.write(file, self.run.tree()?, bytes),
            _ => Err("There is data outside of a file".into()),
        }
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        match (self.current.take(), &mut self.composer) {
            (Some(Current::AsItComes(sink)), _) => Ok(sink.finish()?),
            (Some(Current::Altered(file)), Some(composer)) => composer.end(file, self.run.tree()?),
            _ => Ok(()),
        }
    }
}

/// The content, if the entry is a file.
pub(super) fn file_map(entry: barmanfs_store::Entry) -> Option<FileMap> {
    match entry.node {
        Node::File(map) => Some(map),
        Node::Directory(_) | Node::Symlink(_) => None,
    }
}

fn attributes(entry: &TarEntry) -> Attributes {
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime_s: entry.mtime_s,
        mtime_ns: entry.mtime_ns,
    }
}

/// `pg_wal/` and 24 digits. Segments are stored in windows of WAL, so that they share chunks with the archive.
fn is_segment(path: &[u8]) -> bool {
    let name = path.strip_prefix(WAL_DIRECTORY).unwrap_or_default();
    name.len() == 24 && name.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_sets_are_equal_in_any_order_and_otherwise_differ() {
        let set = |names: &[&str]| {
            let mut set = FileSet::default();
            names.iter().for_each(|name| set.add(name.as_bytes()));
            set
        };
        assert_eq!(set(&["a", "b", "c"]), set(&["c", "a", "b"]));
        assert_ne!(set(&["a", "b"]), set(&["a", "c"]));
        assert_ne!(set(&["a", "b"]), set(&["a", "b", "b"]));
        assert_ne!(set(&["a", "a", "b"]), set(&["a", "b", "b"]));
    }

    #[test]
    fn only_segments_get_windows_of_wal() {
        assert!(is_segment(b"pg_wal/000000010000000000000009"));
        for other in [
            "pg_wal/00000002.history",
            "base/5/1259",
            "000000010000000000000009",
        ] {
            assert!(!is_segment(other.as_bytes()), "{other}");
        }
    }
}
