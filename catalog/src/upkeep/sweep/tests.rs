//! Tests the order in which a sweep makes things durable.

use std::sync::Arc;

use barmanfs_store::testing::{Call, TestPacks};
use barmanfs_store::{LocalPacks, PackId, PackWriter};

use crate::archive::derive::derive;
use crate::home::PACKS;
use crate::index::repository::{Repository, on_test_packs};
use crate::index::unread::ENTRY;
use crate::monitor::Silent;
use crate::upkeep::sweep::SweepOptions;

struct Orphans {
    _directory: tempfile::TempDir,
    repository: Repository,
    storage: Arc<TestPacks<LocalPacks>>,
    packs: [PackId; 2],
}

/// A repository with two packs that are not in the catalog and that nothing needs.
fn orphans() -> Orphans {
    let (directory, storage, repository) = on_test_packs(derive);
    // Written past the recorder.
    let packs = LocalPacks::open(&repository.path().join(PACKS)).unwrap();
    let packs = [(); 2].map(|()| PackWriter::begin(&packs).unwrap().close().unwrap().id);
    Orphans {
        _directory: directory,
        repository,
        storage,
        packs,
    }
}

#[test]
fn a_pack_is_durable_before_it_is_entered() {
    let orphans = orphans();
    orphans
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    let calls = orphans.storage.calls();
    for orphan in orphans.packs {
        let read = calls.iter().position(|call| *call == Call::Bytes(orphan));
        let settled = calls.iter().position(|call| *call == Call::Settle(vec![orphan]));
        assert!(settled.is_some() && settled < read, "{calls:?}");
    }
}

#[test]
fn removed_packs_are_gone_for_good_before_the_sweep_goes_on() {
    let orphans = orphans();
    let report = orphans
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    assert_eq!(report.removed_packs, 2);
    let calls = orphans.storage.calls();
    let last = &calls[calls.len().saturating_sub(1)..];
    assert!(
        matches!(last, [Call::Settle(packs)] if orphans.packs.iter().all(|orphan| packs.contains(orphan))),
        "{calls:?}"
    );
}

/// What a failed look-up of another process does.
fn survey(repository: &Repository) {
    let unread = repository.unread_packs().unwrap();
    assert!(unread.is_empty(), "{unread:?}");
}

/// A survey has read the footer of a pack that nobody has entered; then a sweep, which is never kept waiting for long, enters the
/// pack itself, finds it dead and removes it. The survey must not enter what is gone.
#[test]
fn a_survey_does_not_enter_a_pack_that_goes_meanwhile() {
    let orphans = orphans();
    let path = orphans.repository.path().to_path_buf();
    let [_, late] = orphans.packs;
    orphans.storage.before_each(move |call| {
        let others = Repository::open(&path).unwrap();
        // A sweep would wait for the lock.
        if *call == Call::Settle(vec![late]) && !others.locks.is_held(ENTRY).unwrap() {
            others.sweep(&SweepOptions::default(), &mut Silent).unwrap();
        }
        Ok(())
    });
    survey(&orphans.repository);
    orphans.storage.let_all_pass();
    survey(&orphans.repository);
    orphans
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    survey(&orphans.repository);
    assert!(orphans.repository.pack_ids().unwrap().is_empty());
}

/// Between the deletion of a pack's rows and that of its file, nobody can enter the pack again.
#[test]
fn a_pack_goes_under_the_lock_of_surveys() {
    let orphans = orphans();
    let path = orphans.repository.path().to_path_buf();
    orphans.storage.before_each(move |call| {
        if let Call::Remove(pack) = call {
            let others = Repository::open(&path).unwrap();
            assert!(!others.knows_pack(*pack).unwrap());
            assert!(others.locks.is_held(ENTRY).unwrap());
        }
        Ok(())
    });
    let report = orphans
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    assert_eq!(report.removed_packs, 2);
}
