//! What people and monitoring run every minute must not read all rows of anything: each statement has an index.

use std::collections::BTreeSet;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{SegmentSize, SystemId, TimelineId, TimestampMicros, testing};
use barmanfs_store::Attributes;

use crate::archive::backup::BackupSelector;
use crate::home::now;
use crate::index::db::statements;
use crate::index::repository::{Repository, temporary};
use crate::index::unread::count_unread;
use crate::names::ServerName;
use crate::retention::RetentionRules;
use crate::testing::{backup_end, new_backup};

/// These may have millions of rows.
const LARGE: [&str; 9] = [
    "wal",
    "segments",
    "packs",
    "chunk_lists",
    "run_pages",
    "records",
    "record_packs",
    "restore_points",
    "placed",
];

/// Statements that walk through all segments of one server, once, since their result has all of them in it.
const WALKS: [&str; 1] = ["SELECT timeline, number, end_lsn, time_min, time_max, commits FROM segments"];

/// What `cron`, `status`, `list-backups`, `check`, `timeline` and `metrics` ask the catalog.
fn ask_everything(repository: &Repository, server: &ServerName) {
    let backups = repository.backups(server).unwrap();
    repository.newest_backups(server, 8).unwrap();
    repository.backup(server, &BackupSelector::Latest).unwrap();
    repository.servers().unwrap();
    repository.system_id(server).unwrap();
    repository.freeable(0).unwrap();
    repository.pack_totals().unwrap();
    repository.last_boot_test(server).unwrap();
    repository.timelines(server).unwrap();
    repository.gaps(server, &backups).unwrap();
    repository.unreadable_files(server).unwrap();
    repository.recovery_window(server, &backups).unwrap();
    repository.open_forks(server).unwrap();
    repository.known_loss().unwrap();
    repository.damaged_backups(&backups).unwrap();
    repository
        .growth(TimestampMicros::from_unix_seconds(0), now())
        .unwrap();
    repository.clones(server).unwrap();
    repository.unread_packs().unwrap();
    repository
        .retention(server, &RetentionRules::default(), now())
        .unwrap();
    let wal = repository.wal(server);
    wal.newest_segment().unwrap();
    wal.totals().unwrap();
    let first: SegmentName = "000000010000000000000003".parse().unwrap();
    wal.totals_from(first).unwrap();
    wal.last_segment(TimelineId(1), None).unwrap();
    wal.quarantined().unwrap();
}

/// A backup and WAL.
fn fill(repository: &Repository, server: &ServerName) {
    const SYSTEM: SystemId = SystemId(7_710_414_268_036_822_209);
    let writer = repository.writer("test").unwrap();
    for number in 1..5 {
        let content = vec![7; usize::try_from(SegmentSize::MIN.bytes()).unwrap()];
        let (name, bytes) = testing::segment(number, SYSTEM, content);
        let name = WalName::Segment(name);
        let length = bytes.len() as u64;
        writer
            .archive_wal(server, &name, &mut &*bytes, length, "test")
            .unwrap();
    }
    let mut run = writer.begin_backup(server, new_backup(SYSTEM)).unwrap();
    run.end_tree(Attributes {
        mode: 0o700,
        uid: 1,
        gid: 1,
        mtime_s: 0,
        mtime_ns: 0,
    })
    .unwrap();
    run.finish(backup_end(1, 2)).unwrap();
}

/// The steps of a plan that read all rows of a large table, or all that one server has there.
fn scans(repository: &Repository, statement: &str) -> Vec<String> {
    let is_scan = |step: &str| {
        let words: Vec<&str> = step.split_whitespace().collect();
        let is_large = words
            .get(1)
            .is_some_and(|table| LARGE.contains(&table_of(statement, table)));
        let is_partial = step.contains("records_but_wal") || step.contains("condemned_packs");
        let is_server = step.ends_with("USING PRIMARY KEY (server=?)");
        let is_bounded = statement.contains("LIMIT") || statement.contains("min(");
        // All rows, where no sweep has run for long.
        let is_rest = step.ends_with("(rowid>?)");
        is_large && !is_partial && (words[0] == "SCAN" || is_rest || is_server && !is_bounded)
    };
    let plan: Vec<String> = repository
        .db
        .read(|db| {
            let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {statement}"))?;
            let count = explain.parameter_count();
            for number in 1..=count {
                explain.raw_bind_parameter(number, rusqlite::types::Null)?;
            }
            let mut rows = explain.raw_query();
            let mut steps = Vec::new();
            while let Some(row) = rows.next()? {
                steps.push(row.get(3)?);
            }
            Ok(steps)
        })
        .unwrap();
    plan.into_iter().filter(|step| is_scan(step)).collect()
}

/// The table that a name in a plan means.
fn table_of<'a>(statement: &str, name: &'a str) -> &'a str {
    LARGE
        .into_iter()
        .find(|table| {
            statement.contains(&format!("FROM {table} {name}"))
                || statement.contains(&format!("JOIN {table} {name}"))
        })
        .unwrap_or(name)
}

#[test]
fn short_commands_read_no_table_from_one_end_to_the_other() {
    let (_directory, repository) = temporary();
    let server: ServerName = "main".parse().unwrap();
    fill(&repository, &server);
    for bad in [
        "SELECT count(*) FROM packs",
        "SELECT sum(size_bytes) FROM wal w WHERE w.server = ?1",
        "SELECT name FROM wal WHERE server = ?1 AND name LIKE '%.history'",
        "SELECT 1 FROM records r JOIN wal w ON w.record = r.seq",
        "SELECT 1 FROM wal_removals m JOIN records r ON r.seq = m.record WHERE m.record > ?1 LIMIT 9",
    ] {
        assert_ne!(scans(&repository, bad), [""; 0], "{bad}");
    }
    let seen: BTreeSet<String> = statements::of(|| ask_everything(&repository, &server));
    assert!(seen.len() > 30, "{seen:?}");
    let found: Vec<String> = seen
        .iter()
        .filter(|statement| {
            let statement = statement.trim_start();
            (statement.starts_with("SELECT") || statement.starts_with("WITH"))
                && !WALKS.iter().any(|walk| statement.starts_with(walk))
        })
        .flat_map(|statement| {
            scans(&repository, statement)
                .into_iter()
                .map(move |step| format!("{step}: {statement}"))
        })
        .collect();
    assert_eq!(found, [""; 0]);
}

/// Where a disk is not mounted, millions of packs are missing: none of them is asked for by itself.
#[test]
fn missing_packs_are_looked_for_together() {
    const MISSING: usize = 3000;
    let (_directory, repository) = temporary();
    repository
        .db
        .write(|transaction| {
            let rows = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                        INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes)
                        SELECT randomblob(16), 1, 0, 0, 0 FROM n";
            Ok(transaction.execute(rows, [MISSING])?)
        })
        .unwrap();
    let seen = statements::counted(|| {
        let unread = repository.unread_packs().unwrap();
        assert_eq!(count_unread(&unread), MISSING as u64);
    });
    let asked: usize = seen.values().sum();
    assert!(asked < 2 * 256 + 100, "{seen:?}");
}
