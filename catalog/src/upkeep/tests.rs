//! A storage that fails, in one call after the other: what was acknowledged reads back, nothing half-done is
//! in the way, and the next try succeeds.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use barmanfs_pg::wal_name::WalName;
use barmanfs_store::testing::{Call, TestPacks};
use barmanfs_store::{Error as StoreError, LocalPacks};

use crate::archive::derive::derive;
use crate::error::Result;
use crate::index::repository::{Repository, on_test_packs};
use crate::monitor::Silent;
use crate::names::ServerName;
use crate::upkeep::sweep::SweepOptions;
use crate::upkeep::verify::VerifyScope;

/// A repository whose storage fails on request, and what it has acknowledged.
struct World {
    directory: tempfile::TempDir,
    storage: Arc<TestPacks<LocalPacks>>,
    repository: Repository,
    server: ServerName,
    acknowledged: BTreeMap<WalName, Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let (directory, storage, repository) = on_test_packs(derive);
        Self {
            directory,
            storage,
            repository,
            server: "main".parse().unwrap(),
            acknowledged: BTreeMap::new(),
        }
    }

    /// Fails one of the calls of this kind, the others pass.
    fn fail(&self, nth: usize, kind: fn(&Call) -> bool) -> Arc<AtomicUsize> {
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        self.storage.before_each(move |call| {
            if kind(call) && counter.fetch_add(1, Ordering::SeqCst) == nth {
                return Err(StoreError::io(
                    "reach",
                    Path::new("packs"),
                    io::ErrorKind::TimedOut.into(),
                ));
            }
            Ok(())
        });
        seen
    }

    fn archive(&mut self, number: u32) -> Result<()> {
        let name: WalName = format!("{number:08X}.history").parse().unwrap();
        let bytes = format!("1\t0/3000000\treason {number}\n").into_bytes();
        let writer = self.repository.writer("test")?;
        writer.archive_wal(&self.server, &name, &mut &*bytes, bytes.len() as u64, "test")?;
        self.acknowledged.insert(name, bytes);
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        self.repository
            .sweep(&SweepOptions::default(), &mut Silent)
            .map(drop)
    }

    /// Everything that uses the storage, in the order of a day. Each may fail.
    fn day(&mut self) -> Vec<Result<()>> {
        let mut done = vec![self.archive(2), self.archive(3)];
        // An orphan, as a killed writer leaves it.
        let orphan =
            barmanfs_store::PackWriter::begin(&*self.storage).and_then(barmanfs_store::PackWriter::close);
        done.push(orphan.map(drop).map_err(Into::into));
        done.push(self.sweep());
        done.push(self.repository.unread_packs().map(drop));
        done.push(self.archive(4));
        done.push(self.repository.verify(&VerifyScope::All, &mut Silent).map(drop));
        done.push(self.sweep());
        done
    }

    fn assert_all_is_well(&mut self) {
        self.storage.let_all_pass();
        for (name, bytes) in &self.acknowledged {
            let file = self.repository.wal(&self.server).find(name).unwrap();
            let mut read = Vec::new();
            let mut content = self
                .repository
                .trees()
                .reader(file.expect("it was acknowledged").map);
            io::Read::read_to_end(&mut content, &mut read).unwrap();
            assert_eq!(read, *bytes, "{name}");
        }
        for result in self.day() {
            result.unwrap();
        }
        let verified = self.repository.verify(&VerifyScope::All, &mut Silent).unwrap();
        assert!(verified.damages.is_empty(), "{verified:?}");
        assert!(self.repository.unread_packs().unwrap().is_empty());
        let path = self.directory.path().join("repository");
        let rebuilt = Repository::rebuild(&path, &mut Silent).unwrap();
        assert!(rebuilt.is_complete(), "{rebuilt:?}");
        assert_eq!(rebuilt.wal_files, self.acknowledged.len() as u64);
    }
}

/// So many calls fail, one in each run: the first, the last and those evenly between them. All would take minutes, as the
/// packs are listed in 257 parts.
const FAILURES: usize = 16;

/// Fails calls of this kind, one in each run.
fn fail_each(kind: fn(&Call) -> bool) {
    let mut world = World::new();
    let seen = world.fail(usize::MAX, kind);
    world.day().into_iter().for_each(|result| result.unwrap());
    let calls = seen.load(Ordering::SeqCst);
    assert!(calls > 0, "There is no such call");
    let last = FAILURES.min(calls) - 1;
    for nth in (0..=last).map(|step| step * (calls - 1) / last.max(1)) {
        let mut world = World::new();
        let seen = world.fail(nth, kind);
        // The error may be handled, or not.
        drop(world.day());
        assert!(
            seen.load(Ordering::SeqCst) > nth,
            "Call {nth} of {calls} never came"
        );
        world.assert_all_is_well();
    }
}

#[test]
fn a_storage_that_fails_to_write_costs_nothing() {
    fail_each(|call| matches!(call, Call::Begin | Call::Write(_) | Call::Finish(_)));
}

#[test]
fn a_storage_that_fails_to_read_costs_nothing() {
    fail_each(|call| matches!(call, Call::Read(_) | Call::Bytes(_) | Call::List));
}

#[test]
fn a_storage_that_fails_to_remove_costs_nothing() {
    fail_each(|call| matches!(call, Call::Remove(_) | Call::Settle(_) | Call::RemoveAbandoned));
}
