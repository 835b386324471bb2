//! The workers' part of a put: hash the bytes, look the chunk up, encode it if it is new.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::claims::Claims;
use super::drift;
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

/// The content of a put.
pub(super) enum Content {
    /// Bytes, and the chunk that was at their position before.
    Whole {
        bytes: Vec<u8>,
        similar: Option<ChunkId>,
    },
    /// Changes against the chunk that was there before.
    Patched(Patch),
    /// The chunks that patches to come will change.
    Expected(Vec<ChunkId>),
}

/// Shared by the workers and by the callers of [`put_now`](super::Depositor::put_now).
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

/// A chunk that can be the base of a delta.
struct Base {
    location: ChunkLocation,
    id: ChunkId,
    bytes: Arc<[u8]>,
    /// Size of the delta against this base by which the similar chunk is stored; `None` when that is the base itself.
    delta_before: Option<u32>,
}

impl Intake {
    /// The main loop of a worker.
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
                Content::Expected(ids) => {
                    self.reader.fetch_ahead(&ids);
                    continue;
                }
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

    /// One put of changes; `window` is a buffer for the whole window.
    fn deposit_patched(&self, patch: &Patch, window: &mut Vec<u8>, class: ContentClass) -> Result<Deposit> {
        self.status.check()?;
        window.clear();
        patch
            .resolve(&self.reader, window)
            .map_err(|error| self.status.fail(error))?;
        self.deposit(window, patch.base, class)
    }

    /// One put. An error fails the whole run.
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
            How::Known => {
                totals.reused += 1;
                self.reader.counters().chunk_deduplicated(bytes.len());
            }
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
        let id = self.reader.chunk_hash().id_of(bytes);
        // An unchanged window is where the previous backup has it. Listings and pieces are always looked up: they are
        // few, and a previous tree that cannot be read must not be referenced again.
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

    /// Whether the chunk is stored, or another put of this run is storing it. If not, claims it for this put.
    ///
    /// The claim comes before the look-up. A claim is released only once the chunk is in the index, so a put that finds
    /// no claim also finds everything that was in the index when the claim was released.
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
            // A delta that nothing references any more may have outlived its base: store the chunk again.
            return Ok(false);
        }
        self.claims.release(id);
        Ok(true)
    }

    /// Whether a chunk that must be stored again already exists elsewhere, condemned or damaged. Deltas may be based on
    /// it, so it is stored whole.
    fn is_elsewhere(&self, id: &ChunkId) -> Result<bool> {
        Ok(!self.options.trust_previous && self.index.locate(id)?.is_some())
    }

    /// The chunk's location, if it is stored whole in a pack that stays.
    fn whole(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        Ok(self
            .index
            .locate_reusable(id)?
            .filter(|location| location.base.is_none()))
    }

    /// Encodes a chunk whole, or as a delta if that has at most half the size of the whole frame.
    ///
    /// Making both frames to compare them would cost more than either, so the size of the whole frame is first
    /// estimated from the base, a similar chunk stored whole. A delta of at most a quarter of this estimate is taken at
    /// once. Otherwise both frames are made and compared. A window that has [drifted](drift) from its base is stored
    /// whole in any case.
    fn encode(
        &self,
        bytes: &[u8],
        similar: Option<ChunkId>,
        class: ContentClass,
    ) -> Result<(Frame, Option<ChunkId>)> {
        let whole = || (encode_whole(bytes, self.whole_level(class)), None);
        let Some(similar) = similar else {
            return Ok(whole());
        };
        let Some(base) = self.base_of(&similar)? else {
            return Ok(whole());
        };
        let Some(delta) = encode_delta(bytes, &base.bytes, self.options.delta_level) else {
            return Ok(whole());
        };
        let guess = whole_bytes_guess(bytes.len(), &base.location);
        let delta_bytes = delta.bytes.len() as u64;
        if let Some(before) = base.delta_before
            && drift::may_have_drifted(delta_bytes, before.into(), guess)
            && drift::has_drifted(delta_bytes, self.step(bytes, &similar)?, guess)
        {
            return Ok(whole());
        }
        if delta_bytes * 4 <= guess {
            return Ok((delta, Some(base.id)));
        }
        let (frame, _) = whole();
        if delta_bytes * 2 <= frame.bytes.len() as u64 {
            return Ok((delta, Some(base.id)));
        }
        Ok((frame, None))
    }

    /// The size of a delta against the similar chunk itself. This is no base, as it is a delta, but most often it has just
    /// been decoded. If it cannot be read, the step is that of everything.
    fn step(&self, bytes: &[u8], similar: &ChunkId) -> Result<u64> {
        let before = match self.reader.get(similar) {
            Ok(before) => before,
            Err(error) if error.is_damage() => return Ok(bytes.len() as u64),
            Err(error) => return Err(error),
        };
        let delta = encode_delta(bytes, &before, self.options.delta_level);
        Ok(delta.map_or(bytes.len(), |delta| delta.bytes.len()) as u64)
    }

    fn whole_level(&self, class: ContentClass) -> i32 {
        match class {
            ContentClass::Data => self.options.whole_level,
            ContentClass::Stream => self.options.stream_level,
            ContentClass::Map => self.options.map_level,
        }
    }

    /// The base for a delta: the similar chunk, or that chunk's own base if it is a delta itself. `None` when the base
    /// is not stored whole in a pack that stays (an open pack does not count), and `None` when it is damaged: a damaged
    /// base must not spoil what is stored now.
    fn base_of(&self, similar: &ChunkId) -> Result<Option<Base>> {
        let Some(location) = self.index.locate_reusable(similar)? else {
            return Ok(None);
        };
        let (id, location, delta_before) = match location.base {
            None => (*similar, Some(location), None),
            Some(base) => (base, self.whole(&base)?, Some(location.stored_bytes)),
        };
        let Some(location) = location else { return Ok(None) };
        match self.reader.get(&id) {
            Ok(bytes) => Ok(Some(Base {
                location,
                id,
                bytes,
                delta_before,
            })),
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

/// Whether all bytes are zero: the first byte is zero, and each byte equals the one before it. This compares two
/// slices, which stops at the first difference and otherwise runs at memory speed.
fn all_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && bytes.get(..rest.len()) == Some(rest),
    }
}
