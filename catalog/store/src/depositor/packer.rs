//! The last two threads of the pipeline: one fills packs, one closes them.
//!
//! Closing waits for the disk and the index; meanwhile filling continues with the next pack. After an error both
//! threads discard further messages, so that nobody blocks on a queue, and an open pack is dropped, which removes
//! it.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::claims::Claims;
use super::status::Status;
use crate::codec::Frame;
use crate::counters::Counters;
use crate::error::Result;
use crate::id::{ChunkId, PackId};
use crate::index::ChunkIndex;
use crate::pack::{PackWriter, Record};
use crate::storage::PackStorage;
use crate::sync::lock;

/// Packs that wait while another one is being closed. With that one there are two, so the disk always has work, and
/// a crash loses less than three packs.
pub(super) const CLOSE_QUEUE: usize = 1;

/// The answer to a flush.
pub(super) type Flushed = Sender<Result<()>>;

/// Messages to the packer.
#[derive(Debug)]
pub(super) enum ToPacker {
    /// Append this frame.
    Frame {
        /// The chunk.
        id: ChunkId,
        /// Its own size.
        raw_bytes: usize,
        /// The base of a delta.
        base: Option<ChunkId>,
        /// Its bytes in the pack.
        frame: Frame,
    },
    /// Write these records, close the pack, then answer.
    Flush(Vec<Record>, Flushed),
}

/// Messages to the closer.
#[derive(Debug)]
pub(super) enum ToCloser {
    /// Close this pack and enter it in the index.
    Close(PackWriter),
    /// Answer: everything before is done.
    Report(Flushed),
}

/// Fills packs.
#[derive(Debug)]
pub(super) struct Packer {
    pub(super) storage: Arc<dyn PackStorage>,
    pub(super) counters: Arc<Counters>,
    pub(super) status: Arc<Status>,
    pub(super) closer: Sender<ToCloser>,
    pub(super) open: Option<PackWriter>,
}

impl Packer {
    pub(super) fn run(&mut self, messages: &Receiver<ToPacker>) {
        for message in messages {
            let failed = self.status.check().is_err();
            match message {
                ToPacker::Frame { .. } if failed => self.open = None,
                ToPacker::Frame {
                    id,
                    raw_bytes,
                    base,
                    frame,
                } => {
                    if let Err(error) = self.append(id, raw_bytes, base, &frame) {
                        self.status.fail(error);
                    }
                }
                ToPacker::Flush(records, flushed) => {
                    if !failed && let Err(error) = self.finish(records) {
                        self.status.fail(error);
                    }
                    self.tell_closer(ToCloser::Report(flushed));
                }
            }
        }
    }

    fn append(&mut self, id: ChunkId, raw_bytes: usize, base: Option<ChunkId>, frame: &Frame) -> Result<()> {
        let pack = self.open()?;
        pack.append(id, raw_bytes, base, frame)?;
        let is_full = pack.is_full();
        self.counters.chunk_written(raw_bytes, frame.bytes.len());
        if is_full {
            self.close();
        }
        Ok(())
    }

    /// The records go into the open pack, so that one fsync makes an archived segment durable with its record.
    /// Packs are closed in order: no record is ever durable before the chunks it refers to.
    fn finish(&mut self, records: Vec<Record>) -> Result<()> {
        for record in records {
            let pack = self.open()?;
            pack.record(record)?;
            if pack.is_full() {
                self.close();
            }
        }
        self.close();
        Ok(())
    }

    fn open(&mut self) -> Result<&mut PackWriter> {
        let pack = match self.open.take() {
            Some(pack) => pack,
            None => PackWriter::begin(self.storage.as_ref())?,
        };
        Ok(self.open.insert(pack))
    }

    fn close(&mut self) {
        if let Some(pack) = self.open.take() {
            self.tell_closer(ToCloser::Close(pack));
        }
    }

    fn tell_closer(&self, message: ToCloser) {
        if self.closer.send(message).is_err() {
            self.status.panicked();
        }
    }
}

/// Closes packs, in order.
#[derive(Debug)]
pub(super) struct Closer {
    pub(super) index: Arc<dyn ChunkIndex>,
    pub(super) status: Arc<Status>,
    pub(super) claims: Arc<Claims>,
    /// The packs finished since the last flush.
    pub(super) finished: Arc<Mutex<Vec<PackId>>>,
}

impl Closer {
    pub(super) fn run(&self, messages: &Receiver<ToCloser>) {
        for message in messages {
            match message {
                ToCloser::Close(pack) => {
                    if let Err(error) = self.close(pack) {
                        self.status.fail(error);
                    }
                }
                ToCloser::Report(flushed) => {
                    // The caller may have stopped waiting.
                    let _unwanted = flushed.send(self.status.check());
                }
            }
        }
    }

    fn close(&self, pack: PackWriter) -> Result<()> {
        self.status.check()?;
        let closed = pack.close()?;
        self.index.publish(&closed)?;
        self.claims.release_all(&closed.chunks);
        lock(&self.finished).push(closed.id);
        Ok(())
    }
}
