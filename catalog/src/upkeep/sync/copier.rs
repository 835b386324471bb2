//! Copies chunks from a primary: frames as they are, each checked to decode to the chunk that its id names.
//!
//! What a file, a listing or a record refers to is complete here before the record that names it is entered. A chunk that
//! is here, where a writer may refer to it, is not copied. A kill leaves packs whose chunks nothing refers to yet; the next
//! run finds them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use barmanfs_store::codec::decode;
use barmanfs_store::{
    ChunkId, ChunkLocation, ChunkReader, Frame, PackStorage, PackWriter, Record, read_frame,
};

use crate::error::{Error, Result};
use crate::index::chunk_index::{Place, places, proven_place, proven_whole_place};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::upkeep::sync::footers::Footers;

/// Chunks that are copied together, in the order of their places.
const BATCH: usize = 1024;

/// Frames that are announced to the storage before they are read: a connection then never waits for a request.
const ANNOUNCED: usize = 32;

/// Bytes of decoded bases that one batch keeps.
const BASES_BYTES: usize = 64 << 20;

/// Copies chunks and records into packs of this repository.
#[derive(Debug)]
pub(super) struct Copier<'a> {
    node: &'a Repository,
    writer: &'a Writer,
    footers: &'a Footers,
    pub(super) reader: Arc<ChunkReader>,
    target: Option<PackWriter>,
    /// The chunks in `target`, and whether they are whole there.
    unpublished: HashMap<ChunkId, bool>,
    wanted: Vec<ChunkId>,
    /// Bytes of frames that were copied.
    pub(super) copied_bytes: u64,
    pub(super) copied_chunks: u64,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        node: &'a Repository,
        writer: &'a Writer,
        footers: &'a Footers,
        reader: Arc<ChunkReader>,
    ) -> Self {
        Self {
            node,
            writer,
            footers,
            reader,
            target: None,
            unpublished: HashMap::new(),
            wanted: Vec::new(),
            copied_bytes: 0,
            copied_chunks: 0,
        }
    }

    /// Adds a chunk that must be here.
    pub(super) fn want(&mut self, id: ChunkId) -> Result<()> {
        self.wanted.push(id);
        match self.wanted.len() >= BATCH {
            true => self.copy_wanted(),
            false => Ok(()),
        }
    }

    /// Drops what was wanted by something that will not be entered.
    pub(super) fn forget_wanted(&mut self) {
        self.wanted.clear();
    }

    /// Adds a record behind everything that was wanted before.
    pub(super) fn record(&mut self, record: Record) -> Result<()> {
        self.copy_wanted()?;
        self.publish_if_full()?;
        self.target()?.record(record)?;
        Ok(())
    }

    /// Copies everything that was wanted and is not here.
    pub(super) fn copy_wanted(&mut self) -> Result<()> {
        let wanted: BTreeSet<ChunkId> = std::mem::take(&mut self.wanted).into_iter().collect();
        let missing = self.missing(wanted)?;
        if missing.is_empty() {
            return Ok(());
        }
        let chosen = self.locate(&missing)?;
        // A base that is here as a delta only is not the base of a delta.
        let mut bases: BTreeSet<ChunkId> = chosen.iter().filter_map(|(_, place)| place.base).collect();
        let in_use = bases.clone();
        let whole: HashSet<ChunkId> = chosen
            .iter()
            .filter(|(_, place)| place.base.is_none())
            .map(|(id, _)| *id)
            .collect();
        bases.retain(|base| !whole.contains(base) && self.unpublished.get(base) != Some(&true));
        let bases = self.missing_bases(bases)?;
        let mut copies = self.locate_bases(&bases)?;
        copies.extend(chosen);
        // Bases before the deltas that need them, and each pack from its beginning to its end.
        copies.sort_unstable_by_key(|(_, place)| (place.base.is_some(), place.pack, place.offset));
        self.copy(&copies, &in_use)
    }

    /// Those that a writer may not refer to here.
    fn missing(&self, mut wanted: BTreeSet<ChunkId>) -> Result<BTreeSet<ChunkId>> {
        wanted.retain(|id| !self.unpublished.contains_key(id));
        self.node.db.read(|db| {
            let mut missing = BTreeSet::new();
            for id in wanted {
                if proven_place(db, &id)?.is_none() {
                    missing.insert(id);
                }
            }
            Ok(missing)
        })
    }

    /// The same for bases, which must be whole.
    fn missing_bases(&self, bases: BTreeSet<ChunkId>) -> Result<BTreeSet<ChunkId>> {
        self.node.db.read(|db| {
            let mut missing = BTreeSet::new();
            for id in bases {
                if proven_whole_place(db, &id)?.is_none() {
                    missing.insert(id);
                }
            }
            Ok(missing)
        })
    }

    /// Where the primary has these chunks.
    fn locate(&self, ids: &BTreeSet<ChunkId>) -> Result<Vec<(ChunkId, ChunkLocation)>> {
        self.locate_by(ids, |places| places.into_iter().next())
    }

    fn locate_bases(&self, ids: &BTreeSet<ChunkId>) -> Result<Vec<(ChunkId, ChunkLocation)>> {
        self.locate_by(ids, |places| {
            places.into_iter().find(|place| place.location.base.is_none())
        })
    }

    fn locate_by(
        &self,
        ids: &BTreeSet<ChunkId>,
        choose: impl Fn(Vec<Place>) -> Option<Place>,
    ) -> Result<Vec<(ChunkId, ChunkLocation)>> {
        self.footers.db.read(|db| {
            let mut located = Vec::new();
            for id in ids {
                let place = choose(places(db, id)?).ok_or(barmanfs_store::Error::MissingChunk(*id))?;
                located.push((*id, place.location));
            }
            Ok(located)
        })
    }

    fn copy(&mut self, copies: &[(ChunkId, ChunkLocation)], in_use: &BTreeSet<ChunkId>) -> Result<()> {
        let storage = Arc::clone(&self.footers.storage);
        let announce = |place: &ChunkLocation| {
            storage.will_read(place.pack, u64::from(place.offset), place.stored_bytes);
        };
        let mut bases: HashMap<ChunkId, Arc<[u8]>> = HashMap::new();
        let mut bases_bytes = 0;
        copies
            .iter()
            .take(ANNOUNCED)
            .for_each(|(_, place)| announce(place));
        for (n, (id, place)) in copies.iter().enumerate() {
            if let Some((_, next)) = copies.get(n + ANNOUNCED) {
                announce(next);
            }
            let base = match place.base {
                None => None,
                Some(base) => match bases.get(&base) {
                    Some(bytes) => Some(Arc::clone(bytes)),
                    None => Some(self.reader.get(&base)?),
                },
            };
            let (frame, bytes) = self.read_good(storage.as_ref(), id, place, base.as_deref())?;
            if in_use.contains(id) && bases_bytes + bytes.len() <= BASES_BYTES {
                bases_bytes += bytes.len();
                bases.insert(*id, bytes.into());
            }
            self.append(*id, place, &frame)?;
        }
        Ok(())
    }

    /// A frame of the primary with what it decodes to; from another place of the same kind if this one is damaged.
    fn read_good(
        &self,
        storage: &dyn PackStorage,
        id: &ChunkId,
        place: &ChunkLocation,
        base: Option<&[u8]>,
    ) -> Result<(Frame, Vec<u8>)> {
        let first = match read_checked(storage, id, place, base) {
            Err(error) if error.is_damage() => error,
            read => return read,
        };
        for other in self.footers.db.read(|db| places(db, id))? {
            let other = other.location;
            if other != *place
                && other.base == place.base
                && let Ok(read) = read_checked(storage, id, &other, base)
            {
                return Ok(read);
            }
        }
        Err(first)
    }

    fn append(&mut self, id: ChunkId, place: &ChunkLocation, frame: &Frame) -> Result<()> {
        self.publish_if_full()?;
        self.target()?
            .append(id, place.raw_bytes as usize, place.base, frame)?;
        let whole = self.unpublished.entry(id).or_default();
        *whole |= place.base.is_none();
        self.copied_bytes += u64::from(place.stored_bytes);
        self.copied_chunks += 1;
        Ok(())
    }

    fn target(&mut self) -> Result<&mut PackWriter> {
        match &mut self.target {
            Some(target) => Ok(target),
            empty => Ok(empty.insert(PackWriter::begin(self.node.storage.as_ref())?)),
        }
    }

    fn publish_if_full(&mut self) -> Result<()> {
        match self.target.as_ref().is_some_and(PackWriter::is_full) {
            true => self.publish(),
            false => Ok(()),
        }
    }

    /// Makes everything durable that was copied and recorded, and enters it.
    pub(super) fn publish(&mut self) -> Result<()> {
        self.unpublished.clear();
        match self.target.take().filter(|target| !target.is_empty()) {
            Some(target) => self.writer.publish(&target.close()?),
            None => Ok(()),
        }
    }
}

/// Reads a frame and checks that it decodes to the chunk.
fn read_checked(
    storage: &dyn PackStorage,
    id: &ChunkId,
    place: &ChunkLocation,
    base: Option<&[u8]>,
) -> Result<(Frame, Vec<u8>)> {
    let damaged = |reason: String| {
        let what = format!(
            "Chunk {id} in pack {} of the primary at offset {}",
            place.pack, place.offset
        );
        Error::from(barmanfs_store::Error::damaged(what, reason))
    };
    let frame = read_frame(storage, id, place)?;
    let bytes = decode(&frame.bytes, frame.encoding, place.raw_bytes as usize, base)
        .map_err(|error| damaged(error.to_string()))?;
    match storage.keys().id_of(&bytes) == *id {
        true => Ok((frame, bytes)),
        false => Err(damaged("Its bytes are not those its id names".to_owned())),
    }
}
