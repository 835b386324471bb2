//! How fast a repository grows.

use crate::common::{SYSTEM, archive, begin, finish, fixture, noise, put_files, segment};
use barmanfs_catalog::{Growth, Repository};
use barmanfs_pg::wal_name::WalName;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// The growth over a week, seen when this much time has passed.
fn seen_after(repository: &Repository, passed: Duration) -> Growth {
    let now = SystemTime::now() + passed;
    repository.growth((now - WEEK).into(), now.into()).unwrap()
}

/// A file that adds about this many bytes.
fn files(seed: u64, bytes: usize) -> crate::common::Files {
    [(format!("base/{seed}"), noise(seed, bytes))].into()
}

#[test]
fn backups_and_wal_of_the_last_days_count() {
    let f = fixture();
    let empty = seen_after(&f.repository, HOUR);
    assert_eq!(empty, Growth::default());

    let first = begin(&f.repository, &f.server);
    put_files(&first, &files(1, 3 << 20));
    finish(first, 1, 1);
    assert_eq!(
        seen_after(&f.repository, 50 * HOUR).bytes_per_day,
        0,
        "the first backup comes once"
    );

    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let wal = f.repository.wal(&f.server).totals().unwrap().new_stored_bytes;
    assert!(wal > 1_000_000, "{wal}");
    let of_wal = seen_after(&f.repository, HOUR);
    assert_eq!(of_wal.bytes_per_day, wal, "an hour is no rate");
    assert!((3590..3610).contains(&of_wal.observed_seconds), "{of_wal:?}");
    let near = |growth: Growth, bytes: u64| growth.bytes_per_day.abs_diff(bytes) < bytes / 100;
    assert!(near(seen_after(&f.repository, 48 * HOUR), wal / 2));

    let second = begin(&f.repository, &f.server);
    put_files(&second, &files(2, 2 << 20));
    let second = finish(second, 1, 1);
    assert!(second.new_stored_bytes > 2_000_000);
    let both = seen_after(&f.repository, 48 * HOUR);
    assert!(near(both, (wal + second.new_stored_bytes) / 2), "{both:?}");
    assert!(!both.has_deletions);
    f.repository.delete_backup(&second, true).unwrap();
    let deleted = seen_after(&f.repository, 48 * HOUR);
    assert!(deleted.has_deletions && near(deleted, wal / 2), "{deleted:?}");
    let long_after = seen_after(&f.repository, 9 * 24 * HOUR);
    assert_eq!(long_after.bytes_per_day, 0, "nothing was added for a week");
}

#[test]
fn wal_is_counted_from_a_segment_on() {
    let f = fixture();
    let totals: Vec<u64> = (1..=3)
        .map(|number| {
            let (name, bytes) = segment(number, SYSTEM, u64::from(number));
            archive(&f.repository, &f.server, &name, &bytes).unwrap();
            f.repository.wal(&f.server).totals().unwrap().new_stored_bytes
        })
        .collect();
    let (WalName::Segment(second), _) = segment(2, SYSTEM, 2) else {
        panic!("a segment");
    };
    let from_second = f.repository.wal(&f.server).totals_from(second).unwrap();
    assert_eq!(from_second.files, 2);
    assert_eq!(from_second.new_stored_bytes, totals[2] - totals[0]);
}
