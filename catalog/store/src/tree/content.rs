//! Which chunks a tree consists of: what a sweep marks and a verification reads.

use super::TreeReader;
use crate::error::{Error, Result};
use crate::file_map::{FileMap, Window, Windows, row_at};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Node};

/// Hands chunks on as they are found; see [`TreeReader::chunks_of`].
pub(super) struct ContentChunks<'a> {
    pub(super) tree: &'a TreeReader,
    pub(super) each: &'a mut dyn FnMut(ChunkId) -> Result<bool>,
}

/// All chunks below `root`. Directories wait in a list instead of on the stack: nobody vouches for how deep they go.
pub(super) fn tree_chunks(
    tree: &TreeReader,
    root: &DirectoryRef,
    each: &mut dyn FnMut(ChunkId) -> Result<bool>,
) -> Result<()> {
    let mut found = ContentChunks { tree, each };
    let mut waiting = vec![root.clone()];
    while let Some(directory) = waiting.pop() {
        found.directory(&directory, &mut waiting)?;
    }
    Ok(())
}

impl ContentChunks<'_> {
    fn directory(&mut self, directory: &DirectoryRef, waiting: &mut Vec<DirectoryRef>) -> Result<()> {
        for page in &directory.pages {
            if !(self.each)(page.chunk)? {
                continue;
            }
            let mut page = self.tree.page(page)?;
            let what = page.what();
            while let Some(view) = page.next()? {
                match view
                    .to_entry()
                    .map_err(|reason| Error::damaged(&what, reason))?
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
                if (self.each)(*piece)? {
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
            (self.each)(chunk)?;
        }
        Ok(())
    }
}
