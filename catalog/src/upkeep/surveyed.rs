//! What the last survey of all packs has found, so that `check` does not list two million names every few minutes.
//!
//! `cron/.packs.json` has the mark of each directory in which all packs were read. As long as the catalog is the same and
//! the mark too, the directory has the same packs. A file system check may remove names from a directory and leave its
//! mark, so once a day everything is listed, whatever the marks are. A lost file costs one complete survey.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{PackId, Part, PartMark};
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::{CATALOG, now};
use crate::index::repository::Repository;
use crate::index::unread::{Listing, UnreadPack};

/// No server's name begins with a dot.
const FILE: &str = ".packs.json";

/// How often everything is listed.
const LISTED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A survey counts a little longer than that: the next one may have to wait.
const COUNTS_FOR: Duration = Duration::from_secs(26 * 3600);

const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What is kept of a survey.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Surveyed {
    /// When everything was last listed.
    listed_at: Option<TimestampMicros>,
    /// Device and inode of the catalog. A rebuilt one, or one from a copy, may lack packs.
    catalog: (u64, u64),
    /// The newest pack in it. If the catalog lost its last transactions, this row is gone, or is of another pack.
    newest: Option<(i64, PackId)>,
    /// The release that made it: others may read other records.
    release: String,
    /// All records up to this one that are not of WAL can be read.
    read_through: i64,
    /// The directories in which all packs were read, with the number of their packs.
    parts: Vec<(u8, PartMark, usize)>,
    /// The directories in which one was not.
    #[serde(default)]
    bad_parts: Vec<u8>,
}

impl Repository {
    /// Surveys all packs as [`unread_packs`](Self::unread_packs) does, and remembers the result. What has not changed since
    /// the last time is listed again once a day only.
    ///
    /// # Errors
    /// When the store cannot be listed, the catalog cannot be read, or the result cannot be written.
    pub fn survey_packs(&self) -> Result<Vec<UnreadPack>> {
        let (unread, surveyed) = self.survey()?;
        self.remember_survey(&surveyed)?;
        Ok(unread)
    }

    /// The packs that were not read, for checks that come every few minutes: after
    /// [`trust_last_survey`](Self::trust_last_survey) it costs what has changed. Without a survey in the last day it makes one, and
    /// remembers it for the next check if it may write.
    ///
    /// # Errors
    /// When the store cannot be listed or the catalog cannot be read.
    pub fn unread_packs_by_survey(&self) -> Result<Vec<UnreadPack>> {
        if self
            .surveyed()?
            .listed_at
            .is_some_and(|at| is_within(COUNTS_FOR, at))
        {
            return self.unread_packs();
        }
        let (unread, surveyed) = self.survey()?;
        if let Err(error) = self.remember_survey(&surveyed) {
            tracing::debug!("The next check lists all packs again: {error}");
        }
        Ok(unread)
    }

    fn survey(&self) -> Result<(Vec<UnreadPack>, Surveyed)> {
        let known = self.surveyed()?;
        let listed_at = known.listed_at.filter(|at| is_within(LISTED_EVERY, *at));
        match listed_at {
            Some(_) => self
                .surveyor
                .trust(parts(&known), bad_parts(&known), 0, Listing::All),
            None => self.surveyor.forget(),
        }
        let began = now();
        // Before the survey: what is entered meanwhile changes the mark of its directory.
        let (catalog, newest) = (self.catalog_file()?, self.newest_pack()?);
        let unread = self.unread_packs()?;
        if let Some(unreadable) = self.unreadable_record()? {
            tracing::error!("{unreadable}");
        }
        let settled = self.surveyor.settled().into_iter();
        let surveyed = Surveyed {
            listed_at: Some(listed_at.unwrap_or(began)),
            catalog,
            newest,
            release: RELEASE.to_owned(),
            read_through: self.surveyor.read_through(),
            parts: settled
                .filter_map(|(part, (mark, packs))| Some((first(part)?, mark, packs)))
                .collect(),
            bad_parts: self.surveyor.bad().into_iter().filter_map(first).collect(),
        };
        Ok((unread, surveyed))
    }

    /// From now on, [`unread_packs`](Self::unread_packs) of this repository lists only directories that have changed since
    /// the last [`survey_packs`](Self::survey_packs), and of these not more than some, or none at all unless `lists`. Not to
    /// be used where an absence has to be proven. Without such a survey in the last day, everything is listed as before.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn trust_last_survey(&self, lists: bool) -> Result<()> {
        let known = self.surveyed()?;
        if known.listed_at.is_some_and(|at| is_within(COUNTS_FOR, at)) {
            let limit = if lists { Listing::Some } else { Listing::None };
            self.surveyor
                .trust(parts(&known), bad_parts(&known), known.read_through, limit);
        }
        Ok(())
    }

    /// The last survey, if it was made with this catalog.
    fn surveyed(&self) -> Result<Surveyed> {
        let path = self.memory_file(FILE);
        let surveyed: Surveyed = match crate::home::regular::read(&path) {
            Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
            // It is of use only to those who can read it.
            Err(error) => {
                tracing::debug!("Cannot read {}: {error}", path.display());
                Surveyed::default()
            }
        };
        let is_of_this = surveyed.release == RELEASE
            && surveyed.catalog == self.catalog_file()?
            && self.has_still(surveyed.newest)?;
        Ok(if is_of_this { surveyed } else { Surveyed::default() })
    }

    fn catalog_file(&self) -> Result<(u64, u64)> {
        let path = self.path().join(CATALOG);
        let found = fs::metadata(&path).map_err(|source| Error::io("inspect", &path, source))?;
        Ok((found.dev(), found.ino()))
    }

    fn newest_pack(&self) -> Result<Option<(i64, PackId)>> {
        self.db.read(|db| {
            let mut newest = db.prepare_cached("SELECT seq, id FROM packs ORDER BY seq DESC LIMIT 1")?;
            let found = newest.query_row([], |row| Ok((row.get(0)?, PackId(row.get(1)?))));
            Ok(found.optional()?)
        })
    }

    fn has_still(&self, newest: Option<(i64, PackId)>) -> Result<bool> {
        let Some((seq, id)) = newest else {
            return Ok(true);
        };
        self.db.read(|db| {
            let mut row = db.prepare_cached("SELECT 1 FROM packs WHERE seq = ?1 AND id = ?2")?;
            Ok(row.exists((seq, id.as_bytes()))?)
        })
    }

    fn remember_survey(&self, surveyed: &Surveyed) -> Result<()> {
        let json = serde_json::to_vec(surveyed).map_err(|error| Error::Invalid(error.to_string()))?;
        self.replace_memory(FILE, &json)
    }
}

fn parts(surveyed: &Surveyed) -> impl Iterator<Item = (Part, (PartMark, usize))> {
    let parts = surveyed.parts.iter();
    parts.map(|(first, mark, packs)| (Part::First(*first), (*mark, *packs)))
}

fn bad_parts(surveyed: &Surveyed) -> impl Iterator<Item = Part> {
    surveyed.bad_parts.iter().copied().map(Part::First)
}

/// A directory's number. The packs' own directory is always listed.
fn first(part: Part) -> Option<u8> {
    match part {
        Part::First(first) => Some(first),
        Part::Root => None,
    }
}

/// Whether a moment is at most `time` ago, and not in the future.
fn is_within(time: Duration, at: TimestampMicros) -> bool {
    let now = now();
    at <= now && now.saturating_duration_since(at) < time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;

    fn write(repository: &Repository, change: impl FnOnce(&mut Surveyed)) {
        let mut surveyed = repository.surveyed().unwrap();
        change(&mut surveyed);
        repository.remember_survey(&surveyed).unwrap();
    }

    /// A file system check may do this: the mark of the directory stays, by the file's word at least.
    fn lose_a_pack(repository: &Repository) {
        let id = PackId([7; 16]);
        let entered = repository.db.write(|db| {
            db.execute(
                "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) VALUES (?1, 9, 0, 0, 0)",
                [id.as_bytes()],
            )?;
            Ok(())
        });
        entered.unwrap();
    }

    fn old(repository: &Repository) {
        // So that the marks of the directories are settled.
        let packs = repository.path().join("packs");
        for entry in fs::read_dir(packs).unwrap() {
            let directory = fs::File::open(entry.unwrap().path()).unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(3600);
            directory.set_modified(then).unwrap();
        }
        std::thread::sleep(Duration::from_millis(3100));
    }

    #[test]
    fn a_survey_counts_for_a_day_and_with_its_catalog_alone() {
        let (_directory, repository) = temporary();
        old(&repository);
        assert_eq!(repository.survey_packs().unwrap(), []);
        assert_eq!(repository.surveyed().unwrap().parts.len(), 256);
        lose_a_pack(&repository);
        let quick = || {
            let again = Repository::open(repository.path()).unwrap();
            again.trust_last_survey(true).unwrap();
            again.unread_packs().unwrap().len()
        };
        let full = || {
            Repository::open(repository.path())
                .unwrap()
                .unread_packs()
                .unwrap()
                .len()
        };
        assert_eq!((quick(), full()), (0, 1));
        // What has changed is listed.
        let part = repository.path().join("packs/07");
        fs::write(part.join("x"), "").unwrap();
        assert_eq!(quick(), 1);
        let blind = Repository::open(repository.path()).unwrap();
        blind.trust_last_survey(false).unwrap();
        assert_eq!(blind.unread_packs().unwrap(), []);
        // So is everything after a day, with another catalog, and without the file.
        assert_eq!(repository.survey_packs().unwrap().len(), 1);
        let good = repository.surveyed().unwrap();
        assert_eq!(good.parts.len(), 255);
        let hours =
            |hours: i64| TimestampMicros::from_unix_micros(now().unix_micros() + hours * 3_600_000_000);
        let changes: [&dyn Fn(&mut Surveyed); 4] = [
            &|known| known.listed_at = Some(hours(-27)),
            &|known| known.listed_at = Some(hours(1)),
            &|known| known.catalog.1 += 1,
            &|known| known.newest = Some((99, PackId([7; 16]))),
        ];
        for change in changes {
            let mark = good.parts.iter().find(|(first, ..)| *first == 8).unwrap().1;
            write(&repository, |known| {
                *known = good.clone();
                known.parts.push((7, mark, 0));
                change(known);
            });
            assert_eq!(quick(), 1);
        }
        fs::write(repository.memory_file(FILE), "{\"catalog\": [").unwrap();
        assert_eq!(quick(), 1);
    }

    #[test]
    fn a_check_without_a_survey_makes_one_and_the_next_lists_what_has_changed() {
        let (_directory, repository) = temporary();
        old(&repository);
        let check = || {
            let again = Repository::open(repository.path()).unwrap();
            again.trust_last_survey(true).unwrap();
            again.unread_packs_by_survey().unwrap().len()
        };
        assert_eq!(check(), 0);
        assert_eq!(repository.surveyed().unwrap().parts.len(), 256);
        // Nothing shows that this directory has changed.
        lose_a_pack(&repository);
        assert_eq!(check(), 0);
        fs::write(repository.path().join("packs/07/x"), "").unwrap();
        assert_eq!(check(), 1);
        // After a day without cron, a check lists everything once more.
        write(&repository, |known| {
            known.listed_at = Some(TimestampMicros::from_unix_micros(
                now().unix_micros() - 27 * 3_600_000_000,
            ));
        });
        assert_eq!((check(), check()), (1, 1));
        assert!(is_within(
            LISTED_EVERY,
            repository.surveyed().unwrap().listed_at.unwrap()
        ));
    }

    #[test]
    fn only_some_of_the_directories_that_changed_are_listed_at_once() {
        let (_directory, repository) = temporary();
        old(&repository);
        assert_eq!(repository.survey_packs().unwrap(), []);
        lose_a_pack(&repository);
        for first in 0..=u8::MAX {
            fs::write(repository.path().join(format!("packs/{first:02x}/x")), "").unwrap();
        }
        // It is not among those that changed last.
        fs::File::open(repository.path().join("packs/07"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        let rounds = 256_u32.div_ceil(u32::try_from(Listing::TURN).unwrap());
        let found = (0..rounds).filter(|turn| {
            let again = Repository::open(repository.path()).unwrap();
            again.trust_last_survey(true).unwrap();
            again.surveyor.begin_turn(u64::from(*turn));
            !again.unread_packs().unwrap().is_empty()
        });
        assert_eq!(found.count(), 1);
    }

    #[test]
    fn what_a_survey_has_found_is_found_again_at_each_turn_until_it_is_mended() {
        let (_directory, repository) = temporary();
        old(&repository);
        lose_a_pack(&repository);
        assert_eq!(repository.survey_packs().unwrap().len(), 1);
        // Many directories change, and it is not among those that changed last.
        for first in 0..=u8::MAX {
            fs::write(repository.path().join(format!("packs/{first:02x}/x")), "").unwrap();
        }
        fs::File::open(repository.path().join("packs/07"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        let found = |turn: u32| {
            let again = Repository::open(repository.path()).unwrap();
            again.trust_last_survey(true).unwrap();
            again.surveyor.begin_turn(u64::from(turn));
            again.unread_packs().unwrap().len()
        };
        let rounds = || 0..256_u32.div_ceil(u32::try_from(Listing::TURN).unwrap());
        assert!(rounds().all(|turn| found(turn) == 1));
        let mended = repository.db.write(|db| {
            db.execute("DELETE FROM packs WHERE id = ?1", [PackId([7; 16]).as_bytes()])?;
            Ok(())
        });
        mended.unwrap();
        assert!(rounds().all(|turn| found(turn) == 0));
        assert_eq!(repository.survey_packs().unwrap(), []);
        assert_eq!(repository.surveyed().unwrap().bad_parts, [0; 0]);
    }
}
