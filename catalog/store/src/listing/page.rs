//! One page of a listing as bytes. The layout is in `FORMAT.md`, "Directory listings".

use std::ops::Range;
use std::sync::Arc;

use super::{Attributes, DirectoryRef, Entry, Node, PageRef, check_name, check_target};
use crate::error::{Error, Result};
use crate::file_map::{FileMap, INLINE_WINDOWS, ROW_BYTES, Window, Windows};
use crate::id::ChunkId;
use crate::layout::{FORMAT_VERSION, MAX_CHUNK_BYTES};

/// Begins every page.
const MAGIC: [u8; 8] = *b"bmfslist";

/// Magic, format version, number of entries.
const HEADER_BYTES: usize = 16;

/// Kinds of entries, as stored in a page.
mod kind {
    pub(super) const FILE_INLINE: u8 = 1;
    pub(super) const FILE_IN_PIECES: u8 = 2;
    pub(super) const DIRECTORY: u8 = 3;
    pub(super) const SYMLINK: u8 = 4;
}

/// A page ends before one name in this many, so pages have 256 entries on average. That is some 20 KiB for a
/// database's directory, decoded in microseconds, and few enough pages for a directory of a million files.
const NAMES_PER_PAGE: u32 = 256;

/// No page grows beyond this unless its first entry does. Names can be chosen so that none of them ends a
/// page.
const PAGE_TARGET_BYTES: usize = 256 * 1024;

/// Whether a page of `page_bytes` ends before an entry of this name and `entry_bytes`.
pub(crate) fn ends_page(page_bytes: usize, name: &[u8], entry_bytes: usize) -> bool {
    page_bytes > HEADER_BYTES
        && (crc32c::crc32c(name).is_multiple_of(NAMES_PER_PAGE)
            || page_bytes + entry_bytes > PAGE_TARGET_BYTES)
}

/// A page's header, for this many entries.
pub(crate) fn encode_page_header(entries: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = MAGIC
        .into_iter()
        .chain(FORMAT_VERSION.to_le_bytes())
        .chain(entries.to_le_bytes());
    header
        .iter_mut()
        .zip(fields)
        .for_each(|(byte, field)| *byte = field);
    header
}

/// An entry's bytes in a page.
///
/// # Errors
/// [`Error::Invalid`] for what no reader would accept.
pub(crate) fn encode_entry(name: &[u8], attributes: &Attributes, node: &Node) -> Result<Box<[u8]>> {
    let mut out = Vec::with_capacity(64 + name.len() + 36);
    check_name(name)
        .and_then(|()| attributes.check())
        .map_err(Error::Invalid)?;
    out.push(match node {
        Node::File(FileMap {
            windows: Windows::Inline(_),
            ..
        }) => kind::FILE_INLINE,
        Node::File(FileMap {
            windows: Windows::Pieces(_),
            ..
        }) => kind::FILE_IN_PIECES,
        Node::Directory(_) => kind::DIRECTORY,
        Node::Symlink(_) => kind::SYMLINK,
    });
    push_short(&mut out, name);
    out.extend(attributes.mode.to_le_bytes());
    out.extend(attributes.uid.to_le_bytes());
    out.extend(attributes.gid.to_le_bytes());
    out.extend(attributes.mtime_s.to_le_bytes());
    out.extend(attributes.mtime_ns.to_le_bytes());
    match node {
        Node::File(map) => push_map(&mut out, map)?,
        Node::Directory(directory) => push_directory(&mut out, directory),
        Node::Symlink(target) => {
            check_target(target).map_err(Error::Invalid)?;
            push_short(&mut out, target);
        }
    }
    if HEADER_BYTES + out.len() > MAX_CHUNK_BYTES {
        let name = name.escape_ascii();
        return Err(Error::Invalid(format!(
            "\"{name}\" is too large for a directory listing: {} bytes",
            out.len()
        )));
    }
    Ok(out.into_boxed_slice())
}

fn push_map(out: &mut Vec<u8>, map: &FileMap) -> Result<()> {
    map.check().map_err(Error::Invalid)?;
    out.extend(map.size_bytes.to_le_bytes());
    out.extend(map.window_bytes.to_le_bytes());
    out.extend(map.crc32c.to_le_bytes());
    match &map.windows {
        Windows::Inline(windows) => windows.iter().for_each(|window| out.extend(window.to_row())),
        Windows::Pieces(pieces) => pieces.iter().for_each(|piece| out.extend(piece.0)),
    }
    Ok(())
}

fn push_directory(out: &mut Vec<u8>, directory: &DirectoryRef) {
    out.extend(directory.entries.to_le_bytes());
    // A number of pages that does not fit is far more than a chunk can hold; the size is checked at the end.
    out.extend(
        u32::try_from(directory.pages.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    for page in &directory.pages {
        push_short(out, &page.first);
        out.extend(page.chunk.0);
    }
}

/// Bytes after their length; names and targets are checked to be far below 64 KiB.
fn push_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(bytes);
}

/// An entry in the bytes of its page; nothing is copied.
#[derive(Debug)]
pub(crate) struct EntryView<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) attributes: Attributes,
    pub(crate) node: NodeView<'a>,
}

/// What the entry is.
#[derive(Debug)]
pub(crate) enum NodeView<'a> {
    File(FileView<'a>),
    Directory(DirectoryView<'a>),
    Symlink(&'a [u8]),
}

/// A file's map.
#[derive(Debug)]
pub(crate) struct FileView<'a> {
    size_bytes: u64,
    window_bytes: u32,
    crc32c: u32,
    rows: RowsView<'a>,
}

#[derive(Debug)]
enum RowsView<'a> {
    Inline(&'a [[u8; ROW_BYTES]]),
    Pieces(&'a [[u8; ChunkId::BYTES]]),
}

/// A directory's listing.
#[derive(Debug)]
pub(crate) struct DirectoryView<'a> {
    entries: u64,
    /// First name and chunk of each page.
    pages: Vec<(&'a [u8], ChunkId)>,
}

impl EntryView<'_> {
    /// The entry, with everything in it checked.
    pub(crate) fn to_entry(&self) -> Result<Entry, String> {
        let node = match &self.node {
            NodeView::File(file) => Node::File(file.to_map()?),
            NodeView::Directory(directory) => Node::Directory(directory.to_ref()),
            NodeView::Symlink(target) => {
                check_target(target)?;
                Node::Symlink(target.to_vec())
            }
        };
        self.attributes.check()?;
        Ok(Entry {
            name: self.name.to_vec(),
            attributes: self.attributes,
            node,
        })
    }
}

impl FileView<'_> {
    fn to_map(&self) -> Result<FileMap, String> {
        let windows = match self.rows {
            RowsView::Inline(rows) => Windows::Inline(rows.iter().map(Window::from_row).collect()),
            RowsView::Pieces(ids) => Windows::Pieces(ids.iter().map(|id| ChunkId(*id)).collect()),
        };
        let Self {
            size_bytes,
            window_bytes,
            crc32c,
            ..
        } = *self;
        let map = FileMap {
            size_bytes,
            window_bytes,
            crc32c,
            windows,
        };
        map.check()?;
        Ok(map)
    }
}

impl DirectoryView<'_> {
    fn to_ref(&self) -> DirectoryRef {
        let page = |&(first, chunk): &(&[u8], ChunkId)| PageRef {
            first: first.to_vec(),
            chunk,
        };
        DirectoryRef {
            entries: self.entries,
            pages: self.pages.iter().map(page).collect(),
        }
    }
}

/// A page being read from front to back.
#[derive(Debug)]
pub(crate) struct Page {
    chunk: ChunkId,
    bytes: Arc<[u8]>,
    at: usize,
    left: u32,
    /// Where the previous name is in the page.
    previous: Range<usize>,
}

impl Page {
    /// Begins to read the page that `page` refers to; `bytes` are its chunk's.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::NewerFormat`].
    pub(crate) fn open(page: &PageRef, bytes: Arc<[u8]>) -> Result<Self> {
        let chunk = page.chunk;
        let damaged = |reason| Error::damaged(what(chunk), reason);
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        let left = match cursor.header().map_err(damaged)? {
            (MAGIC, FORMAT_VERSION, entries @ 1..) => entries,
            (MAGIC, found, _) if found > FORMAT_VERSION => {
                return Err(Error::NewerFormat {
                    what: what(chunk),
                    found,
                    newest: FORMAT_VERSION,
                });
            }
            _ => return Err(damaged("It does not begin like one".to_owned())),
        };
        let at = cursor.at;
        let first = Cursor {
            bytes: &bytes,
            at: at + KIND_BYTES,
        }
        .short()
        .map_err(damaged)?;
        if first != page.first {
            let expected = page.first.escape_ascii();
            return Err(damaged(format!(
                "It begins with \"{}\" instead of \"{expected}\"",
                first.escape_ascii()
            )));
        }
        Ok(Self {
            chunk,
            bytes,
            at,
            left,
            previous: 0..0,
        })
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the bytes are not an entry, or its name does not sort after the previous one.
    pub(crate) fn next(&mut self) -> Result<Option<EntryView<'_>>> {
        let damaged = |reason: String| Error::damaged(what(self.chunk), reason);
        if self.left == 0 {
            let rest = self.bytes.len().saturating_sub(self.at);
            return if rest == 0 {
                Ok(None)
            } else {
                Err(damaged(format!("{rest} bytes follow its last entry")))
            };
        }
        let mut cursor = Cursor {
            bytes: &self.bytes,
            at: self.at,
        };
        let view = read_entry(&mut cursor).map_err(damaged)?;
        check_name(view.name).map_err(damaged)?;
        if self
            .bytes
            .get(self.previous.clone())
            .is_some_and(|previous| previous >= view.name)
        {
            return Err(damaged(format!(
                "\"{}\" does not stand where it belongs",
                view.name.escape_ascii()
            )));
        }
        let name_at = self.at + KIND_BYTES + LENGTH_BYTES;
        self.previous = name_at..name_at + view.name.len();
        self.at = cursor.at;
        self.left -= 1;
        Ok(Some(view))
    }

    /// The page as errors name it. Made only for an error: a page has hundreds of entries.
    pub(crate) fn what(&self) -> impl Fn() -> String + use<> {
        let chunk = self.chunk;
        move || what(chunk)
    }

    /// Where the next entry begins.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}

/// The name of the entry that begins at `at`; empty when there is none.
pub(super) fn name_at(page: &[u8], at: usize) -> &[u8] {
    let at = at + KIND_BYTES;
    Cursor { bytes: page, at }.short().unwrap_or_default()
}

/// The entry that begins at `at`, with everything in it checked.
pub(super) fn entry_at(page: &[u8], at: usize) -> Result<Entry, String> {
    read_entry(&mut Cursor { bytes: page, at })?.to_entry()
}

/// Size of an entry's kind, its first field.
const KIND_BYTES: usize = 1;

/// Size of the length that comes before a name and before every other short field.
const LENGTH_BYTES: usize = 2;

pub(super) fn what(chunk: ChunkId) -> String {
    format!("Listing page {chunk}")
}

fn read_entry<'a>(cursor: &mut Cursor<'a>) -> Result<EntryView<'a>, String> {
    let kind = cursor.u8()?;
    let name = cursor.short()?;
    let attributes = Attributes {
        mode: cursor.u32()?,
        uid: cursor.u32()?,
        gid: cursor.u32()?,
        mtime_s: i64::from_le_bytes(cursor.array()?),
        mtime_ns: cursor.u32()?,
    };
    let node = match kind {
        kind::FILE_INLINE | kind::FILE_IN_PIECES => {
            NodeView::File(read_map(cursor, kind == kind::FILE_INLINE)?)
        }
        kind::DIRECTORY => NodeView::Directory(read_directory(cursor)?),
        kind::SYMLINK => NodeView::Symlink(cursor.short()?),
        _ => {
            return Err(format!(
                "\"{}\" is of the unknown kind {kind}",
                name.escape_ascii()
            ));
        }
    };
    Ok(EntryView {
        name,
        attributes,
        node,
    })
}

fn read_map<'a>(cursor: &mut Cursor<'a>, inline: bool) -> Result<FileView<'a>, String> {
    let (size_bytes, window_bytes, crc32c) = (cursor.u64()?, cursor.u32()?, cursor.u32()?);
    let windows = size_bytes.div_ceil(u64::from(window_bytes.max(1)));
    let rows = if inline {
        if windows > INLINE_WINDOWS as u64 {
            return Err(format!(
                "{windows} windows stand in a listing, at most {INLINE_WINDOWS} may"
            ));
        }
        RowsView::Inline(cursor.arrays(windows)?)
    } else {
        RowsView::Pieces(cursor.arrays(FileMap::piece_count(windows))?)
    };
    Ok(FileView {
        size_bytes,
        window_bytes,
        crc32c,
        rows,
    })
}

fn read_directory<'a>(cursor: &mut Cursor<'a>) -> Result<DirectoryView<'a>, String> {
    let (entries, count) = (cursor.u64()?, cursor.u32()?);
    let pages = (0..count)
        .map(|_| Ok((cursor.short()?, ChunkId(cursor.array()?))))
        .collect::<Result<Vec<_>, String>>()?;
    Ok(DirectoryView { entries, pages })
}

/// Takes fields off the front; every error names the position.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest
            .get(..count)
            .ok_or_else(|| format!("It ends within an entry, at byte {}", self.at))?;
        self.at += count;
        Ok(taken)
    }

    fn arrays<const N: usize>(&mut self, count: u64) -> Result<&'a [[u8; N]], String> {
        let bytes = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(N))
            .unwrap_or(usize::MAX);
        let (arrays, _) = self.take(bytes)?.as_chunks();
        Ok(arrays)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.arrays::<N>(1)?.first().copied().ok_or_else(String::new)
    }

    fn u8(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn header(&mut self) -> Result<([u8; 8], u32, u32), String> {
        Ok((self.array()?, self.u32()?, self.u32()?))
    }

    fn short(&mut self) -> Result<&'a [u8], String> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
