//! Copying what lives in sparse packs into new ones.
//!
//! Frames are copied as they are, after what they decode to has been held against its id: an old pack goes only when
//! the new one is known to be good. A pack with a chunk that is not stays as it is.

use barmanfs_store::codec::decode;
use barmanfs_store::{ChunkId, ChunkIndex, Frame, PackWriter, read_frame};

use crate::chunk_index::{CatalogIndex, Place, each_place};
use crate::error::{Error, Result};
use crate::sweep::Sweep;
use crate::sweep::condemn::PackRow;
use crate::sweep::mark::Mark;

impl Sweep<'_> {
    /// Copies what is in use in these packs; returns those of which everything has been copied, durable and entered.
    pub(super) fn repack(&mut self, mark: &Mark, sparse: Vec<PackRow>) -> Result<Vec<PackRow>> {
        let mut copied = Vec::new();
        let mut output = Output {
            target: None,
            pending: Vec::new(),
        };
        for pack in sparse {
            match self.copy_pack(mark, &pack, &mut output) {
                Ok(()) => output.pending.push(pack),
                Err(error) if error.is_damage() => self.problem(pack.id, &error),
                Err(error) => return Err(error),
            }
            if output.target.as_ref().is_some_and(PackWriter::is_full) {
                copied.append(&mut self.finish(&mut output)?);
            }
        }
        copied.append(&mut self.finish(&mut output)?);
        self.report.repacked_packs += copied.len() as u64;
        Ok(copied)
    }

    fn copy_pack(&mut self, mark: &Mark, pack: &PackRow, output: &mut Output) -> Result<()> {
        for id in mark.chunks_in(pack.seq)? {
            let (place, frame) = self.read_checked(&id, pack)?;
            let location = place.location;
            output
                .target(self)?
                .append(id, location.raw_bytes as usize, location.base, &frame)?;
            self.report.copied_bytes += u64::from(location.stored_bytes);
            if output.target.as_ref().is_some_and(PackWriter::is_full) {
                self.publish(output)?;
            }
        }
        // As the catalog has them: so a pack whose footer was damaged since it was entered is whole again.
        for record in self.live_records(pack)? {
            output.target(self)?.record(record)?;
        }
        Ok(())
    }

    /// A chunk's frame in this pack, known to decode to the chunk.
    fn read_checked(&self, id: &ChunkId, pack: &PackRow) -> Result<(Place, Frame)> {
        let mut found = None;
        self.repository.db.read(|db| {
            each_place(db, id, |place| {
                if place.pack == pack.seq {
                    found = Some(place);
                }
            })
        })?;
        let place = found.ok_or(barmanfs_store::Error::MissingChunk(*id))?;
        let location = place.location;
        let frame = read_frame(self.repository.storage.as_ref(), &location)?;
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
        if ChunkId::of(&bytes) != *id {
            return Err(damaged("Its bytes are not those its id names".to_owned()));
        }
        Ok((place, frame))
    }

    /// Makes the copies durable and enters them; returns the packs of which nothing is missing then.
    fn finish(&mut self, output: &mut Output) -> Result<Vec<PackRow>> {
        self.publish(output)?;
        Ok(std::mem::take(&mut output.pending))
    }

    fn publish(&self, output: &mut Output) -> Result<()> {
        if let Some(target) = output.target.take() {
            let index = CatalogIndex::for_readers(std::sync::Arc::clone(&self.repository.db));
            index.publish(&target.close()?)?;
        }
        Ok(())
    }
}

/// Where copies go.
struct Output {
    /// The pack being filled.
    target: Option<PackWriter>,
    /// Packs of which everything has been copied, some of it perhaps into `target`.
    pending: Vec<PackRow>,
}

impl Output {
    fn target(&mut self, sweep: &Sweep<'_>) -> Result<&mut PackWriter> {
        match &mut self.target {
            Some(target) => Ok(target),
            empty => Ok(empty.insert(PackWriter::begin(sweep.repository.storage.as_ref())?)),
        }
    }
}
