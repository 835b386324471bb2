//! File maps: which chunk holds each window of a file.
//!
//! A file is cut at fixed offsets into windows, so that a division finds the window of an offset and a changed page
//! changes one entry. The map is part of the file's directory listing and holds up to [`INLINE_WINDOWS`] windows
//! itself. The windows of a larger file are in *pieces*, chunks of [`PIECE_WINDOWS`] rows of [`ROW_BYTES`] each.
//!
//! Invariants, checked by every reader ([`FileMap::check`]): the window size is a power of two that
//! [`valid_window_bytes`] allows; there are exactly as many windows (or pieces) as the file's size needs; only the
//! last window is shorter.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::crc::crc32c_concat;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::layout::{BLOCK_BYTES, MAX_CHUNK_BYTES};

/// A map with this many windows or fewer holds them itself: 2 MiB of data or a 16 MiB segment without a further
/// chunk, and still a listing entry of well under a kilobyte.
pub const INLINE_WINDOWS: usize = 16;

/// Windows in one piece of a larger map: 256 MiB of data in 72 KiB, about the size of one data window's chunk. That
/// is exactly nine 8 KiB blocks, the unit in which a piece is stored as a delta against its predecessor.
pub const PIECE_WINDOWS: usize = 2048;

/// One window in a piece or a listing: the chunk id (zeros for a hole) and the CRC-32C, little endian.
pub const ROW_BYTES: usize = ChunkId::BYTES + 4;

/// One window of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The chunk of the window's bytes; `None` for a hole: all bytes are zero.
    pub chunk: Option<ChunkId>,
    /// CRC-32C of the window's bytes, also of a hole's.
    pub crc32c: u32,
}

/// Where a file's windows are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// Here: at most [`INLINE_WINDOWS`].
    Inline(Vec<Window>),
    /// In these chunks, each of [`PIECE_WINDOWS`] rows, the last of fewer.
    Pieces(Vec<ChunkId>),
}

/// The content of one file. A map read from JSON (a segment's record) is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedMap")]
pub struct FileMap {
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// Bytes of each window but the last.
    pub window_bytes: u32,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
    /// Its windows.
    pub windows: Windows,
}

/// A map as read from JSON.
#[derive(Deserialize)]
struct UncheckedMap {
    size_bytes: u64,
    window_bytes: u32,
    crc32c: u32,
    windows: Windows,
}

impl TryFrom<UncheckedMap> for FileMap {
    type Error = String;

    fn try_from(map: UncheckedMap) -> std::result::Result<Self, String> {
        let UncheckedMap {
            size_bytes,
            window_bytes,
            crc32c,
            windows,
        } = map;
        let map = Self {
            size_bytes,
            window_bytes,
            crc32c,
            windows,
        };
        map.check()
            .map_err(|reason| format!("Not a file map: {reason}"))?;
        Ok(map)
    }
}

impl Window {
    /// The window's row in a piece or a listing.
    pub(crate) fn to_row(self) -> [u8; ROW_BYTES] {
        let mut row = [0; ROW_BYTES];
        let (id, crc) = row.split_at_mut(ChunkId::BYTES);
        id.copy_from_slice(self.chunk.map_or([0; ChunkId::BYTES], |chunk| chunk.0).as_slice());
        crc.copy_from_slice(&self.crc32c.to_le_bytes());
        row
    }

    /// Reads a row. An id of zeros is a hole: no bytes with this BLAKE3 hash are known.
    pub(crate) fn from_row(row: &[u8; ROW_BYTES]) -> Self {
        let [id @ .., c0, c1, c2, c3] = *row;
        let chunk = (id != [0; ChunkId::BYTES]).then_some(ChunkId(id));
        Self {
            chunk,
            crc32c: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }
}

/// Row `index` of a run of rows, `None` past their end.
pub(crate) fn row_at(rows: &[u8], index: usize) -> Option<Window> {
    let (rows, _rest) = rows.as_chunks::<ROW_BYTES>();
    rows.get(index).map(Window::from_row)
}

/// Whether files may be cut into windows of this size: a power of two from one 8 KiB block to the largest chunk.
pub fn valid_window_bytes(window_bytes: u32) -> bool {
    window_bytes.is_power_of_two() && (BLOCK_BYTES..=MAX_CHUNK_BYTES).contains(&(window_bytes as usize))
}

impl FileMap {
    /// The map of a file of at most [`INLINE_WINDOWS`] windows; the file's CRC-32C is combined from theirs.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the windows do not fit the size.
    pub fn inline(size_bytes: u64, window_bytes: u32, windows: Vec<Window>) -> Result<Self> {
        let mut map = Self {
            size_bytes,
            window_bytes,
            crc32c: 0,
            windows: Windows::Inline(Vec::new()),
        };
        map.crc32c = (0..).zip(&windows).fold(0, |crc, (n, window)| {
            crc32c_concat(crc, window.crc32c, u64::from(map.window_length(n)))
        });
        map.windows = Windows::Inline(windows);
        map.check()
            .map_err(|reason| Error::Invalid(format!("Not a file map: {reason}")))?;
        Ok(map)
    }

    /// How many windows the file has.
    pub fn window_count(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.window_bytes.max(1)))
    }

    /// Bytes of window `n`; 0 past the end.
    pub fn window_length(&self, n: u64) -> u32 {
        let start = n.saturating_mul(u64::from(self.window_bytes));
        let rest = self.size_bytes.saturating_sub(start);
        u32::try_from(rest).map_or(self.window_bytes, |rest| rest.min(self.window_bytes))
    }

    /// The windows that the bytes `offset .. offset + length` touch.
    pub fn windows_of(&self, offset: u64, length: u64) -> Range<u64> {
        let end = offset.saturating_add(length).min(self.size_bytes);
        if offset >= end {
            return 0..0;
        }
        let window_bytes = u64::from(self.window_bytes.max(1));
        offset / window_bytes..end.div_ceil(window_bytes)
    }

    /// How many pieces a file of this many windows has; 0 when the map holds the windows itself.
    pub(crate) fn piece_count(windows: u64) -> u64 {
        if windows <= INLINE_WINDOWS as u64 {
            0
        } else {
            windows.div_ceil(PIECE_WINDOWS as u64)
        }
    }

    /// How many windows piece `piece` has.
    pub(crate) fn piece_windows(&self, piece: u64) -> usize {
        let before = piece.saturating_mul(PIECE_WINDOWS as u64);
        usize::try_from(self.window_count().saturating_sub(before))
            .map_or(PIECE_WINDOWS, |n| n.min(PIECE_WINDOWS))
    }

    /// Makes the checks that every reader must make before it trusts a map; returns what is wrong with it.
    ///
    /// # Errors
    /// A text that completes "the file map is damaged: …".
    pub fn check(&self) -> std::result::Result<(), String> {
        if !valid_window_bytes(self.window_bytes) {
            return Err(format!("windows of {} bytes are not possible", self.window_bytes));
        }
        let needed = self.window_count();
        let (unit, needed, found) = match &self.windows {
            Windows::Inline(windows) => ("windows", needed, windows.len()),
            Windows::Pieces(pieces) => ("pieces", Self::piece_count(needed), pieces.len()),
        };
        if found as u64 != needed {
            return Err(format!(
                "{} bytes need {needed} {unit}, there are {found}",
                self.size_bytes
            ));
        }
        if matches!(&self.windows, Windows::Inline(windows) if windows.len() > INLINE_WINDOWS) {
            return Err(format!(
                "{found} windows stand in the map itself, at most {INLINE_WINDOWS} may"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{DATA_WINDOW_BYTES, STREAM_WINDOW_BYTES};

    const WINDOW: u64 = DATA_WINDOW_BYTES as u64;

    fn map(size_bytes: u64) -> FileMap {
        FileMap {
            size_bytes,
            window_bytes: DATA_WINDOW_BYTES,
            crc32c: 0,
            windows: Windows::Inline(Vec::new()),
        }
    }

    #[test]
    fn windows_of_ranges() {
        let map = map(3 * WINDOW + 5);
        assert_eq!(map.window_count(), 4);
        assert_eq!(
            [0, 2, 3, 4].map(|n| map.window_length(n)),
            [DATA_WINDOW_BYTES, DATA_WINDOW_BYTES, 5, 0]
        );
        assert_eq!(map.windows_of(0, 1), 0..1);
        assert_eq!(map.windows_of(WINDOW - 1, 2), 0..2);
        assert_eq!(map.windows_of(WINDOW, WINDOW), 1..2);
        assert_eq!(map.windows_of(3 * WINDOW, u64::MAX), 3..4);
        assert!(map.windows_of(3 * WINDOW + 5, 1).is_empty());
        assert!(map.windows_of(5, 0).is_empty());
        assert!(map.windows_of(u64::MAX, u64::MAX).is_empty());
    }

    #[test]
    fn pieces_of_sizes() {
        let inline = INLINE_WINDOWS as u64;
        let piece = PIECE_WINDOWS as u64;
        assert_eq!(
            [0, inline, inline + 1, piece, piece + 1].map(FileMap::piece_count),
            [0, 0, 1, 1, 2]
        );
        let map = map((piece + 3) * WINDOW);
        assert_eq!([0, 1, 2].map(|n| map.piece_windows(n)), [PIECE_WINDOWS, 3, 0]);
    }

    #[test]
    fn rows_read_back() {
        let window = Window {
            chunk: Some(ChunkId::of(b"x")),
            crc32c: 0x0102_0304,
        };
        let hole = Window {
            chunk: None,
            crc32c: 5,
        };
        let rows = [window.to_row(), hole.to_row()].concat();
        assert_eq!(
            [0, 1, 2].map(|n| row_at(&rows, n)),
            [Some(window), Some(hole), None]
        );
        assert_eq!(rows[32..36], [4, 3, 2, 1]);
    }

    #[test]
    fn the_checksum_of_a_file_is_combined_from_its_windows() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let window = |part: &[u8]| Window {
            chunk: Some(ChunkId::of(part)),
            crc32c: crc32c::crc32c(part),
        };
        let windows = bytes.chunks(DATA_WINDOW_BYTES as usize).map(window).collect();
        let map = FileMap::inline(bytes.len() as u64, DATA_WINDOW_BYTES, windows).unwrap();
        assert_eq!(map.crc32c, crc32c::crc32c(&bytes));
    }

    #[test]
    fn impossible_maps_are_refused_in_json_too() {
        let segment = FileMap {
            size_bytes: 64 << 20,
            window_bytes: STREAM_WINDOW_BYTES,
            crc32c: 1,
            windows: Windows::Pieces(vec![ChunkId::of(b"x")]),
        };
        assert_eq!(segment.check(), Ok(()));
        let json = serde_json::to_string(&segment).unwrap();
        assert_eq!(serde_json::from_str::<FileMap>(&json).unwrap(), segment);
        let cases = [
            ("67108864", "3000000000", "need 2 pieces"),
            ("67108864", "1", "need 0 pieces"),
            ("1048576", "0", "windows of 0 bytes"),
            ("1048576", "1000000", "windows of 1000000 bytes"),
            ("1048576", "8388608", "windows of 8388608 bytes"),
        ];
        for (from, to, reason) in cases {
            let error = serde_json::from_str::<FileMap>(&json.replace(from, to))
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
