//! Reading trees: listings, file maps and content, each checked before it is used.
//!
//! Nothing parsed is kept here: pages and pieces of maps are chunks, and the chunk cache has those in use. A division
//! finds the window of an offset in a piece's raw bytes, so a random read costs two cache look-ups.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use super::beside::{self, Enter, TakeWindows};
use super::content::{ContentChunks, EachChunk, tree_chunks};
use crate::error::{Error, Result};
use crate::file_map::{FileMap, PIECE_WINDOWS, ROW_BYTES, Window, Windows, row_at};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Entry, Node, Page, PageRef};
use crate::reader::ChunkReader;

/// Number of windows that a [`FileReader`] decodes ahead of its position: 1 MiB of data.
const READ_AHEAD_WINDOWS: u64 = 8;

/// Reads trees. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TreeReader {
    chunks: Arc<ChunkReader>,
}

impl TreeReader {
    /// A reader of trees whose chunks come from `chunks`.
    pub fn new(chunks: Arc<ChunkReader>) -> Self {
        Self { chunks }
    }

    /// Where the chunks come from.
    pub fn chunks(&self) -> &Arc<ChunkReader> {
        &self.chunks
    }

    /// The entries of a directory, page by page, sorted by name.
    pub fn entries(&self, directory: &DirectoryRef) -> Entries {
        Entries {
            tree: self.clone(),
            directory: directory.clone(),
            next_page: 0,
            page: None,
            seen: 0,
            last: None,
        }
    }

    /// The entry of this name, if the directory has one.
    ///
    /// # Errors
    /// When the page that would have it cannot be read or is damaged.
    pub fn lookup(&self, directory: &DirectoryRef, name: &[u8]) -> Result<Option<Entry>> {
        let Some(page) = directory.page_of(name) else {
            return Ok(None);
        };
        let mut page = self.page(page)?;
        let what = page.what();
        while let Some(view) = page.next()? {
            if view.name == name {
                return view
                    .to_entry()
                    .map(Some)
                    .map_err(|reason| Error::damaged(what(), reason));
            }
            if view.name > name {
                break;
            }
        }
        Ok(None)
    }

    /// The entry at this path below `root` ("base/5/1259"), if there is one. For many paths, a
    /// [`Finder`](super::Finder) reads each directory once.
    ///
    /// # Errors
    /// When a page on the way cannot be read or is damaged.
    pub fn find(&self, root: &DirectoryRef, path: &[u8]) -> Result<Option<Entry>> {
        let mut names = path.split(|&byte| byte == b'/');
        let mut entry = match names.next() {
            Some(name) => self.lookup(root, name)?,
            None => None,
        };
        for name in names {
            let Some(Entry {
                node: Node::Directory(directory),
                ..
            }) = entry
            else {
                return Ok(None);
            };
            entry = self.lookup(&directory, name)?;
        }
        Ok(entry)
    }

    /// Window `n` of a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] past the file's end; when the piece that has it cannot be read or is damaged.
    pub fn window(&self, map: &FileMap, n: u64) -> Result<Window> {
        WindowCursor::default().window(self, map, n)
    }

    /// Calls `each` with these windows of a file, in order.
    ///
    /// # Errors
    /// As [`window`](Self::window); whatever `each` returns.
    pub fn each_window<E: From<Error>>(
        &self,
        map: &FileMap,
        windows: Range<u64>,
        mut each: impl FnMut(u64, Window) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut cursor = WindowCursor::default();
        for n in windows.start..windows.end.min(map.window_count()) {
            each(n, cursor.window(self, map, n)?)?;
        }
        Ok(())
    }

    /// The bytes of window `n` of a file, whose chunk this is.
    ///
    /// # Errors
    /// When the chunk cannot be read or does not match the map.
    pub fn window_content(&self, map: &FileMap, n: u64, chunk: &ChunkId) -> Result<Arc<[u8]>> {
        self.sized_chunk(chunk, map.window_length(n) as usize)
    }

    /// Reads from `offset` until `buffer` is full or the file ends; returns the number of bytes.
    ///
    /// # Errors
    /// When a chunk cannot be read or does not match the map.
    pub fn read_at(&self, map: &FileMap, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut cursor = WindowCursor::default();
        let mut done = 0;
        for n in map.windows_of(offset, buffer.len() as u64) {
            let at = offset + done as u64;
            // Less than a window's size, which is a u32.
            let skip = (at - n * u64::from(map.window_bytes)) as usize;
            let length = map.window_length(n) as usize;
            let rest = buffer.get_mut(done..).unwrap_or_default();
            let count = rest.len().min(length - skip);
            let (target, _) = rest.split_at_mut(count);
            match cursor.window(self, map, n)?.chunk {
                None => target.fill(0),
                Some(chunk) => {
                    let bytes = self.sized_chunk(&chunk, length)?;
                    target.copy_from_slice(bytes.get(skip..skip + count).unwrap_or_default());
                }
            }
            done += count;
        }
        Ok(done)
    }

    /// Decodes these windows in the background, so that a read soon after finds them in the cache.
    ///
    /// # Errors
    /// When a piece of the map cannot be read or is damaged.
    pub fn read_ahead(&self, map: &FileMap, windows: Range<u64>) -> Result<()> {
        let mut cursor = WindowCursor::default();
        for n in windows.start..windows.end.min(map.window_count()) {
            self.chunks.read_ahead(cursor.window(self, map, n)?.chunk);
        }
        Ok(())
    }

    /// The offset of the first byte at or after `offset` that is not in a hole; `None` when only a hole follows, and
    /// at the end.
    ///
    /// # Errors
    /// When a piece of the map cannot be read or is damaged.
    pub fn next_data(&self, map: &FileMap, offset: u64) -> Result<Option<u64>> {
        self.next_window(map, offset, |window| window.chunk.is_some())
    }

    /// The offset at or after `offset` where the first hole begins; the file's size when there is none.
    ///
    /// # Errors
    /// When a piece of the map cannot be read or is damaged.
    pub fn next_hole(&self, map: &FileMap, offset: u64) -> Result<u64> {
        let hole = self.next_window(map, offset, |window| window.chunk.is_none())?;
        Ok(hole.unwrap_or(map.size_bytes))
    }

    fn next_window(
        &self,
        map: &FileMap,
        offset: u64,
        wanted: impl Fn(&Window) -> bool,
    ) -> Result<Option<u64>> {
        let mut cursor = WindowCursor::default();
        for n in map.windows_of(offset, u64::MAX) {
            if wanted(&cursor.window(self, map, n)?) {
                return Ok(Some(offset.max(n * u64::from(map.window_bytes))));
            }
        }
        Ok(None)
    }

    /// The content from front to back.
    pub fn reader(&self, map: FileMap) -> FileReader {
        FileReader {
            tree: self.clone(),
            map,
            offset: 0,
            ahead: 0,
        }
    }

    /// Calls `each` with every chunk of the tree: listing pages, pieces of maps, windows; with some more than once. If
    /// `each` returns `false` for a page or a piece, what that refers to is left out.
    ///
    /// # Errors
    /// When a page or piece cannot be read or is damaged; whatever `each` returns.
    pub fn chunks_of(&self, root: &DirectoryRef, each: &mut EachChunk<'_>) -> Result<()> {
        tree_chunks(self, root, each)
    }

    /// The same for one file: pieces of its map, windows.
    ///
    /// # Errors
    /// As [`chunks_of`](Self::chunks_of).
    pub fn chunks_of_file(&self, map: &FileMap, each: &mut EachChunk<'_>) -> Result<()> {
        ContentChunks { tree: self, each }.file(map)
    }

    /// Calls `enter` with the pages of listings and pieces of maps of a tree, and `take` with the windows of those that it
    /// meets for the first time, except windows that the tree `before` has in the same place. All of that tree must have been
    /// handed to the same functions before. Reads pieces on all cores.
    ///
    /// # Errors
    /// When a page or piece cannot be read or is damaged; whatever the functions return.
    pub fn chunks_beside(
        &self,
        root: &DirectoryRef,
        before: Option<&DirectoryRef>,
        enter: &mut Enter<'_>,
        take: &TakeWindows<'_>,
    ) -> Result<()> {
        beside::walk(self, root, before, enter, take)
    }

    /// A page of a listing.
    pub(super) fn page(&self, page: &PageRef) -> Result<Page> {
        Page::open(page, self.chunks.get(&page.chunk)?)
    }

    /// The rows of a piece that has `windows` of them.
    pub(super) fn piece(&self, chunk: &ChunkId, windows: usize) -> Result<Arc<[u8]>> {
        self.sized_chunk(chunk, windows * ROW_BYTES)
    }

    fn sized_chunk(&self, chunk: &ChunkId, expected_bytes: usize) -> Result<Arc<[u8]>> {
        let bytes = self.chunks.get(chunk)?;
        if bytes.len() != expected_bytes {
            let reason = format!(
                "It has {} bytes where its file's map needs {expected_bytes}",
                bytes.len()
            );
            return Err(Error::damaged(format!("Chunk {chunk}"), reason));
        }
        Ok(bytes)
    }
}

/// Finds windows of one map, one after the other; remembers the current piece.
#[derive(Debug, Default)]
pub(super) struct WindowCursor {
    piece: Option<(u64, Arc<[u8]>)>,
}

impl WindowCursor {
    /// Window `n`, see [`TreeReader::window`].
    pub(super) fn window(&mut self, tree: &TreeReader, map: &FileMap, n: u64) -> Result<Window> {
        let past_end = || {
            Error::Invalid(format!(
                "Window {n} is past the end of a file of {} bytes",
                map.size_bytes
            ))
        };
        let at = usize::try_from(n).map_err(|_| past_end())?;
        let pieces = match &map.windows {
            Windows::Inline(windows) => return windows.get(at).copied().ok_or_else(past_end),
            Windows::Pieces(pieces) => pieces,
        };
        let (piece, row) = (at / PIECE_WINDOWS, at % PIECE_WINDOWS);
        let number = piece as u64;
        let rows = match self.piece.take() {
            Some((current, rows)) if current == number => rows,
            _ => tree.piece(pieces.get(piece).ok_or_else(past_end)?, map.piece_windows(number))?,
        };
        let window = row_at(&rows, row).ok_or_else(past_end);
        self.piece = Some((number, rows));
        window
    }
}

/// The entries of a directory, sorted by name. See [`TreeReader::entries`].
#[derive(Debug)]
pub struct Entries {
    tree: TreeReader,
    directory: DirectoryRef,
    next_page: usize,
    page: Option<Page>,
    /// Entries so far.
    seen: u64,
    /// The previous name: names are in order across pages, as they are within one.
    last: Option<Vec<u8>>,
}

impl Entries {
    fn advance(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(page) = &mut self.page {
                let what = page.what();
                if let Some(view) = page.next()? {
                    let entry = view.to_entry().map_err(|reason| Error::damaged(what(), reason))?;
                    return self.in_order(entry).map(Some);
                }
            }
            let Some(next) = self.directory.pages.get(self.next_page) else {
                break;
            };
            self.page = Some(self.tree.page(next)?);
            self.next_page += 1;
            self.tree
                .chunks
                .read_ahead(self.directory.pages.get(self.next_page).map(|page| page.chunk));
        }
        self.page = None;
        let expected = self.directory.entries;
        if self.seen == expected {
            return Ok(None);
        }
        Err(self.damaged(format!("It has {} entries instead of {expected}", self.seen)))
    }

    fn in_order(&mut self, entry: Entry) -> Result<Entry> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.name) {
            let name = entry.name.escape_ascii();
            return Err(self.damaged(format!("\"{name}\" does not stand where it belongs")));
        }
        self.last = Some(entry.name.clone());
        self.seen += 1;
        Ok(entry)
    }

    fn damaged(&self, reason: String) -> Error {
        let first = self
            .directory
            .pages
            .first()
            .map_or_else(|| "no page".to_owned(), |page| page.chunk.to_string());
        Error::damaged(format!("The directory listing that begins with {first}"), reason)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, None | Some(Err(_))) {
            // Once the iterator has ended, it stays ended.
            self.next_page = self.directory.pages.len();
            self.page = None;
            self.directory.entries = self.seen;
        }
        next
    }
}

/// A file's content from front to back. See [`TreeReader::reader`].
#[derive(Debug)]
pub struct FileReader {
    tree: TreeReader,
    map: FileMap,
    offset: u64,
    /// Windows before this one have already been requested ahead.
    ahead: u64,
}

impl FileReader {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let here = self.offset / u64::from(self.map.window_bytes.max(1));
        if self.ahead <= here + READ_AHEAD_WINDOWS / 2 {
            let end = here + 1 + READ_AHEAD_WINDOWS;
            self.tree.read_ahead(&self.map, self.ahead.max(here + 1)..end)?;
            self.ahead = end;
        }
        let count = self.tree.read_at(&self.map, self.offset, buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer).map_err(io::Error::other)
    }
}
