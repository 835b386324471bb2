//! The `backup_manifest` of a backup that no server has sent. It lists the stored files, with the checksums of the file
//! maps.

use std::fs::File;
use std::io::{self, BufWriter, Seek};
use std::path::Path;

use barmanfs_pg::backup_manifest::{Checksum, ManifestFile, ManifestWriter, WalRange};
use barmanfs_pg::{SystemId, TimestampMicros};
use barmanfs_store::{DirectoryRef, Node, TreeReader};

use crate::error::Error;

/// The manifest does not list WAL by file but by range, which `pg_waldump` reads.
pub(crate) const WAL_DIRECTORY: &[u8] = b"pg_wal";

/// Since this version the manifest names the cluster. Older versions refuse such a manifest.
pub(crate) const NAMES_CLUSTER_SINCE: u32 = 17;

/// Writes the manifest of the tree at `root` into a nameless file in `spool`. Returns the file, positioned at its
/// start, and its size. `system_id` is given only from [`NAMES_CLUSTER_SINCE`] on.
pub(crate) fn write(
    (trees, root): (&TreeReader, &DirectoryRef),
    system_id: Option<SystemId>,
    range: WalRange,
    spool: &Path,
) -> Result<(File, u64), Error> {
    let output = tempfile::tempfile_in(spool).map_err(unwritable)?;
    let mut writer = ManifestWriter::begin(BufWriter::new(output), system_id).map_err(unwritable)?;
    list(trees, root, &mut Vec::new(), &mut writer)?;
    let output = writer.finish(&[range]).map_err(unwritable)?;
    let mut output = output
        .into_inner()
        .map_err(|error| unwritable(error.into_error()))?;
    let size_bytes = output.stream_position().map_err(unwritable)?;
    output.rewind().map_err(unwritable)?;
    Ok((output, size_bytes))
}

fn list(
    trees: &TreeReader,
    directory: &DirectoryRef,
    path: &mut Vec<u8>,
    writer: &mut ManifestWriter<BufWriter<File>>,
) -> Result<(), Error> {
    let length = path.len();
    for entry in trees.entries(directory) {
        let entry = entry?;
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        match entry.node {
            Node::Directory(below) if path != WAL_DIRECTORY => list(trees, &below, path, writer)?,
            Node::File(map) => {
                let file = ManifestFile {
                    path: path.clone(),
                    size_bytes: map.size_bytes,
                    modified: modified(entry.attributes.mtime_s),
                    checksum: Some(Checksum::Crc32c(map.crc32c)),
                };
                writer.file(&file).map_err(unwritable)?;
            }
            Node::Directory(_) | Node::Symlink(_) => {}
        }
        path.truncate(length);
    }
    Ok(())
}

/// A time in the server's format: `2026-11-21 00:25:17 GMT`.
fn modified(time_s: i64) -> String {
    let text = TimestampMicros::from_unix_seconds(time_s).to_string();
    let second = text.split_once('.').map_or(text.as_str(), |(second, _)| second);
    format!("{second} GMT")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritable(error: io::Error) -> Error {
    Error::failed(format!("Cannot write the backup_manifest: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_written_as_a_server_does() {
        assert_eq!(super::modified(1_795_183_387), "2026-11-20 14:03:07 GMT");
    }
}
