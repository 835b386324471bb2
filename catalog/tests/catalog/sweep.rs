//! Sweeping: data in use stays, whatever happens at the same time; the space of other data is freed.

use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    Files, Fixture, SYSTEM, WINDOW, archive, attributes, back_up, backup_end, begin, clone_of, finish,
    fixture, noise, put_files, read_wal, restore, segment,
};
use barmanfs_catalog::{
    Backup, BackupStatus, CreateOptions, Monitor, Repository, ServerName, Silent, SweepOptions, SweepReport,
    VerifyScope, WalOutcome,
};
use barmanfs_store::{LocalPacks, Node, PackStorage};

const MIB: u64 = 1024 * 1024;

fn sweep(repository: &Repository) -> SweepReport {
    repository.sweep(&SweepOptions::default(), &mut Silent).unwrap()
}

fn verify_clean(repository: &Repository) {
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn pack_bytes(repository: &Repository) -> u64 {
    let packs = LocalPacks::open(&repository.path().join("packs")).unwrap();
    let mut bytes = 0;
    packs
        .list(&mut |pack| {
            bytes += packs.bytes(pack)?;
            Ok(())
        })
        .unwrap();
    bytes
}

/// Files, some of which change with each generation.
fn files(generation: u64) -> Files {
    let mut files = Files::new();
    for n in 0..12_u64 {
        let mut bytes = noise(n, 40_000 + usize::try_from(n).unwrap() * 30_000);
        if n % 3 == generation % 3 {
            bytes[5] ^= u8::try_from(generation + 1).unwrap();
        }
        files.insert(format!("base/{n}"), bytes);
    }
    files.insert(format!("base/own{generation}"), noise(1000 + generation, 400_000));
    files
}

#[test]
fn deleting_everything_frees_the_space() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    assert!(pack_bytes(&f.repository) > 2_000_000);
    assert_eq!(sweep(&f.repository).removed_packs, 0);
    f.repository.delete_backup(&backup, false).unwrap();
    let report = sweep(&f.repository);
    assert!(report.removed_packs > 0, "{report:?}");
    assert_eq!(report.waiting_packs, 0);
    assert!(
        pack_bytes(&f.repository) < 5_000,
        "{} bytes left",
        pack_bytes(&f.repository)
    );
    assert_eq!(
        back_up(&f.repository, &f.server, &files(0)).status,
        BackupStatus::WaitingForWals
    );
    verify_clean(&f.repository);
}

#[test]
fn backups_deleted_in_any_order_leave_the_others_whole() {
    for seed in 0..6_u64 {
        let f = fixture();
        let mut backups: Vec<_> = (0..5)
            .map(|generation| (back_up(&f.repository, &f.server, &files(generation)), generation))
            .collect();
        let mut random = seed;
        while !backups.is_empty() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let victim = usize::try_from(random >> 33).unwrap() % backups.len();
            let (backup, _) = backups.remove(victim);
            f.repository.delete_backup(&backup, false).unwrap();
            let report = sweep(&f.repository);
            assert_eq!(
                (report.missing_chunks, report.problems.len()),
                (0, 0),
                "{report:?}"
            );
            verify_clean(&f.repository);
            for (backup, generation) in &backups {
                assert_eq!(restore(&f.repository, backup), files(*generation), "seed {seed}");
            }
        }
        assert!(pack_bytes(&f.repository) < 10_000);
    }
}

#[test]
fn a_running_writer_keeps_the_chunks_it_found() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(0));
    f.repository.delete_backup(&first, false).unwrap();
    let report = sweep(&f.repository);
    assert_eq!(report.removed_packs, 0, "{report:?}");
    assert!(report.waiting_packs > 0);
    assert!(report.waiting_for[0].contains("test backup"), "{report:?}");
    sweep(&f.repository);
    let second = finish(run, 1, 1);
    let report = sweep(&f.repository);
    assert!(report.rescued_packs > 0, "{report:?}");
    assert_eq!(restore(&f.repository, &second), files(0));
    verify_clean(&f.repository);
}

/// A backup whose chunks are in condemned packs: it found them there before the packs were condemned. No sweep has
/// seen this backup yet.
fn on_condemned_packs(f: &Fixture) -> Backup {
    let first = back_up(&f.repository, &f.server, &files(0));
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(0));
    f.repository.delete_backup(&first, false).unwrap();
    assert!(sweep(&f.repository).waiting_packs > 0);
    finish(run, 1, 1)
}

#[test]
fn a_backup_reuses_nothing_of_a_tree_deleted_while_it_runs() {
    let f = fixture();
    let second = on_condemned_packs(&f);
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(0));
    f.repository.delete_backup(&second, false).unwrap();
    assert!(sweep(&f.repository).removed_packs > 0);
    let third = finish(run, 1, 1);
    verify_clean(&f.repository);
    assert_eq!(restore(&f.repository, &third), files(0));
}

#[test]
fn an_incremental_backup_reuses_nothing_of_a_parent_deleted_while_it_runs() {
    let f = fixture();
    let second = on_condemned_packs(&f);
    let mut run = begin(&f.repository, &f.server);
    let (trees, root) = run.build_on(&second).unwrap();
    for path in files(0).into_keys() {
        let entry = trees.find(&root, path.as_bytes()).unwrap().unwrap();
        let Node::File(map) = entry.node else { panic!() };
        let (size, base) = (map.size_bytes, Some((&trees, &map)));
        let file = run
            .tree()
            .unwrap()
            .composed_file(path.as_bytes(), attributes(), size, WINDOW, base, size);
        file.unwrap().finish().unwrap();
    }
    // Windows that are taken over are read while they exist.
    run.end_tree(attributes()).unwrap();
    f.repository.delete_backup(&second, false).unwrap();
    assert!(sweep(&f.repository).removed_packs > 0);
    let third = run.finish(backup_end(1, 1)).unwrap();
    verify_clean(&f.repository);
    assert_eq!(restore(&f.repository, &third), files(0));
}

#[test]
fn a_clone_being_created_keeps_its_base() {
    let f = fixture();
    let second = on_condemned_packs(&f);
    let draft = f.repository.begin_clone(clone_of(&second), &second).unwrap();
    f.repository.delete_backup(&second, true).unwrap();
    assert_eq!(sweep(&f.repository).removed_packs, 0);
    draft.finish().unwrap();
    assert_eq!(sweep(&f.repository).missing_chunks, 0);
    assert_eq!(restore(&f.repository, &second), files(0));
}

#[test]
fn a_later_writer_stores_condemned_chunks_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let other = begin(&f.repository, &"other".parse().unwrap());
    f.repository.delete_backup(&first, false).unwrap();
    assert!(sweep(&f.repository).waiting_packs > 0);
    let second = back_up(&f.repository, &f.server, &files(0));
    assert!(
        second.new_stored_bytes > 2_000_000,
        "it referred to condemned packs"
    );
    drop(other);
    let report = sweep(&f.repository);
    assert!(report.removed_packs > 0, "{report:?}");
    assert_eq!(report.waiting_packs, 0);
    assert_eq!(restore(&f.repository, &second), files(0));
    verify_clean(&f.repository);
}

#[test]
fn packs_of_a_running_backup_are_left_alone() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    let big: Files = (0..40).map(|n| (format!("f{n}"), noise(n, 2_000_000))).collect();
    put_files(&run, &big);
    let report = sweep(&f.repository);
    assert_eq!((report.removed_packs, report.waiting_packs), (0, 0), "{report:?}");
    let backup = finish(run, 1, 1);
    assert_eq!(restore(&f.repository, &backup), big);
    verify_clean(&f.repository);
}

#[test]
fn a_finished_pack_that_was_not_entered_is_adopted() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let killed_before_entering = forget_catalog_since(&f, || {
        let (name, bytes) = segment(2, SYSTEM, 2);
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
        f.repository.delete_backup(&backup, false).unwrap();
    });
    assert_eq!(killed_before_entering.backups(&f.server).unwrap().len(), 1);
    let report = killed_before_entering
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    assert_eq!(report.adopted_packs, 2);
    assert!(
        killed_before_entering.backups(&f.server).unwrap().is_empty(),
        "the deletion counts"
    );
    let (name, bytes) = segment(2, SYSTEM, 2);
    assert_eq!(read_wal(&killed_before_entering, &f.server, &name), bytes);
    assert!(matches!(
        archive(&killed_before_entering, &f.server, &name, &bytes).unwrap(),
        WalOutcome::AlreadyThere(_)
    ));
    verify_clean(&killed_before_entering);
}

/// Does something, then opens a copy of the repository with the catalog from before: as if the writer had been
/// killed each time between the pack and the transaction.
fn forget_catalog_since(f: &Fixture, work: impl FnOnce()) -> Repository {
    let copy = f.directory.path().join("copy");
    let files = ["catalog.sqlite", "catalog.sqlite-wal"];
    let before: Vec<_> = files
        .iter()
        .map(|file| std::fs::read(f.repository.path().join(file)).unwrap())
        .collect();
    work();
    let status = Command::new("cp")
        .arg("-a")
        .arg(f.repository.path())
        .arg(&copy)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::remove_file(copy.join("catalog.sqlite-shm")).unwrap();
    for (file, bytes) in files.iter().zip(before) {
        std::fs::write(copy.join(file), bytes).unwrap();
    }
    Repository::open(&copy).unwrap()
}

/// Puts packs into their places when a sweep reaches a stage.
struct PutBack {
    stage: &'static str,
    packs: Vec<(PathBuf, Vec<u8>)>,
}

impl Monitor for PutBack {
    fn stage(&mut self, what: &str) {
        if what == self.stage {
            for (path, bytes) in self.packs.drain(..) {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}

#[test]
fn packs_of_a_writer_killed_during_a_sweep_are_kept() {
    for stage in ["Finding what is in use", "Freeing what is not in use"] {
        let f = fixture();
        let first = back_up(&f.repository, &f.server, &files(0));
        let second = std::cell::OnceCell::new();
        let copy = forget_catalog_since(&f, || {
            second.set(back_up(&f.repository, &f.server, &files(0))).unwrap();
        });
        // The writer's last pack appears while the sweep marks, and the writer is dead before the sweep looks for
        // active writers.
        let storage = LocalPacks::open(&copy.path().join("packs")).unwrap();
        let mut packs = Vec::new();
        storage
            .list(&mut |pack| {
                let name = pack.to_string();
                let path = copy.path().join("packs").join(&name[..2]).join(&name);
                packs.push((path.clone(), std::fs::read(&path).unwrap()));
                Ok(())
            })
            .unwrap();
        let known: Vec<String> = rusqlite::Connection::open(copy.path().join("catalog.sqlite"))
            .unwrap()
            .prepare("SELECT lower(hex(id)) FROM packs")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        packs.retain(|(path, _)| !known.contains(&path.file_name().unwrap().to_string_lossy().into_owned()));
        assert!(!packs.is_empty());
        packs
            .iter()
            .for_each(|(path, _)| std::fs::remove_file(path).unwrap());
        copy.delete_backup(&first, false).unwrap();
        copy.sweep(&SweepOptions::default(), &mut PutBack { stage, packs })
            .unwrap();
        let report = sweep(&copy);
        assert_eq!(report.missing_chunks, 0, "{stage}: {report:?}");
        let second = second.get().unwrap();
        assert!(copy.backups(&f.server).unwrap().contains(second), "{stage}");
        assert_eq!(restore(&copy, second), files(0), "{stage}");
        verify_clean(&copy);
    }
}

#[test]
fn an_orphan_adopted_after_its_segment_arrived_again_changes_nothing() {
    let f = fixture();
    let (first, first_bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &first, &first_bytes).unwrap();
    let (name, bytes) = segment(2, SYSTEM, 2);
    let copy = forget_catalog_since(&f, || {
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
    });
    assert!(matches!(
        archive(&copy, &f.server, &name, &bytes).unwrap(),
        WalOutcome::Stored(_)
    ));
    for _ in 0..3 {
        copy.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    }
    assert_eq!(read_wal(&copy, &f.server, &name), bytes);
    assert_eq!(copy.wal(&f.server).entries().count(), 2);
    assert!(
        pack_bytes(&copy) < 2_300_000,
        "the second copy of its bytes is still there"
    );
    verify_clean(&copy);
}

#[test]
fn sparse_packs_are_repacked() {
    let f = fixture();
    let small: Files = [("kept".to_owned(), noise(1, 300_000))].into();
    let mut large = small.clone();
    large.insert("gone".to_owned(), noise(2, 3_000_000));
    let first = back_up(&f.repository, &f.server, &large);
    let second = back_up(&f.repository, &f.server, &small);
    let (name, bytes) = segment(1, SYSTEM, 3);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    f.repository.delete_backup(&first, false).unwrap();
    let rate = 1_000_000;
    let limited = SweepOptions {
        bytes_per_second: NonZero::new(rate),
        ..SweepOptions::default()
    };
    let began = Instant::now();
    let report = f.repository.sweep(&limited, &mut Silent).unwrap();
    assert_eq!(report.repacked_packs, 1, "{report:?}");
    assert!(pack_bytes(&f.repository) < 1_500_000, "{report:?}");
    // The last chunk waits for those before it.
    let least = Duration::from_secs(report.copied_bytes - 140_000) / u32::try_from(rate).unwrap();
    assert!(
        report.copied_bytes > 300_000 && began.elapsed() >= least,
        "{report:?}"
    );
    assert_eq!(restore(&f.repository, &second), small);
    assert_eq!(
        sweep(&f.repository).repacked_packs,
        0,
        "a swept repository has nothing to sweep"
    );
    let listed = f.repository.backups(&f.server).unwrap();
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(
        Repository::open(f.repository.path())
            .unwrap()
            .backups(&f.server)
            .unwrap(),
        listed
    );
    assert_eq!(read_wal(&f.repository, &f.server, &name), bytes);
    verify_clean(&f.repository);
}

/// A file system in memory of a given number of MiB; none if the test does not run as root.
struct SmallDisk {
    point: tempfile::TempDir,
}

/// The room reserved for freeing space on a small file system.
const RESERVE_MEBIBYTES: u32 = 8;

impl SmallDisk {
    fn of(mebibytes: u32) -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        if point.path().metadata().unwrap().uid() != 0 {
            return None;
        }
        let size = format!("size={}m", mebibytes + RESERVE_MEBIBYTES);
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(point.path());
        assert!(mount.status().unwrap().success());
        Some(Self { point })
    }

    fn repository(&self) -> (Repository, ServerName) {
        let path = self.point.path().join("repository");
        let repository = Repository::create(&path, CreateOptions::default()).unwrap();
        (repository, "main".parse().unwrap())
    }

    fn grow(&self, mebibytes: u32) {
        let options = format!("remount,size={}m", mebibytes + RESERVE_MEBIBYTES);
        let mut mount = Command::new("mount");
        mount.args(["-o", &options]).arg(self.point.path());
        assert!(mount.status().unwrap().success());
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.point.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.point.path()).status();
    }
}

/// Files of one MiB each, which no other seed has.
fn mebibytes(seed: u64, count: u64) -> Files {
    (0..count)
        .map(|n| (format!("base/{seed}-{n}"), noise(seed * 100 + n, 1024 * 1024)))
        .collect()
}

/// Backups of this many files, with these files. Deletions have left half of what is in their packs unused.
fn half_dead(
    repository: &Repository,
    server: &ServerName,
    seeds: Range<u64>,
    count: u64,
) -> Vec<(Backup, Files)> {
    seeds
        .map(|seed| {
            let kept = mebibytes(seed, count);
            let mut all = mebibytes(1000 + seed, count);
            all.extend(kept.clone());
            let deleted = back_up(repository, server, &all);
            let backup = back_up(repository, server, &kept);
            repository.delete_backup(&deleted, false).unwrap();
            (backup, kept)
        })
        .collect()
}

fn all_are_whole(repository: &Repository, kept: &[(Backup, Files)]) {
    verify_clean(repository);
    for (backup, files) in kept {
        assert_eq!(&restore(repository, backup), files);
    }
}

#[test]
fn dead_packs_are_removed_before_anything_is_copied() {
    let Some(disk) = SmallDisk::of(66) else { return };
    let (repository, server) = disk.repository();
    let dead: Vec<_> = (0..5)
        .map(|seed| back_up(&repository, &server, &mebibytes(seed, 6)))
        .collect();
    let kept = half_dead(&repository, &server, 10..15, 3);
    dead.iter()
        .for_each(|backup| repository.delete_backup(backup, false).unwrap());
    assert!(disk.free_bytes() < 6 * MIB);
    let report = sweep(&repository);
    assert_eq!(
        (report.repacked_packs, &report.unfinished),
        (5, &None),
        "{report:?}"
    );
    assert!(
        report.removed_bytes > 60 * MIB && disk.free_bytes() > 45 * MIB,
        "{report:?}"
    );
    all_are_whole(&repository, &kept);
}

#[test]
fn repacking_takes_the_room_of_one_pack() {
    let Some(disk) = SmallDisk::of(258) else { return };
    let (repository, server) = disk.repository();
    let kept = half_dead(&repository, &server, 0..3, 30);
    assert!(disk.free_bytes() < 80 * MIB, "copies of all would fit");
    let report = sweep(&repository);
    assert_eq!(
        (report.repacked_packs, &report.unfinished),
        (3, &None),
        "{report:?}"
    );
    assert!(disk.free_bytes() > 160 * MIB);
    all_are_whole(&repository, &kept);
}

#[test]
fn repacking_ends_when_the_disk_is_full() {
    let Some(disk) = SmallDisk::of(34) else { return };
    let (repository, server) = disk.repository();
    let kept = half_dead(&repository, &server, 0..5, 3);
    let before = pack_bytes(&repository);
    for _ in 0..2 {
        let report = sweep(&repository);
        assert_eq!(report.repacked_packs, 0);
        assert!(report.unfinished.unwrap().contains("space"));
        all_are_whole(&repository, &kept);
        assert!(pack_bytes(&repository) <= before);
    }
    disk.grow(64);
    let report = sweep(&repository);
    assert_eq!(
        (report.repacked_packs, &report.unfinished),
        (5, &None),
        "{report:?}"
    );
    assert!(pack_bytes(&repository) < 16 * MIB);
    all_are_whole(&repository, &kept);
}

#[test]
fn unfinished_packs_and_dead_locks_are_removed() {
    let f = fixture();
    let packs = f.repository.path().join("packs");
    let left = packs.join("tmp-00112233445566778899aabbccddeeff.partial");
    std::fs::write(&left, b"half").unwrap();
    let lock = f.repository.path().join("locks/writer-dead");
    std::fs::write(&lock, b"").unwrap();
    let options = SweepOptions {
        abandoned_after: Duration::ZERO,
        ..SweepOptions::default()
    };
    let report = f.repository.sweep(&options, &mut Silent).unwrap();
    assert_eq!(report.abandoned_files, 1);
    assert!(!left.exists() && !lock.exists());
}

#[test]
fn a_mark_that_cannot_see_everything_frees_nothing() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    back_up(&f.repository, &f.server, &files(1));
    f.repository.delete_backup(&backup, false).unwrap();
    let before = pack_bytes(&f.repository);
    let packs = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
    packs
        .list(&mut |pack| {
            let name = pack.to_string();
            let path = f.repository.path().join("packs").join(&name[..2]).join(&name);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[32..].fill(0);
            std::fs::write(&path, bytes).unwrap();
            Ok(())
        })
        .unwrap();
    let reopened = Repository::open(f.repository.path()).unwrap();
    let error = reopened.sweep(&SweepOptions::default(), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("nothing is freed"), "{error}");
    assert_eq!(pack_bytes(&f.repository), before);
}

#[test]
fn concurrent_sweeps_writers_and_deletions_lose_nothing() {
    let f = fixture();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let own = Repository::open(f.repository.path()).unwrap();
            let mut removed = 0;
            while !stop.load(Ordering::Relaxed) {
                removed += sweep(&own).removed_packs;
            }
            removed
        });
        let writers: Vec<_> = ["a", "b"]
            .iter()
            .map(|server| {
                let f = &f;
                scope.spawn(move || {
                    let own = Repository::open(f.repository.path()).unwrap();
                    let server = server.parse().unwrap();
                    let mut kept = Vec::new();
                    for round in 0..12_u64 {
                        let backup = back_up(&own, &server, &files(round % 4));
                        assert_eq!(restore(&own, &backup), files(round % 4));
                        kept.push((backup, round % 4));
                        if kept.len() > 2 {
                            let (victim, _) = kept.remove(usize::try_from(round).unwrap() % 2);
                            own.delete_backup(&victim, false).unwrap();
                        }
                        let number = u32::try_from(round).unwrap() + 1;
                        let (name, bytes) = segment(number, SYSTEM, round);
                        archive(&own, &server, &name, &bytes).unwrap();
                    }
                    (server, kept)
                })
            })
            .collect();
        let kept: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        let kept: Vec<_> = kept.into_iter().map(Result::unwrap).collect();
        assert!(sweeper.join().unwrap() > 0);
        sweep(&f.repository);
        verify_clean(&f.repository);
        for (server, backups) in kept {
            for (backup, generation) in backups {
                assert_eq!(restore(&f.repository, &backup), files(generation));
            }
            for round in 0..12_u64 {
                let (name, bytes) = segment(u32::try_from(round).unwrap() + 1, SYSTEM, round);
                assert_eq!(read_wal(&f.repository, &server, &name), bytes);
            }
        }
    });
}
