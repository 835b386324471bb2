//! Checks which of a chunk's places are damaged and whether a good one is left, and records this for later use.

use std::collections::BTreeSet;

use barmanfs_store::{ChunkId, Error as StoreError, PackId, RecordId};

use crate::archive::damage::{NO_PACK, Places};
use crate::error::Result;
use crate::home::presence;
use crate::index::chunk_index::{place_in, places};
use crate::index::repository::Repository;
use crate::monitor::Silent;
use crate::upkeep::verify::{BAD_CHUNKS_MAX, Verification, VerifyReport, note_bad};

/// Those who wait for this writer see it.
const PURPOSE: &str = "verification";

impl Verification<'_> {
    /// Checks all places of a chunk that could not be read, and of its bases.
    pub(super) fn examine(&mut self, id: ChunkId) -> Result<()> {
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            if self.examined.contains(&id) {
                continue;
            }
            if self.examined.len() == BAD_CHUNKS_MAX {
                let reason = "It is damaged where it is looked for first, as too many are to look for others"
                    .to_owned();
                note_bad(&mut self.bad, id, reason);
                continue;
            }
            self.examined.insert(id);
            self.examine_one(id, &mut waiting)?;
        }
        Ok(())
    }

    fn examine_one(&mut self, id: ChunkId, waiting: &mut Vec<ChunkId>) -> Result<()> {
        let (mut reason, mut readable, mut swept) = (None, false, false);
        let places = self.repository.db.read(|db| places(db, &id))?;
        self.report.is_something_lost |= places.is_empty();
        for place in places {
            let pack = place.location.pack;
            let Err(error) = self.repository.chunks().check(&id, &place.location) else {
                readable = true;
                continue;
            };
            match &error {
                StoreError::LostBase { base, .. } => waiting.push(*base),
                StoreError::MissingPack(_) if !self.repository.knows_pack(pack)? => {
                    swept = true;
                    continue;
                }
                lost if lost.is_damage() => {
                    if matches!(lost, StoreError::MissingPack(_)) {
                        self.report.missing_packs.insert(pack);
                    }
                    self.report.damaged_places.entry(pack).or_default().insert(id);
                }
                _ => return Err(error.into()),
            }
            reason = Some(error.to_string());
        }
        if swept && !readable {
            // A sweep has moved it meanwhile.
            self.examined.remove(&id);
            waiting.push(id);
        } else if !readable {
            let missing = || StoreError::MissingChunk(id).to_string();
            note_bad(&mut self.bad, id, reason.unwrap_or_else(missing));
        } else if reason.is_some() {
            self.report.mended_chunks += 1;
        }
        Ok(())
    }
}

impl Repository {
    /// Records what a verification found damaged, and what is no longer. From then on nothing new refers to it, and a
    /// writer that brings the content stores it again. Packs without their footers are remembered for the next sweep.
    /// Writes nothing if all this is already recorded.
    ///
    /// # Errors
    /// When it cannot be made durable; the result of the verification stays valid.
    pub fn note_damage(&self, report: &VerifyReport) -> Result<()> {
        self.note_places(report)?;
        if report.is_something_lost || self.is_unexamined()? {
            let gate = presence::keep_rebuild_out(self.locks.as_ref(), "verification")?;
            self.note_lost(&gate, &mut Silent)?;
        }
        if report.footers_checked {
            self.remember_problems(&report.pack_problems)?;
        }
        Ok(())
    }

    /// Records which places are damaged, and which are no longer.
    pub(super) fn note_places(&self, report: &VerifyReport) -> Result<()> {
        let mut annulled = Vec::new();
        let mut damaged = report.damaged_places.clone();
        self.each_damage(&mut |record, known| {
            if known.pack == NO_PACK {
                return self.note_found(record, &known.chunks);
            }
            if !self.knows_pack(known.pack)? {
                return Ok(());
            }
            let found = damaged.entry(known.pack).or_default();
            let mut still = BTreeSet::new();
            for id in &known.chunks {
                if found.contains(id) || is_damaged(self, id, known.pack)? {
                    still.insert(*id);
                }
            }
            if still.len() == known.chunks.len() {
                found.retain(|id| !still.contains(id));
            } else {
                annulled.push(record);
                found.append(&mut still);
            }
            Ok(())
        })?;
        damaged.retain(|_, chunks| !chunks.is_empty());
        if damaged.is_empty() && annulled.is_empty() {
            return Ok(());
        }
        self.write_damage(damaged, &annulled, PURPOSE)
    }

    /// Records which chunks of a record of lost ones are in a pack again. One record at a time, since the number of lost
    /// chunks has no limit.
    fn note_found(&self, record: RecordId, known: &BTreeSet<ChunkId>) -> Result<()> {
        let mut still = BTreeSet::new();
        for id in known {
            if self.is_still_lost(id)? {
                still.insert(*id);
            }
        }
        if still.len() == known.len() {
            return Ok(());
        }
        let mut left = Places::new();
        if !still.is_empty() {
            left.insert(NO_PACK, still);
        }
        self.write_damage(left, &[record], PURPOSE)
    }
}

/// Whether a chunk that was damaged in this pack still is. In a pack that is gone it does not matter.
fn is_damaged(repository: &Repository, id: &ChunkId, pack: PackId) -> Result<bool> {
    let Some(place) = repository.db.read(|db| place_in(db, id, pack))? else {
        return Ok(false);
    };
    match repository.chunks().check(id, &place.location) {
        Ok(()) | Err(StoreError::LostBase { .. }) => Ok(false),
        Err(error) if error.is_damage() => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use barmanfs_store::{Encoding, Frame, PackWriter};

    use super::*;
    use crate::archive::derive::derive;
    use crate::index::repository::on_test_packs;

    #[test]
    fn a_record_of_lost_chunks_names_only_those_that_still_are() {
        let (_directory, _storage, repository) = on_test_packs(derive);
        let (gone, back) = (ChunkId([1; 32]), ChunkId([2; 32]));
        let records = || {
            let mut records = Vec::new();
            repository
                .each_damage(&mut |_, known| {
                    records.push(known.chunks.into_iter().collect::<Vec<_>>());
                    Ok(())
                })
                .unwrap();
            records
        };
        for lost in [[gone, back].as_slice(), &[back]] {
            let places = Places::from([(NO_PACK, lost.iter().copied().collect())]);
            repository.write_damage(places, &[], PURPOSE).unwrap();
        }
        repository.note_places(&VerifyReport::default()).unwrap();
        assert_eq!(records(), [vec![gone, back], vec![back]]);
        let mut pack = PackWriter::begin(repository.storage.as_ref()).unwrap();
        let frame = Frame {
            encoding: Encoding::Stored,
            bytes: vec![1; 3],
        };
        pack.append(back, 3, None, &frame).unwrap();
        let writer = repository.writer("test").unwrap();
        writer.publish(&pack.close().unwrap()).unwrap();
        repository.note_places(&VerifyReport::default()).unwrap();
        assert_eq!(records(), [[gone]]);
    }
}
