//! The same for packs in an object store: what is new there, and what is gone.
//!
//! A listing of everything takes a request for a thousand packs. So most of the time only what follows the known packs is asked for,
//! and at most every few seconds, by all processes of a host together. Everything is listed when an absence has to be proven, when a
//! chunk is not found, and every hour.
//!
//! Where another host writes, a pack that is gone was removed by that host, and is forgotten. Its chunks are in other packs by
//! then, or nothing needs them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use barmanfs_store::{ClosedPack, PackId, Part};

use super::{ENTRY, PackProblem, Survey, Surveyor, UnreadInPart};
use crate::error::{Error, Result};
use crate::home::{Home, write_durably};
use crate::index::footers::{FROM_OBJECTS, read_each};
use crate::index::forget::forget_removed;
use crate::index::records;
use crate::index::remote::{Remote, STALE, newest_of};

/// How old what a host knows may be when somebody looks.
const REFRESHED_EVERY: Duration = Duration::from_secs(10);

/// Where another host writes, everything is listed this often.
const LISTED_EVERY: Duration = Duration::from_secs(3600);

/// How long such a listing counts for a proof that something is absent, together with what came after it.
const PROVEN_FOR: Duration = Duration::from_secs(600);

/// Files whose time says when that was done.
const REFRESHED: &str = "refreshed";
const LISTED: &str = "listed";

const IS_GONE: &str = "The catalog knows it and the object store does not have it: put it back from a copy, or give up what it \
                       holds with 'barmanfs rebuild-catalog'";

impl Surveyor {
    /// Looks for new packs when the last look was a while ago. What fails is only logged.
    pub(crate) fn refresh(&self) {
        let Some((remote, home)) = &self.remote else {
            return;
        };
        let Ok(_refreshing) = self.refreshing.try_lock() else {
            return;
        };
        if remote.seems_to_write() || !is_due(home, REFRESHED, REFRESHED_EVERY) {
            return;
        }
        let looked = match is_due(home, LISTED, LISTED_EVERY) {
            true => self.survey_remote(remote.as_ref(), home, true).map(drop),
            false => self.enter_news(remote.as_ref(), home, false).map(drop),
        };
        if let Err(error) = looked {
            tracing::warn!("What is new in {} is not known: {error}", remote.place());
        }
    }

    /// For a failed look-up of a name.
    pub(super) fn adopt_news(&self, remote: &dyn Remote, home: &Home) -> Result<bool> {
        match is_due(home, REFRESHED, REFRESHED_EVERY) {
            true => Ok(self.enter_news(remote, home, false)?.adopted > 0),
            false => Ok(false),
        }
    }

    pub(super) fn survey_remote(&self, remote: &dyn Remote, home: &Home, whole: bool) -> Result<Survey> {
        match whole {
            true => self.enter_all(remote, home),
            false => self.enter_news(remote, home, false),
        }
    }

    /// For a proof that something is absent, which recovery asks for every few seconds: everything is listed now and then, and what
    /// came after that each time.
    pub(crate) fn survey_for_proof(&self) -> Result<Survey> {
        let Some((remote, home)) = &self.remote else {
            return self.survey();
        };
        match is_due(home, LISTED, PROVEN_FOR) || !self.seen().bad.is_empty() {
            true => self.enter_all(remote.as_ref(), home),
            false => self.enter_news(remote.as_ref(), home, true),
        }
    }

    fn enter_news(&self, remote: &dyn Remote, home: &Home, lists: bool) -> Result<Survey> {
        note(home, REFRESHED)?;
        let mut new = Vec::new();
        remote.news(lists, &|stream| Ok(newest_of(&self.db, stream)?), &mut |pack| {
            if !self.knows(pack)? {
                new.push(pack);
            }
            Ok(())
        })?;
        let (mut survey, mut unread) = (Survey::default(), UnreadInPart::default());
        self.enter_new(remote, &new, &mut survey, &mut unread)?;
        survey.unread = unread.into_entries(Part::Root);
        Ok(survey)
    }

    /// Compares everything that is there with the catalog.
    fn enter_all(&self, remote: &dyn Remote, home: &Home) -> Result<Survey> {
        require_same(remote, home)?;
        let mut left: HashMap<PackId, u64> = self.db.read(|db| {
            let mut all = db.prepare("SELECT id, bytes FROM packs")?;
            let rows = all.query_map([], |row| Ok((PackId(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let (mut survey, mut unread) = (Survey::default(), UnreadInPart::default());
        let mut new = Vec::new();
        remote.sizes(&mut |pack, bytes| {
            match left.remove(&pack) {
                Some(known) if known == bytes => {}
                Some(known) => unread.add(
                    pack,
                    format!(
                        "It has {bytes} bytes and was written with {known}: {}",
                        super::PUT_BACK
                    ),
                ),
                None => new.push(pack),
            }
            Ok(())
        })?;
        self.enter_new(remote, &new, &mut survey, &mut unread)?;
        self.judge_gone(remote, home, left.into_keys(), &mut unread)?;
        note(home, REFRESHED)?;
        note(home, LISTED)?;
        let mut seen = self.seen();
        match unread.is_empty() {
            true => seen.bad.clear(),
            // Any part will do: the next survey lists everything again.
            false => drop(seen.bad.insert(Part::First(0))),
        }
        drop(seen);
        survey.unread = unread.into_entries(Part::Root);
        Ok(survey)
    }

    fn enter_new(
        &self,
        remote: &dyn Remote,
        new: &[PackId],
        survey: &mut Survey,
        unread: &mut UnreadInPart,
    ) -> Result<()> {
        let mut unknown = Vec::new();
        for pack in new {
            if !self.comes_by_itself(*pack)? {
                unknown.push(*pack);
            }
        }
        let storage = remote.direct();
        read_each(storage.as_ref(), &unknown, FROM_OBJECTS, &mut |pack, footer| {
            let entered = footer
                .map_err(Error::from)
                .and_then(|closed| self.enter_closed(remote, &closed));
            match entered {
                Ok(entered) => {
                    survey.adopted += u64::from(entered.new);
                    let problems = entered.bad_records.into_iter();
                    survey.bad_records.extend(problems.map(|error| PackProblem {
                        pack,
                        reason: error.to_string(),
                    }));
                }
                // It was removed meanwhile.
                Err(Error::Store(barmanfs_store::Error::MissingPack(_))) => {}
                Err(Error::Store(error)) if error.is_damage() => unread.add(
                    pack,
                    format!(
                        "{error}; put it back from a copy, or remove the object to give up what it holds"
                    ),
                ),
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    /// A sweep of this host may have removed it since its footer was read.
    fn enter_closed(&self, remote: &dyn Remote, closed: &ClosedPack) -> Result<records::Entered> {
        let _entry = self
            .locks
            .wait_exclusive(ENTRY, "entry of a pack that was not in the catalog")?;
        if remote.seems_to_write() {
            remote.direct().bytes(closed.id)?;
        }
        self.db
            .write(|transaction| records::enter(transaction, self.db.derive(), closed, None))
    }

    /// Packs that the catalog has and the store does not.
    fn judge_gone(
        &self,
        remote: &dyn Remote,
        home: &Home,
        gone: impl Iterator<Item = PackId>,
        unread: &mut UnreadInPart,
    ) -> Result<()> {
        let mut is_removed_elsewhere = None;
        for pack in gone {
            // A sweep of this host deletes the rows first.
            if !self.knows(pack)? {
                continue;
            }
            let is_elsewhere = match is_removed_elsewhere {
                Some(known) => known,
                None => *is_removed_elsewhere.insert(remote.writing_elsewhere()?.is_some()),
            };
            match is_elsewhere {
                false => unread.add(pack, IS_GONE),
                true => {
                    let forgotten = self.db.write(|transaction| forget_removed(transaction, pack))?;
                    if !forgotten {
                        let _acting = home.act()?;
                        write_durably(&home.join(STALE), b"")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The prefix may have been given to another repository.
fn require_same(remote: &dyn Remote, home: &Home) -> Result<()> {
    let known = crate::home::settings::read_settings(home)?;
    let place = remote.place();
    let there = remote.settings()?.ok_or_else(|| {
        Error::Invalid(format!(
            "There is no repository in {place} any more: it has no repository.json"
        ))
    })?;
    let there = crate::home::settings::parse_settings(
        &there,
        place.as_ref(),
        format!("{place}/repository.json").as_ref(),
    )?;
    match there.id == known.id {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "{place} has the repository {} now, and {} is the cache of {}: remove that directory if the other one is gone",
            there.id,
            home.path().display(),
            known.id
        ))),
    }
}

/// Whether something was done longer ago than that, or at a time to come.
fn is_due(home: &Home, name: &str, every: Duration) -> bool {
    let done = fs::metadata(home.join(name)).and_then(|found| found.modified());
    !done.is_ok_and(|done| {
        SystemTime::now()
            .duration_since(done)
            .is_ok_and(|ago| ago < every)
    })
}

fn note(home: &Home, name: &str) -> Result<()> {
    let _acting = home.act()?;
    let path = home.join(name);
    File::create(&path)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .map_err(|source| Error::io("write", &path, source))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use barmanfs_store::{LocalPacks, PackStorage, PackWriter, Result as StoreResult};

    use super::*;
    use crate::index::remote::{RemotePacks, StreamPrefix};
    use crate::index::repository::Repository;
    use crate::monitor::Silent;

    /// A directory in the place of a store, of which `shown` decides what looks new.
    #[derive(Debug)]
    struct Elsewhere {
        packs: Arc<LocalPacks>,
        settings: Vec<u8>,
        writes: AtomicBool,
        tells_news: AtomicBool,
    }

    impl Remote for Elsewhere {
        fn place(&self) -> &str {
            "elsewhere"
        }

        fn settings(&self) -> StoreResult<Option<Vec<u8>>> {
            Ok(Some(self.settings.clone()))
        }

        fn direct(&self) -> Arc<dyn PackStorage> {
            Arc::clone(&self.packs) as _
        }

        fn sizes(&self, each: &mut dyn FnMut(PackId, u64) -> StoreResult<()>) -> StoreResult<()> {
            self.packs.list(&mut |pack| each(pack, self.packs.bytes(pack)?))
        }

        fn news(
            &self,
            lists: bool,
            newest: &dyn Fn(StreamPrefix) -> StoreResult<Option<PackId>>,
            each: &mut dyn FnMut(PackId) -> StoreResult<()>,
        ) -> StoreResult<()> {
            assert_eq!(newest([0; 8])?, None);
            match lists || self.tells_news.load(Ordering::Relaxed) {
                true => self.packs.list(each),
                false => Ok(()),
            }
        }

        fn require_writing(&self) -> StoreResult<()> {
            match self.seems_to_write() {
                true => Ok(()),
                false => Err(barmanfs_store::Error::Invalid("another host writes".to_owned())),
            }
        }

        fn require_writing_now(&self) -> StoreResult<()> {
            self.require_writing()
        }

        fn writing_elsewhere(&self) -> StoreResult<Option<String>> {
            Ok((!self.seems_to_write()).then(|| "other".to_owned()))
        }

        fn seems_to_write(&self) -> bool {
            self.writes.load(Ordering::Relaxed)
        }
    }

    struct Host {
        directory: tempfile::TempDir,
        elsewhere: Arc<Elsewhere>,
    }

    impl Host {
        fn new(packs: &Arc<LocalPacks>, settings: &[u8], writes: bool) -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
                elsewhere: Arc::new(Elsewhere {
                    packs: Arc::clone(packs),
                    settings: settings.to_vec(),
                    writes: writes.into(),
                    tells_news: true.into(),
                }),
            }
        }

        fn open(&self) -> Repository {
            let packs = RemotePacks {
                storage: self.elsewhere.direct(),
                remote: Arc::clone(&self.elsewhere) as _,
            };
            Repository::open_cached(&self.directory.path().join("home"), &packs, &mut Silent).unwrap()
        }

        /// As if this host had looked long ago.
        fn forget_looks(&self) {
            for name in [REFRESHED, LISTED] {
                let _not_yet = fs::remove_file(self.directory.path().join("home").join(name));
            }
        }
    }

    fn two_hosts() -> (tempfile::TempDir, Arc<LocalPacks>, Host, Host) {
        let directory = tempfile::tempdir().unwrap();
        let packs = Arc::new(LocalPacks::create(&directory.path().join("packs")).unwrap());
        let settings = crate::home::settings::new_settings(Default::default()).unwrap();
        let (writer, reader) = (
            Host::new(&packs, &settings, true),
            Host::new(&packs, &settings, false),
        );
        (directory, packs, writer, reader)
    }

    fn write(repository: &Repository) {
        repository
            .writer("test")
            .unwrap()
            .write_records(Vec::new())
            .unwrap();
    }

    #[test]
    fn a_reading_host_sees_what_was_written_and_forgets_what_was_removed() {
        let (_directory, packs, writer, reader) = two_hosts();
        let here = writer.open();
        write(&here);
        let there = reader.open();
        assert_eq!(there.pack_ids().unwrap(), here.pack_ids().unwrap());
        assert!(there.writer("test").is_err());
        write(&here);
        there.refresh();
        assert_eq!(there.pack_ids().unwrap().len(), 1, "it has looked a moment ago");
        reader.forget_looks();
        there.refresh();
        assert_eq!(there.pack_ids().unwrap().len(), 2);
        let [first, _] = here.pack_ids().unwrap()[..] else {
            panic!("two packs")
        };
        packs.remove(first).unwrap();
        assert_eq!(there.unread_packs().unwrap(), []);
        assert_eq!(there.pack_ids().unwrap().len(), 1);
        // Where this host writes, nobody else may have removed it.
        assert_eq!(here.unread_packs().unwrap().len(), 1);
        assert_eq!(here.pack_ids().unwrap().len(), 2);
    }

    #[test]
    fn what_the_news_leave_out_is_found_when_everything_is_listed() {
        let (_directory, packs, writer, reader) = two_hosts();
        let there = reader.open();
        reader.elsewhere.tells_news.store(false, Ordering::Relaxed);
        write(&writer.open());
        assert!(!there.adopt_unknown_packs().unwrap());
        assert!(there.surveyor.adopt_all().unwrap());
        assert_eq!(there.pack_ids().unwrap().len(), 1);
        // A pack that nobody has entered, with and without its writer.
        PackWriter::begin(packs.as_ref()).unwrap().close().unwrap();
        assert_eq!(writer.open().unread_packs().unwrap(), []);
        assert_eq!(writer.open().pack_ids().unwrap().len(), 2);
    }

    #[test]
    fn a_prefix_that_was_given_to_another_repository_is_refused() {
        let (_directory, packs, writer, _) = two_hosts();
        let here = writer.open();
        let settings = crate::home::settings::new_settings(Default::default()).unwrap();
        let other = Host {
            elsewhere: Arc::new(Elsewhere {
                packs,
                settings,
                writes: true.into(),
                tells_news: true.into(),
            }),
            ..writer
        };
        drop(here);
        let refused = other.open().unread_packs().unwrap_err().to_string();
        assert!(refused.contains("has the repository"), "{refused}");
    }
}
