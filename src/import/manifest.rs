//! Checks the stored files of an imported backup against its `backup_manifest`, or makes one.
//!
//! Sizes are always compared, and checksums whatever their algorithm: CRC-32C is that of the file maps, and SHA-2 is computed
//! while the files arrive ([`crate::backup::sums`]), or read back where its algorithm was not known then.
//!
//! The server's manifest is stored as it is if it describes the stored files. It does not where files were put together
//! with a parent's, where its checksums are no CRC-32C, and where `pg_basebackup -R` has changed `postgresql.auto.conf`. Then
//! it is written again, with the checksums of the file maps.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek};
use std::path::Path;

use barmanfs_pg::backup_manifest::{self, Checksum, ManifestError, ManifestFile, ManifestWriter};
use barmanfs_pg::{ServerVersion, SystemId, incremental};
use barmanfs_store::{DirectoryRef, FileMap, Finder, TreeReader};

use crate::backup::files::{FileSet, LABEL, WAL_DIRECTORY};
use crate::backup::receive::spooled;
use crate::backup::sent_manifest::SentNotes;
use crate::backup::server_manifest::{self, agrees, agrees_in_size, stored, wrong};
use crate::backup::sums::{Sha2, Sums};
use crate::error::Error;
use crate::made_manifest::NAMES_CLUSTER_SINCE;

/// The file that `pg_basebackup -R` adds settings to.
pub(super) const AUTO_CONF: &[u8] = b"postgresql.auto.conf";

/// The files that make a server recover.
const SIGNALS: [&[u8]; 2] = [b"recovery.signal", b"standby.signal"];

/// The files that `pg_basebackup -R` changes or makes.
pub(super) const CHANGED: &[&[u8]] = &[AUTO_CONF, b"recovery.signal", b"standby.signal"];

/// What is known of the files that arrived.
pub(super) struct Files<'a> {
    pub(super) seen: FileSet,
    pub(super) notes: SentNotes,
    /// Their SHA-2, if the manifest was known to have it.
    pub(super) sums: Sums,
    /// Whether any is stored in another form than it arrived in.
    pub(super) has_altered: bool,
    pub(super) trees: &'a TreeReader,
    pub(super) root: &'a DirectoryRef,
}

/// The check of one manifest.
struct Check<'a> {
    files: Files<'a>,
    finder: Finder,
    /// The files that the manifest lists, without WAL.
    listed: FileSet,
    /// Of the files that make a server recover, those that the manifest lists.
    listed_signals: Vec<Vec<u8>>,
    /// Writes the manifest of the stored files.
    writer: ManifestWriter<BufWriter<File>>,
    /// Whether the given manifest does not describe the stored files.
    is_other: bool,
    /// The listed files whose SHA-2 must be among the sums.
    listed_sums: FileSet,
    /// Why checksums are not compared.
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
        finder: Finder::new(files.trees.clone(), files.root.clone()),
        files,
        listed: FileSet::default(),
        listed_signals: Vec::new(),
        writer,
        listed_sums: FileSet::default(),
        uncompared: None,
    };
    let summary = server_manifest::summary(&given, system_id, &mut |file| check.file(file))?;
    check.add_signals()?;
    let Check {
        listed,
        files,
        is_other,
        uncompared,
        listed_sums,
        writer,
        ..
    } = check;
    if listed != files.seen {
        return Err(Error::failed(format!(
            "backup_manifest lists {} files, there are {} and not the same",
            listed.count, files.seen.count
        )));
    }
    if listed_sums != files.sums.as_stored {
        return Err(other_sum(&mut given, &files));
    }
    if let Some(why) = uncompared {
        tracing::warn!("backup_manifest has {why}: of these files only the sizes were checked");
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
            let found = self.finder.find(name);
            if !is_listed && found.map_err(barmanfs_catalog::Error::from)?.is_some() {
                self.listed.add(name);
            }
        }
        Ok(())
    }

    /// Compares a checksum that is no CRC-32C.
    fn sum(&mut self, file: &ManifestFile, map: &FileMap) -> Result<(), Error> {
        let Some(Checksum::Other { algorithm, hex }) = &file.checksum else {
            self.uncompared.get_or_insert_with(|| "no checksums".to_owned());
            return Ok(());
        };
        let Some(known) = Sha2::of(algorithm) else {
            let why = || format!("checksums by {algorithm}, which this release does not know");
            self.uncompared.get_or_insert_with(why);
            return Ok(());
        };
        match summed(&self.files.sums, known, &file.path) {
            Summed::Apart(found) => same_sum(file, algorithm, hex, found),
            Summed::InAll => {
                self.listed_sums.add_with(&file.path, &hex.to_ascii_lowercase());
                Ok(())
            }
            Summed::Not => {
                let found = stored_sum(file, map, known, self.files.trees)?;
                same_sum(file, algorithm, hex, &found)
            }
        }
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
        let map = stored(&file, path, &mut self.finder)?;
        let is_altered = plain.is_some() || path == LABEL;
        let (size_bytes, crc32c, what) = match is_altered {
            true => match self.files.notes.take(&file.path).map_err(unwritable)? {
                Some(sent) => (sent.size_bytes, sent.crc32c, "read"),
                None => return Err(wrong(&file, "the manifest lists it, and it is missing")),
            },
            false => (map.size_bytes, map.crc32c, "stored"),
        };
        let agreed = match &file.checksum {
            Some(Checksum::Crc32c(_)) => agrees(&file, size_bytes, crc32c, what),
            _ => {
                self.is_other = true;
                agrees_in_size(&file, size_bytes, what).and_then(|()| self.sum(&file, &map))
            }
        };
        match agreed {
            Err(_) if path == AUTO_CONF => self.is_other = true,
            agreed => agreed?,
        }
        file.path = path.to_vec();
        file.size_bytes = map.size_bytes;
        file.checksum = Some(Checksum::Crc32c(map.crc32c));
        self.writer.file(&file).map_err(unwritable)
    }
}

/// Whether the sums have the hash of a listed file.
enum Summed<'a> {
    /// They have it by itself.
    Apart(&'a str),
    /// It is a part of the sum of all.
    InAll,
    /// They do not have it.
    Not,
}

fn summed<'a>(sums: &'a Sums, algorithm: Sha2, path: &[u8]) -> Summed<'a> {
    match sums.apart.get(path) {
        _ if sums.algorithm != Some(algorithm) => Summed::Not,
        Some(hash) => Summed::Apart(hash),
        None if path.starts_with(WAL_DIRECTORY) => Summed::Not,
        None => Summed::InAll,
    }
}

fn same_sum(file: &ManifestFile, algorithm: &str, listed: &str, found: &str) -> Result<(), Error> {
    match listed.eq_ignore_ascii_case(found) {
        true => Ok(()),
        false => Err(wrong(
            file,
            &format!("the manifest gives the {algorithm} {listed}, that of the file is {found}"),
        )),
    }
}

/// Reads a stored file again for its hash.
fn stored_sum(
    file: &ManifestFile,
    map: &FileMap,
    algorithm: Sha2,
    trees: &TreeReader,
) -> Result<String, Error> {
    let hash = algorithm.hash(trees.reader(map.clone()));
    hash.map_err(|error| wrong(file, &format!("it cannot be read back: {error}")))
}

/// Finds the file whose hash is another one than the manifest's: the sum of all has shown that there is one.
fn other_sum(given: &mut File, files: &Files<'_>) -> Error {
    if let Err(error) = given.rewind() {
        return unwritable(error);
    }
    let mut finder = Finder::new(files.trees.clone(), files.root.clone());
    let read = backup_manifest::read(BufReader::new(&*given), &mut |file: ManifestFile| {
        let Some(Checksum::Other { algorithm, hex }) = &file.checksum else {
            return Ok(());
        };
        let Some(known) = Sha2::of(algorithm) else {
            return Ok(());
        };
        match summed(&files.sums, known, &file.path) {
            Summed::InAll => {
                let map = stored(&file, &file.path, &mut finder)?;
                let found = stored_sum(&file, &map, known, files.trees)?;
                same_sum(&file, algorithm, hex, &found)
            }
            Summed::Apart(_) | Summed::Not => Ok(()),
        }
    });
    match read {
        Err(ManifestError::Stopped(error)) => error,
        Err(error) => Error::failed(error.to_string()),
        Ok(_) => Error::failed("The checksums of the files that were read are not those of backup_manifest"),
    }
}

/// What is known from a manifest before the files come.
pub(super) struct Outline {
    /// The SHA-2 that it has, by its first file; `None` if it has none.
    pub(super) sha2: Option<Sha2>,
    /// Size of all its files together, without those that `pg_basebackup -R` changes; `None` if it is damaged.
    pub(super) size_bytes: Option<u64>,
}

/// Reads a manifest from its beginning on, and goes back to it.
pub(super) fn outline(manifest: &mut File) -> io::Result<Outline> {
    manifest.rewind()?;
    let (mut sha2, mut is_first, mut size_bytes) = (None, true, 0_u64);
    let read = backup_manifest::read(BufReader::new(&*manifest), &mut |file| {
        if let Some(Checksum::Other { algorithm, .. }) = &file.checksum
            && is_first
        {
            sha2 = Sha2::of(algorithm);
        }
        is_first = false;
        if !CHANGED.contains(&file.path.as_slice()) {
            size_bytes = size_bytes.saturating_add(file.size_bytes);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    manifest.rewind()?;
    // What is wrong with it is said by the check at the end.
    let size_bytes = read.is_ok().then_some(size_bytes);
    Ok(Outline { sha2, size_bytes })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritable(error: io::Error) -> Error {
    Error::failed(format!("Cannot write the backup_manifest: {error}"))
}
