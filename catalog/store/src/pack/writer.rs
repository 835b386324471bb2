//! Writing a pack from front to back.

use crate::codec::{Encoding, Frame};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::layout::{
    MAX_CHUNK_BYTES, MAX_RECORD_BYTES, PACK_MAX_CHUNKS, PACK_RECORDS_TARGET_BYTES, PACK_TARGET_BYTES,
};
use crate::pack_header::Header;
use crate::seal::{EndKeys, FrameKey, FramePlace, SALT_BYTES, SEAL_BYTES};
use crate::storage::{PackStorage, PackUpload};

use super::footer::{RECORD_HEAD_BYTES, encode_footer};
use super::{ClosedPack, PackedChunk, Record};

/// A pack being filled. It is invisible until [`close`](Self::close) returns; if it is dropped before that,
/// it is removed.
#[derive(Debug)]
pub struct PackWriter {
    header: Header,
    /// Of a sealed pack.
    seal: Option<Box<Seal>>,
    upload: Box<dyn PackUpload>,
    /// Bytes written so far, which is where the next frame begins.
    offset: u32,
    chunks: Vec<PackedChunk>,
    records: Vec<Record>,
    record_bytes: usize,
}

/// What seals a pack.
#[derive(Debug)]
struct Seal {
    frames: FrameKey,
    end: EndKeys,
    /// A frame being sealed; keeps its capacity from frame to frame.
    frame: Vec<u8>,
}

impl PackWriter {
    /// Begins a pack under a new id, sealed by the newest key of the storage if it has keys.
    ///
    /// # Errors
    /// When `storage` cannot begin one.
    pub fn begin(storage: &dyn PackStorage) -> Result<Self> {
        let mut upload = storage.begin()?;
        let id = upload.id();
        let (header, seal) = match storage.keys().newest() {
            None => (Header::Plain { id }, None),
            Some(key) => {
                let mut salt = [0; SALT_BYTES];
                getrandom::fill(&mut salt).map_err(|source| Error::Random(source.to_string()))?;
                let frames = storage.keys().frame_key(key, &salt)?;
                let end = storage.keys().end_keys(key, &salt);
                let (Some(frames), Some(end)) = (frames, end) else {
                    return Err(Error::no_key(format!("Pack {id}"), key));
                };
                let frame = Vec::new();
                (
                    Header::Sealed { id, key, salt },
                    Some(Box::new(Seal { frames, end, frame })),
                )
            }
        };
        upload.write(&header.encode())?;
        let offset = header.bytes() as u32;
        Ok(Self {
            header,
            seal,
            upload,
            offset,
            chunks: Vec::new(),
            records: Vec::new(),
            record_bytes: 0,
        })
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.header.id()
    }

    /// Whether the pack should be closed before more is put into it.
    pub fn is_full(&self) -> bool {
        u64::from(self.offset) >= PACK_TARGET_BYTES
            || self.chunks.len() >= PACK_MAX_CHUNKS
            || self.record_bytes >= PACK_RECORDS_TARGET_BYTES
    }

    /// Whether nothing has been put into it yet.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.records.is_empty()
    }

    /// The chunks put so far.
    pub fn chunks(&self) -> &[PackedChunk] {
        &self.chunks
    }

    /// Appends a chunk's frame; `raw_bytes` is the chunk's own size, `base` a delta's base.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Invalid`] for what no reader would accept (the pack stays usable), and
    /// any error of writing (it does not).
    pub fn append(
        &mut self,
        id: ChunkId,
        raw_bytes: usize,
        base: Option<ChunkId>,
        frame: &Frame,
    ) -> Result<PackedChunk> {
        let added_bytes = self.seal.as_ref().map_or(0, |_| SEAL_BYTES as u32);
        let chunk = PackedChunk {
            id,
            encoding: frame.encoding,
            offset: self.offset,
            stored_bytes: chunk_size(frame.bytes.len())? + added_bytes,
            raw_bytes: chunk_size(raw_bytes)?,
            base,
        };
        if (frame.encoding == Encoding::Delta) != base.is_some() || base == Some(id) {
            return Err(Error::Invalid(format!(
                "Chunk {id}: a delta needs another chunk as its base, others none"
            )));
        }
        if self.is_full() {
            return Err(Error::Invalid(format!("Pack {} is full", self.id())));
        }
        match &mut self.seal {
            None => self.upload.write(&frame.bytes)?,
            Some(seal) => {
                seal.frame.clear();
                seal.frame.extend_from_slice(&frame.bytes);
                let place = FramePlace {
                    pack: self.header.id(),
                    offset: chunk.offset,
                    chunk: id,
                    encoding: chunk.encoding,
                    stored_bytes: chunk.stored_bytes,
                    raw_bytes: chunk.raw_bytes,
                };
                seal.frames.seal(&place, &mut seal.frame)?;
                self.upload.write(&seal.frame)?;
            }
        }
        self.offset += chunk.stored_bytes;
        self.chunks.push(chunk);
        Ok(chunk)
    }

    /// Adds a record to the footer. Even a full pack takes records, as long as the footer can hold them: the
    /// record of a backup belongs in its last pack.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a payload no reader would accept, or when the records exceed the target by
    /// more than one largest record.
    pub fn record(&mut self, record: Record) -> Result<()> {
        within("A record", record.payload.len(), MAX_RECORD_BYTES)?;
        let record_bytes = self.record_bytes + RECORD_HEAD_BYTES + record.payload.len();
        within(
            "The records of a pack",
            record_bytes,
            PACK_RECORDS_TARGET_BYTES + MAX_RECORD_BYTES,
        )?;
        self.record_bytes = record_bytes;
        self.records.push(record);
        Ok(())
    }

    /// Writes the footer and makes the pack durable and visible, in this order.
    ///
    /// # Errors
    /// When writing fails; nothing of the pack is left then.
    pub fn close(mut self) -> Result<ClosedPack> {
        let tail = encode_footer(
            &self.header,
            self.seal.as_ref().map(|seal| &seal.end),
            &self.chunks,
            &self.records,
        )?;
        self.upload.write(&tail)?;
        self.upload.finish()?;
        let bytes = u64::from(self.offset) + tail.len() as u64;
        Ok(ClosedPack {
            id: self.header.id(),
            bytes,
            chunks: self.chunks,
            records: self.records,
        })
    }
}

fn chunk_size(bytes: usize) -> Result<u32> {
    within("A chunk", bytes, MAX_CHUNK_BYTES)?;
    Ok(bytes as u32)
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::TooLarge {
        what,
        bytes: bytes as u64,
        limit: limit as u64,
    })
}
