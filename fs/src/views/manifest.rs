//! The manifest of a view in which a file comes or goes that `pg_verifybackup` looks at.

use std::fs::File;
use std::io::{self, BufWriter, Seek};
use std::sync::Arc;

use barmanfs_pg::manifest::{self, Checksum, ManifestError, ManifestFile, ManifestWriter};
use barmanfs_store::FileMap;

use super::tree::BackupTree;
use super::{Body, made};
use crate::error::{Error, Result};

/// The file's name.
pub(super) const NAME: &[u8] = b"backup_manifest";

/// The manifest `map` without the file `unlisted` and with those of `listed`: streamed into a file without a name,
/// since that of a large cluster has hundreds of megabytes.
pub(super) fn made_anew(
    tree: &BackupTree,
    map: FileMap,
    unlisted: Option<&str>,
    listed: &[(&str, &str)],
) -> Result<Body> {
    let not_shown = |reason: String| Error::View {
        backup: format!("{} of server {}", tree.backup.id, tree.backup.server),
        reason,
    };
    let failed = |source| Error::io("write", "(a manifest made for a view)", source);
    let output = made::nameless_file(&tree.context).map_err(failed)?;
    let input = tree.context.trees.reader(map.clone());
    let summary = manifest::read(input, &mut |_| Ok::<(), io::Error>(()));
    let summary = summary.map_err(|error| not_shown(error.to_string()))?;
    if !summary.checksum_ok {
        return Err(not_shown(
            "its backup_manifest does not match its own checksum".to_owned(),
        ));
    }
    let mut writer = ManifestWriter::begin(BufWriter::new(output), summary.system_id).map_err(failed)?;
    let mut modified = String::new();
    let copied = manifest::read(tree.context.trees.reader(map), &mut |file: ManifestFile| {
        if unlisted.is_some_and(|name| file.path == name.as_bytes()) {
            return Ok(());
        }
        modified.clone_from(&file.modified);
        writer.file(&file)
    });
    copied.map_err(|error: ManifestError<io::Error>| not_shown(error.to_string()))?;
    for (name, text) in listed {
        writer.file(&entry(name, text, &modified)).map_err(failed)?;
    }
    let output = writer.finish(&summary.wal_ranges).map_err(failed)?;
    let mut output: File = output.into_inner().map_err(|error| failed(error.into_error()))?;
    let size_bytes = output.stream_position().map_err(failed)?;
    Ok(Body::Spooled(Arc::new(output), size_bytes))
}

fn entry(name: &str, text: &str, modified: &str) -> ManifestFile {
    ManifestFile {
        path: name.as_bytes().to_vec(),
        size_bytes: text.len() as u64,
        modified: modified.to_owned(),
        checksum: Some(Checksum::Crc32c(crc32c::crc32c(text.as_bytes()))),
    }
}
