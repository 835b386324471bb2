//! Which chunks a tree consists of: what a sweep marks and a verification reads.

use super::TreeReader;
use crate::error::{Error, Result};
use crate::file_map::{FileMap, Window, Windows, row_at};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Node};

/// The role of a chunk in a tree. The same bytes, and so the same chunk, may have several roles. What a chunk refers
/// to has been handed on only if the chunk was met as a listing or a piece before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkRole {
    /// A page of a directory's listing.
    Listing,
    /// A piece of a file's map.
    Piece,
    /// A window of a file's content.
    Window,
}

impl ChunkRole {
    /// Whether it refers to nothing.
    pub fn is_window(self) -> bool {
        self == Self::Window
    }
}

/// Called with a chunk and its role; returns, for listings and pieces, whether to continue with what they refer to.
pub type EachChunk<'a> = dyn FnMut(ChunkId, ChunkRole) -> Result<bool> + 'a;

/// Hands on chunks as they are found; see [`TreeReader::chunks_of`].
pub(super) struct ContentChunks<'a, 'f> {
    pub(super) tree: &'a TreeReader,
    pub(super) each: &'a mut EachChunk<'f>,
}

/// All chunks below `root`. Directories wait in a list instead of on the stack: nothing guarantees how deep they go.
pub(super) fn tree_chunks(tree: &TreeReader, root: &DirectoryRef, each: &mut EachChunk<'_>) -> Result<()> {
    let mut found = ContentChunks { tree, each };
    let mut waiting = vec![root.clone()];
    while let Some(directory) = waiting.pop() {
        found.directory(&directory, &mut waiting)?;
    }
    Ok(())
}

impl ContentChunks<'_, '_> {
    fn directory(&mut self, directory: &DirectoryRef, waiting: &mut Vec<DirectoryRef>) -> Result<()> {
        for page in &directory.pages {
            if !(self.each)(page.chunk, ChunkRole::Listing)? {
                continue;
            }
            let mut page = self.tree.page(page)?;
            let what = page.what();
            while let Some(view) = page.next()? {
                match view
                    .to_entry()
                    .map_err(|reason| Error::damaged(what(), reason))?
                    .node
                {
                    Node::File(map) => self.file(&map)?,
                    Node::Directory(child) => waiting.push(child),
                    Node::Symlink(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The chunks of one file.
    pub(super) fn file(&mut self, map: &FileMap) -> Result<()> {
        map.check()
            .map_err(|reason| Error::damaged("A file's map", reason))?;
        match &map.windows {
            Windows::Inline(windows) => windows.iter().try_for_each(|window| self.window(window)),
            Windows::Pieces(pieces) => (0..).zip(pieces).try_for_each(|(number, piece)| {
                if (self.each)(*piece, ChunkRole::Piece)? {
                    self.piece(piece, map.piece_windows(number))
                } else {
                    Ok(())
                }
            }),
        }
    }

    fn piece(&mut self, piece: &ChunkId, windows: usize) -> Result<()> {
        let rows = self.tree.piece(piece, windows)?;
        (0..windows)
            .filter_map(|row| row_at(&rows, row))
            .try_for_each(|window| self.window(&window))
    }

    fn window(&mut self, window: &Window) -> Result<()> {
        if let Some(chunk) = window.chunk {
            (self.each)(chunk, ChunkRole::Window)?;
        }
        Ok(())
    }
}
