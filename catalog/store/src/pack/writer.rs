//! Writing a pack from front to back.

use crate::codec::{Encoding, Frame};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::layout::{
    FORMAT_VERSION, MAX_CHUNK_BYTES, MAX_RECORD_BYTES, PACK_HEADER_BYTES, PACK_MAX_CHUNKS,
    PACK_RECORDS_TARGET_BYTES, PACK_TARGET_BYTES,
};
use crate::pack_header::encode_header;
use crate::storage::{PackStorage, PackUpload};

use super::footer::{RECORD_HEAD_BYTES, encode_footer};
use super::{ClosedPack, PackedChunk, Record};

/// A pack being filled. It is invisible until [`close`](Self::close) returns; if it is dropped before that,
/// it is removed.
#[derive(Debug)]
pub struct PackWriter {
    id: PackId,
    upload: Box<dyn PackUpload>,
    /// Bytes written so far, which is where the next frame begins.
    offset: u32,
    chunks: Vec<PackedChunk>,
    records: Vec<Record>,
    record_bytes: usize,
}

impl PackWriter {
    /// Begins a pack under a new id.
    ///
    /// # Errors
    /// When `storage` cannot begin one.
    pub fn begin(storage: &dyn PackStorage) -> Result<Self> {
        let mut upload = storage.begin()?;
        let id = upload.id();
        upload.write(&encode_header(id, FORMAT_VERSION))?;
        let offset = PACK_HEADER_BYTES as u32;
        Ok(Self {
            id,
            upload,
            offset,
            chunks: Vec::new(),
            records: Vec::new(),
            record_bytes: 0,
        })
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.id
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
        let chunk = PackedChunk {
            id,
            encoding: frame.encoding,
            offset: self.offset,
            stored_bytes: chunk_size(frame.bytes.len())?,
            raw_bytes: chunk_size(raw_bytes)?,
            base,
        };
        if (frame.encoding == Encoding::Delta) != base.is_some() || base == Some(id) {
            return Err(Error::Invalid(format!(
                "Chunk {id}: a delta needs another chunk as its base, others none"
            )));
        }
        if self.is_full() {
            return Err(Error::Invalid(format!("Pack {} is full", self.id)));
        }
        self.upload.write(&frame.bytes)?;
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
        let tail = encode_footer(self.id, &self.chunks, &self.records)?;
        self.upload.write(&tail)?;
        self.upload.finish()?;
        let bytes = u64::from(self.offset) + tail.len() as u64;
        Ok(ClosedPack {
            id: self.id,
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
