//! Which chunks a tree has beside those that an earlier tree has in the same places: what a sweep marks in one backup after
//! the other.
//!
//! Both trees are walked side by side. A page or piece that was met before is left out with all it refers to. Any other one
//! is compared, row by row, with what the earlier tree has in its place, and only the rows that differ are handed on: what
//! is equal was handed on with the earlier tree. So a backup costs what has changed since the one before, and for each changed
//! piece a comparison of bytes.
//!
//! Each page and piece is compared only with one that was met before it, never the other way round, so no two of them can leave
//! the same row to each other. Where the earlier tree cannot be read, nothing is left out.
//!
//! One thread walks through the listings; pieces are read and compared on all cores.

use std::num::NonZero;
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::TreeReader;
use super::content::ChunkRole;
use crate::error::{Error, Result};
use crate::file_map::{FileMap, ROW_BYTES, Window, Windows};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Entry, Node, Page};
use crate::sync::lock;
use crate::threads;

/// Threads that read pieces: each holds two of them and a batch of ids.
const MAX_WORKERS: usize = 16;

/// Pieces that wait for a thread.
const QUEUE: usize = 64;

/// Ids handed on at a time.
const BATCH: usize = 4096;

/// Called with a page or piece; returns whether this is the first time in this role.
pub type Enter<'a> = dyn FnMut(ChunkId, ChunkRole) -> Result<bool> + 'a;

/// Called with ids of windows, on any thread; with some more than once.
pub type TakeWindows<'a> = dyn Fn(&[ChunkId]) -> Result<()> + Sync + 'a;

/// A piece to compare.
struct Task {
    piece: ChunkId,
    windows: usize,
    /// The piece that the earlier tree has in this place.
    before: Option<ChunkId>,
}

/// Walks through `root` beside `before`, which was handed on as a whole.
pub(super) fn walk(
    tree: &TreeReader,
    root: &DirectoryRef,
    before: Option<&DirectoryRef>,
    enter: &mut Enter<'_>,
    take: &TakeWindows<'_>,
) -> Result<()> {
    let (tasks, waiting) = bounded(QUEUE);
    let failure = Mutex::new(None);
    let walked = thread::scope(|scope| {
        threads::start_up_to(scope, "map-reader", worker_count(), || {
            let (waiting, failure) = (waiting.clone(), &failure);
            move || work(tree, &waiting, failure, take)
        })?;
        drop(waiting);
        let mut walk = Walk {
            tree,
            enter,
            take,
            tasks,
            failure: &failure,
            found: Vec::new(),
        };
        walk.tree(root, before)
    });
    // What a thread met came first: the walk may have ended because of it.
    match failure
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        Some(error) => Err(error),
        None => walked,
    }
}

fn worker_count() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_WORKERS)
}

/// Reads pieces until there are no more, and after a failure only takes them away.
fn work(tree: &TreeReader, tasks: &Receiver<Task>, failure: &Mutex<Option<Error>>, take: &TakeWindows<'_>) {
    let mut found = Vec::with_capacity(BATCH);
    let mut ended = Ok(());
    for task in tasks {
        if ended.is_ok() && lock(failure).is_none() {
            ended = compare(tree, &task, &mut found, take);
        }
    }
    if let Err(error) = ended.and_then(|()| take(&found)) {
        lock(failure).get_or_insert(error);
    }
}

fn compare(tree: &TreeReader, task: &Task, found: &mut Vec<ChunkId>, take: &TakeWindows<'_>) -> Result<()> {
    let rows = tree.piece(&task.piece, task.windows)?;
    // It was read when it was met. If it cannot be read any more, it is no help.
    let before = task.before.and_then(|before| tree.chunks().get(&before).ok());
    let (rows, _) = rows.as_chunks::<ROW_BYTES>();
    let (before, _) = before.as_deref().unwrap_or_default().as_chunks::<ROW_BYTES>();
    for (n, row) in rows.iter().enumerate() {
        if before.get(n) != Some(row) {
            found.extend(Window::from_row(row).chunk);
        }
    }
    if found.len() >= BATCH {
        take(found)?;
        found.clear();
    }
    Ok(())
}

struct Walk<'a, 'f> {
    tree: &'a TreeReader,
    enter: &'a mut Enter<'f>,
    take: &'a TakeWindows<'a>,
    tasks: Sender<Task>,
    failure: &'a Mutex<Option<Error>>,
    /// Windows of maps in listings that were not handed on yet.
    found: Vec<ChunkId>,
}

impl Walk<'_, '_> {
    /// Directories wait in a list instead of on the stack: nothing guarantees how deep they go.
    fn tree(&mut self, root: &DirectoryRef, before: Option<&DirectoryRef>) -> Result<()> {
        let mut waiting = vec![(root.clone(), before.cloned())];
        while let Some((directory, before)) = waiting.pop() {
            self.directory(&directory, before.as_ref(), &mut waiting)?;
        }
        (self.take)(&self.found)
    }

    fn directory(
        &mut self,
        directory: &DirectoryRef,
        before: Option<&DirectoryRef>,
        waiting: &mut Vec<(DirectoryRef, Option<DirectoryRef>)>,
    ) -> Result<()> {
        let mut beside = Beside::of(self.tree, before);
        for page in &directory.pages {
            if lock(self.failure).is_some() {
                // The caller has the reason.
                return Ok(());
            }
            if !(self.enter)(page.chunk, ChunkRole::Listing)? {
                continue;
            }
            let mut page = self.tree.page(page)?;
            let what = page.what();
            while let Some(view) = page.next()? {
                let entry = view.to_entry().map_err(|reason| Error::damaged(what(), reason))?;
                let before = beside.find(&entry.name);
                match (entry.node, before) {
                    (Node::File(map), Some(Node::File(before))) => self.file(&map, Some(&before))?,
                    (Node::File(map), _) => self.file(&map, None)?,
                    (Node::Directory(child), Some(Node::Directory(before))) => {
                        waiting.push((child, Some(before)));
                    }
                    (Node::Directory(child), _) => waiting.push((child, None)),
                    (Node::Symlink(_), _) => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, map: &FileMap, before: Option<&FileMap>) -> Result<()> {
        map.check()
            .map_err(|reason| Error::damaged("A file's map", reason))?;
        let before = before.map(|before| &before.windows);
        match &map.windows {
            Windows::Inline(windows) => {
                let before = match before {
                    Some(Windows::Inline(before)) => before.as_slice(),
                    _ => &[],
                };
                for (n, window) in windows.iter().enumerate() {
                    if before.get(n) != Some(window) {
                        self.found.extend(window.chunk);
                    }
                }
                self.hand_on()
            }
            Windows::Pieces(pieces) => {
                let before = match before {
                    Some(Windows::Pieces(before)) => before.as_slice(),
                    _ => &[],
                };
                (0..).zip(pieces).try_for_each(|(number, piece)| {
                    let before = usize::try_from(number).ok().and_then(|n| before.get(n));
                    self.piece(*piece, map.piece_windows(number), before.copied())
                })
            }
        }
    }

    fn piece(&mut self, piece: ChunkId, windows: usize, before: Option<ChunkId>) -> Result<()> {
        if before == Some(piece) || !(self.enter)(piece, ChunkRole::Piece)? {
            return Ok(());
        }
        let task = Task {
            piece,
            windows,
            before,
        };
        self.tasks
            .send(task)
            .map_err(|_| Error::Invalid("The threads that read maps have ended".to_owned()))
    }

    fn hand_on(&mut self) -> Result<()> {
        if self.found.len() >= BATCH {
            (self.take)(&self.found)?;
            self.found.clear();
        }
        Ok(())
    }
}

/// The entries of the earlier tree's directory, asked for in the order of names. Only pages in which a name may be are read.
struct Beside<'a> {
    tree: &'a TreeReader,
    directory: Option<&'a DirectoryRef>,
    /// The page after the one being read.
    next_page: usize,
    page: Option<Page>,
    /// The entry read last, if its name has not been passed.
    head: Option<Entry>,
}

impl<'a> Beside<'a> {
    fn of(tree: &'a TreeReader, directory: Option<&'a DirectoryRef>) -> Self {
        Self {
            tree,
            directory,
            next_page: 0,
            page: None,
            head: None,
        }
    }

    /// What the directory has under this name, which sorts behind all that were asked for before.
    fn find(&mut self, name: &[u8]) -> Option<Node> {
        self.turn_to(name);
        while self.head.as_ref().is_none_or(|head| head.name.as_slice() < name) {
            self.head = Some(self.next()?);
        }
        match self.head.take() {
            Some(head) if head.name == name => Some(head.node),
            later => {
                self.head = later;
                None
            }
        }
    }

    /// Opens the last page that begins at or before the name, unless it is open or has been read.
    fn turn_to(&mut self, name: &[u8]) {
        let pages = self.directory.map_or(&[][..], |directory| &directory.pages);
        let rest = pages.get(self.next_page..).unwrap_or_default();
        let skipped = rest.partition_point(|page| page.first.as_slice() <= name);
        let Some(page) = skipped.checked_sub(1).and_then(|last| rest.get(last)) else {
            return;
        };
        self.next_page += skipped;
        self.head = None;
        self.page = self.tree.page(page).ok();
    }

    /// The next entry of the page; `None` at its end, and where it cannot be read.
    fn next(&mut self) -> Option<Entry> {
        let view = self.page.as_mut()?.next().ok()??;
        view.to_entry().ok()
    }
}

#[cfg(test)]
mod tests;
