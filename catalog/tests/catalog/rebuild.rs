//! The catalog can be thrown away.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{
    Files, Fixture, SYSTEM, archive, back_up, begin, boot_test, fixture, noise, put_files, read_wal, restore,
    segment,
};
use crate::configuration::back_up_with;
use barmanfs_catalog::{BootOutcome, CreateOptions, Error, Repository, Silent, SweepOptions, VerifyScope};
use barmanfs_store::{LocalPacks, PackWriter, Record, RecordId, read_footer};

/// A backup's record among the kinds of records in FORMAT.md.
const BACKUP_RECORD: u8 = 1;

fn files(seed: u64) -> Files {
    (0..5)
        .map(|n| (format!("base/{n}"), noise(seed + n, 300_000)))
        .collect()
}

/// Everything a user sees of a repository, as text.
fn seen(repository: &Repository) -> String {
    let mut lines = Vec::new();
    for server in repository.servers().unwrap() {
        lines.push(format!("{server} {:?}", repository.system_id(&server).unwrap()));
        for backup in repository.backups(&server).unwrap() {
            lines.push(serde_json::to_string(&backup).unwrap());
            lines.push(format!("{:?}", repository.boot_test(&backup).unwrap()));
            lines.push(format!("{:?}", repository.configuration_files(&backup).unwrap()));
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
    back_up_with(&f, 3, &[("/etc/postgresql.conf", b"port = 1\n")]);
    begin(&f.repository, &f.server).fail("no reason");
    crate::snapshots::take(&f);
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
fn a_rebuild_restores_the_whole_catalog() {
    let f = filled();
    let before = seen(&f.repository);
    remove_catalog(f.repository.path());
    let error = Repository::open(f.repository.path()).unwrap_err();
    assert!(matches!(error, Error::CatalogMissing { .. }), "{error}");
    assert!(error.to_string().contains("rebuild-catalog"), "{error}");
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(report.problems.is_empty());
    assert_eq!((report.backups, report.wal_files), (5, 4));
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
fn an_open_repository_notices_a_rebuild() {
    let f = filled();
    let before = seen(&f.repository);
    let generation = f.repository.generation().unwrap();
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_ne!(f.repository.generation().unwrap(), generation);
    assert_eq!(seen(&f.repository), before);
    let (name, bytes) = segment(9, SYSTEM, 9);
    // The other server's timeline has one history.
    let server = "other".parse().unwrap();
    archive(&f.repository, &server, &name, &bytes).unwrap();
    let other = Repository::open(f.repository.path()).unwrap();
    assert_eq!(
        read_wal(&other, &server, &name),
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
fn leftovers_of_killed_rebuilds_are_removed() {
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

fn flip_a_bit_of_the_footer(pack: &Path) {
    let mut content = fs::read(pack).unwrap();
    let last = content.len() - 70;
    content[last] ^= 1;
    fs::write(pack, content).unwrap();
}

fn bytes_of(packs: &[PathBuf]) -> Vec<Vec<u8>> {
    packs.iter().map(|pack| fs::read(pack).unwrap()).collect()
}

/// The pack with the record of the backup that `work` makes.
fn pack_of_backup_made_by(f: &Fixture, work: impl FnOnce()) -> PathBuf {
    let known = pack_paths(f.repository.path());
    work();
    let storage = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
    let has_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let pack = read_footer(&storage, name.parse().unwrap()).unwrap();
        pack.records.iter().any(|record| record.kind == BACKUP_RECORD)
    };
    pack_paths(f.repository.path())
        .into_iter()
        .find(|path| !known.contains(path) && has_it(path))
        .unwrap()
}

#[test]
fn a_rebuild_names_a_damaged_pack_keeps_the_rest_and_frees_nothing() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let first = back_up(&f.repository, &f.server, &files(1));
    // Most of what this backup shows is in the pack of the first.
    let mut added = files(1);
    added.insert("base/added".to_owned(), noise(9, 1000));
    let last = pack_of_backup_made_by(&f, || drop(back_up(&f.repository, &f.server, &added)));
    let path = f.repository.path();
    let backup = f.repository.backups(&f.server).unwrap().pop().unwrap();
    f.repository.delete_backup(&first, false).unwrap();
    let whole = fs::read(&last).unwrap();
    let catalog = fs::read(path.join("catalog.sqlite")).unwrap();
    flip_a_bit_of_the_footer(&last);
    let report = Repository::rebuild(path, &mut Silent).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(last.ends_with(report.problems[0].pack.to_string()));
    assert_eq!(report.kept_catalog, Some(path.join("catalog.sqlite.old")));
    assert_eq!(fs::read(path.join("catalog.sqlite.old")).unwrap(), catalog);
    // A second rebuild keeps the catalog from before the first one.
    Repository::rebuild(path, &mut Silent).unwrap();
    assert_eq!(fs::read(path.join("catalog.sqlite.old")).unwrap(), catalog);
    let rebuilt = Repository::open(path).unwrap();
    assert_eq!(read_wal(&rebuilt, &f.server, &name), bytes);
    assert_eq!(rebuilt.backups(&f.server).unwrap(), []);

    let packs = pack_paths(path);
    let before = bytes_of(&packs);
    let error = rebuilt.sweep(&SweepOptions::default(), &mut Silent).unwrap_err();
    let text = error.to_string();
    assert!(
        error.is_damage()
            && text.contains("nothing is freed")
            && text.contains(&report.problems[0].pack.to_string()),
        "{text}"
    );
    assert!(pack_paths(path) == packs && bytes_of(&packs) == before);

    fs::write(&last, whole).unwrap();
    let report = Repository::rebuild(path, &mut Silent).unwrap();
    assert_eq!((report.problems.len(), report.kept_catalog), (0, None));
    assert!(!path.join("catalog.sqlite.old").exists());
    let rebuilt = Repository::open(path).unwrap();
    rebuilt.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(restore(&rebuilt, &backup), added);
}

#[test]
fn a_rebuild_leaves_out_only_damaged_packs() {
    let f = filled();
    let before = seen(&f.repository);
    let path = f.repository.path();
    let pack = pack_paths(path).remove(0);
    let aside = path.join("aside");
    fs::rename(&pack, &aside).unwrap();
    // A pack that the system refuses to open may be whole. Root may read everything, but cannot follow a
    // link to itself.
    std::os::unix::fs::symlink(&pack, &pack).unwrap();
    Repository::rebuild(path, &mut Silent).unwrap_err();
    fs::remove_file(&pack).unwrap();
    fs::rename(&aside, &pack).unwrap();
    assert_eq!(seen(&Repository::open(path).unwrap()), before);
}

#[test]
fn packs_alone_are_a_repository() {
    let f = filled();
    let before = seen(&f.repository);
    let moved = f.directory.path().join("moved");
    let create = || Repository::create(&moved, CreateOptions::default()).unwrap_err();
    fs::create_dir(&moved).unwrap();
    fs::rename(f.repository.path().join("packs"), moved.join("packs")).unwrap();
    for error in [Repository::open(&moved).unwrap_err(), create()] {
        assert!(error.to_string().contains("rebuild-catalog"), "{error}");
    }
    let report = Repository::rebuild(&moved, &mut Silent).unwrap();
    assert!(report.made_settings);
    let rebuilt = Repository::open(&moved).unwrap();
    assert_eq!(seen(&rebuilt), before);
    back_up(&rebuilt, &f.server, &files(7));
    assert!(!Repository::rebuild(&moved, &mut Silent).unwrap().made_settings);
    // Without packs there is nothing to build a repository from.
    let empty = f.directory.path().join("empty");
    fs::create_dir_all(empty.join("packs")).unwrap();
    let error = Repository::rebuild(&empty, &mut Silent).unwrap_err();
    assert!(matches!(error, Error::NoRepository { .. }), "{error}");
    assert!(!empty.join("repository.json").exists());
}

#[test]
fn a_later_catalog_is_refused_without_advising_a_rebuild() {
    let f = filled();
    let catalog = f.repository.path().join("catalog.sqlite");
    rusqlite::Connection::open(&catalog)
        .and_then(|db| db.pragma_update(None, "user_version", 99))
        .unwrap();
    let error = Repository::open(f.repository.path()).unwrap_err();
    assert!(matches!(error, Error::CatalogNewer { found: 99, .. }), "{error}");
    assert!(!error.to_string().contains("rebuild"), "{error}");
}

#[test]
fn records_of_an_unknown_kind_keep_everything() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(1));
    let packs = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
    let mut pack = PackWriter::begin(&packs).unwrap();
    let record = Record {
        id: RecordId::random().unwrap(),
        kind: 99,
        payload: b"{}".to_vec(),
    };
    let id = record.id.to_string();
    pack.record(record).unwrap();
    pack.close().unwrap();
    f.repository.delete_backup(&backup, false).unwrap();
    let packs = pack_paths(f.repository.path());
    let error = f
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&id) && text.contains("nothing is freed"), "{text}");
    assert_eq!(pack_paths(f.repository.path()), packs);
}

#[test]
fn a_pack_whose_footer_was_lost_is_repacked_with_its_records() {
    let f = fixture();
    let small: Files = [("kept".to_owned(), noise(1, 300_000))].into();
    let mut large = small.clone();
    large.insert("gone".to_owned(), noise(2, 3_000_000));
    let first = back_up(&f.repository, &f.server, &large);
    let packs = pack_paths(f.repository.path());
    let largest = packs
        .iter()
        .max_by_key(|pack| pack.metadata().unwrap().len())
        .unwrap();
    let second = back_up(&f.repository, &f.server, &small);
    f.repository.delete_backup(&first, false).unwrap();
    flip_a_bit_of_the_footer(largest);
    let report = f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(
        (report.repacked_packs, report.problems.len()),
        (1, 0),
        "{report:?}"
    );
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    let rebuilt = Repository::open(f.repository.path()).unwrap();
    assert_eq!(rebuilt.system_id(&f.server).unwrap(), Some(SYSTEM));
    assert_eq!(restore(&rebuilt, &second), small);
}

#[test]
fn a_rebuild_keeps_an_interrupted_backup_visible() {
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

#[test]
fn a_rebuild_leaves_no_file_of_its_own() {
    let f = fixture();
    back_up(&f.repository, &f.server, &Files::new());
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    let entries = fs::read_dir(f.repository.path()).unwrap();
    let names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("rebuild"))
        .collect();
    assert_eq!(names, [""; 0]);
}
