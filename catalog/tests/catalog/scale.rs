//! What must stay fast and small with large amounts of data.

use std::time::{Duration, Instant};

use barmanfs_catalog::{Repository, WalOutcome};
use barmanfs_pg::wal_name::WalName;

use crate::common::{SYSTEM, archive, fixture, segment};

/// Generous: other tests run at the same time.
const SLACK: u32 = 10;

#[test]
fn opening_takes_milliseconds() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            let repository = Repository::open(f.repository.path()).unwrap();
            assert!(repository.wal(&f.server).find(&name).unwrap().is_some());
            start.elapsed()
        })
        .min();
    assert!(best.unwrap() < Duration::from_millis(3) * SLACK, "{best:?}");
}

#[test]
fn an_archive_of_thousands_is_found_and_listed_by_pages() {
    let f = fixture();
    let writer = f.repository.writer("test").unwrap();
    let count = 1500_u32;
    for number in 0..count {
        let name: WalName = format!("{:08X}.history", number + 2).parse().unwrap();
        let text = format!("1\t0/3000000\t{number}\n");
        let outcome = writer
            .archive_wal(&f.server, &name, &mut text.as_bytes(), text.len() as u64, "test")
            .unwrap();
        assert!(matches!(outcome, WalOutcome::Stored(_)));
    }
    let archive = f.repository.wal(&f.server);
    let start = Instant::now();
    assert_eq!(archive.entries().count(), count as usize);
    let listing = start.elapsed();
    assert!(listing < Duration::from_millis(20) * SLACK, "{listing:?}");
    let start = Instant::now();
    for number in 0..count {
        let name: WalName = format!("{:08X}.history", number + 2).parse().unwrap();
        assert!(archive.entry(&name).unwrap().is_some());
    }
    let finding = start.elapsed();
    assert!(finding < Duration::from_millis(30) * SLACK, "{finding:?}");
}
