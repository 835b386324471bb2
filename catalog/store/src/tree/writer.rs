//! Writing a tree from a stream of files, directories and links in any order.
//!
//! File content goes to the depositor as it arrives; entries wait in memory until their directory is complete or
//! memory is short. The listings follow at the end, the deepest first, because a directory's entry refers to its
//! pages.
//!
//! The same tree always has the same root, in whatever order its entries arrive and whatever was written early.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use super::TreeReader;
use super::assembly::{FileDone, StoredFile};
use super::composed::FileComposer;
use super::directories::{Directories, Directory, EntryMap, twice};
use super::file::{FileShape, FileWriter, Similar};
use super::path::{checked, depth, split};
use super::previous::Previous;
use super::reader::WindowCursor;
use super::run::{Run, RunWriter};
use crate::depositor::{ContentClass, Depositor};
use crate::error::{Error, Result};
use crate::file_map::FileMap;
use crate::layout::STREAM_WINDOW_BYTES;
use crate::listing::{Attributes, DirectoryRef, Node, encode_entry};
use crate::sync::lock;

/// How a [`TreeWriter`] works.
#[derive(Debug, Clone, Copy)]
pub struct TreeOptions {
    /// Entries of directories the stream has left are written out when all entries take more memory than this. The
    /// largest directory should fit; a directory entered again after it was written out costs reading it back.
    pub entries_bytes: usize,
    /// Whether something keeps the bases of composed files until this tree is referenced itself. If so, a base is
    /// taken over as it is, without asking the index, even if it cannot be read.
    pub base_is_kept: bool,
}

impl Default for TreeOptions {
    /// Room for some 80,000 files.
    fn default() -> Self {
        Self {
            entries_bytes: 16 * 1024 * 1024,
            base_is_kept: false,
        }
    }
}

/// The summary of a finished tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeTotals {
    /// Its root's listing.
    pub root: DirectoryRef,
    /// Its root's owner, permissions and time.
    pub root_attributes: Attributes,
    /// Regular files in it.
    pub files: u64,
    /// Directories in it, the root not counted.
    pub directories: u64,
    /// Sizes of its files together.
    pub logical_bytes: u64,
}

/// Writes one tree; paths are relative ("base/5/1259") and come in any order. Several files may be written at the
/// same time.
#[derive(Debug)]
pub struct TreeWriter {
    depositor: Arc<Depositor>,
    options: TreeOptions,
    previous: Mutex<Option<Previous>>,
    tree: Arc<Mutex<Tree>>,
}

/// What files report to when they are complete.
#[derive(Debug)]
struct Tree {
    directories: Directories,
    files: u64,
    logical_bytes: u64,
    failure: Option<Error>,
}

impl TreeWriter {
    /// Begins a tree; `previous` is the tree it is likely similar to: the server's last backup.
    /// [`DepositOptions`](crate::DepositOptions) decide whether its chunks are referenced without asking the index.
    pub fn begin(
        depositor: Arc<Depositor>,
        previous: Option<(TreeReader, DirectoryRef)>,
        options: TreeOptions,
    ) -> Self {
        let tree = Tree {
            directories: Directories::new(),
            files: 0,
            logical_bytes: 0,
            failure: None,
        };
        let previous = previous.map(|(tree, root)| Previous::new(tree, root));
        Self {
            depositor,
            options,
            previous: Mutex::new(previous),
            tree: Arc::new(Mutex::new(tree)),
        }
    }

    /// Adds a directory. Its parents need not be there yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that is refused or came before; an earlier error of this tree.
    pub fn directory(&self, path: &[u8], attributes: Attributes) -> Result<()> {
        attributes.check().map_err(Error::Invalid)?;
        self.change()?.directories.add(checked(path)?, attributes)?;
        self.make_room()
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`directory`](Self::directory), and for an impossible target.
    pub fn symlink(&self, path: &[u8], attributes: Attributes, target: &[u8]) -> Result<()> {
        let path = checked(path)?;
        let entry = encode_entry(split(path).1, &attributes, &Node::Symlink(target.to_vec()))?;
        self.change()?.directories.insert(path, Some(entry))?;
        self.make_room()
    }

    /// Adds a file of `size_bytes`, cut into windows of `window_bytes`. Its content goes into the sink.
    ///
    /// # Errors
    /// As [`directory`](Self::directory), and for an impossible window size.
    pub fn file(
        &self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        window_bytes: u32,
    ) -> Result<FileSink> {
        let path = checked(path)?;
        let (shape, done) = self.begin_file(path, attributes, size_bytes, window_bytes)?;
        let similar = self
            .previous()
            .as_mut()
            .and_then(|previous| previous.file(path, window_bytes));
        let writer = FileWriter::begin(Arc::clone(&self.depositor), shape, similar, done);
        Ok(FileSink {
            path: path.to_vec(),
            writer,
        })
    }

    /// Adds a file of `size_bytes` made from another. Its first `keep_bytes` are those of `base`, or fewer if the base
    /// is shorter, and zeros follow. The blocks given to the sink replace these bytes. Chunks of the base that may not
    /// be referenced any more are read and stored again.
    ///
    /// # Errors
    /// As [`file`](Self::file), and when the base is cut into windows of another size.
    pub fn composed_file(
        &self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        window_bytes: u32,
        base: Option<(&TreeReader, &FileMap)>,
        keep_bytes: u64,
    ) -> Result<ComposedSink> {
        let path = checked(path)?;
        if let Some((_, map)) = base
            && map.window_bytes != window_bytes
        {
            let reason = format!(
                "It has windows of {} bytes, not of {window_bytes}",
                map.window_bytes
            );
            return Err(about(path, Error::Invalid(reason)));
        }
        let (shape, done) = self.begin_file(path, attributes, size_bytes, window_bytes)?;
        let base = base.map(|(tree, map)| Similar {
            tree: tree.clone(),
            map: map.clone(),
            cursor: WindowCursor::default(),
        });
        let ask = !(self.options.base_is_kept || self.depositor.trusts_previous());
        let composer = FileComposer::begin(Arc::clone(&self.depositor), shape, base, keep_bytes, ask, done);
        Ok(ComposedSink {
            path: path.to_vec(),
            composer,
        })
    }

    /// Adds a file's entry; its content follows.
    fn begin_file(
        &self,
        path: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        window_bytes: u32,
    ) -> Result<(FileShape, FileDone)> {
        // The size of its windows tells the class of a file.
        let class = if window_bytes == STREAM_WINDOW_BYTES {
            ContentClass::Stream
        } else {
            ContentClass::Data
        };
        let shape = FileShape {
            size_bytes,
            window_bytes,
            class,
        };
        shape
            .check()
            .and_then(|()| attributes.check().map_err(Error::Invalid))
            .map_err(|error| about(path, error))?;
        self.change()?.directories.insert(path, None)?;
        self.make_room()?;
        let (tree, whose) = (Arc::clone(&self.tree), path.to_vec());
        // A file that a panic kept from completing stays unfinished. The end of the tree notices that.
        let done = Box::new(move |file| lock(&tree).complete(&whose, attributes, file));
        Ok((shape, done))
    }

    /// Copies the entries of a directory that was written before and can be read, unchanged, to the root. So
    /// a file can be added to a finished tree.
    ///
    /// # Errors
    /// As [`directory`](Self::directory); when the listing cannot be read.
    pub fn adopt(&self, directory: &DirectoryRef) -> Result<()> {
        for entry in TreeReader::new(Arc::clone(self.depositor.reader())).entries(directory) {
            let entry = entry?;
            let bytes = encode_entry(&entry.name, &entry.attributes, &entry.node)?;
            self.change()?.directories.insert(&entry.name, Some(bytes))?;
        }
        Ok(())
    }

    /// Waits for all files and writes the listings. Parents that were not added get the root's attributes. Everything
    /// written is durable after the depositor's next flush.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a file was not finished, or a path came twice; any error of the depositor.
    pub fn finish(self, root: Attributes) -> Result<TreeTotals> {
        root.check().map_err(Error::Invalid)?;
        self.depositor.drain()?;
        let (directories, files, logical_bytes) = {
            let mut tree = self.change()?;
            (
                std::mem::replace(&mut tree.directories, Directories::new()),
                tree.files,
                tree.logical_bytes,
            )
        };
        let all = directories.into_all()?;
        let directories = all.len() as u64 - 1;
        let listings = Listings {
            writer: &self,
            root_attributes: root,
            open_is_published: false,
        };
        Ok(TreeTotals {
            root: listings.write(all)?,
            root_attributes: root,
            files,
            directories,
            logical_bytes,
        })
    }

    /// Writes out directories that the stream has left, when memory is short. Their pages go into the queue like
    /// windows; nothing waits for them.
    fn make_room(&self) -> Result<()> {
        let given = lock(&self.tree).directories.give_up(self.options.entries_bytes);
        given
            .into_iter()
            .try_for_each(|(path, entries, run)| self.write_run(&path, &entries, run))
    }

    fn write_run(&self, path: &[u8], entries: &EntryMap, run: Arc<Run>) -> Result<()> {
        let previous = self
            .previous()
            .as_mut()
            .and_then(|previous| previous.directory(path));
        let mut pages = RunWriter::new(&self.depositor, previous.as_deref(), run);
        for (name, entry) in entries {
            pages.push(name, entry.as_deref().unwrap_or_default())?;
        }
        pages.finish()
    }

    /// Locks the tree for a change; returns the first error of a background change instead, if there was one.
    fn change(&self) -> Result<MutexGuard<'_, Tree>> {
        let tree = lock(&self.tree);
        match &tree.failure {
            Some(error) => Err(error.clone()),
            None => Ok(tree),
        }
    }

    fn previous(&self) -> MutexGuard<'_, Option<Previous>> {
        lock(&self.previous)
    }
}

impl Tree {
    fn complete(&mut self, path: &[u8], attributes: Attributes, file: StoredFile) {
        self.files += 1;
        self.logical_bytes += file.map.size_bytes;
        match encode_entry(split(path).1, &attributes, &Node::File(file.map)) {
            Ok(entry) => self.directories.complete(path, entry),
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }
}

/// Writes the remaining listings, at the end.
struct Listings<'a> {
    writer: &'a TreeWriter,
    root_attributes: Attributes,
    /// Whether runs can be read back: their packs are closed and in the index.
    open_is_published: bool,
}

type Level = BTreeMap<Box<[u8]>, Directory>;

impl Listings<'_> {
    /// Level by level, the deepest first: directories of one level are independent, so their pages are hashed and
    /// compressed on all cores.
    fn write(mut self, all: HashMap<Box<[u8]>, Directory>) -> Result<DirectoryRef> {
        let mut levels: BTreeMap<usize, Level> = BTreeMap::new();
        for (path, directory) in all {
            levels.entry(depth(&path)).or_default().insert(path, directory);
        }
        while let Some((depth, level)) = levels.pop_last() {
            let mut written = Vec::new();
            for (path, directory) in level {
                let attributes = directory.attributes.unwrap_or(self.root_attributes);
                written.push((attributes, self.begin(&path, directory)?, path));
            }
            self.writer.depositor.drain()?;
            let Some(parents) = depth.checked_sub(1).and_then(|depth| levels.get_mut(&depth)) else {
                return written
                    .pop()
                    .map_or_else(|| Ok(DirectoryRef::default()), |(_, run, _)| run.directory());
            };
            for (attributes, run, path) in written {
                enter(parents, &path, &attributes, run.directory()?)?;
            }
        }
        Ok(DirectoryRef::default())
    }

    /// Puts a directory's pages. If one run already has all of them, there is nothing left to do.
    fn begin(&mut self, path: &[u8], mut directory: Directory) -> Result<Arc<Run>> {
        if directory.entries.is_empty()
            && let [run] = directory.runs.as_slice()
        {
            return Ok(Arc::clone(run));
        }
        for run in std::mem::take(&mut directory.runs) {
            self.read_back(path, &run, &mut directory.entries)?;
        }
        let run = Arc::new(Run::default());
        self.writer
            .write_run(path, &directory.entries, Arc::clone(&run))?;
        Ok(run)
    }

    /// Reads a run's entries back into memory, to merge them with later ones.
    fn read_back(&mut self, path: &[u8], run: &Run, entries: &mut EntryMap) -> Result<()> {
        let depositor = &self.writer.depositor;
        if !self.open_is_published {
            depositor.publish()?;
            self.open_is_published = true;
        }
        for entry in TreeReader::new(Arc::clone(depositor.reader())).entries(&run.directory()?) {
            let entry = entry?;
            let bytes = encode_entry(&entry.name, &entry.attributes, &entry.node)?;
            if entries
                .insert(entry.name.as_slice().into(), Some(bytes))
                .is_some()
            {
                return Err(twice(&[path, b"/", &entry.name].concat()));
            }
        }
        Ok(())
    }
}

/// Enters a finished directory in its parent.
fn enter(parents: &mut Level, path: &[u8], attributes: &Attributes, directory: DirectoryRef) -> Result<()> {
    let (parent, name) = split(path);
    let entry = encode_entry(name, attributes, &Node::Directory(directory))?;
    let parent = parents.entry(parent.into()).or_default();
    if parent.entries.insert(name.into(), Some(entry)).is_some() {
        return Err(twice(path));
    }
    Ok(())
}

/// One file being written, from front to back. If it is dropped without `finish`, the tree cannot finish.
#[derive(Debug)]
pub struct FileSink {
    path: Vec<u8>,
    writer: FileWriter,
}

impl FileSink {
    /// The next bytes of the content. Blocks while the workers are behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] past the announced size; any error of the depositor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes).map_err(|error| about(&self.path, error))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Error::Invalid`] when bytes are missing; any error of the depositor.
    pub fn finish(self) -> Result<()> {
        self.writer.finish().map_err(|error| about(&self.path, error))
    }
}

/// One file being composed; see [`TreeWriter::composed_file`]. If it is dropped without `finish`, the tree cannot
/// finish.
#[derive(Debug)]
pub struct ComposedSink {
    path: Vec<u8>,
    composer: FileComposer,
}

impl ComposedSink {
    /// Says where blocks will follow, in ascending order, so that what they change is fetched in the order of the disk.
    /// This is a hint; it comes before the first block.
    pub fn expect(&mut self, offsets: impl Iterator<Item = u64>) {
        self.composer.expect(offsets);
    }

    /// The next changed block: 8 KiB at a multiple of 8 KiB, in ascending order; fewer bytes at the file's end.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else; when the base's map cannot be read; any error of the depositor.
    pub fn block(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let put = self.composer.block(offset, bytes);
        put.map_err(|error| about(&self.path, error))
    }

    /// Ends the file: nothing else changed.
    ///
    /// # Errors
    /// When the base's map cannot be read; any error of the depositor.
    pub fn finish(self) -> Result<()> {
        self.composer.finish().map_err(|error| about(&self.path, error))
    }
}

/// Adds the file's path to a caller's mistake; other errors already name their subject.
fn about(path: &[u8], error: Error) -> Error {
    match error {
        Error::Invalid(reason) => Error::Invalid(format!("File \"{}\": {reason}", path.escape_ascii())),
        other => other,
    }
}
