//! Compares the stored files with the server's manifest.
//!
//! Every file in the manifest must be in the tree with its size and CRC-32C. Every file of the tree, except the WAL and
//! the manifest itself, must be in the manifest. (Of the WAL in a backup, PostgreSQL lists the status files but not the
//! segments.) The checksums come from the file maps, so no data is read again.
//!
//! The manifest of an incremental backup describes what was sent; notes of that were taken on arrival. The same pass
//! writes the manifest of the composed files, as `pg_combinebackup` would, with the checksums of the file maps.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek};

use barmanfs_pg::backup_manifest::{
    self, Checksum, ManifestError, ManifestFile, ManifestSummary, ManifestWriter,
};
use barmanfs_pg::{SystemId, incremental};
use barmanfs_store::{DirectoryRef, FileMap, Finder, TreeReader};

use super::files::{FileSet, LABEL, WAL_DIRECTORY, file_map};
use super::receive::Received;
use super::sent_manifest::SentNotes;
use crate::error::Error;
use crate::output::printable;

/// Checks the tree at `root`. An error names the first file that does not agree.
pub(crate) fn check(
    received: &Received,
    trees: &TreeReader,
    root: &DirectoryRef,
    system_id: SystemId,
) -> Result<(), Error> {
    let mut files = Finder::new(trees.clone(), root.clone());
    read(received, system_id, &mut |file| {
        let map = stored(&file, &file.path, &mut files)?;
        agrees(&file, map.size_bytes, map.crc32c, "stored")
    })
    .map(drop)
}

/// Checks the tree at `root` of an incremental backup. Its manifest describes the files noted in `altered`. Writes the
/// manifest of the tree into `output`, an empty file, and returns that file with its size, positioned at its start.
pub(crate) fn compose(
    received: &Received,
    mut altered: SentNotes,
    (trees, root): (&TreeReader, &DirectoryRef),
    system_id: SystemId,
    output: File,
) -> Result<(File, u64), Error> {
    let unusable = |error: io::Error| Error::failed(format!("Cannot write the new backup_manifest: {error}"));
    let mut writer = ManifestWriter::begin(BufWriter::new(output), Some(system_id)).map_err(unusable)?;
    let mut files = Finder::new(trees.clone(), root.clone());
    let summary = read(received, system_id, &mut |file| {
        let plain = incremental::plain_path(&file.path);
        let path = plain.as_deref().unwrap_or(&file.path);
        let map = stored(&file, path, &mut files)?;
        if plain.is_some() || path == LABEL {
            match altered.take(&file.path).map_err(unusable)? {
                Some(sent) => agrees(&file, sent.size_bytes, sent.crc32c, "sent")?,
                None => return Err(wrong(&file, "the manifest lists it where another file was sent")),
            }
        } else {
            agrees(&file, map.size_bytes, map.crc32c, "stored")?;
        }
        let composed = ManifestFile {
            path: path.to_vec(),
            size_bytes: map.size_bytes,
            modified: file.modified.clone(),
            checksum: Some(Checksum::Crc32c(map.crc32c)),
        };
        writer.file(&composed).map_err(unusable)
    })?;
    let output = writer.finish(&summary.wal_ranges).map_err(unusable)?;
    let mut output = output
        .into_inner()
        .map_err(|error| unusable(error.into_error()))?;
    let size_bytes = output.stream_position().map_err(unusable)?;
    output.rewind().map_err(unusable)?;
    Ok((output, size_bytes))
}

/// Reads the received manifest, checks what does not concern a single file, and passes each file to `on_file`.
fn read(
    received: &Received,
    system_id: SystemId,
    on_file: &mut dyn FnMut(ManifestFile) -> Result<(), Error>,
) -> Result<ManifestSummary, Error> {
    let mut listed = FileSet::default();
    let summary = summary(&received.manifest, system_id, &mut |file| {
        if !file.path.starts_with(WAL_DIRECTORY) {
            listed.add(&file.path);
        }
        on_file(file)
    })?;
    if listed != received.files {
        return Err(Error::failed(format!(
            "The server sent {} files, its manifest lists {} and not the same",
            received.files.count, listed.count
        )));
    }
    Ok(summary)
}

/// Reads a manifest, passes each file to `on_file`, and checks what does not concern a file.
///
/// # Errors
/// Those of `on_file`; when the manifest is damaged, or of another cluster.
pub(crate) fn summary(
    manifest: &File,
    system_id: SystemId,
    on_file: &mut dyn FnMut(ManifestFile) -> Result<(), Error>,
) -> Result<ManifestSummary, Error> {
    let read = backup_manifest::read(BufReader::new(manifest), on_file);
    let summary = read.map_err(|error| match error {
        ManifestError::Stopped(error) => error,
        other => Error::failed(other.to_string()),
    })?;
    if !summary.is_of_known_version() {
        tracing::warn!(
            "The backup's manifest has version {}, which this release of barmanfs does not know: the files were checked \
             against it, and what else it says was passed over",
            summary.version
        );
    }
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
    Ok(summary)
}

pub(crate) fn wrong(file: &ManifestFile, what: &str) -> Error {
    Error::failed(format!("File {}: {what}", printable(&file.path)))
}

/// The tree's file at `path`, which must exist because it is listed.
pub(crate) fn stored(file: &ManifestFile, path: &[u8], files: &mut Finder) -> Result<FileMap, Error> {
    files
        .find(path)?
        .and_then(file_map)
        .ok_or_else(|| wrong(file, "the manifest lists it, and it is missing"))
}

/// Compares a listed file with what is known about it; `what` is the verb for the message.
pub(crate) fn agrees(file: &ManifestFile, size_bytes: u64, crc32c: u32, what: &str) -> Result<(), Error> {
    agrees_in_size(file, size_bytes, what)?;
    let reason = match &file.checksum {
        Some(Checksum::Crc32c(listed)) if *listed == crc32c => return Ok(()),
        Some(Checksum::Crc32c(listed)) => {
            format!("the manifest gives the CRC-32C {listed:08x}, {what} is {crc32c:08x}")
        }
        Some(Checksum::Other { algorithm, .. }) => {
            format!("the manifest gives a {algorithm} instead of a CRC-32C")
        }
        None => "the manifest gives no checksum".to_owned(),
    };
    Err(wrong(file, &reason))
}

/// The same of the size alone.
pub(crate) fn agrees_in_size(file: &ManifestFile, size_bytes: u64, what: &str) -> Result<(), Error> {
    let listed = file.size_bytes;
    match size_bytes == listed {
        true => Ok(()),
        false => Err(wrong(
            file,
            &format!("the manifest gives {listed} bytes, {what} are {size_bytes}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use barmanfs_catalog::{CreateOptions, NewBackup, Repository};
    use barmanfs_pg::backup_manifest::ManifestWriter;
    use barmanfs_pg::{SegmentSize, ServerVersion};
    use barmanfs_store::Attributes;
    use barmanfs_store::layout::DATA_WINDOW_BYTES;
    use insta::assert_snapshot;

    use super::*;

    const SYSTEM: SystemId = SystemId(7_710_414_268_036_822_209);
    const ROOT: Attributes = Attributes {
        mode: 0o700,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
    };

    fn listed(path: &str, content: &[u8]) -> ManifestFile {
        ManifestFile {
            path: path.as_bytes().to_vec(),
            size_bytes: content.len() as u64,
            modified: "2026-11-21 00:25:17 GMT".to_owned(),
            checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
        }
    }

    /// Stores `sent` and checks it against a manifest of `files`, after `damage` has modified the manifest.
    fn outcome(sent: &[(&str, &[u8])], files: &[ManifestFile], damage: impl FnOnce(&mut Vec<u8>)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::create(&directory.path().join("r"), CreateOptions::default()).unwrap();
        let new = NewBackup {
            label: None,
            system_id: SYSTEM,
            server_version: ServerVersion(180_004),
            segment_size: SegmentSize::DEFAULT,
            wal_included: true,
            fork: None,
            timezone: None,
        };
        let mut run = repository
            .writer("test")
            .unwrap()
            .begin_backup(&"main".parse().unwrap(), new)
            .unwrap();
        let mut set = FileSet::default();
        for (path, content) in sent {
            let tree = run.tree().unwrap();
            let mut file = tree
                .file(path.as_bytes(), ROOT, content.len() as u64, DATA_WINDOW_BYTES)
                .unwrap();
            file.write(content).unwrap();
            file.finish().unwrap();
            set.add(path.as_bytes());
        }
        let (trees, root) = run.end_tree(ROOT).unwrap();
        let mut writer = ManifestWriter::begin(Vec::new(), Some(SYSTEM)).unwrap();
        files.iter().for_each(|file| writer.file(file).unwrap());
        let mut bytes = writer.finish(&[]).unwrap();
        damage(&mut bytes);
        let mut spool = tempfile::tempfile().unwrap();
        spool.write_all(&bytes).unwrap();
        spool.rewind().unwrap();
        let received = Received {
            manifest: spool,
            files: set,
            altered: None,
        };
        match check(&received, &trees, &root, SYSTEM) {
            Ok(()) => "good".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_files_sent_must_match_the_manifest() {
        let sent: &[(&str, &[u8])] = &[("PG_VERSION", b"18\n"), ("base/5/1259", &[7; 8192])];
        let [version, class] = [listed("PG_VERSION", b"18\n"), listed("base/5/1259", &[7; 8192])];
        let wal = listed("pg_wal/archive_status/000000010000000000000001.done", b"");
        let whole = [version.clone(), class.clone()];
        let kept = |_: &mut Vec<u8>| {};
        let other_bytes = listed("base/5/1259", &[8; 8192]);
        let no_checksum = ManifestFile {
            checksum: None,
            ..class.clone()
        };
        let outcomes = [
            outcome(sent, &whole, kept),
            outcome(sent, &[version.clone(), class.clone(), wal], kept),
            outcome(sent, &[version.clone(), other_bytes], kept),
            outcome(sent, &[version.clone(), listed("base/5/1259", &[7; 16384])], kept),
            outcome(sent, &[version.clone(), no_checksum], kept),
            outcome(sent, std::slice::from_ref(&version), kept),
            outcome(sent, &[version.clone(), version.clone()], kept),
            outcome(&sent[..1], &whole, kept),
            outcome(sent, &whole, |bytes| {
                let text = String::from_utf8(bytes.clone()).unwrap();
                *bytes = text.replace("00:25:17", "00:25:18").into_bytes();
            }),
            outcome(sent, &whole, |bytes| bytes.truncate(100)),
        ];
        assert_snapshot!(outcomes.join("\n"), @"
        good
        File pg_wal/archive_status/000000010000000000000001.done: the manifest lists it, and it is missing
        File base/5/1259: the manifest gives the CRC-32C 9645acba, stored is 71345c80
        File base/5/1259: the manifest gives 16384 bytes, stored are 8192
        File base/5/1259: the manifest gives no checksum
        The server sent 2 files, its manifest lists 1 and not the same
        The server sent 2 files, its manifest lists 2 and not the same
        File base/5/1259: the manifest lists it, and it is missing
        The manifest's own checksum is wrong: it was damaged on its way
        backup_manifest is not as PostgreSQL writes it: EOF while parsing a string at line 4 column 4
        ");
    }
}
