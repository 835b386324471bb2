//! A node takes over what a primary has of a server, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{
    Backup, BackupId, BackupStatus, BootOutcome, CreateOptions, Error, Import, KeepTarget, Repository,
    ServerName, Silent, SweepOptions, SyncOptions, SyncReport, SyncSource, SyncedBackups, VerifyScope,
};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::testing::{Call, TestPacks};
use barmanfs_store::{LocalPacks, Node, PackId, PackStorage, PackWriter, Record, RecordId, read_footer};

use crate::common::{
    Files, Fixture, SYSTEM, archive, begin, boot_test, finish, fixture, new_backup, noise, put_files,
    read_wal, restore, segment, stored,
};

/// Kinds of records, see FORMAT.md.
const DELETION: u8 = 3;
const WAL: u8 = 2;

/// A primary and a node that follows it.
pub(crate) struct Sites {
    pub(crate) primary: Fixture,
    pub(crate) node: Repository,
}

impl Sites {
    pub(crate) fn new() -> Self {
        let primary = fixture();
        let path = primary.directory.path().join("node");
        let node = Repository::create(&path, CreateOptions::default()).unwrap();
        Self { primary, node }
    }

    pub(crate) fn server(&self) -> &ServerName {
        &self.primary.server
    }

    pub(crate) fn packs(&self) -> LocalPacks {
        LocalPacks::open(&self.primary.repository.path().join("packs")).unwrap()
    }

    fn sync_by(
        &self,
        packs: Arc<dyn PackStorage>,
        options: &SyncOptions,
    ) -> barmanfs_catalog::Result<SyncReport> {
        let id = self.primary.repository.settings().id.clone();
        let source = SyncSource { id: &id, packs };
        self.node.sync_from(self.server(), &source, options, &mut Silent)
    }

    pub(crate) fn sync_with(&self, options: &SyncOptions) -> SyncReport {
        self.sync_by(Arc::new(self.packs()), options).unwrap()
    }

    pub(crate) fn sync(&self) -> SyncReport {
        self.sync_with(&everything())
    }

    /// A backup of the primary that needs this segment, and the segment.
    pub(crate) fn back_up(&self, number: u32, files: &Files) -> Backup {
        let primary = &self.primary;
        let (name, bytes) = segment(number, SYSTEM, number.into());
        archive(&primary.repository, &primary.server, &name, &bytes).unwrap();
        let run = begin(&primary.repository, &primary.server);
        put_files(&run, files);
        finish(run, number.into(), number.into())
    }

    /// The pack with the beginning of a backup's first file.
    pub(crate) fn pack_of(&self, backup: &Backup) -> PackId {
        let (packs, trees) = (self.packs(), self.primary.repository.trees());
        let root = &backup.root.as_ref().unwrap().directory;
        let Node::File(map) = trees.find(root, b"base/1").unwrap().unwrap().node else {
            panic!("base/1 is a file");
        };
        let chunk = trees.window(&map, 0).unwrap().chunk.unwrap();
        let mut found = None;
        packs
            .list(&mut |pack| {
                let footer = read_footer(&packs, pack)?;
                if footer.chunks.iter().any(|packed| packed.id == chunk) {
                    found = Some(pack);
                }
                Ok(())
            })
            .unwrap();
        found.unwrap()
    }

    /// The node has what the primary has, and all of it can be read.
    fn assert_equal(&self) {
        let of = |repository: &Repository| {
            let backups = repository.backups(self.server()).unwrap();
            let files: Vec<Files> = backups.iter().map(|backup| restore(repository, backup)).collect();
            let ids: Vec<_> = backups.iter().map(|backup| (backup.id, backup.status)).collect();
            (ids, files)
        };
        assert_eq!(of(&self.node), of(&self.primary.repository));
        let names = |repository: &Repository| -> Vec<WalName> {
            let entries = repository.wal(self.server()).entries();
            entries.map(|entry| entry.unwrap().name).collect()
        };
        assert_eq!(names(&self.node), names(&self.primary.repository));
        for name in names(&self.node) {
            let there = read_wal(&self.primary.repository, self.server(), &name);
            assert_eq!(read_wal(&self.node, self.server(), &name), there);
        }
        self.assert_sound();
    }

    /// When the primary had no WAL that is not here.
    fn current_at(&self) -> Option<TimestampMicros> {
        self.node.sync_memory(self.server()).unwrap().current_at
    }

    pub(crate) fn assert_sound(&self) {
        let report = self.node.verify(&VerifyScope::All, &mut Silent).unwrap();
        assert!(report.damages.is_empty(), "{report:?}");
    }

    pub(crate) fn node_ids(&self) -> Vec<String> {
        let backups = self.node.backups(self.server()).unwrap();
        backups.iter().map(|backup| backup.id.to_string()).collect()
    }

    fn sweep_primary(&self) {
        for _ in 0..2 {
            let primary = &self.primary.repository;
            primary.sweep(&SweepOptions::default(), &mut Silent).unwrap();
        }
    }
}

pub(crate) fn everything() -> SyncOptions {
    SyncOptions {
        rules: RetentionRules::default(),
        deletions: false,
        backups: SyncedBackups::All,
        wal: true,
    }
}

pub(crate) fn files(seed: u64) -> Files {
    Files::from([
        ("base/1".to_owned(), noise(seed, 700_000)),
        ("base/2".to_owned(), noise(7, 300_000)),
        ("PG_VERSION".to_owned(), b"15\n".to_vec()),
    ])
}

/// The same with some changed bytes: deltas against the backup before.
fn changed(files: &Files, at: usize) -> Files {
    let mut files = files.clone();
    files.get_mut("base/1").unwrap()[at] ^= 1;
    files
}

#[test]
fn the_node_has_what_the_primary_has_and_a_second_sync_reads_nothing() {
    let sites = Sites::new();
    let first = files(1);
    sites.back_up(1, &first);
    sites.back_up(2, &changed(&first, 1000));
    let other: ServerName = "other".parse().unwrap();
    let (name, bytes) = segment(9, SYSTEM, 9);
    archive(&sites.primary.repository, &other, &name, &bytes).unwrap();
    let report = sites.sync();
    assert_eq!((report.backups.len(), report.wal_files), (2, 2), "{report:?}");
    assert!(report.problems.is_empty(), "{report:?}");
    sites.assert_equal();
    // The newest one comes first, with the bases of its deltas.
    assert!(report.backups[0] > report.backups[1]);
    // Only the server that was asked for comes.
    assert_eq!(sites.node.servers().unwrap(), [sites.server().clone()]);

    let again = sites.sync();
    assert_eq!(
        (again.copied_bytes, again.wal_files, again.new_packs),
        (0, 0, 0),
        "{again:?}"
    );
    // What changes little costs little.
    sites.back_up(3, &changed(&first, 5000));
    let third = sites.sync();
    assert_eq!((third.backups.len(), third.wal_files), (1, 1));
    assert!(third.copied_bytes < report.copied_bytes, "{third:?} {report:?}");
    sites.assert_equal();

    // The catalog of the node can be made again, as any can, and a lost cache costs no copies.
    Repository::rebuild(sites.node.path(), &mut Silent).unwrap();
    std::fs::remove_dir_all(sites.node.path().join("sync")).unwrap();
    let again = sites.sync();
    assert_eq!((again.copied_bytes, again.wal_files), (0, 0), "{again:?}");
    sites.assert_equal();
}

#[test]
fn deletions_travel_only_where_they_are_asked_for() {
    let sites = Sites::new();
    let backups = [1, 2, 3].map(|number| sites.back_up(number, &files(number.into())));
    sites.sync();
    sites
        .node
        .keep_backup(
            &sites.node.backups(sites.server()).unwrap()[1],
            KeepTarget::Full,
            None,
            None,
        )
        .unwrap();
    for backup in &backups[..2] {
        sites.primary.repository.delete_backup(backup, false).unwrap();
    }
    let report = sites.sync();
    assert!(report.deleted.is_empty(), "{report:?}");
    assert_eq!(sites.node_ids().len(), 3);
    let followed = SyncOptions {
        deletions: true,
        ..everything()
    };
    let report = sites.sync_with(&followed);
    assert_eq!(report.deleted, [backups[0].id]);
    assert!(
        report.notes.iter().any(|note| note.contains("stays here")),
        "{report:?}"
    );
    let left = [backups[1].id.to_string(), backups[2].id.to_string()];
    assert_eq!(sites.node_ids(), left);

    // What is not there is not deleted: a primary whose disk is not mounted has nothing.
    std::fs::rename(
        sites.primary.repository.path().join("packs"),
        sites.primary.repository.path().join("away"),
    )
    .unwrap();
    std::fs::create_dir(sites.primary.repository.path().join("packs")).unwrap();
    let current = sites.current_at();
    let report = sites.sync_with(&followed);
    assert!(report.deleted.is_empty(), "{report:?}");
    assert_eq!(sites.node_ids(), left);
    // It is not well either.
    assert!(report.problems[0].contains("has nothing of server"), "{report:?}");
    assert!(current.is_some());
    assert_eq!(sites.current_at(), current);
}

#[test]
fn a_deletion_is_followed_only_when_what_comes_after_it_is_here() {
    let sites = Sites::new();
    let old = sites.back_up(1, &files(1));
    let followed = SyncOptions {
        deletions: true,
        ..everything()
    };
    sites.sync_with(&followed);
    let new = sites.back_up(2, &files(2));
    sites.primary.repository.delete_backup(&old, false).unwrap();
    let pack = sites.pack_of(&new).to_string();
    let packs = sites.primary.repository.path().join("packs");
    let path = packs.join(&pack[..2]).join(&pack);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let stays = |options: &SyncOptions, why: &str| {
        let report = sites.sync_with(options);
        assert!(report.deleted.is_empty(), "{report:?}");
        assert!(sites.node_ids().contains(&old.id.to_string()));
        assert!(report.notes.iter().any(|note| note.contains(why)), "{report:?}");
    };
    stays(&followed, "Not everything was taken");
    std::fs::write(&path, &good).unwrap();
    // A part says nothing about the rest.
    let only_wal = SyncOptions {
        backups: SyncedBackups::Nothing,
        ..followed.clone()
    };
    assert!(sites.sync_with(&only_wal).deleted.is_empty());
    let held = |minimum_redundancy, held| SyncOptions {
        rules: RetentionRules {
            minimum_redundancy,
            held,
            ..RetentionRules::default()
        },
        ..followed.clone()
    };
    stays(&held(0, Some("no configuration".to_owned())), "no configuration");
    stays(&held(2, None), "1 good backups are left");
    let here = sites.node.backups(sites.server()).unwrap();
    let failed = boot_test(1, BootOutcome::Failed);
    sites.node.add_boot_test(&here[1], failed).unwrap();
    stays(&followed, "0 good backups are left");
    sites
        .node
        .add_boot_test(&here[1], boot_test(2, BootOutcome::Ok))
        .unwrap();
    assert_eq!(sites.sync_with(&followed).deleted, [old.id]);
    sites.assert_sound();
}

#[test]
fn wal_is_removed_after_the_primary_only_when_it_is_certain_that_nothing_needs_it() {
    let sites = Sites::new();
    let [_, second, third] = [1, 2, 3].map(|number| sites.back_up(number, &files(number.into())));
    let followed = SyncOptions {
        deletions: true,
        ..everything()
    };
    sites.sync_with(&followed);
    let newest = |count: u32| RetentionRules {
        backups: Some(format!("REDUNDANCY {count}").parse().unwrap()),
        ..RetentionRules::default()
    };
    let at = std::time::SystemTime::now().into();
    let enforce = |count| {
        let primary = &sites.primary.repository;
        primary
            .enforce_retention(sites.server(), &newest(count), at)
            .unwrap()
    };
    assert_eq!(enforce(2).wal.len(), 1);
    let run = begin(&sites.node, sites.server());
    let report = sites.sync_with(&followed);
    assert_eq!(
        (report.deleted.len(), report.removed_wal_ranges),
        (1, 0),
        "{report:?}"
    );
    assert!(report.notes[0].contains("is running"), "{report:?}");
    drop(run);
    let report = sites.sync_with(&followed);
    assert_eq!(report.removed_wal_ranges, 1, "{report:?}");

    // Of a record that cannot be read, nobody knows what it needs.
    let storage = LocalPacks::open(&sites.node.path().join("packs")).unwrap();
    let mut pack = PackWriter::begin(&storage).unwrap();
    pack.record(Record {
        id: RecordId::random().unwrap(),
        kind: 200,
        payload: b"{}".to_vec(),
    })
    .unwrap();
    pack.close().unwrap();
    assert_eq!(enforce(1).deleted, [second.id]);
    let report = sites.sync_with(&followed);
    assert_eq!(
        (report.deleted.len(), report.removed_wal_ranges),
        (0, 0),
        "{report:?}"
    );
    assert!(report.notes[0].contains("of a later release"), "{report:?}");
    assert!(sites.node_ids().contains(&third.id.to_string()));
}

#[test]
fn wal_that_was_not_wanted_comes_when_it_is() {
    let newest = |count: u32| SyncOptions {
        rules: RetentionRules {
            backups: Some(format!("REDUNDANCY {count}").parse().unwrap()),
            ..RetentionRules::default()
        },
        ..everything()
    };
    let are_done = |sites: &Sites| {
        let backups = sites.node.backups(sites.server()).unwrap();
        backups.iter().all(|backup| backup.status == BackupStatus::Done)
    };
    // The newest one becomes doubtful, or is deleted here.
    for is_deleted in [false, true] {
        let sites = Sites::new();
        let backups = [1, 2].map(|number| sites.back_up(number, &files(number.into())));
        assert_eq!(sites.sync_with(&newest(1)).wal_files, 1);
        let here = sites.node.backups(sites.server()).unwrap();
        match is_deleted {
            true => sites.node.delete_backup(&here[0], false).unwrap(),
            false => sites
                .node
                .add_boot_test(&here[0], boot_test(1, BootOutcome::Failed))
                .unwrap(),
        }
        let report = sites.sync_with(&newest(1));
        assert_eq!(report.backups, [backups[0].id]);
        assert_eq!(report.wal_files, 1, "{report:?}");
        assert!(are_done(&sites));
    }
    // Somebody asks for one that the policy would not take: of the WAL, only what it needs comes.
    let sites = Sites::new();
    let backups = [1, 2, 3].map(|number| sites.back_up(number, &files(number.into())));
    assert_eq!(sites.sync_with(&newest(1)).wal_files, 1);
    let only = SyncOptions {
        backups: SyncedBackups::Only(backups[0].id),
        wal: false,
        ..newest(1)
    };
    assert_eq!(sites.sync_with(&only).backups, [backups[0].id]);
    assert!(!are_done(&sites));
    for files in [1, 0] {
        let report = sites.sync_with(&newest(1));
        assert_eq!(report.wal_files, files, "{report:?}");
        assert!(are_done(&sites));
    }
}

#[test]
fn what_was_deleted_here_or_is_obsolete_is_not_fetched() {
    let sites = Sites::new();
    let backups = [1, 2, 3].map(|number| sites.back_up(number, &files(number.into())));
    let newest_two = SyncOptions {
        rules: RetentionRules {
            backups: Some("REDUNDANCY 2".parse().unwrap()),
            ..RetentionRules::default()
        },
        ..everything()
    };
    let report = sites.sync_with(&newest_two);
    assert_eq!(report.obsolete, [backups[0].id]);
    assert_eq!(report.backups, [backups[2].id, backups[1].id]);
    // The WAL that only the first one needs does not come either.
    assert_eq!(report.wal_files, 2, "{report:?}");

    let here = sites.node.backups(sites.server()).unwrap();
    sites.node.delete_backup(&here[0], false).unwrap();
    for _ in 0..2 {
        sites.node.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    }
    let report = sites.sync();
    assert_eq!(report.deleted_here, [backups[1].id]);
    // Without the policy the first one is wanted.
    assert_eq!(report.backups, [backups[0].id]);
    // Who asks for it by its id gets it.
    let report = sites.sync_with(&SyncOptions {
        backups: SyncedBackups::Only(backups[0].id),
        ..everything()
    });
    assert!(report.backups.is_empty());
    sites.assert_sound();
}

#[test]
fn a_sweep_of_the_primary_does_not_disturb_a_sync() {
    let sites = Sites::new();
    let doomed = sites.back_up(1, &files(1));
    // It shares a file with the first one, whose pack is then copied to another one without the rest.
    let shared = sites.pack_of(&doomed);
    sites.back_up(2, &files(2));
    let packs = Arc::new(TestPacks::new(sites.packs()));
    let (reads, swept) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let primary = sites.primary.repository.clone();
    let was_swept = Arc::clone(&swept);
    let directory = primary.path().join("packs");
    let place = move |pack: PackId| {
        let name = pack.to_string();
        directory.join(&name[..2]).join(name)
    };
    packs.before_each(move |call| {
        // Behind the reads of the footer: in the middle of the newest backup, which is copied first.
        let is_late = *call == Call::Read(shared) && reads.fetch_add(1, Ordering::Relaxed) >= 3;
        if is_late && !was_swept.swap(true, Ordering::Relaxed) {
            primary.delete_backup(&doomed, false).unwrap();
            for _ in 0..2 {
                primary.sweep(&SweepOptions::default(), &mut Silent).unwrap();
            }
        }
        // A pack that is open here could still be read; on another host it is gone.
        match call {
            Call::Read(pack) if !place(*pack).exists() => Err(barmanfs_store::Error::MissingPack(*pack)),
            _ => Ok(()),
        }
    });
    let report = sites.sync_by(packs, &everything()).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(swept.load(Ordering::Relaxed));
    assert!(report.gone_packs > 0 && !report.notes.is_empty(), "{report:?}");
    assert_eq!(report.backups.len(), 1, "{report:?}");
    sites.assert_sound();
    let report = sites.sync();
    assert_eq!(
        (report.backups.len(), report.problems.len()),
        (0, 0),
        "{report:?}"
    );
    sites.assert_equal();
}

#[test]
fn an_error_at_any_read_leaves_nothing_that_looks_whole() {
    let sites = Sites::new();
    let first = files(1);
    sites.back_up(1, &first);
    sites.back_up(2, &changed(&first, 1000));
    for nth in [0, 1, 5, 12, 20, 27, 40] {
        let packs = Arc::new(TestPacks::new(sites.packs()));
        let reads = AtomicUsize::new(0);
        packs.before_each(move |call| {
            let is_it = matches!(call, Call::Read { .. }) && reads.fetch_add(1, Ordering::Relaxed) == nth;
            match is_it {
                true => Err(barmanfs_store::Error::io(
                    "read",
                    "the network".as_ref(),
                    std::io::Error::other("it is down"),
                )),
                false => Ok(()),
            }
        });
        let _may_fail = sites.sync_by(packs, &everything());
        let backups = sites.node.backups(sites.server()).unwrap();
        assert!(backups.iter().all(Backup::is_complete));
        backups
            .iter()
            .for_each(|backup| drop(restore(&sites.node, backup)));
        sites.assert_sound();
    }
    sites.sync();
    sites.assert_equal();
}

#[test]
fn damage_of_the_primary_is_named_and_not_taken() {
    let sites = Sites::new();
    sites.back_up(1, &files(1));
    let damaged = sites.back_up(2, &files(2));
    let pack = sites.pack_of(&damaged).to_string();
    let packs = sites.primary.repository.path().join("packs");
    let path = |id: &str| packs.join(&id[..2]).join(id);
    let good = std::fs::read(path(&pack)).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 1;
    std::fs::write(path(&pack), &bad).unwrap();
    let report = sites.sync();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(report.problems[0].contains(&pack), "{report:?}");
    assert!(report.problems[0].contains(&damaged.id.to_string()), "{report:?}");
    assert_eq!((report.backups.len(), report.wal_files), (1, 2), "{report:?}");
    assert_eq!(sites.node_ids().len(), 1);

    // A pack without a footer hides what it holds.
    std::fs::write(path(&pack), &good[..good.len() - 100]).unwrap();
    std::fs::remove_dir_all(sites.node.path().join("sync")).unwrap();
    let report = sites.sync();
    assert!(
        report.problems.iter().any(|problem| problem.contains(&pack)),
        "{report:?}"
    );
    assert_eq!(sites.current_at(), None);
    std::fs::write(path(&pack), &good).unwrap();
    let report = sites.sync();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(sites.current_at().is_some());
    sites.assert_equal();
}

/// Damages every chunk of a repository: data, listings, maps and WAL.
fn damage(repository: &Repository) {
    let packs = LocalPacks::open(&repository.path().join("packs")).unwrap();
    let mut all = Vec::new();
    let listed = packs.list(&mut |pack| {
        all.push(pack);
        Ok(())
    });
    listed.unwrap();
    for pack in all {
        let name = pack.to_string();
        let path = repository.path().join("packs").join(&name[..2]).join(&name);
        let mut bytes = std::fs::read(&path).unwrap();
        for chunk in read_footer(&packs, pack).unwrap().chunks {
            bytes[chunk.offset as usize + chunk.stored_bytes as usize / 2] ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

/// The kind: what a verification found damaged here stays so although the primary has it.
#[test]
fn what_is_damaged_here_comes_again() {
    let sites = Sites::new();
    let first = files(1);
    sites.back_up(1, &first);
    sites.back_up(2, &changed(&first, 1000));
    sites.sync();
    damage(&sites.node);
    let node = Repository::open(sites.node.path()).unwrap();
    let found = node.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(!found.damages.is_empty());
    node.note_damage(&found).unwrap();
    let backups = node.backups(sites.server()).unwrap();
    assert_eq!(node.damaged_backups(&backups).unwrap().len(), 2);
    let sites = Sites { node, ..sites };
    let report = sites.sync();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(
        report.backups.is_empty() && report.copied_chunks > 0,
        "{report:?}"
    );
    assert!(report.notes[0].contains("damaged here"), "{report:?}");
    // What is below a listing or a map, or based on another chunk, can be looked at when that is whole.
    let clean_after = (0..8).find(|_| {
        let found = sites.node.verify(&VerifyScope::All, &mut Silent).unwrap();
        sites.node.note_damage(&found).unwrap();
        sites.sync();
        found.is_clean()
    });
    assert!(clean_after.is_some());
    assert!(sites.node.damaged_backups(&backups).unwrap().is_empty());
    sites.assert_equal();
    assert_eq!(sites.sync().copied_chunks, 0);
}

#[test]
fn what_the_primary_cannot_repair_is_told_when_it_is_asked_for() {
    let sites = Sites::new();
    let backup = sites.back_up(1, &files(1));
    sites.sync();
    damage(&sites.node);
    damage(&sites.primary.repository);
    let node = Repository::open(sites.node.path()).unwrap();
    let found = node.verify(&VerifyScope::All, &mut Silent).unwrap();
    node.note_damage(&found).unwrap();
    let sites = Sites { node, ..sites };
    let report = sites.sync_with(&SyncOptions {
        backups: SyncedBackups::Only(backup.id),
        ..everything()
    });
    let says = |words: &str| report.problems.iter().any(|problem| problem.contains(words));
    assert!(
        says("either") && says(&format!("{} is damaged", backup.id)),
        "{report:?}"
    );
}

#[test]
fn who_asks_for_a_backup_that_was_deleted_here_gets_it() {
    let sites = Sites::new();
    let [old, _] = [1, 2].map(|number| sites.back_up(number, &files(number.into())));
    sites.sync();
    let only = SyncOptions {
        backups: SyncedBackups::Only(old.id),
        ..everything()
    };
    for _ in 0..2 {
        let here = sites.node.backups(sites.server()).unwrap();
        sites.node.delete_backup(&here[0], false).unwrap();
        let report = sites.sync();
        assert!(report.deleted_here.contains(&old.id), "{report:?}");
        let report = sites.sync_with(&only);
        assert_eq!(report.backups, [old.id], "{report:?}");
        let report = sites.sync();
        assert!(
            report.deleted_here.is_empty() && report.problems.is_empty(),
            "{report:?}"
        );
        sites.assert_equal();
    }
    Repository::rebuild(sites.node.path(), &mut Silent).unwrap();
    sites.assert_equal();
}

#[test]
fn the_same_import_on_both_is_one_backup() {
    let sites = Sites::new();
    let taken = TimestampMicros::from_unix_seconds(1_700_000_000);
    let take = |repository: &Repository| {
        let import = Import {
            id: BackupId::at(taken),
            tool: "Barman".to_owned(),
            name: "20231114T221320".to_owned(),
            begin_time: taken,
            end_time: taken,
            shut_down: false,
        };
        let writer = repository.writer("import").unwrap();
        let run = writer.begin_import(sites.server(), new_backup(), import).unwrap();
        put_files(&run, &files(1));
        finish(run, 1, 1)
    };
    take(&sites.primary.repository);
    sites.back_up(1, &files(1));
    take(&sites.node);
    let report = sites.sync();
    assert!(report.problems.is_empty(), "{report:?}");
    assert_eq!(report.backups.len(), 1, "{report:?}");
    sites.assert_equal();
}

#[test]
fn the_primary_can_add_and_nothing_else() {
    let sites = Sites::new();
    let backup = sites.back_up(1, &files(1));
    sites.sync();
    // A deletion there, and a server there that has other records here.
    sites.primary.repository.delete_backup(&backup, false).unwrap();
    let primary = sites.primary.repository.path().to_owned();
    sites.sweep_primary();
    sites.sync();
    assert_eq!(sites.node_ids(), [backup.id.to_string()]);
    let node = Fixture {
        directory: tempfile::tempdir().unwrap(),
        repository: sites.node.clone(),
        server: sites.server().clone(),
    };
    assert_eq!((stored(&node, DELETION), stored(&node, WAL)), (0, 1));
    // Nothing was written there.
    assert!(!primary.join("sync").exists());

    // A repository is no primary of itself, and another cluster is no primary of this one.
    let id = sites.node.settings().id.clone();
    let itself = SyncSource {
        id: &id,
        packs: Arc::new(sites.packs()),
    };
    let refused = sites
        .node
        .sync_from(sites.server(), &itself, &everything(), &mut Silent);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    let evil = SyncSource {
        id: "../../../../tmp/0123456789abcdef",
        packs: Arc::new(sites.packs()),
    };
    let refused = sites
        .node
        .sync_from(sites.server(), &evil, &everything(), &mut Silent);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    let other = fixture();
    let (name, bytes) = segment(5, barmanfs_pg::SystemId(5), 5);
    archive(&other.repository, &other.server, &name, &bytes).unwrap();
    let other_id = other.repository.settings().id.clone();
    let packs = LocalPacks::open(&other.repository.path().join("packs")).unwrap();
    let foreign = SyncSource {
        id: &other_id,
        packs: Arc::new(packs),
    };
    let refused = sites
        .node
        .sync_from(sites.server(), &foreign, &everything(), &mut Silent);
    assert!(matches!(refused, Err(Error::OtherSystem { .. })), "{refused:?}");
}

#[test]
fn wal_that_the_primary_has_merged_is_not_taken_twice() {
    let sites = Sites::new();
    sites.back_up(1, &files(1));
    for number in 2..6 {
        let (name, bytes) = segment(number, SYSTEM, number.into());
        archive(&sites.primary.repository, sites.server(), &name, &bytes).unwrap();
    }
    sites.sync();
    let in_three_days =
        TimestampMicros::from(std::time::SystemTime::now()).unix_micros() + 3 * 24 * 3_600_000_000;
    let options = SweepOptions {
        as_of: Some(TimestampMicros::from_unix_micros(in_three_days)),
        ..SweepOptions::default()
    };
    let merged = sites.primary.repository.sweep(&options, &mut Silent).unwrap();
    assert!(
        merged.merged_packs >= 4 && merged.waiting_packs == 0,
        "{merged:?}"
    );
    let report = sites.sync();
    assert_eq!(
        (report.wal_files, report.backups.len(), report.problems.len()),
        (0, 0, 0),
        "{report:?}"
    );
    sites.assert_equal();
    // A node that begins now takes it out of the merged packs.
    let fresh = Sites {
        node: Repository::create(
            &sites.primary.directory.path().join("fresh"),
            CreateOptions::default(),
        )
        .unwrap(),
        primary: sites.primary,
    };
    fresh.sync();
    fresh.assert_equal();
}
