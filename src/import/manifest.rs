//! Checks the stored files of an imported backup against its `backup_manifest`, or makes one.
//!
//! The server's manifest is stored as it is if it describes the stored files. It does not where files were put together
//! with a parent's, where its checksums are no CRC-32C, and where `pg_basebackup -R` has changed `postgresql.auto.conf`. Then
//! it is written again, with the checksums of the file maps.

use std::fs::File;
use std::io::{self, BufWriter, Seek};
use std::path::Path;

use barmanfs_pg::backup_manifest::{Checksum, ManifestFile, ManifestWriter};
use barmanfs_pg::{ServerVersion, SystemId, incremental};
use barmanfs_store::{DirectoryRef, TreeReader};

use crate::backup::files::{FileSet, LABEL, WAL_DIRECTORY};
use crate::backup::receive::spooled;
use crate::backup::sent_manifest::SentNotes;
use crate::backup::server_manifest::{self, agrees, stored, wrong};
use crate::error::Error;
use crate::made_manifest::NAMES_CLUSTER_SINCE;

/// The file that `pg_basebackup -R` adds settings to.
pub(super) const AUTO_CONF: &[u8] = b"postgresql.auto.conf";

/// The files that make a server recover.
const SIGNALS: [&[u8]; 2] = [b"recovery.signal", b"standby.signal"];

/// What is known of the files that arrived.
pub(super) struct Files<'a> {
    pub(super) seen: FileSet,
    pub(super) notes: SentNotes,
    /// Whether any is stored in another form than it arrived in.
    pub(super) has_altered: bool,
    pub(super) trees: &'a TreeReader,
    pub(super) root: &'a DirectoryRef,
}

/// The check of one manifest.
struct Check<'a> {
    files: Files<'a>,
    /// The files that the manifest lists, without WAL.
    listed: FileSet,
    /// Of the files that make a server recover, those that the manifest lists.
    listed_signals: Vec<Vec<u8>>,
    /// Writes the manifest of the stored files.
    writer: ManifestWriter<BufWriter<File>>,
    /// Whether the given manifest does not describe the stored files.
    is_other: bool,
    /// An algorithm of checksums that are not compared.
    uncompared: Option<String>,
}

/// Checks the stored files against the manifest `given`. Returns the manifest of the stored files with its size, positioned at
/// its start. `spool` is a directory with room for it.
///
/// # Errors
/// When a file is missing or has another size or checksum, and when the manifest is damaged.
pub(super) fn check(
    mut given: File,
    files: Files<'_>,
    (system_id, version): (SystemId, ServerVersion),
    spool: &Path,
) -> Result<(File, u64), Error> {
    let named = (version.major() >= NAMES_CLUSTER_SINCE).then_some(system_id);
    let writer = ManifestWriter::begin(BufWriter::new(spooled(spool)?), named).map_err(unwritable)?;
    let mut check = Check {
        is_other: files.has_altered,
        files,
        listed: FileSet::default(),
        listed_signals: Vec::new(),
        writer,
        uncompared: None,
    };
    let summary = server_manifest::summary(&given, system_id, &mut |file| check.file(file))?;
    check.add_signals()?;
    let Check {
        listed,
        files,
        is_other,
        uncompared,
        writer,
        ..
    } = check;
    if listed != files.seen {
        return Err(Error::failed(format!(
            "backup_manifest lists {} files, there are {} and not the same",
            listed.count, files.seen.count
        )));
    }
    if let Some(algorithm) = uncompared {
        tracing::warn!(
            "backup_manifest has checksums by {algorithm}, which are not compared: of these files only the sizes were checked"
        );
    }
    if is_other {
        let output = writer.finish(&summary.wal_ranges).map_err(unwritable)?;
        given = output
            .into_inner()
            .map_err(|error| unwritable(error.into_error()))?;
    }
    let size_bytes = given.seek(io::SeekFrom::End(0)).map_err(unwritable)?;
    given.rewind().map_err(unwritable)?;
    Ok((given, size_bytes))
}

impl Check<'_> {
    /// `pg_basebackup -R` adds one of these after the server has made the manifest.
    fn add_signals(&mut self) -> Result<(), Error> {
        for name in SIGNALS {
            let is_listed = self.listed_signals.iter().any(|listed| listed == name);
            let found = self.files.trees.find(self.files.root, name);
            if !is_listed && found.map_err(barmanfs_catalog::Error::from)?.is_some() {
                self.listed.add(name);
            }
        }
        Ok(())
    }

    fn file(&mut self, mut file: ManifestFile) -> Result<(), Error> {
        if !file.path.starts_with(WAL_DIRECTORY) {
            self.listed.add(&file.path);
        }
        if SIGNALS.contains(&file.path.as_slice()) {
            self.listed_signals.push(file.path.clone());
        }
        let plain = incremental::plain_path(&file.path);
        let path = plain.as_deref().unwrap_or(&file.path);
        let map = stored(&file, path, self.files.trees, self.files.root)?;
        if matches!(file.checksum, Some(Checksum::Other { .. }) | None) {
            self.is_other = true;
            let algorithm = match &file.checksum {
                Some(Checksum::Other { algorithm, .. }) => algorithm.clone(),
                _ => "no algorithm".to_owned(),
            };
            self.uncompared.get_or_insert(algorithm);
        } else if plain.is_some() || path == LABEL {
            match self.files.notes.take(&file.path).map_err(unwritable)? {
                Some(sent) => agrees(&file, sent.size_bytes, sent.crc32c, "read")?,
                None => return Err(wrong(&file, "the manifest lists it, and it is missing")),
            }
        } else if let Err(error) = agrees(&file, map.size_bytes, map.crc32c, "stored") {
            if path != AUTO_CONF {
                return Err(error);
            }
            self.is_other = true;
        }
        file.path = path.to_vec();
        file.size_bytes = map.size_bytes;
        file.checksum = Some(Checksum::Crc32c(map.crc32c));
        self.writer.file(&file).map_err(unwritable)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritable(error: io::Error) -> Error {
    Error::failed(format!("Cannot write the backup_manifest: {error}"))
}
