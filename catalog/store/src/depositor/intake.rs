//! What the workers do with one put: hash it, find out whether it is known, encode it where it is not.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::claims::Claims;
use super::packer::ToPacker;
use super::patch::Patch;
use super::status::{Status, Ticket};
use super::{ContentClass, Deposit, DepositOptions, DepositTotals, Done};
use crate::codec::{Encoding, Frame, encode_delta, encode_whole};
use crate::error::Result;
use crate::id::{ChunkId, PackId};
use crate::index::ChunkIndex;
use crate::location::ChunkLocation;
use crate::reader::ChunkReader;
use crate::sync::lock;

/// A put on its way to a worker.
pub(super) struct Job {
    pub(super) content: Content,
    pub(super) class: ContentClass,
    pub(super) done: Done,
    pub(super) ticket: Ticket,
}

/// What is put.
pub(super) enum Content {
    /// Bytes, and the chunk that stood at their place before.
    Whole {
        bytes: Vec<u8>,
        similar: Option<ChunkId>,
    },
    /// What changed of the chunk that stood there.
    Patched(Patch),
}

/// Shared by the workers and by callers that put for themselves.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) index: Arc<dyn ChunkIndex>,
    pub(super) reader: Arc<ChunkReader>,
    pub(super) options: DepositOptions,
    pub(super) status: Arc<Status>,
    pub(super) claims: Arc<Claims>,
    /// The packs finished since the last flush.
    pub(super) finished: Arc<Mutex<Vec<PackId>>>,
    pub(super) packer: Sender<ToPacker>,
    pub(super) used_buffers: Sender<Vec<u8>>,
    pub(super) totals: Mutex<DepositTotals>,
}

/// What a chunk may be stored as a delta on.
struct Base {
    location: ChunkLocation,
    id: ChunkId,
    bytes: Arc<[u8]>,
}

impl Intake {
    /// A worker's life.
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        let mut window = Vec::new();
        for Job {
            content,
            class,
            done,
            ticket,
        } in jobs
        {
            let (outcome, used) = match content {
                Content::Whole { bytes, similar } => (self.deposit(&bytes, similar, class), bytes),
                Content::Patched(patch) => (self.deposit_patched(&patch, &mut window, class), patch.bytes),
            };
            self.recycle(used);
            done(outcome);
            drop(ticket);
        }
    }

    fn recycle(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            buffer.clear();
            // A full pool has enough buffers: this one is freed.
            let _surplus = self.used_buffers.try_send(buffer);
        }
    }

    /// One put of changes; `window` is room for the whole.
    fn deposit_patched(&self, patch: &Patch, window: &mut Vec<u8>, class: ContentClass) -> Result<Deposit> {
        self.status.check()?;
        window.clear();
        patch
            .resolve(&self.reader, window)
            .map_err(|error| self.status.fail(error))?;
        self.deposit(window, patch.base, class)
    }

    /// One put. Its error becomes that of the whole run.
    pub(super) fn deposit(
        &self,
        bytes: &[u8],
        similar: Option<ChunkId>,
        class: ContentClass,
    ) -> Result<Deposit> {
        self.status.check()?;
        let deposit = self
            .store(bytes, similar, class)
            .map_err(|error| self.status.fail(error))?;
        let mut totals = lock(&self.totals);
        totals.bytes_in += bytes.len() as u64;
        totals.chunks += 1;
        totals.new_stored_bytes += u64::from(deposit.stored_bytes);
        match deposit.how {
            How::Hole => totals.holes += 1,
            How::Known => totals.reused += 1,
            How::New(Encoding::Delta) => totals.new_delta += 1,
            How::New(Encoding::Stored | Encoding::Zstd) => totals.new_whole += 1,
        }
        Ok(Deposit {
            chunk: deposit.chunk,
            crc32c: crc32c::crc32c(bytes),
            new_stored_bytes: deposit.stored_bytes,
        })
    }

    fn store(&self, bytes: &[u8], similar: Option<ChunkId>, class: ContentClass) -> Result<Stored> {
        if class != ContentClass::Map && all_zero(bytes) {
            return Ok(Stored {
                chunk: None,
                how: How::Hole,
                stored_bytes: 0,
            });
        }
        let id = ChunkId::of(bytes);
        // A window that did not change is where the previous backup has it. Listings and pieces are looked up: they are
        // few, and a previous tree that cannot be read must not be taken over.
        let trusted = self.options.trust_previous && class != ContentClass::Map;
        let unchanged = trusted && similar == Some(id);
        if unchanged || self.is_known(&id)? {
            return Ok(Stored {
                chunk: Some(id),
                how: How::Known,
                stored_bytes: 0,
            });
        }
        let similar = if self.is_elsewhere(&id)? { None } else { similar };
        let (frame, base) = self.encode(bytes, similar, class)?;
        let how = How::New(frame.encoding);
        let stored_bytes = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
        let message = ToPacker::Frame {
            id,
            raw_bytes: bytes.len(),
            base,
            frame,
        };
        self.packer.send(message).map_err(|_| self.status.panicked())?;
        Ok(Stored {
            chunk: Some(id),
            how,
            stored_bytes,
        })
    }

    /// Whether the chunk is stored, or another put of this run sees to it. If not, it is claimed for this one.
    ///
    /// The claim comes before the look-up: a claim is given up only once the index knows the chunk, so whoever finds
    /// no claim also finds what the index knew when it was given up.
    fn is_known(&self, id: &ChunkId) -> Result<bool> {
        if !self.claims.claim(*id) {
            return Ok(true);
        }
        let Some(location) = self.index.locate_reusable(id)? else {
            return Ok(false);
        };
        if let Some(base) = location.base
            && self.whole(&base)?.is_none()
        {
            // A delta nobody refers to any more may have outlived its base: it is stored anew.
            return Ok(false);
        }
        self.claims.release(id);
        Ok(true)
    }

    /// Whether a chunk that must be stored anew is somewhere already, condemned or damaged. Deltas may stand on it, so it
    /// is stored whole.
    fn is_elsewhere(&self, id: &ChunkId) -> Result<bool> {
        Ok(!self.options.trust_previous && self.index.locate(id)?.is_some())
    }

    /// Where the chunk is, if it is stored whole in a pack that stays.
    fn whole(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        Ok(self
            .index
            .locate_reusable(id)?
            .filter(|location| location.base.is_none()))
    }

    /// Encodes a chunk on its own, or as a delta where that pays: where it has at most half of the whole frame's size.
    ///
    /// Making both frames to compare them would cost more than either, so the whole frame's size is first guessed
    /// from the base's, which is a similar chunk stored whole. Only near the limit, where the guess cannot tell, are
    /// both made.
    fn encode(
        &self,
        bytes: &[u8],
        similar: Option<ChunkId>,
        class: ContentClass,
    ) -> Result<(Frame, Option<ChunkId>)> {
        let whole = || (encode_whole(bytes, self.whole_level(class)), None);
        let Some(base) = similar
            .map(|similar| self.base_of(&similar))
            .transpose()?
            .flatten()
        else {
            return Ok(whole());
        };
        let Some(delta) = encode_delta(bytes, &base.bytes, self.options.delta_level) else {
            return Ok(whole());
        };
        let guess = whole_bytes_guess(bytes.len(), &base.location);
        let delta_bytes = delta.bytes.len() as u64;
        if delta_bytes * 4 <= guess {
            return Ok((delta, Some(base.id)));
        }
        let (frame, _) = whole();
        if delta_bytes * 2 <= frame.bytes.len() as u64 {
            return Ok((delta, Some(base.id)));
        }
        Ok((frame, None))
    }

    fn whole_level(&self, class: ContentClass) -> i32 {
        match class {
            ContentClass::Data => self.options.whole_level,
            ContentClass::Wal => self.options.wal_level,
            ContentClass::Map => self.options.map_level,
        }
    }

    /// What to make a delta on: the similar chunk, or its own base when it is a delta itself. Nothing when that is
    /// not stored whole in a pack that stays (a pack still open is not), and nothing when it cannot be read: a
    /// damaged base must not spoil what is stored now.
    fn base_of(&self, similar: &ChunkId) -> Result<Option<Base>> {
        let Some(location) = self.index.locate_reusable(similar)? else {
            return Ok(None);
        };
        let (id, location) = match location.base {
            None => (*similar, Some(location)),
            Some(base) => (base, self.whole(&base)?),
        };
        let Some(location) = location else { return Ok(None) };
        match self.reader.get(&id) {
            Ok(bytes) => Ok(Some(Base { location, id, bytes })),
            Err(error) if error.is_damage() => {
                tracing::warn!("Stored whole, because the chunk it is similar to cannot be read: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

struct Stored {
    chunk: Option<ChunkId>,
    how: How,
    stored_bytes: u32,
}

enum How {
    Hole,
    Known,
    New(Encoding),
}

/// The size the whole frame would have if the chunk compressed as well as its base did.
fn whole_bytes_guess(raw_bytes: usize, base: &ChunkLocation) -> u64 {
    raw_bytes as u64 * u64::from(base.stored_bytes) / u64::from(base.raw_bytes.max(1))
}

/// Whether all bytes are zero: the first is, and each equals the one before it. That makes it a comparison of two
/// slices, which ends at the first difference and is otherwise as fast as memory.
fn all_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && bytes.get(..rest.len()) == Some(rest),
    }
}
