//! The manifest of a view that adds or leaves out a file that `pg_verifybackup` checks.
//!
//! The manifest of a large cluster has hundreds of megabytes. So it is generated when it is opened and kept while it
//! is open, in a nameless file, shared by all views with the same differences from the backup. Otherwise only the size
//! is kept.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, Weak};

use barmanfs_catalog::{BackupId, ServerName};
use barmanfs_pg::backup_manifest::{self, Checksum, ManifestError, ManifestFile, ManifestWriter};
use barmanfs_store::FileMap;
use barmanfs_store::sync::lock;

use super::generated;
use super::tree::BackupTree;
use crate::entry::Body;
use crate::error::{Error, Result};

/// The file's name.
pub(super) const NAME: &[u8] = b"backup_manifest";

/// Maximum number of sizes that are kept. Above it, all are forgotten.
const MAX_KNOWN: usize = 4096;

/// The differences between the manifest of a view and the stored one.
#[derive(Debug)]
pub(super) struct ViewManifest {
    /// The stored manifest.
    pub(super) stored: FileMap,
    /// Files that the view does not have.
    pub(super) unlisted: Vec<Vec<u8>>,
    /// Files with the view's content.
    pub(super) listed: Vec<(Vec<u8>, Arc<[u8]>)>,
}

/// The generated manifests of a mount.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    known: Mutex<HashMap<Key, Arc<Mutex<Known>>>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    server: ServerName,
    backup: BackupId,
    /// A hash of the differences.
    difference: [u8; 32],
}

/// A requested manifest. Locked while it is generated, so that concurrent readers share one.
#[derive(Debug, Default)]
struct Known {
    size_bytes: Option<u64>,
    open: Weak<File>,
}

impl Manifests {
    fn known(&self, tree: &BackupTree, of: &ViewManifest) -> Arc<Mutex<Known>> {
        let key = Key {
            server: tree.backup.server.clone(),
            backup: tree.backup.id,
            difference: of.difference(),
        };
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        Arc::clone(known.entry(key).or_default())
    }

    /// The size of a view's manifest. It is generated without being stored.
    pub(super) fn size_bytes(&self, tree: &BackupTree, of: &ViewManifest) -> Result<u64> {
        let known = self.known(tree, of);
        let mut known = lock(&known);
        if let Some(size_bytes) = known.size_bytes {
            return Ok(size_bytes);
        }
        let Counter(size_bytes) = of.write(tree, Counter(0))?;
        known.size_bytes = Some(size_bytes);
        Ok(size_bytes)
    }

    /// The content of a view's manifest. It is kept until the last reader drops it.
    pub(super) fn open(&self, tree: &BackupTree, of: &ViewManifest) -> Result<Body> {
        let known = self.known(tree, of);
        let mut known = lock(&known);
        if let (Some(file), Some(size_bytes)) = (known.open.upgrade(), known.size_bytes) {
            return Ok(Body::Spooled(file, size_bytes));
        }
        let output = generated::nameless_file(&tree.context).map_err(failed)?;
        let output = of.write(tree, BufWriter::new(output))?;
        let file = output.into_inner().map_err(|error| failed(error.into_error()))?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let file = Arc::new(file);
        *known = Known {
            size_bytes: Some(size_bytes),
            open: Arc::downgrade(&file),
        };
        Ok(Body::Spooled(file, size_bytes))
    }
}

impl ViewManifest {
    fn difference(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(&(self.unlisted.len() as u64).to_le_bytes());
        self.unlisted.iter().for_each(|name| add(name));
        for (name, text) in &self.listed {
            add(name);
            add(text);
        }
        hasher.finalize().into()
    }

    /// Whether the view leaves out the file of this name or has another one.
    fn differs_in(&self, path: &[u8]) -> bool {
        let mut listed = self.listed.iter();
        listed.any(|(name, _)| name == path) || self.unlisted.iter().any(|name| name == path)
    }

    fn write<W: Write>(&self, tree: &BackupTree, output: W) -> Result<W> {
        let not_shown = |reason: String| Error::View {
            backup: format!("{} of server {}", tree.backup.id, tree.backup.server),
            reason,
        };
        let input = || tree.context.trees.reader(self.stored.clone());
        let summary = backup_manifest::read(input(), &mut |_| Ok::<(), io::Error>(()));
        let summary = summary.map_err(|error| not_shown(error.to_string()))?;
        if !summary.checksum_ok {
            return Err(not_shown(
                "its backup_manifest does not match its own checksum".to_owned(),
            ));
        }
        let mut writer = ManifestWriter::begin(output, summary.system_id).map_err(failed)?;
        let mut modified = String::new();
        let copied = backup_manifest::read(input(), &mut |file: ManifestFile| {
            if self.differs_in(&file.path) {
                return Ok(());
            }
            modified.clone_from(&file.modified);
            writer.file(&file)
        });
        copied.map_err(|error: ManifestError<io::Error>| not_shown(error.to_string()))?;
        for (name, text) in &self.listed {
            writer.file(&entry(name, text, &modified)).map_err(failed)?;
        }
        writer.finish(&summary.wal_ranges).map_err(failed)
    }
}

fn failed(source: io::Error) -> Error {
    Error::io("write", "(a manifest made for a view)", source)
}

fn entry(path: &[u8], text: &[u8], modified: &str) -> ManifestFile {
    ManifestFile {
        path: path.to_vec(),
        size_bytes: text.len() as u64,
        modified: modified.to_owned(),
        checksum: Some(Checksum::Crc32c(crc32c::crc32c(text))),
    }
}

/// Counts the bytes written.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
