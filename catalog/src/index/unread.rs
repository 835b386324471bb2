//! Packs of the store that the catalog has not read.
//!
//! Something that is not in the catalog is only proven to be absent when the catalog has read every pack. A pack may be
//! missing from the catalog because its writer was killed before it could enter it, because the catalog was copied from
//! an earlier time or lost its last transactions, or because the pack cannot be read. So a failed look-up first
//! searches for such packs ([`Survey`]): those that can be read are entered, and then the look-up is repeated. As long
//! as others are left, nothing is proven.
//!
//! A pack that is in the catalog but not in the store counts too: then this is not the whole store, perhaps because a
//! disk is not mounted, and it is unknown what else is missing.
//!
//! This search is repeated often: recovery requests the segment after the last one until it arrives. So the store is
//! surveyed in its 256 parts, and a part without problems is listed again only when it has changed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use barmanfs_store::sync::lock;
use barmanfs_store::{Listed, PackId, PackStorage, Part, PartMark, read_footer};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::Home;
use crate::home::locks::Locks;
use crate::home::presence;
use crate::index::db::Db;
use crate::index::records;
use crate::index::remote::Remote;
use crate::index::repository::Repository;

mod elsewhere;
mod entries;

use entries::UnreadInPart;
pub use entries::{UnreadPack, count_unread};

/// A writer enters its pack a moment after the pack has appeared. It gets this long before another process does it.
const WRITER_TRIES: u32 = 10;
const WRITER_PAUSE: Duration = Duration::from_millis(20);

/// The lock under which a pack that another process has made is entered, and under which a sweep removes one. A sweep deletes the
/// rows first: without the lock, a survey would find the file of such a pack and enter it again, and then the file would go.
pub(crate) const ENTRY: &str = "pack-entry";

/// Failed look-ups survey the store at most this often: a reader of damaged data fails thousands of times.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Number of packs checked: a crash or an incomplete copy damages what was written last. `verify` looks at all.
const PACKS_LOOKED_AT: u32 = 10_000;

const IS_MISSING: &str = "The catalog knows it and it is not there: is its file system mounted? Put it back from a copy of the \
                          repository, or give up what it holds with 'barmanfs rebuild-catalog'";

const PUT_BACK: &str =
    "put it back from a copy of the repository, or see with 'barmanfs verify' what is lost";

/// With this many packs no part is empty by chance: a missing one was lost.
const PACKS_IN_ALL_PARTS: usize = 4096;

/// A pack that a sweep could not process. It stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackProblem {
    /// The pack.
    pub pack: PackId,
    /// What is wrong with it.
    pub reason: String,
}

/// Result of a survey of the store.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Packs that were entered.
    pub(crate) adopted: u64,
    /// Records in them that could not be understood.
    pub(crate) bad_records: Vec<PackProblem>,
    /// Packs that remain unread.
    pub(crate) unread: Vec<UnreadPack>,
}

/// A pack under another name: its path, and which it is.
type Astray = (PathBuf, PackId);

/// Surveys the store, and remembers what need not be checked again.
#[derive(Debug)]
pub(crate) struct Surveyor {
    db: Arc<Db>,
    storage: Arc<dyn PackStorage>,
    locks: Arc<dyn Locks>,
    seen: Mutex<Seen>,
    /// The object store that has the packs, and the directory that is its cache.
    remote: Option<(Arc<dyn Remote>, Home)>,
    /// One thread looks for new packs there.
    refreshing: Mutex<()>,
}

/// How many of the parts that have changed are listed in one survey.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Listing {
    /// All of them: what is not in the catalog then is not stored.
    #[default]
    All,
    /// Those with unread packs at the last time, the [`NEWEST`](Self::NEWEST) that changed last, and in turn
    /// [`TURN`](Self::TURN) of the others.
    Some,
    /// None of them: another survey at the same time lists some.
    None,
}

impl Listing {
    /// Parts that changed last: killed writers leave packs there.
    const NEWEST: usize = 8;
    /// Parts that are listed in turn.
    pub(crate) const TURN: usize = 8;
    /// How long a turn takes.
    const TURN_TAKES: Duration = Duration::from_secs(60);

    /// Which of the changed parts are listed.
    fn choose(self, mut changed: Vec<(Part, PartMark)>, bad: &BTreeSet<Part>, turn: u64) -> BTreeSet<Part> {
        let parts = |changed: &[(Part, PartMark)]| changed.iter().map(|(part, _)| *part).collect();
        match self {
            Self::All => return parts(&changed),
            Self::None => return BTreeSet::new(),
            Self::Some => {}
        }
        let turns = 256_usize.div_ceil(Self::TURN);
        let turn = usize::try_from(turn).unwrap_or_default() % turns;
        changed.sort_by_key(|(_, mark)| std::cmp::Reverse(mark.modified()));
        let mut chosen: BTreeSet<Part> = parts(changed.get(..Self::NEWEST).unwrap_or(&changed));
        chosen.extend(changed.iter().map(|(part, _)| *part).filter(|part| match part {
            Part::Root => true,
            Part::First(first) => bad.contains(part) || usize::from(*first) / Self::TURN == turn,
        }));
        chosen
    }
}

/// What is known to be in order.
#[derive(Debug, Default)]
struct Seen {
    /// The catalog it was found with, as the number of replacements: a rebuilt one may have other packs.
    replaced: u64,
    /// The parts in which all packs are read, with their marks at that time and the number of their packs.
    settled: HashMap<Part, (PartMark, usize)>,
    /// The parts in which a pack was not read when they were last listed. Each survey lists them, so that no survey is
    /// silent about what an earlier one has found.
    bad: BTreeSet<Part>,
    /// All records up to this one that are not of WAL can be read. They never change.
    read_through: i64,
    /// When the whole store was last surveyed for a failed look-up.
    looked_at: Option<Instant>,
    listing: Listing,
    /// See [`Listing::Some`].
    turn: u64,
}

impl Surveyor {
    pub(crate) fn new(db: Arc<Db>, storage: Arc<dyn PackStorage>, locks: Arc<dyn Locks>) -> Self {
        Self {
            db,
            storage,
            locks,
            seen: Mutex::default(),
            remote: None,
            refreshing: Mutex::default(),
        }
    }

    /// The same for packs in an object store.
    pub(crate) fn of_remote(self, remote: Arc<dyn Remote>, home: Home) -> Self {
        Self {
            remote: Some((remote, home)),
            ..self
        }
    }

    /// Enters the packs that can be read, and reports the others.
    ///
    /// # Errors
    /// When the store cannot be listed or the catalog cannot be read.
    pub(crate) fn survey(&self) -> Result<Survey> {
        let replaced = self.db.refresh()?;
        let mut seen = self.seen();
        if seen.replaced != replaced {
            *seen = Seen {
                replaced,
                ..Seen::default()
            };
        }
        if let Some((remote, home)) = &self.remote {
            let whole = seen.listing == Listing::All || !seen.bad.is_empty();
            // A reader of one more chunk must not wait for this.
            drop(seen);
            return self.survey_remote(remote.as_ref(), home, whole);
        }
        let mut survey = Survey::default();
        let (mut packs, mut empty, mut missing) = (0, 0, Vec::new());
        // Taken before the parts are listed: packs that are added meanwhile change the marks.
        let now = SystemTime::now();
        let marks = Part::all().map(|part| Ok((part, self.storage.part_mark(part)?)));
        let marks: Vec<(Part, PartMark)> = marks.collect::<Result<_>>()?;
        let known = |part, mark| seen.settled.get(&part).filter(|(known, _)| *known == mark);
        let mut changed = marks.clone();
        changed.retain(|(part, mark)| known(*part, *mark).is_none());
        let chosen = seen.listing.choose(changed, &seen.bad, seen.turn);
        for (part, mark) in marks {
            let settled = seen.settled.get(&part).copied();
            let count = match settled {
                _ if chosen.contains(&part) => {
                    let mut unread = UnreadInPart::default();
                    let count = self.look_at(part, &mut survey, &mut unread)?;
                    seen.settled.remove(&part);
                    match unread.is_empty() {
                        true => seen.bad.remove(&part),
                        false => seen.bad.insert(part),
                    };
                    if unread.is_empty() && mark.is_settled(now) {
                        seen.settled.insert(part, (mark, count));
                    }
                    survey.unread.extend(unread.into_entries(part));
                    count
                }
                Some((_, count)) => count,
                // It is not known, and not listed this time.
                None => 1,
            };
            packs += count;
            empty += usize::from(count == 0 && mark != PartMark::Missing && part != Part::Root);
            if let (Part::First(first), PartMark::Missing) = (part, mark) {
                missing.push(first);
            }
        }
        // A copy may lack the directories that were empty. In this case many are missing, and the only empty ones are
        // those that a sweep has emptied since.
        if empty >= missing.len() || packs >= PACKS_IN_ALL_PARTS {
            survey.unread.extend(missing.into_iter().map(lost_part));
        }
        Ok(survey)
    }

    /// For a failed look-up: returns whether packs were entered, so that another try is worthwhile.
    ///
    /// # Errors
    /// As for [`survey`](Self::survey).
    pub(crate) fn adopt(&self) -> Result<bool> {
        if let Some((remote, home)) = &self.remote {
            return self.adopt_news(remote.as_ref(), home);
        }
        self.adopt_all()
    }

    /// The same for a chunk that should be there: nothing is left out.
    ///
    /// # Errors
    /// As for [`survey`](Self::survey).
    pub(crate) fn adopt_all(&self) -> Result<bool> {
        let last = self.seen().looked_at;
        if last.is_some_and(|last| last.elapsed() < LOOK_AGAIN_AFTER) {
            return Ok(false);
        }
        let survey = match &self.remote {
            Some((remote, home)) => self.survey_remote(remote.as_ref(), home, true)?,
            None => self.survey()?,
        };
        self.seen().looked_at = Some(Instant::now());
        Ok(survey.adopted > 0)
    }

    /// Takes over what an earlier survey with this catalog has found.
    pub(crate) fn trust(
        &self,
        parts: impl Iterator<Item = (Part, (PartMark, usize))>,
        bad: impl Iterator<Item = Part>,
        read_through: i64,
        listing: Listing,
    ) {
        let minutes = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let minutes = minutes.unwrap_or_default().as_secs() / Listing::TURN_TAKES.as_secs();
        let mut seen = self.seen();
        seen.settled.extend(parts);
        seen.bad.extend(bad);
        seen.read_through = seen.read_through.max(read_through);
        (seen.listing, seen.turn) = (listing, minutes);
    }

    /// Lists everything the next time.
    pub(crate) fn forget(&self) {
        self.seen().settled.clear();
    }

    /// The parts in which all packs are read.
    pub(crate) fn settled(&self) -> HashMap<Part, (PartMark, usize)> {
        self.seen().settled.clone()
    }

    /// The parts in which a pack was not read.
    pub(crate) fn bad(&self) -> BTreeSet<Part> {
        self.seen().bad.clone()
    }

    /// The last record up to which all can be read that are not of WAL, as far as it is known.
    pub(crate) fn read_through(&self) -> i64 {
        self.seen().read_through
    }

    /// Notes that all these can be read.
    pub(crate) fn set_read_through(&self, record: i64) {
        self.seen().read_through = record;
    }

    #[cfg(test)]
    pub(crate) fn begin_turn(&self, turn: u64) {
        self.seen().turn = turn;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Lists a part and compares it with the catalog. Returns the number of its packs.
    fn look_at(&self, part: Part, survey: &mut Survey, unread: &mut UnreadInPart) -> Result<usize> {
        let (listed, astray) = self.list(part)?;
        let known = self.known(part)?;
        for pack in listed.difference(&known) {
            self.enter(*pack, survey, unread)?;
        }
        let missing: BTreeSet<PackId> = known.difference(&listed).copied().collect();
        for pack in self.lost(part, missing)? {
            unread.add(pack, IS_MISSING);
        }
        for (path, pack) in astray {
            self.judge_astray(&path, pack, unread)?;
        }
        Ok(listed.len())
    }

    /// The packs of a part that are in the store, and those that have another name.
    fn list(&self, part: Part) -> Result<(BTreeSet<PackId>, Vec<Astray>)> {
        let (mut listed, mut astray) = (BTreeSet::new(), Vec::new());
        self.storage.list_part(part, &mut |found| {
            match found {
                Listed::Pack(pack) => {
                    listed.insert(pack);
                }
                Listed::Astray { path, pack } => astray.push((path, pack)),
            }
            Ok(())
        })?;
        Ok((listed, astray))
    }

    /// The packs of a part that are in the catalog.
    fn known(&self, part: Part) -> Result<BTreeSet<PackId>> {
        let Part::First(first) = part else {
            return Ok(BTreeSet::new());
        };
        let (mut from, mut to) = ([0; PackId::BYTES], [u8::MAX; PackId::BYTES]);
        (from[0], to[0]) = (first, first);
        self.db.read(|db| {
            let mut known = db.prepare_cached("SELECT id FROM packs WHERE id BETWEEN ?1 AND ?2")?;
            let rows = known.query_map(params![from, to], |row| row.get(0).map(PackId))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn knows(&self, pack: PackId) -> Result<bool> {
        self.db.read(|db| records::knows_pack(db, pack))
    }

    /// Those of the missing packs that are still in the catalog and not in the store: packs come and go meanwhile. All are
    /// looked for at once, since there may be millions where a disk is not mounted.
    fn lost(&self, part: Part, mut missing: BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        if !missing.is_empty() {
            let (listed, _) = self.list(part)?;
            missing.retain(|pack| !listed.contains(pack));
        }
        // A sweep removes a pack from the catalog first.
        if !missing.is_empty() {
            let known = self.known(part)?;
            missing.retain(|pack| known.contains(pack));
        }
        Ok(missing)
    }

    /// Enters an unknown pack, unless its writer does so or a sweep has removed it.
    fn enter(&self, pack: PackId, survey: &mut Survey, unread: &mut UnreadInPart) -> Result<()> {
        if self.comes_by_itself(pack)? {
            return Ok(());
        }
        match self.adopt_one(pack) {
            Ok(entered) => {
                survey.adopted += u64::from(entered.new);
                let problem = |error: Error| PackProblem {
                    pack,
                    reason: error.to_string(),
                };
                survey
                    .bad_records
                    .extend(entered.bad_records.into_iter().map(problem));
            }
            Err(Error::Store(barmanfs_store::Error::MissingPack(_))) => {}
            Err(error) => unread.add(
                pack,
                format!(
                    "{error}; put it back from a copy of the repository, or move it away to give up what it holds"
                ),
            ),
        }
        Ok(())
    }

    /// Gives an active writer time to enter its pack; returns whether the pack has been entered.
    fn comes_by_itself(&self, pack: PackId) -> Result<bool> {
        for _ in 0..WRITER_TRIES {
            if self.knows(pack)? {
                return Ok(true);
            }
            if !presence::is_any_at_work(self.locks.as_ref())? {
                break;
            }
            std::thread::sleep(WRITER_PAUSE);
        }
        self.knows(pack)
    }

    /// As long as the lock is held, no sweep removes the file: a pack that has one here still has one when it is entered.
    fn adopt_one(&self, pack: PackId) -> Result<records::Entered> {
        let storage = self.storage.as_ref();
        let _entry = self
            .locks
            .wait_exclusive(ENTRY, "entry of a pack that was not in the catalog")?;
        let closed = read_footer(storage, pack)?;
        // Its writer may have been killed before it could do that, and a crash must not remove what is in the catalog.
        storage.settle(&[pack])?;
        self.db
            .write(|transaction| records::enter(transaction, self.db.derive(), &closed, None))
    }

    /// A copy next to the pack itself does no harm.
    fn judge_astray(&self, path: &Path, pack: PackId, unread: &mut UnreadInPart) -> Result<()> {
        let in_its_place = self.knows(pack)? && self.storage.bytes(pack).is_ok();
        if !in_its_place {
            let reason = format!(
                "It is pack {pack} under another name: rename it to {}/{pack} in the directory of packs",
                pack.to_string().get(..2).unwrap_or_default()
            );
            unread.add(path.display(), reason);
        }
        Ok(())
    }
}

fn lost_part(first: u8) -> UnreadPack {
    UnreadPack::new(
        format!("packs/{first:02x}"),
        "The directory is missing, with what was in it: put it back from a copy of the repository, or make it with mkdir \
         when it was empty",
    )
}

impl Repository {
    /// Searches for packs that are not in the catalog, and enters those that can be read. Returns those that remain
    /// unread, the first of each part by name: while there are any, absence from the catalog does not prove that
    /// something is not stored. Cheap when it is repeated and nothing has changed.
    ///
    /// # Errors
    /// When the store cannot be listed or the catalog cannot be read.
    pub fn unread_packs(&self) -> Result<Vec<UnreadPack>> {
        Ok(Self::unread_of(self.surveyor.survey()?))
    }

    /// What remains unread; the rest goes into the log.
    fn unread_of(survey: Survey) -> Vec<UnreadPack> {
        for problem in &survey.bad_records {
            tracing::warn!("Pack {}: {}", problem.pack, problem.reason);
        }
        if survey.adopted > 0 {
            tracing::info!(
                "Entered {} packs that were not in the catalog: their writers were killed, or the catalog was older",
                survey.adopted
            );
        }
        survey.unread
    }

    /// Packs whose files are not what was written: truncated by a crash, copied incompletely, or replaced by something
    /// else. Checks the newest [`PACKS_LOOKED_AT`], and reads none of them.
    ///
    /// # Errors
    /// When the store or the catalog cannot be read.
    pub fn misshapen_packs(&self) -> Result<Vec<UnreadPack>> {
        // An object is put as a whole, and a survey compares its size.
        if self.is_remote() {
            return Ok(Vec::new());
        }
        let packs: Vec<(PackId, u64)> = self.db.read(|db| {
            let mut newest = db.prepare("SELECT id, bytes FROM packs ORDER BY seq DESC LIMIT ?1")?;
            let rows = newest.query_map([PACKS_LOOKED_AT], |row| Ok((PackId(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut found = Vec::new();
        for (pack, bytes) in packs {
            match self.storage.bytes(pack) {
                Ok(there) if there == bytes => {}
                Ok(there) => found.push(UnreadPack::new(
                    pack,
                    format!("It has {there} bytes and was written with {bytes}: {PUT_BACK}"),
                )),
                // Another check reports missing packs.
                Err(barmanfs_store::Error::MissingPack(_)) => {}
                Err(error) if error.is_damage() => found.push(UnreadPack::new(pack, error.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// Proves that whatever is not in the catalog is not stored. The look-up must come after this, because this enters
    /// packs.
    ///
    /// # Errors
    /// [`Error::NotProven`] while packs are unread; when the store cannot be listed or the catalog cannot be read.
    pub fn prove_completeness(&self) -> Result<()> {
        let unread = Self::unread_of(self.surveyor.survey_for_proof()?);
        match unread.first() {
            None => Ok(()),
            Some(first) => Err(Error::NotProven {
                count: count_unread(&unread),
                pack: first.pack.clone(),
                reason: first.reason.to_string(),
            }),
        }
    }

    /// For a failed look-up: enters packs that are not in the catalog; returns whether there were any, so that another
    /// try is worthwhile. Surveys the store at most once in a second.
    ///
    /// # Errors
    /// When the store cannot be listed or the catalog cannot be read.
    pub fn adopt_unknown_packs(&self) -> Result<bool> {
        self.surveyor.adopt()
    }
}
