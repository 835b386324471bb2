//! Stores the files of a base backup in the tree of a run, as they arrive.
//!
//! They arrive as members of tar archives, from a server or a file, or one by one from a directory. Tablespaces become
//! the directories `pg_tblspc/<oid>/` of the tree; symbolic links in their place lead to a server's files and are never
//! stored.

use barmanfs_catalog::BackupRun;
use barmanfs_store::layout::{DATA_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use barmanfs_store::{Attributes, ComposedSink, FileMap, FileSink, Node, TreeReader};

use super::compose::{Altered, Composer};
use super::sums::{Sha2, Summing, Sums};
use crate::postgres::{Archive, SinkError, TarEntry, TarKind, TarSink};

/// The directory of the WAL. The manifest does not list all of it.
pub(crate) const WAL_DIRECTORY: &[u8] = b"pg_wal/";
/// The directory of the links to tablespaces.
const TABLESPACES: &[u8] = b"pg_tblspc/";
/// The name of the manifest in the tree.
pub(crate) const MANIFEST: &[u8] = b"backup_manifest";
/// The name of the label in the tree.
pub(crate) const LABEL: &[u8] = b"backup_label";
/// A label is a few lines; anything longer is not a label.
pub(crate) const LABEL_FILE_MAX_BYTES: usize = 64 << 10;

/// A set of names in constant space. Two sets are the same when their numbers and their sums of hashes are the same.
/// The hash is strong, so two different sets do not have the same sum by chance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileSet {
    pub(crate) count: u64,
    sum: u128,
}

impl FileSet {
    pub(crate) fn add(&mut self, path: &[u8]) {
        self.add_hash(blake3::hash(path));
    }

    /// Adds a name together with what belongs to it.
    pub(crate) fn add_with(&mut self, path: &[u8], what: &str) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(path).update(b"\0").update(what.as_bytes());
        self.add_hash(hasher.finalize());
    }

    fn add_hash(&mut self, hash: blake3::Hash) {
        let half = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
        self.count += 1;
    }
}

/// Stores the members of archives, or other files, in the tree.
pub(crate) struct BackupFiles<'a> {
    run: &'a BackupRun,
    /// Prefix for the names in the archive: `pg_tblspc/16384/`.
    prefix: Vec<u8>,
    is_main: bool,
    /// For files that are stored in another form than they are sent.
    pub(super) composer: Option<Composer>,
    current: Option<Current>,
    root: Attributes,
    root_is_known: bool,
    seen: FileSet,
    /// If the manifest has SHA-2.
    summing: Option<Summing>,
    /// The path of the file that is being received, if its SHA-2 is wanted.
    summed_path: Option<Vec<u8>>,
}

/// The file that is being received.
enum Current {
    AsItComes(FileSink),
    Altered(Altered),
}

impl<'a> BackupFiles<'a> {
    /// `root_mode` is that of the data directory.
    pub(crate) fn new(run: &'a BackupRun, composer: Option<Composer>, root_mode: u32) -> Self {
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
            summing: None,
            summed_path: None,
        }
    }

    /// From now on, this is computed of each file, except WAL. The hashes of the files at the paths `apart` are kept apart.
    pub(crate) fn sum(&mut self, algorithm: Sha2, apart: &'static [&'static [u8]]) {
        self.summing = Some(Summing::new(algorithm, apart));
    }

    /// Whether [`sum`](Self::sum) was asked for.
    pub(crate) fn is_summing(&self) -> bool {
        self.summing.is_some()
    }

    /// What [`sum`](Self::sum) has found.
    pub(crate) fn take_sums(&mut self) -> Sums {
        self.summing.take().map(Summing::finish).unwrap_or_default()
    }

    /// The run whose tree takes the files.
    pub(crate) fn run(&self) -> &'a BackupRun {
        self.run
    }

    /// What follows are the members of this archive.
    pub(crate) fn begin_archive(&mut self, archive: Archive) {
        self.is_main = archive == Archive::Main;
        self.prefix = match archive {
            Archive::Main => Vec::new(),
            Archive::Tablespace(oid) => [TABLESPACES, oid.to_string().as_bytes(), b"/"].concat(),
        };
    }

    /// What follows are the members of an archive of the WAL, as `pg_basebackup` writes beside the others.
    pub(crate) fn begin_wal_archive(&mut self) {
        self.is_main = false;
        self.prefix = WAL_DIRECTORY.to_vec();
    }

    /// The path in the backup of a member of the present archive.
    pub(crate) fn path_of(&self, entry: &TarEntry) -> Vec<u8> {
        [self.prefix.as_slice(), &entry.path].concat()
    }

    /// The data directory itself is not sent. This uses the attributes of its first file, which the server creates when
    /// the backup begins.
    fn learn_root(&mut self, entry: &TarEntry) {
        if self.is_main && !self.root_is_known {
            self.root = Attributes {
                mode: self.root.mode,
                ..entry.attributes()
            };
            self.root_is_known = true;
        }
    }

    /// Adds a directory.
    pub(crate) fn directory(&self, path: &[u8], attributes: Attributes) -> Result<(), SinkError> {
        Ok(self.run.tree()?.directory(path, attributes)?)
    }

    /// Begins a file, whose content follows.
    pub(crate) fn begin_file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
    ) -> Result<(), SinkError> {
        if path == MANIFEST {
            return Err(
                "The archive holds a file backup_manifest, which PostgreSQL never sends there".into(),
            );
        }
        self.note(path);
        self.begin_sum(path);
        let composed = self.composer.as_ref();
        if let Some(altered) = composed.and_then(|composer| composer.begin(path, attributes, size_bytes)) {
            self.current = Some(Current::Altered(altered));
            return Ok(());
        }
        let sink = self
            .run
            .tree()?
            .file(path, attributes, size_bytes, window_bytes(path))?;
        self.current = Some(Current::AsItComes(sink));
        Ok(())
    }

    /// Adds a file with the content of a stored one.
    pub(crate) fn stored_file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        (trees, map): (&TreeReader, &FileMap),
    ) -> Result<(), SinkError> {
        let sink = self.composed_file(path, attributes, map.size_bytes, (trees, map))?;
        Ok(sink.finish()?)
    }

    /// Begins a file of this size with the content of a stored one, into which blocks that differ are put.
    pub(crate) fn composed_file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        (trees, map): (&TreeReader, &FileMap),
    ) -> Result<ComposedSink, SinkError> {
        self.note(path);
        let tree = self.run.tree()?;
        let base = Some((trees, map));
        Ok(tree.composed_file(path, attributes, size_bytes, map.window_bytes, base, size_bytes)?)
    }

    /// The next bytes of the file that was begun.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if let (Some(summing), Some(_)) = (&mut self.summing, &self.summed_path) {
            summing.update(bytes);
        }
        match (&mut self.current, &mut self.composer) {
            (Some(Current::AsItComes(sink)), _) => Ok(sink.write(bytes)?),
            (Some(Current::Altered(file)), Some(composer)) => composer.write(file, self.run.tree()?, bytes),
            _ => Err("There is data outside of a file".into()),
        }
    }

    /// Ends the file that was begun.
    pub(crate) fn end_file(&mut self) -> Result<(), SinkError> {
        if let (Some(summing), Some(path)) = (&mut self.summing, self.summed_path.take()) {
            summing.end(path, matches!(self.current, Some(Current::Altered(_))));
        }
        match (self.current.take(), &mut self.composer) {
            (Some(Current::AsItComes(sink)), _) => Ok(sink.finish()?),
            (Some(Current::Altered(file)), Some(composer)) => composer.end(file, self.run.tree()?),
            _ => Ok(()),
        }
    }

    /// Ends, and returns what is known of the data directory itself, of the files, and of those stored in another form.
    pub(crate) fn finish(self) -> (Attributes, FileSet, Option<Composer>) {
        (self.root, self.seen, self.composer)
    }

    fn begin_sum(&mut self, path: &[u8]) {
        self.summed_path = None;
        if let Some(summing) = self.summing.as_mut().filter(|_| !path.starts_with(WAL_DIRECTORY)) {
            summing.begin();
            self.summed_path = Some(path.to_vec());
        }
    }

    fn note(&mut self, path: &[u8]) {
        if !path.starts_with(WAL_DIRECTORY) {
            self.seen.add(path);
        }
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
        let attributes = Attributes {
            mode: self.root.mode,
            ..entry.attributes()
        };
        self.directory(path, attributes)
    }
}

impl TarSink for BackupFiles<'_> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        self.learn_root(entry);
        let path = self.path_of(entry);
        match entry.kind {
            TarKind::File => self.begin_file(&path, entry.attributes(), entry.size_bytes),
            TarKind::Directory => self.directory(&path, entry.attributes()),
            TarKind::Symlink => self.link(&path, entry),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.write(bytes)
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        self.end_file()
    }
}

/// The content, if the entry is a file.
pub(crate) fn file_map(entry: barmanfs_store::Entry) -> Option<FileMap> {
    match entry.node {
        Node::File(map) => Some(map),
        Node::Directory(_) | Node::Symlink(_) => None,
    }
}

/// The size of the windows of the file at `path`.
fn window_bytes(path: &[u8]) -> u32 {
    match path.starts_with(WAL_DIRECTORY) && is_segment(path) {
        true => STREAM_WINDOW_BYTES,
        false => DATA_WINDOW_BYTES,
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
