//! Receives a server's stream: the archives of a base backup, and its manifest.
//!
//! The receiving thread parses tar headers and copies bytes into window buffers, nothing else: hashing, comparing and
//! compressing happen in the repository's threads.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use barmanfs_catalog::BackupRun;
use barmanfs_store::Attributes;
use barmanfs_store::layout::DATA_WINDOW_BYTES;

use super::compose::Composer;
use super::files::{BackupFiles, FileSet, MANIFEST};
use super::sent_manifest::SentNotes;
use crate::cluster::ServerSettings;
use crate::error::Error;
use crate::postgres::{Archive, BackupStart, BaseBackupSink, EndBlocks, SinkError, TarReader};
use crate::progress::Progress;

/// The first version whose archives end with zero blocks.
const FIRST_WITH_END_BLOCKS: u32 = 15;
/// The same as in pg_basebackup.
const MANIFEST_MODE: u32 = 0o600;
/// Bytes of the spooled manifest copied at a time.
const COPY_BYTES: usize = 128 << 10;

/// The spooled manifest, and the files that it must list.
#[derive(Debug)]
pub(crate) struct Received {
    /// A nameless file, positioned at its start.
    pub(crate) manifest: File,
    /// The received files, by the names under which they were sent.
    pub(crate) files: FileSet,
    /// The files that are stored in another form; `None` for a full backup. With `Some`, the tree lacks the manifest.
    pub(crate) altered: Option<SentNotes>,
}

/// Receives one base backup.
pub(super) struct Receiver<'a> {
    tar: Option<TarReader>,
    end_blocks: EndBlocks,
    files: BackupFiles<'a>,
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
            files: BackupFiles::new(run, composer, cluster.data_directory_mode),
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
        let run = self.files.run();
        let (root, files, composer) = self.files.finish();
        let altered = match composer {
            Some(composer) => Some(composer.finish().map_err(unusable)?),
            None => {
                store_manifest(run, root, &mut spool, self.manifest_bytes)?;
                None
            }
        };
        let received = Received {
            manifest: spool,
            files,
            altered,
        };
        Ok((root, received))
    }
}

/// Adds the manifest of a backup to its tree, whose other files are there. `spool` is positioned at its start, before and
/// afterwards.
pub(crate) fn store_manifest(
    run: &BackupRun,
    root: Attributes,
    spool: &mut File,
    size_bytes: u64,
) -> Result<(), Error> {
    let unusable =
        |error: std::io::Error| Error::failed(format!("Cannot read the spooled manifest: {error}"));
    let mut sink = run
        .tree()?
        .file(MANIFEST, manifest_attributes(root), size_bytes, DATA_WINDOW_BYTES)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match std::io::Read::read(spool, &mut buffer).map_err(unusable)? {
            0 => break,
            length => sink.write(buffer.get(..length).unwrap_or_default())?,
        }
    }
    sink.finish()?;
    spool.rewind().map_err(unusable)
}

/// Owner, permissions and time of the manifest, from those of the data directory.
pub(crate) fn manifest_attributes(root: Attributes) -> Attributes {
    Attributes {
        mode: MANIFEST_MODE,
        ..root
    }
}

/// A nameless file in this directory.
pub(crate) fn spooled(directory: &Path) -> Result<File, Error> {
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
        self.files.begin_archive(archive);
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
