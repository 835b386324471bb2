//! The WAL archive: what is acknowledged stays, and nothing else gets in.

use crate::common::{SYSTEM, archive, fixture, read_wal, segment};
use barmanfs_catalog::{Error, WalOutcome};
use barmanfs_pg::SystemId;
use barmanfs_pg::wal_name::WalName;

#[test]
fn a_segment_reads_back_and_may_arrive_again() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    assert!(matches!(
        archive(&f.repository, &f.server, &name, &bytes).unwrap(),
        WalOutcome::Stored(_)
    ));
    assert_eq!(read_wal(&f.repository, &f.server, &name), bytes);
    let generation = f.repository.generation().unwrap();
    assert!(matches!(
        archive(&f.repository, &f.server, &name, &bytes).unwrap(),
        WalOutcome::AlreadyThere(_)
    ));
    assert_eq!(
        f.repository.generation().unwrap(),
        generation,
        "nothing new was written"
    );
    assert_eq!(f.repository.system_id(&f.server).unwrap(), Some(SYSTEM));
    assert_eq!(f.repository.servers().unwrap(), std::slice::from_ref(&f.server));
}

#[test]
fn different_bytes_under_a_name_are_quarantined_once() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    let (_, other) = segment(1, SYSTEM, 2);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    for _ in 0..2 {
        let outcome = archive(&f.repository, &f.server, &name, &other).unwrap();
        assert!(matches!(outcome, WalOutcome::Conflict(_)), "{outcome:?}");
    }
    assert_eq!(
        read_wal(&f.repository, &f.server, &name),
        bytes,
        "the archived one stays"
    );
    let kept = f.repository.wal(&f.server).quarantined().unwrap();
    assert_eq!(kept.len(), 1);
    let mut found = Vec::new();
    std::io::Read::read_to_end(
        &mut f.repository.trees().reader(kept[0].file.map.clone()),
        &mut found,
    )
    .unwrap();
    assert_eq!(found, other);
}

#[test]
fn files_that_are_not_the_segment_are_refused() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let (foreign_name, foreign) = segment(2, SystemId(1), 2);
    let error = archive(&f.repository, &f.server, &foreign_name, &foreign).unwrap_err();
    assert!(matches!(error, Error::OtherSystem { .. }), "{error}");
    let error = archive(&f.repository, &f.server, &foreign_name, &bytes).unwrap_err();
    assert!(matches!(error, Error::Wal(_)), "{error}");
    let (third_name, third) = segment(3, SYSTEM, 3);
    let error = archive(&f.repository, &f.server, &third_name, &third[..third.len() - 1]).unwrap_err();
    assert!(matches!(error, Error::Wal(_)), "{error}");
    let writer = f.repository.writer("test").unwrap();
    let longer = [third.as_slice(), b"x"].concat();
    for source in [&third[..5000], longer.as_slice()] {
        let error = writer
            .archive_wal(&f.server, &third_name, &mut &*source, third.len() as u64, "test")
            .unwrap_err();
        assert!(matches!(error, Error::WalSize { .. }), "{error}");
    }
    assert_eq!(f.repository.wal(&f.server).entries().count(), 1);
}

#[test]
fn every_kind_of_file_is_archived() {
    let f = fixture();
    let backup = b"START WAL LOCATION: 0/100028 (file 000000010000000000000001)\n\
        STOP WAL LOCATION: 0/100100 (file 000000010000000000000001)\nCHECKPOINT LOCATION: 0/100060\n";
    for (text, bytes) in [
        ("00000002.history", &b"1\t0/3000000\treason\n"[..]),
        ("000000010000000000000001.00000028.backup", &backup[..]),
    ] {
        let name: WalName = text.parse().unwrap();
        let error = archive(&f.repository, &f.server, &name, b"hello\n").unwrap_err();
        assert!(matches!(error, Error::BadWalFile { .. }), "{error}");
        archive(&f.repository, &f.server, &name, bytes).unwrap();
        assert_eq!(read_wal(&f.repository, &f.server, &name), bytes);
    }
    let (WalName::Segment(segment_name), bytes) = segment(7, SYSTEM, 7) else {
        panic!()
    };
    let partial = WalName::Partial(segment_name);
    archive(&f.repository, &f.server, &partial, &bytes).unwrap();
    assert_eq!(read_wal(&f.repository, &f.server, &partial), bytes);
    let huge = vec![1; 2 << 20];
    let error = archive(
        &f.repository,
        &f.server,
        &"00000003.history".parse().unwrap(),
        &huge,
    )
    .unwrap_err();
    assert!(matches!(error, Error::WalSize { .. }), "{error}");
}

#[test]
fn a_listing_has_every_name_once_in_order() {
    let f = fixture();
    let mut names: Vec<WalName> = (2..=40)
        .map(|n| format!("{n:08X}.history").parse().unwrap())
        .collect();
    for name in names.iter().rev() {
        archive(
            &f.repository,
            &f.server,
            name,
            format!("1\t0/3000000\t{name}\n").as_bytes(),
        )
        .unwrap();
    }
    names.sort_by_key(WalName::to_string);
    let archive = f.repository.wal(&f.server);
    let listed: Vec<WalName> = archive.entries().map(|entry| entry.unwrap().name).collect();
    assert_eq!(listed, names);
    let page = archive.page(Some(&names[3]), 5).unwrap();
    assert_eq!(
        page.iter().map(|entry| entry.name).collect::<Vec<_>>(),
        &names[4..9]
    );
    assert_eq!(archive.totals().unwrap().files, 39);
    assert_eq!(
        archive.entry(&names[0]).unwrap().unwrap(),
        page_entry(&archive, &names[0])
    );
}

fn page_entry(archive: &barmanfs_catalog::WalArchive<'_>, name: &WalName) -> barmanfs_catalog::WalEntry {
    archive
        .entries()
        .map(Result::unwrap)
        .find(|entry| &entry.name == name)
        .unwrap()
}

#[test]
fn concurrent_archivers_agree_on_one_file() {
    let f = fixture();
    let outcomes: Vec<WalOutcome> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..6)
            .map(|thread| {
                let f = &f;
                scope.spawn(move || {
                    let (name, bytes) = segment(1, SYSTEM, thread % 2);
                    archive(&f.repository, &f.server, &name, &bytes).unwrap()
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let count = |wanted: fn(&WalOutcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
    assert_eq!(count(|outcome| matches!(outcome, WalOutcome::Stored(_))), 1);
    assert_eq!(count(|outcome| matches!(outcome, WalOutcome::AlreadyThere(_))), 2);
    assert_eq!(count(|outcome| matches!(outcome, WalOutcome::Conflict(_))), 3);
    assert_eq!(f.repository.wal(&f.server).quarantined().unwrap().len(), 1);
}
