//! What a rebuild gave up is known to be lost: backups that need it do not count, the next backup stores it again, and
//! sweeps go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::common::{Files, Fixture, back_up, fixture, noise, restore};
use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{
    Backup, BackupId, BackupsOf, Error, KnownLoss, Monitor, RebuildReport, Repository, Silent, SweepOptions,
    VerifyScope,
};

const ADDED: &str = "base/added";

fn files(generation: u8) -> Files {
    let mut changing = noise(3, 100_000);
    changing[7] ^= generation;
    let mut files: Files = [
        ("base/large".to_owned(), noise(1, 2 << 20)),
        ("base/changing".to_owned(), changing),
    ]
    .into();
    if generation > 0 {
        files.insert(ADDED.to_owned(), noise(9, 3 << 20));
    }
    files
}

fn packs(f: &Fixture) -> Vec<PathBuf> {
    let parts = fs::read_dir(f.repository.path().join("packs")).unwrap();
    let mut packs: Vec<PathBuf> = parts
        .flat_map(|part| fs::read_dir(part.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    packs.sort();
    packs
}

/// The largest pack that `work` adds.
fn pack_made_by<T>(f: &Fixture, work: impl FnOnce() -> T) -> (PathBuf, T) {
    let before = packs(f);
    let result = work();
    let mut made = packs(f);
    made.retain(|pack| !before.contains(pack));
    made.sort_by_key(|pack| pack.metadata().unwrap().len());
    (made.pop().unwrap(), result)
}

fn rebuild(f: &Fixture) -> RebuildReport {
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap()
}

/// The repository as another process sees it.
fn reopened(f: &Fixture) -> Repository {
    Repository::open(f.repository.path()).unwrap()
}

fn damaged(f: &Fixture) -> Vec<BackupId> {
    let repository = reopened(f);
    let backups = repository.backups(&f.server).unwrap();
    repository
        .damaged_backups(&backups)
        .unwrap()
        .into_iter()
        .collect()
}

fn ids(backups: &[&Backup]) -> Vec<BackupId> {
    backups.iter().map(|backup| backup.id).collect()
}

fn sweep(f: &Fixture) -> barmanfs_catalog::SweepReport {
    reopened(f).sweep(&SweepOptions::default(), &mut Silent).unwrap()
}

fn assert_whole(f: &Fixture, backups: &[(&Backup, u8)]) {
    let repository = reopened(f);
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
    for (backup, generation) in backups {
        assert_eq!(restore(&repository, backup), files(*generation));
    }
    assert_eq!(damaged(f), []);
}

/// Three backups; what the second added is in a pack that is lost, with its listings; its record is in another.
fn lost(f: &Fixture) -> [Backup; 3] {
    let first = back_up(&f.repository, &f.server, &files(0));
    let (pack, second) = pack_made_by(f, || back_up(&f.repository, &f.server, &files(1)));
    let third = back_up(&f.repository, &f.server, &files(1));
    fs::remove_file(&pack).unwrap();
    [first, second, third]
}

#[test]
fn what_a_rebuild_gives_up_is_known_to_be_lost_with_and_without_the_old_catalog() {
    for with_catalog in [true, false] {
        let f = fixture();
        let [_, second, third] = lost(&f);
        if !with_catalog {
            remove_catalog(f.repository.path());
        }
        let report = rebuild(&f);
        assert_eq!(report.missing.len(), usize::from(with_catalog), "{report:?}");
        assert!(!report.is_complete() && report.lost_chunks > 0, "{report:?}");
        let of_main = BackupsOf {
            server: "main".to_owned(),
            backups: [&second, &third].map(|backup| backup.id.to_string()).into(),
        };
        assert_eq!(report.damaged_backups, [of_main]);
        assert_eq!(damaged(&f), ids(&[&second, &third]));
        // A second rebuild finds the same, and writes nothing.
        let before = packs(&f);
        assert_eq!(rebuild(&f).damaged_backups, report.damaged_backups);
        assert_eq!(packs(&f), before);
        assert_eq!(damaged(&f), ids(&[&second, &third]));
    }
}

fn remove_catalog(path: &Path) {
    for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _there_or_not = fs::remove_file(path.join(file));
    }
}

#[test]
fn the_next_backup_stores_again_what_was_given_up_and_mends_the_others() {
    let f = fixture();
    let [first, second, third] = lost(&f);
    rebuild(&f);
    let fourth = back_up(&reopened(&f), &f.server, &files(1));
    assert_whole(&f, &[(&first, 0), (&second, 1), (&third, 1), (&fourth, 1)]);
    let swept = sweep(&f);
    assert_eq!((swept.missing_chunks, swept.problems.len()), (0, 0), "{swept:?}");
    assert_eq!(reopened(&f).known_loss().unwrap(), KnownLoss::default());
    assert!(rebuild(&f).is_complete());
    assert_whole(&f, &[(&first, 0), (&second, 1), (&third, 1), (&fourth, 1)]);
}

#[test]
fn a_pack_that_comes_back_brings_back_what_was_lost() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let (pack, second) = pack_made_by(&f, || back_up(&f.repository, &f.server, &files(1)));
    let third = back_up(&f.repository, &f.server, &files(1));
    let aside = f.directory.path().join("aside");
    fs::rename(&pack, &aside).unwrap();
    rebuild(&f);
    assert_eq!(damaged(&f), ids(&[&second, &third]));
    fs::rename(&aside, &pack).unwrap();
    assert_eq!(reopened(&f).unread_packs().unwrap(), []);
    assert_whole(&f, &[(&first, 0), (&second, 1), (&third, 1)]);
    assert!(rebuild(&f).is_complete());
}

#[test]
fn a_delta_without_its_base_is_lost_and_stored_again() {
    let f = fixture();
    let (pack, first) = pack_made_by(&f, || back_up(&f.repository, &f.server, &files(1)));
    let second = back_up(&f.repository, &f.server, &files(2));
    fs::remove_file(&pack).unwrap();
    let report = rebuild(&f);
    assert_eq!(damaged(&f), ids(&[&first, &second]), "{report:?}");
    let third = back_up(&reopened(&f), &f.server, &files(2));
    reopened(&f).delete_backup(&first, false).unwrap();
    assert_whole(&f, &[(&second, 2), (&third, 2)]);
    sweep(&f);
    assert_whole(&f, &[(&second, 2), (&third, 2)]);
}

#[test]
fn when_nothing_needs_a_lost_chunk_it_is_forgotten() {
    let f = fixture();
    let [first, second, third] = lost(&f);
    rebuild(&f);
    assert!(reopened(&f).known_loss().unwrap().in_no_pack > 0);
    let refused = reopened(&f)
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap_err();
    assert!(refused.to_string().contains("delete"), "{refused}");
    reopened(&f).delete_backup(&second, false).unwrap();
    reopened(&f).delete_backup(&third, false).unwrap();
    sweep(&f);
    assert_eq!(reopened(&f).known_loss().unwrap(), KnownLoss::default());
    assert!(rebuild(&f).is_complete());
    assert_whole(&f, &[(&first, 0)]);
    let next = back_up(&reopened(&f), &f.server, &files(1));
    assert_whole(&f, &[(&first, 0), (&next, 1)]);
}

/// A rebuild that is killed before it has looked for what is lost leaves a mark in the catalog.
#[test]
fn a_killed_rebuild_hides_nothing() {
    for verified in [true, false] {
        let f = fixture();
        let [first, second, third] = lost(&f);
        rebuild(&f);
        let catalog = f.repository.path().join("catalog.sqlite");
        let db = rusqlite::Connection::open(&catalog).unwrap();
        db.execute_batch(
            "DELETE FROM damaged;
             INSERT INTO damaged (id, pack, record) VALUES (zeroblob(32), zeroblob(16), 0);",
        )
        .unwrap();
        drop(db);
        assert_nothing_is_deleted(&f, &first);
        if verified {
            let repository = reopened(&f);
            let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
            assert!(!report.is_clean());
            repository.note_damage(&report).unwrap();
        } else {
            reopened(&f)
                .sweep(&SweepOptions::default(), &mut Silent)
                .unwrap_err();
        }
        assert_eq!(damaged(&f), ids(&[&second, &third]));
        let plan = reopened(&f)
            .retention(&f.server, &newest_only(), SystemTime::now().into())
            .unwrap();
        assert_eq!(plan.blocked, None);
        reopened(&f).refuse_deletion(&first, false).unwrap();
        let fourth = back_up(&reopened(&f), &f.server, &files(1));
        assert_whole(&f, &[(&first, 0), (&fourth, 1)]);
    }
}

/// Takes the catalog away when the rebuild begins to look for what is lost.
struct TakenAway<'a>(&'a Path);

impl Monitor for TakenAway<'_> {
    fn stage(&mut self, stage: &str) {
        if stage == "Finding what is missing" {
            fs::rename(self.0.join("catalog.sqlite"), self.0.join("away")).unwrap();
        }
    }
}

#[test]
fn a_rebuild_that_could_not_look_says_so_and_lets_nothing_be_deleted() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    back_up(&f.repository, &f.server, &files(1));
    let path = f.repository.path();
    let report = Repository::rebuild(path, &mut TakenAway(path)).unwrap();
    assert!(
        report.not_examined.is_some() && !report.is_complete(),
        "{report:?}"
    );
    assert!(report.kept_catalog.is_some());
    fs::rename(path.join("away"), path.join("catalog.sqlite")).unwrap();
    assert_nothing_is_deleted(&f, &first);
    assert!(rebuild(&f).is_complete());
    reopened(&f).delete_backup(&first, false).unwrap();
}

fn newest_only() -> RetentionRules {
    RetentionRules {
        backups: Some("REDUNDANCY 1".parse().unwrap()),
        ..RetentionRules::default()
    }
}

/// Nobody knows yet that the first backup is the only good one.
fn assert_nothing_is_deleted(f: &Fixture, first: &Backup) {
    let (repository, now) = (reopened(f), SystemTime::now().into());
    let plan = repository.retention(&f.server, &newest_only(), now).unwrap();
    assert!(plan.blocked.is_some_and(|why| why.contains("barmanfs verify")));
    let done = repository
        .enforce_retention(&f.server, &newest_only(), now)
        .unwrap();
    assert_eq!(done.deleted, []);
    let refused = repository.delete_backup(first, false).unwrap_err();
    assert!(matches!(refused, Error::Unexamined { .. }), "{refused}");
    repository.refuse_deletion(first, true).unwrap();
}

#[test]
fn a_rebuild_names_the_backups_whose_records_are_gone() {
    let f = fixture();
    let before = packs(&f);
    let first = back_up(&f.repository, &f.server, &files(0));
    for pack in packs(&f) {
        if !before.contains(&pack) {
            fs::remove_file(pack).unwrap();
        }
    }
    let report = Repository::rebuild_with(f.repository.path(), true, &mut Silent).unwrap();
    let gone: Vec<_> = report.gone_backups.iter().flat_map(|of| &of.backups).collect();
    assert_eq!(gone, [&first.id.to_string()]);
    assert!(!report.is_complete());
}
