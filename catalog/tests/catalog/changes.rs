//! What changed between two moments, by the records that came in between.

use crate::common::{Files, SYSTEM, archive, back_up, boot_test, fixture, segment};
use barmanfs_catalog::{BootOutcome, Change, Changes, Repository, ServerName};
use barmanfs_catalog::{RebuildReport, Silent};

fn some_files() -> Files {
    [("base/1".to_owned(), vec![7; 5000])].into()
}

/// What `work` changes, as another process sees it.
fn changed_by(repository: &Repository, work: impl FnOnce(&Repository)) -> Changes {
    let other = Repository::open(repository.path()).unwrap();
    let before = other.generation().unwrap();
    work(repository);
    let now = other.generation().unwrap();
    other.changes_between(before, now).unwrap()
}

fn only(server: &ServerName, change: Change) -> Changes {
    Changes::Of([(server.clone(), change)].into())
}

#[test]
fn each_change_names_its_server_and_nothing_else() {
    let f = fixture();
    let (repository, main) = (&f.repository, &f.server);
    let other: ServerName = "other".parse().unwrap();
    let nothing = Changes::Of([].into());
    back_up(repository, main, &some_files());

    let wal = changed_by(repository, |repository| {
        let (name, bytes) = segment(7, SYSTEM, 1);
        archive(repository, &other, &name, &bytes).unwrap();
    });
    assert_eq!(wal, only(&other, Change::Wal));
    let made = changed_by(repository, |repository| {
        back_up(repository, &other, &some_files());
    });
    assert_eq!(made.of(&other), Some(Change::Backups));
    assert_eq!(made.of(main), None);
    assert_eq!(changed_by(repository, |_| {}), nothing);

    let backup = repository.backups(&other).unwrap().pop().unwrap();
    let about = changed_by(repository, |repository| {
        repository
            .add_boot_test(&backup, boot_test(1, BootOutcome::Ok))
            .unwrap();
    });
    assert_eq!(about, nothing, "it is in no list of backups");
    let deleted = changed_by(repository, |repository| {
        repository.delete_backup(&backup, true).unwrap();
    });
    assert_eq!(deleted, only(&other, Change::Backups));
}

#[test]
fn after_a_rebuild_everything_may_have_changed() {
    let f = fixture();
    back_up(&f.repository, &f.server, &some_files());
    let before = f.repository.generation().unwrap();
    let RebuildReport { backups, .. } = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(backups, 1);
    let now = f.repository.generation().unwrap();
    assert_eq!(f.repository.changes_between(before, now).unwrap(), Changes::All);
    assert_eq!(
        f.repository.changes_between(now, now).unwrap(),
        Changes::Of([].into())
    );
}
