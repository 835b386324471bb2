//! The results of boot tests stay with the backup, and are removed with it.

use barmanfs_catalog::{BootOutcome, Error, Repository, Silent, SweepOptions};

use crate::common::{Files, back_up, begin, boot_test, fixture, noise, stored};

fn files(seed: u64) -> Files {
    Files::from([("base/1".to_owned(), noise(seed, 300_000))])
}

/// A boot test's kind of record, see FORMAT.md.
const KIND: u8 = 7;

#[test]
fn the_newest_boot_test_counts_in_any_order_of_arrival() {
    let f = fixture();
    let backups = [1, 2].map(|seed| back_up(&f.repository, &f.server, &files(seed)));
    assert_eq!(f.repository.boot_test(&backups[0]).unwrap(), None);
    let (old, new) = (boot_test(1, BootOutcome::Ok), boot_test(2, BootOutcome::Failed));
    for (backup, order) in backups.iter().zip([[&old, &new], [&new, &old]]) {
        for test in order {
            f.repository.add_boot_test(backup, test.clone()).unwrap();
        }
        assert_eq!(f.repository.boot_test(backup).unwrap().as_ref(), Some(&new));
    }
}

#[test]
fn a_test_is_deleted_with_its_backup() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(1));
    let second = back_up(&f.repository, &f.server, &files(2));
    for minute in 1..4 {
        let test = boot_test(minute, BootOutcome::Ok);
        f.repository.add_boot_test(&first, test.clone()).unwrap();
        f.repository.add_boot_test(&second, test).unwrap();
    }
    f.repository.delete_backup(&first, false).unwrap();
    assert_eq!(f.repository.boot_test(&first).unwrap(), None);
    assert!(f.repository.boot_test(&second).unwrap().is_some());
    let gone = f.repository.add_boot_test(&first, boot_test(5, BootOutcome::Ok));
    assert!(matches!(gone, Err(Error::NoSuchBackup { .. })), "{gone:?}");

    // Without the other backup, nothing of any test is left in the repository.
    f.repository.delete_backup(&second, false).unwrap();
    assert_eq!(stored(&f, KIND), 6);
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(stored(&f, KIND), 0);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(f.repository.boot_test(&first).unwrap(), None);
    assert_eq!(f.repository.boot_test(&second).unwrap(), None);
}

#[test]
fn a_backup_that_has_not_ended_cannot_have_been_tested() {
    let f = fixture();
    let _run = begin(&f.repository, &f.server);
    let running = f.repository.backups(&f.server).unwrap().remove(0);
    let refused = f
        .repository
        .add_boot_test(&running, boot_test(1, BootOutcome::Ok));
    assert!(matches!(refused, Err(Error::NoSuchBackup { .. })), "{refused:?}");
}

#[test]
fn one_test_at_a_time_for_each_server() {
    let f = fixture();
    let lock = f.repository.lock_boot_test(&f.server).unwrap();
    let second = f.repository.lock_boot_test(&f.server).unwrap_err();
    assert!(second.to_string().contains("boot test of main"), "{second}");
    f.repository.lock_boot_test(&"other".parse().unwrap()).unwrap();
    drop(lock);
    f.repository.lock_boot_test(&f.server).unwrap();
}

#[test]
fn an_endless_message_is_cut() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(1));
    let mut test = boot_test(1, BootOutcome::Failed);
    test.message = Some("ä".repeat(100_000));
    f.repository.add_boot_test(&backup, test).unwrap();
    let kept = f.repository.boot_test(&backup).unwrap().unwrap().message.unwrap();
    assert!(kept.len() <= 1000 && kept.starts_with("ää"));
}
