//! Builds a file's map from windows that are answered in any order.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::crc::crc32c_concat;
use crate::depositor::{ContentClass, Deposit, Depositor};
use crate::error::Result;
use crate::file_map::{FileMap, INLINE_WINDOWS, PIECE_WINDOWS, ROW_BYTES, Window, Windows, row_at};
use crate::id::ChunkId;
use crate::sync::lock;

/// Called with the finished file, on a thread of the depositor.
pub(super) type FileDone = Box<dyn FnOnce(StoredFile) + Send>;

/// A file whose content has been put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its content.
    pub map: FileMap,
    /// Bytes of the frames that were added for it.
    pub new_stored_bytes: u64,
}

/// Collects a file's windows. Pieces are put as soon as they are complete. However large the file is, only the pieces
/// with windows in progress are in memory: two.
pub(super) struct Assembly {
    depositor: Arc<Depositor>,
    /// The map without its windows.
    shape: FileMap,
    /// The pieces of the map the file had before.
    similar: Vec<ChunkId>,
    state: Mutex<State>,
}

struct State {
    pieces: Vec<Piece>,
    /// How many steps the map still waits for: each piece, and [`Assembly::all_put`].
    left: u64,
    new_stored_bytes: u64,
    done: Option<FileDone>,
}

enum Piece {
    /// The rows so far, and how many are missing.
    Filling { rows: Vec<u8>, left: usize },
    /// All rows are known, and `crc32c` is that of the bytes they cover. The rows of a small file are kept for the
    /// map itself; those of a larger one have become a chunk.
    Complete { content: Complete, crc32c: u32 },
}

enum Complete {
    Rows(Vec<u8>),
    Chunk(ChunkId),
}

impl Assembly {
    /// Begins a map; `similar` is the file's earlier map.
    pub(super) fn begin(
        depositor: Arc<Depositor>,
        size_bytes: u64,
        window_bytes: u32,
        similar: Option<&FileMap>,
        done: FileDone,
    ) -> Self {
        let shape = FileMap {
            size_bytes,
            window_bytes,
            crc32c: 0,
            windows: Windows::Inline(Vec::new()),
        };
        let similar = match similar.map(|map| &map.windows) {
            Some(Windows::Pieces(pieces)) => pieces.clone(),
            _ => Vec::new(),
        };
        let pieces_needed = shape.window_count().div_ceil(PIECE_WINDOWS as u64);
        let state = State {
            pieces: Vec::new(),
            left: pieces_needed + 1,
            new_stored_bytes: 0,
            done: Some(done),
        };
        Self {
            depositor,
            shape,
            similar,
            state: Mutex::new(state),
        }
    }

    /// Takes the result of window `n`. The depositor keeps an error; the map then stays unfinished.
    pub(super) fn window(&self, n: u64, outcome: &Result<Deposit>) {
        let Ok(deposit) = outcome else { return };
        let window = Window {
            chunk: deposit.chunk,
            crc32c: deposit.crc32c,
        };
        let Ok(at) = usize::try_from(n) else { return };
        let (piece, row) = (at / PIECE_WINDOWS, at % PIECE_WINDOWS);
        if let Some(rows) = self.enter(piece, row, window, deposit.new_stored_bytes) {
            self.complete(piece, rows);
        }
    }

    /// Called by the writer once all windows have been put.
    pub(super) fn all_put(&self) {
        self.part_done(self.lock());
    }

    /// Enters a row; returns the piece's rows when this was the last missing one.
    fn enter(&self, piece: usize, row: usize, window: Window, new_stored_bytes: u32) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.new_stored_bytes += u64::from(new_stored_bytes);
        while state.pieces.len() <= piece {
            let windows = self.shape.piece_windows(state.pieces.len() as u64);
            state.pieces.push(Piece::Filling {
                rows: vec![0; windows * ROW_BYTES],
                left: windows,
            });
        }
        let Some(Piece::Filling { rows, left }) = state.pieces.get_mut(piece) else {
            return None;
        };
        let start = row * ROW_BYTES;
        rows.get_mut(start..start + ROW_BYTES)?
            .copy_from_slice(&window.to_row());
        *left -= 1;
        (*left == 0).then(|| std::mem::take(rows))
    }

    fn complete(&self, piece: usize, rows: Vec<u8>) {
        let first = (piece * PIECE_WINDOWS) as u64;
        let crc32c = (first..).zip(windows_in(&rows)).fold(0, |crc, (n, window)| {
            crc32c_concat(crc, window.crc32c, u64::from(self.shape.window_length(n)))
        });
        let (content, new_stored_bytes) = if self.shape.window_count() <= INLINE_WINDOWS as u64 {
            (Complete::Rows(rows), 0)
        } else {
            let similar = self.similar.get(piece).copied();
            // An error is kept by the depositor; the map stays unfinished. Pieces are never holes.
            let Ok(deposit) = self.depositor.put_now(&rows, similar, ContentClass::Map) else {
                return;
            };
            let Some(chunk) = deposit.chunk else { return };
            (Complete::Chunk(chunk), deposit.new_stored_bytes)
        };
        let mut state = self.lock();
        state.new_stored_bytes += u64::from(new_stored_bytes);
        if let Some(slot) = state.pieces.get_mut(piece) {
            *slot = Piece::Complete { content, crc32c };
        }
        self.part_done(state);
    }

    fn part_done(&self, mut state: MutexGuard<'_, State>) {
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let pieces = std::mem::take(&mut state.pieces);
        let new_stored_bytes = state.new_stored_bytes;
        let done = state.done.take();
        drop(state);
        if let Some(done) = done {
            done(StoredFile {
                map: self.map(pieces),
                new_stored_bytes,
            });
        }
    }

    fn map(&self, pieces: Vec<Piece>) -> FileMap {
        let mut map = self.shape.clone();
        let mut chunks = Vec::new();
        let mut inline = Vec::new();
        for (number, piece) in (0..).zip(pieces) {
            let Piece::Complete { content, crc32c } = piece else {
                continue;
            };
            map.crc32c = crc32c_concat(map.crc32c, crc32c, piece_bytes(&self.shape, number));
            match content {
                Complete::Rows(rows) => inline.extend(windows_in(&rows)),
                Complete::Chunk(chunk) => chunks.push(chunk),
            }
        }
        map.windows = if chunks.is_empty() {
            Windows::Inline(inline)
        } else {
            Windows::Pieces(chunks)
        };
        map
    }

    // A map that a panic left incomplete never finishes, which the tree notices.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Bytes of the file that piece `number` covers.
fn piece_bytes(shape: &FileMap, number: u64) -> u64 {
    let full = PIECE_WINDOWS as u64 * u64::from(shape.window_bytes);
    shape
        .size_bytes
        .saturating_sub(number.saturating_mul(full))
        .min(full)
}

fn windows_in(rows: &[u8]) -> impl Iterator<Item = Window> {
    (0..).map_while(|row| row_at(rows, row))
}
