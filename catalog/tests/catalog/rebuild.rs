//! The catalog can be thrown away.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{
    Files, Fixture, SYSTEM, archive, back_up, begin, boot_test, fixture, noise, put_files, read_wal, restore,
    segment,
};
use barmanfs_catalog::{BootOutcome, Error, Repository, Silent, SweepOptions, VerifyScope};

fn files(seed: u64) -> Files {
    (0..5)
        .map(|n| (format!("base/{n}"), noise(seed + n, 300_000)))
        .collect()
}

/// All a user sees of a repository, as text.
fn seen(repository: &Repository) -> String {
    let mut lines = Vec::new();
    for server in repository.servers().unwrap() {
        lines.push(format!("{server} {:?}", repository.system_id(&server).unwrap()));
        for backup in repository.backups(&server).unwrap() {
            lines.push(serde_json::to_string(&backup).unwrap());
            lines.push(format!("{:?}", repository.boot_test(&backup).unwrap()));
            if backup.root.is_some() {
                lines.extend(
                    restore(repository, &backup)
                        .iter()
                        .map(|(path, bytes)| format!("{path} {}", crc32c::crc32c(bytes))),
                );
            }
        }
        let archive = repository.wal(&server);
        for entry in archive.entries() {
            let entry = entry.unwrap();
            let bytes = read_wal(repository, &server, &entry.name);
            lines.push(format!(
                "{entry:?} {} {:?}",
                crc32c::crc32c(&bytes),
                archive.find(&entry.name).unwrap()
            ));
        }
        lines.push(format!("{:?}", archive.quarantined().unwrap()));
    }
    lines.join("\n")
}

/// Backups of two servers, one tested, one failed, one deleted, WAL, and a segment in quarantine.
fn filled() -> Fixture {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(1));
    let tested = back_up(&f.repository, &f.server, &files(2));
    for (minute, outcome) in [(2, BootOutcome::Failed), (1, BootOutcome::Ok)] {
        f.repository
            .add_boot_test(&tested, boot_test(minute, outcome))
            .unwrap();
    }
    begin(&f.repository, &f.server).fail("no reason");
    back_up(&f.repository, &"other".parse().unwrap(), &files(1));
    for number in 1..5 {
        let (name, bytes) = segment(number, SYSTEM, number.into());
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
    }
    let (name, other) = segment(2, SYSTEM, 99);
    archive(&f.repository, &f.server, &name, &other).unwrap();
    f.repository.delete_backup(&first, false).unwrap();
    f
}

fn remove_catalog(path: &Path) {
    for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        fs::remove_file(path.join(file)).unwrap();
    }
}

#[test]
fn a_rebuild_gives_back_what_was_there() {
    let f = filled();
    let before = seen(&f.repository);
    remove_catalog(f.repository.path());
    let error = Repository::open(f.repository.path()).unwrap_err();
    assert!(matches!(error, Error::CatalogMissing { .. }), "{error}");
    assert!(error.to_string().contains("rebuild-catalog"), "{error}");
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(report.problems.is_empty());
    assert_eq!((report.backups, report.wal_files), (3, 4));
    let rebuilt = Repository::open(f.repository.path()).unwrap();
    assert_eq!(seen(&rebuilt), before);
    let report = rebuilt.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(report.is_clean(), "{report:?}");
    rebuilt.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(seen(&rebuilt), before);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(seen(&Repository::open(f.repository.path()).unwrap()), before);
}

#[test]
fn an_open_repository_notices() {
    let f = filled();
    let before = seen(&f.repository);
    let generation = f.repository.generation().unwrap();
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_ne!(f.repository.generation().unwrap(), generation);
    assert_eq!(seen(&f.repository), before);
    let (name, bytes) = segment(9, SYSTEM, 9);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let other = Repository::open(f.repository.path()).unwrap();
    assert_eq!(
        read_wal(&other, &f.server, &name),
        bytes,
        "written into the new catalog"
    );
}

#[test]
fn a_damaged_catalog_says_what_to_do() {
    let f = filled();
    let before = seen(&f.repository);
    let path = f.repository.path().to_path_buf();
    let catalog = path.join("catalog.sqlite");
    remove_catalog(&path);
    for bad in [&b"not a database, but long enough to be looked at by SQLite ................................................"[..], b""] {
        fs::write(&catalog, bad).unwrap();
        let error = Repository::open(&path).unwrap_err();
        assert!(error.to_string().contains("rebuild-catalog"), "{error}");
    }
    Repository::rebuild(&path, &mut Silent).unwrap();
    assert_eq!(seen(&Repository::open(&path).unwrap()), before);
}

#[test]
fn writers_are_waited_for_by_name() {
    let f = filled();
    let run = begin(&f.repository, &f.server);
    let error = Repository::rebuild(f.repository.path(), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("test backup, process {}", std::process::id())),
        "{error}"
    );
    drop(run);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
}

#[test]
fn what_killed_rebuilds_left_is_cleared_away() {
    let f = filled();
    let before = seen(&f.repository);
    let path = f.repository.path();
    let half = path.join("catalog.sqlite.rebuild-abc123");
    fs::write(&half, b"half").unwrap();
    // Killed in the middle of the exchange.
    fs::rename(path.join("catalog.sqlite"), path.join("catalog.sqlite.old")).unwrap();
    assert!(Repository::open(path).is_err());
    Repository::rebuild(path, &mut Silent).unwrap();
    let names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !half.exists() && !path.join("catalog.sqlite.old").exists(),
        "{names:?}"
    );
    assert_eq!(seen(&Repository::open(path).unwrap()), before);
}

fn pack_paths(path: &Path) -> Vec<PathBuf> {
    let mut packs = Vec::new();
    for directory in fs::read_dir(path.join("packs")).unwrap() {
        packs.extend(
            fs::read_dir(directory.unwrap().path())
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
    }
    packs.sort();
    packs
}

#[test]
fn a_damaged_pack_is_named_and_the_rest_is_there() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let known = pack_paths(f.repository.path());
    let backup = back_up(&f.repository, &f.server, &files(1));
    let damaged = pack_paths(f.repository.path())
        .into_iter()
        .find(|pack| !known.contains(pack))
        .unwrap();
    let mut content = fs::read(&damaged).unwrap();
    let last = content.len() - 70;
    content[last] ^= 1;
    fs::write(&damaged, content).unwrap();
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(damaged.ends_with(report.problems[0].pack.to_string()));
    let rebuilt = Repository::open(f.repository.path()).unwrap();
    assert_eq!(read_wal(&rebuilt, &f.server, &name), bytes);
    let listed = rebuilt.backups(&f.server).unwrap();
    assert!(listed.is_empty() || listed[0].id == backup.id);
}

#[test]
fn an_interrupted_backup_is_still_seen() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(1));
    let state = f.repository.path().join("running/main.json");
    let kept = fs::read(&state).unwrap();
    let id = run.id();
    drop(run);
    let backup = f.repository.backups(&f.server).unwrap().remove(0);
    f.repository.delete_backup(&backup, false).unwrap();
    fs::write(&state, kept).unwrap();
    let before = seen(&f.repository);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    let rebuilt = Repository::open(f.repository.path()).unwrap();
    assert_eq!(rebuilt.backups(&f.server).unwrap()[0].id, id);
    assert_eq!(seen(&rebuilt), before);
}
