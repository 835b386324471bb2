//! Kills at every step, as far as steps can be distinguished from outside: after each, everything can continue.
//!
//! The state after a kill is built by hand: the files of one moment, assembled from copies taken before and after.

use std::fs;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{BackupStatus, Repository, Silent, SweepOptions, VerifyScope, WalOutcome};

use crate::common::{
    Files, Fixture, SYSTEM, WINDOW, archive, attributes, back_up, begin, finish, fixture, noise, put_files,
    read_wal, restore, segment,
};

fn files(seed: u64) -> Files {
    (0..4)
        .map(|n| (format!("base/{n}"), noise(seed * 10 + n, 200_000)))
        .collect()
}

/// The files of a repository at some moment.
struct Moment {
    path: PathBuf,
}

impl Moment {
    fn of(f: &Fixture, name: &str) -> Self {
        let path = f.directory.path().join(name);
        copy(f.repository.path(), &path);
        Self { path }
    }

    /// The packs of this moment with the catalog of an earlier one: killed before the transaction.
    fn with_catalog_of(&self, earlier: &Self) -> Repository {
        for file in ["catalog.sqlite", "catalog.sqlite-wal"] {
            fs::copy(earlier.path.join(file), self.path.join(file)).unwrap();
        }
        let _ = fs::remove_file(self.path.join("catalog.sqlite-shm"));
        Repository::open(&self.path).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Every command runs again, and everything acknowledged is there.
fn everything_works(repository: &Repository, acknowledged: &[u32]) {
    let server = "main".parse().unwrap();
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let backup = back_up(repository, &server, &files(7));
    repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    repository.delete_backup(&backup, false).unwrap();
    repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    for number in acknowledged {
        let (name, bytes) = segment(*number, SYSTEM, u64::from(*number));
        assert_eq!(read_wal(repository, &server, &name), bytes);
    }
    let (name, bytes) = segment(90, SYSTEM, 90);
    archive(repository, &server, &name, &bytes).unwrap();
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
    Repository::rebuild(repository.path(), &mut Silent).unwrap();
    let rebuilt = Repository::open(repository.path()).unwrap();
    assert_eq!(read_wal(&rebuilt, &server, &name), bytes);
}

fn prepared() -> Fixture {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    back_up(&f.repository, &f.server, &files(1));
    f
}

#[test]
fn archiving_killed_between_pack_and_transaction_loses_nothing() {
    let f = prepared();
    let before = Moment::of(&f, "before");
    let (name, bytes) = segment(2, SYSTEM, 2);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let killed = Moment::of(&f, "killed").with_catalog_of(&before);
    assert!(killed.wal(&f.server).find(&name).unwrap().is_none());
    assert!(matches!(
        archive(&killed, &f.server, &name, &bytes).unwrap(),
        WalOutcome::Stored(_)
    ));
    everything_works(&killed, &[1, 2]);
}

#[test]
fn a_backup_killed_between_its_last_pack_and_its_transaction() {
    let f = prepared();
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(2));
    let before = Moment::of(&f, "before");
    let id = run.id();
    finish(run, 1, 1);
    let killed = Moment::of(&f, "killed");
    copy(
        &before.path.join("running/main.json"),
        &killed.path.join("running/main.json"),
    );
    let killed = killed.with_catalog_of(&before);
    let last = killed.backups(&f.server).unwrap().pop().unwrap();
    assert_eq!((last.id, last.status), (id, BackupStatus::Failed));
    // The next backup marks it as failed; a sweep finds the orphan and corrects that.
    back_up(&killed, &f.server, &files(3));
    killed.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    let listed = killed.backups(&f.server).unwrap();
    let found = listed.iter().find(|backup| backup.id == id).unwrap();
    assert!(found.is_complete(), "{found:?}");
    assert_eq!(restore(&killed, found), files(2));
    // After its deletion, neither of its two records comes back.
    killed.delete_backup(found, false).unwrap();
    Repository::rebuild(killed.path(), &mut Silent).unwrap();
    let rebuilt = Repository::open(killed.path()).unwrap();
    assert!(
        rebuilt
            .backups(&f.server)
            .unwrap()
            .iter()
            .all(|backup| backup.id != id)
    );
    everything_works(&rebuilt, &[1]);
}

#[test]
fn a_backup_killed_after_its_transaction_is_complete() {
    let f = prepared();
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(2));
    let state = fs::read(f.repository.path().join("running/main.json")).unwrap();
    let backup = finish(run, 1, 1);
    fs::write(f.repository.path().join("running/main.json"), state).unwrap();
    let listed = f.repository.backups(&f.server).unwrap();
    assert_eq!(listed.last(), Some(&backup));
    assert_eq!(listed.len(), 2);
    back_up(&f.repository, &f.server, &files(3));
    assert_eq!(f.repository.backups(&f.server).unwrap().len(), 3);
    everything_works(&f.repository, &[1]);
}

#[test]
fn a_deletion_killed_before_its_transaction_holds_once_it_is_found() {
    let f = prepared();
    let before = Moment::of(&f, "before");
    let backup = f.repository.backups(&f.server).unwrap().remove(0);
    f.repository.delete_backup(&backup, false).unwrap();
    let killed = Moment::of(&f, "killed").with_catalog_of(&before);
    assert_eq!(restore(&killed, &backup), files(1), "not acknowledged, not done");
    killed.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert!(killed.backups(&f.server).unwrap().is_empty());
    everything_works(&killed, &[1]);
}

#[test]
fn a_sweep_killed_between_rows_and_file() {
    let f = prepared();
    let backup = f.repository.backups(&f.server).unwrap().remove(0);
    f.repository.delete_backup(&backup, false).unwrap();
    let before = Moment::of(&f, "before");
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    let after = Moment::of(&f, "after");
    // The swept catalog with the packs that were there before.
    let killed = before.with_catalog_of(&after);
    assert!(killed.backups(&f.server).unwrap().is_empty());
    let report = killed.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert!(
        report.adopted_packs > 0 && report.removed_packs >= report.adopted_packs,
        "{report:?}"
    );
    assert!(
        killed.backups(&f.server).unwrap().is_empty(),
        "the deletion still holds"
    );
    everything_works(&killed, &[1]);
}

#[test]
fn a_sweep_killed_after_it_condemned() {
    let f = prepared();
    let backup = f.repository.backups(&f.server).unwrap().remove(0);
    let writer = f.repository.writer("bystander").unwrap();
    f.repository.delete_backup(&backup, false).unwrap();
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    let killed = Moment::of(&f, "killed");
    drop(writer);
    // In the copy the writer's lock is free: it was killed together with the sweep.
    let killed = Repository::open(&killed.path).unwrap();
    let report = killed.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert!(
        report.removed_packs > 0 && report.waiting_packs == 0,
        "{report:?}"
    );
    everything_works(&killed, &[1]);
}

/// A delta of a killed backup stays in a pack of which something else is used, and its base goes. Then the same content is
/// stored once more, as a delta against another base: that copy is the one that is needed.
#[test]
fn a_delta_that_has_lost_its_base_is_not_kept_instead_of_a_good_one() {
    let f = fixture();
    let window = WINDOW as usize;
    let base = noise(1, window);
    let (mut changed, mut other) = (base.clone(), base.clone());
    changed[..4096].copy_from_slice(&noise(2, 4096));
    other[..4096].copy_from_slice(&noise(3, 4096));
    let large = noise(4, 8 * window);
    let of = |path: &str, bytes: &[u8]| Files::from([(path.to_owned(), bytes.to_vec())]);
    let first = back_up(&f.repository, &f.server, &of("base/1", &base));

    let mut killed = begin(&f.repository, &f.server);
    put_files(&killed, &of("base/1", &changed));
    put_files(&killed, &of("base/2", &large));
    // All its packs are durable, and its record is not.
    killed.end_tree(attributes()).unwrap();
    drop(killed);

    let second = back_up(&f.repository, &f.server, &of("base/2", &large));
    f.repository.delete_backup(&first, true).unwrap();
    let sweep = || {
        let report = f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
        assert_eq!(
            (report.missing_chunks, &report.problems),
            (0, &Vec::new()),
            "{report:?}"
        );
    };
    sweep();
    let third = back_up(&f.repository, &f.server, &of("base/1", &other));
    let fourth = back_up(&f.repository, &f.server, &of("base/1", &changed));
    assert!(
        fourth.new_stored_bytes < WINDOW.into(),
        "it is no delta: {fourth:?}"
    );
    f.repository.delete_backup(&third, true).unwrap();
    sweep();
    sweep();
    assert_eq!(restore(&f.repository, &fourth), of("base/1", &changed));
    assert_eq!(restore(&f.repository, &second), of("base/2", &large));
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let rebuilt = Repository::open(f.repository.path()).unwrap();
    let report = rebuilt.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
}
