//! One chunk's frame: the chunk's bytes as stored in a pack.
//!
//! A chunk is stored uncompressed, as one zstd frame, or as a *delta* against a similar chunk, its base. A
//! delta is a bitmap of the 8 KiB blocks in which the two differ, followed by one zstd frame with the new
//! bytes of those blocks. The base's bytes of the same blocks are the zstd prefix. A page with a few changed
//! rows costs a few bytes, an unchanged page costs one bit. Encoder and decoder only process the changed
//! pages, so deltas are faster than whole frames.
//!
//! zstd contexts and buffers are kept per thread: creating a context costs more than encoding a chunk with
//! it.

use std::cell::RefCell;
use std::ops::Range;

use zstd_safe::{CCtx, DCtx};

use crate::layout::{BLOCK_BYTES, MAX_CHUNK_BYTES};

/// How to decode a frame. Pack footers store the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// The chunk's bytes themselves.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
    /// A bitmap and one zstd frame, relative to a base.
    Delta = 2,
}

impl Encoding {
    /// The encoding that a footer or the index stores as this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Stored),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            _ => None,
        }
    }
}

/// An encoded chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// How it is encoded.
    pub encoding: Encoding,
    /// Its bytes in a pack.
    pub bytes: Vec<u8>,
}

/// Why a frame cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is shorter than its encoding needs.
    #[error("Its frame is cut short at {0} bytes")]
    Truncated(usize),
    /// The decoded size differs from the size in the index.
    #[error("It decodes to {found} bytes instead of {expected}")]
    WrongSize {
        /// Bytes the frame holds.
        found: usize,
        /// Bytes it should hold.
        expected: usize,
    },
    /// A delta without a base, or a base for a frame that is not a delta.
    #[error("Its encoding and its base do not go together")]
    BaseMismatch,
    /// A delta takes a block from its base, but the base is too short to have it.
    #[error("It takes block {0} from its base, which ends before it")]
    BaseTooShort(usize),
    /// A delta marks blocks past its own end.
    #[error("Its bitmap marks blocks past its end")]
    StrayBits,
    /// A chunk larger than the format allows.
    #[error("It claims {0} bytes, more than any chunk has")]
    TooLarge(usize),
    /// zstd does not accept the frame.
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

/// Base bytes that begin with this magic number are not used as a prefix: zstd's one-shot functions would
/// treat them as a trained dictionary instead of raw content.
const ZSTD_DICTIONARY_MAGIC: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();

thread_local! {
    static CODEC: RefCell<Codec> = RefCell::new(Codec::default());
}

/// Encodes a chunk without a base: as a zstd frame, or uncompressed when the frame is not smaller.
pub fn encode_whole(bytes: &[u8], level: i32) -> Frame {
    CODEC.with_borrow_mut(|codec| codec.encode_whole(bytes, level))
}

/// Encodes a chunk as a delta against `base`. Returns `None` when that is impossible or the delta is not
/// smaller than the chunk itself. The caller decides whether the delta is worth it compared with a whole
/// frame.
pub fn encode_delta(bytes: &[u8], base: &[u8], level: i32) -> Option<Frame> {
    CODEC.with_borrow_mut(|codec| codec.encode_delta(bytes, base, level))
}

/// Decodes a frame into `out`, whose length is the chunk's. `base` is the base's bytes for a delta, else
/// `None`.
///
/// # Errors
/// [`FrameError`] if the bytes are not a valid frame; the content of `out` is then undefined. A successful
/// decode does not prove that this is the requested chunk: the caller compares the id.
pub fn decode_into(
    frame: &[u8],
    encoding: Encoding,
    base: Option<&[u8]>,
    out: &mut [u8],
) -> Result<(), FrameError> {
    CODEC.with_borrow_mut(|codec| match (encoding, base) {
        (Encoding::Stored, None) => decode_stored(frame, out),
        (Encoding::Zstd, None) => codec.decode_whole(frame, out),
        (Encoding::Delta, Some(base)) => codec.decode_delta(frame, base, out),
        _ => Err(FrameError::BaseMismatch),
    })
}

/// Decodes a frame into a new vector, see [`decode_into`].
///
/// # Errors
/// As [`decode_into`], and [`FrameError::TooLarge`] before more than [`MAX_CHUNK_BYTES`] is allocated.
pub fn decode(
    frame: &[u8],
    encoding: Encoding,
    raw_bytes: usize,
    base: Option<&[u8]>,
) -> Result<Vec<u8>, FrameError> {
    if raw_bytes > MAX_CHUNK_BYTES {
        return Err(FrameError::TooLarge(raw_bytes));
    }
    let mut out = vec![0; raw_bytes];
    decode_into(frame, encoding, base, &mut out)?;
    Ok(out)
}

fn decode_stored(frame: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
    expect_size(frame.len(), out.len())?;
    out.copy_from_slice(frame);
    Ok(())
}

fn expect_size(found: usize, expected: usize) -> Result<(), FrameError> {
    if found == expected {
        Ok(())
    } else {
        Err(FrameError::WrongSize { found, expected })
    }
}

/// One thread's contexts, and buffers that keep their capacity from chunk to chunk.
#[derive(Default)]
struct Codec {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    /// A frame being built: its final size is only known at the end.
    frame: Vec<u8>,
    /// The new bytes of the blocks that differ, one after the other.
    changed: Vec<u8>,
    /// The base's bytes of the same blocks.
    prefix: Vec<u8>,
}

impl Codec {
    fn encode_whole(&mut self, bytes: &[u8], level: i32) -> Frame {
        self.frame.clear();
        self.frame.reserve(zstd_safe::compress_bound(bytes.len()));
        // With this much room zstd cannot fail. If it did, the uncompressed bytes would still be correct.
        match self.compressor.compress(&mut self.frame, bytes, level) {
            Ok(stored) if stored < bytes.len() => Frame {
                encoding: Encoding::Zstd,
                bytes: self.frame.clone(),
            },
            _ => Frame {
                encoding: Encoding::Stored,
                bytes: bytes.to_vec(),
            },
        }
    }

    fn encode_delta(&mut self, bytes: &[u8], base: &[u8], level: i32) -> Option<Frame> {
        let mut bitmap = vec![0_u8; bitmap_bytes(bytes.len())];
        self.changed.clear();
        self.prefix.clear();
        for (block, new) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let start = block * BLOCK_BYTES;
            if base.get(start..start + new.len()) != Some(new) {
                if let Some(byte) = bitmap.get_mut(block / 8) {
                    *byte |= 1 << (block % 8);
                }
                self.changed.extend_from_slice(new);
                self.prefix.extend_from_slice(base_block(base, block));
            }
        }
        if self.prefix.starts_with(&ZSTD_DICTIONARY_MAGIC) {
            return None;
        }
        self.frame.clear();
        self.frame.reserve(zstd_safe::compress_bound(self.changed.len()));
        self.compressor
            .compress_using_dict(&mut self.frame, &self.changed, &self.prefix, level)
            .ok()?;
        if bitmap.len() + self.frame.len() >= bytes.len() {
            return None;
        }
        bitmap.reserve_exact(self.frame.len());
        bitmap.extend_from_slice(&self.frame);
        Some(Frame {
            encoding: Encoding::Delta,
            bytes: bitmap,
        })
    }

    fn decode_whole(&mut self, frame: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
        let found = self.decompressor.decompress(out, frame).map_err(zstd_error)?;
        expect_size(found, out.len())
    }

    fn decode_delta(&mut self, frame: &[u8], base: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
        let (bitmap, body) = frame
            .split_at_checked(bitmap_bytes(out.len()))
            .filter(|(_, body)| !body.is_empty())
            // zstd accepts empty input as a frame of no bytes.
            .ok_or(FrameError::Truncated(frame.len()))?;
        let changed_bytes = self.take_from_base(bitmap, base, out)?;
        if self.prefix.starts_with(&ZSTD_DICTIONARY_MAGIC) {
            return Err(FrameError::Zstd("A dictionary as prefix, which no writer uses"));
        }
        self.changed.clear();
        self.changed.reserve(changed_bytes);
        let found = self
            .decompressor
            .decompress_using_dict(&mut self.changed, body, &self.prefix)
            .map_err(zstd_error)?;
        expect_size(found, changed_bytes)?;
        let mut rest = self.changed.as_slice();
        for (block, target) in out.chunks_mut(BLOCK_BYTES).enumerate() {
            if is_set(bitmap, block) {
                let (new, after) = rest.split_at(target.len());
                target.copy_from_slice(new);
                rest = after;
            }
        }
        Ok(())
    }

    /// Copies the unchanged blocks from the base to `out` and collects the prefix for the changed blocks.
    /// Returns the total size of the changed blocks.
    fn take_from_base(&mut self, bitmap: &[u8], base: &[u8], out: &mut [u8]) -> Result<usize, FrameError> {
        let blocks = out.len().div_ceil(BLOCK_BYTES);
        if (blocks..bitmap.len() * 8).any(|block| is_set(bitmap, block)) {
            return Err(FrameError::StrayBits);
        }
        self.prefix.clear();
        let mut changed_bytes = 0;
        for (block, target) in out.chunks_mut(BLOCK_BYTES).enumerate() {
            if is_set(bitmap, block) {
                self.prefix.extend_from_slice(base_block(base, block));
                changed_bytes += target.len();
            } else {
                let start = block * BLOCK_BYTES;
                let same = base
                    .get(start..start + target.len())
                    .ok_or(FrameError::BaseTooShort(block))?;
                target.copy_from_slice(same);
            }
        }
        Ok(changed_bytes)
    }
}

fn zstd_error(code: zstd_safe::ErrorCode) -> FrameError {
    FrameError::Zstd(zstd_safe::get_error_name(code))
}

fn bitmap_bytes(raw_bytes: usize) -> usize {
    raw_bytes.div_ceil(BLOCK_BYTES).div_ceil(8)
}

fn is_set(bitmap: &[u8], block: usize) -> bool {
    bitmap
        .get(block / 8)
        .is_some_and(|byte| byte & (1 << (block % 8)) != 0)
}

/// The base's bytes at a block's position: a full 8 KiB, fewer if the base ends within the block, none past
/// its end.
fn base_block(base: &[u8], block: usize) -> &[u8] {
    let Range { start, end } = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
    base.get(start..end.min(base.len())).unwrap_or_default()
}

#[cfg(test)]
mod tests;
