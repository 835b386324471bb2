//! Frees space that nothing refers to any more, while writers and readers continue.
//!
//! 1. *Adopt* packs that a killed writer finished but did not enter: then the catalog has everything.
//! 2. *Mark* what the live records refer to ([`mark`]).
//! 3. *Rescue* condemned packs that are referred to after all.
//! 4. *Remove* packs that were condemned earlier, whose writers have all ended since, and in which this mark, made
//!    after their end, found nothing.
//! 5. *Condemn* the packs with nothing alive, and record which writers are active: they may have looked something up in
//!    these packs before.
//! 6. *Repack*: the live content of packs with many dead bytes, with damage that was stored again, or with a footer that
//!    cannot be read, is copied into new packs ([`repack`]), and the old packs are condemned as soon as one new pack is full. So a sweep needs the
//!    space of one pack, after it has freed what it can; if there is less, it ends with the packs it has finished.
//!
//! 7. *Merge*: the small packs of archived WAL are copied into larger ones, day by day, and condemned in the same way
//!    ([`merge`]).
//!
//! At last, the catalog gives back the space of the rows that are gone.
//!
//! [`condemned`](crate::index::condemned) keeps what lasts from one sweep to the next, and says why nothing that a
//! writer uses is ever removed.
//!
//! If no writer is active, and neither a record nor a pack to adopt was added since the mark, that mark is as good as a
//! new one, and the packs just condemned are removed at once, before more is copied. Otherwise a second round tries.
//!
//! A kill between any two steps leaves a state from which the next sweep continues: a condemned pack without its list
//! of writers gets one first; a pack whose rows are gone but whose file is not is adopted again, found dead, condemned
//! and removed.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::time::Duration;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{PackId, RecordId, Throttle};
use serde::Serialize;

use crate::archive::clones::CLONE_PREFIX;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::presence::{self, WRITER_PREFIX, WriterName};
use crate::index::condemned::PackRow;
use crate::index::repository::Repository;
use crate::index::runs;
use crate::index::unread::PackProblem;
use crate::monitor::Monitor;

mod condemn;
mod forecast;
mod lost;
mod mark;
mod merge;
mod orphans;
mod remove;
mod repack;
#[cfg(test)]
mod tests;

pub use forecast::Forecast;

/// Largest number of rounds: the second removes what the first condemned; packs that still wait for a writer then wait
/// for the next sweep.
const ROUNDS: u32 = 2;

/// Options of a sweep.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// A pack with more than this share of dead bytes is repacked.
    pub dead_percent: u8,
    /// Temporary files of killed writers are removed when they are older. The age only protects the moment between the
    /// creation of such a file and its locking.
    pub abandoned_after: Duration,
    /// Whether packs that are not sealed are repacked, too, into sealed ones.
    pub seal_plain: bool,
    /// The time by which a day is over, so that its WAL can be merged; now, if there is none.
    pub as_of: Option<TimestampMicros>,
    /// At most so many bytes are copied in a second.
    pub bytes_per_second: Option<NonZero<u64>>,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self {
            dead_percent: 20,
            abandoned_after: Duration::from_secs(60),
            seal_plain: false,
            as_of: None,
            bytes_per_second: None,
        }
    }
}

/// Result of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Packs of killed writers that were entered.
    pub adopted_packs: u64,
    /// Unfinished files and clones of killed processes that were removed.
    pub abandoned_files: u64,
    /// Condemned packs that are referred to after all.
    pub rescued_packs: u64,
    /// Packs whose live chunks were copied elsewhere.
    pub repacked_packs: u64,
    /// Small packs of archived WAL that were merged into larger ones.
    pub merged_packs: u64,
    /// Bytes that were copied for both.
    pub copied_bytes: u64,
    /// Packs that were removed.
    pub removed_packs: u64,
    /// Their bytes. The space gained is this less the copied bytes.
    pub removed_bytes: u64,
    /// Condemned packs that must wait for active writers.
    pub waiting_packs: u64,
    /// These writers.
    pub waiting_for: Vec<String>,
    /// Why some packs with many dead bytes were not repacked: there was no space for the copies.
    pub unfinished: Option<String>,
    /// Chunks that live records refer to but no pack holds: damage, see `verify`.
    pub missing_chunks: u64,
    /// Packs that could not be processed.
    pub problems: Vec<PackProblem>,
}

impl SweepReport {
    /// Adds the counts of the attempts before this one.
    fn add_freed(&mut self, before: &Self) {
        self.adopted_packs += before.adopted_packs;
        self.abandoned_files += before.abandoned_files;
        self.rescued_packs += before.rescued_packs;
        self.repacked_packs += before.repacked_packs;
        self.merged_packs += before.merged_packs;
        self.copied_bytes += before.copied_bytes;
        self.removed_packs += before.removed_packs;
        self.removed_bytes += before.removed_bytes;
    }
}

/// The state of packs that were condemned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    /// They are removed, or wait for writers.
    #[default]
    Settled,
    /// Another round may remove them.
    NextRound,
}

/// A running sweep.
struct Sweep<'a> {
    repository: &'a Repository,
    options: SweepOptions,
    report: SweepReport,
    /// The newest pack that may be condemned.
    newest: i64,
    /// Records of lost chunks of which nothing needs any, or which have all come back.
    settled: BTreeSet<RecordId>,
    /// Limits how fast content is copied.
    throttle: Option<Throttle>,
    gate: Lock,
    _lock: Lock,
}

impl Repository {
    /// Frees the space of what nothing refers to. Other processes may read and write meanwhile.
    ///
    /// # Errors
    /// [`Error::Occupied`] while another sweep or a rebuild is running. When a listing or map cannot be read: then it
    /// is unknown what is alive, and nothing is freed.
    pub fn sweep(&self, options: &SweepOptions, monitor: &mut dyn Monitor) -> Result<SweepReport> {
        let mut before = SweepReport::default();
        let mut unfinished = None;
        let swept = self.with_reserve(|| {
            unfinished = None;
            let mut report = self.try_to_sweep(options, monitor)?;
            report.add_freed(&before);
            if report.unfinished.is_none() {
                return Ok(report);
            }
            before = report.clone();
            unfinished = Some(report);
            let path = self.path().to_path_buf();
            Err(Error::Full { path })
        });
        // More space than the reserve would have been needed.
        unfinished.map_or(swept, Ok)
    }

    /// What it has done before it fails is not undone: the next attempt continues from there.
    fn try_to_sweep(&self, options: &SweepOptions, monitor: &mut dyn Monitor) -> Result<SweepReport> {
        let gate = presence::keep_rebuild_out(self.locks.as_ref(), "sweep")?;
        let lock = self.locks.try_exclusive("sweep", "sweep")?;
        let lock = lock.ok_or_else(|| Error::Occupied {
            what: "Another sweep",
            holder: self.locks.holder("sweep"),
            advice: "run again when it has ended",
        })?;
        if let Some(remote) = &self.remote {
            remote.require_writing_now()?;
        }
        self.db.refresh()?;
        let report = SweepReport::default();
        let mut sweep = Sweep {
            repository: self,
            options: *options,
            report,
            newest: i64::MAX,
            settled: BTreeSet::new(),
            throttle: options.bytes_per_second.map(|rate| Throttle::new(rate.get())),
            gate,
            _lock: lock,
        };
        sweep.run(monitor)?;
        // It may need more space than there is: then it stays as large as it is until the next time.
        if let Err(error) = runs::merge::compact(&self.db).and_then(|()| self.db.shrink()) {
            tracing::debug!("The catalog stays as large as it is: {error}");
        }
        Ok(sweep.report)
    }
}

impl Sweep<'_> {
    fn run(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        self.tidy()?;
        for _ in 0..ROUNDS {
            self.repository.condemned().list_writers()?;
            if !self.round(monitor)? {
                break;
            }
        }
        self.note_lost(monitor)?;
        self.count_waiting()
    }

    /// Returns whether another round may remove more.
    fn round(&mut self, monitor: &mut dyn Monitor) -> Result<bool> {
        // The order matters. Packs of the writers on this list are left alone. A writer that ended before this moment
        // has put its packs in their places, entered or not, so the steps below find them. Packs that wait for a writer
        // that ends later are not in `ready`: a later mark decides about them.
        let writers = self.writers_at_work()?;
        let ready = self.repository.condemned().ready()?;
        monitor.stage("Looking for packs of killed writers");
        self.adopt()?;
        monitor.stage("Finding what is in use");
        let mark = match mark::Mark::make(self.repository, monitor) {
            Ok(mark) => mark,
            Err(error) => {
                // A listing that no pack holds must be known, if a rebuild was killed before it could record it.
                if let Err(second) = self.repository.note_lost(&self.gate, monitor) {
                    tracing::error!("What is lost could not be recorded: {second}");
                }
                return Err(error);
            }
        };
        self.report.missing_chunks = mark.missing_chunks;
        self.settled = self.settled(&mark)?;
        self.rescue(&mark)?;
        self.remove_dead(&mark, ready)?;
        monitor.stage("Freeing what is not in use");
        let doomed = self.doomed(&mark, &writers)?;
        let given_up: BTreeSet<i64> = doomed
            .dead
            .iter()
            .chain(&doomed.sparse)
            .map(|pack| pack.seq)
            .collect();
        let mut fates = vec![
            self.give_up(&mark, &doomed.dead)?,
            self.repack(&mark, doomed.sparse)?,
        ];
        if self.report.unfinished.is_none() {
            monitor.stage("Merging WAL");
            fates.push(self.merge(&mark, &writers, &given_up)?);
        }
        Ok(fates.contains(&Fate::NextRound))
    }

    /// Condemns packs, and removes them at once if the mark is still valid and no writer can have looked anything up in
    /// them.
    fn give_up(&mut self, mark: &mark::Mark, packs: &[PackRow]) -> Result<Fate> {
        if packs.is_empty() {
            return Ok(Fate::Settled);
        }
        if !self.repository.condemned().condemn(packs)?.is_empty() {
            return Ok(Fate::Settled);
        }
        // A writer may have been killed since the mark, before it could enter a pack it had finished.
        if self.adopt()? || !mark.is_current(self.repository)? {
            return Ok(Fate::NextRound);
        }
        self.remove(packs)?;
        Ok(Fate::Settled)
    }

    /// Enters packs that killed writers left behind; returns whether there were any.
    fn adopt(&mut self) -> Result<bool> {
        let newest = self.newest_pack()?;
        let adopted = orphans::adopt(self.repository)?;
        if adopted.packs == 0 {
            return Ok(false);
        }
        // While writers are active, an adopted pack may be one that its writer is just about to enter.
        if !self.writers_at_work()?.is_empty() {
            self.newest = self.newest.min(newest);
        }
        self.report.adopted_packs += adopted.packs;
        self.report.problems.extend(adopted.problems);
        Ok(true)
    }

    fn newest_pack(&self) -> Result<i64> {
        let newest = "SELECT coalesce(max(seq), 0) FROM packs";
        self.repository
            .db
            .read(|db| Ok(db.query_row(newest, [], |row| row.get(0))?))
    }

    /// Removes what dead processes left behind: unfinished packs and clones, and lock files.
    fn tidy(&mut self) -> Result<()> {
        let removed = self
            .repository
            .storage
            .remove_abandoned(self.options.abandoned_after)?;
        let clones = self.repository.remove_clone_leftovers()?;
        self.report.abandoned_files = (removed + clones) as u64;
        let locks = &self.repository.locks;
        for prefix in [WRITER_PREFIX, "read-", CLONE_PREFIX] {
            locks
                .names(prefix)?
                .iter()
                .try_for_each(|name| locks.remove_free(name))?;
        }
        Ok(())
    }

    fn writers_at_work(&self) -> Result<BTreeSet<WriterName>> {
        presence::at_work(self.repository.locks.as_ref())
    }

    fn problem(&mut self, pack: PackId, reason: &Error) {
        let problem = PackProblem {
            pack,
            reason: reason.to_string(),
        };
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }
}
