//! Tests the order in which a sweep makes things durable.

use std::sync::Arc;

use barmanfs_store::testing::{Call, TestPacks};
use barmanfs_store::{LocalPacks, PackId, PackWriter};

use crate::archive::derive::derive;
use crate::home::PACKS;
use crate::index::repository::{Repository, on_test_packs};
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
