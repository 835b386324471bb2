//! Verification in parts: all packs are read, one after the other, and then again from the beginning.
//!
//! Packs are taken in the order of their ids, so "as far as this pack" is all that has to be remembered: every pack up to
//! it was read in this round, or was not there yet. A pack that comes later is read when its turn comes, after one round
//! at the latest.

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Error as StoreError, PackId, read_footer};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::home::now;
use crate::index::repository::Repository;
use crate::index::unread::PackProblem;
use crate::upkeep::verify::checking::{ToCheck, check_all};
use crate::upkeep::verify::{Damage, Verification, VerifyScope};

/// Number of packs with a problem that are remembered: with so many, the disk is broken.
const PROBLEMS_MAX: usize = 100;

/// Number of damaged files that are remembered by name; `verify` names all.
const DAMAGES_MAX: usize = 20;

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
            run.check_pack(problem.pack)?;
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
                self.note_damage(&run.report)?;
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

    /// Number of chunks that are known to be damaged wherever they are, needed or not.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn known_lost_chunks(&self) -> Result<usize> {
        self.db.read(crate::archive::damage::lost_at_all_places)
    }
}

impl Verification<'_> {
    /// Checks the footer of a pack and each of its chunks.
    fn check_pack(&mut self, pack: PackId) -> Result<()> {
        let repository = self.repository;
        if !repository.knows_pack(pack)? {
            return Ok(());
        }
        let closed = match read_footer(repository.storage.as_ref(), pack) {
            Ok(closed) => closed,
            // A sweep has removed it meanwhile.
            Err(StoreError::MissingPack(_)) if !repository.knows_pack(pack)? => return Ok(()),
            Err(error) if error.is_damage() => {
                let reason = error.to_string();
                if self.report.pack_problems.len() < PROBLEMS_MAX {
                    self.report.pack_problems.push(PackProblem { pack, reason });
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let chunks = closed.chunks.iter().map(|chunk| ToCheck {
            id: chunk.id,
            pack,
            bytes: chunk.raw_bytes,
        });
        for (id, error) in check_all(repository, &chunks.collect::<Vec<_>>()) {
            if !repository.knows_pack(pack)? {
                return Ok(());
            }
            if !error.is_damage() {
                return Err(error);
            }
            self.examine(id)?;
        }
        Ok(())
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
