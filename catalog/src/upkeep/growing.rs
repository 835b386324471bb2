//! How the work grows with the repository: counted, not timed, so that a busy machine shows the same. `barmanfs-growth` (tools) measures
//! times at real sizes.

use std::time::Duration;

use barmanfs_store::Counts;
use barmanfs_store::testing::ATTRIBUTES;

use crate::archive::backup::{Backup, BackupSelector};
use crate::home::now;
use crate::index::db::statements;
use crate::index::repository::{Repository, temporary};
use crate::monitor::Silent;
use crate::names::ServerName;
use crate::testing::{SYSTEM, backup_end, new_backup_with_wal};
use crate::upkeep::sweep::SweepOptions;

/// Twice as many may take so many powers of two of the work.
const LINEAR: f64 = 1.05;
const NOT_AT_ALL: f64 = 0.1;

/// The power of its size by which the work grows from the first size to the last.
fn exponent(measured: &[(u32, u64)]) -> f64 {
    let (Some((few, little)), Some((many, much))) = (measured.first(), measured.last()) else {
        panic!("nothing is measured");
    };
    assert!(*little > 0, "{measured:?}");
    (*much as f64 / *little as f64).ln() / (f64::from(*many) / f64::from(*few)).ln()
}

#[track_caller]
fn assert_grows(what: &str, measured: &[(u32, u64)], most: f64) {
    let found = exponent(measured);
    assert!(
        found <= most,
        "{what}: {measured:?} has exponent {found:.2}, at most {most}"
    );
}

fn main_server() -> ServerName {
    "main".parse().unwrap()
}

/// A backup of these files of one window each, by number and content.
fn back_up(repository: &Repository, files: impl Iterator<Item = (u32, u64)>) -> Backup {
    let writer = repository.writer("test").unwrap();
    let new = new_backup_with_wal(SYSTEM);
    let mut run = writer.begin_backup(&main_server(), new).unwrap();
    for (file, content) in files {
        let path = format!("base/{}/{file}", file / 500);
        let mut bytes = vec![0; 512];
        bytes
            .iter_mut()
            .zip(content.to_le_bytes())
            .for_each(|(byte, own)| *byte = own);
        let tree = run.tree().unwrap();
        let mut sink = tree.file(path.as_bytes(), ATTRIBUTES, 512, 8192).unwrap();
        sink.write(&bytes).unwrap();
        sink.finish().unwrap();
    }
    run.end_tree(ATTRIBUTES).unwrap();
    run.finish(backup_end(1, 1)).unwrap()
}

/// Chunks asked for, and reads of packs.
fn asked(counts: &Counts) -> u64 {
    counts.cache_hits + counts.cache_misses + counts.pack_read_latency.count
}

/// What some work adds to it.
fn asks(repository: &Repository, work: impl FnOnce(&Repository)) -> u64 {
    let before = asked(&repository.counters().snapshot());
    work(repository);
    asked(&repository.counters().snapshot()) - before
}

/// How many statements some work runs in this thread.
fn statements(work: impl FnOnce()) -> u64 {
    statements::counted(work).values().sum::<usize>() as u64
}

/// Rows of archived segments, as many as this, behind the first.
fn add_segments(repository: &Repository, count: u32) {
    let rows = "CREATE TEMP TABLE n AS WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 1 + ?1)
                SELECT n FROM n";
    let names = "printf('00000001%08X%08X', n / 4096, n % 4096)";
    repository
        .db
        .write(|db| {
            db.execute(rows, [count])?;
            db.execute_batch(&format!(
                "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) SELECT randomblob(16), 1, 0, 1, 1 FROM n;
                 INSERT INTO records (seq, id, kind, payload) SELECT 1000000 + n, randomblob(16), 2, x'7b7d' FROM n;
                 INSERT INTO wal (server, name, record, size_bytes, archived_at, new_stored_bytes)
                     SELECT 'main', {names}, 1000000 + n, 1048576, 1700000000000000 + n, 1 FROM n;
                 INSERT INTO segments (server, timeline, number, record, end_lsn, last_lsn, time_min, time_max,
                     checkpoint_time, xid_min, xid_max, commits, ends_in, ends_early, head, tail, reads, unknown, tablespaces)
                     SELECT 'main', 1, n, 1000000 + n, (n + 1) * 1048576, (n + 1) * 1048576 - 64, n, n, NULL, n, n, 1, n,
                     0, 0, 0, 1, 0, 0 FROM n;
                 DROP TABLE n"
            ))?;
            Ok(())
        })
        .unwrap();
}

/// What `status`, `check` and `list-backups` ask about a server.
fn ask(repository: &Repository, server: &ServerName) {
    let backups = repository.backups(server).unwrap();
    repository.gaps(server, &backups).unwrap();
    repository.timelines(server).unwrap();
    repository.recovery_window(server, &backups).unwrap();
    repository.damaged_backups(&backups).unwrap();
    repository.growth(now(), now()).unwrap();
    repository.freeable(0).unwrap();
    repository.pack_totals().unwrap();
    repository.wal(server).newest_segment().unwrap();
    repository.wal(server).totals().unwrap();
}

#[test]
fn what_is_asked_of_the_catalog_does_not_grow_with_the_wal() {
    let measured: Vec<(u32, u64)> = [10, 100, 1000]
        .map(|segments| {
            let (_directory, repository) = temporary();
            back_up(&repository, [(1, 1)].into_iter());
            add_segments(&repository, segments);
            let server = main_server();
            assert_eq!(
                repository.wal(&server).totals().unwrap().files,
                u64::from(segments)
            );
            (segments, statements(|| ask(&repository, &server)))
        })
        .into();
    assert_grows("statements by segments", &measured, NOT_AT_ALL);
}

#[test]
fn lists_grow_with_the_backups_and_what_looks_at_the_newest_does_not() {
    let (mut all, mut newest) = (Vec::new(), Vec::new());
    for backups in [4, 16, 64] {
        let (_directory, repository) = temporary();
        let server = main_server();
        for _ in 0..backups {
            back_up(&repository, [(1, 1)].into_iter());
        }
        all.push((backups, statements(|| ask(&repository, &server))));
        let look = || {
            repository.newest_backups(&server, 3).unwrap();
        };
        newest.push((backups, statements(look)));
        assert_eq!(repository.backups(&server).unwrap().len(), backups as usize);
        repository.backup(&server, &BackupSelector::Latest).unwrap();
    }
    assert_grows("statements by backups", &all, LINEAR);
    assert_grows("statements for the newest", &newest, NOT_AT_ALL);
}

#[test]
fn an_unchanged_backup_asks_for_the_pages_of_its_files_and_not_for_files() {
    let measured: Vec<(u32, u64)> = [50, 300, 1500]
        .map(|files| {
            let (_directory, repository) = temporary();
            back_up(&repository, (0..files).map(|file| (file, 1 + u64::from(file))));
            // In another order, as a file system gives them.
            let again = (0..files)
                .map(|nth| nth * 7 % files)
                .map(|file| (file, 1 + u64::from(file)));
            let asked = asks(&repository, |repository| drop(back_up(repository, again)));
            (files, asked)
        })
        .into();
    assert_grows("requests of a backup by files", &measured, LINEAR);
    let (files, asked) = measured[2];
    assert!(
        asked * 20 < u64::from(files),
        "{asked} requests for {files} files"
    );
}

#[test]
fn a_sweep_grows_with_what_differs_from_backup_to_backup() {
    const FILES: u32 = 1000;
    let measured: Vec<(u32, u64)> = [1, 6, 24]
        .map(|backups| {
            let (_directory, repository) = temporary();
            for backup in 0..backups {
                // One directory changes.
                let content = |file| match file / 500 {
                    0 => u64::from(file) + u64::from(backup) * 1_000_000 + 1,
                    _ => u64::from(file) + 1,
                };
                back_up(&repository, (0..FILES).map(|file| (file, content(file))));
            }
            let sweep = |repository: &Repository| {
                let options = SweepOptions {
                    abandoned_after: Duration::ZERO,
                    ..SweepOptions::default()
                };
                repository.sweep(&options, &mut Silent).unwrap();
            };
            let opened = Repository::open(repository.path()).unwrap();
            (backups, asks(&opened, sweep))
        })
        .into();
    assert_grows("requests of a sweep by backups", &measured, LINEAR);
}

#[test]
fn a_rebuild_grows_with_the_packs() {
    let measured: Vec<(u32, u64)> = [4, 16, 64]
        .map(|packs| {
            let (_directory, repository) = temporary();
            for number in 0..packs {
                back_up(&repository, [(number, 1 + u64::from(number))].into_iter());
            }
            let path = repository.path().to_owned();
            drop(repository);
            let ran = statements(|| {
                Repository::rebuild(&path, &mut Silent).unwrap();
            });
            (packs, ran)
        })
        .into();
    assert_grows("statements of a rebuild by packs", &measured, LINEAR);
}
