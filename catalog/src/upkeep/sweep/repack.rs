//! Copies the live content of sparse packs into new packs.
//!
//! Frames are copied unchanged, after what they decode to has been checked against its id: an old pack is removed only
//! when the new one is known to be good. A pack with a chunk that is not good stays as it is.

use barmanfs_store::codec::decode;
use barmanfs_store::{ChunkId, ChunkIndex, Frame, PackId, PackWriter, read_frame};

use crate::error::{Error, Result};
use crate::index::chunk_index::{CatalogIndex, Place, place_in};
use crate::index::condemned::PackRow;
use crate::upkeep::sweep::condemn::live_records;
use crate::upkeep::sweep::mark::Mark;
use crate::upkeep::sweep::{Fate, Sweep};

impl Sweep<'_> {
    /// Copies what is in use in these packs, and gives the packs up, one new pack after the other. It ends when there
    /// is no more space: then the new pack that was not complete is dead, and the next sweep removes it first.
    pub(super) fn repack(&mut self, mark: &Mark, sparse: Vec<PackRow>) -> Result<Fate> {
        let mut output = Output::default();
        let copied = self.copy_packs(mark, sparse, &mut output);
        self.report.repacked_packs += output.given_up;
        match copied {
            Err(error) if error.is_full() => self.report.unfinished = Some(error.to_string()),
            copied => copied?,
        }
        Ok(output.fate)
    }

    fn copy_packs(&mut self, mark: &Mark, sparse: Vec<PackRow>, output: &mut Output) -> Result<()> {
        for pack in sparse {
            self.try_copying(mark, pack, output)?;
        }
        self.finish(mark, output)
    }

    /// Copies what is in use in a pack. One in which something cannot be read stays as it is.
    pub(super) fn try_copying(&mut self, mark: &Mark, pack: PackRow, output: &mut Output) -> Result<()> {
        let copied = self.copy_pack(mark, &pack, output);
        if self.is_done(pack.id, copied)? {
            output.copied.push(pack);
        }
        Ok(())
    }

    /// Whether everything in use in a pack can be read.
    pub(super) fn is_readable(&mut self, mark: &Mark, pack: &PackRow) -> Result<bool> {
        let mut chunks = mark.chunks_in(pack.seq)?.into_iter();
        let read = chunks.try_for_each(|id| self.read_checked(&id, pack).map(drop));
        self.is_done(pack.id, read)
    }

    /// Whether what was to be done with a pack is done. That it cannot be read concerns this pack alone.
    fn is_done(&mut self, pack: PackId, done: Result<()>) -> Result<bool> {
        match done {
            Ok(()) => return Ok(true),
            Err(error) if error.is_damage() => self.problem(pack, &error),
            // A sector that the disk does not give.
            Err(error @ Error::Store(barmanfs_store::Error::Io { .. })) if !error.is_full() => {
                self.problem(pack, &error);
            }
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    fn copy_pack(&mut self, mark: &Mark, pack: &PackRow, output: &mut Output) -> Result<()> {
        for id in mark.chunks_in(pack.seq)? {
            self.finish_if_full(mark, output)?;
            let (place, frame) = self.read_checked(&id, pack)?;
            let location = place.location;
            output
                .target(self)?
                .append(id, location.raw_bytes as usize, location.base, &frame)?;
            self.report.copied_bytes += u64::from(location.stored_bytes);
            if let Some(throttle) = &self.throttle {
                throttle.take(location.stored_bytes.into());
            }
        }
        // The catalog's copies of the records are written, so a pack whose footer was damaged after it was entered
        // becomes whole again.
        for record in live_records(self.repository, pack)? {
            self.finish_if_full(mark, output)?;
            output.target(self)?.record(record)?;
        }
        Ok(())
    }

    /// A chunk's frame in this pack, checked to decode to the chunk.
    fn read_checked(&self, id: &ChunkId, pack: &PackRow) -> Result<(Place, Frame)> {
        let found = self.repository.db.read(|db| place_in(db, id, pack.id))?;
        let place = found.ok_or(barmanfs_store::Error::MissingChunk(*id))?;
        let location = place.location;
        let frame = read_frame(self.repository.storage.as_ref(), id, &location)?;
        let base = location
            .base
            .map(|base| self.repository.chunks().get(&base))
            .transpose()?;
        let damaged = |reason: String| {
            Error::from(barmanfs_store::Error::damaged(
                format!("Chunk {id} in pack {} at offset {}", pack.id, location.offset),
                reason,
            ))
        };
        let bytes = decode(
            &frame.bytes,
            frame.encoding,
            location.raw_bytes as usize,
            base.as_deref(),
        )
        .map_err(|error| damaged(error.to_string()))?;
        if self.repository.storage.keys().id_of(&bytes) != *id {
            return Err(damaged("Its bytes are not those its id names".to_owned()));
        }
        Ok((place, frame))
    }

    fn finish_if_full(&mut self, mark: &Mark, output: &mut Output) -> Result<()> {
        if output.target.as_ref().is_some_and(PackWriter::is_full) {
            self.finish(mark, output)?;
        }
        Ok(())
    }

    /// Makes the copies durable and enters them. The packs that are completely copied then are given up if they have enough
    /// bytes together.
    pub(super) fn finish(&mut self, mark: &Mark, output: &mut Output) -> Result<()> {
        if let Some(target) = output.target.take() {
            let index = CatalogIndex::for_readers(
                std::sync::Arc::clone(&self.repository.db),
                std::sync::Arc::clone(&self.repository.surveyor),
            );
            index.publish(&target.close()?)?;
        }
        output.complete.append(&mut output.copied);
        let bytes: u64 = output.complete.iter().map(|pack| pack.stored_bytes).sum();
        match bytes >= output.together_bytes {
            true => self.give_up_complete(mark, output),
            false => Ok(()),
        }
    }

    /// Gives up the packs that are completely copied.
    pub(super) fn give_up_complete(&mut self, mark: &Mark, output: &mut Output) -> Result<()> {
        let complete = std::mem::take(&mut output.complete);
        if self.give_up(mark, &complete)? == Fate::NextRound {
            output.fate = Fate::NextRound;
        }
        output.given_up += complete.len() as u64;
        Ok(())
    }
}

/// The destination of copies.
#[derive(Default)]
pub(super) struct Output {
    /// The pack being filled.
    target: Option<PackWriter>,
    /// Packs whose content in use has all been copied, some of it perhaps into `target`.
    copied: Vec<PackRow>,
    /// Packs of which all copies are durable.
    complete: Vec<PackRow>,
    /// So many bytes of them are given up at once.
    together_bytes: u64,
    /// How many have been given up.
    pub(super) given_up: u64,
    /// The state of those.
    pub(super) fate: Fate,
}

impl Output {
    /// One whose packs are given up together when they have so many bytes.
    pub(super) fn together(together_bytes: u64) -> Self {
        Self {
            together_bytes,
            ..Self::default()
        }
    }

    fn target(&mut self, sweep: &Sweep<'_>) -> Result<&mut PackWriter> {
        match &mut self.target {
            Some(target) => Ok(target),
            empty => Ok(empty.insert(PackWriter::begin(sweep.repository.storage.as_ref())?)),
        }
    }
}
