//! Verification in parts: all packs are read, one after the other, and then again from the beginning.
//!
//! Packs are taken in the order of their ids, so "as far as this pack" is all that has to be remembered: every pack up to
//! it was read in this round, or was not there yet. A pack that comes later is read when its turn comes, after one round
//! at the latest.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{ChunkId, Error as StoreError, PackId, read_footer};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::damage::{self, KnownLoss};
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::chunk_index::{place_in, places};
use crate::index::chunk_set::unusable;
use crate::index::repository::Repository;
use crate::index::unread::PackProblem;
use crate::monitor::Silent;
use crate::upkeep::verify::checking::{ToCheck, check_all};
use crate::upkeep::verify::{Damage, Verification, VerifyScope};

/// Number of packs with a problem that are remembered: with so many, the disk is broken.
const PROBLEMS_MAX: usize = 100;

/// Number of damaged files that are remembered by name; `verify` names all.
const DAMAGES_MAX: usize = 20;

/// Number of chunks that are checked at a time.
const BATCH: usize = 4096;

/// The progress is worth remembering after so many bytes: a few seconds of reading.
const STEP_BYTES: u64 = 1 << 30;

/// Where a verification in parts has got to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRound {
    /// Packs up to this one are done in this round; none at its beginning.
    #[serde(default)]
    pub after: Option<PackId>,
    /// When this round began.
    #[serde(default)]
    pub began_at: Option<TimestampMicros>,
    /// When the last complete round began: all that is older was read since.
    #[serde(default)]
    pub complete_since: Option<TimestampMicros>,
    /// Packs that are damaged themselves, or missing; the first hundred.
    #[serde(default)]
    pub problems: Vec<PackProblem>,
    /// Files that need damaged chunks, by name; the first of those that were found last.
    #[serde(default)]
    pub damages: Vec<Damage>,
}

/// What a part of a verification has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifiedPart {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged chunks among theirs, needed or not.
    pub bad_chunks: u64,
}

impl Repository {
    /// Reads packs back from where `round` has got to, until they have `allowed_bytes` or `stop` says so, and at least
    /// one. Damage is [noted](Self::note_damage), and named in `round`. Calls `keep` whenever `round` is worth keeping.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read, or damage cannot be noted.
    pub fn verify_part(
        &self,
        round: &mut VerifyRound,
        allowed_bytes: u64,
        stop: &dyn Fn() -> bool,
        keep: &mut dyn FnMut(&VerifyRound) -> Result<()>,
    ) -> Result<VerifiedPart> {
        let mut run = Verification::new(self)?;
        let mut part = VerifiedPart::default();
        let mut kept = 0;
        let earlier = std::mem::take(&mut round.problems);
        for problem in earlier {
            run.look_again(problem.pack)?;
        }
        round.began_at.get_or_insert_with(now);
        while let Some((pack, bytes)) = self.pack_after(round.after)? {
            run.check_pack(pack)?;
            round.after = Some(pack);
            part.packs += 1;
            part.bytes += bytes;
            if part.bytes >= allowed_bytes || stop() {
                break;
            }
            if part.bytes - kept >= STEP_BYTES {
                kept = part.bytes;
                self.note_places(&run.report)?;
                run.hand_over(round);
                keep(round)?;
            }
        }
        if self.pack_after(round.after)?.is_none() {
            round.after = None;
            round.complete_since = round.began_at.take();
        }
        self.note_damage(&run.report)?;
        part.bad_chunks = run.bad.len() as u64;
        run.hand_over(round);
        run.name(round)?;
        keep(round)?;
        Ok(part)
    }

    /// The pack behind `after` in the order of ids, and its bytes.
    fn pack_after(&self, after: Option<PackId>) -> Result<Option<(PackId, u64)>> {
        let after = after.map_or([0; 16], |pack| pack.0);
        self.db.read(|db| {
            let mut next =
                db.prepare_cached("SELECT id, bytes FROM packs WHERE id > ?1 ORDER BY id LIMIT 1")?;
            let found = next.query_row(params![after], |row| Ok((PackId(row.get(0)?), row.get(1)?)));
            Ok(found.optional()?)
        })
    }

    /// The chunks of a pack that something needs, and their sizes, when its footer cannot say which it has. This looks at all
    /// that is needed.
    fn needed_chunks(&self, pack: PackId) -> Result<Vec<(ChunkId, u32)>> {
        let mut needed = Verification::new(self)?;
        for subject in &self.subjects(&VerifyScope::All)? {
            needed.collect(subject, &mut Silent)?;
        }
        let mut all = needed.met.db.prepare("SELECT id FROM met").map_err(unusable)?;
        let mut ids = all.query([]).map_err(unusable)?;
        let mut found = BTreeMap::new();
        while let Some(row) = ids.next().map_err(unusable)? {
            let id = ChunkId(row.get(0).map_err(unusable)?);
            self.db.read(|db| {
                let bases = places(db, &id)?
                    .into_iter()
                    .filter_map(|place| place.location.base);
                for id in bases.chain([id]) {
                    if let Some(place) = place_in(db, &id, pack)? {
                        found.insert(place.location.offset, (id, place.location.raw_bytes));
                    }
                }
                Ok(())
            })?;
        }
        Ok(found.into_values().collect())
    }

    /// Remembers the packs with a problem: a sweep makes those without their footers whole again, `check` names all.
    pub(super) fn remember_problems(&self, problems: &[PackProblem]) -> Result<()> {
        let first = problems.get(..PROBLEMS_MAX).unwrap_or(problems);
        if self.repository_memory()?.verification.problems == first {
            return Ok(());
        }
        self.remember_of_repository(|memory| memory.verification.problems = first.to_vec())
    }

    /// Packs with a problem that a verification found, as far as they are in the catalog still.
    ///
    /// # Errors
    /// When the disk or the catalog cannot be read.
    pub fn pack_problems(&self) -> Result<Vec<PackProblem>> {
        let mut problems = self.repository_memory()?.verification.problems;
        let mut known = Vec::with_capacity(problems.len());
        for problem in &problems {
            known.push(self.knows_pack(problem.pack)?);
        }
        let mut known = known.into_iter();
        problems.retain(|_| known.next() == Some(true));
        Ok(problems)
    }

    /// Packs whose footers were found to be damaged and still are. What is in them can be read by the catalog alone.
    pub(crate) fn packs_without_footer(&self) -> Result<BTreeSet<PackId>> {
        let mut found = BTreeSet::new();
        for problem in self.pack_problems()? {
            let footer = read_footer(self.storage.as_ref(), problem.pack);
            if matches!(footer, Err(StoreError::Damaged { .. })) {
                found.insert(problem.pack);
            }
        }
        Ok(found)
    }

    /// What is known to be lost.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn known_loss(&self) -> Result<KnownLoss> {
        self.db.read(damage::known_loss)
    }
}

impl Verification<'_> {
    /// Checks the footer of a pack and each of its chunks. Where the footer cannot be read, those are checked that something needs.
    fn check_pack(&mut self, pack: PackId) -> Result<()> {
        let repository = self.repository;
        if !repository.knows_pack(pack)? {
            return Ok(());
        }
        let chunks = match read_footer(repository.storage.as_ref(), pack) {
            Ok(closed) => {
                let chunks = closed.chunks.iter();
                chunks.map(|chunk| (chunk.id, chunk.raw_bytes)).collect()
            }
            // A sweep has removed it meanwhile.
            Err(StoreError::MissingPack(_)) if !repository.knows_pack(pack)? => return Ok(()),
            // It may come back, if a file system was not mounted: its chunks are not noted as damaged.
            Err(error @ StoreError::MissingPack(_)) => {
                self.note_problem(pack, &error.into());
                return Ok(());
            }
            Err(error) if error.is_damage() || is_unreadable(&error) => {
                self.note_problem(pack, &error.into());
                repository.needed_chunks(pack)?
            }
            Err(error) => return Err(error.into()),
        };
        let chunks: Vec<ToCheck> = chunks
            .into_iter()
            .map(|(id, bytes)| ToCheck { id, pack, bytes })
            .collect();
        for batch in chunks.chunks(BATCH) {
            for (id, error) in check_all(repository, batch) {
                if !repository.knows_pack(pack)? {
                    return Ok(());
                }
                let examined = match error.is_damage() {
                    true => self.examine(id),
                    false => Err(error),
                };
                match examined {
                    // One bad pack must not keep the others from being read.
                    Err(Error::Store(error)) if is_unreadable(&error) => {
                        self.note_problem(pack, &error.into());
                        return Ok(());
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Looks again at a pack that had a problem: whether its footer can be read now.
    fn look_again(&mut self, pack: PackId) -> Result<()> {
        match read_footer(self.repository.storage.as_ref(), pack) {
            Ok(_) => self.check_pack(pack),
            Err(_) if !self.repository.knows_pack(pack)? => Ok(()),
            Err(error) => {
                self.note_problem(pack, &error.into());
                Ok(())
            }
        }
    }

    fn note_problem(&mut self, pack: PackId, error: &Error) {
        let problems = &mut self.report.pack_problems;
        if problems.len() < PROBLEMS_MAX && !problems.iter().any(|known| known.pack == pack) {
            let reason = error.to_string();
            problems.push(PackProblem { pack, reason });
        }
    }

    fn hand_over(&self, round: &mut VerifyRound) {
        round.problems.clone_from(&self.report.pack_problems);
    }

    /// Names the files that need what is damaged. This walks all trees, and only where something is.
    fn name(&mut self, round: &mut VerifyRound) -> Result<()> {
        if self.bad.is_empty() {
            return Ok(());
        }
        for subject in &self.repository.subjects(&VerifyScope::All)? {
            self.name_damages(subject)?;
        }
        round.damages = std::mem::take(&mut self.report.damages);
        round.damages.truncate(DAMAGES_MAX);
        Ok(())
    }
}

/// Whether the disk does not give what is in a pack. Another time it may.
fn is_unreadable(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { .. })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use barmanfs_pg::wal_name::WalName;
    use barmanfs_store::testing::Call;

    use super::*;
    use crate::archive::derive::derive;
    use crate::index::repository::on_test_packs;

    #[test]
    fn a_pack_that_the_disk_does_not_give_keeps_no_other_from_being_read() {
        let (_directory, storage, repository) = on_test_packs(derive);
        let writer = repository.writer("test").unwrap();
        for number in 2..5 {
            let name: WalName = format!("{number:08X}.history").parse().unwrap();
            let bytes = format!("1\t0/3000000\treason {number}\n").into_bytes();
            let length = bytes.len() as u64;
            writer
                .archive_wal(&"main".parse().unwrap(), &name, &mut &*bytes, length, "test")
                .unwrap();
        }
        let packs = repository.pack_ids().unwrap();
        let bad = packs[1];
        storage.before_each(move |call| match call {
            Call::Read(pack) if *pack == bad => Err(StoreError::io(
                "read",
                Path::new("pack"),
                io::Error::from_raw_os_error(5),
            )),
            _ => Ok(()),
        });
        let mut round = VerifyRound::default();
        let mut verify = || {
            let part = repository.verify_part(&mut round, u64::MAX, &|| false, &mut |_| Ok(()));
            (part.unwrap().packs, round.clone())
        };
        let (read, after) = verify();
        assert_eq!((read, after.after), (packs.len() as u64, None));
        let problems: Vec<PackId> = after.problems.iter().map(|problem| problem.pack).collect();
        assert_eq!(problems, [bad]);
        assert!(after.problems[0].reason.contains("error 5"), "{after:?}");
        // It is over when the disk gives it again.
        storage.before_each(|_| Ok(()));
        assert_eq!(verify().1.problems, []);
    }
}
