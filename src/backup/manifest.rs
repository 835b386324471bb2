//! Holding what was stored against the server's manifest.
//!
//! Every file the manifest lists must be in the tree with its size and CRC-32C, and every file of the tree (but the WAL
//! and the manifest itself) must be listed; of the WAL that comes with a backup, PostgreSQL lists the status files and
//! not the segments. The checksums come from the file maps, so no data is read again.

use std::io::BufReader;

use barmanfs_pg::SystemId;
use barmanfs_pg::manifest::{self, Checksum, ManifestError, ManifestFile};
use barmanfs_store::{DirectoryRef, TreeReader};

use super::receive::{FileSet, Received, WAL_DIRECTORY, file_map};
use crate::error::Error;
use crate::output::printable;

/// Checks the tree at `root`; an error names the first file that does not agree.
pub(super) fn check(
    received: &Received,
    trees: &TreeReader,
    root: &DirectoryRef,
    system_id: SystemId,
) -> Result<(), Error> {
    let mut listed = FileSet::default();
    let read = manifest::read(BufReader::new(&received.manifest), &mut |file| {
        if !file.path.starts_with(WAL_DIRECTORY) {
            listed.add(&file.path);
        }
        check_file(&file, trees, root)
    });
    let summary = read.map_err(|error| match error {
        ManifestError::Stopped(error) => error,
        other => Error::failed(other.to_string()),
    })?;
    if !summary.checksum_ok {
        return Err(Error::failed(
            "The manifest's own checksum is wrong: it was damaged on its way",
        ));
    }
    if let Some(other) = summary.system_id.filter(|other| *other != system_id) {
        return Err(Error::failed(format!(
            "The manifest is of the cluster {other}, the backup of {system_id}"
        )));
    }
    if listed != received.files {
        return Err(Error::failed(format!(
            "The server sent {} files, its manifest lists {} and not the same",
            received.files.count, listed.count
        )));
    }
    Ok(())
}

fn check_file(file: &ManifestFile, trees: &TreeReader, root: &DirectoryRef) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::failed(format!("File {}: {what}", printable(&file.path))));
    let Some(stored) = trees.find(root, &file.path)?.and_then(file_map) else {
        return wrong("the manifest lists it, but the server did not send it".to_owned());
    };
    if stored.size_bytes != file.size_bytes {
        return wrong(format!(
            "the manifest gives {} bytes, stored are {}",
            file.size_bytes, stored.size_bytes
        ));
    }
    match &file.checksum {
        Some(Checksum::Crc32c(crc)) if *crc == stored.crc32c => Ok(()),
        Some(Checksum::Crc32c(crc)) => wrong(format!(
            "the manifest gives the CRC-32C {crc:08x}, stored is {:08x}",
            stored.crc32c
        )),
        Some(Checksum::Other { algorithm, .. }) => {
            wrong(format!("the manifest gives a {algorithm} instead of a CRC-32C"))
        }
        None => wrong("the manifest gives no checksum".to_owned()),
    }
}
